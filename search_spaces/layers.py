"""Flax layers that the spaces share, over the fast operations of `nas.ops`.

All take NHWC images, compute in the dtype of their input (float32 or bfloat16) with float32 parameters, and
are called as ``layer(*inputs, train=…)``. Parameters are drawn by `draws` below.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def drawn(key: Array, shape: tuple[int, ...], draw: Callable[[np.random.Generator], np.ndarray]) -> Array:
    """First values float32 ``shape``, by numpy from the bits of ``key``.

    An initialiser of jax.random compiles one program for each shape, which in a search costs more than the
    network's own compilation.
    """

    def values(bits: np.ndarray) -> np.ndarray:
        return draw(np.random.default_rng(np.asarray(bits))).astype(np.float32)

    bits = jax.random.key_data(key)
    if not isinstance(bits, Tracer):
        return jnp.asarray(values(np.asarray(bits)))
    return jax.pure_callback(values, jax.ShapeDtypeStruct(shape, jnp.float32), bits)


def he_normal(key: Array, shape: tuple[int, ...], fan_in: int | None = None) -> Array:
    """He et al. 2015: normal with variance 2 / ``fan_in``, by default all axes of ``shape`` but the last."""
    std = np.sqrt(2.0 / (fan_in or np.prod(shape[:-1])))
    return drawn(key, shape, lambda rng: rng.standard_normal(shape, np.float32) * std)


def zeros(key: Array, shape: tuple[int, ...]) -> Array:
    return jnp.asarray(np.zeros(shape, np.float32))  # jnp.zeros compiles a program for each shape


def ones(key: Array, shape: tuple[int, ...]) -> Array:
    return jnp.asarray(np.ones(shape, np.float32))


Padding = str | int | tuple[tuple[int, int], tuple[int, int]]


def padding_of(padding: Padding, image: Sequence[int], extent: int) -> Any:
    """What `nas.ops` calls a layer's ``padding`` of square windows of ``extent`` pixels over ``image`` [.., H, W, C].

    "SAME" and "VALID" as they are; "FIT" is "VALID" where the image holds a window and "SAME" where it is
    too small, so that networks for large images run on small ones; a number: so many pixels on every side;
    ((top, bottom), (left, right)) pixels.
    """
    if padding == "FIT":
        return "VALID" if min(image[-3:-1]) >= extent else "SAME"
    return ((padding, padding), (padding, padding)) if isinstance(padding, int) else padding


class Conv(nn.Module):
    """Convolution [B, H, W, C] -> [B, H', W', features] by square kernels; zeros are padded, see `padding_of`."""

    features: int
    kernel: int = 3
    stride: int = 1
    groups: int = 1
    dilation: int = 1
    padding: Padding = "SAME"
    bias: bool = False

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        shape = (self.kernel, self.kernel, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", he_normal, shape)
        y = ops.conv2d(
            x,
            kernel.astype(x.dtype),
            strides=(self.stride, self.stride),
            padding=padding_of(self.padding, x.shape, (self.kernel - 1) * self.dilation + 1),
            dilation=(self.dilation, self.dilation),
            groups=self.groups,
        )
        if not self.bias:
            return y
        return ops.scale_shift_act(y, None, self.param("bias", zeros, (self.features,))).astype(x.dtype)


class NormAct(nn.Module):
    """Normalisation, an optional residual sum, activation: ``act(norm(x) + shortcut)``.

    ``batch``: Ioffe and Szegedy 2015; ``layer``: over channels at each pixel, as in ConvNeXt;
    ``local_response``: AlexNet's, after bias and activation; ``none``: a bias.
    """

    normalisation: str = "batch"
    activation: str = "relu"
    epsilon: float = EPSILON

    @nn.compact
    def __call__(self, x: Array, shortcut: Array | None = None, *, train: bool = False) -> Array:
        channels = (x.shape[-1],)
        bias = self.param("bias", zeros, channels)
        if self.normalisation in ("none", "local_response"):
            y = ops.scale_shift_act(x, None, bias, shortcut, activation=self.activation).astype(x.dtype)
            return y if self.normalisation == "none" else ops.local_response_norm(y)
        scale = self.param("scale", ones, channels)
        if self.normalisation == "layer":
            y = ops.layer_norm_act(x, scale, bias, shortcut, activation=self.activation, eps=self.epsilon)
            return y.astype(x.dtype)
        mean = self.variable("batch_stats", "mean", lambda: jnp.asarray(np.zeros(channels, np.float32)))
        var = self.variable("batch_stats", "var", lambda: jnp.asarray(np.ones(channels, np.float32)))
        if not train:
            statistics = (mean.value, var.value)
            y = ops.batch_norm_inference(
                x, scale, bias, *statistics, shortcut, activation=self.activation, eps=self.epsilon
            )
            return y.astype(x.dtype)
        y, batch_mean, batch_var = ops.batch_norm_act(
            x, scale, bias, shortcut, activation=self.activation, eps=self.epsilon
        )
        if not self.is_initializing():
            mean.value, var.value = ops.ema_update(
                (mean.value, var.value), (batch_mean, batch_var), STATISTICS_MOMENTUM
            )
        return y.astype(x.dtype)


class BatchNorm(nn.Module):
    """Batch normalisation of x [B, H, W, C], without scale and bias of its own unless ``affine``.

    ``tracked``: evaluation goes by running statistics, as `NormAct` does; else by the batch's own, whatever it is.
    ``deferred``: what goes by the batch's own statistics is left to its reader, a `Mix`; there is no activation then.
    """

    affine: bool = True
    activation: str = "identity"
    tracked: bool = True
    deferred: bool = False

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Any:
        channels = (x.shape[-1],)
        if self.affine:
            scale, bias = self.param("scale", ones, channels), self.param("bias", zeros, channels)
        else:
            scale, bias = np.ones(channels, np.float32), np.zeros(channels, np.float32)
        scale, bias = jnp.asarray(scale), jnp.asarray(bias)
        if not self.tracked:
            return self._by_batch(x, scale, bias)[0]
        mean = self.variable("batch_stats", "mean", lambda: jnp.asarray(np.zeros(channels, np.float32)))
        var = self.variable("batch_stats", "var", lambda: jnp.asarray(np.ones(channels, np.float32)))
        if not train:
            statistics = (mean.value, var.value)
            y = ops.batch_norm_inference(x, scale, bias, *statistics, activation=self.activation, eps=EPSILON)
            return y.astype(x.dtype)
        y, found = self._by_batch(x, scale, bias)
        if not self.is_initializing():
            mean.value, var.value = ops.ema_update((mean.value, var.value), found, STATISTICS_MOMENTUM)
        return y

    def _by_batch(self, x: Array, scale: Array, bias: Array) -> tuple[Any, tuple[Array, Array]]:
        """The result, and the batch's mean and variance."""
        if self.deferred:
            found = ops.moments(x)
            return ops.Deferred(x, *found), found
        y, mean, var = ops.batch_norm_act(x, scale, bias, activation=self.activation, eps=EPSILON)
        return y.astype(x.dtype), (mean, var)


