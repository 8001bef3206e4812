"""The report on some runs: tables, plots and one self-contained HTML page, from their records alone."""

from __future__ import annotations

import base64
import dataclasses
import functools
import html
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from matplotlib.figure import Figure

from nas.errors import InputError
from nas.own_file import named_in_file
from nas.record import Run, find_runs, read_run
from nas.record.comparison import read_comparison
from nas.report import plots, result_table, scaling_plots, standings, supernet_plots
from nas.report.statistics import which_choices_mattered
from nas.report.supernet_plots import Operations, SupernetSearch
from nas.space import Architecture, Cell

Cells: TypeAlias = Callable[[Mapping[str, Any], Architecture], Mapping[str, Cell] | None]
"""Of a run's config and an architecture: its cells by name, where it has some."""

SaveFigure: TypeAlias = Callable[[str, Figure | Callable[[Path], object] | None], bytes | None]
"""Writes a figure, or has a function draw it, as NAME.png of the report, and returns its bytes; None for None."""

MOST_SEARCHES = 4
"""Searches with shared weights of one run that are shown each by itself: the best ones."""


@dataclasses.dataclass(frozen=True)
class Report:
    """The comparison table as ``markdown``, the ``notes`` that belong below it, and the ``files`` written."""

    markdown: str
    notes: tuple[str, ...]
    files: tuple[Path, ...]


def write_report(
    paths: Sequence[str | Path],
    out: str | Path | None = None,
    *,
    operations: Operations | None = None,
    cells: Cells | None = None,
) -> Report:
    """Report on run folders, or on folders of them, finished or not.

    Writes ``table.md``, ``table.csv``, ``table.tex``, ``report.html`` and those of ``anytime_epochs.png``,
    ``anytime_seconds.png``, ``accuracy_over_params.png`` and ``which_choices_mattered.png`` for which
    there is something to draw; of searches with shared weights also ``supernet_learning.png``,
    ``supernet_signs.png``, ``which_settings_mattered.png``, and for each of the best `MOST_SEARCHES` trials of a
    run ``supernet_weights_TRIAL.png``, ``supernet_derived_TRIAL.png`` and ``supernet_cells_TRIAL.png``. What an
    earlier report wrote is replaced.

    Args:
        out: where to; by default the first of ``paths``.
        operations: what a space calls an architecture's values in its supernet, where the names differ.
        cells: what is drawn of the architecture that a search with shared weights ended with.

    Raises:
        InputError: no run there, a damaged record, one search twice, or ``out`` cannot be written.
    """
    if not paths:
        raise InputError("report: no run folder given")
    runs = [read_run(folder) for folder in find_runs(paths)]
    groups = result_table.group_runs(runs)
    rows = result_table.comparison(runs)
    searches = _searches(runs, groups)
    notes = (*result_table.notes(runs), *_left_out(searches, operations))
    markdown = result_table.to_markdown(rows)
    figures = _figures(groups)

    folder = Path(paths[0] if out is None else out)
    texts = {
        "table.md": f"{markdown}\n{_listed(notes)}",
        "table.csv": result_table.to_csv(rows),
        "table.tex": result_table.to_latex(rows),
    }

    def page(gallery: str, save_figure: SaveFigure) -> str:
        sections = [_search_section(shown, save_figure, operations, cells) for shown in searches]
        return _page(rows, notes, groups, gallery, "".join(sections))

    return Report(markdown, notes, _written(folder, texts, figures, page))


def _left_out(shown: Iterable[_ShownSearch], operations: Operations | None) -> Iterator[str]:
    """A note for each run whose search space is not available, with what is left out therefore."""
    for search in (one.search for one in shown if one.first):
        if operations is None or operations(search.run.config, search.trial.chosen) is not None:
            continue
        space = str(search.run.config.get("space"))
        reason = "is a file, which a report runs only when it is named again (--space)"
        if named_in_file(space) is None:
            reason = "is not known here, or has changed"
        yield (
            f"{result_table.run_name(search.group, search.run)}: the names of its operations and the drawing of its "
            f"cells are left out, for its space {space} {reason}."
        )


def _search_section(
    shown: _ShownSearch, save_figure: SaveFigure, operations: Operations | None, cells: Cells | None
) -> str:
    """The page's section on one search. Figures are drawn one search at a time: all together take much memory."""
    search = shown.search
    own = {
        "supernet_weights": supernet_plots.weights_figure(search, operations),
        "supernet_derived": supernet_plots.derived_figure(search),
    }
    pictures = {kind: save_figure(f"{kind}_{shown.name}", figure) for kind, figure in own.items()}
    drawn = cells(search.run.config, search.trial.chosen) if cells is not None else None
    if drawn:
        from nas.report.cell_drawing import draw_cells  # it imports jax

        draw = functools.partial(draw_cells, drawn, title=search.title)
        pictures["supernet_cells"] = save_figure(f"supernet_cells_{shown.name}", draw)
    return _section(shown, _gallery(pictures))


