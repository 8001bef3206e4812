"""What scores without training say of the accuracy after it: python experiments/knas_2021.py --scale smoke

Xu et al. 2021 (KNAS) rank untrained networks by the mean of the Gram matrix of their gradients, a statistic of the
neural tangent kernel, train the 40 best of 300 for some epochs and keep the best of these by validation. Here that
score, in the form of the paper and in that of the authors' code, stands beside all others of `nas.proxies`, and
beside parameters and multiply-adds, which need no score at all.

1. Architectures of NAS-Bench-201 drawn without replacement are scored on CIFAR-10's training images, in groups
   (`ScoreGroup`: which scores, of how many architectures, on which batches). Weights are drawn once, from ``seed``.
   Over the architectures that all groups have, each score's Kendall and Spearman correlation with the benchmark's
   test accuracy after 200 epochs is given with a bootstrap interval over architectures. "te_nas" is the mean rank by
   ntk_condition and linear_regions, "vote" the majority of synflow, jacobian_covariance and snip.
2. KNAS's selection, `REPETITIONS` times, by the table: networks drawn (with replacement, from those scored, of which
   a drawn one counts once), the best by score trained for 12 epochs, the best of these by validation after them
   kept, its test accuracy after 200 epochs reported. Random search draws from the same networks and trains each
   for 12 epochs until as many seconds are spent: those of the selection's scoring, as measured here, and of its
   trainings, as the benchmark's table has them. The repetitions share one set of scored networks and one draw of
   weights, so their spread is that of the choice of networks alone.

Different from the papers: batches are smaller (the `cpu` scale), linear regions are counted on CIFAR images reduced
to 3x3 with three channels, and the authors of KNAS trained 20 epochs where the table has 12.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from _experiment import (
    NO_VALUE,
    Claim,
    ExperimentConfig,
    Interval,
    Number,
    mean_interval,
    result_folder,
    run,
    style,
    write_results,
)
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import rankdata

from nas.data.config import DataConfig
from nas.objectives.score import Scorer
from nas.objectives.table import TableObjective
from nas.proxies import BASELINES, majority, mean_rank
from nas.report.statistics import Estimate, estimate, kendall, probability_of_improvement, spearman
from nas.run.scoring import ScoreTable, score_architectures
from nas.space import Architecture
from nas.tables import load_table
from search_spaces.nasbench201 import SPACE, architecture_at, nasbench201_space

PUBLISHED = {  # Kendall, Spearman: ZiCo, table 3
    "grad_norm": (0.46, 0.63),
    "snip": (0.46, 0.63),
    "grasp": (0.37, 0.54),
    "fisher_code": (0.40, 0.55),
    "synflow": (0.54, 0.73),
    "naswot": (0.58, 0.77),
    "ntk_condition": (0.33, 0.44),
    "knas": (0.14, 0.20),
    "zen": (0.29, 0.38),
    "zico": (0.61, 0.80),
    "params": (0.57, 0.75),
    "flops": (0.54, 0.73),
}

CLAIM = Claim(
    experiment="knas_2021",
    paper="Xu, Zhao, Lin, Gao, Sun, Yang: KNAS: green neural architecture search, ICML 2021",
    where="its results on NAS-Bench-201; random search: Dong and Yang, ICLR 2020; "
    "correlations of all scores on the whole space: Li et al., ZiCo, ICLR 2023, table 3",
    says="KNAS (k=40) finds 93.43 % on CIFAR-10, random search 93.70 +- 0.36; Kendall / Spearman of KNAS's score "
    "with test accuracy .14 / .20, of parameters .57 / .75, of multiply-adds .54 / .73 (others: `PUBLISHED`)",
    hardware_hours="not looked up",
    past="--scale cpu, 200 networks: Kendall / Spearman knas .30 / .43, knas_code -.15 / -.22, parameters .62 / .79, "
    "zico .60 / .79, synflow .57 / .76, naswot .57 / .75, grad_norm .45 / .63, ntk_condition .37 / .52, zen .31 / .41, "
    "fisher .24 / .34, vote .66 / .85. Best 40 of 300: by knas 93.05 %, by knas_code 93.09 %, by parameters 93.83 %; "
    "random search at equal cost 93.50, 93.36, 93.52 %. Two AVX-512 cores under other load, 22 minutes, zen's group "
    "run apart. --scale paper: not run",
    numbers=(
        Number("knas_best", "best by validation of the 40 best by KNAS, CIFAR-10 test accuracy, %", 93.43),
        Number("knas_gain", "the same less random search at equal cost, points", side="below"),
        *(
            Number(
                f"{name}_spearman",
                f"{name}: Spearman with test accuracy",
                rho,
                comparable=("cpu", "paper"),
                side="above",
            )
            for name, (_, rho) in PUBLISHED.items()
        ),
    ),
    covers=("nas/proxies",),
)
VOTES = {
    "te_nas": (mean_rank, ("ntk_condition", "linear_regions")),
    "vote": (majority, ("synflow", "jacobian_covariance", "snip")),
}
REPETITIONS = 200


class ScoreGroup(NamedTuple):
    """Scores that share their passes: of the first ``networks`` architectures, on ``batches`` of ``batch_size``."""

    name: str
    scores: tuple[str, ...]
    networks: int
    batch_size: int
    batches: int
    image_size: int | None = None
    channels: int = 16
    cells: int = 5


@dataclasses.dataclass(frozen=True)
class Scale:
    """What is scored, and KNAS's selection: ``best`` of ``drawn`` networks are trained."""

    dataset: str
    groups: tuple[ScoreGroup, ...]
    drawn: int
    best: int


