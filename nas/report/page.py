"""HTML of a report: one file with its style, its script and its data in it; nothing is fetched from anywhere.

``page.css`` and ``page.js`` beside this file are written into the page. The script draws what ``data`` holds
(see `nas.report.page_data`) and sorts tables; without it the tables and pictures remain.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nas.report import front_plots, scaling_plots

CAPTIONS: Mapping[str, str] = {
    "anytime_epochs": (
        "Best validation accuracy so far over the epochs that the search has trained, all trials together. "
        "Every epoch of a trial counts here, in the table its last one. The axis is spaced by the logarithm "
        "of the error."
    ),
    "anytime_seconds": "The same over the seconds spent compiling, training and evaluating, on all workers.",
    "accuracy_over_params": (
        "Validation accuracy of every trial at its last measurement over its number of parameters; "
        "above the line there is no trial with as few parameters or fewer."
    ),
    "which_choices_mattered": (
        "Variance of validation accuracy explained by each choice alone (functional ANOVA), among the trials in "
        "which it is active, all compared at one budget; the line at a bar is what 90 % of the trees say. "
        "Interactions are not seen, and a search that adapts hides what keeps bad regions bad; a bar that ends left of "
        "its tick may be chance."
    ),
    "which_settings_mattered": "The same for the settings of the searches with shared weights.",
    "supernet_learning": (
        "Searches with shared weights: loss and accuracy of the supernet on its training batches and on "
        "validation images, over the epochs of the search."
    ),
    "supernet_signs": (
        "Searches with shared weights: how undecided the mixture is (1: all values alike), skip connections "
        "in the architecture that the search would end with (in its normal cell where it has several), and the "
        "dominant eigenvalue of the validation loss's second derivatives by the architecture parameters. Many skip "
        "connections and a growing eigenvalue are the signs of a collapse."
    ),
    "supernet_weights": (
        "Weight of each value of each open choice in the mixture, without noise. Thick: the values that the "
        "architecture derived at the end has, none on an edge that it leaves out."
    ),
    "supernet_derived": "The architecture that the search would have ended with after each epoch.",
    "supernet_cells": "The cells of the architecture that the search ended with.",
    "regret": (
        "How much better than the incumbent the best architecture of the space is, in test accuracy, over the "
        "simulated cost of the search; the incumbent is the best by validation so far. Interquartile mean."
    ),
    "profiles": "Performance profiles: the part of the searches whose last incumbent has less test regret than τ.",
    "ranks": (
        "Critical-difference diagram: mean ranks of the strategies over seeds; bars join strategies that "
        "Nemenyi's test does not tell apart."
    ),
    "improvement": (
        "Probability that a search of the row's strategy ends better than one of the column's, equal ones half; "
        "grey where the 95 % interval holds one half."
    ),
    **scaling_plots.CAPTIONS,
    **front_plots.CAPTIONS,
}

CHARTS: Mapping[str, tuple[str, str]] = {
    "anytime": (
        "Best validation accuracy so far",
        "Over what the search has cost: a line a row of the table, the mean over its seeds with the 95 % interval from "
        "five seeds on, below that with each seed as a thin line. Spaced by the logarithm of the error.",
    ),
    "scatter": (
        "All trials",
        "A point a trial at its last measurement: point at one for its architecture, cost and curve, click for all of "
        "it. Hollow: less than the largest budget of its row. The line joins the trials that none beats at its cost.",
    ),
    "curves": (
        "Learning curves",
        "Validation accuracy over the epochs of a trial. Of many trials the best are drawn.",
    ),
    "parallel": (
        "Parallel coordinates",
        "A line a trial through its choices to its validation accuracy, brighter for a higher one. Drag along an axis "
        "to keep what lies there; click on an axis to let it go.",
    ),
    "importance": (
        "Which choices mattered",
        "The part of the variance of validation accuracy that each choice explains alone, all trials compared at one "
        "budget: functional ANOVA (Hutter, Hoos and Leyton-Brown 2014) as Optuna has it. Bar: the mean of trees grown "
        "on resamples of the trials, line: 90 % of them. A bar that ends left of its mark may be chance. "
        "Interactions are in nobody's share, and a search that adapts hides what keeps bad regions bad.",
    ),
    "trials": (
        "List of trials",
        "Click on a head to sort, on a line for its curve and, where it failed, its traceback.",
    ),
}


def document(title: str, body: str, data: Mapping[str, Any] | None = None, *, watched: bool = False) -> str:
    """The whole page. ``watched``: it asks the server that it came from for news of a running search."""
    here = Path(__file__).parent
    style, script = ((here / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    # JSON has no other place where "<" may stand than texts, where it may as well be written so.
    held = "" if data is None else json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>{style}</style>
</head>
<body{" data-watched" if watched else ""}>
<main>
<h1>{escape(title)}</h1>
{body}
<script type="application/json" id="data">{held or "null"}</script>
</main>
<div id="tip" role="tooltip" hidden></div>
<script>{script}</script>
</body>
</html>
"""


def items(notes: Iterable[str]) -> str:
    """A list."""
    listed = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f"<ul>\n{listed}\n</ul>"


def gallery(pictures: Mapping[str, bytes | None]) -> str:
    """The figures as HTML, each with its text of `CAPTIONS`; None is left out."""
    return "".join(
        f'<figure><img alt="{escape(CAPTIONS[name])}" '
        f'src="data:image/png;base64,{base64.b64encode(data).decode()}">'
        f"<figcaption>{escape(CAPTIONS[name])}</figcaption></figure>\n"
        for name, data in pictures.items()
        if data is not None
    )


def chart(kind: str, title: str, caption: str) -> str:
    """A place where the page's script draws."""
    return (
        f'<section class="chart" data-chart="{kind}"><h2>{escape(title)}</h2>\n<div class="controls"></div>'
        f'<div class="plot"></div>\n<p class="caption">{escape(caption)}</p></section>\n'
    )


def json_details(summary: str, config: Mapping[str, Any], env: Mapping[str, Any]) -> str:
    text = json.dumps({"config": dict(config), "environment": dict(env)}, indent=2, ensure_ascii=False)
    return folded(summary, f"<pre>{escape(text)}</pre>")


def folded(summary: str, body: str) -> str:
    """What is shown when it is clicked."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>\n"


def table(lines: Sequence[Sequence[str]], text: Iterable[int] = ()) -> str:
    """An HTML table of cells, the head first, sorted by a click on a column's head; the columns numbered in ``text``
    are words: they wrap and are aligned left."""
    words = set(text)
    head, *body = lines
    titles = "".join(
        f'<th scope="col"{_class(column in words)}>{escape(cell)}</th>' for column, cell in enumerate(head)
    )
    rows = "\n".join(
        "<tr>"
        + "".join(f"<td{_class(column in words)}>{escape(cell)}</td>" for column, cell in enumerate(cells))
        + "</tr>"
        for cells in body
    )
    return (
        f'<div class="wide"><table class="sortable"><thead><tr>{titles}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody></table></div>"
    )


def _class(text: bool) -> str:
    return ' class="text"' if text else ""


def escape(text: str) -> str:
    return html.escape(text, quote=True)
