"""Elastic supernets: the weights of a space's largest network serve all smaller ones (Cai et al. 2020, "Once for all:
train one network and specialize it for efficient deployment"; Yu et al. 2020, "BigNAS").

A sub-network's parameters are slices of the largest network's: the first channels of each axis, the centre of each
kernel, nothing of a block that it lacks. The largest network computes exactly the sub-network when everything
outside these slices is zero: channels without weights, scale and bias stay zero, and a residual block whose last
normalisation is zero passes its input on. So a mask of the parameters is all that differs between two sub-networks,
and one compiled program serves them all. Choices that no mask expresses make classes of sub-networks
(`Elastic.largest`), each with a program of its own over the same weights.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nas.errors import InputError
from nas.nn.graph import Graph
from nas.nn.layers import CellAverage
from nas.space import Architecture, SearchSpace
from nas.training.network import Tree, abstract, apply_evaluate, initialise, once, streams

ABSENT = "absent"


class Shapes(NamedTuple):
    """A network by its shapes: parameters by their path, and the channels of each node's output."""

    graph: Graph
    params: dict[str, Tree]  # node -> leaves as jax.ShapeDtypeStruct
    batch_stats: dict[str, Tree]
    channels: dict[str, int]
    names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Elastic:
    """The sub-networks of ``space`` that share one set of weights.

    ``space.elastic`` names the choices that masks express. Images are [H, W, C] of ``image_shape``. Raises
    InputError where the space names none.
    """

    space: SearchSpace
    image_shape: tuple[int, int, int]
    num_classes: int

    def __post_init__(self) -> None:
        if not self.space.elastic or self.space.build is None:
            raise InputError(
                f"space: {self.space.name} has no elastic choices: no supernet of its networks is known"
            )

    def __hash__(self) -> int:
        return hash((self.space, self.image_shape, self.num_classes))

    @functools.cached_property
    def elastic(self) -> frozenset[str]:
        """The choices by their full names."""
        return frozenset(member for name in self.space.elastic for member in self.space.members(name))

    def largest(self, arch: Mapping[str, Any]) -> Architecture:
        """The largest architecture of the class of ``arch``: elastic choices at their maximum, the others as they are."""
        return self._at(arch, -1)

    def smallest(self, arch: Mapping[str, Any]) -> Architecture:
        """The smallest one of the class."""
        return self._at(arch, 0)

    def _at(self, arch: Mapping[str, Any], end: int) -> Architecture:
        from nas.space.definition import complete

        given = {name: value for name, value in arch.items() if name not in self.elastic}

        def fill(step: Any) -> Any:
            options = (
                sorted(step.options)
                if step.name in self.elastic
                else list(step.options or (step.choice.default,))
            )
            return options[end if step.name in self.elastic else 0]

        return self.space.canonical(complete(self.space, given, fill))

    def shapes(self, arch: Mapping[str, Any]) -> Shapes:
        """Of the network of ``arch``; nothing is computed."""
        return _shapes(self, self._program(arch))

    def init(self, arch: Mapping[str, Any], seed: int) -> dict[str, Tree]:
        """Variables of the largest network of the class of ``arch``."""
        return initialise(self.network(self.largest(arch)), seed, self.image_shape, "float32")

    def network(self, arch: Mapping[str, Any]) -> Any:
        assert self.space.build is not None
        return self.space.build(Architecture(arch), self.num_classes)

    def _program(self, arch: Mapping[str, Any]) -> Architecture:
        """The choices of ``arch`` that change its network."""
        choices = self.space.choices
        return Architecture({name: value for name, value in arch.items() if choices[name].changes_program})

    def masks(self, arch: Mapping[str, Any]) -> dict[str, Tree]:
        """Of each parameter of the largest network, float32 of its shape: 1 where ``arch`` has it, else 0.

        Raises InputError where the largest network cannot compute that of ``arch``.
        """
        return _masks(self, self._program(arch))

    def cut(self, variables: Mapping[str, Tree], arch: Mapping[str, Any]) -> dict[str, Tree]:
        """The variables of the network of ``arch``: slices of those of the largest one of its class."""
        own, whole = self.shapes(arch), self.shapes(self.largest(arch))

        def sliced(of: dict[str, Tree], to: dict[str, Tree], name: str) -> Tree:
            return jax.tree.map(
                lambda leaf, small: leaf[_index(leaf.shape, small.shape, _groups(whole, name, leaf.shape))],
                of[name],
                to[name],
            )

        return {
            "params": {name: sliced(variables["params"], own.params, name) for name in own.params},
            **(
                {
                    "batch_stats": {
                        name: sliced(variables["batch_stats"], own.batch_stats, name)
                        for name in own.batch_stats
                    }
                }
                if own.batch_stats
                else {}
            ),
        }

    def check(self, arch: Mapping[str, Any]) -> None:
        """Raises InputError where the network of ``arch`` alone and by its mask differ: activations that are not zero
        at zero, normalisation over channels, kernels that a stride does not centre."""
        variables = self.init(arch, 0)
        x = jax.random.normal(jax.random.key(0), (2, *self.image_shape))
        masked = {**variables, "params": apply_masks(variables["params"], self.masks(arch))}
        by_mask = apply_evaluate(self.network(self.largest(arch)), masked, (x,))
        alone = apply_evaluate(self.network(arch), self.cut(variables, arch), (x,))
        scale = float(jnp.abs(alone).max()) + 1e-6
        if not float(jnp.abs(by_mask - alone).max()) <= 1e-3 * scale:
            raise InputError(
                f"{self.space.name}: {self.space.to_text(arch)} is not part of its largest network by the choices "
                f"{', '.join(self.space.elastic)}: fix normalisation, activation or strides that break it"
            )


