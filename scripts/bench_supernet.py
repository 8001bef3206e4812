"""Search steps of the DARTS supernet in this code and in PyTorch: seconds a step, compile seconds, peak memory.

    python scripts/bench_supernet.py                      # 16 channels, 8 cells, batch 64: as published
    python scripts/bench_supernet.py --channels 8 --cells 4

A step is one of the architecture on one batch and one of the weights on another (Liu et al. 2019, algorithm 1):
``first`` order, ``difference`` (second order by the paper's finite difference) and, here alone, ``exact``. PyTorch
runs the same arithmetic with ordinary modules, one an edge and operation, eagerly, in channels_last. Each side is a
process of its own; they take turns, and the median of the turns' ratios is printed, of wall time and, since other
work disturbs that less, of the processors' time. ``compile`` is what this code spends until its first step is done,
less a step: building, tracing, compiling or loading, drawing weights; cold in an empty cache folder (but for the
native kernels, built once for a machine), warm in the next process with that folder.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from _cli import import_torch
from nas.errors import InputError, one_of
from nas.run.command_line import run

ORDERS = ("first", "difference", "exact")
PROGRAMS = ("auto", "step", "derivative")


@dataclasses.dataclass(frozen=True)
class Config:
    """Compare a supernet's search step with PyTorch on this machine."""

    channels: int = 16
    """channels of the first cell"""
    cells: int = 8
    """cells, of which two reduce"""
    batch_size: int = 64
    """images a batch, 32x32x3"""
    orders: tuple[str, ...] = ORDERS
    """first, difference, exact"""
    one_program: str = "auto"
    """what is one XLA program: auto, a whole step or each derivative"""
    batched: bool = False
    """this code runs equal operations on one input side by side"""
    remat: bool = False
    """this code computes what is inside an operation again for gradients"""
    rounds: int = 3
    """steps that each side makes, after one that is not counted"""
    torch: bool = True
    """PyTorch beside it (pip install -r requirements-bench.txt)"""
    warm: bool = True
    """compile a second time, in a new process, with what the first left on disk"""
    json: Path | None = None
    """write the figures there too"""


def main(config: Config) -> None:
    for order in config.orders:
        if order not in ORDERS:
            raise one_of("orders", order, ORDERS)
    if config.one_program not in PROGRAMS:
        raise one_of("one_program", config.one_program, PROGRAMS)
    if min(config.channels, config.cells, config.batch_size, config.rounds) < 1:
        raise InputError("bench: --channels, --cells, --batch-size and --rounds are at least 1")
    if config.torch and importlib.util.find_spec("torch") is None:
        raise InputError("torch: not installed; pip install -r requirements-bench.txt, or --no-torch")
    print(f"{'order':11} {'here s':>7} {'torch s':>8} {'ratio':>6} {'of cpu':>6} {'cold s':>7} {'warm s':>7} "
          f"{'here MiB':>9} {'torch MiB':>9}  (step; compile; peak)")  # fmt: skip
    rows = []
    for order in config.orders:
        row = measure(config, order, config.torch and order != "exact")
        rows.append(row)
        numbers = [row[key] for key in ("step_seconds", "torch_step_seconds", "ratio", "cpu_ratio",
                                        "compile_cold_seconds", "compile_warm_seconds",
                                        "peak_mib", "torch_peak_mib")]  # fmt: skip
        widths = ((7, 2), (8, 2), (6, 2), (6, 2), (7, 1), (7, 1), (9, 0), (9, 0))
        cells = [
            f"{'-':>{w}}" if n is None else f"{n:{w}.{d}f}" for n, (w, d) in zip(numbers, widths, strict=True)
        ]
        print(f"{order:11} {' '.join(cells)}", flush=True)
    print("ratio: PyTorch's seconds by this code's, of cpu the processors'; above 1 this code is faster")
    if config.json:
        config.json.write_text(json.dumps(rows, indent=1) + "\n")


