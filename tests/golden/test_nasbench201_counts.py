"""NAS-Bench-201's published sizes, all 15,625 of them, and its isomorphism classes.

FLOPs are multiply-adds plus one addition for each class: the classifier's bias (see `nasbench201.Size`).
"""

from __future__ import annotations

import csv
import gzip
import random

import pytest

from nas.objectives.train import build, size_of
from search_spaces import nasbench201, natssize
from search_spaces.nasbench201 import SPACE, Skeleton
from tests.benchmarks import bench_files

DATASETS = {"c10": ((32, 32, 3), 10), "c100": ((32, 32, 3), 100), "in16": ((16, 16, 3), 120)}
COMPACT = "nasbench201/nb201.csv.gz"


@pytest.fixture(scope="module")
def rows():
    with gzip.open(bench_files(COMPACT) / COMPACT, "rt") as lines:
        return list(csv.DictReader(lines))


def test_the_official_order(rows):
    assert [nasbench201.to_text(nasbench201.architecture_at(i)) for i in range(5**6)] == [
        r["arch"] for r in rows
    ]


@pytest.mark.parametrize("short", DATASETS)
def test_parameters_and_flops_of_all_architectures(rows, short):
    """To the last of the file's digits."""
    image_shape, classes = DATASETS[short]
    skeleton = Skeleton()
    for row in rows:
        size = skeleton.size(SPACE.from_string(row["arch"]), image_shape, classes)
        assert f"{size.params / 1e6:.7g}" == row[f"params_m_{short}"]
        assert f"{(size.macs_per_image + classes) / 1e6:.7g}" == row[f"mflops_{short}"]


@pytest.mark.parametrize("count", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_the_networks_own_count(rows, count):
    for row in random.Random(0).sample(rows, count):
        size = size_of(build(SPACE, SPACE.from_string(row["arch"]), 10), (32, 32, 3))
        assert f"{size.params / 1e6:.7g}" == row["params_m_c10"]
        assert f"{(size.macs_per_image + 10) / 1e6:.7g}" == row["mflops_c10"]


def test_6466_isomorphism_classes(rows):
    forms = [nasbench201.canonical_form(SPACE.from_string(row["arch"])) for row in rows]
    classes = [row["class"] for row in rows]
    assert len(set(forms)) == len(set(classes)) == len(set(zip(forms, classes, strict=True))) == 6466


@pytest.mark.parametrize(
    ("index", "text", "params", "flops"),
    [
        (
            0,
            "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|nor_conv_1x1~0|skip_connect~1|skip_connect~2|",
            129_306,
            15_647_370,
        ),
        (
            11,
            "|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|none~0|nor_conv_3x3~1|avg_pool_3x3~2|",
            802_426,
            113_951_370,
        ),
    ],
)
def test_two_official_records(index, text, params, flops):
    arch = nasbench201.architecture_at(index)
    assert nasbench201.to_text(arch) == text
    size = size_of(build(SPACE, arch, 10), (32, 32, 3))
    assert (size.params, size.macs_per_image + 10) == (params, flops)


def test_the_size_space():
    """Index 12 as the authors' notebook create-query-sss prints it: 0.067378 M parameters, 7.991706 MFLOPs; no
    other architecture has both numbers."""
    arch = natssize.architecture_at(12)
    size = size_of(build(natssize.SPACE, arch, 10), (32, 32, 3))
    assert (size.params, size.macs_per_image + 10) == (67_378, 7_991_706)
    near = natssize.SPACE.neighbours(arch)
    assert all(natssize.size(other) != size for other in near)
