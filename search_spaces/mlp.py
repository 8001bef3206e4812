"""The ``mlp`` space: multilayer perceptrons whose layers need not connect everything with everything.

``depth`` hidden layers, then a classifier: depth 0 is logistic regression. The ``edges_<i>`` that a layer allows:

- ``full``: each of ``width_<i>`` units sees all inputs, by weights of its own;
- ``local``: at every place of its input lie ``maps_<i>`` units, each of which sees the ``field_<i>`` places
  around it (``field_<i>`` x ``field_<i>`` in two dimensions) by weights of its own;
- ``convolution``: the same, but all units of a map share their weights.

``dimensions`` says what places are. 1: the features in a line, those of an image row after row, each pixel's
channels side by side. 2: the pixels of an image; the units of a fully connected layer lie on the grid of
the most equal sides that holds exactly them.

Beyond the borders there are zeros. With ``border="cut"`` a local layer has no weights for them: n units in
a line, with fields of 3, have 3n - 2. With ``border="zeros"`` every unit has its whole field: 3n. Outputs are
the same, and the further weights never learn.

``normalisation``: ``batch`` for each unit of a full layer and each map of the others; ``layer`` over all units
of a layer (Ba et al. 2016); with either, ``bias`` is about the classifier alone. ``none``: a ``bias`` a unit,
or a map of a convolution. ``classifier``: ``softmax`` has a unit for each class; ``logistic`` has one fewer,
the first class's logit being 0, so that two classes are told apart by the logistic unit: the softmax of
(0, z) is (1 - s, s), s = 1 / (1 + exp(-z)). ``dropout`` is of hidden units, never of pixels.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from nas.nn.graph import Builder, Graph
from nas.nn.layers import Activation, Dense, Flatten, NormAct, conv, he_normal, local2d
from nas.space import Architecture, Categorical, Choice, Integer, LogUniform, SearchSpace, Uniform, When
from search_spaces.named import Named, variants

BORDERS = ("cut", "zeros")


class Local(nn.Module):
    """Locally connected units without biases: [B, H, W, C] -> [B, H, W, maps], fields of ``field`` places."""

    maps: int
    field: int
    dimensions: int = 2
    border: str = "cut"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        places, taps = x.shape[1:3], _taps(self.field, self.dimensions)
        channels = (x.shape[3], self.maps)
        draw = functools.partial(he_normal, fan_in=math.prod(taps) * x.shape[3])
        if self.border == "zeros":
            kernel = self.param("kernel", draw, (*places, *taps, *channels))
        else:  # of both axes, the pairs of a place and a tap that lies inside
            pairs = [
                sum(last - first for first, last in _inside(*axis)) for axis in zip(places, taps, strict=True)
            ]
            kernel = self.param("kernel", draw, (*pairs, *channels))
            for axis in (1, 0):
                kernel = _whole(kernel, axis, places[axis], taps[axis])
            kernel = kernel.transpose(0, 2, 1, 3, 4, 5)
        return local2d(x, kernel)


class Units(nn.Module):
    """What units make of their sums: bias or normalisation, then activation, as this module's head says.

    ``shared``: one bias a map of [B, H, W, maps], rather than one a unit.
    """

    normalisation: str
    activation: str
    bias: bool
    shared: bool

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        if self.normalisation == "none" and not self.bias:
            return Activation(self.activation)(x)
        apart = self.normalisation == "layer" or (self.normalisation == "none" and not self.shared)
        norm = NormAct(self.normalisation, self.activation, name="norm")
        return norm(x.reshape(len(x), -1) if apart else x, train=train).reshape(x.shape)


class Arrange(nn.Module):
    """Features as places with one channel: [B, …] -> [B, 1, n, 1] or, in two dimensions, [B, H, W, 1]."""

    dimensions: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        features = math.prod(x.shape[1:])
        rows = 1 if self.dimensions == 1 else _rows_of_grid(features)
        return x.reshape(len(x), rows, features // rows, 1)


class FirstIsZero(nn.Module):
    """Logits of all classes from those of all but the first: [B, K - 1] -> [B, K]."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return jnp.pad(x, ((0, 0), (1, 0)))


