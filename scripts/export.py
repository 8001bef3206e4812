"""Write a network with its weights as StableHLO and ONNX: python scripts/export.py runs/train-resnet20-cifar10

Each file is loaded again, compared with the network, and timed; export.json beside them says what is in them.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Literal

import tyro

from _cli import chosen
from nas.errors import InputError
from nas.run.command_line import run


@dataclasses.dataclass(frozen=True)
class Config:
    """Write a network with its weights as StableHLO (jax.export) and ONNX, and check what was written."""

    arch: Annotated[str, tyro.conf.Positional]
    """the folder of a training (train.py), a named network (mobilenetv2) or space:architecture, untrained"""
    space: str | None = None
    """the file of that run's space, where it has one: what a record names is not run"""
    out: Path | None = None
    """folder of the files; default: the run's folder/export, else exports/NAME"""
    format: tuple[Literal["stablehlo", "onnx"], ...] = ("stablehlo", "onnx")
    """which"""
    batch_size: int = 1
    """images of a batch: of the ONNX model always, of StableHLO where its latency is measured"""
    image_shape: str | None = None
    """height x width x channels of an untrained network's images, 32x32x3 unless it was published for others"""
    num_classes: int | None = None
    """of an untrained network; default: as published, else 10"""
    seed: int = 0
    """an untrained network's weights"""
    data_dir: str | None = None
    """folder of prepared sets, where it is another than when the network was trained"""


def main(config: Config) -> None:
    from nas.export.network import exported, trained, untrained, write  # here: --help does not wait for jax

    found = chosen(config.arch, config.space)
    if found.run is not None:
        weighted = trained(found.space, found.run, config.data_dir)
        out = found.run.folder / "export"
    else:
        shape, classes = ((32, 32, 3), 10)
        if found.named is not None:
            shape, classes = found.named.image_shape, found.named.num_classes
        if config.image_shape is not None:
            shape = image_shape(config.image_shape)
        weighted = untrained(found.space, found.arch, shape, config.num_classes or classes, config.seed)
        out = Path("exports") / (config.arch if found.named else found.space.name)
    out = config.out or out
    about = {
        "space": found.space.name,
        "architecture": found.space.to_string(found.arch),
        "weights": weighted.weights,
        "image_shape": weighted.image_shape,
        "num_classes": weighted.num_classes,
        "mean": weighted.mean,
        "std": weighted.std,
        "batch_size": config.batch_size,
        "files": {},
    }
    print(f"{about['space']}: {weighted.weights}")
    for kind in dict.fromkeys(config.format):
        checked = exported(weighted, kind, out / "network", config.batch_size)
        ms, low, high, _ = checked.latency
        print(
            f"{checked.path}: logits differ by {checked.difference:.1e} (largest {checked.scale:.3g}); "
            f"{ms:.3g} ms [{low:.3g}, {high:.3g}] a batch of {config.batch_size}, {checked.runtime}"
        )
        if not checked.agrees:
            raise InputError(f"{checked.path}: its logits are not the network's")
        about["files"][checked.path.name] = {
            "largest_difference": checked.difference,
            "runtime": checked.runtime,
            **checked.latency.values(),
        }
        write(out / "export.json", json.dumps(about, indent=1).encode() + b"\n")


def image_shape(text: str) -> tuple[int, int, int]:
    """``32x32x3`` as numbers. Raises InputError."""
    parts = text.split("x")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) for part in parts):
        raise InputError(f"image_shape: {text} is not HEIGHTxWIDTHxCHANNELS, such as 32x32x3")
    height, width, channels = map(int, parts)
    return height, width, channels


if __name__ == "__main__":
    run(main, compute=True)
