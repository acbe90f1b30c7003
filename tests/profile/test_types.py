from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from besteffort.errors import InputError
from besteffort.profile import ModelProfile, Profile, Provenance, Source, TaskQuality

ASSUMED = Source("modelled", "a test")
PROVENANCE = Provenance(ASSUMED, ASSUMED, ASSUMED, Source("published", "a paper"))
LINE = ((1, 0.01), (3, 0.03))


def make(names: tuple[str, ...] = ("small", "large"), **fields: object) -> Profile:
    values: dict = {
        "format": 1,
        "name": "test",
        "device": "none",
        "models": tuple(ModelProfile(name, LINE, LINE) for name in names),
        "tasks": (TaskQuality("qa", "acc", "a paper", tuple(50.0 + 10 * i for i in range(len(names)))),),
        "provenance": PROVENANCE,
    }
    return Profile(**(values | fields))


def test_decode_table_interpolates_extrapolates_and_starts_at_zero() -> None:
    points = ((1, 0.010), (2, 0.011), (4, 0.015))
    profile = make(models=(ModelProfile("a", points, LINE), ModelProfile("b", ((1, 0.5),), LINE)))
    table = profile.decode_table(6)
    np.testing.assert_allclose(table[0], [0.0, 0.010, 0.011, 0.013, 0.015, 0.017, 0.019], rtol=1e-14)
    np.testing.assert_array_equal(table[1], [0.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5])
    assert table.dtype == np.float64


def test_prefill_table_has_the_first_point_at_zero() -> None:
    table = make(models=(ModelProfile("a", LINE, ((1, 0.2), (3, 0.4))),), tasks=(task(50.0),)).prefill_table(4)
    np.testing.assert_allclose(table, [[0.2, 0.2, 0.3, 0.4, 0.5]], rtol=1e-14)


def test_tables_are_float64_and_have_the_shapes_that_they_name() -> None:
    profile = make()
    assert profile.decode_table(3).shape == (2, 4)
    assert profile.prefill_table(5).shape == (2, 6)
    assert profile.quality_table(("qa", "qa", "qa")).shape == (3, 2)
    assert profile.slowdown.shape == (2, 2)
    assert profile.context_cost_s.shape == profile.cache_tokens.shape == (2,)
    tables = (profile.decode_table(3), profile.prefill_table(5), profile.quality_table(("qa",)))
    arrays = (*tables, profile.slowdown, profile.context_cost_s, profile.cache_tokens)
    assert {array.dtype for array in arrays} == {np.dtype(np.float64)}


def task(*percent: float, name: str = "qa") -> TaskQuality:
    return TaskQuality(name, "acc", "a paper", percent)


@st.composite
def curves(draw: st.DrawFn) -> tuple[tuple[int, float], ...]:
    xs = sorted(draw(st.sets(st.integers(2, 60), max_size=6)) | {1})
    steps = draw(st.lists(st.floats(0.0, 1.0), min_size=len(xs), max_size=len(xs)))
    return tuple((x, 1e-3 + y) for x, y in zip(xs, itertools.accumulate(steps), strict=True))


@given(points=curves(), last=st.integers(1, 80))
def test_tables_pass_through_their_points_and_never_fall(points: tuple[tuple[int, float], ...], last: int) -> None:
    row = make(models=(ModelProfile("a", points, points),), tasks=(task(50.0),)).decode_table(last)[0]
    assert len(row) == last + 1
    assert np.all(np.diff(row) >= -1e-12)
    for x, seconds in points:
        if x <= last:
            assert math.isclose(row[x], seconds, rel_tol=1e-12)


def test_a_longer_table_begins_with_the_shorter_one() -> None:
    profile = make()
    np.testing.assert_array_equal(profile.decode_table(40)[:, :8], profile.decode_table(7))
    np.testing.assert_array_equal(profile.prefill_table(40)[:, :8], profile.prefill_table(7))


