"""The ``lenet`` space: LeNet-5 as published (LeCun et al. 1998, section II.B), its modern form, and around them.

C1 convolution - S2 subsampling - C3 convolution - S4 subsampling - C5 and F6, fully connected - output, each
followed by ``activation``. Images below 32 pixels a side are centred in a field of 32x32 zeros, the mean pixel
after normalisation, as MNIST's 28x28 are in the paper (there the field is background); larger ones are taken
as they are. Convolutions are not padded further; pooling rounds up.

- ``c3_table="partial"``: a map of C3 reads some maps of S2 only, by table I of the paper; see `table`.
- ``subsampling="trainable"``: the sum over 2x2, times a coefficient, plus a bias, activated; ``average`` and
  ``max`` have neither weights nor activation.
- ``activation="scaled_tanh"``: 1.7159 tanh(2x/3). Its layers start as the paper's, uniform within 2.4 / fan-in
  (appendix A), all others He-normal.
- ``output="rbf"``: see `RadialBasis`; ``"dense"``: a fully connected layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from nas.nn import noise
from nas.nn.graph import Builder, Graph
from nas.nn.layers import Dense, Flatten, NormAct, Pool, activation, average_pool, conv2d, drawn, zeros
from nas.space import Architecture, Categorical, Choice, LogUniform, SearchSpace, Uniform
from search_spaces.named import Named

FIELD = 32  # pixels a side at least
SLOPE, AMPLITUDE = 2 / 3, 1.7159  # of the scaled tanh: f(1) = 1, f(-1) = -1

# Digits in 7x12 pixels, in the manner of the paper's figure 3 (drawn after it, not copied pixel by pixel).
_DIGITS = """
..###.. ...##.. .#####. .#####. ....##. ####### ..####. ####### .#####. .#####.
.##.##. ..###.. ##...## ##...## ...###. ##..... .##.... .....## ##...## ##...##
##...## .####.. .....## .....## ..####. ##..... ##..... .....## ##...## ##...##
##...## ...##.. .....## .....## .##.##. ##..... ##..... ....##. ##...## ##...##
##...## ...##.. ....##. ..####. ##..##. ######. ######. ....##. .#####. ##..###
##...## ...##.. ...##.. .....## ##..##. .....## ##...## ...##.. ##...## .####.#
##...## ...##.. ..##... .....## ####### .....## ##...## ...##.. ##...## .....##
##...## ...##.. .##.... .....## ....##. .....## ##...## ..##... ##...## .....##
.##.##. ...##.. ##..... ##...## ....##. ##...## ##...## ..##... ##...## ....##.
..###.. .###### ####### .#####. ....##. .#####. .#####. ..##... .#####. .####..
....... ....... ....... ....... ....... ....... ....... ....... ....... .......
....... ....... ....... ....... ....... ....... ....... ....... ....... .......
"""


def codes(num_classes: int, units: int) -> np.ndarray:
    """The fixed target of every class, float32 [num_classes, units] of -1 and 1.

    For 10 classes and 84 units the digits' bitmaps, ink being 1; otherwise drawn at random from a fixed seed, a
    class's code being the same whatever the number of classes.
    """
    if (num_classes, units) == (10, 84):
        rows = [row.split() for row in _DIGITS.split("\n") if row]
        ink = np.array([[pixel == "#" for row in rows for pixel in row[digit]] for digit in range(10)])
    else:
        ink = np.random.default_rng(1998).random((num_classes, units)) < 0.5
    return np.where(ink, 1, -1).astype(np.float32)


def table(inputs: int, outputs: int) -> tuple[tuple[int, ...], ...]:
    """The maps of S2 that each map of C3 reads; for 6 and 16 maps table I of the paper.

    For m inputs a list of 5m/2 + 1 rows: m runs of m/2 neighbours (in a circle), m runs of 2m/3, m/2 rows of
    two neighbours and the two opposite them, one row of all; ``outputs`` rows evenly spaced out of it.
    """
    runs = [[i + k for k in range(size)] for size in (inputs // 2, 2 * inputs // 3) for i in range(inputs)]
    opposite = [[i + k for k in (0, 1, inputs // 2, inputs // 2 + 1)] for i in range(inputs // 2)]
    rows = [*runs, *opposite, range(inputs)]
    chosen = (rows[i * len(rows) // outputs] for i in range(outputs))
    return tuple(tuple(sorted({i % inputs for i in row})) for row in chosen)


def draw(key: Array, shape: tuple[int, ...], fan_in: int | np.ndarray, activation: str) -> Array:
    """First weights: the paper's for the scaled tanh, else He-normal."""

    def weights(rng: np.random.Generator) -> np.ndarray:
        if activation == "scaled_tanh":
            return rng.uniform(-2.4, 2.4, shape) / fan_in
        return rng.standard_normal(shape) * np.sqrt(2 / np.asarray(fan_in))

    return drawn(key, shape, weights)


def margins(size: int) -> tuple[int, int]:
    """Pixels to add before and behind ``size`` of them to fill the field."""
    missing = max(0, FIELD - size)
    return missing // 2, missing - missing // 2


