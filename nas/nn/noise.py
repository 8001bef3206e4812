"""Random masks from a counter hash: the same on every platform, and cheap to compile where threefry is not."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

GOLDEN = 0x9E3779B9  # 2**32 divided by the golden ratio


def node_seed(seed: Array | int, position: int) -> Array:
    """The uint32 seed of the node at ``position`` of a network whose step has ``seed``."""
    offset = np.uint32((position + 1) * GOLDEN & 0xFFFFFFFF)
    if isinstance(seed, (int, np.integer)):
        return np.uint32((int(seed) + int(offset)) & 0xFFFFFFFF)  # type: ignore[return-value]
    return seed + offset


def uniform_bits(seed: ArrayLike, shape: tuple[int, ...]) -> Array:
    """uint32 ``shape``: the MurmurHash3 finaliser, twice, of each element's position and ``seed``."""
    seed = jnp.asarray(seed, jnp.uint32)
    bits = lax.iota(jnp.uint32, int(np.prod(shape))).reshape(shape) * np.uint32(GOLDEN) ^ seed
    for _ in range(2):
        bits = (bits ^ (bits >> 16)) * np.uint32(0x85EBCA6B)
        bits = (bits ^ (bits >> 13)) * np.uint32(0xC2B2AE35)
        bits = (bits ^ (bits >> 16)) + seed
    return bits


def dropout(x: Array, rate: ArrayLike, seed: ArrayLike) -> Array:
    """``x`` with each element zeroed with probability ``rate`` in [0, 1), the rest scaled by 1 / (1 - rate).

    ``rate`` and ``seed`` (uint32) may be traced: they do not change the program (Srivastava et al. 2014).
    """
    rate = jnp.asarray(rate, jnp.float32)
    threshold = (rate * np.float32(2**32)).astype(jnp.uint32)
    keep = uniform_bits(seed, x.shape) >= threshold
    return jnp.where(keep, x / (1 - rate).astype(x.dtype), jnp.zeros((), x.dtype))
