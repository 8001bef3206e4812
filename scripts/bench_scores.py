"""Speed of training-free scores beside PyTorch's: python scripts/bench_scores.py

Scores the same architectures of `nasbench201`, at its published size, with this code and with the same score in
plain PyTorch (channels_last), in turns, an architecture each: building, initialising, compiling and running are
all counted, from an empty process state (nothing is compiled or drawn before the first). Prints
architectures a minute over all of them, and the ratio of the second half, which compiles little. On a
machine that others use too, the ratio of processor seconds says more than that of the clock's.

First, both are given the same weights, once for each score, and have to agree. PyTorch:
pip install -r requirements-bench.txt.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from _cli import import_torch
from nas.errors import InputError, one_of
from nas.run.command_line import run

SCORES = ("grad_norm", "snip", "synflow", "naswot", "ntk_condition")
DISAGREEMENT = 1e-2  # in the logarithm; kernels round differently, and a condition number doubles that


@dataclasses.dataclass(frozen=True)
class Config:
    """Compare the speed of scores with PyTorch on this machine."""

    networks: int = 50
    """architectures, drawn from --seed"""
    ntk_networks: int = 10
    """of these so many for ntk_condition, which takes --batch-size backward passes each"""
    seed: int = 0
    scores: tuple[str, ...] = SCORES
    channels: int = 16
    """of the first stage"""
    cells: int = 5
    """in each stage"""
    image_size: int = 32
    batch_size: int = 32
    torch: bool = True
    """PyTorch beside it (pip install -r requirements-bench.txt)"""
    json: Path | None = None
    """write the figures there too"""


def main(config: Config) -> None:
    for score in config.scores:
        if score not in SCORES:
            raise one_of("scores", score, SCORES)
    sizes = ("networks", "ntk_networks", "channels", "cells", "image_size", "batch_size")
    for name in sizes:
        if getattr(config, name) < 1:
            raise InputError(f"{name}: {getattr(config, name)} is below 1")
    if config.torch:
        import_torch()
    print(f"{'score':14} {'networks':>8} {'here':>8} {'torch':>8} {'ratio':>6} {'2nd half':>8} {'cpu':>6}  "
          "architectures a minute; ratios of seconds, torch / here")  # fmt: skip
    rows = []
    for score in config.scores:
        row = compare(score, config)
        rows.append(row)
        beside = [
            row.get(key, float("nan"))
            for key in ("torch_per_minute", "ratio", "second_half_ratio", "cpu_ratio")
        ]
        print(f"{score:14} {row['networks']:8} {row['per_minute']:8.1f} {beside[0]:8.1f} "
              f"{beside[1]:6.2f} {beside[2]:8.2f} {beside[3]:6.2f}", flush=True)  # fmt: skip
    if config.json:
        config.json.write_text(json.dumps(rows, indent=1) + "\n")


def compare(score: str, config: Config) -> dict[str, Any]:
    """Seconds of both sides for one score, an architecture at a time in turns."""
    import numpy as np

    from search_spaces.nasbench201 import nasbench201_space

    space = nasbench201_space(channels=config.channels, cells=config.cells)
    shape = (config.image_size, config.image_size, 3)
    rng = np.random.default_rng(config.seed)
    images = rng.standard_normal((config.batch_size, *shape), np.float32)
    labels = rng.integers(0, 10, config.batch_size)
    count = config.ntk_networks if score == "ntk_condition" else config.networks
    archs = [space.sample((config.seed, k)) for k in range(count)]
    if config.torch:
        check(score, config, space, images, labels)
    forget()
    ours, theirs = [], []
    for k, arch in enumerate(archs):
        turns = [
            (ours, lambda arch=arch: jax_score(score, space, arch, images, labels)),
            (theirs, lambda arch=arch: torch_score(score, config, arch, images, labels)),
        ]
        turns = turns if config.torch else turns[:1]
        for times, turn in turns if k % 2 else reversed(turns):
            gc.collect()
            with timed() as taken:
                turn()
            times.append((taken["seconds"], taken["cpu_seconds"]))
    here, torch = np.array(ours), np.array(theirs)
    half = count // 2
    row = {
        "score": score,
        "networks": count,
        "per_minute": 60 * count / here[:, 0].sum(),
        "seconds": here[:, 0].tolist(),
        "cpu_seconds": here[:, 1].tolist(),
    }
    if not config.torch:
        return row
    return row | {
        "torch_per_minute": 60 * count / torch[:, 0].sum(),
        "ratio": torch[:, 0].sum() / here[:, 0].sum(),
        "second_half_ratio": torch[half:, 0].sum() / here[half:, 0].sum(),
        "cpu_ratio": torch[:, 1].sum() / here[:, 1].sum(),
        "cpu_second_half_ratio": torch[half:, 1].sum() / here[half:, 1].sum(),
        "torch_seconds": torch[:, 0].tolist(),
        "torch_cpu_seconds": torch[:, 1].tolist(),
    }


@contextlib.contextmanager
def timed() -> Iterator[dict[str, float]]:
    """Seconds by the clock and of all the process's threads."""
    taken: dict[str, float] = {}
    start, cpu = time.perf_counter(), time.process_time()
    yield taken
    taken |= {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}


