"""The cells that papers found, in their notation, and the networks of them that are named points of the space."""

from __future__ import annotations

import dataclasses
from typing import Any

from search_spaces.darts.genotypes import Genotype, architecture_of
from search_spaces.named import Named

RECIPE: dict[str, Any] = {  # section 3.1 and appendix A.2 of Liu et al. 2019
    "stem": "small",
    "cells": 20,
    "channels": 36,
    "auxiliary": False,
    "drop_path": 0.2,
    "optimiser": "momentum",
    "learning_rate": 0.025,
    "schedule": "cosine",
    "batch_size": 96,
    "weight_decay": 3e-4,
    "augmentation": "crop+flip+cutout",
}
DEFAULTS: dict[str, Any] = {"steps": 4, "normal_concat": "all", "reduce_concat": "all", **RECIPE}
_ALL = (2, 3, 4, 5)
GENOTYPES: dict[str, Genotype] = {
    "darts_v1": Genotype(
        (
            ("sep_conv_3x3", 1), ("sep_conv_3x3", 0), ("skip_connect", 0), ("sep_conv_3x3", 1),
            ("skip_connect", 0), ("sep_conv_3x3", 1), ("sep_conv_3x3", 0), ("skip_connect", 2),
        ),
        _ALL,
        (
            ("max_pool_3x3", 0), ("max_pool_3x3", 1), ("skip_connect", 2), ("max_pool_3x3", 0),
            ("max_pool_3x3", 0), ("skip_connect", 2), ("skip_connect", 2), ("avg_pool_3x3", 0),
        ),
        _ALL,
    ),
    "darts_v2": Genotype(
        (
            ("sep_conv_3x3", 0), ("sep_conv_3x3", 1), ("sep_conv_3x3", 0), ("sep_conv_3x3", 1),
            ("sep_conv_3x3", 1), ("skip_connect", 0), ("skip_connect", 0), ("dil_conv_3x3", 2),
        ),
        _ALL,
        (
            ("max_pool_3x3", 0), ("max_pool_3x3", 1), ("skip_connect", 2), ("max_pool_3x3", 1),
            ("max_pool_3x3", 0), ("skip_connect", 2), ("skip_connect", 2), ("max_pool_3x3", 1),
        ),
        _ALL,
    ),
    "nasnet": Genotype(
        (
            ("sep_conv_5x5", 1), ("sep_conv_3x3", 0), ("sep_conv_5x5", 0), ("sep_conv_3x3", 0),
            ("avg_pool_3x3", 1), ("skip_connect", 0), ("avg_pool_3x3", 0), ("avg_pool_3x3", 0),
            ("sep_conv_3x3", 1), ("skip_connect", 1),
        ),
        (2, 3, 4, 5, 6),
        (
            ("sep_conv_5x5", 1), ("sep_conv_7x7", 0), ("max_pool_3x3", 1), ("sep_conv_7x7", 0),
            ("avg_pool_3x3", 1), ("sep_conv_5x5", 0), ("skip_connect", 3), ("avg_pool_3x3", 2),
            ("sep_conv_3x3", 2), ("max_pool_3x3", 1),
        ),
        (4, 5, 6),
    ),
    "amoebanet": Genotype(
        (
            ("avg_pool_3x3", 0), ("max_pool_3x3", 1), ("sep_conv_3x3", 0), ("sep_conv_5x5", 2),
            ("sep_conv_3x3", 0), ("avg_pool_3x3", 3), ("sep_conv_3x3", 1), ("skip_connect", 1),
            ("skip_connect", 0), ("avg_pool_3x3", 1),
        ),
        (4, 5, 6),
        (
            ("avg_pool_3x3", 0), ("sep_conv_3x3", 1), ("max_pool_3x3", 0), ("sep_conv_7x7", 2),
            ("sep_conv_7x7", 0), ("avg_pool_3x3", 1), ("max_pool_3x3", 0), ("max_pool_3x3", 1),
            ("conv_7x1_1x7", 0), ("sep_conv_3x3", 5),
        ),
        (3, 4, 6),
    ),
    "gdas": Genotype(
        (
            ("skip_connect", 0), ("skip_connect", 1), ("skip_connect", 0), ("sep_conv_5x5", 2),
            ("sep_conv_3x3", 3), ("skip_connect", 0), ("sep_conv_5x5", 4), ("sep_conv_3x3", 3),
        ),
        _ALL,
        (
            ("sep_conv_5x5", 0), ("sep_conv_3x3", 1), ("sep_conv_5x5", 2), ("sep_conv_5x5", 1),
            ("dil_conv_5x5", 2), ("sep_conv_3x3", 1), ("sep_conv_5x5", 0), ("sep_conv_5x5", 1),
        ),
        _ALL,
    ),
    "pdarts": Genotype(
        (
            ("skip_connect", 0), ("dil_conv_3x3", 1), ("skip_connect", 0), ("sep_conv_3x3", 1),
            ("sep_conv_3x3", 1), ("sep_conv_3x3", 3), ("sep_conv_3x3", 0), ("dil_conv_5x5", 4),
        ),
        _ALL,
        (
            ("avg_pool_3x3", 0), ("sep_conv_5x5", 1), ("sep_conv_3x3", 0), ("dil_conv_5x5", 2),
            ("max_pool_3x3", 0), ("dil_conv_3x3", 1), ("dil_conv_3x3", 1), ("dil_conv_5x5", 3),
        ),
        _ALL,
    ),
    "pcdarts": Genotype(
        (
            ("sep_conv_3x3", 1), ("skip_connect", 0), ("sep_conv_3x3", 0), ("dil_conv_3x3", 1),
            ("sep_conv_5x5", 0), ("sep_conv_3x3", 1), ("avg_pool_3x3", 0), ("dil_conv_3x3", 1),
        ),
        _ALL,
        (
            ("sep_conv_5x5", 1), ("max_pool_3x3", 0), ("sep_conv_5x5", 1), ("sep_conv_5x5", 2),
            ("sep_conv_3x3", 0), ("sep_conv_3x3", 3), ("sep_conv_3x3", 1), ("sep_conv_3x3", 2),
        ),
        _ALL,
    ),
}  # fmt: skip

