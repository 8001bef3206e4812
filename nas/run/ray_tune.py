"""The engine on Ray Tune: many workers on one machine or on a cluster. The only module that imports ray.

Tune's own parts do the work where Tune has them: its variant generator proposes (grid, random), its
ASHAScheduler and, with the paper's brackets, its HyperBandScheduler decide. Strategies that propose by
what they were told (TPE, evolution) are Tune searchers through one adapter around ask and tell.

What Tune is not trusted with is the truth. The driver writes each measurement to the record before Tune's
scheduler hears of it, and a resumed search starts from the record, not from ``Tuner.restore``: ended
trials are never given to Tune again, schedulers and strategies are told what they knew. Nor does Tune keep
checkpoints: a paused or retried trial goes on from its objective's, in the run's folder, which all
workers must share.

Workers are reused from trial to trial. Each has its share of the cores, fixed before jax is imported.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import itertools
import json
import logging
import os
import re
import shutil
import socket
import sys
import tempfile
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray
from ray import tune
from ray._private.ray_logging import stdout_deduplicator
from ray.cloudpickle import cloudpickle
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, HyperBandScheduler, TrialScheduler
from ray.tune.schedulers.hyperband import _Bracket
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter, Searcher
from ray.tune.stopper import NoopStopper, Stopper

from nas.errors import InputError, one_of
from nas.objectives.base import Finisher, Objective, Trained, Trainer, TrialFailed
from nas.objectives.score import ScoreObjective, ScoreSetup
from nas.record import Record, Run
from nas.run.driver import Ledger, Listener, describe_error, evaluate, one_line
from nas.run.filtering import Clocked, Filter
from nas.space import FILE_MODULE, Architecture, SearchSpace
from nas.strategies import STRATEGIES, asha, grid, hyperband, successive_halving
from nas.strategies.base import Filtered, Strategy, StrategyConfig, drawn, filtered, new_trial, promote
from nas.strategies.successive_halving import Bracket, Rung
from nas.trial import Final, Trial, measurement_of

ROOT = Path(__file__).resolve().parents[2]
PLANS = {"successive_halving": successive_halving.plan, "hyperband": hyperband.plan}
# By Tune's variant generator: what these propose does not depend on results.
GENERATED = ("grid", "random", "asha", *PLANS)
# What these propose depends on results, and so do their budgets: Tune has a part for either, not for both.
IN_PROCESS = ("bohb",)
LISTED = 1000  # a longer grid is drawn point by point: Tune copies all of a list for every trial
RETRIES = 1  # how often a trial whose worker died goes on, on another


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Where a search runs. The defaults are one worker with this whole machine."""

    workers: int = 1
    """Trials trained at the same time."""
    cpus_per_worker: int | None = None
    """Cores, and so threads, of each worker. None: this machine's cores shared out evenly."""
    gpus_per_worker: float = 0.0
    """GPUs of each worker; a fraction shares one GPU, and its memory, among several. 0: workers use the CPU."""
    tpus_per_worker: int = 0
    """TPU chips of each worker."""
    address: str | None = None
    """A running Ray cluster: host:port of its head, or auto on one of its nodes. None: a Ray of our own."""

    def __post_init__(self) -> None:
        least = {"workers": 1, "cpus_per_worker": 1, "gpus_per_worker": 0, "tpus_per_worker": 0}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise InputError(f"cluster: {name}={value} is less than {low}")
        if self.gpus_per_worker > 1 and self.gpus_per_worker % 1:
            raise InputError(f"cluster: gpus_per_worker={self.gpus_per_worker} is neither whole nor below 1")

    @property
    def cpus(self) -> int:
        """Cores of each worker."""
        return self.cpus_per_worker or max(1, len(_cores()) // self.workers)

    @property
    def custom_resources(self) -> dict[str, float]:
        """Those of a worker that Ray has no name of its own for."""
        return {"TPU": self.tpus_per_worker} if self.tpus_per_worker else {}

    @property
    def resources(self) -> dict[str, float]:
        """What Ray sets aside for each worker."""
        gpus = {"GPU": self.gpus_per_worker} if self.gpus_per_worker else {}
        return {"CPU": self.cpus} | gpus | self.custom_resources


def search(
    space: SearchSpace,
    strategy: str,
    config: StrategyConfig,
    make_objective: Callable[[Path], Objective],
    record: Record,
    *,
    cluster: Cluster | None = None,
    total_epochs: int | None = None,
    on_event: Listener | None = None,
    training_free: Filter | None = None,
) -> Run:
    """Run a strategy to its end, or to the end of the budget, on the workers of ``cluster``.

    With one worker the record equals, times aside, that of `nas.run.local.search`. With a resumed record
    the search goes on behind it, whichever engine wrote it. A trial whose objective raises, or whose
    worker dies twice, is failed, with the reason, and the search goes on. KeyboardInterrupt passes; the
    record can be resumed.

    Args:
        strategy: a name in ``STRATEGIES``.
        make_objective: called once in each worker, with the folder for checkpoints; pickled (by value
            where it is not importable), so it should hold settings, not data.
        total_epochs: units that all trials together may spend; those under way are then stopped.
        on_event: hears of every start, measurement and end, in this process.
        training_free: which candidates become trials; scored in a process of its own, on CPU.

    Returns:
        The whole run. Whether more belongs to it (final trainings), and so its ``done``, is the caller's.

    Raises:
        InputError: the record cannot be written or holds another search; the objective cannot be built;
            nothing but failures come; the cluster is not there or lacks what a worker needs.
    """
    if strategy not in STRATEGIES:
        raise one_of("strategy", strategy, STRATEGIES)
    if strategy in IN_PROCESS:
        raise InputError(
            f"strategy: {strategy} learns within its brackets, which Tune decides; use --engine local"
        )
    cluster = cluster or Cluster()
    with contextlib.ExitStack() as stack:
        folded, pick, seconds = STRATEGIES[strategy](space, config), None, float
        if training_free is not None:
            stack.enter_context(session(cluster))
            score = Clocked(stack.enter_context(_scores(training_free.setup)))
            folded = pick = filtered(folded, score, training_free.candidates)
            seconds = score.settle
        ledger = Ledger(
            record,
            epochs=config.epochs,
            total_epochs=total_epochs,
            on_event=on_event,
            choosing_seconds=seconds,
        )
        under_way = ledger.replay(folded)
        if not ledger.full:
            clerk = _Clerk(ledger)
            # The order of a filtered grid is a matter of scores, which is more than Tune can be given.
            if strategy in GENERATED and (pick is None or strategy != "grid"):
                parts = _generated(space, strategy, config, clerk, cluster.workers, pick)
            else:
                parts = _searched(folded, under_way, config, clerk, cluster.workers)
            if parts.at_once:
                with session(cluster):
                    _run(parts, clerk, make_objective, cluster)
            if clerk.error is not None:
                raise clerk.error
        ledger.close()
    return record.run()


@contextlib.contextmanager
def _scores(setup: ScoreSetup) -> Iterator[Callable[[Architecture], tuple[float, float]]]:
    """``score(arch)`` -> value and seconds, in a process of its own, started when first called.

    This process must not compute: it would take an accelerator from the workers.
    """
    factory, actors = _pickled(setup), []

    def score(arch: Architecture) -> tuple[float, float]:
        if not actors:
            environment = {"env_vars": {"JAX_PLATFORMS": "cpu"}}
            actors.append(_Scores.options(num_cpus=0, runtime_env=environment).remote(factory))
        try:
            return ray.get(actors[0].score.remote(arch))
        except RayTaskError as error:
            raise InputError(f"filter: {describe_error(error.cause)}") from error
        except RayError as error:
            raise InputError(f"filter: the process that scores died: {_death(error)}") from error

    try:
        yield score
    finally:
        for actor in actors:
            ray.kill(actor)


@ray.remote
class _Scores:
    """See ``_scores``."""

    def __init__(self, setup: bytes) -> None:
        self._setup = setup

    def score(self, arch: Architecture) -> tuple[float, float]:
        objective: ScoreObjective = _objective(self._setup, "")
        return objective.signed(arch)[:2]


def finals(
    make_objective: Callable[[Path], Finisher],
    checkpoints: Path,
    jobs: Iterable[tuple[Architecture, int, int]],
    *,
    cluster: Cluster | None = None,
) -> Iterator[Final]:
    """``objective.final(arch, seed, epochs)`` for each of ``jobs`` on the workers, in the order given.

    A job that raises, or whose worker dies twice, gives a `Final` with the reason as its ``error``.
    Raises `InputError` where the objective cannot be built, and as `session` does.
    """
    jobs = list(jobs)
    finished: dict[int, Final] = {}
    given = 0
    for i, final in _each("final", make_objective, checkpoints, jobs, cluster or Cluster()):
        finished[i] = Final(*jobs[i], error=final) if isinstance(final, str) else final
        while given in finished:
            yield finished.pop(given)
            given += 1


def trainings(
    make_objective: Callable[[Path], Trainer],
    checkpoints: Path,
    jobs: Iterable[tuple[Architecture, int, int]],
    *,
    cluster: Cluster | None = None,
) -> Iterator[tuple[int, Trained]]:
    """``objective.trained(arch, seed, epochs)`` for each of ``jobs`` on the workers, as they finish.

    Yields the job's number with it; else as `finals`.
    """
    jobs = list(jobs)
    for i, trained in _each("trained", make_objective, checkpoints, jobs, cluster or Cluster()):
        yield i, Trained((), Final(*jobs[i], error=trained)) if isinstance(trained, str) else trained


def _each(
    method: str,
    make_objective: Callable[[Path], Any],
    checkpoints: Path,
    jobs: Sequence[tuple[Architecture, int, int]],
    cluster: Cluster,
) -> Iterator[tuple[int, Any]]:
    """What the objective's ``method`` gives for each job, with its number, as they finish; text: why it failed."""
    factory = _pickled(make_objective)
    with session(cluster), _quiet():
        call = _call.options(
            num_cpus=cluster.cpus, num_gpus=cluster.gpus_per_worker, resources=cluster.custom_resources
        )
        waiting = deque(enumerate(jobs))
        under_way: dict[ray.ObjectRef[Any], int] = {}
        while waiting or under_way:
            while waiting and len(under_way) < 2 * cluster.workers:  # one more for each than it works at
                i, job = waiting.popleft()
                given = (factory, str(checkpoints.absolute()), cluster.cpus, method, job)
                under_way[call.remote(*given)] = i
            (ready,), _ = ray.wait(list(under_way), num_returns=1)
            i = under_way.pop(ready)
            try:
                yield i, ray.get(ready)
            except RayTaskError as error:
                raise InputError(str(error.cause)) from error
            except RayError as error:
                yield i, f"the worker died: {_death(error)}"


@contextlib.contextmanager
def session(cluster: Cluster) -> Iterator[None]:
    """Have Ray running within; several searches of one process can so share its start of some seconds.

    Inside another session, nothing happens. Ray's processes and files are gone when it is left, also
    when by an exception. Raises `InputError` where the cluster is not there or a worker does not fit in.
    """
    if ray.is_initialized():
        _check_room(cluster)
        yield
        return
    with contextlib.ExitStack() as stack:
        stack.enter_context(_hush())
        stack.enter_context(_environment({"RAY_USAGE_STATS_ENABLED": "0"}))
        options: dict[str, Any] = {"address": cluster.address}
        runtime: dict[str, Any] = {"env_vars": _worker_environment(cluster)}
        if cluster.address is None:
            options = {"address": "local", "_temp_dir": stack.enter_context(_own_folder())}
            options |= {"include_dashboard": False, "object_store_memory": 128 * 2**20}
            options |= {"num_cpus": cluster.workers * cluster.cpus}
            # Ray would start processes ahead, in an environment that is not our workers'.
            options |= {
                "_system_config": {"prestart_worker_first_driver": False, "enable_worker_prestart": False}
            }
            if not cluster.gpus_per_worker:
                options |= {"num_gpus": 0}
        else:
            _check_address(cluster.address)
            runtime |= {"working_dir": str(ROOT), "excludes": [".git", ".venv", "runs", "shared"]}
        stack.callback(ray.shutdown)
        try:
            ray.init(log_to_driver=False, logging_level=logging.CRITICAL, runtime_env=runtime, **options)
        except Exception as error:  # of no kind in common: a node that does not start in time is a bare one
            at = "" if cluster.address is None else f" at {cluster.address}"
            said = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
            raise InputError(f"cluster: no Ray{at}: {one_line(said[-1])}") from error
        _check_room(cluster)
        yield


def _check_address(address: str) -> None:
    """Ray itself tries for minutes before it gives up."""
    if address == "auto":
        return
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isdecimal()) or "//" in address:
        raise InputError(
            f"cluster: address={address!r} is neither auto, on a node of the cluster, nor host:port"
        )
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"cluster: no Ray at {address}: {one_line(str(error))}") from error