def forget() -> None:
    """Nothing traced, compiled or drawn is left."""
    import jax

    from nas.proxies import passes

    passes.forget()
    jax.clear_caches()


def check(score: str, config: Config, space: Any, images: Any, labels: Any) -> None:
    """Both sides on the same weights of one architecture: InputError where they differ."""
    arch = space.sample((config.seed, 0))
    here = jax_score(score, space, arch, images, labels)
    variables = variables_of(space, arch, images.shape[1:])
    there = torch_score(score, config, arch, images, labels, variables)
    same = here == there if math.isinf(here) else abs(here - there) <= DISAGREEMENT * max(1.0, abs(there))
    if score in ("grad_norm", "snip", "ntk_condition") and math.isfinite(here):
        same = abs(math.log(max(here, 1e-300) / max(there, 1e-300))) <= DISAGREEMENT
    if not same:
        raise InputError(f"{score}: {here:.6g} here and {there:.6g} in PyTorch for {space.to_text(arch)}")


# ---------------------------------------------------------------------------------------------- this code


def variables_of(space: Any, arch: Any, image_shape: Any) -> Any:
    from nas.proxies import initial_variables

    return initial_variables(space.build(arch, 10), image_shape, 0)


def jax_score(score: str, space: Any, arch: Any, images: Any, labels: Any) -> float:
    import numpy as np

    from nas.proxies import PROXIES, Probe, batch, initial_variables

    network = space.build(arch, 10)
    target = np.eye(10, dtype=np.float32)[labels]
    variables = initial_variables(network, images.shape[1:], 0)
    probe = Probe(network, variables, images.shape[1:], [batch(images, target, labels)])
    return PROXIES[score].score(probe)


# ------------------------------------------------------------------------------------------------ PyTorch


