"""Training speed beside PyTorch's: python scripts/bench_training.py

Trains the same 8 networks of `chain` (drawn from the whole space) and a ResNet-20 with this code and with
plain PyTorch (channels_last, one thread pool of all cores) in one run, in turns, on the same shapes, and
prints images a second and their ratio. A step is forward, backward and update; compilation, which is given
apart, and data loading are left out on both sides. PyTorch: pip install -r requirements-bench.txt.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _cli import import_torch
from nas.errors import InputError
from nas.run.command_line import run
from search_spaces import SPACES
from search_spaces.resnet import NAMED


@dataclasses.dataclass(frozen=True)
class Config:
    """Compare training speed with PyTorch on this machine."""

    networks: int = 8
    """networks of chain"""
    seed: int = 0
    """they are trials --seed, 0 … of a random search"""
    rounds: int = 5
    """turns that each side gets; the median is printed"""
    seconds: float = 1.0
    """length of a turn"""
    resnet: bool = True
    """ResNet-20 too"""
    formulation: str = "auto"
    """this code's formulation: auto, program or pieces"""
    json: Path | None = None
    """write the figures there too"""


def main(config: Config) -> None:
    import_torch()
    if config.networks < 0 or config.rounds < 1 or config.seconds <= 0:
        raise InputError("bench: --networks is at least 0, --rounds at least 1 and --seconds above 0")
    from nas.objectives.train import size_of

    jobs = []
    for i in range(config.networks):
        arch = SPACES["chain"].sample((config.seed, i))
        jobs.append((f"chain {i}", "chain", arch, (28, 28, 1), arch["batch_size"]))
    if config.resnet:
        named = NAMED["resnet20"]
        jobs.append(("ResNet-20", named.space, named.arch, named.image_shape, named.arch["batch_size"]))
    print(
        f"{'network':10} {'batch':>5} {'MMACs':>7} {'here':>9} {'torch':>9} {'ratio':>6} {'compile s':>9}  images/s"
    )
    rows = []
    for name, space, arch, image_shape, batch_size in jobs:
        network = SPACES[space].build(arch, 10)  # type: ignore[misc]
        ours, compile_seconds = jax_step(network, image_shape, batch_size, config.formulation)
        theirs = torch_step(network, image_shape, batch_size)
        speeds = [(images_a_second(ours, batch_size, config), images_a_second(theirs, batch_size, config))
                  for _ in range(config.rounds)]  # fmt: skip
        ratios = sorted(a / b for a, b in speeds)
        here, torch = (sorted(column)[len(speeds) // 2] for column in zip(*speeds, strict=True))
        row = {
            "network": name,
            "arch": dict(arch),
            "batch_size": batch_size,
            "macs_per_image": size_of(network, image_shape).macs_per_image,
            "images_per_second": here,
            "torch_images_per_second": torch,
            "ratio": ratios[len(ratios) // 2],
            "compile_seconds": compile_seconds,
        }
        rows.append(row)
        macs = row["macs_per_image"] / 1e6
        print(f"{name:10} {batch_size:5} {macs:7.2f} {here:9.0f} {torch:9.0f} {row['ratio']:6.2f} "
              f"{compile_seconds:9.2f}", flush=True)  # fmt: skip
    chains = [row["ratio"] for row in rows if row["network"].startswith("chain")]
    if chains:
        mean = 1.0
        for ratio in chains:
            mean *= ratio ** (1 / len(chains))
        print(f"chain: geometric mean of the ratios {mean:.2f}, least {min(chains):.2f}")
    if config.json:
        config.json.write_text(json.dumps(rows, indent=1) + "\n")


def images_a_second(step: Callable[[], Any], batch_size: int, config: Config) -> float:
    """Throughput over one turn; ``step`` returns when its work is done."""
    count, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < config.seconds or not count:
        step()
        count += 1
    return count * batch_size / passed


def jax_step(
    network: Any, image_shape: tuple[int, int, int], batch_size: int, formulation: str
) -> tuple[Callable[[], None], float]:
    """A training step of ``network`` in this code, and the seconds that compiling it took."""
    import jax
    import numpy as np

    from nas.training.network import Noise
    from nas.training.optimiser import Rates
    from nas.training.programs import Batch, Shape, make_runner, timed
    from nas.training.stored import use_compilation_cache

    use_compilation_cache()
    shape = Shape(image_shape, 10, batch_size, batch_size, "nesterov")
    runner = make_runner(network, shape, formulation)
    _, compile_seconds = timed(runner.compile)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch_size, *image_shape), np.float32)
    target = np.eye(10, dtype=np.float32)[rng.integers(0, 10, batch_size)]
    batch = Batch(*jax.device_put((images, target, target.argmax(1).astype(np.int32))))
    noise, decay = Noise(np.float32(0.1), np.uint32(1)), np.float32(0)
    rates = Rates(np.float32(1e-3), np.float32(1e-4), np.float32(0), np.int32(0))
    state = runner.init(0)

    def step() -> None:
        nonlocal state
        state, loss, _ = runner.step(state, batch, noise, rates, decay)
        jax.block_until_ready((state, loss))

    step()
    return step, compile_seconds


def torch_step(network: Any, image_shape: tuple[int, int, int], batch_size: int) -> Callable[[], None]:
    """The same step of the same graph in PyTorch."""
    import torch

    height, width, channels = image_shape
    model = torch_graph(network, image_shape).to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, nesterov=True, weight_decay=1e-4)
    images = torch.randn(batch_size, channels, height, width).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (batch_size,))

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimiser.step()

    step()
    return step


