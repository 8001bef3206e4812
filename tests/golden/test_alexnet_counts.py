"""AlexNet's sizes, layer by layer as published."""

from __future__ import annotations

import pytest

from nas.objectives.train import Size, build, size_of
from search_spaces.alexnet import NAMED, SPACE


def by_hand(convolutions: list[tuple[int, int, int, int]]) -> Size:
    """Of (map side, kernel side, inputs a unit sees, units), the three dense layers added; all with biases."""
    params = sum(k * k * inputs * units + units for _, k, inputs, units in convolutions)
    macs = sum(side * side * k * k * inputs * units for side, k, inputs, units in convolutions)
    for inputs, units in ((6 * 6 * 256, 4096), (4096, 4096), (4096, 1000)):
        params += inputs * units + units
        macs += inputs * units
    return Size(params, macs)


# Krizhevsky et al. 2012, section 3.5: "96 kernels of size 11x11x3", "256 kernels of size 5x5x48", "384 kernels of
# size 3x3x256", "384 kernels of size 3x3x192", "256 kernels of size 3x3x192".
TWO_GROUPS = by_hand(
    [(55, 11, 3, 96), (27, 5, 48, 256), (13, 3, 256, 384), (13, 3, 192, 384), (13, 3, 192, 256)]
)
ONE_GROUP = by_hand(
    [(55, 11, 3, 96), (27, 5, 96, 256), (13, 3, 256, 384), (13, 3, 384, 384), (13, 3, 384, 256)]
)
ONE_WEIRD_TRICK = by_hand(
    [(55, 11, 3, 64), (27, 5, 64, 192), (13, 3, 192, 384), (13, 3, 384, 256), (13, 3, 256, 256)]
)


@pytest.mark.parametrize(
    ("name", "hand", "params", "macs"),
    [
        ("alexnet", TWO_GROUPS, 60_965_224, 724_406_816),  # the paper: "60 million parameters"
        ("alexnet_one_group", ONE_GROUP, 62_378_344, 1_135_256_096),
        ("alexnet_owt", ONE_WEIRD_TRICK, 61_100_840, 714_188_480),  # torchvision's documentation: 0.71 G
    ],
)
def test_sizes(name, hand, params, macs):
    named = NAMED[name]
    SPACE.validate(named.arch)
    found = size_of(build(SPACE, named.arch, named.num_classes), named.image_shape)
    assert found == hand == Size(params, macs)
    assert named.params == params


def test_one_weird_trick_has_as_many_parameters_as_torchvisions():
    models = pytest.importorskip("torchvision").models
    torch = pytest.importorskip("torch")
    with torch.device("meta"):  # shapes alone
        theirs = models.alexnet()
    assert NAMED["alexnet_owt"].params == sum(p.numel() for p in theirs.parameters())