def _taps(field: int, dimensions: int) -> tuple[int, int]:
    return (1, field) if dimensions == 1 else (field, field)


def _rows_of_grid(units: int) -> int:
    return next(rows for rows in range(math.isqrt(units), 0, -1) if units % rows == 0)


def _inside(size: int, taps: int) -> list[tuple[int, int]]:
    """Of each of ``size`` places in a line, the taps [first, last) of its field that lie inside."""
    before = (taps - 1) // 2
    return [(max(0, before - at), min(taps, size + before - at)) for at in range(size)]


def _whole(kernel: Any, axis: int, size: int, taps: int) -> Any:
    """The pairs of `_inside` on ``axis`` become two axes, [size, taps], with zeros for the taps outside.

    In numpy where it can be: the initialisation of a network should compile nothing.
    """
    xp = jnp if isinstance(kernel, Tracer) else np
    pieces, at = [], 0
    for (first, last), alike in itertools.groupby(_inside(size, taps)):
        count = len(list(alike))
        shape = (*kernel.shape[:axis], count, last - first, *kernel.shape[axis + 1 :])
        piece = kernel[(slice(None),) * axis + (slice(at, at + count * (last - first)),)].reshape(shape)
        at += count * (last - first)
        pieces.append(
            xp.pad(piece, [(first, taps - last) if i == axis + 1 else (0, 0) for i in range(piece.ndim)])
        )
    return xp.concatenate(pieces, axis)


def build(arch: Architecture, num_classes: int) -> Graph:
    """The network of an ``mlp`` architecture: [B, H, W, C] -> logits [B, num_classes]."""
    SPACE.check_known(arch, "edges", "border", "normalisation", "classifier")
    b = Builder()
    x, shape = 0, "image"  # or "units", [B, n], or "maps"
    for i in range(1, arch["depth"] + 1):
        edges, dimensions = arch[f"edges_{i}"], arch["dimensions"]
        if edges == "full":
            x = x if shape == "units" else b.add(f"flatten_{i}", Flatten(), x)
            module: nn.Module = Dense(arch[f"width_{i}"], bias=False, rate=0.0 if i == 1 else None)
            shape = "units"
        else:
            if shape == "units" or (shape == "image" and dimensions == 1):
                x = b.add(f"arrange_{i}", Arrange(dimensions), x)
            maps, field = arch[f"maps_{i}"], arch[f"field_{i}"]
            if edges == "local":
                module = Local(maps, field, dimensions, arch["border"])
            else:
                module = conv(maps, _taps(field, dimensions))
            shape = "maps"
        x = b.add(f"edges_{i}", module, x)
        units = Units(arch["normalisation"], arch["activation"], arch["bias"], edges == "convolution")
        x = b.add(f"units_{i}", units, x)
    x = x if shape == "units" else b.add("flatten", Flatten(), x)
    rate = None if arch["depth"] else 0.0
    if arch["classifier"] == "softmax":
        b.add("logits", Dense(num_classes, arch["bias"], rate), x)
    else:
        b.add("logits", FirstIsZero(), b.add("differences", Dense(num_classes - 1, arch["bias"], rate), x))
    return b.graph()


