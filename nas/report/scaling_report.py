"""The report on a comparison by several numbers of simulated workers, from its records alone."""

from __future__ import annotations

from pathlib import Path

from nas.errors import InputError
from nas.record.comparison import read_workers
from nas.report import page, result_table, scaling, scaling_plots
from nas.report.report import (
    Report,
    SaveFigure,
    _listed,
    _written,
)


def write_workers(folder: str | Path, out: str | Path | None = None) -> Report:
    """Report on a folder that holds a comparison for each number of workers, finished or not.

    Writes ``table.md``, ``table.csv``, ``table.tex``, ``report.html``, ``regret_wall.png``, ``regret_cost.png`` and,
    for several numbers, ``scaling.png``. The comparison with each number has a report of its own in its folder.

    Args:
        out: where to; by default ``folder``.

    Raises:
        InputError: no comparison there, a damaged record, no seed done yet, or ``out`` cannot be written.
    """
    comparisons = read_workers(folder)
    for comparison in comparisons:
        if not all(comparison.complete().values()):
            raise InputError(f"{comparison.folder}: no seed yet from which every strategy has been searched")
    rows = scaling.scaling(comparisons)
    lines = scaling.cells(rows, scaling.price_of(comparisons)[1])
    notes = scaling.notes(comparisons, rows)
    figures = {
        "scaling": scaling_plots.scaling_figure(rows),
        "regret_wall": scaling_plots.regret_by_workers(comparisons, "wall"),
        "regret_cost": scaling_plots.regret_by_workers(comparisons, "cost"),
    }
    markdown = result_table.markdown(lines)
    texts = {
        "table.md": f"{markdown}\n{_listed(notes)}",
        "table.csv": scaling.to_csv(rows),
        "table.tex": result_table.latex(lines),
    }
    config = comparisons[-1].config

    def whole(gallery: str, save_figure: SaveFigure) -> str:
        details = (page.json_details(one.folder.name, one.config, one.env) for one in comparisons)
        return page.document(
            f"Architecture search on simulated workers over table {config['table']}: {config['valid']}",
            f"{page.table(lines)}\n{page.items(notes)}\n{gallery}\n"
            f"<h2>Configuration and environment</h2>\n{''.join(details)}",
        )

    return Report(markdown, notes, _written(Path(folder if out is None else out), texts, figures, whole))
