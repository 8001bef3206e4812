"""Choices fixed and narrowed, from the command line too."""

from collections.abc import Mapping
from typing import Any

import pytest

from nas.errors import InputError
from nas.space import (
    Architecture,
    Categorical,
    Integer,
    LogUniform,
    Range,
    SearchSpace,
    When,
    parse_assignments,
)
from tests.spaces import CHAIN, line_of, space_of


def test_assignments() -> None:
    assert parse_assignments(["connections=residual", "width = 16, 32", "learning_rate=1e-3..1e-1"]) == {
        "connections": ("residual",),
        "width": ("16", "32"),
        "learning_rate": Range("1e-3", "1e-1"),
    }


@pytest.mark.parametrize("text", ["width", "=3", "width=", "width=1,,2", "rate=1..", "rate=..2", "width=1,"])
def test_bad_assignments_are_one_line(text: str) -> None:
    said = line_of(parse_assignments, [text])
    assert said == f"{text!r} is not name=value, name=value,value or name=low..high"
    assert line_of(parse_assignments, ["a=1", "a=2"]) == "a is given twice: 'a=2'"


def test_restricting_from_the_command_line() -> None:
    space = CHAIN.restrict(
        fix=["pool=max", "width_1=32", "width=16", "bias=NONE"],
        narrow=["depth=2..3", "learning_rate=1e-3..1e-1", "dropout=0,0.25"],
    )
    assert space.choices == {
        "depth": Integer(2, 3),
        "width_1": Categorical((32,)),
        "width_2": Categorical((16,)),
        "width_3": Categorical((16,)),
        "pool": Categorical(("max",)),
        "bias": Categorical((None,)),
        "learning_rate": LogUniform(1e-3, 1e-1, changes_program=False),
        "dropout": Categorical((0.0, 0.25), changes_program=False),
    }
    assert CHAIN.restrict() == CHAIN
    assert CHAIN.narrow("width", (32, 16, 32)) == CHAIN
    assert CHAIN.narrow("width", Range(20, 99)) == CHAIN.fix("width", 32)
    assert CHAIN.narrow("depth", (3, 1)).choices["depth"] == Categorical((1, 3))
    assert CHAIN.restrict(narrow=["dropout=0.1..0.2"], fix=["dropout=0.15"]).choices[
        "dropout"
    ] == Categorical((0.15,), changes_program=False)


def test_what_narrowing_rules_out_is_never_present() -> None:
    shallow = CHAIN.narrow("depth", Range(1, 2))
    assert shallow.count(1) == (2 + 4) * 2 * 3
    assert "width_3" not in shallow.describe()
    assert "width_3" in shallow.choices
    space = space_of(
        kind=Categorical(("a", "b")),
        child=Integer(0, 3),
        grandchild=Integer(0, 3),
        conditions={"child": When("kind", ("b",)), "grandchild": When("child", (3,))},
    )
    without = space.fix("kind", "a")
    assert without.count() == 1
    assert line_of(without.validate, {"kind": "a", "child": 0}) == (
        "s: child=0 does not exist here, only when kind in (values ruled out here)"
    )


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({"fix": ["depth=9"]}, "chain: depth=9 is not one of 1..3"),
        ({"fix": ["depth=1,2"]}, "chain: cannot fix depth=1,2: give one value, or narrow it"),
        ({"fix": ["depth=1..2"]}, "chain: cannot fix depth=1..2: give one value, or narrow it"),
        (
            {"fix": ["wdith=16"]},
            "chain: wdith is not one of depth, width_1..3, pool, bias, learning_rate, dropout ",
        ),
        ({"fix": ["width=64"]}, "chain: width_1=64 is not one of 16, 32"),
        ({"fix": ["learning_rate=fast"]}, "chain: learning_rate=fast is not in 0.0001..1.0"),
        ({"narrow": ["width=16,64"]}, "chain: width_1=64 is not one of 16, 32"),
        ({"narrow": ["width=20..30"]}, "chain: cannot narrow width_1 to 20..30: there is none among 16, 32"),
        ({"narrow": ["depth=1..1" + 400 * "0"]}, "chain: cannot narrow depth to 1..1000"),
        ({"narrow": ["depth=2..5"]}, "chain: cannot narrow depth to 2..5: it must lie within 1..3"),
        ({"narrow": ["depth=1.5..3"]}, "chain: cannot narrow depth to 1.5..3: it must lie within 1..3"),
        ({"narrow": ["depth=nan..3"]}, "chain: cannot narrow depth to nan..3: it must lie within 1..3"),
        ({"narrow": ["depth=inf..inf"]}, "chain: cannot narrow depth to inf..inf: it must lie within 1..3"),
        (
            {"narrow": ["dropout=0.1..0.7"]},
            "chain: cannot narrow dropout to 0.1..0.7: it must lie in 0.0..0.5",
        ),
        (
            {"narrow": ["dropout=0.3..0.1"]},
            "chain: cannot narrow dropout to 0.3..0.1: it must lie in 0.0..0.5",
        ),
        ({"narrow": ["dropout=a..b"]}, "chain: cannot narrow dropout to a..b: a is not a number"),
        ({"narrow": ["pool=1..2"]}, "chain: cannot narrow pool to 1..2: only numbers have a range"),
        ({"narrow": ["width=16"], "fix": ["width=32"]}, "chain: width_1=32 is not 16"),
    ],
)
def test_impossible_restrictions_are_one_line(named: Mapping[str, Any], said: str) -> None:
    assert line_of(CHAIN.restrict, **named).startswith(said)


def test_narrowing_to_nothing_is_one_line() -> None:
    assert line_of(CHAIN.narrow, "depth", ()) == "chain: cannot narrow depth to nothing; it is one of 1..3"


def test_search_within_is_searched_unless_one_says_otherwise() -> None:
    space = SearchSpace(
        name="deep",
        choices={"depth": Integer(1, 200), "width_1": Categorical((8, 64)), "width_2": Categorical((8, 64))},
        search_within=["depth=1..3", "width=8"],
    )
    assert space.searched().count() == 3
    assert space.searched(narrow=["depth=150..200"]).count() == 51
    assert space.fix("width_1", 64).searched().count() == 3
    assert space.fix("width_1", 64).searched() == space.searched(fix=["width_1=64"])
    assert space.searched(fix=["width_2=64"]).sample(0)["width_2"] == 64
    assert space.searched(fix=["width_2=64"]).sample(0)["width_1"] == 8
    assert space.searched(fix=["depth=9"], narrow=["depth=5..9"]).count() == 1
    assert space.searched().searched() == space.searched()
    assert space.restrict(fix=["depth=7"]).searched().count() == 1
    space.validate(Architecture(depth=200, width_1=8, width_2=64))
    with pytest.raises(InputError, match=r"deep: unknown choice|deep: .*wide"):
        SearchSpace(name="deep", choices=space.choices, search_within=["wide=3"])
