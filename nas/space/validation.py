"""Whether an architecture fits a space, and the one line that says why not."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from nas.errors import InputError
from nas.space.architecture import Architecture, Scalar, plain_values, scalar
from nas.space.conditions import satisfies
from nas.space.definition import Definition
from nas.space.messages import one_line, text_of


def canonical(space: Definition, arch: Mapping[str, Any]) -> Architecture:
    """``arch`` validated, in the space's order, each number of its choice's type."""
    values = checked(space, arch)
    return Architecture.from_checked(
        {step.name: step.choice.canonical(values[step.name]) for step in space.steps if step.name in values}
    )


def checked(space: Definition, arch: Mapping[str, Any]) -> dict[str, Any]:
    """The values of ``arch`` in its own order; raises InputError where it does not fit the space."""
    values = plain_values(arch)
    present = 0
    for name, choice, _, conditions, _, _, _ in space.steps:
        for parent, accepted in conditions:
            if parent not in values or values[parent] not in accepted:
                break  # inactive; where it has a value all the same, the count differs
        else:
            if name not in values or not choice.accepts(values[name]):
                raise complaint(space, values)
            present += 1
    if present != len(values) or (space.constraints and not holds(space, values)):
        raise complaint(space, values)
    return values


def complaint(space: Definition, values: Mapping[str, Any]) -> InputError:
    """The error that says what is wrong with ``values``, which do not fit the space."""
    for name in values:
        if name not in space.choices:
            return space.unknown(name)
    for name, choice, *_ in space.steps:
        unmet = [w for w in space.whens(name) if w.choice not in values or values[w.choice] not in w]
        if name not in values:
            if not unmet:
                return InputError(f"{space.name}: {name} is missing; it is {choice.span}")
        elif unmet:
            shown = f"{name}={one_line(text_of(values[name]))}"
            return InputError(f"{space.name}: {shown} does not exist here, only when {unmet[0]}")
        elif not choice.accepts(values[name]):
            return InputError(f"{space.name}: {name}={one_line(text_of(values[name]))} is not {choice.span}")
    for constraint, scope in space.checks:
        if not satisfies(values, constraint, scope):
            named = constraint.choices is not None
            shown = ",".join(f"{name}={text_of(values[name])}" for name in scope if named and name in values)
            return InputError(
                f"{space.name}: {shown or 'architecture'} breaks the constraint: {constraint.text}"
            )
    raise AssertionError("the fast and the slow check disagree")


def holds(space: Definition, values: dict[str, Any]) -> bool:
    """Whether ``values`` meet all constraints."""
    return all(satisfies(values, constraint, scope) for constraint, scope in space.checks)


def read_value(space: Definition, name: str, value: Any) -> Scalar:
    """``value``, parsed where it is text, as a value of choice ``name``; raises InputError where it is none."""
    choice, value = space.choices[name], scalar(name, value)
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = choice.parse(value)
    if not choice.accepts(value):
        raise InputError(f"{space.name}: {name}={one_line(text_of(value))} is not {choice.span}")
    return choice.canonical(value)


def program(space: Definition, arch: Mapping[str, Any]) -> Architecture:
    """The part of ``arch`` that changes the compiled program: equal parts, one compilation."""
    return Architecture.from_checked(
        {name: value for name, value in canonical(space, arch).items() if space.choices[name].changes_program}
    )
