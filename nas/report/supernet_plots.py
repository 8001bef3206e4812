"""Figures of searches with shared weights over their epochs, from records alone (`SupernetMeasurement`).

Two figures show all searches of a report together, a thin line a trial; two more show one trial each.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from nas.record import Run
from nas.report.plots import STYLE, LineStyle, line_styles
from nas.report.result_table import run_name
from nas.space import Architecture
from nas.trial import SupernetMeasurement, Trial

Operations: TypeAlias = Callable[[Mapping[str, Any], Architecture], Mapping[str, Any] | None]
"""Of a run's config and an architecture: its values by the names of the supernet's open choices, where known."""

REPETITION = "repetition"  # the setting that tells seeds apart
MOST_COLOURS = 7  # lines of more kinds cannot be told apart
_UNCHOSEN = "none"  # the value that leaves a connection out: grey, in any space that has one
_GREYS = ("0.88", "0.70", "0.80", "0.62")
_WIDTH = 7.2  # inches, of a figure of one search
_LETTER_INCHES = 0.062
_SIGNS: Mapping[str, str] = {
    "entropy": "entropy of the weights\n(share of the largest)",
    "skips": "skip connections",
    "eigenvalue": "dominant eigenvalue",
}


class SupernetSearch(NamedTuple):
    """One trial of a search with shared weights, as its ``epochs`` (at least one); ``group`` is its run's row."""

    group: str
    run: Run
    trial: Trial
    epochs: tuple[SupernetMeasurement, ...]

    @property
    def title(self) -> str:
        name = run_name(self.group, self.run)
        return f"{name}, trial {self.trial.id}" if len(self.run.trials) > 1 else name

    @property
    def budgets(self) -> np.ndarray:
        return np.asarray([epoch.budget for epoch in self.epochs])

    @property
    def mixed(self) -> dict[str, list[Mapping[str, float]]]:
        """Of each open choice, the weights of its values in each epoch."""
        names = dict.fromkeys(name for epoch in self.epochs for name in epoch.weights)
        # Edges that are weighted themselves are listed in one entry, which is no choice.
        choices = [
            n
            for n in names
            if not all(names.keys() >= epoch.weights.get(n, {}).keys() for epoch in self.epochs)
        ]
        return {name: [epoch.weights.get(name, {}) for epoch in self.epochs] for name in choices}

    @property
    def edges(self) -> dict[str, list[float]]:
        """Of each open choice that is an edge with a weight of its own, that weight in each epoch."""
        choices = self.mixed
        lists = [[w for n, w in epoch.weights.items() if n not in choices] for epoch in self.epochs]
        names = dict.fromkeys(name for of in lists for weights in of for name in weights)
        return {n: [next((w[n] for w in of if n in w), math.nan) for of in lists] for n in names}

    @property
    def stopped(self) -> bool:
        return self.epochs[-1].stopped


def searches(groups: Mapping[str, Sequence[Run]]) -> list[SupernetSearch]:
    """The searches with shared weights among the trials of all runs, in their order."""
    found = []
    for group, runs in groups.items():
        for run in runs:
            for trial in run.trials.values():
                epochs = tuple(m for m in trial.measurements if isinstance(m, SupernetMeasurement))
                if epochs:
                    found.append(SupernetSearch(group, run, trial, epochs))
    return found


def changes(search: SupernetSearch) -> list[tuple[int, Architecture, Architecture]]:
    """The epochs after which the search would have ended with another architecture than one before: the epoch,
    what was derived before it, what after."""
    return [
        (now.budget, before.derived, now.derived)
        for before, now in itertools.pairwise(search.epochs)
        if now.derived != before.derived
    ]


# ---------------------------------------------------------------------------------------- all searches together


def learning_figure(found: Sequence[SupernetSearch]) -> Figure | None:
    """Loss and accuracy of the network with shared weights over epochs, training dashed. None without a search."""
    series = _series(found)
    if not series:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.0, 3.4), layout="constrained")
        panels = figure.subplots(1, 2, sharex=True)
        kinds = {"valid": Line2D([], [], color="0.3"), "train": Line2D([], [], color="0.3", linestyle="--")}
        colours: dict[str, str] = {}
        for (name, of), style in zip(series.items(), line_styles(), strict=False):
            colours[name] = style.color
            for axes, quantity, scale in zip(panels, ("loss", "accuracy"), (1, 100), strict=True):
                for kind, line in kinds.items():
                    options = {"color": style.color, "linestyle": line.get_linestyle()}
                    _lines(axes, of, f"{kind}_{quantity}", scale, options)
        panels[0].set_ylabel("loss (cross-entropy)")
        panels[1].set_ylabel("accuracy (%)")
        for axes in panels:
            _epoch_axis(axes, found)
        handles = {"validation": kinds["valid"], "training": kinds["train"]}
        _finish(figure, handles, colours, series)
        return figure


