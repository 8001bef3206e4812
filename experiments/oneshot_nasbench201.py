"""Every search with shared weights on NAS-Bench-201's cell: python experiments/oneshot_nasbench201.py --scale smoke

Thirteen methods (`nas.oneshot.settings.METHODS`) search the same cell from the same seeds, each with the settings that
its authors' code has for this space where it has any (docs/guide/oneshot_settings.md); what they derive is looked up in
the benchmark's table, trained by the benchmark's authors for 200 epochs. Nothing is trained but supernets, and the
networks of random search: it trains cells in the skeleton and on the images of the supernets, for as many seconds as
first-order DARTS of the same seed took, and gives the best by its validation accuracy. Published numbers, the mean of
all cells and the table's best stand beside.

DARTS+ and RobustDARTS are first-order DARTS stopped by what an epoch showed, and are read off its record, as in
`darts_collapse.py`. A killed run goes on with ``--resume``: at most one epoch of one search is lost.

Different from the papers at the ``cpu`` scale: fewer channels, cells, images, pixels and steps. The rate of the alphas
is each method's published one times the published number of steps over ours (`Scale.faster`), and where early stopping
begins, and over how many epochs it averages, is shortened as the search is; nothing was tried on the table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from _experiment import (
    NO_VALUE,
    Claim,
    ExperimentConfig,
    Interval,
    Number,
    describe_images,
    mean_and_deviation,
    mean_interval,
    result_folder,
    resumes,
    run,
    style,
    write_results,
)
from _nasbench201 import Lookup, Outcome, measurements, outcome
from matplotlib.figure import Figure

from nas.data.config import DataConfig
from nas.errors import InputError
from nas.nn.supernet import Supernet
from nas.objectives.oneshot import supernet_of
from nas.oneshot.settings import METHODS, published, settings_of
from nas.record import Run
from nas.report.result_table import format_seconds
from nas.run.methods import SupernetConfig
from nas.run.options import SearchOptions
from nas.run.search import search
from nas.tables import load_table
from nas.trial import Trial
from search_spaces.nasbench201 import SPACE, nasbench201_space

PUBLISHED = {  # CIFAR-10 test accuracy, %: TE-NAS (Chen et al., ICLR 2021), table 1; the last two DrNAS's own table
    "darts_first": (54.30, 0.0),
    "darts": (54.30, 0.0),
    "gdas": (93.61, 0.09),
    "rsps": (87.66, 1.69),
    "pc_darts": (93.41, 0.30),
    "drnas": (94.36, 0.00),
}
BELOW = ("darts_first", "darts", "rsps")  # published below random search, 93.70; DrNAS above

CLAIM = Claim(
    experiment="oneshot_nasbench201",
    paper="Dong, Yang: NAS-Bench-201, ICLR 2020; Chen, Wang, Cheng, Tang, Hsieh: DrNAS, ICLR 2021",
    where="searches with shared weights on CIFAR-10: as quoted in TE-NAS, table 1; DrNAS's table of this space",
    says="what DARTS derives is worth 54.30 %, RSPS 87.66 ± 1.69, GDAS 93.61 ± 0.09, PC-DARTS 93.41 ± 0.30, DrNAS "
    "94.36; random search 93.70 ± 0.36, the best cell 94.37",
    hardware_hours="8,007 to 29,902 s a search, on a GPU",
    numbers=(
        *(
            Number(f"{name}", f"{name}: test accuracy in the table of what is derived, %", mean, 2, spread, 3)
            for name, (mean, spread) in PUBLISHED.items()
        ),
        *(
            Number(f"{name}_gain", f"{name} less random search at equal cost, points", side="below")
            for name in BELOW
        ),
        Number("drnas_gain", "drnas less random search at equal cost, points", side="above"),
    ),
    covers=("nas/oneshot", "search_spaces/nasbench201.py"),
)
STOPPED = ("darts_plus", "robust_darts")  # read off darts_first
TRAINED = tuple(name for name in METHODS if name not in STOPPED)
RANDOM = "random search, equal cost"


@dataclasses.dataclass(frozen=True)
class Scale:
    """Images, epochs and seeds of the searches; what of `--supernet` all of them have, and some."""

    data: DataConfig
    epochs: int
    seeds: int
    supernet: tuple[str, ...]
    faster: float
    """the alphas' rate is the published one times it"""
    shorter: float
    """early stopping's epochs are the published ones times it"""
    own: Mapping[str, tuple[str, ...]]
    """settings of single methods"""
    trials: int
    """networks that random search trains at most"""
    short_epochs: int
    """of each"""


