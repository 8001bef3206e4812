"""Tables and plots of finished or running searches, from their records alone.

    python scripts/report.py runs/c10              one run, or a folder of several (as compare.py makes)
    python scripts/report.py runs/a runs/b --out report
    python scripts/report.py runs/tables           a comparison over a table (compare.py --objective table), also one
                                                   by the number of simulated workers
    python scripts/report.py runs/c10 --tensorboard event files for TensorBoard too, below runs/c10/tensorboard
    python scripts/report.py runs/c10 --watch      the page of a running search, in a browser, until Ctrl-C

Prints the table and writes it as Markdown, CSV and LaTeX, the plots as PNG, and report.html with all of it.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import tyro

from _cli import cells, operations
from nas.run.command_line import run


@dataclasses.dataclass(frozen=True)
class Config:
    """Tables and plots of finished or running searches, from their records alone."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Run folders, or folders that hold some."""
    out: Path | None = None
    """Where tables and plots go; by default the first folder given."""
    space: str | None = None
    """The file of the runs' space, for what is drawn with its help; what a record names is not run."""
    tensorboard: tuple[Path, ...] | None = None
    """write the runs for TensorBoard too: below this folder, or without one below each run's own"""
    watch: bool = False
    """serve the page on this machine and make it anew while the search runs; writes nothing, ends with Ctrl-C"""
    port: int = 0
    """where --watch serves; 0: any free one"""


def main(config: Config) -> None:
    from nas.errors import InputError
    from nas.record.comparison import is_comparison, worker_folders
    from nas.record.fronts import is_front_comparison
    from nas.report.front_report import write_fronts
    from nas.report.report import write_comparison, write_report
    from nas.report.scaling_report import write_workers
    from nas.storage import copied

    if "" in config.runs:  # as a path it would be the folder this runs in
        raise InputError("runs: '' names no folder")
    config = dataclasses.replace(config, runs=tuple(str(copied(folder)) for folder in config.runs))
    if config.tensorboard is not None and len(config.tensorboard) > 1:
        raise InputError(f"tensorboard: {' '.join(map(str, config.tensorboard))}: one folder, or none")
    if config.watch:
        watch(config)
        return

    def compares(folder: str) -> bool:
        return is_comparison(folder) or is_front_comparison(folder) or bool(worker_folders(folder))

    compared = [folder for folder in config.runs if compares(folder)]
    if not compared:
        report = write_report(
            config.runs,
            config.out,
            operations=functools.partial(operations, space_file=config.space),
            cells=functools.partial(cells, space_file=config.space),
        )
    elif len(config.runs) == 1:
        write = write_comparison if is_comparison(compared[0]) else write_workers
        if is_front_comparison(compared[0]):
            write = write_fronts
        report = write(compared[0], config.out)
    else:
        raise InputError(f"runs: {compared[0]} is a comparison over a table, which is reported on by itself")
    if config.tensorboard is not None:
        if compared:
            raise InputError("tensorboard: a comparison over a table has no trainings to show")
        print(f"tensorboard --logdir {to_tensorboard(config)}", end="\n\n")
    print(report.markdown)
    for note in report.notes:
        print(f"- {note}")
    print()
    for path in report.files:
        print(path)


def to_tensorboard(config: Config) -> Path:
    """Write event files of all runs; the folder to look at."""
    from nas.errors import InputError
    from nas.record import find_runs, read_run
    from nas.report.trackers import TensorBoard, export

    folders = find_runs(config.runs)
    names = [folder.name for folder in folders]
    if len(set(names)) < len(names):  # of several comparisons
        names = [f"{folder.parent.name}-{folder.name}" for folder in folders]
    to = config.tensorboard[0] if config.tensorboard else None
    try:
        for folder, name in zip(folders, names, strict=True):
            own = folder / "tensorboard" if to is None else to if len(folders) == 1 else to / name
            run = read_run(folder)
            export(run, TensorBoard(own, run.config))
    except OSError as error:
        raise InputError(f"{to or 'tensorboard'}: cannot write ({error.strerror or error})") from error
    return to or (folders[0] / "tensorboard" if len(folders) == 1 else Path(config.runs[0]))


def watch(config: Config) -> None:
    """Serve the page until Ctrl-C."""
    from nas.errors import InputError
    from nas.record.comparison import is_comparison, worker_folders
    from nas.report.watching import Watch, server

    if not config.runs:
        raise InputError("report: no run folder given")
    if any(is_comparison(folder) or worker_folders(folder) for folder in config.runs):
        raise InputError("watch: a comparison over a table is over in a minute; report on it without --watch")
    with server(Watch(config.runs), config.port) as serving:
        print(f"http://127.0.0.1:{serving.server_port}/ (Ctrl-C ends)", flush=True)
        try:
            serving.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            print("no longer watched", flush=True)


if __name__ == "__main__":
    run(main)
