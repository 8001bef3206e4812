"""What a search is told, whichever its strategy, and what that means for this machine."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from nas.cores import local_cores
from nas.data.config import DataConfig
from nas.errors import InputError, one_of
from nas.goals import ACCURACY, TRAIN, LatencyConfig
from nas.space import Range, SearchSpace, parse_assignments
from nas.strategies import StrategyConfig
from nas.training.config import TrainingConfig

TOPICS: Mapping[str, tuple[str, ...]] = {
    "search space": ("space", "fix", "narrow", "describe"),
    "images": ("data",),
    "objective": (
        "objective",
        "constraint",
        "latency",
        "filter",
        "filter_candidates",
        "score_batch_size",
        "scores",
        "reference",
    ),
    "strategy": ("strategy", "strategies", "plan"),
    "budget": ("trials", "epochs", "total_epochs", "seed", "seeds"),
    "training": ("hyper", "training"),
    "final trainings": ("front", "test_seeds", "final_epochs"),
    "engine": (
        "engine",
        "workers",
        "trials_per_program",
        "chips_per_trial",
        "cpus_per_worker",
        "gpus_per_worker",
        "address",
    ),
    "run folder": ("out", "resume", "log"),
}
"""Under which titles ``--help`` has the options; ``data``, ``training`` and ``plan`` are all of theirs."""


@dataclasses.dataclass(frozen=True)
class SearchOptions:
    """What every search has, whichever its strategy.

    ``plan`` is what the strategy is told: its own config, or the common part with the rest at its defaults.
    """

    space: str = "chain"
    """name of the search space"""
    fix: tuple[str, ...] = ()
    """choices with one value: connections=residual depth=3 (width means every width_<i>)"""
    narrow: tuple[str, ...] = ()
    """choices with fewer values: width=16,32 learning_rate=1e-3..1e-2"""
    hyper: tuple[str, ...] = ()
    """training hyperparameters that the space leaves open: learning_rate=0.1 batch_size=128"""
    objective: tuple[str, ...] = ("train",)
    """what a search maximises: train, the validation accuracy; or a training-free score (naswot, ntk_condition, …),
    in which case only the final trainings train; or several at once, each in its direction: valid_accuracy latency_ms
    params macs_per_image activation_bytes, scores, FILE.py:FUNCTION of an architecture (NAME:min, NAME:max)"""
    constraint: tuple[str, ...] = ()
    """what networks must keep: "latency_ms<5" "params<=1e6" (quoted); those that do not rank below all that do, and are
    not trained where that is known before"""
    front: int | None = None
    """of several objectives: how many networks of the front are trained again and tested; default: all"""
    filter: str | None = None
    """a training-free score: each new trial is the best by it of --filter-candidates that the strategy proposes"""
    filter_candidates: int = 100
    """how many networks are scored for one to be trained"""
    score_batch_size: int = 32
    """training images that scores are computed on"""
    total_epochs: int | None = None
    """epochs that all trials of a search together may take"""
    engine: Literal["ray", "local"] = "ray"
    """ray: trials side by side, on this machine or a cluster; local: one after the other in this process"""
    workers: int | Literal["auto"] | None = None
    """trials side by side (ray); default: one an accelerator, else one a CPU core; auto: as many as fit on the
    cluster while it grows and shrinks, which is the default with --address"""
    trials_per_program: int | None = None
    """trials that a process is given at a time, of which those that share a network train as one program; default: 1,
    with --engine local on an accelerator 16 where its memory has room"""
    cpus_per_worker: int | None = None
    """CPU threads of a worker (ray); default: the cores divided by the workers"""
    chips_per_trial: int | None = None
    """accelerators of a trial, which splits its batches over them (ray); more than a host has: a whole TPU slice of a
    cluster; default: 1 where there are any; 0: the CPU"""
    gpus_per_worker: float | None = None
    """GPUs of a worker (ray), if not --chips-per-trial says so; a fraction shares one GPU among several"""
    address: str | None = None
    """a running Ray cluster to use (ray), such as auto; default: this machine"""
    log: tuple[str, ...] = ()
    """show the search in tensorboard, wandb or mlflow too, while it runs; each writes below the run's folder"""
    test_seeds: int = 3
    """times that the best network is trained again, from other seeds, and tested; 0: not at all"""
    final_epochs: int | None = None
    """epochs of these final trainings; default: --epochs"""
    latency: LatencyConfig = dataclasses.field(default_factory=LatencyConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
    plan: StrategyConfig = dataclasses.field(default_factory=StrategyConfig)

    def __post_init__(self) -> None:
        if isinstance(self.objective, str):
            object.__setattr__(self, "objective", (self.objective,))
        if self.objective == (ACCURACY,):
            object.__setattr__(self, "objective", (TRAIN,))
        for name, low in (
            ("front", 1),
            ("filter_candidates", 1),
            ("score_batch_size", 2),
            ("total_epochs", 1),
            ("workers", 1),
            ("trials_per_program", 1),
            ("cpus_per_worker", 1),
            ("chips_per_trial", 0),
            ("test_seeds", 0),
            ("final_epochs", 1),
        ):
            value = getattr(self, name)
            if isinstance(value, int) and value < low:
                raise InputError(f"{name}: {value} is below {low}")
        gpus = self.gpus_per_worker
        if gpus is not None and not 0 <= gpus < math.inf:
            raise InputError(f"gpus_per_worker: {gpus} is not a number of at least 0")
        if gpus is not None and self.chips_per_trial is not None:
            raise InputError("gpus_per_worker: say this or chips_per_trial")


def narrowed(options: SearchOptions, spaces: Mapping[str, SearchSpace]) -> SearchSpace:
    """The search space that ``--space``, ``--fix`` and ``--narrow`` describe. Raises InputError."""
    if options.space not in spaces:
        raise one_of("space", options.space, spaces)
    return spaces[options.space].searched(fix=options.fix, narrow=options.narrow)


def hyperparameters(texts: Iterable[str]) -> dict[str, Any]:
    """``["learning_rate=0.1"]`` as values of `Hyper`'s fields. Raises InputError."""
    from nas.training.hyper import Hyper  # here: a command line does not wait for jax
    from nas.training.own_augment import load_named

    kinds = {f.name: type(f.default) for f in dataclasses.fields(Hyper) if not isinstance(f.default, tuple)}
    values: dict[str, Any] = {}
    for name, to in parse_assignments(texts).items():
        if name not in kinds:
            raise one_of("hyper", name, kinds)
        if isinstance(to, Range) or len(to) != 1:
            raise InputError(f"hyper: {name} needs one value")
        try:
            values[name] = kinds[name](to[0])
        except ValueError:
            raise InputError(f"hyper: {name}={to[0]} is not {kinds[name].__name__}") from None
    load_named(values.get("augmentation", ""))
    Hyper(**values)
    return values


def hyper_defaults(options: SearchOptions, space: SearchSpace) -> dict[str, Any]:
    """The hyperparameters given for what ``space`` leaves open. Raises InputError."""
    values = hyperparameters(options.hyper)
    for name in values:
        if name in space.choices:
            raise InputError(f"hyper: {name} is a choice of {space.name}; --fix {name}=… sets it")
    return values


def flat(options: SearchOptions, **more: Any) -> dict[str, Any]:
    """The options as one flat dictionary, without the strategy's: what ``config.json`` holds.

    What several objectives and constraints add is not in it where there are none.
    """
    config: dict[str, Any] = {}
    for name, value in dataclasses.asdict(options).items():
        if name in ("plan", "latency", "constraint", "front"):
            continue
        config |= value if isinstance(value, dict) else {name: value}
    if len(options.objective) == 1:
        config["objective"] = options.objective[0]
    if options.constraint:
        config["constraint"] = options.constraint
    return config | more


def cluster_of(options: SearchOptions) -> dict[str, Any]:
    """The arguments of `nas.run.tune.Cluster` that the options mean: on this machine, or on a cluster's own terms."""
    chips, gpus, workers = options.chips_per_trial, options.gpus_per_worker, options.workers
    given = {"cpus_per_worker": options.cpus_per_worker, "address": options.address}
    if options.address is not None:
        return given | {
            "workers": None if workers == "auto" else workers,
            "gpus_per_worker": chips if gpus is None else gpus,
            "tpus_per_worker": chips if gpus is None else 0,
        }
    have = local_accelerators()
    workers = None if workers == "auto" else workers
    if have.get("tpu") and chips != 0 and gpus is None:
        chips = chips or 1
        return given | {"workers": workers or max(1, have["tpu"] // chips), "tpus_per_worker": chips}
    if chips and not have.get("gpu"):
        raise InputError(f"chips_per_trial: {chips} is more than the 0 accelerators of this machine")
    if gpus is None:
        gpus = chips if chips is not None else 1.0 if have.get("gpu") else 0.0
    workers = workers or (int(have.get("gpu", 1) / gpus) if gpus else len(local_cores()))
    return given | {"workers": max(1, workers), "gpus_per_worker": float(gpus)}


GOOGLE = "0x1ae0"  # the PCI vendor of TPUs


def local_accelerators(root: Path = Path("/")) -> dict[str, int]:
    """How many GPUs and TPU chips this machine has, by its device files: asking jax would take them.

    Whatever is passed through to a virtual machine is ``/dev/vfio/<group>``: a TPU is one whose vendor is Google,
    as in Ray's `TPUAcceleratorManager` and JAX's `hardware_utils`.
    """
    devices = root / "dev"
    gpus = len(list(devices.glob("nvidia[0-9]*")))
    tpus = len(list(devices.glob("accel[0-9]*")))
    tpus = tpus or sum(_is_tpu(root, group.name) for group in devices.glob("vfio/[0-9]*"))
    return {name: count for name, count in (("gpu", gpus), ("tpu", tpus)) if count}


def _is_tpu(root: Path, group: str) -> bool:
    vendors = (root / "sys/kernel/iommu_groups" / group / "devices").glob("*/vendor")
    return any(vendor.read_text().strip().lower() == GOOGLE for vendor in vendors)
