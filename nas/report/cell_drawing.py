"""Cells of an architecture as a picture: states from left to right, operations on the arrows between them.

A layered drawing (Sugiyama et al. 1981): operations have boxes of their own, in the column before the state that
they lead to; columns are ordered so that few arrows cross.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path as Curve

from nas.report.network_drawing import save
from nas.space import Cell

# Inches.
_LETTER, _LINE, _PAD, _COLUMN, _ROW, _BEND, _MARGIN, _TITLE = 0.078, 0.15, 0.07, 0.3, 0.12, 0.16, 0.15, 0.3
_BOX = _LINE + 2 * _PAD  # a box's height
_FONT = 8.0
_PALETTE = ("#cfe3f5", "#f9dcc0", "#cfeadc", "#fbf3c4", "#e3d5f0", "#f5cfd6", "#d9e6b8", "#c9ecec", "#e6e6e6")
_SWEEPS = 12  # over the columns, to order and then to place them


@dataclasses.dataclass
class _Item:
    """A box, or (without text) a bend of an arrow that goes past a column."""

    text: str
    column: int
    state: bool = False
    before: list[int] = dataclasses.field(default_factory=list)
    after: list[int] = dataclasses.field(default_factory=list)
    x: float = 0.0
    y: float = 0.0
    width: float = 0.0

    def __post_init__(self) -> None:
        if self.text:
            self.width = max(len(self.text) * _LETTER + 2 * _PAD, _BOX)

    @property
    def height(self) -> float:
        return _BOX + _ROW if self.text else _BEND


def draw_cells(cells: Mapping[str, Cell], path: Path, title: str = "") -> None:
    """Draw ``cells``, one below the other, each under its name, into ``path``; errors as in `network_drawing.save`."""
    labels = sorted({label for cell in cells.values() for _, _, label in cell.edges if label})
    colours = dict(zip(labels, itertools.cycle(_PALETTE), strict=False))
    parts = {name: _placed(cell) for name, cell in cells.items()}
    widths = [max(item.x + item.width / 2 for item in items) for items in parts.values()]
    heights = [max(item.y + item.height / 2 for item in items) for items in parts.values()]
    above = _TITLE if title else 0.0
    width = max([*widths, len(title) * _LETTER]) + 2 * _MARGIN
    height = above + sum(heights) + len(parts) * (_TITLE + _MARGIN) + _MARGIN
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.axis("off")
    if title:
        axes.text(_MARGIN, _MARGIN + _LINE / 2, title, fontsize=_FONT, va="center")
    top = _MARGIN + above
    for (name, items), own in zip(parts.items(), heights, strict=True):
        axes.text(_MARGIN, top + _LINE / 2, name, fontsize=_FONT + 1, weight="bold", va="center")
        for item in items:
            item.x, item.y = item.x + _MARGIN, item.y + top + _TITLE
        _draw(axes, items, colours)
        top += own + _TITLE + _MARGIN
    save(figure, path)


# ------------------------------------------------------------------------------------------------ what goes where


def _placed(cell: Cell) -> list[_Item]:
    """States, operations and bends of a cell, the upper left corner of all being (0, 0)."""
    depth = dict.fromkeys(cell.nodes, 0)  # longest way from an input
    for node in cell.nodes:
        for source, to, _ in cell.edges:
            if to == node:
                depth[node] = max(depth[node], depth[source] + 1)
    items = [_Item(node, 2 * depth[node], state=True) for node in cell.nodes]
    at = {node: k for k, node in enumerate(cell.nodes)}
    for source, to, label in cell.edges:
        last = at[source]
        for column in range(2 * depth[source] + 1, 2 * depth[to]):
            text = label if column == 2 * depth[to] - 1 else ""
            items.append(_Item(text, column))
            _join(items, last, len(items) - 1)
            last = len(items) - 1
        _join(items, last, at[to])
    columns: list[list[int]] = [[] for _ in range(1 + max(item.column for item in items))]
    for k, item in enumerate(items):
        columns[item.column].append(k)
    columns = _ordered(items, columns)
    _place(items, columns)
    return items


def _join(items: Sequence[_Item], source: int, to: int) -> None:
    items[source].after.append(to)
    items[to].before.append(source)


def _ordered(items: Sequence[_Item], columns: list[list[int]]) -> list[list[int]]:
    """The columns, each by the mean place of what it is joined to: of several sweeps, that with fewest crossings."""
    best, fewest = columns, _crossings(items, columns)
    for sweep in range(_SWEEPS):
        columns = [list(column) for column in columns]
        forward = sweep % 2 == 0
        order = range(1, len(columns)) if forward else range(len(columns) - 2, -1, -1)
        for c in order:
            beside = columns[c - 1 if forward else c + 1]
            place = {k: i for i, k in enumerate(beside)}

            def mean(k: int, place: Mapping[int, int] = place, forward: bool = forward) -> float:
                joined = [place[other] for other in (items[k].before if forward else items[k].after)]
                return sum(joined) / len(joined) if joined else -1.0

            columns[c].sort(key=mean)
        if (count := _crossings(items, columns)) < fewest:
            best, fewest = columns, count
    return best


def _crossings(items: Sequence[_Item], columns: Sequence[Sequence[int]]) -> int:
    count = 0
    for column, following in itertools.pairwise(columns):
        place = {k: i for i, k in enumerate(following)}
        ends = [(i, place[other]) for i, k in enumerate(column) for other in items[k].after]
        count += sum((a - c) * (b - d) < 0 for (a, b), (c, d) in itertools.combinations(ends, 2))
    return count


def _place(items: Sequence[_Item], columns: Sequence[Sequence[int]]) -> None:
    """Columns side by side; in each, items near what they are joined to, in their order and apart."""
    x = 0.0
    for column in columns:
        width = max(items[k].width for k in column)
        for k in column:
            items[k].x = x + width / 2
            items[k].width = items[k].width or width  # an arrow goes straight past the boxes of a column
        x += width + _COLUMN
        y = 0.0
        for k in column:
            items[k].y = y + items[k].height / 2
            y += items[k].height
    for sweep in range(_SWEEPS):
        for column in columns if sweep % 2 else reversed(columns):
            wanted = [_wanted(items, k) for k in column]
            found = _apart(wanted, [items[k].height for k in column])
            for k, y in zip(column, found, strict=True):
                items[k].y = y
    top = min(item.y - item.height / 2 for item in items)
    for item in items:
        item.y -= top


def _wanted(items: Sequence[_Item], k: int) -> float:
    joined = [items[other].y for other in (*items[k].before, *items[k].after)]
    return sum(joined) / len(joined) if joined else items[k].y


def _apart(wanted: Sequence[float], heights: Sequence[float]) -> list[float]:
    """The centres nearest to ``wanted`` (least squares) at which items of these heights, in order, do not overlap."""
    offsets = list(itertools.accumulate(((a + b) / 2 for a, b in itertools.pairwise(heights)), initial=0.0))
    blocks: list[tuple[float, int]] = []  # mean and number of wanted places, pooled where they would overlap
    for place, offset in zip(wanted, offsets, strict=True):
        mean, count = place - offset, 1
        while blocks and blocks[-1][0] > mean:
            other, number = blocks.pop()
            mean, count = (mean * count + other * number) / (count + number), count + number
        blocks.append((mean, count))
    starts = [mean for mean, count in blocks for _ in range(count)]
    return [start + offset for start, offset in zip(starts, offsets, strict=True)]


# ------------------------------------------------------------------------------------------------------- drawing


def _draw(axes: Axes, items: Sequence[_Item], colours: Mapping[str, str]) -> None:
    for item in items:
        for k in item.after:
            _arrow(axes, item, items[k])
    for item in items:
        if item.text:
            _box(axes, item, "white" if item.state else colours[item.text])


def _box(axes: Axes, item: _Item, colour: str) -> None:
    style = f"round,pad=0,rounding_size={0.49 * _BOX if item.state else 0.04}"
    corner = (item.x - item.width / 2, item.y - _BOX / 2)
    edge = "0.2" if item.state else "0.55"
    axes.add_patch(
        FancyBboxPatch(corner, item.width, _BOX, boxstyle=style, fc=colour, ec=edge, lw=0.8, zorder=2)
    )
    axes.text(item.x, item.y, item.text, fontsize=_FONT, ha="center", va="center", zorder=3)


def _arrow(axes: Axes, source: _Item, to: _Item) -> None:
    """From the right side of one to the left side of the other, level at both ends."""
    x, y, end, height = source.x + source.width / 2, source.y, to.x - to.width / 2, to.y
    middle = (x + end) / 2
    points = [(x - (0 if source.text else source.width), y), (x, y)]
    curve = Curve(
        [*points, (middle, y), (middle, height), (end, height)],
        [Curve.MOVETO, Curve.LINETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4],
    )
    head = "-|>,head_length=3,head_width=1.5" if to.text else "-"
    axes.add_patch(
        FancyArrowPatch(path=curve, arrowstyle=head, color="0.35", lw=0.8, shrinkA=0, shrinkB=0, zorder=1)
    )
