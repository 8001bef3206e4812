"""Random search against a grid, on a network with one hidden layer: python experiments/bergstra_bengio_2012.py

Bergstra and Bengio 2012 train 256 networks with hyperparameters drawn at random on each of several sets of 28x28
images and compare them with a grid of about 100 for each set: about 8 random trials come to what the grid comes
to, because few of the hyperparameters matter, and not the same ones on every set. Here, on each set:

* ``random``: trials drawn from the paper's distributions (section 2.4) without its preprocessing (figure 5).
* ``random, preprocessed``: the same with the pixels as they are, normalised, or by principal components (figure 6).
* ``grid``: 64 trials (100 at ``paper``, as the study compared with) over the four hyperparameters that so many can
  resolve, from end to end of their ranges; the others as is usual (`GRID`). It was fixed before anything was run.

The grid is so a slice of what random trials are drawn from, and whoever chose the slice well gave it a head start.
At ``cpu``, with fewer images, no preprocessing and at most 60 epochs, that may matter: on mnist_rotated, where the
grid won, 46 of the 64 random trials were cut off at 60 epochs (30 of the grid's), and batches of 20, fixed in the
grid, make five times the updates of the 100 that half of the random trials have. Why it won was not tested.

All trials of an experiment are drawn beforehand, nothing is chosen by test accuracy, and every trial is tested once:
the test accuracy of the best by validation, and how sure that is, are the paper's equations 5 and 6
(`nas.report.statistics.experiments`). efficiency.png is its random-experiment efficiency curve; relevance.png its
figure 7, the relevance of each hyperparameter to validation accuracy: 1 over the length scale of a Gaussian process
with a squared exponential kernel (scikit-learn's), refitted to random 80 % of the trials.

The networks, their training and the space are in `_hidden_layer`. A trial trains for at least so many epochs, no
longer than twice the epochs that its best validation accuracy took, and at most so many (`Patience`); it is tested
with the weights that had that accuracy. A trial whose loss is no longer a number has failed, and is tested with the
weights that were best before.

Different from the paper: every trial has a seed of its own (there, one of three); a pixel that never varies in
training is dropped by normalisation, as is a component without variance. The sets are made by code (see
`nas.data.generated`, and what is left out there: those with photographs in the background).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _experiment import (
    NO_VALUE,
    Claim,
    ExperimentConfig,
    Interval,
    Number,
    difference,
    result_folder,
    resumes,
    run,
    style,
    write_results,
)
from _hidden_layer import SPACE, HiddenLayerObjective, Problem
from matplotlib.figure import Figure
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

from nas.data.config import DataConfig
from nas.record import Record, Run
from nas.report.statistics import Experiments, efficiency_curve, experiments
from nas.run import local
from nas.run.driver import Listener
from nas.run.progress import Progress
from nas.space import Architecture, Categorical, SearchSpace
from nas.strategies import STRATEGIES, Strategy, StrategyConfig
from nas.training.stored import use_compilation_cache
from nas.trial import Trial

CLAIM = Claim(
    experiment="bergstra_bengio_2012",
    paper="Bergstra, Bengio: Random search for hyper-parameter optimization, JMLR 13, 2012",
    where="figures 5, 6 and 7",
    says="random searches of 8 trials match or outperform grids of about 100 trials; with preprocessing among the "
    "choices, 64 find better models; few hyperparameters matter, and not the same ones on every set",
    hardware_hours="not stated",
    past="--scale cpu (1,000 training images of rectangles, 2,000 of the others; 64 trials, one seed, 46 minutes with "
    "other work): test accuracy of the best, grid and random, rectangles 87.73 ± 1.01 and 89.79 ± 1.88 %, convex 78.51 "
    "± 0.90 and 79.23 ± 0.96, mnist_rotated 71.32 ± 0.79 and 66.25 ± 2.14; random experiments of 8 trials match the "
    "grid on rectangles, of 64 (one experiment, within a deviation) on convex, none on mnist_rotated. --scale paper: "
    "not run",
    numbers=tuple(
        Number(f"{name}_gain", f"{name}: best of random search less best of the grid, points", side="above")
        for name in ("rectangles", "convex", "mnist_rotated")
    ),
)

GRID = ("preprocessing=raw", "activation=tanh", "weights=uniform", "scale=both_fans", "batch_size=20")


@dataclasses.dataclass(frozen=True)
class Scale:
    """How much of it; ``grid``: points of hidden units, learning rate, start of annealing, and L2 beside none."""

    sets: tuple[DataConfig, ...]
    trials: int
    grid: tuple[int, int, int, int]
    least_epochs: int
    most_epochs: int
    test_images: int
    arms: tuple[str, ...] = ("grid", "random", "random, preprocessed")
    fits: int = 10
    """Gaussian processes a set"""


def small(name: str) -> DataConfig:
    return DataConfig(name, subset=2_500, valid_fraction=0.2)


MNIST_SETS = ("mnist_basic", "mnist_rotated", "mnist_background_random")
SCALES = {
    "smoke": Scale(
        (DataConfig("rectangles"),), 8, (2, 2, 1, 1), 3, 6, 10_000, arms=("grid", "random"), fits=2
    ),
    "cpu": Scale(
        (DataConfig("rectangles"), small("convex"), small("mnist_rotated")),
        64,
        (4, 4, 2, 1),
        20,
        60,
        10_000,
        arms=("grid", "random"),
    ),
    "paper": Scale(
        tuple(DataConfig(name) for name in (*MNIST_SETS, "rectangles", "convex")),
        256,
        (5, 5, 2, 1),
        100,
        1000,
        50_000,
        fits=50,
    ),
}


@dataclasses.dataclass(frozen=True)
class Config(ExperimentConfig):
    """Random search and a grid on the same space; table.md, efficiency.png and relevance.png."""

    seed: int = 0
    """of the trials drawn, their weights and the order of the images"""


def grid_of(scale: Scale) -> SearchSpace:
    hidden, rate, anneal, l2 = scale.grid
    points = {"hidden": hidden, "learning_rate": rate, "anneal_start": anneal, "l2": l2}
    return SPACE.restrict(fix=GRID).discretise(points)


def space_of(arm: str, scale: Scale) -> SearchSpace:
    if arm == "grid":
        return grid_of(scale)
    return SPACE if "preprocessed" in arm else SPACE.restrict(fix=("preprocessing=raw",))


# ------------------------------------------------------------------------------------------------- trials


class Patience:
    """The trials of ``strategy``, each trained on for as long as its validation accuracy goes on improving.

    A trial's budget is ``least`` epochs at first, then twice the epochs that its best validation accuracy took, as
    often as that grows, and at most ``most``. Accuracies that do not exceed ``initial``, that of the untrained
    network, are no improvement.
    """

    def __init__(self, strategy: Strategy, least: int, most: int, initial: float) -> None:
        self._strategy = strategy
        self._least, self._most, self._initial = least, most, initial
        self._promoted: list[Trial] = []

    def ask(self, arch: Architecture | None = None) -> Trial | None:
        if self._promoted:
            return self._promoted.pop(0)
        trial = self._strategy.ask(arch)
        return None if trial is None else trial.replace(budget=min(self._least, self._most))

    def candidates(self) -> Iterator[Architecture]:
        return iter(()) if self._promoted else self._strategy.candidates()

    def tell(self, trial: Trial) -> None:
        budget = min(2 * best_epoch(trial, self._initial), self._most)
        if trial.status != "failed" and budget > trial.spent:
            self._promoted.append(trial.replace(budget=budget))
        else:
            self._strategy.tell(trial)

    @property
    def paused(self) -> frozenset[int]:
        return self._strategy.paused | {trial.id for trial in self._promoted}


def best_epoch(trial: Trial, initial: float) -> int:
    """The epoch with the best validation accuracy, the first of equals; 0 where none exceeds ``initial``."""
    return int(np.argmax([initial, *(m.valid_accuracy for m in trial.measurements)]))


def search_and_test(
    strategy: Strategy, problem: Problem, scale: Scale, record: Record, on_event: Listener | None = None
) -> Run:
    """Every trial of ``strategy`` trained, then each one tested with its best weights, all in ``record``."""
    objective = HiddenLayerObjective(problem)
    initial = problem.initial_accuracy
    patient = Patience(strategy, scale.least_epochs, scale.most_epochs, initial)
    local.execute(patient, objective, record, epochs=scale.most_epochs, on_event=on_event)
    for trial in list(record.trials.values())[len(record.finals) :]:
        record.final(objective.final(trial, best_epoch(trial, initial)))
    record.done()
    return record.run()


def run_arm(
    arm: str, problem: Callable[[], Problem], data: DataConfig, scale: Scale, config: Config, folder: Path
) -> Run:
    """All trials of one experiment, recorded in ``folder``."""
    space = space_of(arm, scale)
    strategy = "grid" if arm == "grid" else "random"
    trials = int(space.size().value) if arm == "grid" else scale.trials
    recorded = {
        "space": space.name,
        "strategy": strategy,
        "seed": config.seed,
        "trials": trials,
        "arm": arm,
        "grid": scale.grid,
        "least_epochs": scale.least_epochs,
        "most_epochs": scale.most_epochs,
        "test_images": scale.test_images,
        **data.arguments(),
    }
    opened = (
        Record.resume(folder, recorded, may_differ=("data_dir",), fsync=False)
        if resumes(config, folder)
        else Record.create(folder, recorded, fsync=False)
    )
    with opened as record:
        if record.run().done:
            return record.run()
        plan = StrategyConfig(seed=config.seed, trials=trials, epochs=scale.most_epochs)
        title = f"{data.dataset}: {arm}"
        with Progress(title, planned_epochs=trials * scale.most_epochs) as view:
            return search_and_test(STRATEGIES[strategy](space, plan), problem(), scale, record, view)


# ---------------------------------------------------------------------------------------------- relevance

LENGTHS = (0.05, 100.0)


def relevance(runs: Run, fits: int, seed: int = 0) -> dict[str, np.ndarray]:
    """1 over the length scale of each choice that varies, [fits] (section 3).

    Each choice is one number in [0, 1], on its scale; no penalty is 0 and the penalties go from 0.5 to 1, and
    so with the multiplier of the weights and the energy of the components.
    """
    archs = [final.arch for final in runs.finals]
    points = {
        name: np.array([unit_of(arch, name) for arch in archs]) for name in ("preprocessing", *RELEVANT)
    }
    points = {name: values for name, values in points.items() if np.ptp(values)}
    x = np.stack(list(points.values()), axis=1)
    y = np.array([final.valid_accuracy for final in runs.finals])
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(fits):
        some = rng.permutation(len(y))[: max(2, round(0.8 * len(y)))]
        first = np.exp(rng.uniform(math.log(0.1), math.log(2), x.shape[1]))
        kernel = ConstantKernel(1.0) * RBF(first, LENGTHS) + WhiteKernel(0.1, (1e-4, 1.0))
        model = GaussianProcessRegressor(kernel, normalize_y=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a choice without effect is at its bound
            model.fit(x[some], y[some])
        fitted: Any = model.kernel_
        found.append(np.exp(-fitted.theta[1:-1]))  # logarithms: the constant, the lengths, the noise
    return dict(zip(points, np.transpose(found), strict=True))


RELEVANT = ("learning_rate", "hidden", "anneal_start", "l2", "batch_size", "activation", "weights", "scale")
WITHIN = {"preprocessing": "energy", "scale": "multiplier"}


def unit_of(arch: Architecture, name: str) -> float:
    """See `relevance`."""
    choice: Any = SPACE.choices[name]
    if name == "l2":
        return 0.5 + choice.to_unit(arch["l2"]) / 2 if arch["penalty"] else 0.0
    if not isinstance(choice, Categorical):
        return choice.to_unit(arch[name])
    last = len(choice.values) - 1
    part = choice.values.index(arch[name]) / last
    inner = WITHIN.get(name)
    if inner is None or inner not in arch:
        return part
    within: Any = SPACE.choices[inner]
    return part - (1 - within.to_unit(arch[inner])) / (2 * last)


# ------------------------------------------------------------------------------------------------ results


class Result(NamedTuple):
    """One arm on one set."""

    dataset: str
    arm: str
    run: Run
    curve: tuple[Experiments, ...]
    best: Experiments


def result_of(dataset: str, arm: str, done: Run, valid_images: int, test_images: int) -> Result:
    valid, test = (
        [getattr(final, f"{split}_accuracy") for final in done.finals] for split in ("valid", "test")
    )
    on = {"valid_images": valid_images, "test_images": test_images}
    curve = () if arm == "grid" else efficiency_curve(valid, test, **on)
    return Result(dataset, arm, done, curve, experiments(valid, test, **on))


def as_good(curve: Sequence[Experiments], accuracy: float) -> int | None:
    """The smallest size of an experiment that is as good on average."""
    return next((found.size for found in curve if found.mean.mean() >= accuracy), None)


def main(config: Config) -> None:
    use_compilation_cache()
    scale = SCALES[config.scale]
    out = result_folder(config, "bergstra_bengio_2012")
    results = []
    for data in scale.sets:
        data = dataclasses.replace(data, data_dir=config.data_dir)
        problem = functools.cache(functools.partial(Problem, data, scale.test_images))
        for arm in scale.arms:
            folder = out / f"{data.dataset}-{arm.replace(', ', '-')}"
            done = run_arm(arm, problem, data, scale, config, folder)
            sizes = len(problem().dataset.valid), len(problem().tested)
            results.append(result_of(data.dataset, arm, done, *sizes))
    relevances = {
        result.dataset: relevance(result.run, scale.fits, config.seed)
        for result in results
        if result.arm == "random"
    }
    figures = {"efficiency.png": draw(results), "relevance.png": draw_relevance(relevances)}
    write_results(out, table(results), figures, config=config, claim=CLAIM, numbers=numbers(results), seeds=1)


def numbers(results: Sequence[Result]) -> dict[str, Interval]:
    """Best of random search less best of the grid; intervals by Bergstra and Bengio's deviation of a best."""
    best = {(one.dataset, one.arm): _best(one) for one in results}
    return {
        f"{name}_gain": difference(best[name, "random"], best[name, "grid"])
        for name in ("rectangles", "convex", "mnist_rotated")
        if (name, "random") in best and (name, "grid") in best
    }