def torch_graph(network: Any, image_shape: tuple[int, int, int]) -> Any:
    """``network`` (a `search_spaces.graph.Graph`) with PyTorch's own modules, node by node.

    Equal in arithmetic, not in value: padding of strided layers is symmetric here, as PyTorch has it.
    """
    import jax
    import jax.numpy as jnp
    from torch import nn

    _, kept = jax.eval_shape(
        lambda x: network.init_with_output(
            jax.random.key(0), x, train=False, capture_intermediates=True, mutable=True
        ),
        jnp.zeros((1, *image_shape)),
    )
    outputs = kept["intermediates"]
    channels = [image_shape[-1]]
    sizes: list[tuple[int, ...]] = [image_shape[:2]]
    modules = []
    for node in network.nodes:
        shape = outputs[node.name]["__call__"][0].shape
        modules.append(torch_module(node.module, channels[node.inputs[0]], sizes[node.inputs[0]]))
        channels.append(shape[-1])
        sizes.append(tuple(shape[1:3]) if len(shape) == 4 else ())

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(modules)

        def forward(self, x: Any) -> Any:
            values = [x]
            for node, layer in zip(network.nodes, self.layers, strict=True):
                values.append(layer(*(values[i] for i in node.inputs)))
            return values[-1]

    return Model()


def torch_module(module: Any, channels: int, size: tuple[int, ...]) -> Any:
    """One layer of `search_spaces.layers` or `resnet` as a PyTorch module."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    activations = {"relu": F.relu, "gelu": lambda x: F.gelu(x, approximate="tanh"), "silu": F.silu}
    activations |= {"tanh": torch.tanh, "identity": lambda x: x}

    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            kind = module.normalisation
            if kind == "batch":
                self.norm = nn.BatchNorm2d(channels) if size else nn.BatchNorm1d(channels)
            elif kind == "layer":
                self.norm = nn.LayerNorm(channels)
            else:
                self.bias = nn.Parameter(torch.zeros(channels, 1, 1) if size else torch.zeros(channels))

        def forward(self, x: Any, shortcut: Any = None) -> Any:
            kind = module.normalisation
            if kind == "layer" and size:  # over the last axis, which channels_last makes the innermost one
                x = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            elif kind == "layer":
                x = self.norm(x)
            else:
                x = self.norm(x) if kind == "batch" else x + self.bias
            x = activations[module.activation](x if shortcut is None else x + shortcut)
            return F.local_response_norm(x, 5, 5e-4, 0.75, 2.0) if kind == "local_response" else x

    class Function(nn.Module):
        def __init__(self, function: Callable[..., Any]) -> None:
            super().__init__()
            self.function = function

        def forward(self, *inputs: Any) -> Any:
            return self.function(*inputs)

    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(channels, module.features, bias=module.bias)

        def forward(self, x: Any) -> Any:
            return self.linear(F.dropout(x, 0.1, self.training))

    def pool(x: Any) -> Any:
        if module.kind == "average":
            return F.avg_pool2d(x, 2, 2, ceil_mode=True)
        return F.max_pool2d(x, 2, 2, ceil_mode=True) if module.kind == "max" else F.max_pool2d(x, 3, 2, 1)

    def cells(x: Any) -> Any:
        window = tuple(-(-n // module.cells) for n in size)
        return F.avg_pool2d(x, window, window, ceil_mode=True).flatten(1)

    def padded(x: Any) -> Any:
        return F.pad(x[:, :, :: module.stride, :: module.stride], (0, 0, 0, 0, 0, module.features - channels))

    kind = type(module).__name__
    if kind == "Conv":
        k = module.kernel
        return nn.Conv2d(channels, module.features, k, module.stride, k // 2, bias=False)
    if kind == "NormAct":
        return Normalised()
    if kind == "Dense":
        return Hidden()
    functions: dict[str, Callable[..., Any]] = {"Pool": pool, "CellAverage": cells, "PadShortcut": padded}
    return Function((functions | {"Concat": lambda *maps: torch.cat(maps, 1)})[kind])


if __name__ == "__main__":
    run(main, compute=True)
