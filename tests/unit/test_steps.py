"""Several steps as one program, and supernets over several devices: the same values up to rounding."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from nas.data import load
from nas.errors import InputError
from nas.training.batches import on_device
from nas.training.config import TrainingConfig
from nas.training.hyper import Hyper
from nas.training.loop import Training, train
from search_spaces import minichain
from tests.unit.test_oneshot_search import planted_search

ROOT = Path(__file__).parents[2]
STATED = ("train_loss", "train_accuracy", "valid_loss", "valid_accuracy")


def measured(**config) -> tuple[np.ndarray, Training]:
    """Two epochs of 11 steps with all that differs between steps: rates, draws, dropout, averages."""
    dataset = load("digits")
    data = [on_device(split, dataset.mean, dataset.std) for split in (dataset.train, dataset.valid)]
    hyper = Hyper(
        learning_rate=0.05, schedule="cosine", batch_size=32, dropout=0.2, augmentation="crop+flip+mixup"
    )
    given = TrainingConfig(steps_per_epoch=11, ema_decay=0.9, clip_norm=1.0, **config)
    assert minichain.SPACE.build is not None
    network = minichain.SPACE.build(minichain.SPACE.sample(0), 10)
    training = Training(network, hyper, data[0], 10, given, seed=1, epochs=2)
    return np.array(
        [[getattr(m, name) for name in STATED] for m in train(training, data[1], until=2)]
    ), training


def test_steps_of_one_program_have_the_values_of_single_ones():
    """In calls of four, of which the last of an epoch has three."""
    one, alone = measured(steps_per_call=1)
    several, together = measured(steps_per_call=4)
    np.testing.assert_allclose(several, one, rtol=1e-4)
    for a, b in zip(*(jax.tree.leaves(t.state) for t in (alone, together)), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-5)
    assert alone.steps_per_call == 1
    assert measured()[1].steps_per_call == 1  # on CPU, unless told otherwise


@pytest.mark.slow
def test_half_precision_keeps_parameters_and_statistics_in_full():
    seen, training = measured(steps_per_call=4, dtype="bfloat16")
    assert np.isfinite(seen).all()
    assert {leaf.dtype.name for leaf in jax.tree.leaves(training.state.variables)} == {"float32"}


@pytest.mark.parametrize("method", ["darts_first", "spos"])
def test_a_supernets_steps_of_one_program_have_the_values_of_single_ones(method: str):
    """Twenty batches an epoch in calls of six; with alphas that learn, and with architectures drawn."""
    search = planted_search(method, epochs=2, stop="none", eigenvalue=False)
    seen = []
    for steps in (1, 6):
        config = dataclasses.replace(search.config, steps_per_call=steps)
        seen.append(list(dataclasses.replace(search, config=config).run(2)))
    for a, b in zip(*seen, strict=True):
        for name in ("train_loss", "train_accuracy", "valid_loss"):
            assert getattr(b, name) == pytest.approx(getattr(a, name), rel=2e-3)
        assert a.derived == b.derived


def test_a_number_of_steps_below_one_is_one_line():
    with pytest.raises(InputError, match="steps_per_call: 0 is below 1"):
        TrainingConfig(steps_per_call=0)


ON_DEVICES = """
import dataclasses, sys
from nas.training.config import TrainingConfig
from tests.unit.test_oneshot_search import data, planted_search
from nas.training.batches import on_device
from nas.data import Split
import numpy as np
search = planted_search("darts_first", epochs=2, stop="none")
for devices, steps in ((1, 1), (4, 1), (4, 5)):
    def moved(of):
        split = Split(np.asarray(of.images), np.asarray(of.labels))
        return on_device(split, np.asarray(of.mean), np.asarray(of.std), devices)
    config = dataclasses.replace(search.config, devices=devices, steps_per_call=steps)
    run = dataclasses.replace(search, config=config, train=moved(search.train), valid=moved(search.valid))
    for m in run.run(2):
        print(m.train_loss, m.valid_loss, m.eigenvalue)
"""


@pytest.mark.slow
def test_a_supernet_over_four_devices_has_the_losses_of_one(tmp_path: Path):
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "PYTHONPATH": str(ROOT)}
    env |= {"JAX_PLATFORMS": "cpu", "NAS_CACHE_DIR": str(tmp_path), "NAS_NATIVE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", ON_DEVICES], capture_output=True, text=True, env=env, timeout=280
    )
    assert done.returncode == 0, done.stderr
    values = np.array([[float(x) for x in line.split()] for line in done.stdout.splitlines()])
    assert values.shape == (6, 3)
    np.testing.assert_allclose(values[2:4], values[:2], rtol=1e-2)
    np.testing.assert_allclose(values[4:], values[:2], rtol=1e-2)


def test_a_batch_that_devices_cannot_share_is_one_line():
    search = planted_search("darts_first")
    with pytest.raises(InputError, match="batch_size=32 is not a multiple of devices=5"):
        dataclasses.replace(search, config=TrainingConfig(devices=5))
