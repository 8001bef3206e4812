"""Our programs beside plain Flax's by the TPU compiler: python scripts/bench_tpu.py --networks resnet20

Compiles the training step of the same networks, ours and in plain Flax and optax (scripts/_plain.py), for a slice of
TPUs that need not be there, in turns, and prints FLOPs, bytes moved and compile seconds of one device's program, and
their ratios. With --named, what a training step of every named network takes, in its own batch and optimiser, as
`describe.py NAME --tpu` says it; networks whose figures are in --json already are not compiled again. The compiler:
docs/guide/accelerators.md.

    python scripts/bench_tpu.py --named --tpu v5e:1x1 --json docs/tpu_networks.json --page docs/tpu_networks.md
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nas.errors import InputError, one_of
from nas.run.command_line import run

BEST = {  # of NAS-Bench-201, by its test accuracy on CIFAR-10
    (0, 1): "nor_conv_3x3", (0, 2): "nor_conv_3x3", (1, 2): "nor_conv_3x3",
    (0, 3): "skip_connect", (1, 3): "nor_conv_3x3", (2, 3): "nor_conv_3x3",
}  # fmt: skip
NETWORKS = ("resnet20", "resnet56", "resnet110", "resnet50", "nasbench201")


@dataclasses.dataclass(frozen=True)
class Config:
    """Compare what the TPU compiler makes of our programs and of plain Flax's."""

    networks: tuple[str, ...] = ()
    """of resnet20, resnet56, resnet110 (batch 128), resnet50 (256 images of 224 pixels) and nasbench201 (its best
    network, batch 256), default: resnet20 nasbench201; with --named any named networks, default: all"""
    tpu: str = "v5e:2x2"
    """the topology"""
    scan_blocks: bool = False
    """instead: our programs without and with equal blocks compiled once (--scan-blocks of train.py)"""
    population: int = 0
    """instead: one program of so many trainings of a chain network beside the program of one, a step each"""
    named: bool = False
    """instead: a training step of named networks, the smallest first"""
    rounds: int = 1
    """compilations of each; the least seconds count"""
    libtpu: Path | None = None
    """where the TPU compiler lies; default: NAS_LIBTPU_DIR, else ~/.cache/nas/libtpu"""
    json: Path | None = None
    """write the figures there too"""
    page: Path | None = None
    """with --named, write the table there"""

    def __post_init__(self) -> None:
        from search_spaces.zoo import ZOO

        known = tuple(ZOO) if self.named else NETWORKS
        for name in self.networks:
            if name not in known:
                raise one_of("networks", name, known)
        if self.page is not None and not self.named:
            raise InputError("page: is for --named")
        for name, value, low in (("rounds", self.rounds, 1), ("population", self.population, 0)):
            if value < low:
                raise InputError(f"{name}: {value} is below {low}")


def main(config: Config) -> None:
    from nas.tpu.chips import chip_of
    from nas.tpu.compiler import compiled_elsewhere, cost, slice_of

    chip_of(config.tpu)
    if compiled_elsewhere(__file__, config.libtpu):
        return
    on = slice_of(config.tpu)
    if config.named:
        named_networks(config, on)
        return
    names = config.networks or ("resnet20", "nasbench201")
    if config.population:
        members = config.population
        one, many = cost(trainings(None, on)), cost(trainings(members, on))
        print(f"| {config.tpu} | one training | {members} as one program | {members} programs of one |")
        print("| --- | ---: | ---: | ---: |")
        for name in ("flops", "bytes_accessed", "compile_seconds"):
            each, all_in_one = getattr(one, name), getattr(many, name)
            print(f"| {name} | {each:.4g} | {all_in_one:.4g} | {members * each:.4g} |")
        return
    if config.scan_blocks:
        print(f"| {config.tpu} | compile s, scanned / not | MiB of program, scanned / not |")
        print("| --- | ---: | ---: |")
        for name in names:
            whole, scanned = cost(ours(name, on)), cost(ours(name, on, scan_blocks=True))
            code = scanned.code_bytes / 2**20, whole.code_bytes / 2**20
            print(f"| {name} | {_ratio(scanned.compile_seconds, whole.compile_seconds)} | {_ratio(*code)} |")
        return
    print(f"| {config.tpu} | FLOPs, ours / plain | bytes, ours / plain | compile s, ours / plain |")
    print("| --- | ---: | ---: | ---: |")
    rows = []
    for name in names:
        sides = {"ours": ours(name, on), "plain": plain(name, on)}
        found: dict[str, list[Any]] = {side: [] for side in sides}
        for _ in range(config.rounds):
            for side, lower in sides.items():
                found[side].append(cost(lower))
        row: dict[str, Any] = {"network": name, "tpu": config.tpu}
        for side, costs in found.items():
            row[side] = costs[0]._asdict() | {"compile_seconds": min(c.compile_seconds for c in costs)}
        rows.append(row)
        print(
            f"| {name} | {_pair(row, 'flops')} | {_pair(row, 'bytes_accessed')} | {_pair(row, 'compile_seconds')} |"
        )
    if config.json is not None:
        config.json.write_text(json.dumps(rows, indent=1) + "\n")


