"""Subspaces: choices fixed, narrowed to some values or a range, or given a number of points."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from nas.errors import InputError
from nas.space.architecture import Scalar
from nas.space.choices import ABSENT, Categorical, Choice, is_number, nearest_value
from nas.space.conditions import When
from nas.space.definition import Definition, Step, complete
from nas.space.messages import clip, one_line
from nas.space.validation import read_value

AnySpace = TypeVar("AnySpace", bound=Definition)


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included, to narrow a choice to; text is parsed."""

    low: float | str
    high: float | str

    def __str__(self) -> str:
        return f"{self.low}..{self.high}"


def narrow(space: AnySpace, name: str, to: Range | Sequence[Scalar]) -> AnySpace:
    """See `SearchSpace.narrow`."""
    return replace_choices(
        space, {member: narrow_choice(space, member, to) for member in space.members(name)}
    )


def restrict(space: AnySpace, fix: Iterable[str] = (), narrow: Iterable[str] = ()) -> AnySpace:
    """See `SearchSpace.restrict`."""
    fixed = parse_assignments(fix)
    for name, to in fixed.items():
        if isinstance(to, Range) or len(to) > 1:
            shown = to if isinstance(to, Range) else ",".join(to)
            raise InputError(f"{space.name}: cannot fix {name}={shown}: give one value, or narrow it")
    for assignments in (narrow, fix):
        space = replace_choices(space, select(space, assignments))
    return space


def searched(space: AnySpace, fix: Iterable[str] = (), narrow: Iterable[str] = ()) -> AnySpace:
    """See `SearchSpace.searched`."""
    fix, narrow = tuple(fix), tuple(narrow)
    named = {**parse_assignments(fix), **parse_assignments(narrow)}
    named_members = {member for name in named for member in space.members(name)}
    defaults = {
        name: to for name, to in select(space, space.search_within).items() if name not in named_members
    }
    return restrict(replace_choices(space, defaults), fix, narrow)


def discretise(space: AnySpace, points: int | Mapping[str, int]) -> AnySpace:
    """See `SearchSpace.discretise`."""
    if isinstance(points, Mapping):
        wanted = {member: number for name, number in points.items() for member in space.members(name)}
    else:
        wanted = {step.name: points for step in space.steps if step.options is None}
    for name, number in wanted.items():
        if type(number) is not int or number < 1:
            raise InputError(f"{space.name}: {number!r} points for {name} is not a whole number from 1")
        if isinstance(space.choices[name], Categorical):
            raise InputError(
                f"{space.name}: {name} is {space.choices[name].span}: it has no number of points"
            )
    return replace_choices(
        space,
        {
            name: Categorical(space.choices[name].options(number), space.choices[name].changes_program)
            for name, number in wanted.items()
        },
    )


def resolve_fixed(
    space: Definition, open_choices: Iterable[str], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """See `SearchSpace.resolve_fixed`."""
    left_open = frozenset(open_choices)
    named = {member: value for name, value in defaults.items() for member in space.members(name)}
    for name in space.choices:
        if name in left_open and name in space.parents:
            raise InputError(f"{space.name}: {name} cannot be left open: other choices depend on it")

    def fill(step: Step) -> Any:
        if step.name in left_open:
            return None
        if step.options is not None and len(step.options) == 1:
            return step.options[0]
        near = nearest_value(step.choice, named.get(step.name, ABSENT))
        if near is ABSENT:
            raise InputError(
                f"{space.name}: nothing here decides {step.name}: --fix {step.name}=… to {step.choice.span}"
            )
        return near

    values = complete(space, {}, fill)
    return {name: value for name, value in values.items() if name not in left_open}


def select(space: Definition, assignments: Iterable[str]) -> dict[str, Choice]:
    """The choices that assignments name, as they narrow them."""
    parsed = parse_assignments(assignments)
    selected: dict[str, Range | tuple[str, ...]] = {}
    for name in sorted(parsed, key=lambda name: name in space.choices):  # groups first
        selected |= dict.fromkeys(space.members(name), parsed[name])
    return {name: narrow_choice(space, name, to) for name, to in selected.items()}


def narrow_choice(space: Definition, name: str, to: Range | Sequence[Scalar]) -> Choice:
    """Choice ``name`` with the values ``to`` alone, or its part within a `Range`."""
    choice = space.choices[name]
    if isinstance(to, Range):
        try:
            return choice.within(read_bound(to.low), read_bound(to.high))
        except ValueError as error:
            raise InputError(f"{space.name}: cannot narrow {name} to {to}: {error}") from None
    listed = (to,) if isinstance(to, str) or not isinstance(to, Iterable) else to
    chosen: set[Any] = {read_value(space, name, value) for value in listed}
    if not chosen:
        raise InputError(f"{space.name}: cannot narrow {name} to nothing; it is {choice.span}")
    values = (
        [value for value in choice.values if value in chosen]
        if isinstance(choice, Categorical)
        else sorted(chosen)
    )
    return Categorical(values, choice.changes_program)


def replace_choices(space: AnySpace, changed: Mapping[str, Choice]) -> AnySpace:
    """The subspace with the choices ``changed`` for narrower ones; conditions lose the values ruled out."""
    choices = {**space.choices, **changed}

    def kept(when: When) -> When:
        if when.values is None or when.choice not in changed:
            return when
        return When(when.choice, values=[v for v in when.values if choices[when.choice].accepts(v)])

    def of_others(text: str) -> list[str]:
        """The text of ``search_within`` for the choices that it names and that are not changed."""
        named = tuple(select(space, [text]))
        if changed.keys().isdisjoint(named):
            return [text]
        return [f"{name}={text.partition('=')[2].strip()}" for name in named if name not in changed]

    conditions = {name: tuple(kept(when) for when in space.whens(name)) for name in space.conditions}
    left = [other for text in space.search_within for other in of_others(text)]
    return dataclasses.replace(space, choices=choices, conditions=conditions, search_within=left)


def parse_assignments(texts: Iterable[str]) -> dict[str, tuple[str, ...] | Range]:
    """``["connections=residual", "width=16,32", "learning_rate=1e-3..1e-1"]`` as names with what they are to
    be: values or a ``Range``, still text. Raises ``InputError``."""
    assignments: dict[str, tuple[str, ...] | Range] = {}
    for text in texts:
        name, equals, listed = (piece.strip() for piece in text.partition("="))
        values = tuple(value.strip() for value in listed.split(","))
        low, dots, high = (piece.strip() for piece in listed.partition(".."))
        if not equals or not name or not all(values) or (dots and not (low and high)):
            raise InputError(f"{clip(text)} is not name=value, name=value,value or name=low..high")
        if name in assignments:
            raise InputError(f"{one_line(name)} is given twice: {clip(text)}")
        assignments[name] = Range(low, high) if dots else values
    return assignments


def read_bound(end: float | str) -> float:
    """An end of a range, from text perhaps; raises ``ValueError``."""
    if isinstance(end, str):
        try:
            return int(end)
        except ValueError:
            pass
        try:
            return float(end)
        except ValueError:
            raise ValueError(f"{one_line(end)} is not a number") from None
    if not is_number(end):
        raise ValueError(f"{clip(end)} is not a number")
    return end