def write_comparison(folder: str | Path, out: str | Path | None = None) -> Report:
    """Report on the folder of a comparison over a table, finished or not.

    Writes ``table.md``, ``table.csv``, ``table.tex``, the paired tests as ``tests.md``, ``report.html`` and
    ``regret.png``, ``profiles.png``, ``ranks.png`` and ``improvement.png`` (the last two need two strategies
    and two seeds). What an earlier report wrote is replaced.

    Args:
        out: where to; by default ``folder``.

    Raises:
        InputError: no comparison there, a damaged record, no seed done yet, or ``out`` cannot be written.
    """
    comparison = read_comparison(folder)
    held = standings.standings(comparison)
    lines, paired = standings.cells(held), standings.paired_cells(held)
    notes = standings.notes(comparison, held)
    groups = comparison.complete()
    ranks = held.ranks
    figures = {
        "regret": plots.regret_figure(groups, comparison.optimum, comparison.budget_seconds),
        "profiles": plots.profile_figure(groups, comparison.optimum),
        "ranks": None if ranks is None else plots.rank_figure(ranks),
        "improvement": None if ranks is None else plots.improvement_figure(groups, ranks.names),
    }
    markdown = result_table.markdown(lines)
    texts = {
        "table.md": f"{markdown}\n{_listed(notes)}",
        "table.csv": standings.to_csv(held),
        "table.tex": result_table.latex(lines),
        "tests.md": result_table.markdown(paired),
    }

    def page(gallery: str, save_figure: SaveFigure) -> str:
        title = f"Architecture search over table {comparison.config['table']}: {comparison.config['valid']}"
        tests = _table(*_head_and_body(paired), text={1})
        return _html(
            title,
            f"{_table(*_head_and_body(lines))}\n{_items(notes)}\n{gallery}\n"
            f"<h2>Paired tests of the test accuracies from equal seeds (Wilcoxon, Holm)</h2>\n{tests}\n"
            f"<h2>Configuration and environment</h2>\n"
            f"{_json_details('comparison', comparison.config, comparison.env)}",
        )

    return Report(markdown, notes, _written(Path(folder if out is None else out), texts, figures, page))


def _written(
    folder: Path,
    texts: Mapping[str, str],
    figures: Mapping[str, Figure | None],
    page: Callable[[str, SaveFigure], str],
) -> tuple[Path, ...]:
    """The files of a report: texts, figures, and ``report.html``. Raises InputError.

    ``page`` makes the HTML page of the figures' HTML; it may save further figures with the function it is given.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written = [_write(folder / name, text) for name, text in texts.items()]
        # Those of an earlier report would belong to other runs.
        for earlier in (*(f"{name}.png" for name in figures), *(f"{kind}_*.png" for kind in SEARCH_FIGURES)):
            for path in folder.glob(earlier):
                path.unlink(missing_ok=True)

        def save_figure(name: str, figure: Figure | Callable[[Path], object] | None) -> bytes | None:
            if figure is None:
                return None
            path = folder / f"{name}.png"
            if isinstance(figure, Figure):
                plots.save(figure, path)
            else:
                figure(path)
            written.append(path)
            return path.read_bytes()

        pictures = {name: save_figure(name, figure) for name, figure in figures.items()}
        written.append(_write(folder / "report.html", page(_gallery(pictures), save_figure)))
    except OSError as error:
        raise InputError(f"{folder}: cannot write the report ({error.strerror or error})") from error
    return tuple(written)


def _listed(notes: Iterable[str]) -> str:
    return "".join(f"- {note}\n" for note in notes)


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
        "Variance of validation accuracy explained by each choice alone, among the trials in which it is "
        "active, all compared at one budget. Interactions are not seen, and a search that adapts hides what "
        "keeps bad regions bad; a bar that ends left of its tick may be chance."
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
}
SEARCH_FIGURES = ("supernet_weights", "supernet_derived", "supernet_cells")


def _figures(groups: Mapping[str, Sequence[Run]]) -> dict[str, Figure | None]:
    trials = [trial for runs in groups.values() for run in runs for trial in run.trials.values()]
    # A search with shared weights is a trial of its settings: no point of the same space as networks are.
    mattered = which_choices_mattered(trial for trial in trials if trial.chosen == trial.arch)
    settings = which_choices_mattered(
        trial.replace(arch=trial.arch.without(supernet_plots.REPETITION))
        for trial in trials
        if trial.chosen != trial.arch
    )
    searches = supernet_plots.searches(groups)
    return {
        "anytime_epochs": plots.anytime_figure(groups, "epochs"),
        "anytime_seconds": plots.anytime_figure(groups, "seconds"),
        "accuracy_over_params": plots.pareto_figure(groups),
        "which_choices_mattered": None if mattered is None else plots.importance_figure(mattered),
        "which_settings_mattered": None if settings is None else plots.importance_figure(settings),
        "supernet_learning": supernet_plots.learning_figure(searches),
        "supernet_signs": supernet_plots.signs_figure(searches),
    }


class _ShownSearch(NamedTuple):
    """A search with shared weights that has a section of its own; ``name`` goes into its files' names."""

    search: SupernetSearch
    name: str
    first: bool  # of its run: what the run stands for
    left_out: int  # searches of the run that are not shown


