"""Published sizes of the networks of inverted residuals, to the digit."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from nas.objectives.train import build, size_of
from search_spaces.mbconv import NAMED, SPACE, SUBSPACES
from search_spaces.mbconv.networks import divisible


class Published(NamedTuple):
    params: int
    mega_macs: float
    """at ``image`` x ``image`` pixels"""
    image: int
    source: str


TORCHVISION = "torchvision's weights' num_params and _ops"
LOGS = (
    "pytorchcv's count; the authors' training logs (mit-han-lab/proxylessnas, logs/): 4.36, 7.12 and 4.08 M"
)
OFA = "parameters of the authors' OFAMobileNetV3(...).get_active_subnet() (mit-han-lab/once-for-all)"
PUBLISHED = {
    "mobilenetv2": Published(3_504_872, 301, 224, TORCHVISION),
    "mobilenetv3_large": Published(5_483_032, 217, 224, TORCHVISION),
    "mobilenetv3_small": Published(2_542_856, 57, 224, TORCHVISION),
    "mnasnet_a1": Published(
        3_887_038, 312, 224, "timm's semnasnet_100 (3.89 M); Tan et al. 2019, table 1: 312 M"
    ),
    "mnasnet_b1": Published(4_383_312, 315, 224, "torchvision's mnasnet1_0; Tan et al. 2019, table 1: 315 M"),
    "mnasnet0_5": Published(2_218_512, 104, 224, TORCHVISION),
    "mnasnet0_75": Published(3_170_208, 215, 224, TORCHVISION),
    "mnasnet1_0": Published(4_383_312, 314, 224, TORCHVISION),
    "mnasnet1_3": Published(6_282_256, 526, 224, TORCHVISION),
    "efficientnet_b0": Published(5_288_548, 386, 224, TORCHVISION),
    "efficientnet_b1": Published(7_794_184, 687, 240, TORCHVISION),
    "efficientnet_b2": Published(9_109_994, 1_088, 288, TORCHVISION),  # the paper: 1.0 G at 260 pixels
    "efficientnet_b3": Published(12_233_232, 1_827, 300, TORCHVISION),
    "efficientnet_b4": Published(19_341_616, 4_394, 380, TORCHVISION),
    "efficientnet_b5": Published(30_389_784, 10_266, 456, TORCHVISION),
    "efficientnet_b6": Published(43_040_704, 19_068, 528, TORCHVISION),
    "efficientnet_b7": Published(66_347_960, 37_746, 600, TORCHVISION),
    "proxylessnas_cpu": Published(4_361_648, 439.2, 224, LOGS),
    "proxylessnas_gpu": Published(7_119_848, 465.3, 224, LOGS),
    "proxylessnas_mobile": Published(4_080_512, 320.4, 224, LOGS),
    "proxylessnas_mobile14": Published(6_857_568, 581, 224, "pytorchcv's proxylessnas_mobile14"),
    "fbnet_c": Published(5_572_200, 385, 224, "timm's fbnetc_100: 5.57 M, 0.4 G"),
    "ofa_largest": Published(7_664_760, 566, 224, OFA),
    "ofa_smallest": Published(3_410_792, 121, 224, OFA),
}
QUICK = ("mobilenetv2", "mobilenetv3_small", "mnasnet_a1", "proxylessnas_gpu", "fbnet_c", "ofa_smallest")


def by_hand(arch, pixels: int, classes: int = 1000) -> tuple[int, int]:
    """Parameters and multiply-adds, without building the network."""
    size = lambda pixels, stride: -(-pixels // stride)  # noqa: E731 (padded by half a kernel)
    pixels = size(pixels, arch["stem_stride"])
    width = arch["stem_width"]
    params, macs = 27 * width + 2 * width, 27 * width * pixels**2
    for stage in range(1, arch["stages"] + 1):
        for i in range(1, arch[f"depth_{stage}"] + 1):
            at = stage if arch["granularity"] == "stage" else f"{stage}_{min(i, 4)}"
            kernel, expansion, se = (arch[f"{name}_{at}"] for name in ("kernel", "expansion", "se"))
            features, stride = arch[f"width_{stage}"], arch[f"stride_{stage}"] if i == 1 else 1
            wide = divisible(width * expansion) if expansion != 1 else width
            if expansion != 1 or arch["expand_at_1"]:
                params += width * wide + 2 * wide
                macs += width * wide * pixels**2
            pixels = size(pixels, stride)
            params += kernel**2 * wide + 2 * wide + wide * features + 2 * features
            macs += (kernel**2 * wide + wide * features) * pixels**2
            if se:
                hidden = width // 4 if arch["se_form"] == "efficientnet" else divisible(wide // 4)
                params += 2 * wide * hidden + wide + hidden
                macs += 2 * wide * hidden
            width = features
    head, dense = arch["head_width"], arch["head_dense"]
    params += width * head + 2 * head
    macs += width * head * pixels**2
    if dense:
        params += head * dense + dense * arch["head_bias"]
        macs += head * dense
    last = dense or head
    return params + last * classes + classes, macs + last * classes


def test_every_named_network_has_a_published_size():
    assert PUBLISHED.keys() == NAMED.keys()
    for name, named in NAMED.items():
        assert SPACE.canonical(named.arch) == named.arch
        assert named.params == PUBLISHED[name].params


@pytest.mark.parametrize("name", NAMED)
def test_sizes_by_hand(name):
    published = PUBLISHED[name]
    params, macs = by_hand(NAMED[name].arch, published.image)
    assert params == published.params
    assert macs / 1e6 == pytest.approx(published.mega_macs, rel=1e-3, abs=0.6)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMED]
)
@pytest.mark.some(3)
def test_sizes(name):
    named, published = NAMED[name], PUBLISHED[name]
    size = size_of(build(SPACE, named.arch, 1000), named.image_shape)
    assert size.params == published.params
    assert size == by_hand(named.arch, named.image_shape[0])


@pytest.mark.parametrize(
    "name", [name for name, published in PUBLISHED.items() if published.source is TORCHVISION]
)
def test_torchvision_says_so(name):
    models = pytest.importorskip("torchvision").models
    theirs = {"mobilenetv2": "mobilenet_v2", "mobilenetv3_large": "mobilenet_v3_large"}
    theirs |= {"mobilenetv3_small": "mobilenet_v3_small"}
    meta = models.get_model_weights(theirs.get(name, name)).IMAGENET1K_V1.meta
    assert PUBLISHED[name].params == meta["num_params"]
    assert PUBLISHED[name].mega_macs / 1e3 == pytest.approx(meta["_ops"], abs=1e-3)


def test_fbnet_c_as_its_authors_have_it():
    """mobile-vision's fbnet_c expands no block of expansion 1; its model_info counts 5.52542 M weights, without
    normalisations and biases, and 378.23344 M operations, 49 x 1,984 of them its average pooling."""
    params, macs = by_hand(NAMED["fbnet_c"].arch.set(expand_at_1=False), 224)
    normalised = 2 * 22_120
    assert params - normalised - 1_000 == 5_525_424
    assert macs + 49 * 1_984 == 378_233_440


def test_once_for_all_holds_its_networks():
    space = SPACE.restrict(narrow=SUBSPACES["ofa"])
    for name in ("ofa_largest", "ofa_smallest"):
        space.validate(NAMED[name].arch)
    drawn = [space.sample(k) for k in range(30)]
    assert {arch["depth_3"] for arch in drawn} == {2, 3, 4}
    for arch in drawn:
        params, _ = by_hand(arch, 224)
        assert NAMED["ofa_smallest"].params <= params <= NAMED["ofa_largest"].params
    # Section 3.2: ((3 x 3)^2 + (3 x 3)^3 + (3 x 3)^4)^5, about 2 x 10^19
    only = {
        choice: space.choices[choice].options()[0]
        for choice in ("resolution", "epsilon", "optimiser", "batch_size")
    }
    continuous = ("dropout", "learning_rate", "weight_decay", "label_smoothing")
    for name in continuous:
        space = space.discretise({name: 1})
    for name, value in {**only, "augmentation": "none", "schedule": "cosine"}.items():
        space = space.fix(name, value)
    assert space.count() == (9**2 + 9**3 + 9**4) ** 5


def test_accel_nasbench_holds_efficientnet_b0():
    space = SPACE.restrict(narrow=SUBSPACES["accel_nasbench"])
    space.validate(NAMED["efficientnet_b0"].arch)
    with pytest.raises(ValueError, match="mbconv: depth_6=5 is not one of 1, 2, 3, 4"):
        space.validate(NAMED["efficientnet_b0"].arch.set(depth_6=5))
