"""The check of the shapes in signatures, which all tests run under, on a module with a right and a wrong one."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError

from tests import shapes

SOURCE = """
from __future__ import annotations
import flax.linen as nn
from jax import Array
from jaxtyping import Float

class Halve(nn.Module):
    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channel"]) -> Float[Array, "batch channel"]:
        return nn.Dense(x.shape[-1])(x.mean(axis=(1, 2)))

def wrong(x: Float[Array, "batch channel"], scale: float) -> Float[Array, "batch channel"]:
    return scale * x[:, :1]

def unchecked(x: int) -> str:
    return x
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = tmp_path / "with_shapes"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "layers.py").write_text(SOURCE)
    (package / "other.py").write_text("jaxtyping = None\n")
    assert shapes.modules_with_shapes([package]) == ["with_shapes.layers"]
    monkeypatch.syspath_prepend(tmp_path)
    with shapes.install([package]):
        yield importlib.import_module("with_shapes.layers")
    for name in [name for name in sys.modules if name.partition(".")[0] == "with_shapes"]:
        del sys.modules[name]


def test_shapes_in_signatures_are_checked_at_every_call(module) -> None:
    network = module.Halve()
    image = jnp.zeros((2, 4, 4, 3))
    variables = network.init(jax.random.key(0), image)
    assert network.apply(variables, image).shape == (2, 3)
    with pytest.raises(TypeCheckError, match="batch height width channel"):
        network.apply(variables, image[0])
    assert module.wrong(jnp.zeros((2, 1)), 1).shape == (2, 1)
    with pytest.raises(TypeCheckError, match="return value"):
        module.wrong(jnp.zeros((2, 3)), 1)
    assert module.unchecked(1) == 1
