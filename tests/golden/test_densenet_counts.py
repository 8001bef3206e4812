"""Published sizes of DenseNets, to the digit."""

from __future__ import annotations

import pytest

from nas.objectives.train import build, size_of
from search_spaces.densenet import NAMED, SPACE

BY_HAND = {
    # A layer that reads c channels has 2c + 9 * 12c = 110c parameters, a block that starts with c channels
    # 110 * (12c + 12 * 66), a transition from c to c channels 2c + c * c.
    "densenet40": [
        3 * 9 * 16,
        110 * (12 * 16 + 792),
        2 * 160 + 160 * 160,
        110 * (12 * 160 + 792),
        2 * 304 + 304 * 304,
        110 * (12 * 304 + 792),
        2 * 448,
        448 * 10 + 10,
    ],
    # A layer that reads c channels: 2c + 48c, then 2 * 48 + 9 * 48 * 12 = 5,280; of 16 of them the c's sum up
    # to 16 times the first plus 12 * 120.
    "densenetbc100": [
        3 * 9 * 24,
        50 * (16 * 24 + 1440) + 16 * 5280,
        2 * 216 + 216 * 108,
        50 * (16 * 108 + 1440) + 16 * 5280,
        2 * 300 + 300 * 150,
        50 * (16 * 150 + 1440) + 16 * 5280,
        2 * 342,
        342 * 10 + 10,
    ],
}


def size(name):
    named = NAMED[name]
    return size_of(build(SPACE, named.arch, named.num_classes), named.image_shape)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("densenet121", 7_978_856),
        ("densenet161", 28_681_000),
        ("densenet169", 14_149_480),
        ("densenet201", 20_013_928),
        ("densenet40", 1_019_722),
        ("densenetbc100", 769_162),
    ],
)
@pytest.mark.some(3)
def test_parameters(name, params):
    """ImageNet: torchvision's counts of table 1's networks. CIFAR, table 2: 1.0 M and 0.8 M, see `BY_HAND`."""
    SPACE.validate(NAMED[name].arch)
    assert size(name).params == NAMED[name].params == params


@pytest.mark.parametrize("name", BY_HAND)
def test_parameters_by_hand(name):
    assert sum(BY_HAND[name]) == NAMED[name].params


@pytest.mark.parametrize("name", ["densenet121", "densenet161", "densenet169", "densenet201"])
def test_parameters_of_torchvision(name):
    torch, models = pytest.importorskip("torch"), pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        theirs = getattr(models, name)(weights=None)
    assert sum(p.numel() for p in theirs.parameters()) == NAMED[name].params


@pytest.mark.parametrize(
    ("name", "giga"),
    # The BC network: 0.288 G, counted with the same rule. ImageNet: torchvision's table of "GFLOPS".
    [("densenetbc100", 0.288), ("densenet121", 2.83), ("densenet161", 7.73), ("densenet201", 4.29)],
)
def test_multiply_adds(name, giga):
    assert size(name).macs_per_image == pytest.approx(giga * 1e9, rel=0.01)
