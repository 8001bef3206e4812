"""Supernets of the spaces: their networks with some choices left open.

Any space whose ``build`` makes its nodes with `Builder.choose` and `Builder.mix` has one: `of_space`. Spaces whose
supernet has other choices than their architectures (darts: an operation an edge, two edges of which a node keeps)
say so themselves; ``SUPERNETS`` has them by the space's name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nas.errors import InputError, one_of
from nas.layout import Layout
from nas.space import SearchSpace
from search_spaces import darts
from search_spaces.graph import Graph


@dataclasses.dataclass(frozen=True)
class Supernet:
    """How a space is searched by a supernet.

    ``layout(part=1, edge_weights=False)``: the open choices. ``build(operations, num_classes, **sizes)``: the
    network with ``operations`` by the layout's names, each a value or left open: ``layout.opened()`` is the
    supernet, a vertex's values a discrete network with the same weights. ``derive(layout, weights)``: choices
    of the space that the weights [layout.size] come to.
    """

    layout: Callable[..., Layout]
    build: Callable[..., Graph]
    derive: Callable[[Layout, Any], dict[str, Any]]


def of_space(space: SearchSpace, names: Sequence[str], fixed: Mapping[str, Any]) -> Supernet:
    """The supernet in which ``names`` are open and the other choices are as in ``fixed``.

    Raises InputError for an unknown choice, one whose values cannot be listed, and one on which others depend.
    """
    place = f"{space.name}: supernet"
    for name in names:
        if name not in space.choices:
            raise one_of(place, name, tuple(space.choices))
        depending = [other for other in space.choices if name in _parents(space, other)]
        if depending:
            raise InputError(f"{place}: {name} cannot be left open, {depending[0]} depends on it")
        if not space.choices[name].changes_program:
            raise InputError(f"{place}: {name} does not change the network")

    def layout(part: int = 1, edge_weights: bool = False) -> Layout:
        values = {name: tuple(space.choices[name].options()) for name in names}
        return Layout.of(values, part=part, meeting=tuple((name,) for name in names) if edge_weights else ())

    def build(operations: Mapping[str, Any], num_classes: int) -> Graph:
        assert space.build is not None
        return space.build({**fixed, **operations}, num_classes)  # type: ignore[arg-type]

    def derive(layout: Layout, weights: Any) -> dict[str, Any]:
        best = {**fixed, **layout.best(weights)}
        space.validate(best)
        return best

    return Supernet(layout, build, derive)


def _parents(space: SearchSpace, name: str) -> set[str]:
    conditions = space.conditions.get(name, ())
    return {when.choice for when in (conditions if isinstance(conditions, Sequence) else (conditions,))}


def _darts_layout(part: int = 1, edge_weights: bool = False) -> Layout:
    return darts.layout(part=part, edge_weights=edge_weights)


def _darts_choices(layout: Layout, weights: Any) -> dict[str, Any]:
    return dict(darts.architecture_of(darts.derived(layout, weights)))


SUPERNETS: dict[str, Supernet] = {
    "darts": Supernet(_darts_layout, darts.search_network, _darts_choices),
}
