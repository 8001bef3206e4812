"""Plots for a report or a paper, drawn from records alone; each function returns a matplotlib figure.

Colours are Okabe and Ito's and a grey, which remain apart to colour-blind readers; line and marker styles differ as
well, so that a plot survives a black-and-white printer.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from nas.errors import InputError
from nas.record import Run
from nas.record.comparison import Search
from nas.report.result_table import format_count
from nas.report.statistics import (
    FEWEST,
    Attribution,
    Cost,
    CriticalDifference,
    Curve,
    Estimate,
    anytime,
    at_costs,
    cost_grid,
    estimate,
    pareto_front,
    performance_profile,
    probability_of_improvement,
    regret,
)

DOTS_PER_INCH = 200
HEIGHT_INCHES = 3.7  # of a figure
PANEL_INCHES = 1.1  # of the axes of one of several panels

_COST_LABELS: Mapping[Cost, str] = {
    "epochs": "epochs trained in the search",
    "seconds": "compute of the search (s)",
    "wall_seconds": "wall-clock time (s)",
}
STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "axes.labelsize": 9.5,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "0.3",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.7,
    "axes.formatter.useoffset": False,  # 1e-7+9.99998e-1 is no number that a reader adds up
    "figure.dpi": DOTS_PER_INCH,
}


class LineStyle(NamedTuple):
    """How one row of the table is drawn in every figure: colour (Okabe and Ito), line style, marker."""

    color: str
    line: Any
    marker: str


def line_styles() -> Iterator[LineStyle]:
    """Styles, one after another; they repeat after 40."""
    colors = itertools.cycle(
        ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#888888")
    )
    lines = itertools.cycle(("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)), (0, (9, 2))))
    markers = itertools.cycle("osD^vPXp")
    return map(LineStyle, colors, lines, markers)


def anytime_figure(groups: Mapping[str, Sequence[Run]], cost: Cost) -> Figure | None:
    """Best validation accuracy so far over cost: a line a row of the table, with its 95 % interval over
    seeds. None where nothing was measured or nothing cost anything.

    Three bands or more on top of each other cannot be read: then each gets a panel, the others in grey.
    """
    curves = {label: curve for label, runs in groups.items() if (curve := anytime(runs, cost)) is not None}
    if not any(curve.cost[-1] for curve in curves.values()):
        return None
    style_of = dict(zip(curves, line_styles(), strict=False))
    seeds = {curve.n for curve in curves.values()}
    apart = len(curves) > 2 and max(seeds) > 1
    with matplotlib.rc_context(STYLE):
        if apart:
            columns = 2 if len(curves) <= 4 else 3
            rows = -(-len(curves) // columns)
            figure, panels = _canvas(rows, columns, width=6.6, height=0.6 + 1.9 * rows)
            shown = [{label: curve} for label, curve in curves.items()]
        else:
            figure, panels = _canvas()
            shown = [curves]
        for axes, own in zip(panels, shown, strict=False):
            for label, curve in curves.items():
                if label not in own:
                    axes.step(curve.cost, 100 * curve.mean, where="post", color="0.75", linewidth=0.8)
            for label, (costs, mean, low, high, n, each) in own.items():
                style = style_of[label]
                if 1 < n < FEWEST:
                    for one in each:
                        axes.step(costs, 100 * one, where="post", color=style.color, linewidth=0.6, alpha=0.5)
                else:
                    axes.fill_between(
                        costs, 100 * low, 100 * high, step="post", color=style.color, alpha=0.18, lw=0
                    )
                axes.step(
                    costs, 100 * mean, where="post", color=style.color, linestyle=style.line, label=label
                )
            _anytime_limits(axes, list(curves.values()), panelled=apart)
            _legend(axes)
        for unused in panels[len(shown) :]:
            unused.set_visible(False)
        remark = ""
        if max(seeds) > 1:
            over = f"{max(seeds)}" if len(seeds) == 1 else f"{min(seeds)} to {max(seeds)}"
            shown_as = "mean (thick) and each seed" if max(seeds) < FEWEST else "mean and 95 % interval"
            remark = f"\n{shown_as}, {over} seeds"
        figure.supxlabel(_COST_LABELS[cost] + remark, fontsize=STYLE["axes.labelsize"])
        figure.supylabel("best validation accuracy so far (%)", fontsize=STYLE["axes.labelsize"])
        return figure


def _anytime_limits(axes: Axes, curves: Sequence[Curve], *, panelled: bool) -> None:
    axes.set_xlim(0, max(curve.cost[-1] for curve in curves) * 1.02)
    # The steep rise at the very beginning would flatten what tells the strategies apart later.
    floor = min(float(curve.mean[len(curve.mean) // 20]) for curve in curves)
    best = max(float(curve.mean[-1]) for curve in curves)
    # Intervals may pass 100 %; they are shown up to where the best mean's errors are halved.
    top = min(max(float(np.fmax(curve.high[-1], curve.mean[-1])) for curve in curves), (1 + best) / 2)
    means = np.concatenate([curve.mean for curve in curves])
    _accuracy_axis(axes, 100 * means, 100 * floor, 100 * top, panelled=panelled)


def pareto_figure(groups: Mapping[str, Sequence[Run]]) -> Figure | None:
    """Validation accuracy of every trial over its parameters, with the Pareto front of all of them, where they are of
    the same images.

    Trials that did not get the largest budget of their row are drawn hollow. Searches with shared weights are
    left out: their parameters are the supernet's. None where no trial has both numbers.
    """
    points = {
        label: [
            (trial.params, trial.valid_accuracy, trial.spent)
            for run in runs
            for trial in run.trials.values()
            if trial.params and math.isfinite(trial.valid_accuracy) and trial.chosen == trial.arch
        ]
        for label, runs in groups.items()
    }
    points = {label: np.asarray(rows, dtype=float) for label, rows in points.items() if rows}
    if not points:
        return None
    everything = np.concatenate(list(points.values()))
    params, accuracy = everything[:, 0], 100 * everything[:, 1]
    with matplotlib.rc_context(STYLE):
        figure, (axes,) = _canvas()
        for (label, rows), style in zip(points.items(), line_styles(), strict=False):
            x, y, full = rows[:, 0], 100 * rows[:, 1], rows[:, 2] == rows[:, 2].max()
            options = {"s": 20, "marker": style.marker, "edgecolors": style.color, "linewidths": 0.8}
            axes.scatter(x[full], y[full], color=style.color, label=label, alpha=0.75, **options)
            axes.scatter(x[~full], y[~full], facecolors="none", alpha=0.45, **options)
        if len({run.images for runs in groups.values() for run in runs}) == 1:
            front = pareto_front(list(params), list(accuracy))
            axes.step(
                [*params[front], params.max() * 1.05],
                [*accuracy[front], accuracy[front[-1]]],
                where="post",
                color="black",
                linewidth=1.2,
                label="Pareto front",
                zorder=3,
            )
        if any((rows[:, 2] < rows[:, 2].max()).any() for rows in points.values()):
            axes.scatter([], [], marker="o", facecolors="none", edgecolors="0.4", label="smaller budget")
        axes.set_xscale("log")
        narrow = params.max() < 50 * params.min()
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _round_count(value)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        _accuracy_axis(axes, accuracy, float(accuracy.min()), float(accuracy.max()))
        axes.set_xlabel("parameters")
        axes.set_ylabel("validation accuracy (%)")
        _legend(axes)
        return figure


def importance_figure(attribution: Attribution, most: int = 15) -> Figure | None:
    """Bars of the variance that each choice explains, what 90 % of the trees say, and ticks where chance may reach.

    The ``most`` largest are shown. None where no choice varied.
    """
    shown = attribution.choices[:most][::-1]
    if not shown:
        return None
    with matplotlib.rc_context(STYLE):
        figure, (axes,) = _canvas(height=1.1 + 0.25 * len(shown))
        places = np.arange(len(shown))
        shares = np.asarray([100 * choice.share for choice in shown])
        spread = np.abs(np.asarray([(100 * choice.low, 100 * choice.high) for choice in shown]).T - shares)
        axes.barh(places, shares, height=0.65, color="#0072B2")
        axes.errorbar(shares, places, xerr=spread, fmt="none", ecolor="0.25", elinewidth=1.0, capsize=2.0)
        axes.plot(
            [100 * choice.chance_share for choice in shown],
            places,
            linestyle="none",
            marker="|",
            markersize=11,
            markeredgewidth=1.8,
            color="#D55E00",
            label="chance alone stays below this (95 %)",
        )
        axes.grid(visible=False, axis="y")
        axes.set_yticks(places, [choice.choice for choice in shown])
        axes.tick_params(axis="y", length=0)
        axes.set_xlim(left=0)
        axes.set_xlabel("variance of validation accuracy explained by the choice alone (%)")
        few = "" if attribution.warning is None else ": too few to rely on"
        _remark(axes, f"{attribution.trials} trials at budget {attribution.budget}{few}")
        _legend(axes)
        return figure


def regret_figure(groups: Mapping[str, Sequence[Search]], optimum: float, budget_seconds: float) -> Figure:
    """Test regret of the incumbent by validation over simulated cost: the interquartile mean over searches of
    each strategy with its 95 % bootstrap interval, both axes logarithmic."""
    traces = {name: [search.trace for search in searches] for name, searches in groups.items()}
    grid = cost_grid([t for each in traces.values() for t in each], budget_seconds, log=True)
    curves = {name: estimate(regret(at_costs(each, grid), optimum)) for name, each in traces.items()}
    with matplotlib.rc_context(STYLE):
        figure, (axes,) = _canvas(height=4.4)
        for (name, curve), style in zip(curves.items(), line_styles(), strict=False):
            value, low, high = (100 * np.maximum(part, 0) for part in curve)
            axes.fill_between(grid, low, high, color=style.color, alpha=0.18, lw=0)
            axes.plot(grid, value, color=style.color, linestyle=style.line, label=name)
        axes.set_xscale("log")
        axes.set_xlim(grid[0], grid[-1])
        _log_ticks(axes.xaxis, "{:,g}")
        regret_axis(axes, 100 * max(float(curve.value[0]) for curve in curves.values()))
        axes.set_xlabel("simulated cost of the search (s)")
        axes.set_ylabel("test regret of the incumbent (points)")
        _remark(axes, _searches_said(groups), at_left=True)
        _legend(axes)
        return figure


def regret_axis(axes: Axes, top: float) -> None:
    """Regret can come to 0, which has no logarithm: below a fiftieth of ``top``, the largest, the axis is even."""
    if top <= 0:
        return
    axes.set_yscale("symlog", linthresh=top / 50, linscale=0.4)
    steps = (n * 10.0**k for k in range(-6, 3) for n in (1, 2, 5))
    axes.yaxis.set_major_locator(FixedLocator([0, *(y for y in steps if y >= top / 50)]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_ylim(0, 1.4 * top)


def profile_figure(groups: Mapping[str, Sequence[Search]], optimum: float) -> Figure:
    """Performance profiles: the part of a strategy's searches that end above a test accuracy, over that accuracy,
    with 95 % bootstrap intervals; the axis is spaced by the logarithm of the regret."""
    tested = {name: np.array([s.test_accuracies[-1] for s in each]) for name, each in groups.items()}
    lost = 100 * np.concatenate([regret(test, optimum) for test in tested.values()])
    least = float(lost[lost > 0].min(initial=1.0))
    upto = max(float(np.quantile(lost, 0.99)), 2 * least)
    with matplotlib.rc_context(STYLE):
        figure, (axes,) = _canvas(height=4.2)
        grid = np.geomspace(0.7 * least, upto, 300)
        for (name, test), style in zip(tested.items(), line_styles(), strict=False):
            profile = performance_profile(test, optimum - grid / 100)
            axes.fill_between(
                grid, 100 * profile.low, 100 * profile.high, color=style.color, alpha=0.18, lw=0
            )
            axes.plot(grid, 100 * profile.value, color=style.color, linestyle=style.line, label=name)
        axes.set_xscale("log")
        axes.set_xlim(upto, 0.7 * least)
        _log_ticks(axes.xaxis, "{:g}")
        axes.set_ylim(0, 102)
        axes.set_xlabel("test regret τ (points)")
        axes.set_ylabel("searches that end with less than τ (%)")
        _remark(axes, _searches_said(groups), at_left=True)
        _legend(axes)
        return figure


def rank_figure(ranks: CriticalDifference) -> Figure:
    """The critical-difference diagram (Demšar 2006, figure 1): mean ranks on a line, the best at the left; bars
    join those that Nemenyi's test does not tell apart."""
    many = len(ranks.names)
    left = -(-many // 2)  # these are written at the left side
    low, high = 1.0, float(many)
    side = (high - low) * 0.03 * (max(map(len, ranks.names)) + 8)  # room for names
    bars = 0.28 * len(ranks.groups) + 0.7
    rows = max(left, many - left)
    places = dict(zip(ranks.names, ranks.mean_ranks.tolist(), strict=True))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 0.22 * (rows + bars + 2.2)), layout="constrained")
        axes = figure.subplots()
        axes.set_axis_off()
        axes.set_xlim(low - side, high + side)
        axes.set_ylim(bars + rows - 0.5, -2.2)
        axes.plot([low, high], [0, 0], color="0.2", linewidth=1.0)
        for rank in range(1, many + 1):
            axes.plot([rank, rank], [0, -0.2], color="0.2", linewidth=1.0)
            axes.text(rank, -0.3, f"{rank}", ha="center", va="bottom", fontsize=8.5)
        for k, (name, rank) in enumerate(places.items()):
            at_left = k < left
            y = bars + (k if at_left else many - 1 - k)
            end, to = (low, -1) if at_left else (high, 1)
            end += to * 0.02 * side
            text = f"{name}  {rank:.2f}" if at_left else f"{rank:.2f}  {name}"
            axes.plot([rank, rank, end], [0, y, y], color="0.45", linewidth=0.9)
            axes.text(end + to * 0.02 * side, y, text, ha="right" if at_left else "left", va="center")
        for k, group in enumerate(ranks.groups):
            ends = [places[group[0]] - 0.03, places[group[-1]] + 0.03]
            y = 0.45 + 0.28 * k
            axes.plot(ends, [y, y], color="#D55E00", linewidth=3.0, solid_capstyle="butt")
        axes.plot([low, low + ranks.difference], [-1.8, -1.8], color="0.2", linewidth=1.6)
        said = f"critical difference {ranks.difference:.2f} (Nemenyi, 5 %, {ranks.blocks:,} seeds)"
        axes.text(low + ranks.difference + 0.1 * side, -1.8, said, va="center", fontsize=8.5)
        return figure


