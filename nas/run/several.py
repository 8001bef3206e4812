"""What a search for several objectives, or under constraints, has beside any other: what is told of it, and where
latencies are measured."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from nas.cores import local_cores
from nas.goals import LATENCY, ROOFLINES
from nas.objectives.several import SeveralSetup
from nas.record import Run
from nas.run.options import SearchOptions, local_accelerators
from nas.run.plan import Plan
from nas.trial import values_text


def nothing_found(run: Run) -> str:
    """Why a run has no best trial, in one line."""
    limits = " ".join(run.config.get("constraint", ()))
    measured = [trial for trial in run.trials.values() if math.isfinite(trial.score)]
    if not measured:
        return f"{run.folder}: no trial could be measured; trials.jsonl there says why"
    nearest = max(measured, key=lambda trial: (trial.score, -trial.id))
    shown = f" has {values_text(nearest.values)}" if nearest.values else ""
    return (
        f"{run.folder}: none of the {len(measured)} networks measured keeps {limits}; the nearest, trial "
        f"{nearest.id},{shown}"
    )


def told(options: SearchOptions, planned: Plan) -> dict[str, Any]:
    """What a record's config says of several objectives: their names and directions, and how latencies are measured."""
    if planned.goals is None:
        return {}
    told: dict[str, Any] = {"goals": {goal.name: goal.sign for goal in planned.goals.objectives}}
    if LATENCY in planned.goals.names:
        threads = 1 if measures_apart(options, planned) else None
        measured = dataclasses.asdict(options.latency)
        del measured["latency_tpu"]
        told |= {**measured, "latency_threads": threads}
    if set(ROOFLINES).intersection(planned.goals.names):
        told |= {"latency_tpu": options.latency.latency_tpu, "latency_batch": options.latency.latency_batch}
    predictor = planned.setup.quantities.predictor if isinstance(planned.setup, SeveralSetup) else None
    if predictor is not None:
        told |= {"latency_predictor": predictor.checksum, "latency_batch": options.latency.latency_batch}
    return told


def measures_apart(options: SearchOptions, planned: Plan) -> bool:
    """Whether latencies are measured on a core of their own, beside the trainings.

    An accelerator does one thing at a time for who has it: there they are measured where the network is trained.
    """
    device = options.latency.latency_device
    on_cpu = device == "cpu" or (device is None and not local_accelerators())
    return planned.goals is not None and LATENCY in planned.goals.names and on_cpu


def with_core_left(cluster: Any, options: SearchOptions) -> Any:
    """``cluster`` with workers that leave a core of this machine to what measures latencies.

    The user's own ``--workers`` and ``--cpus-per-worker`` stand; this machine's only core is shared.
    """
    cores = len(local_cores()) - 1
    if options.address is not None or cores < 1:
        return cluster
    workers = cluster.workers if options.workers else min(cluster.workers, cores)
    cpus = options.cpus_per_worker or max(1, cores // workers)
    return dataclasses.replace(cluster, workers=workers, cpus_per_worker=cpus)
