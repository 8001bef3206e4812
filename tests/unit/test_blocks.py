"""Equal consecutive blocks compiled once: the same values, gradients, statistics and variables by a smaller program."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from nas.cpu.function import plain
from nas.data.dataset import Split
from nas.errors import InputError
from nas.nn.blocks import find_blocks
from nas.nn.count import count_macs
from nas.nn.graph import Builder, Graph
from nas.nn.layers import CellAverage, Dense, NormAct, Pool, Sum, conv
from nas.training.batches import on_device
from nas.training.config import TrainingConfig
from nas.training.hyper import Hyper
from nas.training.loop import Training
from nas.training.network import Noise, apply_evaluate, apply_train, initialise, outline
from search_spaces.darts.modules import DropPath
from search_spaces.nasbench201 import Skeleton, architecture_of
from search_spaces.zoo import find_architecture
from tests.supernets import cell_layout, cell_network


class Told(nn.Module):
    """Draws from Flax's stream when told so."""

    @nn.compact
    def __call__(self, x, *, deterministic: bool):
        return nn.Dropout(0.5, deterministic=deterministic)(x)


class Untold(nn.Module):
    """Draws from Flax's stream, as nobody can see from its call."""

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        return nn.Dropout(0.5, deterministic=not train)(x)


class Costly(nn.Module):
    """Sows a loss of its own, and sums up what it saw."""

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        seen = self.variable("sums", "seen", lambda: jnp.zeros(()))
        if train and not self.is_initializing():
            seen.value += x.mean()
            self.sow("losses", "mean", 1e-3 * jnp.square(x).mean())
        return x


def chain(*modules: nn.Module, times: int = 3) -> Graph:
    """Blocks of a convolution, a normalisation and ``modules``."""
    b = Builder()
    x = b.add("stem", conv(6), 0)
    for k in range(times):
        for j, module in enumerate((conv(6), NormAct(), *modules)):
            x = b.add(f"{'abcdef'[j]}_{k}", module, x)
    b.add("logits", Dense(5), b.add("average", CellAverage(1), x))
    return b.graph()


def reading_two_back(cells: int = 4, head: bool = False) -> Graph:
    """Cells that read the two before them, as those of DARTS do; with ``head`` a further classifier at the second."""
    b = Builder()
    x = before = b.add("stem", conv(6), 0)
    for k in range(cells):
        y = b.add(f"drop_{k}", DropPath(), b.add(f"norm_{k}", NormAct(), b.add(f"conv_{k}", conv(6), x)))
        before, x = x, b.add(f"sum_{k}", Sum(), y, before)
        if head and k == 1:
            b.add("auxiliary", Dense(5), b.add("features", CellAverage(1), x))
    b.add("logits", Dense(5), b.add("average", CellAverage(1), b.add("last", Sum(), x, before)))
    return b.graph({"auxiliary": 0.4} if head else {})


def supernet() -> Graph:
    return cell_network(cell_layout().opened(), classes=5, cells=3)


def bottlenecks() -> Graph:
    """The second of each two stages has its own shapes."""
    space, arch, _ = find_architecture("resnet20")
    blocks = {f"blocks_{i}": 2 + i for i in (1, 2, 3)}
    assert space.build is not None
    return space.build(arch.set(width=8, block="bottleneck", stride_at="1x1", shortcut="B", **blocks), 5)


def convolutions(jaxpr) -> int:
    """In a program, each as often as it stands there."""
    inner = (convolutions(one) for e in jaxpr.eqns for one in core.jaxprs_in_params(e.params))
    return sum(inner) + sum(e.primitive.name == "conv_general_dilated" for e in jaxpr.eqns)


NETWORKS = {  # and its convolutions in a program of its output, without and with
    "chain": (chain, 4, 2),
    "sown losses and sums": (lambda: chain(Costly()), 4, 2),
    "two back": (reading_two_back, 5, 3),
    "a head between": (lambda: reading_two_back(6, head=True), 7, 6),
    "a supernet": (supernet, 19, 7),
    "bottlenecks": (bottlenecks, 40, 22),
    "maps that shrink": (lambda: chain(Pool("max")), 4, 4),
    "draws, told": (lambda: chain(Told()), 4, 4),
    "draws, untold": (lambda: chain(Untold()), 4, 4),
}


LARGE = ("bottlenecks", "a head between", "draws, told", "draws, untold")


