"""Every registered space builds networks that the training can use: shapes, statistics, both call modes."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nas.nn.call import takes_noise
from nas.objectives.train import build, size_of
from nas.space import Architecture, Categorical
from nas.training.hyper import Hyper
from nas.training.network import computing, outline
from search_spaces import SPACES

IMAGES = [(8, 8, 1), (28, 28, 1), (32, 32, 3), (13, 17, 2)]
QUICK = ("mlp", "lenet", "alexnet", "chain", "minichain", "autoencoder")
SAMPLES = dict.fromkeys(QUICK, 4)  # the others take long to trace: one


@pytest.mark.parametrize(
    "image_shape",
    [IMAGES[0], IMAGES[-1], *(pytest.param(shape, marks=pytest.mark.slow) for shape in IMAGES[1:-1])],
)
@pytest.mark.parametrize("name", SPACES)
def test_shapes(name, image_shape):
    space = SPACES[name].searched()
    for i in range(SAMPLES.get(name, 1)):
        network = build(space, space.sample((5, i)), 7)
        image = jax.ShapeDtypeStruct((3, *image_shape), jnp.float32)
        variables = jax.eval_shape(lambda net=network, x=image: net.lazy_init(jax.random.key(0), x))
        logits = jax.eval_shape(lambda v, x, net=network: net.apply(v, x, train=False), variables, image)
        assert logits.shape == (3, 7)
        stateful = [collection for collection in variables if collection != "params"]

        def trained(v, x, net=network, stateful=stateful):
            noise = {"dropout": jnp.float32(0.1), "seed": jnp.uint32(0)}
            taken = {name: noise[name] for name in takes_noise(net) if name in noise}
            return net.apply(v, x, train=True, mutable=stateful, **taken)

        logits, updated = jax.eval_shape(trained, variables, image)
        assert logits.shape == (3, 7)
        for collection in stateful:
            same = jax.tree.map(lambda a, b: a.shape == b.shape, variables[collection], updated[collection])
            assert all(jax.tree.leaves(same))


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.some(7)
def test_bfloat16_stays_bfloat16_between_layers(name):
    space = SPACES[name].searched()
    network = build(space, space.sample(3), 10)
    image = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.bfloat16)
    variables = jax.eval_shape(lambda: network.lazy_init(jax.random.key(0), image))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    _, kept = jax.eval_shape(
        lambda v, x: network.apply(
            computing(v, (x,)), x, train=False, capture_intermediates=True, mutable=["intermediates"]
        ),
        variables,
        image,
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {jnp.dtype(jnp.bfloat16)}


# Where another rule holds (LeNet's scaled tanh; weights that units do not share), the unit tests check that.
SHARED = {
    "accel_nasbench": ("depth=1", "expansion=1"),
    "mbconv": ("depth=1",),
    "lenet": ("activation=relu", "c3_table=full"),
    "mlp": ("edges=full",),
    "autoencoder": ("weights=shared",),
}
OTHER_INITIAL_VALUES = ("cuda_convnet",)
LONG_TO_DRAW = ("nasbench201", "nasbench_macro", "natssize")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name in LONG_TO_DRAW else name for name in SPACES],
)
@pytest.mark.some(5)
def test_initial_values_come_from_the_key_alone(name):
    space = SPACES[name].searched(fix=SHARED.get(name, ()))
    network = build(space, space.sample(4), 10)
    image = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
    first, same, other = (network.lazy_init(jax.random.key(k), image) for k in (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, first, same)
    kernels = [leaf for leaf in jax.tree.leaves(first["params"]) if leaf.ndim > 1]
    others = [leaf for leaf in jax.tree.leaves(other["params"]) if leaf.ndim > 1]
    assert all(not np.array_equal(a, b) for a, b in zip(kernels, others, strict=True))
    for kernel in kernels if name not in OTHER_INITIAL_VALUES else ():  # He et al. 2015: variance 2 / fan-in
        if kernel.size > 2000:
            assert float(kernel.std()) == pytest.approx(np.sqrt(2 / np.prod(kernel.shape[:-1])), rel=0.1)


def test_sizes_of_a_chain_by_hand():
    """Conv 3x3x1x8 + bn, pool to 14x14, conv 5x5x8x16 + bn, pool to 7x7, averages over 4x4 cells of 2x2."""
    space = SPACES["chain"]
    arch = space.from_string(
        "depth=2,width_1=8,width_2=16,kernel_1=3,kernel_2=5,stride=1,pooling=max,downsample_every=1,"
        "connections=plain,normalisation=batch,activation=relu,head_depth=1,head_width=32,dropout=0.0,"
        "optimiser=adamw,learning_rate=0.001,schedule=cosine,batch_size=32,weight_decay=1e-06,"
        "label_smoothing=0.0,augmentation=none"
    )
    params = 9 * 8 + 2 * 8 + 25 * 8 * 16 + 2 * 16 + (16 * 16 * 32 + 2 * 32) + (32 * 10 + 10)
    macs = 28 * 28 * 9 * 8 + 14 * 14 * 25 * 8 * 16 + 16 * 16 * 32 + 32 * 10
    assert size_of(build(space, arch, 10), (28, 28, 1)) == (params, macs)


TRAINING = {field.name for field in dataclasses.fields(Hyper)}


@pytest.mark.parametrize("name", SPACES)
def test_a_value_that_no_branch_knows_is_an_error(name):
    """A family's ``build`` is shared by spaces with choices of a user's: no unknown one may become a default."""
    space = SPACES[name]
    texts = [
        choice
        for choice, values in space.choices.items()
        if isinstance(values, Categorical) and all(isinstance(v, str) for v in values.values)
    ]
    firsts = {re.sub(r"_\d+$", "_1", text): text for text in reversed(texts) if text not in TRAINING}
    for choice in firsts.values():
        arch = next(a for k in range(100) if choice in (a := space.sample((7, k))))
        with pytest.raises(ValueError, match="unheard_of"):  # noqa: PT012
            network = build(space, Architecture({**arch, choice: "unheard_of"}), 10)
            outline(network, (32, 32, 3))