def improvement_figure(groups: Mapping[str, Sequence[Search]], order: Sequence[str]) -> Figure:
    """How probable it is that a search of the row's strategy is better than one of the column's; strategies in
    ``order``. Numbers whose 95 % bootstrap interval has one half in it are grey."""
    tested = {name: np.array([s.test_accuracies[-1] for s in groups[name]]) for name in order}
    found: dict[tuple[str, str], Estimate] = {}
    for first, second in itertools.combinations(order, 2):
        pair = probability_of_improvement(tested[first], tested[second])
        found[first, second] = pair
        found[second, first] = Estimate(1 - pair.value, 1 - pair.high, 1 - pair.low)
    values = np.array([[float(found[a, b].value) if a != b else math.nan for b in order] for a in order])
    with matplotlib.rc_context(STYLE):
        size = 1.9 + 0.56 * len(order)
        figure = Figure(figsize=(size + 0.6, 0.78 * size), layout="constrained")
        axes = figure.subplots()
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        shown = axes.imshow(values, cmap="PuOr", vmin=0, vmax=1, aspect="auto")
        for i, a in enumerate(order):
            for j, b in enumerate(order):
                if a == b:
                    continue
                pair = found[a, b]
                told = float(pair.low) > 0.5 or float(pair.high) < 0.5
                dark = abs(values[i, j] - 0.5) > 0.3
                axes.text(
                    j,
                    i,
                    f"{values[i, j]:.2f}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color=("white" if dark else "black") if told else "0.55",
                )
        axes.set_xticks(range(len(order)), order, rotation=35, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(order)), order)
        axes.tick_params(length=0)
        axes.set_xlabel("than a search of")
        axes.set_ylabel("a search of")
        bar = figure.colorbar(shown, ax=axes, shrink=0.8)
        bar.set_label("probability of being better")
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
        return figure


