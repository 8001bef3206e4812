"""The end of this process when it is asked for, by SIGTERM: training writes a checkpoint first; and with its parent."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing import connection
from typing import Any, NoReturn

NOTICE_SECONDS = 15.0
"""A pod of GKE has so long from the notice that its spot machine is taken away; a virtual machine has 30 s."""


class ProcessLost(KeyboardInterrupt):
    """Another process is gone, and with it what this one computes; what was recorded stays. No trial's fault."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a script as Ctrl-C does."""


_asked = threading.Event()
_listening = 0


def terminate(number: int = 0, frame: Any = None) -> None:
    """A handler of SIGTERM: raises `Terminated`, at once or where code within `listening` is ready for it.

    At once too when it comes again, as it does by itself after ``NOTICE_SECONDS``.
    """
    if not _listening or _asked.is_set():
        end()
    _asked.set()
    signal.signal(signal.SIGALRM, terminate)
    signal.setitimer(signal.ITIMER_REAL, NOTICE_SECONDS)


def asked() -> bool:
    """Whether this process shall end; what listens finishes what it cannot leave and calls `end`."""
    return _asked.is_set()


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Within, `terminate` does not interrupt but lets `asked` say so; left, it raises `Terminated`."""
    global _listening
    _listening += 1
    try:
        yield
    finally:
        _listening -= 1
    if _asked.is_set():
        end()


def end() -> NoReturn:
    """Raises `Terminated`."""
    if _asked.is_set():
        _asked.clear()
        signal.setitimer(signal.ITIMER_REAL, 0)
    raise Terminated


def follow_parent() -> None:
    """Called in a process of `multiprocessing`: Ctrl-C is its parent's to hear, and it ends when its parent does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
