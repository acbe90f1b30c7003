"""Training, the stored form, and lists of requests with known answers."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from pathlib import Path

import jax
import numpy as np

from besteffort.laptop.files import write_model
from besteffort.laptop.quality import exact_match, right_tokens
from besteffort.laptop.requests import with_cases
from besteffort.laptop.tasks import CONTEXT, TASKS, Case, draw
from besteffort.laptop.tokenizer import END, decode, encode
from besteffort.laptop.training import Recipe, batches, train
from besteffort.opt.generation import generate
from besteffort.opt.hub import load_tokenizer
from besteffort.opt.runtime import Buckets, Runtime
from besteffort.opt.weights import load_model
from besteffort.profile import ModelProfile, Profile, Provenance, Source, TaskQuality
from besteffort.situation import Cluster, Situation, Task
from besteffort.workload.requests import Requests

RECIPE = Recipe(hidden=16, layers=1, heads=2, steps=30, batch=8, learning_rate=1e-2)


def test_training_learns_repeats_itself_and_is_stored(tmp_path: Path) -> None:
    losses: list[float] = []
    model = train(RECIPE, lambda step, loss: losses.append(loss), log_every=10)
    assert len(losses) == 3
    assert losses[-1] < losses[0] < 1.5 * math.log(RECIPE.config.vocab)
    again = train(RECIPE)
    jax.tree.map(np.testing.assert_array_equal, model.params, again.params)

    write_model(model, tmp_path)
    read = load_model(tmp_path)
    assert read.config == model.config
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2**-8), model.params, read.params)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "opt"
    tokenizer = load_tokenizer(tmp_path)
    for name in TASKS:
        for case in draw(name, 5, seed=0, held_out=True):
            assert tokenizer.encode(case.prompt) == encode(case.prompt)
            assert tokenizer.decode(encode(case.answer), skip_special_tokens=True) == case.answer

    # What the model answers, right or wrong, is judged as it should be.
    runtime = Runtime(read, 4, CONTEXT, Buckets((4,), (16,), (CONTEXT,)))
    cases = draw("brackets", 6, seed=0, held_out=True)
    answers = generate(runtime, [encode(case.prompt) for case in cases], CONTEXT - 12)
    spoken = [Case(case.prompt, decode(answer)) for case, answer in zip(cases, answers, strict=True)]
    expected = [answer == right_tokens(case) for case, answer in zip(spoken, answers, strict=True)]
    assert exact_match(runtime, spoken).tolist() == expected
    assert right_tokens(Case("(:", ")")) == [encode(")")[1], END]


def test_batches_hold_all_tasks_and_nothing_held_out() -> None:
    some = list(itertools.islice(batches(RECIPE), 20))
    again, _ = next(batches(RECIPE))
    np.testing.assert_array_equal(some[0][0], again)
    for tokens, prompts in some:
        marks = []
        for line, length in zip(tokens, prompts, strict=True):
            assert line[0] == END
            prompt = decode(line[:length].tolist())
            assert not Case(prompt, "").held_out
            marks.append(prompt[-1])
            assert END in line[length:]
        assert marks == ["=", ";", "|", ":"] * 2


def test_lists_have_the_lengths_of_their_cases() -> None:
    source = Source("measured", "a test")
    profile = Profile(
        1,
        "tiny",
        "d",
        (ModelProfile("one", ((1, 0.01),), ((1, 0.01),)),),
        tuple(TaskQuality(name, "m", "s", (50.0,)) for name in TASKS),
        Provenance(source, source, source, source),
    )
    situation = Situation(profile, Cluster(1), tuple(Task(name) for name in TASKS))
    n = 40
    task = np.arange(n) % 4
    times = Requests(tuple(TASKS), np.arange(n) / 10, task, np.ones(n), np.ones(n), np.ones(n))
    listed = with_cases(times, situation, seed=0)
    np.testing.assert_array_equal(listed.requests.arrival_s, times.arrival_s)
    np.testing.assert_array_equal(listed.requests.task, task)
    assert [len(prompt) for prompt in listed.prompts] == listed.requests.prompt_tokens.tolist()
    assert [len(case.answer) + 1 for case in listed.cases] == listed.requests.output_tokens.tolist()
    assert all(case.held_out for case in listed.cases)
    assert listed.cases[0].prompt in {case.prompt for case in draw("addition", n // 4, seed=0, held_out=True)}
    known_s = situation.deadlines(task, listed.requests.output_tokens)
    np.testing.assert_allclose(listed.requests.deadline_s, known_s)
    factor = np.where(task == 0, 0.5, 1.0)
    tight = with_cases(dataclasses.replace(times, deadline_factor=factor), situation, seed=0).requests
    np.testing.assert_array_equal(tight.deadline_factors, factor)
    np.testing.assert_allclose(tight.deadline_s, factor * known_s)