def _best(result: Result) -> Interval:
    mean, half = (100 * float(of[0]) for of in (result.best.mean, 1.96 * result.best.deviation))
    return Interval(mean, mean - half, mean + half, 1)


def table(results: Sequence[Result]) -> str:
    """Each arm whole, then how many random trials come to what the grid comes to."""
    rows = [
        "| Data | Search | Trials | Test % of the best | Trials as good as the grid | Epochs | Compile s | All s |",
        "| ---- | ------ | -----: | -----------------: | -------------------------: | -----: | --------: | ----: |",
    ]
    grids = {result.dataset: result.best.mean[0] for result in results if result.arm == "grid"}
    for result in results:
        finals = result.run.finals
        enough = as_good(result.curve, grids[result.dataset]) if result.curve else None
        matched = (
            NO_VALUE
            if result.arm == "grid"
            else f"more than {len(finals)}"
            if enough is None
            else str(enough)
        )
        rows.append(
            f"| {result.dataset} | {result.arm} | {len(finals)} "
            f"| {100 * result.best.mean[0]:.2f} ± {100 * result.best.deviation[0]:.2f} | {matched} "
            f"| {result.run.epochs_spent:,} | {result.run.compile_seconds:.0f} "
            f"| {result.run.seconds + sum(final.seconds for final in finals):.0f} |"
        )
    config = results[0].run.config
    notes = [
        f"one seed ({config['seed']}); {config['least_epochs']} to {config['most_epochs']} epochs a trial",
        "test: mean ± standard deviation of the test accuracy of the best trial, equations 5 and 6",
        "trials as good as the grid: the smallest random experiments (1, 2, 4, ...) whose mean is no less",
    ]
    return "\n".join([*rows, "", *(f"- {note}" for note in notes)])


