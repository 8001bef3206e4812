"""The autoencoder family against numpy in float64: what a stage gives, what it costs, and who learns from what."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nas.errors import InputError
from nas.objectives.train import build
from nas.training.config import TrainingConfig
from nas.training.hyper import Hyper
from nas.training.loop import Data, Training
from nas.training.network import Noise, apply_evaluate, apply_train
from search_spaces.autoencoder import (
    CONTRAST_DEVIATION,
    EPSILON,
    LEAST_CONTRAST,
    NAMED,
    SPACE,
    Stage,
    contrast_normalise,
    gaussian_window,
)

NOISE = Noise(np.float32(0), np.uint32(0))
ARCH = SPACE.from_string(
    "stages=2,maps_1=4,field_1=4,stride_1=1,pool_1=2,maps_2=4,field_2=3,stride_2=1,pool_2=3,weights=unshared,"
    "decoder=separate,contrast=local,sparsity=0.1,dropout=0.0,optimiser=adam,learning_rate=0.001,"
    "schedule=constant,batch_size=32,weight_decay=1e-06,label_smoothing=0.0,augmentation=none"
)


def images(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def matrix(kernel: np.ndarray, image_shape: tuple[int, int, int], stride: int) -> np.ndarray:
    """The linear map of unshared filters [OH, OW, kh, kw, C, O] written out: [H * W * C, OH * OW * O]."""
    rows, columns, height, width, _, maps = kernel.shape
    full = np.zeros((*image_shape, rows, columns, maps))
    for i in range(rows):
        for j in range(columns):
            top, left = i * stride, j * stride
            full[top : top + height, left : left + width, :, i, j] = kernel[i, j]
    return full.reshape(np.prod(image_shape), -1)


def normalised(x: np.ndarray) -> np.ndarray:
    """Local contrast normalisation pixel by pixel, as the paper's footnote has it."""
    batch, height, width, _ = x.shape
    offsets = np.arange(-2, 3)
    bell = np.exp(-(offsets**2) / (2 * CONTRAST_DEVIATION**2))

    def mean(z: np.ndarray) -> np.ndarray:
        out = np.zeros((batch, height, width, 1))
        for i in range(height):
            for j in range(width):
                total = weight = 0.0
                for u in offsets:
                    for v in offsets:
                        if 0 <= i + u < height and 0 <= j + v < width:
                            w = bell[u + 2] * bell[v + 2]
                            total = total + w * z[:, i + u, j + v].mean(axis=-1)
                            weight += w
                out[:, i, j, 0] = total / weight
        return out

    centred = x - mean(x)
    return centred / np.maximum(LEAST_CONTRAST, np.sqrt(mean(centred**2)))


def run(stage: Stage, x: np.ndarray):
    """Its parameters in float64, output, and costs in training."""
    variables = stage.lazy_init(jax.random.key(1), jnp.asarray(x))

    @jax.jit
    def both(variables, x):
        return stage.apply(variables, x), stage.apply(variables, x, train=True, mutable=["losses"])

    output, (trained, sown) = both(variables, jnp.asarray(x))
    np.testing.assert_array_equal(output, trained)
    params = {name: np.asarray(value, np.float64) for name, value in variables["params"].items()}
    return params, np.asarray(output), {name: float(value) for name, (value,) in sown["losses"].items()}


