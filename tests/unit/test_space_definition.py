"""Spaces as data: what is refused with which line, constraints, pickling, and what an import needs."""

import itertools
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from nas.space import Architecture, Categorical, Constraint, Integer, SearchSpace, When
from tests.spaces import ARCH, CELL, CHAIN, line_of, space_of


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: SearchSpace("s", {}), "s: a space needs at least one choice"),
        (lambda: SearchSpace("a b", {"x": Integer(0, 1)}), "space: 'a b' is not a name (no space,"),
        (lambda: SearchSpace("s", {"x=": Integer(0, 1)}), "s: 'x=' is not a choice's name (no space,"),
        (
            lambda: SearchSpace("s", cast(Any, {"x": (1, 2)})),
            "s: x=(1, 2) is not one of Categorical, Integer, Uniform, LogUniform",
        ),
        (lambda: space_of(x=Integer(0, 1), conditions={"y": When("x", (1,))}), "s: y is not one of x"),
        (lambda: space_of(x=Integer(0, 1), conditions={"x": When("y", (1,))}), "s: y is not one of x"),
        (
            lambda: space_of(x=Integer(0, 1), y=Integer(0, 1), conditions={"x": When("y", (1,))}),
            "s: condition on x: y must stand before x among the choices",
        ),
        (
            lambda: space_of(x=Integer(0, 1), conditions={"x": When("x", (1,))}),
            "s: condition on x: x must stand before x among the choices",
        ),
        (
            lambda: space_of(x=Integer(0, 1), y=Integer(0, 1), conditions={"y": When("x", (2,))}),
            "s: condition on y: x=2 is not one of 0..1",
        ),
        (
            lambda: space_of(x=Categorical(("a",)), y=Integer(0, 1), conditions={"y": When("x", at_least=1)}),
            "s: condition on y: x >= 1 compares what are not numbers: a",
        ),
        (
            lambda: space_of(Constraint("c", bool, "z"), x_1=Integer(0, 1), x_2=Integer(0, 1)),
            "s: z is not one of x_1..2",
        ),
        (
            lambda: SearchSpace("s", {"x": Integer(0, 1)}, format=str),
            "s: give both format and parse, or neither",
        ),
    ],
)
def test_impossible_spaces_are_one_line(make: Callable[[], Any], said: str) -> None:
    assert line_of(make).startswith(said)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"depth": 9}, "chain: depth=9 is not one of 1..3"),
        ({"depth": True}, "chain: depth=True is not one of 1..3"),
        ({"depth": 3}, "chain: width_3 is missing; it is one of 16, 32"),
        ({"depth": 1}, "chain: width_2=32 does not exist here, only when depth >= 2"),
        ({"width_1": "16"}, "chain: width_1=16 is not one of 16, 32"),
        ({"pool": "m\nx"}, "chain: pool='m\\nx' is not one of none, max"),
        ({"learning_rate": 3}, "chain: learning_rate=3 is not in 0.0001..1.0"),
        ({"bias": 1}, "chain: bias=1 is not one of True, False, None"),
        (
            {"widht_1": 16},
            "chain: widht_1 is not one of depth, width_1..3, pool, bias, learning_rate, dropout "
            "(did you mean width_1?)",
        ),
        ({"width_1": [16]}, "architecture: width_1=[16] is not a string, number, bool or None"),
    ],
)
def test_invalid_architectures_are_one_line(changes: dict[str, Any], said: str) -> None:
    CHAIN.validate(ARCH)
    assert line_of(CHAIN.validate, {**ARCH, **changes}) == said


def test_a_broken_constraint_is_named_with_its_values() -> None:
    space = space_of(
        Constraint("a before b", lambda arch: arch["a_1"] < arch["a_2"], "a"),
        Constraint("odd in all", lambda arch: sum(arch.values()) % 2 == 1),
        a_1=Integer(0, 3),
        a_2=Integer(0, 3),
        c=Integer(0, 3),
    )
    assert (
        line_of(space.validate, {"a_1": 2, "a_2": 1, "c": 0})
        == "s: a_1=2,a_2=1 breaks the constraint: a before b"
    )
    assert (
        line_of(space.validate, {"a_1": 1, "a_2": 2, "c": 1})
        == "s: architecture breaks the constraint: odd in all"
    )


def test_a_constraint_sees_what_it_names_and_nothing_else() -> None:
    seen: set[frozenset[str]] = set()

    def holds(arch: Architecture) -> bool:
        seen.add(frozenset(arch))
        return True

    space = space_of(
        Constraint("any", holds, ("b", "a")),
        a=Integer(0, 1),
        b=Integer(0, 1),
        c=Integer(0, 1),
        conditions={"b": When("a", (1,))},
    )
    arch = space.sample(0)
    space.validate(arch)
    list(space.enumerate())
    space.count()
    space.mutate(arch, 0)
    space.crossover(arch, arch, 0)
    space.decode(space.encode(arch))
    assert seen == {frozenset("a"), frozenset("ab")}


def test_a_space_travels_between_processes() -> None:
    list(itertools.islice(CELL.enumerate(), 3))
    CELL.sample(0)
    copied = pickle.loads(pickle.dumps(CELL))
    assert copied == CELL
    assert hash(copied) == hash(CELL)
    assert copied.sample(5) == CELL.sample(5)


def test_the_module_needs_numpy_alone() -> None:
    code = "import sys, nas.space; print(*{name.split('.')[0] for name in sys.modules} & set(sys.argv[1:]))"
    heavy = ["jax", "flax", "optax", "scipy", "pandas", "ray", "tensorflow", "optuna"]
    done = subprocess.run(
        [sys.executable, "-c", code, *heavy, "numpy"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["numpy"]
