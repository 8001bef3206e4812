"""Plots of searches by the number of simulated workers; each function returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from nas.record.comparison import Comparison
from nas.report.plots import STYLE, line_styles, regret_axis
from nas.report.scaling import HOUR, Scaling, by_strategy, price_of
from nas.report.statistics import at_costs, cost_grid, estimate, regret

CAPTIONS = {
    "scaling": (
        "By the number of simulated workers: how many times sooner than with the fewest half of the searches are as "
        "good as the target, how many times sooner the whole budget is worked off, and the part of the time that "
        "workers are at work. Grey: linear, and half of that, below which a strategy has stopped scaling. A point "
        "that is missing: less than half of the searches came to the target."
    ),
    "regret_wall": (
        "How much better than the incumbent the best architecture of the space is, in test accuracy, over simulated "
        "time, by the number of workers. Interquartile mean with its 95 % interval."
    ),
    "regret_cost": "The same over what all workers have cost by then, those that wait and start included.",
}


def regret_by_workers(comparisons: Sequence[Comparison], over: Literal["wall", "cost"]) -> Figure:
    """Test regret of the incumbent over simulated time, or over what all workers cost by then: a panel a strategy,
    a line a number of workers (interquartile mean, 95 % bootstrap interval), both axes logarithmic."""
    optimum = comparisons[0].optimum
    hourly, unit = price_of(comparisons)
    names = comparisons[0].strategies
    columns = min(len(names), 2 if len(names) <= 4 else 3)
    rows = -(-len(names) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.1 * columns + 0.4, 2.1 * rows + 0.9), layout="constrained")
        panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel().tolist()
        top = 0.0
        for axes, name in zip(panels, names, strict=False):
            axes.set_title(name, fontsize=STYLE["axes.labelsize"])
            for comparison, style in zip(comparisons, line_styles(), strict=False):
                searches = comparison.complete()[name]
                traces = [search.wall_trace for search in searches]
                grid = cost_grid(traces, max(search.wall_seconds for search in searches), log=True)
                curve = estimate(regret(at_costs(traces, grid), optimum))
                x = grid if over == "wall" else grid * comparison.workers * hourly / HOUR
                value, low, high = (100 * np.maximum(part, 0) for part in curve)
                axes.fill_between(x, low, high, color=style.color, alpha=0.18, lw=0)
                label = f"{comparison.workers:,}"
                axes.plot(x, value, color=style.color, linestyle=style.line, label=label)
                top = max(top, float(value[0]))
        for axes in panels[: len(names)]:
            axes.set_xscale("log")
            axes.xaxis.set_minor_formatter(NullFormatter())
            regret_axis(axes, top)
        for axes in panels[len(names) :]:
            axes.set_visible(False)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, title="workers", loc="outside upper center", ncols=len(labels))
        said = "simulated time (s)" if over == "wall" else f"cost of all workers by then ({unit})"
        figure.supxlabel(said, fontsize=STYLE["axes.labelsize"])
        figure.supylabel("test regret of the incumbent (points)", fontsize=STYLE["axes.labelsize"])
        return figure


def scaling_figure(rows: Sequence[Scaling]) -> Figure | None:
    """Speed-up to the target, speed-up of the whole budget and utilisation, each over the number of workers, a line a
    strategy; grey: linear, and half of that. None for one number of workers."""
    workers = sorted({row.workers for row in rows})
    if len(workers) < 2:
        return None
    linear = np.array(workers) / workers[0]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 3.9), layout="constrained")
        target, whole, used = figure.subplots(1, 3)
        for axes in (target, whole):
            axes.plot(workers, linear, color="0.6", linewidth=1.0)
            axes.plot(workers, linear / 2, color="0.6", linewidth=1.0, linestyle=(0, (2, 2)))
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if linear[-1] < 50 else (1,)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
            axes.yaxis.set_minor_locator(NullLocator())
        for (name, own), style in zip(by_strategy(rows).items(), line_styles(), strict=False):
            drawn = {"color": style.color, "linestyle": style.line, "marker": style.marker, "markersize": 4.5}
            for axes, values in (
                (target, [_finite(float(np.ravel(row.speed_up.value)[0])) for row in own]),
                (whole, [_finite(float(np.ravel(row.all_speed_up.value)[0])) for row in own]),
                (used, [100 * row.utilisation for row in own]),
            ):
                axes.plot([row.workers for row in own], values, label=name, **drawn)
        for axes, said in (
            (target, "speed-up to the target regret"),
            (whole, "speed-up of the whole budget"),
            (used, "utilisation (%)"),
        ):
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(FixedLocator(workers))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.set_ylabel(said)
        used.set_ylim(0, 105)
        figure.supxlabel("workers", fontsize=STYLE["axes.labelsize"])
        handles, labels = used.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), 6))
        return figure


def _finite(value: float) -> float:
    """What has no place on a logarithmic axis is left out: never reached, or reached by the first alone."""
    return value if 0 < value < np.inf else np.nan
