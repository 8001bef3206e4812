"""Networks as data: a directed graph of Flax modules.

A `Graph` is an ordinary Flax module (`init`, `apply`, parameter counts, tabulate); because its nodes are a
tuple of hashable values, the same network can also be run node by node. That is what the ``pieces``
formulation of ``nas.training`` does: equal nodes at equal shapes share one compiled program, across trials.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from jax import Array

from nas import ops


@dataclasses.dataclass(frozen=True)
class Node:
    """A module and where its inputs come from: 0 is the image, i the output of the i-th node (from 1)."""

    name: str
    module: nn.Module
    inputs: tuple[int, ...]


class Mix(nn.Module):
    """The weighted sum of its inputs [B, H, W, C], which are the candidates of open choices.

    ``positions`` are those of each input in the vector ``weights`` that the supernet is called with
    (Liu et al. 2019, equation 2, over all edges that meet at a node at once).
    """

    positions: tuple[int, ...]

    @nn.compact
    def __call__(self, *maps: Array, weights: Array, train: bool = False) -> Array:
        return ops.weighted_sum(weights, maps, self.positions)


class Graph(nn.Module):
    """Applies ``nodes`` in order; the last one's output is the network's.

    Every node module is called as ``module(*inputs, train=…)``, with those of ``rates`` that its call names:
    traced numbers that do not change the program (``dropout``, and the ``seed`` of its mask).

    ``auxiliary`` names nodes that are further classifiers, with the weights of their cross-entropies in the
    loss: they and what only they need exist in training alone (see `nas.training.network.Extra`).
    """

    nodes: tuple[Node, ...]
    auxiliary: tuple[tuple[str, float], ...] = ()

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False, **rates: Any) -> Array:
        used = range(len(self.nodes)) if train or self.is_initializing() else self.needed
        readers = collections.Counter(i for k in used for i in self.nodes[k].inputs)
        weights = dict(self.auxiliary)
        mixers = sum(isinstance(self.nodes[k].module, Mix) for k in used)
        mixing = list(ops.fork(rates["mixing"], mixers)) if mixers else []
        values: list[tuple[Array, ...]] = []  # of each value, a copy for each reader still to come

        def keep(value: Array) -> None:
            # Forked, the readers' gradients are summed by one kernel rather than by code XLA has to generate.
            values.append(ops.fork(value, max(1, readers[len(values)])))

        def take(i: int) -> Array:
            value, *rest = values[i]
            values[i] = tuple(rest)
            return value

        keep(x)
        for position, node in enumerate(self.nodes):
            if position not in used:
                values.append(())
                continue
            module = node.module.clone(parent=self, name=node.name)
            noise = {name: rates[name] for name in ops.noise_taken(module) if name in rates}
            if isinstance(module, Mix):
                noise["weights"] = mixing.pop()
            if "seed" in noise:
                noise["seed"] = ops.node_seed(noise["seed"], position)
            keep(module(*(take(i) for i in node.inputs), train=train, **noise))
            if train and node.name in weights:
                self.sow("auxiliary", f"{node.name}_logits", (weights[node.name], take(-1)))
        return take(-1)

    @property
    def needed(self) -> frozenset[int]:
        """Positions of the nodes that the output needs: all but the auxiliary classifiers' own."""
        found: set[int] = set()
        open_ends = [len(self.nodes)]
        while open_ends:
            k = open_ends.pop()
            if k and k - 1 not in found:
                found.add(k - 1)
                open_ends += self.nodes[k - 1].inputs
        return frozenset(found)


class Builder:
    """Collects nodes: ``h = b.add("conv_1", Conv(16), h)``; ``b.graph()`` is the network."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []

    def add(self, name: str, module: nn.Module, *inputs: int) -> int:
        """Append a node fed by the values numbered ``inputs``; returns the number of its output."""
        self.nodes.append(Node(name, module, inputs))
        return len(self.nodes)

    def graph(self, auxiliary: Mapping[str, float] | None = None) -> Graph:
        """The network; ``auxiliary`` as in `Graph`. ValueError for a name that is no node's."""
        weights = tuple((auxiliary or {}).items())
        if unknown := {name for name, _ in weights} - {node.name for node in self.nodes}:
            raise ValueError(f"auxiliary: {sorted(unknown)} are not nodes")
        return Graph(tuple(self.nodes), weights)
