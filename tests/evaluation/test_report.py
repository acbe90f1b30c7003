from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
from rich.console import Console

from besteffort.bounds.prices import Bound
from besteffort.evaluation.report import (
    Column,
    Picture,
    Report,
    Table,
    comparison_table,
    format_cell,
    party_table,
    provenance_lines,
    write_report,
)
from besteffort.evaluation.statistics import Interval, mean_interval
from besteffort.situation import Origin, Tenant


@pytest.fixture
def situation(make_situation):
    return make_situation([((1, 1.0),)] * 2, [1.0, 2.0], [(30.0, 60.0)])


@pytest.fixture
def table(situation, make_result):
    arrival_s = np.tile(np.arange(10.0), (3, 1))
    large = make_result(arrival_s, model=1, reward=[[1.0] * 10, [1.0] * 9 + [0.0], [1.0] * 10])
    small = make_result(arrival_s, model=0, reward=0.5)
    bound = Bound(np.array(0.99), np.array(1.0))
    return comparison_table(
        "Some load", {"ours": large, "small": small}, situation, width_s=5.0, bound=bound, focus="ours"
    )


@pytest.mark.parametrize(
    ("cell", "column", "text"),
    [
        (None, Column(""), "-"),
        (0.5, Column(""), "50.0"),
        (float("nan"), Column(""), "-"),
        (Interval(np.array(0.9321), np.array(0.0061), 3), Column(""), "93.2 ± 0.6"),
        (Interval(np.array(0.9321), np.array(np.inf), 1), Column(""), "93.2"),
        (Interval(np.array(0.01), np.array(0.002), 3), Column("", "points", 2), "+1.00 ± 0.20"),
        (1.2345, Column("", "milliseconds", 0), "1,234"),
        (12345.6, Column("", "number"), "12,345.6"),
    ],
)
def test_cells(cell, column, text):
    assert format_cell(cell, column) == text


def test_comparison_has_the_figures_of_the_measures(table):
    rows = dict(table.rows)
    titles = [column.title for column in table.columns]
    ours, small, bound = rows["ours"], rows["small"], rows["upper bound"]
    assert float(ours[0].mean) == pytest.approx(29 / 30)
    assert ours[1] is None
    assert float(small[1].mean) == pytest.approx(0.5 - 29 / 30)
    assert float(small[1].half_width) == pytest.approx(float(ours[0].half_width))
    assert float(ours[titles.index("5 s windows at 96% of peak (%)")].mean) == pytest.approx(5 / 6)
    assert float(small[titles.index("Effective accuracy (%)")].mean) == pytest.approx(0.3)
    assert (bound[0], bound[2], bound[3]) == (0.99, 1.0, None)
    assert all(len(cells) == len(titles) for cells in rows.values())


def test_without_a_focus_nobody_is_compared(situation, make_result):
    table = comparison_table("t", {"a": make_result(np.zeros((1, 3)))}, situation, width_s=1.0)
    assert not any("against" in column.title for column in table.columns)
    assert "One seed" in table.note
    assert "±" not in table.markdown()


def test_tenants_have_figures_of_their_own_and_the_worst_stands_with_the_others(situation, make_result):
    result = make_result([[0.0, 1.0, 2.0, 3.0]] * 2, reward=[[1.0, 0.5, 0.0, 0.4]] * 2, tenant=[[0, 0, 1, 1]] * 2)
    plain = comparison_table("t", {"ours": result}, situation, width_s=1.0)
    assert not any("tenant" in column.name or "weighted" in column.name for column in plain.columns)
    peak = situation.peak_rewards[0]
    for weights in ((1.0, 1.0), (1.0, 3.0)):
        tenants = tuple(Tenant(name, weight) for name, weight in zip(("gold", "lead"), weights, strict=True))
        among = dataclasses.replace(situation, tenants=tenants)
        row = comparison_table("t", {"ours": result}, among, width_s=1.0).as_data()["rows"][0]
        assert row["performance"]["mean"] == pytest.approx(1.9 / 4)
        assert row["worst_tenant"]["mean"] == pytest.approx(0.2 / peak)
        if weights[0] == weights[1]:
            assert "weighted_performance" not in row
        else:
            assert row["weighted_performance"]["mean"] == pytest.approx((1.5 + 3 * 0.4) / 8)
        table = party_table("t", {"ours": result}, among, "tenant")
        rows = {one["name"]: one for one in table.as_data()["rows"]}
        assert rows["gold"]["performance"]["mean"] == pytest.approx(0.75)
        assert rows["gold"]["performance_of_peak"]["mean"] == pytest.approx(0.75 / peak)
        assert rows["lead"]["share_of_requests"]["mean"] == 0.5
    assert party_table("t", {"ours": result}, among, "origin") is None