class Pool(nn.Module):
    """Max or average pooling over square windows: [B, H, W, C] -> [B, H', W', C].

    Halves height and width (rounded up) unless told otherwise: over 2x2, or for ``overlapping_max`` over 3x3
    windows that overlap (Krizhevsky et al. 2012, section 3.4). ``padding``: see `padding_of`; padded pixels
    never count.
    """

    kind: str
    window: int | None = None
    stride: int = 2
    padding: Padding = "SAME"

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        window = self.window or (3 if self.kind == "overlapping_max" else 2)
        pool = {"average": ops.avg_pool, "max": ops.max_pool, "overlapping_max": ops.max_pool}[self.kind]
        return pool(x, window, self.stride, padding_of(self.padding, x.shape, window))


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

    ``dropout`` is the probability and ``seed`` the uint32 that fixes the mask; both are traced. ``rate`` is a
    probability of the layer's own instead; 0: nothing is ever dropped.
    """

    features: int
    bias: bool = True
    rate: float | None = None

    @nn.compact
    def __call__(
        self, x: Array, *, train: bool = False, dropout: ArrayLike = 0.0, seed: ArrayLike = 0
    ) -> Array:
        kernel = self.param("kernel", he_normal, (x.shape[-1], self.features)).astype(x.dtype)
        bias = self.param("bias", zeros, (self.features,)).astype(x.dtype) if self.bias else None
        if train and self.rate != 0:
            rate = dropout if self.rate is None else np.float32(self.rate)
            x = ops.dropout(x, jnp.asarray(rate), jnp.asarray(seed))
        return ops.dense(x, kernel, bias)
