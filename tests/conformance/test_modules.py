"""Anybody's modules in the engine: Flax's own layers as nodes of a graph, and networks of `flax.nnx`."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nas.data import load
from nas.errors import InputError
from nas.nn.bridge import as_linen
from nas.nn.call import keywords, takes_noise
from nas.nn.graph import Builder, Mix
from nas.proxies import passes
from nas.training.config import TrainingConfig
from nas.training.hyper import Hyper
from nas.training.loop import Training, on_device
from nas.training.network import Noise, apply_evaluate, apply_train, initialise, outline
from nas.training.profile import dissect
from tests.arrays import close, normal

NOISE = Noise(np.float32(0.3), np.uint32(5))


class Scaled(nn.Module):
    """A module of a user's that takes no keyword."""

    @nn.compact
    def __call__(self, x):
        return nn.relu(x * self.param("scale", nn.initializers.ones, (x.shape[-1],)))


class Mean(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x.mean((1, 2))


MODULES = {
    "conv": nn.Conv(8, (3, 3)),
    "norm": nn.BatchNorm(momentum=0.9),
    "scaled": Scaled(),
    "layer_norm": nn.LayerNorm(),
    "dropout": nn.Dropout(0.5),
    "mean": Mean(),
    "logits": nn.Dense(10),
}


class Plain(nn.Module):
    """`MODULES` one after another, as one writes it without a graph."""

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        for name, module in MODULES.items():
            of_mode = {"norm": {"use_running_average": not train}, "dropout": {"deterministic": not train}}
            x = module.clone(parent=self, name=name)(x, **of_mode.get(name, {}))
        return x


def chained():
    b, value = Builder(), 0
    for name, module in MODULES.items():
        value = b.add(name, module, value)
    return b.graph()


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    dataset = load("digits", cache_dir=tmp_path_factory.mktemp("cache"))
    return on_device(dataset.train, dataset.mean, dataset.std)


def learns(network, digits):
    training = Training(
        network, Hyper(batch_size=64, learning_rate=0.05), digits, 10, TrainingConfig(), seed=0, epochs=2
    )
    training.compile()
    first, second = (training.train_epoch(epoch).loss for epoch in range(2))
    return second < first


@pytest.mark.slow
def test_a_node_may_be_any_flax_module():
    """Called with Flax's own keywords: values, statistics, dropout and gradients of the network without a graph."""
    x, plain, graph = normal(0, 6, 8, 8, 3), Plain(), chained()
    variables = initialise(graph, 0, (8, 8, 3), "float32")
    shapes = jax.tree.map(jnp.shape, variables)
    assert shapes == jax.tree.map(jnp.shape, initialise(plain, 0, (8, 8, 3), "float32"))
    close(apply_evaluate(graph, variables, (x,)), apply_evaluate(plain, variables, (x,)))

    def loss(params, network, seed):
        of = {**variables, "params": params}
        logits, updated, _ = apply_train(network, of, (x,), NOISE._replace(seed=np.uint32(seed)))
        return jnp.sum(jnp.sin(logits)), updated

    found, expected, other = (
        jax.value_and_grad(loss, has_aux=True)(variables["params"], network, seed)
        for network, seed in ((graph, 5), (plain, 5), (graph, 6))
    )
    close(found, expected, atol=1e-4)
    assert found[0][0] != other[0][0]  # other elements are dropped
    assert found[0][1]["batch_stats"]["norm"]["mean"].any()
    whole: Any = plain
    assert outline(graph, (8, 8, 3)).params == outline(whole, (8, 8, 3)).params


@pytest.mark.slow
def test_a_graph_of_flax_modules_learns(digits):
    assert learns(chained(), digits)


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.some(1)
def test_a_candidate_of_a_supernet_may_be_any_flax_module(remat):
    b = Builder()
    dropped = b.add("dropout", nn.Dropout(0.5), 0)
    normed = b.add("norm", nn.BatchNorm(use_bias=False, use_scale=False), 0)
    b.add("mix", Mix((0, 1)), dropped, normed)
    network, x = b.graph().clone(remat=remat), normal(0, 6, 8, 8, 3, shift=1)
    variables = initialise(network, 0, (8, 8, 3), "float32")

    @functools.partial(jax.jit, static_argnames="seed")
    def run(*mixing, seed=5):
        noise = NOISE._replace(seed=np.uint32(seed))
        return apply_train(network, variables, (x,), noise, mixing=jnp.asarray(mixing))[0]

    factors = run(1.0, 0.0) / x
    close(jnp.unique(jnp.round(factors, 3)), jnp.asarray([0.0, 2.0]))
    assert 0.4 < (factors == 0).mean() < 0.6
    assert (run(1.0, 0.0) != run(1.0, 0.0, seed=6)).any()
    close(run(0.0, 1.0), (x - x.mean((0, 1, 2))) / jnp.sqrt(x.var((0, 1, 2)) + 1e-5), atol=1e-4)


class Nnx(nnx.Module):
    """A small network in `flax.nnx`."""

    def __init__(self, num_classes: int, *, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(1, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.logits = nnx.Linear(8, num_classes, rngs=rngs)

    def __call__(self, x, *, train: bool = False):
        x = nnx.relu(self.norm(self.conv(x), use_running_average=not train))
        return self.logits(self.dropout(x.mean((1, 2)), deterministic=not train))


def test_a_network_of_nnx():
    network = as_linen(functools.partial(Nnx, 10))
    assert keywords(network, train=True, **NOISE._asdict()) == {"train": True}
    assert takes_noise(network) == ()
    x = normal(0, 6, 8, 8, 1)
    variables = initialise(network, 0, (8, 8, 1), "float32")
    other = initialise(network, 1, (8, 8, 1), "float32")
    assert not np.array_equal(*(one["params"]["conv"]["kernel"] for one in (variables, other)))
    outlined = outline(network, (8, 8, 1))
    assert outlined.params == 9 * 8 + 8 + 2 * 8 + 8 * 10 + 10
    assert outlined.macs_per_image == 64 * 9 * 8 + 8 * 10
    logits, updated, _ = apply_train(network, variables, (x,), NOISE)
    assert logits.shape == (6, 10)
    assert updated.keys() == variables.keys() - {"params"}
    again, _, _ = apply_train(network, variables, (x,), NOISE)
    close(again, logits)
    still = apply_evaluate(network, variables, (x,))
    assert not np.allclose(still, logits)
    close(apply_evaluate(network, variables, (x,)), still)


class ToldByMethod(Nnx):
    """NNX's own way: ``train()`` and ``eval()`` say what layers do, not the call."""

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x)))
        return self.logits(self.dropout(x.mean((1, 2))))


