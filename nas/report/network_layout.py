"""Where the boxes of a network's graph stand: repeated parts folded, branches side by side, long ones in columns.

Works on the `Layer` values of `nas.training.profile`.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Sequence

from nas.training.profile import Layer, repeats, shape_text

MOST_BOXES = 48  # that are drawn without folding
SHOWN = 3  # layers of a folded dense block: so many and the last

# Inches.
LINE, PAD, LETTER = 0.135, 0.07, 0.064
GAP, _BESIDE, MARGIN, COLUMN, REMARK = 0.2, 0.22, 0.3, 0.45, 0.36
_SHAPE_LETTER = 0.048

_COLOURS = {
    "conv": "#cfe3f5",
    "dense": "#f9dcc0",
    "pool": "#cfeadc",
    "join": "#e6e6e6",
    "norm": "#f0e9f7",
    "other": "#fbf3c4",
}


@dataclasses.dataclass
class Box:
    """One or more layers in a row, as one box."""

    lines: list[str]
    colour: str
    shape: str
    members: list[int]  # numbers of layers, from 1
    inputs: list[int]  # numbers of boxes; 0 is the image
    training_only: bool = False

    @property
    def width(self) -> float:
        return max(len(line) for line in self.lines) * LETTER + 2 * PAD

    @property
    def height(self) -> float:
        return len(self.lines) * LINE + 2 * PAD

    @property
    def shape_width(self) -> float:
        """Inches that the shape written at the right of the box takes."""
        return len(self.shape) * _SHAPE_LETTER + 0.05


@dataclasses.dataclass
class Placement:
    """Boxes and their centres (x, y), y downwards from 0; they reach from ``-left`` to ``right`` and to ``height``."""

    places: dict[int, tuple[float, float]]
    left: float
    right: float
    height: float


def fold(layers: Sequence[Layer]) -> tuple[list[Layer], list[tuple[range, str]]]:
    """``layers`` with each repeated part once; and for each part its layers' numbers (from 1) and a remark ("x 18").

    Of a dense block the first layers and the last one stay, with one that stands for all between.
    """
    stands_for = {0: 0}  # the number a layer has in the result, by the number it had
    kept: list[Layer] = []
    groups: list[tuple[range, str]] = []
    for repeat in repeats(layers):
        numbers = range(repeat.start + 1, repeat.start + 1 + repeat.period * repeat.times)
        first = len(kept) + 1
        for k, number in enumerate(numbers):
            layer = layers[number - 1]
            if repeat.dense and repeat.times > SHOWN + 2 and SHOWN <= k < repeat.times - 1:
                if k > SHOWN:
                    stands_for[number] = len(kept)
                    continue
                hidden = f"… {repeat.times - SHOWN - 1} more"
                layer = layer._replace(kind=hidden, settings="")
            elif not repeat.dense and k >= repeat.period:
                stands_for[number] = stands_for[number - repeat.period]
                continue
            inputs = tuple(dict.fromkeys(stands_for[i] for i in layer.inputs))
            kept.append(layer._replace(inputs=inputs))
            stands_for[number] = len(kept)
        if repeat.times > 1:
            groups.append((range(first, len(kept) + 1), f"× {repeat.times}"))
    return kept, groups


def boxes_of(
    layers: Sequence[Layer], image_shape: Sequence[int], groups: Iterable[tuple[range, str]] = ()
) -> tuple[list[Box], list[tuple[list[int], str]]]:
    """Layers as boxes, the image first; an elementwise layer (activation, norm) joins the box of the layer before."""
    groups = list(groups)
    readers = [0] * (len(layers) + 1)
    for layer in layers:
        for i in layer.inputs:
            readers[i] += 1
    of_group = {number: k for k, (numbers, _) in enumerate(groups) for number in numbers}
    boxes = [Box(["image"], "white", shape_text(image_shape), [0], [])]
    box_of = {0: 0}
    for number, layer in enumerate(layers, 1):
        before = layer.inputs[0]
        joins = (
            len(layer.inputs) == 1
            and before
            and readers[before] == 1
            and not layer.macs_per_image
            and layer.output_shape == layers[before - 1].output_shape
            and "pool" not in layer.kind.lower()
            and boxes[box_of[before]].members[-1] == before
            and of_group.get(before) == of_group.get(number)
        )
        if joins:
            box = boxes[box_of[before]]
            box.lines.append(_text(layer))
            box.members.append(number)
            box_of[number] = box_of[before]
            continue
        box_of[number] = len(boxes)
        inputs = list(dict.fromkeys(box_of[i] for i in layer.inputs))
        boxes.append(
            Box(
                [_text(layer)],
                _colour(layer),
                shape_text(layer.output_shape),
                [number],
                inputs,
                layer.training_only,
            )
        )
    return boxes, [(sorted({box_of[n] for n in numbers}), remark) for numbers, remark in groups]


def _text(layer: Layer) -> str:
    if layer.kind == "NormAct":
        words = layer.settings or "bias"
        return f"+ {words}" if len(layer.inputs) > 1 else words
    return f"{layer.kind} {re.sub(r'padding [0-9x]+', '', layer.settings)}".strip()


def _colour(layer: Layer) -> str:
    kind = layer.kind.lower()
    if layer.kind.startswith("…"):
        return "white"
    if "pool" in kind or "average" in kind:
        return _COLOURS["pool"]
    if "concat" in kind or (len(layer.inputs) > 1 and not layer.macs_per_image):
        return _COLOURS["join"]
    if layer.macs_per_image:
        return _COLOURS["conv" if len(layer.output_shape) > 2 else "dense"]
    return _COLOURS["norm" if "norm" in kind else "other"]


def needed_by(boxes: Sequence[Box], last: int) -> set[int]:
    """The boxes that box ``last`` depends on, and itself."""
    found, waiting = {0}, [last]
    while waiting:
        k = waiting.pop()
        if k not in found:
            found.add(k)
            waiting += boxes[k].inputs
    return found


def _steps(boxes: Sequence[Box], order: Sequence[int]) -> list[tuple[list[int], int]]:
    """``order`` cut at every box through which all paths from its first to its last box go.

    For each such box: the boxes between the cut before and it, and the box.
    """
    at = {box: k for k, box in enumerate(order)}
    jumped = [0] * (len(order) + 1)  # the change, from place to place, of how many edges pass over it
    for k, box in enumerate(order):
        for source in boxes[box].inputs:
            start = at.get(source)
            if start is None or (start == 0 and k == len(order) - 1):
                continue  # from outside, or the arc around all of it
            jumped[start + 1] += 1
            jumped[k] -= 1
    cuts, over = [0], 0
    for k in range(1, len(order)):
        over += jumped[k]
        if k == len(order) - 1 or not over:
            cuts.append(k)
    return [(list(order[a + 1 : b]), order[b]) for a, b in itertools.pairwise(cuts)]


def _between(boxes: Sequence[Box], first: int, inside: list[int], last: int) -> Placement:
    """The boxes ``inside`` in place, all of which lead from ``first`` to ``last``."""
    branches = _branches(boxes, inside)
    skips = first in boxes[last].inputs
    if len(branches) > 1:
        part = _side_by_side([_branch(boxes, first, branch, last) for branch in branches])
    else:
        part = _branch(boxes, first, inside, last)
    if skips:
        part.left += _BESIDE
    return part


def _branches(boxes: Sequence[Box], inside: Sequence[int]) -> list[list[int]]:
    """The connected components of ``inside``."""
    of = {k: k for k in inside}

    def root(k: int) -> int:
        while of[k] != k:
            k = of[k]
        return k

    for k in inside:
        for source in boxes[k].inputs:
            if source in of:
                of[root(k)] = root(source)
    found: dict[int, list[int]] = {}
    for k in inside:
        found.setdefault(root(k), []).append(k)
    return list(found.values())


def _branch(boxes: Sequence[Box], first: int, inside: list[int], last: int) -> Placement:
    steps = _steps(boxes, [first, *inside, last])
    if len(steps) == 1:
        return _rows(boxes, inside)
    parts = []
    for own, box in steps:
        parts += [_between(boxes, first, own, box)] if own else []
        parts += [_single(boxes, box)] if box != last else []
        first = box
    return _stack(parts)


def _single(boxes: Sequence[Box], k: int) -> Placement:
    box = boxes[k]
    return Placement({k: (0.0, box.height / 2)}, box.width / 2, box.width / 2 + box.shape_width, box.height)


def _stack(parts: Sequence[Placement]) -> Placement:
    places, y = {}, 0.0
    for part in parts:
        places |= {k: (x, y + own) for k, (x, own) in part.places.items()}
        y += part.height + GAP
    return Placement(places, max(p.left for p in parts), max(p.right for p in parts), y - GAP)


def _side_by_side(parts: Sequence[Placement]) -> Placement:
    """Next to each other, the middle at x = 0."""
    height = max(part.height for part in parts)
    width = sum(part.left + part.right for part in parts) + _BESIDE * (len(parts) - 1)
    places, x = {}, -width / 2
    for part in parts:
        down = (height - part.height) / 2
        places |= {k: (x + part.left + own, down + y) for k, (own, y) in part.places.items()}
        x += part.left + part.right + _BESIDE
    return Placement(places, width / 2, width / 2, height)


def _rows(boxes: Sequence[Box], inside: Sequence[int]) -> Placement:
    """Boxes that no cut separates: each in the row below everything it reads, rows side by side."""
    row: dict[int, int] = {}
    for k in inside:
        row[k] = 1 + max((row[i] for i in boxes[k].inputs if i in row), default=-1)
    rows = [[k for k in inside if row[k] == r] for r in range(max(row.values()) + 1)]
    part = _stack([_side_by_side([_single(boxes, k) for k in own]) if len(own) > 1 else _single(boxes, own[0])
                   for own in rows])  # fmt: skip
    part.left += arc_width(len(rows))
    return part


def arc_width(rows: int) -> float:
    """How far an arc over so many rows keeps away from the boxes."""
    return _BESIDE * 0.7 + 0.09 * min(rows, 12)


def columns_of(boxes: list[Box], main: set[int], frames: Sequence[set[int]]) -> list[Placement]:
    """The boxes ``main`` in as many columns as make a picture that is not much higher than wide.

    A column begins with a box that stands for the last one of the column before: it is added to ``boxes``.
    """
    parts, ends, first = [_single(boxes, 0)], [0], 0
    for inside, box in _steps(boxes, sorted(main)):
        single = _single(boxes, box)
        parts.append(_stack([_between(boxes, first, inside, box), single]) if inside else single)
        first = box
        ends.append(box)
    pieces: list[list[int]] = []  # of parts that stay together
    for k, end in enumerate(ends):
        if k and any(ends[k - 1] in frame and end in frame for frame in frames):
            pieces[-1].append(k)
        else:
            pieces.append([k])
    heights = [sum(parts[k].height + GAP for k in piece) for piece in pieces]
    width = max(part.left + part.right for part in parts) + COLUMN
    count = 1 if sum(heights) < 7.5 else max(1, round(math.sqrt(sum(heights) / width / 1.1)))
    columns = _even(heights, count)
    made = []
    for column in columns:
        own = [parts[k] for piece in column for k in pieces[piece]]
        if made:
            source = ends[pieces[column[0]][0] - 1]
            again = len(boxes)
            boxes.append(Box(["…"], "white", boxes[source].shape, [], [source]))
            for part in own:
                for k in part.places:
                    boxes[k].inputs = [again if i == source else i for i in boxes[k].inputs]
            own.insert(0, _single(boxes, again))
        made.append(_stack(own))
    return made


def _even(heights: Sequence[float], count: int) -> list[list[int]]:
    """The numbers of ``heights`` in at most ``count`` columns of nearly the same sum."""
    most = max(sum(heights) / count, *heights)
    while True:
        columns: list[list[int]] = [[]]
        for k, height in enumerate(heights):
            if columns[-1] and sum(heights[i] for i in columns[-1]) + height > most:
                columns.append([])
            columns[-1].append(k)
        if len(columns) <= count:
            return columns
        most *= 1.02


def place_auxiliary_heads(
    boxes: Sequence[Box],
    main: set[int],
    places: dict[int, tuple[float, float]],
    column_of: dict[int, int],
    column: int,
    right: float,
) -> tuple[float, float]:
    """Put auxiliary heads (used in training only) at the right of ``column``, each below the box it reads."""
    lowest = 0.0
    bottom = {0: -math.inf}
    heads = _branches(boxes, [k for k in range(len(boxes)) if k not in main])
    edge = right
    for head in heads:
        source = next(i for k in head for i in boxes[k].inputs if i not in head)
        if column_of.get(source) != column:
            continue
        part = _rows(boxes, head)
        y = max(places[source][1] + boxes[source].height / 2 + GAP, bottom[0] + GAP)
        start = right + _BESIDE + part.left
        places |= {k: (start + own, y + down) for k, (own, down) in part.places.items()}
        column_of |= dict.fromkeys(part.places, column)
        bottom[0] = y + part.height
        lowest = max(lowest, bottom[0])
        edge = max(edge, start + part.right)
    return edge, lowest
