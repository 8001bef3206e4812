"""The ``resnet`` space: residual networks (He et al. 2015, 2016) for small and large images, and their plain twins.

A stem (``small``: a 3x3 convolution; ``imagenet``: 7x7 with stride 2, then 3x3 max pooling with stride 2),
three or four stages of ``blocks_<i>`` blocks with ``width``, 2 ``width``, 4 ``width``, … channels, every
stage but the first beginning with stride 2, global average pooling, a classifier. A ``basic`` block is two
3x3 convolutions; a ``bottleneck`` 1x1, 3x3 and 1x1, the last with four times the channels. Its stride is at
the first ``1x1`` as published, or at the ``3x3`` as in most later code, torchvision's too: as many
parameters, more multiply-adds (``stride_at``).

``connections="plain"`` leaves the shortcuts out. Where a block changes the shape, shortcut ``A`` takes every
other pixel and pads new channels with zeros, ``B`` projects by a 1x1 convolution (2015, section 3.3).

``preactivation`` normalises and activates before convolutions instead of behind (2016, figure 4e): the first
block takes the stem's activation for its own; a block that changes the shape does so from its activation, and
projects without normalisation, as in the authors' code; the last sum is normalised and activated.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from nas.nn.graph import Builder, Graph
from nas.nn.layers import CellAverage, Dense, NormAct, Pool, Sum, conv
from nas.space import Architecture, Categorical, Choice, Integer, LogUniform, SearchSpace, Uniform, When
from search_spaces.named import Named, variants

STAGES = 4
EXPANSION = 4  # of a bottleneck's channels by its last convolution


class PadShortcut(nn.Module):
    """Option A: every ``stride``-th pixel, new channels zero."""

    features: int
    stride: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        more = self.features - x.shape[-1]
        return jnp.pad(x[:, :: self.stride, :: self.stride], ((0, 0), (0, 0), (0, 0), (0, more)))


def build(arch: Architecture, num_classes: int) -> Graph:
    """The network of a ``resnet`` architecture: [B, H, W, C] -> logits [B, num_classes]."""
    SPACE.check_known(arch, "stem", "block", "connections", "shortcut", "stride_at")
    b = Builder()
    relu, linear = NormAct("batch", "relu"), NormAct("batch", "identity")
    width, before, residual = arch["width"], arch["preactivation"], arch["connections"] == "residual"
    large = arch["stem"] == "imagenet"
    stem = _conv(width, 7, 2) if large else _conv(width, 3, 1)
    x = b.add("norm_0", relu, b.add("conv_0", stem, 0))
    if large:
        x = b.add("pool_0", Pool("max", window=3, stride=2, padding=1), x)
    channels = width
    for stage in range(arch["stages"]):
        for block in range(arch[f"blocks_{stage + 1}"]):
            name = f"{stage + 1}_{block + 1}"
            stride = 2 if stage and not block else 1
            convs = _convolutions(arch, width * 2**stage, stride)
            features = convs[-1].features
            y = x
            if before and (stage or block):
                y = b.add(f"norm_{name}_1", relu, x)
            shortcut = x
            if residual and (stride > 1 or channels != features):
                wide = y if before else x
                if arch["shortcut"] == "A":
                    shortcut = b.add(f"shortcut_{name}", PadShortcut(features, stride), wide)
                else:
                    shortcut = b.add(f"project_{name}", _conv(features, 1, stride), wide)
                    if not before:
                        shortcut = b.add(f"shortcut_{name}", linear, shortcut)
            for i, convolution in enumerate(convs, 1):
                if before and i > 1:
                    y = b.add(f"norm_{name}_{i}", relu, y)
                y = b.add(f"conv_{name}_{i}", convolution, y)
                if not before:
                    joined = (y, shortcut) if residual and i == len(convs) else (y,)
                    y = b.add(f"norm_{name}_{i}", relu, *joined)
            x = b.add(f"sum_{name}", Sum(), y, shortcut) if before and residual else y
            channels = features
    if before:
        x = b.add("norm_last", relu, x)
    x = b.add("average", CellAverage(1), x)
    b.add("logits", Dense(num_classes), x)
    return b.graph()


def _conv(features: int, kernel: int, stride: int) -> nn.Conv:
    """Padded by half a kernel on every side, also where a stride leaves the last row and column unread."""
    return conv(features, kernel, stride, padding=kernel // 2)


def _convolutions(arch: Architecture, features: int, stride: int) -> tuple[nn.Conv, ...]:
    """Those of a block, in order."""
    if arch["block"] == "basic":
        return _conv(features, 3, stride), _conv(features, 3, 1)
    first, second = (stride, 1) if arch["stride_at"] == "1x1" else (1, stride)
    return _conv(features, 1, first), _conv(features, 3, second), _conv(EXPANSION * features, 1, 1)


_CHOICES: dict[str, Choice] = {
    "stem": Categorical(("small", "imagenet")),
    "block": Categorical(("basic", "bottleneck")),
    "stages": Categorical((3, STAGES)),
    **{f"blocks_{i}": Integer(1, 200) for i in range(1, STAGES + 1)},
    "width": Categorical((8, 16, 32, 64)),
    "connections": Categorical(("residual", "plain")),
    "shortcut": Categorical(("A", "B")),
    "preactivation": Categorical((False, True)),
    "stride_at": Categorical(("1x1", "3x3")),
    "dropout": Uniform(0.0, 0.5, changes_program=False),
    "optimiser": Categorical(("momentum", "nesterov")),
    "learning_rate": LogUniform(1e-2, 1.0, changes_program=False),
    "schedule": Categorical(("step", "cosine"), changes_program=False),
    "batch_size": Categorical((64, 128, 256)),
    "weight_decay": LogUniform(1e-5, 1e-3, changes_program=False),
    "label_smoothing": Uniform(0.0, 0.2, changes_program=False),
    "augmentation": Categorical(("none", "crop+flip")),
}

SPACE = SearchSpace(
    name="resnet",
    choices=_CHOICES,
    conditions={
        f"blocks_{STAGES}": (When("stages", values=(STAGES,)),),
        "shortcut": (When("connections", values=("residual",)),),
        "stride_at": (When("block", values=("bottleneck",)),),
    },
    build=build,
    elastic=("blocks", "width"),
    search_within=("stem=small", "stages=3", "blocks=1..3", "width=8,16", "batch_size=64,128"),
)

# 2015, section 4.2: momentum, rate 0.1 divided by 10 after one half and three quarters of the steps, batches of
# 128, weight decay 1e-4, padded crops and flips. (ResNet-110 began with rate 0.01; ResNet-1202 was trained so.)
_CIFAR = {
    "stem": "small",
    "block": "basic",
    "stages": 3,
    "width": 16,
    "connections": "residual",
    "shortcut": "A",
    "preactivation": False,
    "dropout": 0.0,
    "optimiser": "momentum",
    "learning_rate": 0.1,
    "schedule": "step",
    "batch_size": 128,
    "weight_decay": 1e-4,
    "label_smoothing": 0.0,
    "augmentation": "crop+flip",
}
# 2015, section 3.4: batches of 256, the rate divided by 10 when the error stood still.
_IMAGENET = _CIFAR | {
    "stem": "imagenet",
    "stages": 4,
    "width": 64,
    "shortcut": "B",
    "batch_size": 256,
}


def _cifar(blocks: int, params: int, source: str, **changes: str | bool) -> Named:
    each = {f"blocks_{i}": blocks for i in (1, 2, 3)}
    return Named.of("resnet", (32, 32, 3), 10, params, source, **_CIFAR | each | changes)


def _imagenet(blocks: tuple[int, ...], params: int, source: str, **changes: str) -> Named:
    each = {f"blocks_{i}": n for i, n in enumerate(blocks, 1)}
    return Named.of("resnet", (224, 224, 3), 1000, params, source, **_IMAGENET | each | changes)


def _plain(twin: Named, params: int) -> Named:
    """``twin`` without shortcuts."""
    source = "He et al. 2015, figures 4 and 6; parameters: the residual twin's less its projections"
    bare = dataclasses.replace(twin, arch=twin.arch.without("shortcut"), source=source)
    return variants(bare, params, connections="plain")


_TABLE_1 = "He et al. 2015, table 1; parameters as torchvision's"
_TABLE_6 = "He et al. 2015, table 6; parameters by hand: 97,216 n - 21,926 with n blocks a stage"
_TABLE_3 = "He et al. 2016, table 3; parameters by hand"
_BOTTLENECK = {"block": "bottleneck", "stride_at": "1x1"}

NAMED: dict[str, Named] = {
    "resnet18": _imagenet((2, 2, 2, 2), 11_689_512, _TABLE_1),
    "resnet34": _imagenet((3, 4, 6, 3), 21_797_672, _TABLE_1),
    "resnet50": _imagenet((3, 4, 6, 3), 25_557_032, _TABLE_1, **_BOTTLENECK),
    "resnet101": _imagenet((3, 4, 23, 3), 44_549_160, _TABLE_1, **_BOTTLENECK),
    "resnet152": _imagenet((3, 8, 36, 3), 60_192_808, _TABLE_1, **_BOTTLENECK),
    "resnet20": _cifar(3, 269_722, _TABLE_6),
    "resnet32": _cifar(5, 464_154, _TABLE_6),
    "resnet44": _cifar(7, 658_586, _TABLE_6),
    "resnet56": _cifar(9, 853_018, _TABLE_6),
    "resnet110": _cifar(18, 1_727_962, _TABLE_6),
    "resnet1202": _cifar(200, 19_421_274, _TABLE_6),
    "preresnet110": _cifar(18, 1_727_962, _TABLE_3, preactivation=True),
    "preresnet164": _cifar(18, 1_703_258, _TABLE_3, preactivation=True, shortcut="B", **_BOTTLENECK),
}
NAMED |= {
    # Without the projections: 64 128 + 128 256 + 256 512 weights, scales and biases of 128 + 256 + 512 channels.
    "plain18": _plain(NAMED["resnet18"], 11_515_688),
    "plain34": _plain(NAMED["resnet34"], 21_623_848),
    "plain20": _plain(NAMED["resnet20"], 269_722),
    "plain56": _plain(NAMED["resnet56"], 853_018),
}
