"""A strategy carried out by Ray Tune: one searcher asks it and tells it, one stopper records what workers say."""

from __future__ import annotations

import contextlib
import errno
import json
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray._private import state
from ray.cloudpickle import cloudpickle
from ray.experimental import internal_kv
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import ConcurrencyLimiter, Searcher
from ray.tune.stopper import NoopStopper, Stopper

from nas.ending import NOTICE_SECONDS, Terminated
from nas.errors import DISK_FULL, InputError
from nas.objectives.base import Objective, TrialFailed
from nas.record import Record, Run
from nas.run.driver import Listener, SearchState, one_line
from nas.run.environment import environment
from nas.run.tune.cluster import Cluster, private_folder, room, session, without_log
from nas.run.tune.hosts import on_hosts
from nas.run.tune.jobs import RETRIES, SCORES, why_it_died
from nas.run.tune.losses import NAMESPACE, Death
from nas.run.tune.worker import SECONDS, StartBarrier, Worker, pickled, to_config
from nas.strategies.base import Strategy
from nas.trial import Trial, measurement_of


def execute(
    strategy: Strategy,
    make_objective: Callable[[Path], Objective],
    record: Record,
    *,
    epochs: int,
    cluster: Cluster | None = None,
    total_epochs: int | None = None,
    trials_per_program: int = 1,
    on_event: Listener | None = None,
    choosing_seconds: Callable[[], float] = lambda: 0.0,
) -> Run:
    """Run ``strategy`` (fresh) to its end, or to the end of the budget, on the workers of ``cluster``.

    With one worker the record equals, times aside, that of `nas.run.local.execute`. With a resumed record
    the search goes on behind it, whichever engine wrote it. A trial whose objective raises, or whose
    worker dies twice, is failed, with the reason, and the search goes on; a worker that is lost with its node
    does not count. KeyboardInterrupt passes; the record can be resumed.

    Args:
        make_objective: called once in each worker, with the folder for checkpoints; pickled (by value
            where it is not importable), so it should hold settings, not data.
        epochs: R, the most units that ``strategy`` gives one trial; with so many it is completed.
        total_epochs: units that all trials together may spend; those under way are then stopped.
        trials_per_program: so many trials each worker is given at a time; see `nas.run.local.execute`.
        on_event: hears of every start, measurement and end, in this process.
        choosing_seconds: what ``strategy`` took to choose, see `SearchState`.

    Returns:
        The whole run. Whether more belongs to it (final trainings), and so its ``done``, is the caller's.

    Raises:
        InputError: the record cannot be written or holds another search; the objective cannot be built;
            nothing but failures come; the cluster is not there or lacks what a worker needs.
        OSError: the disk is full; trials under way stay open.
    """
    cluster = cluster or Cluster()
    state = SearchState(
        record,
        epochs=epochs,
        total_epochs=total_epochs,
        on_event=on_event,
        choosing_seconds=choosing_seconds,
    )
    under_way = state.replay(strategy)
    if not state.full:
        work = _Work(
            strategy, state, under_way, each=trials_per_program, on_cluster=cluster.address is not None
        )
        if work.first:
            with session(cluster) as settled:
                _run(work, make_objective, settled)
        if work.error is not None:
            raise work.error
    state.close()
    return record.run()


