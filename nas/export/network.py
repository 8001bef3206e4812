"""A network with its weights as a function of images, written as StableHLO or ONNX, loaded again and compared."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import export

from nas.cpu.function import plain
from nas.data.config import DataConfig
from nas.errors import InputError, one_of
from nas.export.onnx import import_onnx, to_onnx
from nas.nn.bridge import build
from nas.objectives.base import trial_folder
from nas.objectives.latency import Latency, steady
from nas.objectives.train import TrainSetup
from nas.record import Run
from nas.run.options import hyperparameters
from nas.space import Architecture, SearchSpace
from nas.training.checkpoint import Checkpoints
from nas.training.config import TrainingConfig
from nas.training.network import apply_evaluate, initialise

TOLERANCE = 1e-4
"""How far logits may be from this network's, as a share of the largest of them where that is above 1."""
KERNELS = ("convolution", "pooling", "normalisation", "edges", "separable")


@dataclasses.dataclass(frozen=True)
class Weighted:
    """A network, its variables, and what it takes: images of ``image_shape`` (H, W, C), which are
    (pixels / 255 - ``mean``) / ``std`` where these are known. ``weights`` says where the variables are from."""

    network: Any
    variables: Any
    image_shape: tuple[int, int, int]
    num_classes: int
    weights: str
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __call__(self, images: jax.Array) -> jax.Array:
        """float32 logits of normalised images [B, H, W, C]."""
        return apply_evaluate(self.network, self.variables, (images,)).astype(np.float32)


class Checked(NamedTuple):
    """A file written, loaded again and run: ``difference`` is the largest of its logits from the network's own,
    ``scale`` the largest of these; ``latency`` is of a batch on the device that ``runtime`` names."""

    path: Path
    runtime: str
    difference: float
    scale: float
    latency: Latency

    @property
    def agrees(self) -> bool:
        return self.difference <= TOLERANCE * max(1.0, self.scale)


def untrained(
    space: SearchSpace, arch: Architecture, image_shape: tuple[int, int, int], num_classes: int, seed: int
) -> Weighted:
    """With the weights that training from ``seed`` would begin with."""
    network = build(space, arch, num_classes)
    variables = initialise(network, seed, image_shape, "float32")
    return Weighted(network, variables, image_shape, num_classes, f"untrained, from seed {seed}")


def trained(space: SearchSpace, run: Run, data_dir: str | None = None) -> Weighted:
    """The network that a run of `train.py` trained, with the weights of the last checkpoint of its best seed by test.

    Raises InputError where the run keeps none, as a search does not.
    """
    folder, config = run.folder, run.config
    measured = [final for final in run.finals if final.error is None]
    if run.is_search or not measured:
        raise InputError(
            f"{folder}: keeps no weights; train its best: python scripts/train.py --arch {folder} --out FOLDER, "
            "then export FOLDER"
        )
    final = max(measured, key=lambda one: one.test_accuracy)
    (number,) = (k for k, trial in run.trials.items() if trial.seed == final.seed)

    names = [field.name for field in dataclasses.fields(TrainingConfig) if field.name in config]
    training_config = TrainingConfig(**{name: config[name] for name in names})
    data = DataConfig.of(config)
    data = data if data_dir is None else dataclasses.replace(data, data_dir=data_dir)
    # Nothing is trained, so that no augmentation is needed; a record's may name code in a file.
    told = [text for text in config.get("hyper", ()) if not str(text).startswith("augmentation=")]
    overrides = hyperparameters(told) | {"augmentation": "none"}
    setup = TrainSetup(space, data, training_config, epochs=int(config["epochs"]), overrides=overrides)
    objective = setup(None)
    training = objective.training(final.arch, objective.train_data, seed=final.seed, epochs=setup.epochs)
    keeper = Checkpoints(trial_folder(folder / "checkpoints", number))
    found = keeper.restore(training.state)
    keeper.close()
    if found is None:
        raise InputError(
            f"{folder}: has no checkpoint of this network: its folder checkpoints was removed or is damaged"
        )
    epoch, state, _ = found
    variables = state.variables if state.ema is None else {**state.variables, "params": state.ema}
    dataset = objective.dataset
    return Weighted(
        training.runner.network,
        jax.tree.map(np.asarray, variables),
        dataset.image_shape,
        dataset.num_classes,
        f"trained for {epoch} epochs from seed {final.seed}: {final.test_accuracy:.4f} test accuracy",
        tuple(np.ravel(dataset.mean).tolist()),
        tuple(np.ravel(dataset.std).tolist()),
    )


