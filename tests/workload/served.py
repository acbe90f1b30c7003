"""Requests that a server of known costs answered, as a log of usual names."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from besteffort.profiling.server_log import RequestLog

DECODE_S, PREFILL_S = (0.005, 0.00002), (0.002, 0.00002)


def served(n: int = 120, seed: int = 3) -> list[dict[str, Any]]:
    """Requests that a server of known costs answered one at a time: first and last token, and lengths."""
    rng = np.random.default_rng(seed)
    arrival = np.cumsum(rng.exponential(1.0, n))
    prompt, output = rng.integers(20, 900, n), rng.integers(5, 120, n)
    free, table = 0.0, []
    for i in range(n):
        first = max(free, arrival[i]) + PREFILL_S[0] + PREFILL_S[1] * prompt[i] + DECODE_S[0]
        free = first + DECODE_S[0] * (output[i] - 1)
        table.append(
            {
                "request_id": f"r{i}",
                "arrival_time": float(arrival[i]),
                "first_token_ts": float(first),
                "last_token_ts": float(free),
                "input_tokens": int(prompt[i]),
                "output_tokens": int(output[i]),
            }
        )
    return table


def jsonl(table: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in table)


def same(one: RequestLog, other: RequestLog, atol: float = 1e-5) -> None:
    for name in ("arrival_s", "latency_s", "ttft_s", "prompt_tokens", "output_tokens"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=0, atol=atol)
