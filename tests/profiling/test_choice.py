"""What is chosen on logs of the reference whose limits are known, and what is said where a log cannot tell."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from besteffort.profiling.choice import Bases, possible_limits, stretches
from besteffort.profiling.fit import fit, limit_words
from besteffort.profiling.problem import Assumption, Basis, Problem, sharing
from tests.profiling.test_fit import N, served, term

pytestmark = pytest.mark.optimised  # a log is simulated with 40 candidates again and again


def test_stretches_share_out_all_requests_in_order() -> None:
    rows = np.arange(100) % 3 > 0
    found = stretches(rows)
    assert (found[~rows] == -1).all()
    assert (np.diff(found[rows]) >= 0).all()
    sizes = np.bincount(found[rows])
    assert len(sizes) == 16
    assert sizes.max() - sizes.min() <= 1
    assert set(stretches(np.ones(8, bool)).tolist()) == {0, 1}


def test_chunks_are_found_with_the_largest_batch() -> None:
    """Of a server in overload; the times of the half whose times were not used follow."""
    log = served(14.0, noise=0.002, chunk_tokens=256)
    half = np.arange(N) < N // 2
    found = fit(log, half)
    assert (found.limit, found.max_batch, found.chunk_tokens) == ("batch", 8, 256)
    assert term(found, "chunk tokens") == (True, "`chunk_tokens` is 256: no other that was tried predicts as well.")
    errors = [np.percentile(found.last_s[~half], p) / np.percentile(log.latency_s[~half], p) - 1 for p in (50, 95, 99)]
    np.testing.assert_array_less(np.abs(errors), (0.03, 0.05, 0.05))


def test_prompts_read_whole_need_no_chunks() -> None:
    log = served(4.0, noise=0.002)
    found = fit(log)
    assert found.chunk_tokens is None
    assert found.shared_tokens == 0
    determined, text = term(found, "chunk tokens")
    # No two prompts make more than the largest that was tried.
    assert not determined
    assert text.startswith("`chunk_tokens`: undetermined between none")
    assert text.endswith("taken: prompts are read whole.")


def test_a_shared_prefix_is_suspected() -> None:
    """Of 512 tokens, which the log does not state."""
    log = served(6.0, noise=0.002, chunk_tokens=512, longer=512)
    assert log.cached_tokens is not None
    silent = dataclasses.replace(log, cached_tokens=None)
    found = fit(silent, among=[Assumption(chunk_tokens=512, shared_tokens=each) for each in (0, 512)])
    # It predicts best, but what fits without one nearly as well is used.
    assert found.alike[0].shared_tokens == 512
    determined, text = term(found, "shared prefix")
    assert not determined
    assert text.startswith("Suspected: all prompts share a prefix of about 512 tokens")
    assert text.endswith("state `cached_tokens` for each request of the log.")


def test_batches_that_more_requests_ran_in_are_no_limit() -> None:
    log = served(14.0)
    basis = Basis(log, np.ones(N, bool), None, None)
    limits = possible_limits(basis, None)
    assert Assumption(max_batch=8) in limits
    assert all((each.max_batch or 8) >= 8 for each in limits)
    # One that is given is not tried, and a cache only where requests waited.
    assert possible_limits(basis, 8) == [Assumption(max_batch=8, cache=True)]
    assert not any(each.cache for each in possible_limits(Basis(served(0.5), np.ones(N, bool), None, None), None))


def test_assumptions_share_what_does_not_depend_on_them() -> None:
    log = served(4.0)
    bases = Bases(log, np.ones(N, bool), None, None)
    assert bases[0] is bases[0]
    x = np.append(bases[0].start, [0.0, 1.0, 1.0])[None]
    plain, roomy = (
        Problem(bases[0], each).play(x)
        for each in (Assumption(), Assumption(chunk_tokens=2**20, max_batch=bases[0].seats))
    )
    np.testing.assert_array_equal(plain[1], roomy[1])


def test_a_shared_prefix_leaves_a_token_to_read() -> None:
    log = served(4.0)
    cached = sharing(log, 256).cached_tokens
    assert cached is not None
    np.testing.assert_array_equal(cached, np.minimum(256, log.prompt_tokens - 1))
    assert sharing(log, 0) is log


def test_limits_in_words() -> None:
    limits = [Assumption(cache=True), Assumption(max_batch=24, chunk_tokens=512), Assumption(), Assumption(max_batch=8)]
    assert limit_words(limits) == "no limit, a largest batch of 8, a largest batch of 24 and a full cache"
    assert limit_words(limits[:1]) == "a full cache"
