"""What a network is and costs, without training it.

    python scripts/describe.py resnet20
    python scripts/describe.py resnet152 --static --json
    python scripts/describe.py googlenet --static --draw googlenet.png
    python scripts/describe.py darts_v2 --static --draw-cells cells.png
    python scripts/describe.py runs/my-search --batch 128
    python scripts/describe.py resnet50 --tpu v5e:2x2
    python scripts/describe.py darts --tpu v5e:2x2

Parameters, multiply-adds, memory and a table of its layers; unless --static also how long this device takes
for a forward pass and a training step, compilation apart. With --tpu, what a training step (of a space's name: a step
of its supernet) takes on a slice of TPUs, by the TPU compiler, which needs no TPU: docs/guide/accelerators.md.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from _cli import Chosen, chosen
from nas.errors import InputError, one_of
from nas.own_file import named_in_file
from nas.run.command_line import run

if TYPE_CHECKING:  # imported where they are used: a wrong option, and --static, answer at once
    from nas.training.profile import Anatomy, Measured

LONG = 60  # layers from which on the table is folded
OUTSIDE = "(outside of these)"  # the row of what is of no layer


@dataclasses.dataclass(frozen=True)
class Config:
    """Parameters, multiply-adds, memory and layers of a network; what this device takes to run and train it."""

    network: tyro.conf.Positional[str]
    """a named network (resnet20), space:architecture, or the folder of a run (its best architecture);
    with --tpu also a space, for its supernet"""
    space: str | None = None
    """the file of that run's space, where it has one: what a record names is not run"""
    input: str | None = None
    """image as HEIGHTxWIDTHxCHANNELS; default: what the network was published for, a run's data set, or 32x32x3"""
    classes: int | None = None
    """number of classes; default: as for --input, or 10"""
    batch: int | None = None
    """images of a batch and of a training step; default: 32; with --tpu what the network is trained with"""
    dtype: str | None = None
    """compute dtype of what is measured: float32 or bfloat16; default: float32, with --tpu bfloat16"""
    tpu: str | None = None
    """compile the training step for the chips of this topology (v5e:2x2, v4:2x2x1, …), which need not be there"""
    libtpu: Path | None = None
    """where the TPU compiler lies, a folder or an environment; default: NAS_LIBTPU_DIR, else ~/.cache/nas/libtpu"""
    static: bool = False
    """count from shapes alone: nothing is compiled or run"""
    full: bool = False
    """every layer in the table, also where parts repeat"""
    json: bool = False
    """print one JSON object instead"""
    draw: Path | None = None
    """draw the network into this file: png, svg or pdf"""
    draw_cells: Path | None = None
    """draw the cells of which the network is made into this file: png, svg or pdf"""

    def __post_init__(self) -> None:
        for name, value in (("classes", self.classes), ("batch", self.batch)):
            if value is not None and value < 1:
                raise InputError(f"{name}: {value} is below 1")
        if self.dtype not in (None, "float32", "bfloat16"):
            raise one_of("dtype", self.dtype, ("float32", "bfloat16"))
        for option, useless, why in (
            ("libtpu", self.libtpu is not None and self.tpu is None, "is for --tpu"),
            ("static", self.static and self.tpu is not None, "compiles nothing, and --tpu compiles"),
            (
                "dtype",
                self.dtype is not None and self.static,
                "is of what is measured, and --static measures nothing",
            ),
            ("full", self.full and self.json, "is for the table; --json has every layer"),
        ):
            if useless:
                raise InputError(f"{option}: {why}")

    @property
    def images(self) -> int:
        """Images of a batch."""
        return self.batch or 32