def measure(config: Config, order: str, torch: bool) -> dict[str, Any]:
    """One line of the table."""
    from nas.cache import cache_root
    from nas.cpu import native_status

    native_status()  # the kernels are built once for a machine, not once for a network
    with tempfile.TemporaryDirectory() as cache:
        kernels = cache_root() / "native"
        if kernels.is_dir():
            (Path(cache) / "native").symlink_to(kernels)
        here = Side(jax_side, config, order, cache)
        theirs = Side(torch_side, config, order, cache) if torch else None
        pairs = [(here.step(), theirs.step() if theirs else None) for _ in range(config.rounds)]
        peak, torch_peak = here.close(), theirs.close() if theirs else None
        warm, warm_steps = [], []
        if config.warm:
            again = Side(jax_side, config, order, cache)
            warm, warm_steps = [again.prepared], [again.step()]
            again.close()
    steps = [a for a, _ in pairs]
    theirs_too = [b for _, b in pairs if b]
    ratios = [(b.wall_seconds / a.wall_seconds, b.cpu_seconds / a.cpu_seconds) for a, b in pairs if b]
    return {
        "order": order,
        "channels": config.channels,
        "cells": config.cells,
        "batch_size": config.batch_size,
        **_took("step", steps),
        **_took("torch_step", theirs_too),
        "ratio": _median(wall for wall, _ in ratios),
        "cpu_ratio": _median(cpu for _, cpu in ratios),
        **_took("compile_cold", [here.prepared], steps),
        **_took("compile_warm", warm, warm_steps),
        "peak_mib": peak,
        "torch_peak_mib": torch_peak,
    }


def _took(name: str, found: Sequence[Took], less: Sequence[Took] = ()) -> dict[str, float | None]:
    """Medians of the two times of ``found``, less those of ``less``."""
    medians: dict[str, float | None] = {}
    for field, key in (("wall_seconds", f"{name}_seconds"), ("cpu_seconds", f"{name}_cpu_seconds")):
        value = _median(getattr(one, field) for one in found)
        besides = _median(getattr(one, field) for one in less) or 0.0
        medians[key] = None if value is None else max(0.0, value - besides)
    return medians


def _median(values: Iterable[float]) -> float | None:
    kept = list(values)
    return statistics.median(kept) if kept else None


class Took(NamedTuple):
    wall_seconds: float
    cpu_seconds: float
    """of all threads, the system's work for them included"""


class Side:
    """A process that makes one step when told to; ``prepared``: what it took until the first was done."""

    def __init__(self, make: Callable[..., Any], config: Config, order: str, cache: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other, make, config, order, cache), daemon=True)
        self.process.start()
        other.close()
        self.prepared = self._receive()

    def _receive(self) -> Any:
        try:
            return self.pipe.recv()
        except EOFError:
            self.process.join()
            raise InputError("bench: a side of the comparison ended; its own message stands above") from None

    def step(self) -> Took:
        self.pipe.send("step")
        return self._receive()

    def close(self) -> float:
        """End it; its peak memory in MiB."""
        self.pipe.send("end")
        peak = self._receive()
        self.process.join()
        return peak


def serve(pipe: Any, make: Callable[..., Any], config: Config, order: str, cache: str) -> None:
    os.environ["NAS_CACHE_DIR"] = cache
    prepare = make(config, order)
    wall, used = time.perf_counter(), time.process_time()
    step = prepare()
    step()
    pipe.send(Took(time.perf_counter() - wall, time.process_time() - used))
    while pipe.recv() == "step":
        pipe.send(_timed(step))
    unit = 2**20 if sys.platform == "darwin" else 2**10
    pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)


def _timed(step: Callable[[], None]) -> Took:
    wall, used = time.perf_counter(), time.process_time()
    step()
    return Took(time.perf_counter() - wall, time.process_time() - used)


def images(config: Config, seed: int) -> tuple[Any, Any]:
    """float32 [B, 32, 32, 3] and int labels [B]."""
    import numpy as np

    rng = np.random.default_rng(seed)
    pixels = rng.standard_normal((config.batch_size, 32, 32, 3), np.float32)
    return pixels, rng.integers(0, 10, config.batch_size)


# -------------------------------------------------------------------------------------------------- this code


Step = Callable[[], None]
"""Makes one step, and waits for it."""


