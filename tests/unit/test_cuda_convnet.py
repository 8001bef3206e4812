"""The network of cuda-convnet: its normalisation against arithmetic, and what its choices do."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nas.training.hyper import hyper_of
from nas.training.network import apply_evaluate, initialise, outline
from search_spaces.cuda_convnet import NAMED, PIXEL_STD, SPACE, WithinChannelNorm, build

ARCH = NAMED["cuda_convnet_18"].arch


def test_normalisation_is_by_the_mean_square_of_the_neighbourhood_outside_being_zero() -> None:
    x = np.random.default_rng(0).standard_normal((2, 5, 6, 3)).astype(np.float32)
    padded = np.pad(np.square(x.astype(float)), [(0, 0), (1, 1), (1, 1), (0, 0)])
    mean = sum(padded[:, i : i + 5, j : j + 6] for i in range(3) for j in range(3)) / 9
    found = np.asarray(WithinChannelNorm(0.3, 1.7).apply({}, x))
    np.testing.assert_allclose(found, x / (1 + 0.3 * mean) ** 1.7, rtol=1e-5)


def test_shapes_and_first_values_are_the_authors() -> None:
    network = build(ARCH, 10)
    params = initialise(network, 0, (32, 32, 3), "float32")["params"]
    kernels = {name: tree["kernel"] for name, tree in params.items() if "kernel" in tree}
    assert {name: kernel.shape for name, kernel in kernels.items()} == {
        "conv_1": (5, 5, 3, 32),
        "conv_2": (5, 5, 32, 32),
        "conv_3": (5, 5, 32, 64),
        "dense": (4 * 4 * 64, 10),  # three poolings of 3x3 and stride 2 leave 4x4
    }
    for name, std in {"conv_1": 1e-4, "conv_2": 0.01, "conv_3": 0.01, "dense": 0.01}.items():
        assert np.std(kernels[name]) == pytest.approx(std, rel=0.05)
    # 1024 x 75 x 32, 256 x 800 x 32, 64 x 800 x 64 and 1024 x 10
    assert outline(network, (32, 32, 3)).macs_per_image == 2_457_600 + 6_553_600 + 3_276_800 + 10_240


@pytest.mark.slow
def test_images_are_brought_to_the_scale_of_pixels() -> None:
    network = build(ARCH.set(norm_scale=5e-6, norm_power=0.01), 10)
    variables = initialise(network, 0, (8, 8, 3), "float32")
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 8, 8, 3)), jnp.float32)
    logits = apply_evaluate(network, variables, (x,))
    larger = jax.tree.map(lambda a: a, variables)
    larger["params"] = dict(larger["params"]) | {
        "conv_1": {"kernel": variables["params"]["conv_1"]["kernel"] * PIXEL_STD}
    }
    np.testing.assert_allclose(apply_evaluate(network, larger, (x / PIXEL_STD,)), logits, rtol=1e-4)


def test_what_is_searched_is_in_the_hyperparameters() -> None:
    arch = SPACE.searched().sample(0)
    hyper = hyper_of(arch)
    assert dict(hyper.own_weight_decay) == {
        module: arch[f"weight_decay_{module}"] for module in ("conv_1", "conv_2", "conv_3", "dense")
    }
    assert hyper.learning_rate == arch["learning_rate"]
    assert (hyper.optimiser, hyper.batch_size, hyper.schedule) == ("momentum", 100, arch["schedule"])
    assert arch["width"] == 32