def test_a_network_of_nnx_that_is_told_its_mode_by_method():
    network = as_linen(functools.partial(ToldByMethod, 10))
    assert network == as_linen(functools.partial(ToldByMethod, 10))
    x = normal(0, 6, 8, 8, 1)
    variables = initialise(network, 0, (8, 8, 1), "float32")
    named = as_linen(functools.partial(Nnx, 10))
    assert jax.tree.structure(variables) == jax.tree.structure(initialise(named, 0, (8, 8, 1), "float32"))
    still = apply_evaluate(network, variables, (x,))
    close(still, apply_evaluate(named, variables, (x,)))
    close(apply_evaluate(network, variables, (x[:1],)), still[:1])  # whatever else is in the batch
    logits, updated, _ = apply_train(network, variables, (x,), NOISE)
    theirs, statistics, _ = apply_train(named, variables, (x,), NOISE)
    close(logits, theirs)
    jax.tree.map(close, updated, statistics)
    assert not np.allclose(logits, still)


def test_a_sequential_network():
    layers = [nn.Conv(4, (3, 3)), nn.relu, lambda x: x.mean((1, 2)), nn.Dense(10)]
    network = nn.Sequential(layers)
    assert keywords(network, train=True, **NOISE._asdict()) == {}
    assert takes_noise(network) == ()
    variables = initialise(network, 0, (8, 8, 1), "float32")
    x = normal(0, 6, 8, 8, 1)
    close(apply_train(network, variables, (x,), NOISE)[0], network.apply(variables, x))
    close(apply_evaluate(network, variables, (x,)), network.apply(variables, x))
    first = nn.Sequential([nn.Sequential([nn.BatchNorm(), nn.Conv(4, (3, 3))]), nn.relu])
    assert keywords(first, train=True) == {"use_running_average": False}
    assert keywords(nn.Sequential([nn.relu, nn.Dense(3)]), train=True) == {}


class Nodes(nn.Module):
    """A network of somebody's with a field that the engine's graphs have too."""

    nodes: int = 4

    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(nn.relu(nn.Conv(self.nodes, (3, 3))(x)).mean((1, 2)))


def test_a_network_may_have_nodes_of_its_own():
    network = Nodes()
    assert [layer.name for layer in dissect(network, (8, 8, 1)).layers] == ["Conv_0", "Dense_0"]
    found = passes.cut(network, (8, 8, 1))
    assert len(found.pieces) == 1
    assert found.size.params == 4 * 10 + 5 * 10


def test_a_network_of_nnx_learns(digits):
    assert learns(as_linen(functools.partial(Nnx, 10)), digits)


def test_what_is_no_network():
    with pytest.raises(
        InputError, match=r"^build: Nnx is an NNX module that has its weights already; return its"
    ):
        as_linen(Nnx(10, rngs=nnx.Rngs(0)))
    with pytest.raises(InputError, match=r"^build: a str is no Flax module$"):
        as_linen("resnet")