def signs_figure(found: Sequence[SupernetSearch]) -> Figure | None:
    """Entropy of the mixing weights, skip connections of what is derived, and the dominant eigenvalue over epochs.

    A square ends a search that its own rule stopped. What no search recorded has no panel; None without a search.
    """
    series = _series(found)
    shown = [
        name
        for name in _SIGNS
        if any(math.isfinite(getattr(epoch, name)) for search in found for epoch in search.epochs)
    ]
    if not series or not shown:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 0.9 + 1.75 * len(shown)), layout="constrained")
        panels = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
        colours: dict[str, str] = {}
        for (label, of), style in zip(series.items(), line_styles(), strict=False):
            colours[label] = style.color
            for axes, name in zip(panels, shown, strict=True):
                _lines(axes, of, name, 1, {"color": style.color})
                ends = [(s.epochs[-1].budget, getattr(s.epochs[-1], name)) for s in of if s.stopped]
                axes.plot(*zip(*ends, strict=True), "s", color=style.color, markersize=5) if ends else None
        for axes, name in zip(panels, shown, strict=True):
            axes.set_ylabel(_SIGNS[name])
            if name == "skips":
                axes.yaxis.set_major_locator(_whole_numbers())
                axes.set_ylim(bottom=-0.15)
            if name == "entropy":
                _at_least(axes, 0.02)
        figure.align_ylabels(panels)
        _epoch_axis(panels[-1], found)
        square = Line2D([], [], color="0.3", marker="s", linestyle="none", markersize=5)
        stops = {"stopped by its own rule": square} if any(search.stopped for search in found) else {}
        _finish(figure, stops, colours, series)
        return figure


def _series(found: Sequence[SupernetSearch]) -> dict[str, list[SupernetSearch]]:
    """The searches by their row, and by their settings where those differ within a row and are few."""
    by_row: dict[str, list[SupernetSearch]] = {}
    by_setting: dict[str, list[SupernetSearch]] = {}
    for search in found:
        by_row.setdefault(search.group, []).append(search)
    for group, of in by_row.items():
        names = dict.fromkeys(name for search in of for name in search.trial.arch if name != REPETITION)
        open_ = [n for n in names if len({repr(search.trial.arch.get(n)) for search in of}) > 1]
        for search in of:
            settings = [f"{n}={_short(search.trial.arch[n])}" for n in open_ if n in search.trial.arch]
            label = f"{group}: {', '.join(settings)}" if settings else group
            by_setting.setdefault(label, []).append(search)
    return by_setting if len(by_setting) <= MOST_COLOURS else by_row


def _lines(
    axes: Axes, of: Sequence[SupernetSearch], field: str, scale: float, style: Mapping[str, Any]
) -> None:
    """A line a search; thin ones, and their mean over the epochs that all have, where there are several."""
    one = len(of) == 1
    for search in of:
        values = np.asarray([getattr(epoch, field) for epoch in search.epochs], dtype=float)
        marker = "o" if len(values) == 1 else None  # a line of one point is not seen
        thin = {} if one else {"linewidth": 0.7, "alpha": 0.6}
        axes.plot(search.budgets, scale * values, marker=marker, markersize=4, **{**style, **thin})
    common = sorted(set.intersection(*({epoch.budget for epoch in search.epochs} for search in of)))
    if not one and len(common) > 1:
        rows = [[getattr(e, field) for e in search.epochs if e.budget in common] for search in of]
        axes.plot(common, scale * np.asarray(rows, dtype=float).mean(axis=0), **style)


def _finish(
    figure: Figure,
    kinds: Mapping[str, Line2D],
    colours: Mapping[str, str],
    series: Mapping[str, Sequence[SupernetSearch]],
) -> None:
    """The legend, and what a line is."""
    handles = dict(kinds)
    if len(colours) > 1:
        handles |= {label: Line2D([], [], color=colour) for label, colour in colours.items()}
    if handles:
        columns = max(1, min(4, 80 // (6 + max(map(len, handles)))))
        figure.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=columns)
    counts = {len(of) for of in series.values()}
    remark = "" if counts == {1} else "\na thin line a trial, a thick one their mean while all go on"
    figure.supxlabel(f"epoch of the search{remark}", fontsize=STYLE["axes.labelsize"])


def _at_least(axes: Axes, span: float) -> None:
    """The y axis no shorter than ``span``: below it, what moves is noise, with labels of seven digits."""
    low, high = axes.get_ylim()
    if high - low < span:
        axes.set_ylim((low + high - span) / 2, (low + high + span) / 2)


def _whole_numbers() -> MaxNLocator:
    return MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10])


