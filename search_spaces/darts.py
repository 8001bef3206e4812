"""The ``darts`` space: the cells of Liu et al. 2019, in their evaluation network and in their supernet.

A cell has two inputs, the outputs of the two cells before it, and ``steps`` nodes; a node is the sum of two
operations, each on an earlier node or input; the cell's output are nodes side by side. There are two kinds,
``normal`` and ``reduce``; the second halves the resolution and doubles the channels, at one and two thirds
of the network (section 2.1 and appendix A). The same space holds the cells of NASNet and AmoebaNet as that
paper evaluates them: five nodes, two inputs that may be the same, some nodes left out of the output.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from nas.cpu.edges import Unnormalised, separable_conv2d
from nas.errors import InputError, one_of
from nas.nn import noise
from nas.nn.graph import Builder, First, Graph, Term
from nas.nn.layers import (
    Activation,
    BatchNorm,
    CellAverage,
    Concat,
    Dense,
    average_pool,
    conv,
    conv2d,
    he_normal,
    max_pool,
)
from nas.nn.layout import Layout, Open
from nas.nn.supernet import Supernet, limit_skips
from nas.space import (
    Architecture,
    Categorical,
    Cell,
    Choice,
    Constraint,
    Integer,
    LogUniform,
    SearchSpace,
    Uniform,
    When,
)
from search_spaces.named import Named

KINDS = ("normal", "reduce")
CELLS = {kind: f"{kind}_" for kind in KINDS}  # how the names of their choices begin
SKIP = "skip_connect"
PRIMITIVES = (  # in the order of the published alphas
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
OPERATIONS = (*PRIMITIVES[1:], "sep_conv_7x7", "conv_7x1_1x7")  # the last two: NASNet's and AmoebaNet's


# ------------------------------------------------------------------------------------------------ genotypes


class Genotype(NamedTuple):
    """A pair of cells in the published notation: two (operation, input) a node; the nodes of the output.

    Inputs and nodes are numbered together: 0 and 1 are the cell's inputs, 2 is its first node.
    """

    normal: tuple[tuple[str, int], ...]
    normal_concat: tuple[int, ...]
    reduce: tuple[tuple[str, int], ...]
    reduce_concat: tuple[int, ...]

    def __str__(self) -> str:
        cells = [f"{name}={list(value)!r}" for name, value in zip(self._fields, self, strict=True)]
        return f"Genotype({', '.join(cells)})"


def read_genotype(text: str) -> Genotype:
    """The inverse of ``str``; also takes ``range(2, 6)`` and any line breaks. Raises InputError."""
    place = "genotype"
    body = re.sub(r"range\((\d+),\s*(\d+)\)", lambda m: repr(list(range(int(m[1]), int(m[2])))), text.strip())
    try:
        call = ast.parse(body, mode="eval").body
        assert isinstance(call, ast.Call)
        values = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
        cells = [tuple((str(name), int(source)) for name, source in values[kind]) for kind in KINDS]
        concats = [tuple(int(node) for node in values[f"{kind}_concat"]) for kind in KINDS]
    except (SyntaxError, ValueError, AssertionError, KeyError, TypeError):
        fields = ", ".join(Genotype._fields)
        raise InputError(f"{place}: {text[:60]!r} is not Genotype({fields}) in the published form") from None
    return Genotype(cells[0], concats[0], cells[1], concats[1])


def architecture_of(genotype: Genotype, **others: Any) -> Architecture:
    """The point of the space with these cells; ``others`` are its remaining choices. Raises InputError."""
    steps = len(genotype.normal) // 2
    choices: dict[str, Any] = {"steps": steps}
    for kind, cell, concat in (
        ("normal", genotype.normal, genotype.normal_concat),
        ("reduce", genotype.reduce, genotype.reduce_concat),
    ):
        if len(cell) != 2 * steps:
            raise InputError(
                f"genotype: {kind} has {len(cell)} operations, not two for each of {steps} nodes"
            )
        for node in range(steps):
            # A node is a sum: which of its two operations is written first says nothing.
            pair = sorted(cell[2 * node : 2 * node + 2], key=lambda edge: edge[1])
            choices[f"{kind}_inputs_{node + 1}"] = f"{pair[0][1]}-{pair[1][1]}"
            for k, (operation, _) in enumerate(pair):
                if operation not in OPERATIONS:
                    raise one_of(f"genotype: {kind}", operation, OPERATIONS)
                choices[f"{kind}_{'ab'[k]}_{node + 1}"] = operation
        every = range(2, 2 + steps)
        choices[f"{kind}_concat"] = (
            "all" if sorted(concat) == list(every) else "-".join(map(str, sorted(concat)))
        )
    return Architecture(choices | others)


def genotype_of(arch: Mapping[str, Any]) -> Genotype:
    """The cells of an architecture in the published notation."""
    cells: dict[str, Any] = {}
    for kind in KINDS:
        edges: list[tuple[str, int]] = []
        for node in range(1, arch["steps"] + 1):
            sources = [int(source) for source in arch[f"{kind}_inputs_{node}"].split("-")]
            edges += [(arch[f"{kind}_{k}_{node}"], source) for k, source in zip("ab", sources, strict=True)]
        cells[kind], cells[f"{kind}_concat"] = tuple(edges), concat_of(arch, kind)
    return Genotype(**cells)


def concat_of(arch: Mapping[str, Any], kind: str) -> tuple[int, ...]:
    """The nodes that are a cell's output, counting its inputs."""
    text = arch[f"{kind}_concat"]
    return tuple(range(2, 2 + arch["steps"])) if text == "all" else tuple(map(int, text.split("-")))