def main(config: Config) -> None:
    shape = None if config.input is None else image_shape(config.input)
    if config.tpu is not None:
        from nas.tpu.chips import chip_of
        from nas.tpu.compiler import compiled_elsewhere

        chip_of(config.tpu)
        if is_space(config.network):
            check_supernet(config)
        if compiled_elsewhere(__file__, config.libtpu):
            return
    for option, path in (("draw", config.draw), ("draw-cells", config.draw_cells)):
        if path is not None:
            check_drawable(option, path)
    if config.tpu is not None and is_space(config.network):
        supernet_on_tpu(config, config.tpu, shape or (32, 32, 3))
        return
    found = chosen(config.network, config.space)
    if config.space is not None:
        check_in_file(config, found)
    if config.tpu is not None and config.batch is None:
        from nas.training.hyper import hyper_of

        config = dataclasses.replace(config, batch=hyper_of(found.arch).batch_size)
    if config.draw_cells is not None:
        draw_cells(config.draw_cells, config.network, found)
    usual_shape, usual_classes = usual_input(found)
    shape, classes = shape or usual_shape, config.classes or usual_classes

    from nas.nn.bridge import build
    from nas.training.profile import dissect, measure

    network = build(found.space, found.arch, classes)
    anatomy = dissect(network, shape)
    about = facts(config, found, anatomy, shape, classes)
    if config.draw is not None:
        draw(config.draw, about, anatomy, shape)
    measured = None
    if config.tpu is not None:
        about |= {"tpu": network_on_tpu(config, config.tpu, found, shape, classes)}
    elif not config.static:
        measured = measure(network, program_shape(config, found, anatomy, shape, classes))
    if config.json:
        print(json.dumps(about | (measured._asdict() if measured else {})))
    else:
        print("\n".join(report(config, about, anatomy, measured)))


def is_space(text: str) -> bool:
    from search_spaces import SPACES

    return text in SPACES


def check_supernet(config: Config) -> None:
    """Raises InputError where an option says what is of no use to a space's supernet."""
    for option, useless, why in (
        ("draw", config.draw is not None, "is not drawn"),
        ("draw-cells", config.draw_cells is not None, "is not drawn"),
        ("full", config.full, "has no table of layers"),
        ("space", config.space is not None, "is of no run"),
    ):
        if useless:
            raise InputError(f"{option}: with --tpu {config.network} is a space's supernet, which {why}")


def check_in_file(config: Config, found: Chosen) -> None:
    """Raises InputError where --space names a file and the network is of no run whose space is one."""
    if found.run is None:
        raise InputError(f"space: is for the folder of a run, which {config.network} is not")
    if named_in_file(name := str(found.run.config.get("space"))) is None:
        raise InputError(f"space: is for a run whose space is a file; that of {config.network} is {name}")


def image_shape(text: str) -> tuple[int, int, int]:
    """``32x32x3`` as numbers. Raises InputError."""
    parts = re.fullmatch(r"(\d{1,6})x(\d{1,6})x(\d{1,6})", text)
    height, width, channels = map(int, parts.groups()) if parts else (0, 0, 0)
    if not height * width * channels:
        raise InputError(f"input: {text!r} is not HEIGHTxWIDTHxCHANNELS, each at least 1, such as 32x32x3")
    return height, width, channels