def jax_side(config: Config, order: str) -> Callable[[], Step]:
    """Imports what is needed; to be called to prepare a step."""
    import jax
    import numpy as np

    from nas.cpu import native_status
    from nas.oneshot.bilevel import Problem, Rates
    from nas.oneshot.programs import Search
    from nas.oneshot.relaxation import RELAXATIONS
    from nas.training.programs import Batch, Shape
    from nas.training.stored import use_compilation_cache
    from search_spaces import darts

    use_compilation_cache()
    native_status()
    batches = []
    for seed in (0, 1):
        pixels, labels = images(config, seed)
        batches.append(
            Batch(*jax.device_put((pixels, np.eye(10, dtype=np.float32)[labels], labels.astype(np.int32))))
        )

    def prepare() -> Step:
        layout = darts.layout()
        network = darts.supernet(layout, 10, channels=config.channels, cells=config.cells).clone(
            batched=config.batched, remat=config.remat
        )
        shape = Shape((32, 32, 3), 10, config.batch_size, config.batch_size, "momentum")
        search = Search(network, Problem(layout, RELAXATIONS["softmax"], order), shape, config.one_program)
        state = search.prepare(0)

        def step() -> None:
            nonlocal state
            state, metrics = search.step(state, batches[0], batches[1], Rates(), np.uint32(0))
            jax.block_until_ready((state, metrics))

        return step

    return prepare


# ---------------------------------------------------------------------------------------------------- PyTorch


def torch_side(config: Config, order: str) -> Callable[[], Step]:
    torch = import_torch()
    import torch.nn.functional as F

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = torch_supernet(config).to(device, memory_format=torch.channels_last)
    alphas = [torch.nn.Parameter(1e-3 * torch.randn(14, 8, device=device)) for _ in range(2)]
    weights = list(model.parameters())
    optimiser = torch.optim.SGD(weights, lr=0.025, momentum=0.9, weight_decay=3e-4)
    architect = torch.optim.Adam(alphas, lr=3e-4, betas=(0.5, 0.999), weight_decay=1e-3)
    data = []
    for seed in (0, 1):
        pixels, labels = images(config, seed)
        x = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(device, memory_format=torch.channels_last)
        data.append((x, torch.from_numpy(labels).to(device)))
    train, valid = data

    def loss(batch: Any) -> Any:
        return F.cross_entropy(model(batch[0], *(F.softmax(a, -1) for a in alphas)), batch[1])

    def second_order() -> list[Any]:
        """Equations 7 and 8 of Liu et al. 2019, in place and back."""
        kept = [w.detach().clone() for w in weights]
        gradient = torch.autograd.grad(loss(train), weights)
        with torch.no_grad():
            for w, g in zip(weights, gradient, strict=True):
                trace = optimiser.state[w].get("momentum_buffer", torch.zeros_like(w))
                w -= 0.025 * (0.9 * trace + g + 3e-4 * w)
        found = torch.autograd.grad(loss(valid), [*alphas, *weights])
        direct, along = found[:2], found[2:]
        length = 0.01 / torch.stack([v.square().sum() for v in along]).sum().sqrt()
        sides = []
        for sign in (1, -1):
            with torch.no_grad():
                for w, k, v in zip(weights, kept, along, strict=True):
                    w.copy_(k + sign * length * v)
            sides.append(torch.autograd.grad(loss(train), alphas))
        with torch.no_grad():
            for w, k in zip(weights, kept, strict=True):
                w.copy_(k)
        return [d - 0.025 * (a - b) / (2 * length) for d, a, b in zip(direct, *sides, strict=True)]

    def step() -> None:
        gradient = second_order() if order != "first" else torch.autograd.grad(loss(valid), alphas)
        for a, g in zip(alphas, gradient, strict=True):
            a.grad = g
        architect.step()
        optimiser.zero_grad(set_to_none=True)
        for w, g in zip(weights, torch.autograd.grad(loss(train), weights), strict=True):
            w.grad = g
        torch.nn.utils.clip_grad_norm_(weights, 5.0)
        optimiser.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return lambda: step


