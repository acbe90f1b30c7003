from __future__ import annotations

import gzip
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from besteffort.errors import InputError
from besteffort.workload.readers import Drawn, MafOptions, ServeGenOptions, types
from besteffort.workload.reading import Drawing, read
from besteffort.workload.records import Records
from besteffort.workload.traces import read_trace

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 23:59:59.9000000,374,44
2023-11-17 00:00:00.0000001,396,109
2023-11-17 00:00:00.0000001,3000,1100
2023-11-17 00:01:00.4000000,0,55"""
MOONCAKE = "timestamp_ms,input_length,output_length,n_hash_ids\n3000,6758,500,14\n3000,7,490,15\n6000,7236,794,15\n"
OWN = "arrival_s,task,prompt_tokens,output_tokens\n0.5,lambada,100,20\n0.75,piqa,10,1\n0.75,lambada,2040,30\n"


def read_as(kind: str, path: Path) -> Records:
    found = read(path, kind=kind)
    assert isinstance(found, Records)
    return found


def draw_as(kind: str, path: Path, tasks: int, seed: int, options: MafOptions | ServeGenOptions) -> Drawn:
    found = read(path, kind=kind, tasks=tasks, options={kind: options})
    assert isinstance(found, Drawing)
    return found.draw(np.random.default_rng(seed))


def test_azure_llm(write, situation):
    trace = read_as("azure_llm", write("azure.csv", AZURE))
    np.testing.assert_allclose(trace.seconds["arrival"], [0.0, 0.1000001, 0.1000001, 60.5], rtol=1e-12)
    np.testing.assert_array_equal(trace.counts["prompt"], [374, 396, 3000, 0])
    np.testing.assert_array_equal(trace.counts["output"], [44, 109, 1100, 55])

    requests, info = read_trace(write("azure.csv.gz", AZURE), situation)
    np.testing.assert_array_equal(requests.output_tokens, [44, 109, 1024, 55])
    np.testing.assert_array_equal(requests.prompt_tokens, [374, 396, 1024, 1])
    np.testing.assert_allclose(requests.deadline_s, situation.deadlines(requests.task, requests.output_tokens))
    assert (info.source, info.kind, info.requests) == ("azure.csv.gz", "azure_llm", 4)
    assert (info.clipped_outputs, info.clipped_prompts, info.raised) == (0.25, 0.25, 0.25)
    assert info.span_s == 60.5
    assert info.mean_rate == pytest.approx(3 / 60.5)
    assert info.drawn == ("tasks",)
    assert "25.00% of prompts" in str(info)


def test_azure_llm_of_2024_with_time_zone(write):
    text = re.sub(r"(\.\d{7}),", r"\1+00:00,", AZURE)
    assert text.count("+00:00") == 4
    np.testing.assert_allclose(read_as("azure_llm", write("azure.csv", text)).seconds["arrival"][-1], 60.5)


def test_prompts_are_clipped_to_what_the_output_leaves(write, situation):
    rows = "".join(f"{i},piqa,{p},{n}\n" for i, (p, n) in enumerate([(2048, 1), (2047, 1), (1025, 1024), (1024, 2000)]))
    requests, info = read_trace(write("own.csv", "arrival_s,task,prompt_tokens,output_tokens\n" + rows), situation)
    np.testing.assert_array_equal(requests.output_tokens, [1, 1, 1024, 1024])
    np.testing.assert_array_equal(requests.prompt_tokens, [2047, 2047, 1024, 1024])
    assert (info.clipped_outputs, info.clipped_prompts) == (0.25, 0.5)


def test_mooncake(write, situation):
    trace = read_as("mooncake", write("mooncake.csv.gz", MOONCAKE))
    np.testing.assert_array_equal(trace.seconds["arrival"], [3, 3, 6])
    requests, info = read_trace(write("mooncake.csv", MOONCAKE), situation)
    assert info.kind == "mooncake"
    np.testing.assert_array_equal(requests.output_tokens, [500, 490, 794])
    np.testing.assert_array_equal(requests.prompt_tokens, [1548, 7, 1254])


def test_own_format(write, situation):
    trace = read_as("csv", write("own.csv", OWN))
    assert trace.labels["task"].names == ("lambada", "piqa")
    requests, info = read_trace(write("own.csv", OWN.replace("\n", "\r\n")), situation)
    np.testing.assert_array_equal(requests.arrival_s, [0.5, 0.75, 0.75])
    np.testing.assert_array_equal(requests.task, [1, 0, 1])
    np.testing.assert_array_equal(requests.prompt_tokens, [100, 10, 2018])
    assert info.drawn == ()


def test_tasks_are_drawn_from_the_mix_by_seed(write, situation):
    rows = "\n".join(f"{1000 * i},5,5,1" for i in range(4000))
    path = write("mooncake.csv", f"timestamp_ms,input_length,output_length,n_hash_ids\n{rows}\n")
    first, again, other = (read_trace(path, situation, seed=seed)[0].task for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.mean() == pytest.approx(0.25, abs=4 * np.sqrt(0.25 * 0.75 / 4000))


def maf_file(counts):
    """Text of a MAF file with one row of counts per function."""
    header = ",".join(["function_id", *(str(minute + 1) for minute in range(len(counts[0])))])
    rows = [",".join([f"f{i}", *map(str, row)]) for i, row in enumerate(counts)]
    return "\n".join([header, *rows]) + "\n"


def test_maf_stripes_functions_and_keeps_counts(write):
    # Functions 0, 2 and 4 go to task 0; minute 1 has no invocation.
    path = write("maf.csv.gz", maf_file([[100, 0, 7], [5, 0, 50], [20, 0, 0], [0, 0, 40], [30, 0, 3]]))
    expected = np.array([[150, 0, 10], [5, 0, 90]])
    found = np.zeros((200, 2, 3))
    for seed in range(len(found)):
        trace = draw_as("maf", path, 2, seed, MafOptions(cv=4.0))
        assert (np.diff(trace.arrival_s) >= 0).all()
        np.add.at(found[seed], (trace.task, (trace.arrival_s // 60).astype(int)), 1)
    some = expected > 0
    assert (found[:, ~some] == 0).all()
    error = found[:, some].std(axis=0, ddof=1) / np.sqrt(len(found))
    assert (np.abs(found[:, some].mean(axis=0) - expected[some]) < 4 * error).all()


@pytest.mark.parametrize("cv", [0.5, 4.0])
def test_maf_gaps_have_the_set_cv(write, cv):
    path = write("maf.csv", maf_file([[60_000, 60_000]]))
    gaps = np.diff(draw_as("maf", path, 1, 3, MafOptions(cv=cv, minutes=(1, 2))).arrival_s)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05)


def test_maf_options(write, situation):
    path = write("maf.csv", maf_file([[0, 600, 0], [0, 0, 900]]))
    trace = draw_as("maf", path, 2, 0, MafOptions(cv=0.1, rate_scale=2.0, minutes=(1, 3)))
    assert trace.arrival_s[0] < 1
    np.testing.assert_allclose(np.bincount(trace.task), [1200, 1800], rtol=0.01)
    requests, info = read_trace(path, situation, seed=4, maf=MafOptions(cv=1.0))
    again, _ = read_trace(path, situation, seed=4, maf=MafOptions(cv=1.0))
    np.testing.assert_array_equal(requests.arrival_s, again.arrival_s)
    assert info.kind == "maf"
    assert info.drawn == ("arrivals", "lengths")
    piqa = requests.task == 0
    assert set(requests.prompt_tokens[piqa]) == {10, 11, 12}
    assert set(requests.output_tokens[piqa]) == {1, 2, 3, 4}
    assert set(requests.output_tokens[~piqa]) == {20}
    assert requests.prompt_tokens[~piqa].min() >= 100
    assert requests.prompt_tokens[~piqa].max() <= 180


SERVEGEN = """client_id,window_start_s,rate_per_s,cv,pattern,arg1,arg2
0,0,1.0,2.0,Gamma,0.25,4.0
0,1200,3.0,1.0,Weibull,0.6,0.9
7,600,0.05,0.5,Gamma,4.0,5.0
7,1200,2.0,0.5,Gamma,4.0,0.125
"""


def test_servegen_keeps_the_rate_of_every_window(write):
    path = write("servegen.csv.gz", SERVEGEN)
    found = np.zeros((200, 3))
    for seed in range(len(found)):
        trace = draw_as("servegen", path, 1, seed, ServeGenOptions(window_s=None))
        found[seed] = np.bincount((trace.arrival_s // 600).astype(int), minlength=3)
    error = found.std(axis=0, ddof=1) / np.sqrt(len(found))
    assert (np.abs(found.mean(axis=0) - [600, 30, 3000]) < 4 * error).all()


def test_servegen_gaps_have_the_law_of_their_window(write):
    def gaps(pattern, shape, seed):
        text = f"client_id,window_start_s,rate_per_s,cv,pattern,arg1,arg2\n0,0,100.0,1.0,{pattern},{shape},1.0\n"
        return np.diff(draw_as("servegen", write("servegen.csv", text), 1, seed, ServeGenOptions()).arrival_s)

    gamma, weibull = gaps("Gamma", 0.25, 0), gaps("Weibull", 0.5, 1)
    assert gamma.std() / gamma.mean() == pytest.approx(2.0, rel=0.05)
    # Weibull of shape 1/2: the square root of a gap is exponential, and the CV is the root of 5.
    assert weibull.std() / weibull.mean() == pytest.approx(np.sqrt(5), rel=0.1)
    root = np.sqrt(weibull)
    assert root.std() / root.mean() == pytest.approx(1.0, rel=0.03)


def test_servegen_window_and_lengths(write, situation):
    path = write("servegen.csv", SERVEGEN)
    trace = draw_as("servegen", path, 1, 0, ServeGenOptions(window_s=(650.0, 700.0), rate_scale=10.0))
    assert len(trace.arrival_s) == pytest.approx(300, abs=60)
    assert trace.arrival_s[-1] < 600
    _, info = read_trace(path, situation)
    assert (info.kind, info.drawn) == ("servegen", ("arrivals", "tasks", "lengths"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            maf_file([[2_000_000, 1_000_001]]),
            "its 3,000,001 invocations are more than 3,000,000; choose fewer `minutes`",
        ),
        (
            SERVEGEN.replace("0,0,1.0", "0,0,4998"),
            "its 3,001,830 requests are more than 3,000,000; choose a shorter `window_s`",
        ),
    ],
)
def test_small_files_do_not_fill_the_memory(write, text, message):
    with pytest.raises(InputError, match=message):
        read(write("small.csv", text))


def test_uneven_gaps_do_not_fill_the_memory(write, monkeypatch):
    path = write("uneven.csv", SERVEGEN)
    monkeypatch.setattr(types, "MOST_REQUESTS", 1000)
    with pytest.raises(InputError, match="gaps are so uneven that more than 1,200 arrivals were drawn; choose another"):
        draw_as("servegen", path, 1, 0, ServeGenOptions())
    with pytest.raises(InputError, match="which is no shape of gaps"):
        read(write("uneven.csv", SERVEGEN.replace("Weibull,0.6", "Weibull,0.009")))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "", "a.csv: the file is empty"),
        ("a.csv.gz", "", "a.csv.gz: the file is empty"),
        ("a.csv", "arrival_s,task,prompt_tokens,output_tokens\n", "no rows below its header"),
        ("a.csv", "x,y\n1,2\n", "fits no known trace format; name the columns arrival_s,task"),
        ("a.csv", OWN + "0.8,piqa,1\n", "line 5: the line has 3 fields but the header has 4; it is the last one, so"),
        (
            "a.csv",
            OWN.replace("0.75,piqa,10,1", "0.75,piqa,10"),
            "line 3: the line has 3 fields but the header has 4; m",
        ),
        ("a.csv", OWN.rstrip("\n"), "line 4: the file ends without a line break, so it may be cut short"),
        ("a.csv", OWN.replace("10,1", "ten,1"), "line 3: `prompt_tokens` is `ten`, which is not a number"),
        ("a.csv", OWN.replace("10,1", "nan,1"), "line 3: `prompt_tokens` is ``, but an answered request has"),
        ("a.csv", OWN.replace("10,1", ",1"), "line 3: `prompt_tokens` is ``, but an answered request has to state"),
        ("a.csv", OWN.replace("10,1", "-10,1"), "line 3: `prompt_tokens` is `-10`, which is below 0"),
        ("a.csv", OWN.replace("0.5,", "-0.5,"), "line 2: `arrival_s` is `-0.5`, which is below 0"),
        ("a.csv", OWN.replace("0.5,", "0.9,"), "line 3: `arrival_s` goes back in time; sort the file by `arrival_s`"),
        ("a.csv", OWN.replace("piqa", "squad"), "task `squad` is not a task of the situation, which has piqa, lambada"),
        ("a.csv", OWN.replace("piqa", "p\0"), "not a CSV table|task `p"),
        (
            "a.csv",
            AZURE.replace("2023-11-17 00:01", "yesterday"),
            "line 5: `TIMESTAMP` is `yesterday:00.4000000`, which is",
        ),
        ("a.csv", AZURE.replace("2023-11-17 00:01", "2023-11-16 00:01"), "line 5: `TIMESTAMP` goes back in time"),
        ("a.csv", AZURE.removesuffix(",55"), "line 5: the line has 2 fields"),
        ("a.csv", MOONCAKE.replace("7,490", "7,"), "line 3"),
        ("a.csv", maf_file([[1, 2], [3, 4]]).replace(",4", ",four"), "line 3: `2` is `four`"),
        ("a.csv", maf_file([[1, 2], [3, 4]]).replace(",4", ",-4"), "line 3: `2` is `-4`"),
        ("a.csv", maf_file([[1, 2]]).replace("id,1,2", "id,1,3"), "the minutes in the header must be 1, 2, 3"),
        ("a.csv", maf_file([[0, 0]]), "no request was drawn"),
        (
            "a.csv",
            SERVEGEN.replace("Weibull", "Pareto"),
            "line 3: `pattern` is `Pareto`, but known are Gamma and Weibull",
        ),
        ("a.csv", SERVEGEN.replace("4.0,5.0", "0,5.0"), "line 4: `arg1` is `0`"),
    ],
)
def test_damaged_files_are_refused_in_one_sentence(write, situation, name, text, message):
    with pytest.raises(InputError, match=message) as caught:
        read_trace(write(name, text), situation)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_unreadable_files(tmp_path, write, situation):
    with pytest.raises(InputError, match=r"missing\.csv: there is no such file"):
        read_trace(tmp_path / "missing.csv", situation)
    with pytest.raises(InputError, match="cannot be read"):
        read_trace(tmp_path, situation)
    plain = tmp_path / "plain.csv.gz"
    plain.write_text(OWN)
    with pytest.raises(InputError, match=r"named `\.gz` but is not gzip"):
        read_trace(plain, situation)
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"\xff\xfd\x00\x01" * 10)
    with pytest.raises(InputError, match="not UTF-8 text"):
        read_trace(binary, situation)
    with pytest.raises(InputError, match="unknown trace format `parquet`; choose from csv, azure_llm, "):
        read_trace(write("own.csv", OWN), situation, kind="parquet")
    with pytest.raises(InputError, match="column `timestamp_ms` is missing; the header has `arrival_s`, "):
        read_trace(write("own.csv", OWN), situation, kind="mooncake")


def test_every_cut_of_a_gzip_file_is_noticed(tmp_path, situation):
    whole = gzip.compress(OWN.encode())
    path = tmp_path / "cut.csv.gz"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"cut\.csv\.gz"):
            read_trace(path, situation)


def test_every_cut_of_a_text_file_inside_a_line_is_noticed(tmp_path, situation):
    path = tmp_path / "cut.csv"
    whole = OWN.encode()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        if length and whole[length - 1 : length] == b"\n" and whole[:length].count(b"\n") > 1:
            assert len(read_trace(path, situation)[0]) == whole[:length].count(b"\n") - 1
        else:
            with pytest.raises(InputError, match=r"cut\.csv"):
                read_trace(path, situation)


def test_a_flipped_byte_of_a_gzip_file_is_noticed(tmp_path, situation):
    whole = bytearray(gzip.compress(OWN.encode()))
    path = tmp_path / "flipped.csv.gz"
    for place in range(12, len(whole)):
        damaged = whole.copy()
        damaged[place] ^= 0x55
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"flipped\.csv\.gz"):
            read_trace(path, situation)


def test_bad_windows(write):
    with pytest.raises(InputError, match=r"`minutes` is \[1, 9\], but the file has 0 to 3"):
        draw_as("maf", write("maf.csv", maf_file([[1, 2, 3]])), 1, 0, MafOptions(minutes=(1, 9)))
    with pytest.raises(InputError, match="the file ends at 1800 s"):
        draw_as("servegen", write("servegen.csv", SERVEGEN), 1, 0, ServeGenOptions(window_s=(5000.0, 6000.0)))


def test_reading_traces_does_not_import_jax():
    code = "import sys, besteffort.workload.traces, besteffort.workload.rescale; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
