"""The Flax layers that the spaces share beside Flax's own: NHWC images, float32 parameters.

A layer is called as ``layer(*inputs)``, with those of ``train=…`` and the traced numbers of a step that its call names
(`nas.nn.call`); `nn.Conv`, `nn.Dense` and `nn.LayerNorm` are nodes of a network as they are. Parameters are drawn by
`drawn` below.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jax.typing import ArrayLike

from nas.cpu.edges import Unnormalised, add, relu
from nas.cpu.function import named
from nas.cpu.normalisation import FUSED, batch_norm, batch_norm_inference, moments
from nas.errors import InputError, one_of
from nas.nn import noise

NORMALISATIONS = ("none", "batch", "layer", "local_response")
POOLINGS = ("none", "max", "average", "overlapping_max")
ACTIVATIONS = ("relu", "gelu", "silu", "tanh")
STATISTICS_MOMENTUM = 0.9  # of batch normalisation's running mean and variance
EPSILON = 1e-5

Shape = tuple[int, ...]


# ---- parameters ------------------------------------------------------------------------------------------------


def drawn(key: Array, shape: Shape, draw: Callable[[np.random.Generator], np.ndarray]) -> Array:
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


def he_normal(key: Array, shape: Shape, dtype: Any = None, *, fan_in: int | None = None) -> Array:
    """He et al. 2015: normal with variance 2 / ``fan_in``, by default all axes of ``shape`` but the last."""
    std = np.sqrt(2.0 / (fan_in or np.prod(shape[:-1])))
    return drawn(key, shape, lambda rng: rng.standard_normal(shape, np.float32) * std)


def gaussian(std: float) -> Callable[..., Array]:
    """An initialiser: normal with mean 0 and ``std``."""

    def initial(key: Array, shape: Shape, dtype: Any = None) -> Array:
        return drawn(key, shape, lambda rng: rng.standard_normal(shape, np.float32) * std)

    return initial


def zeros(key: Array, shape: Shape, dtype: Any = None) -> Array:
    return jnp.asarray(np.zeros(shape, np.float32))  # jnp.zeros compiles a program for each shape


def ones(key: Array, shape: Shape, dtype: Any = None) -> Array:
    return jnp.asarray(np.ones(shape, np.float32))


# ---- convolution and dense -------------------------------------------------------------------------------------

Padding = str | int | tuple[tuple[int, int], ...]


def padding_of(padding: Padding, image: Sequence[int], extent: int) -> Any:
    """What JAX calls a layer's ``padding`` of square windows of ``extent`` pixels over ``image`` [.., H, W, C].

    "SAME" and "VALID" as they are; "FIT" is "VALID" where the image holds a window and "SAME" where it is
    too small, so that networks for large images run on small ones; a number: so many pixels on every side;
    ((top, bottom), (left, right)) pixels.
    """
    if padding == "FIT":
        return "VALID" if min(image[-3:-1]) >= extent else "SAME"
    return ((padding, padding), (padding, padding)) if isinstance(padding, int) else padding


class FitConv(nn.Module):
    """`nn.Conv` by square kernels with the padding "FIT" (`padding_of`) and the same parameters."""

    features: int
    kernel: int
    stride: int = 1
    groups: int = 1
    bias: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        padding = padding_of("FIT", x.shape, self.kernel)
        inner = conv(
            self.features, self.kernel, self.stride, groups=self.groups, padding=padding, bias=self.bias
        )
        nn.share_scope(self, inner)
        return inner(x)


def conv(
    features: int,
    kernel: int | tuple[int, int] = 3,
    stride: int | tuple[int, int] = 1,
    *,
    groups: int = 1,
    dilation: int = 1,
    padding: Padding = "SAME",
    bias: bool = False,
    kernel_init: Callable[..., Array] = he_normal,
    **others: Any,
) -> Any:
    """`nn.Conv` [B, H, W, C] -> [B, H', W', features] without bias and drawn by `he_normal` unless told otherwise."""
    if padding == "FIT":
        return FitConv(features, kernel, stride, groups, bias)  # type: ignore[arg-type]
    size = (kernel, kernel) if isinstance(kernel, int) else kernel
    return nn.Conv(
        features, size, strides=stride, padding=padding_of(padding, (), 0), kernel_dilation=dilation,
        feature_group_count=groups, use_bias=bias, kernel_init=kernel_init, bias_init=zeros, **others,
    )  # fmt: skip


def conv2d(x: Array, kernel: Array, padding: Padding = "SAME", stride: int = 1, groups: int = 1) -> Array:
    """Cross-correlation of ``x`` [B, H, W, C] with a ``kernel`` [kh, kw, C / groups, O] that a layer makes itself."""
    return lax.conv_general_dilated(
        x, kernel.astype(x.dtype), (stride, stride), padding_of(padding, x.shape, kernel.shape[0]),
        dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups,
    )  # fmt: skip


@named("padding", "stride")
def local2d(x: Array, kernel: Array, padding: Padding = "SAME", stride: int = 1) -> Array:
    """Cross-correlation whose every output unit has weights of its own: no two windows share any.

    Images ``x`` [B, H, W, C] and ``kernel`` [H', W', kh, kw, C, O] give [B, H', W', O], as many windows as a
    convolution has. Weights that fall on padding meet zeros.
    """
    outputs, taps = kernel.shape[:2], kernel.shape[2:4]
    pads = padding_of(padding, x.shape, taps[0])
    if isinstance(pads, str):
        pads = lax.padtype_to_pads(x.shape[1:3], taps, (stride, stride), pads)
    windows = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    for axis, size, count in ((1, taps[0], outputs[0]), (3, taps[1], outputs[1])):
        seen = [lax.slice_in_dim(windows, k, k + (count - 1) * stride + 1, stride, axis) for k in range(size)]
        windows = jnp.stack(seen, axis + 1)
    return jnp.einsum("bhiwjc,hwijco->bhwo", windows, kernel.astype(x.dtype))


class Dense(nn.Module):
    """Dropout of the inputs, then `nn.Dense`: [B, I] -> [B, features].

    ``dropout`` is the probability and ``seed`` the uint32 that fixes the mask; both are traced. ``rate`` is a
    probability of the layer's own instead; 0: nothing is ever dropped.
    """

    features: int
    bias: bool = True
    rate: float | None = None
    kernel_init: Callable[..., Array] = he_normal

    @nn.compact
    def __call__(
        self, x: Array, *, train: bool = False, dropout: ArrayLike = 0.0, seed: ArrayLike = 0
    ) -> Array:
        inner = nn.Dense(self.features, use_bias=self.bias, kernel_init=self.kernel_init, bias_init=zeros)
        nn.share_scope(self, inner)
        if train and self.rate != 0:
            x = noise.dropout(x, dropout if self.rate is None else np.float32(self.rate), seed)
        return inner(x)


# ---- normalisation and activation ------------------------------------------------------------------------------


FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "identity": lambda z: z,
    "relu": relu,
    "relu6": jax.nn.relu6,
    "leaky_relu": jax.nn.leaky_relu,
    "elu": jax.nn.elu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "hard_swish": jax.nn.hard_swish,
}
"""Activations by name."""


def activation(name: str) -> Callable[[Array], Array]:
    """The activation called ``name``. Raises InputError."""
    if name not in FUNCTIONS:
        raise one_of("activation", name, FUNCTIONS)
    return FUNCTIONS[name]


@named("eps")
def layer_norm(x: Array, scale: Array, bias: Array, *, eps: float = EPSILON) -> Array:
    """Each pixel of x [..., C] normalised over its channels, times scale plus bias [C] (Ba et al. 2016)."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = wide.mean(-1, keepdims=True)
    var = jnp.square(wide - mean).mean(-1, keepdims=True)
    return ((wide - mean) * lax.rsqrt(var + eps) * scale + bias).astype(x.dtype)


