"""One search from its options to its record: plan, data, engine, final trainings, in this order."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from nas import cpu
from nas.errors import InputError
from nas.objectives.oneshot import SupernetSetup
from nas.objectives.own import OwnObjective, OwnSetup
from nas.objectives.score import ScoreObjective
from nas.objectives.several import SeveralSetup
from nas.objectives.train import FinalJob, TrainSetup, check_devices
from nas.pareto import spread
from nas.record import MAY_DIFFER, Record, Run, is_run
from nas.report import trackers
from nas.run import local, metering, several
from nas.run.filtering import TimedScore
from nas.run.methods import foreign_options
from nas.run.options import SearchOptions, cluster_of, flat
from nas.run.plan import Plan, plan
from nas.run.progress import FinalTrainings, Progress
from nas.run.tracking import tracking
from nas.space import SearchSpace
from nas.storage import mirrored
from nas.strategies import Strategy, filtered
from nas.training import processes
from nas.training.population import default_trials
from nas.trial import Final

FinalTrainer = Callable[[Sequence[FinalJob]], Iterable[Final]]


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

    ``out`` may be a URL (`nas.storage`).

    ``tested`` are final trainings of other searches with the same options: where one has the network, seed
    and epochs that this search would train, the result would be the same and is recorded as it is, seconds
    included. Raises InputError before anything is written where an option cannot be meant.
    """
    planned = plan(options, strategy, spaces)
    with (
        mirrored(out, resume=resume, writes=processes.is_writer()) as folder,
        _view(options, strategy, planned) as view,
    ):
        return _search(options, strategy, folder, planned, view, resume, tested)


def _view(options: SearchOptions, strategy: str, planned: Plan) -> Progress:
    budget = None
    if planned.total_epochs is None:
        budget = planned.record.planned_budget(planned.config, planned.space)
    each = budget is not None and budget.epochs == budget.trials * planned.config.epochs
    workers = cluster_of(options)["workers"] or 1 if options.engine == "ray" else 1
    return Progress(
        f"{strategy} seed {planned.config.seed}",
        planned_epochs=int(planned.planned_epochs),
        planned_trials=int(budget.trials) if budget is not None and each else None,
        finals=FinalTrainings(options.test_seeds, planned.final_epochs, workers),
    )


def _search(
    options: SearchOptions,
    strategy: str,
    out: Path,
    planned: Plan,
    view: Progress,
    resume: bool,
    tested: Iterable[Final],
) -> Run:
    searcher = planned.strategy()
    trackers.check(options.log)
    # What is wrong with the data is said now; and data and native kernels are there for the workers.
    view.stage(f"loading {options.data.dataset} and the native kernels")
    images = options.data.load()
    cpu.native_status()
    config = flat(
        options,
        **dataclasses.asdict(planned.config),
        strategy=strategy,
        final_epochs=planned.final_epochs,
        **({} if planned.note is None else {"note": planned.note}),
        **several.told(options, planned),
        # A folder or file of the user's may change: a run goes on with the images that it began with.
        **({"dataset_checksum": images.checksum} if options.data.own else {}),
    )
    with contextlib.ExitStack() as stack:
        # What is wrong with the engine is said before anything is written.
        if options.engine == "local":
            check_devices(options.training)
            out = processes.own_folder(out)
        elif processes.joined():
            raise InputError(f"engine: {jax.process_count()} processes search together with --engine local")
        elif not resume and not is_run(out):
            view.stage("starting Ray")
            stack.enter_context(session(options))
        else:  # there may be nothing left to do
            tune = _tune()
            tune.check_cores(tune.Cluster(**cluster_of(options)))
        if resume:
            # Earlier versions recorded the options of all strategies.
            may_differ = (*MAY_DIFFER, "note", *foreign_options([strategy]))
            record = stack.enter_context(Record.resume(out, config, may_differ=may_differ))
        else:
            record = stack.enter_context(Record.create(out, config))
        if record.run().done:
            return record.run()
        if planned.note is not None:
            print(f"note: {planned.note}", file=sys.stderr, flush=True)
        tracked = stack.enter_context(tracking(options.log, out, config))
        for final in record.finals:
            tracked.final(final)
        view.followers.append(tracked)
        engine = _on_workers if options.engine == "ray" else _in_this_process
        with engine(options, planned, searcher, record, view) as train:
            _final_trainings(options, planned, record, train, tested, view)
        record.done()
        return record.run()


