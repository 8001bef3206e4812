"""The report on some runs: tables, plots and one self-contained HTML page, from their records alone."""

from __future__ import annotations

import base64
import dataclasses
import html
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from nas.errors import InputError
from nas.results import plots, standings, tables
from nas.results.record import Run, find_runs, read_run
from nas.results.searches import read_comparison
from nas.results.statistics import which_choices_mattered


@dataclasses.dataclass(frozen=True)
class Report:
    """The comparison table as ``markdown``, the ``notes`` that belong below it, and the ``files`` written."""

    markdown: str
    notes: tuple[str, ...]
    files: tuple[Path, ...]


def write_report(paths: Sequence[str | Path], out: str | Path | None = None) -> Report:
    """Report on run folders, or on folders of them, finished or not.

    Writes ``table.md``, ``table.csv``, ``table.tex``, ``report.html`` and those of ``anytime_epochs.png``,
    ``anytime_seconds.png``, ``accuracy_over_params.png`` and ``which_choices_mattered.png`` for which
    there is something to draw. What an earlier report wrote is replaced.

    Args:
        out: where to; by default the first of ``paths``.

    Raises:
        InputError: no run there, a damaged record, one search twice, or ``out`` cannot be written.
    """
    if not paths:
        raise InputError("report: no run folder given")
    runs = [read_run(folder) for folder in find_runs(paths)]
    groups = tables.group_runs(runs)
    rows = tables.comparison(runs)
    notes = tables.notes(runs)
    markdown = tables.to_markdown(rows)
    figures = _figures(groups)

    folder = Path(paths[0] if out is None else out)
    texts = {
        "table.md": f"{markdown}\n{_listed(notes)}",
        "table.csv": tables.to_csv(rows),
        "table.tex": tables.to_latex(rows),
    }
    written = _written(folder, texts, figures, lambda pictures: _page(rows, notes, groups, pictures))
    return Report(markdown, notes, written)


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
    markdown = tables.markdown(lines)
    texts = {
        "table.md": f"{markdown}\n{_listed(notes)}",
        "table.csv": standings.to_csv(held),
        "table.tex": tables.latex(lines),
        "tests.md": tables.markdown(paired),
    }

    def page(pictures: Mapping[str, bytes]) -> str:
        title = f"Architecture search over table {comparison.config['table']}: {comparison.config['valid']}"
        tests = _table(*_head_and_body(paired), text={1})
        return _html(
            title,
            f"{_table(*_head_and_body(lines))}\n{_items(notes)}\n{_pictured(pictures)}\n"
            f"<h2>Paired tests of the test accuracies from equal seeds (Wilcoxon, Holm)</h2>\n{tests}\n"
            f"<h2>Configuration and environment</h2>\n"
            f"{_json_details('comparison', comparison.config, comparison.env)}",
        )

    return Report(markdown, notes, _written(Path(folder if out is None else out), texts, figures, page))


def _written(
    folder: Path,
    texts: Mapping[str, str],
    figures: Mapping[str, Figure | None],
    page: Callable[[Mapping[str, bytes]], str],
) -> tuple[Path, ...]:
    """The files of a report: texts, figures, and ``report.html``, which is made of these. Raises InputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written = [_write(folder / name, text) for name, text in texts.items()]
        pictures: dict[str, bytes] = {}
        for name, figure in figures.items():
            path = folder / f"{name}.png"
            if figure is None:
                path.unlink(missing_ok=True)  # of an earlier report: it would belong to other runs
                continue
            plots.save(figure, path)
            pictures[name] = path.read_bytes()
            written.append(path)
        written.append(_write(folder / "report.html", page(pictures)))
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
}


def _figures(groups: Mapping[str, Sequence[Run]]) -> dict[str, Figure | None]:
    trials = [trial for runs in groups.values() for run in runs for trial in run.trials.values()]
    mattered = which_choices_mattered(trials)
    return {
        "anytime_epochs": plots.anytime_figure(groups, "epochs"),
        "anytime_seconds": plots.anytime_figure(groups, "seconds"),
        "accuracy_over_params": plots.pareto_figure(groups),
        "which_choices_mattered": None if mattered is None else plots.importance_figure(mattered),
    }


def _write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


_CSS = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; }
body { max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
th, td { padding: 0.25rem 0.7rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child, td.text { text-align: left; }
td.text { white-space: normal; overflow-wrap: anywhere; }
thead th { border-bottom: 1.5px solid #222; } tbody tr + tr td { border-top: 1px solid #ddd; }
figure { margin: 1.2rem 0; } img { max-width: 100%; width: 44rem; }
figcaption, li { max-width: 44rem; color: #444; }
code { font-size: 0.85em; } pre { overflow-x: auto; background: #f6f6f6; padding: 0.8rem; font-size: 0.8rem; }
"""


