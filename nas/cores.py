"""The cores of this machine that this process may use."""

from __future__ import annotations

import os


def local_cores() -> list[int]:
    """Their numbers, in order. Where the system lets no process be kept to some of them, all that it has."""
    affinity = getattr(os, "sched_getaffinity", None)
    return sorted(affinity(0)) if affinity else list(range(os.cpu_count() or 1))
