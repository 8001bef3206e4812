"""The kinds of choices: Categorical, Integer, Uniform and LogUniform.

A choice knows its values: which it accepts, how text and a number in [0, 1] become one, and how to step to another.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias, TypeGuard

import numpy as np

from nas.errors import InputError
from nas.space.architecture import Scalar, scalar
from nas.space.messages import clip, text_of

CONTINUOUS_STEP = 0.1
"""A neighbour's distance along a continuous choice, as a part of its (for LogUniform, logarithmic) range."""

ABSENT: Any = object()
"""Stands in place of a value where there is none: None is a value."""

TEXT_VALUE = re.compile(r"(?!\{)(?!.*\.\.)[^\s,]([^,\n\r]*[^\s,])?")


def is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def number_of(text: str) -> float:
    """The number that ``text`` writes, else nan."""
    try:
        return float(text)
    except ValueError:
        return math.nan


@dataclasses.dataclass(frozen=True)
class Categorical:
    """One of ``values``, all different, also when written as text. Their order is that of enumeration, and
    ``neighbours`` gives the first one to a choice that exists only after an edit.

    ``changes_program=False``, here and in the other choices, marks what the compiled program takes as an
    argument (a learning rate): architectures that differ in such choices alone share one compilation.
    """

    values: Sequence[Scalar]
    changes_program: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.values, str):
            raise InputError(f"Categorical: {self.values!r} is one string, not a sequence of values")
        values = tuple(scalar("value", value) for value in self.values)
        object.__setattr__(self, "values", values)
        if not values:
            raise InputError("Categorical: there are no values to choose from")
        for value in values:
            if isinstance(value, str) and not TEXT_VALUE.fullmatch(value):
                rules = "no comma, no '..', no brace in front, no space at an end, one line, not empty"
                raise InputError(
                    f"Categorical: {clip(value)} cannot stand in an architecture's text: {rules}"
                )
        if len(self.index_of) < len(values) or len(set(map(text_of, values))) < len(values):
            raise InputError(f"Categorical: two of the values {clip(values)} are the same")

    @functools.cached_property
    def index_of(self) -> dict[Any, int]:
        return {value: index for index, value in enumerate(self.values)}

    @property
    def summary(self) -> str:
        return ", ".join(map(text_of, self.values))

    @property
    def span(self) -> str:
        return f"one of {self.summary}" if len(self.values) > 1 else self.summary

    @property
    def default(self) -> Scalar:
        return self.values[0]

    def options(self, points: int | None = None) -> Sequence[Scalar]:
        """All values: a number of ``points`` thins numeric ranges only."""
        return self.values

    def accepts(self, value: object) -> bool:
        index = self.index_of.get(value)
        if index is None:
            return False
        held = type(self.values[index])
        return type(value) is held or (held is float and type(value) is int)

    def canonical(self, value: Any) -> Scalar:
        return self.values[self.index_of[value]]

    def parse(self, text: str) -> Scalar:
        """The value that ``text`` writes: numbers in any notation; True, False and None in any case."""
        for value in self.values:
            if text_of(value) == text:
                return value
        for value in self.values:
            if number_of(text) == value if is_number(value) else text.casefold() == repr(value).casefold():
                return value
        raise ValueError(text)

    def from_unit(self, unit: float) -> Scalar:
        return self.values[min(int(unit * len(self.values)), len(self.values) - 1)]

    def others(self, value: Any, rng: np.random.Generator) -> Iterator[Scalar]:
        return others(self.values, self.index_of[value], rng)

    def steps(self, value: Any) -> Iterator[Scalar]:
        return (other for other in self.values if other != value)

    def within(self, low: Any, high: Any) -> Categorical:
        if not any(map(is_number, self.values)):
            raise ValueError("only numbers have a range")
        kept = [value for value in self.values if is_number(value) and low <= value <= high]
        if not kept:
            raise ValueError(f"there is none among {self.summary}")
        return Categorical(kept, self.changes_program)


