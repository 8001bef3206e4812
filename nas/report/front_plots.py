"""Figures of searches for several objectives: hypervolume over cost, and fronts with what the searches attain."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nas.goals import ACCURACY
from nas.record.fronts import FrontSearch
from nas.report.front import LEVELS, Progress, Scale, at, attainment, progress
from nas.report.plots import STYLE, _accuracy_axis, _canvas, _legend, _remark, line_styles
from nas.report.statistics import estimate

CAPTIONS = {
    "front": (
        "Fronts: the surface that half of a strategy's searches attain, dotted those that a quarter and three quarters "
        "attain (empirical attainment), and the reference front."
    ),
    "hypervolume": "Share of the reference front's hypervolume over cost: interquartile mean with its 95 % interval.",
    "front_ranks": "Critical-difference diagram of the hypervolumes from equal seeds.",
}

POINTS = 160  # costs of a curve


def volume_figure(
    groups: Mapping[str, Sequence[FrontSearch]], scale: Scale, label: str = "simulated cost of the search (s)"
) -> Figure | None:
    """Share of the front's hypervolume over cost: interquartile mean with its 95 % bootstrap interval."""
    held = {name: [progress(search, scale) for search in searches] for name, searches in groups.items()}
    every = [one for each in held.values() for one in each if len(one.costs)]
    if not every:
        return None
    last = max(search.cost_seconds for searches in groups.values() for search in searches)
    first = min(float(one.costs[0]) for one in every)
    grid = np.geomspace(max(first, last / 1e4), last, POINTS)
    with matplotlib.rc_context(STYLE):
        figure, (axes,) = _canvas(height=4.4)
        for (name, each), style in zip(held.items(), line_styles(), strict=False):
            value, low, high = (100 * part for part in estimate(at(each, grid)))
            if not np.isnan(low).any():
                axes.fill_between(grid, low, high, color=style.color, alpha=0.18, lw=0)
            axes.plot(grid, value, color=style.color, linestyle=style.line, label=name)
        axes.set_xscale("log")
        axes.set_xlim(grid[0], grid[-1])
        axes.set_xlabel(label)
        axes.set_ylabel("hypervolume (% of the reference front's)")
        _remark(axes, _said(groups))
        _legend(axes)
        return figure


def front_figure(groups: Mapping[str, Sequence[FrontSearch]], scale: Scale) -> Figure | None:
    """For every pair of objectives a panel: the reference front, and of each strategy the surface that half of its
    searches attain, with the band between those that `LEVELS` have (two objectives; of more the networks alone).
    An accuracy is on the vertical axis, in per cent, spaced as the logarithm of the error."""
    names = list(scale.goals)
    units = np.array([scale.goals[name] * (100 if name == ACCURACY else 1) for name in names])
    pairs = list(itertools.combinations(range(len(names)), 2))[:6]
    ends = {name: [progress(search, scale) for search in searches] for name, searches in groups.items()}
    if not pairs or not any(len(one.points) for each in ends.values() for one in each):
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.0, 4.4 * len(pairs)), layout="constrained")
        panels: list[Axes] = figure.subplots(len(pairs), 1, squeeze=False).ravel().tolist()
        for axes, (one, other) in zip(panels, pairs, strict=True):
            x, y = (other, one) if names[one] == ACCURACY else (one, other)
            true = units[[x, y]] * scale.front[:, [x, y]]
            axes.plot(*true.T, "o", color="0.65", markersize=3.5, label="reference front", zorder=1)
            for (name, each), style in zip(ends.items(), line_styles(), strict=False):
                _strategy(axes, name, each, scale, units, (x, y), style.color, style.line)
            axes.set_xlabel(names[x])
            axes.set_ylabel(names[y])
            if names[y] == ACCURACY:
                accuracies = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.lines])
                _accuracy_axis(axes, accuracies, float(accuracies.min()), float(accuracies.max()))
                axes.set_ylabel(f"{ACCURACY} (%)")
            _remark(axes, _said(groups))
        _legend(panels[0])
        return figure


def _strategy(
    axes: Axes,
    name: str,
    ends: Sequence[Progress],
    scale: Scale,
    units: np.ndarray,
    pair: tuple[int, int],
    color: str,
    line: object,
) -> None:
    columns = list(pair)
    span = scale.front.max(axis=0) - scale.reference

    def shown(points: np.ndarray) -> np.ndarray:
        gains = points * np.where(span > 0, span, 1.0)[columns] + scale.reference[columns]
        return units[columns] * gains

    if len(scale.goals) > 2:
        points = np.concatenate([one.points.reshape(-1, len(scale.goals))[:, columns] for one in ends])
        axes.plot(*shown(points).T, ".", color=color, markersize=2.5, label=name)
        return
    surfaces = {
        level: attainment([one.points.reshape(-1, 2)[:, columns] for one in ends], level) for level in LEVELS
    }
    for level, surface in surfaces.items():
        if not len(surface):
            continue
        stairs = _stairs(surface)
        middle = level == 50
        style = {"linestyle": line, "label": name} if middle else {"linestyle": ":", "alpha": 0.6}
        axes.plot(*shown(stairs).T, color=color, linewidth=1.7 if middle else 0.8, **style)


def _stairs(surface: np.ndarray) -> np.ndarray:
    """The edge of what is dominated by ``surface`` [n, 2], both to be maximised: a corner between two points."""
    ordered = surface[np.argsort(surface[:, 0], kind="stable")]
    corners = np.column_stack([ordered[:-1, 0], ordered[1:, 1]])
    stairs = np.empty((2 * len(ordered) - 1, 2))
    stairs[::2], stairs[1::2] = ordered, corners
    return stairs


def _said(groups: Mapping[str, Sequence[FrontSearch]]) -> str:
    counts = {len(searches) for searches in groups.values()}
    many = "–".join(f"{n:,}" for n in sorted({min(counts), max(counts)}))
    return f"{many} {'search' if counts == {1} else 'searches'} each"
