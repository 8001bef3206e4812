"""An objective under a scheduler of Ray Tune's own."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
from ray import tune as ray_tune
from ray.tune.schedulers import PopulationBasedTraining

from nas.data.config import DataConfig
from nas.objectives.train import TrainSetup
from nas.run import tune
from nas.run.tune.space import from_tune, to_tune
from nas.space import SearchSpace
from nas.training.config import TrainingConfig
from search_spaces import SPACES
from tests.synthetic import SPACE, Setup

EPOCHS = 4


@pytest.fixture(scope="module", autouse=True)
def running() -> Any:
    with tune.session(tune.Cluster(workers=2, cpus_per_worker=1)):
        yield


def population(
    trainable: Any, space: SearchSpace, arch: dict[str, Any], name: str, values: list[float], folder: Path
) -> Any:
    """Two trials that differ in the choice ``name``, the worse of which becomes the better, perturbed, every epoch."""
    scheduler = PopulationBasedTraining(
        "training_iteration",
        "valid_accuracy",
        "max",
        perturbation_interval=1,
        quantile_fraction=0.5,
        hyperparam_mutations={name: to_tune(space)[name]},
        resample_probability=0.0,
        synch=True,
    )
    tuner = ray_tune.Tuner(
        trainable,
        param_space=to_tune(space) | arch | {name: ray_tune.grid_search(values)},
        tune_config=ray_tune.TuneConfig(scheduler=scheduler, reuse_actors=True),
        run_config=ray_tune.RunConfig(storage_path=str(folder), verbose=0),
    )
    return tuner.fit()


@pytest.mark.slow
def test_population_based_training_takes_over_weights_and_perturbs_hyperparameters(tmp_path: Path) -> None:
    space = SPACES["chain"].searched(
        fix=[
            "depth=1",
            "width=8",
            "kernel=3",
            "stride=2",
            "head_depth=0",
            "augmentation=none",
            "batch_size=32",
        ]
    )
    setup = TrainSetup(space, DataConfig("digits", subset=400), TrainingConfig(), epochs=EPOCHS)
    made = tune.trainable(setup, functools.partial(from_tune, space), epochs=EPOCHS)
    arch = dict(space.sample(0))
    found = population(made, space, arch, "learning_rate", [1e-4, 0.1], tmp_path / "results")
    assert [result.metrics["training_iteration"] for result in found] == [EPOCHS, EPOCHS]
    assert all(result.metrics["valid_accuracy"] > 0.2 for result in found), "weights were not taken over"
    assert all(result.config["learning_rate"] > 0.01 for result in found)


@pytest.mark.slow
def test_a_trainable_goes_on_from_the_checkpoint_of_another(tmp_path: Path) -> None:
    """The accuracies of this objective tell of all units before, in order: those of one trial, never a mixture."""
    log = tmp_path / "log"
    made = tune.trainable(Setup(log), functools.partial(from_tune, SPACE), epochs=EPOCHS)
    arch = dict(SPACE.sample(0)) | {"width_2": 16}
    found = population(made, SPACE, arch, "rate", [1e-3, 1e-1], tmp_path / "results")
    assert [result.metrics["training_iteration"] for result in found] == [EPOCHS, EPOCHS]
    assert [result.metrics["budget"] for result in found] == [EPOCHS, EPOCHS]
    # The last to be perturbed has the other's units, so both have measured the same.
    first, second = (result.metrics_dataframe["valid_accuracy"].tolist() for result in found)
    assert any(a == b for a, b in zip(first, second, strict=True))
