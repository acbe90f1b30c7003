"""Event files, read with another implementation of the format than the one that writes them."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from besteffort.errors import InputError
from besteffort.runs.events import EventFile, _crc32c


def message() -> type:
    """`Event` of TensorFlow's `event.proto`, with the fields that are used here."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="event.proto", package="tensorflow", syntax="proto3")
    event = file.message_type.add(name="Event")
    event.field.add(name="wall_time", number=1, type=field.TYPE_DOUBLE, label=field.LABEL_OPTIONAL)
    event.field.add(name="step", number=2, type=field.TYPE_INT64, label=field.LABEL_OPTIONAL)
    event.field.add(name="file_version", number=3, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    event.field.add(
        name="summary", number=5, type=field.TYPE_MESSAGE, label=field.LABEL_OPTIONAL, type_name=".tensorflow.Summary"
    )
    summary = file.message_type.add(name="Summary")
    value = summary.nested_type.add(name="Value")
    value.field.add(name="tag", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    value.field.add(name="simple_value", number=2, type=field.TYPE_FLOAT, label=field.LABEL_OPTIONAL)
    summary.field.add(
        name="value",
        number=1,
        type=field.TYPE_MESSAGE,
        label=field.LABEL_REPEATED,
        type_name=".tensorflow.Summary.Value",
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Event"))


def read(path: Path) -> list[tuple[int, dict[str, float]]]:
    """Steps and scalars; the file's version is checked, and that nothing else is in it."""
    data, events = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        event = message().FromString(data[12 : 12 + length])
        assert abs(event.wall_time - time.time()) < 3600
        events.append(event)
        data = data[16 + length :]
    assert events[0].file_version == "brain.Event:2"
    return [(event.step, {v.tag: pytest.approx(v.simple_value) for v in event.summary.value}) for event in events[1:]]


def test_check_value_of_crc32c() -> None:
    """The check value of CRC-32/ISCSI in the catalogue of parametrised CRC algorithms."""
    assert _crc32c(b"123456789") == 0xE3069283


def test_scalars_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "events.out.tfevents.x"
    file = EventFile(path)
    points = [(128, {"reward": 0.5, "loss": 1e-3}), (5_767_168, {"reward": -0.25, "actions/opt-125m": 1.0})]
    for step, values in points:
        file.add(step, values)
        assert read(path)[-1] == (step, values)  # at once, so that a killed run loses nothing
    file.close()
    assert read(path) == points


@pytest.mark.parametrize("cut", [0, 1, 20])
def test_what_comes_again_replaces_what_was_there(tmp_path: Path, cut: int) -> None:
    """A file that ends within a record, or not, is continued from a step that it has already."""
    path = tmp_path / "events.out.tfevents.x"
    file = EventFile(path)
    for step in (10, 200, 300_000):
        file.add(step, {"reward": step / 10})
    file.close()
    path.write_bytes(path.read_bytes()[: -cut or None])
    file = EventFile(path, 300_000)
    file.add(300_000, {"reward": 7.0})
    file.close()
    assert read(path) == [(10, {"reward": 1.0}), (200, {"reward": 20.0}), (300_000, {"reward": 7.0})]


def test_damage_in_the_middle_ends_what_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "events.out.tfevents.x"
    file = EventFile(path)
    for step in (1, 2, 3):
        file.add(step, {"reward": 1.0})
    file.close()
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    path.write_bytes(bytes(damaged))
    EventFile(path, 4).close()
    assert [step for step, _ in read(path)] == [1]


def test_tensorboard_reads_it(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator
    file = EventFile(tmp_path / "events.out.tfevents.x")
    for step in (10, 20):
        file.add(step, {"reward": step / 10})
    file.close()
    read_by = accumulator(str(tmp_path))
    read_by.Reload()
    assert [(event.step, event.value) for event in read_by.Scalars("reward")] == [(10, 1.0), (20, 2.0)]


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write it, file exists"):
        EventFile(tmp_path / "file" / "events.out.tfevents.x")
