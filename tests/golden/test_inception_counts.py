"""GoogLeNet's sizes, module by module as published."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nas.objectives.train import Size, build, size_of
from search_spaces.inception import NAMED, SPACE

# Szegedy et al. 2014, table 1: inputs; 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool projection; map side; and the
# table's millions of operations.
MODULES = {
    "3a": (192, (64, 96, 128, 16, 32, 32), 28, 128),
    "3b": (256, (128, 128, 192, 32, 96, 64), 28, 304),
    "4a": (480, (192, 96, 208, 16, 48, 64), 14, 73),
    "4b": (512, (160, 112, 224, 24, 64, 64), 14, 88),
    "4c": (512, (128, 128, 256, 24, 64, 64), 14, 100),
    "4d": (512, (112, 144, 288, 32, 64, 64), 14, 119),
    "4e": (528, (256, 160, 320, 32, 128, 128), 14, 170),
    "5a": (832, (256, 160, 320, 32, 128, 128), 7, 54),
    "5b": (832, (384, 192, 384, 48, 128, 128), 7, 71),
}
STEM = [(112, 7, 3, 64), (56, 1, 64, 64), (56, 3, 64, 192)]  # map side, kernel side, inputs, outputs


def convolutions(large: int) -> list[tuple[int, int, int, int]]:
    """(map side, kernel side, inputs, outputs) of all 57, the third branch having ``large`` x ``large`` kernels."""
    found = list(STEM)
    for inputs, (a, b_reduce, b, c_reduce, c, d), side, _ in MODULES.values():
        found += [(side, 1, inputs, a), (side, 1, inputs, b_reduce), (side, 3, b_reduce, b)]
        found += [(side, 1, inputs, c_reduce), (side, large, c_reduce, c), (side, 1, inputs, d)]
    return found


def by_hand(large: int, vectors: int) -> Size:
    """With ``vectors`` parameters a channel beside the kernels: a bias, or a scale and a shift."""
    layers = convolutions(large)
    params = sum(k * k * inputs * outputs + vectors * outputs for _, k, inputs, outputs in layers)
    macs = sum(side * side * k * k * inputs * outputs for side, k, inputs, outputs in layers)
    return Size(params + 1024 * 1000 + 1000, macs + 1024 * 1000)


def classifier(inputs: int) -> int:
    """Section 5: 128 1x1 filters, over a 4x4 map 1024 units, 1000 classes."""
    return (inputs * 128 + 128) + (4 * 4 * 128 * 1024 + 1024) + (1024 * 1000 + 1000)


def size(name: str) -> Size:
    named = NAMED[name]
    SPACE.validate(named.arch)
    found = size_of(build(SPACE, named.arch, named.num_classes), named.image_shape)
    assert found.params == named.params
    return found


def test_googlenet():
    """Section 1 states a budget of 1.5 billion multiply-adds; the sum of table 1 is 1.58."""
    assert size("googlenet") == by_hand(5, 1) == Size(6_998_552, 1_582_671_872)


def test_googlenet_with_auxiliary_classifiers():
    """Behind 4a (512 channels) and 4d (528); evaluation does not run them, so they cost no multiply-adds."""
    plain = by_hand(5, 1)
    more = classifier(512) + classifier(528)
    assert more == 3_188_840 + 3_190_888
    assert size("googlenet_aux") == Size(plain.params + more, plain.macs_per_image)
    assert plain.params + more == 13_378_280


def test_batch_normalised_googlenet():
    assert size("googlenet_bn") == by_hand(3, 2) == Size(6_624_904, 1_498_376_192)


def test_batch_normalised_googlenet_has_as_many_parameters_as_torchvisions():
    models = pytest.importorskip("torchvision").models
    torch = pytest.importorskip("torch")
    with torch.device("meta"):  # shapes alone
        theirs = models.googlenet(weights=None, aux_logits=False, init_weights=False)
    assert NAMED["googlenet_bn"].params == sum(p.numel() for p in theirs.parameters())


def test_operations_of_the_modules_are_those_of_table_1():
    """Within 1 %, but for 5a, where the table's 54 million do not follow from its widths (51.1 million)."""
    named = NAMED["googlenet"]
    network = build(SPACE, named.arch, named.num_classes)
    image = jax.ShapeDtypeStruct((1, *named.image_shape), jnp.float32)
    variables = jax.eval_shape(lambda: network.lazy_init(jax.random.key(0), image))
    _, kept = jax.eval_shape(
        lambda v, x: network.apply(v, x, capture_intermediates=True, mutable=["intermediates"]),
        variables,
        image,
    )
    macs = dict.fromkeys(MODULES, 0)
    for name, outputs in kept["intermediates"].items():
        if found := re.fullmatch(r"conv_(\d)_(\d)_.*", name):
            stage, index = map(int, found.groups())
            kernel = variables["params"][name]["kernel"].shape
            pixels = np.prod(outputs["__call__"][0].shape[1:3])
            macs[f"{stage + 2}{'abcde'[index - 1]}"] += int(pixels * np.prod(kernel))
    assert macs["5a"] == 51_079_168
    for name, (_, _, _, published) in MODULES.items():
        if name != "5a":
            assert macs[name] / 1e6 == pytest.approx(published, rel=0.01)
