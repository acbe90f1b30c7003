"""The reward of an answer; the same function for NumPy and JAX arrays."""

from __future__ import annotations

from typing import Any

import numpy as np


def timeliness(latency_s: Any, deadline_s: Any, soft_span: Any, xp: Any = np) -> Any:
    """Share of an answer's value that remains: 1 up to and including the deadline.

    After the deadline it is 0 where `soft_span` is 0 (hard deadline), else
    `max(0, 1 - (latency - deadline) / (soft_span x deadline))`.
    """
    hard = soft_span <= 0
    span = xp.where(hard, 1.0, soft_span) * deadline_s
    late = xp.where(hard, 0.0, xp.maximum(0.0, 1.0 - (latency_s - deadline_s) / span))
    return xp.where(latency_s <= deadline_s, 1.0, late)


def reward(
    quality: Any, weight: Any, latency_s: Any, deadline_s: Any, soft_span: Any, miss_penalty: Any, xp: Any = np
) -> Any:
    """`weight x (quality x timeliness - miss_penalty if late)`; a rejected request has infinite latency.

    All arguments broadcast; times in seconds, quality relative to the task's best model.
    """
    missed = latency_s > deadline_s
    value = quality * timeliness(latency_s, deadline_s, soft_span, xp)
    return weight * (value - xp.where(missed, miss_penalty, 0.0))
