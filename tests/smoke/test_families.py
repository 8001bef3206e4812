"""Every family can be searched as it is: a random search on real images."""

from __future__ import annotations

import math

import pytest

from nas.data.config import DataConfig
from nas.run.options import SearchOptions
from nas.run.search import search
from nas.strategies import StrategyConfig
from search_spaces import SPACES

FIXED = {"darts": ("cells=1", "channels=4")}  # compiling the whole networks takes long
# Its first kernels, of N(0, 0.0001²), take some hundred steps to show anything.
# What was made for ImageNet learns little of 8 x 8 pixels in an epoch.
SLOW = ("cuda_convnet", "accel_nasbench", "mbconv")


LONG = (
    "accel_nasbench",
    "alexnet",
    "autoencoder",
    "cuda_convnet",
    "darts",
    "lenet",
    "mbconv",
    "mlp",
    "natssize",
    "nasbench_macro",
    "densenet",
    "inception",
    "nasbench201",
    "resnet",
)  # to compile


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in SPACES]
)
@pytest.mark.some(2)
def test_a_random_search(name, tmp_path):
    options = SearchOptions(
        space=name,
        fix=FIXED.get(name, ()),
        engine="local",
        test_seeds=1,
        data=DataConfig(dataset="digits", subset=400),
        plan=StrategyConfig(trials=4, epochs=1),
    )
    run = search(options, "random", tmp_path / "run", SPACES)
    assert len(run.trials) == 4
    measured = [trial for trial in run.trials.values() if trial.status == "completed"]
    # A learning rate drawn too high may end one with a loss that is not a number: a failure, and no score.
    assert len(measured) >= 3, [trial.error for trial in run.trials.values()]
    assert all(math.isfinite(trial.score) and trial.params for trial in measured)
    [final] = run.finals
    assert run.best is not None
    assert final.error is None
    assert 0 <= final.test_accuracy <= 1
    assert final.arch == run.best.arch
    if name not in SLOW:
        assert run.best.score > 0.1  # some network has learned something in its 300 images
