"""Files as rows: containers, line ends, long cells, damage."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from besteffort.errors import InputError
from besteffort.workload import csv_rows, json_rows, text_lines
from besteffort.workload.opening import open_source
from besteffort.workload.sources import shown

Write = Callable[[str, str], Path]


def cells(path: Path) -> list[object]:
    with open_source(path) as source:
        return [row.cells for row in source.rows()]


def zipped() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("a.csv", "a,b\n1,2\n")
    return content.getvalue()


OBJECTS = [{"a": 1, "b": {"c": "x"}}, {"a": 2, "d": None}]


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1, "b": {"c": "x"}}\n{"a": 2, "d": null}\n',
        '{"a": 1, "b": {"c": "x"}}\n\n{"a": 2, "d": null}',
        '\ufeff{"a": 1, "b": {"c": "x"}}\r\n{"a": 2, "d": null}\r\n\n',
        json.dumps(OBJECTS),
        json.dumps(OBJECTS, indent=4) + "\n",
        json.dumps({"data": OBJECTS, "meta": {}}),
        json.dumps({"requests": OBJECTS}, indent=2),
        "\n".join(json.dumps(each, indent=1) for each in OBJECTS),
    ],
)
def test_json_in_every_layout(write: Write, text: str) -> None:
    path = write("log.json", text)
    assert cells(path) == OBJECTS
    with open_source(path) as source:
        assert source.header == ("a", "b", "b.c", "d")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_text_that_says_its_encoding(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(("\ufeff" * encoding.endswith("e") + "a,b\r\n1,é\r\n").encode(encoding))
    assert cells(path) == [["1", "é"]]
    with open_source(path) as source:
        assert source.header == ("a", "b")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PAR1\x15\x04", "the file is a Parquet file, which is not read; convert it, as with `pandas.read_parquet"),
        (b"ARROW1\0\0", "an Arrow file, .*`pandas.read_feather"),
        (zipped(), "a zip archive or a workbook .* unpack it"),
        (bz2.compress(b"a,b\n1,2\n"), "bzip2, .*`bunzip2`"),
        (lzma.compress(b"a,b\n1,2\n"), "xz, .*`unxz`"),
        (b"\x28\xb5\x2f\xfd\x24", "zstd, .*`unzstd`"),
        (b"SQLite format 3\0", "a SQLite database"),
    ],
)
def test_other_containers_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "log"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        cells(path)
    assert str(caught.value).count("\n") == 0


@pytest.mark.parametrize(
    "document",
    [
        {"ts": {"0": 1, "1": 2}, "n": {"0": 3, "1": 4}},
        {"0": {"ts": 1, "n": 3}, "1": {"ts": 2, "n": 4}},
        {"ts": [1, 2], "n": [3, 4]},
        {"columns": ["ts", "n"], "index": [0], "data": [[1, 3]]},
    ],
)
@pytest.mark.parametrize("indent", [None, 1])
def test_tables_by_columns_are_named(write: Write, document: object, indent: int | None) -> None:
    with pytest.raises(InputError, match="a table by columns or by index, as pandas writes by default"):
        cells(write("log.json", json.dumps(document, indent=indent)))


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c"])
def test_only_line_breaks_end_lines(write: Write, mark: str) -> None:
    objects = [{"text": f"one{mark}two"}, {"text": "three"}]
    text = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in objects)
    # JSON allows no bare control characters in strings.
    if mark > "\x1f":
        assert cells(write("log.jsonl", text)) == objects
    assert cells(write("log.csv", f"text,n\none{mark}two,1\n")) == [[f"one{mark}two", "1"]]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_separators_and_line_ends(write: Write, separator: str, end: str) -> None:
    lines = [["a", "b"], ["1", "x y"], ["2", ""]]
    assert cells(write("log.csv", end.join(separator.join(line) for line in lines) + end)) == lines[1:]


def test_cells_may_be_long_and_have_line_breaks(write: Write) -> None:
    prompt = "z" * 200_000
    assert cells(write("log.csv", f"a,text\n0,{prompt}\n1,k\n")) == [["0", prompt], ["1", "k"]]
    with open_source(write("log.csv", 'a,text\n0,"p\nq"\n\n1,"p\nq"\n2,"r"\n')) as source:
        assert [row.number for row in source.rows()] == [2, 5, 7]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("\n  \n", "the file is empty"),
        ("[]", "holds no requests"),
        ("[1, 2]", "entry 1: `1` is not a JSON object"),
        ('[{"a": 1}, 2]', "entry 2: `2` is not a JSON object"),
        ('[{"a": 1},', "neither JSON lines nor a JSON document"),
        ('{"a": 1}\n{"a": 2\n', "line 2: the line is not a JSON object; mend or remove it"),
        (
            '{"a": 1}\n{"a": 2',
            "line 2: the line is not a JSON object; it is the last one, so the file may be cut short",
        ),
        ('{"a": 1,}\n{"a": 2}\n', "line 1: the line is not a JSON object"),
        ('{"a": ' + "[" * 100_000, "nested too deeply"),
        ('{"a": ' + "7" * 5_000 + "}", "neither JSON lines nor"),
        (
            'a,b\n1,"2\n',
            "line 2: the file is not a CSV table from there on .*; mend the line, in which perhaps a quote",
        ),
        ("a,b\n1,2,3\n4,5\n", "line 2: the line has 3 fields but the header has 2; mend"),
        ("a,b\n", "no rows below its header"),
    ],
)
def test_damage_is_named_in_one_sentence(write: Write, text: str, message: str) -> None:
    path = write("log.txt", text)
    with pytest.raises(InputError, match=message) as caught:
        cells(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_lines_and_documents_without_end_are_refused(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_lines, "LONGEST_LINE", 2**16)
    monkeypatch.setattr(csv_rows, "LONGEST_LINE", 2**16)
    bomb = tmp_path / "bomb.csv.gz"
    bomb.write_bytes(gzip.compress(b"0" * 50_000_000))
    with pytest.raises(InputError, match=r"line 1: the line is longer than 65,536 characters"):
        cells(bomb)
    with pytest.raises(InputError, match=r"one JSON document of more than 65,536 characters"):
        cells(write("log.json", "[\n" + '{"a": 1},\n' * 10_000 + "{}]"))
    with pytest.raises(InputError, match="perhaps a quote is not closed"):
        cells(write("log.csv", 'a,b\n1,"2\n' + "3,4\n" * 30_000))


@pytest.mark.parametrize(
    "text", ["[{}" + ",{}" * 2_000 + "]", '{"a": [[]' + ",[]" * 2_000 + "]}", "[" + "0," * 9_000 + "0]"]
)
def test_texts_whose_values_take_many_times_their_size_are_refused(
    write: Write, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(json_rows, "_MOST_GROUPS", 1_000)
    monkeypatch.setattr(json_rows, "_MOST_VALUES", 8_000)
    with pytest.raises(InputError, match="more than 1,000 objects and lists or 8,000 values; write it as JSON lines"):
        cells(write("log.json", text))


def test_rows_are_not_kept(write: Write) -> None:
    path = write("log.csv", "a,text\n" + f"1,{'z' * 10_000}\n" * 2_000)
    with open_source(path) as source:
        tracemalloc.start()
        assert sum(1 for _ in source.rows()) == 2_000
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
        tracemalloc.stop()


def test_names_that_stand_twice_are_noted(write: Write) -> None:
    with open_source(write("log.jsonl", '{"a": 1}\n{"a": 1, "b": {"c": 1, "c": 2}}\n')) as source:
        list(source.rows())
        assert source.repeated == {"c": 2}


def test_values_are_shown_in_one_line() -> None:
    assert shown("a\x1b[31m\nb\u202e") == "a\\x1b[31m\\nb\\u202e"
    assert shown("x" * 200) == "x" * 80 + "..."
