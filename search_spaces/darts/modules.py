"""The operations of the cells and what else their networks consist of."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from nas.cpu.edges import Unnormalised, separable_conv2d
from nas.errors import one_of
from nas.nn import noise
from nas.nn.layers import BatchNorm, average_pool, conv, conv2d, he_normal, max_pool
from search_spaces.darts.genotypes import OPERATIONS


def kernel(
    features: int, size: tuple[int, int] = (3, 3), stride: int | tuple[int, int] = 1, **others: Any
) -> nn.Conv:
    """A convolution padded as if on all sides alike: [B, H, W, C] -> [B, ceil(H / stride), …, features]."""
    padding = tuple(((k - 1) // 2, (k - 1) // 2) for k in size)
    return conv(features, size, stride, padding=padding, **others)


class Weights(nn.Module):
    """The kernel of a convolution that another layer carries out."""

    @nn.compact
    def __call__(self, shape: tuple[int, ...]) -> Array:
        return self.param("kernel", he_normal, shape)


def _norm(affine: bool, **others: Any) -> BatchNorm:
    """In a search, where it has no scale and bias, it has no running statistics: nothing there goes by them."""
    return BatchNorm(affine, tracked=affine, **others)


class SeparableConv(nn.Module):
    """Depthwise and pointwise convolution and normalisation, ``repeats`` times; its input is after a ReLU.

    ``count`` of them on one input, side by side in channels and in the last axis of their variables.
    """

    features: int
    kernel: int
    stride: int = 1
    dilation: int = 1
    repeats: int = 2
    affine: bool = True
    deferred: bool = False
    count: int = 1

    def side_by_side(self, count: int) -> SeparableConv:
        return self.clone(count=count)

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array | Unnormalised:
        if self.count > 1:
            x = jnp.concatenate([x] * self.count, -1)
        for k in range(1, self.repeats):
            norm = _norm(self.affine, activation="relu", name=f"norm_{k}")
            x = norm(self.convolved(x, k), train=train)
        x = self.convolved(x, self.repeats)
        norm = _norm(self.affine, deferred=self.deferred, name=f"norm_{self.repeats}")
        return norm(x, train=train)

    def convolved(self, x: Array, k: int) -> Array:
        """The k-th pair of convolutions."""
        channels, stride = x.shape[-1], 1 if k > 1 else self.stride
        features = self.features * self.count if k == self.repeats else channels
        depthwise = Weights(name=f"depthwise_{k}")((self.kernel, self.kernel, 1, channels)).astype(x.dtype)
        pointwise = Weights(name=f"pointwise_{k}")((1, 1, channels // self.count, features)).astype(x.dtype)
        pad = self.dilation * (self.kernel - 1) // 2
        at = {"strides": (stride, stride), "dilation": (self.dilation, self.dilation)}
        return separable_conv2d(
            x, depthwise, pointwise, padding=((pad, pad), (pad, pad)), groups=self.count, **at
        )


class PoolNorm(nn.Module):
    """3x3 pooling, in a supernet normalised (section 3.1: so that no operation outweighs by its scale)."""

    kind: str
    stride: int = 1
    normalised: bool = True

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        pool = max_pool if self.kind == "max" else average_pool
        x = pool(x, 3, self.stride, 1)
        return _norm(False, name="norm")(x, train=train) if self.normalised else x


class FactorizedReduce(nn.Module):
    """Half the resolution by two 1x1 convolutions, the second one pixel further; its input is after a ReLU."""

    features: int
    affine: bool = True
    deferred: bool = False

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array | Unnormalised:
        further = jnp.pad(x[:, 1:, 1:], ((0, 0), (0, 1), (0, 1), (0, 0)))
        half = self.features // 2
        parts = (
            kernel(half, (1, 1), 2, name="even")(x),
            kernel(self.features - half, (1, 1), 2, name="odd")(further),
        )
        norm = _norm(self.affine, deferred=self.deferred, name="norm")
        return norm(jnp.concatenate(parts, -1), train=train)


class PointwiseNorm(nn.Module):
    features: int
    affine: bool = True

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        x = kernel(self.features, (1, 1), name="pointwise")(x)
        return _norm(self.affine, name="norm")(x, train=train)


class SeparateKernels(nn.Module):
    """A 1x7 and a 7x1 convolution, normalised (AmoebaNet's); its input is after a ReLU."""

    features: int
    stride: int = 1
    affine: bool = True

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        rows = kernel(self.features, (1, 7), (1, self.stride), name="rows")(x)
        columns = kernel(self.features, (7, 1), (self.stride, 1), name="columns")(rows)
        return _norm(self.affine, name="norm")(columns, train=train)


class Dropout(nn.Module):
    """Elements set to zero with probability ``dropout``: what Chen et al. 2019 do to skip connections."""

    @nn.compact
    def __call__(
        self, x: Array, *, train: bool = False, dropout: ArrayLike = 0.0, seed: ArrayLike = 0
    ) -> Array:
        return noise.dropout(x, dropout, seed) if train else x


class DropPath(nn.Module):
    """An image's map set to zero with probability ``drop_path``, the others scaled up (Larsson et al. 2017)."""

    @nn.compact
    def __call__(
        self, x: Array, *, train: bool = False, drop_path: ArrayLike = 0.0, seed: ArrayLike = 0
    ) -> Array:
        if not train:
            return x
        return x * noise.dropout(jnp.ones((x.shape[0], 1, 1, 1), x.dtype), drop_path, seed)


class AuxiliaryFeatures(nn.Module):
    """What the auxiliary classifier sees: a 5x5 average with stride 3, 128 and then 768 channels.

    ``imagenet``: stride 2, and the 768 channels not normalised, as the authors' code has it.
    """

    imagenet: bool = False

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        window = (min(5, x.shape[1]), min(5, x.shape[2]))
        x = average_pool(x, window, 2 if self.imagenet else 3, "VALID")
        x = BatchNorm(activation="relu", name="norm_1")(kernel(128, (1, 1), name="pointwise")(x), train=train)
        weights = self.param("kernel", he_normal, (2, 2, 128, 768))
        x = conv2d(x, weights, "VALID" if min(x.shape[1:3]) > 1 else "SAME")
        x = nn.relu(x) if self.imagenet else BatchNorm(activation="relu", name="norm_2")(x, train=train)
        return x.mean((1, 2))


def operation(
    name: str, features: int, stride: int, affine: bool, deferred: bool = False
) -> nn.Module | None:
    """The module of an operation but for its ReLU; None for an input passed on as it is.

    ``deferred``: it leaves the normalisation of its result, where it does not share it, to its reader.
    """
    if name not in OPERATIONS:
        raise one_of("operation", name, OPERATIONS)
    size = int(name[-1]) if name[-1].isdigit() else 0
    if name.startswith("sep_conv"):
        return SeparableConv(features, size, stride, affine=affine, deferred=deferred)
    if name.startswith("dil_conv"):
        return SeparableConv(features, size, stride, dilation=2, repeats=1, affine=affine, deferred=deferred)
    if name == "conv_7x1_1x7":
        return SeparateKernels(features, stride, affine)
    if name.endswith("pool_3x3"):
        return PoolNorm("max" if name.startswith("max") else "average", stride, normalised=not affine)
    return FactorizedReduce(features, affine, deferred) if stride > 1 else None


def takes_relu(name: str) -> bool:
    return not name.endswith("pool_3x3")
