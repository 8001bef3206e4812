"""The supernet: every operation on every edge, and which cells its weights decide for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nas.errors import InputError
from nas.nn.graph import Graph
from nas.nn.layout import Layout
from nas.nn.supernet import Supernet, limit_skips
from nas.space import Architecture, SearchSpace
from search_spaces.darts.genotypes import (
    CELLS,
    KINDS,
    PRIMITIVES,
    SKIP,
    Genotype,
    architecture_of,
    genotype_of,
)
from search_spaces.darts.networks import network
from search_spaces.darts.published import DEFAULTS

SUPERNET_SIZES = {"channels": 16, "cells": 8}  # section 3.1 of Liu et al. 2019


def layout(
    steps: int = 4,
    primitives: Sequence[str] | Mapping[str, Sequence[str]] = PRIMITIVES,
    *,
    partial_channels: int = 1,
    edge_weights: bool = False,
) -> Layout:
    """The open choices of the supernet: of each kind of cell an operation ``KIND_NODE_INPUT`` an edge.

    ``primitives`` are those of all edges, or by the kind of cell. PC-DARTS has ``partial_channels=4`` and
    ``edge_weights``.
    """
    if not isinstance(primitives, Mapping):
        primitives = dict.fromkeys(KINDS, primitives)
    names = {
        kind: {node: [f"{kind}_{node}_{j}" for j in range(node)] for node in range(2, 2 + steps)}
        for kind in KINDS
    }
    node_inputs = tuple(tuple(group) for groups in names.values() for group in groups.values())
    choices = {name: tuple(primitives[name.split("_")[0]]) for group in node_inputs for name in group}
    return Layout.of(
        choices, node_inputs=node_inputs if edge_weights else (), partial_channels=partial_channels
    )


def supernet(layout: Layout, num_classes: int, **others: Any) -> Graph:
    """Every operation that ``layout`` has on every edge, weighted: [B, H, W, C] -> logits [B, num_classes].

    Called with ``mixing`` float32 [layout.size]; ``others`` as in `search_network`. The pools of a node, which are
    the same on all edges that leave it, are computed once.
    """
    return search_network(layout.opened(), num_classes, **others)


def search_network(
    operations: Mapping[str, Any],
    num_classes: int,
    *,
    channels: int = SUPERNET_SIZES["channels"],
    cells: int = SUPERNET_SIZES["cells"],
    skip_dropout: bool = False,
) -> Graph:
    """The network of the search with ``operations`` by the names of `layout`, each one or left open."""
    edges: dict[str, list[list[tuple[Any, int]]]] = {kind: [] for kind in KINDS}
    for name, choice in operations.items():
        kind, node, j = name.split("_")
        nodes = edges[kind]
        nodes += [[] for _ in range(int(node) - 1 - len(nodes))]
        nodes[int(node) - 2].append((choice, int(j)))
    return network(
        edges,
        {kind: range(2, 2 + len(nodes)) for kind, nodes in edges.items()},
        num_classes,
        channels=channels,
        cells=cells,
        searching=True,
        skip_dropout=skip_dropout,
    )


def groups(layout: Layout) -> list[list[str]]:
    """The names of the edges into each node."""
    found: dict[str, list[str]] = {}
    for name in layout.names:
        found.setdefault(name.rpartition("_")[0], []).append(name)
    return list(found.values())


def derived(layout: Layout, weights: Any, most_skips: int | None = None) -> Genotype:
    """The cells of Liu et al. 2019 (section 2.4): two inputs a node, those whose strongest operation is strongest.

    ``weights`` [layout.size] are those of the candidates, as a relaxation gives them: with edge weights, which
    count here too. ``none`` is never the strongest. With ``most_skips`` the weakest skip connections of the
    normal cell beyond so many are taken for others (Chen et al. 2019, section 3.3.2).
    """
    found = limit_skips(
        SKIP,
        most_skips,
        CELLS["normal"],
        layout,
        weights,
        lambda numbers: layout.best_edges(numbers, groups(layout)),
    )
    cells: dict[str, list[tuple[str, int]]] = {kind: [] for kind in KINDS}
    for name, primitive in found.items():
        kind, _, j = name.split("_")
        if primitive != "none":
            cells[kind].append((primitive, int(j)))
    concat = tuple(range(2, 2 + len(cells["normal"]) // 2))
    return Genotype(tuple(cells["normal"]), concat, tuple(cells["reduce"]), concat)


def discrete(genotype: Genotype) -> dict[str, str]:
    """A genotype's operations by the names of `layout`: ``none`` on the edges that it has not."""
    steps = len(genotype.normal) // 2
    found = dict.fromkeys(layout(steps).names, "none")
    for kind in KINDS:
        for k, (operation, j) in enumerate(getattr(genotype, kind)):
            found[f"{kind}_{2 + k // 2}_{j}"] = operation
    return found


def searched_by_supernet(space: SearchSpace) -> Supernet:
    """`Supernet` of the space, whose operations of a kind of cell may be narrowed all alike.

    Raises InputError where a narrowed choice says something of single edges or inputs: a supernet has all of them,
    and which ones a node keeps is what it decides.
    """
    decided = [name for name in space.choices if name.startswith(tuple(CELLS.values()))]
    decided = [name for name in decided if not name.endswith("_concat")]
    rest = space.resolve_fixed(decided, DEFAULTS)
    primitives = {kind: ("none", *_operations(space, kind, rest["steps"])) for kind in KINDS}
    for kind in KINDS:
        if rest[concat := f"{kind}_concat"] != "all":
            raise InputError(f"{space.name}: a supernet's cells give out all their nodes: --fix {concat}=all")

    def make_layout(partial_channels: int = 1, edge_weights: bool = False) -> Layout:
        return layout(rest["steps"], primitives, partial_channels=partial_channels, edge_weights=edge_weights)

    def derive(layout: Layout, weights: Any, most_skips: int | None = None) -> Architecture:
        return space.canonical(architecture_of(derived(layout, weights, most_skips), **rest))

    def operations(arch: Mapping[str, Any]) -> dict[str, Any]:
        return dict(discrete(genotype_of(arch)))

    sizes = dict(SUPERNET_SIZES)
    return Supernet(make_layout, search_network, derive, operations, sizes, CELLS, SKIP, drops_skips=True)


def _operations(space: SearchSpace, kind: str, steps: int) -> tuple[Any, ...]:
    """The operations that all nodes of a kind of cell have, in the order of the published alphas."""
    first = f"{kind}_a_1"
    operations = tuple(space.choices[first].options())
    for node in range(1, 1 + steps):
        inputs = f"{kind}_inputs_{node}"
        if missing := [pair for pair in pairs_of(node) if not space.choices[inputs].accepts(pair)]:
            raise InputError(
                f"{space.name}: a supernet decides {inputs}, which cannot leave out {missing[0]}"
            )
        for name in (f"{kind}_a_{node}", f"{kind}_b_{node}"):
            if tuple(space.choices[name].options()) != operations:
                groups = f"--narrow {kind}_a=… {kind}_b=…"
                raise InputError(
                    f"{space.name}: a supernet has the same operations on all edges of a kind of cell, but "
                    f"{name} has others than {first}: {groups}"
                )
    return operations


def pairs_of(node: int) -> list[str]:
    """The inputs of a node, from 1, that are two different ones."""
    return [f"{i}-{j}" for j in range(1 + node) for i in range(j)]
