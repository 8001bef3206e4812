"""What the TPU compiler says of a network, as a quantity of a search: a process that has the compiler is asked.

The bytes that a forward pass of ``--latency-batch`` images moves on one chip, in bfloat16 with parameters in float32,
and the roofline: the longer of its arithmetic and its memory traffic, each at the chip's published peak. That is a
bound from below, for networks to be compared by; nothing runs, and there need be no TPU.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import jax

from nas.errors import InputError
from nas.goals import ROOFLINES, TPU_ROOFLINE
from nas.nn.bridge import build
from nas.objectives.base import TrialFailed
from nas.run.serving import Serving
from nas.space import Architecture, SearchSpace
from nas.tpu.chips import chip_of
from nas.tpu.compiler import Cost, Slice, TooLarge, compiler_environment, cost, slice_of
from nas.training.programs import Shape, lower_predict

Ask = Callable[[Architecture], Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class RooflineSetup:
    """``topology``: one device, such as v5e:1x1; ``batch``: images at a time. Raises InputError where it is not."""

    space: SearchSpace
    topology: str
    batch: int

    def __post_init__(self) -> None:
        if not self.topology.endswith(":1x1"):
            raise InputError(f"latency_tpu: {self.topology!r} is not one chip, such as v5e:1x1")
        chip_of(self.topology)
        compiler_environment(None)  # a line now, not a failure of every trial

    def __call__(self, image_shape: tuple[int, int, int], num_classes: int) -> Ask:
        """Quantities by name (`nas.goals.ROOFLINES`) of an architecture; raises TrialFailed."""
        make = functools.partial(_with_compiler, self, image_shape, num_classes)
        serving = Serving(make, compiler_environment(None))

        @functools.cache  # compiling takes long, and a trial that is promoted asks again
        def ask(arch: Architecture) -> Mapping[str, float]:
            try:
                return serving(arch)
            except BrokenProcessPool:
                raise TrialFailed(f"{TPU_ROOFLINE}: the process that has the compiler ended") from None

        return ask


def _with_compiler(setup: RooflineSetup, image_shape: tuple[int, int, int], num_classes: int) -> Ask:
    return functools.partial(_quantities, setup, slice_of(setup.topology), image_shape, num_classes)


def _quantities(
    setup: RooflineSetup, on: Slice, image_shape: tuple[int, int, int], num_classes: int, arch: Architecture
) -> Mapping[str, float]:
    try:
        found = forward_cost(build(setup.space, arch, num_classes), image_shape, num_classes, setup.batch, on)
    except (InputError, TooLarge, jax.errors.JaxRuntimeError) as error:
        raise TrialFailed(f"{TPU_ROOFLINE}: {' '.join(str(error).split())}") from None
    return dict(zip(ROOFLINES, (1e3 * found.seconds(on), found.bytes_accessed), strict=True))


def forward_cost(
    network: Any, image_shape: tuple[int, int, int], num_classes: int, batch: int, on: Slice
) -> Cost:
    """The network in evaluation mode on ``batch`` images. Raises TooLarge."""
    shape = Shape(image_shape, num_classes, batch, batch, "momentum", dtype="bfloat16")
    return cost(functools.partial(lower_predict, network, shape, mesh=on.mesh))
