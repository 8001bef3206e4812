"""Settings of strategies chosen on a table that no result is reported on: python scripts/tune_strategies.py

What `experiments/nasbench201_2020.py` reports must not have chosen how its strategies are set. Here each value of a
setting is searched with over another table, the shipped `minichain`, for 50 trainings a search, and the value with the
least regret in test accuracy, as a part of random search's at the same cost, is to be the default. More tables may be
given, and are averaged over; NAS-Bench-Macro cannot be one, for it has no validation accuracy to search by.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nas.errors import InputError
from nas.record.comparison import Comparison, is_comparison
from nas.report import result_table
from nas.run.command_line import run
from nas.run.simulated import TableOptions, compare
from nas.strategies import STRATEGIES, StrategyConfig
from search_spaces import spaces_with

TABLES = ("minichain",)
GRIDS: Mapping[str, tuple[str, Sequence[Any]]] = {
    "reinforce": ("policy_rate", (0.01, 0.03, 0.1, 0.3, 1.0)),
    "bananas": ("targets", ("normal_scores", "standardised")),
    "bohb": ("pseudo_trials", (0.3, 1.0, 3.0)),
}
"""By strategy, a setting and its values."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Compare values of strategies' settings over tables; the table of it goes to OUT/table.md."""

    out: Path = Path("runs/tune_strategies")
    """folder of the searches"""
    resume: bool = False
    """go on with the searches in that folder"""
    seeds: int = 300
    """searches of each value over each table"""
    tables: tuple[str, ...] = TABLES
    """the benchmarks to choose on"""
    data_dir: str | None = None
    """folder of benchmark files; default: NAS_BENCH_DIR"""
    page: Path | None = None
    """also write the table there, as docs/guide/tuned_settings.md has it"""


class Value(NamedTuple):
    """One value of a setting: its regret as a part of random search's, table by table [tables], and the mean's
    standard error."""

    strategy: str
    setting: str
    value: Any
    parts: np.ndarray
    error: float

    @property
    def mean(self) -> float:
        return float(self.parts.mean())


def main(config: Config) -> None:
    if config.out.is_dir() and any(config.out.iterdir()) and not config.resume:
        raise InputError(f"{config.out}: is not empty; go on with --resume or choose another --out")
    random = [regrets(config, table, "random", StrategyConfig(), "random") for table in config.tables]
    found = list(values(config, random))
    text = "\n".join([*lines(found, config), ""])
    (config.out / "table.md").write_text(text)
    if config.page is not None:
        config.page.write_text(f"# Settings chosen on another table\n\n{INTRODUCTION}\n\n{text}")
    print(text, end="")
    print(config.out / "table.md")


def values(config: Config, random: Sequence[np.ndarray]) -> Iterator[Value]:
    for strategy, (setting, options) in GRIDS.items():
        for value in options:
            plan = dataclasses.replace(STRATEGIES[strategy].config(), **{setting: value})
            label = f"{strategy}-{setting}-{value}"
            each = [regrets(config, table, strategy, plan, label) for table in config.tables]
            parts = np.array([of.mean() / by.mean() for of, by in zip(each, random, strict=True)])
            errors = [
                part * np.hypot(_relative(of), _relative(by))
                for part, of, by in zip(parts, each, random, strict=True)
            ]
            yield Value(strategy, setting, value, parts, float(np.linalg.norm(errors)) / len(parts))


def _relative(of: np.ndarray) -> float:
    """The standard error of a mean over the mean."""
    return float(of.std(ddof=1) / np.sqrt(len(of)) / of.mean())


def regrets(config: Config, table: str, strategy: str, plan: StrategyConfig, label: str) -> np.ndarray:
    """Of each search: the table's best test accuracy less that of what it ended with."""
    folder = config.out / f"{table}-{label}"
    options = TableOptions(
        table=table,
        data_dir=config.data_dir,
        strategies=(strategy,),
        seeds=config.seeds,
        plan=plan,
    )
    done: Comparison = compare(options, spaces_with, folder, resume=config.resume and is_comparison(folder))
    (searches,) = done.complete().values()
    return done.optimum - np.array([search.test_accuracies[-1] for search in searches])


def chosen(found: Sequence[Value]) -> dict[str, Value]:
    """By strategy, the value of its setting with the least regret."""
    best: dict[str, Value] = {}
    for one in found:
        if one.strategy not in best or one.mean < best[one.strategy].mean:
            best[one.strategy] = one
    return best


INTRODUCTION = """Made by `python scripts/tune_strategies.py --page docs/guide/tuned_settings.md`: regret in test
accuracy after 50 trainings, as a part of random search's over the same table; ± is one standard error of the mean.
The least is the default of the strategy, so that what is reported on NAS-Bench-201 has chosen nothing."""


def lines(found: Sequence[Value], config: Config) -> Iterator[str]:
    best = chosen(found)
    head = ["Strategy", "Setting", "Value", *config.tables, "Mean", "Chosen", "Default"]
    rows = [head]
    for one in found:
        default = getattr(STRATEGIES[one.strategy].config(), one.setting)
        rows.append(
            [
                one.strategy,
                one.setting,
                f"{one.value}",
                *(f"{part:.3f}" for part in one.parts),
                f"{one.mean:.3f} ± {one.error:.3f}",
                "chosen" if best[one.strategy] is one else "",
                "default" if default == one.value else "",
            ]
        )
    yield result_table.markdown(rows)
    yield f"{config.seeds} searches of each value over each table."


if __name__ == "__main__":
    run(main, compute=True)