SCALES = {
    "smoke": Scale(
        DataConfig("digits"),
        3,
        1,
        ("channels=4", "cells=1", "batch_size=128"),
        30,
        0.1,
        {"rsps": ("candidates=5",), "spos": ("candidates=10", "population=5", "parents=2")},
        2,
        1,
    ),
    # 25 epochs of 47 steps of 32 images, a 17th of the 50 epochs of 390 steps of the benchmark's DARTS. An epoch of
    # first order took 3 CPU seconds and a search's programs 25 to compile: about 1,750 CPU seconds a seed for all
    # methods and random search, so that five seeds are planned to end in 2 hours on two idle cores.
    "cpu": Scale(
        DataConfig("cifar10", subset=3334, valid_fraction=0.1, image_size=16),
        25,
        5,
        ("channels=4", "cells=3", "batch_size=32"),
        17,
        0.5,
        {"rsps": ("candidates=100",), "spos": ("candidates=200", "population=20", "parents=5")},
        20,
        6,
    ),
    # The benchmark's own length for DARTS; GDAS and RSPS have 250 epochs there, SmoothDARTS and DrNAS 100.
    "paper": Scale(DataConfig("cifar10", valid_fraction=0.01), 50, 5, (), 1, 1, {}, 100, 12),
}


@dataclasses.dataclass(frozen=True)
class Config(ExperimentConfig):
    """Search with every method from several seeds; what they derive in table.md and methods.png."""

    bench_dir: str | None = None
    """folder of benchmark tables; default: NAS_BENCH_DIR"""
    methods: tuple[str, ...] = TRAINED
    """which of the searches to run, and random search always; darts_plus and robust_darts come of darts_first"""


class Chance(NamedTuple):
    """Random search within a time: what it gives, how many networks it trained, in which seconds."""

    test: float
    trained: int
    seconds: float


def main(config: Config) -> None:
    scale = SCALES[config.scale]
    unknown = [name for name in config.methods if name not in TRAINED]
    if unknown:
        raise InputError(f"methods: {unknown[0]} is not one of {', '.join(TRAINED)}")
    if "darts_first" not in config.methods:
        raise InputError("methods: darts_first is needed: random search takes as long as it")
    out = result_folder(config, "oneshot_nasbench201")
    lookup = Lookup(load_table("nasbench201", config.bench_dir))
    found: dict[str, list[Outcome]] = {}
    chance: list[Chance] = []
    for seed in range(scale.seeds):
        runs = {method: searched(config, scale, method, seed, out) for method in config.methods}
        for method, done in runs.items():
            found.setdefault(method, []).append(outcome(done, lookup))
        for method in STOPPED:
            rule = settings_of(dict(published(method, supernet())) | short(scale)).stop_rule
            found.setdefault(method, []).append(outcome(runs["darts_first"], lookup, rule))
        chance.append(by_chance(config, scale, seed, found["darts_first"][-1].seconds, lookup, out))
    found = {method: found[method] for method in METHODS if method in found}
    write_results(
        out,
        table(found, chance, lookup, scale),
        {"methods.png": draw(found, chance, lookup)},
        config=config,
        claim=CLAIM,
        numbers=numbers(found, chance),
        seeds=scale.seeds,
    )


# ---------------------------------------------------------------------------------------------------- searching


