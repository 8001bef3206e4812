"""Architectures as values and search spaces as data.

A space is named choices, conditions ("width_3 exists when depth >= 3") and constraints; a point of it is an
``Architecture``. Sampling, enumerating, counting, encoding, neighbours, mutation, crossover, validation and
text are written here once for all spaces. Needs NumPy and nothing else, so that it imports fast.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import itertools
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import (
    Callable,
    Container,
    ItemsView,
    Iterable,
    Iterator,
    KeysView,
    Mapping,
    Sequence,
    ValuesView,
)
from typing import Any, NamedTuple, TypeAlias, TypeGuard, cast

import numpy as np

from nas.errors import InputError, one_of

Scalar: TypeAlias = str | int | float | bool | None
Key: TypeAlias = int | Sequence[int] | np.random.Generator

MAX_DRAWS = 10_000
"""Rejected draws after which sampling under constraints gives up."""

MAX_COUNTED = 10**6
"""Most partial assignments ``size`` holds at a time to count exactly under constraints."""

CONTINUOUS_STEP = 0.1
"""A neighbour's distance along a continuous choice, as a part of its (for LogUniform, logarithmic) range."""

_ABSENT: Any = object()  # what an inactive choice has instead of a value
_END: Any = object()  # what an exhausted iterator gives
_REFILLS = 10  # draws of the choices that an edit brings into being, under constraints
_OTHERS = 100  # other values of one choice that an edit tries, under constraints


# --------------------------------------------------------------------------------------------- architectures

FILE_MODULE = "space_in_file_"  # how the modules made of users' own space files are named


class Architecture(Mapping[str, Any]):
    """A point of a search space: an immutable, hashable mapping from choice names to plain scalars.

    Two architectures are equal when they hold the same names and values, in whatever order. NumPy scalars
    become Python's; anything but a finite number, string, bool or None is an ``InputError``.
    """

    __slots__ = ("_hash", "_values")
    _hash: int | None
    _values: dict[str, Scalar]

    def __init__(self, values: Mapping[str, Any] | Iterable[tuple[str, Any]] = (), /, **more: Any) -> None:
        held = {name: _scalar(name, value) for name, value in {**dict(values), **more}.items()}
        object.__setattr__(self, "_values", held)
        object.__setattr__(self, "_hash", None)

    @classmethod
    def _of(cls, values: dict[str, Scalar]) -> Architecture:
        """Wraps ``values`` unchecked and uncopied: for callers in this module that made them."""
        arch = cls.__new__(cls)
        object.__setattr__(arch, "_values", values)
        object.__setattr__(arch, "_hash", None)
        return arch

    def set(self, **changes: Any) -> Architecture:
        """The same architecture with ``changes`` made; names not held before are added at the end."""
        return Architecture(self._values, **changes)

    def without(self, *names: str) -> Architecture:
        """The same architecture with ``names`` left out (those it does not hold are ignored)."""
        return Architecture._of({name: value for name, value in self._values.items() if name not in names})

    def to_json(self) -> str:
        """One line of JSON, names sorted, so that equal architectures give equal text."""
        return json.dumps(self._values, sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, source: str | bytes | Mapping[str, Any]) -> Architecture:
        """Inverse of ``to_json``; also takes the decoded object. Raises ``InputError``."""
        decoded: Any = source
        if isinstance(source, str | bytes):
            try:
                decoded = json.loads(source, object_pairs_hook=_without_duplicates)
            except InputError:
                raise
            except (ValueError, RecursionError) as error:
                raise InputError(f"architecture: {_clip(source)} is not JSON ({error})") from None
        if not isinstance(decoded, Mapping):
            raise InputError(f"architecture: {_clip(source)} is not a JSON object of names and values")
        return cls(decoded)

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def get(self, name: str, default: Any = None) -> Any:
        return self._values.get(name, default)

    def keys(self) -> KeysView[str]:
        return self._values.keys()

    def values(self) -> ValuesView[Any]:
        return self._values.values()

    def items(self) -> ItemsView[str, Any]:
        return self._values.items()

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Architecture):
            return self._values == other._values
        return self._values == dict(other) if isinstance(other, Mapping) else NotImplemented

    def __hash__(self) -> int:
        if self._hash is None:
            object.__setattr__(self, "_hash", hash(frozenset(self._values.items())))
        assert self._hash is not None
        return self._hash

    def __repr__(self) -> str:
        return f"Architecture({self._values!r})"

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"an Architecture is immutable: use .set({name}=…)")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"an Architecture is immutable: use .without({name!r})")

    def __reduce__(self) -> tuple[type[Architecture], tuple[dict[str, Scalar]]]:
        return Architecture, (self._values,)  # not the hash: strings hash differently in every process


def _scalar(name: object, value: object) -> Scalar:
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(name, str):
        raise InputError(f"architecture: the name {_clip(name)} is not a string")
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"architecture: {_line(name)}={value} is not finite")
    if value is None or isinstance(value, bool):
        return value
    for plain in (str, int, float):
        if isinstance(value, plain):
            return value if type(value) is plain else plain(value)  # an enum's member becomes its value
    raise InputError(f"architecture: {_line(name)}={_clip(value)} is not a string, number, bool or None")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    held = dict(pairs)
    if len(held) < len(pairs):
        twice = next(name for name, many in Counter(name for name, _ in pairs).items() if many > 1)
        raise InputError(f"architecture: {_line(twice)} is given twice")
    return held