def named_networks(config: Config, on: Any) -> None:
    """Compile what is not in ``config.json`` yet, smallest networks first, and print the table of all that is."""
    import _tpu
    import jax

    from _cli import chosen
    from nas.record.files import read_json, write_json
    from nas.tpu.compiler import VERSION
    from search_spaces.zoo import ZOO

    found: dict[str, Any] = {}
    if config.json is not None and config.json.is_file():
        found = read_json(config.json)
    if found.setdefault("tpu", config.tpu) != config.tpu:
        raise InputError(f"json: {config.json} has figures of {found['tpu']}, not of {config.tpu}")
    found.setdefault("versions", {"jax": jax.__version__, "libtpu": VERSION})
    rows = found.setdefault("networks", {})
    names = sorted(config.networks or ZOO, key=lambda name: ZOO[name].params)
    for name in names:
        if name in rows:
            continue
        named = ZOO[name]
        step = _tpu.training_step(chosen(name), named.image_shape, named.num_classes, None, "bfloat16", on)
        about = _tpu.described(step, on)
        rows[name] = {
            field: about[field] for field in about if field not in ("topology", "chips", "chip", "devices")
        }
        print(_named_row(name, rows[name]), flush=True)
        if config.json is not None:
            write_json(config.json, found)
    table = [
        HEAD,
        *(_named_row(name, rows[name]) for name in sorted(rows, key=lambda name: ZOO[name].params)),
    ]
    left = [name for name in ZOO if name not in rows]
    if left:
        table += ["", f"Not compiled yet: {', '.join(left)}."]
    if config.page is not None:
        config.page.write_text(PAGE.format(tpu=config.tpu, table="\n".join(table)))
    else:
        print("\n".join(table))


PAGE = """# Every named network on a TPU

A training step of each named network on {tpu}, in bfloat16, with the batch and the optimiser of its own training, by
the TPU compiler (no TPU is needed): seconds of compilation (two cores that did other work too), what the program of one
device computes, moves and holds, and images a second at the published peaks of the chip, which no program reaches.

```bash
python scripts/bench_tpu.py --named --tpu {tpu} --json docs/tpu_networks.json --page docs/tpu_networks.md
```

{table}
"""

HEAD = """| Network | Parameters | Batch | Compile s | GFLOPs | MB moved | MiB of memory | Images/s at most | Bound by |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |"""


def _named_row(name: str, row: dict[str, Any]) -> str:
    from search_spaces.zoo import ZOO

    start = f"| {name} | {ZOO[name].params:,} | {row['batch_size']} |"
    if not row["fits"]:
        needed, fits = row["needed_bytes"] / 2**20, row["fitting_batch_size"]
        other = f"{fits} would" if fits else "nor does any batch"
        return f"{start} – | – | – | {needed:,.0f}: does not fit, {other} | – | – |"
    return (
        f"{start} {row['compile_seconds']:.1f} | {row['flops'] / 1e9:.4g} | {row['bytes_accessed'] / 1e6:,.0f} "
        f"| {row['memory_bytes'] / 2**20:,.0f} | {row['roofline_images_per_second']:,.0f} | {row['roofline_bound']} |"
    )


