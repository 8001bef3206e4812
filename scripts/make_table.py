"""Train every network of a finite space into a table: scripts/make_table.py --space minichain --dataset mnist5k"""

from __future__ import annotations

import dataclasses
import shlex
import sys
from pathlib import Path
from typing import Literal

from nas.data.config import DataConfig
from nas.run.command_line import run
from nas.run.options import SearchOptions, cluster_of, hyper_defaults, narrowed
from nas.training.config import TrainingConfig


@dataclasses.dataclass(frozen=True)
class Config:
    """Train every network of a finite space from several seeds; a table of every epoch's accuracies, and of costs."""

    space: str = "minichain"
    """name of the search space"""
    fix: tuple[str, ...] = ()
    """choices with one value: connections=residual depth=3 (width means every width_<i>)"""
    narrow: tuple[str, ...] = ()
    """choices with fewer values: width=16,32 learning_rate=1e-3,1e-2"""
    hyper: tuple[str, ...] = ()
    """training hyperparameters that the space leaves open: learning_rate=0.1 batch_size=128"""
    epochs: int = 27
    """passes over the training images"""
    seeds: int = 2
    """trainings of each network, from seeds 0, 1, …; --resume may add some"""
    name: str | None = None
    """of the table; default: SPACE-DATASET"""
    out: Path | None = None
    """folder of the record and the table; default: runs/table-NAME"""
    resume: bool = False
    """go on with the trainings in that folder"""
    engine: Literal["ray", "local"] = "ray"
    """ray: trainings side by side, on this machine or a cluster; local: one after the other in this process"""
    workers: int | None = None
    """trainings side by side (ray); default: one an accelerator, else one a CPU core"""
    cpus_per_worker: int | None = None
    """CPU threads of a worker (ray); default: the cores divided by the workers"""
    gpus_per_worker: float | None = None
    """accelerators of a worker (ray); default: 1 where there are any"""
    address: str | None = None
    """a running Ray cluster to use (ray), such as auto; default: this machine"""
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)


def main(config: Config) -> None:
    # Here: --help does not wait for jax and the networks.
    from nas.objectives.train import TrainSetup
    from nas.run.tabulation import narrowing, notes_of, table_of, tabulate
    from nas.tables import write_table
    from nas.tables.shipped import write_sheet
    from nas.tables.table import SUFFIX
    from search_spaces import spaces_with

    shared = {f.name for f in dataclasses.fields(SearchOptions)}
    options = SearchOptions(
        **{f.name: getattr(config, f.name) for f in dataclasses.fields(Config) if f.name in shared}
    )
    spaces = spaces_with(config.space)
    space = narrowed(options, spaces)
    name = config.name or f"{Path(config.space).stem}-{config.data.label}".replace("/", "_")
    out = config.out or Path("runs") / f"table-{name}"
    setup = TrainSetup(
        space, config.data, config.training, epochs=config.epochs, defaults=hyper_defaults(options, space)
    )
    done = tabulate(
        setup,
        out,
        seeds=config.seeds,
        cluster=None if config.engine == "local" else cluster_of(options),
        resume=config.resume,
    )
    table = table_of(
        done,
        space,
        name=name,
        seeds=config.seeds,
        within=narrowing(spaces[config.space], space),
        notes=notes_of(done, command()),
    )
    path = out / f"{name}{SUFFIX}"
    sha256 = write_table(table, path)
    sheet = write_sheet(table, path, sha256)
    failed = f", {len(done.failed):,} trainings failed" if done.failed else ""
    print(f"{len(table.archs):,} architectures from {config.seeds} seeds{failed}: {path}, sha256 {sha256}")
    print(sheet)


def command() -> str:
    """The line that makes this table from nothing: however often it was resumed."""
    words = [word for word in sys.argv[1:] if word != "--resume"]
    return shlex.join(["python", "scripts/make_table.py", *words])


if __name__ == "__main__":
    run(main, compute=True)
