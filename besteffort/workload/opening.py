"""Opens what people log: CSV, JSON lines or one JSON document, plain or gzip-compressed, row by row in bounded memory.

Text is UTF-8, or UTF-16 where its first bytes say so, as spreadsheets and PowerShell write it. Lines end at line breaks
only; U+2028 and the like inside a string are text. Rows are read once and in order, so a pipe will do. Errors name the
file, the line and a remedy.
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from besteffort.errors import InputError
from besteffort.workload.csv_rows import csv_source
from besteffort.workload.json_rows import json_source
from besteffort.workload.sources import Source
from besteffort.workload.text_lines import Lines

GZIP_MAGIC = b"\x1f\x8b"
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_PANDAS = "convert it, as with `pandas.{}(FILE).to_json(NEW, orient='records', lines=True, date_unit='us')`"
_OTHERS = {
    b"PAR1": ("a Parquet file", _PANDAS.format("read_parquet")),
    b"ARROW1": ("an Arrow file", _PANDAS.format("read_feather")),
    b"PK\x03\x04": ("a zip archive or a workbook (.xlsx)", "unpack it, or save its table as CSV"),
    b"\xd0\xcf\x11\xe0": ("a workbook (.xls)", "save its table as CSV"),
    b"BZh": ("compressed with bzip2", "decompress it with `bunzip2`"),
    b"\xfd7zXZ": ("compressed with xz", "decompress it with `unxz`"),
    b"\x28\xb5\x2f\xfd": ("compressed with zstd", "decompress it with `unzstd`"),
    b"SQLite format 3": ("a SQLite database", "write its table as CSV"),
}


@contextlib.contextmanager
def open_source(path: str | Path) -> Iterator[Source]:
    """Opens a file of rows; it is closed at the end of the block.

    Raises:
      InputError: in the block, too, if the file is missing, unreadable, not text, empty, a damaged or cut gzip file,
        or its lines differ in length or are no objects.
    """
    path = Path(path)
    with _readable(path), contextlib.ExitStack() as stack:
        raw = stack.enter_context(path.open("rb"))
        start = raw.peek(16)
        file: io.BufferedIOBase = raw
        if start[:2] == GZIP_MAGIC:
            file = stack.enter_context(gzip.GzipFile(fileobj=raw))
        elif path.suffix == ".gz" and start:
            raise InputError(
                f"{path}: the file is named `.gz` but is not gzip-compressed; rename it, or copy it again."
            )
        other = next((each for magic, each in _OTHERS.items() if start.startswith(magic)), None)
        if other is not None:
            raise InputError(
                f"{path}: the file is {other[0]}, which is not read; {other[1]}; read are CSV, JSON lines and JSON, "
                "plain or gzip-compressed."
            )
        encoding = "utf-16" if start.startswith(_UTF_16) else "utf-8-sig"
        # Empty `newline` keeps line breaks as they are, which a CSV reader needs.
        text = stack.enter_context(io.TextIOWrapper(cast(Any, file), encoding=encoding, newline=""))
        yield _source(path, text)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; check the path.") from None
    except EOFError:
        raise InputError(f"{path}: the gzip stream ends early, so the file is cut short; copy it again.") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: the gzip stream is damaged ({error}); copy the file again.") from None
    except OSError as error:
        raise InputError(
            f"{path}: the file cannot be read ({error.strerror or error}); check the path and its permissions."
        ) from None
    except UnicodeDecodeError:
        raise InputError(
            f"{path}: the file is not UTF-8 text; give CSV, JSON lines or JSON, plain or gzip-compressed."
        ) from None


def _source(path: Path, text: io.TextIOWrapper) -> Source:
    lines = Lines(path, text)
    first = next((line for line in lines if line.strip()), None)
    if first is None:
        raise InputError(f"{path}: the file is empty; give a file with a header and at least one request.")
    if first.lstrip().startswith(("{", "[")):
        return json_source(path, lines, first)
    return csv_source(path, lines, first)
