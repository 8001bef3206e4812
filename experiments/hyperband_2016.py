"""Hyperband beside random search: python experiments/hyperband_2016.py --scale smoke

Li, Jamieson, DeSalvo, Rostamizadeh and Talwalkar (2016, 2018) search the learning rate, its reductions, the L2 penalty
of each layer and the response normalisation of a three-layer network on CIFAR-10 and find good settings more than 20
times sooner than random search, because most settings can be told to be bad long before their training ends.

Two experiments, each recorded so that it can be killed and resumed:

``table``: the shipped table ``minichain``, 360 networks trained completely (`scripts/make_table.py`; its curves are
those of real trainings, from two seeds). Hyperband, successive halving with the most halvings and ASHA (R = 27
epochs, eta = 3) against random search at equal simulated cost, from hundreds of seeds: what it costs until the
incumbent, chosen by validation, has a given test regret, and how many times less that is than for random search.
``curves.png`` shows what makes it hard: curves cross.

``convnet``: the paper's own space (`search_spaces.cuda_convnet`) and protocol: a unit of budget is 100 steps of 100
images, R = 300 units, eta = 4, 40,000 images to train on, 10,000 to validate and 10,000 to test; one pass of
Hyperband against random search with the same budget and with twice that, ten repetitions. What was found is trained
again, for R units on training and validation images, and tested; the paper tests the training that was found.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from _experiment import (
    NO_VALUE,
    Claim,
    ExperimentConfig,
    Interval,
    Number,
    result_folder,
    resumes,
    run,
    style,
    write_results,
)
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from nas.data.config import DataConfig
from nas.record import Run
from nas.record.comparison import Comparison, is_comparison
from nas.report.plots import anytime_figure, regret_figure
from nas.report.report import write_comparison
from nas.report.result_table import format_mean, format_percent, markdown
from nas.report.statistics import cost_to_reach, incumbent, mean_interval, spearman, speed_up
from nas.run import simulated
from nas.run.options import SearchOptions
from nas.run.plan import pass_epochs
from nas.run.search import search, session
from nas.strategies.hyperband import HyperbandConfig
from nas.tables import Table, load_table
from nas.training.config import TrainingConfig
from search_spaces import SPACES, spaces_with

CLAIM = Claim(
    experiment="hyperband_2016",
    paper="Li, Jamieson, DeSalvo, Rostamizadeh, Talwalkar: Hyperband: a novel bandit-based approach to hyperparameter "
    "optimization, JMLR 18 (2018); ICLR 2017, arXiv 1603.06560 (2016)",
    where="section 4.1, CIFAR-10 (figure 6 of the JMLR version)",
    says="Hyperband is more than 20 times faster than random search to its first good result",
    hardware_hours="one repetition of R = 300 is about 7,500 units of 10,000 images; GPU hours not stated",
    past="table, --scale cpu (200 searches each): to a test regret of 2, 1 and 0.5 points Hyperband needs 17.9 (95 % "
    "interval 12.9 to 27.2), 14.3 (6.9 to 20.4) and 2.2 (1.6 to 3.4) times less than random search, successive halving "
    "17.9, 14.3 and 4.3 (3.1 to 6.6), ASHA 1.7, 2.5 and 2.8; less than half of any come to 0.2 points within 100 "
    "trainings. Two cores shared with other work, 2 minutes. convnet, --scale cpu (3 repetitions, 8 minutes): "
    "best validation 28.07 ± 39.89 % with Hyperband, 31.25 ± 33.66 with random search; 14 and 12 trials "
    "diverged; no difference can be told. convnet, --scale paper: not run",
    numbers=(
        Number(
            "speed_up_2",
            "times faster than random search to a test regret of 2 points",
            side="above",
            bound=1,
        ),
        Number("over_20", "the same, against the 20 of the claim", side="above", bound=20),
        Number("speed_up_1", "times faster to a regret of 1 point", side="above", bound=1),
        Number("speed_up_0.5", "times faster to a regret of half a point", side="above", bound=1),
    ),
    covers=(
        "nas/strategies/hyperband.py",
        "nas/strategies/successive_halving.py",
        "nas/strategies/random.py",
    ),
)
TABLE = "minichain"
STRATEGIES = ("random", "successive_halving", "hyperband", "asha")
REGRETS = (0.02, 0.01, 0.005, 0.002)  # of test accuracy


@dataclasses.dataclass(frozen=True)
class Convnet:
    """The scale of the paper's own experiment: R ``units`` of ``steps`` steps, networks of ``width``."""

    data: DataConfig
    width: int
    steps: int
    units: int
    eta: int
    repetitions: int
    test_seeds: int = 1


