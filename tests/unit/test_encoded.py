"""Training and evaluation from images that stay in their files: real photographs as JPEGs of many sizes."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from nas.data import encoded, load, load_test
from nas.data.config import DataConfig
from nas.data.encoded import Encoded
from nas.data.streaming import FolderImages, decoded, evaluation_batches, top_k_accuracy
from nas.data.streaming_pixels import ten_views
from nas.ending import Terminated, terminate
from nas.errors import InputError
from nas.objectives.train import TrainObjective, TrainSetup, join
from nas.training.batches import ahead, count_top5
from nas.training.checkpoint import Checkpoints
from nas.training.config import TrainingConfig
from nas.training.loop import train
from search_spaces import SPACES

SPACE = SPACES["minichain"]
ALL = "resized_crop+flip+colour+pca"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, pieces of scikit-learn's two photographs: 60 a class to train on, 12 to test with."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name, pixels in zip(("temple", "flower"), load_sample_images().images, strict=True):
        for split, count in (("train", 60), ("test", 12)):
            (root / split / name).mkdir(parents=True)
            for k in range(count):
                h, w = rng.integers(24, 60, 2)
                top, left = rng.integers(0, 427 - h), rng.integers(0, 640 - w)
                piece = Image.fromarray(pixels[top : top + h, left : left + w])
                piece.save(root / split / name / f"{k:02d}.jpg", quality=92)
    return root


def data_of(photos: Path, **more: Any) -> DataConfig:
    return DataConfig(str(photos), **{"resize": 16, "image_size": 14, **more})


def objective_of(photos: Path, **settings: Any) -> TrainObjective:
    config = TrainingConfig(**{"evaluate_batch_size": 10, **settings})
    overrides = {"augmentation": ALL, "batch_size": 16, "learning_rate": 0.02}
    return TrainSetup(SPACE, data_of(photos), config, epochs=2, overrides=overrides)(None)


def strip(values: Any) -> Any:
    return dataclasses.replace(values, compile_seconds=0, train_seconds=0, evaluate_seconds=0)


def test_splits_are_those_of_the_decoded_set_and_nothing_is_decoded_but_the_sample(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def counted(source: Any, number: int, view: Any) -> Any:
        seen.append(number)
        return decoded(source, number, view)

    monkeypatch.setattr(encoded, "decoded", counted)
    monkeypatch.setattr("nas.data.loading.SAMPLE", 8)
    with_files = load(str(photos), resize=16, image_size=14)
    assert len(seen) == 8
    assert load(str(photos), resize=16).image_shape == with_files.image_shape == (14, 14, 3)
    whole = load(str(photos), image_size=14)
    for split in ("train", "valid"):
        assert (getattr(whole, split).labels == getattr(with_files, split).labels).all()
    source = FolderImages(photos, "train")
    for k in (0, 50):
        expected = _centre(source, with_files.train.images.numbers[k])["image"][0]
        assert (with_files.train.images[np.array([k, 1])][0] == expected).all()
    assert np.abs(whole.mean - with_files.mean).max() < 0.1
    assert len(load_test(str(photos), resize=16, image_size=14)) == 24


def _centre(source: FolderImages, number: int) -> dict[str, np.ndarray]:
    batches = evaluation_batches(source, 1, resize=16, crop=14, process=0, processes=1)
    return next(batch for k, batch in enumerate(batches) if k == number)


def test_batches_are_read_a_few_ahead_and_a_view_is_a_function_of_its_seed(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = objective_of(photos)
    seen: list[int] = []

    def counted(source: Any, number: int, view: Any) -> Any:
        seen.append(number)
        return decoded(source, number, view)

    monkeypatch.setattr(encoded, "decoded", counted)
    monkeypatch.setattr(encoded, "local_cores", lambda: [0, 1])
    index = np.arange(400).reshape(200, 2) % len(objective.dataset.train)
    plan = {"index": index, "view": np.tile(np.arange(2, dtype=np.uint32), (200, 1))}
    calls = ahead(objective.train_data, plan, 0, 1)
    data, now = next(calls)
    assert len(seen) <= 20  # of 400
    assert data.images.shape == (2, 14, 14, 3)
    assert now["index"].tolist() == [[0, 1]]
    assert "view" not in now
    del calls
    again = next(ahead(objective.train_data, plan, 54, 1))[0]  # the same images, after one pass
    assert (again.images == data.images).all()
    other = {**plan, "view": plan["view"] + np.uint32(7)}
    assert (next(ahead(objective.train_data, other, 0, 1))[0].images != data.images).any()


@pytest.mark.slow
def test_it_learns_and_steps_of_one_program_give_the_same(photos: Path) -> None:
    finals = []
    for settings in ({}, {"steps_per_call": 4}):  # 7 steps an epoch: the second call is filled up
        objective = objective_of(photos, **settings)
        assert objective.streams
        finals.append(strip(objective.final(SPACE.sample(0), 0, 2)))
    assert finals[0].test_accuracy > 0.6
    np.testing.assert_allclose(finals[0].test_loss, finals[1].test_loss, rtol=1e-4)
    assert math.isnan(finals[0].test_top5_accuracy)  # of two classes it says nothing


@pytest.mark.parametrize("evaluation", ["centre", "ten_crop"])
def test_evaluation_sees_every_image_once_as_the_views_say(photos: Path, evaluation: str) -> None:
    objective = objective_of(photos, evaluation=evaluation)
    training = objective.training(SPACE.sample(0), objective.train_data, seed=0, epochs=1)
    training.compile()
    test = load_test(**objective.setup.data.arguments())
    found = training.test(objective._on_device(test))
    source = FolderImages(photos, "test")
    correct, mean, std = 0, objective.dataset.mean, objective.dataset.std
    for number in range(len(source)):
        file, label = source.read(number)
        views = ten_views(file, 3, 16, 14)
        views = views if evaluation == "ten_crop" else views[4:5]
        pixels = np.zeros((10, 14, 14, 3), np.float32)
        pixels[: len(views)] = (views / 255 - mean) / std
        logits = np.asarray(training.runner.predict(training.state.variables, jax.numpy.asarray(pixels)))[
            : len(views)
        ]
        correct += int(np.asarray(jax.nn.softmax(logits)).mean(0).argmax() == label)
    assert found.accuracy == pytest.approx(correct / len(source))


def test_top5_is_that_of_the_library() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(30, 12)).astype(np.float32), rng.integers(0, 12, 30)
    assert float(count_top5(logits, labels, 25)) == pytest.approx(
        25 * top_k_accuracy(logits[:25], labels[:25])
    )


def test_going_on_in_mid_epoch_repeats_to_the_bit(
    photos: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    before = signal.signal(signal.SIGTERM, terminate)
    request.addfinalizer(lambda: signal.signal(signal.SIGTERM, before))
    objective = objective_of(photos)
    data = join(objective.train_data, objective.valid_data)

    def new() -> Any:
        return objective.training(SPACE.sample(0), data, seed=0, epochs=2)

    whole = [strip(m) for m in train(new(), objective.valid_data, until=2)]
    seen, steps = [], 0
    for stop in (3, 10, 99):  # in the first epoch and the second, of 7 steps each
        training = new()
        step = training.runner.step

        def counted(*given: Any, step: Any = step, stop: int = stop) -> Any:
            nonlocal steps
            steps += 1
            if steps == stop:
                signal.raise_signal(signal.SIGTERM)
            return step(*given)

        training.runner.step = counted
        keeper = Checkpoints(tmp_path)
        units = train(training, objective.valid_data, until=2, checkpoints=keeper, measured=tuple(seen))
        with pytest.raises(Terminated) if stop < 99 else contextlib.nullcontext():
            seen.extend(units)
        keeper.close()
    assert [strip(m) for m in seen] == whole
    assert steps == 14, "steps were done twice"


def test_what_cannot_be_is_refused(photos: Path) -> None:
    with pytest.raises(InputError, match="input: with resize images stay in their files"):
        objective_of(photos, input="device")
    with pytest.raises(InputError, match="dataset: image_size=17 is not from 1 to resize=16"):
        load(str(photos), resize=16, image_size=17)
    with pytest.raises(
        InputError, match="dataset: resize is for a folder of images or a TFDS set, digits is none"
    ):
        load("digits", resize=16)
    setup = TrainSetup(
        SPACE, DataConfig("digits"), TrainingConfig(), epochs=1, overrides={"augmentation": "resized_crop"}
    )
    objective = setup(None)
    with pytest.raises(InputError, match="augmentation: resized_crop is made of images in their files"):
        objective.training(SPACE.sample(0), objective.train_data, seed=0, epochs=1)


def test_a_damaged_image_is_named_in_one_line(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for k in range(20):
            (folder / name / f"{k:02d}.jpg").write_bytes((photos / "train/temple/00.jpg").read_bytes())
    (folder / "a" / "07.jpg").write_bytes(b"\xff\xd8 no image")
    with pytest.raises(InputError) as caught:
        _ = Encoded(FolderImages(folder), np.arange(40), 14, 16)[:]
    assert str(caught.value) == f"dataset: {folder}/a/07.jpg is damaged (not an image)"


@pytest.mark.slow
def test_a_tfds_set_is_trained_on_from_its_records() -> None:
    places = (os.environ.get("TFDS_DATA_DIR"), Path(__file__).parents[3] / "shared/data/tfds")
    data_dir = next((str(path) for path in places if path and (Path(path) / "cifar10").is_dir()), None)
    if data_dir is None:
        pytest.skip("no prepared cifar10: set TFDS_DATA_DIR")
    data = DataConfig("cifar10", resize=32, image_size=28, subset=200, data_dir=data_dir)
    whole = load("cifar10", subset=200, data_dir=data_dir)
    files = data.load()
    assert (files.train.labels == whole.train.labels).all()
    # In the centre, unscaled, a record's pixels are those of the decoded set.
    assert (files.train.images[:20] == whole.train.images[:20, 2:30, 2:30]).all()
    setup = TrainSetup(
        SPACE, data, TrainingConfig(), epochs=1, overrides={"augmentation": ALL, "batch_size": 64}
    )
    objective = setup(None)
    training = objective.training(SPACE.sample(0), objective.train_data, seed=0, epochs=1)
    (measured,) = train(training, objective.valid_data, until=1)
    assert measured.train_loss > 0
    assert 0 < training.evaluate(objective.valid_data, top5=True).top5_accuracy <= 1