def _page(
    rows: Sequence[tables.Row],
    notes: Iterable[str],
    groups: Mapping[str, Sequence[Run]],
    pictures: Mapping[str, bytes],
) -> str:
    head, *body = tables.cells(rows)
    named = [(label, run) for label, runs in groups.items() for run in runs]
    subject = ", ".join(
        dict.fromkeys(
            f"{run.config['space']} on {run.config['dataset']}"
            for _, run in named
            if "space" in run.config and "dataset" in run.config
        )
    )
    title = f"Architecture search: {subject}" if subject else "Architecture search"
    return _html(
        title,
        f"""{_table(head, body)}
{_items(notes)}
{_pictured(pictures)}
<h2>Runs</h2>
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


def _pictured(pictures: Mapping[str, bytes]) -> str:
    return "".join(
        f'<figure><img alt="{_escape(CAPTIONS[name])}" '
        f'src="data:image/png;base64,{base64.b64encode(data).decode()}">'
        f"<figcaption>{_escape(CAPTIONS[name])}</figcaption></figure>\n"
        for name, data in pictures.items()
    )


def _head_and_body(lines: Sequence[Sequence[str]]) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    return lines[0], lines[1:]


def _runs_table(named: Iterable[tuple[str, Run]]) -> tuple[list[str], list[list[str]]]:
    head = ["Run", "Trials", "Failed", "Epochs", "Best valid. %", "Test %", "All s", "Wall s", "State"]
    body = []
    for label, run in named:
        (row,) = tables.comparison([run])
        counts = [tables.format_mean(row.trials), str(row.failed_trials), tables.format_mean(row.epochs)]
        accuracies = [
            tables.format_percent(row.best_valid_accuracy.mean),
            tables.format_percent(row.test_accuracy),
        ]
        seconds = [tables.format_seconds(row.all_seconds), tables.format_seconds(row.wall_seconds)]
        state = "complete" if run.done else "incomplete"
        body.append([tables.run_name(label, run), *counts, *accuracies, *seconds, state])
    return head, body


def _best_cells(label: str, run: Run) -> list[str]:
    arch = run.best.chosen if run.best is not None else run.finals[0].arch if run.finals else None
    # As the scripts take an architecture; JSON, because a space's own notation is not known here.
    text = tables.NO_VALUE if arch is None else f"{run.config.get('space', '')}:{arch.to_json()}"
    return [tables.run_name(label, run), tables.NO_VALUE if run.best is None else str(run.best.id), text]


def _settings(label: str, run: Run) -> str:
    return _json_details(tables.run_name(label, run), run.config, run.env)


def _json_details(summary: str, config: Mapping[str, Any], env: Mapping[str, Any]) -> str:
    text = json.dumps({"config": dict(config), "environment": dict(env)}, indent=2, ensure_ascii=False)
    return f"<details><summary>{_escape(summary)}</summary><pre>{_escape(text)}</pre></details>\n"


def _table(head: Sequence[str], body: Iterable[Sequence[str]], text: Iterable[int] = ()) -> str:
    """``text`` numbers the columns that are words, to be wrapped and set left."""
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
