"""Encodings, neighbours, mutation and crossover."""

import itertools
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest

from nas.space import Architecture, Categorical, Constraint, Integer, LogUniform, When
from tests.spaces import ARCH, CELL, CHAIN, line_of, space_of


def test_the_layout_of_an_encoding() -> None:
    space = space_of(
        kind=Categorical(("a", "b", "c")),
        depth=Integer(1, 5),
        rate=LogUniform(1e-4, 1.0),
        conditions={"depth": When("kind", ("a", "b")), "rate": When("kind", ("a",))},
    )
    assert space.encoded_names == ("kind=a", "kind=b", "kind=c", "depth", "depth?", "rate", "rate?")
    assert space.encode(Architecture(kind="c")).tolist() == [0, 0, 1, 0, 0, 0, 0]
    assert space.encode(Architecture(kind="b", depth=1)).tolist() == [0, 1, 0, 0, 1, 0, 0]
    assert space.encode({"kind": "a", "depth": 4, "rate": 0.01}).tolist() == [1, 0, 0, 0.75, 1, 0.5, 1]
    assert space.decode([0.2, 0.9, 0.8, 0.6, 0.0, 9.0, 9.0]) == Architecture(kind="b", depth=3)
    assert space.decode([9, 0, 0, -9, 0, 9, 0]) == Architecture(kind="a", depth=1, rate=1.0)


def test_a_vector_that_breaks_a_constraint_decodes_to_its_nearest_neighbour() -> None:
    differ = Constraint("all differ", lambda arch: len(set(arch.values())) == len(arch))
    space = space_of(differ, a=Integer(0, 4), b=Integer(0, 4))
    assert space.decode([0.5, 0.49]) == Architecture(a=2, b=1)
    far = Constraint("far apart", lambda arch: abs(arch["a"] - arch["b"]) == 4)
    lonely = space_of(far, a=Integer(0, 4), b=Integer(0, 4))
    assert abs(lonely.decode([0.5, 0.5])["a"] - lonely.decode([0.5, 0.5])["b"]) == 4


@pytest.mark.parametrize("vector", [[0.0], np.zeros((2, 2)), [math.nan] * 16, [math.inf] * 16])
def test_vectors_that_are_none_are_one_line(vector: Any) -> None:
    assert CHAIN.encoded_width == 16
    assert line_of(CHAIN.decode, vector).endswith("is not an encoding: finite numbers of shape (16,)")


def test_values_between_the_points_of_the_grid_stay_valid_and_near() -> None:
    exact = ARCH.set(learning_rate=0.0012345678901234567, dropout=0.12345678901234567)
    assert CHAIN.from_string(CHAIN.to_string(exact)) == exact
    back = CHAIN.decode(CHAIN.encode(exact))
    assert back["learning_rate"] == pytest.approx(exact["learning_rate"], rel=1e-5)
    assert back["dropout"] == pytest.approx(exact["dropout"], abs=1e-6)


def test_the_neighbours_of_a_cell() -> None:
    """NAS-Bench-201: 24 networks are one edit away."""
    arch = CELL.from_string("|nor_conv_3x3~0|+|none~0|none~1|+|skip_connect~0|none~1|avg_pool_3x3~2|")
    neighbours = CELL.neighbours(arch)
    assert len(set(neighbours)) == len(neighbours) == 24
    assert all(sum(a != b for a, b in zip(arch.values(), n.values(), strict=True)) == 1 for n in neighbours)
    assert all(arch in CELL.neighbours(neighbour) for neighbour in neighbours)


