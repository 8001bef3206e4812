"""The ``accel_nasbench`` space: the part of ``mbconv`` that Accel-NASBench measured (Ahmad et al. 2024, appendix B).

Seven stages with EfficientNet-B0's widths and strides; in each, all layers share an expansion, a kernel, and squeeze
and excitation or none: 1.04 x 10^11 architectures, EfficientNet-B0 among them. Text is a stage after the other,
``e1k3l1se1_e6k3l2se1_…``: expansion, kernel, layers, squeeze and excitation. The training is no choice of the space;
the benchmark's was 16 epochs with batches of 2,048, at 160 and 192 pixels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from nas.nn.graph import Graph
from nas.space import Architecture, Categorical, SearchSpace
from search_spaces.mbconv.networks import network
from search_spaces.mbconv.published import NAMED as MBCONV

STAGES = 7
PARTS = {"expansion": "e", "kernel": "k", "depth": "l", "se": "se"}
_STAGE = re.compile(r"e(\d+)k(\d+)l(\d+)se([01])")
_B0 = MBCONV["efficientnet_b0"].arch


def to_mbconv(arch: Mapping[str, Any]) -> Architecture:
    """The same network as a point of ``mbconv``, with EfficientNet-B0's training."""
    return _B0.set(**arch)


def build(arch: Mapping[str, Any], num_classes: int) -> Graph:
    """The network of an architecture: [B, H, W, C] -> logits [B, num_classes]."""
    return network(to_mbconv(arch), num_classes)


def to_text(arch: Mapping[str, Any]) -> str:
    """``e1k3l1se1_e6k3l2se1_…``."""
    return "_".join(
        "".join(f"{letter}{int(arch[f'{name}_{stage}'])}" for name, letter in PARTS.items())
        for stage in range(1, STAGES + 1)
    )


def parse(text: str) -> dict[str, Any]:
    """Inverse of ``to_text``; raises ValueError where the text has another form."""
    found = [_STAGE.fullmatch(part) for part in text.split("_")]
    if len(found) != STAGES or None in found:
        raise ValueError(f"is not {STAGES} stages as e6k3l2se1 joined by _")
    arch: dict[str, Any] = {}
    for stage, match in enumerate(found, 1):
        assert match is not None
        *numbers, se = map(int, match.groups())
        values = dict(zip(PARTS, (*numbers, bool(se)), strict=True))
        arch |= {f"{name}_{stage}": value for name, value in values.items()}
    return arch


SPACE = SearchSpace(
    name="accel_nasbench",
    choices={
        f"{name}_{stage}": choice
        for stage in range(1, STAGES + 1)
        for name, choice in (
            ("expansion", Categorical((1, 4, 6))),
            ("kernel", Categorical((3, 5))),
            ("depth", Categorical((1, 2, 3, 4) if stage == 6 else (1, 2, 3))),
            ("se", Categorical((False, True))),
        )
    },
    build=build,
    format=to_text,
    parse=parse,
)
