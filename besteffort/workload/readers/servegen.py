"""ServeGen client windows: rates and gap distributions per client, from which arrivals are drawn."""

from __future__ import annotations

import dataclasses

import numpy as np

from besteffort.errors import InputError
from besteffort.ranges import Positive
from besteffort.workload.readers.types import Drawing, Trace, drawn_trace
from besteffort.workload.renewal import renewal_times
from besteffort.workload.table import Table

COLUMNS = frozenset({"window_start_s", "rate_per_s", "pattern", "arg1"})
WINDOW_S = 600.0


@dataclasses.dataclass(frozen=True)
class ServeGenOptions:
    """The part of a ServeGen table to draw arrivals from.

    Attributes:
      window_s: start and end in seconds, rounded outwards to whole windows of 600 s; None for the whole file.
      rate_scale: factor on all rates.
    """

    window_s: tuple[float, float] | None = (0.0, 3600.0)
    rate_scale: Positive = 1.0


def read(table: Table, drawing: Drawing) -> Trace:
    """`client_id`, `window_start_s` (600 s), `rate_per_s`, `cv`, `pattern`, `arg1`, `arg2`.

    Each client is a renewal process inside each of its windows; clients are superposed; windows without a row are
    silent. `pattern` is the gap distribution, `Gamma` or `Weibull`, `arg1` its shape and `arg2` its scale in seconds.
    In the published table of the large model a Gamma's `arg1` is `1 / cv^2` to six digits, and `arg1 x arg2` is the
    mean gap while the client is active, which is `1 / rate_per_s` within 3% for most windows but not where the client
    fell silent; a Weibull's moments agree with neither column (it was fitted, not matched). So `arg1` sets the shape,
    and the scale makes the expected number of requests of every window `rate_per_s x 600`.

    Raises:
      InputError: on a damaged file, or options that leave no request.
    """
    own = drawing.options or ServeGenOptions()
    table.require_newline()
    start_s = table.numbers("window_start_s")
    rate = table.numbers("rate_per_s")
    shape = table.numbers("arg1")
    table.refuse(shape <= 0, "arg1", "which is no shape")
    patterns = np.array(table.column("pattern"))
    table.refuse(~np.isin(patterns, ("Gamma", "Weibull")), "pattern", "but known are Gamma and Weibull")
    low, high = own.window_s or (0.0, np.inf)
    chosen = (start_s + WINDOW_S > low) & (start_s < high)
    if not chosen.any():
        raise InputError(
            f"{table.path}: no window lies in `window_s` [{low:g}, {high:g}]; "
            f"the file ends at {start_s.max() + WINDOW_S:g} s."
        )
    start_s, rate, shape, patterns = start_s[chosen], rate[chosen], shape[chosen], patterns[chosen]
    rng = np.random.default_rng(drawing.seed)
    mean_count = rate * own.rate_scale * WINDOW_S
    parts = []
    for law in ("Gamma", "Weibull"):
        window, offset_s = renewal_times(rng, law, np.where(patterns == law, mean_count, 0), shape, WINDOW_S)
        parts.append(start_s[window] + offset_s)
    return drawn_trace(table, "servegen", np.sort(np.concatenate(parts) - start_s.min()), None)