COLOURS = {"random": "#0072B2", "random, preprocessed": "#D55E00"}
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)


def panels(count: int, width: float, height: float) -> tuple[Figure, Iterator[Any]]:
    columns = 3 if count == 3 else min(count, 2)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows + 0.5), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for unused in grid[count:]:
        unused.set_visible(False)
    return figure, iter(grid)


def draw(results: Sequence[Result]) -> Figure:
    """The random-experiment efficiency curves, a panel a set; the grid's best as a line, ± a deviation."""
    sets = list(dict.fromkeys(result.dataset for result in results))
    figure, axes_of = panels(len(sets), 4.4, 2.9)
    axes, shown = None, {}
    for dataset, axes in zip(sets, axes_of, strict=False):
        own = [result for result in results if result.dataset == dataset]
        random = [result for result in own if result.curve]
        for k, result in enumerate(random):
            colour, offset = COLOURS[result.arm], (k - (len(random) - 1) / 2) * 0.4
            for place, found in enumerate(result.curve):
                low, first, median, third, high = 100 * found.quantiles(LEVELS)
                box = {"med": median, "q1": first, "q3": third, "whislo": low, "whishi": high, "fliers": []}
                line = {"color": colour, "linewidth": 1.1}
                axes.bxp(
                    [box],
                    positions=[place + offset],
                    widths=0.32,
                    showfliers=False,
                    **{f"{part}props": line for part in ("box", "whisker", "cap", "median")},
                )
            places = np.arange(len(result.curve)) + offset
            means = [100 * found.mean.mean() for found in result.curve]
            (shown[result.arm],) = axes.plot(
                places, means, "o", color=colour, markersize=3.5, label=result.arm
            )
        for result in own:
            if result.arm == "grid":
                mean, deviation = 100 * result.best.mean[0], 100 * result.best.deviation[0]
                label = f"grid of {len(result.run.finals)} (± a deviation)"
                shown["grid"] = axes.axhline(mean, color="0.25", linestyle="--", linewidth=1.2, label=label)
                axes.axhspan(mean - deviation, mean + deviation, color="0.25", alpha=0.15, linewidth=0)
        sizes = [found.size for found in random[0].curve]
        axes.set_xticks(range(len(sizes)), [str(size) for size in sizes])
        axes.set_title(dataset, fontsize=10)
        style(axes, "y")
    figure.supxlabel(
        "trials in the experiment (boxes: quartiles; whiskers: 5 to 95 %; dots: means)", fontsize=9
    )
    figure.supylabel("test accuracy of the best (%)", fontsize=9)
    figure.legend(
        handles=list(shown.values()), loc="outside upper center", ncols=3, frameon=False, fontsize=9
    )
    return figure


def draw_relevance(relevances: dict[str, dict[str, np.ndarray]]) -> Figure:
    """1 / length scale of each hyperparameter: boxes over the fits, a panel a set, the mean of all in order."""
    figure, axes_of = panels(len(relevances), 4.4, 2.6)
    for (dataset, found), axes in zip(relevances.items(), axes_of, strict=False):
        names = sorted(found, key=lambda name: float(np.median(found[name])))
        axes.boxplot(
            [found[name] for name in names],
            orientation="horizontal",
            whis=(0, 100),
            medianprops={"color": "#D55E00", "linewidth": 1.6},
        )
        axes.set_yticks(range(1, len(names) + 1), names, fontsize=8.5)
        axes.set_title(dataset, fontsize=10)
        style(axes, "x")
        axes.set_xlim(left=0)
    figure.supxlabel("relevance (1 / length scale)", fontsize=9)
    return figure


if __name__ == "__main__":
    run(main, compute=True)
