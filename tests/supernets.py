"""Small spaces whose choices can be left open, and their supernets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from nas.nn.graph import Builder, Graph, Term
from nas.nn.layers import CellAverage, Dense, NormAct, conv
from nas.nn.layout import Layout
from nas.training.programs import Batch

OPERATIONS = ("none", "skip", "conv_1", "conv_3")
EDGES = ((0, 1), (0, 2), (1, 2))


def cell_layout(operations: Sequence[str] = OPERATIONS, **others: Any) -> Layout:
    names = {f"edge_{i}_{j}": operations for i, j in EDGES}
    return Layout.of(names, **others)


EDGE_WEIGHTS = (("edge_0_1",), ("edge_0_2", "edge_1_2"))


def cell_network(arch: Mapping[str, Any], classes: int = 3, channels: int = 4, cells: int = 2) -> Graph:
    """Cells as in NAS-Bench-201, with three nodes; their edges are single operations or left open."""
    b = Builder()
    x = b.add("stem", conv(channels), 0)
    for cell in range(cells):
        states = [x]
        for to in (1, 2):
            terms: list[Term] = []
            for source in range(to):
                name = f"cell_{cell}_{source}_{to}"

                def make(value: str, x: int, part: int, name: str = name) -> int | None:
                    if value == "none":
                        return None
                    if value == "skip":
                        return x
                    convolved = b.add(f"{name}_{value}", conv(channels // part, int(value[-1])), x)
                    return b.add(f"{name}_{value}_norm", NormAct("batch", "tanh"), convolved)

                shared = f"cell_{cell}_state_{source}"
                terms += b.choose(arch[f"edge_{source}_{to}"], make, states[source], name=shared)
            states.append(b.mix(f"cell_{cell}_{to}", terms))
        x = states[-1]
    b.add("logits", Dense(classes), b.add("average", CellAverage(1), x))
    return b.graph()


def chain_layout(depth: int = 3, kernels: Sequence[int] = (1, 3, 5)) -> Layout:
    return Layout.of({f"kernel_{i}": kernels for i in range(depth)})


def chain_network(
    arch: Mapping[str, Any], activation: str = "relu", classes: int = 3, width: int = 4
) -> Graph:
    """A chain with a kernel size a layer, each a number or left open."""
    b = Builder()
    x = 0
    for name, kernel in arch.items():

        def make(size: int, x: int, part: int, name: str = name) -> int:
            convolved = b.add(f"{name}_{size}", conv(width, size), x)
            return b.add(f"{name}_{size}_norm", NormAct("batch", activation), convolved)

        x = b.mix(f"{name}_mix", b.choose(kernel, make, x, name=name))
    b.add("logits", Dense(classes), b.add("average", CellAverage(1), x))
    return b.graph()


class Patch(nn.Module):
    """What a planted operation passes on: ``good`` an example's own image, the others that of another example.

    Without parameters: weights could make a useless operation harmless.
    """

    kind: str

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        return jnp.roll(x, PLANTED.index(self.kind), 0)


PLANTED = ("good", "noise", "other")


def planted_layout(**others: Any) -> Layout:
    return Layout.of({"op_1": PLANTED[::-1], "op_2": PLANTED[::-1]}, **others)


def planted_network(arch: Mapping[str, Any], classes: int = 2, channels: int = 4) -> Graph:
    """Two operations side by side, of which only ``good`` lets an image through to its own label."""
    b = Builder()
    x = b.add("stem", conv(channels, 1), 0)
    terms: list[Term] = []
    for name, choice in arch.items():

        def make(value: str, x: int, part: int, name: str = name) -> int:
            return b.add(f"{name}_{value}", Patch(value), x)

        terms += b.choose(choice, make, x, name=name)
    b.add("logits", Dense(classes), b.add("average", CellAverage(2), b.mix("mix", terms)))
    return b.graph()


def planted_batch(seed: int, size: int = 32) -> Batch:
    """Two classes: which half of the image is brighter, under so much noise that no one can be sure."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, size)
    images = rng.standard_normal((size, 4, 4, 4)).astype(np.float32)
    images[:, :2] += 0.2 * (2 * labels - 1)[:, None, None, None]
    images[:, 2:] -= 0.2 * (2 * labels - 1)[:, None, None, None]
    return batch_of(images, labels, 2)


def random_batch(seed: int, size: int = 6, shape: tuple[int, ...] = (6, 6, 2), classes: int = 3) -> Batch:
    rng = np.random.default_rng(seed)
    return batch_of(
        rng.standard_normal((size, *shape)).astype(np.float32), rng.integers(0, classes, size), classes
    )


def batch_of(images: np.ndarray, labels: np.ndarray, classes: int) -> Batch:
    target = np.eye(classes, dtype=np.float32)[labels]
    return Batch(*jax.device_put((images, target, labels.astype(np.int32))))
