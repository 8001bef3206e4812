"""The best score so far over trials, for searches after something else than validation accuracy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.figure import Figure

from nas.record import Run
from nas.report.plots import STYLE, line_styles


def score_figure(groups: Mapping[str, Sequence[Run]]) -> Figure | None:
    """A line a run, in the colour of its row of the table; None where nothing was measured."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.0, 3.7), layout="constrained")
        axes = figure.subplots()
        for (label, runs), style in zip(groups.items(), line_styles(), strict=False):
            for k, run in enumerate(runs):
                best, line = -math.inf, []
                for trial in run.trials.values():
                    best = max(best, trial.score)
                    line.append(best if math.isfinite(best) else math.nan)
                if all(map(math.isnan, line)):
                    continue
                axes.step(
                    range(1, len(line) + 1),
                    line,
                    where="post",
                    color=style.color,
                    linestyle=style.line,
                    label=label if k == 0 else None,
                )
        if not axes.lines:
            return None
        axes.set_xlabel("trials")
        axes.set_ylabel("best score so far")
        if axes.get_legend_handles_labels()[1]:  # names that begin with an underscore are left out
            axes.legend()
    return figure
