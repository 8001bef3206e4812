"""The kinds of choices: known answers, exact error lines, and values that come back."""

import itertools
import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.space import Categorical, Constraint, Integer, LogUniform, Uniform, When
from tests.spaces import CHAIN, line_of


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Categorical(()), "Categorical: there are no values to choose from"),
        (lambda: Categorical("abc"), "Categorical: 'abc' is one string, not a sequence of values"),
        (lambda: Categorical((1, 1.0)), "Categorical: two of the values (1, 1.0) are the same"),
        (lambda: Categorical(("1", 1)), "Categorical: two of the values ('1', 1) are the same"),
        (lambda: Categorical((math.nan,)), "architecture: value=nan is not finite"),
        (lambda: Integer(3, 2), "Integer: low=3 is above high=2"),
        (lambda: cast(Any, Integer)(0, 2.5), "Integer: high=2.5 is not a whole number"),
        (lambda: Integer(False, 2), "Integer: low=False is not a whole number"),
        (lambda: Integer(0, 2**60), "Integer: 0..1152921504606846976 is too wide"),
        (lambda: Uniform(1, 1), "Uniform: low=1.0 is not below high=1.0"),
        (lambda: cast(Any, Uniform)("0", 1), "Uniform: low='0' is not a number"),
        (
            lambda: Uniform(1e9, 1e9 + 1e-3),
            "Uniform: 1000000000.0..1000000000.001 is too narrow to hold a million values",
        ),
        (lambda: Uniform(-1e308, 1e308), "Uniform: -1e+308..1e+308 is too wide"),
        (lambda: LogUniform(0, 1), "LogUniform: low=0.0 is not above 0"),
        (lambda: LogUniform(1e-300, 1e300), "LogUniform: 1e-300..1e+300 (log) is too wide"),
        (
            lambda: Constraint("x", bool, ()),
            "Constraint: 'x' looks at no choice; None stands for all",
        ),
        (lambda: When("a"), "When('a'): give values, or at_least and at_most"),
        (lambda: When("a", (1,), at_least=1), "When('a'): give values, or at_least and at_most"),
        (lambda: When("a", at_least=cast(Any, "3")), "When('a'): at_least='3' is not a finite number"),
        (lambda: When("a", at_most=float("nan")), "When('a'): at_most=nan is not a finite number"),
        (lambda: When("a", "max"), "When('a'): 'max' is one string, not a sequence of values"),
    ],
)
def test_impossible_parts_are_one_line(make: Callable[[], Any], said: str) -> None:
    assert line_of(make) == said


@pytest.mark.parametrize("value", ["", "a,b", "a..b", " a", "a ", "{a}", "a\nb"])
def test_values_that_text_cannot_carry_are_refused(value: str) -> None:
    assert "cannot stand in an architecture's text" in line_of(Categorical, ("fine", value))


ranges = st.tuples(st.floats(-1e6, 1e6), st.floats(0.01, 1e9)).map(lambda ends: (ends[0], ends[0] + ends[1]))
log_ranges = st.tuples(st.floats(1e-12, 1e6), st.floats(1.001, 1e12)).map(lambda e: (e[0], e[0] * e[1]))
units = st.floats(0, 1)


@settings(max_examples=200)
@given(kind=st.sampled_from((Uniform, LogUniform)), data=st.data(), unit=units)
def test_continuous_values_come_back_from_their_units(kind: Any, data: st.DataObject, unit: float) -> None:
    low, high = data.draw(ranges if kind is Uniform else log_ranges)
    choice = kind(low, high)
    value = choice.from_unit(unit)
    assert low <= value <= high
    assert choice.accepts(value)
    assert 0 <= choice.to_unit(value) <= 1
    assert choice.nearest(choice.to_unit(value)) == value
    assert choice.to_unit(value) == pytest.approx(unit, abs=1e-6)
    assert [choice.from_unit(u) for u in (-1.0, 0.0, 1.0, 2.0)] == [low, low, high, high]
    for other in choice.steps(value):
        assert low <= other <= high
        assert other != value


@given(low=st.integers(-(2**70), 2**70), span=st.integers(0, 2**50), unit=units)
def test_integers_come_back_from_their_units(low: int, span: int, unit: float) -> None:
    choice = Integer(low, low + span)
    for value in {choice.from_unit(unit), choice.from_unit(1.0), choice.default, low, low + span}:
        assert choice.accepts(value)
        assert choice.nearest(choice.to_unit(value)) == value


def test_the_other_values_are_all_there_in_random_order() -> None:
    rng = np.random.default_rng(0)
    for choice in (Categorical(tuple("abcde")), Integer(3, 7)):
        for value in choice.options():
            orders = {tuple(choice.others(value, rng)) for _ in range(100)}
            assert {frozenset(order) for order in orders} == {frozenset(choice.options()) - {value}}
            assert {len(order) for order in orders} == {4}
            assert len({order[0] for order in orders}) == 4
    drawn = list(itertools.islice(Uniform(0, 1).others(0.5, rng), 50))
    assert len(set(drawn)) == 50


def test_points_are_evenly_spaced() -> None:
    assert LogUniform(1e-4, 1e-1).options(4) == (1e-4, 1e-3, 1e-2, 1e-1)
    assert LogUniform(1e-4, 1.0).options(1) == (0.01,)
    assert Uniform(0, 0.5).options(3) == (0.0, 0.25, 0.5)
    assert Uniform(-1, 3).options(1) == (1.0,)
    assert Integer(1, 10).options(4) == (1, 4, 7, 10)
    assert list(Integer(1, 3).options(7)) == [1, 2, 3]
    assert Integer(1, 9).options(1) == (5,)


def test_drawn_numbers_are_short() -> None:
    drawn = [CHAIN.sample((0, i)) for i in range(200)]
    assert max(len(repr(arch["learning_rate"])) for arch in drawn) <= len("0.000123456")
    assert max(len(repr(arch["dropout"])) for arch in drawn) <= len("0.1234567")


def test_values_are_told_apart_by_type() -> None:
    assert [Categorical((0, 1)).accepts(value) for value in (1, True, 1.0, "1", None)] == [True] + [False] * 4
    assert [Categorical((0.0, 1.0)).accepts(value) for value in (1, True, 1.0)] == [True, False, True]
    assert [Integer(0, 3).accepts(value) for value in (1, True, 1.0)] == [True, False, False]
    assert [Uniform(0, 3).accepts(value) for value in (1, True, 1.0, math.nan)] == [True, False, True, False]
