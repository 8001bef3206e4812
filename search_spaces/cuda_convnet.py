"""The ``cuda_convnet`` space: the three-layer network of Krizhevsky's cuda-convnet and what Li et al. 2018 vary in it.

Three convolutions of 5x5 (``width``, ``width`` and 2 ``width`` channels), each followed by ReLU and 3x3 pooling of
stride 2 (maximum, average, average; the first pools before its ReLU), the first two also by local response
normalisation within each channel's 3x3 neighbourhoods; one dense layer. What is searched is how it is trained: the
learning rate and how often it is divided by 10, the L2 penalty of each layer, scale and power of the normalisation
(Hyperband, table 2; everything else as in the authors' code: github liamcli/hyperband_benchmarks, ``cifar10``).

The ranges of learning rate and penalties are for pixels from 0 to 255 with their mean subtracted; images arrive divided
by their standard deviation, so the network first multiplies them by 64, which is about that of natural images.
Different from the authors' Caffe: biases have the learning rate of the weights, not twice that.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from nas.nn.graph import Builder, Graph
from nas.nn.layers import Dense, Flatten, NormAct, Pool, average_pool, conv, gaussian
from nas.space import Architecture, Categorical, LogUniform, SearchSpace, Uniform
from search_spaces.named import Named

PIXEL_STD = 64.0


class Scale(nn.Module):
    """Multiplies by a constant."""

    by: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return x * self.by


class WithinChannelNorm(nn.Module):
    """Divides each pixel by ``(1 + scale * mean of the squares around it) ** power``; [B, H, W, C].

    The mean is over 3x3 pixels of the same channel, those outside the image being 0 (Caffe's LRN, within channels).
    """

    scale: float
    power: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        around = average_pool(jnp.square(x), 3, 1, count_include_pad=True)
        return x * jnp.power(1 + self.scale * around, -self.power).astype(x.dtype)


def build(arch: Architecture, num_classes: int) -> Graph:
    """The network of a ``cuda_convnet`` architecture: [B, H, W, C] -> logits [B, num_classes]."""
    b = Builder()
    width = arch["width"]
    response = WithinChannelNorm(arch["norm_scale"], arch["norm_power"])
    relu = NormAct(
        "none", "relu"
    )  # with the convolution's bias; it commutes with the maximum behind the first
    average = Pool("average", window=3)
    x = b.add("conv_1", conv(width, 5, kernel_init=gaussian(1e-4)), b.add("pixels", Scale(PIXEL_STD), 0))
    x = b.add("pool_1", Pool("max", window=3), b.add("relu_1", relu, x))
    x = b.add("conv_2", conv(width, 5, kernel_init=gaussian(0.01)), b.add("norm_1", response, x))
    x = b.add("pool_2", average, b.add("relu_2", relu, x))
    x = b.add("conv_3", conv(2 * width, 5, kernel_init=gaussian(0.01)), b.add("norm_2", response, x))
    x = b.add("pool_3", average, b.add("relu_3", relu, x))
    b.add("dense", Dense(num_classes, rate=0.0, kernel_init=gaussian(0.01)), b.add("flatten", Flatten(), x))
    return b.graph()


_CONV_PENALTY = LogUniform(5e-5, 5.0, changes_program=False)
SPACE = SearchSpace(
    name="cuda_convnet",
    choices={
        "width": Categorical((8, 16, 32)),
        "learning_rate": LogUniform(5e-5, 5.0, changes_program=False),
        "schedule": Categorical(("constant", "step_1", "step_2", "step_3"), changes_program=False),
        "weight_decay_conv_1": _CONV_PENALTY,
        "weight_decay_conv_2": _CONV_PENALTY,
        "weight_decay_conv_3": _CONV_PENALTY,
        "weight_decay_dense": LogUniform(5e-3, 500.0, changes_program=False),
        "norm_scale": LogUniform(5e-6, 5.0),
        "norm_power": Uniform(0.01, 3.0),
        "batch_size": Categorical((100,)),
        "optimiser": Categorical(("momentum",)),
    },
    build=build,
    search_within=("width=32",),
)

NAMED = {
    "cuda_convnet_18": Named.of(
        "cuda_convnet",
        (32, 32, 3),
        10,
        89_578,
        "cuda-convnet's layers-18pct (18 % test error): the sum over its layers, 2,432 + 25,632 + 51,264 + 10,250",
        width=32,
        learning_rate=0.001,
        schedule="step_3",
        weight_decay_conv_1=0.004,
        weight_decay_conv_2=0.004,
        weight_decay_conv_3=0.004,
        weight_decay_dense=1.0,
        norm_scale=5e-5,
        norm_power=0.75,
        batch_size=100,
        optimiser="momentum",
    )
}
