"""A space as a table in HTML: how a notebook shows it."""

from __future__ import annotations

import html
from collections.abc import Sequence

from nas.space.counting import size
from nas.space.definition import Definition
from nas.space.text import describe_rows


def space_html(space: Definition) -> str:
    """The table of `SearchSpace.describe` as HTML."""
    head = ("choice", "values", "exists when", "in the program")
    rows = [_row(head, "th"), *(_row(cells, "td") for cells in describe_rows(space))]
    constraints = "".join(f"<li>{html.escape(constraint.text)}</li>" for constraint in space.constraints)
    said = f"<b>{html.escape(space.name)}</b>: {len(space.possible)} choices, {size(space)} architectures"
    return f"<p>{said}</p><table>{''.join(rows)}</table>" + (
        f"<p>constraints</p><ul>{constraints}</ul>" if constraints else ""
    )


def _row(cells: Sequence[str], tag: str) -> str:
    inside = (f"<{tag} align='left'>{html.escape(cell)}</{tag}>" for cell in cells)
    return f"<tr>{''.join(inside)}</tr>"
