"""DARTS left to run ends in skip connections: python experiments/darts_collapse.py --scale smoke

Dong and Yang 2020 ran DARTS on the cell of NAS-Bench-201: it ends in skip connections on every edge, a network of
54.30 % where the mean of all cells is 87.06. Zela et al. 2020 saw the curvature of the validation loss by the alphas
grow before, and stopped by it (RobustDARTS); Liang et al. 2019 stop at the second skip connection (DARTS+); Chen and
Hsieh 2020 step the weights at perturbed alphas (SmoothDARTS). Here first-order DARTS and SmoothDARTS search from
several seeds, every epoch's derived architecture is in the record, and the benchmark's table says what it is worth
trained in full: nothing is trained but supernets.

DARTS+ and RobustDARTS are first-order DARTS stopped: their rules only read what an epoch showed, so that with the
same seed their record is DARTS's up to the stop, to the bit (`tests/smoke/test_experiment_darts_collapse.py` runs
them and compares). They are therefore read off DARTS's record by the same functions (`nas.oneshot.monitor.STOPS`).

Within a search the table's accuracies choose nothing. How the ``cpu`` scale was set: supernets of 1 and 3 cells a
stage (one seed each, alphas' rates from 0.006 to 0.03, up to 1,700 steps) ended with 0 to 3 skip connections; one as
deep as the published one, 5 cells a stage, had 4 or 5 within 10 epochs, and was kept as it was first tried.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

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
    whole_numbers,
    write_results,
)
from _nasbench201 import Lookup, Outcome, measurements, outcome
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nas.data.config import DataConfig
from nas.oneshot.monitor import STOPS
from nas.record import Run
from nas.report.result_table import format_percent, format_seconds
from nas.run.methods import SupernetConfig
from nas.run.options import SearchOptions
from nas.run.search import search
from nas.space import Architecture
from nas.tables import load_table
from nas.trial import SupernetMeasurement
from search_spaces.nasbench201 import SPACE

CLAIM = Claim(
    experiment="darts_collapse",
    paper="Dong, Yang: NAS-Bench-201, ICLR 2020 (arXiv 2001.00326); Zela et al.: Understanding and robustifying "
    "differentiable architecture search, ICLR 2020; Chen, Hsieh: Stabilizing differentiable architecture search via "
    "perturbation-based regularization, ICML 2020; Liang et al.: DARTS+, arXiv 1909.06035",
    where="NAS-Bench-201's results of searches, ICLR 2020 version (also Chen et al.: TE-NAS, ICLR 2021, table 1)",
    says="CIFAR-10 test accuracy of what DARTS derives after 50 epochs: 54.30 %, skip connections alone, first and "
    "second order; early stopping and perturbation keep off that",
    hardware_hours="10,890 s a search (first order), on a GPU",
    past="--scale cpu (seeds 0 to 2; 50 minutes on two cores shared with other work), test accuracy in the table of "
    "what is derived: DARTS to the end 85.40 ± 7.34 % (77.04 with 5 skips, 88.33 with 4, 90.82 with 1; seed 0 has six "
    "skips, 54.30, in most epochs), DARTS+ 92.02 ± 1.13, SmoothDARTS (random) 90.71 ± 2.68, RobustDARTS 76.42 ± 19.49 "
    "(54.30, 83.88, 91.07: at this pace skips win before epoch 10, and as in its authors' code no earlier cell counts; "
    "if they did, 93.52, 92.48, and 10.00, a first epoch's cell that connects nothing). "
    "The dominant eigenvalue, mean of the seeds, grows from 2 to 12 with DARTS and stays below 3 with SmoothDARTS",
    numbers=(
        Number("darts", "first-order DARTS to the end, test accuracy in the table, %", 54.30),
        Number("darts_below_mean", "the same less the mean of all cells, points", side="below"),
        Number("darts_plus_gain", "DARTS+ less DARTS, points", side="above"),
        Number("robust_darts_gain", "RobustDARTS less DARTS, points", side="above"),
        Number("sdarts_rs_gain", "SmoothDARTS (random) less DARTS, points", side="above"),
    ),
    covers=("nas/oneshot", "search_spaces/nasbench201.py"),
)
PUBLISHED = {"darts_first": "54.30"}  # test accuracy, %
TRAINED = ("darts_first", "sdarts_rs")
STOPPED = {"darts_plus": "skips", "robust_darts": "curvature"}  # by which rule
LABELS = {
    "darts_first": "DARTS, first order, to the end",
    "darts_plus": "DARTS+: stopped by skips",
    "robust_darts": "RobustDARTS: stopped by curvature",
    "sdarts_rs": "SmoothDARTS, random, to the end",
}


@dataclasses.dataclass(frozen=True)
class Scale:
    """Which images, how long, from how many seeds, with which settings of the search (`--supernet`)."""

    data: DataConfig
    epochs: int
    seeds: int
    supernet: tuple[str, ...]


SCALES = {
    "smoke": Scale(DataConfig("digits"), 7, 2, ("channels=4", "cells=1", "alpha_learning_rate=0.03")),
    # A quarter of the channels and of the pixels, and a ninth of the steps (2,100 of 32 images), so
    # the alphas' rate is 33 times the published one; as deep, for skip connections win in deep networks.
    "cpu": Scale(
        DataConfig("cifar10", subset=3000, image_size=16),
        50,
        3,
        (
            "channels=4",
            "cells=5",
            "batch_size=32",
            "alpha_learning_rate=0.01",
            "nesterov=false",
            "weight_decay=3e-4",
        ),
    ),
    # 16 channels, 5 cells a stage, 50 epochs of 390 steps, alphas at 3e-4: the authors' script.
    "paper": Scale(DataConfig("cifar10", valid_fraction=0.01), 50, 3, ()),
}


@dataclasses.dataclass(frozen=True)
class Config(ExperimentConfig):
    """Search from several seeds; what DARTS and its relatives derive in table.md, over epochs in collapse.png."""

    bench_dir: str | None = None
    """folder of benchmark tables; default: NAS_BENCH_DIR"""


def main(config: Config) -> None:
    scale = SCALES[config.scale]
    out = result_folder(config, "darts_collapse")
    table = load_table("nasbench201", config.bench_dir)
    runs: dict[str, list[Run]] = {method: [] for method in TRAINED}
    for seed in range(scale.seeds):
        for method in TRAINED:
            folder = out / f"{method}-{seed}"
            options = options_of(scale, seed, config.data_dir)
            done = search(options, method, folder, {"nasbench201": SPACE}, resume=resumes(config, folder))
            runs[method].append(done)
            measurements(runs[method][-1])
    lookup = Lookup(table)
    write_results(
        out,
        summary(runs, lookup, scale),
        {"collapse.png": draw(runs, lookup)},
        config=config,
        claim=CLAIM,
        numbers=numbers(outcomes(runs, lookup), lookup),
        seeds=scale.seeds,
    )


def numbers(found: Mapping[str, Sequence[Outcome]], lookup: Lookup) -> dict[str, Interval]:
    """Over seeds; what is compared with DARTS, seed by seed."""
    test = {method: 100 * np.array([one.accuracy.test for one in of]) for method, of in found.items()}
    darts, mean = test["darts_first"], 100 * float(np.mean(lookup.test))
    return {
        "darts": mean_interval(darts),
        "darts_below_mean": mean_interval(darts - mean),
        **{f"{m}_gain": mean_interval(test[m] - darts) for m in ("darts_plus", "robust_darts", "sdarts_rs")},
    }


def options_of(scale: Scale, seed: int, data_dir: str | None) -> SearchOptions:
    """One search, whichever its method; without training what it found."""
    return SearchOptions(
        space="nasbench201",
        engine="local",
        test_seeds=0,
        data=dataclasses.replace(scale.data, data_dir=data_dir),
        plan=SupernetConfig(seed=seed, epochs=scale.epochs, supernet=scale.supernet),
    )


def outcomes(runs: Mapping[str, Sequence[Run]], lookup: Lookup) -> dict[str, list[Outcome]]:
    """By method, a seed each."""
    first = runs["darts_first"]
    found = {"darts_first": [outcome(run, lookup) for run in first]}
    found |= {
        method: [outcome(run, lookup, STOPS[rule]) for run in first] for method, rule in STOPPED.items()
    }
    return found | {"sdarts_rs": [outcome(run, lookup) for run in runs["sdarts_rs"]]}


def summary(runs: Mapping[str, Sequence[Run]], lookup: Lookup, scale: Scale) -> str:
    """The table, and what a reader must know."""
    rows = [
        "| Method | Stopped after | Counts | Skips of 6 | Valid. %, 12 epochs | Test %, 200 epochs | Each seed's "
        "| Published | Search s |",
        "| ------ | ------------: | -----: | ---------: | ------------------: | -----------------: | ----------: "
        "| --------: | -------: |",
    ]
    for method, of in outcomes(runs, lookup).items():
        each = ", ".join(f"{100 * one.accuracy.test:.2f}" for one in of)
        rows.append(
            f"| {LABELS[method]} | {_numbers(one.epochs for one in of)} | {_numbers(one.chosen_epoch for one in of)} "
            f"| {_numbers(one.skips for one in of)} | {mean_and_deviation([100 * o.accuracy.valid for o in of])} "
            f"| {mean_and_deviation([100 * o.accuracy.test for o in of])} | {each} "
            f"| {PUBLISHED.get(method, NO_VALUE)} | {format_seconds(float(np.mean([o.seconds for o in of])))} |"
        )
    every, skips = lookup.test, lookup(Architecture(dict.fromkeys(SPACE.choices, "skip_connect")))
    best = lookup.test[int(np.argmax(lookup.valid))]
    notes = [
        f"mean of all 15,625 cells {format_percent(float(np.mean(every)))}, skip connections alone "
        f"{format_percent(skips.test)}, the best by validation {format_percent(float(best))}",
        *(
            f"{LABELS[method]}, of each seed: test accuracy averaged over the epochs' architectures "
            f"{', '.join(f'{100 * np.mean([lookup(m.derived).test for m in of]):.2f}' for of in epochs)}; dominant "
            f"eigenvalue, mean of the last 10 epochs {', '.join(f'{tail(of):.2f}' for of in epochs)}"
            for method, epochs in ((name, [measurements(run) for run in of]) for name, of in runs.items())
        ),
        f"mean ± standard deviation of {scale.seeds} seeds; {scale.epochs} epochs of {describe_images(scale.data)}; "
        f"settings {' '.join(scale.supernet) or 'as published'}",
        "stopped rows are read off DARTS's own records; seconds are those up to the stop, eigenvalues included",
    ]
    return "\n".join([*rows, "", *(f"- {note}" for note in notes)])


def tail(epochs: Sequence[SupernetMeasurement]) -> float:
    """The dominant eigenvalue, averaged over the last 10 epochs."""
    return float(np.mean([measurement.eigenvalue for measurement in epochs[-10:]]))


def _numbers(values: Iterable[int]) -> str:
    return ", ".join(map(str, values))


def draw(runs: Mapping[str, Sequence[Run]], lookup: Lookup) -> Figure:
    """Over epochs: skip connections, test accuracy and curvature; thin lines are seeds, bold ones their mean."""
    figure = Figure(figsize=(8.6, 2.8), layout="constrained")
    panels = figure.subplots(1, 3, sharex=True)
    looks = {"darts_first": ("#0072B2", "DARTS"), "sdarts_rs": ("#009E73", "SmoothDARTS (random)")}
    for method, (colour, label) in looks.items():
        searches = [measurements(run) for run in runs[method]]
        curves = (
            [[m.skips for m in search] for search in searches],
            [[100 * lookup(m.derived).test for m in search] for search in searches],
            [[m.eigenvalue for m in search] for search in searches],
        )
        for axes, seeds in zip(panels, curves, strict=True):
            _lines(axes, np.array(seeds, float), colour, label)
    marks = {
        "darts_plus": ("v", "#E69F00", "DARTS+ takes"),
        "robust_darts": ("o", "#D55E00", "RobustDARTS takes"),
    }
    found = outcomes(runs, lookup)
    for method, (marker, colour, label) in marks.items():
        stopped = [one for one in found[method] if one.stopped]
        epochs = [one.chosen_epoch for one in stopped]
        values = ([one.skips for one in stopped], [100 * one.accuracy.test for one in stopped])
        for axes, of in zip(panels[:2], values, strict=True):
            axes.scatter(
                epochs,
                of,
                34,
                color=colour,
                marker=marker,
                edgecolor="white",
                linewidth=0.6,
                zorder=4,
                label=label,
            )
    titles = (
        "skip connections of the derived cell",
        "its test accuracy in the table (%)",
        "dominant eigenvalue",
    )
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title, fontsize=9.5)
        axes.set_xlabel("epoch of the search")
        style(axes)
        whole_numbers(axes)
    panels[0].set_ylim(-0.2, 6.2)
    handles, labels = panels[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8.5)
    return figure


def _lines(axes: Axes, values: np.ndarray, colour: str, label: str) -> None:
    """``values`` [seed, epoch] and their mean."""
    epochs = np.arange(1, values.shape[1] + 1)
    axes.plot(epochs, values.T, color=colour, linewidth=0.7, alpha=0.45)
    axes.plot(epochs, values.mean(axis=0), color=colour, linewidth=2.2, label=label)


if __name__ == "__main__":
    run(main, compute=True)
