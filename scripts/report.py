"""Tables and plots of finished or running searches, from their records alone.

    python scripts/report.py runs/c10              one run, or a folder of several (as compare.py makes)
    python scripts/report.py runs/a runs/b --out report

Prints the table and writes it as Markdown, CSV and LaTeX, the plots as PNG, and report.html with all of it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import tyro

from _cli import cells, operations, run


@dataclasses.dataclass(frozen=True)
class Config:
    """Tables and plots of finished or running searches, from their records alone."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders, or folders that hold some."""
    out: Path | None = None
    """Where tables and plots go; by default the first folder given."""


def main(config: Config) -> None:
    from nas.results.report import write_report

    report = write_report(config.runs, config.out, operations=operations, cells=cells)
    print(report.markdown)
    for note in report.notes:
        print(f"- {note}")
    print()
    for path in report.files:
        print(path)


if __name__ == "__main__":
    run(main)
