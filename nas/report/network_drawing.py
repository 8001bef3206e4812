"""A network's graph as a picture: blocks from top to bottom, branches side by side, skip connections as arcs.

Works on the `Layer` values of `nas.training.profile`. Long networks are folded (a repeated part is drawn once,
in a frame with "x 18") and broken into columns where nothing but one value goes on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path as Curve

from nas.errors import InputError, one_of
from nas.report.network_layout import (
    COLUMN,
    GAP,
    LETTER,
    LINE,
    MARGIN,
    MOST_BOXES,
    PAD,
    REMARK,
    Box,
    Placement,
    arc_width,
    boxes_of,
    columns_of,
    fold,
    needed_by,
    place_auxiliary_heads,
)
from nas.training.profile import Layer

ENDINGS = (".png", ".svg", ".pdf")
DOTS_PER_INCH = 160
_FONT, _SMALL = 7.0, 5.6


def draw(layers: Sequence[Layer], image_shape: Sequence[int], title: str) -> Figure:
    """The network of ``layers`` under ``title``, its input image on top."""
    boxes, frames = boxes_of(layers, image_shape)
    if len(boxes) > MOST_BOXES:
        folded, groups = fold(layers)
        boxes, frames = boxes_of(folded, image_shape, groups)
    columns = columns_of(boxes, needed_by(boxes, len(boxes) - 1), [set(own) for own, _ in frames])
    return _render(boxes, frames, columns, title)


def save(figure: Figure, path: Path) -> None:
    """Write a picture of one of `ENDINGS`, the same bytes for the same figure. InputError where it cannot be."""
    kinds = {".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    if path.suffix not in kinds:
        raise one_of(f"{path}: its ending", path.suffix, ENDINGS)
    try:
        with matplotlib.rc_context({"svg.hashsalt": "nas"}):
            figure.savefig(path, dpi=DOTS_PER_INCH, metadata=kinds[path.suffix])
    except OSError as error:
        raise InputError(f"{path}: cannot write ({error.strerror or error})") from error


def _render(
    boxes: Sequence[Box], frames: Sequence[tuple[list[int], str]], columns: Sequence[Placement], title: str
) -> Figure:
    places: dict[int, tuple[float, float]] = {}
    column_of: dict[int, int] = {}
    main = {k for column in columns for k in column.places}
    gutters: list[float] = []  # left of every column
    x, height = MARGIN, 0.0
    for c, column in enumerate(columns):
        gutters.append(x - COLUMN / 2)
        places |= {k: (x + column.left + own, y) for k, (own, y) in column.places.items()}
        column_of |= dict.fromkeys(column.places, c)
        right = x + column.left + column.right + (REMARK if frames else 0)
        right, lowest = place_auxiliary_heads(boxes, main, places, column_of, c, right)
        height = max(height, column.height, lowest)
        x = right + COLUMN
    width = max(x - COLUMN + MARGIN, len(max(title.splitlines(), key=len)) * LETTER + 2 * MARGIN)
    top = 0.2 * (1 + title.count("\n")) + 0.2

    figure = Figure(figsize=(width, height + top + 0.2))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height + 0.2, -top))
    axes.set_axis_off()
    axes.text(MARGIN, 0.14 - top, title, fontsize=_FONT + 1, va="top", linespacing=1.4)
    for own, remark in frames:
        _draw_frame(axes, boxes, places, own, remark)
    for k, box in enumerate(boxes):
        for source in box.inputs:
            if column_of[source] == column_of[k]:
                _draw_edge(axes, boxes, places, column_of, source, k)
                continue
            (x0, y0), (x1, y1) = places[source], places[k]
            bottom = max(
                places[i][1] + boxes[i].height / 2 for i, c in column_of.items() if c == column_of[source]
            )
            low, high, gutter = bottom + 0.1, y1 - boxes[k].height / 2 - 0.12, gutters[column_of[k]]
            down, end = (x0, y0 + boxes[source].height / 2), (x1, y1 - boxes[k].height / 2)
            _line(axes, [down, (x0, low), (gutter, low), (gutter, high), (x1, high), end])
    for k, box in enumerate(boxes):
        _draw_box(axes, box, *places[k])
    return figure


def _draw_box(axes: Axes, box: Box, x: float, y: float) -> None:
    axes.add_patch(
        FancyBboxPatch(
            (x - box.width / 2, y - box.height / 2),
            box.width,
            box.height,
            boxstyle="round,pad=0,rounding_size=0.05",
            facecolor=box.colour,
            edgecolor="0.35",
            linestyle="--" if box.training_only else "-",
            linewidth=0.7,
        )
    )
    for i, line in enumerate(box.lines):
        down = y - box.height / 2 + PAD + (i + 0.5) * LINE
        axes.text(x, down, line, fontsize=_FONT, ha="center", va="center", color="0.1" if not i else "0.35")
    axes.text(x + box.width / 2 + 0.03, y, box.shape, fontsize=_SMALL, ha="left", va="center", color="0.45")


def _draw_frame(
    axes: Axes,
    boxes: Sequence[Box],
    places: Mapping[int, tuple[float, float]],
    own: Sequence[int],
    remark: str,
) -> None:
    left = min(places[k][0] - boxes[k].width / 2 for k in own) - 0.09
    right = max(places[k][0] + boxes[k].width / 2 + boxes[k].shape_width for k in own) + REMARK
    top = min(places[k][1] - boxes[k].height / 2 for k in own) - 0.07
    bottom = max(places[k][1] + boxes[k].height / 2 for k in own) + 0.07
    axes.add_patch(
        FancyBboxPatch(
            (left, top),
            right - left,
            bottom - top,
            boxstyle="round,pad=0,rounding_size=0.06",
            facecolor="0.975",
            edgecolor="0.55",
            linestyle=(0, (4, 2)),
            linewidth=0.8,
        )
    )
    middle = (top + bottom) / 2
    axes.text(
        right - 0.05, middle, remark, fontsize=_FONT + 1, ha="right", va="center", weight="bold", color="0.3"
    )


def _draw_edge(
    axes: Axes,
    boxes: Sequence[Box],
    places: Mapping[int, tuple[float, float]],
    column_of: Mapping[int, int],
    source: int,
    target: int,
) -> None:
    """A straight or bent line where no box is in the way, else an arc on the left around the boxes."""
    (x0, y0), (x1, y1) = places[source], places[target]
    start, stop = (x0, y0 + boxes[source].height / 2), (x1, y1 - boxes[target].height / 2)
    if boxes[target].training_only and not boxes[source].training_only:
        y = y0 + boxes[source].height * 0.36  # below the shape
        _line(axes, [(x0 + boxes[source].width / 2, y), (x1, y), stop])
        return
    between = [
        k
        for k, (_, y) in places.items()
        if k not in (source, target) and column_of[k] == column_of[source] and y0 < y < y1
    ]
    # Sideways only where branches part or meet, so that lines stay out of the other branches.
    parting = abs(x1 - x0) > 0.01 and sum(source in box.inputs for box in boxes) > 1
    lane = x1 if parting else x0
    blocking = [k for k in between if abs(lane - places[k][0]) < boxes[k].width / 2]
    if not blocking:
        bend = start[1] + GAP if parting else stop[1] - GAP
        low, high = (start[1], bend) if parting else (bend, stop[1])
        if abs(x1 - x0) < 0.01:
            _line(axes, [start, stop])
            return
        middle = (low + high) / 2
        curve, codes = [start], [Curve.MOVETO]
        for points, code in (
            ([(x0, low)], Curve.LINETO),
            ([(x0, middle), (x1, middle), (x1, high)], Curve.CURVE4),
            ([stop], Curve.LINETO),
        ):
            if math.dist(points[-1], curve[-1]) > 0.02:  # an arrow needs a last piece of some length
                curve += points
                codes += [code] * len(points)
        _arrow(axes, Curve(curve, codes))
        return
    heights = {round(places[k][1], 3) for k in blocking}
    ends = [source, target]
    clear = min(places[k][0] - boxes[k].width / 2 for k in [*between, *ends])
    peak = clear - arc_width(len(heights))
    a = (x0 - boxes[source].width / 2, y0 + boxes[source].height / 4)
    b = (x1 - boxes[target].width / 2, y1 - boxes[target].height / 4)
    side = [a, (a[0] + (peak - a[0]) / 0.75, a[1]), (b[0] + (peak - b[0]) / 0.75, b[1]), b]
    _arrow(axes, Curve(side, [Curve.MOVETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4]), color="#b0502a")


def _line(axes: Axes, points: Sequence[tuple[float, float]]) -> None:
    _arrow(axes, Curve(list(points), [Curve.MOVETO] + [Curve.LINETO] * (len(points) - 1)))


def _arrow(axes: Axes, path: Curve, color: str = "0.35") -> None:
    axes.add_patch(
        FancyArrowPatch(
            path=path,
            arrowstyle="-|>,head_length=2.2,head_width=1.3",
            color=color,
            linewidth=0.7,
            shrinkA=0,
            shrinkB=0,
            zorder=1.5,
        )
    )