def _searches(runs: Sequence[Run], groups: Mapping[str, Sequence[Run]]) -> list[_ShownSearch]:
    """The best `MOST_SEARCHES` of each run, best first."""
    found: dict[Path, list[SupernetSearch]] = {}
    for search in supernet_plots.searches(groups):
        found.setdefault(search.run.folder, []).append(search)
    folders = [run.folder.name[:80] for run in runs]
    shown = []
    for k, run in enumerate(runs):
        of = sorted(found.get(run.folder, []), key=lambda search: (-search.trial.score, search.trial.id))
        prefix = folders[k] if folders.count(folders[k]) == 1 and folders[k] else str(k + 1)
        for rank, search in enumerate(of[:MOST_SEARCHES]):
            name = f"trial_{search.trial.id}" if len(runs) == 1 else f"{prefix}_trial_{search.trial.id}"
            shown.append(_ShownSearch(search, name, rank == 0, len(of) - MOST_SEARCHES))
    return shown


def _section(shown: _ShownSearch, gallery: str) -> str:
    """The HTML of one search: its result, its figures, the epochs after which its architecture changed."""
    search, last = shown.search, shown.search.epochs[-1]
    changes = supernet_plots.changes(search)
    derived = _architecture_text(search.run, last.derived)
    told = f"{search.title}: {last.budget} epochs{', stopped by its own rule' if last.stopped else ''}"
    if changes:
        told += f"; the architecture changed {len(changes)} times, last in epoch {changes[-1][0]}"
    signs = [
        f"validation accuracy {result_table.format_percent(last.valid_accuracy)} % with shared weights",
        f"skip connections: {last.skips}",
        *([f"entropy {last.entropy:.3f}"] if math.isfinite(last.entropy) else []),
        *([f"dominant eigenvalue {last.eigenvalue:.3g}"] if math.isfinite(last.eigenvalue) else []),
    ]
    decided = supernet_plots.decided_choices(search)
    begun = search.epochs[0]
    body = [[str(begun.budget), ", ".join(f"{name}={begun.derived.get(name)}" for name in decided)]]
    for epoch, before, after in changes:
        names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
        body.append(
            [str(epoch), ", ".join(f"{name}: {before.get(name)} → {after.get(name)}" for name in names)]
        )
    more = f"<p>{shown.left_out} more trials of this run are in its record.</p>" if shown.left_out > 0 else ""
    return (
        f"<details{' open' if shown.first else ''}><summary>{_escape(told)}</summary>\n"
        f"<p>{_escape('; '.join(signs))}. Derived: <code>{_escape(derived)}</code></p>\n"
        f"{gallery}{_table(['Epoch', 'Derived, and what changed'], body, text={1})}\n"
        f"{more if shown.first else ''}</details>\n"
    )


def _write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


