"""Sampling, enumerating and counting: known answers and exact error lines."""

import itertools
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest

from nas.space import Categorical, Constraint, Integer, SearchSpace, Size, Uniform, When
from tests.spaces import ARCH, CELL, CHAIN, line_of, space_of


def test_samples_are_even_over_each_choice() -> None:
    drawn = [CHAIN.sample((1, i)) for i in range(3_000)]
    for name, expected in [("depth", (1, 2, 3)), ("width_3", (16, 32)), ("bias", (True, False, None))]:
        values = [arch[name] for arch in drawn if name in arch]
        for value, many in Counter(values).items():
            assert value in expected
            even = len(values) / len(expected)
            assert abs(many - even) < 5 * math.sqrt(even)
    logarithms = [math.log10(arch["learning_rate"]) for arch in drawn]
    assert np.mean(logarithms) == pytest.approx(-2, abs=0.1)
    assert np.quantile(logarithms, [0.25, 0.75]) == pytest.approx([-3, -1], abs=0.15)


def test_keys_of_every_kind_and_streams() -> None:
    assert CHAIN.sample((3, 4)) == CHAIN.sample([3, 4]) == CHAIN.sample(np.random.default_rng((3, 4)))
    rng = np.random.default_rng(0)
    assert CHAIN.sample(rng) != CHAIN.sample(rng)
    assert len({CHAIN.sample((0, i)) for i in range(100)}) == 100


def test_what_a_key_draws_never_changes() -> None:
    """Records are replayed: a key gives the same architecture in every version."""
    assert CHAIN.to_string(CHAIN.sample((0, 0))) == (
        "depth=2,width_1=16,width_2=16,pool=max,bias=None,learning_rate=0.026702,dropout=0.3647483"
    )
    assert CHAIN.to_string(CHAIN.sample((0, 1))) == (
        "depth=3,width_1=32,width_2=32,width_3=32,pool=none,bias=True,learning_rate=0.141661,dropout=0.0001541"
    )
    assert CELL.to_string(CELL.sample(7)) == (
        "|nor_conv_3x3~0|+|avg_pool_3x3~0|nor_conv_3x3~1|+|skip_connect~0|skip_connect~1|avg_pool_3x3~2|"
    )
    assert CHAIN.mutate(ARCH, 1) == ARCH.set(pool="none")
    assert CHAIN.mutate(ARCH, 2) == ARCH.set(width_1=32)
    assert CHAIN.to_string(CHAIN.crossover(ARCH, CHAIN.sample((0, 1)), 1)) == (
        "depth=3,width_1=32,width_2=32,width_3=32,pool=max,bias=None,learning_rate=0.141661,dropout=0.0"
    )


@pytest.mark.parametrize("key", [None, -1, 1.5, "seed", (0, -1)])
def test_bad_keys_are_one_line(key: Any) -> None:
    assert line_of(CHAIN.sample, key).startswith(f"chain: key={key!r} is not a whole number from 0")


def test_unsatisfiable_constraints_are_one_line() -> None:
    space = space_of(Constraint("x is above 5", lambda arch: arch["x"] > 5), x=Integer(0, 3))
    assert line_of(space.sample, 0) == "s: none of 10,000 random draws meets the constraints: x is above 5"
    assert list(space.enumerate()) == []
    assert space.count() == 0


def test_enumeration_order_is_nested_loops() -> None:
    space = CHAIN.fix("pool", "max").fix("bias", None).fix("learning_rate", 0.1).fix("dropout", 0.1)
    shown = [tuple(arch.values())[:-4] for arch in space.enumerate()]
    assert shown[:2] == [(1, 16), (1, 32)]
    assert shown[2:6] == [(2, 16, 16), (2, 16, 32), (2, 32, 16), (2, 32, 32)]
    assert shown[6:] == [(3, *widths) for widths in itertools.product((16, 32), repeat=3)]


def test_known_counts() -> None:
    assert CELL.count() == 15_625
    assert CHAIN.count() == math.inf
    assert CHAIN.count(1) == (2 + 4 + 8) * 2 * 3
    assert CHAIN.count(3) == (2 + 4 + 8) * 2 * 3 * 9
    assert CHAIN.count({"dropout": 2, "learning_rate": 5}) == (2 + 4 + 8) * 2 * 3 * 10
    assert CHAIN.count({"dropout": 2}) == math.inf
    assert len(set(CHAIN.grid(2))) == CHAIN.count(2) == 336
    assert CHAIN.count({"dropout": 1, "learning_rate": 1, "depth": 2}) == (2 + 8) * 2 * 3


