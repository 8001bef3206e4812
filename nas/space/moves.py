"""Moves from one architecture to others: neighbours, mutation, crossover."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from nas.space.architecture import Architecture, plain_values
from nas.space.definition import Definition, Step, complete
from nas.space.sampling import MAX_DRAWS, Key, draw, generator
from nas.space.validation import canonical, holds

MAX_REFILLS = 10  # draws of the choices that exist only after an edit, under constraints
MAX_OTHER_VALUES = 100  # other values of one choice that an edit tries, under constraints
MAX_CHILDREN = 1_000  # children that a crossover makes until one meets the constraints


def neighbours(space: Definition, arch: Mapping[str, Any]) -> tuple[Architecture, ...]:
    """See `SearchSpace.neighbours`."""
    values = plain_values(canonical(space, arch))
    return tuple(Architecture.from_checked(edited) for edited in edits(space, values) if holds(space, edited))


def edits(space: Definition, values: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All edits of ``values``, also those that break a constraint; see `SearchSpace.neighbours`."""
    for step in space.steps:
        if step.name in values:
            for other in step.choice.steps(values[step.name]):
                yield edit(space, values, step.name, other, lambda filled: filled.choice.default)


def edit(
    space: Definition, values: dict[str, Any], name: str, value: Any, fill: Callable[[Step], Any]
) -> dict[str, Any]:
    """``values`` with ``name`` at another value; choices that exist only now get what ``fill`` says."""
    edited = {**values, name: value}
    return complete(space, edited, fill) if name in space.parents else edited


def mutate(space: Definition, arch: Mapping[str, Any], key: Key) -> Architecture:
    """See `SearchSpace.mutate`."""
    rng = generator(space, key)
    before = canonical(space, arch)
    values = plain_values(before)
    variable = [
        step
        for step in space.steps
        if step.name in values and (step.options is None or len(step.options) > 1)
    ]
    if not variable:
        return before
    start = int(rng.random() * len(variable))
    for step in variable[start:] + variable[:start]:
        tries = MAX_REFILLS if space.constraints and step.name in space.parents else 1
        for other in itertools.islice(step.choice.others(values[step.name], rng), MAX_OTHER_VALUES):
            for _ in range(tries):
                edited = edit(
                    space, values, step.name, other, lambda filled: filled.choice.from_unit(rng.random())
                )
                if holds(space, edited):
                    return Architecture.from_checked(edited)
    for _ in range(MAX_DRAWS):
        drawn = draw(space, rng)
        if drawn != values and holds(space, drawn):
            return Architecture.from_checked(drawn)
    return before


def crossover(space: Definition, a: Mapping[str, Any], b: Mapping[str, Any], key: Key) -> Architecture:
    """See `SearchSpace.crossover`."""
    rng = generator(space, key)
    first, second = plain_values(canonical(space, a)), plain_values(canonical(space, b))
    for _ in range(MAX_CHILDREN):
        units = iter(rng.random(2 * len(space.steps)).tolist())
        mixed = {**first, **second}
        for name in space.choices:
            if next(units) < 0.5 and name in first:
                mixed[name] = first[name]
        child = complete(space, mixed, lambda filled, units=units: filled.choice.from_unit(next(units)))
        if holds(space, child):
            return Architecture.from_checked(child)
    return Architecture.from_checked(first)