GRADIENTS = ("grad_norm", "snip", "synflow", "naswot", "knas")
OTHERS = ("jacobian_covariance", "fisher", "fisher_code", "grasp", "zico")

SCALES = {
    "smoke": Scale(
        "digits",
        (
            ScoreGroup("gradients", (*BASELINES, *GRADIENTS), 24, 8, 1, channels=4, cells=1),
            ScoreGroup("others", (*OTHERS, "zen", "ntk_condition"), 16, 8, 2, channels=4, cells=1),
            ScoreGroup("regions", ("linear_regions",), 16, 100, 1, 3, channels=2, cells=1),
        ),
        drawn=12,
        best=4,
    ),
    "cpu": Scale(
        "cifar10",
        (
            ScoreGroup("gradients", (*BASELINES, *GRADIENTS), 500, 32, 1),
            ScoreGroup("regions", ("linear_regions",), 500, 1000, 3, 3, channels=2, cells=1),
            ScoreGroup("kernel", ("ntk_condition",), 200, 16, 1),
            ScoreGroup("others", OTHERS, 200, 16, 2),
            ScoreGroup("zen", ("zen",), 200, 16, 0),  # it draws its own images, 16 at a time
            ScoreGroup("code", ("knas_code",), 300, 8, 50, cells=1),
        ),
        drawn=300,
        best=40,
    ),
    "paper": Scale(
        "cifar10",
        (
            ScoreGroup("gradients", (*BASELINES, *GRADIENTS), 15_625, 128, 1),
            ScoreGroup("regions", ("linear_regions",), 15_625, 1000, 3, 3, channels=2, cells=1),
            ScoreGroup("kernel", ("ntk_condition",), 15_625, 64, 1),
            ScoreGroup("others", OTHERS, 15_625, 128, 2),
            ScoreGroup("zen", ("zen",), 15_625, 16, 0),
            ScoreGroup("code", ("knas_code",), 15_625, 256, 50),
        ),
        drawn=300,
        best=40,
    ),
}


@dataclasses.dataclass(frozen=True)
class Config(ExperimentConfig):
    """Score networks of NAS-Bench-201; table.md, correlations.png, scatter.png, and the scores in a folder a group."""

    seed: int = 0
    """of architectures, initial weights and selections"""
    bench_dir: str | None = None
    """folder of the benchmark's table; default: NAS_BENCH_DIR"""


class Scored(NamedTuple):
    """A score's values in the order of the drawn architectures, higher is better; NaN where there is none."""

    value: np.ndarray
    seconds: float  # of one architecture, compilations included
    group: ScoreGroup | None  # None: a vote of several


