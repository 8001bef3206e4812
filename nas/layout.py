"""Choices left open: where each value of each open choice has its weight, in one flat vector.

A supernet is a space's network with some choices left open. It is called with one vector that holds a weight
for every candidate; what turns architecture parameters into such weights is in `nas.oneshot`. How a space is
searched by one is a `Supernet`, which its hook ``supernet`` makes.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from nas.errors import InputError, one_of
from nas.space import Architecture, Categorical, Integer, SearchSpace


@dataclasses.dataclass(frozen=True)
class Open:
    """What stands in an architecture for a choice left open.

    The weights of ``values`` are those from ``first`` on. The candidates see one in ``part`` of the channels;
    the others pass them by, weighted by the one at ``edge`` (Xu et al. 2020, equation 1).
    """

    name: str
    values: tuple[Any, ...]
    first: int
    part: int = 1
    edge: int | None = None


@dataclasses.dataclass(frozen=True)
class Layout:
    """The open choices of a supernet and the order of their values in its vector.

    ``meeting`` are groups of choices whose results are added up at one node, and which therefore compete: each
    of their choices has one more weight, behind all others (edge normalisation, Xu et al. 2020, equation 2).
    ``part``: see `Open`.
    """

    choices: tuple[tuple[str, tuple[Any, ...]], ...]
    meeting: tuple[tuple[str, ...], ...] = ()
    part: int = 1

    def __post_init__(self) -> None:
        grouped = list(itertools.chain(*self.meeting))
        for name in grouped:
            if name not in self.names:
                raise one_of("layout: meeting", name, self.names)
        if grouped and sorted(grouped) != sorted(self.names):
            raise InputError("layout: meeting does not have every choice once")
        if self.part > 1 and not grouped:
            raise InputError(f"layout: part={self.part} needs edge weights (meeting), which are not there")

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
        return {name: self.candidates + k for k, name in enumerate(itertools.chain(*self.meeting))}

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
        return Open(name, dict(self.choices)[name], self._firsts[name], self.part, self._edges.get(name))

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
        """Of each candidate, the position of its choice's edge weight: int [candidates]. Needs ``meeting``."""
        return np.concatenate([np.full(len(values), self._edges[name]) for name, values in self.choices])

    @functools.cached_property
    def edge_groups(self) -> tuple[np.ndarray, ...]:
        """Positions of the edge weights of each group of ``meeting``."""
        return tuple(np.array([self._edges[name] for name in group]) for group in self.meeting)

    def positions(self, value: Any) -> np.ndarray:
        """Where the candidates are that are ``value``."""
        found = [self._firsts[name] + values.index(value) for name, values in self.choices if value in values]
        return np.array(found, np.int64)

    def vertex(self, arch: Mapping[str, Any]) -> np.ndarray:
        """The weights float32 [size] that leave of every choice the value in ``arch`` only. Raises InputError."""
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

    def taken(self, vector: Any, other: Layout) -> np.ndarray:
        """The vector of this layout whose entries are those of ``other``'s, where it has them; else 0."""
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


# ------------------------------------------------------------------------------------------------ supernets


@dataclasses.dataclass(frozen=True)
class Supernet:
    """How a space is searched by a supernet: what its hook ``supernet`` makes of the space as narrowed.

    ``layout(part=1, edge_weights=False)``: the open choices.
    ``build(operations, num_classes, **sizes)``: the network with ``operations`` by the layout's names, each a
    value or left open: with ``layout.opened()`` the supernet, to be called with ``mixing`` float32 [layout.size];
    with single values that network alone, its variables named as the supernet's.
    ``derive(layout, weights, most_skips=None)``: the architecture, a point of the space, that the weights
    [layout.size] come to; with no more than ``most_skips`` skip connections in its first kind of cell where the
    candidates allow (Chen et al. 2019, section 3.3.2).
    ``operations(arch)``: those of an architecture by the layout's names, the inverse of ``derive``.
    ``sizes``: the whole numbers that ``build`` takes, by name, with their defaults.
    ``cells``: kinds of cells, the normal one first, and how the names of their choices begin, in layouts and
    architectures both.
    ``skip``: the value that is a skip connection; None: there is none.
    ``drops_skips``: whether ``build`` also takes ``skip_dropout``, which drops out elements of skip connections.
    """

    layout: Callable[..., Layout]
    build: Callable[..., Any]
    derive: Callable[..., Architecture]
    operations: Callable[[Mapping[str, Any]], dict[str, Any]]
    sizes: Mapping[str, int]
    cells: Mapping[str, str]
    skip: Any = None
    drops_skips: bool = False


