"""LeNet-5 against a direct computation in numpy, its dense form against torch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nas.training.network import initialise, outline
from search_spaces.lenet import CHOICES, NAMED, SPACE, build, codes, connections, table

TABLE = table(6, 16)


def images(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def variables_of(network, image_shape, seed=0):
    """First weights, with biases that are not zero."""
    rng = np.random.default_rng(seed)
    variables = initialise(network, seed, image_shape, "float32")
    return jax.tree.map(
        lambda leaf: leaf if leaf.ndim > 1 else leaf + rng.normal(0, 0.1, leaf.shape).astype(np.float32),
        variables,
    )


def logits_of(network, variables, x):
    return np.asarray(jax.jit(lambda v, x: network.apply(v, x, train=False))(variables, x))


def squash(a):
    return 1.7159 * np.tanh(2 / 3 * a)


def correlate(x, kernels):
    """Valid cross-correlation of [H, W] with [kh, kw]."""
    windows = np.lib.stride_tricks.sliding_window_view(x, kernels.shape)
    return (windows * kernels).sum((2, 3))


def lenet5_by_hand(params, image):
    """Section II.B map by map, in float64: squared distances [10] of one image [32, 32]."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    c1 = [squash(correlate(image, p["c1"]["kernel"][:, :, 0, k]) + p["c1_norm"]["bias"][k]) for k in range(6)]

    def subsample(name, maps):
        def of(k, a):
            total = a[::2, ::2] + a[1::2, ::2] + a[::2, 1::2] + a[1::2, 1::2]
            return squash(p[name]["coefficient"][k] * total + p[name]["bias"][k])

        return [of(k, a) for k, a in enumerate(maps)]

    s2, c3, number = subsample("s2", c1), [], 0
    for k, row in enumerate(TABLE):
        total = p["c3_norm"]["bias"][k]
        for i in row:
            total = total + correlate(s2[i], p["c3"]["kernel"][:, :, number])
            number += 1
        c3.append(squash(total))
    s4 = np.stack(subsample("s4", c3), -1).reshape(-1)
    c5 = squash(s4 @ p["c5"]["kernel"] + p["c5_norm"]["bias"])
    f6 = squash(c5 @ p["f6"]["kernel"] + p["f6_norm"]["bias"])
    return ((f6 - codes(10, 84)) ** 2).sum(-1)


@pytest.mark.parametrize("size", [32, 28])
def test_lenet5_is_the_paper_s_computation(size):
    network = build(NAMED["lenet5"].arch, 10)
    variables = variables_of(network, (size, size, 1))
    variables["params"]["f6"]["kernel"] *= 20  # the first weights are small: the outputs would all be alike
    x = images((3, size, size, 1))
    margin = (32 - size) // 2
    expected = [-lenet5_by_hand(variables["params"], np.pad(image[..., 0], margin)) for image in x]
    assert np.ptp(expected[0]) > 1
    np.testing.assert_allclose(logits_of(network, variables, x), expected, atol=1e-4)


@pytest.mark.parametrize("size", [32, 28])
def test_dense_form_is_torch_s(size):
    torch = pytest.importorskip("torch")
    f = torch.nn.functional
    network = build(NAMED["lenet5_dense"].arch, 10)
    variables = variables_of(network, (size, size, 1))
    p = jax.tree.map(lambda leaf: torch.from_numpy(np.array(leaf)), variables["params"])
    x = images((3, size, size, 1))
    h = torch.from_numpy(x.transpose(0, 3, 1, 2))
    for c in ("c1", "c3"):
        padding = 2 if (c, size) == ("c1", 28) else 0
        h = f.conv2d(h, p[c]["kernel"].permute(3, 2, 0, 1), p[f"{c}_norm"]["bias"], padding=padding)
        h = f.max_pool2d(torch.relu(h), 2)
    h = h.permute(0, 2, 3, 1).flatten(1)
    for d in ("c5", "f6"):
        h = torch.relu(h @ p[d]["kernel"] + p[f"{d}_norm"]["bias"])
    expected = (h @ p["logits"]["kernel"] + p["logits"]["bias"]).numpy()
    np.testing.assert_allclose(logits_of(network, variables, x), expected, atol=1e-4)