class Selection(NamedTuple):
    """Test accuracies [repetition] of what was kept, and how many networks each side trained."""

    chosen: np.ndarray
    random: np.ndarray
    trained: np.ndarray
    random_trained: np.ndarray


def main(config: Config) -> None:
    scale = SCALES[config.scale]
    out = result_folder(config, "knas_2021")
    objective = TableObjective(SPACE, load_table("nasbench201", config.bench_dir), "cifar10")
    order = np.random.default_rng(config.seed).permutation(15_625)
    archs = [architecture_at(int(k)) for k in order[: max(group.networks for group in scale.groups)]]
    scores: dict[str, Scored] = {}
    for group in scale.groups:
        scores |= scored(group, scale, archs, config, out / group.name)
    for name, (vote, of) in VOTES.items():
        scores[name] = voted(vote, {one: scores[one] for one in of})
    common = min(group.networks for group in scale.groups)
    tested = 100 * objective.test_accuracies[[objective.row(arch) for arch in archs]]
    correlations = {
        name: tuple(f(ranked(one.value[:common]), tested[:common]) for f in (kendall, spearman))
        for name, one in scores.items()
    }
    selections = {
        name: selection(objective, archs, tested, one, scale, config.seed)
        for name, one in scores.items()
        if one.group is not None and one.group.networks >= scale.drawn
    }
    text = "\n".join(
        [
            *correlation_table(scores, correlations),
            "",
            *selection_table(selections, scale),
            "",
            *remarks(scores, scale, common),
        ]
    )
    figures = {
        "correlations.png": draw_correlations(correlations),
        "scatter.png": draw_scatter(scores, tested[:common]),
    }
    write_results(
        out, text, figures, config=config, claim=CLAIM, numbers=numbers(correlations, selections), seeds=1
    )


def numbers(
    correlations: Mapping[str, tuple[Estimate, ...]], selections: Mapping[str, Selection]
) -> dict[str, Interval]:
    """Correlations with their bootstrap intervals over networks; KNAS's selection over repetitions."""
    found = {
        f"{name}_spearman": Interval(float(of.value), float(of.low), float(of.high), 1)
        for name, (_, of) in correlations.items()
        if name in PUBLISHED
    }
    if "knas" in selections:
        one = selections["knas"]
        found |= {"knas_best": mean_interval(one.chosen), "knas_gain": mean_interval(one.chosen - one.random)}
    return found


# ------------------------------------------------------------------------------------------------- scoring


def scored(
    group: ScoreGroup, scale: Scale, archs: list[Architecture], config: Config, out: Path
) -> dict[str, Scored]:
    """The scores of a group, from its file as far as they are there."""
    space = nasbench201_space(channels=group.channels, cells=group.cells)
    data = DataConfig(scale.dataset, image_size=group.image_size, data_dir=config.data_dir)
    scorer = Scorer(
        space, data, group.scores, seed=config.seed, batch_size=group.batch_size, batches=group.batches
    )

    def say(done: int, total: int) -> None:
        if done % 50 == 0 or done == total:
            print(f"{group.name}: {done} of {total} networks", flush=True)

    settings = {**group._asdict(), "dataset": scale.dataset, "seed": config.seed}
    resume = config.resume and out.is_dir()
    found: ScoreTable = score_architectures(
        scorer, archs[: group.networks], out, settings, resume=resume, on_scored=say
    )
    return {
        name: Scored(found.values[name], float(found.seconds[name].mean()), group) for name in group.scores
    }


def voted(vote: Callable[..., np.ndarray], of: Mapping[str, Scored]) -> Scored:
    """Ranks joined over the networks that all of the scores have; a network without a score is the worst by it."""
    count = min(len(one.value) for one in of.values())
    values = {name: np.nan_to_num(one.value[:count], nan=-np.inf, neginf=-np.inf) for name, one in of.items()}
    return Scored(vote(values, dict.fromkeys(values, 1)), sum(one.seconds for one in of.values()), None)


def ranked(values: np.ndarray) -> np.ndarray:
    """Ranks, so that infinities are the last of all rather than no numbers; NaN stays."""
    return np.where(np.isnan(values), np.nan, rankdata(np.nan_to_num(values, nan=-np.inf)))


