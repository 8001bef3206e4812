"""Augmentations of one's own: where they are named, what they are given, and that workers have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ray.cloudpickle import cloudpickle

from nas.data import load
from nas.data.config import DataConfig
from nas.objectives.train import TrainSetup
from nas.run.options import hyperparameters
from nas.space import Categorical, SearchSpace
from nas.training import augment
from nas.training.config import TrainingConfig
from nas.training.hyper import Hyper
from nas.training.loop import make_batch, on_device
from nas.training.own_augment import AUGMENTS
from tests.spaces import line_of


@pytest.fixture(autouse=True)
def own() -> Any:
    kept = dict(AUGMENTS)
    yield
    AUGMENTS.clear()
    AUGMENTS.update(kept)


def batch(augmentation: str, seed: int = 0) -> Any:
    data = load("digits")
    plan = augment.draw(augmentation, np.random.default_rng(seed), 1, 8, (8, 8, 1))
    step = {name: values[0] for name, values in plan.items()} | {"index": np.arange(8, dtype=np.int32)}
    train = on_device(data.train, data.mean, data.std)
    images = make_batch(train, step, np.float32(0), num_classes=10, dtype="float32").images
    return np.asarray(images) * data.std + data.mean


def test_it_has_pixels_from_0_to_1_and_a_key_of_each_step() -> None:
    AUGMENTS["half"] = lambda images, key: images / 2
    AUGMENTS["noise"] = lambda images, key: images + jax.random.normal(key, images.shape)
    plain = batch("none")
    np.testing.assert_allclose(batch("half"), plain / 2, atol=1e-6)
    np.testing.assert_allclose(batch("half+half"), plain / 2, atol=1e-6)
    first, again, other = batch("noise"), batch("noise"), batch("noise", seed=1)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.5
    assert np.std(first - plain) == pytest.approx(1.0, rel=0.15)


def test_another_function_of_the_same_name_is_another_program() -> None:
    AUGMENTS["mine"] = lambda images, key: images * 0
    assert np.abs(batch("mine")).max() < 1e-6
    AUGMENTS["mine"] = lambda images, key: jnp.ones_like(images)
    np.testing.assert_allclose(batch("mine"), 1.0, atol=1e-6)


def test_it_is_named_in_a_file_on_the_command_line_or_in_a_space(tmp_path: Path) -> None:
    file = tmp_path / "my.py"
    file.write_text("def half(images, key):\n    return images / 2\n\nX = 3\n")
    name = f"{file}:half"
    assert "'gone.py:f' is not one of none, crop" in line_of(
        Hyper, augmentation="gone.py:f"
    )  # a record runs nothing
    assert hyperparameters([f"augmentation=flip+{name}"])["augmentation"] == f"flip+{name}"
    np.testing.assert_allclose(batch(name), batch("none") / 2, atol=1e-6)
    assert line_of(hyperparameters, [f"augmentation={file}:hlf"]).endswith("(did you mean half?)")
    assert line_of(hyperparameters, [f"augmentation={file}:X"]).endswith("is a int, not a function")
    assert line_of(hyperparameters, ["augmentation=cropp"]).endswith("(did you mean crop?)")
    AUGMENTS.clear()
    space = SearchSpace("s", {"augmentation": Categorical(("none", name))})
    setup = TrainSetup(space, DataConfig("digits"), TrainingConfig(), epochs=1)
    assert list(setup.augments) == [name]
    from nas.run.tune.worker import pickled

    sent = pickled(setup)
    file.unlink()
    assert float(cloudpickle.loads(sent).augments[name](np.float32(3), None)) == 1.5


def test_another_shape_is_said() -> None:
    AUGMENTS["wrong"] = lambda images, key: images[:, :4]
    assert line_of(batch, "wrong") == "augmentation: wrong makes (8, 4, 8, 1) of images of (8, 8, 8, 1)"
