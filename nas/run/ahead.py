"""Compiling what is trained next while something trains: an accelerator works, and the host has nothing to do."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence

from nas.objectives.base import Objective, Together
from nas.trial import Trial


class CompileAhead:
    """Compiles a group's programs in another thread; nothing where ``objective`` is not `Together`."""

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self._thread: threading.Thread | None = None
        self._seconds = 0.0

    def start(self, group: Sequence[Trial]) -> None:
        """Begin with ``group``, which is trained next."""
        if isinstance(self._objective, Together):
            self._thread = threading.Thread(target=self._compile, args=(self._objective, group), daemon=True)
            self._thread.start()

    def hidden_seconds(self) -> float:
        """Wait for what was begun; of its seconds those that nobody waited."""
        if self._thread is None:
            return 0.0
        start = time.perf_counter()
        self._thread.join()
        self._thread = None
        return max(0.0, self._seconds - (time.perf_counter() - start))

    def _compile(self, objective: Together, group: Sequence[Trial]) -> None:
        start = time.perf_counter()
        with contextlib.suppress(Exception):  # what is wrong with a network, its own training says
            objective.compile(group)
        self._seconds = time.perf_counter() - start