def _log_ticks(axis: Axis, numbers: str) -> None:
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: numbers.format(value)))
    axis.set_minor_locator(NullLocator())


def _searches_said(groups: Mapping[str, Sequence[Search]]) -> str:
    many = len(next(iter(groups.values())))
    return f"{many:,} search{'' if many == 1 else 'es'} each" + (", 95 % intervals" if many >= FEWEST else "")


def save(figure: Figure, path: Path) -> None:
    """Write a PNG, the same bytes for the same figure.

    Raises:
        InputError: ``path`` cannot be written.
    """
    try:
        figure.savefig(path, dpi=DOTS_PER_INCH, metadata={"Software": None})
    except OSError as error:
        raise InputError(f"{path}: cannot write ({error.strerror or error})") from error


def _canvas(
    rows: int = 1, columns: int = 1, width: float = 6.0, height: float = HEIGHT_INCHES
) -> tuple[Figure, list[Axes]]:
    # Not pyplot: it keeps every figure alive and wants a display back end.
    figure = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel().tolist()
    for axes in panels:
        axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10]))
    return figure, panels


def _accuracy_axis(
    axes: Axes, accuracies: np.ndarray, low: float, high: float, *, panelled: bool = False
) -> None:
    """A y axis from ``low`` to ``high`` per cent for ``accuracies``, spaced as the logarithm of the error.

    99 to 99.5 is as far as 90 to 95: both halve the errors. Where some have no error at all, half of the
    smallest one is added to every error, for zero has no logarithm.
    """
    errors = 100 - accuracies
    added = float(errors[errors > 0].min(initial=1.0)) / 2 if (errors <= 0).any() else 0.0

    def forward(accuracy: np.ndarray) -> np.ndarray:
        return -np.log10(np.maximum(100 + added - np.asarray(accuracy, dtype=float), 1e-6))

    def backward(scaled: np.ndarray) -> np.ndarray:
        return 100 + added - 10.0 ** -np.asarray(scaled, dtype=float)

    scaled_low, scaled_high = forward(np.asarray([low, high]))
    margin = max(0.06 * (scaled_high - scaled_low), 0.002)
    bottom, top = backward(np.asarray([scaled_low - margin, scaled_high + margin]))

    def clear(ticks: Sequence[float]) -> bool:
        """Whether labels at ``ticks`` leave each other room."""
        return not len(ticks) or float(np.diff(forward(np.asarray(ticks))).min(initial=math.inf)) >= apart

    apart = (
        float(forward(top) - forward(bottom))
        * 1.7
        * STYLE["font.size"]
        / 72
        / (PANEL_INCHES if panelled else HEIGHT_INCHES - 0.9)
    )
    ticks = next(
        (found for ticks in _ACCURACY_TICKS if clear(found := [t for t in ticks if bottom <= t <= top])), []
    )
    axes.set_yscale("function", functions=(forward, backward))
    axes.set_ylim(max(bottom, 0), top)
    axes.yaxis.set_major_locator(FixedLocator(ticks if len(ticks) >= 3 else _even(bottom, top, clear)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _even(bottom: float, top: float, clear: Callable[[Sequence[float]], bool]) -> list[float]:
    """Where none of `_ACCURACY_TICKS` fits whole: of the last those that leave each other room, from the top; else
    the most at equal steps that do."""
    kept: list[float] = []
    for tick in reversed(_ACCURACY_TICKS[-1]):
        if bottom <= tick <= top and clear([tick, *kept]):
            kept.insert(0, tick)
    if len(kept) > 2:
        return kept
    for many in (6, 5, 4, 3, 2):
        ticks = [t for t in MaxNLocator(many).tick_values(bottom, top) if bottom <= t <= top]
        if clear(ticks):
            return ticks
    return [top]


_ACCURACY_TICKS = (
    (*range(0, 60, 10), *range(60, 90, 2), *range(90, 98), 98, 98.5, 99, 99.2, 99.4, 99.6, 99.8, 100),
    (0, 20, 40, 50, 60, 70, 75, 80, 85, 88, 90, 92, 94, 95, 96, 97, 98, 98.5, 99, 99.3, 99.5, 99.7, 100),
    (0, 30, 50, 60, 70, 80, 85, 90, 93, 95, 97, 98, 99, 99.5, 100),
    (0, 50, 80, 90, 95, 98, 99, 99.5, 100),
)


def _legend(axes: Axes) -> None:
    """Above the axes, where it hides no data."""
    _, labels = axes.get_legend_handles_labels()
    if not labels:  # matplotlib leaves out names that begin with an underscore
        return
    fitting = 75 // (8 + max(map(len, labels)))
    style = {"handlelength": 2.6, "columnspacing": 1.4}
    axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=min(max(fitting, 1), 4), **style)


def _remark(axes: Axes, text: str, *, at_left: bool = False) -> None:
    x, side = (0.01, "left") if at_left else (0.99, "right")
    axes.text(x, 0.02, text, transform=axes.transAxes, ha=side, va="bottom", color="0.35", fontsize=8.5)


def _round_count(value: float) -> str:
    """Tick labels: ``20 k``, not ``20.0 k``."""
    number, _, unit = format_count(value).partition(" ")
    return f"{float(number):g} {unit}".strip()
