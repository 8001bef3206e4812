"""Training speed beside PyTorch's: python scripts/bench_training.py

Trains the same networks of `chain` (drawn from the whole space), a ResNet-20, and a network of Flax's own modules
alone (`PlainFlax` below) with this code and with plain PyTorch (channels_last, one thread pool of all cores) in one
run, in turns, on the same shapes, and prints images a second and their ratio. A step is forward, backward and update;
compilation, which is given apart, and data loading are left out on both sides. PyTorch runs in a process of its own
for each network, which is ended after ``--limit`` seconds: on some processors its kernel for the gradient of a 1x1
convolution never returns. PyTorch: pip install -r requirements-bench.txt.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn

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
    mbconv: int = 4
    """networks of mbconv, for images of 32 pixels; trials of its random search"""
    resnet: bool = True
    """ResNet-20 too"""
    plain: bool = True
    """a network of plain Flax too"""
    torch: bool = True
    """PyTorch beside it (pip install -r requirements-bench.txt)"""
    limit: float = 120
    """seconds after which PyTorch's process for a network is given up"""
    json: Path | None = None
    """write the figures there too"""


class PlainFlax(nn.Module):
    """As in the README: nothing but Flax's own modules."""

    widths: tuple[int, ...] = (32, 64)
    num_classes: int = 10

    @nn.compact
    def __call__(self, x, *, train=False):
        for width in self.widths:
            x = nn.relu(nn.Conv(width, (3, 3))(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        return nn.Dense(self.num_classes)(x.mean((1, 2)))


class Job(NamedTuple):
    """One network to train."""

    name: str
    space: str | None  # of which it is `arch`; None: `PlainFlax`
    arch: Any
    image_shape: tuple[int, int, int]
    batch_size: int

    def network(self) -> Any:
        return SPACES[self.space].build(self.arch, 10) if self.space else PlainFlax()  # type: ignore[misc]


def jobs_of(config: Config) -> list[Job]:
    jobs = []
    for i in range(config.networks):
        arch = SPACES["chain"].sample((config.seed, i))
        jobs.append(Job(f"chain {i}", "chain", arch, (28, 28, 1), arch["batch_size"]))
    for i in range(config.mbconv):
        arch = SPACES["mbconv"].searched().sample((config.seed, i))
        jobs.append(Job(f"mbconv {i}", "mbconv", arch, (32, 32, 3), arch["batch_size"]))
    if config.resnet:
        named = NAMED["resnet20"]
        jobs.append(Job("ResNet-20", named.space, named.arch, named.image_shape, named.arch["batch_size"]))
    if config.plain:
        jobs.append(Job("plain Flax", None, {}, (28, 28, 1), 64))
    return jobs


def main(config: Config) -> None:
    if config.torch and importlib.util.find_spec("torch") is None:
        raise InputError("torch: not installed; pip install -r requirements-bench.txt, or --no-torch")
    if (
        min(config.networks, config.mbconv) < 0
        or config.rounds < 1
        or config.seconds <= 0
        or config.limit <= 0
    ):
        raise InputError(
            "bench: --networks and --mbconv are at least 0, --rounds at least 1, --seconds and --limit above 0"
        )
    from nas.objectives.train import size_of

    print(
        f"{'network':10} {'batch':>5} {'MMACs':>7} {'here':>9} {'torch':>9} {'ratio':>6} {'compile s':>9}  images/s"
    )
    rows = []
    for job in jobs_of(config):
        network = job.network()
        ours, compile_seconds = jax_step(network, job.image_shape, job.batch_size)
        theirs = Torch(job, config) if config.torch else None
        speeds = []
        for _ in range(config.rounds):
            here = images_a_second(ours, job.batch_size, config)
            speeds.append((here, theirs.images_a_second() if theirs else None))
        if theirs:
            theirs.close()
        here = statistics.median(a for a, _ in speeds)
        both = [(a, b) for a, b in speeds if b]
        row = {
            "network": job.name,
            "arch": dict(job.arch),
            "batch_size": job.batch_size,
            "macs_per_image": size_of(network, job.image_shape).macs_per_image,
            "images_per_second": here,
            "torch_images_per_second": statistics.median(b for _, b in both) if both else None,
            "ratio": statistics.median(a / b for a, b in both) if both else None,
            "compile_seconds": compile_seconds,
        }
        rows.append(row)
        theirs_text, ratio = (
            (f"{row['torch_images_per_second']:9.0f}", f"{row['ratio']:6.2f}")
            if both
            else (f"{'over ' + format(config.limit, 'g') + ' s' if config.torch else '-':>9}", f"{'-':>6}")
        )
        macs = row["macs_per_image"] / 1e6
        print(f"{job.name:10} {job.batch_size:5} {macs:7.2f} {here:9.0f} {theirs_text} {ratio} "
              f"{compile_seconds:9.2f}", flush=True)  # fmt: skip
    for family, names in (("chain and ResNet-20", ("chain", "ResNet")), ("mbconv", ("mbconv",))):
        measured = [row["ratio"] for row in rows if row["ratio"] and row["network"].startswith(names)]
        if measured:
            print(
                f"geometric mean of the {len(measured)} ratios of {family}: "
                f"{statistics.geometric_mean(measured):.2f}, least {min(measured):.2f}"
            )
    chains = [row["compile_seconds"] for row in rows if row["network"].startswith("chain")]
    if chains:
        print(f"compile seconds of chain: median {statistics.median(chains):.2f}")
    if config.json:
        config.json.write_text(json.dumps(rows, indent=1) + "\n")


class Torch:
    """PyTorch's steps in a process of its own."""

    def __init__(self, job: Job, config: Config) -> None:
        context = multiprocessing.get_context("spawn")
        self._limit = config.limit
        self._pipe, there = context.Pipe()
        self._process = context.Process(target=_torch_turns, args=(there, job, config), daemon=True)
        self._process.start()

    def images_a_second(self) -> float | None:
        """Throughput over one turn; None where it did not end in time."""
        if not self._process.is_alive():
            return None
        self._pipe.send(True)
        if self._pipe.poll(self._limit):
            try:
                return self._pipe.recv()
            except (EOFError, OSError):
                raise InputError("torch: its process ended; its own message stands above") from None
        self._process.kill()
        self._process.join()
        return None

    def close(self) -> None:
        self._process.kill()
        self._process.join()


def _torch_turns(pipe: Any, job: Job, config: Config) -> None:
    step = torch_step(job.network(), job.image_shape, job.batch_size)
    while pipe.recv():
        pipe.send(images_a_second(step, job.batch_size, config))


def images_a_second(step: Callable[[], Any], batch_size: int, config: Config) -> float:
    """Throughput over one turn; ``step`` returns when its work is done."""
    count, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < config.seconds or not count:
        step()
        count += 1
    return count * batch_size / passed


def jax_step(
    network: Any, image_shape: tuple[int, int, int], batch_size: int
) -> tuple[Callable[[], None], float]:
    """A training step of ``network`` in this code, and the seconds that compiling it took."""
    import jax
    import numpy as np

    from nas.training.network import Noise
    from nas.training.optimiser import Rates
    from nas.training.programs import Batch, Runner, Shape, timed

    shape = Shape(image_shape, 10, batch_size, batch_size, "nesterov")
    runner = Runner(network, shape)
    _, compile_seconds = timed(runner.compile)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch_size, *image_shape), np.float32)
    target = np.eye(10, dtype=np.float32)[rng.integers(0, 10, batch_size)]
    batch = Batch(*jax.device_put((images, target, target.argmax(1).astype(np.int32))))
    noise, decay = Noise(np.float32(0.1), np.uint32(1)), np.float32(0)
    rates = Rates(np.float32(1e-3), np.float32(1e-4), np.float32(np.inf))
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
    made = torch_plain if isinstance(network, PlainFlax) else torch_graph
    model = made(network, image_shape).to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, nesterov=True, weight_decay=1e-4)
    images = torch.randn(batch_size, channels, height, width).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (batch_size,))

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimiser.step()

    step()
    return step


