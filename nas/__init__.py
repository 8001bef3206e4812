"""Neural architecture search in JAX and Flax.

    import nas

    run = nas.search("chain", "digits", strategy="random", trials=4, epochs=2, engine="local")
    run.best.arch, run.to_pandas(), run.plot()

`search` and `compare` run searches, `load_run` and `load_runs` read what they recorded. A space, a data set, a
strategy and an objective are each given by name, by file or as a value. Nothing heavy is imported before it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nas.api import Run, Runs, TableRuns, compare, draw, load_run, load_runs, search, trainable
    from nas.data.config import DataConfig
    from nas.errors import InputError
    from nas.run.options import SearchOptions
    from nas.space import (
        Architecture,
        Categorical,
        Constraint,
        Integer,
        LogUniform,
        SearchSpace,
        Uniform,
        When,
    )
    from nas.strategies import STRATEGIES, StrategyConfig, StrategyRecord
    from nas.training.config import TrainingConfig
    from nas.trial import Measurement, Trial

_HOMES = {
    "nas.api": (
        "Run",
        "Runs",
        "TableRuns",
        "compare",
        "draw",
        "load_run",
        "load_runs",
        "search",
        "trainable",
    ),
    "nas.data.config": ("DataConfig",),
    "nas.errors": ("InputError",),
    "nas.run.options": ("SearchOptions",),
    "nas.space": (
        "Architecture",
        "Categorical",
        "Constraint",
        "Integer",
        "LogUniform",
        "SearchSpace",
        "Uniform",
        "When",
    ),
    "nas.strategies": ("STRATEGIES", "StrategyConfig", "StrategyRecord"),
    "nas.training.config": ("TrainingConfig",),
    "nas.trial": ("Measurement", "Trial"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "STRATEGIES",
    "Architecture",
    "Categorical",
    "Constraint",
    "DataConfig",
    "InputError",
    "Integer",
    "LogUniform",
    "Measurement",
    "Run",
    "Runs",
    "SearchOptions",
    "SearchSpace",
    "StrategyConfig",
    "StrategyRecord",
    "TableRuns",
    "TrainingConfig",
    "Trial",
    "Uniform",
    "When",
    "compare",
    "draw",
    "load_run",
    "load_runs",
    "search",
    "trainable",
]


def __getattr__(name: str) -> Any:
    """What `__all__` names is imported when it is first used (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'nas' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
