"""The layers beside Flax's own, against loops, Flax and numbers by hand."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax

from nas.nn.layers import (
    BatchNorm,
    CellAverage,
    Dense,
    NormAct,
    Pool,
    average_pool,
    conv,
    conv2d,
    local2d,
    local_response_norm,
    max_pool,
)
from nas.nn.noise import dropout
from tests.arrays import close, normal

QUICKLY = {"xla_backend_optimization_level": 0}  # for references that run once


# ---- locally connected ----------------------------------------------------------------------------------------


def each_window(kernel_shape, stride):
    """Every window's place in the output and the part of the padded image that it sees."""
    rows, columns, kh, kw = kernel_shape[:4]
    for i, j in np.ndindex(rows, columns):
        top, left = i * stride, j * stride
        yield (i, j), (slice(None), slice(top, top + kh), slice(left, left + kw))


def by_loop(x, kernel, stride, pads):
    """The layer by its definition in numpy: a sum of products for each window."""
    padded = np.pad(x, ((0, 0), *pads, (0, 0)))
    out = np.zeros((len(x), *kernel.shape[:2], kernel.shape[5]), x.dtype)
    for place, window in each_window(kernel.shape, stride):
        out[:, *place] = np.tensordot(padded[window], kernel[place], 3)
    return out


def gradients_by_loop(x, kernel, dy, stride, pads):
    """How the sum of dy times `by_loop` changes with x and with the kernel, window by window."""
    padded = np.pad(x, ((0, 0), *pads, (0, 0)))
    dx, dw = np.zeros_like(padded), np.zeros_like(kernel)
    for place, window in each_window(kernel.shape, stride):
        dx[window] += np.tensordot(dy[:, *place], kernel[place], ((1,), (3,)))
        dw[place] = np.tensordot(padded[window], dy[:, *place], ((0,), (0,)))
    (top, _), (left, _) = pads
    return dx[:, top : top + x.shape[1], left : left + x.shape[2]], dw


def traced_loop(x, kernel, stride, pads):
    """`by_loop` in jnp, for derivatives of higher order."""
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    rows, columns = kernel.shape[:2]
    out = [
        jnp.tensordot(padded[window], kernel[place], 3) for place, window in each_window(kernel.shape, stride)
    ]
    return jnp.stack(out, 1).reshape(len(x), rows, columns, -1)


NONE = ((0, 0), (0, 0))
# x, kernel, stride, padding, what that is in pixels
LAYERS = {
    "same": ((3, 7, 6, 2), (7, 6, 3, 2, 2, 5), 1, "SAME", ((1, 1), (0, 1))),
    "valid, strided": ((33, 8, 9, 3), (3, 3, 4, 5, 3, 8), 2, "VALID", NONE),
    "three outputs": ((16, 5, 5, 4), (4, 4, 2, 2, 4, 3), 1, "VALID", NONE),
    "many images": ((130, 5, 5, 1), (4, 4, 2, 2, 1, 1), 1, "VALID", NONE),
    "a band of features": ((17, 1, 150, 1), (1, 150, 1, 3, 1, 1), 1, "SAME", ((0, 0), (1, 1))),
    "asymmetric": ((4, 6, 6, 1), (4, 6, 3, 3, 1, 7), 2, ((3, 1), (2, 5)), ((3, 1), (2, 5))),
    "gaps between windows": ((5, 8, 9, 2), (3, 3, 2, 2, 2, 11), 3, "VALID", NONE),
    "kernel larger than the image": ((2, 3, 2, 4), (3, 2, 5, 5, 4, 2), 1, "SAME", ((2, 2), (2, 2))),
    "windows on padding alone": ((3, 4, 4, 1), (4, 3, 1, 1, 1, 6), 3, ((5, 1), (0, 4)), ((5, 1), (0, 4))),
    "fully connected": ((20, 4, 5, 3), (1, 1, 4, 5, 3, 10), 1, "VALID", NONE),
}


