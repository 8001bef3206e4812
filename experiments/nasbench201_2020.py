"""Search strategies compared on NAS-Bench-201: python experiments/nasbench201_2020.py --scale cpu

Dong and Yang 2020 ran each strategy 500 times on CIFAR-10 for 12,000 simulated seconds: a search sees the validation
accuracy after 12 epochs (trained on one half of the training images, validated on the other), and the architecture
that it ends with is judged by its test accuracy after 200 epochs on each of the three data sets.

Here the same over the compact table, by `scripts/compare.py --objective table`'s driver, with the published numbers
beside ours. All searches, their table, paired tests and plots are in the folder ``searches``.

Different from the paper:
- The compact table has no times. A query costs what `nas.tables.nasbench201` estimates from the latencies measured
  on a GPU of the benchmark's kind: training, 12 x 25,000 images, and one validation, 25,000 images; off by 9 % on
  average over the five architectures whose times are known. ``--scale paper`` takes the official files' times.
- The compact table has means over repetitions: a search sees no noise of training. The official files have it.
- With one validation there is nothing to stop early: successive halving, Hyperband and ASHA would be random search
  and are left out; BOHB is its model alone.
- Our strategies are not the authors' code. REINFORCE's rate of the policy (``policy_rate``), the targets of
  BANANAS's networks and BOHB's bandwidths are chosen on another table, by `scripts/tune_strategies.py`
  (docs/guide/tuned_settings.md); evolution's population of 10 and tournament of 3 are those of the benchmark's scripts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np
from _experiment import (
    NO_VALUE,
    Claim,
    ExperimentConfig,
    Interval,
    Number,
    difference,
    exactly,
    mean_and_deviation,
    mean_interval,
    result_folder,
    run,
    write_results,
)

from nas.errors import InputError
from nas.objectives.table import TableObjective
from nas.record.comparison import Comparison, is_comparison
from nas.report import result_table
from nas.report.report import write_comparison
from nas.run.simulated import TableOptions, compare
from nas.tables import Table, load_table
from nas.tables.nasbench201 import HOW
from search_spaces import spaces_with
from search_spaces.nasbench201 import NAMED, SPACE

CLAIM = Claim(
    experiment="nasbench201_2020",
    paper="Dong, Yang: NAS-Bench-201: extending the scope of reproducible neural architecture search, ICLR 2020",
    where="table 5, as quoted in TE-NAS (Chen, Gong, Wang, ICLR 2021), table 1",
    says="CIFAR-10 test accuracy after 12,000 s of search, 500 runs: random search 93.70 ± 0.36, REINFORCE "
    "93.85 ± 0.37; best 94.37",
    hardware_hours="seconds a search: trainings are looked up",
    past="--scale cpu, 500 searches a strategy and data set, 108 s on two cores: random search 93.72 ± 0.35 (from the "
    "published mean +0.022, 95 % interval -0.022 to +0.066), REINFORCE 93.95 ± 0.35, regularised evolution "
    "93.92 ± 0.38, BANANAS 94.19 ± 0.31",
    numbers=(
        Number(
            "random",
            "random search, CIFAR-10 test accuracy, %",
            93.70,
            2,
            0.36,
            500,
            comparable=("cpu", "paper"),
        ),
        Number(
            "reinforce",
            "REINFORCE, CIFAR-10 test accuracy, %",
            93.85,
            2,
            0.37,
            500,
            comparable=("cpu", "paper"),
        ),
        Number("reinforce_gain", "REINFORCE less random search, points", side="above"),
        Number("best", "best of the space, CIFAR-10 test accuracy, %", 94.37, comparable=("cpu", "paper")),
    ),
    covers=("nas/strategies/random.py", "nas/strategies/reinforce.py", "nas/tables/nasbench201.py"),
)
DATASETS = ("cifar10", "cifar100", "ImageNet16-120")


@dataclasses.dataclass(frozen=True)
class Scale:
    """How many searches of which strategies (none named: all that make sense)."""

    seeds: int
    strategies: tuple[str, ...] = ()


FILTERED = "random+params"
EVERY = ("random", "grid", "local_search", "evolution", "reinforce", "tpe", "bananas", "bohb", FILTERED)
SCALES = {
    "smoke": Scale(5, ("random", "local_search", "evolution", "reinforce", FILTERED)),
    "cpu": Scale(500, EVERY),
    "paper": Scale(500, EVERY),  # with the official files' times and repetitions
}


@dataclasses.dataclass(frozen=True)
class Published:
    """A row of TE-NAS's table 1: test accuracy in per cent, mean and standard deviation, and seconds of search."""

    accuracies: tuple[str, str, str]
    seconds: str = ""
    ours: str | None = None
    """our strategy of the same name, where there is one"""


PUBLISHED: Mapping[str, Published] = {
    "random search": Published(("93.70 ± 0.36", NO_VALUE, NO_VALUE), ours="random"),
    "REINFORCE": Published(("93.85 ± 0.37", "71.71 ± 1.09", "45.24 ± 1.18"), "27,870", ours="reinforce"),
    "RSPS": Published(("87.66 ± 1.69", "58.33 ± 4.34", "31.14 ± 3.88"), "8,007"),
    "DARTS (first order)": Published(("54.30", "15.61", "16.32"), "10,890"),
    "DARTS (second order)": Published(("54.30", "15.61", "16.32"), "29,902"),
    "GDAS": Published(("93.61 ± 0.09", "70.70 ± 0.30", "41.84 ± 0.90"), "28,926"),
    "NASWOT (N=100)": Published(("92.81 ± 0.99", "69.48 ± 1.70", "43.10 ± 3.16"), "30"),
    "TE-NAS": Published(("93.90 ± 0.47", "71.24 ± 0.56", "42.38 ± 0.46"), "1,558"),
    "KNAS (k=40)": Published(("93.43", "71.05", "45.05")),
}
RESNET, BEST = ("93.97", "70.86", "43.63"), ("94.37", "73.51", "47.31")