def _pair(row: dict[str, Any], name: str) -> str:
    return _ratio(row["ours"][name], row["plain"][name])


def _ratio(mine: float, other: float) -> str:
    return f"{mine:.4g} / {other:.4g} = {mine / other:.3f}"


def ours(name: str, on: Any, *, scan_blocks: bool = False) -> Callable[[], Any]:
    from nas.nn.bridge import build
    from nas.nn.graph import run_as
    from nas.training.programs import Shape, lower_step
    from search_spaces.nasbench201 import SPACE, architecture_of
    from search_spaces.zoo import find_architecture

    if name == "nasbench201":
        order = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
        space, arch = SPACE, architecture_of([BEST[edge] for edge in order])
    else:
        space, arch, _ = find_architecture(name)
    image, classes, batch = setting(name)
    shape = Shape(image, classes, batch, batch, "momentum", dtype="bfloat16", devices=on.devices)
    network = run_as(build(space, arch, classes), {"scan_blocks": scan_blocks})
    return functools.partial(lower_step, network, shape, mesh=on.mesh)


def plain(name: str, on: Any) -> Callable[[], Any]:
    import jax
    from _plain import NasBench201, ResNet, training_step
    from jax.sharding import NamedSharding, PartitionSpec

    image, classes, batch = setting(name)
    network: Any = {
        "resnet20": lambda: ResNet((3, 3, 3), 16, classes),
        "resnet56": lambda: ResNet((9, 9, 9), 16, classes),
        "resnet110": lambda: ResNet((18, 18, 18), 16, classes),
        "resnet50": lambda: ResNet((3, 4, 6, 3), 64, classes, bottleneck=True),
        "nasbench201": lambda: NasBench201(BEST, classes),
    }[name]()
    step, arguments = training_step(network, image, batch)
    *states, images, labels = arguments

    def placed(tree: Any, spec: Any) -> Any:
        sharding = NamedSharding(on.mesh, spec)
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree)

    split = placed((images, labels), PartitionSpec("data"))
    return lambda: step.lower(*placed(states, PartitionSpec()), *split)


def trainings(members: int | None, on: Any) -> Callable[[], Any]:
    """A step of the first network of `chain` in a loop over images on the device: of one, or of ``members`` at once."""
    import jax
    import numpy as np

    from nas.nn.bridge import build
    from nas.training.batches import Data
    from nas.training.programs import Shape, abstract_arguments
    from nas.training.steps import CALL_STEPS, Steps, lower_steps
    from search_spaces import SPACES

    space = SPACES["chain"]
    arch = space.sample((0, 0))
    image, batch = (28, 28, 1), arch["batch_size"]
    network = build(space, arch, 10)
    shape = Shape(image, 10, batch, batch, arch["optimiser"], dtype="bfloat16", devices=on.devices)

    def of(dtype: Any, *sizes: int) -> Any:
        return jax.ShapeDtypeStruct(sizes, dtype)

    number = of(np.float32)
    plan, seeds, rates = (
        of(np.int32, CALL_STEPS, batch),
        of(np.uint32, CALL_STEPS),
        of(np.float32, CALL_STEPS),
    )
    steps = Steps({"index": plan}, seeds, rates, number, number, number, number, number, (), number)
    state, *_ = abstract_arguments(network, shape, None)
    data = Data(of(np.uint8, 60_000, *image), of(np.int32, 60_000), of(np.float32, 1), of(np.float32, 1))
    each = (state, of(np.float32, 3), steps)
    if members is not None:
        each = jax.tree.map(lambda leaf: of(leaf.dtype, members, *leaf.shape), each)
    arguments = (each[0], each[1], data, each[2])
    return functools.partial(lower_steps, network, shape, arguments, members=members, mesh=on.mesh)


def setting(name: str) -> tuple[tuple[int, int, int], int, int]:
    """Image, classes and batch."""
    if name == "resnet50":
        return (224, 224, 3), 1000, 256
    return (32, 32, 3), 10, 256 if name == "nasbench201" else 128


if __name__ == "__main__":
    run(main)