def check_drawable(option: str, path: Path) -> None:
    """Raises InputError, before anything is computed, where ``path`` is none to draw into."""
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise one_of(f"{option}: {path}: its ending", path.suffix, (".png", ".svg", ".pdf"))
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(f"{option}: {path}: {'a folder' if path.is_dir() else f'no folder {path.parent}'}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InputError(f"{option}: {path}: cannot write there")


def usual_input(found: Chosen) -> tuple[tuple[int, int, int], int]:
    """The image shape and classes that a network was published for, or searched with; else CIFAR-10's."""
    if found.named is not None:
        return found.named.image_shape, found.named.num_classes
    if found.run is None:
        return (32, 32, 3), 10
    from nas.data.config import DataConfig

    dataset = DataConfig.of(found.run.config).load()
    return dataset.image_shape, dataset.num_classes


def facts(
    config: Config, found: Chosen, anatomy: Anatomy, shape: tuple[int, int, int], classes: int
) -> dict[str, Any]:
    """All that is known without running the network; counts are of one image unless the name says otherwise."""
    from nas.training.profile import Layer

    outline = anatomy.outline
    params, macs = outside(anatomy)
    rest = Layer(OUTSIDE, "", "", (), (), params, macs)
    return {
        "name": config.network,
        "space": found.space.name,
        "architecture": dict(found.arch),
        "source": found.named.source if found.named else None,
        "input_shape": list(shape),
        "num_classes": classes,
        "batch_size": config.images,
        "params": outline.params,
        "params_bytes": 4 * outline.params,
        "macs": outline.macs_per_image,
        "activation_bytes_per_image": outline.activation_bytes,
        "activation_bytes_per_batch": outline.activation_bytes * config.images,
        "train_bytes_estimate": outline.training_bytes(config.images),
        "static": config.static,
        "layers": [
            {
                "name": layer.name,
                "kind": layer.kind,
                "settings": layer.settings,
                "output_shape": list(layer.output_shape),
                "params": layer.params,
                "macs": layer.macs_per_image,
                "training_only": layer.training_only,
            }
            for layer in (*anatomy.layers, *([rest] if params or macs else ()))
        ],
    }


def outside(anatomy: Anatomy) -> tuple[int, int]:
    """The parameters and multiply-adds of a network that are of none of its layers."""
    layers = anatomy.layers
    params = sum(layer.params for layer in layers)
    macs = sum(layer.macs_per_image for layer in layers if not layer.training_only)
    return anatomy.outline.params - params, anatomy.outline.macs_per_image - macs


def program_shape(
    config: Config, found: Chosen, anatomy: Anatomy, shape: tuple[int, int, int], classes: int
) -> Any:
    """What is compiled and measured. Raises InputError where memory would not hold it."""
    from nas.objectives.train import free_memory
    from nas.training.hyper import hyper_of
    from nas.training.programs import Shape

    needed, free = anatomy.outline.training_bytes(config.images), free_memory()
    if needed > free:
        raise InputError(
            f"batch: a training step with {config.images} images takes about {size_text(needed)}, "
            f"{size_text(free)} are free; a smaller --batch, or --static"
        )
    return Shape(
        image_shape=shape,
        num_classes=classes,
        batch_size=config.images,
        evaluate_batch_size=config.images,
        optimiser=hyper_of(found.arch).optimiser,
        dtype=config.dtype or "float32",
    )


def network_on_tpu(
    config: Config, topology: str, found: Chosen, shape: tuple[int, int, int], classes: int
) -> dict[str, Any]:
    """`_tpu.described` of the network's training step."""
    from _tpu import described, training_step

    from nas.tpu.compiler import slice_of

    on, dtype = slice_of(topology), config.dtype or "bfloat16"
    return described(training_step(found, shape, classes, config.images, dtype, on), on)


def supernet_on_tpu(config: Config, topology: str, shape: tuple[int, int, int]) -> None:
    """Prints `_tpu.described` of a step of a space's supernet."""
    from _tpu import described, lines, supernet_step

    from nas.tpu.compiler import slice_of

    on, dtype, classes = slice_of(topology), config.dtype or "bfloat16", config.classes or 10
    step = supernet_step(config.network, shape, classes, config.batch, dtype, on)
    about = {"name": config.network, "input_shape": list(shape), "num_classes": classes}
    about |= {"batch_size": step.batch, "tpu": described(step, on)}
    if config.json:
        print(json.dumps(about))
    else:
        title = f"the supernet of {config.network}, {'x'.join(map(str, shape))}, {classes} classes"
        print("\n".join([title, "", *columns(lines(about["tpu"], size_text))]))


def draw(path: Path, about: dict[str, Any], anatomy: Anatomy, shape: tuple[int, int, int]) -> None:
    from nas.report import network_drawing

    title = f"{about['name']}\n{about['params']:,} parameters, {about['macs']:,} multiply-adds"
    if not anatomy.is_graph:
        title += "\n(its submodules in the order of their calls: it is no graph of modules)"
    network_drawing.save(network_drawing.draw(anatomy.layers, shape, title), path)


def draw_cells(path: Path, name: str, found: Chosen) -> None:
    if found.space.cells is None:
        raise InputError(f"draw-cells: the networks of {found.space.name} are not made of cells")
    from nas.report import cell_drawing

    title = name if len(name) <= 80 else found.space.name  # not a whole architecture's text
    cell_drawing.draw_cells(found.space.cells(found.arch), path, title)


# -------------------------------------------------------------------------------------------------------- text


def report(config: Config, about: dict[str, Any], anatomy: Anatomy, measured: Measured | None) -> list[str]:
    from nas.training.profile import RULE, shape_text

    batch = config.images
    lines = [f"{about['name']}  ({about['space']}{': ' + about['source'] if about['source'] else ''})", ""]
    rows = [
        ("input", f"{shape_text(about['input_shape'])}, {about['num_classes']} classes"),
        ("parameters", f"{about['params']:,} ({size_text(about['params_bytes'])} as float32)"),
        ("multiply-adds", f"{about['macs']:,} an image"),
        (
            "activations",
            f"{size_text(about['activation_bytes_per_image'])} an image, "
            f"{size_text(about['activation_bytes_per_batch'])} a batch of {batch} (all layers' outputs, float32)",
        ),
    ]
    if "tpu" in about:
        from _tpu import lines as tpu_lines

        rows += tpu_lines(about["tpu"], size_text)
    elif measured is None:
        estimate = (
            f"about {size_text(about['train_bytes_estimate'])} at batch {batch}, estimated from the shapes"
        )
        rows.append(("training memory", estimate))
    else:
        rows += [
            (
                "training memory",
                f"{size_text(measured.train_peak_bytes)} at batch {batch}, by XLA: arguments "
                f"{size_text(measured.train_argument_bytes)} + outputs {size_text(measured.train_output_bytes)} + "
                f"temporaries {size_text(measured.train_temp_bytes)} - shared {size_text(measured.train_alias_bytes)}",
            ),
            ("device", f"{measured.device}, {measured.dtype}"),
            ("forward, 1 image", seconds_text(measured.forward_batch_1_seconds, 1)),
            (f"forward, {batch} images", seconds_text(measured.forward_batch_seconds, batch)),
            (f"training step, {batch}", seconds_text(measured.train_step_seconds, batch)),
            (
                "compilation",
                f"{measured.train_compile_seconds:.2f} s the training step, "
                f"{measured.forward_compile_seconds:.2f} s the forward passes (apart from the above, uncached)",
            ),
        ]
    lines += columns(rows)
    lines += ["", *table(anatomy, full=config.full or len(anatomy.layers) <= LONG), "", f"Counted: {RULE}."]
    return lines


def columns(rows: Sequence[tuple[str, str]]) -> list[str]:
    width = max(len(name) for name, _ in rows)
    return [f"{name:{width}}  {value}" for name, value in rows]


def table(anatomy: Anatomy, *, full: bool) -> list[str]:
    """A line a layer; where not ``full``, of parts that repeat the first, with the counts of all."""
    from nas.nn.repeats import Repeat
    from nas.training.profile import repeats, shape_text

    layers = anatomy.layers
    parts = [Repeat(0, len(layers), 1, False)] if full else repeats(layers)
    rows = [("layer", "kind", "output", "parameters", "multiply-adds")]
    for part in parts:
        for k in range(part.start, part.start + part.period):
            alike = layers[k : k + part.period * (part.times - 1) + 1 : part.period]
            first, last = shape_text(layers[k].output_shape), shape_text(alike[-1].output_shape)
            rows.append(
                (
                    layers[k].name + (f"  × {part.times}" if part.times > 1 else ""),
                    f"{layers[k].kind} {layers[k].settings}".strip()
                    + (" (training only)" if layers[k].training_only else ""),
                    first if first == last else f"{first} … {last}",
                    f"{sum(layer.params for layer in alike):,}",
                    f"{sum(layer.macs_per_image for layer in alike):,}",
                )
            )
    params, macs = outside(anatomy)
    if params or macs:
        rows.append((OUTSIDE, "", "", f"{params:,}", f"{macs:,}"))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    return [
        "  ".join(
            cell.rjust(width) if i > 2 else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def size_text(count: float) -> str:
    """Bytes with three digits: ``1.03 MiB``."""
    units = ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while count >= 1000 and len(units) > 1:
        count /= 1024
        del units[0]
    return f"{count:.3g} {units[0]}"


def seconds_text(seconds: float, images: int) -> str:
    return f"{1000 * seconds:.3g} ms ({images / seconds:.4g} images/s)"


if __name__ == "__main__":
    run(main, compute=True)
