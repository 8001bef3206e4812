"""New processes that each make a function once and then call it with what this process gives them."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import cloudpickle

from nas.ending import follow_parent
from nas.own_file import pickled
from nas.run.environment import environment


class Serving:
    """Up to ``processes`` processes with the environment ``settings`` and a function ``make()`` of their own each.

    They start when there is work for them, leave Ctrl-C to this process and end with it. What the function raises is
    raised here. A process that dies raises `concurrent.futures.process.BrokenProcessPool` for all that is under way;
    what is asked later has new ones.
    """

    def __init__(
        self, make: Callable[[], Callable[[Any], Any]], settings: Mapping[str, str], processes: int = 1
    ) -> None:
        self._settings, self._processes = settings, processes
        self._make = pickled(make, cloudpickle)
        self._pool = self._new_pool()

    def submit(self, given: Any) -> Future[Any]:
        """The function's answer to ``given``, to come."""
        with environment(self._settings):
            try:
                return self._pool.submit(_answer, given)
            except BrokenProcessPool:
                self._pool = self._new_pool()
                return self._pool.submit(_answer, given)

    def __call__(self, given: Any) -> Any:
        """The function's answer, waited for."""
        return self.submit(given).result()

    def close(self) -> None:
        """Ends the processes when the work under way is done; what waits for them is dropped."""
        self._pool.shutdown(cancel_futures=True)

    def _new_pool(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            self._processes, multiprocessing.get_context("spawn"), _begin, (self._make,)
        )


_function: Callable[[Any], Any]  # of a process of `Serving`


def _begin(make: bytes) -> None:
    global _function
    follow_parent()
    _function = pickle.loads(make)()


def _answer(given: Any) -> Any:
    return _function(given)