# ---------------------------------------------------------------------------------------------- selections


def selection(
    objective: TableObjective,
    archs: list[Architecture],
    tested: np.ndarray,
    score: Scored,
    scale: Scale,
    seed: int,
) -> Selection:
    """KNAS's selection by ``score``, and random search for as many seconds."""
    count = len(score.value)
    measured = [objective.measurements(arch, 0) for arch in archs[:count]]
    valid = np.array([epochs[-1].valid_accuracy for epochs in measured])
    seconds = np.array([sum(epoch.seconds for epoch in epochs) for epochs in measured])
    value = np.nan_to_num(score.value, nan=-np.inf, neginf=-np.inf)
    rows = []
    for repetition in range(REPETITIONS):
        rng = np.random.default_rng((seed, repetition))
        drawn = np.unique(rng.integers(count, size=scale.drawn))
        by_score = drawn[np.lexsort((rng.random(len(drawn)), -value[drawn]))]  # ties by chance
        trained = by_score[: scale.best]
        spent = len(drawn) * score.seconds + seconds[trained].sum()
        others = rng.permutation(count)
        afforded = others[: max(1, np.searchsorted(np.cumsum(seconds[others]), spent, side="right"))]
        kept, by_chance = (some[valid[some].argmax()] for some in (trained, afforded))
        rows.append((tested[kept], tested[by_chance], len(trained), len(afforded)))
    return Selection(*np.array(rows).T)


# -------------------------------------------------------------------------------------------------- tables


def correlation_table(
    scores: Mapping[str, Scored], correlations: Mapping[str, tuple[Estimate, ...]]
) -> list[str]:
    lines = [
        "| Score | Scored | Kendall | Published | Spearman | Published | s a network |",
        "| ----- | -----: | ------: | --------: | -------: | --------: | ----------: |",
    ]
    for name in by_kendall(correlations):
        published = PUBLISHED.get(name, (NO_VALUE, NO_VALUE))
        cells = [
            f"{float(one.value):.2f} ({float(one.low):.2f} to {float(one.high):.2f})"
            for one in correlations[name]
        ]
        lines.append(
            f"| {name} | {len(scores[name].value)} | {cells[0]} | {published[0]} | {cells[1]} | {published[1]} "
            f"| {scores[name].seconds:.2g} |"
        )
    return lines


def by_kendall(correlations: Mapping[str, tuple[Estimate, ...]]) -> list[str]:
    """Names, the closest to accuracy first; a score that is the same everywhere last."""
    return sorted(correlations, key=lambda name: -np.nan_to_num(float(correlations[name][0].value), nan=-2))


def selection_table(selections: Mapping[str, Selection], scale: Scale) -> list[str]:
    lines = [
        f"| Best {scale.best} of {scale.drawn} by | Test % | sd | Trained | Random, equal cost | sd | Trained "
        "| Better than random |",
        "| ----- | -----: | -: | ------: | -----------------: | -: | ------: | ------: |",
    ]
    for name, one in sorted(selections.items(), key=lambda item: -item[1].chosen.mean()):
        better = probability_of_improvement(one.chosen, one.random)
        chosen, by_chance = (estimate(side, "mean") for side in (one.chosen, one.random))
        lines.append(
            f"| {name} | {with_interval(chosen)} | {one.chosen.std(ddof=1):.2f} | {one.trained.mean():.1f} "
            f"| {with_interval(by_chance)} | {one.random.std(ddof=1):.2f} | {one.random_trained.mean():.1f} "
            f"| {float(better.value):.2f} ({float(better.low):.2f} to {float(better.high):.2f}) |"
        )
    return lines


def with_interval(found: Estimate) -> str:
    return f"{float(found.value):.2f} ({float(found.low):.2f} to {float(found.high):.2f})"


