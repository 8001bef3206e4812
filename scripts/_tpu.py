"""What describe.py --tpu says: a training step on chips that are not there, by their own compiler."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax

from nas.errors import InputError
from nas.tpu.chips import CHIPS
from nas.tpu.compiler import Cost, Slice, TooLarge, cost, largest_batch

if TYPE_CHECKING:
    from _cli import Chosen

SUPERNET_BATCH = 64  # Liu et al. 2019, section 3.1


class Step(NamedTuple):
    """A training step by its batch size, on any devices."""

    lower: Callable[[int], jax.stages.Lowered]
    fixed_bytes: int  # of parameters and the optimiser's state, whatever the batch
    batch: int


def training_step(
    found: Chosen, shape: tuple[int, int, int], classes: int, batch: int | None, dtype: str, on: Slice
) -> Step:
    """That of a network, in the optimiser and batch size of its own training unless ``batch`` says."""
    from nas.nn.bridge import build
    from nas.training.hyper import hyper_of
    from nas.training.programs import Shape, lower_step

    network, hyper = build(found.space, found.arch, classes), hyper_of(found.arch)

    def lower(size: int) -> jax.stages.Lowered:
        named = Shape(shape, classes, size, size, hyper.optimiser, dtype=dtype, devices=on.devices)
        return lower_step(network, named, mesh=on.mesh)

    return Step(lower, 3 * _parameter_bytes(network, shape), batch or hyper.batch_size)


def supernet_step(
    name: str,
    shape: tuple[int, int, int],
    classes: int,
    batch: int | None,
    dtype: str,
    on: Slice,
) -> Step:
    """A first-order step of the supernet of a space: of the architecture and of the weights."""
    from nas.objectives.oneshot import supernet_of
    from nas.oneshot.bilevel import Problem
    from nas.oneshot.programs import Search
    from nas.oneshot.relaxation import RELAXATIONS
    from nas.training.programs import Shape
    from search_spaces import SPACES

    supernet = supernet_of(SPACES[name])
    layout = supernet.layout()
    network = supernet.build(layout.opened(), classes, **supernet.sizes)
    problem = Problem(layout, RELAXATIONS["softmax"])

    def lower(size: int) -> jax.stages.Lowered:
        named = Shape(shape, classes, size, size, "momentum", clip=True, dtype=dtype, devices=on.devices)
        function, arguments = Search(network, problem, named, "step", on.mesh).traced(
            "search_step", "search_step"
        )
        return function.lower(*arguments)

    return Step(lower, 3 * _parameter_bytes(network, shape), batch or SUPERNET_BATCH)


def _parameter_bytes(network: Any, shape: tuple[int, int, int]) -> int:
    from nas.training.network import outline

    return 4 * outline(network, shape).params


def check_batch(batch: int, on: Slice) -> None:
    if batch % on.devices:
        raise InputError(f"batch: {batch} is not a multiple of the {on.devices} devices of {on.name}")


def described(step: Step, on: Slice) -> dict[str, Any]:
    """The figures of a step as plain values: ``fits`` or not, and then which batch does."""
    check_batch(step.batch, on)
    about: dict[str, Any] = {
        "topology": on.name,
        "chips": on.chips,
        "devices": on.devices,
        "device_memory_bytes": on.memory_bytes,
        "batch_size": step.batch,
        "chip": dataclasses.asdict(on.chip) | {"source": on.chip.source},
    }
    try:
        found = cost(functools.partial(step.lower, step.batch))
    except TooLarge as error:
        fitting = largest_batch(step.lower, step.fixed_bytes, step.batch, on)
        return about | {"fits": False, "needed_bytes": int(error.used_bytes), "fitting_batch_size": fitting}
    return about | {"fits": True} | figures(found, on, step.batch)


def figures(found: Cost, on: Slice, batch: int) -> dict[str, Any]:
    seconds = found.seconds(on)
    return found._asdict() | {
        "memory_bytes": found.memory_bytes,
        "roofline_step_seconds": seconds,
        "roofline_images_per_second": batch / seconds,
        "roofline_bound": found.bound(on),
    }


def lines(about: dict[str, Any], size_text: Callable[[float], str]) -> list[tuple[str, str]]:
    """The figures as rows of a report."""
    chip, chips = CHIPS[about["topology"].partition(":")[0]], about["chips"]
    each = "the chip" if about["devices"] == 1 else f"each of {about['devices']} devices"
    rows = [
        ("TPU", f"{about['topology']}: {chips} chip{'s' if chips > 1 else ''}"),
        (
            "published peaks",
            f"{chip.flops_per_second / 1e12:g} TFLOP/s (bfloat16), {size_text(chip.memory_bytes)} of HBM, "
            f"{chip.bytes_per_second / 1e9:g} GB/s a chip ({chip.source})",
        ),
    ]
    if not about["fits"]:
        other = about["fitting_batch_size"]
        rows.append(
            (
                "memory",
                f"batch {about['batch_size']} does not fit: {size_text(about['needed_bytes'])} on {each}, "
                + (f"--batch {other} would (compiled)" if other else "no smaller batch does"),
            )
        )
        return rows
    return [
        *rows,
        ("compilation", f"{about['compile_seconds']:.1f} s on this machine, by the TPU compiler"),
        (
            f"training step, {about['batch_size']}",
            f"{about['flops']:.3g} FLOPs, {about['bytes_accessed']:.3g} bytes moved on {each}",
        ),
        (
            "memory",
            f"{size_text(about['memory_bytes'])} of {size_text(about['device_memory_bytes'])} on {each}: arguments "
            f"{size_text(about['argument_bytes'])} + outputs {size_text(about['output_bytes'])} - shared "
            f"{size_text(about['alias_bytes'])} + temporaries {size_text(about['temp_bytes'])} + program "
            f"{size_text(about['code_bytes'])}",
        ),
        (
            "roofline",
            f"at most {about['roofline_images_per_second']:,.0f} images/s on all chips, bound by "
            f"{about['roofline_bound']} ({1000 * about['roofline_step_seconds']:.3g} ms a step)",
        ),
    ]
