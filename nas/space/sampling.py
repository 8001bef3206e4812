"""Random architectures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from nas.errors import InputError
from nas.space.architecture import Architecture
from nas.space.definition import Definition
from nas.space.messages import clip
from nas.space.validation import holds

Key: TypeAlias = int | Sequence[int] | np.random.Generator

MAX_DRAWS = 10_000
"""Rejected draws after which sampling under constraints gives up."""


def sample(space: Definition, key: Key) -> Architecture:
    """See `SearchSpace.sample`."""
    rng = generator(space, key)
    for _ in range(MAX_DRAWS):
        values = draw(space, rng)
        if not space.constraints or holds(space, values):
            return Architecture.from_checked(values)
    texts = "; ".join(constraint.text for constraint in space.constraints)
    raise InputError(f"{space.name}: none of {MAX_DRAWS:,} random draws meets the constraints: {texts}")


def draw(space: Definition, rng: np.random.Generator) -> dict[str, Any]:
    """One draw of all active choices, constraints aside."""
    values: dict[str, Any] = {}
    units = rng.random(len(space.steps)).tolist()
    for unit, (name, choice, options, conditions, _, _, _) in zip(units, space.steps, strict=True):
        for parent, accepted in conditions:
            if parent not in values or values[parent] not in accepted:
                break
        else:
            values[name] = options[int(unit * len(options))] if options else choice.from_unit(unit)
    return values


def generator(space: Definition, key: Key) -> np.random.Generator:
    """The generator that ``key`` stands for; raises InputError where it is no key."""
    if isinstance(key, np.random.Generator):
        return key
    try:
        if key is None:
            raise TypeError
        return np.random.default_rng(key)
    except (TypeError, ValueError):
        kinds = "a whole number from 0, a sequence of such, or a NumPy generator"
        raise InputError(f"{space.name}: key={clip(key)} is not {kinds}") from None