class Maps(nn.Module):
    """A convolution without bias, each map reading the input maps of its row of ``rows`` (none: all of them).

    [B, H, W, C] -> [B, H', W', features]. ``framed`` puts the image into its field first. A partial kernel is
    [kernel, kernel, connections], row after row.
    """

    features: int
    kernel: int
    activation: str
    rows: tuple[tuple[int, ...], ...] | None = None
    framed: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        taps, channels = self.kernel**2, x.shape[-1]
        if self.rows is None:
            shape = (self.kernel, self.kernel, channels, self.features)
            kernel = self.param("kernel", draw, shape, taps * channels, self.activation)
        else:
            counts = np.array([len(row) for row in self.rows])
            shape = (self.kernel, self.kernel, int(counts.sum()))
            fan_in = taps * np.repeat(counts, counts)
            kernel = spread(self.param("kernel", draw, shape, fan_in, self.activation), self.rows, channels)
        padding = (margins(x.shape[1]), margins(x.shape[2])) if self.framed else "VALID"
        return conv2d(x, kernel, padding)


def spread(kernel: Array, rows: Sequence[Sequence[int]], channels: int) -> Array:
    """A partial kernel [h, w, connections] as [h, w, channels, outputs], zero where there is no connection."""
    place = np.full((channels, len(rows)), kernel.shape[-1])
    pairs = [(i, j) for j, row in enumerate(rows) for i in row]
    for number, pair in enumerate(pairs):
        place[pair] = number
    return jnp.pad(kernel, ((0, 0), (0, 0), (0, 1)))[:, :, place]


class Subsampling(nn.Module):
    """S2 and S4: the sum over 2x2, times a coefficient, plus a bias for each map; then ``activation``.

    [B, H, W, C] -> [B, H/2, W/2, C], rounded up. It starts as the average.
    """

    activation: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        start = np.full(x.shape[-1], 0.25, np.float32)
        coefficient = self.param("coefficient", lambda key: jnp.asarray(start))
        bias = self.param("bias", zeros, x.shape[-1:])
        mean = average_pool(x, 2, 2, count_include_pad=True)
        return activation(self.activation)(mean * (4 * coefficient) + bias).astype(x.dtype)