def torch_network(arch: Any, config: Config) -> Any:
    """The same network in PyTorch's own modules."""
    from torch import nn

    from search_spaces.nasbench201 import EDGES, operations_of

    class Unit(nn.Sequential):
        def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
            conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
            super().__init__(nn.ReLU(), conv, nn.BatchNorm2d(outputs))

    def edge(operation: str, channels: int) -> Any:
        if operation == "avg_pool_3x3":
            return nn.AvgPool2d(3, 1, 1, count_include_pad=False)
        kernels = {"nor_conv_1x1": 1, "nor_conv_3x3": 3}
        return Unit(channels, channels, kernels[operation]) if operation in kernels else nn.Identity()

    operations = operations_of(arch)

    class Cell(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.edges = nn.ModuleList(edge(operation, channels) for operation in operations)

        def forward(self, x: Any) -> Any:
            nodes = [x]
            for to in range(1, 4):
                parts = [
                    layer(nodes[source])
                    for (source, end), operation, layer in zip(EDGES, operations, self.edges, strict=True)
                    if end == to and operation != "none"
                ]
                nodes.append(sum(parts[1:], parts[0]) if parts else x * 0)
            return nodes[-1]

    class Reduction(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.a = Unit(channels // 2, channels, 3, 2)
            self.b = Unit(channels, channels, 3)
            self.shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(channels // 2, channels, 1, bias=False))

        def forward(self, x: Any) -> Any:
            return self.b(self.a(x)) + self.shortcut(x)

    channels = config.channels
    layers = [nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)]
    for stage in range(3):
        if stage:
            channels *= 2
            layers.append(Reduction(channels))
        layers += [Cell(channels) for _ in range(config.cells)]
    layers += [
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, 10),
    ]
    return nn.Sequential(*layers)


def load(model: Any, variables: Any) -> None:
    """Our weights into the PyTorch network: its layers stand in the order of our nodes."""
    import numpy as np
    import torch
    from torch import nn

    def walk(module: Any) -> Iterator[Any]:
        children = list(module.children())
        if hasattr(module, "shortcut"):  # ours come in the order: projection, first, second convolution
            children = [module.shortcut, module.a, module.b]
        yield module
        for child in children:
            yield from walk(child)

    leaves: dict[str, list[Any]] = {"kernel": [], "scale": [], "bias": []}

    def collect(tree: Any) -> None:
        for name, value in tree.items():
            if hasattr(value, "items"):
                collect(value)
            else:
                leaves[name].append(np.asarray(value))

    collect(variables["params"])
    found = {name: iter(values) for name, values in leaves.items()}
    with torch.no_grad():
        for module in walk(model):
            if isinstance(module, nn.Conv2d):
                module.weight.copy_(torch.from_numpy(next(found["kernel"]).transpose(3, 2, 0, 1).copy()))
            elif isinstance(module, nn.BatchNorm2d):
                module.weight.copy_(torch.from_numpy(next(found["scale"]).copy()))
                module.bias.copy_(torch.from_numpy(next(found["bias"]).copy()))
            elif isinstance(module, nn.Linear):
                module.weight.copy_(torch.from_numpy(next(found["kernel"]).T.copy()))
                module.bias.copy_(torch.from_numpy(next(found["bias"]).copy()))


def torch_score(
    score: str, config: Config, arch: Any, images: Any, labels: Any, variables: Any = None
) -> float:
    import torch

    model = torch_network(arch, config)
    if variables is not None:
        load(model, variables)
    model = model.to(memory_format=torch.channels_last)
    x = torch.from_numpy(images).permute(0, 3, 1, 2)  # channels last in memory
    return TORCH[score](model, x, torch.from_numpy(labels))


def torch_weights(model: Any) -> list[Any]:
    return [p for p in model.parameters() if p.ndim >= 2 and p.grad is not None]


def torch_grad_norm(model: Any, x: Any, labels: Any) -> float:
    import torch.nn.functional as F

    F.cross_entropy(model(x), labels).backward()
    return sum(p.grad.norm().item() for p in torch_weights(model))


def torch_snip(model: Any, x: Any, labels: Any) -> float:
    import torch.nn.functional as F

    F.cross_entropy(model(x), labels).backward()
    return sum((p.grad * p).abs().sum().item() for p in torch_weights(model))


def torch_synflow(model: Any, x: Any, labels: Any) -> float:
    import torch
    from torch import nn

    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.Identity())
    model = model.double()
    with torch.no_grad():
        for p in model.parameters():
            p.abs_() if p.ndim >= 2 else p.zero_()
    model(torch.ones(1, *x.shape[1:], dtype=torch.float64)).sum().backward()
    total = sum((p.grad * p).sum().item() for p in torch_weights(model))
    return math.log(total) if total > 0 else -math.inf


def torch_naswot(model: Any, x: Any, labels: Any) -> float:
    import numpy as np
    import torch
    from torch import nn

    agreed = np.zeros((len(x), len(x)))

    def count(module: Any, inputs: Any, output: Any) -> None:
        on = (inputs[0] > 0).flatten(1).float()
        off = 1 - on
        agreed[:] += (on @ on.t() + off @ off.t()).numpy()

    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(count)
    with torch.no_grad():
        model(x)
    sign, logarithm = np.linalg.slogdet(agreed)
    return logarithm if sign > 0 else -math.inf


def torch_ntk_condition(model: Any, x: Any, labels: Any) -> float:
    import torch

    from nas.proxies.kernels import condition

    logits = model(x)
    rows = []
    for i in range(len(x)):
        model.zero_grad()
        logits[i].sum().backward(retain_graph=True)
        rows.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    jacobian = torch.stack(rows).double()
    return condition((jacobian @ jacobian.t()).numpy())


TORCH: dict[str, Callable[[Any, Any, Any], float]] = {
    "grad_norm": torch_grad_norm,
    "snip": torch_snip,
    "synflow": torch_synflow,
    "naswot": torch_naswot,
    "ntk_condition": torch_ntk_condition,
}


if __name__ == "__main__":
    run(main, compute=True)
