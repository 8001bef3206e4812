"""Test accuracy over ten crops, against the same views cut out by numpy."""

from __future__ import annotations

import json
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest

from nas.data import load
from nas.data.config import DataConfig
from nas.errors import InputError
from nas.objectives.train import TrainSetup
from nas.run.training import train_to_end
from nas.training import augment
from nas.training.config import TrainingConfig
from nas.training.hyper import Hyper
from nas.training.loop import Training, mean_probabilities, on_device
from search_spaces import SPACES

TINY = (
    "depth=1,width_1=8,kernel_1=3,stride=1,pooling=max,downsample_every=1,connections=plain,"
    "normalisation=batch,activation=relu,head_depth=0,dropout=0.0,optimiser=nesterov,learning_rate=0.05,"
    "schedule=constant,batch_size=128,weight_decay=1e-6,label_smoothing=0.0,augmentation=none"
)


class Linear(nn.Module):
    """The smallest network whose parameters depend on the size of the image."""

    @nn.compact
    def __call__(self, x, *, train=False):
        return nn.Dense(10, name="dense")(x.reshape(x.shape[0], -1))


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return load("digits", cache_dir=tmp_path_factory.mktemp("cache"))


def training_of(dataset, **config):
    data = on_device(dataset.train, dataset.mean, dataset.std)
    hyper = Hyper(learning_rate=0.05, batch_size=64)
    return Training(Linear(), hyper, data, 10, TrainingConfig(**config), seed=0, epochs=2)


def corner(image: np.ndarray, vertical: str, horizontal: str, part: float) -> np.ndarray:
    """A corner of ``image`` [H, W, C] at the opposite corner of a black frame of the same size."""
    out = np.zeros_like(image)
    height, width = (size - max(1, round((1 - part) * size)) for size in image.shape[:2])
    rows = {"top": slice(height), "bottom": slice(-height, None)}
    columns = {"left": slice(width), "right": slice(-width, None)}
    opposite = {"top": "bottom", "bottom": "top", "left": "right", "right": "left"}
    out[rows[opposite[vertical]], columns[opposite[horizontal]]] = image[rows[vertical], columns[horizontal]]
    return out


def views_of(image: np.ndarray, part: float) -> list[np.ndarray]:
    five = [corner(image, v, h, part) for v in ("top", "bottom") for h in ("left", "right")] + [image]
    return five + [view[:, ::-1] for view in five]


@pytest.mark.parametrize("part", [0.875, 0.5])
@pytest.mark.parametrize("evaluate_batch_size", [50, 64])
@pytest.mark.some(2)
def test_ten_crops_equal_numpy(digits, part, evaluate_batch_size):
    config = {"evaluation": "ten_crop", "crop_fraction": part, "evaluate_batch_size": evaluate_batch_size}
    training = training_of(digits, **config)
    training.compile()
    training.train_epoch(0)
    valid = on_device(digits.valid, digits.mean, digits.std)
    found = training.test(valid)

    dense = jax.tree.map(np.asarray, training.state.variables["params"]["dense"])
    kernel, bias = dense["kernel"].astype(np.float64), dense["bias"].astype(np.float64)
    losses, correct = [], 0
    for image, label in zip(digits.valid.images, digits.valid.labels, strict=True):
        mean = np.zeros(10)
        for view in views_of(image / 255.0, part):
            logits = ((view - digits.mean) / digits.std).ravel() @ kernel + bias
            exps = np.exp(logits - logits.max())
            mean += exps / exps.sum() / 10
        losses.append(-np.log(mean[label]))
        correct += mean.argmax() == label
    assert found.loss == pytest.approx(np.mean(losses), rel=1e-4)
    assert found.accuracy == pytest.approx(correct / len(losses), abs=1e-9)
    plain = training.evaluate(valid)
    assert found.loss != pytest.approx(plain.loss, rel=1e-2)


def test_the_centre_alone_is_the_plain_evaluation(digits):
    training = training_of(digits)
    training.compile()
    valid = on_device(digits.valid, digits.mean, digits.std)
    assert training.test(valid) == training.evaluate(valid, top5=True)


def test_the_extreme_views_are_those_of_training_by_crop():
    """At the default share, 7/8, an image moves as far as the training's random crop can move it."""
    views = augment.ten_crop(3, (32, 13, 2), 0.875)
    assert len(views) == 10
    assert [tuple(view["shift"][0]) for view in views[:5]] == [(-4, -2), (-4, 2), (4, -2), (4, 2), (0, 0)]
    assert (augment.crop_pad(32), augment.crop_pad(13)) == (4, 2)
    assert [bool(view["flip"].all()) for view in views] == [False] * 5 + [True] * 5
    assert all((view["shift"] == view["shift"][0]).all() for view in views)


def test_probabilities_are_averaged_not_logits():
    logits = [np.array([[9.0, 0.0, 0.0]], np.float32), np.array([[0.0, 0.5, 0.0]], np.float32)]
    exps = [np.exp(x) / np.exp(x).sum() for x in logits]
    mean = mean_probabilities(logits)
    np.testing.assert_allclose(jax.nn.softmax(mean), sum(exps) / 2, rtol=1e-5)


def test_all_views_are_one_program(digits):
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if event.endswith("backend_compile_duration") else None
    )
    training = training_of(digits, evaluation="ten_crop", evaluate_batch_size=37)
    training.compile()
    assert compiled
    compiled.clear()
    training.train_epoch(0)
    training.test(on_device(digits.valid, digits.mean, digits.std))
    assert len(compiled) == 1  # what cuts views out of a split of this size; not ten, and no network


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"evaluation": "five_crop"}, "evaluation: 'five_crop' is not one of centre, ten_crop"),
        ({"crop_fraction": 1.0}, "crop_fraction: 1.0 is not between 0 and 1"),
    ],
)
def test_a_wrong_option_is_named(wrong, says):
    with pytest.raises(InputError, match=says):
        TrainingConfig(**wrong)


@pytest.mark.slow
def test_the_record_says_how_it_was_tested(tmp_path, monkeypatch):
    """The final result differs from the plain one, names its evaluation, and a resumption must repeat it."""
    space = SPACES["chain"]
    arch = space.from_string(TINY)

    def run(out: Path, resume: bool = False, **config):
        return train_to_end(
            space,
            arch,
            DataConfig("digits"),
            TrainingConfig(**config),
            out,
            epochs=1,
            seeds=[0],
            resume=resume,
        )

    (plain,) = run(tmp_path / "plain").finals
    (crops,) = run(tmp_path / "crops", evaluation="ten_crop", crop_fraction=0.75).finals
    assert (plain.evaluation, crops.evaluation) == ("centre", "ten_crop")
    assert crops.test_loss != plain.test_loss
    recorded = json.loads((tmp_path / "crops/config.json").read_text())
    assert (recorded["evaluation"], recorded["crop_fraction"]) == ("ten_crop", 0.75)
    with pytest.raises(InputError, match="crop_fraction"):
        run(tmp_path / "crops", resume=True, evaluation="ten_crop")
    setup = TrainSetup(space, DataConfig("digits"), TrainingConfig(evaluation="ten_crop"), epochs=1)
    again = setup(None).final(arch, 0, 1)
    assert again.test_loss != crops.test_loss  # the default crop is another one