def apply_masks(params: Tree, masks: Tree) -> Tree:
    """The parameters of a sub-network in the place of the largest one's."""
    return jax.tree.map(jnp.multiply, params, masks)


@functools.lru_cache(maxsize=512)
def _shapes(elastic: Elastic, arch: Architecture) -> Shapes:
    graph = elastic.space.build(arch, elastic.num_classes)  # type: ignore[misc]
    if not isinstance(graph, Graph):
        raise InputError(
            f"space: {elastic.space.name} builds no graph of nodes, so its networks share no weights by name"
        )
    made = jax.eval_shape(
        lambda key, x: graph.init_with_output(streams(key), x, capture_intermediates=True)[1],
        jax.eval_shape(lambda: jax.random.key(0)),
        abstract((1, *elastic.image_shape)),
    )
    outputs = once(made["intermediates"])
    channels = {"image": elastic.image_shape[-1]}
    for node in graph.nodes:
        channels[node.name] = outputs[node.name]["__call__"].shape[-1] if node.name in outputs else 0
    return Shapes(
        graph,
        dict(made["params"]),
        dict(made.get("batch_stats", {})),
        channels,
        ("image", *(n.name for n in graph.nodes)),
    )


@functools.lru_cache(maxsize=4096)
def _masks(elastic: Elastic, arch: Architecture) -> dict[str, Tree]:
    own, whole = elastic.shapes(arch), elastic.shapes(elastic.largest(arch))
    _check_structure(elastic, own, whole)

    def mask(name: str, leaf: Any, small: Any) -> np.ndarray:
        values = np.zeros(leaf.shape, np.float32)
        if small is not ABSENT:
            values[_index(leaf.shape, small.shape, _groups(whole, name, leaf.shape))] = 1
        return values

    return {
        name: jax.tree.map(functools.partial(mask, name), leaves, own.params[name])
        if name in own.params
        else jax.tree.map(lambda leaf, name=name: mask(name, leaf, ABSENT), leaves)
        for name, leaves in whole.params.items()
    }


def _groups(whole: Shapes, name: str, shape: tuple[int, ...]) -> int:
    """How many blocks of channels stand one behind the other in the rows of a dense layer: cells of a map."""
    if len(shape) != 2:
        return 1
    node = whole.graph.nodes[whole.names.index(name) - 1]
    source = node.inputs[0]
    if not source or not isinstance(whole.graph.nodes[source - 1].module, CellAverage):
        return 1
    before = whole.graph.nodes[source - 1].inputs[0]
    return shape[0] // whole.channels[whole.names[before]]


def _index(shape: tuple[int, ...], small: tuple[int, ...], groups: int = 1) -> Any:
    """Where in a parameter of ``shape`` that of a sub-network, of shape ``small``, stands."""
    if len(shape) == 4:  # a kernel [height, width, in, out]: its centre
        starts = [(a - b) // 2 for a, b in zip(shape[:2], small[:2], strict=True)]
        return (
            *(slice(a, a + n) for a, n in zip(starts, small[:2], strict=True)),
            *(slice(n) for n in small[2:]),
        )
    if groups > 1:
        rows = np.arange(shape[0]).reshape(groups, -1)[:, : small[0] // groups].reshape(-1)
        return np.ix_(rows, np.arange(small[1]))
    return tuple(slice(n) for n in small)


def _check_structure(elastic: Elastic, own: Shapes, whole: Shapes) -> None:
    """Raises InputError where leaving out the nodes that ``own`` lacks does not leave its graph."""
    present = set(own.names)
    stands_for: dict[str, str | None] = {
        "image": "image"
    }  # of an absent node: the present one that it passes on
    inputs = {node.name: [own.names[i] for i in node.inputs] for node in own.graph.nodes}
    for node in whole.graph.nodes:
        sources = [stands_for[whole.names[i]] for i in node.inputs]
        if node.name in present:
            stands_for[node.name] = node.name
            if sources != inputs[node.name]:
                _refuse(elastic, node.name)
        else:
            known = [source for source in sources if source is not None]
            # A join of nothing and a shortcut is the shortcut; anything else of absent weights is zero.
            stands_for[node.name] = known[0] if len(sources) > 1 and len(known) == 1 else None
    if missing := present - set(whole.names):
        _refuse(elastic, sorted(missing)[0])


def _refuse(elastic: Elastic, node: str) -> None:
    raise InputError(
        f"{elastic.space.name}: {node} is joined otherwise in the largest network; fix the choices that do it "
        f"(elastic: {', '.join(elastic.space.elastic)})"
    )
