"""One search from its options to its record: space, data, strategy, engine, final trainings, in this order."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from nas import cpu
from nas.errors import InputError, one_of
from nas.objectives.oneshot import SupernetObjective, SupernetSetup, settings_space, supernet_of
from nas.objectives.score import ScoreObjective, ScoreSetup, check_score
from nas.objectives.train import DataConfig, FinalJob, TrainObjective, TrainSetup, check_devices
from nas.oneshot.settings import METHODS
from nas.record import MAY_DIFFER, Record, Run
from nas.run import local
from nas.run.filtering import Clocked, Filter
from nas.run.progress import Progress
from nas.space import Range, SearchSpace, parse_assignments
from nas.strategies import STRATEGIES, StrategyConfig, filtered, hyperband, successive_halving
from nas.strategies.successive_halving import Bracket
from nas.training.hyper import Hyper
from nas.training.loop import TrainingConfig
from nas.trial import Final

# Every strategy by name, those with shared weights last: each of their trials is a whole search.
NAMES = (*STRATEGIES, *METHODS)
# Strategies with no end of their own.
UNBOUNDED = ("random", "asha", "tpe", "evolution", "local_search", "reinforce", "bananas")
HALVING = {"successive_halving": successive_halving.plan, "hyperband": hyperband.plan, "bohb": hyperband.plan}
IN_PROCESS = ("bohb",)  # strategies that Ray Tune has no part for
LARGEST_GRID = 1000  # a whole grid beyond this is more likely a slip than a wish


@dataclasses.dataclass(frozen=True)
class SearchOptions:
    """What every search has, whichever its strategy."""

    space: str = "chain"
    """name of the search space"""
    fix: tuple[str, ...] = ()
    """choices with one value: connections=residual depth=3 (width means every width_<i>)"""
    narrow: tuple[str, ...] = ()
    """choices with fewer values: width=16,32 learning_rate=1e-3..1e-2"""
    hyper: tuple[str, ...] = ()
    """training hyperparameters that the space leaves open: learning_rate=0.1 batch_size=128"""
    objective: str = "train"
    """what a search maximises: train, the validation accuracy; or a training-free score (naswot, ntk_condition, …),
    in which case only the final trainings train"""
    filter: str | None = None
    """a training-free score: each new trial is the best by it of --filter-candidates that the strategy proposes"""
    filter_candidates: int = 100
    """how many networks are scored for one to be trained"""
    score_batch_size: int = 32
    """training images that scores are computed on"""
    total_epochs: int | None = None
    """epochs that all trials of a search together may take"""
    supernet: tuple[str, ...] = ()
    """settings of a search with shared weights: channels=8 order=first,exact (several values are several searches)"""
    engine: Literal["ray", "local"] = "ray"
    """ray: trials side by side, on this machine or a cluster; local: one after the other in this process"""
    workers: int | None = None
    """trials side by side (ray); default: one an accelerator, else one a CPU core"""
    cpus_per_worker: int | None = None
    """CPU threads of a worker (ray); default: the cores divided by the workers"""
    gpus_per_worker: float | None = None
    """accelerators of a worker (ray); default: 1 where there are any"""
    address: str | None = None
    """a running Ray cluster to use (ray), such as auto; default: this machine"""
    test_seeds: int = 3
    """times that the best network is trained again, from other seeds, and tested; 0: not at all"""
    final_epochs: int | None = None
    """epochs of these final trainings; default: --epochs"""
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
    plan: StrategyConfig = dataclasses.field(default_factory=StrategyConfig)

    def __post_init__(self) -> None:
        for name, low in (
            ("filter_candidates", 1),
            ("score_batch_size", 2),
            ("total_epochs", 1),
            ("workers", 1),
            ("cpus_per_worker", 1),
            ("test_seeds", 0),
            ("final_epochs", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < low:
                raise InputError(f"{name}: {value} is below {low}")


def narrowed(options: SearchOptions, spaces: Mapping[str, SearchSpace]) -> SearchSpace:
    """The search space that ``--space``, ``--fix`` and ``--narrow`` describe. Raises InputError."""
    if options.space not in spaces:
        raise one_of("space", options.space, spaces)
    return spaces[options.space].searched(fix=options.fix, narrow=options.narrow)


def hyperparameters(texts: Iterable[str]) -> dict[str, Any]:
    """``["learning_rate=0.1"]`` as values of `Hyper`'s fields. Raises InputError."""
    kinds = {f.name: type(f.default) for f in dataclasses.fields(Hyper) if not isinstance(f.default, tuple)}
    values: dict[str, Any] = {}
    for name, to in parse_assignments(texts).items():
        if name not in kinds:
            raise one_of("hyper", name, kinds)
        if isinstance(to, Range) or len(to) != 1:
            raise InputError(f"hyper: {name} needs one value")
        try:
            values[name] = kinds[name](to[0])
        except ValueError:
            raise InputError(f"hyper: {name}={to[0]} is not {kinds[name].__name__}") from None
    Hyper(**values)
    return values


