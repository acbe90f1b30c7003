"""Readers of public trace files, one module per format. The data are not part of this package.

Each returns a `Trace`: what the file says, and no more. `besteffort.workload.traces.read_trace` adds what it leaves
out. Times are in seconds from 0. A file whose lines are out of order is refused: sorting it here would hide damage.

A new format is a module with `COLUMNS` and `read`, and a line in `READERS`.
"""

from besteffort.workload.readers import azure_llm, maf, mooncake, own_csv, servegen
from besteffort.workload.readers.maf import MafOptions
from besteffort.workload.readers.servegen import ServeGenOptions
from besteffort.workload.readers.types import Drawing, Reader, Trace

__all__ = ["READERS", "Drawing", "MafOptions", "Reader", "ServeGenOptions", "Trace"]

READERS: dict[str, Reader] = {
    "azure_llm": Reader(azure_llm.COLUMNS, azure_llm.read),
    "mooncake": Reader(mooncake.COLUMNS, mooncake.read),
    "maf": Reader(maf.COLUMNS, maf.read, draws=True),
    "servegen": Reader(servegen.COLUMNS, servegen.read, draws=True),
    "csv": Reader(own_csv.COLUMNS, own_csv.read),
}
"""Formats by name, in the order in which they are tried."""
