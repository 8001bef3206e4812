"""The locally connected layer: values and derivatives against loops over its windows, transformations, counts."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from nas import ops
from nas.errors import InputError
from nas.ops import native

QUICKLY = {"xla_backend_optimization_level": 0}  # for references that run once


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def each_window(kernel_shape, strides):
    """Every window's place in the output and the part of the padded image that it sees."""
    rows, columns, kh, kw = kernel_shape[:4]
    for i, j in np.ndindex(rows, columns):
        top, left = i * strides[0], j * strides[1]
        yield (i, j), (slice(None), slice(top, top + kh), slice(left, left + kw))


def by_loop(x, kernel, strides, pads):
    """The layer by its definition in numpy: a sum of products for each window."""
    padded = np.pad(x, ((0, 0), *pads, (0, 0)))
    out = np.zeros((len(x), *kernel.shape[:2], kernel.shape[5]), x.dtype)
    for place, window in each_window(kernel.shape, strides):
        out[:, *place] = np.tensordot(padded[window], kernel[place], 3)
    return out


def gradients_by_loop(x, kernel, dy, strides, pads):
    """How the sum of dy times `by_loop` changes with x and with the kernel, window by window."""
    padded = np.pad(x, ((0, 0), *pads, (0, 0)))
    dx, dw = np.zeros_like(padded), np.zeros_like(kernel)
    for place, window in each_window(kernel.shape, strides):
        dx[window] += np.tensordot(dy[:, *place], kernel[place], ((1,), (3,)))
        dw[place] = np.tensordot(padded[window], dy[:, *place], ((0,), (0,)))
    (top, _), (left, _) = pads
    return dx[:, top : top + x.shape[1], left : left + x.shape[2]], dw


def traced_loop(x, kernel, strides, pads):
    """`by_loop` in jnp, for derivatives of higher order."""
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    rows, columns = kernel.shape[:2]
    out = [
        jnp.tensordot(padded[window], kernel[place], 3)
        for place, window in each_window(kernel.shape, strides)
    ]
    return jnp.stack(out, 1).reshape(len(x), rows, columns, -1)


NONE = ((0, 0), (0, 0))
# x, kernel, strides, padding, what that is in pixels: chosen to reach every tile of sums and every border.
LAYERS = {
    "same": ((3, 7, 6, 2), (7, 6, 3, 2, 2, 5), (1, 1), "SAME", ((1, 1), (0, 1))),
    "valid, strided, whole tiles": ((33, 8, 9, 3), (3, 2, 4, 5, 3, 8), (2, 3), "VALID", NONE),
    "three outputs": ((16, 5, 5, 4), (4, 4, 2, 2, 4, 3), (1, 1), "VALID", NONE),
    "two blocks of images": ((130, 5, 5, 1), (4, 4, 2, 2, 1, 1), (1, 1), "VALID", NONE),
    "a band of features": ((17, 1, 150, 1), (1, 150, 1, 3, 1, 1), (1, 1), "SAME", ((0, 0), (1, 1))),
    "asymmetric": ((4, 6, 6, 1), (8, 6, 3, 3, 1, 7), (1, 2), ((3, 1), (2, 5)), ((3, 1), (2, 5))),
    "gaps between windows": ((5, 8, 9, 2), (2, 3, 2, 2, 2, 11), (4, 3), "VALID", NONE),
    "kernel larger than the image": ((2, 3, 2, 4), (3, 2, 5, 5, 4, 2), (1, 1), "SAME", ((2, 2), (2, 2))),
    "windows on padding alone": (
        (3, 4, 4, 1),
        (4, 3, 1, 1, 1, 6),
        (3, 3),
        ((5, 1), (0, 4)),
        ((5, 1), (0, 4)),
    ),
    "fully connected": ((20, 4, 5, 3), (1, 1, 4, 5, 3, 10), (1, 1), "VALID", NONE),
}


