"""Flax layers that the spaces share, over the fast operations of `nas.ops`.

All take NHWC images, compute in the dtype of their input (float32 or bfloat16) with float32 parameters, and
are called as ``layer(*inputs, train=…)``. Parameters are drawn by `draws` below.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from nas import ops

NORMALISATIONS = ("none", "batch", "layer", "local_response")
POOLINGS = ("none", "max", "average", "overlapping_max")
ACTIVATIONS = ("relu", "gelu", "silu", "tanh")
STATISTICS_MOMENTUM = 0.9  # of batch normalisation's running mean and variance
EPSILON = 1e-5


def he_normal(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """He et al. 2015: normal with variance 2 / fan-in, fan-in being all axes of ``shape`` but the last.

    Drawn by numpy from the bits of ``key``: an initialiser of jax.random compiles one program for each
    shape, which in a search costs more than the network's own compilation.
    """

    def normal(bits: np.ndarray) -> np.ndarray:
        draws = np.random.default_rng(np.asarray(bits)).standard_normal(shape, np.float32)
        return (draws * np.sqrt(2.0 / np.prod(shape[:-1]))).astype(dtype)

    bits = jax.random.key_data(key)
    if not isinstance(bits, Tracer):
        return jnp.asarray(normal(np.asarray(bits)))
    return jax.pure_callback(normal, jax.ShapeDtypeStruct(shape, dtype), bits)


def zeros(key: Array, shape: tuple[int, ...]) -> Array:
    return jnp.asarray(np.zeros(shape, np.float32))  # jnp.zeros compiles a program for each shape


def ones(key: Array, shape: tuple[int, ...]) -> Array:
    return jnp.asarray(np.ones(shape, np.float32))


class Conv(nn.Module):
    """Convolution [B, H, W, C] -> [B, H/stride, W/stride, features], zero padding, no bias."""

    features: int
    kernel: int = 3
    stride: int = 1
    groups: int = 1
    dilation: int = 1

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        shape = (self.kernel, self.kernel, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", he_normal, shape)
        return ops.conv2d(
            x,
            kernel.astype(x.dtype),
            strides=(self.stride, self.stride),
            dilation=(self.dilation, self.dilation),
            groups=self.groups,
        )


class NormAct(nn.Module):
    """Normalisation, an optional residual sum, activation: ``act(norm(x) + shortcut)``.

    ``batch``: Ioffe and Szegedy 2015; ``layer``: over channels at each pixel, as in ConvNeXt;
    ``local_response``: AlexNet's, after bias and activation; ``none``: a bias.
    """

    normalisation: str = "batch"
    activation: str = "relu"

    @nn.compact
    def __call__(self, x: Array, shortcut: Array | None = None, *, train: bool = False) -> Array:
        channels = (x.shape[-1],)
        bias = self.param("bias", zeros, channels)
        if self.normalisation in ("none", "local_response"):
            y = ops.scale_shift_act(x, None, bias, shortcut, activation=self.activation).astype(x.dtype)
            return y if self.normalisation == "none" else ops.local_response_norm(y)
        scale = self.param("scale", ones, channels)
        if self.normalisation == "layer":
            y = ops.layer_norm_act(x, scale, bias, shortcut, activation=self.activation, eps=EPSILON)
            return y.astype(x.dtype)
        mean = self.variable("batch_stats", "mean", lambda: jnp.asarray(np.zeros(channels, np.float32)))
        var = self.variable("batch_stats", "var", lambda: jnp.asarray(np.ones(channels, np.float32)))
        if not train:
            statistics = (mean.value, var.value)
            y = ops.batch_norm_inference(
                x, scale, bias, *statistics, shortcut, activation=self.activation, eps=EPSILON
            )
            return y.astype(x.dtype)
        y, batch_mean, batch_var = ops.batch_norm_act(
            x, scale, bias, shortcut, activation=self.activation, eps=EPSILON
        )
        if not self.is_initializing():
            mean.value, var.value = ops.ema_update(
                (mean.value, var.value), (batch_mean, batch_var), STATISTICS_MOMENTUM
            )
        return y.astype(x.dtype)


class Pool(nn.Module):
    """Halves height and width (rounded up): max or average over 2x2, or max over 3x3 windows that overlap."""

    kind: str

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        if self.kind == "average":
            return ops.avg_pool(x, (2, 2), strides=(2, 2), padding="SAME")
        window = {"max": 2, "overlapping_max": 3}[self.kind]
        return ops.max_pool(x, (window, window), strides=(2, 2), padding="SAME")


class Concat(nn.Module):
    """Joins feature maps of equal height and width along channels (Huang et al. 2017)."""

    @nn.compact
    def __call__(self, *maps: Array, train: bool = False) -> Array:
        return ops.concatenate(maps)


class CellAverage(nn.Module):
    """Averages the map over a grid of at most ``cells`` x ``cells`` equal cells and flattens: [B, features]."""

    cells: int = 4

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        window = (-(-x.shape[1] // self.cells), -(-x.shape[2] // self.cells))
        return ops.avg_pool(x, window, strides=window, padding="SAME").reshape(x.shape[0], -1)


class Dense(nn.Module):
    """Dropout of the inputs, then a fully connected layer: [B, I] -> [B, features].

    ``dropout`` is the probability and ``seed`` the uint32 that fixes the mask; both are traced.
    """

    features: int
    bias: bool = True

    @nn.compact
    def __call__(
        self, x: Array, *, train: bool = False, dropout: ArrayLike = 0.0, seed: ArrayLike = 0
    ) -> Array:
        kernel = self.param("kernel", he_normal, (x.shape[-1], self.features)).astype(x.dtype)
        bias = self.param("bias", zeros, (self.features,)).astype(x.dtype) if self.bias else None
        if train:
            x = ops.dropout(x, jnp.asarray(dropout), jnp.asarray(seed))
        return ops.dense(x, kernel, bias)
