"""NAS-Bench-Macro's networks have the sizes of the authors' file, to the digit."""

from __future__ import annotations

import pytest

from nas.errors import InputError
from nas.objectives.train import build, size_of
from nas.tables import load_table
from search_spaces.nasbench_macro import SPACE
from tests.benchmarks import bench_files

PUBLISHED = {  # parameters and multiply-adds (the file's flops)
    "00000000": (387_882, 7_713_280),
    "11111111": (1_588_874, 53_246_464),
    "22222222": (2_932_586, 105_660_928),
    "22212220": (1_985_514, 85_164_544),
    "00010000": (491_434, 14_225_920),
    "00001000": (491_434, 14_225_920),
}


def size(text: str) -> tuple[int, int]:
    return size_of(build(SPACE, SPACE.from_string(text), 10), (32, 32, 3))


@pytest.mark.parametrize("text", PUBLISHED)
@pytest.mark.some(3)
def test_sizes(text):
    assert size(text) == PUBLISHED[text]
    assert SPACE.to_string(SPACE.from_string(text)) == text


def test_sizes_of_the_file():
    table = load_table("nasbench_macro", bench_files("nasbench_macro"))
    assert SPACE.count() == len(table.archs) == len({SPACE.from_string(text) for text in table.archs})
    sizes = table.sizes["cifar10"]
    for row in range(7, len(table.archs), 1_111):
        assert size(table.archs[row]) == (sizes.params[row], sizes.macs_per_image[row])


@pytest.mark.parametrize("text", ["2221222", "222122200", "22212223", "2221222a", ""])
def test_what_is_no_architecture(text):
    with pytest.raises(InputError, match=r"nasbench_macro: .*is not 8 digits of 0, 1 and 2"):
        SPACE.from_string(text)
