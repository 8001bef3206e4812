"""Weights by the lecture's slides, of the modules that the space builds; nothing is allocated."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from nas.objectives.train import build, size_of
from nas.space import Architecture
from search_spaces.mlp import NAMED, SPACE, mlp_space


def architecture(edges, *, dimensions=1, border="cut", **choices):
    """One hidden layer without biases, and logistic regression of two classes on it."""
    return Architecture(
        depth=1,
        edges_1=edges,
        dimensions=dimensions,
        border=border,
        normalisation="none",
        activation="relu",
        bias=False,
        classifier="logistic",
        **choices,
    )


def weights(space, arch, image_shape):
    """Of the hidden layer, and of everything."""
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    made = jax.eval_shape(build(space, arch, 2).init, jax.random.key(0), image)["params"]
    hidden, whole = (
        sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree)) for tree in (made["edges_1"], made)
    )
    assert size_of(build(space, arch, 2), image_shape).params == whole
    return hidden, whole


@pytest.mark.parametrize("n", [1, 2, 3, 5, 100])
def test_n_units_on_n_features(n):
    """n^2 weights where all is connected, 3n - 2 in a band of three with nothing at the edges, 3 if shared."""
    space = mlp_space(widths=(n,))
    counts = {
        "full": (n**2, {"width_1": n}),
        "local": (3 * n - 2, {"maps_1": 1, "field_1": 3}),
        "convolution": (3, {"maps_1": 1, "field_1": 3}),
    }
    for edges, (expected, choices) in counts.items():
        arch = architecture(edges, **choices)
        assert weights(space, arch, (1, n, 1)) == (expected, expected + n), edges
    with_zeros = architecture("local", border="zeros", maps_1=1, field_1=3)
    assert weights(space, with_zeros, (1, n, 1)) == (3 * n, 4 * n)


@pytest.mark.parametrize("field", [3, 5, 9])
def test_a_band_of_m(field):
    """Beyond each edge would lie 1 + 2 + … + m // 2 of the weights of n whole fields."""
    arch = architecture("local", maps_1=1, field_1=field)
    beyond = 2 * sum(range(field // 2 + 1))
    assert weights(SPACE, arch, (6, 10, 1))[0] == field * 60 - beyond
    square = architecture("local", dimensions=2, maps_1=1, field_1=field)
    assert weights(SPACE, square, (20, 30, 1))[0] == (field * 20 - beyond) * (field * 30 - beyond)


def test_400_000_units_on_an_image_of_200_by_200():
    """16 billion weights; 40 million with fields of 10x10; 1,000 if the 10 maps' units share theirs."""
    space = mlp_space(widths=(400_000,), maps=(10,), fields=(10,))
    image_shape = (200, 200, 1)
    full = architecture("full", width_1=400_000)
    assert weights(space, full, image_shape) == (16_000_000_000, 16_000_400_000)
    fields: dict[str, Any] = {"maps_1": 10, "field_1": 10}
    local = architecture("local", dimensions=2, border="zeros", **fields)
    assert weights(space, local, image_shape) == (40_000_000, 40_400_000)
    # With nothing beyond the edges 4 + 3 + 2 + 1 taps of a line are missing before it, 5 + 4 + 3 + 2 + 1 behind.
    cut = architecture("local", dimensions=2, border="cut", **fields)
    assert weights(space, cut, image_shape)[0] == 10 * (10 * 200 - 25) ** 2 == 39_006_250
    assert weights(space, architecture("convolution", dimensions=2, **fields), image_shape)[0] == 1_000
    for arch, multiply_adds in ((full, 16 * 10**9), (local, 4 * 10**7), (cut, 4 * 10**7)):
        assert size_of(build(space, arch, 2), image_shape).macs_per_image == multiply_adds + 400_000


@pytest.mark.parametrize("name", NAMED)
def test_named_networks(name):
    by_hand = {
        "logistic": 28 * 28 * 10 + 10,
        "logistic_binary": 28 * 28 + 1,
        "mlp": 28 * 28 * 300 + 300 + 300 * 10 + 10,
        "mlp_300_100": 28 * 28 * 300 + 300 + 300 * 100 + 100 + 100 * 10 + 10,
    }
    named = NAMED[name]
    SPACE.validate(named.arch)
    found = size_of(build(SPACE, named.arch, named.num_classes), named.image_shape).params
    assert found == named.params == by_hand[name]
