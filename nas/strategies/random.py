"""Random search (Bergstra and Bengio, "Random search for hyper-parameter optimization", JMLR 2012)."""

from __future__ import annotations

from nas.space import SearchSpace
from nas.strategies.base import FullBudget, Strategy, StrategyConfig, StrategyRecord, drawn


def random(space: SearchSpace, config: StrategyConfig) -> Strategy:
    """Independent draws, each for the whole budget; without end unless ``config.trials`` is set."""
    return FullBudget(space, config, lambda i: drawn(space, config.seed, i))


RECORD = StrategyRecord(random, objectives="any")