@dataclasses.dataclass(frozen=True)
class Scale:
    seeds: int
    """searches of each strategy over the table"""
    trainings: float
    """simulated cost of each, in trainings of mean cost"""
    convnet: Convnet


SCALES = {
    "smoke": Scale(20, 30, Convnet(DataConfig("digits"), 8, 5, 4, 4, 1)),
    # 10,000 images to train on, of 16 x 16 pixels, 2,000 to validate; R is 1,600 steps, the paper's 30,000.
    "cpu": Scale(
        200,
        100,
        Convnet(DataConfig("cifar10", image_size=16, subset=12_000, valid_fraction=1 / 6), 8, 100, 16, 4, 3),
    ),
    "paper": Scale(200, 100, Convnet(DataConfig("cifar10", valid_fraction=0.2), 32, 100, 300, 4, 10)),
}


@dataclasses.dataclass(frozen=True)
class Config(ExperimentConfig):
    """Hyperband against random search, over the shipped table and in the paper's own space."""

    part: Literal["both", "table", "convnet"] = "both"
    """which of the two experiments"""
    engine: Literal["ray", "local"] = "ray"
    """convnet: trainings side by side, or one after the other in this process"""


def main(config: Config) -> None:
    out = result_folder(config, "hyperband_2016")
    scale = SCALES[config.scale]
    texts: list[str] = []
    figures: dict[str, Figure] = {}
    numbers: dict[str, Interval] = {}
    if config.part != "convnet":
        table = load_table(TABLE)
        compared = over_table(scale, out / "table", resume=config.resume)
        found = speed_ups(compared)
        texts += ["## Over the table", crossing_text(crossing(table)), speed_ups_text(found)]
        named = {number.name for number in CLAIM.numbers}
        for one in found:
            if one.strategy == "hyperband" and (name := f"speed_up_{100 * one.regret:g}") in named:
                numbers[name] = Interval(one.factor, one.low, one.high, scale.seeds)
        numbers |= {"over_20": numbers["speed_up_2"]} if "speed_up_2" in numbers else {}
        figures["curves.png"] = draw_curves(table)
        figures["regret.png"] = regret_figure(compared.complete(), compared.optimum, compared.budget_seconds)
    if config.part != "table":
        runs = with_convnets(scale.convnet, out / "convnet", config)
        texts += ["## In the paper's space", convnet_text(scale.convnet, runs)]
        figure = anytime_figure(dict(runs), "epochs")
        if figure is not None:
            figure.supxlabel(f"units of {scale.convnet.steps} steps of 100 images", fontsize=9.5)
            figures["convnet.png"] = figure
    text = "\n\n".join(part.strip() for part in texts)
    write_results(out, text, figures, config=config, claim=CLAIM, numbers=numbers, seeds=scale.seeds)


# --------------------------------------------------------------------------------------------- over the table


def over_table(scale: Scale, out: Path, *, resume: bool) -> Comparison:
    """Every strategy from every seed, at equal simulated cost; with the usual report in ``out``."""
    options = simulated.TableOptions(
        table=TABLE, strategies=STRATEGIES, seeds=scale.seeds, budget_trainings=scale.trainings
    )
    compared = simulated.compare(options, spaces_with, out, resume=resume and is_comparison(out))
    write_comparison(out)
    return compared


class SpeedUp(NamedTuple):
    """What one strategy costs until its incumbent has a ``regret`` of at most so much.

    ``cost``: the median, in trainings of mean cost, inf where less than half of the searches came there;
    ``reached``: the share that did. ``factor``: how many times less than random search's, with its interval.
    """

    strategy: str
    regret: float
    cost: float
    reached: float
    factor: float
    low: float
    high: float


def speed_ups(compared: Comparison, regrets: Sequence[float] = REGRETS) -> list[SpeedUp]:
    """Of every strategy for every regret, random search first."""
    one = float(compared.config["mean_training_seconds"])
    rows = []
    for regret in regrets:
        costs = {
            name: cost_to_reach([one.trace for one in searches], compared.optimum - regret - 1e-9)
            for name, searches in compared.complete().items()
        }
        for name, cost in costs.items():
            factor = speed_up(costs["random"], cost)
            rows.append(
                SpeedUp(
                    name,
                    regret,
                    float(np.median(cost)) / one,
                    float(np.isfinite(cost).mean()),
                    *(float(np.ravel(part)[0]) for part in factor),
                )
            )
    return rows


