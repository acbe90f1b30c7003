"""The least instance time that each request of a list takes."""

from __future__ import annotations

import numpy as np

from besteffort.estimates.charges import Work, work_of
from besteffort.estimates.tables import Tables
from besteffort.situation import Situation
from besteffort.workload.requests import Requests, check_parties


def delay_s(situation: Situation, requests: Requests) -> np.ndarray:
    """(pools, n) network delay of each pool's answer to each request, or (pools, 1) where they have no origins."""
    if requests.origin is None:
        return situation.fleet.network_delay_s[:, None]
    check_parties(requests, situation)
    return situation.fleet.delay_table(requests.origins)[requests.origin].T


def realised_work(situation: Situation, requests: Requests) -> Work:
    """One kind per request of a list."""
    tables = Tables.of(situation.fleet, int(requests.prompt_tokens.max()))
    return work_of(
        situation,
        tables,
        task=requests.task,
        count=np.ones(len(requests)),
        prompt=requests.prompt_tokens,
        held=requests.prompt_tokens[None],
        prefill_s=tables.prefill[:, requests.prompt_tokens] - tables.prefill[:, requests.found_tokens],
        output=requests.output_tokens,
        deadline_s=requests.deadline_s,
        delay_s=delay_s(situation, requests),
        late_costs=np.zeros(tables.pools, dtype=bool),  # late answers of a list may come after its last deadline
    )
