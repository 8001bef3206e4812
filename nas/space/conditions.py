"""When choices exist (`When`) and what must hold between them (`Constraint`)."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any

from nas.errors import InputError
from nas.space.architecture import Architecture, Scalar, scalar
from nas.space.choices import Categorical, Choice, Integer, is_number
from nas.space.messages import clip, text_of


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
            object.__setattr__(self, "values", tuple(scalar("value", value) for value in self.values))
        for name in ("at_least", "at_most"):
            bound = getattr(self, name)
            if bound is not None and not (is_number(bound) and math.isfinite(bound)):
                raise InputError(f"When({self.choice!r}): {name}={clip(bound)} is not a finite number")

    def __contains__(self, value: Any) -> bool:
        """Whether the condition holds where the choice has ``value``."""
        if self.values is not None:
            return value in self.values
        return (
            is_number(value)
            and (self.at_least is None or value >= self.at_least)
            and (self.at_most is None or value <= self.at_most)
        )

    def __str__(self) -> str:
        if self.values is not None:
            word = "=" if len(self.values) == 1 else "in"
            return f"{self.choice} {word} {', '.join(map(text_of, self.values)) or '(values ruled out here)'}"
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


def accepted_values(parent: Choice, when: When) -> Container[Any]:
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


def can_hold(parent: Choice, *whens: When) -> bool:
    """Whether some value of ``parent`` meets all of ``whens``."""
    return any(mask == 2 ** len(whens) - 1 for mask, _, _ in partition(parent, whens))


def partition(choice: Choice, whens: Sequence[When]) -> list[tuple[int, int, bool]]:
    """The values of ``choice`` grouped by which of the conditions ``whens`` they meet.

    Each group is (bit mask of the conditions met, how many values, whether infinitely many).
    """

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


def active(conditions: Iterable[tuple[str, Container[Any]]], values: Mapping[str, Any]) -> bool:
    """Whether all ``conditions``, each a parent and its accepted values, hold among ``values``."""
    return all(parent in values and values[parent] in accepted for parent, accepted in conditions)


def satisfies(values: Mapping[str, Any], constraint: Constraint, scope: Sequence[str]) -> bool:
    """Whether ``constraint``, shown the choices of ``scope`` that exist, holds."""
    return bool(
        constraint.holds(Architecture.from_checked({name: values[name] for name in scope if name in values}))
    )
