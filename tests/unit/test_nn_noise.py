"""Random masks: as many elements as asked for, the same on every platform, another mask for every node."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nas.nn.noise import dropout, node_seed, uniform_bits
from tests.arrays import normal


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.99])
def test_dropout_by_its_definition(rate):
    """What stays is scaled by 1 / (1 - rate), and so is its gradient."""
    x, dy = normal(0, 3, 7, 2000), normal(1, 3, 7, 2000)
    run = jax.jit(lambda x, rate, seed: dropout(x, rate, seed))
    kept = np.asarray(uniform_bits(12345, x.shape)) >= np.uint32(rate * 2**32)
    scale = kept / np.float32(1 - np.float32(rate))
    found, backward = jax.vjp(lambda x: run(x, jnp.float32(rate), jnp.uint32(12345)), x)
    np.testing.assert_allclose(found, np.where(kept, x * scale, 0), rtol=1e-6)
    np.testing.assert_allclose(backward(dy)[0], np.where(kept, dy * scale, 0), rtol=1e-6)
    np.testing.assert_allclose((np.asarray(found) == 0).mean(), rate, atol=0.01)


def test_rates_and_seeds_do_not_change_the_program():
    run: Any = jax.jit(dropout)
    x = normal(0, 100)
    masks = {bytes(run(x, np.float32(rate), np.uint32(seed)) == 0) for rate in (0.4, 0.6) for seed in (1, 2)}
    assert len(masks) == 4
    assert run._cache_size() == 1


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_has_the_same_mask(dtype):
    x = normal(0, 500)
    half, whole = dropout(x.astype(dtype), 0.5, 3), dropout(x, 0.5, 3)
    assert half.dtype == dtype
    np.testing.assert_array_equal(half == 0, whole == 0)
    np.testing.assert_allclose(half.astype(jnp.float32), whole, rtol=0.01)


def test_every_node_has_a_seed_of_its_own():
    """The same whether the step's seed is a number or traced, and beyond 2**32 it begins again."""
    for seed in (0, 3, 2**32 - 1):
        numbers = [int(node_seed(seed, k)) for k in range(100)]
        assert len(set(numbers)) == 100
        traced = jax.jit(node_seed, static_argnums=1)
        assert [int(traced(jnp.uint32(seed), k)) for k in (0, 1, 99)] == [numbers[k] for k in (0, 1, 99)]


def test_masks_of_neighbouring_seeds_and_elements_are_unrelated():
    masks = np.stack([np.asarray(uniform_bits(seed, (20000,))) for seed in range(4)]) >= 2**31
    related = np.corrcoef(np.concatenate([masks, masks[:, ::-1]]).reshape(8, -1))
    assert np.abs(related - np.eye(8)).max() < 0.03
    assert abs(np.corrcoef(masks[0, 1:], masks[0, :-1])[0, 1]) < 0.03