def mlp_space(
    *,
    max_depth: int = 4,
    widths: Sequence[int] = (16, 32, 64, 100, 128, 150, 256, 300, 500, 512, 1000),
    maps: Sequence[int] = (1, 2, 4, 8, 16),
    fields: Sequence[int] = (3, 5, 7, 9),
    name: str = "mlp",
) -> SearchSpace:
    """The space with other limits than ``mlp``'s own."""
    layers = range(1, max_depth + 1)
    choices: dict[str, Choice] = {"depth": Integer(0, max_depth)}
    choices |= {f"edges_{i}": Categorical(("full", "local", "convolution")) for i in layers}
    choices |= {f"width_{i}": Categorical(tuple(widths)) for i in layers}
    choices |= {f"maps_{i}": Categorical(tuple(maps)) for i in layers}
    choices |= {f"field_{i}": Categorical(tuple(fields)) for i in layers}
    hidden: dict[str, Choice] = {
        "dimensions": Categorical((1, 2)),
        "border": Categorical(BORDERS),
        "normalisation": Categorical(("none", "batch", "layer")),
        "activation": Categorical(("relu", "tanh", "sigmoid", "gelu")),
        "dropout": Uniform(0.0, 0.5, changes_program=False),
    }
    choices |= hidden | {
        "bias": Categorical((True, False)),
        "classifier": Categorical(("softmax", "logistic")),
        "optimiser": Categorical(("sgd", "nesterov", "adamw")),
        "learning_rate": LogUniform(1e-3, 1e-1, changes_program=False),
        "schedule": Categorical(("constant", "linear", "cosine", "step"), changes_program=False),
        "batch_size": Categorical((20, 32, 64, 100, 128)),
        "weight_decay": LogUniform(1e-6, 1e-2, changes_program=False),
        "label_smoothing": Uniform(0.0, 0.2, changes_program=False),
        "augmentation": Categorical(("none", "crop")),
    }
    conditions: dict[str, When | Sequence[When]] = {name: When("depth", at_least=1) for name in hidden}
    for i in layers:
        conditions[f"edges_{i}"] = When("depth", at_least=i)
        conditions[f"width_{i}"] = When(f"edges_{i}", values=("full",))
        for group in ("maps", "field"):
            conditions[f"{group}_{i}"] = When(f"edges_{i}", values=("local", "convolution"))
    return SearchSpace(name=name, choices=choices, conditions=conditions, build=build)


SPACE = dataclasses.replace(
    mlp_space(),
    search_within=(
        "depth=0..2",
        "width=16..128",
        "maps=1..4",
        "field=3..5",
        "border=cut",
        "batch_size=20..64",
    ),
)


def _named(params: int, source: str, *, num_classes: int = 10, **choices: object) -> Named:
    """For MNIST's images. The papers' own ways of training differ: plain gradient descent, one image a step."""
    recipe = {
        "bias": True,
        "classifier": "softmax",
        "optimiser": "nesterov",
        "learning_rate": 0.02,
        "schedule": "cosine",
        "batch_size": 64,
        "weight_decay": 1e-5,
        "label_smoothing": 0.0,
        "augmentation": "none",
    }
    return Named.of("mlp", (28, 28, 1), num_classes, params, source, **{**recipe, **choices})


_LINEAR = _named(
    7_850,
    "LeCun et al. 1998, section III.C, the linear classifier of MNIST: 28 * 28 * 10 + 10",
    depth=0,
)
_HIDDEN = _named(
    238_510,
    "LeCun et al. 1998, section III.C, 28x28-300-10: 784 * 300 + 300 + 300 * 10 + 10",
    depth=1,
    edges_1="full",
    width_1=300,
    dimensions=1,
    border="cut",
    normalisation="none",
    activation="tanh",
    dropout=0.0,
)

NAMED: dict[str, Named] = {
    "logistic": _LINEAR,
    "logistic_binary": dataclasses.replace(
        variants(_LINEAR, 785, classifier="logistic"),
        num_classes=2,
        source="the logistic unit of n inputs has n + 1 parameters: 28 * 28 + 1",
    ),
    "mlp": _HIDDEN,
    "mlp_300_100": dataclasses.replace(
        variants(_HIDDEN, 266_610, depth=2, edges_2="full", width_2=100),
        source="LeCun et al. 1998, section III.C, 28x28-300-100-10: 235,500 + 30,100 + 1,010",
    ),
}
