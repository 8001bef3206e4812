"""`Definition`: the choices, conditions and constraints of a search space, and what follows from them."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import itertools
import re
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from nas.errors import InputError
from nas.space.architecture import Architecture
from nas.space.choices import Categorical, Choice, Integer, LogUniform, Uniform, is_number
from nas.space.conditions import Constraint, When, accepted_values, active, can_hold
from nas.space.messages import clip, one_line, text_of

NAME = re.compile(r"[^\s=,:{}]+")
NUMBERED = re.compile(r"(.+?)((?:_\d+)+)")


class Cell(NamedTuple):
    """A cell as a graph, to be drawn: its nodes in topological order, and its edges as (source, target,
    operation); the operation "" passes a value on unchanged."""

    nodes: tuple[str, ...]
    edges: tuple[tuple[str, str, str], ...]


class Step(NamedTuple):
    """One choice as loops over a space need it: a step in building an architecture in the space's order."""

    name: str
    choice: Choice
    options: Sequence[Any] | None  # None where continuous
    conditions: tuple[tuple[str, Container[Any]], ...]  # a parent, and the values of it that allow the choice
    at: int  # where its numbers begin in the encoding
    width: int  # how many numbers they are
    flag: int | None  # where the encoding says whether a conditional choice exists; None: it always does