def cells_of(arch: Mapping[str, Any]) -> dict[str, Cell]:
    """Both cells to be drawn: ``c(k-2)`` and ``c(k-1)`` are the outputs of the two cells before."""
    genotype, found = genotype_of(arch), {}
    for kind in KINDS:
        nodes = ("c(k-2)", "c(k-1)", *map(str, range(1, arch["steps"] + 1)), "c(k)")
        edges = [
            (nodes[source], nodes[2 + k // 2], operation)
            for k, (operation, source) in enumerate(getattr(genotype, kind))
        ]
        edges += [(nodes[j], nodes[-1], "") for j in concat_of(arch, kind)]
        found[kind] = Cell(nodes, tuple(edges))
    return found


# -------------------------------------------------------------------------------------------------- modules


def kernel(
    features: int, size: tuple[int, int] = (3, 3), stride: int | tuple[int, int] = 1, **others: Any
) -> nn.Conv:
    """A convolution padded as if on all sides alike: [B, H, W, C] -> [B, ceil(H / stride), …, features]."""
    padding = tuple(((k - 1) // 2,) * 2 for k in size)
    return conv(features, size, stride, padding=padding, **others)


class Weights(nn.Module):
    """The kernel of a convolution that another layer carries out."""

    @nn.compact
    def __call__(self, shape: tuple[int, ...]) -> Array:
        return self.param("kernel", he_normal, shape)


def _norm(affine: bool, **others: Any) -> BatchNorm:
    """In a search, where it has no scale and bias, it has no running statistics: nothing there goes by them."""
    return BatchNorm(affine, tracked=affine, **others)


class SeparableConv(nn.Module):
    """Depthwise and pointwise convolution and normalisation, ``repeats`` times; its input is after a ReLU.

    ``count`` of them on one input, side by side in channels and in the last axis of their variables.
    """

    features: int
    kernel: int
    stride: int = 1
    dilation: int = 1
    repeats: int = 2
    affine: bool = True
    deferred: bool = False
    count: int = 1

    def side_by_side(self, count: int) -> SeparableConv:
        return self.clone(count=count)

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array | Unnormalised:
        if self.count > 1:
            x = jnp.concatenate([x] * self.count, -1)
        for k in range(1, self.repeats):
            norm = _norm(self.affine, activation="relu", name=f"norm_{k}")
            x = norm(self.convolved(x, k), train=train)
        x = self.convolved(x, self.repeats)
        norm = _norm(self.affine, deferred=self.deferred, name=f"norm_{self.repeats}")
        return norm(x, train=train)

    def convolved(self, x: Array, k: int) -> Array:
        """The k-th pair of convolutions."""
        channels, stride = x.shape[-1], 1 if k > 1 else self.stride
        features = self.features * self.count if k == self.repeats else channels
        depthwise = Weights(name=f"depthwise_{k}")((self.kernel, self.kernel, 1, channels)).astype(x.dtype)
        pointwise = Weights(name=f"pointwise_{k}")((1, 1, channels // self.count, features)).astype(x.dtype)
        pad = self.dilation * (self.kernel - 1) // 2
        at = {"strides": (stride, stride), "dilation": (self.dilation, self.dilation)}
        return separable_conv2d(
            x, depthwise, pointwise, padding=((pad, pad), (pad, pad)), groups=self.count, **at
        )


class PoolNorm(nn.Module):
    """3x3 pooling, in a supernet normalised (section 3.1: so that no operation outweighs by its scale)."""

    kind: str
    stride: int = 1
    normalised: bool = True

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        pool = max_pool if self.kind == "max" else average_pool
        x = pool(x, 3, self.stride, 1)
        return _norm(False, name="norm")(x, train=train) if self.normalised else x


class FactorizedReduce(nn.Module):
    """Half the resolution by two 1x1 convolutions, the second one pixel further; its input is after a ReLU."""

    features: int
    affine: bool = True
    deferred: bool = False

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array | Unnormalised:
        further = jnp.pad(x[:, 1:, 1:], ((0, 0), (0, 1), (0, 1), (0, 0)))
        half = self.features // 2
        parts = (
            kernel(half, (1, 1), 2, name="even")(x),
            kernel(self.features - half, (1, 1), 2, name="odd")(further),
        )
        norm = _norm(self.affine, deferred=self.deferred, name="norm")
        return norm(jnp.concatenate(parts, -1), train=train)


class PointwiseNorm(nn.Module):
    features: int
    affine: bool = True

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        x = kernel(self.features, (1, 1), name="pointwise")(x)
        return _norm(self.affine, name="norm")(x, train=train)


class SeparateKernels(nn.Module):
    """A 1x7 and a 7x1 convolution, normalised (AmoebaNet's); its input is after a ReLU."""

    features: int
    stride: int = 1
    affine: bool = True

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        rows = kernel(self.features, (1, 7), (1, self.stride), name="rows")(x)
        columns = kernel(self.features, (7, 1), (self.stride, 1), name="columns")(rows)
        return _norm(self.affine, name="norm")(columns, train=train)


class Dropout(nn.Module):
    """Elements set to zero with probability ``dropout``: what Chen et al. 2019 do to skip connections."""

    @nn.compact
    def __call__(
        self, x: Array, *, train: bool = False, dropout: ArrayLike = 0.0, seed: ArrayLike = 0
    ) -> Array:
        return noise.dropout(x, dropout, seed) if train else x


class DropPath(nn.Module):
    """An image's map set to zero with probability ``drop_path``, the others scaled up (Larsson et al. 2017)."""

    @nn.compact
    def __call__(
        self, x: Array, *, train: bool = False, drop_path: ArrayLike = 0.0, seed: ArrayLike = 0
    ) -> Array:
        if not train:
            return x
        return x * noise.dropout(jnp.ones((x.shape[0], 1, 1, 1), x.dtype), drop_path, seed)


class AuxiliaryFeatures(nn.Module):
    """What the auxiliary classifier sees: a 5x5 average with stride 3, 128 and then 768 channels."""

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        window = (min(5, x.shape[1]), min(5, x.shape[2]))
        x = average_pool(x, window, 3, "VALID")
        x = BatchNorm(activation="relu", name="norm_1")(kernel(128, (1, 1), name="pointwise")(x), train=train)
        weights = self.param("kernel", he_normal, (2, 2, 128, 768))
        x = conv2d(x, weights, "VALID" if min(x.shape[1:3]) > 1 else "SAME")
        x = BatchNorm(activation="relu", name="norm_2")(x, train=train)
        return x.mean((1, 2))


def operation(
    name: str, features: int, stride: int, affine: bool, deferred: bool = False
) -> nn.Module | None:
    """The module of an operation but for its ReLU; None for an input passed on as it is.

    ``deferred``: it leaves the normalisation of its result, where it does not share it, to its reader.
    """
    size = int(name[-1]) if name[-1].isdigit() else 0
    if name.startswith("sep_conv"):
        return SeparableConv(features, size, stride, affine=affine, deferred=deferred)
    if name.startswith("dil_conv"):
        return SeparableConv(features, size, stride, dilation=2, repeats=1, affine=affine, deferred=deferred)
    if name == "conv_7x1_1x7":
        return SeparateKernels(features, stride, affine)
    if name.endswith("pool_3x3"):
        return PoolNorm("max" if name.startswith("max") else "average", stride, normalised=not affine)
    if name != SKIP:
        raise one_of("operation", name, OPERATIONS)
    return FactorizedReduce(features, affine, deferred) if stride > 1 else None


def takes_relu(name: str) -> bool:
    return not name.endswith("pool_3x3")


# ------------------------------------------------------------------------------------------------- networks


class Body:
    """The cells of a network, one after the other; what two edges would do alike is one node."""

    def __init__(self, b: Builder, stem: tuple[int, int], width: int, affine: bool, reduced: bool) -> None:
        self.b, self.affine = b, affine
        self.previous, self.current = stem
        self.width, self.reduced = width, reduced  # whether the cell before halved the resolution

    def inputs(self, at: str, reduction: bool) -> list[int]:
        """The cell's two inputs, brought to its channels and to one resolution."""
        self.width *= 2 if reduction else 1
        first = FactorizedReduce if self.reduced else PointwiseNorm
        before = self.b.once(f"{at}_relu_previous", Activation("relu"), self.previous)
        last = self.b.once(f"{at}_relu_current", Activation("relu"), self.current)
        return [
            self.b.add(f"{at}_input_0", first(self.width, self.affine), before),
            self.b.add(f"{at}_input_1", PointwiseNorm(self.width, self.affine), last),
        ]

    def edge(
        self,
        name: str,
        state: str,
        choice: Any,
        source: int,
        stride: int,
        drop_path: bool,
        skip_dropout: bool,
    ) -> list[Term]:
        """What an edge of operation ``choice`` brings from the value ``source``; ``state`` names what edges share."""

        def make(primitive: str, x: int, part: int) -> int | None:
            if primitive == "none":
                return None
            dropped = skip_dropout and primitive == SKIP
            mixed = isinstance(choice, Open) and not dropped and not drop_path  # read by a `Mix` alone
            module = operation(primitive, self.width // part, stride, self.affine, mixed)
            if module is None:
                out = x
            elif not takes_relu(primitive):
                out = self.b.once(f"{state}_{primitive}", module, x)
            else:
                out = self.b.add(
                    f"{name}_{primitive}", module, self.b.once(f"{state}_relu", Activation("relu"), x)
                )
            if dropped:
                out = self.b.add(f"{name}_skip_dropout", Dropout(), out)
            # What is passed on as it is is not dropped.
            return self.b.add(f"{name}_drop", DropPath(), out) if drop_path and module else out

        return self.b.choose(choice, make, source, name=state, stride=stride)

    def close(self, at: str, states: Sequence[int], unused: Sequence[int], reduction: bool) -> None:
        """The cell's output are ``states``; ``unused``: those that nothing reads, computed all the same."""
        output = self.b.add(f"{at}_output", Concat(), *states)
        if unused:
            output = self.b.add(f"{at}_used", First(), output, *unused)
        self.previous, self.current = self.current, output
        self.reduced = reduction


def small_stem(b: Builder, width: int) -> tuple[int, int]:
    stem = b.add("stem_norm", BatchNorm(), b.add("stem", kernel(width), 0))
    return stem, stem


def imagenet_stem(b: Builder, width: int) -> tuple[int, int]:
    x = b.add(
        "stem_norm_1", BatchNorm(activation="relu"), b.add("stem_1", kernel(width // 2, stride=(2, 2)), 0)
    )
    first = b.add("stem_norm_2", BatchNorm(), b.add("stem_2", kernel(width, stride=(2, 2)), x))
    second = b.add("stem_3", kernel(width, stride=(2, 2)), b.add("stem_relu", Activation("relu"), first))
    return first, b.add("stem_norm_3", BatchNorm(), second)


Edges = Sequence[Sequence[tuple[Any, int]]]  # of each node, pairs of an operation (or `Open`) and its input


def build(arch: Architecture, num_classes: int) -> Graph:
    """The evaluation network: [B, H, W, C] -> logits [B, num_classes]."""
    SPACE.check_known(arch, "stem")
    genotype = genotype_of(arch)
    return network(
        {"normal": _pairs(genotype.normal), "reduce": _pairs(genotype.reduce)},
        {"normal": genotype.normal_concat, "reduce": genotype.reduce_concat},
        num_classes,
        channels=arch["channels"],
        cells=arch["cells"],
        imagenet=arch["stem"] == "imagenet",
        auxiliary=arch["auxiliary"],
    )


def _pairs(cell: tuple[tuple[str, int], ...]) -> Edges:
    return [cell[k : k + 2] for k in range(0, len(cell), 2)]


def network(
    edges: Mapping[str, Edges],
    concat: Mapping[str, Sequence[int]],
    num_classes: int,
    *,
    channels: int,
    cells: int,
    imagenet: bool = False,
    auxiliary: bool = False,
    searching: bool = False,
    skip_dropout: bool = False,
) -> Graph:
    """The network of cells with these ``edges`` and output nodes ``concat``, by the kind of cell.

    ``searching``: as in the search, where normalisation has no scale and bias of its own, pools are normalised
    and no path is dropped; ``skip_dropout`` then drops out elements of skip connections.
    """
    b = Builder()
    stem = imagenet_stem(b, channels) if imagenet else small_stem(b, 3 * channels)
    body = Body(b, stem, channels, affine=not searching, reduced=imagenet)
    head = {}
    for cell in range(cells):
        reduction = cell in (cells // 3, 2 * cells // 3)
        kind = "reduce" if reduction else "normal"
        at = f"cell_{cell + 1}"
        states = body.inputs(at, reduction)
        for node, arriving in enumerate(edges[kind], 2):
            terms: list[Term] = []
            named: set[str] = set()
            for choice, j in arriving:
                name = f"{at}_node_{node}_from_{j}"
                name += "_again" if name in named else ""
                named.add(name)
                stride = 2 if reduction and j < 2 else 1
                state = f"{at}_state_{j}"
                terms += body.edge(name, state, choice, states[j], stride, not searching, skip_dropout)
            states.append(b.mix(f"{at}_node_{node}", terms))
        read = {j for arriving in edges[kind] for _, j in arriving}.union(concat[kind])
        unused = [state for j, state in enumerate(states) if j not in read]
        body.close(at, [states[j] for j in concat[kind]], unused, reduction)
        if auxiliary and cell == 2 * cells // 3:
            relu = b.once(f"{at}_auxiliary_relu", Activation("relu"), body.current)
            head = {"auxiliary": AUXILIARY_WEIGHT}
            b.add("auxiliary", Dense(num_classes), b.add("auxiliary_features", AuxiliaryFeatures(), relu))
    b.add("logits", Dense(num_classes), b.add("average", CellAverage(1), body.current))
    return b.graph(head)


# ------------------------------------------------------------------------------------------------- supernet

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
        if missing := [pair for pair in _pairs_of(node) if not space.choices[inputs].accepts(pair)]:
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


def _pairs_of(node: int) -> list[str]:
    """The inputs of a node, from 1, that are two different ones."""
    return [f"{i}-{j}" for j in range(1 + node) for i in range(j)]


# --------------------------------------------------------------------------------------------------- space

AUXILIARY_WEIGHT = 0.4


def _choices() -> tuple[dict[str, Choice], dict[str, When]]:
    choices: dict[str, Choice] = {"steps": Integer(4, 5)}
    conditions: dict[str, When] = {}
    for kind in KINDS:
        for node in range(1, 6):
            pairs = [f"{i}-{j}" for j in range(1 + node) for i in range(j + 1)]
            names = {
                f"{kind}_inputs_{node}": Categorical(pairs),
                f"{kind}_a_{node}": Categorical(OPERATIONS),
                f"{kind}_b_{node}": Categorical(OPERATIONS),
            }
            choices |= names
            if node == 5:
                conditions |= {name: When("steps", at_least=5) for name in names}
        choices[f"{kind}_concat"] = Categorical(("all", "4-5-6", "3-4-6"))
    choices |= {
        "stem": Categorical(("small", "imagenet")),
        "cells": Integer(1, 20),
        "channels": Categorical((4, 8, 16, 32, 36, 48)),
        "auxiliary": Categorical((False, True)),
        "drop_path": Uniform(0.0, 0.5, changes_program=False),
        "optimiser": Categorical(("momentum", "nesterov", "adamw")),
        "learning_rate": LogUniform(1e-3, 1e-1, changes_program=False),
        "schedule": Categorical(("cosine", "linear", "step", "constant"), changes_program=False),
        "batch_size": Categorical((64, 96, 128)),
        "weight_decay": LogUniform(1e-5, 1e-2, changes_program=False),
        "augmentation": Categorical(("none", "crop+flip", "crop+flip+cutout")),
    }
    return choices, conditions


def _within() -> list[str]:
    """The published search space of cells, in a small network."""
    within = [
        "steps=4",
        "normal_concat=all",
        "reduce_concat=all",
        "stem=small",
        "cells=4",
        "channels=8",
        "auxiliary=False",
    ]
    within += ["optimiser=momentum", "schedule=cosine", "batch_size=64"]
    within += ["augmentation=none", "learning_rate=0.01..0.1"]
    for kind in KINDS:
        for node in range(1, 6):
            within.append(f"{kind}_inputs_{node}={','.join(_pairs_of(node))}")
            within += [f"{kind}_{k}_{node}={','.join(PRIMITIVES[1:])}" for k in "ab"]
    return within


def _gives_out_its_nodes(kind: str, arch: Mapping[str, Any]) -> bool:
    return max(concat_of(arch, kind)) <= arch["steps"] + 1


_CHOICES, _CONDITIONS = _choices()
SPACE = SearchSpace(
    name="darts",
    choices=_CHOICES,
    conditions=_CONDITIONS,
    constraints=[
        Constraint(
            f"the nodes of {kind}_concat are numbered up to steps + 1",
            functools.partial(_gives_out_its_nodes, kind),
            choices=("steps", f"{kind}_concat"),
        )
        for kind in KINDS
    ],
    build=build,
    search_within=_within(),
    supernet=searched_by_supernet,
    cells=cells_of,
)

RECIPE: dict[str, Any] = {  # section 3.1 and appendix A.2 of Liu et al. 2019
    "stem": "small",
    "cells": 20,
    "channels": 36,
    "auxiliary": False,
    "drop_path": 0.2,
    "optimiser": "momentum",
    "learning_rate": 0.025,
    "schedule": "cosine",
    "batch_size": 96,
    "weight_decay": 3e-4,
    "augmentation": "crop+flip+cutout",
}
DEFAULTS: dict[str, Any] = {"steps": 4, "normal_concat": "all", "reduce_concat": "all", **RECIPE}
_ALL = (2, 3, 4, 5)
GENOTYPES: dict[str, Genotype] = {
    "darts_v1": Genotype(
        (
            ("sep_conv_3x3", 1), ("sep_conv_3x3", 0), ("skip_connect", 0), ("sep_conv_3x3", 1),
            ("skip_connect", 0), ("sep_conv_3x3", 1), ("sep_conv_3x3", 0), ("skip_connect", 2),
        ),
        _ALL,
        (
            ("max_pool_3x3", 0), ("max_pool_3x3", 1), ("skip_connect", 2), ("max_pool_3x3", 0),
            ("max_pool_3x3", 0), ("skip_connect", 2), ("skip_connect", 2), ("avg_pool_3x3", 0),
        ),
        _ALL,
    ),
    "darts_v2": Genotype(
        (
            ("sep_conv_3x3", 0), ("sep_conv_3x3", 1), ("sep_conv_3x3", 0), ("sep_conv_3x3", 1),
            ("sep_conv_3x3", 1), ("skip_connect", 0), ("skip_connect", 0), ("dil_conv_3x3", 2),
        ),
        _ALL,
        (
            ("max_pool_3x3", 0), ("max_pool_3x3", 1), ("skip_connect", 2), ("max_pool_3x3", 1),
            ("max_pool_3x3", 0), ("skip_connect", 2), ("skip_connect", 2), ("max_pool_3x3", 1),
        ),
        _ALL,
    ),
    "nasnet": Genotype(
        (
            ("sep_conv_5x5", 1), ("sep_conv_3x3", 0), ("sep_conv_5x5", 0), ("sep_conv_3x3", 0),
            ("avg_pool_3x3", 1), ("skip_connect", 0), ("avg_pool_3x3", 0), ("avg_pool_3x3", 0),
            ("sep_conv_3x3", 1), ("skip_connect", 1),
        ),
        (2, 3, 4, 5, 6),
        (
            ("sep_conv_5x5", 1), ("sep_conv_7x7", 0), ("max_pool_3x3", 1), ("sep_conv_7x7", 0),
            ("avg_pool_3x3", 1), ("sep_conv_5x5", 0), ("skip_connect", 3), ("avg_pool_3x3", 2),
            ("sep_conv_3x3", 2), ("max_pool_3x3", 1),
        ),
        (4, 5, 6),
    ),
    "amoebanet": Genotype(
        (
            ("avg_pool_3x3", 0), ("max_pool_3x3", 1), ("sep_conv_3x3", 0), ("sep_conv_5x5", 2),
            ("sep_conv_3x3", 0), ("avg_pool_3x3", 3), ("sep_conv_3x3", 1), ("skip_connect", 1),
            ("skip_connect", 0), ("avg_pool_3x3", 1),
        ),
        (4, 5, 6),
        (
            ("avg_pool_3x3", 0), ("sep_conv_3x3", 1), ("max_pool_3x3", 0), ("sep_conv_7x7", 2),
            ("sep_conv_7x7", 0), ("avg_pool_3x3", 1), ("max_pool_3x3", 0), ("max_pool_3x3", 1),
            ("conv_7x1_1x7", 0), ("sep_conv_3x3", 5),
        ),
        (3, 4, 6),
    ),
    "gdas": Genotype(
        (
            ("skip_connect", 0), ("skip_connect", 1), ("skip_connect", 0), ("sep_conv_5x5", 2),
            ("sep_conv_3x3", 3), ("skip_connect", 0), ("sep_conv_5x5", 4), ("sep_conv_3x3", 3),
        ),
        _ALL,
        (
            ("sep_conv_5x5", 0), ("sep_conv_3x3", 1), ("sep_conv_5x5", 2), ("sep_conv_5x5", 1),
            ("dil_conv_5x5", 2), ("sep_conv_3x3", 1), ("sep_conv_5x5", 0), ("sep_conv_5x5", 1),
        ),
        _ALL,
    ),
    "pdarts": Genotype(
        (
            ("skip_connect", 0), ("dil_conv_3x3", 1), ("skip_connect", 0), ("sep_conv_3x3", 1),
            ("sep_conv_3x3", 1), ("sep_conv_3x3", 3), ("sep_conv_3x3", 0), ("dil_conv_5x5", 4),
        ),
        _ALL,
        (
            ("avg_pool_3x3", 0), ("sep_conv_5x5", 1), ("sep_conv_3x3", 0), ("dil_conv_5x5", 2),
            ("max_pool_3x3", 0), ("dil_conv_3x3", 1), ("dil_conv_3x3", 1), ("dil_conv_5x5", 3),
        ),
        _ALL,
    ),
    "pcdarts": Genotype(
        (
            ("sep_conv_3x3", 1), ("skip_connect", 0), ("sep_conv_3x3", 0), ("dil_conv_3x3", 1),
            ("sep_conv_5x5", 0), ("sep_conv_3x3", 1), ("avg_pool_3x3", 0), ("dil_conv_3x3", 1),
        ),
        _ALL,
        (
            ("sep_conv_5x5", 1), ("max_pool_3x3", 0), ("sep_conv_5x5", 1), ("sep_conv_5x5", 2),
            ("sep_conv_3x3", 0), ("sep_conv_3x3", 3), ("sep_conv_3x3", 1), ("sep_conv_3x3", 2),
        ),
        _ALL,
    ),
}  # fmt: skip

_COUNTS = {  # trainable parameters; darts_v2's and pcdarts's as published, the others derived by this code
    "darts_v1": 3_169_414,
    "darts_v2": 3_349_342,
    "nasnet": 3_830_950,
    "amoebanet": 3_145_078,
    "gdas": 3_368_782,
    "pdarts": 3_433_798,
    "pcdarts": 3_634_678,
}
_SOURCES = {
    "darts_v1": "Liu et al. 2019, table 1, first order (3.3 M)",
    "darts_v2": "Liu et al. 2019, table 1, second order (3.3 M; 3,349,342 by its authors' code)",
    "nasnet": "Zoph et al. 2018, NASNet-A, in the evaluation network of Liu et al. 2019",
    "amoebanet": "Real et al. 2019, AmoebaNet-A, in the evaluation network of Liu et al. 2019",
    "gdas": "Dong and Yang 2019, GDAS V1 (3.4 M, 519 M multiply-adds)",
    "pdarts": "Chen et al. 2019, P-DARTS on CIFAR-10 (3.4 M)",
    "pcdarts": "Xu et al. 2020, PC-DARTS on CIFAR-10 (3.6 M)",
}
NAMED: dict[str, Named] = {
    name: Named("darts", architecture_of(genotype, **RECIPE), (32, 32, 3), 10, _COUNTS[name], _SOURCES[name])
    for name, genotype in GENOTYPES.items()
}
NAMED["darts_v2_aux"] = dataclasses.replace(
    NAMED["darts_v2"],
    arch=NAMED["darts_v2"].arch.set(auxiliary=True),
    params=_COUNTS["darts_v2"] + 476_426,
    source="the same with the auxiliary head that it is trained with (appendix A.2)",
)