@pytest.mark.parametrize("decoder", ["separate", "tied"])
@pytest.mark.parametrize("weights", ["unshared", "shared"])
@pytest.mark.parametrize(("shape", "field", "stride", "pool"), [((9, 7, 2), 3, 2, 2), ((8, 8, 1), 4, 1, 3)])
@pytest.mark.some(3)
def test_a_stage_is_equation_1(shape, field, stride, pool, weights, decoder):
    x = images(3, *shape)
    stage = Stage(4, field, stride, pool, sparsity=0.3, weights=weights, decoder=decoder)
    params, output, costs = run(stage, x)
    places = [(size - field) // stride + 1 for size in shape[:2]]
    assert set(params) == ({"encoder", "decoder"} if decoder == "separate" else {"encoder"})
    kernels = [params["encoder"], params.get("decoder", params["encoder"])]
    if weights == "shared":
        assert kernels[0].shape == (field, field, shape[2], 4)
        kernels = [np.broadcast_to(kernel, (*places, *kernel.shape)) for kernel in kernels]
    encode, decode = (matrix(kernel, shape, stride) for kernel in kernels)

    pixels = x.reshape(3, -1).astype(np.float64)
    filtered = pixels @ encode
    rebuilt = filtered @ decode.T
    squares = filtered.reshape(3, *places, 4) ** 2
    rows, columns = (size - min(pool, size) + 1 for size in places)
    sums = np.zeros((3, rows, columns, 4))
    for i in range(rows):
        for j in range(columns):
            sums[:, i, j] = squares[:, i : i + pool, j : j + pool].sum(axis=(1, 2))
    pooled = np.sqrt(EPSILON + sums)
    np.testing.assert_allclose(output, normalised(pooled), rtol=2e-4, atol=2e-4)
    assert costs["reconstruction"] == pytest.approx(((rebuilt - pixels) ** 2).sum() / pixels.size, rel=1e-4)
    assert costs["sparsity"] == pytest.approx(0.3 * pooled.sum() / pixels.size, rel=1e-4)


def test_the_cost_has_the_gradient_of_the_matrices():
    """Autodiff of the module against autodiff of equation 1 over dense matrices, in float64's stead by chain rule."""
    x = images(5, 6, 6, 2, seed=3)
    stage = Stage(4, 3, pool=2, sparsity=0.1)
    variables = stage.lazy_init(jax.random.key(2), jnp.asarray(x))

    def cost(params):
        _, sown = stage.apply({"params": params}, jnp.asarray(x), train=True, mutable=["losses"])
        return sum(jax.tree.leaves(sown["losses"]))

    got = jax.jit(jax.grad(cost))(variables["params"])
    rng = np.random.default_rng(0)
    for name in ("encoder", "decoder"):
        direction = rng.standard_normal(got[name].shape)
        direction /= np.linalg.norm(direction)
        slope = float(np.sum(np.asarray(got[name], np.float64) * direction))
        values = []
        for step in (0.02, -0.02):
            params = {key: np.asarray(value, np.float64) for key, value in variables["params"].items()}
            params[name] = params[name] + step * direction
            encode, decode = (matrix(params[key], (6, 6, 2), 1) for key in ("encoder", "decoder"))
            pixels = x.reshape(5, -1).astype(np.float64)
            filtered = pixels @ encode
            squares = (filtered**2).reshape(5, 4, 4, 4)
            sums = sum(squares[:, i : i + 3, j : j + 3] for i in range(2) for j in range(2))
            error = ((filtered @ decode.T - pixels) ** 2).sum()
            values.append((error + 0.1 * np.sqrt(EPSILON + sums).sum()) / pixels.size)
        assert slope == pytest.approx((values[0] - values[1]) / 0.04, rel=1e-3)


@pytest.mark.slow
def test_labels_move_the_readout_alone_and_each_stage_learns_from_its_own_cost():
    network = build(SPACE, ARCH, 3)
    x = jnp.asarray(images(4, 9, 8, 2))
    params = network.lazy_init(jax.random.key(0), x)["params"]
    target = jax.nn.one_hot(jnp.arange(4) % 3, 3)

    def cross_entropy(params):
        logits, _, _ = apply_train(network, {"params": params}, (x,), NOISE)
        return optax.softmax_cross_entropy(logits, target).mean()

    def cost(params, stage):
        _, sown = network.apply({"params": params}, x, train=True, mutable=["losses"])
        return sum(jax.tree.leaves(sown["losses"][stage]))

    def touched(gradient):
        return {
            name for name, tree in gradient.items() if any(np.any(leaf) for leaf in jax.tree.leaves(tree))
        }

    @jax.jit
    def gradients(params):
        return jax.grad(cross_entropy)(params), *(jax.grad(cost)(params, f"stage_{i}") for i in (1, 2))

    assert [touched(gradient) for gradient in gradients(params)] == [{"readout"}, {"stage_1"}, {"stage_2"}]


@pytest.mark.slow
def test_training_with_other_labels_gives_the_same_filters_and_a_better_code():
    phases = np.random.default_rng(0).uniform(0, 6, (2, 64, 1, 1, 1))
    rows, columns = (
        np.sin(np.arange(8).reshape(shape) + p) for shape, p in zip(((8, 1, 1), (8, 1)), phases, strict=True)
    )
    pixels = (128 + 60 * (rows + columns)).astype(np.uint8)
    network = build(SPACE, ARCH, 3)
    hyper = Hyper(optimiser="adam", learning_rate=3e-3, schedule="constant", batch_size=32)
    mean, std = np.full(1, 0.5, np.float32), np.full(1, 0.25, np.float32)
    found = []
    for labels in (np.zeros(64, np.int32), np.arange(64, dtype=np.int32) % 3):
        data = Data(jnp.asarray(pixels), jnp.asarray(labels), jnp.asarray(mean), jnp.asarray(std))
        training = Training(network, hyper, data, 3, TrainingConfig(), seed=0, epochs=15)
        training.compile()
        begun = jax.tree.map(np.array, training.state.variables["params"])
        for epoch in range(15):
            training.train_epoch(epoch)
        found.append(jax.tree.map(np.asarray, training.state.variables["params"]))
    for stage in ("stage_1", "stage_2"):
        jax.tree.map(np.testing.assert_array_equal, found[0][stage], found[1][stage])
    assert np.any(found[0]["readout"]["Dense_0"]["kernel"] != found[1]["readout"]["Dense_0"]["kernel"])

    def errors(params):
        x = (jnp.asarray(pixels) / 255.0 - mean) / std
        _, sown = jax.jit(functools.partial(network.apply, train=True, mutable=["losses"]))(
            {"params": params}, x
        )
        return [float(sown["losses"][stage]["reconstruction"][0]) for stage in ("stage_1", "stage_2")]

    for before, after in zip(errors(begun), errors(found[0]), strict=True):
        assert after < 0.5 * before


@pytest.mark.slow
def test_a_trained_network_has_a_gradient_by_its_input_through_all_stages():
    """Without it no optimal stimulus could be found: in evaluation mode gradients do not stop."""
    network = build(SPACE, ARCH, 3)
    x = jnp.asarray(images(2, 9, 8, 2))
    variables = network.lazy_init(jax.random.key(0), x)
    slope = jax.jit(jax.grad(lambda x: jnp.sum(apply_evaluate(network, variables, (x,))[:, 0])))
    assert np.all(np.isfinite(slope(x)))
    assert np.abs(slope(x)).max() > 1e-3
    assert np.all(np.isfinite(slope(jnp.zeros_like(x))))


def test_contrast_normalisation_leaves_neither_mean_nor_scale():
    x = jnp.asarray(np.abs(images(2, 9, 11, 6)))
    y = contrast_normalise(x)
    np.testing.assert_allclose(y, contrast_normalise(50 * x + 7), atol=2e-4)
    np.testing.assert_allclose(contrast_normalise(jnp.ones((1, 5, 5, 4))), 0, atol=1e-4)
    window, mass = gaussian_window(9, 11)
    assert window.sum() == pytest.approx(1, abs=1e-6)
    assert mass[2:-2, 2:-2].min() == pytest.approx(1, abs=1e-6)
    assert mass[0, 0, 0] == pytest.approx(window[2:, 2:].sum(), abs=1e-6)
    assert gaussian_window(1, 3)[1].shape == (1, 3, 1)


def test_initial_filters_have_the_variance_of_their_own_fan_in():
    network = build(SPACE, ARCH.set(maps_1=8, field_1=5, weights="unshared"), 5)
    image = jax.ShapeDtypeStruct((1, 16, 18, 3), jnp.float32)
    drawn = np.asarray(network.lazy_init(jax.random.key(0), image)["params"]["stage_1"]["encoder"])
    assert drawn.ndim == 6
    assert drawn.std() == pytest.approx(np.sqrt(2 / 75), rel=0.03)


def test_fields_and_pools_larger_than_the_map_are_as_large_as_the_map():
    arch = ARCH.set(field_1=18, pool_1=5, maps_2=8, field_2=18)
    network = build(SPACE, arch, 5)
    image = jax.ShapeDtypeStruct((1, 8, 6, 1), jnp.float32)
    params = jax.eval_shape(network.init, jax.random.key(0), image)["params"]
    assert params["stage_1"]["encoder"].shape == (1, 1, 8, 6, 1, 4)
    assert params["stage_2"]["decoder"].shape == (1, 1, 1, 1, 4, 8)


def test_named_networks_are_points_of_the_space_and_wrong_choices_are_named():
    for named in NAMED.values():
        SPACE.validate(named.arch)
    with pytest.raises(InputError, match="pool_1=4 is not"):
        SPACE.validate(ARCH.set(pool_1=4))
