"""Multiply-adds of traced programs: counted by hand, whatever computes them."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax import lax

from nas.cpu.edges import separable_conv2d
from nas.nn.count import count_macs
from nas.nn.layers import conv2d, local2d, local_response_norm
from tests.arrays import normal


def conv(x, w, *, strides=(1, 1), padding: Any = "SAME", groups=1):
    return lax.conv_general_dilated(
        x, w, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )


def gradients(function, places):
    return jax.grad(lambda *arrays: function(*arrays).sum(), places)


def test_convolutions_count_a_tap_and_channel_for_each_output():
    """Also taps on padding; a gradient by the kernel or by the image as much as the value, which is traced too."""
    x, w = normal(0, 2, 9, 8, 6), normal(1, 3, 3, 6, 10)
    once = 2 * 9 * 8 * 10 * 9 * 6
    assert count_macs(conv, x, w) == once
    assert count_macs(conv2d, x, w) == once
    assert count_macs(gradients(conv, (0, 1)), x, w) == 3 * once
    grouped = lambda x, w: conv(x, w, groups=2)  # noqa: E731
    assert count_macs(grouped, x, w[:, :, :3]) == once // 2
    assert count_macs(lambda x, w: conv(x, w, strides=(2, 2)), x, w) == 2 * 5 * 4 * 10 * 9 * 6


def test_zeros_between_dilated_inputs_are_not_multiplied():
    x, w = normal(0, 2, 8, 8, 6), normal(1, 2, 2, 6, 10)
    once = 2 * 4 * 4 * 10 * 4 * 6
    strided = lambda x, w: conv(x, w, strides=(2, 2), padding="VALID")  # noqa: E731
    assert count_macs(strided, x, w) == once
    assert count_macs(gradients(strided, 0), x, w) == 2 * once
    transposed = lambda x, w: lax.conv_transpose(x, w, (2, 2), "SAME")  # noqa: E731
    assert count_macs(transposed, x, w) == math.prod(x.shape) * 4 * 10


SEPARABLE = {"strides": (2, 2), "padding": ((1, 1), (1, 1)), "dilation": (1, 1)}


@pytest.mark.parametrize("places", [(0,), (1,), (0, 1, 2)], ids=str)
def test_a_separable_convolution_counts_as_its_two(places):
    x, depthwise, pointwise = normal(0, 19, 9, 8, 16), normal(1, 3, 3, 1, 16), normal(2, 1, 1, 16, 32)

    def together(x, w, p):
        return separable_conv2d(x, w, p, **SEPARABLE)

    def apart(x, w, p):
        return conv(conv(x, w, strides=(2, 2), padding=((1, 1), (1, 1)), groups=16), p)

    arrays = (x, depthwise, pointwise)
    assert count_macs(together, *arrays) == count_macs(apart, *arrays)
    assert count_macs(gradients(together, places), *arrays) == count_macs(gradients(apart, places), *arrays)


X, KERNEL = normal(0, 3, 5, 6, 2), normal(1, 3, 3, 3, 2, 2, 4)


def test_macs_of_local_windows_are_one_a_weight_and_image():
    def layer(x, kernel):
        return local2d(x, kernel, stride=2)

    once = 3 * KERNEL.size
    assert count_macs(layer, X, KERNEL) == once
    assert count_macs(jax.value_and_grad(lambda *a: (layer(*a) ** 2).sum(), (0, 1)), X, KERNEL) == 3 * once
    assert count_macs(jax.vmap(layer, (None, 0)), X, jnp.stack([KERNEL] * 5)) == 5 * once
    huge = jax.ShapeDtypeStruct((200, 200, 200, 200, 1, 10), jnp.float32)  # 16 billion weights
    image = jax.ShapeDtypeStruct((1, 200, 200, 1), jnp.float32)
    assert count_macs(local2d, image, huge) == 16_000_000_000


def test_normalisation_and_pooling_are_free():
    x = normal(0, 2, 8, 8, 16)
    for function in (
        local_response_norm,
        jax.grad(lambda x: local_response_norm(x).sum()),
        lambda x: nn.max_pool(nn.avg_pool(jax.nn.relu(x), (2, 2)), (2, 2)),
    ):
        assert count_macs(function, x) == 0


def test_control_flow():
    """A scan's body counts once a step, a while loop's once, and of branches the most expensive."""
    x, w = normal(0, 4, 7), normal(1, 7, 7)
    once = 4 * 7 * 7
    step = lambda x: jnp.tanh(x @ w)  # noqa: E731
    assert count_macs(step, x) == once
    assert count_macs(lambda x: lax.scan(lambda x, _: (step(x), None), x, length=5)[0], x) == 5 * once
    assert count_macs(lambda x: lax.while_loop(lambda x: x.sum() < 3, step, x), x) == once
    branches = lambda x: lax.cond(x.sum() > 0, lambda x: step(step(x)), step, x)  # noqa: E731
    assert count_macs(branches, x) == 2 * once
    assert count_macs(jax.jit(jax.checkpoint(step)), x) == once


def test_shapes_do():
    x, w = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((10**5, 10**3), (10**3, 10**4)))
    assert count_macs(jnp.matmul, x, w) == 10**12
