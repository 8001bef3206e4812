"""What a program or a notebook calls: searches, comparisons, and what they recorded, as values to look at.

Everything here is a few lines over `nas.run`, `nas.record` and `nas.report`; the command lines use the same.
"""

from nas.api.drawing import draw
from nas.api.runs import Run, Runs, TableRuns, load_run, load_runs
from nas.api.searching import compare, search, trainable

__all__ = ["Run", "Runs", "TableRuns", "compare", "draw", "load_run", "load_runs", "search", "trainable"]