def supernet() -> Supernet:
    return supernet_of(SPACE)


def short(scale: Scale) -> dict[str, int]:
    """Early stopping's epochs, shortened."""
    of = published("robust_darts", supernet())
    return {name: max(1, round(scale.shorter * of[name])) for name in ("stop_window", "stop_start")}


def settings(scale: Scale, method: str) -> tuple[str, ...]:
    """What a method is told at this scale, as on a command line."""
    said = published(method, supernet())
    alphas: tuple[str, ...] = ()
    if said["selection"] == "strongest":
        rate = scale.faster * said["alpha_learning_rate"]
        alphas = (f"alpha_learning_rate={rate:.6g}", f"eigenvalue={str(method == 'darts_first').lower()}")
    return (*scale.supernet, *alphas, *scale.own.get(method, ()))


def searched(config: Config, scale: Scale, method: str, seed: int, out: Path) -> Run:
    """One search with its record. Raises InputError where it failed."""
    folder = out / f"{method}-{seed}"
    options = SearchOptions(
        space="nasbench201",
        engine="local",
        test_seeds=0,
        data=dataclasses.replace(scale.data, data_dir=config.data_dir),
        plan=SupernetConfig(seed=seed, epochs=scale.epochs, supernet=settings(scale, method)),
    )
    done = search(options, method, folder, {"nasbench201": SPACE}, resume=resumes(config, folder))
    measurements(done)
    return done


def by_chance(config: Config, scale: Scale, seed: int, seconds: float, lookup: Lookup, out: Path) -> Chance:
    """The best by validation of the random cells that were trained within so many seconds."""
    told = dict(word.split("=") for word in scale.supernet)
    sizes = {name: int(told.get(name, default)) for name, default in supernet().sizes.items()}
    space = nasbench201_space(channels=sizes["channels"], cells=sizes["cells"])
    folder = out / f"random-{seed}"
    options = SearchOptions(
        space="nasbench201",
        engine="local",
        test_seeds=0,
        data=dataclasses.replace(scale.data, data_dir=config.data_dir),
        plan=SupernetConfig(seed=seed, trials=scale.trials, epochs=scale.short_epochs),
    )
    done = search(options, "random", folder, {"nasbench201": space}, resume=resumes(config, folder))
    counted: list[Trial] = []
    spent = 0.0
    for trial in done.trials.values():
        took = sum(measurement.seconds for measurement in trial.measurements)
        if counted and spent + took > seconds:
            break
        counted, spent = [*counted, trial], spent + took
    best = max(counted, key=lambda trial: trial.score)
    return Chance(lookup(best.arch).test, len(counted), spent)


# ------------------------------------------------------------------------------------------------------- telling


def tested(of: Sequence[Outcome]) -> np.ndarray:
    """Test accuracies in the table, in per cent, a seed each."""
    return 100 * np.array([one.accuracy.test for one in of])


def numbers(found: Mapping[str, Sequence[Outcome]], chance: Sequence[Chance]) -> dict[str, Interval]:
    """Over seeds; what is compared with random search, seed by seed."""
    random = 100 * np.array([one.test for one in chance])
    known = {name: tested(found[name]) for name in PUBLISHED if name in found}
    return {name: mean_interval(of) for name, of in known.items()} | {
        f"{name}_gain": mean_interval(known[name] - random) for name in (*BELOW, "drnas") if name in known
    }


