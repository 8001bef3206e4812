"""The mlp space: each kind of edges, the classifiers and whole networks against direct numpy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nas.objectives.train import build
from nas.space import Architecture
from search_spaces.mlp import SPACE, Local, Units

IMAGE = (5, 6, 2)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def randomised(network, image_shape, seed=0):
    """A network's variables with all parameters drawn anew, biases and scales too; a shape at a time."""
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = dict(network.lazy_init(jax.random.key(0), image))
    leaves, structure = jax.tree.flatten(variables["params"])
    drawn = [normal((seed, i), *leaf.shape) / 2 for i, leaf in enumerate(leaves)]
    return {**variables, "params": jax.tree.unflatten(structure, drawn)}


def network_of(num_classes=4, **choices):
    depth = sum(name.startswith("edges_") for name in choices)
    hidden = (
        {"dimensions": 1, "border": "cut", "normalisation": "none", "activation": "tanh"} if depth else {}
    )
    arch = {"depth": depth, **hidden, "bias": True, "classifier": "softmax", **choices}
    return build(SPACE, Architecture(arch), num_classes)


def pairs(size, field):
    """All (place, tap, place seen) in a line with nothing beyond its ends."""
    before = (field - 1) // 2
    for place in range(size):
        for tap in range(field):
            if 0 <= place - before + tap < size:
                yield place, tap, place - before + tap


def by_numpy(edges, x, kernel, field, dimensions, border):
    """Maps of a local layer or a convolution, sum by sum; x [B, H, W, C]."""
    rows, columns = x.shape[1:3]
    down = list(pairs(rows, field if dimensions == 2 else 1))
    along = list(pairs(columns, field))
    y = np.zeros((*x.shape[:3], kernel.shape[-1]), np.float32)
    for a, (i, r, p) in enumerate(down):
        for b, (j, s, q) in enumerate(along):
            weights = {"convolution": (r, s), "cut": (a, b), "zeros": (i, j, r, s)}
            y[:, i, j] += x[:, p, q] @ kernel[weights[border if edges == "local" else edges]]
    return y


