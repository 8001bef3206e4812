"""Parameter counts of the darts space to the digit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nas.objectives.train import size_of
from search_spaces import darts
from search_spaces.darts import NAMED


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.some(2)
def test_named(name):
    named = NAMED[name]
    assert size_of(darts.build(named.arch, named.num_classes), named.image_shape).params == named.params


def test_published():
    """3,349,342 by the authors' code (3.3 M in table 1), 476,426 more with the auxiliary head."""
    assert NAMED["darts_v2"].params == 3_349_342
    with_head = darts.build(NAMED["darts_v2"].arch.set(auxiliary=True), 10)
    assert size_of(with_head, (32, 32, 3)).params == 3_349_342 + 476_426


def test_the_auxiliary_head_of_imagenet():
    """768 channels reach it: a 1x1 kernel to 128, two numbers each, a 2x2 kernel to 768 on 2x2 pixels, no more."""
    arch = NAMED["darts_v2"].arch.set(stem="imagenet", channels=48, cells=14)
    without, with_head = (
        size_of(darts.build(arch.set(auxiliary=aux), 1000), (224, 224, 3)).params for aux in (False, True)
    )
    assert with_head - without == 768 * 128 + 2 * 128 + 4 * 128 * 768 + 768 * 1000 + 1000


@pytest.mark.slow
def test_supernet():
    layout = darts.layout()
    assert layout.size == 2 * 14 * 8
    network = darts.supernet(layout, 10)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: network.init(jax.random.key(0), x), image)
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"])) == 1_930_618
