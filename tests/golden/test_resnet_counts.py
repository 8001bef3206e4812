"""Parameters, multiply-adds and layers of the published residual networks."""

import re
from collections import Counter

import flax.linen as nn
import pytest

from nas.nn.layers import Dense
from nas.objectives.train import build, size_of
from search_spaces.resnet import NAMED, SPACE

CIFAR = {"resnet20": 3, "resnet32": 5, "resnet44": 7, "resnet56": 9, "resnet110": 18, "resnet1202": 200}


def by_hand(blocks: int, widths: tuple[int, ...], classes: int) -> int:
    """Basic blocks without projections behind a 3x3 stem: kernels, two numbers a normalised channel, classifier."""
    total = 27 * widths[0] + 2 * widths[0] + widths[-1] * classes + classes
    before = widths[0]
    for width in widths:
        total += 9 * before * width + 9 * width * width * (2 * blocks - 1) + 2 * width * 2 * blocks
        before = width
    return total


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "resnet1202" else name for name in NAMED]
)
@pytest.mark.some(6)
def test_parameters(name):
    named = NAMED[name]
    SPACE.validate(named.arch)
    assert SPACE.canonical(named.arch) == named.arch
    assert size_of(build(SPACE, named.arch, named.num_classes), named.image_shape).params == named.params


@pytest.mark.parametrize("name", CIFAR)
def test_small_ones_by_hand(name):
    """He et al. 2015, table 6: 0.27, 0.46, 0.66, 0.85, 1.7 and 19.4 M."""
    assert NAMED[name].params == by_hand(CIFAR[name], (16, 32, 64), 10)
    millions = {"resnet20": 0.27, "resnet32": 0.46, "resnet44": 0.66, "resnet56": 0.85, "resnet110": 1.7}
    assert NAMED[name].params / 1e6 == pytest.approx((millions | {"resnet1202": 19.4})[name], abs=0.03)


def test_option_a_and_preactivation_add_nothing():
    for plain, residual in (("plain20", "resnet20"), ("plain56", "resnet56"), ("preresnet110", "resnet110")):
        assert NAMED[plain].params == NAMED[residual].params


def test_preactivated_bottlenecks_by_hand():
    """ResNet-164, He et al. 2016, table 3: 18 bottlenecks a stage with 4 x 16, 32 and 64 channels (as pytorchcv's)."""
    total, before = 27 * 16 + 2 * 16, 16
    for width in (16, 32, 64):
        for block in range(18):
            total += before * width + 9 * width * width + 4 * width * width  # kernels
            total += 2 * (width + width)  # normalisation before the second and third convolution
            if width > 16 or block:
                total += 2 * before  # and before the first, which the stem's stands for in the first block
            if not block:
                total += 4 * before * width  # projection, not normalised
            before = 4 * width
    total += 2 * 256 + 256 * 10 + 10
    assert NAMED["preresnet164"].params == total


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_large_ones_as_torchvision(depth):
    """Its own counts; its bottlenecks have their stride at the 3x3 convolution, which costs more multiply-adds."""
    models = pytest.importorskip("torchvision").models
    named = NAMED[f"resnet{depth}"]
    reference = getattr(models, f"ResNet{depth}_Weights").IMAGENET1K_V1.meta
    assert named.params == reference["num_params"]
    arch = named.arch.set(stride_at="3x3") if depth >= 50 else named.arch
    size = size_of(build(SPACE, arch, 1000), (224, 224, 3))
    assert size.params == named.params
    assert size.macs_per_image / 1e9 == pytest.approx(reference["_ops"], abs=1e-3)


def test_plain_ones_lack_the_projections():
    projections = sum(a * b + 2 * b for a, b in ((64, 128), (128, 256), (256, 512)))
    for depth in (18, 34):
        assert NAMED[f"plain{depth}"].params == NAMED[f"resnet{depth}"].params - projections


@pytest.mark.parametrize(
    ("name", "macs"),
    [
        ("resnet18", 1.814e9),
        ("resnet34", 3.6e9),
        ("resnet50", 3.8e9),
        ("resnet101", 7.6e9),
        ("resnet152", 11.3e9),
    ],
)
def test_multiply_adds(name, macs):
    """He et al. 2015, table 1, in the precision printed there; ResNet-18's from torchvision (the table: 1.8)."""
    named = NAMED[name]
    found = size_of(build(SPACE, named.arch, 1000), named.image_shape).macs_per_image
    assert found == pytest.approx(macs, rel=0.01 if name == "resnet18" else 0.02)


@pytest.mark.parametrize("name", NAMED)
def test_a_network_has_the_layers_it_is_named_for(name):
    """Convolutions and the classifier; projections do not count."""
    named = NAMED[name]
    nodes = build(SPACE, named.arch, named.num_classes).nodes
    weighted = [
        n for n in nodes if isinstance(n.module, nn.Conv | Dense) and not n.name.startswith("project")
    ]
    assert len(weighted) == int(re.sub(r"\D", "", name))


def test_resnet20_is_nothing_but_convolutions_and_fused_normalisations():
    """The network whose training speed is compared with PyTorch's: any further node would cost."""
    nodes = build(SPACE, NAMED["resnet20"].arch, 10).nodes
    kinds = Counter(type(node.module).__name__ for node in nodes)
    assert kinds == {"Conv": 19, "NormAct": 19, "PadShortcut": 2, "CellAverage": 1, "Dense": 1}