def test_a_big_space_is_counted_exactly() -> None:
    """Thirty conditional choices and two constraints: against a sum done by hand over depth."""
    blocks = range(1, 16)
    kinds = {f"kind_{i}": Categorical(("conv", "pool", "skip")) for i in blocks}
    kernels = {f"kernel_{i}": Categorical((1, 3, 5, 7)) for i in blocks}
    conditions = {f"kind_{i}": [When("depth", at_least=i)] for i in blocks}
    conditions |= {f"kernel_{i}": [When(f"kind_{i}", ["conv"])] for i in blocks}
    space = SearchSpace("big", {"depth": Integer(0, 15), **kinds, **kernels}, conditions)
    assert space.count() == sum(6**depth for depth in range(16))
    first = Constraint("block 1 is no skip", lambda a: a.get("kind_1") != "skip", ["kind_1"])
    pair = Constraint("kernel 2 is 3", lambda a: a.get("kernel_2", 3) == 3, ["kernel_2"])
    constrained = SearchSpace("big", space.choices, conditions, [first, pair])
    assert constrained.count() == 1 + 5 + sum(5 * 3 * 6 ** (depth - 2) for depth in range(2, 16))


def test_where_constraints_are_too_hard_the_size_is_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nas.space.counting.MAX_COUNTED", 10_000)
    first = Constraint("a_1 is 0", lambda arch: arch["a_1"] == 0, ["a_1"])
    odd = Constraint("odd", lambda arch: sum(arch.values()) % 2 == 1)
    space = space_of(first, odd, **{f"a_{i}": Integer(0, 9) for i in range(1, 10)})
    assert space.size() == Size(10**8, exact=False)
    assert str(space.size()) == "at most 100,000,000"
    assert line_of(space.count) == (
        "s: at most 100,000,000 architectures; under its constraints no exact count is in reach"
    )
    assert space.narrow("a", (0, 1)).count() == 2**7
    wide = space_of(Constraint("odd", lambda arch: arch["a"] % 2 == 1), a=Integer(0, 10**12))
    assert wide.size() == Size(10**12 + 1, exact=False)


def test_conditions_on_wide_and_continuous_choices_are_counted() -> None:
    space = space_of(
        n=Integer(0, 10**12),
        even=Categorical((1, 2, 3)),
        small=Categorical((1, 2)),
        conditions={"even": When("n", (0, 7)), "small": When("n", at_least=2.5, at_most=10)},
    )
    assert space.count() == 3 + 3 * 2 + 7 * 2 + (10**12 + 1 - 9)  # n = 0; 7; 3 to 10 without 7; others
    rates = space_of(
        rate=Uniform(0, 1), child=Categorical((1, 2, 3)), conditions={"child": When("rate", at_least=0.5)}
    )
    assert rates.count() == math.inf
    assert rates.count(3) == 1 + 2 * 3
    both = {"rate": [When("a", (1,)), When("a", (2,))]}
    assert len(list(space_of(a=Integer(0, 3), rate=Uniform(0, 1), conditions=both).enumerate())) == 4
    never = space_of(a=Integer(0, 3), rate=Uniform(0, 1), conditions={"rate": When("a", at_least=4)})
    assert never.count() == 4
    assert [dict(arch) for arch in never.enumerate()] == [{"a": a} for a in range(4)]
    assert "rate" not in never.describe()


@pytest.mark.parametrize(
    ("points", "said"),
    [
        (0, "chain: 0 points for learning_rate is not a whole number from 1"),
        (2.0, "chain: 2.0 points for learning_rate is not a whole number from 1"),
        (True, "chain: True points for learning_rate is not a whole number from 1"),
        ({"dropout": 2}, "chain: learning_rate is continuous: say how many points of it to take"),
        ({"pool": 2}, "chain: pool is one of none, max: it has no number of points"),
        ({"depht": 2}, "chain: depht is not one of depth, width_1..3, pool, bias, learning_rate, dropout"),
        (None, "chain: learning_rate is continuous: say how many points of it to take"),
    ],
)
def test_impossible_grids_are_one_line(points: Any, said: str) -> None:
    assert line_of(CHAIN.enumerate, points).startswith(said)