def hyper_defaults(options: SearchOptions, space: SearchSpace) -> dict[str, Any]:
    """The hyperparameters given for what ``space`` leaves open. Raises InputError."""
    values = hyperparameters(options.hyper)
    for name in values:
        if name in space.choices:
            raise InputError(f"hyper: {name} is a choice of {space.name}; --fix {name}=… sets it")
    return values


def plan_of(options: SearchOptions, strategy: str, space: SearchSpace) -> tuple[StrategyConfig, int]:
    """The strategy's settings with what was left open filled in, and the epochs it will take at most.

    A strategy with no end of its own gets 20 trials where neither trials nor total epochs are given; one
    with an end goes round again where total epochs are. Raises InputError.
    """
    if strategy not in NAMES:
        raise one_of("strategy", strategy, NAMES)
    plan = options.plan
    if plan.trials is None and options.total_epochs is None:
        if strategy in UNBOUNDED:
            plan = dataclasses.replace(plan, trials=20)
        elif strategy == "grid" and space.size(plan.grid_points).value > LARGEST_GRID:
            raise InputError(
                f"grid: {space.size(plan.grid_points).value} architectures at grid_points={plan.grid_points}; "
                "say --trials or --total-epochs, or --fix and --narrow the space"
            )
    elif strategy in HALVING and plan.trials is None:
        plan = dataclasses.replace(plan, iterations=None)
    if options.total_epochs is not None:
        return plan, options.total_epochs
    if strategy in HALVING:
        return plan, sum(map(bracket_epochs, HALVING[strategy](plan)))
    trials = plan.trials or space.size(plan.grid_points).value
    return plan, int(trials) * plan.epochs


def check_strategies(names: Iterable[str], supernet: Iterable[str]) -> None:
    """Raises InputError for an unknown strategy, and for settings of a supernet where none has one."""
    names = tuple(names)
    for name in names:
        if name not in NAMES:
            raise one_of("strategy", name, NAMES)
    for text in supernet:
        if not set(names) & set(METHODS):
            raise InputError(f"supernet: {text}: {' '.join(names)}: no search with shared weights")


def pass_epochs(plan: StrategyConfig) -> int:
    """Epochs of one pass of Hyperband: the default budget of a comparison."""
    return sum(map(bracket_epochs, hyperband.brackets(plan.epochs, plan.eta, plan.rounding)))


def bracket_epochs(bracket: Bracket) -> int:
    """Epochs of one bracket, promoted trials going on from where they were."""
    budgets = [0, *(rung.budget for rung in bracket.rungs)]
    return sum(
        rung.trials * (rung.budget - before) for rung, before in zip(bracket.rungs, budgets, strict=False)
    )


def flat(options: SearchOptions, **more: Any) -> dict[str, Any]:
    """The options as one flat dictionary: what ``config.json`` holds."""
    config: dict[str, Any] = {}
    for name, value in dataclasses.asdict(options).items():
        config |= value if isinstance(value, dict) else {name: value}
    return config | more


