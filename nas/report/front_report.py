"""The report on a comparison over a table by several objectives, from its record alone."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from nas.errors import InputError
from nas.record.fronts import read_fronts
from nas.report import front, page, plots, result_table
from nas.report.front_plots import front_figure, volume_figure
from nas.report.report import Report, SaveFigure, _listed, _written


def write_fronts(folder: str | Path, out: str | Path | None = None) -> Report:
    """Report on the folder of a comparison by several objectives, finished or not.

    Writes ``table.md``, ``table.csv``, ``table.tex``, the paired tests of hypervolumes as ``tests.md``,
    ``report.html``, ``front.png``, ``hypervolume.png`` and, for two strategies and two seeds, ``front_ranks.png``.

    Raises:
        InputError: no comparison there, a damaged record, no seed done yet, or ``out`` cannot be written.
    """
    comparison = read_fronts(folder)
    groups = comparison.complete()
    if not groups or not all(groups.values()):
        raise InputError(f"{folder}: no seed yet from which every strategy has been searched")
    scale = front.Scale(comparison.goals, comparison.reference, comparison.front)
    held = front.rows(groups, scale)
    ordered = {row.strategy: groups[row.strategy] for row in held}
    volumes = front.volumes(ordered, scale)
    lines, paired = front.cells(held, judged="test"), front.paired_cells(volumes)
    config, ranks = comparison.config, front.ranking(volumes)
    told = f"{len(next(iter(groups.values()))):,} searches a strategy, {config['budget_seconds']:,.0f} simulated s each"
    notes = [
        f"Interquartile means over seeds with 95 % bootstrap intervals; {told}.",
        front.scale_note(scale, config.get("front_of", "the table's true front")),
        "Seen: with the validation accuracies that the searches saw; test: with the test accuracies of the networks "
        f"that they chose by those ({config['valid']} and {config['test']}).",
    ]
    if config.get("constraint"):
        notes.append(f"Constraints: {', '.join(config['constraint'])}; what violates one is on no front.")
    if comparison.missing > 0:
        notes.append(
            f"Incomplete, still running or interrupted: {comparison.missing:,} searches are to come."
        )
    markdown = result_table.markdown(lines)
    texts = {
        "table.md": f"{markdown}\n{_listed(notes)}",
        "table.csv": front.to_csv(held),
        "table.tex": result_table.latex(lines),
        "tests.md": result_table.markdown(paired),
    }
    figures: dict[str, Figure | None] = {
        "front": front_figure(ordered, scale),
        "hypervolume": volume_figure(ordered, scale),
        "front_ranks": None if ranks is None else plots.rank_figure(ranks),
    }

    def whole(gallery: str, save_figure: SaveFigure) -> str:
        return page.document(
            f"Search for {', '.join(comparison.goals)} over table {config['table']}",
            f"{page.table(lines)}\n{page.items(notes)}\n{gallery}\n"
            f"<h2>Paired tests of the hypervolumes from equal seeds (Wilcoxon, Holm)</h2>\n"
            f"{page.table(paired, text={1})}\n<h2>Configuration and environment</h2>\n"
            f"{page.json_details('comparison', config, comparison.env)}",
        )

    files = _written(Path(folder if out is None else out), texts, figures, whole)
    return Report(markdown, tuple(notes), files)