def supernet_of(
    space: SearchSpace,
    groups: Sequence[Sequence[str]],
    build: Callable[..., Any],
    *,
    defaults: Mapping[str, Any] | None = None,
    sizes: Mapping[str, int] | None = None,
    cell: tuple[str, str] = ("network", ""),
    skip: Any = None,
    partial: bool = True,
) -> Supernet:
    """The supernet of ``space`` with the choices ``groups`` open: in a group those that meet at one node.

    ``build(arch, num_classes, **sizes)`` makes its network from a whole architecture whose choices may be `Open`.
    The choices that are not open have the values that ``space.settled`` gives them. ``cell`` is the one kind of
    cell and how the names of its choices begin; ``partial``: whether candidates may see a part of the channels, for
    which they must not change their number; the rest as in `Supernet`. Raises InputError for open choices
    whose values cannot be listed, that others depend on, or that do not change the network, and where nothing is
    left to choose.
    """
    values: dict[str, tuple[Any, ...]] = {}
    for name in itertools.chain(*groups):
        choice = space.choices[name]
        if not (choice.changes_program and isinstance(choice, Categorical | Integer)):
            raise InputError(f"{space.name}: {name} cannot be left open: it is {choice.span}")
        values[name] = tuple(choice.options())
    rest = space.settled(values, defaults or {})
    if all(len(of) == 1 for of in values.values()):
        raise InputError(f"{space.name}: a supernet has nothing to choose: {', '.join(values)} are fixed")

    def layout(part: int = 1, edge_weights: bool = False) -> Layout:
        if part > 1 and not partial:
            raise InputError(f"{space.name}: part={part}: its candidates change the number of channels")
        return Layout.of(values, part=part, meeting=tuple(map(tuple, groups)) if edge_weights else ())

    def network(operations: Mapping[str, Any], num_classes: int, **sizes: Any) -> Any:
        return build({**rest, **operations}, num_classes, **sizes)

    def derive(layout: Layout, weights: Any, most_skips: int | None = None) -> Architecture:
        found = with_fewer(skip, most_skips, cell[1], layout, weights, layout.best)
        return space.canonical({**rest, **found})

    def operations(arch: Mapping[str, Any]) -> dict[str, Any]:
        return {name: arch[name] for name in values}

    return Supernet(layout, network, derive, operations, sizes or {}, dict([cell]), skip)


def with_fewer(
    value: Any,
    most: int | None,
    prefix: str,
    layout: Layout,
    weights: Any,
    derive: Callable[[np.ndarray], dict[str, Any]],
) -> dict[str, Any]:
    """What ``derive`` makes of ``weights``, with ``value`` chosen ``most`` times at the most in names of ``prefix``.

    The weakest of them are taken away, one after another, as long as another candidate stands in for one.
    """
    numbers = np.array(weights, np.float64)
    while True:
        found = derive(numbers)
        chosen = [name for name, of in found.items() if of == value and name.startswith(prefix)]
        places = [layout.open(name).first + layout.open(name).values.index(value) for name in chosen]
        left = [place for place in places if numbers[place] > -np.inf]
        if most is None or len(chosen) <= most or not left:
            return found
        numbers[min(left, key=lambda place: numbers[place])] = -np.inf