def test_requests_of_each_origin_have_figures_of_their_own(situation, make_result):
    situation = dataclasses.replace(situation, origins=(Origin("near"), Origin("far"), Origin("nowhere", 0.0)))
    latency_s = np.array([[9.0, 0.2, 0.4, 0.6, 2.0], [9.0, 0.4, 0.4, 0.8, 4.0]])
    result = make_result(
        [[0.0, 1.0, 2.0, 3.0, 4.0]] * 2, latency_s=latency_s, origin=[[1, 0, 0, 1, 1], [1, 0, 0, 1, 1]]
    )
    table = party_table("Some load", {"ours": result, "same": result}, situation, "origin", warm_up_s=0.5)
    titles, rows = [column.title for column in table.columns], dict(table.rows)
    assert list(rows) == [f"{name}, {origin}" for name in ("ours", "same") for origin in ("near", "far", "nowhere")]
    near, far, nowhere = (dict(zip(titles, rows[f"ours, {origin}"], strict=True)) for origin in situation.origin_names)
    assert [float(one["Share of requests (%)"].mean) for one in (near, far, nowhere)] == [0.5, 0.5, 0.0]
    assert [float(one["SLO attainment (%)"].mean) for one in (near, far)] == [1.0, 0.5]
    assert [float(one["Performance (%)"].mean) for one in (near, far)] == [1.0, 0.5]
    assert [float(one["P50 latency (ms)"].mean) for one in (near, far)] == pytest.approx([0.35, 1.85])
    assert float(far["P99 latency (ms)"].mean) == pytest.approx(np.mean([0.6 + 0.99 * 1.4, 0.8 + 0.99 * 3.2]))
    assert "| same, nowhere | 0.0 ± 0.0 | - | - | - | - |" in table.markdown()
    alone = party_table("Some load", {"ours": result.lanes(0).lanes(None)}, situation, "origin")
    assert [name for name, _ in alone.rows] == ["near", "far", "nowhere"]
    assert party_table("t", {"ours": make_result([[0.0, 1.0]])}, situation, "origin") is None


