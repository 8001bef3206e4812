"""Does ASHA scale linearly with the number of workers? python experiments/asha_2020.py --scale cpu

Li et al. (2020) stop bad trials early without ever waiting for a rung to fill, so that workers are never idle, and
report that ASHA scales linearly with the number of workers, with an experiment of 500. Two claims are in that, and
they are measured apart, on a simulated cluster (`nas.run.simulated_cluster`) over the shipped table ``minichain`` (360
networks trained for R = 27 epochs; curves and seconds of real trainings): how many times faster the same work is done,
and how many times sooner the incumbent, chosen by validation, has a given test regret. The second cannot go on for
ever: what a network is worth shows only after some epochs, however many are trained at once. Beside ASHA: random
search, which is as parallel as can be, and Hyperband, which waits for its rungs but begins the next bracket meanwhile.

Different from the paper:
- A table of 360 networks in place of six tasks with continuous choices; 256 workers train many networks twice.
- ASHA's stopping variant (`nas.strategies.asha`), where a trial goes on at once if it is among the best third so far;
  in the paper's a trial pauses and may be promoted later.
- Workers are all alike, begin at once, and nothing fails; `scripts/compare.py --objective table --help` has the rest.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from _experiment import Claim, ExperimentConfig, Interval, Number, result_folder, run, write_results

from nas.record.comparison import Comparison, worker_folders
from nas.report.result_table import format_seconds, markdown
from nas.report.scaling import HALF, Scaling, scaling
from nas.report.scaling_plots import scaling_figure
from nas.report.scaling_report import write_workers
from nas.report.statistics import cost_to_reach, speed_up
from nas.run.simulated import TableOptions, compare_workers
from search_spaces import spaces_with

CLAIM = Claim(
    experiment="asha_2020",
    paper="Li, Jamieson, Rostamizadeh, Gonina, Ben-tzur, Hardt, Recht, Talwalkar: A system for massively parallel "
    "hyperparameter tuning, MLSys 2020, arXiv 1810.05934",
    where="abstract; sections 4.2 (25 workers) and 4.3 (500 workers)",
    says="ASHA scales linearly with the number of workers in distributed settings, shown with up to 500 workers",
    hardware_hours="clusters of 16, 25 and 500 workers; hours a task",
    numbers=(
        Number(
            "work", "speed-up of the same work over linear, with the most workers", side="above", bound=0.5
        ),
        Number("regret_1", "the same to a test regret of 1 point", side="above", bound=0.5),
        Number("regret_0.5", "the same to half a point", side="above", bound=0.5),
        Number("regret_0.25", "the same to a quarter of a point", side="above", bound=0.5),
    ),
    past="--scale cpu, 40 searches each, about 3 CPU minutes: 256 workers do the same work 238 times faster (93 % of "
    "linear; Hyperband 236, random search 236). To a regret of 0.25 points ASHA is 4.1, 13.0, 26.1 and 31.3 times "
    "sooner with 4, 16, 64 and 256 workers, Hyperband 4.0, 16.1, 46.4 and 52.8, random search 4.0, 16.5, 66.2 and 193: "
    "near-linear up to 16 workers, not to hundreds. ASHA with 256 is there after 1.5 s, less than one training's 2.1",
    covers=("nas/run/simulated_cluster.py", "nas/strategies/asha.py"),
)
TABLE = "minichain"
STRATEGIES = ("asha", "hyperband", "random")
REGRETS = (0.01, 0.005, 0.0025)  # of test accuracy


@dataclasses.dataclass(frozen=True)
class Scale:
    seeds: int
    """searches of each strategy on each number of workers"""
    trainings: float
    """what all workers of a search do together, in trainings of mean cost"""
    workers: tuple[int, ...]


SCALES = {
    "smoke": Scale(5, 40, (1, 4, 16)),
    "cpu": Scale(40, 300, (1, 4, 16, 64, 256)),
    "paper": Scale(200, 1000, (1, 4, 16, 25, 64, 256, 500)),
}


@dataclasses.dataclass(frozen=True)
class Config(ExperimentConfig):
    """Speed-ups of ASHA, Hyperband and random search by the number of simulated workers."""

    processes: int | None = None
    """searches side by side; default: one a CPU core"""


class SpeedUp(NamedTuple):
    """How many times sooner than one worker's the median search of ``workers`` has a test regret of ``regret``.

    ``seconds``: when, inf where less than half of the searches come there.
    """

    strategy: str
    workers: int
    regret: float
    seconds: float
    factor: float
    low: float
    high: float


def main(config: Config) -> None:
    scale = SCALES[config.scale]
    out = result_folder(config, "asha_2020")
    options = TableOptions(
        table=TABLE,
        strategies=STRATEGIES,
        seeds=scale.seeds,
        budget_trainings=scale.trainings,
        workers=scale.workers,
        processes=config.processes,
    )
    folder = out / "searches"
    compared = compare_workers(
        options, spaces_with, folder, resume=config.resume and bool(worker_folders(folder))
    )
    report = write_workers(folder)
    found = speed_ups(compared)
    rows = scaling(compared)
    work = [["Strategy", "Workers", "Utilised %", "Same work, times faster"]]
    work += [
        [
            row.strategy,
            f"{row.workers:,}",
            f"{100 * row.utilisation:.1f}",
            f"{float(row.all_speed_up.value):.1f}",
        ]
        for row in rows
    ]
    text = "\n\n".join(
        [
            f"## The same work: {scale.trainings:g} trainings of mean cost, {scale.seeds} searches each",
            markdown(work).strip(),
            "## Time to a test regret",
            f"One training of mean cost takes {compared[0].config['mean_training_seconds']:.2f} s.",
            speed_ups_text(found).strip(),
            "\n".join(f"- {line}" for line in verdict(found)),
        ]
    )
    figure = scaling_figure(rows)
    figures = {} if figure is None else {"scaling.png": figure}
    numbers = of_linear(rows, found)
    write_results(out, text, figures, config=config, claim=CLAIM, numbers=numbers, seeds=scale.seeds)
    for path in report.files:
        print(path)


def speed_ups(compared: Sequence[Comparison], regrets: Sequence[float] = REGRETS) -> list[SpeedUp]:
    """Of every strategy to every regret, by rising number of workers."""
    rows = []
    for name in compared[0].strategies:
        for regret in regrets:
            reached = {
                each.workers: cost_to_reach(
                    [search.wall_trace for search in each.complete()[name]], each.optimum - regret - 1e-9
                )
                for each in compared
            }
            first = reached[compared[0].workers]
            for workers, seconds in reached.items():
                factor = speed_up(first, seconds)
                rows.append(
                    SpeedUp(
                        name,
                        workers,
                        regret,
                        float(np.median(seconds)),
                        *(float(np.ravel(part)[0]) for part in factor),
                    )
                )
    return rows


def of_linear(rows: Sequence[Scaling], found: Sequence[SpeedUp]) -> dict[str, Interval]:
    """ASHA's speed-ups with the most workers as parts of linear ones, by the claim's names; those that are known."""
    last = [row for row in rows if row.strategy == "asha"][-1]
    many, seeds = last.workers, last.searches
    numbers: dict[str, Interval] = {}

    def note(name: str, value: float, low: float, high: float) -> None:
        if all(map(math.isfinite, (value, low, high))):
            numbers[name] = Interval(value / many, low / many, high / many, seeds)

    value, low, high = (float(np.ravel(part)[0]) for part in last.all_speed_up)
    note("work", value, low, high)
    for row in found:
        if (row.strategy, row.workers) == ("asha", many):
            note(f"regret_{100 * row.regret:g}", row.factor, row.low, row.high)
    return numbers


def speed_ups_text(rows: Sequence[SpeedUp]) -> str:
    lines = [
        [
            "Strategy",
            "Test regret, points",
            "Workers",
            "Median s",
            "Times sooner",
            "Of linear %",
        ]
    ]
    for row in rows:
        known = math.isfinite(row.factor) and math.isfinite(row.seconds)
        ends = f" [{row.low:.1f}, {row.high:.1f}]" if row.workers > 1 and math.isfinite(row.low) else ""
        lines.append(
            [
                row.strategy,
                f"{100 * row.regret:g}",
                f"{row.workers:,}",
                format_seconds(row.seconds) if math.isfinite(row.seconds) else "∞",
                f"{row.factor:.1f}{ends}" if known else "–",
                f"{100 * row.factor / row.workers:.0f}" if known else "–",
            ]
        )
    return markdown(lines)


def verdict(rows: Sequence[SpeedUp]) -> list[str]:
    """For ASHA and each regret, up to how many workers its speed-up is at least half of linear."""
    said = []
    for regret in dict.fromkeys(row.regret for row in rows):
        last = None
        for row in (row for row in rows if row.strategy == "asha" and row.regret == regret):
            if not (math.isfinite(row.seconds) and row.factor >= HALF * row.workers):
                break
            last = row
        if last is None:
            said.append(
                f"ASHA to {100 * regret:g} points: less than half of the searches of one worker come there"
            )
        else:
            said.append(
                f"ASHA to {100 * regret:g} points: at least half of linear up to {last.workers:,} workers "
                f"({last.factor:.1f} times sooner)"
            )
    return said


if __name__ == "__main__":
    run(main, compute=True)
