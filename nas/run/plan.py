"""What a search will be, from its options, before anything is computed or written."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from nas.errors import InputError, one_of
from nas.goals import LATENCY, ROOFLINES, TRAIN, Goals, parse_goals
from nas.objectives.latency import device_of
from nas.objectives.oneshot import SupernetSetup
from nas.objectives.own import OBJECTIVES, Function, OwnSetup, own_named, yields
from nas.objectives.predicted_latency import LatencyPredictor
from nas.objectives.quantities import PREDICTIONS, TRAINED, QuantitiesSetup, sign_of
from nas.objectives.score import ScoreSetup, check_score
from nas.objectives.several import SeveralSetup
from nas.objectives.train import TrainSetup
from nas.proxies import PROXIES, Proxy
from nas.run.filtering import Filter
from nas.run.latency_fitting import agreements, checked_predictor
from nas.run.methods import search_named
from nas.run.options import SearchOptions, hyper_defaults, local_accelerators, narrowed
from nas.run.roofline import RooflineSetup
from nas.space import SearchSpace
from nas.strategies import STRATEGIES, Strategy, StrategyConfig, StrategyRecord
from nas.strategies.hyperband import HyperbandConfig, brackets
from nas.strategies.successive_halving import budget_of

DEFAULT_TRIALS = 20  # of a strategy without an end, where nothing says how long
LARGEST_PLAN = 10_000  # more trials than these, unasked for, are more likely a slip than a wish


@dataclasses.dataclass(frozen=True)
class Plan:
    """A search, ready to be run by either engine.

    ``goals``: where there are several objectives, or constraints; else None. ``config`` is the strategy's own.
    ``setup`` makes the objective of the trials, ``final_setup`` that of the final
    trainings. ``planned_epochs`` is what the search takes at most, ``total_epochs`` what its trials may take where
    that ends it. ``note``: what the user should know of it, in one line.
    """

    record: StrategyRecord
    space: SearchSpace
    config: StrategyConfig
    setup: TrainSetup | SupernetSetup | ScoreSetup | SeveralSetup | OwnSetup
    final_setup: TrainSetup | SupernetSetup
    final_epochs: int
    planned_epochs: float
    total_epochs: int | None
    training_free: Filter | None
    note: str | None
    goals: Goals | None = None

    def strategy(self) -> Strategy:
        """A fresh one."""
        return self.record(self.space, self.config)


def plan(options: SearchOptions, strategy: str, spaces: Mapping[str, SearchSpace]) -> Plan:
    """Raises InputError where an option cannot be meant."""
    record, space = search_named(strategy), narrowed(options, spaces)
    goals = goals_of(options)
    check_scores(options, strategy, goals)
    config, total_epochs = record.own(options.plan), options.total_epochs
    final_epochs = options.final_epochs or config.epochs
    trains = options.objective == (TRAIN,)
    if goals is not None:
        check_goals(options, strategy, goals)
        trains = any(name in TRAINED for name in goals.names)
    own = None if goals is not None else own_objective(options)
    if not trains and (own is None or not yields(own)):  # a score, or one number, takes one unit of budget
        config = dataclasses.replace(config, epochs=1)
    if record.shares_weights and total_epochs is not None:  # an equal share for each search
        searches = int(planned(record, config, space))
        config = dataclasses.replace(config, epochs=max(1, total_epochs // searches))
        total_epochs = None
    config, planned_epochs, note = filled_in(strategy, config, space, total_epochs)
    train = TrainSetup(
        space,
        options.data.placed(),
        options.training,
        epochs=config.epochs,
        defaults=hyper_defaults(options, space),
    )
    final_setup = SupernetSetup(train, config.epochs) if record.shares_weights else train
    training_free = None
    if options.filter is not None:
        training_free = Filter(score_setup(options, space, options.filter), options.filter_candidates)
    setup: TrainSetup | SupernetSetup | ScoreSetup | SeveralSetup | OwnSetup = final_setup
    if goals is not None:
        setup = several_setup(options, train, goals)
    elif own is not None:
        setup = OwnSetup(options.objective[0], own, train)
    elif not trains:
        setup = score_setup(options, space, options.objective[0])
    return Plan(
        record,
        space,
        config,
        setup,
        final_setup,
        final_epochs,
        planned_epochs,
        total_epochs,
        training_free,
        note,
        goals,
    )


def filled_in(
    strategy: str, config: StrategyConfig, space: SearchSpace, total_epochs: int | None
) -> tuple[StrategyConfig, float, str | None]:
    """The strategy's own config with what was left open, the epochs of the search at most, and a note or None.

    A strategy without an end of its own gets ``DEFAULT_TRIALS`` where neither trials nor total epochs are given;
    one with an end goes round again where total epochs are. Raises InputError.
    """
    record = search_named(strategy)
    budget = record.planned_budget(config, space)
    if budget is None and total_epochs is None:
        config = dataclasses.replace(config, trials=DEFAULT_TRIALS)
        budget = record.planned_budget(config, space)
    if total_epochs is not None:
        trials = total_epochs / config.epochs
        if budget is not None:
            trials = budget.trials * total_epochs / budget.epochs
        config, epochs = config.without_end(), total_epochs
    else:
        assert budget is not None
        trials, epochs = budget
        if config.trials is None and trials > LARGEST_PLAN:
            raise InputError(
                f"{strategy}: {trials:g} architectures; say --trials or --total-epochs, or --fix and --narrow the space"
            )
    return config, epochs, random_search_note(strategy, config, space, trials)


def random_search_note(
    strategy: str, config: StrategyConfig, space: SearchSpace, trials: float
) -> str | None:
    """Where so few trials of so few epochs make a strategy random search, one line that says so."""
    start = search_named(strategy).random_trials(config, space)
    if trials > start:
        return None
    if start == float("inf"):
        return f"{strategy} with epochs={config.epochs} has no rung to stop at: it is random search"
    return f"{strategy} draws its first {start:g} trials at random: with {int(trials)} trials it is random search"


def planned(record: StrategyRecord, config: StrategyConfig, space: SearchSpace) -> float:
    """How many trials a search with an end of its own starts."""
    budget = record.planned_budget(config, space)
    assert budget is not None
    return budget.trials


def pass_epochs(config: StrategyConfig) -> int:
    """Epochs of one pass of Hyperband: the default budget of a comparison."""
    own = search_named("hyperband").own(config)
    assert isinstance(own, HyperbandConfig)
    return int(budget_of(brackets(own.epochs, own.eta, own.rounding)).epochs)


def check_strategies(names: Iterable[str]) -> None:
    """Raises InputError for an unknown strategy."""
    for name in names:
        search_named(name)


def goals_of(options: SearchOptions) -> Goals | None:
    """What a search is after; None where that is the validation accuracy, a score or an own objective alone.

    Raises InputError.
    """
    alone = len(options.objective) == 1 and not options.constraint
    name = options.objective[0] if alone else ""
    if alone and (name in (TRAIN, *PROXIES) or own_named(name) is not None):
        return None
    return parse_goals(options.objective, options.constraint, sign_of)


def check_goals(options: SearchOptions, strategy: str, goals: Goals) -> None:
    """Raises InputError where the strategy cannot be after these goals, or a device is not there to measure on."""
    record = search_named(strategy)
    told = " ".join((*options.objective, *options.constraint))
    if record.shares_weights:
        raise InputError(
            f"objective: {told}: {strategy} trains shared weights and measures no single networks"
        )
    if len(goals.objectives) > 1 and record.objectives == "one":
        those = ", ".join(name for name, other in STRATEGIES.items() if other.objectives != "one")
        raise InputError(f"objective: {told}: {strategy} takes one objective; for several there are {those}")
    if LATENCY in goals.names:
        check_device(options)


def check_device(options: SearchOptions) -> None:
    """Raises InputError where there is no such device as the latency is to be measured on.

    Where workers have the accelerators this process does not touch them; their device files are looked for.
    """
    name = options.latency.latency_device
    if options.engine == "local":
        device_of(name)
    elif (
        name is not None and options.address is None and name not in (here := ("cpu", *local_accelerators()))
    ):
        raise one_of("latency_device", name, here)


def several_setup(options: SearchOptions, train: TrainSetup, goals: Goals) -> SeveralSetup:
    """How a trial is measured by several objectives, or under constraints."""
    quantities = QuantitiesSetup(
        train.space,
        options.data.placed(),
        tuple(name for name in goals.names if name not in TRAINED),
        options.latency,
        options.plan.seed,
        options.score_batch_size,
        predictor=predictor_of(options, train, goals),
        roofline=roofline_of(options, train, goals),
    )
    return SeveralSetup(goals, train, quantities)


def predictor_of(options: SearchOptions, train: TrainSetup, goals: Goals) -> LatencyPredictor | None:
    """What predicts latencies, where that is asked for; says first how well it does. Raises InputError."""
    folder, wanted = options.latency.latency_predictor, [name for name in goals.names if name in PREDICTIONS]
    if folder is None or not wanted:
        if wanted:
            raise InputError(
                f"{wanted[0]}: say --latency-predictor FOLDER, made by scripts/predict_latency.py"
            )
        return None
    predictor = checked_predictor(Path(folder), train.space, options.data.load(), options.latency)
    for found in agreements(predictor, wanted):
        tau = f"{found.tau.value:.2f} [{found.tau.low:.2f}, {found.tau.high:.2f}]"
        over = f"over {len(predictor.networks)} networks"
        print(f"note: {found.name}: Kendall's tau with the measured latency {tau} {over}", file=sys.stderr)
    return predictor


def roofline_of(options: SearchOptions, train: TrainSetup, goals: Goals) -> RooflineSetup | None:
    """What asks the TPU compiler, where that is wanted. Raises InputError where it is not installed."""
    if not set(ROOFLINES).intersection(goals.names):
        return None
    return RooflineSetup(train.space, options.latency.latency_tpu, options.latency.latency_batch)


def check_scores(options: SearchOptions, strategy: str, goals: Goals | None = None) -> None:
    """Raises InputError for a score that is none, or one where a search with shared weights has no use for it."""
    objective = None if goals is not None else options.objective[0]
    for name, score in (("objective", objective), ("filter", options.filter)):
        if score is None or (name, score) == ("objective", TRAIN):
            continue
        own = own_named(score, name)
        if own is None:
            check_score(score, name, *([TRAIN, *OBJECTIVES] if name == "objective" else []))
        elif name == "filter" and not isinstance(own, Proxy):
            raise InputError(
                f"filter: {score} is no training-free score: a function of probe, or a nas.proxies.Proxy"
            )
        if search_named(strategy).shares_weights:
            raise InputError(
                f"{name}: {score}: {strategy} trains shared weights and ranks no single networks"
            )


def own_objective(options: SearchOptions) -> Function | None:
    """The user's own objective, None where it is one of this code or a training-free score. Raises InputError."""
    own = own_named(options.objective[0])
    return None if isinstance(own, Proxy) else own


def score_setup(options: SearchOptions, space: SearchSpace, score: str) -> ScoreSetup:
    """How the options have networks scored."""
    own = own_named(score)
    proxy = PROXIES[score] if own is None else own
    assert isinstance(proxy, Proxy)  # `check_scores` says so
    return ScoreSetup(space, options.data.placed(), score, options.plan.seed, options.score_batch_size, proxy)