_COUNTS = {  # trainable parameters; darts_v2's and pcdarts's as published, the others derived by this code
    "darts_v1": 3_169_414,
    "darts_v2": 3_349_342,
    "nasnet": 3_830_950,
    "amoebanet": 3_145_078,
    "gdas": 3_368_782,
    "pdarts": 3_433_798,
    "pcdarts": 3_634_678,
}
_SOURCES = {
    "darts_v1": "Liu et al. 2019, table 1, first order (3.3 M)",
    "darts_v2": "Liu et al. 2019, table 1, second order (3.3 M; 3,349,342 by its authors' code)",
    "nasnet": "Zoph et al. 2018, NASNet-A, in the evaluation network of Liu et al. 2019",
    "amoebanet": "Real et al. 2019, AmoebaNet-A, in the evaluation network of Liu et al. 2019",
    "gdas": "Dong and Yang 2019, GDAS V1 (3.4 M, 519 M multiply-adds)",
    "pdarts": "Chen et al. 2019, P-DARTS on CIFAR-10 (3.4 M)",
    "pcdarts": "Xu et al. 2020, PC-DARTS on CIFAR-10 (3.6 M)",
}
NAMED: dict[str, Named] = {
    name: Named("darts", architecture_of(genotype, **RECIPE), (32, 32, 3), 10, _COUNTS[name], _SOURCES[name])
    for name, genotype in GENOTYPES.items()
}
NAMED["darts_v2_aux"] = dataclasses.replace(
    NAMED["darts_v2"],
    arch=NAMED["darts_v2"].arch.set(auxiliary=True),
    params=_COUNTS["darts_v2"] + 476_426,
    source="the same with the auxiliary head that it is trained with (appendix A.2)",
)
