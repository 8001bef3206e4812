"""LeNet-5's published sizes, to the digit, layer by layer."""

from __future__ import annotations

import pytest

from nas.objectives.train import build, size_of
from nas.training.network import outline
from search_spaces.lenet import NAMED, SPACE, connections, table

SHAPES = [(32, 32, 1), (28, 28, 1)]  # 28x28 images are centred in 32x32


def params_by_layer(name, image_shape):
    """Trainable parameters of every layer: its weights and its biases, which a normalisation node holds."""
    named = NAMED[name]
    variables = outline(build(SPACE, named.arch, 10), image_shape).variables
    found: dict[str, int] = {}
    for node, tree in variables["params"].items():
        layer = node.removesuffix("_norm")
        found[layer] = found.get(layer, 0) + sum(leaf.size for leaf in tree.values())
    return found


@pytest.mark.parametrize("image_shape", SHAPES)
def test_lenet5(image_shape):
    """LeCun et al. 1998, section II.B: every layer's trainable parameters; 60,000 in all."""
    layers = {"c1": 156, "s2": 12, "c3": 1_516, "s4": 32, "c5": 48_120, "f6": 10_164}
    assert params_by_layer("lenet5", image_shape) == layers
    assert sum(layers.values()) == NAMED["lenet5"].params == 60_000
    assert size_of(build(SPACE, NAMED["lenet5"].arch, 10), image_shape).params == 60_000


@pytest.mark.parametrize("image_shape", SHAPES)
def test_connections_of_lenet5(image_shape):
    """Section II.B gives those of C1 to F6; the total of 340,908 has the 840 of the output units too."""
    layers = {
        "c1": 122_304,
        "s2": 5_880,
        "c3": 151_600,
        "s4": 2_000,
        "c5": 48_120,
        "f6": 10_164,
        "output": 840,
    }
    assert connections(NAMED["lenet5"].arch, image_shape, 10) == layers
    assert sum(layers.values()) == 340_908


@pytest.mark.parametrize("image_shape", SHAPES)
def test_lenet5_dense(image_shape):
    """C3 reads all 6 maps: 16 * (6 * 25 + 1); the output is 10 * (84 + 1); pooling has no weights."""
    layers = {"c1": 156, "c3": 2_416, "c5": 48_120, "f6": 10_164, "logits": 850}
    assert params_by_layer("lenet5_dense", image_shape) == layers
    assert sum(layers.values()) == NAMED["lenet5_dense"].params == 61_706


def test_named_points_belong_to_the_space():
    for named in NAMED.values():
        SPACE.validate(named.arch)
        assert named.space == SPACE.name
        assert size_of(build(SPACE, named.arch, named.num_classes), named.image_shape).params == named.params


def test_table_1_of_the_paper():
    """Which maps of S2 (rows) feed which of C3 (columns), as printed."""
    printed = """
        X . . . X X X . . X X X X . X X
        X X . . . X X X . . X X X X . X
        X X X . . . X X X . . X . X X X
        . X X X . . X X X X . . X . X X
        . . X X X . . X X X X . X X . X
        . . . X X X . . X X X X . X X X
    """
    columns = zip(*(row.split() for row in printed.strip().splitlines()), strict=True)
    assert table(6, 16) == tuple(
        tuple(i for i, mark in enumerate(column) if mark == "X") for column in columns
    )
