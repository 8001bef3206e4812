"""The ``nasbench201`` space: Dong and Yang 2020, the topology space of NATS-Bench (Dong et al. 2021).

A cell of four nodes, of which node 0 is its input and node 3 its output; each of the six edges ``edge_FROM_TO``
has one of five operations, and a node is the sum of what its edges bring: 15,625 architectures. The skeleton
(figure 1): 3x3 convolution and normalisation, three stages of ``cells`` cells at 1, 1/2 and 1/4 of the
resolution with ``channels``, 2 ``channels`` and 4 ``channels`` channels, a residual block of stride 2 before the
second and the third, normalisation and ReLU, global average pooling, a classifier.

Text is the benchmark's own, ``|nor_conv_3x3~0|+|none~0|skip_connect~1|+|…~0|…~1|…~2|``: nodes 1 to 3, of each
edge the operation and where it comes from. The published training is no choice of the space (table 1):
``--hyper optimiser=nesterov learning_rate=0.1 schedule=cosine batch_size=256 weight_decay=5e-4
augmentation=crop+flip``, for 200 epochs or 12.

Nothing is pruned: operations behind which all is ``none`` have their parameters and are computed, as in the
published networks and counts.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from nas.errors import InputError
from nas.nn.graph import Builder, First, Graph, Term
from nas.nn.layers import Activation, BatchNorm, CellAverage, Dense, NormAct, Pool, Sum, conv
from nas.nn.supernet import Supernet, supernet_of
from nas.space import Architecture, Categorical, Cell, SearchSpace, path_encoding
from search_spaces.named import Named

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
NODES = 4
EDGES = tuple((source, to) for to in range(1, NODES) for source in range(to))
CHOICES = tuple(f"edge_{source}_{to}" for source, to in EDGES)
PATHS = (  # the ways through the cell, from node 0 to node 3
    ("edge_0_3",),
    ("edge_0_1", "edge_1_3"),
    ("edge_0_2", "edge_2_3"),
    ("edge_0_1", "edge_1_2", "edge_2_3"),
)
KERNELS = {"nor_conv_1x1": 1, "nor_conv_3x3": 3}

_SHUFFLE_SEED = 88  # of Python's generator, by which the benchmark's authors put the architectures in order


# --------------------------------------------------------------------------------------------------- networks


class ReluConvNorm(nn.Module):
    """ReLU, convolution, batch normalisation, plus ``total`` if given: [B, H, W, C] -> [B, H', W', features]."""

    features: int
    kernel: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Array, total: Array | None = None, *, train: bool = False) -> Array:
        x = Activation("relu")(x)
        x = conv(self.features, self.kernel, self.stride, padding=self.kernel // 2, name="conv")(x)
        return NormAct("batch", "identity", name="norm")(x, total, train=train)


class ConvNorm(nn.Module):
    """1x1 convolution, batch normalisation: a shortcut to another number of channels."""

    features: int

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        return NormAct("batch", "identity", name="norm")(conv(self.features, 1, name="conv")(x), train=train)


class SearchedConv(nn.Module):
    """Convolution and normalisation of an edge in a supernet; its input is after a ReLU.

    As the benchmark's authors search: normalised by the batch at hand, in evaluation too, without scale and bias.
    """

    features: int
    kernel: int

    def side_by_side(self, count: int) -> SearchedConv:
        return self.clone(features=count * self.features)

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        x = conv(self.features, self.kernel, padding=self.kernel // 2, name="conv")(x)
        return BatchNorm(affine=False, tracked=False, name="norm")(x, train=train)


class Zero(nn.Module):
    """Zeros in the shape of ``x``; not a constant, which XLA would carry through the next layers by hand."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return x * jnp.zeros((), x.dtype)


def add_cell(b: Builder, name: str, x: int, operations: Sequence[str], inputs: int, features: int) -> int:
    """A cell on value ``x`` [B, H, W, inputs], ``operations`` in the order of EDGES: [B, H, W, features]."""
    before = len(b.nodes)
    values, pooled, projected = [x], {}, x
    if inputs != features and "skip_connect" in _from_input(operations):
        projected = b.add(f"{name}_project", ConvNorm(features), x)
    for to in range(1, NODES):
        arriving = {
            source: operation
            for (source, end), operation in zip(EDGES, operations, strict=True)
            if end == to and operation != "none"
        }
        maps = []
        for source, operation in arriving.items():
            if operation == "skip_connect":
                maps.append(values[source] if source else projected)
            elif operation == "avg_pool_3x3":
                if source not in pooled:  # it has no parameters: one for all edges that leave the node
                    pooled[source] = b.add(f"{name}_pool_{source}", Pool("average", 3, 1), values[source])
                maps.append(pooled[source])
        total = [b.add(f"{name}_sum_{to}", Sum(), *maps)] if len(maps) > 1 else maps
        for source, operation in arriving.items():
            if operation in KERNELS:
                convolution = ReluConvNorm(features, KERNELS[operation])
                total = [b.add(f"{name}_conv_{source}_{to}", convolution, values[source], *total)]
        values.append(total[0] if total else b.add(f"{name}_zero_{to}", Zero(), x))
    read = {i for node in b.nodes[before:] for i in node.inputs}
    unused = [i for i in range(before + 1, len(b.nodes) + 1) if i not in read and i != values[-1]]
    return b.add(f"{name}_output", First(), values[-1], *unused) if unused else values[-1]