class ScaledTanh(nn.Module):
    """``1.7159 tanh(2x/3)`` (appendix A)."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return AMPLITUDE * jnp.tanh(SLOPE * x)


class Units(nn.Module):
    """C5 and F6: dropout of the inputs, then a fully connected layer without bias, [B, I] -> [B, features]."""

    features: int
    activation: str

    @nn.compact
    def __call__(
        self, x: Array, *, train: bool = False, dropout: ArrayLike = 0.0, seed: ArrayLike = 0
    ) -> Array:
        inputs = x.shape[-1]
        kernel = self.param("kernel", draw, (inputs, self.features), inputs, self.activation)
        if train:
            x = noise.dropout(x, dropout, seed)
        return x @ kernel.astype(x.dtype)


class RadialBasis(nn.Module):
    """Minus the squared Euclidean distance to every class's fixed code: [B, I] -> logits [B, num_classes].

    With logits -y_i, y_i being equation (7)'s, softmax cross-entropy is y_D + log(sum_i exp(-y_i)): the
    paper's discriminative (MAP) loss, equation (9), but for the constant exp(-j) of the rubbish class in the
    logarithm. The codes are not trained.
    """

    num_classes: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        wide = x.astype(jnp.float32)
        code = codes(self.num_classes, x.shape[-1])
        squares = jnp.square(wide).sum(-1, keepdims=True) + x.shape[-1]
        return (2 * wide @ jnp.asarray(code.T) - squares).astype(x.dtype)


def build(arch: Architecture, num_classes: int) -> Graph:
    """The network of a ``lenet`` architecture: [B, H, W, C] -> logits [B, num_classes]."""
    SPACE.check_known(arch, "c3_table", "subsampling", "output", "normalisation")
    b = Builder()
    activation = arch["activation"]
    scaled = activation == "scaled_tanh"
    inner = "identity" if scaled else activation  # what the layers before a `ScaledTanh` do themselves
    norm = NormAct(arch["normalisation"], inner)

    def activated(name: str, module: nn.Module, x: int) -> int:
        x = b.add(f"{name}_norm", norm, b.add(name, module, x))
        return b.add(f"{name}_tanh", ScaledTanh(), x) if scaled else x

    def subsampled(name: str, x: int) -> int:
        if arch["subsampling"] != "trainable":
            return b.add(name, Pool(arch["subsampling"]), x)
        x = b.add(name, Subsampling(inner), x)
        return b.add(f"{name}_tanh", ScaledTanh(), x) if scaled else x

    kernel, rows = arch["kernel"], c3_rows(arch)
    x = activated("c1", Maps(arch["c1_maps"], kernel, activation, framed=True), 0)
    x = subsampled("s2", x)
    x = activated("c3", Maps(arch["c3_maps"], kernel, activation, rows), x)
    x = subsampled("s4", x)
    x = activated("c5", Units(arch["c5_units"], activation), b.add("flatten", Flatten(), x))
    x = activated("f6", Units(arch["f6_units"], activation), x)
    b.add("logits", RadialBasis(num_classes) if arch["output"] == "rbf" else Dense(num_classes), x)
    return b.graph()


def c3_rows(arch: Mapping[str, Any]) -> tuple[tuple[int, ...], ...] | None:
    return table(arch["c1_maps"], arch["c3_maps"]) if arch["c3_table"] == "partial" else None


def connections(
    arch: Mapping[str, Any], image_shape: tuple[int, int, int], num_classes: int
) -> dict[str, int]:
    """Connections of every layer as the paper counts them: inputs of its units, biases among them.

    A pool without weights has its 4 inputs a unit; a radial basis unit has no bias.
    """
    height, width, channels = image_shape
    sizes = [max(FIELD, height), max(FIELD, width)]
    taps = arch["kernel"] ** 2
    pooled = 5 if arch["subsampling"] == "trainable" else 4
    rows = c3_rows(arch)
    read = sum(map(len, rows)) if rows else arch["c1_maps"] * arch["c3_maps"]  # pairs of maps
    found = {}
    layers = [
        ("c1", "s2", arch["c1_maps"], taps * channels * arch["c1_maps"]),
        ("c3", "s4", arch["c3_maps"], taps * read),
    ]
    for convolution, subsampling, maps, weights in layers:
        sizes = [size - arch["kernel"] + 1 for size in sizes]
        found[convolution] = math.prod(sizes) * (weights + maps)
        sizes = [-(-size // 2) for size in sizes]
        found[subsampling] = math.prod(sizes) * maps * pooled
    inputs = math.prod(sizes) * arch["c3_maps"]
    found["c5"] = arch["c5_units"] * (inputs + 1)
    found["f6"] = arch["f6_units"] * (arch["c5_units"] + 1)
    found["output"] = num_classes * (arch["f6_units"] + (arch["output"] == "dense"))
    return found


CHOICES: dict[str, Choice] = {
    "c1_maps": Categorical((4, 6, 8, 12, 16)),
    "c3_maps": Categorical((8, 16, 24, 32)),
    "c5_units": Categorical((60, 120, 240)),
    "f6_units": Categorical((42, 84, 168)),
    "kernel": Categorical((3, 5, 7)),
    "c3_table": Categorical(("partial", "full")),
    "subsampling": Categorical(("trainable", "average", "max")),
    "activation": Categorical(("scaled_tanh", "tanh", "relu")),
    "output": Categorical(("rbf", "dense")),
    "normalisation": Categorical(("none", "batch")),
    "dropout": Uniform(0.0, 0.5, changes_program=False),
    "optimiser": Categorical(("sgd", "momentum", "nesterov", "adamw")),
    "learning_rate": LogUniform(1e-4, 1e-1, changes_program=False),
    "schedule": Categorical(("step", "cosine", "linear", "one_cycle", "constant"), changes_program=False),
    "batch_size": Categorical((16, 32, 64, 128)),
    "weight_decay": LogUniform(1e-6, 1e-2, changes_program=False),
    "label_smoothing": Uniform(0.0, 0.2, changes_program=False),
    "augmentation": Categorical(("none", "crop", "crop+cutout", "mixup")),
}

SPACE = SearchSpace(
    name="lenet",
    choices=CHOICES,
    build=build,
    search_within=("optimiser=nesterov,adamw", "learning_rate=0.001..0.02", "batch_size=16..64"),
)

# LeNet-5: momentum and falling rates for the paper's stochastic diagonal Levenberg-Marquardt; a rate of 0.015
# does not train. The dense form: error on 6,000 validation images of MNIST 0.82 % after 12 epochs.
NAMED: dict[str, Named] = {
    "lenet5": Named.of(
        "lenet",
        (32, 32, 1),
        10,
        60_000,
        "LeCun et al. 1998, section II.B: 156 + 12 + 1,516 + 32 + 48,120 + 10,164",
        c1_maps=6,
        c3_maps=16,
        c5_units=120,
        f6_units=84,
        kernel=5,
        c3_table="partial",
        subsampling="trainable",
        activation="scaled_tanh",
        output="rbf",
        normalisation="none",
        dropout=0.0,
        optimiser="nesterov",
        learning_rate=0.003,
        schedule="linear",
        batch_size=32,
        weight_decay=1e-6,
        label_smoothing=0.0,
        augmentation="none",
    ),
    "lenet5_dense": Named.of(
        "lenet",
        (28, 28, 1),
        10,
        61_706,
        "LeNet-5 with full connections, pooling without weights, a dense output: 156 + 2,416 + 48,120 + "
        "10,164 + 850",
        c1_maps=6,
        c3_maps=16,
        c5_units=120,
        f6_units=84,
        kernel=5,
        c3_table="full",
        subsampling="max",
        activation="relu",
        output="dense",
        normalisation="none",
        dropout=0.0,
        optimiser="adamw",
        learning_rate=0.003,
        schedule="one_cycle",
        batch_size=64,
        weight_decay=1e-2,
        label_smoothing=0.0,
        augmentation="crop",
    ),
}