def _clip(value: object, limit: int = 80) -> str:
    """``repr``, which is one line, cut short enough for a message."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _line(text: str) -> str:
    return text if text.isprintable() and len(text) <= 80 else _clip(text)


def _text(value: object) -> str:
    return value if isinstance(value, str) else repr(value)


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(text: str) -> float:
    """The number that ``text`` writes, else nan."""
    try:
        return float(text)
    except ValueError:
        return math.nan


# --------------------------------------------------------------------------------------------------- choices


@dataclasses.dataclass(frozen=True)
class Categorical:
    """One of ``values``, all different, also when written as text. Their order matters little: it is the
    order of enumeration, and the first one fills a choice that comes into being in ``neighbours``.

    ``changes_program=False``, here and in the other choices, marks what the compiled program takes as an
    argument (a learning rate): architectures that differ in such choices alone share one compilation.
    """

    values: Sequence[Scalar]
    changes_program: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.values, str):
            raise InputError(f"Categorical: {self.values!r} is one string, not a sequence of values")
        values = tuple(_scalar("value", value) for value in self.values)
        object.__setattr__(self, "values", values)
        if not values:
            raise InputError("Categorical: there are no values to choose from")
        for value in values:
            if isinstance(value, str) and not _VALUE.fullmatch(value):
                rules = "no comma, no '..', no brace in front, no space at an end, one line, not empty"
                raise InputError(
                    f"Categorical: {_clip(value)} cannot stand in an architecture's text: {rules}"
                )
        if len(self._index) < len(values) or len(set(map(_text, values))) < len(values):
            raise InputError(f"Categorical: two of the values {_clip(values)} are the same")

    @functools.cached_property
    def _index(self) -> dict[Any, int]:
        return {value: index for index, value in enumerate(self.values)}

    @property
    def summary(self) -> str:
        return ", ".join(map(_text, self.values))

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
        index = self._index.get(value)
        if index is None:
            return False
        held = type(self.values[index])
        return type(value) is held or (held is float and type(value) is int)

    def canonical(self, value: Any) -> Scalar:
        return self.values[self._index[value]]

    def parse(self, text: str) -> Scalar:
        """The value that ``text`` writes: numbers in any notation; True, False and None in any case."""
        for value in self.values:
            if _text(value) == text:
                return value
        for value in self.values:
            if _number(text) == value if _is_number(value) else text.casefold() == repr(value).casefold():
                return value
        raise ValueError(text)

    def from_unit(self, unit: float) -> Scalar:
        return self.values[min(int(unit * len(self.values)), len(self.values) - 1)]

    def others(self, value: Any, rng: np.random.Generator) -> Iterator[Scalar]:
        return _others(self.values, self._index[value], rng)

    def steps(self, value: Any) -> Iterator[Scalar]:
        return (other for other in self.values if other != value)

    def within(self, low: Any, high: Any) -> Categorical:
        if not any(map(_is_number, self.values)):
            raise ValueError("only numbers have a range")
        kept = [value for value in self.values if _is_number(value) and low <= value <= high]
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
            value = _scalar(end, getattr(self, end))
            if type(value) is not int:
                raise InputError(f"Integer: {end}={_clip(value)} is not a whole number")
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
        return _others(range(self.low, self.high + 1), value - self.low, rng)

    def steps(self, value: Any) -> Iterator[int]:
        return (other for other in (value - 1, value + 1) if self.low <= other <= self.high)

    def within(self, low: Any, high: Any) -> Integer:
        if not (
            float(low).is_integer() and float(high).is_integer() and self.low <= low <= high <= self.high
        ):
            raise ValueError(f"it must lie within {self.summary}")
        return Integer(int(low), int(high), self.changes_program)


@dataclasses.dataclass(frozen=True)
class _Continuous:
    """What ``Uniform`` and ``LogUniform`` share."""

    low: float
    high: float
    changes_program: bool = True

    def __post_init__(self) -> None:
        kind = type(self).__name__
        for end in ("low", "high"):
            value = _scalar(end, getattr(self, end))
            if not _is_number(value):
                raise InputError(f"{kind}: {end}={_clip(value)} is not a number")
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
class Uniform(_Continuous):
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
class LogUniform(_Continuous):
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


def _others(values: Sequence[Any], index: int, rng: np.random.Generator) -> Iterator[Any]:
    """Every value but that at ``index``, round the circle from a random one."""
    rest = len(values) - 1
    start = int(rng.random() * rest)
    return (values[(index + 1 + (start + i) % rest) % len(values)] for i in range(rest))


# -------------------------------------------------------------------------------- conditions and constraints


@dataclasses.dataclass(frozen=True)
class When:
    """A condition: the choice named ``choice`` exists and has one of ``values``, or is a number between
    ``at_least`` and ``at_most``."""

    choice: str
    values: Sequence[Scalar] | None = None
    at_least: float | None = None
    at_most: float | None = None

    def __post_init__(self) -> None:
        bounded = self.at_least is not None or self.at_most is not None
        if (self.values is None) == (not bounded):
            raise InputError(f"When({self.choice!r}): give values, or at_least and at_most")
        if isinstance(self.values, str):
            raise InputError(
                f"When({self.choice!r}): {self.values!r} is one string, not a sequence of values"
            )
        if self.values is not None:
            object.__setattr__(self, "values", tuple(_scalar("value", value) for value in self.values))

    def __contains__(self, value: Any) -> bool:
        """Whether the condition holds where the choice has ``value``."""
        if self.values is not None:
            return value in self.values
        return (self.at_least is None or value >= self.at_least) and (
            self.at_most is None or value <= self.at_most
        )

    def __str__(self) -> str:
        if self.values is not None:
            word = "=" if len(self.values) == 1 else "in"
            return f"{self.choice} {word} {', '.join(map(_text, self.values)) or '(values ruled out here)'}"
        if self.at_most is None:
            return f"{self.choice} >= {self.at_least}"
        if self.at_least is None:
            return f"{self.choice} <= {self.at_most}"
        return f"{self.choice} in {self.at_least}..{self.at_most}"


@dataclasses.dataclass(frozen=True)
class Constraint:
    """What must hold between choices; ``text`` says it in words for error messages.

    ``choices`` names all that ``holds`` looks at (``"pool"`` means every ``pool_<i>``), and ``holds`` is
    given the active ones of these and nothing else. Naming them is what lets a large space be counted
    exactly; None stands for all choices.
    """

    text: str
    holds: Callable[[Architecture], bool]
    choices: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.choices, str):
            object.__setattr__(self, "choices", (self.choices,))
        if self.choices is not None and not self.choices:
            raise InputError(f"Constraint: {self.text!r} looks at no choice; None stands for all")


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included, to narrow a choice to; text is parsed."""

    low: float | str
    high: float | str

    def __str__(self) -> str:
        return f"{self.low}..{self.high}"


class Cell(NamedTuple):
    """A cell as a graph, to be drawn: its states, every one behind those that lead to it, and the operations
    between them as (source, target, operation); "" is a value passed on as it is."""

    nodes: tuple[str, ...]
    edges: tuple[tuple[str, str, str], ...]


@dataclasses.dataclass(frozen=True)
class Size:
    """How many architectures a space has: ``value`` (``math.inf`` where continuous), or at most so many
    where not ``exact``."""

    value: int | float
    exact: bool = True

    def __str__(self) -> str:
        shown = f"{self.value:,}" if isinstance(self.value, int) else "infinitely many"
        return shown if self.exact else f"at most {shown}"


class _Step(NamedTuple):
    """One choice as the loops below need it: a step in building an architecture in the space's order."""

    name: str
    choice: Choice
    options: Sequence[Any] | None  # None where continuous
    conditions: tuple[tuple[str, Container[Any]], ...]  # a parent, and the values of it that allow the choice
    at: int  # where its numbers begin in the encoding; the flag of a conditional choice comes last
    width: int
    flag: int | None


_NAME = re.compile(r"[^\s=,:{}]+")
_VALUE = re.compile(r"(?!\{)(?!.*\.\.)[^\s,]([^,\n\r]*[^\s,])?")
_NUMBERED = re.compile(r"(.+?)((?:_\d+)+)")


# ---------------------------------------------------------------------------------------------------- spaces


