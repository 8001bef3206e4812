"""RGB changes along the principal components (Krizhevsky et al. 2012, section 4.1)."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest

from nas.data import Split, load
from nas.data.config import DataConfig
from nas.data.pixels import pixel_covariance
from nas.errors import InputError
from nas.objectives.train import TrainSetup
from nas.training import augment
from nas.training.config import TrainingConfig
from nas.training.hyper import Hyper
from nas.training.loop import Training, make_batch, on_device
from search_spaces import SPACES

ROTATION = np.array([[0.6, -0.8, 0.0], [0.8, 0.6, 0.0], [0.0, 0.0, 1.0]])
COVARIANCE = ROTATION @ np.diag([0.2, 0.05, 0.01]) @ ROTATION.T


def photos(seed: int = 0, count: int = 40, channels: int = 3) -> Split:
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(count, 8, 6, channels)) @ rng.normal(size=(channels, channels))
    images = np.clip(127 + 40 * mixed, 0, 255).astype(np.uint8)
    return Split(images, rng.integers(0, 10, count).astype(np.int32))


def test_covariance_equals_numpy():
    images = photos(count=3000).images
    pixels = images.reshape(-1, 3) / 255.0
    np.testing.assert_allclose(pixel_covariance(images), np.cov(pixels.T, bias=True), rtol=1e-9)


def test_the_covariance_of_a_data_set_is_that_of_its_training_images(tmp_path):
    dataset = load("digits", cache_dir=tmp_path)
    assert dataset.covariance.shape == (1, 1)
    assert dataset.covariance[0, 0] == pytest.approx(float(dataset.std[0]) ** 2, rel=1e-5)


def test_components_by_hand():
    """Two channels that vary together, (1, 1)/sqrt(2) with variance 0.3, and apart with 0.1."""
    components = augment.principal_components(np.array([[0.2, 0.1], [0.1, 0.2]]))
    root = np.sqrt(0.5)
    expected = np.array([[0.1 * root, 0.3 * root], [-0.1 * root, 0.3 * root]])
    signs = np.sign(components[0]) * np.sign(expected[0])
    np.testing.assert_allclose(components, expected * signs, rtol=1e-6)
    np.testing.assert_allclose(augment.principal_components(np.array([[0.25]])), [[0.25]])


def test_components_do_not_depend_on_the_signs_that_lapack_chooses(monkeypatch):
    first = augment.principal_components(COVARIANCE)
    eigh = np.linalg.eigh
    monkeypatch.setattr(np.linalg, "eigh", lambda a: (eigh(a)[0], -eigh(a)[1]))
    np.testing.assert_array_equal(augment.principal_components(COVARIANCE), first)


def test_offsets_have_the_published_covariance():
    """a ~ N(0, 0.1^2): offsets P diag(l) a have covariance P diag(0.1 l)^2 P^T, and are one an image."""
    components = augment.principal_components(COVARIANCE)
    draw = augment.draw("pca", np.random.default_rng(1), 500, 400, (4, 4, 3), components)
    assert set(draw) == {"offset"}
    assert draw["offset"].dtype == np.float32
    offsets = draw["offset"].reshape(-1, 3)
    expected = ROTATION @ np.diag([0.02**2, 0.005**2, 0.001**2]) @ ROTATION.T
    np.testing.assert_allclose(np.cov(offsets.T), expected, rtol=0.03, atol=2e-6)
    np.testing.assert_allclose(offsets.mean(0), 0, atol=3e-4)
    assert len(np.unique(offsets[:, 0])) > 0.9 * len(offsets)
    again = augment.draw("pca", np.random.default_rng(1), 500, 400, (4, 4, 3), components)
    np.testing.assert_array_equal(again["offset"], draw["offset"])


def test_other_draws_stay_what_they_were():
    components = augment.principal_components(COVARIANCE)
    both = augment.draw("crop+flip+pca", np.random.default_rng(1), 3, 4, (8, 8, 3), components)
    plain = augment.draw("crop+flip", np.random.default_rng(1), 3, 4, (8, 8, 3))
    for name, values in plain.items():
        np.testing.assert_array_equal(both[name], values)


def test_every_pixel_of_an_image_gets_its_offset():
    split = photos()
    mean, std = np.array([0.4, 0.5, 0.6], np.float32), np.array([0.2, 0.25, 0.3], np.float32)
    plan = {
        "index": np.array([3, 1], np.int32),
        "offset": np.array([[0.1, -0.2, 0.05], [0, 0, 0]], np.float32),
    }
    batch = make_batch(on_device(split, mean, std), plan, np.float32(0), num_classes=10, dtype="float32")
    expected = (split.images[[3, 1]] / 255.0 + plan["offset"][:, None, None] - mean) / std
    np.testing.assert_allclose(batch.images, expected, rtol=1e-4, atol=1e-5)


class Linear(nn.Module):
    @nn.compact
    def __call__(self, x, *, train=False):
        return nn.Dense(10)(x.reshape(x.shape[0], -1))


def training_of(split: Split, **data):
    channels = split.images.shape[-1]
    mean, std = np.full(channels, 0.5, np.float32), np.full(channels, 0.25, np.float32)
    train = on_device(split, mean, std)._replace(**data)
    hyper = Hyper(batch_size=8, augmentation="crop+pca")
    return Training(Linear(), hyper, train, 10, TrainingConfig(), seed=0, epochs=2)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.slow
def test_training_compiles_nothing_after_the_first_step(channels):
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if event.endswith("backend_compile_duration") else None
    )
    split = photos(channels=channels)
    training = training_of(split, covariance=pixel_covariance(split.images))
    training.compile()
    assert compiled
    compiled.clear()
    for epoch in range(2):
        training.train_epoch(epoch)
    training.evaluate(training.train._replace(covariance=pixel_covariance(split.images)))
    assert compiled == []


def test_without_a_covariance_there_is_nothing_to_draw_along():
    with pytest.raises(InputError, match="pca needs the covariance"):
        training_of(photos())


def test_an_objective_takes_it_from_the_training_images_alone():
    """Also where the network is trained on train and validation images together."""
    space = SPACES["chain"]
    setup = TrainSetup(
        space, DataConfig("digits"), TrainingConfig(), epochs=1, overrides={"augmentation": "pca"}
    )
    objective = setup(None)
    dark = np.zeros_like(objective.dataset.valid.images)
    objective.dataset = dataclasses.replace(
        objective.dataset, valid=dataclasses.replace(objective.dataset.valid, images=dark)
    )
    training = objective.training(space.sample(0), objective.all_data, seed=0, epochs=1)
    assert training.components is not None
    np.testing.assert_allclose(training.components, objective.dataset.std[:, None] ** 2, rtol=1e-5)