@dataclasses.dataclass(frozen=True)
class Integer:
    """A whole number from ``low`` to ``high``, both included; neighbours are one apart."""

    low: int
    high: int
    changes_program: bool = True

    def __post_init__(self) -> None:
        for end in ("low", "high"):
            value = scalar(end, getattr(self, end))
            if type(value) is not int:
                raise InputError(f"Integer: {end}={clip(value)} is not a whole number")
            object.__setattr__(self, end, value)
        if self.low > self.high:
            raise InputError(f"Integer: low={self.low} is above high={self.high}")
        if self.high - self.low > 2**50:  # so that a float can tell any two apart
            raise InputError(f"Integer: {self.summary} is too wide")

    @property
    def summary(self) -> str:
        return f"{self.low}..{self.high}"

    @property
    def span(self) -> str:
        return f"one of {self.summary}"

    @property
    def default(self) -> int:
        return (self.low + self.high) // 2

    def options(self, points: int | None = None) -> Sequence[int]:
        """The whole range, or ``points`` of its numbers, evenly spaced (one: the middle)."""
        count = self.high - self.low + 1
        if points is None or points >= count:
            return range(self.low, self.high + 1)
        if points == 1:
            return (self.default,)
        return tuple(self.low + round(i * (count - 1) / (points - 1)) for i in range(points))

    def accepts(self, value: Any) -> bool:
        return type(value) is int and self.low <= value <= self.high

    def canonical(self, value: Any) -> int:
        return value

    def parse(self, text: str) -> int:
        return int(text)

    def to_unit(self, value: Any) -> float:
        return (value - self.low) / (self.high - self.low) if self.high > self.low else 0.0

    def from_unit(self, unit: float) -> int:
        """Equal parts of [0, 1] give equal chances: for sampling, not the inverse of ``to_unit``."""
        return min(self.low + int(unit * (self.high - self.low + 1)), self.high)

    def nearest(self, unit: float) -> int:
        """Inverse of ``to_unit``; any ``unit``."""
        return self.low + round(min(max(unit, 0.0), 1.0) * (self.high - self.low))

    def others(self, value: Any, rng: np.random.Generator) -> Iterator[int]:
        return others(range(self.low, self.high + 1), value - self.low, rng)

    def steps(self, value: Any) -> Iterator[int]:
        return (other for other in (value - 1, value + 1) if self.low <= other <= self.high)

    def within(self, low: Any, high: Any) -> Integer:
        if not (self.low <= low <= high <= self.high and low == int(low) and high == int(high)):
            raise ValueError(f"it must lie within {self.summary}")
        return Integer(int(low), int(high), self.changes_program)


@dataclasses.dataclass(frozen=True)
class Continuous:
    """What ``Uniform`` and ``LogUniform`` share."""

    low: float
    high: float
    changes_program: bool = True

    def __post_init__(self) -> None:
        kind = type(self).__name__
        for end in ("low", "high"):
            value = scalar(end, getattr(self, end))
            if not is_number(value):
                raise InputError(f"{kind}: {end}={clip(value)} is not a number")
            object.__setattr__(self, end, float(value))
        if not self.low < self.high:
            raise InputError(f"{kind}: low={self.low} is not below high={self.high}")
        if self.high - self.low < 1e7 * math.ulp(max(abs(self.low), abs(self.high))):
            raise InputError(f"{kind}: {self.summary} is too narrow to hold a million values")

    @property
    def summary(self) -> str:
        return f"{self.low!r}..{self.high!r}"

    @property
    def span(self) -> str:
        return f"in {self.low!r}..{self.high!r}"

    @property
    def default(self) -> float:
        return self.from_unit(0.5)

    def options(self, points: int | None = None) -> Sequence[float]:
        """``points`` values from ``low`` to ``high``, even on the choice's scale (one: the middle)."""
        if points is None:
            raise ValueError("a continuous choice has no list of values")
        if points == 1:
            return (self.default,)
        return tuple(dict.fromkeys(self.from_unit(i / (points - 1)) for i in range(points)))

    def accepts(self, value: Any) -> bool:
        return type(value) in (float, int) and self.low <= value <= self.high

    def canonical(self, value: Any) -> float:
        return float(value)

    def parse(self, text: str) -> float:
        return float(text)

    def to_unit(self, value: float) -> float:
        raise NotImplementedError

    def from_unit(self, unit: float) -> float:
        raise NotImplementedError

    def nearest(self, unit: float) -> float:
        return self.from_unit(unit)

    def others(self, value: Any, rng: np.random.Generator) -> Iterator[float]:
        drawn = (self.from_unit(unit) for unit in iter(rng.random, None))
        return (other for other in drawn if other != value)

    def steps(self, value: Any) -> Iterator[float]:
        unit = self.to_unit(value)
        stepped = (self.from_unit(unit + step) for step in (-CONTINUOUS_STEP, CONTINUOUS_STEP))
        return (other for other in stepped if other != value)

    def within(self, low: Any, high: Any) -> Any:
        if not self.low <= low < high <= self.high:
            raise ValueError(f"it must lie {self.span}")
        return dataclasses.replace(self, low=low, high=high)


