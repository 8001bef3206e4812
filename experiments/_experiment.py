"""What the experiment files share: scales, command line, output folder, result, training, tables and axes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from _ledger import Claim, Number, difference, exactly, leave_result, of_images
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nas.data.config import DataConfig
from nas.errors import InputError
from nas.record import Run, is_run
from nas.report.plots import save
from nas.report.result_table import NO_VALUE
from nas.report.statistics.intervals import Interval, mean_interval
from nas.run.command_line import run
from nas.run.training import train_to_end
from nas.space import Architecture, SearchSpace
from nas.training.config import TrainingConfig

__all__ = [
    "NO_VALUE",
    "Claim",
    "ExperimentConfig",
    "Interval",
    "Number",
    "describe_images",
    "difference",
    "exactly",
    "leave_result",
    "mean_and_deviation",
    "mean_interval",
    "of_images",
    "only_planned",
    "recorded_training",
    "result_folder",
    "resumes",
    "run",
    "style",
    "whole_numbers",
    "write_results",
]


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
    """Options that every experiment has."""

    scale: Literal["smoke", "cpu", "paper"] = "smoke"
    """smoke: seconds, to see that it works; cpu: shows the effect on two cores; paper: the published protocol"""
    out: Path | None = None
    """folder of the results; default: runs/EXPERIMENT-SCALE"""
    resume: bool = False
    """go on with the results in that folder"""
    plan: bool = False
    """say what the scale's trainings take on a slice of TPUs, by the TPU compiler; nothing is trained"""
    rehearse: bool = False
    """run the scale's own programs for two steps and an evaluation on few images, saving and resuming"""
    slice: str = "v5e:2x2"
    """the slice that --plan is for"""
    price: float = 1.2
    """dollars a chip-hour (--plan)"""
    libtpu: Path | None = None
    """where the TPU compiler lies (--plan); default: NAS_LIBTPU_DIR, else ~/.cache/nas/libtpu"""
    data_dir: str | None = None
    """folder of prepared TFDS sets; default: TFDS_DATA_DIR, else ~/tensorflow_datasets"""


def only_planned(config: ExperimentConfig, script: str, works: Callable[[], Sequence[Any]]) -> bool:
    """Whether ``script`` is not to be done: --plan or --rehearse told of its ``works`` (`_plan.Work`)."""
    if not (config.plan or config.rehearse):
        return False
    from _plan import PlanOptions, plan, rehearse

    options = PlanOptions(config.slice, config.price, config.libtpu, config.data_dir)
    if config.rehearse:
        rehearse(works(), options)
    if config.plan:
        plan(script, works(), options)
    return True


def result_folder(config: ExperimentConfig, experiment: str) -> Path:
    """The folder of the results. Raises InputError unless it is new or empty, or its results are resumed."""
    if config.plan or config.rehearse:
        raise InputError("plan: this experiment is not made of trainings that could be planned or rehearsed")
    out = config.out or Path("runs") / f"{experiment}-{config.scale}"
    if config.resume and not out.is_dir():
        raise InputError(f"{out}: nothing to resume there; start it without --resume")
    if not config.resume and out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out}: is not empty; go on with --resume or choose another --out")
    return out


def resumes(config: ExperimentConfig, folder: Path) -> bool:
    """Whether the run in ``folder``, one of those that the experiment consists of, is resumed or started."""
    return config.resume and is_run(folder)


def recorded_training(
    config: ExperimentConfig,
    space: SearchSpace,
    arch: Architecture,
    data: DataConfig,
    folder: Path,
    *,
    training: TrainingConfig | None = None,
    **more: Any,
) -> Run:
    """`train_to_end` with this experiment's data folder, resumed where it can be. Raises InputError if it fails."""
    done = train_to_end(
        space,
        arch,
        dataclasses.replace(data, data_dir=config.data_dir),
        training or TrainingConfig(),
        folder,
        resume=resumes(config, folder),
        **more,
    )
    if error := next((final.error for final in done.finals if final.error), None):
        raise InputError(f"{folder}: {error}")
    return done


def write_results(
    out: Path,
    text: str,
    figures: Mapping[str, Figure],
    others: Sequence[str] = (),
    *,
    config: ExperimentConfig,
    claim: Claim,
    numbers: Mapping[str, Interval],
    seeds: int,
) -> None:
    """``text`` as table.md and the figures by file name, in ``out``; prints the text and every file's path.

    ``others`` are files of results that are there already. ``numbers`` measured for the ``claim`` of the experiment
    that calls this, over so many ``seeds``, go to result.json (`_ledger.leave_result`).
    """
    (out / "table.md").write_text(text + "\n")
    for name, figure in figures.items():
        save(figure, out / name)
    print(text)
    for name in (*others, "table.md", *figures):
        print(out / name)
    leave_result(out, claim, config.scale, numbers, seeds=seeds, resumed=config.resume)


# --------------------------------------------------------------------------------------------- texts and axes


def mean_and_deviation(percents: Sequence[float] | np.ndarray) -> str:
    """``93.70 ± 0.36``: mean and standard deviation, as many papers give theirs."""
    values = np.asarray(percents)
    return f"{values.mean():.2f} ± {values.std(ddof=1):.2f}"


def describe_images(data: DataConfig) -> str:
    """``3,000 images of cifar10 at 16 pixels``."""
    subset = "" if data.subset is None else f"{data.subset:,} images of "
    size = "" if data.image_size is None else f" at {data.image_size} pixels"
    return f"{subset}{data.dataset}{size}"


def style(axes: Axes, grid: Literal["both", "x", "y"] = "both") -> None:
    """A light grid behind the data, and no frame above and on the right."""
    axes.grid(axis=grid, color="0.9", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def whole_numbers(axes: Axes) -> None:
    """Ticks of the horizontal axis at whole numbers, such as epochs."""
    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True))
