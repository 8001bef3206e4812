"""The layout of a supernet: where each value of each open choice has its weight, in one flat vector.

A supernet is a space's network with some choices left open. It is called with one vector ``mixing`` that holds a
weight for every candidate operation; `nas.oneshot.relaxation` turns architecture parameters into such weights.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from nas.errors import InputError, one_of


@dataclasses.dataclass(frozen=True)
class Open:
    """Stands in an architecture in place of a value, for a choice left open.

    The weights of ``values`` begin at position ``first`` of the vector. With ``partial_channels`` = K, candidates
    see 1/K of the channels; the other channels bypass them, weighted by the entry at position ``edge`` (Xu et al.
    2020, equation 1).
    """

    name: str
    values: tuple[Any, ...]
    first: int
    partial_channels: int = 1
    edge: int | None = None


@dataclasses.dataclass(frozen=True)
class Layout:
    """The open choices of a supernet and the order of their values in its vector.

    ``node_inputs`` groups the choices by the node that their edges lead into. Where it is given, every choice has
    one further weight, its edge's, behind those of all candidates (edge normalisation, Xu et al. 2020, equation 2).
    ``partial_channels``: see `Open`.
    """

    choices: tuple[tuple[str, tuple[Any, ...]], ...]
    node_inputs: tuple[tuple[str, ...], ...] = ()
    partial_channels: int = 1

    def __post_init__(self) -> None:
        grouped = list(itertools.chain(*self.node_inputs))
        for name in grouped:
            if name not in self.names:
                raise one_of("layout: node_inputs", name, self.names)
        if grouped and sorted(grouped) != sorted(self.names):
            raise InputError("layout: node_inputs does not have every choice once")
        if self.partial_channels > 1 and not grouped:
            raise InputError(
                f"layout: partial_channels={self.partial_channels} needs edge weights (node_inputs)"
            )

    @classmethod
    def of(cls, choices: Mapping[str, Sequence[Any]], **others: Any) -> Layout:
        return cls(tuple((name, tuple(values)) for name, values in choices.items()), **others)

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.choices)

    @functools.cached_property
    def _firsts(self) -> dict[str, int]:
        counts = [len(values) for _, values in self.choices]
        return dict(zip(self.names, itertools.accumulate(counts, initial=0), strict=False))

    @functools.cached_property
    def _edges(self) -> dict[str, int]:
        return {name: self.candidates + k for k, name in enumerate(itertools.chain(*self.node_inputs))}

    @property
    def candidates(self) -> int:
        """How many candidates there are: values of all choices."""
        return sum(len(values) for _, values in self.choices)

    @property
    def size(self) -> int:
        """The length of the vector."""
        return self.candidates + len(self._edges)

    def open(self, name: str) -> Open:
        """``name`` as it stands in an architecture that leaves it open; InputError for an unknown one."""
        if name not in self._firsts:
            raise one_of("layout", name, self.names)
        return Open(
            name, dict(self.choices)[name], self._firsts[name], self.partial_channels, self._edges.get(name)
        )

    def opened(self, fixed: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """``fixed`` with all choices of the layout open."""
        return {**(fixed or {}), **{name: self.open(name) for name in self.names}}

    @functools.cached_property
    def blocks(self) -> tuple[np.ndarray, ...]:
        """Positions [choices, values] of all choices that have equally many values, by their number."""
        by_count: dict[int, list[range]] = {}
        for name, values in self.choices:
            first = self._firsts[name]
            by_count.setdefault(len(values), []).append(range(first, first + len(values)))
        return tuple(np.array(rows) for _, rows in sorted(by_count.items()))

    @functools.cached_property
    def edge_of(self) -> np.ndarray:
        """Of each candidate, the position of its choice's edge weight: int [candidates]. Needs ``node_inputs``."""
        return np.concatenate([np.full(len(values), self._edges[name]) for name, values in self.choices])

    @functools.cached_property
    def edge_groups(self) -> tuple[np.ndarray, ...]:
        """Positions of the edge weights of each group of ``node_inputs``."""
        return tuple(np.array([self._edges[name] for name in group]) for group in self.node_inputs)

    def positions(self, value: Any) -> np.ndarray:
        """Where the candidates are that are ``value``."""
        found = [self._firsts[name] + values.index(value) for name, values in self.choices if value in values]
        return np.array(found, np.int64)

    def one_hot(self, arch: Mapping[str, Any]) -> np.ndarray:
        """The weights float32 [size] that select ``arch``: 1 for its value of each choice and for every edge, else 0.

        Raises InputError for a value that the layout does not have.
        """
        weights = np.zeros(self.size, np.float32)
        weights[self.candidates :] = 1
        for name, values in self.choices:
            if arch[name] not in values:
                raise one_of(f"layout: {name}", arch[name], values)
            weights[self._firsts[name] + values.index(arch[name])] = 1
        return weights

    def weights(self, vector: Any) -> dict[str, dict[Any, float]]:
        """The candidates' entries of a vector by choice and value."""
        numbers = np.asarray(vector, np.float64).tolist()
        return {
            name: dict(zip(values, numbers[self._firsts[name] :], strict=False))
            for name, values in self.choices
        }

    def best(self, vector: Any, without: Collection[Any] = ()) -> dict[str, Any]:
        """Of each choice the value with the largest entry, of equal ones the first; never one of ``without``."""
        entries = self.weights(vector)
        return {
            name: max((value for value in of if value not in without), key=of.__getitem__)
            for name, of in entries.items()
        }

    def best_edges(
        self, vector: Any, groups: Sequence[Sequence[str]], *, inputs: int = 2, none: Any = "none"
    ) -> dict[str, Any]:
        """Of each group of choices, which are edges into one node, the ``inputs`` with the strongest operations.

        Those keep their operation, ``none`` never counting (Liu et al. 2019, section 2.4); the others get ``none``.
        """
        entries, operations = self.weights(vector), self.best(vector, without=(none,))
        found = dict.fromkeys(self.names, none)
        for group in groups:
            ranked = sorted(group, key=lambda name: -entries[name][operations[name]])
            found |= {name: operations[name] for name in ranked[:inputs]}
        return found

    def strongest(self, vector: Any, count: int) -> Layout:
        """The layout with the ``count`` values of each choice that have the largest entries, in their order.

        The stages of Chen et al. 2019 (section 3.1) narrow the choices so.
        """
        entries = self.weights(vector)
        kept = []
        for name, values in self.choices:
            order = sorted(range(len(values)), key=lambda k, of=entries[name], v=values: (-of[v[k]], k))
            kept.append((name, tuple(values[k] for k in sorted(order[:count]))))
        return dataclasses.replace(self, choices=tuple(kept))

    def transferred(self, vector: Any, other: Layout) -> np.ndarray:
        """A ``vector`` of layout ``other`` for this layout: candidates of both keep their entries, new ones get 0."""
        entries = other.weights(vector)
        numbers = np.asarray(vector)
        found = np.zeros(self.size, np.float32)
        for name, values in self.choices:
            for k, value in enumerate(values):
                found[self._firsts[name] + k] = entries[name].get(value, 0.0)
        if self._edges.keys() == other._edges.keys():
            for name, position in self._edges.items():
                found[position] = numbers[other._edges[name]]
        return found