@pytest.mark.parametrize("case", LAYERS)
@pytest.mark.some(5)
def test_local_value_and_gradients_equal_a_loop_over_windows(case):
    x_shape, kernel_shape, stride, padding, pads = LAYERS[case]
    x, kernel = normal(0, *x_shape), normal(1, *kernel_shape)
    seed = normal(2, x_shape[0], *kernel_shape[:2], kernel_shape[5])
    layer = functools.partial(local2d, stride=stride, padding=padding)

    @jax.jit
    def everything(x, kernel, seed):
        value, backward = jax.vjp(layer, x, kernel)
        return value, backward(seed), jax.jvp(layer, (x, kernel), (x[::-1], kernel[::-1]))[1]

    a, b = np.asarray(x), np.asarray(kernel)
    value = by_loop(a, b, stride, pads)
    tangent = by_loop(a[::-1], b, stride, pads) + by_loop(a, b[::-1], stride, pads)
    gradients = gradients_by_loop(a, b, np.asarray(seed), stride, pads)
    close(everything(x, kernel, seed), (value, gradients, tangent), rtol=0)


def test_local_value_by_hand():
    """One image 1 2 3 4, three windows of two: each with weights of its own."""
    kernel = jnp.asarray([[1, 0], [0, 10], [100, 100]], jnp.float32).reshape(1, 3, 1, 2, 1, 1)
    x = jnp.asarray([1, 2, 3, 4], jnp.float32).reshape(1, 1, 4, 1)
    assert local2d(x, kernel, padding="VALID").ravel().tolist() == [1, 30, 700]


@pytest.mark.slow
def test_local_gradients_equal_finite_differences():
    x, kernel = normal(3, 2, 5, 4, 2), normal(4, 3, 2, 3, 2, 2, 3)

    def loss(x, kernel):
        return jnp.sum(jnp.tanh(local2d(x, kernel, stride=2)) ** 2)

    dx, dw = jax.grad(loss, (0, 1))(x, kernel)
    for index in ((0, 0, 0, 0), (1, 4, 3, 1), (0, 2, 1, 0)):
        bump = jnp.zeros(x.shape).at[index].set(1e-2)
        numeric = (loss(x + bump, kernel) - loss(x - bump, kernel)) / 2e-2
        assert float(dx[index]) == pytest.approx(float(numeric), abs=2e-3)
    for index in ((0, 0, 2, 1, 0, 0), (2, 1, 0, 0, 1, 2), (1, 1, 1, 1, 0, 1)):
        bump = jnp.zeros(kernel.shape).at[index].set(1e-2)
        numeric = (loss(x, kernel + bump) - loss(x, kernel - bump)) / 2e-2
        assert float(dw[index]) == pytest.approx(float(numeric), abs=2e-3)


X, KERNEL = normal(0, 3, 5, 6, 2), normal(1, 3, 3, 3, 2, 2, 4)


def local_loss(x, kernel):
    return jnp.sum(jnp.tanh(local2d(x, kernel, stride=2)) ** 3)


def loop_loss(x, kernel):
    return jnp.sum(jnp.tanh(traced_loop(x, kernel, 2, ((1, 1), (0, 0)))) ** 3)


def as_the_loop(of, *, tolerance=2e-5):
    """``of(loss)`` is the same of both losses."""
    found = jax.jit(lambda: (of(local_loss), of(loop_loss)), compiler_options=QUICKLY)()
    close(*found, atol=tolerance, rtol=0)