def table(
    found: Mapping[str, Sequence[Outcome]], chance: Sequence[Chance], lookup: Lookup, scale: Scale
) -> str:
    """What each method derived, beside published numbers, random search and the table; what a reader must know."""
    rows = [
        "| Method | Test %, 200 epochs | 95 % interval | Each seed's | Skips of 6 | Published | Search s |",
        "| ------ | -----------------: | ------------: | ----------: | ---------: | --------: | -------: |",
    ]

    def row(name: str, values: np.ndarray, skips: str, said: str, seconds: float) -> str:
        interval = mean_interval(values)
        between = NO_VALUE if len(values) < 2 else f"{interval.low:.2f} to {min(interval.high, 100.0):.2f}"
        shown = mean_and_deviation(values) if len(values) > 1 else f"{values[0]:.2f}"
        each = ", ".join(f"{value:.2f}" for value in values)
        return f"| {name} | {shown} | {between} | {each} | {skips} | {said} | {format_seconds(seconds)} |"

    for method, of in found.items():
        said = "{:.2f} ± {:.2f}".format(*PUBLISHED[method]) if method in PUBLISHED else NO_VALUE
        skips = ", ".join(str(one.skips) for one in of)
        rows.append(row(method, tested(of), skips, said, float(np.mean([one.seconds for one in of]))))
    values = 100 * np.array([one.test for one in chance])
    spent = float(np.mean([one.seconds for one in chance]))
    rows.append(row(RANDOM, values, NO_VALUE, "93.70 ± 0.36", spent))
    best = lookup.test[int(np.argmax(lookup.valid))]
    notes = [
        f"the table: mean of all cells {100 * float(np.mean(lookup.test)):.2f}, the best by validation "
        f"{100 * float(best):.2f}, the best of all {100 * float(np.max(lookup.test)):.2f}",
        f"{random_text(chance, scale)}; published: over the benchmark's own trainings",
        f"{', '.join(STOPPED)}: read off darts_first, whose seconds have its eigenvalues in them",
        f"{scale.epochs} epochs of {describe_images(scale.data)}; {' '.join(scale.supernet) or 'as published'}; the "
        f"alphas' rates are the published ones times {scale.faster:g}; mean ± standard deviation and t interval of "
        f"{scale.seeds} seeds",
    ]
    return "\n".join([*rows, "", *(f"- {note}" for note in notes)])


def random_text(chance: Sequence[Chance], scale: Scale) -> str:
    trained = ", ".join(str(one.trained) for one in chance)
    return (
        f"{RANDOM}: of cells trained for {scale.short_epochs} epochs in the supernet's skeleton, as many ({trained}) "
        "as ended within the seconds of darts_first"
    )


def draw(found: Mapping[str, Sequence[Outcome]], chance: Sequence[Chance], lookup: Lookup) -> Figure:
    """A point a seed, a bar their mean; the diamond is the published number, lines are the table's mean and best."""
    figure = Figure(figsize=(7.0, 1.0 + 0.28 * (len(found) + 1)), layout="constrained")
    axes = figure.subplots()
    values = {name: tested(of) for name, of in found.items()}
    values[RANDOM] = 100 * np.array([one.test for one in chance])
    for place, (name, of) in enumerate(values.items()):
        colour = "0.4" if name == RANDOM else "#0072B2"
        axes.scatter(of, [place] * len(of), 18, color=colour, alpha=0.7, zorder=3, linewidths=0)
        axes.plot([of.mean()] * 2, [place - 0.3, place + 0.3], color=colour, linewidth=2.2)
        if name in PUBLISHED:
            axes.plot(PUBLISHED[name][0], place, "D", color="#D55E00", markersize=5, zorder=4)
    for value, label in ((np.mean(lookup.test), "mean of all cells"), (np.max(lookup.test), "best")):
        axes.axvline(100 * float(value), color="0.5", linewidth=0.9, linestyle=":")
        axes.annotate(
            label,
            (100 * float(value), 1.0),
            xycoords=("data", "axes fraction"),
            ha="center",
            va="bottom",
            fontsize=8,
            color="0.3",
        )
    axes.plot([], [], "D", color="#D55E00", markersize=5, label="published")
    axes.set_yticks(range(len(values)), list(values))
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.set_xlabel("test accuracy in the table of what is derived (%)")
    figure.legend(frameon=False, fontsize=8, loc="outside lower right")
    style(axes, "x")
    return figure


if __name__ == "__main__":
    run(main, compute=True)