def add_searched_cell(b: Builder, name: str, x: int, operations: Sequence[Any], features: int) -> int:
    """The cell of a supernet: ``operations`` in the order of EDGES, each one or left open."""
    values = [x]
    of_edge = dict(zip(EDGES, operations, strict=True))
    for to in range(1, NODES):
        terms: list[Term] = []
        for source in range(to):
            state, edge = f"{name}_state_{source}", f"{name}_edge_{source}_{to}"

            def make(operation: str, x: int, part: int, state: str = state, edge: str = edge) -> int | None:
                if operation == "none":
                    return None
                if operation == "skip_connect":
                    return x
                if operation == "avg_pool_3x3":
                    return b.once(f"{state}_pool", Pool("average", 3, 1), x)
                convolution = SearchedConv(features // part, KERNELS[operation])
                return b.add(
                    f"{edge}_{operation}", convolution, b.once(f"{state}_relu", Activation("relu"), x)
                )

            terms += b.choose(of_edge[source, to], make, values[source], name=state)
        values.append(b.mix(f"{name}_node_{to}", terms) if terms else b.add(f"{name}_zero_{to}", Zero(), x))
    return values[-1]


def _from_input(operations: Sequence[str]) -> set[str]:
    return {operation for (source, _), operation in zip(EDGES, operations, strict=True) if source == 0}


def add_reduction(b: Builder, name: str, x: int, features: int) -> int:
    """Two 3x3 convolutions, the first of stride 2; the shortcut is averaged over 2x2 and projected."""
    shortcut = b.add(f"{name}_project", conv(features, 1), b.add(f"{name}_shrink", Pool("average"), x))
    y = b.add(f"{name}_conv_1", ReluConvNorm(features, 3, 2), x)
    return b.add(f"{name}_conv_2", ReluConvNorm(features, 3), y, shortcut)


def add_stem(b: Builder, channels: int) -> int:
    """3x3 convolution of the image and normalisation."""
    return b.add("norm_0", NormAct("batch", "identity"), b.add("conv_0", conv(channels, padding=1), 0))


def add_head(b: Builder, x: int, num_classes: int) -> int:
    """Normalisation, ReLU, global average pooling, classifier."""
    x = b.add("norm_last", NormAct("batch", "relu"), x)
    return b.add("logits", Dense(num_classes), b.add("average", CellAverage(1), x))


# ------------------------------------------------------------------------------------------------------ sizes


class Size(NamedTuple):
    """Trainable parameters, and multiply-adds of one image's forward pass.

    The benchmark's FLOPs are ``macs_per_image`` plus the classifier's bias: normalisation, pooling and sums are
    free, and a bias is an addition an output; no other layer has one.
    """

    params: int
    macs_per_image: int

    def plus(self, *others: Size) -> Size:
        """The sum of sizes."""
        sizes = (self, *others)
        return Size(sum(size.params for size in sizes), sum(size.macs_per_image for size in sizes))

    def times(self, count: int) -> Size:
        """So many of them."""
        return Size(count * self.params, count * self.macs_per_image)


def conv_size(inputs: int, features: int, kernel: int, pixels: int, *, norm: bool = True) -> Size:
    """A convolution to a map of ``pixels`` pixels, and what normalises it."""
    weights = kernel**2 * inputs * features
    return Size(weights + 2 * features * norm, weights * pixels)


def reduction_size(inputs: int, features: int, pixels: int) -> Size:
    """A residual block of stride 2 to a map of ``pixels`` pixels."""
    return conv_size(inputs, features, 3, pixels).plus(
        conv_size(features, features, 3, pixels), conv_size(inputs, features, 1, pixels, norm=False)
    )


def head_size(channels: int, num_classes: int) -> Size:
    """Normalisation and classifier."""
    return Size(2 * channels + (channels + 1) * num_classes, channels * num_classes)


def stage_pixels(image_shape: tuple[int, int, int]) -> tuple[int, ...]:
    """Pixels of the maps of the three stages."""
    height, width, _ = image_shape
    return tuple(-(-height // 2**stage) * -(-width // 2**stage) for stage in range(3))


# --------------------------------------------------------------------------------------------------- skeleton


@dataclasses.dataclass(frozen=True)
class Skeleton:
    """What the cells are put into: channels of the first stage, and cells of each of the three."""

    channels: int = 16
    cells: int = 5

    def __call__(self, arch: Mapping[str, Any], num_classes: int, *, searching: bool = False) -> Graph:
        """The network of an architecture: [B, H, W, C] -> logits [B, num_classes].

        ``searching``: as in a supernet, and its operations may be left open.
        """
        SPACE.check_known(arch, *CHOICES)
        operations = operations_of(arch)
        b = Builder()
        x = add_stem(b, self.channels)
        for stage in range(3):
            features = self.channels * 2**stage
            if stage:
                x = add_reduction(b, f"reduce_{stage}", x, features)
            for cell in range(1, self.cells + 1):
                name = f"cell_{stage + 1}_{cell}"
                if searching:
                    x = add_searched_cell(b, name, x, operations, features)
                else:
                    x = add_cell(b, name, x, operations, features, features)
        add_head(b, x, num_classes)
        return b.graph()

    def size(
        self, arch: Mapping[str, Any], image_shape: tuple[int, int, int] = (32, 32, 3), num_classes: int = 10
    ) -> Size:
        """What the network costs, from how often each operation occurs."""
        fixed, of_operation = _sizes(self, image_shape, num_classes)
        operations = operations_of(arch)
        return fixed.plus(*(of_operation[o].times(operations.count(o)) for o in KERNELS))


@functools.lru_cache(maxsize=64)
def _sizes(
    skeleton: Skeleton, image_shape: tuple[int, int, int], num_classes: int
) -> tuple[Size, dict[str, Size]]:
    """The size of a network without operations, and what an edge with each of them adds."""
    widths = [skeleton.channels * 2**stage for stage in range(3)]
    stages = list(zip(widths, stage_pixels(image_shape), strict=True))
    reductions = [
        reduction_size(width, 2 * width, pixels)
        for width, (_, pixels) in zip(widths, stages[1:], strict=False)
    ]
    stem = conv_size(image_shape[2], skeleton.channels, 3, stages[0][1])
    fixed = stem.plus(head_size(widths[-1], num_classes), *reductions)
    edges = {
        operation: [conv_size(width, width, kernel, pixels).times(skeleton.cells) for width, pixels in stages]
        for operation, kernel in KERNELS.items()
    }
    return fixed, {operation: Size(0, 0).plus(*sizes) for operation, sizes in edges.items()}


# ------------------------------------------------------------------------------------------------ the notation


def operations_of(arch: Mapping[str, Any]) -> tuple[str, ...]:
    """The six operations in the order of EDGES."""
    return tuple(arch[name] for name in CHOICES)


def architecture_of(operations: Sequence[str]) -> Architecture:
    """Inverse of ``operations_of``."""
    return Architecture(zip(CHOICES, operations, strict=True))


def to_text(arch: Mapping[str, Any]) -> str:
    """``|…~0|+|…~0|…~1|+|…~0|…~1|…~2|``."""
    nodes = [""] * (NODES - 1)
    for (source, to), operation in zip(EDGES, operations_of(arch), strict=True):
        nodes[to - 1] += f"|{operation}~{source}"
    return "|+".join(nodes) + "|"


def cells_of(arch: Mapping[str, Any]) -> dict[str, Cell]:
    """The cell to be drawn, without the edges that are ``none``."""
    nodes = ("input", *map(str, range(1, NODES - 1)), "output")
    operations = zip(EDGES, operations_of(arch), strict=True)
    return {"cell": Cell(nodes, tuple((nodes[i], nodes[j], op) for (i, j), op in operations if op != "none"))}


_TEXT = re.compile(
    "".join(
        r"\|([^|~+]+)~" + str(source) + (r"\|\+" if source + 1 == to < NODES - 1 else "")
        for source, to in EDGES
    )
    + r"\|"
)


def from_text(text: str) -> dict[str, str]:
    """Inverse of ``to_text``; raises ValueError where the text has another form."""
    found = _TEXT.fullmatch(text)
    if found is None:
        raise ValueError("is not of the form |OP~0|+|OP~0|OP~1|+|OP~0|OP~1|OP~2|")
    return dict(zip(CHOICES, found.groups(), strict=True))


@functools.cache
def official_order() -> tuple[tuple[str, ...], ...]:
    """The operations of all architectures in the order of the benchmark's indices, 0 to 15,624."""
    cells = list(itertools.product(OPERATIONS, repeat=len(EDGES)))
    random.Random(_SHUFFLE_SEED).shuffle(cells)
    return tuple(cells)


@functools.cache
def _indices() -> dict[tuple[str, ...], int]:
    return {operations: index for index, operations in enumerate(official_order())}


def index_of(arch: Mapping[str, Any]) -> int:
    """The benchmark's index of an architecture."""
    SPACE.validate(arch)
    return _indices()[operations_of(arch)]


def architecture_at(index: int) -> Architecture:
    """The architecture with the benchmark's ``index``; InputError where there is none."""
    if not 0 <= index < len(official_order()):
        raise InputError(f"nasbench201: index {index} is not one of 0..{len(official_order()) - 1}")
    return architecture_of(official_order()[index])


def canonical_form(arch: Mapping[str, Any]) -> str:
    """A text that isomorphic cells share: 6,466 different ones (Dong and Yang 2020, section 2.1).

    It says what the output is of the input: a sum of terms, each an operation on such a sum; an identity gives
    the sum that it passes on, and what comes of nothing is ``#``. The benchmark's number hangs on its letters:
    terms are sorted as texts, and a sum that is passed on is not taken apart, so that some cells that are equal
    for other reasons have different forms. (Multiplied out, and without zeros, 4,930 sums are left.)
    """
    sums, terms = ["0"], []
    for (source, to), operation in zip(EDGES, operations_of(arch), strict=True):
        operand = sums[source]
        if operation == "none" or operand == "#":
            terms.append("#")
        else:
            terms.append(operand if operation == "skip_connect" else f"({operand})@{operation}")
        if len(terms) == to:
            sums.append("+".join(sorted(terms)))
            terms = []
    return sums[-1]


# ---------------------------------------------------------------------------------------------------- the space


_BENCHMARKED = {"nesterov": True, "weight_decay": 5e-4}
SEARCHES: dict[str, dict[str, Any]] = {
    # Dong and Yang's scripts of the benchmark (configs/nas-benchmark/algos, scripts-search/NAS-Bench-201-algos).
    "darts": _BENCHMARKED,
    "darts_first": _BENCHMARKED,
    "darts_plus": _BENCHMARKED,  # these two are DARTS stopped, and step as DARTS does
    "robust_darts": _BENCHMARKED,
    "gdas": _BENCHMARKED,
    "rsps": {**_BENCHMARKED, "candidates": 100},
    # DrNAS's code for this space (201-space/train_search.py); SmoothDARTS's (nasbench201) has its other settings.
    "drnas": {"learning_rate": 0.025, "learning_rate_min": 0.001, "alpha_learning_rate": 3e-4},
    # No code of the authors for this space; it has 5 candidates, and no cells are added: the table has one depth.
    "p_darts": {"stages": "5-3-2", "deeper": 0, "skip_dropout": "0"},
}
"""Settings of searches with shared weights that their authors' code has for this space."""


def searched_by_supernet(space: SearchSpace) -> Supernet:
    """`Supernet` of the space: every edge has the operations that its choice has left."""
    skeleton = space.build
    assert isinstance(skeleton, Skeleton)

    def build(arch: Mapping[str, Any], num_classes: int, **sizes: int) -> Graph:
        return dataclasses.replace(skeleton, **sizes)(arch, num_classes, searching=True)

    groups = [[f"edge_{source}_{to}" for source in range(to)] for to in range(1, NODES)]
    return supernet_of(
        space,
        groups,
        build,
        sizes=dataclasses.asdict(skeleton),
        cell=("cell", "edge_"),
        skip="skip_connect",
        published=SEARCHES,
    )


def nasbench201_space(*, channels: int = 16, cells: int = 5, name: str = "nasbench201") -> SearchSpace:
    """The space with a skeleton of another width or depth than the published one."""
    for what, value in (("channels", channels), ("cells", cells)):
        if value < 1:
            raise InputError(f"{name}: {what}={value} is below 1")
    return SearchSpace(
        name=name,
        choices={name: Categorical(OPERATIONS) for name in CHOICES},
        build=Skeleton(channels, cells),
        format=to_text,
        parse=from_text,
        supernet=searched_by_supernet,
        features=path_encoding(OPERATIONS, PATHS),
        cells=cells_of,
    )


SPACE = nasbench201_space()


def _named(text: str, params: int, source: str) -> Named:
    return Named("nasbench201", Architecture(from_text(text)), (32, 32, 3), 10, params, source)


NAMED: dict[str, Named] = {
    "nasbench201_resnet": _named(
        "|nor_conv_3x3~0|+|none~0|nor_conv_3x3~1|+|skip_connect~0|none~1|skip_connect~2|",
        559_386,
        "Dong and Yang 2020, the cell that is ResNet's; size by the benchmark's file, index 11,472",
    ),
    "nasbench201_best": _named(
        "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_1x1~2|",
        1_073_466,
        "the best by CIFAR-10 test accuracy after 200 epochs, 94.37 %; size by the benchmark's file, index 6,111",
    ),
}
