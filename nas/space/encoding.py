"""Architectures as vectors: the encoding of a whole space, and path encoding for cells."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nas.errors import InputError
from nas.space.architecture import Architecture, plain_values
from nas.space.choices import Categorical
from nas.space.definition import Definition, Step, complete
from nas.space.messages import text_of
from nas.space.moves import edits
from nas.space.sampling import sample
from nas.space.validation import complaint, holds


def encoded_width(space: Definition) -> int:
    """How many numbers an encoding has."""
    last = space.steps[-1]
    return last.at + last.width + (last.flag is not None)


def encoded_names(space: Definition) -> tuple[str, ...]:
    """See `SearchSpace.encoded_names`."""
    names: list[str] = []
    for step in space.steps:
        if isinstance(step.choice, Categorical):
            names += [f"{step.name}={text_of(value)}" for value in step.choice.values]
        else:
            names.append(step.name)
        names += [f"{step.name}?"] if step.flag is not None else []
    return tuple(names)


def encode(space: Definition, arch: Mapping[str, Any]) -> np.ndarray:
    """See `SearchSpace.encode`."""
    return np.array(encode_values(space, plain_values(arch)))


def encode_values(space: Definition, values: Mapping[str, Any]) -> list[float]:
    """The numbers of the encoding; raises InputError where a value does not fit."""
    numbers = [0.0] * encoded_width(space)
    present = 0
    for name, choice, _, conditions, at, _, flag in space.steps:
        for parent, accepted in conditions:
            if parent not in values or values[parent] not in accepted:
                break
        else:
            if name not in values or not choice.accepts(values[name]):
                raise complaint(space, values)
            present += 1
            if isinstance(choice, Categorical):
                numbers[at + choice.index_of[values[name]]] = 1.0
            else:
                numbers[at] = choice.to_unit(values[name])
            if flag is not None:
                numbers[flag] = 1.0
    if present != len(values):
        raise complaint(space, values)
    return numbers


def decode(space: Definition, vector: Any) -> Architecture:
    """See `SearchSpace.decode`."""
    array = np.asarray(vector, dtype=np.float64)
    if array.shape != (encoded_width(space),) or not np.isfinite(array).all():
        raise InputError(
            f"{space.name}: a vector of shape {array.shape} is not an encoding: "
            f"finite numbers of shape ({encoded_width(space)},)"
        )
    numbers = array.tolist()

    def nearest(step: Step) -> Any:
        if isinstance(step.choice, Categorical):
            entries = numbers[step.at : step.at + step.width]
            return step.choice.values[entries.index(max(entries))]
        return step.choice.nearest(numbers[step.at])

    values = complete(space, {}, nearest)
    if holds(space, values):
        return Architecture.from_checked(values)
    around = [edited for edited in edits(space, values) if holds(space, edited)]
    if around:
        nearest_of = min(around, key=lambda v: float(np.sum((encode_values(space, v) - array) ** 2)))
        return Architecture.from_checked(nearest_of)
    return sample(space, np.frombuffer(array.tobytes(), np.uint32).tolist())


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
