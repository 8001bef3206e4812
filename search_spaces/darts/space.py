"""The choices of the space, which of them a search takes by default, and the network of an architecture."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from nas.nn.graph import Graph
from nas.space import (
    Architecture,
    Categorical,
    Choice,
    Constraint,
    Integer,
    LogUniform,
    SearchSpace,
    Uniform,
    When,
)
from search_spaces.darts.genotypes import KINDS, OPERATIONS, PRIMITIVES, cells_of, concat_of, genotype_of
from search_spaces.darts.networks import Edges, network
from search_spaces.darts.supernets import pairs_of, searched_by_supernet


def _choices() -> tuple[dict[str, Choice], dict[str, When]]:
    choices: dict[str, Choice] = {"steps": Integer(4, 5)}
    conditions: dict[str, When] = {}
    for kind in KINDS:
        for node in range(1, 6):
            pairs = [f"{i}-{j}" for j in range(1 + node) for i in range(j + 1)]
            names = {
                f"{kind}_inputs_{node}": Categorical(pairs),
                f"{kind}_a_{node}": Categorical(OPERATIONS),
                f"{kind}_b_{node}": Categorical(OPERATIONS),
            }
            choices |= names
            if node == 5:
                conditions |= {name: When("steps", at_least=5) for name in names}
        choices[f"{kind}_concat"] = Categorical(("all", "4-5-6", "3-4-6"))
    choices |= {
        "stem": Categorical(("small", "imagenet")),
        "cells": Integer(1, 20),
        "channels": Categorical((4, 8, 16, 32, 36, 48)),
        "auxiliary": Categorical((False, True)),
        "drop_path": Uniform(0.0, 0.5, changes_program=False),
        "optimiser": Categorical(("momentum", "nesterov", "adamw")),
        "learning_rate": LogUniform(1e-3, 1e-1, changes_program=False),
        "schedule": Categorical(("cosine", "linear", "step", "constant"), changes_program=False),
        "batch_size": Categorical((64, 96, 128)),
        "weight_decay": LogUniform(1e-5, 1e-2, changes_program=False),
        "augmentation": Categorical(("none", "crop+flip", "crop+flip+cutout")),
    }
    return choices, conditions


def _within() -> list[str]:
    """The published search space of cells, in a small network."""
    within = [
        "steps=4",
        "normal_concat=all",
        "reduce_concat=all",
        "stem=small",
        "cells=4",
        "channels=8",
        "auxiliary=False",
    ]
    within += ["optimiser=momentum", "schedule=cosine", "batch_size=64"]
    within += ["augmentation=none", "learning_rate=0.01..0.1"]
    for kind in KINDS:
        for node in range(1, 6):
            within.append(f"{kind}_inputs_{node}={','.join(pairs_of(node))}")
            within += [f"{kind}_{k}_{node}={','.join(PRIMITIVES[1:])}" for k in "ab"]
    return within


def _gives_out_its_nodes(kind: str, arch: Mapping[str, Any]) -> bool:
    return max(concat_of(arch, kind)) <= arch["steps"] + 1


def build(arch: Architecture, num_classes: int) -> Graph:
    """The evaluation network: [B, H, W, C] -> logits [B, num_classes]."""
    SPACE.check_known(arch, "stem")
    genotype = genotype_of(arch)
    return network(
        {"normal": _pairs(genotype.normal), "reduce": _pairs(genotype.reduce)},
        {"normal": genotype.normal_concat, "reduce": genotype.reduce_concat},
        num_classes,
        channels=arch["channels"],
        cells=arch["cells"],
        imagenet=arch["stem"] == "imagenet",
        auxiliary=arch["auxiliary"],
    )


def _pairs(cell: tuple[tuple[str, int], ...]) -> Edges:
    return [cell[k : k + 2] for k in range(0, len(cell), 2)]


_CHOICES, _CONDITIONS = _choices()
SPACE = SearchSpace(
    name="darts",
    choices=_CHOICES,
    conditions=_CONDITIONS,
    constraints=[
        Constraint(
            f"the nodes of {kind}_concat are numbered up to steps + 1",
            functools.partial(_gives_out_its_nodes, kind),
            choices=("steps", f"{kind}_concat"),
        )
        for kind in KINDS
    ],
    build=build,
    search_within=_within(),
    supernet=searched_by_supernet,
    cells=cells_of,
)