@contextlib.contextmanager
def _without_kernels() -> Iterator[None]:
    """Programs traced and lowered within call no native kernel of `nas.cpu`, which exists in this process alone."""
    before = os.environ.get("NAS_NATIVE")
    os.environ["NAS_NATIVE"] = ",".join(f"-{name}" for name in KERNELS)
    try:
        with plain():
            yield
    finally:
        if before is None:
            del os.environ["NAS_NATIVE"]
        else:
            os.environ["NAS_NATIVE"] = before


def stablehlo(weighted: Weighted, path: Path, batch_size: int) -> Callable[[np.ndarray], np.ndarray]:
    """Write `jax.export`'s form to ``path``, for CPU, GPU, TPU and batches of any size, load it again and return it."""
    shape = export.symbolic_shape("batch, " + ", ".join(map(str, weighted.image_shape)))
    with _without_kernels():
        exported = export.export(jax.jit(lambda images: weighted(images)), platforms=("cpu", "cuda", "tpu"))(
            jax.ShapeDtypeStruct(shape, np.float32)
        )
    write(path, bytes(exported.serialize()))
    loaded = jax.jit(export.deserialize(bytearray(path.read_bytes())).call)
    return lambda images: np.asarray(loaded(images))


def onnx(weighted: Weighted, path: Path, batch_size: int) -> Callable[[np.ndarray], np.ndarray]:
    """Write ONNX to ``path``, for batches of ``batch_size``, load it again with onnxruntime and return it."""
    import_onnx()
    try:
        import onnxruntime
    except ImportError:
        raise InputError("export: ONNX needs a package: pip install -r requirements-export.txt") from None
    with _without_kernels():
        model = to_onnx(lambda images: weighted(images), (batch_size, *weighted.image_shape), path.stem)
    write(path, model.SerializeToString())
    session: Any = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})[0]


FORMATS: dict[str, Callable[[Weighted, Path, int], Callable[[np.ndarray], np.ndarray]]] = {
    "stablehlo": stablehlo,
    "onnx": onnx,
}


def exported(weighted: Weighted, kind: str, out: Path, batch_size: int = 1, seed: int = 0) -> Checked:
    """Write ``out``.``kind``, load it again, compare its logits of random images and measure its latency.

    Raises InputError for an unknown kind, a network that cannot be written, or a folder that cannot.
    """
    if kind not in FORMATS:
        raise one_of("format", kind, FORMATS)
    if batch_size < 1:
        raise InputError(f"batch_size: {batch_size} is below 1")
    path = out.with_name(f"{out.name}.{kind}")
    call = FORMATS[kind](weighted, path, batch_size)
    shape = (batch_size, *weighted.image_shape)
    images = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    expected = np.asarray(jax.jit(lambda x: weighted(x))(images))
    found = call(images)
    if not np.isfinite(expected).all():
        raise InputError("export: the network's own logits are not finite: there is nothing to compare with")
    device = jax.devices()[0]
    runtime = "onnxruntime on CPU" if kind == "onnx" else f"JAX on {device.device_kind or device.platform}"
    difference = float(np.abs(found - expected).max()) if found.shape == expected.shape else float("inf")
    return Checked(
        path, runtime, difference, float(np.abs(expected).max()), steady(lambda: call(images), repetitions=20)
    )


def write(path: Path, content: bytes) -> None:
    """Whole or not at all. Raises InputError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        raise InputError(f"export: cannot write {path} ({error.strerror or error})") from error