def _check_room(cluster: Cluster) -> None:
    """Whether all workers fit into the running Ray; one, where that is a cluster, which may grow."""
    have = ray.cluster_resources()
    workers = cluster.workers if cluster.address is None else 1
    for name, amount in cluster.resources.items():
        if have.get(name, 0) < workers * amount:
            have_amount = f"{have.get(name, 0):g}"
            raise InputError(
                f"cluster: workers={workers} need {workers * amount:g} {name}, Ray has {have_amount}"
            )


def _pickled(make_objective: Callable[[Path], Any]) -> bytes:
    """For the workers; what they cannot import, a space in a file of the user's, goes by value."""
    for name, module in list(sys.modules.items()):
        if name.startswith(FILE_MODULE):
            cloudpickle.register_pickle_by_value(module)
    return cloudpickle.dumps(make_objective)


# ---- jobs: what a worker gets to do, as one line of JSON in the config of a Tune trial


@dataclasses.dataclass(frozen=True)
class _Job:
    """``trial`` as far as it has come, to be brought to each of ``budgets`` in turn.

    ``waiting``: it has reached one of them and the scheduler must hear so again before it goes on.
    """

    trial: Trial
    budgets: tuple[int, ...]
    waiting: bool = False

    def config(self) -> dict[str, str]:
        fields = {field.name: getattr(self.trial, field.name) for field in dataclasses.fields(Trial)}
        fields["arch"] = dict(self.trial.arch)
        fields["measurements"] = [m.fields() for m in self.trial.measurements]
        return {"job": json.dumps({"trial": fields, "budgets": self.budgets, "waiting": self.waiting})}

    def onward(self) -> Trial:
        """The trial with the first budget that it has not reached, and that budget's rung."""
        rung = next(k for k, budget in enumerate(self.budgets) if budget > self.trial.spent)
        rungs = {} if self.trial.rung is None else {"rung": rung}
        return self.trial.replace(budget=self.budgets[rung], **rungs)


