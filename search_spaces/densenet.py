"""The ``densenet`` space: Huang et al. 2017, densely connected networks.

A stem; ``stages`` dense blocks of ``layers_1``, ``layers_2``, … layers; between two blocks a transition
(BN-ReLU-Conv 1x1, 2x2 average pooling) that keeps the share ``compression`` of the channels, rounded down;
BN-ReLU, global average pooling, a classifier. Every layer reads the image of the block and the outputs of all
layers before it, joined along channels, and adds ``growth`` channels: BN-ReLU-Conv 3x3 or, with
``bottleneck``, BN-ReLU-Conv 1x1 (4 ``growth`` channels) before that (sections 3 and 4.1).

``stem="small"`` is a 3x3 convolution at full resolution, ``"imagenet"`` a 7x7 one of stride 2, normalised,
and 3x3 max pooling of stride 2 (table 1). ``dropout`` falls on the classifier's inputs, or with
``dropout_at="convolutions"`` behind every convolution but the first, as in the paper without augmentation.

A block of L layers keeps L joined and L normalised maps for the backward pass, O(L^2) in all. With
``remat`` it keeps the convolutions' outputs alone, O(L), and joins and normalises again when the gradient
needs it (Pleiss et al. 2017); the numbers are the same. Such networks have reverse mode only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from nas.cpu.normalisation import batch_norm, batch_norm_inference
from nas.nn import noise
from nas.nn.graph import Builder, Graph
from nas.nn.layers import (
    EPSILON,
    CellAverage,
    Concat,
    Dense,
    NormAct,
    Pool,
    conv,
    conv2d,
    he_normal,
    ones,
    running,
    zeros,
)
from nas.nn.recompute import recomputed
from nas.space import Architecture, Categorical, Choice, Integer, LogUniform, SearchSpace, Uniform, When
from search_spaces.named import Named

BOTTLENECK = 4  # channels of the 1x1 convolution, in growth rates (section 3)

Weights: TypeAlias = tuple[Array, Array, Array]  # normalisation's scale and bias, the convolution's kernel


def norm_act_conv(weights: Weights, maps: Sequence[Array]) -> tuple[Array, Array, Array]:
    """Concatenation, BN-ReLU-Conv of ``maps`` [B, H, W, C_i]; with the mean and variance of the batch."""
    scale, bias, kernel = weights
    joined = jnp.concatenate(maps, -1)
    y, mean, var = batch_norm(joined, scale, bias, activation="relu", eps=EPSILON)
    return conv2d(y, kernel), mean, var


@recomputed
def norm_act_conv_again(
    waiting: tuple[Weights, Array], others: Sequence[Array]
) -> tuple[Array, Array, Array]:
    """`norm_act_conv`. The last map waits with the weights: the concatenation would be kept, needing none of them."""
    weights, last = waiting
    return norm_act_conv(weights, (*others, last))


class NormActConv(nn.Module):
    """Concatenation, BN-ReLU-Conv, dropout where ``drops``: maps [B, H, W, C_i] -> [B, H, W, features]."""

    features: int
    kernel: int
    drops: bool = False
    remat: bool = False

    @nn.compact
    def __call__(
        self, *maps: Array, train: bool = False, dropout: ArrayLike = 0.0, seed: ArrayLike = 0
    ) -> Array:
        channels = sum(x.shape[-1] for x in maps)
        scale, bias = (
            self.param(name, draw, (channels,)) for name, draw in (("scale", ones), ("bias", zeros))
        )
        kernel = self.param("kernel", he_normal, (self.kernel, self.kernel, channels, self.features))
        kernel = kernel.astype(maps[0].dtype)
        mean = self.variable("batch_stats", "mean", lambda: jnp.asarray(np.zeros(channels, np.float32)))
        var = self.variable("batch_stats", "var", lambda: jnp.asarray(np.ones(channels, np.float32)))
        if not train:
            joined = jnp.concatenate(maps, -1)
            y = nn.relu(batch_norm_inference(joined, scale, bias, mean.value, var.value, eps=EPSILON))
            if not self.remat:  # what training keeps beside the output, for `nas.training.network.outline`
                self.sow("intermediates", "kept", (joined, y) if len(maps) > 1 else y)
            return conv2d(y, kernel)
        weights = (scale, bias, kernel)
        if self.remat:
            y, batch_mean, batch_var = norm_act_conv_again((weights, maps[-1]), maps[:-1])
        else:
            y, batch_mean, batch_var = norm_act_conv(weights, maps)
        if not self.is_initializing():
            mean.value, var.value = running((mean.value, var.value), (batch_mean, batch_var))
        return noise.dropout(y, dropout, seed) if self.drops else y


class DenseLayer(nn.Module):
    """A layer of a dense block: all maps [B, H, W, C_i] before it -> its own [B, H, W, growth]."""

    growth: int
    bottleneck: bool
    drops: bool = False
    remat: bool = False

    @nn.compact
    def __call__(
        self, *maps: Array, train: bool = False, dropout: ArrayLike = 0.0, seed: ArrayLike = 0
    ) -> Array:
        if self.bottleneck:
            squeeze = NormActConv(BOTTLENECK * self.growth, 1, self.drops, self.remat, name="squeeze")
            other = noise.node_seed(jnp.asarray(seed), 0)
            maps = (squeeze(*maps, train=train, dropout=dropout, seed=other),)
        grow = NormActConv(self.growth, 3, self.drops, self.remat, name="grow")
        return grow(*maps, train=train, dropout=dropout, seed=seed)


def build(arch: Architecture, num_classes: int) -> Graph:
    """The network of a ``densenet`` architecture: [B, H, W, C] -> logits [B, num_classes]."""
    SPACE.check_known(arch, "stem", "dropout_at")
    b = Builder()
    growth, drops = arch["growth"], arch["dropout_at"] == "convolutions"
    layer = DenseLayer(growth, arch["bottleneck"], drops, arch["remat"])
    relu = NormAct("batch", "relu")
    channels = arch["width"]
    if arch["stem"] == "small":
        x = b.add("conv_0", conv(channels), 0)
    else:
        x = b.add("norm_0", relu, b.add("conv_0", conv(channels, 7, 2, padding=3), 0))
        x = b.add("pool_0", Pool("max", window=3, padding=1), x)
    maps = [x]
    for stage in range(1, arch["stages"] + 1):
        if stage > 1:
            channels = int(channels * arch["compression"])
            x = b.add(f"transition_{stage}", NormActConv(channels, 1, drops, arch["remat"]), *maps)
            maps = [b.add(f"pool_{stage}", Pool("average"), x)]
        for i in range(1, arch[f"layers_{stage}"] + 1):
            maps.append(b.add(f"layer_{stage}_{i}", layer, *maps))
            channels += growth
    x = b.add("norm", relu, b.add("concat", Concat(), *maps))
    x = b.add("average", CellAverage(1), x)
    b.add("logits", Dense(num_classes, rate=0.0 if drops else None), x)
    return b.graph()


CHOICES: dict[str, Choice] = {
    "stem": Categorical(("small", "imagenet")),
    "width": Categorical((8, 16, 24, 32, 48, 64, 96)),
    "stages": Integer(3, 4),
    **{f"layers_{stage}": Integer(1, 48) for stage in range(1, 5)},
    "growth": Categorical((4, 8, 12, 16, 24, 32, 40, 48)),
    "bottleneck": Categorical((False, True)),
    "compression": Categorical((0.25, 0.5, 0.75, 1.0)),
    "remat": Categorical((False, True)),
    "dropout_at": Categorical(("classifier", "convolutions")),
    "dropout": Uniform(0.0, 0.5, changes_program=False),
    "optimiser": Categorical(("nesterov", "adamw")),
    "learning_rate": LogUniform(1e-3, 1.0, changes_program=False),
    "schedule": Categorical(("step", "cosine", "linear", "constant"), changes_program=False),
    "batch_size": Categorical((32, 64, 128, 256)),
    "weight_decay": LogUniform(1e-6, 1e-2, changes_program=False),
    "label_smoothing": Uniform(0.0, 0.2, changes_program=False),
    "augmentation": Categorical(("none", "crop", "crop+flip", "crop+cutout", "mixup", "colour")),
}

SPACE = SearchSpace(
    name="densenet",
    choices=CHOICES,
    conditions={"layers_4": (When("stages", values=(4,)),)},
    build=build,
    search_within=(
        "stem=small",
        "width=8..24",
        "stages=3",
        *(f"layers_{stage}=1..4" for stage in range(1, 4)),
        "growth=4..12",
        "remat=False",
        "dropout_at=classifier",
        "learning_rate=0.01..0.3",
        "batch_size=32..64",
    ),
)

# Section 4.2: SGD with Nesterov momentum 0.9, weight decay 1e-4, learning rate 0.1 divided by 10 at one half
# and three quarters of the training; batches of 64 on CIFAR (300 epochs) and of 256 on ImageNet (90 epochs,
# divided at 30 and 60 there).
RECIPE = {
    "remat": False,
    "dropout_at": "classifier",
    "dropout": 0.0,
    "optimiser": "nesterov",
    "learning_rate": 0.1,
    "schedule": "step",
    "weight_decay": 1e-4,
    "label_smoothing": 0.0,
    "augmentation": "crop+flip",
}


def _imagenet(params: int, growth: int, width: int, layers: tuple[int, ...], source: str) -> Named:
    return Named.of(
        "densenet",
        (224, 224, 3),
        1000,
        params,
        source,
        stem="imagenet",
        width=width,
        stages=4,
        **{f"layers_{stage}": count for stage, count in enumerate(layers, 1)},
        growth=growth,
        bottleneck=True,
        compression=0.5,
        batch_size=256,
        **RECIPE,
    )


def _cifar(
    params: int, growth: int, width: int, layers: int, bottleneck: bool, compression: float, source: str
) -> Named:
    return Named.of(
        "densenet",
        (32, 32, 3),
        10,
        params,
        source,
        stem="small",
        width=width,
        stages=3,
        **{f"layers_{stage}": layers for stage in range(1, 4)},
        growth=growth,
        bottleneck=bottleneck,
        compression=compression,
        batch_size=64,
        **RECIPE,
    )


_TABLE_1 = "Huang et al. 2017, table 1; counted as torchvision's model"
NAMED: dict[str, Named] = {
    "densenet121": _imagenet(7_978_856, 32, 64, (6, 12, 24, 16), _TABLE_1),
    "densenet161": _imagenet(28_681_000, 48, 96, (6, 12, 36, 24), f"{_TABLE_1} (the authors' k=48 network)"),
    "densenet169": _imagenet(14_149_480, 32, 64, (6, 12, 32, 32), _TABLE_1),
    "densenet201": _imagenet(20_013_928, 32, 64, (6, 12, 48, 32), _TABLE_1),
    "densenet40": _cifar(
        1_019_722, 12, 16, 12, False, 1.0, "Huang et al. 2017, table 2, L=40, k=12: 1.0 M; derived by hand"
    ),
    "densenetbc100": _cifar(
        769_162, 12, 24, 16, True, 0.5, "Huang et al. 2017, table 2, DenseNet-BC L=100, k=12: 0.8 M; by hand"
    ),
}