@dataclasses.dataclass(frozen=True)
class Definition:
    """What a search space is made of; `nas.space.SearchSpace` adds what can be done with it.

    The functions of this package take a Definition, so that none of them needs to import SearchSpace.

    Inputs:
      name: what errors and ``name:architecture`` texts call the space.
      choices: by name, in the order of the canonical text; a condition looks back to an earlier choice.
      conditions: by the name of the choice that they govern; where several, all must hold. A choice whose
        conditions do not hold is inactive: absent from the architecture.
      constraints: see ``Constraint``.
      build: from an architecture and a number of classes to a network.
      format, parse: the field's own notation instead of ``name=value,…``, inverse to each other; ``parse``
        may return any mapping and raise ``ValueError``.
      search_within: the part to search by default, as assignments of ``restrict``'s ``narrow``: a family that
        holds a 1,202-layer network need not draw such at random. See ``searched``.
      features: what a model of the space should see of an architecture, float64 of one shape, where that is
        something better than ``encode``; see ``path_encoding``.
      supernet: from the space as narrowed to a ``nas.nn.supernet.Supernet``: how a supernet searches it.
      cells: the cells of an architecture by name, where its networks are made of cells.
      elastic: the choices whose smaller values are parts of the largest network's weights (`nas.oneshot.elastic`).

    Bad input raises ``InputError``.
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
    supernet: Callable[[Any], Any] | None = None
    cells: Callable[[Architecture], Mapping[str, Cell]] | None = None
    elastic: Sequence[str] = ()

    def __post_init__(self) -> None:
        conditions = {
            name: (whens,) if isinstance(whens, When) else tuple(whens)
            for name, whens in self.conditions.items()
        }
        object.__setattr__(self, "choices", dict(self.choices))
        object.__setattr__(self, "conditions", {name: whens for name, whens in conditions.items() if whens})
        object.__setattr__(self, "constraints", tuple(self.constraints))
        if not NAME.fullmatch(self.name):
            raise InputError(f"space: {self.name!r} is not a name (no space, '=', ',', ':', brace)")
        if not self.choices:
            raise InputError(f"{self.name}: a space needs at least one choice")
        for name, choice in self.choices.items():
            if not isinstance(name, str) or not NAME.fullmatch(name):
                raise InputError(
                    f"{self.name}: {name!r} is not a choice's name (no space, '=', ',', ':', brace)"
                )
            if not isinstance(choice, Categorical | Integer | Uniform | LogUniform):
                kinds = "Categorical, Integer, Uniform, LogUniform"
                raise InputError(f"{self.name}: {name}={clip(choice)} is not one of {kinds}")
        if (self.format is None) != (self.parse is None):
            raise InputError(f"{self.name}: give both format and parse, or neither")
        place_of = {name: place for place, name in enumerate(self.choices)}
        for name in conditions:
            self._check_conditions(name, place_of)
        for constraint in self.constraints:
            self._scope(constraint)
        object.__setattr__(self, "search_within", tuple(self.search_within))
        object.__setattr__(self, "elastic", tuple(self.elastic))
        for name in self.elastic:
            self.members(name)

    def _check_conditions(self, name: str, place_of: Mapping[str, int]) -> None:
        place = f"{self.name}: condition on {name}"
        if name not in self.choices:
            raise self.unknown(name)
        for when in self.whens(name):
            if when.choice not in self.choices:
                raise self.unknown(when.choice)
            if place_of[when.choice] >= place_of[name]:
                raise InputError(f"{place}: {when.choice} must stand before {name} among the choices")
            parent = self.choices[when.choice]
            for value in when.values or ():
                if not parent.accepts(value):
                    raise InputError(f"{place}: {when.choice}={text_of(value)} is not {parent.span}")
            if when.values is None and not all(map(is_number, getattr(parent, "values", ()))):
                raise InputError(f"{place}: {when} compares what are not numbers: {parent.summary}")

    def __hash__(self) -> int:
        return hash((self.name, tuple(self.choices.items())))

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def whens(self, name: str) -> tuple[When, ...]:
        """The conditions of choice ``name``, which ``__post_init__`` made tuples."""
        return cast("tuple[When, ...]", self.conditions.get(name, ()))

    @functools.cached_property
    def steps(self) -> tuple[Step, ...]:
        """The choices in order, with their conditions and their places in the encoding."""
        steps, at = [], 0
        for name, choice in self.choices.items():
            options = choice.options() if isinstance(choice, Categorical | Integer) else None
            conditions = tuple(
                (when.choice, accepted_values(self.choices[when.choice], when)) for when in self.whens(name)
            )
            width = len(choice.values) if isinstance(choice, Categorical) else 1
            steps.append(
                Step(name, choice, options, conditions, at, width, at + width if conditions else None)
            )
            at += width + bool(conditions)
        return tuple(steps)

    @functools.cached_property
    def parents(self) -> frozenset[str]:
        """The choices that others depend on."""
        return frozenset(when.choice for name in self.choices for when in self.whens(name))

    @functools.cached_property
    def possible(self) -> frozenset[str]:
        """The choices that some architecture has: narrowing can rule out all values that another choice depends on."""
        possible: set[str] = set()
        for name in self.choices:
            whens = self.whens(name)
            if all(
                parent in possible
                and can_hold(self.choices[parent], *(when for when in whens if when.choice == parent))
                for parent in {when.choice for when in whens}
            ):
                possible.add(name)
        return frozenset(possible)

    @functools.cached_property
    def continuous(self) -> tuple[str, ...]:
        """The continuous choices that some architecture has."""
        return tuple(step.name for step in self.steps if step.options is None and step.name in self.possible)

    @functools.cached_property
    def checks(self) -> tuple[tuple[Constraint, tuple[str, ...]], ...]:
        """The constraints, each with the names of the choices that it looks at, in the space's order."""
        return tuple((constraint, self._scope(constraint)) for constraint in self.constraints)

    def _scope(self, constraint: Constraint) -> tuple[str, ...]:
        if constraint.choices is None:
            return tuple(self.choices)
        named = {member for name in constraint.choices for member in self.members(name)}
        return tuple(name for name in self.choices if name in named)

    def members(self, name: str) -> tuple[str, ...]:
        """The choices that ``name`` means: itself, or every ``name_<i>``."""
        if name in self.choices:
            return (name,)
        members = tuple(
            choice for choice in self.choices if (parts := NUMBERED.fullmatch(choice)) and parts[1] == name
        )
        if not members:
            raise self.unknown(name)
        return members

    def check_known(self, arch: Mapping[str, Any], *names: str) -> None:
        """Raises InputError where a text among the choices ``names`` is none of this space's values.

        For a ``build`` that spaces with other choices share, so that a value it has no branch for is no default.
        """
        for name in itertools.chain.from_iterable(map(self.members, names)):
            value = arch.get(name)
            if isinstance(value, str) and not self.choices[name].accepts(value):
                raise InputError(f"{self.name}: {name}={text_of(value)} is not {self.choices[name].span}")

    def unknown(self, name: str) -> InputError:
        """The error for a choice ``name`` that there is not, with the nearest one that there is."""
        groups = {parts[1] for choice in self.choices if (parts := NUMBERED.fullmatch(choice))}
        close = difflib.get_close_matches(name, [*self.choices, *sorted(groups)], n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        return InputError(f"{self.name}: {one_line(name)} is not one of {', '.join(self._listed())}{hint}")

    def _listed(self) -> list[str]:
        """The names, with runs such as ``width_1..6`` as one."""
        runs: dict[str, list[str]] = {}
        for name in self.choices:
            base, number = split_number(name)
            runs.setdefault(base, []).append(number)
        return [text for base, numbers in runs.items() for text in collapse_run(base, numbers)]


def complete(space: Definition, given: Mapping[str, Any], fill: Callable[[Step], Any]) -> dict[str, Any]:
    """The active choices, each with its ``given`` value or else what ``fill`` says."""
    values: dict[str, Any] = {}
    for step in space.steps:
        if active(step.conditions, values):
            values[step.name] = given[step.name] if step.name in given else fill(step)
    return values


def split_number(name: str) -> tuple[str, str]:
    """``("width", "3")`` of ``width_3``; the number is empty where there is none."""
    base, _, number = name.rpartition("_")
    return (base, number) if base and number.isdecimal() else (name, "")


def collapse_run(base: str, numbers: Sequence[str]) -> list[str]:
    """``["width_1..6"]`` where the numbers are consecutive, else each name by itself."""
    if len(numbers) > 1 and all(numbers) and int(numbers[-1]) - int(numbers[0]) == len(numbers) - 1:
        return [f"{base}_{numbers[0]}..{numbers[-1]}"]
    return [f"{base}_{number}" if number else base for number in numbers]