def _job(config: Mapping[str, Any]) -> _Job:
    values = json.loads(config["job"])
    fields = values["trial"]
    fields["arch"] = Architecture.from_json(fields["arch"])
    fields["measurements"] = tuple(measurement_of(m) for m in fields["measurements"])
    return _Job(Trial(**fields), tuple(values["budgets"]), values["waiting"])


# ---- in the workers


class _Worker(tune.Trainable):
    """One process that works off jobs; a call of `step` is a unit of one."""

    def setup(
        self, config: dict[str, Any], make_objective: bytes, checkpoints: str, cpus: int, party: _Party
    ) -> None:
        _claim_cores(cpus)
        self._broken = ""
        try:
            self._objective: Objective = _objective(make_objective, checkpoints)
        except InputError as error:
            self._broken = str(error)
        party.join()
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()
        self._job = _job(new_config)
        return True

    def step(self) -> dict[str, Any]:
        if self._broken:
            return {"broken": self._broken, "done": True}
        if self._job.waiting:
            self._job = dataclasses.replace(self._job, waiting=False)
            return self._result()
        try:
            if self._units is None:
                self._units = evaluate(self._objective, self._job.onward())
            trial = next(self._units)
        except TrialFailed as failure:
            return self._result(failure)
        self._job = dataclasses.replace(self._job, trial=trial)
        if trial.spent == trial.budget or trial.ended:
            self._units = None
        return self._result()

    def cleanup(self) -> None:
        units, self._units = getattr(self, "_units", None), None
        if units is not None:
            units.close()

    def _result(self, failure: TrialFailed | None = None) -> dict[str, Any]:
        trial = self._job.trial
        result: dict[str, Any] = {
            "id": trial.id,
            "budget": trial.spent,
            "done": trial.spent >= self._job.budgets[-1] or trial.ended,
        }
        result |= {"params": trial.params, "macs_per_image": trial.macs_per_image}
        if trial.measurements:
            result["measurement"] = json.dumps(trial.measurements[-1].fields())
        if failure is not None:  # without its score, which no scheduler shall count
            return result | {"failure": str(failure), "done": True, **_seconds(failure)}
        return result | {"valid_accuracy": trial.score}


