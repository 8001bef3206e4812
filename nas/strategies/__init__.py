"""Ask/tell searchers, one module a strategy: ``STRATEGIES[name](space, config)``."""

from collections.abc import Callable

from nas.space import SearchSpace
from nas.strategies import asha, evolution, grid, hyperband, random, successive_halving, tpe
from nas.strategies.base import (
    Strategy,
    StrategyConfig,
    promote,
    recorded,
    rung_score,
    sample_architecture,
    trial_seed,
)

STRATEGIES: dict[str, Callable[[SearchSpace, StrategyConfig], Strategy]] = {
    "grid": grid.grid,
    "random": random.random,
    "successive_halving": successive_halving.successive_halving,
    "hyperband": hyperband.hyperband,
    "asha": asha.asha,
    "tpe": tpe.tpe,
    "evolution": evolution.evolution,
}

__all__ = [
    "STRATEGIES",
    "Strategy",
    "StrategyConfig",
    "promote",
    "recorded",
    "rung_score",
    "sample_architecture",
    "trial_seed",
]
