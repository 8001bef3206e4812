"""Statistics over runs and over searches, from records alone."""

from nas.report.statistics.anytime_curves import Cost, Curve, anytime, incumbent, pareto_front
from nas.report.statistics.bootstrap import (
    RESAMPLES,
    Estimate,
    Statistic,
    estimate,
    interquartile_mean,
    performance_profile,
    probability_of_improvement,
    speed_up,
)
from nas.report.statistics.correlation import kendall, spearman
from nas.report.statistics.importance import Attribution, Importance, which_choices_mattered
from nas.report.statistics.incumbents import Trace, at_costs, cost_grid, cost_to_reach, regret, trace
from nas.report.statistics.intervals import FEWEST, FRACTION, Interval, mean_interval
from nas.report.statistics.random_experiments import (
    DRAWS,
    Experiments,
    accuracy_variance,
    chances_of_being_best,
    efficiency_curve,
    experiments,
)
from nas.report.statistics.ranks import (
    CriticalDifference,
    PairedTest,
    critical_difference,
    holm,
    paired_tests,
)

__all__ = [
    "DRAWS",
    "FEWEST",
    "FRACTION",
    "RESAMPLES",
    "Attribution",
    "Cost",
    "CriticalDifference",
    "Curve",
    "Estimate",
    "Experiments",
    "Importance",
    "Interval",
    "PairedTest",
    "Statistic",
    "Trace",
    "accuracy_variance",
    "anytime",
    "at_costs",
    "chances_of_being_best",
    "cost_grid",
    "cost_to_reach",
    "critical_difference",
    "efficiency_curve",
    "estimate",
    "experiments",
    "holm",
    "incumbent",
    "interquartile_mean",
    "kendall",
    "mean_interval",
    "paired_tests",
    "pareto_front",
    "performance_profile",
    "probability_of_improvement",
    "regret",
    "spearman",
    "speed_up",
    "trace",
    "which_choices_mattered",
]
