"""Drawings of cells: what is on them, that nothing lies on anything else, and what spaces give to be drawn."""

from __future__ import annotations

import itertools

import pytest

from nas.errors import InputError
from nas.report import cell_drawing
from nas.space import Cell
from search_spaces import SPACES, darts
from search_spaces.zoo import ZOO

EMPTY = "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|"


def cells_of(name):
    named = ZOO[name]
    hook = SPACES[named.space].cells
    assert hook is not None
    return hook(named.arch)


@pytest.mark.parametrize("name", [*darts.GENOTYPES, "nasbench201_best"])
def test_nothing_lies_on_anything_else(name):
    for cell in cells_of(name).values():
        items = cell_drawing._placed(cell)
        labels = sorted(label for _, _, label in cell.edges if label)
        assert sorted(item.text for item in items if item.text and not item.state) == labels
        assert [item.text for item in items if item.state] == list(cell.nodes)
        for a, b in itertools.combinations(items, 2):
            beside = abs(a.x - b.x) >= (a.width + b.width) / 2 - 1e-9
            below = abs(a.y - b.y) >= (a.height + b.height) / 2 - 1e-9
            assert beside or below, (a, b)
        for item in items:
            assert all(items[k].x - items[k].width / 2 > item.x + item.width / 2 for k in item.after)


def test_places_are_the_nearest_that_do_not_overlap():
    assert cell_drawing._apart([1.0, 5.0], [1.0, 1.0]) == [1.0, 5.0]
    assert cell_drawing._apart([2.0, 2.0, 9.0], [1.0, 1.0, 1.0]) == [1.5, 2.5, 9.0]
    assert cell_drawing._apart([3.0, 1.0], [1.0, 3.0]) == [1.0, 3.0]


def test_columns_are_turned_until_few_arrows_cross():
    nodes = ("a", "b", "c", "d")
    crossed = Cell(nodes, (("a", "d", "x"), ("b", "c", "y")))
    items = cell_drawing._placed(crossed)
    assert (items[0].y < items[1].y) == (items[3].y < items[2].y)


def test_a_picture_has_all_names_and_is_the_same_again(tmp_path):
    drawn = cells_of("darts_v2")
    for ending in ("svg", "png"):
        first, again = tmp_path / f"a.{ending}", tmp_path / f"b.{ending}"
        cell_drawing.draw_cells(drawn, first, "two cells")
        cell_drawing.draw_cells(drawn, again, "two cells")
        assert first.read_bytes() == again.read_bytes()
    text = (tmp_path / "a.svg").read_text()
    for shown in ("two cells", "normal", "reduce", "sep_conv_3x3", "dil_conv_3x3", "c(k-2)"):
        assert f"<!-- {shown} -->" in text
    assert text.count("<!-- skip_connect -->") == 2 + 3
    with pytest.raises(InputError, match="its ending"):
        cell_drawing.draw_cells(drawn, tmp_path / "a.gif")


def test_cells_are_those_of_the_architecture():
    normal = cells_of("darts_v2")["normal"]
    assert normal.nodes == ("c(k-2)", "c(k-1)", "1", "2", "3", "4", "c(k)")
    assert {("c(k-2)", "1", "sep_conv_3x3"), ("1", "4", "dil_conv_3x3"), ("4", "c(k)", "")} <= set(
        normal.edges
    )
    assert len(normal.edges) == 8 + 4
    reduce = cells_of("nasnet")["reduce"]
    assert [source for source, to, _ in reduce.edges if to == "c(k)"] == ["3", "4", "5"]
    [cell] = cells_of("nasbench201_resnet").values()
    assert cell.edges == (
        ("input", "1", "nor_conv_3x3"),
        ("1", "2", "nor_conv_3x3"),
        ("input", "output", "skip_connect"),
        ("2", "output", "skip_connect"),
    )


def test_a_cell_of_nothing_is_drawn(tmp_path):
    space = SPACES["nasbench201"]
    assert space.cells is not None
    drawn = space.cells(space.from_string(EMPTY))
    assert drawn["cell"].edges == ()
    cell_drawing.draw_cells(drawn, tmp_path / "empty.png")
    assert (tmp_path / "empty.png").stat().st_size > 500
