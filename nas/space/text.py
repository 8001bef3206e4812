"""Architectures and spaces as text: reading, writing and describing them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from nas.errors import InputError, one_of
from nas.space.architecture import Architecture, Scalar
from nas.space.choices import Choice
from nas.space.counting import size
from nas.space.definition import Definition, collapse_run, split_number
from nas.space.messages import clip, text_of
from nas.space.subspaces import AnySpace, discretise
from nas.space.validation import canonical, read_value


def to_string(space: Definition, arch: Mapping[str, Any]) -> str:
    """See `SearchSpace.to_string`."""
    ordered = canonical(space, arch)
    if space.format is not None:
        return space.format(ordered)
    return ",".join(f"{name}={text_of(value)}" for name, value in ordered.items())


def from_string(space: Definition, text: str) -> Architecture:
    """See `SearchSpace.from_string`."""
    text = text.strip()
    if text.startswith("{"):
        return canonical(space, Architecture.from_json(text))
    if space.parse is not None:
        try:
            return canonical(space, space.parse(text))
        except InputError:
            raise
        except ValueError as error:
            raise InputError(f"{space.name}: {clip(text)}: {error}") from None
    values: dict[str, Scalar] = {}
    for part in text.split(",") if text else ():
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise InputError(f"{space.name}: {clip(part)} is not name=value")
        if name not in space.choices:
            raise space.unknown(name)
        if name in values:
            raise InputError(f"{space.name}: {name} is given twice")
        values[name] = read_value(space, name, value)
    return canonical(space, values)


def parse_architecture(text: str, spaces: Mapping[str, AnySpace]) -> tuple[AnySpace, Architecture]:
    """``space:architecture``, the latter in the space's notation or JSON, such as ``chain:depth=1,…`` or
    ``nasbench201:|nor_conv_3x3~0|+…``. Raises ``InputError``."""
    name, colon, written = text.partition(":")
    if not colon:
        raise InputError(f"architecture: {clip(text)} is not space:architecture; spaces: {', '.join(spaces)}")
    space = spaces.get(name.strip())
    if space is None:
        raise one_of("architecture: space", name.strip(), spaces)
    return space, from_string(space, written)


def describe(space: Definition) -> str:
    """See `SearchSpace.describe`."""
    rows = [("choice", "values", "exists when", "in the program"), *describe_rows(space)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ("-" * widths[0], "-" * widths[1], "-" * widths[2], "-" * widths[3]))
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    lines += [f"constraint: {constraint.text}" for constraint in space.constraints]
    lines.append(f"{space.name}: {len(space.possible)} choices, {size(space)} architectures")
    if space.continuous:
        lines[-1] += (
            f" ({', '.join(space.continuous)} continuous; {size(discretise(space, 3))} with 3 points each)"
        )
    return "\n".join(lines)


def describe_rows(space: Definition) -> list[tuple[str, str, str, str]]:
    """Name, values, conditions and use of each choice; what differs in its number alone is one row."""
    rows: dict[tuple[str, Choice, str], list[tuple[str, str]]] = {}
    for name in space.choices:
        if name in space.possible:
            base, number = split_number(name)
            words = " and ".join(map(str, space.whens(name))) or "always"
            pattern = words
            if number:
                pattern = re.sub(rf"_{number}(?= [=<>i])", "_i", pattern)
                pattern = re.sub(rf"(?<=[<>]= ){number}(?![\w.])", "i", pattern)
            rows.setdefault((base, space.choices[name], pattern), []).append((number, words))
    described = []
    for (base, choice, pattern), members in rows.items():
        use = "built in" if choice.changes_program else "argument"
        run = collapse_run(base, [number for number, _ in members])
        if len(run) < len(members):
            described.append((run[0], choice.summary, pattern, use))
        else:
            described += [(n, choice.summary, words, use) for n, (_, words) in zip(run, members, strict=True)]
    return described