class NormAct(nn.Module):
    """Normalisation, an optional residual sum, activation: ``act(norm(x) + shortcut)``.

    ``batch``: Ioffe and Szegedy 2015; ``layer``: over channels at each pixel, as in ConvNeXt;
    ``local_response``: AlexNet's, after bias and activation; ``none``: a bias. Variables are named as those of
    `nn.BatchNorm` and `nn.LayerNorm`.
    """

    normalisation: str = "batch"
    activation: str = "relu"
    epsilon: float = EPSILON

    @nn.compact
    def __call__(self, x: Array, shortcut: Array | None = None, *, train: bool = False) -> Array:
        if self.normalisation not in NORMALISATIONS:
            raise one_of("normalisation", self.normalisation, NORMALISATIONS)
        act = activation(self.activation)
        channels = (x.shape[-1],)
        if self.normalisation == "batch":
            fused = self.activation in FUSED and shortcut is None
            inner = BatchNorm(activation=self.activation if fused else "identity", epsilon=self.epsilon)
            nn.share_scope(self, inner)
            y = inner(x, train=train)
            if fused:
                return y
        elif self.normalisation == "layer":
            scale, bias = self.param("scale", ones, channels), self.param("bias", zeros, channels)
            y = layer_norm(x, scale, bias, eps=self.epsilon)
        else:
            y = x + self.param("bias", zeros, channels)
        y = act(y if shortcut is None else y + shortcut).astype(x.dtype)
        return local_response_norm(y) if self.normalisation == "local_response" else y


