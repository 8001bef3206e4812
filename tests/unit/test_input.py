"""Training images on the host (--input stream) or on the device: the same values."""

import dataclasses

import numpy as np
import pytest

from nas.data.config import DataConfig
from nas.errors import InputError
from nas.objectives.train import TrainSetup, join, streams_input
from nas.training.batches import Streamed, fetched
from nas.training.config import TrainingConfig
from search_spaces import SPACES

SPACE = SPACES["minichain"]


def final(**settings: object) -> object:
    training = TrainingConfig(**settings)  # pyright: ignore[reportArgumentType]
    setup = TrainSetup(
        SPACE, DataConfig("digits", subset=400), training, epochs=2, overrides={"augmentation": "crop+flip"}
    )
    found = setup(None).final(SPACE.sample(0), 0, 2)
    return dataclasses.replace(found, compile_seconds=0, train_seconds=0, evaluate_seconds=0)


@pytest.mark.parametrize("settings", [{}, {"steps_per_call": 3}])
@pytest.mark.some(1)
def test_streamed_training_equals_that_from_the_device(settings: dict[str, int]) -> None:
    assert final(input="stream", **settings) == final(input="device", **settings)


def test_streamed_parts_are_one_set_and_only_what_is_named_is_fetched() -> None:
    objective = TrainSetup(SPACE, DataConfig("digits"), TrainingConfig(input="stream"), epochs=1)(None)
    train, valid = objective.dataset.train, objective.dataset.valid
    both = join(objective.train_data, objective.valid_data)
    assert isinstance(both.images, Streamed)
    assert both.images.shape == (len(train) + len(valid), *train.images.shape[1:])
    index = np.array([[len(train), 0], [len(train) - 1, len(train) + 3]], np.int32)
    data, plan = fetched(both, {"index": index})
    assert plan["index"].tolist() == [[0, 1], [2, 3]]
    for k, number in enumerate(index.ravel()):
        split, of = (train, number) if number < len(train) else (valid, number - len(train))
        assert (data.images[k] == split.images[of]).all()
        assert data.labels[k] == split.labels[of]


def test_input_is_chosen_by_size_and_refused_where_it_is_none() -> None:
    pixels = np.zeros((1, 1, 1, 1), np.uint8)
    assert not streams_input(TrainingConfig(), pixels)  # on CPU the device is the host
    assert streams_input(TrainingConfig(input="stream"), pixels)
    with pytest.raises(InputError, match="input: 'disk' is not one of device, stream"):
        TrainingConfig(input="disk")