def search(
    options: SearchOptions,
    strategy: str,
    out: Path,
    spaces: Mapping[str, SearchSpace],
    *,
    resume: bool = False,
    tested: Iterable[Final] = (),
) -> Run:
    """Search, then train the best network anew over several seeds and test it; all of it recorded in ``out``.

    ``tested`` are final trainings of other searches with the same options: where one has the network, seed
    and epochs that this search would train, the result would be the same and is recorded as it is, seconds
    included. Raises InputError before anything is written where an option cannot be meant.
    """
    if strategy in IN_PROCESS and options.engine == "ray":
        raise InputError(
            f"strategy: {strategy} learns within its brackets, which Tune decides; use --engine local"
        )
    space = narrowed(options, spaces)
    final_epochs = options.final_epochs or options.plan.epochs
    trains = options.objective == "train"
    _check_scores(options, strategy)
    if not trains:  # a score takes one unit of budget
        options = dataclasses.replace(options, plan=dataclasses.replace(options.plan, epochs=1))
    train_setup = TrainSetup(
        space,
        options.data,
        options.training,
        epochs=options.plan.epochs,
        defaults=hyper_defaults(options, space),
    )
    setup: TrainSetup | SupernetSetup | ScoreSetup = train_setup
    if strategy in METHODS:
        # All settings and seeds are a grid; each of its points is one search, for an equal share of the epochs.
        given, total_epochs = options.plan, None
        asked, proposer = (
            settings_space(strategy, supernet_of(space), options.supernet, given.trials or 1),
            "grid",
        )
        searches = int(asked.size().value)
        epochs = max(1, (options.total_epochs or searches * given.epochs) // searches)
        plan = dataclasses.replace(given, trials=None, epochs=epochs, grid_shuffle=False)
        planned_epochs, setup = searches * epochs, SupernetSetup(train_setup, epochs)
    else:
        if not trains:
            setup = score_setup(options, space, options.objective)
        asked, proposer, total_epochs = space, strategy, options.total_epochs
        plan, planned_epochs = plan_of(options, strategy, space)
    searcher = STRATEGIES[proposer](asked, plan)
    training_free = None
    if options.filter is not None:
        training_free = Filter(score_setup(options, space, options.filter), options.filter_candidates)
    # What is wrong with the data is said now; and data and native kernels are there for the workers.
    options.data.load()
    cpu.native_status()
    config = flat(options, **dataclasses.asdict(plan), strategy=strategy, final_epochs=final_epochs)
    if options.engine == "local":
        check_devices(options.training)
    opened = Record.resume(out, config, may_differ=MAY_DIFFER) if resume else Record.create(out, config)
    with opened as record, contextlib.ExitStack() as stack:
        if record.run().done:
            return record.run()
        view = Progress(f"{strategy} seed {plan.seed}", planned_epochs=planned_epochs)
        common: dict[str, Any] = {"total_epochs": total_epochs, "on_event": view}
        if options.engine == "local":
            objective = setup(out / "checkpoints")
            if training_free is not None:
                scores = training_free.setup()
                score = Clocked(lambda arch: scores.signed(arch)[:2])
                searcher = filtered(searcher, score, training_free.candidates)
                common["choosing_seconds"] = score.settle
            with view:
                local.search(searcher, objective, record, epochs=plan.epochs, **common)
            trainer = train_setup(None) if isinstance(objective, ScoreObjective) else objective
            train = functools.partial(finals_here, trainer)
        else:
            from nas.run import ray_tune  # 2 s of imports that the local engine does without

            cluster = ray_tune.Cluster(**cluster_of(options))
            stack.enter_context(ray_tune.session(cluster))
            with view:
                ray_tune.search(
                    asked,
                    proposer,
                    plan,
                    setup,
                    record,
                    cluster=cluster,
                    training_free=training_free,
                    **common,
                )
            trainer = train_setup if isinstance(setup, ScoreSetup) else setup
            train = functools.partial(ray_tune.finals, trainer, out / "checkpoints", cluster=cluster)
        best = record.run().best
        if best is not None:
            have = {final.seed for final in record.finals}
            jobs = [
                FinalJob(best.chosen, seed, final_epochs)
                for seed in range(options.test_seeds)
                if seed not in have
            ]
            known = {FinalJob(f.arch, f.seed, f.epochs): f for f in tested if f.error is None}
            for final in itertools.chain(
                (known[job] for job in jobs if job in known), train([job for job in jobs if job not in known])
            ):
                record.final(final)
        record.done()
        return record.run()


def _check_scores(options: SearchOptions, strategy: str) -> None:
    """Raises InputError for a score that is none, or one where a search with shared weights has no use for it."""
    for name, score in (("objective", options.objective), ("filter", options.filter)):
        if score is None or (name, score) == ("objective", "train"):
            continue
        check_score(score, name, *(["train"] if name == "objective" else []))
        if strategy in METHODS:
            raise InputError(
                f"{name}: {score}: {strategy} trains shared weights and ranks no single networks"
            )


def score_setup(options: SearchOptions, space: SearchSpace, score: str) -> ScoreSetup:
    """How the options have networks scored."""
    return ScoreSetup(space, options.data, score, options.plan.seed, options.score_batch_size)


def finals_here(objective: TrainObjective | SupernetObjective, jobs: Iterable[FinalJob]) -> Iterator[Final]:
    """The final trainings one after the other in this process."""
    return (objective.final(*job) for job in jobs)


@contextlib.contextmanager
def session(options: SearchOptions) -> Iterator[None]:
    """Several searches within it share one start of Ray; nothing for the local engine."""
    if options.engine == "local":
        yield
        return
    from nas.run import ray_tune

    with ray_tune.session(ray_tune.Cluster(**cluster_of(options))):
        yield


def cluster_of(options: SearchOptions) -> dict[str, Any]:
    """The arguments of `ray_tune.Cluster` that the options mean on this machine."""
    accelerators = local_accelerators() if options.address is None else {}
    given = {"cpus_per_worker": options.cpus_per_worker, "address": options.address}
    if accelerators.get("tpu"):
        return given | {"workers": options.workers or 1, "tpus_per_worker": accelerators["tpu"]}
    gpus = options.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if accelerators.get("gpu") else 0.0
    workers = options.workers or (
        int(accelerators.get("gpu", 1) / gpus) if gpus else len(os.sched_getaffinity(0))
    )
    return given | {"workers": max(1, workers), "gpus_per_worker": gpus}


def local_accelerators() -> dict[str, int]:
    """How many GPUs and TPU chips this machine has, by their device files: asking jax would take them."""
    gpus = len(list(Path("/dev").glob("nvidia[0-9]*")))
    tpus = len(list(Path("/dev").glob("accel[0-9]*"))) or len(list(Path("/dev").glob("vfio/[0-9]*")))
    return {name: count for name, count in (("gpu", gpus), ("tpu", tpus)) if count}
