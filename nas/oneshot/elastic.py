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
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nas.errors import InputError, one_of
from nas.nn.call import keywords
from nas.nn.graph import Graph
from nas.nn.layers import CellAverage, Concat
from nas.space import Architecture, SearchSpace
from nas.space.definition import active, complete
from nas.training.hyper import NAMES
from nas.training.network import Tree, abstract, apply_evaluate, initialise, streams

MOST_CLASSES = 32
DRAWS = 200  # of a sub-network, before there seems to be none


class Shapes(NamedTuple):
    """A network by its shapes: parameters by their node, and the channels of each node's output."""

    graph: Graph
    params: dict[str, Tree]  # node -> leaves as jax.ShapeDtypeStruct
    batch_stats: dict[str, Tree]
    channels: dict[str, int]
    names: tuple[str, ...]


class Path(NamedTuple):
    """What makes the largest network of its class another one; equal shapes for all of a class.

    ``masks``: in the place of each parameter one float32 vector an axis, 1 where the sub-network has that row; their
    outer product is the mask. ``kernels``: of each kernel that `transformed` knows, one-hot float32, which of
    `Elastic.kernel_sizes` it has.
    """

    masks: dict[str, Tree]
    kernels: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Elastic:
    """The sub-networks of ``space`` that share one set of weights.

    ``vary`` are the choices that masks express, by default all of ``space.elastic``; the others make classes. How a
    network is trained (`nas.training.hyper.NAMES`) is none of a sub-network. Images are [H, W, C] of
    ``image_shape``. Raises InputError where nothing of the space is elastic.
    """

    space: SearchSpace
    image_shape: tuple[int, int, int]
    num_classes: int
    vary: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.space.elastic or self.space.build is None:
            raise InputError(
                f"space: {self.space.name} has no elastic choices: no supernet of its networks is known"
            )
        for name in self.vary:
            if name not in self.space.elastic:
                raise one_of("elastic", name, self.space.elastic)
        object.__setattr__(self, "vary", tuple(self.vary) or tuple(self.space.elastic))
        object.__setattr__(self, "_shapes", {})

    # ---------------------------------------------------------------------------------------- architectures

    def members(self, vary: Sequence[str] | None = None) -> frozenset[str]:
        """The choices ``vary``, by default all elastic ones, by their full names. Raises InputError."""
        for name in vary or ():
            if name not in self.vary:
                raise one_of("elastic", name, self.vary)
        names = self.vary if vary is None else vary
        return frozenset(member for name in names for member in self.space.members(name))

    @functools.cached_property
    def elastic(self) -> frozenset[str]:
        return self.members()

    def largest(self, arch: Mapping[str, Any]) -> Architecture:
        """The largest architecture of the class of ``arch``: elastic choices at their maximum."""
        return self._filled(arch, lambda step, options: max(options))

    def smallest(self, arch: Mapping[str, Any], vary: Sequence[str] | None = None) -> Architecture:
        """The smallest of the class; with ``vary``, of those that differ from the largest in these choices alone."""
        free = self.members(vary)
        return self._filled(arch, lambda step, options: (min if step.name in free else max)(options))

    def sample(
        self, arch: Mapping[str, Any], rng: np.random.Generator, vary: Sequence[str] | None = None
    ) -> Architecture:
        """One of the class, choices ``vary`` drawn evenly and the others at their maximum.

        One that is no part of the largest network is drawn again. Raises InputError where all are such.
        """
        free = self.members(vary)

        def draw(step: Any, options: list[Any]) -> Any:
            return options[rng.integers(len(options))] if step.name in free else max(options)

        for k in range(DRAWS):
            found = self._filled(arch, draw)
            try:
                self.path(found)
            except InputError:
                if k == DRAWS - 1:
                    raise
                continue
            return found
        raise AssertionError

    def _filled(self, arch: Mapping[str, Any], elastic: Any) -> Architecture:
        """``arch`` with its elastic choices as ``elastic(step, options)`` says, untouched by how it is trained."""
        given = {name: arch[name] for name in arch if name not in self.elastic and name not in NAMES}

        def fill(step: Any) -> Any:
            if step.name in self.elastic:
                return elastic(step, list(step.options))
            return step.options[0] if step.options else step.choice.default

        return self.space.canonical(complete(self.space, given, fill))

    def classes(self) -> tuple[Architecture, ...]:
        """The largest architecture of every class. Raises InputError where there are more than `MOST_CLASSES`."""
        found: list[dict[str, Any]] = [{}]
        open_choices = []
        for step in self.space.steps:
            options = list(step.options or (step.choice.default,))
            if step.name in self.elastic:
                options = [max(options)]
            elif step.name in NAMES or not step.choice.changes_program:
                options = options[:1]
            if len(options) > 1:
                open_choices.append(step.name)
            found = [
                {**values, step.name: option}
                for values in found
                if active(step.conditions, values)
                for option in options
            ] + [values for values in found if not active(step.conditions, values)]
            if len(found) > MOST_CLASSES:
                raise InputError(
                    f"{self.space.name}: more than {MOST_CLASSES} classes of sub-networks; fix some of "
                    f"{', '.join(open_choices)} (elastic: {', '.join(self.vary)})"
                )
        return tuple(dict.fromkeys(self.largest(self.space.canonical(values)) for values in found))

    # ---------------------------------------------------------------------------------------------- networks

    def network(self, arch: Mapping[str, Any]) -> Any:
        return self.shapes(arch).graph

    def shapes(self, arch: Mapping[str, Any]) -> Shapes:
        """Of the network of ``arch``; nothing is computed. Raises InputError."""
        choices, known = self.space.choices, self.__dict__["_shapes"]
        own = Architecture({n: v for n, v in arch.items() if choices[n].changes_program and n not in NAMES})
        if own not in known:
            if len(known) > 20_000:
                known.clear()
            known[own] = _shapes(self, arch)
        return known[own]

    def init(self, arch: Mapping[str, Any], seed: int) -> dict[str, Tree]:
        """Variables of the largest network of the class of ``arch``."""
        return initialise(self.network(self.largest(arch)), seed, self.image_shape, "float32")

    def path(self, arch: Mapping[str, Any]) -> Path:
        """What the largest network computes ``arch`` by. Raises InputError where it cannot."""
        largest = self.largest(arch)
        own, whole = self.shapes(arch), self.shapes(largest)
        _check_structure(self, own, whole)
        masks = {
            name: jax.tree.map(
                lambda leaf, small, name=name: _axes(
                    leaf.shape, small.shape, _groups(whole, name, leaf.shape)
                ),
                leaves,
                own.params[name],
            )
            if name in own.params
            else jax.tree.map(lambda leaf: tuple(np.zeros(n, np.float32) for n in leaf.shape), leaves)
            for name, leaves in whole.params.items()
        }
        kernels = {}
        for place, sizes in self.kernel_sizes(largest).items():
            rows = int(np.sum(_at(masks, place)[0])) or sizes[0]
            kernels[place] = np.array([size == rows for size in sizes], np.float32)
        return Path(masks, kernels)

    def cut(self, variables: Mapping[str, Tree], arch: Mapping[str, Any]) -> dict[str, Tree]:
        """The variables of the network of ``arch``: slices of those of the largest one of its class.

        Where kernels are transformed, ``variables`` are those behind `sub_network`.
        """
        own, whole = self.shapes(arch), self.shapes(self.largest(arch))
        _check_structure(self, own, whole)

        def sliced(name: str, leaf: Any, small: Any) -> Any:
            axes = _axes(leaf.shape, small.shape, _groups(whole, name, leaf.shape))
            return jnp.asarray(np.asarray(leaf)[np.ix_(*(np.flatnonzero(axis) for axis in axes))])

        return {
            kind: {
                name: jax.tree.map(functools.partial(sliced, name), variables[kind][name], shapes)
                for name, shapes in of.items()
            }
            for kind, of in (("params", own.params), ("batch_stats", own.batch_stats))
            if of
        }

    def check(self, arch: Mapping[str, Any]) -> None:
        """Raises InputError where the network of ``arch`` alone and by its path differ: activations that are not zero
        at zero, normalisation over channels, kernels that a stride does not centre."""
        rng = np.random.default_rng(0)

        def drawn(
            leaf: Any,
        ) -> np.ndarray:  # positive around 1: variances must be, scales had better not be zero
            scale = 1.0 if len(leaf.shape) < 2 else np.sqrt(2 / np.prod(leaf.shape[:-1]))
            values = rng.uniform(0.5, 1.5, leaf.shape) if len(leaf.shape) < 2 else rng.normal(size=leaf.shape)
            return np.asarray(scale * values, np.float32)

        variables = jax.tree.map(drawn, self.init(arch, 0))
        x = jnp.asarray(rng.normal(size=(2, *self.image_shape)), jnp.float32)
        masked = {**variables, "params": sub_network(variables["params"], self.path(arch))}
        by_path, alone = (
            jax.jit(lambda variables, x, network=network: apply_evaluate(network, variables, (x,)))(given, x)
            for network, given in (
                (self.network(self.largest(arch)), masked),
                (self.network(arch), self.cut(variables, arch)),
            )
        )
        apart, scale = float(jnp.abs(by_path - alone).max()), float(jnp.abs(alone).max())
        if not apart <= 1e-3 * scale + 1e-6:
            text = " ".join(f"{name}={value}" for name, value in arch.items() if name in self.elastic)
            raise InputError(
                f"{self.space.name}: {text} is not part of its largest network: fix normalisation, activation or "
                f"strides that break it (elastic: {', '.join(self.vary)})"
            )

    # ---------------------------------------------------------------------------------- kernel transformation

    def kernel_sizes(self, arch: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """Of the class of ``arch``: the sizes of each kernel that has several, largest first; by node/leaf."""
        largest = self.largest(arch)
        known = self.__dict__.setdefault("_kernels", {})
        if largest not in known:
            whole = self.shapes(largest)
            fewest = {place: leaf.shape[0] for place, leaf in _square(whole).items()}
            for name in self.vary:
                for place, leaf in _square(self.shapes(self.smallest(largest, (name,)))).items():
                    fewest[place] = min(leaf.shape[0], fewest.get(place, leaf.shape[0]))
            known[largest] = {
                place: tuple(range(leaf.shape[0], fewest[place] - 1, -2))
                for place, leaf in _square(whole).items()
                if fewest[place] < leaf.shape[0]
            }
        return known[largest]

    def transforms(self, arch: Mapping[str, Any]) -> dict[str, dict[str, np.ndarray]]:
        """The first values of the matrices of `sub_network`: identities, by kernel and size."""
        return {
            place: {str(size): np.eye(size * size, dtype=np.float32) for size in sizes[1:]}
            for place, sizes in self.kernel_sizes(arch).items()
        }


def sub_network(params: Tree, path: Path, transforms: Mapping[str, Any] | None = None) -> Tree:
    """The parameters of a sub-network in the place of the largest one's, zero elsewhere.

    With ``transforms`` a smaller kernel is a learned linear map of the centre of the next larger one, shared by all
    channels (Cai et al. 2020, section 3.2 and figure 3): size 7 to 5 by a matrix [25, 25], 5 to 3 by [9, 9].
    """
    for place, matrices in (transforms or {}).items():
        params = _replaced(params, place, _transformed(_at(params, place), matrices, path.kernels[place]))

    def masked(leaf: Any, axes: Sequence[Any]) -> Any:
        for k, axis in enumerate(axes):
            leaf = leaf * jnp.reshape(axis, [-1 if i == k else 1 for i in range(leaf.ndim)])
        return leaf

    return jax.tree.map(masked, params, path.masks)


def _transformed(kernel: Any, matrices: Mapping[str, Any], chosen: Any) -> Any:
    """``kernel`` [K, K, in, out] as the sizes that ``chosen`` (one-hot, the largest first) picks among."""
    total, inner = chosen[0] * kernel, kernel
    for weight, size in zip(chosen[1:], sorted(map(int, matrices), reverse=True), strict=True):
        edge = (inner.shape[0] - size) // 2
        centre = inner[edge : edge + size, edge : edge + size]
        flat = jnp.matmul(matrices[str(size)], centre.reshape(size * size, -1))
        inner = flat.reshape(centre.shape)
        outside = (kernel.shape[0] - size) // 2
        total += weight * jnp.pad(inner, ((outside, outside), (outside, outside), (0, 0), (0, 0)))
    return total


def _square(shapes: Shapes) -> dict[str, Any]:
    """The kernels [K, K, in, out], by node/leaf."""
    return {
        jax.tree_util.keystr(where, simple=True, separator="/"): leaf
        for where, leaf in jax.tree_util.tree_leaves_with_path(shapes.params)
        if len(leaf.shape) == 4 and leaf.shape[0] == leaf.shape[1]
    }


def _at(tree: Any, place: str) -> Any:
    return functools.reduce(lambda inner, key: inner[key], place.split("/"), tree)


def _replaced(tree: Any, place: str, value: Any) -> Any:
    key, _, rest = place.partition("/")
    return {**tree, key: _replaced(tree[key], rest, value) if rest else value}


# ------------------------------------------------------------------------------------------------------- shapes


@functools.lru_cache(maxsize=65_536)
def _node_shapes(module: Any, inputs: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], dict[str, Tree]]:
    """The shape of a node's output, and its variables."""
    output, made = jax.eval_shape(
        lambda key, *xs: module.init_with_output(streams(key), *xs, **keywords(module, train=False)),
        jax.eval_shape(lambda: jax.random.key(0)),
        *(abstract(shape) for shape in inputs),
    )
    return output.shape, dict(made)