def test_second_derivatives_of_local_layers():
    def forward_over_reverse(loss):
        return jax.jvp(jax.grad(loss, (0, 1)), (X, KERNEL), (X[::-1], KERNEL[::-1]))[1]

    def reverse_over_reverse(loss):
        def length(*arrays):
            return sum(jnp.sum(leaf**2) for leaf in jax.grad(loss, (0, 1))(*arrays))

        return jax.grad(length, (0, 1))(X, KERNEL)

    for product in (forward_over_reverse, reverse_over_reverse):
        as_the_loop(product, tolerance=1e-4)


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (1, 2)], ids=["images", "kernels", "both"])
@pytest.mark.some(1)
def test_vmap_of_local_layers(axes):
    x = X if axes[0] is None else jnp.stack([X, 2 * X, -X], axes[0])
    kernel = KERNEL if axes[1] is None else jnp.stack([KERNEL, -KERNEL, 0.5 * KERNEL], axes[1])
    as_the_loop(lambda loss: jax.vmap(jax.value_and_grad(loss, (0, 1)), axes)(x, kernel))


def test_per_example_gradients_of_members():
    kernels = jnp.stack([KERNEL, -2 * KERNEL])

    def gradients(loss):
        one = jax.vmap(lambda kernel, x: jax.grad(loss, 1)(x[None], kernel), (None, 0))
        return jax.vmap(one, (0, None))(kernels, X)

    as_the_loop(gradients)


@pytest.mark.slow
def test_half_and_double_precision_of_local_layers():
    y = local2d(X.astype(jnp.bfloat16), KERNEL.astype(jnp.bfloat16), stride=2)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), local2d(X, KERNEL, stride=2), atol=0.1)
    with jax.enable_x64(True):
        x, kernel = (jnp.asarray(np.asarray(array), jnp.float64) for array in (X, KERNEL))
        y = local2d(x, kernel, stride=2)
        assert y.dtype == jnp.float64
        np.testing.assert_allclose(y, by_loop(x, kernel, 2, ((1, 1), (0, 0))), rtol=1e-12)


def test_local_layers_on_other_platforms_are_products():
    text = export.export(jax.jit(jax.grad(local_loss, (0, 1))), platforms=["tpu"])(X, KERNEL).mlir_module()
    assert "dot_general" in text
    assert "custom_call" not in text


def test_shapes_alone_and_no_images():
    kernel = jax.ShapeDtypeStruct((191, 191, 10, 10, 1, 10), jnp.float32)
    image = jax.ShapeDtypeStruct((1, 200, 200, 1), jnp.float32)
    found = jax.eval_shape(functools.partial(local2d, padding="VALID"), image, kernel)
    assert found.shape[1:3] == (191, 191)
    assert local2d(X[:0], KERNEL, stride=2).shape == (0, 3, 3, 4)