def torch_supernet(config: Config) -> Any:
    """Liu et al. 2019's supernet: ``model(x, normal weights [14, 8], reduce weights [14, 8])`` -> logits."""
    import torch
    from torch import nn

    def norm(channels: int) -> Any:
        return nn.BatchNorm2d(channels, affine=False)

    class Zero(nn.Module):
        def __init__(self, stride: int) -> None:
            super().__init__()
            self.stride = stride

        def forward(self, x: Any) -> Any:
            return x[:, :, :: self.stride, :: self.stride] * 0.0

    class Halve(nn.Module):
        def __init__(self, inputs: int, features: int) -> None:
            super().__init__()
            self.even = nn.Conv2d(inputs, features // 2, 1, 2, bias=False)
            self.odd = nn.Conv2d(inputs, features // 2, 1, 2, bias=False)
            self.norm = norm(features)

        def forward(self, x: Any) -> Any:
            x = torch.relu(x)
            return self.norm(torch.cat([self.even(x), self.odd(x[:, :, 1:, 1:])], 1))

    def pointwise(inputs: int, features: int) -> Any:
        return nn.Sequential(nn.ReLU(), nn.Conv2d(inputs, features, 1, bias=False), norm(features))

    def separable(channels: int, size: int, stride: int, dilation: int, repeats: int) -> Any:
        layers: list[Any] = []
        for k in range(repeats):
            pad = dilation * (size - 1) // 2
            by = 1 if k else stride
            layers += [
                nn.ReLU(),
                nn.Conv2d(channels, channels, size, by, pad, dilation, groups=channels, bias=False),
                nn.Conv2d(channels, channels, 1, bias=False),
                norm(channels),
            ]
        return nn.Sequential(*layers)

    def operations(c: int, stride: int) -> Any:
        return nn.ModuleList(
            [
                Zero(stride),
                nn.Sequential(nn.MaxPool2d(3, stride, 1), norm(c)),
                nn.Sequential(nn.AvgPool2d(3, stride, 1, count_include_pad=False), norm(c)),
                nn.Identity() if stride == 1 else Halve(c, c),
                separable(c, 3, stride, 1, 2),
                separable(c, 5, stride, 1, 2),
                separable(c, 3, stride, 2, 1),
                separable(c, 5, stride, 2, 1),
            ]
        )

    class Cell(nn.Module):
        def __init__(self, before: int, last: int, c: int, reduction: bool, reduced: bool) -> None:
            super().__init__()
            self.reduction = reduction
            self.input_0 = Halve(before, c) if reduced else pointwise(before, c)
            self.input_1 = pointwise(last, c)
            strides = [2 if reduction and j < 2 else 1 for node in range(4) for j in range(2 + node)]
            self.edges = nn.ModuleList([operations(c, stride) for stride in strides])

        def forward(self, before: Any, last: Any, weights: Any) -> Any:
            states, edge = [self.input_0(before), self.input_1(last)], 0
            edges: Any = self.edges
            for _ in range(4):
                total = 0.0
                for state in states:
                    mixed = zip(weights[edge], edges[edge], strict=True)
                    total = total + sum(weight * op(state) for weight, op in mixed)
                    edge += 1
                states.append(total)
            return torch.cat(states[2:], 1)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            width = config.channels
            self.stem = nn.Sequential(nn.Conv2d(3, 3 * width, 3, 1, 1, bias=False), nn.BatchNorm2d(3 * width))
            before = last = 3 * width
            reduced, cells = False, []
            for k in range(config.cells):
                reduction = k in (config.cells // 3, 2 * config.cells // 3)
                width *= 2 if reduction else 1
                cells.append(Cell(before, last, width, reduction, reduced))
                before, last, reduced = last, 4 * width, reduction
            self.cells = nn.ModuleList(cells)
            self.logits = nn.Linear(last, 10)

        def forward(self, x: Any, normal: Any, reduce: Any) -> Any:
            before = last = self.stem(x)
            for cell in self.cells:
                before, last = last, cell(before, last, reduce if cell.reduction else normal)
            return self.logits(last.mean((2, 3)))

    return Model()


if __name__ == "__main__":
    run(main, compute=True)
