"""The ``darts`` space: cells of Liu et al. 2019, their evaluation network and their supernet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array

from nas import ops
from search_spaces.graph import Builder, Graph, Mix
from search_spaces.layers import EPSILON, STATISTICS_MOMENTUM, CellAverage, Concat, Dense, he_normal, ones, zeros

PRIMITIVES = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)


class BatchNorm(nn.Module):
    """Batch normalisation of x [B, H, W, C], without scale and bias of its own unless ``affine``."""

    affine: bool = True
    activation: str = "identity"

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        channels = (x.shape[-1],)
        if self.affine:
            scale, bias = self.param("scale", ones, channels), self.param("bias", zeros, channels)
        else:
            scale, bias = np.ones(channels, np.float32), np.zeros(channels, np.float32)
        mean = self.variable("batch_stats", "mean", lambda: jnp.asarray(np.zeros(channels, np.float32)))
        var = self.variable("batch_stats", "var", lambda: jnp.asarray(np.ones(channels, np.float32)))
        scale, bias = jnp.asarray(scale), jnp.asarray(bias)
        if not train:
            statistics = (mean.value, var.value)
            y = ops.batch_norm_inference(x, scale, bias, *statistics, activation=self.activation, eps=EPSILON)
            return y.astype(x.dtype)
        y, batch_mean, batch_var = ops.batch_norm_act(x, scale, bias, activation=self.activation, eps=EPSILON)
        if not self.is_initializing():
            mean.value, var.value = ops.ema_update(
                (mean.value, var.value), (batch_mean, batch_var), STATISTICS_MOMENTUM
            )
        return y.astype(x.dtype)


class Kernel(nn.Module):
    """A convolution padded as if on all sides alike: [B, H, W, C] -> [B, ceil(H / stride), …, features]."""

    features: int
    kernel: tuple[int, int] = (3, 3)
    stride: int = 1
    dilation: int = 1
    depthwise: bool = False
    shift: int = 0

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        channels = x.shape[-1]
        kernel = self.param("kernel", he_normal, (*self.kernel, 1 if self.depthwise else channels, self.features))
        padding = tuple((self.dilation * (k - 1) // 2,) * 2 for k in self.kernel)
        return ops.conv2d(
            x,
            kernel.astype(x.dtype),
            strides=(self.stride, self.stride),
            padding=padding,
            dilation=(self.dilation, self.dilation),
            groups=channels if self.depthwise else 1,
        )


class SeparableConv(nn.Module):
    """Depthwise and pointwise convolution and normalisation, ``repeats`` times; its input is after a ReLU."""

    features: int
    kernel: int
    stride: int = 1
    dilation: int = 1
    repeats: int = 2
    affine: bool = True

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        window = (self.kernel, self.kernel)
        for k in range(self.repeats):
            stride = 1 if k else self.stride
            last = k + 1 == self.repeats
            x = Kernel(x.shape[-1], window, stride, self.dilation, True, name=f"depthwise_{k + 1}")(x)
            features = self.features if last else x.shape[-1]
            x = Kernel(features, (1, 1), name=f"pointwise_{k + 1}")(x)
            x = BatchNorm(self.affine, "identity" if last else "relu", name=f"norm_{k + 1}")(x, train=train)
        return x


class PoolNorm(nn.Module):
    """3x3 pooling, in a supernet normalised (section 3.1: so that no operation outweighs by its scale)."""

    kind: str
    stride: int = 1
    normalised: bool = True

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        pool = ops.max_pool if self.kind == "max" else ops.avg_pool
        x = pool(x, (3, 3), strides=(self.stride, self.stride), padding=((1, 1), (1, 1)))
        return BatchNorm(False, name="norm")(x, train=train) if self.normalised else x


class FactorizedReduce(nn.Module):
    """Half the resolution by two 1x1 convolutions, the second one pixel further; its input is after a ReLU."""

    features: int
    affine: bool = True

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        further = jnp.pad(x[:, 1:, 1:], ((0, 0), (0, 1), (0, 1), (0, 0)))
        half = self.features // 2
        parts = (
            Kernel(half, (1, 1), 2, name="even")(x),
            Kernel(self.features - half, (1, 1), 2, name="odd")(further),
        )
        return BatchNorm(self.affine, name="norm")(ops.concatenate(parts), train=train)


class PointwiseNorm(nn.Module):
    features: int
    affine: bool = True

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        x = Kernel(self.features, (1, 1), name="pointwise")(x)
        return BatchNorm(self.affine, name="norm")(x, train=train)


class Relu(nn.Module):
    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        return ops.activate(x, "relu")


def supernet(num_classes: int, *, channels: int = 16, cells: int = 8, steps: int = 4, multiplier: int = 3) -> Graph:
    """Every operation on every edge, weighted: [B, H, W, C] and ``mixing`` [2 * 14 * 8] -> logits."""
    b = Builder()
    shared: dict[tuple[Any, ...], int] = {}

    def once(name: str, module: nn.Module, *inputs: int) -> int:
        """The node of a module without parameters on these inputs, made when first asked for."""
        key = (module, inputs)
        if key not in shared:
            shared[key] = b.add(name, module, *inputs)
        return shared[key]

    edges = [(i, j) for i in range(steps) for j in range(2 + i)]
    stem = b.add("stem_norm", BatchNorm(), b.add("stem", Kernel(multiplier * channels), 0))
    previous, current = stem, stem
    width, reduced = channels, False
    for cell in range(cells):
        reduction = cell in (cells // 3, 2 * cells // 3)
        width *= 2 if reduction else 1
        at = f"cell_{cell}"
        reduce_input = FactorizedReduce(width, False) if reduced else PointwiseNorm(width, False)
        states = [
            b.add(f"{at}_in_0", reduce_input, once(f"{at}_relu_p", Relu(), previous)),
            b.add(f"{at}_in_1", PointwiseNorm(width, False), once(f"{at}_relu_c", Relu(), current)),
        ]
        base = len(edges) if reduction else 0
        for i in range(steps):
            inputs: list[int] = []
            positions: list[int] = []
            for j in range(2 + i):
                stride = 2 if reduction and j < 2 else 1
                source = states[j]
                relu = once(f"{at}_relu_{j}", Relu(), source)
                edge = (base + edges.index((i, j))) * len(PRIMITIVES)
                name = f"{at}_{i}_{j}"
                for k, primitive in enumerate(PRIMITIVES):
                    if primitive == "none":
                        continue
                    if primitive == "max_pool_3x3":
                        out = once(f"{at}_max_{j}", PoolNorm("max", stride), source)
                    elif primitive == "avg_pool_3x3":
                        out = once(f"{at}_avg_{j}", PoolNorm("average", stride), source)
                    elif primitive == "skip_connect":
                        out = source if stride == 1 else b.add(f"{name}_skip", FactorizedReduce(width, False), relu)
                    else:
                        size = int(primitive[-1])
                        dilated = primitive.startswith("dil")
                        module = SeparableConv(width, size, stride, 1 + dilated, 2 - dilated, False)
                        out = b.add(f"{name}_{primitive}", module, relu)
                    inputs.append(out)
                    positions.append(edge + k)
            states.append(b.add(f"{at}_sum_{i}", Mix(tuple(positions)), *inputs))
        previous, current = current, b.add(f"{at}_concat", Concat(), *states[-4:])
        reduced = reduction
    b.add("logits", Dense(num_classes), b.add("average", CellAverage(1), current))
    return b.graph()