def test_cross_entropy_of_the_logits_is_the_map_loss_without_rubbish():
    """Equation (9) with j to infinity: y_D + log(sum_i exp(-y_i))."""
    network = build(NAMED["lenet5"].arch, 10)
    variables = variables_of(network, (32, 32, 1))
    variables["params"]["f6"]["kernel"] *= 20
    x, label = images((1, 32, 32, 1)), 3
    y = lenet5_by_hand(variables["params"], x[0, ..., 0])
    expected = y[label] + np.log(np.exp(-(y - y.min())).sum()) - y.min()
    logits = logits_of(network, variables, x)
    assert -jax.nn.log_softmax(logits)[0, label] == pytest.approx(expected, rel=1e-4)


def test_scaled_tanh_meets_its_targets():
    """Appendix A: f(1) = 1 and f(-1) = -1, the values of the codes."""
    assert squash(1.0) == pytest.approx(1, abs=1e-4)


def test_codes_are_fixed_signs():
    digits = codes(10, 84)
    assert digits.shape == (10, 84)
    assert set(np.unique(digits)) == {-1.0, 1.0}
    distances = (digits[:, None] != digits[None]).sum(-1)
    assert distances[~np.eye(10, dtype=bool)].min() >= 10
    many = codes(100, 84)
    np.testing.assert_array_equal(many[:7], codes(7, 84))
    assert len(np.unique(many, axis=0)) == 100


def test_codes_are_not_trained():
    network = build(NAMED["lenet5"].arch, 10)
    variables = variables_of(network, (28, 28, 1))
    assert "logits" not in variables["params"]
    assert set(variables) == {"params"}


@pytest.mark.parametrize("c1_maps", CHOICES["c1_maps"].options())
@pytest.mark.parametrize("c3_maps", CHOICES["c3_maps"].options())
def test_every_map_is_read(c1_maps, c3_maps):
    rows = table(c1_maps, c3_maps)
    assert len(rows) == c3_maps
    assert {i for row in rows for i in row} == set(range(c1_maps))
    assert all(len(set(row)) == len(row) for row in rows)


def test_first_weights():
    """Appendix A: uniform within 2.4 / fan-in, the fan-in being that of the unit; He-normal elsewhere."""
    arch = NAMED["lenet5"].arch.set(c1_maps=16, c3_maps=32)
    rows = table(16, 32)
    fan_in = 25 * np.repeat([len(row) for row in rows], [len(row) for row in rows])
    kernel = np.asarray(initialise(build(arch, 10), 0, (28, 28, 1), "float32")["params"]["c3"]["kernel"])
    relative = kernel * fan_in
    assert np.abs(relative).max() <= 2.4
    assert relative.std() == pytest.approx(2.4 / np.sqrt(3), rel=0.05)
    params = initialise(build(arch.set(activation="relu"), 10), 0, (28, 28, 1), "float32")["params"]
    kernel = np.asarray(params["c3"]["kernel"])
    assert (kernel * np.sqrt(fan_in)).std() == pytest.approx(np.sqrt(2), rel=0.05)
    assert np.asarray(params["c5"]["kernel"]).std() == pytest.approx(np.sqrt(2 / (25 * 32)), rel=0.05)


@pytest.mark.parametrize("image_shape", [(8, 8, 1), (13, 17, 2), (28, 28, 1), (32, 32, 3), (40, 33, 3)])
@pytest.mark.parametrize("name", NAMED)
def test_any_image(name, image_shape):
    network = build(NAMED[name].arch.set(kernel=7), 7)
    variables = outline(network, image_shape).variables
    image = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    logits = jax.eval_shape(lambda v, x: network.apply(v, x, train=False), variables, image)
    assert logits.shape == (2, 7)


@pytest.mark.parametrize("seed", range(8))
def test_connections_are_what_the_network_has(seed):
    """Without weight sharing and biases apart: each unit's inputs, from the shapes of the built network."""
    arch = SPACE.sample((2, seed)).set(normalisation="none")
    image_shape = (28, 34, 3)
    network = build(arch, 5)
    variables = outline(network, image_shape).variables
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    kept = jax.eval_shape(
        lambda v, x: network.apply(v, x, train=False, capture_intermediates=True, mutable=["intermediates"])[
            1
        ],
        variables,
        image,
    )["intermediates"]
    found = connections(arch, image_shape, 5)
    for layer in ("c1", "c3", "c5", "f6"):
        shape = kept[layer]["__call__"][0].shape
        positions = shape[1] * shape[2] if len(shape) == 4 else 1
        weights = variables["params"][layer]["kernel"].size + shape[-1]
        assert found[layer] == positions * weights
    for layer in ("s2", "s4"):
        assert found[layer] == kept[layer]["__call__"][0].size * (
            5 if arch["subsampling"] == "trainable" else 4
        )
