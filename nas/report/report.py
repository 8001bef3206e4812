"""The report on some runs: tables, plots and one self-contained HTML page, from their records alone."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from matplotlib.figure import Figure

from nas.errors import InputError
from nas.own_file import named_in_file
from nas.record import Run, find_runs, read_run
from nas.record.comparison import read_comparison
from nas.report import front_runs, page, plots, result_table, standings, supernet_plots
from nas.report.page_data import page_data
from nas.report.pairs import pair_cells
from nas.report.statistics import Attribution, which_choices_mattered
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
    content = _content(paths)
    searches = _searches(content.groups)
    fronts = front_runs.front_part(content.groups, _architecture_text)
    notes = (*content.notes, *fronts.notes, *_left_out(searches, operations))
    content = dataclasses.replace(content, notes=notes, tables=fronts.tables)
    markdown = result_table.to_markdown(content.rows)
    figures = _figures(content) | dict(fronts.figures)

    folder = Path(paths[0] if out is None else out)
    texts = {
        "table.md": f"{markdown}\n{_listed(notes)}",
        "table.csv": result_table.to_csv(content.rows),
        "table.tex": result_table.to_latex(content.rows),
        **fronts.texts,
    }

    def whole(gallery: str, save_figure: SaveFigure) -> str:
        sections = [_search_section(shown, save_figure, operations, cells) for shown in searches]
        return content.html(gallery, "".join(sections))

    return Report(markdown, notes, _written(folder, texts, figures, whole))


def live_page(paths: Sequence[str | Path]) -> str:
    """The page of `write_report` without its pictures, in a second: what `report.py --watch` serves."""
    return _content(paths).html("", "", watched=True)


def _content(paths: Sequence[str | Path]) -> _Content:
    """Raises InputError: no run there, a damaged record, one search twice."""
    runs = [read_run(folder) for folder in find_runs(paths)]
    trials = [trial for run in runs for trial in run.trials.values()]
    # A search with shared weights is a trial of its settings: no point of the same space as networks are.
    settings = [
        trial.replace(arch=trial.arch.without(supernet_plots.REPETITION))
        for trial in trials
        if trial.chosen != trial.arch
    ]
    groups = result_table.group_runs(runs)
    notes = result_table.notes(runs)
    if len({(run.config.get("space"), run.images) for run in runs}) > 1:
        trials, settings = [], []  # one choice, one score: not where they mean different things
        notes += ("Which choices mattered is left out: the runs are of different spaces or images.",)
    return _Content(
        groups,
        result_table.comparison(runs),
        notes,
        pair_cells(groups),
        {
            CHOICES: which_choices_mattered(trial for trial in trials if trial.chosen == trial.arch),
            SETTINGS: which_choices_mattered(settings),
        },
    )


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
    return _section(shown, page.gallery(pictures))


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

    def whole(gallery: str, save_figure: SaveFigure) -> str:
        title = f"Architecture search over table {comparison.config['table']}: {comparison.config['valid']}"
        tests = page.table(paired, text={1})
        return page.document(
            title,
            f"{page.table(lines)}\n{page.items(notes)}\n{gallery}\n"
            f"<h2>Paired tests of the test accuracies from equal seeds (Wilcoxon, Holm)</h2>\n{tests}\n"
            f"<h2>Configuration and environment</h2>\n"
            f"{page.json_details('comparison', comparison.config, comparison.env)}",
        )

    return Report(markdown, notes, _written(Path(folder if out is None else out), texts, figures, whole))


def _written(
    folder: Path,
    texts: Mapping[str, str],
    figures: Mapping[str, Figure | None],
    whole: Callable[[str, SaveFigure], str],
) -> tuple[Path, ...]:
    """The files of a report: texts, figures, and ``report.html``. Raises InputError.

    ``whole`` makes the HTML page of the figures' HTML; it may save further figures with the function it is given.
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
        written.append(_write(folder / "report.html", whole(page.gallery(pictures), save_figure)))
    except OSError as error:
        raise InputError(f"{folder}: cannot write the report ({error.strerror or error})") from error
    return tuple(written)