KINDS = [
    ("full", 1, "cut"),
    ("local", 1, "cut"),
    ("local", 1, "zeros"),
    ("local", 2, "cut"),
    ("local", 2, "zeros"),
    ("convolution", 1, "cut"),
    ("convolution", 2, "cut"),
]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("edges", "dimensions", "border"), KINDS)
@pytest.mark.some(3)
def test_one_hidden_layer_equals_numpy(edges, dimensions, border, bias):
    own = {"width_1": 16} if edges == "full" else {"maps_1": 2, "field_1": 5}
    network = network_of(edges_1=edges, dimensions=dimensions, border=border, bias=bias, **own)
    variables = randomised(network, IMAGE)
    params = variables["params"]
    x = normal(1, 3, *IMAGE)
    if edges == "full":
        sums = x.reshape(3, -1) @ params["edges_1"]["kernel"]
    else:
        places = x if dimensions == 2 else x.reshape(3, 1, -1, 1)
        sums = by_numpy(edges, places, params["edges_1"]["kernel"], 5, dimensions, border)
    if bias:  # one a unit; of a convolution, one a map
        of_units = params["units_1"]["norm"]["bias"]
        assert of_units.shape == (2,) if edges == "convolution" else (sums[0].size,)
        sums = sums + of_units.reshape((1, 1, 1, 2) if edges == "convolution" else (1, *sums.shape[1:]))
    logits = np.tanh(sums).reshape(3, -1) @ params["logits"]["kernel"]
    logits += params["logits"]["bias"] if bias else 0.0
    np.testing.assert_allclose(network.apply(variables, x), logits, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_layers_of_all_kinds_in_two_dimensions():
    """16 units lie on a grid of 4x4 for the local layer behind them; its maps are what the next one sees."""
    network = network_of(
        edges_1="full",
        width_1=16,
        edges_2="local",
        maps_2=2,
        field_2=3,
        edges_3="convolution",
        maps_3=4,
        field_3=3,
        dimensions=2,
        activation="relu",
        bias=False,
    )
    variables = randomised(network, IMAGE)
    kernels = [variables["params"][f"edges_{i}"]["kernel"] for i in (1, 2, 3)]
    x = normal(1, 3, *IMAGE)
    h = np.maximum(x.reshape(3, -1) @ kernels[0], 0).reshape(3, 4, 4, 1)
    h = np.maximum(by_numpy("local", h, kernels[1], 3, 2, "cut"), 0)
    h = np.maximum(by_numpy("convolution", h, kernels[2], 3, 2, "cut"), 0)
    logits = h.reshape(3, -1) @ variables["params"]["logits"]["kernel"]
    np.testing.assert_allclose(network.apply(variables, x), logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("normalisation", ["batch", "layer"])
@pytest.mark.parametrize("edges", ["full", "local"])
@pytest.mark.some(2)
def test_normalisation_equals_numpy(edges, normalisation):
    """Batch: each unit of a full layer, each map of the others, over the batch; layer: over a layer's units."""
    units = Units(normalisation, "identity", bias=True, shared=False)
    x = normal(0, 7, *((5,) if edges == "full" else (2, 3, 2)))
    variables = units.init(jax.random.key(0), x)
    found, _ = units.apply(variables, x, train=True, mutable=["batch_stats"])
    axes = tuple(range(1, x.ndim)) if normalisation == "layer" else tuple(range(x.ndim - 1))
    spread = np.sqrt(x.var(axes, keepdims=True) + 1e-5)
    np.testing.assert_allclose(found, (x - x.mean(axes, keepdims=True)) / spread, rtol=0, atol=1e-4)


@pytest.mark.parametrize("field", [3, 4])
def test_borders_differ_in_weights_that_see_nothing(field):
    """The same function, and the weights beyond the border have no gradient."""
    x = normal(0, 2, 4, 5, 3)
    cut, zeros = Local(2, field, border="cut"), Local(2, field, border="zeros")
    weights = normal(1, 4, 5, field, field, 3, 2)
    rows, columns = list(pairs(4, field)), list(pairs(5, field))
    kept = np.asarray([[weights[i, j, r, s] for j, s, _ in columns] for i, r, _ in rows])

    def loss(layer, kernel):
        return jnp.sum(jnp.tanh(layer.apply({"params": {"kernel": kernel}}, x)))

    value, gradient = jax.jit(jax.value_and_grad(lambda kernel: loss(cut, kernel)))(kept)
    same, whole = jax.jit(jax.value_and_grad(lambda kernel: loss(zeros, kernel)))(weights)
    np.testing.assert_allclose(value, same, rtol=1e-5)
    expected = np.zeros_like(weights)
    for a, (i, r, _) in enumerate(rows):
        for b, (j, s, _) in enumerate(columns):
            expected[i, j, r, s] = gradient[a, b]
    np.testing.assert_allclose(whole, expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_two_classes_by_one_logistic_unit():
    """Softmax cross-entropy of (0, z) is the logistic loss log(1 + exp(-t z)), t = 1 or -1; so its gradient."""
    network = network_of(num_classes=2, classifier="logistic")
    variables = randomised(network, IMAGE)
    x = normal(1, 6, *IMAGE)
    labels = np.asarray([0, 1, 1, 0, 1, 0])

    def loss(params):
        logits = network.apply({"params": params}, x)
        return optax.softmax_cross_entropy(logits, jax.nn.one_hot(labels, 2)).mean()

    value, gradient = jax.value_and_grad(loss)(variables["params"])
    unit = variables["params"]["differences"]
    flat, t = x.reshape(6, -1).astype(np.float64), 2 * labels - 1
    z = flat @ unit["kernel"][:, 0] + unit["bias"]
    assert np.abs(z).max() > 3
    np.testing.assert_allclose(value, np.log1p(np.exp(-t * z)).mean(), rtol=1e-5)
    slope = -t / (1 + np.exp(t * z)) / 6
    np.testing.assert_allclose(gradient["differences"]["kernel"][:, 0], flat.T @ slope, atol=1e-5)
    np.testing.assert_allclose(gradient["differences"]["bias"], [slope.sum()], atol=1e-5)


def test_logistic_classifier_of_several_classes():
    network = network_of(num_classes=4, classifier="logistic")
    variables = randomised(network, IMAGE)
    x = normal(1, 3, *IMAGE)
    unit = variables["params"]["differences"]
    logits = network.apply(variables, x)
    np.testing.assert_array_equal(logits[:, 0], 0)
    np.testing.assert_allclose(logits[:, 1:], x.reshape(3, -1) @ unit["kernel"] + unit["bias"], atol=1e-4)


def test_dropout_is_of_hidden_units_never_of_pixels():
    x = normal(0, 4, *IMAGE)
    noise = {"dropout": jnp.float32(0.5), "seed": jnp.uint32(1)}

    def dropped(network):
        variables = randomised(network, IMAGE)
        return not np.allclose(
            network.apply(variables, x, train=True, **noise), network.apply(variables, x, train=False)
        )

    assert not dropped(network_of())
    one = network_of(edges_1="full", width_1=16)
    assert dropped(one)
    variables = randomised(one, IMAGE)
    _, kept = one.apply(
        variables, x, train=True, **noise, capture_intermediates=True, mutable=["intermediates"]
    )
    *_, sums = kept["intermediates"]["edges_1"]["__call__"]
    np.testing.assert_allclose(sums, x.reshape(4, -1) @ variables["params"]["edges_1"]["kernel"], atol=1e-4)


@pytest.mark.parametrize("border", ["cut", "zeros"])
@pytest.mark.parametrize("dimensions", [1, 2])
@pytest.mark.slow
def test_first_weights_have_variance_two_over_fan_in(dimensions, border):
    """He et al. 2015; a unit's fan-in is its field times its inputs, however many units there are."""
    layer = Local(8, 5, dimensions, border)
    shape = (1, 1, 300, 3) if dimensions == 1 else (1, 12, 12, 3)
    made = layer.lazy_init(jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))
    fan_in = 3 * 5**dimensions
    [kernel] = jax.tree.leaves(made)
    assert float(kernel.std()) == pytest.approx(np.sqrt(2 / fan_in), rel=0.05)
