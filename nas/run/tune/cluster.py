"""Where a search runs on Ray: its workers' share of this machine, or of a cluster, and the start of Ray itself."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import logging
import math
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

# Read when ray is imported: Ray would print on stdout that a worker died; the record says which trial had one.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".*")

import ray
from ray._private import ray_constants  # which address Ray listens at has no public option

from nas.cores import local_cores
from nas.errors import InputError, one_of
from nas.run.driver import one_line
from nas.run.environment import environment
from nas.run.tune.losses import watched_head
from nas.run.tune.slices import slices

ROOT = Path(__file__).resolve().parents[3]
JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
OBJECT_STORE_BYTES = 128 * 2**20  # settings and measurements pass through it, no data


CHIPS = (1, 2, 4, 8)  # of a host that a process may have to itself, as libtpu and Ray have it


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Where a search runs. The defaults are one worker with this whole machine.

    What is None is taken from the cluster when a `session` connects to it; see `settled`.
    """

    workers: int | None = 1
    """Trials trained at the same time. None: as many as fit, while a cluster grows and shrinks."""
    cpus_per_worker: int | None = None
    """Cores, and so threads, of each worker. None: those there are, shared out evenly."""
    gpus_per_worker: float | None = 0.0
    """GPUs of each worker; a fraction shares one GPU, and its memory, among several. 0: workers use the CPU."""
    tpus_per_worker: int | None = 0
    """TPU chips of each worker; where these and GPUs are asked for, a cluster that has TPUs gives those alone. More
    than a host has are a whole slice of several hosts, see `nas.run.tune.hosts`."""
    address: str | None = None
    """A running Ray cluster: host:port of its head, or auto on one of its nodes. None: a Ray of our own."""
    hosts: int = 1
    """Of each worker, known when `settled`; of several, ``cpus_per_worker`` is of each."""
    slice_head: str = ""
    """The resource of the first host of a worker's slice, where it has one; see `nas.run.tune.slices.Slice`."""

    def __post_init__(self) -> None:
        least = {"workers": 1, "cpus_per_worker": 1, "gpus_per_worker": 0, "tpus_per_worker": 0}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise InputError(f"cluster: {name}={value} is less than {low}")
        gpus = self.gpus_per_worker or 0.0
        if not math.isfinite(gpus) or (gpus > 1 and gpus % 1):
            raise InputError(f"cluster: gpus_per_worker={gpus} is neither whole nor below 1")
        if self.address is None and self.tpus_per_worker and self.tpus_per_worker not in CHIPS:
            raise one_of("cluster: tpus_per_worker", self.tpus_per_worker, CHIPS)
        if self.address is None and None in (self.workers, self.gpus_per_worker, self.tpus_per_worker):
            raise InputError("cluster: what is left open needs the address of a cluster")

    @property
    def cpus(self) -> int:
        """Cores of each worker."""
        return self.cpus_per_worker or max(1, len(local_cores()) // (self.workers or 1))

    @property
    def own_cpus(self) -> int:
        """Cores of the worker's own process, which computes nothing where it has a slice."""
        return 0 if self.slice_head else self.cpus

    @property
    def chips(self) -> int:
        """Devices of each worker, over which it may split its batches."""
        return max(1, int(self.gpus_per_worker or 0), self.tpus_per_worker or 0)

    @property
    def custom_resources(self) -> dict[str, float]:
        """Those of a worker that Ray has no name of its own for."""
        if self.slice_head:
            return {self.slice_head: 1}
        return {"TPU": self.tpus_per_worker} if self.tpus_per_worker else {}

    @property
    def resources(self) -> dict[str, float]:
        """What Ray sets aside for each worker; one with a slice asks for its hosts' share itself."""
        if self.slice_head:
            return self.custom_resources
        gpus = {"GPU": self.gpus_per_worker} if self.gpus_per_worker else {}
        return {"CPU": self.cpus} | gpus | self.custom_resources


@contextlib.contextmanager
def session(cluster: Cluster) -> Iterator[Cluster]:
    """Have Ray running within; several searches of one process can so share its start of some seconds.

    Inside another session, nothing is started. A Ray of our own listens on this machine alone, and only to who has
    its token. Its processes and files are gone when the session is left, also when by an exception. Yields the
    cluster as `settled`. Raises `InputError` where it is not there, its head is lost, or no worker fits in.
    """
    check_cores(cluster)
    if ray.is_initialized():
        yield settled(cluster)
        return
    with contextlib.ExitStack() as stack:
        settings = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_OVERRIDE_JOB_RUNTIME_ENV": "1"}
        settings |= stack.enter_context(_reach(others=cluster.address is not None))
        options: dict[str, Any] = {"address": cluster.address}
        runtime: dict[str, Any] = {}
        if cluster.address is None:
            settings |= {"RAY_AUTH_TOKEN": _token()}  # Ray asks for it unless RAY_AUTH_MODE says otherwise
            folder = Path(stack.enter_context(private_folder())) / "ray"
            options = {"address": "local", "_temp_dir": str(folder)}
            options |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
            options |= {"num_cpus": (cluster.workers or 1) * cluster.cpus}
            # Ray would start processes ahead, in an environment that is not our workers'.
            options |= {
                "_system_config": {"prestart_worker_first_driver": False, "enable_worker_prestart": False}
            }
            if not cluster.gpus_per_worker:
                options |= {"num_gpus": 0}
        else:
            check_address(cluster.address)
        stack.enter_context(environment(settings))
        stack.callback(ray.shutdown)
        if (
            cluster.address is not None
        ):  # what workers are told before they start depends on the cluster's nodes
            _start(cluster.address, **options)
            cluster = settled(cluster)
            note_unused(cluster)
            if _all_here():  # a copy would be shared by the nodes, and be gone with the first of them
                runtime |= {"env_vars": {"PYTHONPATH": str(ROOT)}}
            elif JOB not in os.environ:  # a job of Ray's has brought its files itself
                runtime |= {"working_dir": str(ROOT), "excludes": [".git", ".venv", "runs", "shared"]}
            ray.shutdown()
        runtime["env_vars"] = runtime.get("env_vars", {}) | worker_environment(cluster)
        _start(cluster.address, runtime_env=runtime, **options)
        check_room(cluster)
        if cluster.address is not None:
            stack.enter_context(watched_head())
        yield cluster


def _start(at: str | None, **options: Any) -> None:
    """`ray.init`. Raises InputError."""
    try:
        with _own_sigterm(), warnings.catch_warnings():
            # Ray starts its processes with a function to run in the child: Python forks, and JAX warns of its threads.
            warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
            ray.init(log_to_driver=False, logging_level=logging.CRITICAL, **options)
    except Exception as error:  # of no kind in common: a node that does not start in time is a bare one
        said = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
        where = "" if at is None else f" at {at}"
        raise InputError(f"cluster: no Ray{where}: {one_line(said[-1])}") from error


@contextlib.contextmanager
def _reach(*, others: bool) -> Iterator[dict[str, str]]:
    """Have Ray bind its ports to the interfaces of other machines, or, on every system, to loopback alone.

    Ray knows this as whether it supports clusters. It reads an environment variable when it is imported, here perhaps
    before this module. Yields the variable for the processes that Ray starts.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = others
    try:
        yield {ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: str(int(others))}
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@functools.cache
def _token() -> str:
    """What processes of our Ray tell each other; Ray reads it once a process."""
    return secrets.token_hex(32)


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Ray's start replaces the handler of SIGTERM; who has set one keeps it."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def check_cores(cluster: Cluster) -> None:
    """Raises InputError where a worker shall have more cores than this machine has: its threads would choke it."""
    if cluster.address is None and cluster.cpus > len(local_cores()):
        raise InputError(
            f"cluster: cpus_per_worker={cluster.cpus} is more than the {len(local_cores())} cores of this machine"
        )


def check_address(address: str) -> None:
    """Raises InputError where no Ray listens: Ray itself tries for minutes before it gives up."""
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


def settled(cluster: Cluster) -> Cluster:
    """``cluster`` with what it leaves open taken from the nodes of the running Ray: accelerators, then cores.

    Raises InputError where no worker fits in.
    """
    if cluster.address is None:
        check_room(cluster)
        return cluster
    nodes = _nodes()
    have = {kind: sum(node.get(kind, 0) for node in nodes) for kind in ("TPU", "GPU")}
    wanted = {"TPU": cluster.tpus_per_worker, "GPU": cluster.gpus_per_worker}
    kind = next((kind for kind, amount in wanted.items() if have[kind] and amount != 0), None)
    kind = kind or next((kind for kind, amount in wanted.items() if amount), None)
    amount = (wanted[kind] or 1) if kind else 0
    cluster = dataclasses.replace(
        cluster,
        tpus_per_worker=int(amount) if kind == "TPU" else 0,
        gpus_per_worker=float(amount) if kind == "GPU" else 0.0,
    )
    cluster = on_slice(cluster, max((node.get("TPU", 0) for node in nodes), default=0))
    if cluster.cpus_per_worker is None:
        one = dataclasses.replace(cluster, cpus_per_worker=1)
        fit, cpus = room(one, nodes), 1
        if kind or cluster.workers:
            most = int(max((node.get("CPU", 0) for node in nodes), default=1))
            fit = min(fit, cluster.workers or fit)
            several = (dataclasses.replace(one, cpus_per_worker=cpus) for cpus in range(most, 1, -1))
            cpus = next((more.cpus for more in several if room(more, nodes) >= fit > 0), 1)
        cluster = dataclasses.replace(cluster, cpus_per_worker=cpus)
    check_room(cluster)
    return cluster


def on_slice(cluster: Cluster, chips_of_a_host: float) -> Cluster:
    """With more chips a worker than any host has: a slice for each. Raises InputError where none has so many."""
    wanted = cluster.tpus_per_worker or 0
    if cluster.slice_head or not wanted:
        return cluster
    if wanted <= chips_of_a_host or not chips_of_a_host:
        if wanted not in CHIPS:
            raise one_of("cluster: tpus_per_worker", wanted, CHIPS)
        return cluster
    have = slices()
    found = next((one for one in have if one.all_chips == wanted), None)
    if found is None:
        sizes = ", ".join(map(str, sorted({one.all_chips for one in have})))
        said = f"its slices have {sizes}" if sizes else "it has no slice of several hosts"
        raise InputError(
            f"cluster: tpus_per_worker={wanted} is more than the {chips_of_a_host:g} of a host, and {said}"
        )
    cpus = cluster.cpus_per_worker or found.cpus
    if cpus > found.cpus:
        raise InputError(
            f"cluster: cpus_per_worker={cpus} is more than the {found.cpus} of a host of a slice"
        )
    return dataclasses.replace(cluster, hosts=len(found.hosts), slice_head=found.head, cpus_per_worker=cpus)


def note_unused(cluster: Cluster) -> None:
    """Says which accelerators of the running Ray the search will not use."""
    nodes = _nodes()
    for name in ("TPU", "GPU"):
        there = sum(node.get(name, 0) for node in nodes)
        each = cluster.tpus_per_worker if name == "TPU" else cluster.gpus_per_worker
        used = (cluster.workers or room(cluster, nodes)) * (each or 0)
        if used < there:
            print(f"note: cluster: {used:g} of its {there:g} {name} are used", file=sys.stderr, flush=True)


def _all_here() -> bool:
    """Whether all nodes of the running Ray are on this machine, and so have this tree."""
    here = ray.util.get_node_ip_address()
    return all(node["NodeManagerAddress"] == here for node in ray.nodes() if node["Alive"])


def _nodes() -> list[dict[str, float]]:
    """What each living node of the running Ray has."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def room(cluster: Cluster, nodes: Iterable[Mapping[str, float]] | None = None) -> int:
    """How many workers fit on these nodes; None: on those of the running Ray."""
    each = cluster.resources.items()
    nodes = _nodes() if nodes is None else nodes
    return sum(min(int(node.get(name, 0) / amount + 1e-6) for name, amount in each) for node in nodes)


def check_room(cluster: Cluster) -> None:
    """Raises InputError where the workers do not fit into the running Ray; one of them, where a cluster may grow."""
    have = ray.cluster_resources()
    workers = cluster.workers if cluster.address is None and cluster.workers else 1
    for name, amount in cluster.resources.items():
        if have.get(name, 0) < workers * amount:
            have_amount = f"{have.get(name, 0):g}"
            raise InputError(
                f"cluster: workers={workers} need {workers * amount:g} {name}, Ray has {have_amount}"
            )
    if not room(cluster):
        needs = " and ".join(f"{amount:g} {name}" for name, amount in cluster.resources.items())
        raise InputError(f"cluster: no node has what a worker needs, {needs}")


def worker_environment(cluster: Cluster) -> dict[str, str]:
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
    elif 0 < (cluster.gpus_per_worker or 0) < 1:
        wanted["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 * (cluster.gpus_per_worker or 0):.3f}"
    return wanted


@contextlib.contextmanager
def private_folder() -> Iterator[str]:
    """A temporary folder that no other user can enter, short enough for the sockets in it, gone with this process.

    Those that killed processes have left behind are removed as well; the lock in a folder tells.
    """
    base = Path(tempfile.gettempdir())
    if len(str(base)) > 30:
        base = Path("/tmp")
    for left in base.glob("nas-ray-*"):
        if _abandoned(left):
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


def _abandoned(folder: Path) -> bool:
    """Whether the process of a private folder is gone.

    Its lock is free then. It has none where processes of Ray, as they ended, made the removed folder anew.
    """
    try:
        with (folder / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except FileNotFoundError:
        with contextlib.suppress(OSError):
            return time.time() - folder.stat().st_mtime > 60
    except OSError:
        pass  # locked, or another user's
    return False


@contextlib.contextmanager
def without_log() -> Iterator[None]:
    """Without Tune's log, which tells of each failed trial at length; the record has its reason."""
    logger = logging.getLogger("ray")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)
