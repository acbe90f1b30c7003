"""ServeGen client windows: rates and laws of the gaps of a client, or of several, from which arrivals are drawn.

https://github.com/alibaba/ServeGen, data/language/*/chunk-N-trace.csv: no header; start of the window (s), rate (1/s),
`cv`, `Gamma` or `Weibull`, and its two parameters; silent windows are `600,0,0,,0,0`. One table of several clients has
a header, `client_id,window_start_s,rate_per_s,cv,pattern,arg1,arg2`, and leaves silent windows out.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np

from besteffort.errors import InputError
from besteffort.ranges import Positive
from besteffort.workload.columns import gather
from besteffort.workload.fields import Field
from besteffort.workload.readers.types import MOST_REQUESTS, Draw, Drawn, Reader, require_newline, some, some_gaps
from besteffort.workload.sources import Source, shown

WINDOW_S = 600.0
_LAWS: tuple[Literal["Gamma"], Literal["Weibull"]] = ("Gamma", "Weibull")


@dataclasses.dataclass(frozen=True)
class ServeGenOptions:
    """The part of a ServeGen table to draw arrivals from.

    Attributes:
      window_s: start and end in seconds, rounded outwards to whole windows of 600 s; None for the whole file.
      rate_scale: factor on all rates.
    """

    window_s: tuple[float, float] | None = (0.0, 3600.0)
    rate_scale: Positive = 1.0


def _draw(source: Source, tasks: int, options: Any) -> Draw:
    """Draws arrivals from windows of 600 s.

    Each client is a renewal process inside each of its windows; clients are superposed; windows without a row are
    silent. `pattern` is the gap distribution, `Gamma` or `Weibull`, `arg1` its shape and `arg2` its scale in seconds.
    In the published table of the large model a Gamma's `arg1` is `1 / cv^2` to six digits, and `arg1 x arg2` is the
    mean gap while the client is active, which is `1 / rate_per_s` within 3% for most windows but not where the client
    fell silent; a Weibull's moments agree with neither column (it was fitted, not matched). So `arg1` sets the shape,
    and the scale makes the expected number of requests of every window `rate_per_s x 600`.

    Raises:
      InputError: on a damaged file, or options that leave no request.
    """
    del tasks
    own: ServeGenOptions = options or ServeGenOptions()
    fields = {
        "start": Field(("window_start_s",)),
        "rate": Field(("rate_per_s",)),
        "shape": Field(("arg1",)),
        "model": Field(("pattern",)),  # a column of names, as that of models is
    }
    table = gather(source, fields, source.rows())
    require_newline(source, int(table.rows[-1]))
    start_s, rate, shape = (table.columns[field].values for field in ("start", "rate", "shape"))
    for name, values in (("window_start_s", start_s), ("rate_per_s", rate), ("arg1", shape)):
        gaps = np.flatnonzero(np.isnan(values) & ((name != "arg1") | ~(rate == 0)))
        if len(gaps):
            source.refuse(int(table.rows[gaps[0]]), name, "", "which is not a number")
    active = rate > 0
    label = table.labels["model"]
    names = (*label.names, "")
    patterns = np.array([names[index] for index in label.index.tolist()])
    least = np.where(patterns == "Weibull", 1e-2, 1e-3)  # below, moments are beyond what a number holds
    for bad, name, values, why in (
        (active & ~((shape >= least) & (shape <= 1e6)), "arg1", shape, "which is no shape of gaps"),
        (active & ~np.isin(patterns, _LAWS), "pattern", patterns, "but known are Gamma and Weibull"),
    ):
        if bad.any():
            row = int(np.argmax(bad))
            value = f"{values[row]:g}" if name == "arg1" else shown(values[row])
            source.refuse(int(table.rows[row]), name, value, why)
    low, high = own.window_s or (0.0, np.inf)
    chosen = (start_s + WINDOW_S > low) & (start_s < high)
    if not chosen.any():
        raise InputError(
            f"{source.path}: no window lies in `window_s` [{low:g}, {high:g}]; "
            f"the file ends at {start_s.max() + WINDOW_S:g} s."
        )
    start_s, rate, shape, patterns = start_s[chosen], rate[chosen], shape[chosen], patterns[chosen]
    mean_count = rate * own.rate_scale * WINDOW_S
    if mean_count.sum() > MOST_REQUESTS:
        raise InputError(
            f"{source.path}: its {mean_count.sum():,.0f} requests are more than {MOST_REQUESTS:,}; choose a shorter "
            "`window_s` or a smaller `rate_scale`."
        )

    def draw(rng: np.random.Generator) -> Drawn:
        parts = []
        for law in _LAWS:
            window, offset_s = some_gaps(source, rng, law, np.where(patterns == law, mean_count, 0), shape, WINDOW_S)
            parts.append(start_s[window] + offset_s)
        return Drawn(some(source, np.sort(np.concatenate(parts) - start_s.min())))

    return draw


READER = Reader(
    title="ServeGen client windows",
    source="https://github.com/alibaba/ServeGen",
    fits=lambda source: source.has("window_start_s", "rate_per_s", "pattern", "arg1"),
    draw=_draw,
)
