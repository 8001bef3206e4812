"""An architecture as a picture, SVG from its choices alone: how a notebook shows it."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

from nas.space.messages import text_of

_EDGE = re.compile(r"(.+)_(\d+)_(\d+)")
_LAYER = re.compile(r"(.+?)_?(\d+)")
_LETTER, _LINE, _PAD, _GAP = 6.6, 15, 7, 22  # pixels
_BOX = 'fill="#e3eef9" stroke="#4a4a4a" rx="4"'


def architecture_html(arch: Mapping[str, Any]) -> str:
    """An architecture drawn from its choices: edges ``op_<to>_<from>`` as a graph of states, numbered choices
    (``width_1``, ``kernel_1``) as a box for each number in a row, the others as a line of text. Two numbers that
    are no edge's ends, as a layer of a stage has them (``kernel_2_1``), are a box for each pair."""
    pairs: dict[tuple[int, int], list[str]] = {}
    layers: dict[int, list[str]] = {}
    others: list[str] = []
    for name, value in arch.items():
        if found := _EDGE.fullmatch(name):
            pairs.setdefault((int(found[2]), int(found[3])), []).append(_said(found[1], value))
        elif found := _LAYER.fullmatch(name):
            layers.setdefault(int(found[2]), []).append(f"{found[1]} {text_of(value)}")
        else:
            others.append(f"{name}={text_of(value)}")
    parts = [f"<p>{html.escape(', '.join(others))}</p>"] if others else []
    if layers:
        parts.append(_chain([(str(number), lines) for number, lines in sorted(layers.items())]))
    if pairs and all((b, a) not in pairs for a, b in pairs):  # no loop, and one direction
        parts.append(_graph({(min(ends), max(ends)): lines for ends, lines in pairs.items()}))
    elif pairs:
        parts.append(_chain([(f"{a}, {b}", lines) for (a, b), lines in sorted(pairs.items())]))
    return "".join(parts)


def _said(name: str, value: Any) -> str:
    text = text_of(value)
    return text if isinstance(value, str) else f"{name} {text}"


def _chain(boxes: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Boxes from left to right with arrows between them, each under its title."""
    drawn, x = [], 1.0
    height = max(len(lines) for _, lines in boxes) * _LINE + 2 * _PAD
    for k, (title, lines) in enumerate(boxes):
        width = max(map(len, [title, *lines])) * _LETTER + 2 * _PAD
        drawn.append(f'<rect x="{x:g}" y="{_LINE + 4}" width="{width:g}" height="{height}" {_BOX}/>')
        drawn.append(_text(x + width / 2, _LINE - 2, title, "#777"))
        top = _LINE + 4 + (height - len(lines) * _LINE) / 2 + 11
        drawn += [_text(x + width / 2, top + i * _LINE, line) for i, line in enumerate(lines)]
        if k < len(boxes) - 1:
            y = _LINE + 4 + height / 2
            drawn.append(_arrow(f"M{x + width:g} {y:g} h{_GAP - 4}"))
        x += width + _GAP
    return _svg(x - _GAP + 2, height + _LINE + 6, drawn)


def _graph(edges: Mapping[tuple[int, int], Sequence[str]]) -> str:
    """States from left to right, each edge an arc with its operation; longer ones go higher."""
    states = sorted({state for ends in edges for state in ends})
    longest = max(map(len, (" ".join(lines) for lines in edges.values())))
    step = max(90.0, longest * _LETTER + 44)
    at = {state: 20 + k * step for k, state in enumerate(states)}
    rows: list[list[tuple[int, int]]] = []  # of arcs that do not overlap
    level: dict[tuple[int, int], int] = {}
    for ends in sorted(edges, key=lambda ends: (at[ends[1]] - at[ends[0]], ends)):
        row = next(
            (k for k, row in enumerate(rows) if all(ends[1] <= a or b <= ends[0] for a, b in row)), len(rows)
        )
        if row == len(rows):
            rows.append([])
        rows[row].append(ends)
        level[ends] = row
    base = 14.0 + len(rows) * 30
    drawn = []
    for ends, lines in edges.items():
        x, to = at[ends[0]], at[ends[1]]
        high = base - 30 * level[ends]
        if level[ends] == 0:
            drawn.append(_arrow(f"M{x + 13:g} {base:g} H{to - 16:g}"))
        else:
            drawn.append(
                _arrow(f"M{x:g} {base - 13:g} C{x:g} {high:g} {x + 8:g} {high:g} {x + 30:g} {high:g} H{to - 30:g} "
                       f"C{to - 6:g} {high:g} {to:g} {high:g} {to:g} {base - 16:g}")
            )  # fmt: skip
        drawn.append(_text((x + to) / 2, high - 5, " ".join(lines)))
    for state, x in at.items():
        drawn.append(f'<circle cx="{x:g}" cy="{base:g}" r="13" fill="#fbebd8" stroke="#4a4a4a"/>')
        drawn.append(_text(x, base + 4, str(state)))
    return _svg(at[states[-1]] + 20, base + 18, drawn)


def _text(x: float, y: float, text: str, colour: str = "#222") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="middle" fill="{colour}">{html.escape(text)}</text>'


def _arrow(path: str) -> str:
    return f'<path d="{path}" fill="none" stroke="#777" marker-end="url(#nas-arrow)"/>'


def _svg(width: float, height: float, drawn: Sequence[str]) -> str:
    head = (
        '<defs><marker id="nas-arrow" markerWidth="7" markerHeight="7" refX="5" refY="3" orient="auto">'
        '<path d="M0 0 L6 3 L0 6 z" fill="#777"/></marker></defs>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
        f'style="background:white" font-family="sans-serif" font-size="11">{head}{"".join(drawn)}</svg>'
    )