def _epoch_axis(axes: Axes, found: Sequence[SupernetSearch]) -> None:
    axes.xaxis.set_major_locator(_whole_numbers())
    last = max(search.epochs[-1].budget for search in found)
    axes.set_xlim(0, last * 1.02)


# ------------------------------------------------------------------------------------------------- one search


def weights_figure(search: SupernetSearch, operations: Operations | None = None) -> Figure | None:
    """The weight of each value of each open choice over epochs: a panel a choice, the values derived at the end
    drawn thick. None where nothing was mixed: no choice open, or one value of each taken at a time.

    What is derived is read off the architecture where it has the choice by the same name, else asked of
    ``operations``; where neither knows, nothing is thick.
    """
    mixed, edges = search.mixed, search.edges
    if all(weight in (0, 1) for epochs in mixed.values() for of in epochs for weight in of.values()):
        return None
    blocks = _blocks(mixed)
    columns = min(max(map(len, blocks.values())), 3 if len(mixed) <= 9 else 5)
    places: list[tuple[int, int, str]] = []
    rows = 0
    for of in blocks.values():
        places += [(rows + k // columns, k % columns, name) for k, name in enumerate(of)]
        rows += -(-len(of) // columns)
    palette, derived = _palette(search), _derived(search, operations)
    handles = {
        value: Line2D([], [], color=style.color, linestyle=style.line) for value, style in palette.items()
    }
    if edges:
        handles["the edge itself"] = Line2D([], [], color="0.2", linestyle=":", linewidth=1.0)
    with matplotlib.rc_context({**STYLE, "font.size": 7.5}):
        # Not constrained: with thirty panels that takes longer than drawing them.
        head, panel = _head(handles), 1.0 if len(mixed) > 9 else 1.6
        figure = Figure(figsize=(_WIDTH, head + 0.5 + panel * rows))
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        height = figure.get_figheight()
        figure.subplots_adjust(0.1, 0.42 / height, 0.985, 1 - (head + 0.1) / height, 0.12, 0.34)
        for axes in grid.flat:
            axes.set_visible(False)
        taken = {(row, column) for row, column, _ in places}
        for row, column, name in places:
            axes = grid[row, column]
            axes.set_visible(True)
            axes.tick_params(labelbottom=(row + 1, column) not in taken, labelleft=column == 0)
            value = _text(derived.get(name))
            axes.text(0, 1.04, name, transform=axes.transAxes, color="0.25")
            _weight_lines(axes, search.budgets, mixed[name], value, palette)
            if name in edges:
                axes.plot(search.budgets, edges[name], color="0.2", linestyle=":", linewidth=1.0)
        _epoch_axis(grid[0, 0], [search])
        grid[0, 0].yaxis.set_major_locator(MaxNLocator(4))
        _head(handles, figure, search)
        figure.supxlabel("epoch of the search", fontsize=8.5, y=0.06 / height, va="bottom")
        figure.supylabel("weight in the mixture", fontsize=8.5, x=0.012)
        return figure


def _weight_lines(
    axes: Axes,
    budgets: np.ndarray,
    epochs: Sequence[Mapping[str, float]],
    thick: str,
    palette: Mapping[str, LineStyle],
) -> None:
    values = dict.fromkeys(value for of in epochs for value in of)
    marker = "o" if len(epochs) == 1 else None  # a line of one point is not seen
    for value in sorted(values, key=thick.__eq__):  # the thick one on top
        style, width = palette[value], 2.4 if value == thick else 0.9
        options = {"color": style.color, "linestyle": style.line, "linewidth": width}
        weights = [of.get(value, math.nan) for of in epochs]
        axes.plot(budgets, weights, marker=marker, markersize=2 + 2 * width, **options)


def _derived(search: SupernetSearch, operations: Operations | None) -> Mapping[str, Any]:
    """What is derived at the end, by the names of the open choices."""
    arch = search.epochs[-1].derived
    if operations is None or search.mixed.keys() <= arch.keys():
        return arch
    return operations(search.run.config, arch) or arch


def derived_figure(search: SupernetSearch) -> Figure | None:
    """The architecture that the search would have ended with after each epoch: a row a choice, a column an epoch,
    a colour a value; values at the end are written beside. None where there is no choice to show.
    """
    shown = decided_choices(search)
    if not shown:
        return None
    palette = _palette(search)
    budgets = search.budgets.astype(float)
    middles = (budgets[1:] + budgets[:-1]) / 2
    ends = np.concatenate([[budgets[0] - 0.5], middles, [budgets[-1] + 0.5]])
    pixels = np.ones((len(shown), len(budgets), 3))
    used: dict[str, Patch] = {}
    with matplotlib.rc_context({**STYLE, "font.size": 8, "axes.grid": False}):
        figure = Figure(figsize=(_WIDTH, 1.15 + 0.17 * len(shown)), layout="constrained")
        axes = figure.subplots()
        for row, name in enumerate(shown):
            texts = [_text(epoch.derived.get(name)) for epoch in search.epochs]
            others = dict.fromkeys(text for text in texts if text not in palette)
            greys = dict(zip(others, itertools.cycle(_GREYS), strict=False))
            start = 0
            for text, members in itertools.groupby(texts):
                end = start + len(list(members))
                colour = greys[text] if text in greys else palette[text].color
                pixels[row, start:end] = to_rgb(colour)
                left, right = ends[start], ends[end]
                inches = 0.6 * _WIDTH * (right - left) / (ends[-1] - ends[0])
                if text in palette:
                    used[text] = Patch(color=colour)
                elif inches > _LETTER_INCHES * len(text):
                    place = ((left + right) / 2, row + 0.5)
                    axes.text(*place, text, ha="center", va="center_baseline", fontsize=6)
                start = end
        axes.pcolormesh(ends, np.arange(len(shown) + 1), pixels)
        firsts = {names[0] for names in _blocks(shown).values()}
        for row, name in enumerate(shown):
            axes.axhline(row, color="white", linewidth=3.5 if name in firsts else 0.8)
        changed = [epoch for epoch, _, _ in changes(search)]
        axes.vlines(changed, -0.6, -0.2, color="0.2", linewidth=1.0)
        axes.set_ylim(len(shown), -0.8)
        last = [_text(search.epochs[-1].derived.get(name)) for name in shown]
        for side, texts in ((axes, shown), (axes.secondary_yaxis("right"), last)):
            side.set_yticks(np.arange(len(shown)) + 0.5, texts, fontsize=7)
            side.tick_params(axis="y", length=0)
            for spine in side.spines.values():
                spine.set_visible(False)
        axes.xaxis.set_major_locator(_whole_numbers())
        axes.set_xlabel("epoch of the search (marks above: the architecture changed)", fontsize=8.5)
        _head({value: used[value] for value in palette if value in used}, figure, search)
        return figure


def _head(
    handles: Mapping[str, Any], figure: Figure | None = None, search: SupernetSearch | None = None
) -> float:
    """The legend over a figure of one search, with its name: the inches it takes; drawn where both are given."""
    columns = max(1, min(len(handles), 104 // (7 + max(map(len, handles), default=0))))
    if figure is not None and search is not None:
        title = search.title + (", stopped by its own rule" if search.stopped else "")
        constrained = figure.get_layout_engine() is not None
        figure.legend(
            handles.values(),
            handles.keys(),
            title=title,
            alignment="left",
            loc="outside upper left" if constrained else "upper left",
            ncols=columns,
            fontsize=7.5,
            title_fontsize=8.5,
        )
    return 0.38 + 0.16 * -(-len(handles) // columns)


def decided_choices(search: SupernetSearch) -> list[str]:
    """The choices of the derived architectures that the search decides: those open, those with such values, and
    those that changed, with others that differ from them in a number alone."""
    mixed, palette = search.mixed, _palette(search)
    names = dict.fromkeys(name for epoch in search.epochs for name in epoch.derived)
    changed = {_base(n) for n in names if len({repr(epoch.derived.get(n)) for epoch in search.epochs}) > 1}
    alike = {
        n for n in names if _kind(n) in _blocks(mixed) and _text(search.epochs[-1].derived.get(n)) in palette
    }
    return [name for name in names if name in mixed or name in alike or _base(name) in changed]


def _palette(search: SupernetSearch) -> dict[str, LineStyle]:
    """How each value of the open choices is drawn."""
    values = dict.fromkeys(value for epochs in search.mixed.values() for of in epochs for value in of)
    chosen = [value for value in values if value != _UNCHOSEN]
    palette = dict(zip(chosen, line_styles(), strict=False))
    return {value: palette.get(value, LineStyle("0.6", "-", "o")) for value in values}


def _blocks(names: Mapping[str, Any] | Sequence[str]) -> dict[str, list[str]]:
    """Choices by the kind of cell or of choice that their names begin with."""
    blocks: dict[str, list[str]] = {}
    for name in names:
        blocks.setdefault(_kind(name), []).append(name)
    return blocks


def _kind(name: str) -> str:
    return name.partition("_")[0]


def _base(name: str) -> str:
    return name.rstrip("0123456789")


def _text(value: Any) -> str:
    """As the record writes the values of open choices; empty for a choice that is not there."""
    return "" if value is None else str(value)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