@dataclasses.dataclass(frozen=True)
class Uniform(Continuous):
    """A real number from ``low`` to ``high``, both included, even over the range.

    What a space draws or steps to lies on a grid of at least a million values across the range, so that text
    is short and ``decode(encode(arch))`` exact; any other float in the range is valid all the same.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if not math.isfinite(self.high - self.low):
            raise InputError(f"Uniform: {self.summary} is too wide")

    @functools.cached_property
    def _decimals(self) -> int:
        return 6 - math.floor(math.log10(self.high - self.low))

    def to_unit(self, value: float) -> float:
        return (value - self.low) / (self.high - self.low)

    def from_unit(self, unit: float) -> float:
        if 0.0 < unit < 1.0:
            value = round(self.low + unit * (self.high - self.low), self._decimals)
            return min(max(value, self.low), self.high)
        return self.low if unit <= 0.0 else self.high


@dataclasses.dataclass(frozen=True)
class LogUniform(Continuous):
    """A real number from ``low`` > 0 to ``high``, both included, even in the logarithm; else as ``Uniform``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.low > 0:
            raise InputError(f"LogUniform: low={self.low} is not above 0")
        if not math.isfinite(self.high / self.low):
            raise InputError(f"LogUniform: {self.summary} is too wide")

    @functools.cached_property
    def _log_span(self) -> float:
        return math.log(self.high / self.low)

    @functools.cached_property
    def _format(self) -> str:
        # Rounding moves a value by up to 0.5 * 10^(1 - digits) of itself: at most a millionth of the range.
        return f".{max(6, math.ceil(7 + math.log10(0.5 / self._log_span)))}g"

    @property
    def summary(self) -> str:
        return f"{super().summary} (log)"

    def to_unit(self, value: float) -> float:
        return math.log(value / self.low) / self._log_span

    def from_unit(self, unit: float) -> float:
        if 0.0 < unit < 1.0:
            value = float(format(self.low * math.exp(unit * self._log_span), self._format))
            return min(max(value, self.low), self.high)
        return self.low if unit <= 0.0 else self.high


Choice: TypeAlias = Categorical | Integer | Uniform | LogUniform


def others(values: Sequence[Any], index: int, rng: np.random.Generator) -> Iterator[Any]:
    """Every value but that at ``index``, in their order from a random one on, wrapping round."""
    rest = len(values) - 1
    start = int(rng.random() * rest)
    return (values[(index + 1 + (start + i) % rest) % len(values)] for i in range(rest))


def nearest_value(choice: Choice, value: Any) -> Any:
    """``value``, or the number nearest to it that ``choice`` has, else `ABSENT`."""
    if choice.accepts(value):
        return choice.canonical(value)
    if not is_number(value):
        return ABSENT
    if isinstance(choice, Integer):
        value = round(value)
    if isinstance(choice, Categorical):
        numbers = [number for number in choice.values if is_number(number)]
        return min(numbers, key=lambda number: abs(number - value), default=ABSENT)
    return choice.canonical(min(max(value, choice.low), choice.high))
