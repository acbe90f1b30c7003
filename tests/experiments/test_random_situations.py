from __future__ import annotations

import itertools

import numpy as np
import pytest

from besteffort.simulator.build import build_alike
from besteffort.workload import config as workloads
from experiments.random_situations import draw_group

pytestmark = pytest.mark.checkout


def test_the_same_draw_gives_the_same_situations() -> None:
    first, again = draw_group(3, 1, 4), draw_group(3, 1, 4)
    assert first == again
    assert len({draw.name for draw in first}) == 4
    assert draw_group(4, 1, 4) != first


@pytest.mark.parametrize("group", range(4))
def test_one_program_serves_a_group(group: int) -> None:
    draws = draw_group(5, group, 3)
    situations = [situation for draw in draws for situation in (draw.situation, draw.actual)]
    shape, params = build_alike(situations, history=1, estimates=True)
    assert len(params) == len(situations)
    assert shape.estimates is not None


def test_they_are_as_wide_as_they_claim_to_be() -> None:
    draws = list(itertools.chain.from_iterable(draw_group(6, group, 6) for group in range(20)))
    for draw in draws:
        situation = draw.situation
        assert 2 <= len(situation.profile.model_names) <= 12
        assert 1 <= situation.cluster.replicas <= 16
        quality = situation.profile.quality_table(situation.task_names)
        assert (np.diff(quality, axis=1) >= 0).all()
        for task in situation.tasks:
            assert task.prompt_tokens[1] <= 8_000
            assert task.output_tokens[1] <= 1_000
        # The smallest model, idle, has time for a mean answer.
        alone_s = situation.profile.decode_table(1)[0, 1] * situation.mean_output_tokens
        assert (situation.visible_deadlines > alone_s).all()
        capacity = situation.capacity()
        rate = float(draw.workload.process(float(capacity[-1])).mean_rate())
        assert 0.04 < rate / capacity[0] < 3.1
        workloads.build(draw.workload, situation)
    assert {draw.workload.kind for draw in draws} == {"poisson", "gamma", "markov", "steps"}
    assert {len(draw.situation.profile.model_names) for draw in draws} >= {2, 12}
    assert 0 < sum(draw.actual != draw.situation for draw in draws) < len(draws)
    assert 0 < sum(draw.situation.view.batch_refresh_s > 0 for draw in draws) < len(draws)