# ---- convolution and dense ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "padding", "stride", "expected"),
    [
        (3, "SAME", 2, ((1, 1), (0, 1))),
        (3, "VALID", 1, NONE),
        (5, 2, 1, ((2, 2), (2, 2))),
        (5, "FIT", 1, NONE),
        (9, "FIT", 1, ((4, 4), (4, 4))),  # the image holds no window of 9
        (2, ((1, 0), (0, 2)), 1, ((1, 0), (0, 2))),
    ],
    ids=str,
)
def test_padding(size, padding, stride, expected):
    x, w = normal(0, 2, 7, 8, 3), normal(1, size, size, 3, 4)
    y = lax.conv_general_dilated(x, w, (stride, stride), expected, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    close(conv2d(x, w, padding, stride), y)
    layer = conv(4, size, stride, padding=padding)
    close(layer.apply({"params": {"kernel": w}}, x), y)
    drawn = layer.init(jax.random.key(0), x)["params"]["kernel"]
    assert drawn.shape == w.shape
    assert float(drawn.std()) == pytest.approx((2 / (size * size * 3)) ** 0.5, rel=0.2)  # He et al. 2015


def test_first_values_follow_from_the_key_alone():
    layer, x = conv(4, bias=True), normal(0, 1, 5, 5, 3)
    one = layer.init(jax.random.key(3), x)
    close(jax.jit(layer.init)(jax.random.key(3), x), one, atol=0, rtol=0)
    assert not one["params"]["bias"].any()
    assert (layer.init(jax.random.key(4), x)["params"]["kernel"] != one["params"]["kernel"]).all()


def test_dense_drops_its_inputs_in_training_alone():
    x = normal(0, 50, 40)
    layer = Dense(7)
    variables = layer.init(jax.random.key(0), x)
    inner: Any = variables["params"]
    run = functools.partial(layer.apply, variables)
    plain = x @ inner["kernel"] + inner["bias"]
    noise = {"dropout": np.float32(0.4), "seed": np.uint32(5)}
    close(run(x, **noise), plain)
    close(run(x, train=True), plain)
    close(run(x, train=True, **noise), dropout(x, 0.4, 5) @ inner["kernel"] + inner["bias"])
    own = Dense(7, rate=0.25)
    close(own.apply(variables, x, train=True, **noise), dropout(x, 0.25, 5) @ inner["kernel"] + inner["bias"])
    close(Dense(7, rate=0.0).apply(variables, x, train=True, **noise), plain)
    assert set(Dense(7, bias=False).init(jax.random.key(0), x)["params"]) == {"kernel"}


# ---- normalisation --------------------------------------------------------------------------------------------


def test_local_response_norm_is_the_papers():
    x = np.asarray(normal(0, 9, scale=20))
    expected = [
        x[i] / (2 + 1e-4 * sum(x[j] ** 2 for j in range(max(0, i - 2), min(9, i + 3)))) ** 0.75
        for i in range(9)
    ]
    np.testing.assert_allclose(local_response_norm(jnp.asarray(x)), expected, rtol=1e-6)


@pytest.mark.parametrize(("size", "beta"), [(1, 0.75), (4, 0.75), (5, 0.5), (5, 1.0), (5, 0.6)])
@pytest.mark.some(1)
def test_local_response_norm_of_any_size_and_power(size, beta):
    x, dy = normal(0, 3, 5, 20, scale=3), normal(1, 3, 5, 20)

    def by_window(x):
        """An even window reaches one channel further up."""
        padded = jnp.pad(jnp.square(x), ((0, 0), (0, 0), ((size - 1) // 2, size // 2)))
        around = sum(padded[..., k : k + 20] for k in range(size))
        return x / (2 + 0.1 * around) ** beta

    def found(x):
        return local_response_norm(x, size=size, beta=beta, alpha=0.1)

    close(found(x), by_window(x))
    close(jax.vjp(found, x)[1](dy), jax.vjp(by_window, x)[1](dy))


FLAX = {
    "batch": nn.BatchNorm(use_running_average=False, epsilon=1e-5, momentum=0.9, use_fast_variance=False),
    "layer": nn.LayerNorm(epsilon=1e-5, use_fast_variance=False),
}


@pytest.mark.parametrize("shortcut", [False, True])
@pytest.mark.parametrize("kind", FLAX)
def test_a_normalisation_is_flaxs_own(kind, shortcut):
    """Variables by the same names, values, statistics; then the sum and the activation."""
    x, other = normal(0, 6, 5, 4, 8, scale=2, shift=1), normal(1, 6, 5, 4, 8)
    layer = NormAct(kind, "silu")
    variables = layer.init(jax.random.key(0), x)
    variables = jax.tree.map(lambda leaf: leaf + normal(2, *leaf.shape, scale=0.1), variables)
    theirs = FLAX[kind].init(jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, theirs)
    more = [other] if shortcut else []
    y, updated = layer.apply(variables, x, *more, train=True, mutable=["batch_stats"])
    expected, statistics = FLAX[kind].apply(variables, x, mutable=["batch_stats"])
    close(y, nn.silu(sum(more, start=expected)))
    close(updated, statistics)
    if kind == "batch":
        still = FLAX[kind].clone(use_running_average=True).apply(variables, x)
        close(layer.apply(variables, x, *more), nn.silu(sum(more, start=still)))


def test_a_network_without_normalisation_has_a_bias():
    x, bias = normal(0, 2, 3, 3, 6), normal(1, 6)
    variables = {"params": {"bias": bias}}
    close(NormAct("none", "relu").apply(variables, x), nn.relu(x + bias))
    close(NormAct("none", "relu").apply(variables, x, x), nn.relu(x + bias + x))
    close(NormAct("local_response", "relu").apply(variables, x), local_response_norm(nn.relu(x + bias)))


def test_batch_norm_by_the_batch_alone():
    """Neither affine nor tracked: no variables, and evaluation goes by the batch that it gets."""
    x = normal(0, 9, 4, 4, 5, scale=3, shift=2)
    layer = BatchNorm(affine=False, tracked=False)
    assert layer.init(jax.random.key(0), x) == {}
    normed = (x - x.mean((0, 1, 2))) / jnp.sqrt(x.var((0, 1, 2)) + 1e-5)
    for train in (False, True):
        close(layer.apply({}, x, train=train), normed)
    later: Any = BatchNorm(affine=False, tracked=False, deferred=True).apply({}, x)
    assert later.map is x
    close((later.mean, later.var), (x.mean((0, 1, 2)), x.var((0, 1, 2))))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("kind", ["none", "batch", "layer", "local_response"])
@pytest.mark.some(2)
def test_normalisations_keep_half_precision(kind, dtype):
    x = normal(0, 6, 5, 4, 8)
    layer = NormAct(kind, "relu")
    variables = layer.init(jax.random.key(0), x)
    y, _ = layer.apply(variables, x.astype(dtype), train=True, mutable=["batch_stats"])
    assert y.dtype == dtype
    expected, _ = layer.apply(variables, x, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(y.astype(jnp.float32), expected, atol=0.05)


# ---- pooling --------------------------------------------------------------------------------------------------


def test_pools_by_hand():
    x = jnp.arange(9.0).reshape(1, 3, 3, 1)
    assert max_pool(x, 2, 2).ravel().tolist() == [4, 5, 7, 8]
    assert average_pool(x, 2, 2).ravel().tolist() == [2, 3.5, 6.5, 8]  # of pixels in the image
    assert average_pool(x, 2, 2, count_include_pad=True).ravel().tolist() == [2, 1.75, 3.25, 2]
    assert average_pool(x, 3, 1, 1).ravel()[:2].tolist() == [2, 2.5]
    assert max_pool(x, 2, 2, "FIT").ravel().tolist() == [4]
    assert max_pool(-x, 3, 2, 1).ravel().tolist() == [0, -1, -3, -4]  # padding is never the maximum
    for kind, expected in {
        "max": [4, 5, 7, 8],
        "average": [2, 3.5, 6.5, 8],
        "overlapping_max": [4, 5, 7, 8],
    }.items():
        pooled: Any = Pool(kind).apply({}, x)
        assert pooled.ravel().tolist() == expected
    averages: list[Any] = [CellAverage(cells).apply({}, x) for cells in (2, 4)]
    assert averages[0].tolist() == [[2, 3.5, 6.5, 8]]
    assert averages[1].tolist() == [list(range(9))]


@pytest.mark.parametrize("window", [(3, 2), (4, 4), (2, 5)])
@pytest.mark.parametrize("padding", ["SAME", "VALID", ((1, 0), (0, 1))], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.some(6)
def test_average_pooling_is_flaxs_own(window, padding, stride):
    x, seed = normal(0, 2, 7, 9, 3), normal(1, 2, 7, 9, 3)

    def flax(x):
        return nn.avg_pool(x, window, (stride, stride), padding, count_include_pad=False)

    def found(x):
        return average_pool(x, window, stride, padding)

    close(found(x), flax(x))
    dy = seed[:, : flax(x).shape[1], : flax(x).shape[2]]
    close(jax.vjp(found, x)[1](dy), jax.vjp(flax, x)[1](dy))
