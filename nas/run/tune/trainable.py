"""An objective as a trainable of Ray Tune, for those who want Tune's own schedulers and searchers."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ray import tune

from nas.objectives.base import Objective, trial_folder
from nas.run.driver import evaluate
from nas.run.tune.worker import pickled, unpickled_objective
from nas.space import Architecture
from nas.trial import Trial, measurement_of

MEASUREMENTS = "measurements.json"


def trainable(
    make_objective: Callable[[Path], Objective],
    arch_of: Callable[[Mapping[str, Any]], Architecture] = Architecture,
    *,
    epochs: int,
    seed: int = 0,
) -> Any:
    """A `ray.tune.Trainable` whose step is a unit of an objective, reported as its measurement's fields.

    For example population-based training (Jaderberg et al. 2017) of a network's learning rate, which is an argument
    of the compiled training program, so that changing it compiles nothing::

        space = SPACES["chain"].searched(fix=["depth=2", "width=16"])
        setup = TrainSetup(space, DataConfig("mnist5k"), TrainingConfig(), epochs=20)
        rates = to_tune(space)["learning_rate"]
        tune.Tuner(
            trainable(setup, functools.partial(from_tune, space), epochs=20),
            param_space=to_tune(space),
            tune_config=tune.TuneConfig(
                num_samples=8,
                scheduler=PopulationBasedTraining(
                    "training_iteration", "valid_accuracy", "max", perturbation_interval=2,
                    hyperparam_mutations={"learning_rate": rates},
                ),
            ),
        ).fit()

    What is exploited goes on from a copy of the other's checkpoint with its own hyperparameters. Tune's other
    schedulers (PB2, HyperBand) and searchers take it in the same way. Nothing is written to a record of ours.

    Args:
        make_objective: called once in each worker, with a folder for checkpoints; pickled.
        arch_of: the architecture that a config of Tune means.
        epochs: units after which a trial is done.
        seed: of every trial's training.
    """
    return tune.with_parameters(
        ObjectiveTrainable,
        make_objective=pickled(make_objective),
        arch_of=pickled(arch_of),
        epochs=epochs,
        seed=seed,
    )


class ObjectiveTrainable(tune.Trainable):
    """See `trainable`. An objective's own checkpoints, in a folder of this worker, are copied to and from Tune's."""

    def setup(
        self, config: dict[str, Any], make_objective: bytes, arch_of: bytes, epochs: int, seed: int
    ) -> None:
        self._checkpoints = Path(tempfile.mkdtemp(prefix="nas-trainable-"))
        self._objective: Objective = unpickled_objective(make_objective, str(self._checkpoints))
        self._arch_of = arch_of
        self._epochs, self._seed = epochs, seed
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._pause()
        shutil.rmtree(self._folder, ignore_errors=True)
        from ray.cloudpickle import cloudpickle

        arch = cloudpickle.loads(self._arch_of)(new_config)
        self._trial = Trial(id=0, arch=arch, budget=self._epochs, seed=self._seed)
        return True

    def step(self) -> dict[str, Any]:
        if self._units is None:
            self._units = evaluate(self._objective, self._trial)
        self._trial = next(self._units)
        measurement = self._trial.measurements[-1]
        done = self._trial.spent >= self._epochs or self._trial.ended
        return measurement.fields() | {"value": measurement.value, "done": done}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        self._pause()  # all that it needs to go on is on disk then
        if self._folder.exists():
            shutil.copytree(self._folder, checkpoint_dir, dirs_exist_ok=True)
        fields = [measurement.fields() for measurement in self._trial.measurements]
        (Path(checkpoint_dir) / MEASUREMENTS).write_text(json.dumps(fields))

    def load_checkpoint(self, checkpoint: Any) -> None:
        self._pause()
        shutil.rmtree(self._folder, ignore_errors=True)
        shutil.copytree(checkpoint, self._folder)
        fields = json.loads((self._folder / MEASUREMENTS).read_text())
        (self._folder / MEASUREMENTS).unlink()
        self._trial = self._trial.replace(measurements=tuple(map(measurement_of, fields)))

    def cleanup(self) -> None:
        self._pause()
        shutil.rmtree(self._checkpoints, ignore_errors=True)

    @property
    def _folder(self) -> Path:
        return trial_folder(self._checkpoints, 0)

    def _pause(self) -> None:
        """The next step goes on from the objective's checkpoint."""
        units, self._units = getattr(self, "_units", None), None
        if units is not None:
            units.close()
