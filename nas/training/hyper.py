"""Training hyperparameters: the part of an architecture value that says how its network is trained."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nas.errors import InputError, one_of
from nas.training.augment import AUGMENTATIONS
from nas.training.optimiser import FACTORIES
from nas.training.own_augment import AUGMENTS


@dataclasses.dataclass(frozen=True)
class Hyper:
    """How a network is trained. A space that has a choice of one of these names searches over it.

    ``optimiser``, ``batch_size`` and ``augmentation`` change the compiled programs; all the others are
    arguments of them, so that trials differing in those alone share one compilation.
    """

    optimiser: str = "nesterov"
    """one of nas.training.optimiser.FACTORIES: optax's by their names, and momentum and nesterov (0.9)"""
    learning_rate: float = 0.05
    """the highest learning rate of the schedule"""
    schedule: str = "cosine"
    """one of nas.training.hyper.SCHEDULES"""
    batch_size: int = 64
    """images a step, over all devices"""
    weight_decay: float = 1e-4
    """of kernels: decoupled in the optimisers that have it so (adamw, lion, lamb, ...), else L2"""
    label_smoothing: float = 0.0
    """probability mass spread evenly over all classes"""
    augmentation: str = "none"
    """one of, or several joined by +, of nas.training.augment.AUGMENTATIONS or FILE.py:NAME"""
    dropout: float = 0.0
    """probability of dropping an input of a dense layer"""
    own_weight_decay: tuple[tuple[str, float], ...] = ()
    """modules of the network with a weight decay of their own: the choices weight_decay_<module>"""
    drop_path: float = 0.0
    """probability of dropping a path through a cell, reached linearly over the epochs"""

    def __post_init__(self) -> None:
        if self.optimiser not in FACTORIES:
            raise one_of("optimiser", self.optimiser, FACTORIES)
        if self.schedule not in SCHEDULES:
            raise one_of("schedule", self.schedule, SCHEDULES)
        for part in self.augmentation.split("+"):
            if part not in AUGMENTATIONS and part not in AUGMENTS:
                raise one_of("augmentation", part, (*AUGMENTATIONS, *AUGMENTS))
        if self.batch_size < 1:
            raise InputError(f"batch_size: {self.batch_size} is below 1")
        for name in ("label_smoothing", "dropout", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name}: {getattr(self, name)} is not in [0, 1)")
        for name in ("learning_rate", "weight_decay"):
            _check_rate(name, getattr(self, name))
        for module, decay in self.own_weight_decay:
            _check_rate(f"{_OWN}{module}", decay)


def _check_rate(name: str, value: float) -> None:
    if not 0 <= value < np.inf:
        raise InputError(f"{name}: {value} is not a finite number of at least 0")


_OWN = "weight_decay_"  # and the name of a module
NAMES = tuple(field.name for field in dataclasses.fields(Hyper))


def hyper_of(arch: Mapping[str, Any], **defaults: Any) -> Hyper:
    """The hyperparameters among an architecture's choices; ``defaults`` for those it does not have."""
    own = tuple((name.removeprefix(_OWN), arch[name]) for name in arch if name.startswith(_OWN))
    given: dict[str, Any] = {"own_weight_decay": own} if own else {}
    return Hyper(**(defaults | given | {name: arch[name] for name in NAMES if name in arch}))


def _step(rate: float, steps: int, *, reductions: Sequence[float]) -> optax.Schedule:
    """Divided by 10 where each of these shares of the training is done."""
    return optax.piecewise_constant_schedule(rate, {math.ceil(steps * share): 0.1 for share in reductions})


def _one_cycle(rate: float, steps: int) -> optax.Schedule:
    """Linear warm-up over the first 15 %, then linear to zero (the triangle of Smith and Topin 2018)."""
    top: Any = 0.15 * steps  # optax's functions say int and take any number
    rise, fall = optax.linear_schedule(0.0, rate, top), optax.linear_schedule(rate, 0.0, steps - top)
    return optax.join_schedules((rise, fall), (top,))


Schedule = Callable[[float, int], optax.Schedule]

# Each makes optax's schedule of the highest learning rate and the number of steps.
SCHEDULES: dict[str, Schedule] = {
    "constant": lambda rate, steps: optax.constant_schedule(rate),
    "linear": lambda rate, steps: optax.linear_schedule(rate, 0.0, steps),
    "cosine": optax.cosine_decay_schedule,  # Loshchilov and Hutter 2017, one period without restarts
    "step": functools.partial(_step, reductions=(1 / 2, 3 / 4)),  # He et al. 2015
    "step_1": functools.partial(_step, reductions=(1 / 2,)),  # these three: Li et al. 2018
    "step_2": functools.partial(_step, reductions=(1 / 3, 2 / 3)),
    "step_3": functools.partial(_step, reductions=(1 / 4, 2 / 4, 3 / 4)),
    "one_cycle": _one_cycle,
}


def learning_rates(hyper: Hyper, *, epoch: int, epochs: int, steps: int) -> np.ndarray:
    """float32 [steps]: the rate of every step of ``epoch`` (from 0), of ``epochs`` with ``steps`` each.

    The schedule runs over the full ``epochs``, also when a scheduler stops the trial sooner; beyond them its last
    rate stays.
    """
    fractions = _fractions(SCHEDULES[hyper.schedule], epochs * steps)
    counts = np.minimum(epoch * steps + np.arange(steps), len(fractions) - 1)
    return np.float32(hyper.learning_rate) * fractions[counts]


@functools.lru_cache(maxsize=64)
def _fractions(schedule: Schedule, steps: int) -> np.ndarray:
    """float32 [steps]: a schedule's shares of the highest learning rate, computed once for all trials."""
    of = schedule(1.0, steps)
    found = jax.jit(lambda counts: jnp.broadcast_to(of(counts), counts.shape))(
        np.arange(steps, dtype=np.int32)
    )
    return np.asarray(found, np.float32)
