from __future__ import annotations

import dataclasses
import json
import math
from typing import Annotated, Literal

import pytest
from annotated_types import Ge, Len

from besteffort.errors import InputError
from besteffort.validation import as_data, did_you_mean, from_json


@dataclasses.dataclass(frozen=True)
class Leaf:
    count: Annotated[int, Ge(1)] = 1
    share: float = 1.0
    kind: Literal["hard", "soft"] = "hard"

    def __post_init__(self) -> None:
        if self.share == 7:
            raise InputError(f"`share` is {self.share}; it must not be 7.")


@dataclasses.dataclass(frozen=True)
class Tree:
    leaves: Annotated[tuple[Leaf, ...], Len(1)]
    span: tuple[int, int] = (1, 2)
    best: Leaf | None = None
    named: dict[str, Leaf] = dataclasses.field(default_factory=dict)
    either: Leaf | dict[str, int] | None = None


def test_fills_nested_dataclasses() -> None:
    text = '{"leaves": [{"share": 2}, {"count": 3}], "span": [4, 5], "best": {"kind": "soft"}, "named": {"a": {}}}'
    assert from_json(Tree, text, "x.json") == Tree(
        leaves=(Leaf(share=2.0), Leaf(count=3)), span=(4, 5), best=Leaf(kind="soft"), named={"a": Leaf()}
    )


def test_plain_data_are_read_back_to_an_equal_dataclass() -> None:
    tree = Tree(leaves=(Leaf(share=2),), best=Leaf(share=0.1 + 0.2), named={"ä": Leaf(share=1e-300 / 3)})
    data = as_data(tree)
    assert json.dumps(data["leaves"]) == '[{"count": 1, "share": 2.0, "kind": "hard"}]'
    assert from_json(Tree, json.dumps(data), "x.json") == tree
    assert as_data(Leaf(share=math.inf))["share"] == math.inf


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{}", "`leaves` is missing; add it."),
        ("[]", "the file is [], but should be a mapping."),
        ('{"leaves": 3}', "`leaves` is 3, but should be a list."),
        ('{"leaves": []}', "`leaves` is [], but tuple should have at least 1 item, not 0."),
        ('{"leaves": [{"count": "2"}]}', '`leaves[0].count` is "2", but should be a valid integer.'),
        ('{"leaves": [{"count": 2.0}]}', "`leaves[0].count` is 2.0, but should be a valid integer."),
        ('{"leaves": [{"count": true}]}', "`leaves[0].count` is true, but should be a valid integer."),
        ('{"leaves": [{}, {"count": 0}]}', "`leaves[1].count` is 0, but should be greater than or equal to 1."),
        ('{"leaves": [{"share": "1"}]}', '`leaves[0].share` is "1", but should be a valid number.'),
        ('{"leaves": [{"kind": "hrd"}]}', "`leaves[0].kind` is \"hrd\", but should be 'hard' or 'soft'."),
        ('{"leaves": [{"share": 7}]}', "`share` is 7.0; it must not be 7."),
        ('{"leaves": [{}], "span": [1]}', "`span[1]` is missing; add it."),
        (
            '{"leavs": [{}], "leaves": [{}]}',
            "`leavs` is not a known field, did you mean `leaves`?; known are leaves, span, best, named, either.",
        ),
        (
            '{"leaves": [{"shar": 1}]}',
            "`leaves[0].shar` is not a known field, did you mean `share`?; known are count, share, kind.",
        ),
        ('{"leaves": [{}], "best": {"x": 1}}', "`best.x` is not a known field; known are count, share, kind."),
        (
            '{"leaves": [{}], "named": {"a": {"x": 1}}}',
            "`named.a.x` is not a known field; known are count, share, kind.",
        ),
        (
            '{"leaves": [',
            "not valid JSON (expecting value at line 1 column 13); complete or repair the file.",
        ),
    ],
)
def test_misfits_are_one_sentence(text: str, expected: str) -> None:
    with pytest.raises(InputError) as error:
        from_json(Tree, text, "x.json")
    assert str(error.value) == f"x.json: {expected}"


def test_a_union_leaves_the_fields_open() -> None:
    with pytest.raises(InputError, match=r"^x.json: `either.Leaf.x` is not a known field; remove it or correct"):
        from_json(Tree, '{"leaves": [{}], "either": {"x": "y"}}', "x.json")


def test_long_values_are_shortened() -> None:
    with pytest.raises(InputError) as error:
        from_json(Tree, '{"leaves": "%s"}' % ("x" * 500), "x.json")
    assert len(str(error.value)) < 120


def test_did_you_mean() -> None:
    assert did_you_mean("replcas", ("replicas", "tasks")) == ", did you mean `replicas`?"
    assert did_you_mean("zzz", ("replicas", "tasks")) == ""