def _listed(notes: Iterable[str]) -> str:
    return "".join(f"- {note}\n" for note in notes)


CHOICES, SETTINGS = "Choices", "Settings of the searches with shared weights"  # whose importance is shown
SEARCH_FIGURES = ("supernet_weights", "supernet_derived", "supernet_cells")


def _figures(content: _Content) -> dict[str, Figure | None]:
    groups, mattered = content.groups, content.mattered
    searches = supernet_plots.searches(groups)
    bars = {title: of and plots.importance_figure(of) for title, of in mattered.items()}
    return {
        "anytime_epochs": plots.anytime_figure(groups, "epochs"),
        "anytime_seconds": plots.anytime_figure(groups, "seconds"),
        "accuracy_over_params": plots.pareto_figure(groups),
        "which_choices_mattered": bars[CHOICES],
        "which_settings_mattered": bars[SETTINGS],
        "supernet_learning": supernet_plots.learning_figure(searches),
        "supernet_signs": supernet_plots.signs_figure(searches),
    }


class _ShownSearch(NamedTuple):
    """A search with shared weights that has a section of its own; ``name`` goes into its files' names."""

    search: SupernetSearch
    name: str
    first: bool  # of its run: what the run stands for
    left_out: int  # searches of the run that are not shown


def _searches(groups: Mapping[str, Sequence[Run]]) -> list[_ShownSearch]:
    """The best `MOST_SEARCHES` of each run, best first."""
    runs = [run for of in groups.values() for run in of]
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
        f"<details{' open' if shown.first else ''}><summary>{page.escape(told)}</summary>\n"
        f"<p>{page.escape('; '.join(signs))}. Derived: <code>{page.escape(derived)}</code></p>\n"
        f"{gallery}{page.table([['Epoch', 'Derived, and what changed'], *body], text={1})}\n"
        f"{more if shown.first else ''}</details>\n"
    )


def _write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@dataclasses.dataclass(frozen=True)
class _Content:
    """What the page of some runs shows beside its pictures."""

    groups: Mapping[str, Sequence[Run]]
    rows: Sequence[result_table.Row]
    notes: Sequence[str]
    pairs: Sequence[Sequence[str]]
    mattered: Mapping[str, Attribution | None]
    tables: Sequence[tuple[str, Sequence[Sequence[str]]]] = ()
    """Further ones, with their titles."""

    def html(self, gallery: str, searches: str, *, watched: bool = False) -> str:
        named = [(label, run) for label, runs in self.groups.items() for run in runs]
        best = [["Run", "Trial", "Architecture"], *(_best_cells(label, run) for label, run in named)]
        parts = {
            "": f"{page.table(result_table.cells(self.rows))}\n{page.items(self.notes)}\n",
            "Compared by pair": page.table(self.pairs, text={1}) if len(self.pairs) > 1 else "",
            **{title: page.table(lines) for title, lines in self.tables},
            "charts": "".join(page.chart(kind, *told) for kind, told in page.CHARTS.items()),
            "Best architectures": page.table(best, text={2}),
            "Searches with shared weights": searches,
            "Runs": page.table(_runs_table(named)),
            "Pictures": page.folded("The plots as pictures, as they lie beside this page", gallery)
            if gallery
            else "",
            "Configuration and environment": "".join(
                page.json_details(result_table.run_name(label, run), run.config, run.env)
                for label, run in named
            ),
        }
        body = "".join(
            text if title in ("", "charts") else f"<h2>{page.escape(title)}</h2>\n{text}\n"
            for title, text in parts.items()
            if text
        )
        return page.document(_title(named), body, page_data(self.groups, self.mattered), watched=watched)


def _title(named: Iterable[tuple[str, Run]]) -> str:
    subject = ", ".join(
        dict.fromkeys(
            f"{run.config['space']} on {run.config['dataset']}"
            for _, run in named
            if "space" in run.config and "dataset" in run.config
        )
    )
    return f"Architecture search: {subject}" if subject else "Architecture search"


def _runs_table(named: Iterable[tuple[str, Run]]) -> list[list[str]]:
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
    return [head, *body]


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
