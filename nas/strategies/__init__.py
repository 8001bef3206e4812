"""Ask/tell searchers, one module a strategy: ``STRATEGIES[name](space, config)``."""

from collections.abc import Callable

from nas.space import SearchSpace
from nas.strategies import (
    asha,
    bananas,
    bohb,
    evolution,
    grid,
    hyperband,
    local_search,
    random,
    reinforce,
    successive_halving,
    tpe,
)
from nas.strategies.base import (
    Strategy,
    StrategyConfig,
    filtered,
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
    "local_search": local_search.local_search,
    "reinforce": reinforce.reinforce,
    "bananas": bananas.bananas,
    "bohb": bohb.bohb,
}

__all__ = [
    "STRATEGIES",
    "Strategy",
    "StrategyConfig",
    "filtered",
    "promote",
    "recorded",
    "rung_score",
    "sample_architecture",
    "trial_seed",
]
