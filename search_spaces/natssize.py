"""The ``natssize`` space: the size space of NATS-Bench (Dong et al. 2021, section 3.1).

Five layers, ``channels_1`` to ``channels_5``, each of one of eight widths: 32,768 architectures. Layers 1, 3 and 5
are cells at 1, 1/2 and 1/4 of the resolution, 2 and 4 residual blocks of stride 2; stem and head are those of
``nasbench201``, the stem as wide as layer 1. Every cell is the one that was best on CIFAR-100 in that space. Where
a cell changes the number of channels, an identity that leaves its input becomes a normalised 1x1 convolution.

Text is the benchmark's own, ``8:16:24:32:64``; its indices count in that order, the last layer fastest. The
published training is ``nasbench201``'s for 90 epochs, 12 or 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nas.errors import InputError
from nas.nn.graph import Builder, Graph
from nas.space import Architecture, Categorical, SearchSpace
from search_spaces.nasbench201 import (
    EDGES,
    KERNELS,
    Size,
    add_cell,
    add_head,
    add_reduction,
    add_stem,
    conv_size,
    from_text,
    head_size,
    operations_of,
    reduction_size,
    stage_pixels,
)

CANDIDATES = tuple(range(8, 72, 8))
CHOICES = tuple(f"channels_{layer}" for layer in range(1, 6))
CELL = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|"
OPERATIONS = operations_of(from_text(CELL))


def build(arch: Mapping[str, Any], num_classes: int) -> Graph:
    """The network of an architecture: [B, H, W, C] -> logits [B, num_classes]."""
    widths = [arch[name] for name in CHOICES]
    b = Builder()
    x, inputs = add_stem(b, widths[0]), widths[0]
    for layer, features in enumerate(widths, 1):
        if layer % 2:
            x = add_cell(b, f"cell_{layer}", x, OPERATIONS, inputs, features)
        else:
            x = add_reduction(b, f"reduce_{layer}", x, features)
        inputs = features
    add_head(b, x, num_classes)
    return b.graph()


def size(
    arch: Mapping[str, Any], image_shape: tuple[int, int, int] = (32, 32, 3), num_classes: int = 10
) -> Size:
    """What ``build``'s network costs, without building it."""
    widths = [arch[name] for name in CHOICES]
    pixels = stage_pixels(image_shape)
    sizes, inputs = [conv_size(image_shape[2], widths[0], 3, pixels[0])], widths[0]
    for layer, features in enumerate(widths, 1):
        area = pixels[layer // 2]
        if layer % 2:
            sizes += [
                conv_size(features if source else inputs, features, KERNELS[operation], area)
                for (source, _), operation in zip(EDGES, OPERATIONS, strict=True)
                if operation in KERNELS
            ]
            if inputs != features:
                sizes.append(conv_size(inputs, features, 1, area))
        else:
            sizes.append(reduction_size(inputs, features, area))
        inputs = features
    return head_size(inputs, num_classes).plus(*sizes)


def to_text(arch: Mapping[str, Any]) -> str:
    """``8:16:24:32:64``."""
    return ":".join(str(arch[name]) for name in CHOICES)


def parse(text: str) -> dict[str, int]:
    """Inverse of ``to_text``; raises ValueError where the text has another form."""
    widths = text.split(":")
    if len(widths) != len(CHOICES) or not all(width.isdecimal() for width in widths):
        raise ValueError(f"is not of the form {':'.join(['C'] * len(CHOICES))}")
    return dict(zip(CHOICES, map(int, widths), strict=True))


def index_of(arch: Mapping[str, Any]) -> int:
    """The benchmark's index of an architecture."""
    SPACE.validate(arch)
    index = 0
    for name in CHOICES:
        index = index * len(CANDIDATES) + CANDIDATES.index(arch[name])
    return index


def architecture_at(index: int) -> Architecture:
    """The architecture with the benchmark's ``index``; InputError where there is none."""
    if not 0 <= index < len(CANDIDATES) ** len(CHOICES):
        raise InputError(f"natssize: index {index} is not one of 0..{len(CANDIDATES) ** len(CHOICES) - 1}")
    widths = []
    for _ in CHOICES:
        index, digit = divmod(index, len(CANDIDATES))
        widths.append(CANDIDATES[digit])
    return Architecture(zip(CHOICES, reversed(widths), strict=True))


SPACE = SearchSpace(
    name="natssize",
    choices={name: Categorical(CANDIDATES) for name in CHOICES},
    build=build,
    format=to_text,
    parse=parse,
)