@functools.lru_cache(maxsize=1)
def _objective(make_objective: bytes, checkpoints: str) -> Any:
    try:
        return cloudpickle.loads(make_objective)(Path(checkpoints))
    except Exception as error:
        said = one_line(str(error)) if isinstance(error, InputError) else describe_error(error)
        raise InputError(f"worker: the objective cannot be built: {said}") from error


@ray.remote(max_retries=RETRIES)
def _call(
    make_objective: bytes, checkpoints: str, cpus: int, method: str, job: tuple[Architecture, int, int]
) -> Any:
    _claim_cores(cpus)
    objective = _objective(make_objective, checkpoints)
    try:
        return getattr(objective, method)(*job)
    except Exception as error:
        return describe_error(error)


@dataclasses.dataclass(frozen=True)
class _Party:
    """The first workers of a search begin together.

    Else the first would take a short trial from one that still starts, and Tune would give that one up:
    as long as trials are shorter than the start of a process, there would be one worker.
    """

    folder: Path
    size: int
    patience_seconds: float = 60.0

    def join(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{socket.gethostname()}-{os.getpid()}").touch()
        end = time.monotonic() + self.patience_seconds
        while len(list(self.folder.iterdir())) < self.size and time.monotonic() < end:
            time.sleep(0.02)


def _seconds(failure: TrialFailed) -> dict[str, float]:
    return {name: getattr(failure, name) for name in ("compile_seconds", "train_seconds", "evaluate_seconds")}


_claims: list[socket.socket] = []


def _claim_cores(n: int) -> None:
    """Keep this thread, and all that it starts, to ``n`` cores which no other worker on this machine has.

    Where there are not so many, to none in particular. A claim is the name of a socket that the kernel
    gives to one process at a time and frees when that dies, in whatever way.
    """
    if sys.platform != "linux" or _claims:
        return
    cores = []
    for core in _cores():
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            claim.bind(f"\0nas-worker-core-{core}")
        except OSError:
            claim.close()
            continue
        cores.append(core)
        _claims.append(claim)
        if len(cores) == n:
            os.sched_setaffinity(0, cores)
            return
    while _claims:
        _claims.pop().close()


def _cores() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else list(range(os.cpu_count() or 1))


# ---- in the driver: the record


class _Clerk(tune.Callback):
    """Keeps the ledger of what Tune does. An error on the way ends the search and waits in ``error``."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.error: Exception | None = None
        self.busy: set[str] = set()  # Tune's ids of the trials that have a worker, or wait for one to start
        self.promoted: set[TuneTrial] = set()  # those to go on before a new one starts
        self._began: set[str] = set()
        self._over: set[int] = set()

    @property
    def over(self) -> bool:
        """Whether the whole search ends now."""
        return self.error is not None or self.ledger.full

    def hear(self, result: Mapping[str, Any]) -> bool:
        """Record what a worker says; whether its trial ends with that, whatever the scheduler thinks."""
        with self._guard():
            if self.over:
                return True
            if "broken" in result:
                raise InputError(result["broken"])
            trial = self.ledger.trials[result["id"]]
            if result["budget"] > trial.spent:
                trial = trial.add(measurement_of(json.loads(result["measurement"])))
                self.ledger.measure(
                    trial.replace(params=result["params"], macs_per_image=result["macs_per_image"])
                )
            if "failure" in result:
                seconds = {name: result[name] for name in result if name.endswith("_seconds")}
                self.ledger.fail(trial.id, TrialFailed(result["failure"], **seconds))
                return True
        return self.over

    def start(self, trial: Trial) -> None:
        with self._guard():
            self.ledger.start(trial)

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._began.add(trial.trial_id)
        job = _job(trial.config)
        if not job.waiting:
            self.start(job.onward())

    def on_trial_complete(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        self.busy.discard(trial.trial_id)
        self._over.add(_id(trial))

    def on_trial_recover(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        self.update(trial)

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self.busy.discard(trial.trial_id)
        job, error = _job(trial.config), trial.get_pickled_error()
        with self._guard():
            if error is not None and "creation task" in str(error):
                raise InputError(f"worker: does not start: {one_line(str(error)[-300:])}")
            if trial.trial_id not in self._began and trial.num_failures > RETRIES:
                raise InputError(f"worker: died before it could begin: {_death(error)}")
            if job.trial.id not in self.ledger.trials:
                self.ledger.start(job.onward())
            self.ledger.fail(job.trial.id, TrialFailed(f"the worker died: {_death(error)}"))

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        # All that one result ended, in the order that the local engine writes it.
        with self._guard():
            if not self.over:
                self.ledger.settle(self._over)
                self._over.clear()

    def update(self, trial: TuneTrial) -> None:
        """Let the next worker of ``trial`` know how far it has come."""
        job = _job(trial.config)
        if job.trial.id in self.ledger.trials:  # else its worker died before it began
            job = dataclasses.replace(job, trial=self.ledger.trials[job.trial.id], waiting=False)
            trial.set_config(job.config())

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        """Tune would make a long text of an exception in a callback."""
        try:
            yield
        except Exception as error:
            self.error = self.error or error


def _death(error: BaseException | None) -> str:
    """What can be said about why a process is gone."""
    memory = isinstance(error, OutOfMemoryError)
    return "out of memory" if memory else "killed, crashed or out of memory"


class _Gate(Stopper):
    """Where Tune asks first with every result: recorded before any scheduler draws conclusions from it."""

    def __init__(self, clerk: _Clerk) -> None:
        self._clerk = clerk

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return self._clerk.hear(result)

    def stop_all(self) -> bool:
        return self._clerk.over

    def __reduce__(self) -> tuple[Any, ...]:
        return NoopStopper, ()  # Tune's snapshot of itself, which nothing here restores


def _id(trial: TuneTrial) -> int:
    return _job(trial.config).trial.id


# ---- in the driver: what proposes and what decides


@dataclasses.dataclass(frozen=True)
class _Parts:
    """What Tune is run with.

    ``at_once``: how many trials can begin together, none where nothing is left to do. ``samples`` is what
    Tune calls ``num_samples``: once through a grid, else without end until the algorithm is finished.
    """

    config: dict[str, Any]
    algorithm: Any
    scheduler: TrialScheduler
    at_once: int
    samples: int = -1


class _Queue:
    """The jobs still to be given out, in order; looked at no further ahead than asked."""

    def __init__(self, jobs: Iterator[_Job]) -> None:
        self._jobs = jobs
        self._ahead: deque[str] = deque()

    def ahead(self, n: int) -> list[str]:
        """The next ``n``, or as many as there are, still to be given out."""
        missing = max(0, n - len(self._ahead))
        self._ahead.extend(job.config()["job"] for job in itertools.islice(self._jobs, missing))
        return list(itertools.islice(self._ahead, n))

    def pop(self) -> str:
        """The next one, which must be there."""
        self.ahead(1)
        return self._ahead.popleft()


class _Variants(BasicVariantGenerator):
    """Tune's generator, asked for a trial when a worker has nothing else to do.

    Paused trials do not count as concurrent ones, as they do with ``max_concurrent``. It calls itself
    finished only when its trials are, because Tune then dismisses workers that those paused will need.
    """

    def __init__(self, clerk: _Clerk, workers: int, queue: _Queue | None = None) -> None:
        super().__init__()
        self._clerk, self._workers, self._queue = clerk, workers, queue

    def next_trial(self) -> TuneTrial | None:
        if self._clerk.promoted or len(self._clerk.busy) >= self._workers:
            return None
        if self._queue is not None and not self._queue.ahead(1):
            self.set_finished()
            return None
        trial = super().next_trial()
        if trial is not None:
            self._clerk.busy.add(trial.trial_id)
        return trial

    def is_finished(self) -> bool:
        return super().is_finished() and (not self._live_trials or self._clerk.over)

    def save_to_dir(self, dirpath: str, session_str: str) -> None:
        pass  # resuming is the record's affair


def _generated(
    space: SearchSpace,
    strategy: str,
    config: StrategyConfig,
    clerk: _Clerk,
    workers: int,
    pick: Filtered | None = None,
) -> _Parts:
    """Jobs for all that has not ended, in the order of the ask/tell strategy, listed or drawn by Tune."""
    ledger, full = clerk.ledger, (config.epochs,)
    scheduler: TrialScheduler = FIFOScheduler()

    def propose(i: int) -> Architecture:
        if i in ledger.trials:
            return ledger.trials[i].arch
        return next(pick.ranked(drawn(space, config.seed, i)) if pick else drawn(space, config.seed, i))

    proposed = map(propose, itertools.count())
    if strategy == "grid":
        jobs = _jobs(itertools.islice(grid.points(space, config), config.trials), config, ledger, full)
    elif strategy == "random":
        jobs = _jobs(itertools.islice(proposed, config.trials), config, ledger, full)
    elif strategy == "asha":
        milestones = asha.milestones(config.epochs, config.eta)
        archs = itertools.islice(proposed, config.trials)
        scheduler, jobs = _Asha(config, clerk), _jobs(archs, config, ledger, milestones, bracket=0, rung=0)
    else:
        brackets = _Brackets(PLANS[strategy](config), ledger)
        scheduler, jobs = _Halving(config, brackets, clerk, workers), brackets.jobs(propose, config)
    queue = _Queue(jobs)
    at_once = len(queue.ahead(workers))
    if strategy == "grid":
        listed = queue.ahead(LISTED + 1)
        if len(listed) <= LISTED:
            return _Parts({"job": tune.grid_search(listed)}, _Variants(clerk, workers), scheduler, at_once, 1)
    sampled = tune.sample_from(lambda spec: queue.pop())
    return _Parts({"job": sampled}, _Variants(clerk, workers, queue), scheduler, at_once)


def _jobs(
    archs: Iterable[Architecture],
    config: StrategyConfig,
    ledger: Ledger,
    budgets: tuple[int, ...],
    **place: int,
) -> Iterator[_Job]:
    for i, arch in enumerate(archs):
        if i not in ledger.trials or i in ledger.running:
            yield _Job(ledger.trials.get(i) or new_trial(config, i, arch, budgets[0], **place), budgets)


class _Brackets:
    """The brackets of a plan by number, and how far the record has brought each."""

    def __init__(self, plan: Iterator[Bracket], ledger: Ledger) -> None:
        self._plan, self._ledger = plan, ledger
        self._read: list[tuple[int, Bracket]] = []  # with the id of its first trial

    def __getitem__(self, b: int) -> Bracket:
        """Raises IndexError behind the last."""
        return self._numbered(b)[1]

    def state(self, b: int) -> tuple[int, list[int]]:
        """The rung that bracket ``b`` is at, and which trials have yet to get there or to be judged there.

        In the order in which they run: by id at first, then the better first.
        """
        first, (_, rungs) = self._numbered(b)
        trials, running = self._ledger.trials, self._ledger.running
        members = list(range(first, first + rungs[0].trials))
        for k, (here, there) in enumerate(itertools.pairwise(rungs)):
            if any(i not in trials or (i in running and trials[i].spent < here.budget) for i in members):
                return k, [i for i in members if i not in trials or i in running]
            judged = (trials[i].replace(budget=here.budget, status="running") for i in members)
            members = [trial.id for trial in promote(judged, there.trials)]
        return len(rungs) - 1, [i for i in members if i in running or i not in trials]

    def jobs(self, propose: Callable[[int], Architecture], config: StrategyConfig) -> Iterator[_Job]:
        for b in itertools.count():
            try:
                bracket = self[b]
            except IndexError:
                return
            k, members = self.state(b)
            budgets = tuple(rung.budget for rung in bracket.rungs)
            for i in members:
                trial = self._ledger.trials.get(i)
                if trial is None:
                    trial = new_trial(config, i, propose(i), budgets[0], bracket=b, rung=0)
                yield _Job(trial, budgets, waiting=trial.spent == budgets[k])

    def _numbered(self, b: int) -> tuple[int, Bracket]:
        while len(self._read) <= b:
            first = self._read[-1][0] + self._read[-1][1].rungs[0].trials if self._read else 0
            bracket = next(self._plan, None)
            if bracket is None:
                raise IndexError(b)
            self._read.append((first, bracket))
        return self._read[b]


class _Asha(ASHAScheduler):
    """Tune's ASHA, which knows trials by our ids and so can be told of those before a resumption."""

    def __init__(self, config: StrategyConfig, clerk: _Clerk) -> None:
        super().__init__("budget", "valid_accuracy", "max", max_t=config.epochs, reduction_factor=config.eta)
        self._clerk = clerk
        nobody: Any = None  # it asks nothing of Tune's controller
        for trial in clerk.ledger.trials.values():
            super().on_trial_add(nobody, _named(trial.id))
        for seen in clerk.ledger.history:
            said = {"budget": seen.measurement.budget, "valid_accuracy": seen.measurement.value}
            super().on_trial_result(nobody, _named(seen.trial_id), said)

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        super().on_trial_add(tune_controller, _named(_id(trial)))

    def on_trial_remove(self, tune_controller: Any, trial: TuneTrial) -> None:
        super().on_trial_remove(tune_controller, _named(_id(trial)))

    def on_trial_complete(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> None:
        super().on_trial_complete(tune_controller, _named(_id(trial)), result)

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        job = _job(trial.config)
        decision = super().on_trial_result(tune_controller, _named(job.trial.id), result)
        if decision == TrialScheduler.CONTINUE and result["budget"] in job.budgets:
            self._clerk.start(
                dataclasses.replace(job, trial=self._clerk.ledger.trials[job.trial.id]).onward()
            )
        return decision


def _named(trial_id: int) -> Any:
    """All that Tune's ASHA looks at in a trial."""
    return SimpleNamespace(trial_id=trial_id)


class _Halving(HyperBandScheduler):
    """Tune's HyperBand with the brackets of a plan of ours.

    Tune's own start as many trials as the paper says but round their budgets and the later rungs another
    way; take a bracket with few trials yet for a whole one; come to a halt when the last trial of a later
    rung fails; and pause by Tune's checkpoints, where an objective's own are enough.
    """

    def __init__(self, config: StrategyConfig, brackets: _Brackets, clerk: _Clerk, workers: int) -> None:
        super().__init__("budget", "valid_accuracy", "max", max_t=config.epochs, reduction_factor=config.eta)
        self._config, self._plan, self._clerk, self._workers = config, brackets, clerk, workers
        self._by_number: dict[int, _Rungs] = {}

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        if trial in self._trial_info:  # its worker died, and it is to be tried again
            return
        if not self._trial_info:
            # Tune keeps one idle worker. At the end of a rung all are idle for a moment.
            tune_controller._actor_cache.increase_max(trial.placement_group_factory, self._workers)
        b = _job(trial.config).trial.bracket
        assert b is not None
        if b not in self._by_number:
            k, members = self._plan.state(b)
            self._by_number[b] = _Rungs(self._config, self._plan[b].rungs, k, len(members))
            self._hyperbands[0] = [self._by_number[key] for key in sorted(self._by_number)]
        self._by_number[b].add_trial(trial)
        self._trial_info[trial] = self._by_number[b], 0

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        bracket, _ = self._trial_info[trial]
        bracket.update_trial_stats(trial, result)
        if bracket.continue_trial(trial):
            return TrialScheduler.CONTINUE
        self._clerk.update(trial)
        self._clerk.busy.discard(trial.trial_id)
        tune_controller.pause_trial(trial, should_checkpoint=False)
        self._process_bracket(tune_controller, bracket)
        return TrialScheduler.NOOP

    def on_trial_error(self, tune_controller: Any, trial: TuneTrial) -> None:
        if trial.status != TuneTrial.ERROR:  # else it is to be tried again
            super().on_trial_error(tune_controller, trial)

    def choose_trial_to_run(self, tune_controller: Any) -> TuneTrial | None:
        """Earlier brackets first and in each the better, as the ask/tell strategy does."""
        for bracket in self._hyperbands[0]:
            for trial in bracket.current_trials():
                if trial.status == TuneTrial.PENDING:
                    return trial
                if trial in self._clerk.promoted and len(self._clerk.busy) < self._workers:
                    self._clerk.promoted.discard(trial)
                    self._clerk.busy.add(trial.trial_id)
                    return trial
        return None

    def _unpause_trial(self, tune_controller: Any, trial: TuneTrial) -> None:
        self._clerk.promoted.add(trial)

    def _process_bracket(self, tune_controller: Any, bracket: _Rungs) -> str:
        action = super()._process_bracket(tune_controller, bracket)
        bracket.is_being_processed = False
        return action


class _Rungs(_Bracket):
    """A bracket of ``_Halving`` from rung ``k`` on, which ``members`` trials have yet to reach."""

    def __init__(self, config: StrategyConfig, rungs: tuple[Rung, ...], k: int, members: int) -> None:
        self._rungs, self._k = rungs, k
        super().__init__(
            time_attr="budget",
            max_trials=members,
            init_t_attr=rungs[k].budget,
            max_t_attr=config.epochs,
            eta=config.eta,
            s=len(rungs) - 1 - k,
        )

    def filled(self) -> bool:
        return len(self._all_trials) == self._n0

    def cur_iter_done(self) -> bool:
        return self.filled() and super().cur_iter_done()

    def successive_halving(self, metric: str, metric_op: float) -> tuple[list[TuneTrial], list[TuneTrial]]:
        """The trials that go on, the best first and ties to the lower id, and those that do not."""
        self._halves -= 1
        self._k += 1
        self._n, self._r = self._rungs[self._k]
        self._cumul_r = self._r
        ranked = sorted(
            self._live_trials, key=lambda t: (-self._live_trials[t][metric], self._live_trials[t]["id"])
        )
        self._live_trials = {trial: self._live_trials[trial] for trial in ranked}
        return ranked[: self._n], ranked[self._n :]


class _Asker(Searcher):
    """An ask/tell strategy as Tune's searcher; it has been told what the record holds."""

    def __init__(self, strategy: Strategy, under_way: deque[Trial], epochs: int, clerk: _Clerk) -> None:
        super().__init__(metric="valid_accuracy", mode="max")
        self._strategy, self._under_way, self._epochs, self._clerk = strategy, under_way, epochs, clerk
        self._ids: dict[str, int] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        trial = self._under_way.popleft() if self._under_way else self._strategy.ask()
        if trial is None:
            return None if self._ids else Searcher.FINISHED
        self._ids[trial_id] = trial.id
        self._clerk.start(trial)
        return _Job(trial, (self._epochs,)).config()

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        trial = self._clerk.ledger.trials[self._ids.pop(trial_id)]
        self._strategy.tell(trial.replace(status="failed") if error else trial)

    def save(self, checkpoint_path: str) -> None:
        pass  # resuming is the record's affair

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a search is resumed from its record")


def _searched(
    strategy: Strategy, under_way: deque[Trial], config: StrategyConfig, clerk: _Clerk, workers: int
) -> _Parts:
    asker = _Asker(strategy, under_way, config.epochs, clerk)
    ended = len(clerk.ledger.trials) - len(clerk.ledger.running)
    at_once = workers if config.trials is None else min(workers, config.trials - ended)
    return _Parts({}, ConcurrencyLimiter(asker, max_concurrent=workers), FIFOScheduler(), at_once)


# ---- Ray itself


def _run(parts: _Parts, clerk: _Clerk, make_objective: Callable[[Path], Objective], cluster: Cluster) -> None:
    settings = {
        "RAY_AIR_NEW_OUTPUT": "0",  # the other one prints tables even when told to be silent
        "RAY_CHDIR_TO_TRIAL_DIR": "0",  # so that relative paths mean what they mean to the driver
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is KeyboardInterrupt, as everywhere
        "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a failed trial reports no score
        "TUNE_GLOBAL_CHECKPOINT_S": "inf",
        "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    }
    checkpoints = clerk.ledger.checkpoints.absolute()
    worker = tune.with_parameters(
        _Worker,
        make_objective=_pickled(make_objective),
        checkpoints=str(checkpoints),
        cpus=cluster.cpus,
        party=_Party(checkpoints / f"workers-{uuid.uuid4().hex}", parts.at_once),
    )
    with _environment(settings), _quiet(), _own_folder() as folder:
        tune.run(
            worker,
            name="search",
            config=parts.config,
            num_samples=parts.samples,
            search_alg=parts.algorithm,
            scheduler=parts.scheduler,
            stop=_Gate(clerk),
            callbacks=[clerk, _Silence()],
            resources_per_trial=tune.PlacementGroupFactory([cluster.resources]),
            storage_path=folder,
            trial_dirname_creator=lambda trial: trial.trial_id,
            verbose=0,
            max_failures=RETRIES,
            raise_on_failed_trial=False,
            reuse_actors=True,
        )


def _worker_environment(cluster: Cluster) -> dict[str, str]:
    """What must be in a worker's environment before its process starts."""
    threads = str(cluster.cpus)
    # glibc gives large buffers back at once, so that each step would pay for their page faults anew.
    keep = {"mmap_threshold": 2**32, "trim_threshold": 2**33, "hugetlb": 1}
    wanted = {
        "NPROC": threads,  # the size of XLA's thread pool on CPU
        "OMP_NUM_THREADS": threads,
        "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES")
        or ":".join(f"glibc.malloc.{name}={value}" for name, value in keep.items()),
    }
    if cluster.address is None:
        wanted["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    if not (cluster.gpus_per_worker or cluster.tpus_per_worker):
        wanted["JAX_PLATFORMS"] = "cpu"
    elif 0 < cluster.gpus_per_worker < 1:
        wanted["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 * cluster.gpus_per_worker:.3f}"
    return wanted


@contextlib.contextmanager
def _own_folder() -> Iterator[str]:
    """A temporary folder, short enough for the sockets in it, that goes with this process.

    Those that killed processes have left behind are removed as well; the lock in a folder tells.
    """
    base = Path(tempfile.gettempdir())
    if len(str(base)) > 30:
        base = Path("/tmp")
    for left in base.glob("nas-ray-*"):
        with contextlib.suppress(OSError), (left / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix="nas-ray-", dir=base))
    draft = folder / "draft"
    with draft.open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        draft.rename(folder / "lock")  # under the name only once it is held
        try:
            yield str(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _hush() -> Iterator[None]:
    """Without Ray's lines on stdout about workers that died; the record says which trial had one."""
    before, stdout_deduplicator.skip_re = stdout_deduplicator.skip_re, re.compile("")
    try:
        yield
    finally:
        stdout_deduplicator.skip_re = before


class _Silence(TrialProgressCallback):
    """Stands where Tune would put a callback that prints."""

    def log_result(self, trial: TuneTrial, result: dict[str, Any], error: bool = False) -> None:
        pass

    def _print(self, msg: str) -> None:
        pass


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Tune's log, which tells of each failed trial at length; the record has its reason."""
    logger = logging.getLogger("ray")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)