def test_neighbours_fill_what_comes_and_drop_what_goes() -> None:
    space = CHAIN.fix("pool", "max").fix("bias", None).fix("dropout", 0.25)
    arch = Architecture(
        depth=2, width_1=16, width_2=32, pool="max", bias=None, learning_rate=1e-3, dropout=0.25
    )
    rest = {"pool": "max", "bias": None, "dropout": 0.25}
    assert [dict(neighbour) for neighbour in space.neighbours(arch)] == [
        {"depth": 1, "width_1": 16, "learning_rate": 1e-3, **rest},
        {"depth": 3, "width_1": 16, "width_2": 32, "width_3": 16, "learning_rate": 1e-3, **rest},
        {"depth": 2, "width_1": 32, "width_2": 32, "learning_rate": 1e-3, **rest},
        {"depth": 2, "width_1": 16, "width_2": 16, "learning_rate": 1e-3, **rest},
        {"depth": 2, "width_1": 16, "width_2": 32, "learning_rate": 0.000398107, **rest},
        {"depth": 2, "width_1": 16, "width_2": 32, "learning_rate": 0.00251189, **rest},
    ]
    edge = [n["learning_rate"] for n in space.neighbours(arch.set(learning_rate=1.0))]
    assert edge[-1:] == [0.398107]
    clipped = [n["learning_rate"] for n in space.neighbours(arch.set(learning_rate=0.9))]
    assert clipped[-1] == 1.0


def test_mutation_reaches_every_other_value() -> None:
    space = space_of(a=Integer(0, 9), b=Categorical(tuple("xyz")))
    arch = Architecture(a=4, b="y")
    seen = Counter(space.mutate(arch, i) for i in range(2_000))
    assert set(seen) == {arch.set(a=a) for a in range(10) if a != 4} | {arch.set(b=b) for b in "xz"}
    assert sum(many for mutant, many in seen.items() if mutant["a"] != 4) == pytest.approx(1_000, abs=120)


def test_mutation_without_another_value_or_with_none_valid() -> None:
    single = space_of(a=Categorical(("x",)), b=Integer(3, 3))
    assert single.mutate(single.sample(0), 0) == single.sample(0)
    equal = space_of(
        Constraint("equal", lambda arch: arch["a"] == arch["b"]), a=Integer(0, 3), b=Integer(0, 3)
    )
    assert equal.mutate({"a": 1, "b": 1}, 0) in [Architecture(a=i, b=i) for i in (0, 2, 3)]
    only = space_of(Constraint("one", lambda arch: arch["a"] == 1), a=Integer(0, 3))
    assert only.mutate({"a": 1}, 0) == Architecture(a=1)


def test_mutation_draws_what_comes_into_being() -> None:
    arch = ARCH.set(depth=1).without("width_2")
    deeper = [m for m in (CHAIN.mutate(arch, i) for i in range(500)) if m["depth"] > 1]
    assert {m["width_2"] for m in deeper} == {16, 32}
    assert {m.get("width_3") for m in deeper} == {None, 16, 32}


def test_crossover_mixes_and_draws_what_neither_has() -> None:
    space = space_of(
        a=Integer(0, 1),
        b=Integer(0, 1),
        c=Integer(0, 9),
        conditions={"c": [When("a", (1,)), When("b", (1,))]},
    )
    children = {space.crossover({"a": 0, "b": 1}, {"a": 1, "b": 0}, i) for i in range(300)}
    assert {(child["a"], child["b"]) for child in children} == set(itertools.product((0, 1), repeat=2))
    assert {child["c"] for child in children if "c" in child} == set(range(10))


def test_crossover_falls_back_on_the_first_parent() -> None:
    alike = Constraint("alike", lambda arch: len(set(arch.values())) == 1)
    space = space_of(alike, **{f"a_{i}": Integer(0, 1) for i in range(40)})
    zeros, ones = (Architecture({f"a_{i}": value for i in range(40)}) for value in (0, 1))
    assert space.crossover(zeros, ones, 0) == zeros
    assert space.crossover(ones, zeros, 0) == ones


def test_architectures_that_share_a_program() -> None:
    assert CHAIN.program(ARCH) == ARCH.without("learning_rate", "dropout")
    assert CHAIN.fix("learning_rate", 0.1).program(ARCH.set(learning_rate=0.1)) == CHAIN.program(ARCH)