@dataclasses.dataclass(frozen=True)
class Config(ExperimentConfig):
    """Compare strategies over the NAS-Bench-201 table at equal simulated cost, published numbers beside ours."""

    data_dir: str | None = None
    """folder of benchmark files; default: NAS_BENCH_DIR"""
    seed: int = 0
    """of the first search of each strategy; the others follow"""
    processes: int | None = None
    """searches side by side; default: one a CPU core"""


def main(config: Config) -> None:
    scale = SCALES[config.scale]
    out = result_folder(config, "nasbench201_2020")
    table = load_table("nasbench201", config.data_dir)
    estimated = table.notes["seconds"].startswith("estimated")
    if config.scale == "paper" and estimated:
        raise InputError(f"table {table.name}: its seconds are estimated; the paper's protocol needs: {HOW}")
    options = TableOptions(
        space="nasbench201",
        data_dir=config.data_dir,
        steps=(12,),
        strategies=scale.strategies,
        seeds=scale.seeds,
        processes=config.processes,
    )
    options = dataclasses.replace(options, plan=dataclasses.replace(options.plan, seed=config.seed))
    folder = out / "searches"
    comparison = compare(options, spaces_with, folder, resume=config.resume and is_comparison(folder))
    report = write_comparison(folder)
    text = "\n".join(
        [result_table.markdown(list(rows(table, comparison))), *effects(comparison), *report.notes[:2]]
    )
    write_results(
        out, text, {}, config=config, claim=CLAIM, numbers=numbers(table, comparison), seeds=scale.seeds
    )
    for path in report.files:
        print(path)


def rows(table: Table, comparison: Comparison) -> Iterator[list[str]]:
    """The table: ours and the published numbers of each data set, test accuracy in per cent."""
    judges = {name: TableObjective(SPACE, table, name) for name in DATASETS}
    found = found_accuracies(judges, comparison)
    yield [
        "Strategy",
        *(f"{name}, {whose}" for name in DATASETS for whose in ("ours", "published")),
        "Search s",
    ]

    def row(name: str, ours: Mapping[str, str], published: Published) -> list[str]:
        pairs = zip((ours.get(d, NO_VALUE) for d in DATASETS), published.accuracies, strict=True)
        return [name, *(cell for pair in pairs for cell in pair), published.seconds or NO_VALUE]

    shown = {
        strategy: {name: mean_and_deviation(100 * values) for name, values in of.items()}
        for strategy, of in found.items()
    }
    nothing = Published((NO_VALUE, NO_VALUE, NO_VALUE))
    known = {of.ours: (name, of) for name, of in PUBLISHED.items() if of.ours}
    for strategy, ours in shown.items():
        name, published = known.get(strategy, (strategy, nothing))
        yield row(name, ours, published)
    for name, published in PUBLISHED.items():
        if published.ours is None:
            yield row(name, {}, published)
    resnet = {
        name: f"{100 * judge.test_accuracies[judge.row(NAMED['nasbench201_resnet'].arch)]:.2f}"
        for name, judge in judges.items()
    }
    yield row("ResNet, no search", resnet, Published(RESNET))
    best = {name: f"{100 * judge.optimum:.2f}" for name, judge in judges.items()}
    yield row("best of the space", best, Published(BEST))


def numbers(table: Table, comparison: Comparison) -> dict[str, Interval]:
    """Those of the claim: on CIFAR-10, over searches."""
    judge = TableObjective(SPACE, table, "cifar10")
    found = found_accuracies({"cifar10": judge}, comparison)
    tested = {name: mean_interval(100 * of["cifar10"]) for name, of in found.items()}
    return {
        "random": tested["random"],
        "reinforce": tested["reinforce"],
        "reinforce_gain": difference(tested["reinforce"], tested["random"]),
        "best": exactly(100 * float(judge.optimum)),
    }


def found_accuracies(
    judges: Mapping[str, TableObjective], comparison: Comparison
) -> dict[str, dict[str, np.ndarray]]:
    """By strategy and data set, the test accuracy of what each search ended with: [searches]."""
    return {
        strategy: {
            name: np.array(
                [judge.test_accuracies[judge.row(SPACE.from_string(s.archs[-1]))] for s in searches]
            )
            for name, judge in judges.items()
        }
        for strategy, searches in comparison.complete().items()
    }


def effects(comparison: Comparison) -> list[str]:
    """The claim, in a line: random search here and there."""
    ours = 100 * np.array([s.test_accuracies[-1] for s in comparison.complete()["random"]])
    mean, deviation = (float(part) for part in PUBLISHED["random search"].accuracies[0].split(" ± "))
    margin = 1.96 * float(np.hypot(ours.std(ddof=1) / np.sqrt(len(ours)), deviation / np.sqrt(500)))
    gap = float(ours.mean()) - mean
    return [
        f"- random search: {mean_and_deviation(ours)} over {len(ours)} searches, published {mean:.2f} ± "
        f"{deviation:.2f} over 500: a difference of {gap:+.3f}, 95 % interval "
        f"{gap - margin:+.3f} to {gap + margin:+.3f}",
        "- accuracies: mean ± standard deviation over searches; published: TE-NAS, table 1, and its seconds of search",
    ]


if __name__ == "__main__":
    run(main, compute=True)
