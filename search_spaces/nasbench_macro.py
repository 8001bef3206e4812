"""The ``nasbench_macro`` space: NAS-Bench-Macro (Su et al. 2021, arXiv 2103.11922, section 4.1 and table 1).

Eight layers, ``layer_1`` to ``layer_8``, each of one of three blocks: 6,561 architectures. Layers 1, 3 and 6 have
stride 2 and twice the channels of what comes before, which a stem makes 32; their identity is a normalised 1x1
convolution of that stride. A 1x1 convolution to 1,280 channels, the mean over all pixels and a dense layer end it.

Text is the benchmark's own, a digit a layer (``22212220``). Within a stage the identities of the later layers
do nothing, so some architectures are one network. The published training is no choice of the space: ``--hyper
optimiser=momentum learning_rate=0.1 schedule=cosine batch_size=256 weight_decay=5e-4 augmentation=crop+flip`` for 50
epochs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from jax import Array

from nas.space import Architecture, Categorical, SearchSpace
from search_spaces.named import Named

BLOCKS = ("identity", "mb3_k3", "mb6_k5")  # inverted bottlenecks by expansion and kernel, after MobileNetV2
SHAPES = {"mb3_k3": (3, 3), "mb6_k5": (6, 5)}
STAGES = (2, 3, 3)
CHOICES = tuple(f"layer_{i}" for i in range(1, sum(STAGES) + 1))
STEM, HEAD = 32, 1280

he_normal = nn.initializers.he_normal()


class ConvNorm(nn.Module):
    """Convolution, batch normalisation and, unless ``linear``, ReLU: [B, H, W, C] -> [B, H', W', features]."""

    features: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    linear: bool = False

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        x = nn.Conv(
            self.features,
            (self.kernel, self.kernel),
            (self.stride, self.stride),
            padding=self.kernel // 2,
            feature_group_count=self.groups,
            use_bias=False,
            kernel_init=he_normal,
            dtype=x.dtype,
        )(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, dtype=x.dtype)(x)
        return x if self.linear else nn.relu(x)


class Bottleneck(nn.Module):
    """Inverted bottleneck (Sandler et al. 2018, with ReLU): expand, convolve each channel, project; added to x."""

    features: int
    expansion: int
    kernel: int
    stride: int

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        inner = self.expansion * x.shape[-1]
        y = ConvNorm(inner)(x, train=train)
        y = ConvNorm(inner, self.kernel, self.stride, groups=inner)(y, train=train)
        y = ConvNorm(self.features, linear=True)(y, train=train)
        return x + y if x.shape == y.shape else y


class Network(nn.Module):
    """A network of ``layers``, one of BLOCKS each: [B, H, W, C] -> logits [B, num_classes]."""

    layers: tuple[str, ...]
    num_classes: int

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        x = ConvNorm(STEM, 3)(x, train=train)
        blocks, features = iter(self.layers), STEM
        for depth in STAGES:
            features *= 2
            for k in range(depth):
                block, stride = next(blocks), 1 if k else 2
                if block != "identity":
                    x = Bottleneck(features, *SHAPES[block], stride)(x, train=train)
                elif k == 0:
                    x = ConvNorm(features, stride=stride, linear=True)(x, train=train)
        x = ConvNorm(HEAD)(x, train=train).mean((1, 2))
        return nn.Dense(self.num_classes, kernel_init=he_normal, dtype=x.dtype)(x)


def build(arch: Mapping[str, Any], num_classes: int) -> Network:
    """The network of an architecture."""
    SPACE.check_known(arch, *CHOICES)
    return Network(tuple(arch[name] for name in CHOICES), num_classes)


def to_text(arch: Mapping[str, Any]) -> str:
    """``22212220``."""
    return "".join(str(BLOCKS.index(arch[name])) for name in CHOICES)


def parse(text: str) -> dict[str, str]:
    """Inverse of ``to_text``; raises ValueError where the text has another form."""
    if len(text) != len(CHOICES) or not set(text) <= set("012"):
        raise ValueError(f"is not {len(CHOICES)} digits of 0, 1 and 2")
    return {name: BLOCKS[int(digit)] for name, digit in zip(CHOICES, text, strict=True)}


SPACE = SearchSpace(
    name="nasbench_macro",
    choices={name: Categorical(BLOCKS) for name in CHOICES},
    build=build,
    format=to_text,
    parse=parse,
)

NAMED = {
    "nasbench_macro_best": Named(
        "nasbench_macro",
        Architecture(parse("22212220")),
        (32, 32, 3),
        10,
        1_985_514,
        "Su et al. 2021, the most accurate of the benchmark; size by its file",
    ),
}