@pytest.fixture
def portable(monkeypatch):
    """The lowering for machines without a compiler."""
    jax.clear_caches()
    monkeypatch.setattr(native, "_found", lambda: native._Native(None, "portable kernels: test"))
    yield
    jax.clear_caches()


def agree(found, expected, *, tolerance=2e-5):
    """Leaves are equal up to rounding, measured by each leaf's largest value."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1.0, float(np.abs(b).max(initial=0))))


@pytest.mark.parametrize("case", LAYERS)
def test_value_and_gradients_equal_a_loop_over_windows(case):
    x_shape, kernel_shape, strides, padding, pads = LAYERS[case]
    x, kernel = normal(0, *x_shape), normal(1, *kernel_shape)
    seed = normal(2, x_shape[0], *kernel_shape[:2], kernel_shape[5])

    ours = functools.partial(ops.local2d, strides=strides, padding=padding)

    @jax.jit
    def everything(x, kernel, seed):
        value, backward = jax.vjp(ours, x, kernel)
        return value, backward(seed), jax.jvp(ours, (x, kernel), (x[::-1], kernel[::-1]))[1]

    a, b = np.asarray(x), np.asarray(kernel)
    value = by_loop(a, b, strides, pads)
    tangent = by_loop(a[::-1], b, strides, pads) + by_loop(a, b[::-1], strides, pads)
    gradients = gradients_by_loop(a, b, np.asarray(seed), strides, pads)
    agree(everything(x, kernel, seed), (value, gradients, tangent))


@pytest.mark.parametrize("case", ["same", "asymmetric"])
def test_portable_value_and_gradients(case, portable):
    test_value_and_gradients_equal_a_loop_over_windows(case)


def test_value_by_hand():
    """One image 1 2 3 4, three windows of two: each with weights of its own."""
    kernel = jnp.asarray([[1, 0], [0, 10], [100, 100]], jnp.float32).reshape(1, 3, 1, 2, 1, 1)
    x = jnp.asarray([1, 2, 3, 4], jnp.float32).reshape(1, 1, 4, 1)
    assert ops.local2d(x, kernel, padding="VALID").ravel().tolist() == [1, 30, 700]


def test_gradients_equal_finite_differences():
    x, kernel = normal(3, 2, 5, 4, 2), normal(4, 3, 2, 3, 2, 2, 3)

    def loss(x, kernel):
        return jnp.sum(jnp.tanh(ops.local2d(x, kernel, strides=(2, 2))) ** 2)

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
AT = {"strides": (2, 2), "padding": "SAME"}


def losses():
    def ours(x, kernel):
        return jnp.sum(jnp.tanh(ops.local2d(x, kernel, **AT)) ** 3)

    def loop(x, kernel):
        return jnp.sum(jnp.tanh(traced_loop(x, kernel, (2, 2), ((1, 1), (0, 0)))) ** 3)

    return ours, loop


def test_second_order():
    def forward_over_reverse(loss):
        return jax.jvp(jax.grad(loss, (0, 1)), (X, KERNEL), (X[::-1], KERNEL[::-1]))[1]

    def reverse_over_reverse(loss):
        def length(*arrays):
            return sum(jnp.sum(leaf**2) for leaf in jax.grad(loss, (0, 1))(*arrays))

        return jax.grad(length, (0, 1))(X, KERNEL)

    for product in (forward_over_reverse, reverse_over_reverse):
        ours, loop = losses()
        found = jax.jit(lambda p=product, a=ours, b=loop: (p(a), p(b)), compiler_options=QUICKLY)()
        agree(*found, tolerance=1e-4)


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (1, 2)], ids=["images", "kernels", "both"])
def test_vmap(axes):
    x = X if axes[0] is None else jnp.stack([X, 2 * X, -X], axes[0])
    kernel = KERNEL if axes[1] is None else jnp.stack([KERNEL, -KERNEL, 0.5 * KERNEL], axes[1])

    def gradients(loss):
        return jax.vmap(jax.value_and_grad(loss, (0, 1)), axes)(x, kernel)

    ours, loop = losses()
    agree(*jax.jit(lambda: (gradients(ours), gradients(loop)), compiler_options=QUICKLY)())


def test_per_example_gradients_of_members():
    kernels = jnp.stack([KERNEL, -2 * KERNEL])

    def gradients(loss):
        one = jax.vmap(lambda kernel, x: jax.grad(loss, 1)(x[None], kernel), (None, 0))
        return jax.vmap(one, (0, None))(kernels, X)

    ours, loop = losses()
    agree(*jax.jit(lambda: (gradients(ours), gradients(loop)), compiler_options=QUICKLY)())


def test_half_and_double_precision():
    y = ops.local2d(X.astype(jnp.bfloat16), KERNEL.astype(jnp.bfloat16), **AT)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), ops.local2d(X, KERNEL, **AT), atol=0.1)
    with jax.enable_x64(True):
        x, kernel = (jnp.asarray(np.asarray(array), jnp.float64) for array in (X, KERNEL))
        y = ops.local2d(x, kernel, **AT)
        assert y.dtype == jnp.float64
        np.testing.assert_allclose(y, by_loop(x, kernel, (2, 2), ((1, 1), (0, 0))), rtol=1e-12)


def test_other_platforms_run_xlas_own_operations():
    ours, _ = losses()
    gradient = jax.jit(jax.grad(ours, (0, 1)))
    text = export.export(gradient, platforms=["tpu"])(X, KERNEL).mlir_module()
    assert "dot_general" in text
    assert "custom_call" not in text


def test_shapes_alone_and_no_images():
    kernel = jax.ShapeDtypeStruct((191, 191, 10, 10, 1, 10), jnp.float32)
    image = jax.ShapeDtypeStruct((1, 200, 200, 1), jnp.float32)
    assert jax.eval_shape(functools.partial(ops.local2d, padding="VALID"), image, kernel).shape[1:3] == (
        191,
        191,
    )
    assert ops.local2d(X[:0], KERNEL, **AT).shape == (0, 3, 3, 4)


def test_macs_are_one_a_weight_and_image():
    def layer(x, kernel):
        return ops.local2d(x, kernel, **AT)

    once = 3 * KERNEL.size
    assert ops.count_macs(layer, X, KERNEL) == once
    assert (
        ops.count_macs(jax.value_and_grad(lambda *a: (layer(*a) ** 2).sum(), (0, 1)), X, KERNEL) == 3 * once
    )
    assert ops.count_macs(jax.vmap(layer, (None, 0)), X, jnp.stack([KERNEL] * 5)) == 5 * once
    huge = jax.ShapeDtypeStruct((200, 200, 200, 200, 1, 10), jnp.float32)  # 16 billion weights
    image = jax.ShapeDtypeStruct((1, 200, 200, 1), jnp.float32)
    assert ops.count_macs(ops.local2d, image, huge) == 16_000_000_000


@pytest.mark.parametrize(
    ("arrays", "arguments", "expected"),
    [
        ((X[0], KERNEL), {}, "local2d: x (5, 6, 2) and kernel (3, 3, 3, 2, 2, 4) are not"),
        ((X, KERNEL.astype(jnp.bfloat16)), {}, "local2d: x is float32 but kernel is bfloat16"),
        (
            (X[..., :1], KERNEL),
            AT,
            "local2d: x (3, 5, 6, 1) and kernel (3, 3, 3, 2, 2, 4) differ in channels",
        ),
        (
            (X, KERNEL),
            {},
            "local2d: kernel (3, 3, 3, 2, 2, 4) has weights for (3, 3) windows, x (3, 5, 6, 2) has",
        ),
        ((X, KERNEL), {"padding": "same"}, "local2d: padding='same' is not one of SAME, VALID"),
    ],
)
def test_wrong_input(arrays, arguments, expected):
    with pytest.raises(InputError, match=f"^{re.escape(expected)}"):
        ops.local2d(*arrays, **arguments)
