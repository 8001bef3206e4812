"""The choices of the space.

``granularity=stage``: all layers of a stage have one kernel, expansion and squeeze and excitation (``kernel_2``), as in
MnasNet and EfficientNet; ``layer``: each of the first four has its own (``kernel_2_3``), and further ones are as the
fourth. ``width`` are channels behind a stage, ``depth`` its layers, of which the first has its ``stride``. An
expanded width is rounded to eights. ``expansion=1`` has no 1x1 convolution before the depthwise one unless
``expand_at_1`` (FBNet). The first ``relu_stages`` use relu whatever the ``activation`` (MobileNetV3).

``resolution``: images are resampled to so many pixels first; 0: they stay as they come. ``head_width``: of the 1x1
convolution behind the stages; ``head_dense``: of a dense layer behind the mean over pixels; 0: none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nas.nn.graph import Graph
from nas.space import Categorical, Choice, Integer, LogUniform, SearchSpace, Uniform, When
from search_spaces.mbconv.networks import PER_LAYER, network

STAGES = 7
DEEPEST = 13
KERNELS = Categorical((3, 5, 7))
EXPANSIONS = Categorical((1, 2, 2.3, 2.5, 3, 3.67, 4, 4.5, 5, 6))
SE = Categorical((False, True))


def build(arch: Mapping[str, Any], num_classes: int) -> Graph:
    """The network of an ``mbconv`` architecture: [B, H, W, C] -> logits [B, num_classes]."""
    SPACE.check_known(arch, "granularity", "activation", "se_form")
    return network(arch, num_classes)


CHOICES: dict[str, Choice] = {
    "resolution": Integer(0, 600),
    "activation": Categorical(("relu", "relu6", "silu", "hard_swish")),
    "relu_stages": Integer(0, STAGES),
    "se_form": Categorical(("efficientnet", "mobilenetv3")),
    "expand_at_1": Categorical((False, True)),
    "epsilon": Categorical((1e-5, 1e-3)),
    "stem_width": Integer(1, 64),
    "stem_stride": Categorical((1, 2)),
    "stages": Integer(1, STAGES),
    "granularity": Categorical(("stage", "layer")),
}
CONDITIONS: dict[str, tuple[When, ...]] = {}
for _stage in range(1, STAGES + 1):
    _exists = (When("stages", at_least=_stage),) if _stage > 1 else ()
    for _name, _choice in (
        ("width", Integer(1, 640)),
        ("stride", Categorical((1, 2))),
        ("depth", Integer(1, DEEPEST)),
    ):
        CHOICES[f"{_name}_{_stage}"] = _choice
        CONDITIONS[f"{_name}_{_stage}"] = _exists
    for _name, _choice in (("kernel", KERNELS), ("expansion", EXPANSIONS), ("se", SE)):
        CHOICES[f"{_name}_{_stage}"] = _choice
        CONDITIONS[f"{_name}_{_stage}"] = (*_exists, When("granularity", values=("stage",)))
        for _layer in range(1, PER_LAYER + 1):
            CHOICES[f"{_name}_{_stage}_{_layer}"] = _choice
            CONDITIONS[f"{_name}_{_stage}_{_layer}"] = (
                *_exists,
                When("granularity", values=("layer",)),
                When(f"depth_{_stage}", at_least=_layer),
            )
CHOICES |= {
    "head_width": Integer(1, 2560),
    "head_dense": Integer(0, 1536),
    "head_bias": Categorical((True, False)),
    "dropout": Uniform(0.0, 0.6, changes_program=False),
    "optimiser": Categorical(("nesterov", "rmsprop", "adamw")),
    "learning_rate": LogUniform(1e-4, 3.0, changes_program=False),
    "schedule": Categorical(("cosine", "linear", "step", "constant"), changes_program=False),
    "batch_size": Categorical((32, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096)),
    "weight_decay": LogUniform(1e-6, 1e-2, changes_program=False),
    "label_smoothing": Uniform(0.0, 0.2, changes_program=False),
    "augmentation": Categorical(
        ("none", "crop+flip", "crop+flip+cutout", "crop+flip+colour", "crop+flip+mixup")
    ),
}
CONDITIONS["head_bias"] = (When("head_dense", at_least=1),)

SPACE = SearchSpace(
    name="mbconv",
    choices=CHOICES,
    conditions=CONDITIONS,
    build=build,
    elastic=("kernel", "expansion", "depth", "width"),
    # What suits images of 32 pixels: 2.6 to 90 million multiply-adds.
    search_within=(
        "resolution=0",
        "activation=relu6,silu,hard_swish",
        "relu_stages=0",
        "se_form=efficientnet",
        "expand_at_1=False",
        "epsilon=0.00001",
        "stem_width=16",
        "stem_stride=1",
        "stages=4",
        "granularity=stage",
        "width_1=8,16",
        "width_2=16,24,32",
        "width_3=32,40,64",
        "width_4=64,96,128",
        *(f"stride_{stage}={stride}" for stage, stride in enumerate((1, 2, 2, 1), 1)),
        *(f"depth_{stage}=1..{deepest}" for stage, deepest in enumerate((1, 3, 3, 2), 1)),
        "expansion=1,3,4,6",
        "head_width=256",
        "head_dense=0",
        "learning_rate=0.01..0.3",
        "optimiser=nesterov",
        "batch_size=64,128",
        "augmentation=none,crop+flip,crop+flip+cutout",
    ),
)