@contextlib.contextmanager
def _in_this_process(
    options: SearchOptions, planned: Plan, strategy: Strategy, record: Record, view: Progress
) -> Iterator[FinalTrainer]:
    """The search, then what makes its final trainings."""
    score = TimedScore()
    with contextlib.ExitStack() as stack:
        setup = planned.setup
        if isinstance(setup, SeveralSetup) and several.measures_apart(options, planned):
            make = setup.quantities.meter_setup(options.data.load())
            setup = metering.metered(setup, stack.enter_context(metering.process(make)))
        objective = setup(record.folder / "checkpoints")
        if planned.training_free is not None:
            scorer = planned.training_free.setup()
            score = TimedScore(lambda arch: scorer.signed(arch)[:2])
            strategy = filtered(strategy, score, planned.training_free.candidates)
        view.stage("building and compiling the first network")
        local.execute(
            strategy,
            objective,
            record,
            epochs=planned.config.epochs,
            total_epochs=planned.total_epochs,
            trials_per_program=options.trials_per_program or default_trials(),
            on_event=view,
            choosing_seconds=score.take_seconds,
        )
    trainer = planned.final_setup(None) if isinstance(objective, ScoreObjective | OwnObjective) else objective
    yield lambda jobs: (trainer.final(*job) for job in jobs)


@contextlib.contextmanager
def _on_workers(
    options: SearchOptions, planned: Plan, strategy: Strategy, record: Record, view: Progress
) -> Iterator[FinalTrainer]:
    """The search, then what makes its final trainings."""
    tune = _tune()
    view.stage("starting Ray")
    with tune.session(tune.Cluster(**cluster_of(options))) as cluster:
        view.stage(f"starting {cluster.workers or 'the'} workers, which compile their first networks")
        planned = _over_chips(planned, cluster.chips)
        searching = cluster  # without the core that measures latencies, which the final trainings have too
        if several.measures_apart(options, planned):
            searching = several.with_core_left(cluster, options)
        score = TimedScore()
        with contextlib.ExitStack() as stack:
            setup = planned.setup
            if isinstance(setup, SeveralSetup) and several.measures_apart(options, planned):
                make = setup.quantities.meter_setup(options.data.load())
                meter = stack.enter_context(tune.meter(make, metering.ENVIRONMENT))
                setup = metering.metered(setup, meter)
            if planned.training_free is not None:
                score = TimedScore(stack.enter_context(tune.scores(planned.training_free.setup)))
                strategy = filtered(strategy, score, planned.training_free.candidates)
            tune.execute(
                strategy,
                setup,
                record,
                epochs=planned.config.epochs,
                cluster=searching,
                total_epochs=planned.total_epochs,
                trials_per_program=options.trials_per_program or 1,
                on_event=view,
                choosing_seconds=score.take_seconds,
            )
        folder = record.folder / "checkpoints"
        yield lambda jobs: tune.finals(planned.final_setup, folder, jobs, cluster=cluster)


def _over_chips(planned: Plan, chips: int) -> Plan:
    """With workers that have several accelerators, batches are split over all of them; ``--devices`` says otherwise."""

    def over(setup: Any) -> Any:
        if isinstance(setup, SupernetSetup | SeveralSetup | OwnSetup):
            return dataclasses.replace(setup, train=over(setup.train))
        if isinstance(setup, TrainSetup) and setup.training.devices == 1:
            return dataclasses.replace(setup, training=dataclasses.replace(setup.training, devices=0))
        return setup

    if chips == 1:
        return planned
    return dataclasses.replace(planned, setup=over(planned.setup), final_setup=over(planned.final_setup))


def _final_trainings(
    options: SearchOptions,
    planned: Plan,
    record: Record,
    train: FinalTrainer,
    tested: Iterable[Final],
    view: Progress,
) -> None:
    run = record.run()
    if planned.goals is not None and len(planned.goals.objectives) > 1:
        archs = [trial.arch for trial in spread(run.front, options.front)]
    else:
        archs = [run.best.chosen] if run.best is not None else []
    if not archs or planned.space.build is None:  # an own objective may need no network
        return
    have = {(final.arch, final.seed) for final in record.finals}
    jobs = [
        FinalJob(arch, seed, planned.final_epochs)
        for arch in archs
        for seed in range(options.test_seeds)
        if (arch, seed) not in have
    ]
    known = {FinalJob(f.arch, f.seed, f.epochs): f for f in tested if f.error is None}
    view.begin_finals(len(jobs))
    for final in itertools.chain(
        (known[job] for job in jobs if job in known), train([job for job in jobs if job not in known])
    ):
        record.final(final)
        view.final(final)


@contextlib.contextmanager
def session(options: SearchOptions) -> Iterator[None]:
    """Several searches within it share one start of Ray; nothing for the local engine."""
    if options.engine == "local":
        yield
        return
    tune = _tune()
    with tune.session(tune.Cluster(**cluster_of(options))):
        yield


def _tune() -> ModuleType:
    """The engine on Ray: 2 s of imports that the local one does without."""
    from nas.run import tune

    return tune