def torch_plain(network: PlainFlax, image_shape: tuple[int, int, int]) -> Any:
    """`PlainFlax` in PyTorch."""
    from torch import nn as torch_nn

    channels, layers = image_shape[-1], []
    for width in network.widths:
        layers += [torch_nn.Conv2d(channels, width, 3, padding=1), torch_nn.ReLU(), torch_nn.MaxPool2d(2)]
        channels = width
    pooled = [
        torch_nn.AdaptiveAvgPool2d(1),
        torch_nn.Flatten(),
        torch_nn.Linear(channels, network.num_classes),
    ]
    return torch_nn.Sequential(*layers, *pooled)


def torch_graph(network: Any, image_shape: tuple[int, int, int]) -> Any:
    """``network`` (a `nas.nn.graph.Graph`) with PyTorch's own modules, node by node.

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
    """One layer of Flax, `nas.nn.layers` or `resnet` as a PyTorch module."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    activations = {"relu": F.relu, "gelu": lambda x: F.gelu(x, approximate="tanh"), "silu": F.silu}
    activations |= {"tanh": torch.tanh, "identity": lambda x: x, "relu6": F.relu6, "hard_swish": F.hardswish}

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

    class SqueezeExcite(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.reduce, self.expand = (
                nn.Linear(channels, module.squeezed),
                nn.Linear(module.squeezed, channels),
            )

        def forward(self, x: Any) -> Any:
            gate = torch.sigmoid if module.gate == "sigmoid" else F.hardsigmoid
            y = self.expand(activations[module.activation](self.reduce(x.mean((2, 3)))))
            return x * gate(y)[:, :, None, None]

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
        k = module.kernel_size[0]
        groups = module.feature_group_count
        return nn.Conv2d(channels, module.features, k, module.strides, k // 2, groups=groups, bias=False)
    if kind == "NormAct":
        return Normalised()
    if kind == "SqueezeExcite":
        return SqueezeExcite()
    if kind == "Dense":
        return Hidden()
    functions: dict[str, Callable[..., Any]] = {"Pool": pool, "CellAverage": cells, "PadShortcut": padded}
    return Function((functions | {"Concat": lambda *maps: torch.cat(maps, 1)})[kind])


if __name__ == "__main__":
    run(main, compute=True)