def test_quality_is_relative_to_the_best_model_of_each_task_in_the_order_asked() -> None:
    profile = make(tasks=(task(40.0, 80.0), task(60.0, 30.0, name="chat")))
    np.testing.assert_array_equal(profile.quality_table(("chat", "qa")), [[1.0, 0.5], [0.5, 1.0]])
    assert profile.quality_table(()).shape == (0, 2)
    with pytest.raises(InputError, match=r"has no task `sums`; choose from qa, chat\."):
        profile.quality_table(("qa", "sums"))


def test_defaults_cost_nothing() -> None:
    profile = make()
    np.testing.assert_array_equal(profile.slowdown, np.ones((2, 2)))
    np.testing.assert_array_equal(profile.context_cost_s, np.zeros(2))
    np.testing.assert_array_equal(profile.cache_tokens, np.full(2, math.inf))
    np.testing.assert_array_equal(profile.chunk_tokens, np.full(2, math.inf))
    assert profile.cache_output_share == 1


def test_arrays_follow_the_models() -> None:
    small = ModelProfile(
        "small", LINE, LINE, slowdown=(1.0, 1.5), context_cost_s=1e-6, cache_tokens=4096, chunk_tokens=512
    )
    profile = make(models=(small, ModelProfile("large", LINE, LINE)))
    np.testing.assert_array_equal(profile.slowdown, [[1.0, 1.5], [1.0, 1.0]])
    np.testing.assert_array_equal(profile.context_cost_s, [1e-6, 0.0])
    np.testing.assert_array_equal(profile.cache_tokens, [4096.0, math.inf])
    np.testing.assert_array_equal(profile.chunk_tokens, [512.0, math.inf])


def test_select_keeps_rows_columns_and_order() -> None:
    names = ("a", "b", "c")
    models = tuple(
        ModelProfile(
            name, ((1, 0.01 * (i + 1)),), LINE, slowdown=tuple(1.0 if i == k else 1 + i + k / 10 for k in range(3))
        )
        for i, name in enumerate(names)
    )
    profile = make(models=models, tasks=(task(20.0, 40.0, 80.0),))
    chosen = profile.select(["c", "a"])
    assert chosen.model_names == ("a", "c")
    np.testing.assert_array_equal(chosen.decode_table(1)[:, 1], [0.01, 0.03])
    np.testing.assert_array_equal(chosen.slowdown, profile.slowdown[np.ix_([0, 2], [0, 2])])
    np.testing.assert_array_equal(chosen.quality_table(("qa",)), [[0.25, 1.0]])
    np.testing.assert_array_equal(profile.select(["a", "b"]).quality_table(("qa",)), [[0.5, 1.0]])
    assert profile.select(names).digest() == profile.digest()
    for bad, words in (
        (["d"], "has no model `d`; choose from a, b, c"),
        ([], "is empty"),
        (["a", "a"], "lists `a` twice"),
    ):
        with pytest.raises(InputError, match=words):
            profile.select(bad)


def test_digest_follows_the_content_alone() -> None:
    profile = make()
    assert profile.digest() == make().digest()
    assert len(bytes.fromhex(profile.digest())) == 32
    whole = make(models=(ModelProfile("only", ((1, 1.0),), LINE),), tasks=(task(50.0),))
    before = whole.digest()
    object.__setattr__(whole.models[0], "decode", ((1, 1),))
    assert whole.digest() == before
    changed = [
        make(name="other"),
        make(cache_output_share=0.5),
        make(models=(dataclasses.replace(profile.models[0], chunk_tokens=512), profile.models[1])),
        make(models=(ModelProfile("small", ((1, 0.01), (3, 0.0300001)), LINE), profile.models[1])),
        make(provenance=dataclasses.replace(PROVENANCE, decode=Source("measured", "a test"))),
        profile.select(["small"]),
    ]
    assert len({profile.digest(), *(other.digest() for other in changed)}) == len(changed) + 1
    # A context changes no time and no quality, so policies that were trained before one was stated still fit.
    assert make(context_tokens=2048).digest() == profile.digest()