def speed_ups_text(rows: Sequence[SpeedUp]) -> str:
    def number(value: float) -> str:
        return "∞" if value == math.inf else f"{value:.1f}"

    def factor(row: SpeedUp) -> str:
        if row.strategy == "random" or math.isnan(row.factor):
            return NO_VALUE
        ends = [NO_VALUE if math.isnan(end) else number(end) for end in (row.low, row.high)]
        return f"{number(row.factor)} ({' to '.join(ends)})"

    lines = [
        ["Strategy", "Test regret, points", "Median cost, trainings", "Searches there %", "Times faster"]
    ]
    lines += [
        [row.strategy, f"{100 * row.regret:g}", number(row.cost), f"{100 * row.reached:.0f}", factor(row)]
        for row in rows
    ]
    return markdown(lines)


class Crossing(NamedTuple):
    """How validation after ``epoch`` ranks the networks, beside how it does after the last: means over seeds.

    ``among_best``: among the quarter that is best in the end. ``best_of_third``: the final rank of the best network
    among the best third at ``epoch``. ``winner``: the final rank of the one that leads at ``epoch``.
    """

    epoch: int
    correlation: float
    among_best: float
    best_of_third: float
    winner: float


def crossing(table: Table, epochs: Sequence[int] = (1, 3, 9, 27)) -> list[Crossing]:
    column = table.task().valid
    last = table.at(column)
    seeds = range(last.shape[1])
    # The best is 1; of equals each has the mean rank's upper end, so that a tie is no victory.
    ranks = [1 + (last[None, :, k] > last[:, None, k]).sum(axis=1) for k in seeds]
    found = []
    for epoch in epochs:
        now = table.at(column, epoch)
        order = [np.argsort(-now[:, k], kind="stable") for k in seeds]
        third = len(now) // 3
        quarter = [np.argsort(-last[:, k], kind="stable")[: max(2, len(now) // 4)] for k in seeds]
        found.append(
            Crossing(
                epoch,
                float(np.mean([rank_correlation(now[:, k], last[:, k]) for k in seeds])),
                float(np.mean([rank_correlation(now[quarter[k], k], last[quarter[k], k]) for k in seeds])),
                float(np.mean([ranks[k][order[k][:third]].min() for k in seeds])),
                float(np.mean([ranks[k][order[k][0]] for k in seeds])),
            )
        )
    return found


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    return float(spearman(x, y, resamples=2).value)


def crossing_text(rows: Sequence[Crossing]) -> str:
    head = ["Epoch", "Spearman with the last", "Among the final best quarter"]
    lines = [[*head, "Final rank of its leader", "Best final rank in its best third"]]
    for row in rows:
        correlations = [f"{row.correlation:.2f}", f"{row.among_best:.2f}"]
        lines.append([str(row.epoch), *correlations, format_mean(row.winner), format_mean(row.best_of_third)])
    return markdown(lines)


def draw_curves(table: Table) -> Figure:
    """Validation errors of all networks over epochs, those that lead after 1, 3, 9 and the last in colour; and
    the rank correlation of each epoch with the last, also among the networks that are best in the end."""
    column = table.task().valid
    curve = table.curve(column)
    errors = 100 * (1 - curve.values[:, 0].astype(float))
    every = curve.epochs
    figure = Figure(figsize=(8.4, 3.7), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
    left.plot(every, errors.T, color="0.82", linewidth=0.4, zorder=1)
    shown: dict[int, list[int]] = {}
    for epoch in dict.fromkeys((1, 3, 9, every[-1])):
        shown.setdefault(int(np.argmin(errors[:, every.index(epoch)])), []).append(epoch)
    for (row, led), colour in zip(shown.items(), ("#D55E00", "#E69F00", "#009E73", "#0072B2"), strict=False):
        label = f"leads after {', '.join(map(str, led))}"
        left.plot(every, errors[row], color=colour, linewidth=1.9, zorder=2, label=label)
    left.set_xscale("log")
    left.set_yscale("log")
    left.set_ylim(0.8 * errors.min(), 60)
    left.yaxis.set_major_locator(FixedLocator([2, 3, 5, 10, 20, 40]))
    left.yaxis.set_major_formatter("{x:g}")
    left.set_ylabel("validation error (%), seed 0")
    rows = crossing(table, every)
    for label, colour, values in (
        ("all networks", "#0072B2", [row.correlation for row in rows]),
        ("the final best quarter", "#D55E00", [row.among_best for row in rows]),
    ):
        right.plot(every, values, color=colour, linewidth=1.9, marker="o", markersize=3, label=label)
    right.set_xscale("log")
    right.set_ylim(min(0, *(row.among_best for row in rows)), 1.02)
    right.legend(frameon=False, fontsize=8.5)
    right.set_ylabel(f"rank correlation with epoch {every[-1]}")
    for axes in (left, right):
        axes.xaxis.set_major_locator(FixedLocator([1, 3, 9, 27]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("epoch")
        style(axes)
    left.yaxis.set_minor_locator(NullLocator())
    left.legend(frameon=False, fontsize=8.5)
    return figure


# --------------------------------------------------------------------------------------- in the paper's space


def with_convnets(scale: Convnet, out: Path, config: Config) -> dict[str, list[Run]]:
    """One pass of Hyperband, and random search for twice its units, from every seed: by strategy."""
    runs: dict[str, list[Run]] = {"hyperband": [], "random": []}

    def options(strategy: str, seed: int) -> SearchOptions:
        plan = HyperbandConfig(seed=seed, epochs=scale.units, eta=scale.eta)
        return SearchOptions(
            space="cuda_convnet",
            fix=(f"width={scale.width}",),
            total_epochs=2 * pass_epochs(plan) if strategy == "random" else None,
            engine=config.engine,
            test_seeds=scale.test_seeds,
            data=dataclasses.replace(scale.data, data_dir=config.data_dir),
            training=TrainingConfig(steps_per_epoch=scale.steps, evaluate_batch_size=500),
            plan=plan,
        )

    with session(options("random", 0)):
        for seed in range(scale.repetitions):
            for strategy, found in runs.items():
                folder = out / f"{strategy}-{seed}"
                resume = resumes(config, folder)
                found.append(search(options(strategy, seed), strategy, folder, SPACES, resume=resume))
    return runs


class Found(NamedTuple):
    """What a search had by ``units``: the best validation accuracy."""

    units: float
    valid_accuracy: float


def best_by(one: Run, units: float) -> Found:
    costs, best = incumbent(one, "epochs")
    k = int(np.searchsorted(costs, units, side="right")) - 1
    return Found(float(costs[k]), float(best[k])) if k >= 0 else Found(0.0, math.nan)


def units_to(one: Run, accuracy: float) -> float:
    """Units until the best validation accuracy is at least so much; inf where it never is."""
    costs, best = incumbent(one, "epochs")
    reached = best >= accuracy
    return float(costs[reached.argmax()]) if reached.any() else math.inf


def convnet_text(scale: Convnet, runs: dict[str, list[Run]]) -> str:
    """Validation at equal budgets, the test of what was found, and the units to random search's results."""
    plan = HyperbandConfig(epochs=scale.units, eta=scale.eta)
    once = pass_epochs(plan)
    lines = [["Search", "Units", "Best valid. %", "Test %"]]
    for label, strategy, units in (
        ("hyperband", "hyperband", once),
        ("random", "random", once),
        ("random, twice the budget", "random", 2 * once),
    ):
        valid = mean_interval([best_by(one, units).valid_accuracy for one in runs[strategy]])
        tests = [final.test_accuracy for one in runs[strategy] for final in one.finals if final.error is None]
        whole = label != "random" and bool(tests)
        lines.append(
            [
                label,
                f"{units}",
                format_percent(valid),
                format_percent(mean_interval(tests)) if whole else NO_VALUE,
            ]
        )
    notes = []
    for units, said in ((scale.units, "its first training"), (once, "one budget"), (2 * once, "two budgets")):
        factors = [
            units_to(slow, target) / units_to(fast, target)
            for slow, fast in zip(runs["random"], runs["hyperband"], strict=True)
            if not math.isnan(target := best_by(slow, units).valid_accuracy)
        ]
        if factors:
            shown = ", ".join("never" if factor == 0 else f"{factor:.1f}" for factor in factors)
            notes.append(f"times sooner where random search is after {said}, a repetition each: {shown}")
    failed = {name: sum(len(one.failed) for one in found) for name, found in runs.items()}
    notes.append(
        f"{scale.repetitions} repetitions, R = {scale.units} units of {scale.steps} steps of 100 images of "
        f"{scale.data.dataset}, eta = {scale.eta}, width {scale.width}; trials that diverged: "
        + ", ".join(f"{name} {count}" for name, count in failed.items())
    )
    return markdown(lines) + "\n" + "\n".join(f"- {note}" for note in notes)


if __name__ == "__main__":
    run(main, compute=True)