class _Work:
    """The trials that the workers have, ``each`` so many at a time, and the strategy and the record that hear of them.

    An error on the way ends the search and waits in ``error``: Tune would make a long text of it.
    """

    def __init__(
        self,
        strategy: Strategy,
        state: SearchState,
        under_way: deque[Trial],
        *,
        each: int = 1,
        on_cluster: bool = False,
    ) -> None:
        self.strategy, self.state, self._each, self._on_cluster = strategy, state, each, on_cluster
        self.error: Exception | None = None
        self._asks = not under_way or each == 1 or state.asking
        """Whether more may be asked for before those under way are told."""
        self.first = under_way
        """What is given out before the strategy is asked again."""
        self._deaths: dict[int, list[Death]] = {}  # of the workers that had a trial, by its id
        self._suspects: list[Trial] = []  # those that lost a worker: they go on, or fail, see `_judge`
        self._given: dict[str, dict[int, Trial]] = {}
        """By Tune's id the trials that a worker has and that are not over, by their own."""
        self._waiting: dict[str, int] = {}  # Tune's ids of waits, with how much was told when they began
        self._processes: set[str] = set()  # the workers heard of
        self._began: set[str] = set()  # Tune's ids of what a worker has taken up
        self._told = 0
        self.fill(1)

    def fill(self, workers: int) -> int:
        """Ask for what so many workers begin with; how many of them have a trial then."""
        while self._asks and len(self.first) < workers * self._each:
            trial = self.strategy.ask()
            if trial is None:
                break
            self.first.append(trial)
        return min(workers, -(-len(self.first) // self._each))

    @property
    def over(self) -> bool:
        """Whether the whole search ends now."""
        return self.error is not None or self.state.full

    def give(self, tune_id: str) -> dict[str, str] | str | None:
        """The next piece of work as a Tune trial's config; None: none for now; or that there will be none."""
        with self._keeping_error():
            self._judge()
            trials = self._next()
            for trial in trials:
                self.state.start(trial)
            if trials:
                self._given[tune_id] = {trial.id: trial for trial in trials}
            elif not self._given and not self._suspects:
                return Searcher.FINISHED
            elif len(self._processes) > len(self._given) + len(self._waiting):
                # An idle worker is told to wait: Tune would end all idle ones but one.
                self._waiting[tune_id] = self._told
            else:
                return None
            return to_config(trials)
        return Searcher.FINISHED

    def _next(self) -> list[Trial]:
        """Trials for a worker: those that are left, one that lost a worker alone, then new ones."""
        left: list[Trial] = []
        while self.first and len(left) < self._each:
            if self.first[0].id in self._deaths:  # it may be what the worker died of
                return left or [self.first.popleft()]
            left.append(self.first.popleft())
        if not left:  # new ones are not asked for before those are told
            while len(left) < self._each and (trial := self.strategy.ask()) is not None:
                left.append(trial)
        return left

    def hear(self, tune_id: str, result: Mapping[str, Any]) -> bool:
        """Record what a worker says; whether its piece of work ends with that."""
        with self._keeping_error():
            self._processes.add(result["process"])
            if self.over:
                return True
            if "broken" in result:
                raise InputError(result["broken"])
            if "disk_full" in result:
                raise OSError(errno.ENOSPC, DISK_FULL[0], result["disk_full"])
            if tune_id in self._waiting:  # until something is told, which may make work
                return self._told > self._waiting[tune_id]
            trial = self.state.trials[result["id"]]
            if result["budget"] > trial.spent:
                trial = trial.add(measurement_of(json.loads(result["measurement"])))
                self.state.measure(
                    trial.replace(params=result["params"], macs_per_image=result["macs_per_image"])
                )
            if "failure" in result:
                seconds = {name: result[name] for name in SECONDS}
                failure = TrialFailed(result["failure"], traceback=result["traceback"], **seconds)
                self.state.fail(trial.id, failure)
            if result["over"] and not self.over:
                self._tell(self._given[tune_id].pop(trial.id))
        return self.over

    def took(self, tune_id: str) -> None:
        """A worker has begun with this."""
        self._began.add(tune_id)

    def done(self, tune_id: str) -> None:
        """This piece of work is done."""
        self._waiting.pop(tune_id, None)
        self._given.pop(tune_id, None)

    def died(self, tune_id: str, error: BaseException | None) -> None:
        """A worker died. Tune has given the piece of work up; whether it goes on, as another one, is said here."""
        self._processes.clear()
        self._waiting.pop(tune_id, None)
        trials = self._given.pop(tune_id, {})
        with self._keeping_error():
            if trials and not self.over:
                for trial in trials.values():
                    self._deaths.setdefault(trial.id, []).append(Death(error, self._on_cluster))
                    self._suspects.append(trial)
                self._judge()

    def _judge(self) -> None:
        """Trials without a worker go on from what is recorded, unless too many of their workers died by themselves."""
        for trial in list(self._suspects):
            own = [death.own() for death in self._deaths[trial.id]]
            if own.count(False) + RETRIES >= len(own):
                self.first.appendleft(self._recorded(trial))
            elif own.count(True) > RETRIES:
                error = self._deaths[trial.id][-1].error
                if "creation task" in str(error):
                    raise InputError(f"worker: does not start: {one_line(str(error)[-300:])}")
                why = why_it_died(error)
                if not self._began:
                    raise InputError(f"worker: died before it could begin: {why}")
                self.state.fail(trial.id, TrialFailed(f"the worker died: {why}"))
                self._tell(trial)
            else:
                continue  # Ray may still find that a node was lost
            self._suspects.remove(trial)

    def _tell(self, trial: Trial) -> None:
        with self._keeping_error():
            self._told += 1
            self.strategy.tell(self._recorded(trial))
            outstanding = {trial_id for given in self._given.values() for trial_id in given}
            outstanding |= {other.id for other in (*self.first, *self._suspects)}
            self.state.end(self.state.running - self.strategy.paused - outstanding)

    def _recorded(self, trial: Trial) -> Trial:
        """``trial`` as the strategy asked it, as far as the record has it now."""
        recorded = self.state.trials[trial.id]
        names = ("measurements", "params", "macs_per_image", "status", "error")
        return trial.replace(**{name: getattr(recorded, name) for name in names})

    @contextlib.contextmanager
    def _keeping_error(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.error = self.error or error


class _Searcher(Searcher):
    """Tune's way to ask and to tell."""

    def __init__(self, work: _Work) -> None:
        super().__init__(metric="budget", mode="max")
        self._work = work

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        return self._work.give(trial_id)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        if not error:  # of that, `_Callback` hears the reason
            self._work.done(trial_id)

    def save(self, checkpoint_path: str) -> None:
        pass  # a search is resumed from its record

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a search is resumed from its record")


class _Stopper(Stopper):
    """Where Tune asks first with every result: recorded before anything else hears of it."""

    def __init__(self, work: _Work) -> None:
        self._work = work

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return self._work.hear(trial_id, result)

    def stop_all(self) -> bool:
        return self._work.over

    def __reduce__(self) -> tuple[Any, ...]:
        return NoopStopper, ()  # Tune's snapshot of itself, which nothing here restores


class _Callback(tune.Callback):
    """What becomes of workers."""

    def __init__(self, work: _Work) -> None:
        self._work = work

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._work.took(trial.trial_id)

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        # Tune's own `get_pickled_error` looks where the file will be copied to some time.
        path = trial.pickled_error_file
        error = cloudpickle.loads(Path(path).read_bytes()) if path else None
        self._work.died(trial.trial_id, error)


class _Silence(TrialProgressCallback):
    """Stands where Tune would put a callback that prints."""

    def log_result(self, trial: TuneTrial, result: dict[str, Any], error: bool = False) -> None:
        pass

    def _print(self, msg: str) -> None:
        pass


@contextlib.contextmanager
def workers_end_with(search: str) -> Iterator[None]:
    """Where SIGTERM ends this process, its workers may write checkpoints first."""
    try:
        yield
    except Terminated:
        internal_kv._internal_kv_put(f"end {search}", b"", namespace=NAMESPACE)
        end = time.monotonic() + NOTICE_SECONDS
        job = ray.get_runtime_context().get_job_id()
        while time.monotonic() < end and any(
            actor["JobID"] == job and actor["ActorClassName"] != SCORES
            for actor in state.actors(actor_state_name="ALIVE").values()
        ):
            time.sleep(0.1)
        raise


def _run(work: _Work, make_objective: Callable[[Path], Objective], cluster: Cluster) -> None:
    settings = {
        "RAY_AIR_NEW_OUTPUT": "0",  # the other one prints tables even when told to be silent
        # Tune must not recover trials itself: one whose reused worker is lost before it begins is left lying.
        "RAY_TRAIN_COUNT_PREEMPTION_AS_FAILURE": "1",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",  # so that relative paths mean what they mean to the driver
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is KeyboardInterrupt, as everywhere
        "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # who waits reports none
        "TUNE_GLOBAL_CHECKPOINT_S": "inf",
        "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    }
    checkpoints = work.state.checkpoints.absolute()
    together = min(cluster.workers or room(cluster), room(cluster))
    beginning = work.fill(together)
    searcher: Any = _Searcher(work)
    if (
        cluster.workers is None
    ):  # without a limit Tune would start one at a time, and each waits for the others
        settings["TUNE_MAX_PENDING_TRIALS_PG"] = str(max(1, together))
    else:
        searcher = ConcurrencyLimiter(searcher, max_concurrent=cluster.workers)
    barrier = StartBarrier(uuid.uuid4().hex, beginning)
    worker = tune.with_parameters(
        Worker,
        make_objective=pickled(on_hosts(make_objective, cluster)),
        checkpoints=str(checkpoints),
        cpus=cluster.own_cpus,
        barrier=barrier,
    )
    with environment(settings), without_log(), private_folder() as folder, workers_end_with(barrier.name):
        tune.run(
            worker,
            name="search",
            num_samples=-1,  # until the searcher has no more
            search_alg=searcher,
            scheduler=FIFOScheduler(),
            stop=_Stopper(work),
            callbacks=[_Callback(work), _Silence()],
            resources_per_trial=tune.PlacementGroupFactory([cluster.resources]),
            storage_path=folder,
            trial_dirname_creator=lambda trial: trial.trial_id,
            verbose=0,
            max_failures=0,
            raise_on_failed_trial=False,
            reuse_actors=True,
        )