def seen(network: Graph, dtype: str = "float32"):
    """Values and gradients in training, updated collections, values in evaluation; convolutions; multiply-adds."""
    variables = initialise(network, 0, (8, 8, 3), "float32")
    images = jnp.asarray(np.random.default_rng(1).standard_normal((4, 8, 8, 3)), dtype)
    noise = Noise(np.float32(0.2), np.uint32(7), np.float32(0.3))
    mixing = jnp.asarray(np.random.default_rng(2).random(network.mixing_size), "float32")
    further = {"mixing": mixing} if network.mixing_size else {}

    def loss(params):
        logits, updated, extra = apply_train(
            network, variables | {"params": params}, (images,), noise, **further
        )
        total = jnp.square(logits.astype("float32")).mean() + sum(extra.losses)
        for weight, head in extra.auxiliary:
            total += weight * jnp.square(head).mean()
        return total, (logits, updated)

    def evaluate(params):
        return () if further else apply_evaluate(network, variables | {"params": params}, (images,))

    params, step = variables["params"], jax.value_and_grad(loss, has_aux=True)
    with plain():
        count = convolutions(jax.make_jaxpr(loss)(params).jaxpr)
    return jax.jit(lambda params: (step(params), evaluate(params)))(params), count, count_macs(loss, params)


def slow_where_large(name: str) -> Any:
    return pytest.param(*NETWORKS[name], id=name, marks=[pytest.mark.slow] if name in LARGE else [])


@pytest.mark.parametrize(("made", "before", "after"), [*map(slow_where_large, NETWORKS)])
@pytest.mark.some(2)
def test_a_scan_over_blocks_changes_neither_values_nor_gradients_nor_variables(made, before: int, after: int):
    expected, count, macs = seen(made())
    found, smaller, macs_so = seen(made().clone(scan_blocks=True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-4), found, expected)
    assert macs_so == macs
    assert (count, smaller) == (before, after)


@pytest.mark.slow
def test_half_precision_has_the_same_values_to_rounding():
    expected, found = (seen(network, "bfloat16")[0] for network in (chain(), chain().clone(scan_blocks=True)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0.1, atol=0.02), found, expected)


@pytest.mark.parametrize(
    ("name", "before", "after"), [("resnet56", 55, 11), ("resnet110", 109, 11), ("nasbench201", 82, 22)]
)
@pytest.mark.some(1)
def test_programs_of_published_networks_shrink(name: str, before: int, after: int):
    if name == "nasbench201":
        cell = (
            "nor_conv_3x3",
            "nor_conv_3x3",
            "nor_conv_3x3",
            "skip_connect",
            "nor_conv_3x3",
            "nor_conv_3x3",
        )
        network = Skeleton()(architecture_of(cell), 10)
    else:
        space, arch, _ = find_architecture(name)
        assert space.build is not None
        network = space.build(arch, 10)
    variables = outline(network, (32, 32, 3)).variables
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    with plain():
        counts = [
            convolutions(jax.make_jaxpr(lambda v, x, n=n: apply_evaluate(n, v, (x,)))(variables, image).jaxpr)
            for n in (network, network.clone(scan_blocks=True))
        ]
    assert counts == [before, after]


def test_blocks_whose_inside_is_read_elsewhere_are_left_alone():
    inputs = [(0,), (1,), (2,), (3,), (4,), (5,), (6, 4)]  # the last reads the first node of the second block
    assert find_blocks("abcbcbz", [*inputs[:6], (6,)])[0][:3] == (1, 2, 2)
    assert find_blocks("abcbcbz", inputs) == []


def test_trainings_run_their_network_so_when_told():
    images = np.zeros((8, 8, 8, 3), np.uint8)
    data = on_device(Split(images, np.zeros(8, np.int32)), np.zeros(3, np.float32), np.ones(3, np.float32))

    def training(network: nn.Module, **config: Any) -> Training:
        return Training(network, Hyper(batch_size=4), data, 5, TrainingConfig(**config), seed=0, epochs=1)

    assert [
        training(chain(), **config).runner.network.scan_blocks for config in ({}, {"scan_blocks": True})
    ] == [
        False,
        True,
    ]
    with pytest.raises(InputError, match="scan_blocks: needs a Graph, not Dense"):
        training(nn.Dense(3), scan_blocks=True)
