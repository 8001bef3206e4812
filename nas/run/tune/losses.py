"""What a cluster loses while a search runs: workers, with their nodes or by their own fault, and its head."""

from __future__ import annotations

import _thread
import contextlib
import dataclasses
import os
import socket
import sys
import threading
import time
from collections.abc import Collection, Iterator
from typing import Any

import ray
from ray._private import state  # what Ray knows of an actor has no public name
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.experimental import internal_kv

from nas.errors import InputError

NAMESPACE = "nas"  # of our keys in the cluster's store
SETTLE_SECONDS = 6.0
"""A node that shuts down ends its workers first: so long after a worker's end its node may still seem to live."""
UNKNOWN_SECONDS = 90.0
"""So long Ray may take to tell that a node which fell silent is dead (by default less than 30 s)."""
HEAD_SECONDS = 3.0
"""A head that refuses connections for so long is lost."""
LEAVE_SECONDS = 5.0
"""What Ray is waiting for in this process may go on for a minute after that; then the process ends itself."""


@dataclasses.dataclass(frozen=True)
class Death:
    """The end of a worker before the end of its work."""

    error: BaseException | None
    on_cluster: bool
    when: float = dataclasses.field(default_factory=time.monotonic)

    def own(self) -> bool | None:
        """Whether the worker, or what it ran, is to blame rather than the loss of its node; None: not known yet."""
        error, waited = self.error, time.monotonic() - self.when
        actor: dict[str, Any] = {}
        if isinstance(error, RayActorError):
            if error.preempted or has_left(error.actor_id):
                return False
            if self.on_cluster:
                actor = state.actors(error.actor_id) or {}
        if not self.on_cluster:
            return True
        if actor and actor["Address"]["NodeID"] in lost_nodes():
            return False
        if isinstance(error, OutOfMemoryError):
            return True
        known = not isinstance(error, RayActorError) or actor.get("State") == "DEAD"
        return True if (known and waited > SETTLE_SECONDS) or waited > UNKNOWN_SECONDS else None


def has_left(actor: str) -> bool:
    """Whether this worker ended because it was asked to; see `nas.run.tune.worker.leave`."""
    return internal_kv._internal_kv_exists(f"left {actor}", namespace=NAMESPACE)


def lost_nodes() -> Collection[str]:
    """Ids of the nodes that are dead, or shall be: drained, preempted."""
    dead = {node["NodeID"] for node in ray.nodes() if not node["Alive"]}
    return dead | set(state.state.get_draining_nodes())


@contextlib.contextmanager
def watched_head() -> Iterator[None]:
    """Within, the loss of the cluster's head raises InputError in the main thread, seconds later.

    Ray itself would say nothing for a minute and then end the process. Where it holds the main thread so long, the
    process ends with the same line.
    """
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    line = f"cluster: the head at {host}:{port} is lost; what was measured is kept, --resume goes on"
    over, lost = threading.Event(), threading.Event()

    def watch() -> None:
        seen = time.monotonic()
        while not over.wait(0.5):
            try:
                socket.create_connection((host.strip("[]"), int(port)), timeout=1).close()
                seen = time.monotonic()
            except OSError:
                if time.monotonic() - seen > HEAD_SECONDS:
                    break
        else:
            return
        lost.set()
        _thread.interrupt_main()
        if not over.wait(LEAVE_SECONDS):
            print(f"error: {line}", file=sys.stderr, flush=True)
            os._exit(2)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    except KeyboardInterrupt:
        if not lost.is_set():
            raise
        raise InputError(line) from None
    finally:
        over.set()
