"""Readers of public trace files, one module per format. The data are not part of this package.

Each returns a `Trace` with the contents of the file only. `besteffort.workload.traces.read_trace` adds the fields that
the file lacks. Times are in seconds from 0. Readers reject a file whose lines are out of order: sorting it would hide
damage.

A new format needs a module with `COLUMNS` and `read`, and a line in `READERS`.
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
