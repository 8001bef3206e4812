"""The kernel of a wide network of one hidden layer (Jacot et al. 2018; arc-cosine kernels: Cho and Saul 2009)."""

import flax.linen as nn
import numpy as np
import pytest

from nas import proxies
from nas.proxies import Probe
from nas.proxies.kernels import ntk


class Wide(nn.Module):
    """f(x) = sum over r of a_r max(w_r x, 0) / sqrt(width)."""

    width: int

    @nn.compact
    def __call__(self, x, *, train=False):
        hidden = nn.relu(nn.Dense(self.width, use_bias=False, name="w")(x.reshape(len(x), -1)))
        return nn.Dense(1, use_bias=False, name="a")(hidden) / np.float32(np.sqrt(self.width))


def closed_form(x: np.ndarray) -> np.ndarray:
    """Of the gradients by w: x y (pi - t) / 2 pi; by a: |x| |y| (sin t + (pi - t) cos t) / 2 pi; t their angle."""
    products, norms = x @ x.T, np.linalg.norm(x, axis=1)
    cosine = np.clip(products / np.outer(norms, norms), -1, 1)
    angle = np.arccos(cosine)
    by_w = products * (np.pi - angle)
    by_a = np.outer(norms, norms) * (np.sin(angle) + (np.pi - angle) * cosine)
    return (by_w + by_a) / (2 * np.pi)


def test_the_kernel_of_a_wide_network_approaches_its_closed_form():
    rng = np.random.default_rng(0)
    images = rng.standard_normal((6, 2, 3, 2), np.float32)
    expected = closed_form(images.reshape(6, -1).astype(np.float64))
    errors = []
    for width, draws in ((64, 12), (1024, 12), (16384, 4)):
        distances = []
        for _ in range(draws):
            params = {
                "w": {"kernel": rng.standard_normal((12, width), np.float32)},
                "a": {"kernel": rng.standard_normal((width, 1), np.float32)},
            }
            seen = proxies.batch(images, np.ones((6, 1), np.float32), np.zeros(6, np.int32))
            gram = ntk(Probe(Wide(width), {"params": params}, (2, 3, 2), [seen]))
            assert gram.shape == (6, 6)
            distances.append(np.linalg.norm(gram - expected) / np.linalg.norm(expected))
        errors.append(np.sqrt(np.mean(np.square(distances))))
    assert errors[2] < 0.03
    # They fall as 1 / sqrt(width): by 4 for 16 times the width.
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.5)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.5)