class BatchNorm(nn.Module):
    """`nn.BatchNorm` of x [B, H, W, C], and ``activation`` (of `nas.cpu.normalisation.FUSED`) in the same pass.

    ``affine``: with scale and bias. ``tracked``: evaluation goes by running statistics; else by the batch's own,
    whatever it is. ``deferred``: what goes by the batch's own statistics is left to its reader, a `Mix`, unactivated.
    """

    affine: bool = True
    activation: str = "identity"
    tracked: bool = True
    deferred: bool = False
    epsilon: float = EPSILON

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Any:
        channels = (x.shape[-1],)
        scale, bias = ones(x, channels), zeros(x, channels)
        if self.affine:
            scale, bias = self.param("scale", ones, channels), self.param("bias", zeros, channels)
        if not self.tracked:
            return self._by_batch(x, scale, bias)[0]
        mean = self.variable("batch_stats", "mean", lambda: zeros(x, channels))
        var = self.variable("batch_stats", "var", lambda: ones(x, channels))
        if not train:
            y = batch_norm_inference(x, scale, bias, mean.value, var.value, eps=self.epsilon)
            return activation(self.activation)(y)
        y, found = self._by_batch(x, scale, bias)
        if not self.is_initializing():
            mean.value, var.value = running((mean.value, var.value), found)
        return y

    def _by_batch(self, x: Array, scale: Array, bias: Array) -> tuple[Any, tuple[Array, Array]]:
        """The result, and the batch's mean and variance."""
        if self.deferred:
            found = moments(x)
            return Unnormalised(x, *found), found
        y, *found = batch_norm(x, scale, bias, activation=self.activation, eps=self.epsilon)
        return y, (found[0], found[1])


def running(old: tuple[Array, Array], new: tuple[Array, Array]) -> tuple[Array, ...]:
    """Running mean and variance after a batch that has those of ``new``."""
    return tuple(
        STATISTICS_MOMENTUM * a + (1 - STATISTICS_MOMENTUM) * b for a, b in zip(old, new, strict=True)
    )


@named("size", "alpha", "beta", "k")  # `nas.nn.count` knows it by its name
def local_response_norm(
    x: Array, *, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0
) -> Array:
    """``x / (k + alpha * sum of squares over size adjacent channels) ** beta``; [..., C].

    Krizhevsky et al. 2012, section 3.3, whose constants are the defaults. (PyTorch divides alpha by size.) The sums are
    one product with a matrix of bands, and the power 3/4 two roots: on CPU four times as fast as sums and `power`.
    """
    channel = np.arange(x.shape[-1])
    apart = channel[:, None] - channel
    band = (apart >= -((size - 1) // 2)) & (apart <= size - 1 - (size - 1) // 2)
    scale = k + alpha * (jnp.square(x) @ jnp.asarray(band, x.dtype))
    if beta == 0.75:
        return x * lax.rsqrt(scale * jnp.sqrt(scale))
    return x * jnp.power(scale, -beta)


class Activation(nn.Module):
    """An activation by its name in `FUNCTIONS`."""

    name_of: str = "relu"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return activation(self.name_of)(x)


# ---- pooling, joining ------------------------------------------------------------------------------------------


def max_pool(x: Array, window: int, stride: int, padding: Padding = "SAME") -> Array:
    return nn.max_pool(x, (window, window), (stride, stride), padding_of(padding, x.shape, window))


def average_pool(
    x: Array,
    window: int | tuple[int, int],
    stride: int | tuple[int, int],
    padding: Padding = "SAME",
    count_include_pad: bool = False,
) -> Array:
    """`nn.avg_pool`; of the pixels in the image unless ``count_include_pad``."""
    size, step = ((one, one) if isinstance(one, int) else one for one in (window, stride))
    if not x.size:
        raise InputError(f"pooling: a map of shape {x.shape} has no pixels")
    pads = padding_of(padding, x.shape, size[0])
    mean = nn.avg_pool(x, size, step, pads)
    if isinstance(pads, str):
        pads = lax.padtype_to_pads(x.shape[1:3], size, step, pads)
    if count_include_pad or not any(map(any, pads)):
        return mean
    inside = []  # of each axis, the share of every window that lies in the image
    for length, taps, by, (before, _), count in zip(
        x.shape[1:3], size, step, pads, mean.shape[1:3], strict=True
    ):
        first = np.arange(count) * by - before
        inside.append((np.minimum(first + taps, length) - np.maximum(first, 0)) / taps)
    return mean * jnp.asarray(1 / np.multiply.outer(*inside)[..., None], x.dtype)


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
    def __call__(self, x: Array) -> Array:
        if self.kind not in POOLINGS[1:]:
            raise one_of("pooling", self.kind, POOLINGS[1:])
        window = self.window or (3 if self.kind == "overlapping_max" else 2)
        pool = {"average": average_pool, "max": max_pool, "overlapping_max": max_pool}[self.kind]
        return pool(x, window, self.stride, self.padding)


class CellAverage(nn.Module):
    """Averages the map over a grid of at most ``cells`` x ``cells`` equal cells and flattens: [B, features]."""

    cells: int = 4

    @nn.compact
    def __call__(self, x: Array) -> Array:
        window = (-(-x.shape[1] // self.cells), -(-x.shape[2] // self.cells))
        return average_pool(x, window, window).reshape(x.shape[0], -1)


class Flatten(nn.Module):
    """[B, …] -> [B, features]."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return x.reshape(x.shape[0], -1)


class Sum(nn.Module):
    """The sum of maps of one shape."""

    @nn.compact
    def __call__(self, *maps: Array) -> Array:
        return add(*maps)


class Concat(nn.Module):
    """Joins feature maps of equal height and width along channels (Huang et al. 2017)."""

    @nn.compact
    def __call__(self, *maps: Array) -> Array:
        return jnp.concatenate(maps, -1)
