"""Search a space with one strategy: python scripts/search.py --space chain --dataset cifar10 --strategy hyperband"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from _cli import print_table, run
from nas.errors import InputError
from nas.run.sweep import SearchOptions, check_strategies, narrowed, search
from search_spaces import spaces_with


@dataclasses.dataclass(frozen=True)
class Config(SearchOptions):
    """Search a space of networks with one strategy; record, train the best network anew and test it."""

    strategy: str = "random"
    """grid, random, local_search, successive_halving, hyperband, bohb, asha, tpe, evolution, reinforce, bananas; or
    with shared weights darts, darts_first, darts_plus, robust_darts, sdarts_rs, sdarts_adv, gdas, drnas, fair_darts,
    pc_darts, p_darts, rsps, spos"""
    out: Path | None = None
    """folder of the run; default: runs/SPACE-DATASET-STRATEGY-SEED"""
    resume: bool = False
    """go on with the run in that folder"""
    describe: bool = False
    """print the space, as fixed and narrowed, and its size; search nothing"""


def main(config: Config) -> None:
    spaces = spaces_with(config.space)
    if config.describe:
        print(narrowed(config, spaces).describe())
        return
    check_strategies([config.strategy], config.supernet)
    name = f"{Path(config.space).stem}-{config.data.dataset}-{config.strategy}-{config.plan.seed}"
    out = config.out or Path("runs") / name.replace("/", "_")
    options = SearchOptions(**{f.name: getattr(config, f.name) for f in dataclasses.fields(SearchOptions)})
    result = search(options, config.strategy, out, spaces, resume=config.resume)
    print_table([result])
    if result.best is None:
        raise InputError(f"{out}: no trial could be measured; trials.jsonl there says why")
    print(f"\nbest: {config.space}:{spaces[config.space].to_string(result.best.chosen)}")
    print(f"plots: python scripts/report.py {out}")


if __name__ == "__main__":
    run(main, compute=True)