def test_provenance_in_one_line() -> None:
    assert PROVENANCE.summary == "decode modelled, prefill modelled, slowdown modelled, quality published"


@pytest.mark.parametrize(
    ("points", "words"),
    [
        ((), "must begin with a point at batch size 1"),
        (((2, 0.01),), "must begin with a point at batch size 1"),
        (((1, 0.0),), "has 0 s at batch size 1; give a positive number"),
        (((1, 0.01), (2, -0.02)), "has -0.02 s at batch size 2"),
        (((1, math.nan),), "has nan s"),
        (((1, 0.01), (2, math.inf)), "has inf s"),
        (((1, 0.01), (8, 0.02), (4, 0.03)), "goes from batch size 8 to 4; sort"),
        (((1, 0.01), (1, 0.01)), "goes from batch size 1 to 1"),
        (((1, 0.02), (4, 0.01)), "falls from 0.02 s at batch size 1 to 0.01 s at 4"),
    ],
)
def test_bad_tables(points: tuple[tuple[int, float], ...], words: str) -> None:
    with pytest.raises(InputError, match=r"^Model `a`: `decode` ") as caught:
        ModelProfile("a", points, LINE)
    assert words in str(caught.value)
    with pytest.raises(InputError, match=r"^Model `a`: `prefill` "):
        ModelProfile("a", LINE, points)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"slowdown": (1.0, 0.9)}, "`slowdown` has 0.9; give factors of at least 1"),
        ({"slowdown": (1.0, math.inf)}, "`slowdown` has inf"),
        ({"context_cost_s": -1e-9}, "`context_cost_s` is -1e-09"),
        ({"context_cost_s": math.nan}, "`context_cost_s` is nan"),
        ({"cache_tokens": 0}, "`cache_tokens` is 0"),
        ({"chunk_tokens": 0}, "`chunk_tokens` is 0; give a positive number of at most 1,099,511,627,776, or null for"),
    ],
)
def test_bad_model_fields(fields: dict, words: str) -> None:
    with pytest.raises(InputError) as caught:
        ModelProfile("a", LINE, LINE, **fields)
    assert words in str(caught.value)


@pytest.mark.parametrize("percent", [(-1.0, 50.0), (50.0, 100.5), (math.nan, 50.0)])
def test_quality_outside_its_range(percent: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match=r"Task `qa`: `quality_percent` has .*; give percentages from 0 to 100"):
        task(*percent)


def test_quality_of_zero_everywhere() -> None:
    with pytest.raises(InputError, match="Task `qa`: `quality_percent` is 0 for every model"):
        task(0.0, 0.0)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"models": (), "tasks": (task(50.0),)}, "`models` is empty"),
        ({"tasks": ()}, "`tasks` is empty"),
        ({"names": ("a", "a")}, "`models` lists `a` twice"),
        ({"names": ("", "a")}, "`models` has an entry without a name"),
        ({"tasks": (task(1.0, 2.0), task(1.0, 2.0))}, "`tasks` lists `qa` twice"),
        ({"tasks": (task(1.0, 2.0, 3.0),)}, "`quality_percent` has 3 values for 2 models"),
        ({"models": tuple(ModelProfile(n, LINE, LINE, slowdown=(1.0,)) for n in "ab")}, "has 1 factors for 2 models"),
        (
            {"models": tuple(ModelProfile(n, LINE, LINE, slowdown=(1.0, 2.0)) for n in "ab")},
            "`slowdown` by itself is 2",
        ),
        ({"cache_output_share": 1.5}, "`cache_output_share` is 1.5"),
        ({"context_tokens": 1}, "`context_tokens` is 1; give a number from 2 to 4,194,304"),
    ],
)
def test_bad_profiles(fields: dict, words: str) -> None:
    with pytest.raises(InputError) as caught:
        make(**fields)
    assert words in str(caught.value)
