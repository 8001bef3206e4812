"""The published networks of the space, and the spaces that papers searched as parts of it.

Their parameters are those of torchvision or of the authors' code; ``tests/golden/test_mbconv_counts.py`` says which.
The resolution they were published for is that of ``Named.image_shape``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from search_spaces.mbconv.networks import PER_LAYER, Layer, divisible
from search_spaces.named import Named

Stage = tuple[int, int, tuple[Layer, ...]]
"""Width, stride and layers."""

_BASE: dict[str, Any] = {
    "resolution": 0,
    "activation": "relu",
    "relu_stages": 0,
    "se_form": "efficientnet",
    "expand_at_1": False,
    "epsilon": 1e-5,
    "stem_width": 32,
    "stem_stride": 2,
    "head_width": 1280,
    "head_dense": 0,
    "dropout": 0.2,
    "optimiser": "rmsprop",
    "learning_rate": 0.045,
    "schedule": "cosine",
    "batch_size": 256,
    "weight_decay": 4e-5,
    "label_smoothing": 0.1,
    "augmentation": "crop+flip",
}


def _named(
    params: int,
    source: str,
    stages: Iterable[Stage],
    *,
    image: int = 224,
    per_layer: bool = False,
    **own: Any,
) -> Named:
    choices, stages = _BASE | own, tuple(stages)
    choices |= {"stages": len(stages), "granularity": "layer" if per_layer else "stage"}
    for number, (width, stride, layers) in enumerate(stages, 1):
        choices |= {f"width_{number}": width, f"stride_{number}": stride, f"depth_{number}": len(layers)}
        named = layers[:PER_LAYER] if per_layer else layers[:1]
        for i, layer in enumerate(named, 1):
            at = f"{number}_{i}" if per_layer else f"{number}"
            choices |= {f"{name}_{at}": value for name, value in layer._asdict().items()}
    return Named.of("mbconv", (image, image, 3), 1000, params, source, **choices)


def _alike(*stages: tuple[float, int, int, int, int, bool]) -> list[Stage]:
    """Stages of equal layers, each given as expansion, kernel, depth, width, stride and squeeze and excitation."""
    return [
        (width, stride, (Layer(kernel, expansion, se),) * depth)
        for expansion, kernel, depth, width, stride, se in stages
    ]


def _widths(stages: Iterable[Stage], factor: float, round_to: Any = divisible) -> list[Stage]:
    return [(round_to(width * factor), stride, layers) for width, stride, layers in stages]


def _layers(*layers: tuple[int, float], se: bool = False) -> tuple[Layer, ...]:
    """Layers given as kernel and expansion."""
    return tuple(Layer(kernel, expansion, se) for kernel, expansion in layers)


# ---- MobileNetV2 and V3 ------------------------------------------------------------------------------------------

_V2 = _alike(
    (1, 3, 1, 16, 1, False),
    (6, 3, 2, 24, 2, False),
    (6, 3, 3, 32, 2, False),
    (6, 3, 4, 64, 2, False),
    (6, 3, 3, 96, 1, False),
    (6, 3, 3, 160, 2, False),
    (6, 3, 1, 320, 1, False),
)
_V3_LARGE = [
    (16, 1, _layers((3, 1))),
    (24, 2, _layers((3, 4), (3, 3))),
    (40, 2, _layers((5, 3), (5, 3), (5, 3), se=True)),
    (80, 2, _layers((3, 6), (3, 2.5), (3, 2.3), (3, 2.3))),
    (112, 1, _layers((3, 6), (3, 6), se=True)),
    (160, 2, _layers((5, 6), (5, 6), (5, 6), se=True)),
]
_V3_SMALL = [
    (16, 2, _layers((3, 1), se=True)),
    (24, 2, _layers((3, 4.5), (3, 3.67))),
    (40, 2, _layers((5, 4), (5, 6), (5, 6), se=True)),
    (48, 1, _layers((5, 3), (5, 3), se=True)),
    (96, 2, _layers((5, 6), (5, 6), (5, 6), se=True)),
]
_V3 = {
    "per_layer": True,
    "activation": "hard_swish",
    "se_form": "mobilenetv3",
    "epsilon": 1e-3,
    "stem_width": 16,
    "head_bias": True,
    "learning_rate": 0.1,
    "batch_size": 4096,
    "weight_decay": 1e-5,
}

# ---- MnasNet, EfficientNet ---------------------------------------------------------------------------------------

_MNASNET_A1 = _alike(
    (1, 3, 1, 16, 1, False),
    (6, 3, 2, 24, 2, False),
    (3, 5, 3, 40, 2, True),
    (6, 3, 4, 80, 2, False),
    (6, 3, 2, 112, 1, True),
    (6, 5, 3, 160, 2, True),
    (6, 3, 1, 320, 1, False),
)
_MNASNET_B1 = _alike(
    (1, 3, 1, 16, 1, False),
    (3, 3, 3, 24, 2, False),
    (3, 5, 3, 40, 2, False),
    (6, 5, 3, 80, 2, False),
    (6, 3, 2, 96, 1, False),
    (6, 5, 4, 192, 2, False),
    (6, 3, 1, 320, 1, False),
)
_MNASNET = {"learning_rate": 0.256, "batch_size": 4096, "weight_decay": 1e-5}


def _mnasnet(params: int, factor: float, **own: Any) -> Named:
    source = "Tan et al. 2019, figure 7 (B1); torchvision's mnasnet"
    stages = _widths(_MNASNET_B1, factor)
    return _named(params, source, stages, stem_width=divisible(32 * factor), **_MNASNET | own)


_B0 = _alike(
    (1, 3, 1, 16, 1, True),
    (6, 3, 2, 24, 2, True),
    (6, 5, 2, 40, 2, True),
    (6, 3, 3, 80, 2, True),
    (6, 5, 3, 112, 1, True),
    (6, 5, 4, 192, 2, True),
    (6, 3, 1, 320, 1, True),
)


def _efficientnet(params: int, width: float, depth: float, image: int, dropout: float, **own: Any) -> Named:
    """Compound scaling: widths in eights, depths rounded up."""
    stages = [
        (divisible(channels * width), stride, layers[:1] * math.ceil(depth * len(layers)))
        for channels, stride, layers in _B0
    ]
    return _named(
        params,
        "Tan and Le 2019, tables 1 and 2; torchvision's efficientnet",
        stages,
        image=image,
        activation="silu",
        stem_width=divisible(32 * width),
        head_width=divisible(1280 * width),
        dropout=dropout,
        learning_rate=0.256,
        batch_size=4096,
        weight_decay=1e-5,
        **own,
    )


# ---- ProxylessNAS, FBNet, Once-for-all ----------------------------------------------------------------------------


def _proxyless(
    params: int, stem: int, head: int, first: int, widths: Sequence[int], *layers: tuple[tuple[int, int], ...]
) -> Named:
    strides = (2, 2, 2, 1, 2, 1)
    stages = [(first, 1, _layers((3, 1)))]
    stages += [
        (width, stride, _layers(*own)) for width, stride, own in zip(widths, strides, layers, strict=True)
    ]
    return _named(
        params,
        "Cai et al. 2019, figure 5; the authors' configurations as pytorchcv has them",
        stages,
        per_layer=True,
        activation="relu6",
        epsilon=1e-3,
        stem_width=stem,
        head_width=head,
        optimiser="nesterov",
        learning_rate=0.05,
    )


_MOBILE = (
    ((5, 3), (3, 3)),
    ((7, 3), (3, 3), (5, 3), (5, 3)),
    ((7, 6), (5, 3), (5, 3), (5, 3)),
    ((5, 6), (5, 3), (5, 3), (5, 3)),
    ((7, 6), (7, 6), (7, 3), (7, 3)),
    ((7, 6),),
)


def _once_for_all(params: int, kernel: int, expansion: int, depth: int) -> Named:
    stages = [(16, 1, _layers((3, 1)))]
    for width, stride, se in ((24, 2, False), (40, 2, True), (80, 2, False), (112, 1, True), (160, 2, True)):
        stages.append((width, stride, _layers(*((kernel, expansion),) * depth, se=se)))
    return _named(
        params,
        "Cai et al. 2020, section 3.2; the authors' OFAMobileNetV3 at width 1.0",
        stages,
        per_layer=True,
        activation="hard_swish",
        relu_stages=3,
        se_form="mobilenetv3",
        stem_width=16,
        head_width=960,
        head_dense=1280,
        head_bias=False,
        dropout=0.1,
        optimiser="nesterov",
        learning_rate=2.6,
        batch_size=2048,
        weight_decay=3e-5,
    )


_FBNET_C = [
    (16, 1, _layers((3, 1))),
    (24, 2, _layers((3, 6), (3, 1), (3, 1))),
    (32, 2, _layers((5, 6), (5, 3), (5, 6), (3, 6))),
    (64, 2, _layers((5, 6), (5, 3), (5, 6), (5, 6))),
    (112, 1, _layers((5, 6), (5, 6), (5, 6), (5, 3))),
    (184, 2, _layers((5, 6), (5, 6), (5, 6), (5, 6))),
    (352, 1, _layers((3, 6))),
]

NAMED: dict[str, Named] = {
    "mobilenetv2": _named(
        3_504_872, "Sandler et al. 2018, table 2; torchvision's mobilenet_v2", _V2, activation="relu6"
    ),
    "mobilenetv3_large": _named(
        5_483_032,
        "Howard et al. 2019, table 1; torchvision's mobilenet_v3_large",
        _V3_LARGE,
        **_V3,
        relu_stages=3,
        head_width=960,
        head_dense=1280,
    ),
    "mobilenetv3_small": _named(
        2_542_856,
        "Howard et al. 2019, table 2; torchvision's mobilenet_v3_small",
        _V3_SMALL,
        **_V3,
        relu_stages=2,
        head_width=576,
        head_dense=1024,
    ),
    "mnasnet_a1": _named(
        3_887_038, "Tan et al. 2019, figure 7; timm's semnasnet_100", _MNASNET_A1, **_MNASNET
    ),
    "mnasnet_b1": _mnasnet(4_383_312, 1.0),
    "mnasnet0_5": _mnasnet(2_218_512, 0.5),
    "mnasnet0_75": _mnasnet(3_170_208, 0.75),
    "mnasnet1_0": _mnasnet(4_383_312, 1.0),
    "mnasnet1_3": _mnasnet(6_282_256, 1.3),
    "efficientnet_b0": _efficientnet(5_288_548, 1.0, 1.0, 224, 0.2),
    "efficientnet_b1": _efficientnet(7_794_184, 1.0, 1.1, 240, 0.2),
    "efficientnet_b2": _efficientnet(9_109_994, 1.1, 1.2, 260, 0.3),
    "efficientnet_b3": _efficientnet(12_233_232, 1.2, 1.4, 300, 0.3),
    "efficientnet_b4": _efficientnet(19_341_616, 1.4, 1.8, 380, 0.4),
    "efficientnet_b5": _efficientnet(30_389_784, 1.6, 2.2, 456, 0.4, epsilon=1e-3),
    "efficientnet_b6": _efficientnet(43_040_704, 1.8, 2.6, 528, 0.5, epsilon=1e-3),
    "efficientnet_b7": _efficientnet(66_347_960, 2.0, 3.1, 600, 0.5, epsilon=1e-3),
    "proxylessnas_cpu": _proxyless(
        4_361_648,
        40,
        1432,
        24,
        (32, 48, 88, 104, 216, 360),
        ((3, 6), (3, 3), (3, 3), (3, 3)),
        ((3, 6), (3, 3), (3, 3), (5, 3)),
        ((3, 6), (3, 3)),
        ((5, 6), (3, 3), (3, 3), (3, 3)),
        ((5, 6), (5, 3), (5, 3), (3, 3)),
        ((5, 6),),
    ),
    "proxylessnas_gpu": _proxyless(
        7_119_848,
        40,
        1728,
        24,
        (32, 56, 112, 128, 256, 432),
        ((5, 3),),
        ((7, 3), (3, 3)),
        ((7, 6), (5, 3)),
        ((5, 6), (3, 3), (5, 3)),
        ((7, 6), (7, 6), (7, 6), (5, 6)),
        ((7, 6),),
    ),
    "proxylessnas_mobile": _proxyless(4_080_512, 32, 1280, 16, (32, 40, 80, 96, 192, 320), *_MOBILE),
    "proxylessnas_mobile14": _proxyless(6_857_568, 48, 1792, 24, (40, 56, 112, 136, 256, 448), *_MOBILE),
    "fbnet_c": _named(
        5_572_200,
        "Wu et al. 2019, figure 4; timm's fbnetc_100",
        _FBNET_C,
        per_layer=True,
        expand_at_1=True,
        stem_width=16,
        head_width=1984,
    ),
    "ofa_largest": _once_for_all(7_664_760, 7, 6, 4),
    "ofa_smallest": _once_for_all(3_410_792, 3, 3, 2),
}

_OF_STAGES = "se_form=efficientnet", "relu_stages=0", "expand_at_1=False", "stages=7", "granularity=stage"
SUBSPACES: dict[str, tuple[str, ...]] = {
    # Cai et al. 2020, section 3.2: kernels, expansions and depths of five stages; resolutions come with the images.
    "ofa": (
        "activation=hard_swish",
        "relu_stages=3",
        "se_form=mobilenetv3",
        "expand_at_1=False",
        "stem_width=16",
        "stem_stride=2",
        "stages=6",
        "granularity=layer",
        *(f"width_{i}={width}" for i, width in enumerate((16, 24, 40, 80, 112, 160), 1)),
        *(f"stride_{i}={stride}" for i, stride in enumerate((1, 2, 2, 2, 1, 2), 1)),
        *(
            f"se_{i}_{layer}={se}"
            for i, se in enumerate((False, False, True, False, True, True), 1)
            for layer in range(1, PER_LAYER + 1)
        ),
        "depth=2,3,4",
        "depth_1=1",
        "kernel=3,5,7",
        "kernel_1_1=3",
        "expansion=3,4,6",
        "expansion_1_1=1",
        "head_width=960",
        "head_dense=1280",
        "head_bias=False",
    ),
    # Ahmad et al. 2024, appendix B: what Accel-NASBench's networks were drawn from; EfficientNet-B0 is one.
    "accel_nasbench": (
        *_OF_STAGES,
        "activation=silu",
        "stem_width=32",
        "stem_stride=2",
        *(f"width_{i}={width}" for i, width in enumerate((16, 24, 40, 80, 112, 192, 320), 1)),
        *(f"stride_{i}={stride}" for i, stride in enumerate((1, 2, 2, 2, 1, 2, 1), 1)),
        "depth=1,2,3",
        "depth_6=1,2,3,4",
        "kernel=3,5",
        "expansion=1,4,6",
        "head_width=1280",
        "head_dense=0",
    ),
}
