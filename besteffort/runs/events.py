"""TensorBoard's event files: scalars by step, written as they come, without TensorFlow or any other package.

A file is a sequence of records (TensorFlow's `tsl/lib/io/record_writer.h`), each
`length (8 bytes), masked CRC-32C of it (4), data, masked CRC-32C of them (4)`, little-endian. The data are a protocol
buffer `Event` (`tensorflow/core/util/event.proto`): `wall_time` (field 1, double), `step` (2, varint), and either
`file_version` (3, string) or `summary` (5), whose `value` (1, repeated) has `tag` (1, string) and `simple_value`
(2, float).
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from besteffort.files import os_errors_as_input_errors

# Keys of the fields: number x 8 + wire type.
_WALL_TIME, _STEP, _FILE_VERSION, _SUMMARY = b"\x09", b"\x10", b"\x1a", b"\x2a"
_VALUE, _TAG, _SIMPLE_VALUE = b"\x0a", b"\x0a", b"\x15"
_VERSION = b"brain.Event:2"


class EventFile:
    """The scalars of one run.

    A file that is there is continued: what it holds from `step` on (after a kill, points that come again) is cut off.

    Raises:
      InputError: if the file cannot be written.
    """

    def __init__(self, path: Path, step: int = 0) -> None:
        self._path = path
        with os_errors_as_input_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            data = path.read_bytes() if path.exists() else b""
            kept = max((end for end, event in _records(data) if _step(event) < step), default=0)
            self._file = path.open("r+b" if data else "wb")
            self._file.truncate(kept)
            self._file.seek(kept)
        if not kept:
            self._write(_event(0, _FILE_VERSION + _sized(_VERSION)))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Adds one value per tag, and hands them to the operating system.

        Raises:
          InputError: if the disk is full.
        """
        summary = b"".join(
            _VALUE + _sized(_TAG + _sized(tag.encode()) + _SIMPLE_VALUE + struct.pack("<f", value))
            for tag, value in values.items()
        )
        self._write(_event(step, _SUMMARY + _sized(summary)))

    def close(self) -> None:
        self._file.close()

    def _write(self, event: bytes) -> None:
        length = struct.pack("<Q", len(event))
        with os_errors_as_input_errors(self._path):
            self._file.write(length + _masked_crc(length) + event + _masked_crc(event))
            self._file.flush()


def _event(step: int, rest: bytes) -> bytes:
    return _WALL_TIME + struct.pack("<d", time.time()) + _STEP + _varint(step) + rest


def _step(event: bytes) -> int:
    """Step of an event that `_event` made."""
    step = 0
    for index, byte in enumerate(event[10:]):
        step |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            break
    return step


def _records(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Where each whole record ends, and what it holds."""
    at = 0
    while at + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        end = at + 16 + length
        event = data[at + 12 : end - 4]
        if end > len(data) or data[end - 4 : end] != _masked_crc(event):
            return
        yield end, event
        at = end


def _sized(data: bytes) -> bytes:
    return _varint(len(data)) + data


def _varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)  # Castagnoli's polynomial, reflected
        table.append(crc)
    return table


_CRC_TABLE = _crc_table()


def _crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC_TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _masked_crc(data: bytes) -> bytes:
    crc = _crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
