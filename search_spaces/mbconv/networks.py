"""The networks of the space: what an architecture means as a graph of Flax modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jax import Array

from nas.cpu.function import named
from nas.nn.graph import Builder, Graph
from nas.nn.layers import CellAverage, Dense, NormAct, activation, conv, he_normal, zeros

PER_LAYER = 4
"""Layers of a stage that have choices of their own where ``granularity`` is ``layer``; more are as the last one."""
DIVISOR = 8


class Layer(NamedTuple):
    """What the choices say of one inverted residual."""

    kernel: int
    expansion: float
    se: bool


def divisible(channels: float) -> int:
    """The multiple of eight nearest to ``channels``, the next one where that is below nine tenths of it.

    As the authors' code of MobileNetV2 rounds, and all after it.
    """
    rounded = max(DIVISOR, int(channels + DIVISOR / 2) // DIVISOR * DIVISOR)
    return rounded + DIVISOR if rounded < 0.9 * channels else rounded


def layers_of(arch: Mapping[str, Any], stage: int) -> list[Layer]:
    """The inverted residuals of ``stage`` (from 1), in order."""
    depth = arch[f"depth_{stage}"]
    if arch["granularity"] == "stage":
        return [Layer(*(arch[f"{name}_{stage}"] for name in Layer._fields))] * depth
    numbers = (min(i, PER_LAYER) for i in range(1, depth + 1))
    return [Layer(*(arch[f"{name}_{stage}_{i}"] for name in Layer._fields)) for i in numbers]


@named("size")  # `nas.nn.count` knows it by its name
def resize_images(x: Array, *, size: int) -> Array:
    """``x`` [B, H, W, C] resampled bilinearly to [B, size, size, C]."""
    return jax.image.resize(x, (x.shape[0], size, size, x.shape[3]), "bilinear").astype(x.dtype)


class Resize(nn.Module):
    """Images at ``size`` x ``size`` pixels, whatever they had."""

    size: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return x if x.shape[1:3] == (self.size, self.size) else resize_images(x, size=self.size)


class SqueezeExcite(nn.Module):
    """Channels of x [B, H, W, C] weighed by a function of their means (Hu et al. 2018): ``squeezed`` hidden units."""

    squeezed: int
    activation: str
    gate: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        options = {"kernel_init": he_normal, "bias_init": zeros}
        y = nn.Dense(self.squeezed, name="reduce", **options)(x.mean((1, 2)))
        y = nn.Dense(x.shape[-1], name="expand", **options)(activation(self.activation)(y))
        gate = jax.nn.sigmoid if self.gate == "sigmoid" else jax.nn.hard_sigmoid
        return x * gate(y).astype(x.dtype)[:, None, None, :]


class HiddenDense(nn.Module):
    """A dense layer [B, I] -> [B, features] and its activation."""

    features: int
    bias: bool
    activation: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        inner = nn.Dense(self.features, use_bias=self.bias, kernel_init=he_normal, bias_init=zeros)
        nn.share_scope(self, inner)
        return activation(self.activation)(inner(x))


def network(arch: Mapping[str, Any], num_classes: int) -> Graph:
    """The network of an architecture: [B, H, W, C] -> logits [B, num_classes]."""
    b = Builder()
    epsilon, act = arch["epsilon"], arch["activation"]
    linear = NormAct("batch", "identity", epsilon)
    x = b.add("resize", Resize(arch["resolution"]), 0) if arch["resolution"] else 0
    width = arch["stem_width"]
    x = b.add("stem", _conv(width, 3, arch["stem_stride"]), x)
    x = b.add("stem_norm", NormAct("batch", act, epsilon), x)
    for stage in range(1, arch["stages"] + 1):
        kind = "relu" if stage <= arch["relu_stages"] else act
        norm = NormAct("batch", kind, epsilon)
        for i, layer in enumerate(layers_of(arch, stage), 1):
            name = f"{stage}_{i}"
            stride = arch[f"stride_{stage}"] if i == 1 else 1
            features = arch[f"width_{stage}"]
            expanded = width if layer.expansion == 1 else divisible(width * layer.expansion)
            y = x
            if layer.expansion != 1 or arch["expand_at_1"]:
                y = b.add(f"expand_{name}", _conv(expanded, 1), y)
                y = b.add(f"expand_norm_{name}", norm, y)
            y = b.add(f"depthwise_{name}", _conv(expanded, layer.kernel, stride, groups=expanded), y)
            y = b.add(f"depthwise_norm_{name}", norm, y)
            if layer.se:
                y = b.add(f"se_{name}", _squeeze_excite(arch["se_form"], width, expanded, kind), y)
            y = b.add(f"project_{name}", _conv(features, 1), y)
            joined = (y, x) if stride == 1 and width == features else (y,)
            x, width = b.add(f"project_norm_{name}", linear, *joined), features
    x = b.add("head", _conv(arch["head_width"], 1), x)
    x = b.add("head_norm", NormAct("batch", act, epsilon), x)
    x = b.add("average", CellAverage(1), x)
    if arch["head_dense"]:
        x = b.add("hidden", HiddenDense(arch["head_dense"], arch["head_bias"], act), x)
    b.add("logits", Dense(num_classes), x)
    return b.graph()


def _conv(features: int, kernel: int, stride: int = 1, *, groups: int = 1) -> nn.Conv:
    """Padded by half a kernel on every side, as in PyTorch's versions, also where a stride leaves pixels unread."""
    return conv(features, kernel, stride, groups=groups, padding=kernel // 2)


def _squeeze_excite(form: str, inputs: int, expanded: int, act: str) -> SqueezeExcite:
    """``efficientnet``: a quarter of the block's inputs, its activation, sigmoid (MnasNet's too); ``mobilenetv3``:
    a quarter of the expanded channels in eights, relu, hard sigmoid (Once-for-all's too)."""
    if form == "efficientnet":
        return SqueezeExcite(max(1, inputs // 4), act, "sigmoid")
    return SqueezeExcite(divisible(expanded // 4), "relu", "hard_sigmoid")
