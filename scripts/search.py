"""Search a space with one strategy: python scripts/search.py --space chain --dataset cifar10 --strategy hyperband

What a strategy can be told: python scripts/search.py --strategy hyperband --help
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from _strategies import strategy_options

from _cli import print_table
from nas.errors import InputError
from nas.run.command_line import run
from nas.run.methods import SEARCHES, label_of
from nas.run.options import TOPICS, SearchOptions, narrowed

DEFAULT = "random"


@dataclasses.dataclass(frozen=True)
class Config:
    """Search a space of networks with one strategy; record, train the best network anew and test it."""

    strategy: str = DEFAULT
    out: Path | None = None
    """folder of the run; default: runs/SPACE-DATASET-STRATEGY-SEED"""
    resume: bool = False
    """go on with the run in that folder"""
    describe: bool = False
    """print the space, as fixed and narrowed, and its size; search nothing"""
    options: SearchOptions = dataclasses.field(default_factory=SearchOptions)


def config_type(argv: list[str]) -> type:
    """`Config` with the options of the strategy named."""
    return strategy_options(Config, argv, "strategy", (DEFAULT,), SEARCHES)


def main(config: Config) -> None:
    # Here: --help does not wait for jax and the networks.
    from nas.run.search import search
    from nas.run.several import nothing_found
    from nas.trial import values_text
    from search_spaces import spaces_with

    options = config.options
    spaces = spaces_with(options.space)
    if config.describe:
        print(narrowed(options, spaces).describe())
        return
    name = f"{Path(options.space).stem}-{options.data.label}-{label_of(config.strategy)}-{options.plan.seed}"
    out = config.out or Path("runs") / name.replace("/", "_")
    result = search(options, config.strategy, out, spaces, resume=config.resume)
    print_table([result])
    if result.best is None:
        raise InputError(nothing_found(result))
    space, several = spaces[options.space], len(options.objective) > 1
    for trial in result.front if several else ():
        print(f"front: {options.space}:{space.to_string(trial.arch)} {values_text(trial.values)}")
    if not several:
        print(f"\nbest: {options.space}:{space.to_string(result.best.chosen)}")
    print(f"plots: python scripts/report.py {out}")


if __name__ == "__main__":
    run(main, config_type, compute=True, topics=TOPICS)