def remarks(scores: Mapping[str, Scored], scale: Scale, common: int) -> list[str]:
    lines = [
        f"- Correlations over the first {common} networks, with the test accuracy after 200 epochs; 95 % bootstrap "
        "intervals over networks. Published: ZiCo, table 3.",
        f"- Selections: {REPETITIONS} repetitions; published: KNAS 93.43, random search 93.70 +- 0.36. Seconds of "
        "trainings are the benchmark's (a GPU's), those of scores this machine's; a score is charged what it took "
        "behind those before it in its group (snip has its gradient from grad_norm).",
    ]
    for group in scale.groups:
        size = "" if group.image_size is None else f" reduced to {group.image_size}x{group.image_size}"
        images = f"{group.batches} x {group.batch_size} images of {scale.dataset}{size}"
        lines.append(
            f"- {', '.join(group.scores)}: {group.networks} networks of {group.channels} channels and {group.cells} "
            f"cells a stage, {images if group.batches else 'on noise'}."
        )
    for name, one in scores.items():
        missing, infinite = int(np.isnan(one.value).sum()), int(np.isinf(one.value).sum())
        if missing or infinite:
            lines.append(f"- {name}: infinite for {infinite} networks, none for {missing}.")
    return lines


# --------------------------------------------------------------------------------------------------- plots

BASELINE, SCORE, JOINED, PAPER = "#999999", "#0072B2", "#009E73", "#D55E00"


def colour_of(name: str) -> str:
    return BASELINE if name in BASELINES else JOINED if name in VOTES else SCORE


def draw_correlations(correlations: Mapping[str, tuple[Estimate, ...]]) -> Figure:
    """Bars with intervals, a row a score; the published value as a diamond."""
    names = by_kendall(correlations)[::-1]
    figure = Figure(figsize=(8.0, 0.8 + 0.27 * len(names)), layout="constrained")
    panels: list[Axes] = list(figure.subplots(1, 2, sharey=True))
    for k, (axes, title) in enumerate(zip(panels, ("Kendall", "Spearman"), strict=True)):
        for row, name in enumerate(names):
            found = correlations[name][k]
            value, low, high = (float(number) for number in found)
            if np.isfinite(value):
                axes.barh(row, value, height=0.68, color=colour_of(name), alpha=0.85)
                axes.plot([low, high], [row, row], color="0.1", linewidth=1.3, solid_capstyle="butt")
            if name in PUBLISHED:
                axes.plot(PUBLISHED[name][k], row, "D", color=PAPER, markersize=4.5, zorder=3)
        axes.set_yticks(range(len(names)), names)
        axes.axvline(0, color="0.3", linewidth=0.8)
        axes.set_xlabel(f"{title} correlation with test accuracy")
        style(axes, "x")
    legend = [
        panels[0].barh(0, 0, color=colour, label=label)
        for colour, label in ((BASELINE, "baseline"), (SCORE, "score"), (JOINED, "several joined"))
    ]
    published = panels[0].plot([], [], "D", color=PAPER, markersize=4.5, label="published, whole space")
    figure.legend(handles=[*legend, *published], loc="outside upper left", ncols=4, frameon=False, fontsize=9)
    return figure


def draw_scatter(scores: Mapping[str, Scored], tested: np.ndarray) -> Figure:
    """Each score's ranks against accuracy; accuracies below the axis are triangles at its foot."""
    columns, names = 5, list(scores)
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(10.0, 1.95 * rows), layout="constrained")
    panels: list[Axes] = list(np.ravel(figure.subplots(rows, columns, sharey=True)))
    foot = max(float(np.quantile(tested, 0.1)) - 2, float(tested.min()) - 0.5)
    for axes, name in zip(panels, names, strict=False):
        ranks = ranked(scores[name].value[: len(tested)])
        inside = tested >= foot
        look = {"color": colour_of(name), "alpha": 0.6, "linewidths": 0}
        axes.scatter(ranks[inside], tested[inside], s=9, **look)
        axes.scatter(ranks[~inside], np.full((~inside).sum(), foot), s=12, marker="v", **look)
        axes.set_title(name, fontsize=9.5)
        axes.set_xticks([])
        style(axes, "y")
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    figure.supxlabel("rank by the score, the best on the right", fontsize=10)
    figure.supylabel("test accuracy after 200 epochs (%)", fontsize=10)
    return figure


if __name__ == "__main__":
    run(main, compute=True)
