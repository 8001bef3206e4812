"""How a search space is searched by a supernet: its open choices, its network, and what the weights derive."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from nas.errors import InputError
from nas.nn.layout import Layout
from nas.space import Architecture, Categorical, Integer, SearchSpace


@dataclasses.dataclass(frozen=True)
class Supernet:
    """How a space is searched by a supernet: what ``SearchSpace.supernet`` makes of the space as narrowed.

    ``layout(partial_channels=1, edge_weights=False)``: the open choices.
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
    ``published``: by method (`nas.oneshot.settings.METHODS`), the settings that its authors' code has for this space
    otherwise than for that of DARTS.
    """

    layout: Callable[..., Layout]
    build: Callable[..., Any]
    derive: Callable[..., Architecture]
    operations: Callable[[Mapping[str, Any]], dict[str, Any]]
    sizes: Mapping[str, int]
    cells: Mapping[str, str]
    skip: Any = None
    drops_skips: bool = False
    published: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)


def supernet_of(
    space: SearchSpace,
    node_inputs: Sequence[Sequence[str]],
    build: Callable[..., Any],
    *,
    defaults: Mapping[str, Any] | None = None,
    sizes: Mapping[str, int] | None = None,
    cell: tuple[str, str] = ("network", ""),
    skip: Any = None,
    partial: bool = True,
    published: Mapping[str, Mapping[str, Any]] | None = None,
) -> Supernet:
    """The supernet of ``space`` in which the choices of ``node_inputs`` are open, grouped by the node they lead into.

    ``build(arch, num_classes, **sizes)`` makes its network from a whole architecture whose choices may be `Open`.
    The choices that are not open have the values that ``space.resolve_fixed`` gives them. ``cell`` is the one kind
    of cell and how the names of its choices begin; ``partial``: whether it can have partial channels, for which
    candidates must keep the number of channels; the rest as in `Supernet`. Raises InputError for open choices whose
    values cannot be listed, that others depend on, or that do not change the network, and where nothing is left to
    choose.
    """
    values: dict[str, tuple[Any, ...]] = {}
    for name in itertools.chain(*node_inputs):
        choice = space.choices[name]
        if not (choice.changes_program and isinstance(choice, Categorical | Integer)):
            raise InputError(f"{space.name}: {name} cannot be left open: it is {choice.span}")
        values[name] = tuple(choice.options())
    rest = space.resolve_fixed(values, defaults or {})
    if all(len(of) == 1 for of in values.values()):
        raise InputError(f"{space.name}: a supernet has nothing to choose: {', '.join(values)} are fixed")

    def layout(partial_channels: int = 1, edge_weights: bool = False) -> Layout:
        if partial_channels > 1 and not partial:
            raise InputError(
                f"{space.name}: partial_channels={partial_channels}: its candidates change the number of channels"
            )
        groups = tuple(map(tuple, node_inputs)) if edge_weights else ()
        return Layout.of(values, partial_channels=partial_channels, node_inputs=groups)

    def network(operations: Mapping[str, Any], num_classes: int, **sizes: Any) -> Any:
        return build({**rest, **operations}, num_classes, **sizes)

    def derive(layout: Layout, weights: Any, most_skips: int | None = None) -> Architecture:
        found = limit_skips(skip, most_skips, cell[1], layout, weights, layout.best)
        return space.canonical({**rest, **found})

    def operations(arch: Mapping[str, Any]) -> dict[str, Any]:
        return {name: arch[name] for name in values}

    return Supernet(
        layout, network, derive, operations, sizes or {}, dict([cell]), skip, published=published or {}
    )


def limit_skips(
    skip: Any,
    most: int | None,
    prefix: str,
    layout: Layout,
    weights: Any,
    derive: Callable[[np.ndarray], dict[str, Any]],
) -> dict[str, Any]:
    """What ``derive`` makes of ``weights``, with ``skip`` in at most ``most`` of the choices named ``prefix…``.

    The weakest skip connections are ruled out one after another, as long as another candidate can replace one.
    """
    numbers = np.array(weights, np.float64)
    while True:
        found = derive(numbers)
        chosen = [name for name, of in found.items() if of == skip and name.startswith(prefix)]
        places = [layout.open(name).first + layout.open(name).values.index(skip) for name in chosen]
        left = [place for place in places if numbers[place] > -np.inf]
        if most is None or len(chosen) <= most or not left:
            return found
        numbers[min(left, key=lambda place: numbers[place])] = -np.inf