_CSS = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; }
body { max-width: 80rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
th, td { padding: 0.25rem 0.6rem; text-align: right; white-space: nowrap; }
thead th { white-space: normal; vertical-align: bottom; }
td:first-child { white-space: normal; min-width: 9rem; }
th:first-child, td:first-child, td.text { text-align: left; }
td.text { white-space: normal; overflow-wrap: anywhere; min-width: 20rem; }
thead th { border-bottom: 1.5px solid #222; } tbody tr + tr td { border-top: 1px solid #ddd; }
figure { margin: 1.2rem 0; } img { max-width: 100%; width: 44rem; }
figcaption, li { max-width: 44rem; color: #444; }
code { font-size: 0.85em; } pre { overflow-x: auto; background: #f6f6f6; padding: 0.8rem; font-size: 0.8rem; }
"""


def _page(
    rows: Sequence[result_table.Row],
    notes: Iterable[str],
    groups: Mapping[str, Sequence[Run]],
    gallery: str,
    searches: str,
) -> str:
    head, *body = result_table.cells(rows)
    named = [(label, run) for label, runs in groups.items() for run in runs]
    subject = ", ".join(
        dict.fromkeys(
            f"{run.config['space']} on {run.config['dataset']}"
            for _, run in named
            if "space" in run.config and "dataset" in run.config
        )
    )
    title = f"Architecture search: {subject}" if subject else "Architecture search"
    if searches:
        searches = f"<h2>Searches with shared weights</h2>\n{searches}"
    return _html(
        title,
        f"""{_table(head, body)}
{_items(notes)}
{gallery}
{searches}<h2>Runs</h2>
{_table(*_runs_table(named))}
<h2>Best architectures</h2>
{_table(["Run", "Trial", "Architecture"], [_best_cells(label, run) for label, run in named], text={2})}
<h2>Configuration and environment</h2>
{"".join(_settings(label, run) for label, run in named)}""",
    )


def _html(title: str, body: str) -> str:
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_escape(title)}</title>
<style>{_CSS}</style>
</head>
<body>
<h1>{_escape(title)}</h1>
{body}
</body>
</html>
"""


def _items(notes: Iterable[str]) -> str:
    listed = "".join(f"<li>{_escape(note)}</li>" for note in notes)
    return f"<ul>\n{listed}\n</ul>"


def _gallery(pictures: Mapping[str, bytes | None]) -> str:
    """The figures as HTML, each with its text of `CAPTIONS`; None is left out."""
    return "".join(
        f'<figure><img alt="{_escape(CAPTIONS[name])}" '
        f'src="data:image/png;base64,{base64.b64encode(data).decode()}">'
        f"<figcaption>{_escape(CAPTIONS[name])}</figcaption></figure>\n"
        for name, data in pictures.items()
        if data is not None
    )


def _head_and_body(lines: Sequence[Sequence[str]]) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    return lines[0], lines[1:]


def _runs_table(named: Iterable[tuple[str, Run]]) -> tuple[list[str], list[list[str]]]:
    head = ["Run", "Trials", "Failed", "Epochs", "Best valid. %", "Test %", "All s", "Wall s", "State"]
    body = []
    for label, run in named:
        (row,) = result_table.comparison([run])
        counts = [
            result_table.format_mean(row.trials),
            str(row.failed_trials),
            result_table.format_mean(row.epochs),
        ]
        accuracies = [
            result_table.format_percent(row.best_valid_accuracy.mean),
            result_table.format_percent(row.test_accuracy),
        ]
        seconds = [
            result_table.format_seconds(row.all_seconds),
            result_table.format_seconds(row.wall_seconds),
        ]
        state = "complete" if run.done else "incomplete"
        body.append([result_table.run_name(label, run), *counts, *accuracies, *seconds, state])
    return head, body


def _best_cells(label: str, run: Run) -> list[str]:
    arch = run.best.chosen if run.best is not None else run.finals[0].arch if run.finals else None
    text = result_table.NO_VALUE if arch is None else _architecture_text(run, arch)
    return [
        result_table.run_name(label, run),
        result_table.NO_VALUE if run.best is None else str(run.best.id),
        text,
    ]


def _architecture_text(run: Run, arch: Architecture) -> str:
    """``space:architecture`` as the scripts take it, the architecture as JSON."""
    return f"{run.config.get('space', '')}:{arch.to_json()}"


def _settings(label: str, run: Run) -> str:
    return _json_details(result_table.run_name(label, run), run.config, run.env)


def _json_details(summary: str, config: Mapping[str, Any], env: Mapping[str, Any]) -> str:
    text = json.dumps({"config": dict(config), "environment": dict(env)}, indent=2, ensure_ascii=False)
    return f"<details><summary>{_escape(summary)}</summary><pre>{_escape(text)}</pre></details>\n"


def _table(head: Sequence[str], body: Iterable[Sequence[str]], text: Iterable[int] = ()) -> str:
    """An HTML table; the columns numbered in ``text`` are words: they wrap and are aligned left."""
    words = set(text)
    titles = "".join(f"<th>{_escape(cell)}</th>" for cell in head)
    lines = "\n".join(
        "<tr>"
        + "".join(
            f'<td class="text">{_escape(cell)}</td>' if column in words else f"<td>{_escape(cell)}</td>"
            for column, cell in enumerate(cells)
        )
        + "</tr>"
        for cells in body
    )
    return (
        f'<div class="wide"><table><thead><tr>{titles}</tr></thead>\n<tbody>\n{lines}\n</tbody></table></div>'
    )


def _escape(text: str) -> str:
    return html.escape(text, quote=True)