@dataclasses.dataclass(frozen=True)
class SearchSpace:
    """Named choices, when they exist, and what must hold between them.

    Inputs:
      name: what errors and ``name:architecture`` texts call the space.
      choices: by name, in the order of the canonical text; a condition looks back to an earlier choice.
      conditions: by the name of the choice that they govern; where several, all must hold. A choice whose
        conditions do not hold is inactive: absent from the architecture.
      constraints: see ``Constraint``.
      build: from an architecture and a number of classes to a network.
      format, parse: the field's own notation instead of ``name=value,…``, inverse to each other; ``parse``
        may return any mapping and raise ``ValueError``.
      search_within: the part to search unless one asks for another, as assignments of ``restrict``'s
        ``narrow``: a family that holds a 1,202-layer network need not draw such at random. See ``searched``.
      features: what a model of the space should see of an architecture, float64 of one shape, where that is
        something better than ``encode``; see ``path_encoding``.
      supernet: from the space as narrowed to a ``nas.nn.supernet.Supernet``: how a supernet searches it.
      cells: the cells of an architecture by name, where its networks are made of cells.

    ``key``, wherever it is asked for, is a whole number, a sequence of them such as ``(seed, i)``, or a NumPy
    generator (which is advanced); the same key gives the same result. Bad input raises ``InputError``.
    """

    name: str
    choices: Mapping[str, Choice]
    conditions: Mapping[str, When | Sequence[When]] = dataclasses.field(default_factory=dict)
    constraints: Sequence[Constraint] = ()
    build: Callable[[Architecture, int], Any] | None = None
    format: Callable[[Architecture], str] | None = None
    parse: Callable[[str], Mapping[str, Any]] | None = None
    search_within: Sequence[str] = ()
    features: Callable[[Architecture], np.ndarray] | None = None
    supernet: Callable[[SearchSpace], Any] | None = None
    cells: Callable[[Architecture], Mapping[str, Cell]] | None = None

    def __post_init__(self) -> None:
        conditions = {
            name: (whens,) if isinstance(whens, When) else tuple(whens)
            for name, whens in self.conditions.items()
        }
        object.__setattr__(self, "choices", dict(self.choices))
        object.__setattr__(self, "conditions", {name: whens for name, whens in conditions.items() if whens})
        object.__setattr__(self, "constraints", tuple(self.constraints))
        if not _NAME.fullmatch(self.name):
            raise InputError(f"space: {self.name!r} is not a name (no space, '=', ',', ':', brace)")
        if not self.choices:
            raise InputError(f"{self.name}: a space needs at least one choice")
        for name, choice in self.choices.items():
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise InputError(
                    f"{self.name}: {name!r} is not a choice's name (no space, '=', ',', ':', brace)"
                )
            if not isinstance(choice, Categorical | Integer | Uniform | LogUniform):
                kinds = "Categorical, Integer, Uniform, LogUniform"
                raise InputError(f"{self.name}: {name}={_clip(choice)} is not one of {kinds}")
        if (self.format is None) != (self.parse is None):
            raise InputError(f"{self.name}: give both format and parse, or neither")
        for name in conditions:
            self._check_conditions(name)
        for constraint in self.constraints:
            self._scope(constraint)
        object.__setattr__(self, "search_within", tuple(self.search_within))
        self._selected(self.search_within)

    def _check_conditions(self, name: str) -> None:
        place = f"{self.name}: condition on {name}"
        if name not in self.choices:
            raise self._unknown(name)
        earlier = list(itertools.takewhile(lambda other: other != name, self.choices))
        for when in self._whens(name):
            if when.choice not in self.choices:
                raise self._unknown(when.choice)
            if when.choice not in earlier:
                raise InputError(f"{place}: {when.choice} must stand before {name} among the choices")
            parent = self.choices[when.choice]
            for value in when.values or ():
                if not parent.accepts(value):
                    raise InputError(f"{place}: {when.choice}={_text(value)} is not {parent.span}")
            if when.values is None and not all(map(_is_number, getattr(parent, "values", ()))):
                raise InputError(f"{place}: {when} compares what are not numbers: {parent.summary}")

    def __hash__(self) -> int:
        return hash((self.name, tuple(self.choices.items())))

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    # --------------------------------------------------------------------------------- derived once, on need

    def _whens(self, name: str) -> tuple[When, ...]:
        """The conditions of choice ``name``, which ``__post_init__`` made tuples."""
        return cast("tuple[When, ...]", self.conditions.get(name, ()))

    @functools.cached_property
    def _steps(self) -> tuple[_Step, ...]:
        steps, at = [], 0
        for name, choice in self.choices.items():
            options = choice.options() if isinstance(choice, Categorical | Integer) else None
            conditions = tuple(
                (when.choice, _accepted(self.choices[when.choice], when)) for when in self._whens(name)
            )
            width = len(choice.values) if isinstance(choice, Categorical) else 1
            steps.append(
                _Step(name, choice, options, conditions, at, width, at + width if conditions else None)
            )
            at += width + bool(conditions)
        return tuple(steps)

    @functools.cached_property
    def _parents(self) -> frozenset[str]:
        return frozenset(when.choice for name in self.choices for when in self._whens(name))

    @functools.cached_property
    def _possible(self) -> frozenset[str]:
        """The choices that some architecture has (narrowing can take all occasion from the others)."""
        possible: set[str] = set()
        for name in self.choices:
            if all(
                when.choice in possible
                and any(mask for mask, _, _ in _pieces(self.choices[when.choice], [when]))
                for when in self._whens(name)
            ):
                possible.add(name)
        return frozenset(possible)

    @functools.cached_property
    def _open(self) -> tuple[str, ...]:
        """The continuous choices that some architecture has."""
        return tuple(
            step.name for step in self._steps if step.options is None and step.name in self._possible
        )

    @functools.cached_property
    def _checks(self) -> tuple[tuple[Constraint, tuple[str, ...]], ...]:
        return tuple((constraint, self._scope(constraint)) for constraint in self.constraints)

    def _scope(self, constraint: Constraint) -> tuple[str, ...]:
        if constraint.choices is None:
            return tuple(self.choices)
        named = {member for name in constraint.choices for member in self._members(name)}
        return tuple(name for name in self.choices if name in named)

    def _members(self, name: str) -> tuple[str, ...]:
        """The choices that ``name`` means: itself, or every ``name_<i>``."""
        if name in self.choices:
            return (name,)
        members = tuple(
            choice for choice in self.choices if (parts := _NUMBERED.fullmatch(choice)) and parts[1] == name
        )
        if not members:
            raise self._unknown(name)
        return members

    def _unknown(self, name: str) -> InputError:
        groups = {parts[1] for choice in self.choices if (parts := _NUMBERED.fullmatch(choice))}
        close = difflib.get_close_matches(name, [*self.choices, *sorted(groups)], n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        return InputError(f"{self.name}: {_line(name)} is not one of {', '.join(self._listed())}{hint}")

    def _listed(self) -> list[str]:
        """The names, with runs such as ``width_1..6`` as one."""
        runs: dict[str, list[str]] = {}
        for name in self.choices:
            base, number = _numbered(name)
            runs.setdefault(base, []).append(number)
        return [text for base, numbers in runs.items() for text in _run(base, numbers)]

    # ---------------------------------------------------------------------------------------------- checking

    def validate(self, arch: Mapping[str, Any]) -> None:
        """Raises ``InputError`` saying in one line what is wrong with ``arch``, if anything is."""
        self._checked(arch)

    def canonical(self, arch: Mapping[str, Any]) -> Architecture:
        """``arch`` validated, in the space's order, each number of its choice's type."""
        values = self._checked(arch)
        return Architecture._of(
            {
                step.name: step.choice.canonical(values[step.name])
                for step in self._steps
                if step.name in values
            }
        )

    def _checked(self, arch: Mapping[str, Any]) -> dict[str, Any]:
        """The values of ``arch``, which fits the space, in the order that it has them."""
        values = (arch if isinstance(arch, Architecture) else Architecture(arch))._values
        present = 0
        for name, choice, _, conditions, _, _, _ in self._steps:
            for parent, accepted in conditions:
                if parent not in values or values[parent] not in accepted:
                    break  # inactive; if it is there, the count gives it away
            else:
                if name not in values or not choice.accepts(values[name]):
                    raise self._complaint(values)
                present += 1
        if present != len(values) or (self.constraints and not self._holds(values)):
            raise self._complaint(values)
        return values

    def _complaint(self, values: Mapping[str, Any]) -> InputError:
        for name in values:
            if name not in self.choices:
                return self._unknown(name)
        for name, choice, *_ in self._steps:
            unmet = [w for w in self._whens(name) if w.choice not in values or values[w.choice] not in w]
            if name not in values:
                if not unmet:
                    return InputError(f"{self.name}: {name} is missing; it is {choice.span}")
            elif unmet:
                shown = f"{name}={_line(_text(values[name]))}"
                return InputError(f"{self.name}: {shown} does not exist here, only when {unmet[0]}")
            elif not choice.accepts(values[name]):
                return InputError(f"{self.name}: {name}={_line(_text(values[name]))} is not {choice.span}")
        for constraint, scope in self._checks:
            if not _satisfies(values, constraint, scope):
                named = constraint.choices is not None
                shown = ",".join(
                    f"{name}={_text(values[name])}" for name in scope if named and name in values
                )
                return InputError(
                    f"{self.name}: {shown or 'architecture'} breaks the constraint: {constraint.text}"
                )
        raise AssertionError("the fast and the slow check disagree")

    def _holds(self, values: dict[str, Any]) -> bool:
        return all(_satisfies(values, constraint, scope) for constraint, scope in self._checks)

    # ---------------------------------------------------------------------------------------------- sampling

    def sample(self, key: Key) -> Architecture:
        """A random architecture: each choice even over its range, given the choices that it depends on.

        Every choice has its own part of the key's randomness, so that (constraints aside) fixing or narrowing
        one leaves the draws of the others as they are. Under constraints draws are rejected until one passes;
        raises ``InputError`` when ``MAX_DRAWS`` did not.
        """
        rng = self._generator(key)
        for _ in range(MAX_DRAWS):
            values = self._drawn(rng)
            if not self.constraints or self._holds(values):
                return Architecture._of(values)
        texts = "; ".join(constraint.text for constraint in self.constraints)
        raise InputError(f"{self.name}: none of {MAX_DRAWS:,} random draws meets the constraints: {texts}")

    def _drawn(self, rng: np.random.Generator) -> dict[str, Any]:
        values: dict[str, Any] = {}
        units = rng.random(len(self._steps)).tolist()
        for unit, (name, choice, options, conditions, _, _, _) in zip(units, self._steps, strict=True):
            for parent, accepted in conditions:
                if parent not in values or values[parent] not in accepted:
                    break
            else:
                values[name] = options[int(unit * len(options))] if options else choice.from_unit(unit)
        return values

    def _generator(self, key: Key) -> np.random.Generator:
        if isinstance(key, np.random.Generator):
            return key
        try:
            if key is None:
                raise TypeError
            return np.random.default_rng(key)
        except (TypeError, ValueError):
            kinds = "a whole number from 0, a sequence of such, or a NumPy generator"
            raise InputError(f"{self.name}: key={_clip(key)} is not {kinds}") from None

    # ------------------------------------------------------------------------------ enumerating and counting

    def enumerate(self, points: int | Mapping[str, int] | None = None) -> Iterator[Architecture]:
        """All architectures, lazily, the last choice changing fastest; ``points`` as in ``discretise``.

        Raises ``InputError`` at once where a continuous choice has no number of points.
        """
        space = self if points is None else self.discretise(points)
        if space._open:
            raise InputError(
                f"{self.name}: {space._open[0]} is continuous: say how many points of it to take"
            )
        return space._walk()

    def grid(self, points: int | Mapping[str, int]) -> Iterator[Architecture]:
        """All architectures with ``points`` values for each continuous choice: ``enumerate(points)``."""
        return self.enumerate(points)

    def discretise(self, points: int | Mapping[str, int]) -> SearchSpace:
        """The subspace in which every continuous choice has ``points`` values, from its low to its high end,
        evenly spaced (LogUniform: in the logarithm); one point is the middle.

        With a mapping, each named choice (``"rate"`` means every ``rate_<i>``) has its own number, an Integer
        too if named; the others stay as they are.
        """
        if isinstance(points, Mapping):
            wanted = {member: number for name, number in points.items() for member in self._members(name)}
        else:
            wanted = {step.name: points for step in self._steps if step.options is None}
        for name, number in wanted.items():
            if type(number) is not int or number < 1:
                raise InputError(f"{self.name}: {number!r} points for {name} is not a whole number from 1")
            if isinstance(self.choices[name], Categorical):
                raise InputError(
                    f"{self.name}: {name} is {self.choices[name].span}: it has no number of points"
                )
        return self._with(
            {
                name: Categorical(self.choices[name].options(number), self.choices[name].changes_program)
                for name, number in wanted.items()
            }
        )

    def _walk(self) -> Iterator[Architecture]:
        steps = self._steps
        settled: list[list[tuple[Constraint, tuple[str, ...]]]] = [[] for _ in steps]
        position = {step.name: index for index, step in enumerate(steps)}
        for constraint, scope in self._checks:  # each is checked as soon as its last choice is made
            settled[position[scope[-1]]].append((constraint, scope))
        values: dict[str, Any] = {}
        levels = [self._alternatives(steps[0], values)]
        while levels:
            level = len(levels) - 1
            values.pop(steps[level].name, None)
            value = next(levels[-1], _END)
            if value is _END:
                levels.pop()
                continue
            if value is not _ABSENT:
                values[steps[level].name] = value
            if not all(_satisfies(values, constraint, scope) for constraint, scope in settled[level]):
                continue
            if len(levels) == len(steps):
                yield Architecture._of(dict(values))
            else:
                levels.append(self._alternatives(steps[level + 1], values))

    @staticmethod
    def _alternatives(step: _Step, values: Mapping[str, Any]) -> Iterator[Any]:
        active = _active(step.conditions, values)
        return iter(step.options or ()) if active else iter((_ABSENT,))

    def count(self, points: int | Mapping[str, int] | None = None) -> int | float:
        """How many architectures there are, exactly; ``math.inf`` where continuous without ``points``
        (constraints are taken to leave more than single values of a continuous choice).

        Raises ``InputError`` where constraints make that too hard to say; ``size`` then has an upper bound.
        """
        size = self.size(points)
        if not size.exact:
            raise InputError(
                f"{self.name}: {size} architectures; under its constraints no exact count is in reach"
            )
        return size.value

    def size(self, points: int | Mapping[str, int] | None = None) -> Size:
        """How many architectures there are, without enumerating them; ``math.inf`` as in ``count``.

        Dynamic programming over the choices: a state holds what conditions and constraints still need of the
        choices made. Without constraints it is always exact. Constraints are counted as long as no more
        than ``MAX_COUNTED`` states arise; beyond, those over the most choices are left out, which gives an
        upper bound.
        """
        return self._size if points is None else self.discretise(points)._size

    @functools.cached_property
    def _size(self) -> Size:
        if (unconstrained := self._counted(())) == math.inf:
            return Size(math.inf)
        countable = sorted(self._checks, key=lambda check: len(check[1]))
        while countable:
            if (value := self._counted(countable)) is not None:
                return Size(value, exact=len(countable) == len(self._checks))
            countable.pop()
        return Size(unconstrained, exact=not self._checks)

    def _counted(self, checks: Sequence[tuple[Constraint, tuple[str, ...]]]) -> Any:
        """How many architectures meet ``checks``: an int, or inf; None where that takes too many states.

        A state is whether a continuous choice is active, and for each live choice what is kept of it: its
        value where a check will read it, else a bit for each condition on it, set where it is met.
        """
        scopes = [frozenset(scope) for _, scope in checks]
        read = frozenset().union(*scopes)
        if any(
            s.name in read and s.options is not None and len(s.options) > MAX_COUNTED for s in self._steps
        ):
            return None
        watch: dict[str, list[When]] = {name: [] for name in self.choices}
        needed_by: dict[str, set[str]] = {name: set() for name in self.choices}
        for name in self.choices:
            for when in self._whens(name):
                needed_by[when.choice].add(name)
                if when not in watch[when.choice]:
                    watch[when.choice].append(when)
        for scope in scopes:
            for name in scope:
                needed_by[name] |= scope - {name}
        kept: dict[str, list[tuple[Any, int, bool]]] = {
            step.name: [(value, 1, False) for value in step.options or ()]
            if step.name in read
            else _pieces(step.choice, watch[step.name])
            for step in self._steps
        }

        def met(kept_of_parent: Any, when: When) -> bool:
            if when.choice in read:
                return kept_of_parent is not _ABSENT and kept_of_parent in when
            return bool(kept_of_parent >> watch[when.choice].index(when) & 1)

        states: dict[tuple[Any, ...], int] = {(False,): 1}
        live: list[str] = []
        made: set[str] = set()
        for name in self._elimination_order(needed_by, kept):
            if checks and len(states) * len(kept[name]) > MAX_COUNTED:
                return None
            made.add(name)
            conditions = [(live.index(when.choice) + 1, when) for when in self._whens(name)]
            absent = [(_ABSENT if name in read else 0, 1, False)]
            held = [*live, name]
            settled = [
                check for check, scope in zip(checks, scopes, strict=True) if name in scope and scope <= made
            ]
            stays = [index for index, other in enumerate(held, 1) if needed_by[other] - made]
            following: defaultdict[tuple[Any, ...], int] = defaultdict(int)
            for state, ways in states.items():
                active = all(met(state[index], when) for index, when in conditions)
                for value, weight, infinite in kept[name] if active else absent:
                    state_after = (state[0] or infinite, *state[1:], value)
                    if settled:
                        values = {
                            n: v for n, v in zip(held, state_after[1:], strict=True) if v is not _ABSENT
                        }
                        if not all(_satisfies(values, constraint, scope) for constraint, scope in settled):
                            continue
                    following[(state_after[0], *(state_after[index] for index in stays))] += ways * weight
            states, live = following, [held[index - 1] for index in stays]
        return math.inf if (True,) in states else sum(states.values())

    def _elimination_order(
        self, needed_by: Mapping[str, set[str]], kept: Mapping[str, Sequence[object]]
    ) -> list[str]:
        """An order of the choices, parents first, that greedily keeps the number of states low."""
        order: list[str] = []
        made: set[str] = set()
        waiting = {name: set(users) for name, users in needed_by.items()}  # live until these are made
        cost = {name: math.log(len(values) + 1) for name, values in kept.items()}
        needs = {name: [other for other in waiting if name in waiting[other]] for name in waiting}

        def growth(name: str) -> float:
            freed = sum(cost[other] for other in needs[name] if other in made and len(waiting[other]) == 1)
            return (cost[name] if waiting[name] else 0.0) - freed

        parents = {name: {when.choice for when in self._whens(name)} for name in self.choices}
        while parents:
            name = min((name for name in parents if parents[name] <= made), key=growth)
            del parents[name]
            order.append(name)
            made.add(name)
            for other in needs[name]:
                waiting[other].discard(name)
        return order

    # ---------------------------------------------------------------------------------------------- encoding

    @property
    def encoded_width(self) -> int:
        last = self._steps[-1]
        return last.at + last.width + (last.flag is not None)

    @functools.cached_property
    def encoded_names(self) -> tuple[str, ...]:
        """What each number of an encoding is, such as ``depth``, ``pool=max`` or ``width_3?`` (it exists)."""
        names: list[str] = []
        for step in self._steps:
            if isinstance(step.choice, Categorical):
                names += [f"{step.name}={_text(value)}" for value in step.choice.values]
            else:
                names.append(step.name)
            names += [f"{step.name}?"] if step.flag is not None else []
        return tuple(names)

    def encode(self, arch: Mapping[str, Any]) -> np.ndarray:
        """``arch`` as float64 ``[encoded_width]`` in [0, 1].

        Choice after choice: a categorical one-hot, a number scaled to its range (LogUniform: in the
        logarithm), then for a conditional choice 1 where it exists; all 0 where it does not. Constraints are
        not checked; raises ``InputError`` where a value does not fit.
        """
        values = (arch if isinstance(arch, Architecture) else Architecture(arch))._values
        return np.array(self._encoded(values))

    def _encoded(self, values: Mapping[str, Any]) -> list[float]:
        numbers = [0.0] * self.encoded_width
        present = 0
        for name, choice, _, conditions, at, _, flag in self._steps:
            for parent, accepted in conditions:
                if parent not in values or values[parent] not in accepted:
                    break
            else:
                if name not in values or not choice.accepts(values[name]):
                    raise self._complaint(values)
                present += 1
                if isinstance(choice, Categorical):
                    numbers[at + choice._index[values[name]]] = 1.0
                else:
                    numbers[at] = choice.to_unit(values[name])
                if flag is not None:
                    numbers[flag] = 1.0
        if present != len(values):
            raise self._complaint(values)
        return numbers

    def decode(self, vector: Any) -> Architecture:
        """The architecture of an encoding; for any other finite vector ``[encoded_width]`` a valid one.

        Categoricals take their largest entry, numbers the nearest value, and conditions (not flags) say what
        exists. ``decode(encode(arch))`` is ``arch``; a continuous value that is off the space's grid (see
        ``Uniform``) comes back to within a millionth of its range. Where the reading breaks a constraint, its
        neighbour nearest to ``vector`` is taken, or without such a sample keyed by ``vector``.
        """
        array = np.asarray(vector, dtype=np.float64)
        if array.shape != (self.encoded_width,) or not np.isfinite(array).all():
            raise InputError(
                f"{self.name}: a vector of shape {array.shape} is not an encoding: "
                f"finite numbers of shape ({self.encoded_width},)"
            )
        numbers = array.tolist()

        def nearest(step: _Step) -> Any:
            if isinstance(step.choice, Categorical):
                entries = numbers[step.at : step.at + step.width]
                return step.choice.values[entries.index(max(entries))]
            return step.choice.nearest(numbers[step.at])

        values = self._completed({}, nearest)
        if self._holds(values):
            return Architecture._of(values)
        around = [edited for edited in self._edits(values) if self._holds(edited)]
        if around:
            return Architecture._of(min(around, key=lambda v: float(np.sum((self._encoded(v) - array) ** 2))))
        return self.sample(np.frombuffer(array.tobytes(), np.uint32).tolist())

    # ------------------------------------------------------------------------------------------ moving about

    def neighbours(self, arch: Mapping[str, Any]) -> tuple[Architecture, ...]:
        """All valid architectures one edit away, in a fixed order.

        An edit gives one active choice another value: a categorical any other, an integer the one before or
        after, a continuous one a step of ``CONTINUOUS_STEP`` of its (logarithmic) range either way, cut off
        at the ends. Choices that the edit brings into being take their first value, numbers the middle one;
        those that it ends are dropped. What then breaks a constraint is left out.
        """
        values = self.canonical(arch)._values
        return tuple(Architecture._of(edited) for edited in self._edits(values) if self._holds(edited))

    def _edits(self, values: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for step in self._steps:
            if step.name in values:
                for other in step.choice.steps(values[step.name]):
                    yield self._edited(values, step.name, other, lambda filled: filled.choice.default)

    def _edited(
        self, values: dict[str, Any], name: str, value: Any, fill: Callable[[_Step], Any]
    ) -> dict[str, Any]:
        edited = {**values, name: value}
        return self._completed(edited, fill) if name in self._parents else edited

    def _completed(self, given: Mapping[str, Any], fill: Callable[[_Step], Any]) -> dict[str, Any]:
        """The active choices, each with its ``given`` value or else what ``fill`` says."""
        values: dict[str, Any] = {}
        for step in self._steps:
            if _active(step.conditions, values):
                values[step.name] = given[step.name] if step.name in given else fill(step)
        return values

    def resolve_fixed(self, open_choices: Iterable[str], defaults: Mapping[str, Any]) -> dict[str, Any]:
        """Values of all choices except ``open_choices``, which are left open.

        A choice has the only value that is left to it, else its default (``"width"`` means every ``width_<i>``), or
        the number nearest to its default that it can have. Raises ``InputError`` where a choice has no default, and
        where another choice depends on an open one.
        """
        decided = frozenset(open_choices)
        named = {member: value for name, value in defaults.items() for member in self._members(name)}
        for name in self.choices:
            if name in decided and name in self._parents:
                raise InputError(f"{self.name}: {name} cannot be left open: other choices depend on it")

        def fill(step: _Step) -> Any:
            if step.name in decided:
                return None
            if step.options is not None and len(step.options) == 1:
                return step.options[0]
            near = _nearest(step.choice, named.get(step.name, _ABSENT))
            if near is _ABSENT:
                raise InputError(
                    f"{self.name}: nothing here decides {step.name}: --fix {step.name}=… to {step.choice.span}"
                )
            return near

        values = self._completed({}, fill)
        return {name: value for name, value in values.items() if name not in decided}

    def mutate(self, arch: Mapping[str, Any], key: Key) -> Architecture:
        """``arch`` with one random active choice at another random value; choices that come into being by it
        are drawn, those that end are dropped.

        Where no such edit meets the constraints, a sample that differs; ``arch`` itself only where none turns
        up in ``MAX_DRAWS`` draws.
        """
        rng = self._generator(key)
        before = self.canonical(arch)
        values = before._values
        variable = [
            step
            for step in self._steps
            if step.name in values and (step.options is None or len(step.options) > 1)
        ]
        if not variable:
            return before
        start = int(rng.random() * len(variable))
        for step in variable[start:] + variable[:start]:
            tries = _REFILLS if self.constraints and step.name in self._parents else 1
            for other in itertools.islice(step.choice.others(values[step.name], rng), _OTHERS):
                for _ in range(tries):
                    edited = self._edited(
                        values, step.name, other, lambda filled: filled.choice.from_unit(rng.random())
                    )
                    if self._holds(edited):
                        return Architecture._of(edited)
        for _ in range(MAX_DRAWS):
            drawn = self._drawn(rng)
            if drawn != values and self._holds(drawn):
                return Architecture._of(drawn)
        return before

    def crossover(self, a: Mapping[str, Any], b: Mapping[str, Any], key: Key) -> Architecture:
        """A child of ``a`` and ``b`` (uniform crossover).

        Each choice active in the child comes from a parent in which it is active, from either by a fair coin
        where it is in both; what is active in neither is drawn. Where none of 1,000 children meets the
        constraints, ``a``.
        """
        rng = self._generator(key)
        first, second = self.canonical(a)._values, self.canonical(b)._values
        for _ in range(1_000):
            units = iter(rng.random(2 * len(self._steps)).tolist())
            mixed = {**first, **second}
            for name in self.choices:
                if next(units) < 0.5 and name in first:
                    mixed[name] = first[name]
            child = self._completed(mixed, lambda filled, units=units: filled.choice.from_unit(next(units)))
            if self._holds(child):
                return Architecture._of(child)
        return Architecture._of(first)

    def program(self, arch: Mapping[str, Any]) -> Architecture:
        """The part of ``arch`` that changes the compiled program: equal parts, one compilation."""
        return Architecture._of(
            {
                name: value
                for name, value in self.canonical(arch).items()
                if self.choices[name].changes_program
            }
        )

    # -------------------------------------------------------------------------------------------------- text

    def to_string(self, arch: Mapping[str, Any]) -> str:
        """Canonical text: ``depth=3,width_1=32,…`` in the space's order, floats exact; or its ``format``."""
        canonical = self.canonical(arch)
        if self.format is not None:
            return self.format(canonical)
        return ",".join(f"{name}={_text(value)}" for name, value in canonical.items())

    def from_string(self, text: str) -> Architecture:
        """Inverse of ``to_string``, in any order; JSON is taken as well. Raises ``InputError``."""
        text = text.strip()
        if text.startswith("{"):
            return self.canonical(Architecture.from_json(text))
        if self.parse is not None:
            try:
                return self.canonical(self.parse(text))
            except InputError:
                raise
            except ValueError as error:
                raise InputError(f"{self.name}: {_clip(text)}: {error}") from None
        values: dict[str, Scalar] = {}
        for part in text.split(",") if text else ():
            name, equals, value = (piece.strip() for piece in part.partition("="))
            if not equals:
                raise InputError(f"{self.name}: {_clip(part)} is not name=value")
            if name not in self.choices:
                raise self._unknown(name)
            if name in values:
                raise InputError(f"{self.name}: {name} is given twice")
            values[name] = self._read(name, value)
        return self.canonical(values)

    def _read(self, name: str, value: Any) -> Scalar:
        """``value``, or what it writes if it is text, as choice ``name`` has it."""
        choice, value = self.choices[name], _scalar(name, value)
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                value = choice.parse(value)
        if not choice.accepts(value):
            raise InputError(f"{self.name}: {name}={_line(_text(value))} is not {choice.span}")
        return choice.canonical(value)

    # --------------------------------------------------------------------------------------------- subspaces

    def fix(self, name: str, value: Scalar) -> SearchSpace:
        """The subspace in which choice ``name``, where it exists, has ``value`` (text is parsed).

        ``"width"`` means every ``width_<i>``.
        """
        return self.narrow(name, (value,))

    def narrow(self, name: str, to: Range | Sequence[Scalar]) -> SearchSpace:
        """The subspace in which choice ``name`` has one of the values ``to`` or lies in the ``Range``.

        ``"width"`` means every ``width_<i>``. Text is parsed. Values that the choice does not have, and
        ranges that reach beyond it, are an ``InputError``.
        """
        return self._with({member: self._narrowed(member, to) for member in self._members(name)})

    def restrict(self, fix: Iterable[str] = (), narrow: Iterable[str] = ()) -> SearchSpace:
        """The subspace that command-line assignments describe, such as ``fix=["connections=residual"]`` and
        ``narrow=["width=16,32", "learning_rate=1e-3..1e-1"]``; ``width_1=64`` goes before ``width=32``."""
        space = self
        fixed = parse_assignments(fix)
        for name, to in fixed.items():
            if isinstance(to, Range) or len(to) > 1:
                shown = to if isinstance(to, Range) else ",".join(to)
                raise InputError(f"{self.name}: cannot fix {name}={shown}: give one value, or narrow it")
        for assignments in (narrow, fix):
            space = space._with(space._selected(assignments))
        return space

    def searched(self, fix: Iterable[str] = (), narrow: Iterable[str] = ()) -> SearchSpace:
        """``restrict``, and ``search_within`` for every choice that the assignments leave alone."""
        fix, narrow = tuple(fix), tuple(narrow)
        named = {**parse_assignments(fix), **parse_assignments(narrow)}
        said = {member for name in named for member in self._members(name)}
        usual = {name: to for name, to in self._selected(self.search_within).items() if name not in said}
        return self._with(usual).restrict(fix, narrow)

    def _selected(self, assignments: Iterable[str]) -> dict[str, Choice]:
        """The choices that assignments name, as they narrow them."""
        parsed = parse_assignments(assignments)
        selected: dict[str, Range | tuple[str, ...]] = {}
        for name in sorted(parsed, key=lambda name: name in self.choices):  # groups first
            selected |= dict.fromkeys(self._members(name), parsed[name])
        return {name: self._narrowed(name, to) for name, to in selected.items()}

    def _narrowed(self, name: str, to: Range | Sequence[Scalar]) -> Choice:
        choice = self.choices[name]
        if isinstance(to, Range):
            try:
                return choice.within(_bound(to.low), _bound(to.high))
            except ValueError as error:
                raise InputError(f"{self.name}: cannot narrow {name} to {to}: {error}") from None
        listed = (to,) if isinstance(to, str) or not isinstance(to, Iterable) else to
        chosen: set[Any] = {self._read(name, value) for value in listed}
        if not chosen:
            raise InputError(f"{self.name}: cannot narrow {name} to nothing; it is {choice.span}")
        values = (
            [value for value in choice.values if value in chosen]
            if isinstance(choice, Categorical)
            else sorted(chosen)
        )
        return Categorical(values, choice.changes_program)

    def _with(self, changed: Mapping[str, Choice]) -> SearchSpace:
        """The subspace with some choices narrowed; conditions forget the values that these have lost."""
        choices = {**self.choices, **changed}

        def kept(when: When) -> When:
            if when.values is None or when.choice not in changed:
                return when
            return When(when.choice, values=[v for v in when.values if choices[when.choice].accepts(v)])

        conditions = {name: tuple(kept(when) for when in self._whens(name)) for name in self.conditions}
        left = [text for text in self.search_within if changed.keys().isdisjoint(self._selected([text]))]
        return dataclasses.replace(self, choices=choices, conditions=conditions, search_within=left)

    # -------------------------------------------------------------------------------------------- describing

    def describe(self) -> str:
        """The space as a table of plain text, its constraints and its size."""
        rows = [("choice", "values", "exists when", "in the program"), *self._described()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        rows.insert(1, ("-" * widths[0], "-" * widths[1], "-" * widths[2], "-" * widths[3]))
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        lines += [f"constraint: {constraint.text}" for constraint in self.constraints]
        lines.append(f"{self.name}: {len(self._possible)} choices, {self.size()} architectures")
        if self._open:
            lines[-1] += f" ({', '.join(self._open)} continuous; {self.size(3)} with 3 points each)"
        return "\n".join(lines)

    def _described(self) -> list[tuple[str, str, str, str]]:
        """Name, values, conditions and use of each choice; what differs in its number alone is one row."""
        rows: dict[tuple[str, Choice, str], list[tuple[str, str]]] = {}
        for name in self.choices:
            if name in self._possible:
                base, number = _numbered(name)
                words = " and ".join(map(str, self._whens(name))) or "always"
                pattern = words
                if number:
                    pattern = re.sub(rf"_{number}(?= [=<>i])", "_i", pattern)
                    pattern = re.sub(rf"(?<=[<>]= ){number}(?![\w.])", "i", pattern)
                rows.setdefault((base, self.choices[name], pattern), []).append((number, words))
        described = []
        for (base, choice, pattern), members in rows.items():
            use = "built in" if choice.changes_program else "argument"
            run = _run(base, [number for number, _ in members])
            if len(run) < len(members):
                described.append((run[0], choice.summary, pattern, use))
            else:
                described += [
                    (n, choice.summary, words, use) for n, (_, words) in zip(run, members, strict=True)
                ]
        return described


def _numbered(name: str) -> tuple[str, str]:
    """``("width", "3")`` of ``width_3``; the number is empty where there is none."""
    base, _, number = name.rpartition("_")
    return (base, number) if base and number.isdecimal() else (name, "")


def _run(base: str, numbers: Sequence[str]) -> list[str]:
    """``["width_1..6"]`` where the numbers are consecutive, else each name by itself."""
    if len(numbers) > 1 and all(numbers) and int(numbers[-1]) - int(numbers[0]) == len(numbers) - 1:
        return [f"{base}_{numbers[0]}..{numbers[-1]}"]
    return [f"{base}_{number}" if number else base for number in numbers]


def _accepted(parent: Choice, when: When) -> Container[Any]:
    """The values of ``parent`` for which ``when`` holds."""
    if isinstance(parent, Categorical):
        return frozenset(value for value in parent.values if value in when)
    if when.values is not None:
        return frozenset(when.values)
    if isinstance(parent, Integer):
        low = parent.low if when.at_least is None else max(parent.low, math.ceil(when.at_least))
        high = parent.high if when.at_most is None else min(parent.high, math.floor(when.at_most))
        return range(low, high + 1)
    return when


def _nearest(choice: Choice, value: Any) -> Any:
    """``value``, or the number nearest to it that ``choice`` has, else `_ABSENT`."""
    if choice.accepts(value):
        return choice.canonical(value)
    if not _is_number(value):
        return _ABSENT
    if isinstance(choice, Categorical):
        numbers = [number for number in choice.values if _is_number(number)]
        return min(numbers, key=lambda number: abs(number - value), default=_ABSENT)
    return min(max(value, choice.low), choice.high)


def _pieces(choice: Choice, whens: Sequence[When]) -> list[tuple[int, int, bool]]:
    """The values of ``choice`` by which of ``whens`` they meet: (bit mask, how many, infinitely many)."""

    def mask(value: Any) -> int:
        return sum(1 << bit for bit, when in enumerate(whens) if value in when)

    if isinstance(choice, Categorical):
        return [(bits, many, False) for bits, many in Counter(map(mask, choice.values)).items()]
    ends: list[Any] = [
        end
        for when in whens
        for end in (when.at_least, when.at_most, *(when.values or ()))
        if end is not None
    ]
    if isinstance(choice, Integer):
        around = {whole for end in ends for whole in (math.floor(end), math.floor(end) + 1, math.ceil(end))}
        cuts = sorted(
            {choice.low, *(cut for cut in around if choice.low < cut <= choice.high), choice.high + 1}
        )
        many: Counter[int] = Counter()
        for start, stop in itertools.pairwise(cuts):
            many[mask(start)] += stop - start
        return [(bits, number, False) for bits, number in many.items()]
    cuts = sorted({choice.low, *(end for end in ends if choice.low <= end <= choice.high), choice.high})
    seen = {mask(value) for value in (*cuts, *((a + b) / 2 for a, b in itertools.pairwise(cuts)))}
    return [(bits, 1, True) for bits in sorted(seen)]


def _active(conditions: Iterable[tuple[str, Container[Any]]], values: Mapping[str, Any]) -> bool:
    return all(parent in values and values[parent] in accepted for parent, accepted in conditions)


def _satisfies(values: Mapping[str, Any], constraint: Constraint, scope: Sequence[str]) -> bool:
    return bool(constraint.holds(Architecture._of({name: values[name] for name in scope if name in values})))


def _bound(end: float | str) -> float:
    """An end of a range, from text perhaps; raises ``ValueError``."""
    if isinstance(end, str):
        try:
            return int(end)
        except ValueError:
            pass
        try:
            return float(end)
        except ValueError:
            raise ValueError(f"{_line(end)} is not a number") from None
    return end


# -------------------------------------------------------------------------------------------------- features


@dataclasses.dataclass(frozen=True)
class PathEncoding:
    """See ``path_encoding``."""

    operations: tuple[Any, ...]
    paths: tuple[tuple[str, ...], ...]

    def __call__(self, arch: Architecture) -> np.ndarray:
        number, begins, width = self._layout
        encoded = np.zeros(width)
        for path in self.paths:
            at = 0
            for name in path:
                at = at * len(number) + number[arch[name]]
            encoded[begins[len(path)] + at] = 1.0
        return encoded

    @functools.cached_property
    def _layout(self) -> tuple[dict[Any, int], dict[int, int], int]:
        """The number of each operation, where the features of each length begin, and how many there are."""
        number = {operation: k for k, operation in enumerate(self.operations)}
        lengths = sorted({len(path) for path in self.paths})
        ends = list(itertools.accumulate(len(number) ** length for length in lengths))
        return number, dict(zip(lengths, [0, *ends], strict=False)), ends[-1]


def path_encoding(operations: Sequence[Any], paths: Sequence[Sequence[str]]) -> PathEncoding:
    """Which sequences of operations lead from a cell's input to its output (White et al., "BANANAS", AAAI 2021,
    section 3.1).

    Each of ``paths`` names, in order, the choices along one way through the cell; each of these has one of
    ``operations``. A feature stands for one sequence of operations, by rising length, and is 1 where the
    architecture has it on some way: 5 + 25 + 125 features for NAS-Bench-201. float64.
    """
    return PathEncoding(tuple(operations), tuple(map(tuple, paths)))


# --------------------------------------------------------------------------------------------- command lines


def parse_assignments(texts: Iterable[str]) -> dict[str, tuple[str, ...] | Range]:
    """``["connections=residual", "width=16,32", "learning_rate=1e-3..1e-1"]`` as names with what they are to
    be: values or a ``Range``, still text. Raises ``InputError``."""
    assignments: dict[str, tuple[str, ...] | Range] = {}
    for text in texts:
        name, equals, listed = (piece.strip() for piece in text.partition("="))
        values = tuple(value.strip() for value in listed.split(","))
        low, dots, high = (piece.strip() for piece in listed.partition(".."))
        if not equals or not name or not all(values) or (dots and not (low and high)):
            raise InputError(f"{_clip(text)} is not name=value, name=value,value or name=low..high")
        if name in assignments:
            raise InputError(f"{_line(name)} is given twice: {_clip(text)}")
        assignments[name] = Range(low, high) if dots else values
    return assignments


def parse_architecture(text: str, spaces: Mapping[str, SearchSpace]) -> tuple[SearchSpace, Architecture]:
    """``space:architecture``, the latter in the space's notation or JSON, such as ``chain:depth=1,…`` or
    ``nasbench201:|nor_conv_3x3~0|+…``. Raises ``InputError``."""
    name, colon, written = text.partition(":")
    if not colon:
        raise InputError(
            f"architecture: {_clip(text)} is not space:architecture; spaces: {', '.join(spaces)}"
        )
    space = spaces.get(name.strip())
    if space is None:
        raise one_of("architecture: space", name.strip(), spaces)
    return space, space.from_string(written)
