"""Per-request results of a simulation, the same for the JAX simulator and the reference. NumPy only."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np


@dataclasses.dataclass(frozen=True)
class Result:
    """One entry per request, in order of arrival; all arrays share the shape (*lanes, n).

    Attributes:
      arrival_s: arrival time, seconds.
      task: index of the task.
      prompt_tokens: length of the prompt.
      output_tokens: length of the output.
      deadline_s: deadline on the end-to-end latency, seconds.
      model: index of the pool that the router chose, which is that of the model unless the situation states pools; for
        rejected requests too.
      replica: index of the replica that served it; -1 if rejected.
      admission_s: start of the iteration that admitted it, seconds as `arrival_s`; nan if rejected, or lost before.
      first_token_s: end of the iteration that read the last token of its prompt; nan likewise.
      completion_s: end of its last iteration; nan if rejected or lost. Latency is this minus arrival plus the network
        delay.
      latency_s: end-to-end latency, network delay included; inf if rejected or lost.
      met: whether it was answered by its deadline.
      reward: its own-request reward, which is not weighed by its tenant.
      origin: index of its origin; None where requests have none.
      tenant: index of its tenant; likewise.
    """

    arrival_s: np.ndarray
    task: np.ndarray
    prompt_tokens: np.ndarray
    output_tokens: np.ndarray
    deadline_s: np.ndarray
    model: np.ndarray
    replica: np.ndarray
    admission_s: np.ndarray
    first_token_s: np.ndarray
    completion_s: np.ndarray
    latency_s: np.ndarray
    met: np.ndarray
    reward: np.ndarray
    origin: np.ndarray | None = None
    tenant: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        columns: Mapping[str, np.ndarray],
        *,
        model: np.ndarray,
        replica: np.ndarray,
        admission_s: np.ndarray,
        first_token_s: np.ndarray,
        completion_s: np.ndarray,
        latency_s: np.ndarray,
        reward: np.ndarray,
    ) -> Result:
        """A result from what a simulation or an engine knows.

        `columns` are those of the requests, see `besteffort.workload.requests.Requests.columns`. The `latency_s` of
        requests without an answer, whatever it is, becomes infinite.
        """
        latency_s = np.where((replica < 0) | np.isnan(completion_s), np.inf, latency_s)
        return cls(
            **columns,
            model=model,
            replica=replica,
            admission_s=admission_s,
            first_token_s=first_token_s,
            completion_s=completion_s,
            latency_s=latency_s,
            met=latency_s <= columns["deadline_s"].astype(latency_s.dtype),
            reward=reward,
        )

    def lanes(self, rows: slice | int | None) -> Result:
        """The given rows of the leading axis; an integer drops that axis, None puts another before it."""
        return Result(**{name: values[rows] for name, values in vars(self).items() if values is not None})

    @property
    def rejected(self) -> np.ndarray:
        """(*lanes, n) whether the request was rejected on arrival."""
        return self.replica < 0

    @property
    def lost(self) -> np.ndarray:
        """(*lanes, n) whether the request was lost with the replica that had it."""
        return ~self.rejected & np.isnan(self.completion_s)