def _shapes(elastic: Elastic, arch: Mapping[str, Any]) -> Shapes:
    graph = elastic.space.build(Architecture(arch), elastic.num_classes)  # type: ignore[misc]
    if not isinstance(graph, Graph):
        raise InputError(
            f"space: {elastic.space.name} builds no graph of nodes, so its networks share no weights by name"
        )
    outputs: list[tuple[int, ...]] = [(1, *elastic.image_shape)]
    collections: dict[str, dict[str, Tree]] = {"params": {}, "batch_stats": {}}
    for node in graph.nodes:
        output, made = _node_shapes(node.module, tuple(outputs[i] for i in node.inputs))
        outputs.append(output)
        for kind, of in collections.items():
            if kind in made:
                of[node.name] = made[kind]
    names = ("image", *(node.name for node in graph.nodes))
    return Shapes(
        graph,
        **collections,
        channels={name: shape[-1] for name, shape in zip(names, outputs, strict=True)},
        names=names,
    )


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


def _axes(shape: tuple[int, ...], small: tuple[int, ...], groups: int = 1) -> tuple[np.ndarray, ...]:
    """Where in a parameter of ``shape`` that of a sub-network, of shape ``small``, stands: float32 0 or 1 an axis."""
    axes = []
    for k, (size, own) in enumerate(zip(shape, small, strict=True)):
        start = (size - own) // 2 if len(shape) == 4 and k < 2 else 0  # of a kernel [height, width, in, out]
        blocks = groups if k == 0 else 1
        axis = np.zeros((blocks, size // blocks), np.float32)
        axis[:, start : start + own // blocks] = 1
        axes.append(axis.reshape(-1))
    return tuple(axes)


def _check_structure(elastic: Elastic, own: Shapes, whole: Shapes) -> None:
    """Raises InputError where leaving out the nodes that ``own`` lacks does not leave its graph."""
    present = set(own.names)
    # Of an absent node: the present one that it passes on, None where it is zero.
    stands_for: dict[str, str | None] = {"image": "image"}
    inputs = {node.name: [own.names[i] for i in node.inputs] for node in own.graph.nodes}
    for node in whole.graph.nodes:
        sources = [stands_for[whole.names[i]] for i in node.inputs]
        if node.name in present:
            stands_for[node.name] = node.name
            if sources != inputs[node.name] or (
                isinstance(node.module, Concat)
                and any(own.channels[s] != whole.channels[s] for s in inputs[node.name][:-1])
            ):
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
        f"(elastic: {', '.join(elastic.vary)})"
    )