def test_markdown_table_is_rectangular_and_bold_in_focus(table):
    lines = [line for line in table.markdown().splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| **ours** | **96.67 ±")
    assert lines[-1].startswith("| upper bound | 99.00 | - | 100.0 |")


def test_a_pipe_in_a_name_does_not_break_the_table():
    table = Table("t", "Name", (Column("x"),), (("a|b", (0.5,)),))
    assert "| a\\|b | 50.0 |" in table.markdown()


def test_terminal_table_fits_eighty_columns_and_takes_names_literally(table):
    odd = dataclasses.replace(table, rows=(("[red]name[/]", table.rows[0][1]), *table.rows[1:]))
    stream = io.StringIO()
    Console(file=stream, width=80).print(odd.terminal())
    shown = stream.getvalue()
    assert "[red]name[/]" in shown
    assert "96.67 ± " in shown
    assert "…" not in shown
    assert "TTFT" not in shown


def test_report_says_what_is_measured_and_links_its_figures(situation, table, tmp_path):
    report = Report(
        title="Title",
        summary="Ours wins.",
        situation=situation,
        settings={"Seeds": "3"},
        tables=(table,),
        pictures=(Picture(tmp_path / "figures" / "a b.png", "A picture"),),
    )
    text = write_report(report, tmp_path / "report.md").read_text(encoding="utf-8")
    assert text.startswith("# Title\n\nOurs wins.\n")
    assert "![A picture](figures/a%20b.png)" in text
    assert "decode modelled, prefill modelled, slowdown modelled, quality published" in text
    assert "- decode: **modelled**; made up | for a test; by hand; abacus." in text
    assert "- quality: **published**; a book." in text
    assert "| Seeds | 3 |" in text
    assert "| task0 | 100% | 1 to 1 |" in text
    assert str(tmp_path) not in text


def test_every_part_of_the_profile_has_a_line(situation):
    lines = provenance_lines(situation.profile).splitlines()
    assert [line.split(":")[0] for line in lines] == ["- decode", "- prefill", "- slowdown", "- quality"]


def test_intervals_in_tables_are_those_of_the_statistics(table):
    samples = np.array([1.0, 0.9, 1.0])
    cell = dict(table.rows)["ours"][0]
    assert format_cell(cell, table.columns[0]) == format_cell(mean_interval(samples), table.columns[0])


def test_data_has_names_for_machines_and_plain_numbers(table: Table) -> None:
    data = table.as_data()
    assert [row["name"] for row in data["rows"]] == ["ours", "small", "upper bound"]
    ours, small, bound = data["rows"]
    assert list(ours)[:4] == ["name", "performance", "performance_difference", "slo_attainment"]
    assert {"latency_p50_s", "latency_p99_s", "ttft_p99_s", "rejected", "performance_per_gpu"} <= ours.keys()
    assert len({column.name for column in table.columns}) == len(table.columns)
    assert ours["performance"]["mean"] == pytest.approx(29 / 30)
    assert ours["performance"]["half_width"] > 0
    assert ours["performance_difference"] is None
    assert small["performance_difference"].keys() == {"mean", "half_width"}
    assert bound["performance"] == {"mean": 0.99, "half_width": None}
    assert bound["rejected"] is None


def test_data_of_odd_cells() -> None:
    columns = (Column("P9 (ms)", "milliseconds"), Column("word", "text"), Column("ratio", "number"))
    one = Interval(np.array(0.5), np.array(np.inf), 1)
    table = Table("t", "Name", columns, (("a", (0.25, "x", one)), ("b", (float("nan"), None, 2.0))))
    assert table.as_data()["rows"] == [
        {"name": "a", "p9_s": 0.25, "word": "x", "ratio": {"mean": 0.5, "half_width": None}},
        {"name": "b", "p9_s": None, "word": None, "ratio": {"mean": 2.0, "half_width": None}},
    ]


@pytest.mark.parametrize("width", [30, 40, 80])
def test_narrow_terminals_lose_no_letter(table: Table, width: int) -> None:
    stream = io.StringIO()
    Console(file=stream, width=width).print(table.terminal())
    assert "\N{HORIZONTAL ELLIPSIS}" not in stream.getvalue()
    assert max(map(len, stream.getvalue().splitlines())) <= width


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
def test_a_terminals_table_loses_no_figure(width: int) -> None:
    """At any width every heading's words, every name and every figure stand there whole."""
    columns = tuple(Column(f"measure {index} of routers (%)", digits=2, brief=True) for index in range(8))
    rows = tuple((f"router {row}", tuple(0.01 * row + 0.1 * index for index in range(8))) for row in range(3))
    table = Table("A title that is longer than twenty characters", "Router", columns, rows, note="A note, in words.")
    parts = table.parts(width)
    assert (len(parts) == 1) == (width >= 80)
    assert [column.title for part in parts for column in part.columns] == [column.title for column in columns]
    text = io.StringIO()
    console = Console(file=text, width=width)
    for part in parts:
        console.print(part.terminal())
    printed = text.getvalue()
    assert max(map(len, printed.splitlines())) <= width
    assert printed.count("router 2") == len(parts)
    for _, cells in rows:
        for cell in cells:
            assert f"{100 * cell:.2f}" in printed
    assert "…" not in printed


def test_tables_of_words_wrap() -> None:
    table = Table("Claims", "Claim", (Column("Paper", "text"), Column("Ours", "text")), (("a", ("b " * 99, "c")),))
    assert table.parts(20) == [table]
