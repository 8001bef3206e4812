"""What the workers do beside a search's trials: final trainings, whole trainings, training-free scores."""

from __future__ import annotations

import contextlib
import dataclasses
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.cloudpickle import cloudpickle
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayError, RayTaskError
from ray.experimental import internal_kv

from nas.ending import NOTICE_SECONDS, Terminated, terminate
from nas.errors import InputError
from nas.objectives.base import Finisher, Trained, Trainer, TrialFailed
from nas.objectives.latency import Latency, Meter
from nas.objectives.score import ScoreObjective, ScoreSetup
from nas.run.driver import describe_error, raise_if_disk_full
from nas.run.tune.cluster import Cluster, room, session, without_log
from nas.run.tune.hosts import on_hosts
from nas.run.tune.losses import NAMESPACE, SETTLE_SECONDS, lost_nodes
from nas.run.tune.worker import claim_cores, ends, heed_notices, pickled, unpickled_objective
from nas.space import Architecture
from nas.trial import Final

SCORES = "_Scores"  # as Ray names the class
RETRIES = 1  # how often a piece of work whose worker died goes on, on another


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
    if not jobs:
        return
    with session(cluster) as cluster, without_log():
        factory = pickled(on_hosts(make_objective, cluster))
        call = _call.options(
            num_cpus=cluster.own_cpus, num_gpus=cluster.gpus_per_worker, resources=cluster.custom_resources
        )
        waiting = deque(enumerate(jobs))
        under_way: dict[ray.ObjectRef[Any], tuple[int, Collection[str]]] = {}
        deaths = Counter[int]()
        name = uuid.uuid4().hex
        while waiting or under_way:
            workers = cluster.workers or max(1, room(cluster))
            while waiting and len(under_way) < 2 * workers:  # one more for each than it works at
                i, job = waiting.popleft()
                given = (factory, str(checkpoints.absolute()), cluster.own_cpus, method, job, name)
                under_way[call.remote(*given)] = i, lost_nodes()
            try:
                (ready,), _ = ray.wait(list(under_way), num_returns=1)
            except Terminated:
                internal_kv._internal_kv_put(f"end {name}", b"", namespace=NAMESPACE)
                ray.wait(list(under_way), num_returns=len(under_way), timeout=NOTICE_SECONDS)
                raise
            i, lost = under_way.pop(ready)
            try:
                found = ray.get(ready)
                if found is None:  # its node is taken away
                    waiting.appendleft((i, jobs[i]))
                else:
                    yield i, found
            except RayTaskError as error:
                raise_if_disk_full(error.cause)
                raise InputError(str(error.cause)) from error
            except RayError as error:
                deaths[i] += not node_lost(error, lost, wait=cluster.address is not None)
                if deaths[i] > RETRIES:
                    yield i, f"the worker died: {why_it_died(error)}"
                else:
                    waiting.appendleft((i, jobs[i]))


def node_lost(error: RayError, before: Collection[str], *, wait: bool) -> bool:
    """Whether a task may have ended because a node was lost, other than those lost ``before`` it began."""
    end = time.monotonic() + (SETTLE_SECONDS if wait and not isinstance(error, OutOfMemoryError) else 0)
    while not isinstance(error, NodeDiedError) and not set(lost_nodes()).difference(before):
        if time.monotonic() >= end:
            return False
        time.sleep(0.5)
    return True


@ray.remote(max_retries=0)
def _call(
    make_objective: bytes,
    checkpoints: str,
    cpus: int,
    method: str,
    job: tuple[Architecture, int, int],
    search: str,
) -> Any:
    """None: this process was asked to end before that was done."""
    claim_cores(cpus)
    heed_notices(search, terminate)
    if ends(search):
        return None
    objective = unpickled_objective(make_objective, checkpoints)
    try:
        return getattr(objective, method)(*job)
    except Terminated:
        return None
    except SystemExit as stop:
        return f"it called sys.exit({stop.code!r})"
    except Exception as error:
        raise_if_disk_full(error)
        return describe_error(error)


@contextlib.contextmanager
def scores(setup: ScoreSetup) -> Iterator[Callable[[Architecture], tuple[float, float]]]:
    """``score(arch)`` -> value and seconds, in a process of its own, started when first called.

    Within a `session`. This process must not compute: it would take an accelerator from the workers.
    """
    factory, actors = pickled(setup), []

    def score(arch: Architecture) -> tuple[float, float]:
        if not actors:
            environment = {"env_vars": {"JAX_PLATFORMS": "cpu"}}
            actors.append(_Scores.options(num_cpus=0, runtime_env=environment).remote(factory))
        try:
            return ray.get(actors[0].score.remote(arch))
        except RayTaskError as error:
            raise InputError(f"filter: {describe_error(error.cause)}") from error
        except RayError as error:
            raise InputError(f"filter: the process that scores died: {why_it_died(error)}") from error

    try:
        yield score
    finally:
        for actor in actors:
            ray.kill(actor)


@ray.remote
class _Scores:
    """See ``scores``."""

    def __init__(self, setup: bytes) -> None:
        self._setup = setup

    def score(self, arch: Architecture) -> tuple[float, float]:
        objective: ScoreObjective = unpickled_objective(self._setup, "")
        return objective.signed(arch)[:2]


@contextlib.contextmanager
def meter(make: Callable[[], Meter], environment: Mapping[str, str]) -> Iterator[Meter]:
    """What measures latencies, one after the other, in a process of its own; workers may call it. Within a `session`.

    ``environment`` is that of the process, which keeps to one core that no worker has, where there is one.
    """
    # One that is lost, or dies, begins again; what it was measuring it measures once more.
    options: dict[str, Any] = {"num_cpus": 0, "runtime_env": {"env_vars": dict(environment)}}
    options |= {"max_restarts": -1, "max_task_retries": RETRIES}
    actor: Any = _Meter.options(**options).remote(pickled(make))
    try:
        ray.get(actor.start.remote())  # it has its core before any worker takes one
        yield RemoteMeter(actor)
    except RayTaskError as error:
        raise InputError(f"latency_ms: {describe_error(error.cause)}") from error
    finally:
        ray.kill(actor)


@dataclasses.dataclass(frozen=True)
class RemoteMeter:
    """See `meter`."""

    actor: Any

    def __call__(self, arch: Architecture) -> Latency:
        try:
            return ray.get(self.actor.measure.remote(arch))
        except RayTaskError as error:
            raise TrialFailed(str(error.cause)) from None
        except RayError as error:
            raise TrialFailed(f"latency_ms: the process that measures died: {why_it_died(error)}") from None


@ray.remote
class _Meter:
    """See ``meter``."""

    def __init__(self, make: bytes) -> None:
        claim_cores(1)
        self._make: bytes = make
        self._meter: Meter | None = None

    def start(self) -> None:
        if self._meter is None:
            self._meter = cloudpickle.loads(self._make)()

    def measure(self, arch: Architecture) -> Latency:
        self.start()  # one that was restarted has not
        assert self._meter is not None
        return self._meter(arch)


def why_it_died(error: BaseException | None) -> str:
    """What can be said about why a process is gone."""
    memory = isinstance(error, OutOfMemoryError)
    return "out of memory" if memory else "killed, crashed or out of memory"
