"""Ask/tell searchers, one module a strategy: ``STRATEGIES[name](space, config)`` is a fresh one.

A strategy is added by a module with a `StrategyRecord` and by a line in `STRATEGIES`.
"""

from nas.strategies import (
    asha,
    bananas,
    bohb,
    evolution,
    grid,
    hyperband,
    local_search,
    mo_asha,
    mo_evolution,
    mo_local_search,
    mo_tpe,
    nsga2,
    parego,
    random,
    reinforce,
    successive_halving,
    tpe,
)
from nas.strategies.base import (
    PlannedBudget,
    Strategy,
    StrategyConfig,
    StrategyRecord,
    combined_config,
    converted,
    filtered,
    promote,
    recorded,
    rung_score,
    sample_architecture,
    sample_architectures,
    trial_seed,
)

STRATEGIES: dict[str, StrategyRecord] = {
    "grid": grid.RECORD,
    "random": random.RECORD,
    "successive_halving": successive_halving.RECORD,
    "hyperband": hyperband.RECORD,
    "asha": asha.RECORD,
    "tpe": tpe.RECORD,
    "evolution": evolution.RECORD,
    "local_search": local_search.RECORD,
    "reinforce": reinforce.RECORD,
    "bananas": bananas.RECORD,
    "bohb": bohb.RECORD,
    "nsga2": nsga2.RECORD,
    "mo_evolution": mo_evolution.RECORD,
    "mo_local_search": mo_local_search.RECORD,
    "mo_asha": mo_asha.RECORD,
    "parego": parego.RECORD,
    "mo_tpe": mo_tpe.RECORD,
}

__all__ = [
    "STRATEGIES",
    "PlannedBudget",
    "Strategy",
    "StrategyConfig",
    "StrategyRecord",
    "combined_config",
    "converted",
    "filtered",
    "promote",
    "recorded",
    "rung_score",
    "sample_architecture",
    "sample_architectures",
    "trial_seed",
]
