"""A run in TensorBoard, Weights & Biases or MLflow: a curve a trial, its choices, its final trainings.

While a search runs its events are passed on; afterwards `export` reads them off the record. Only TensorBoard's writer
is installed with this project; the others are asked for by name when they are used.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from nas.errors import InputError, one_of
from nas.record import Run
from nas.space import Architecture
from nas.trial import Final, Measurement, MeasurementWithValues, ScoreMeasurement, SupernetMeasurement, Trial

MOST_OPEN = 16  # files of trials that TensorBoard's writers keep open


class Tracker(Protocol):
    """Where a run is shown; a second call with the same trial and budget changes nothing that matters."""

    def measured(self, trial: Trial) -> None:
        """``trial.measurements[-1]`` is new."""
        ...

    def ended(self, trial: Trial) -> None: ...

    def final(self, final: Final) -> None: ...

    def close(self) -> None: ...


def scalars(measurement: Measurement) -> dict[str, float]:
    """What a measurement says, by name, without what it does not know."""
    names = ["valid_accuracy", "valid_loss", "train_accuracy", "train_loss"]
    names += ["compile_seconds", "train_seconds", "evaluate_seconds"]
    if isinstance(measurement, ScoreMeasurement):
        names.append("score")
    if isinstance(measurement, SupernetMeasurement):
        names += ["entropy", "skips", "eigenvalue"]
    more = measurement.values if isinstance(measurement, MeasurementWithValues) else {}
    return _finite({**{name: getattr(measurement, name) for name in names}, **more})


def final_scalars(final: Final) -> dict[str, float]:
    names = ["test_accuracy", "test_loss", "valid_accuracy", "train_seconds", "params", "macs_per_image"]
    return _finite({name: getattr(final, name) for name in names})


def result(trial: Trial) -> dict[str, float]:
    """What the trial is compared by, and what it cost."""
    seconds = sum(m.seconds for m in trial.measurements)
    sizes = {"params": trial.params, "macs_per_image": trial.macs_per_image}
    return _finite({"result": trial.score, "epochs": trial.spent, "seconds": seconds, **sizes})


def hyperparameters(arch: Architecture) -> dict[str, Any]:
    """The choices as what every tracker takes: numbers, truth values, texts."""
    return {name: v if isinstance(v, bool | int | float | str) else str(v) for name, v in arch.items()}


def _finite(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(v) for name, v in values.items() if v is not None and math.isfinite(v)}


class TensorBoard:
    """Event files below ``folder``, a folder a trial; those of an earlier time are replaced."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self.folder = folder
        self._open: OrderedDict[str, Any] = OrderedDict()
        for earlier in (*folder.glob("trial_*/events.*"), *folder.glob("final_*/events.*")):
            earlier.unlink()
        folder.mkdir(parents=True, exist_ok=True)

    def measured(self, trial: Trial) -> None:
        newest, writer = trial.measurements[-1], self._writer(_name(trial))
        for name, value in scalars(newest).items():
            writer.add_scalar(name, value, newest.budget)

    def ended(self, trial: Trial) -> None:
        from tensorboardX.summary import hparams

        writer = self._writer(_name(trial))
        for summary in hparams(hyperparameters(trial.arch), result(trial)):
            writer.file_writer.add_summary(summary)
        for name, value in result(trial).items():
            writer.add_scalar(name, value, trial.spent)
        if trial.error:
            writer.add_text("error", trial.error)
        self._open.pop(_name(trial)).close()

    def final(self, final: Final) -> None:
        writer = self._writer(_final_name(final))
        for name, value in final_scalars(final).items():
            writer.add_scalar(name, value, final.epochs)
        writer.add_text("architecture", final.arch.to_json())

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()

    def _writer(self, name: str) -> Any:
        from tensorboardX import SummaryWriter

        if name not in self._open:
            if len(self._open) == MOST_OPEN:  # another file in the same folder goes on with it
                self._open.popitem(last=False)[1].close()
            self._open[name] = SummaryWriter(str(self.folder / name), flush_secs=5)
        self._open.move_to_end(name)
        return self._open[name]


class WeightsAndBiases:
    """A run a trial, grouped by the search; offline below the run's folder unless ``WANDB_MODE`` says otherwise."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self._wandb = _library("wandb")
        self._folder, self._config = folder, config
        folder.mkdir(parents=True, exist_ok=True)

    def measured(self, trial: Trial) -> None:
        pass  # a process has one run at a time: the curve follows when the trial ends

    def ended(self, trial: Trial) -> None:
        summary = {**result(trial), "status": trial.status, "error": trial.error}
        curve = [(m.budget, scalars(m)) for m in trial.measurements]
        self._run(_name(trial), "trial", hyperparameters(trial.arch), curve, summary)

    def final(self, final: Final) -> None:
        curve = [(final.epochs, final_scalars(final))]
        told = {"error": final.error}
        self._run(_final_name(final), "final", hyperparameters(final.arch), curve, told)

    def close(self) -> None:
        pass

    def _run(
        self,
        name: str,
        kind: str,
        config: Mapping[str, Any],
        curve: list[tuple[int, dict[str, float]]],
        summary: Mapping[str, Any],
    ) -> None:
        group = self._folder.parent.name
        run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", "nas"),
            dir=str(self._folder),
            group=group,
            job_type=kind,
            name=f"{group}/{name}",
            id=_digest(f"{self._folder.absolute()} {name}"),  # the same again after a resumption
            resume="allow",
            config={**config, "search": {k: v for k, v in self._config.items() if v is not None}},
            mode=os.environ.get("WANDB_MODE", "offline"),
            settings=self._wandb.Settings(silent=True, console="off"),
        )
        for step, values in curve:
            run.log(values, step=step)
        for key, value in summary.items():
            run.summary[key] = value
        run.finish()


class MLflow:
    """A run a trial in an experiment of the search's name: in a database below the run's folder, unless
    ``MLFLOW_TRACKING_URI`` says where. What this folder's run had there from an earlier time is replaced."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        library = _library("mlflow")
        folder.mkdir(parents=True, exist_ok=True)
        uri = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{(folder / 'mlflow.db').absolute()}")
        self._client = library.MlflowClient(tracking_uri=uri)
        name = folder.parent.name or "search"
        known = self._client.get_experiment_by_name(name)
        self._experiment = known.experiment_id if known else self._client.create_experiment(name)
        self._tags = {"run_folder": _digest(str(folder.absolute()))}  # another search may have this name
        of_this = f"tags.run_folder = '{self._tags['run_folder']}'"
        for run in self._client.search_runs([self._experiment], of_this, max_results=10_000):
            self._client.delete_run(run.info.run_id)
        self._runs: dict[int, str] = {}

    def measured(self, trial: Trial) -> None:
        newest = trial.measurements[-1]
        for name, value in scalars(newest).items():
            self._client.log_metric(self._run(trial), name, value, step=newest.budget)

    def ended(self, trial: Trial) -> None:
        run = self._run(trial)
        for name, value in result(trial).items():
            self._client.log_metric(run, name, value, step=trial.spent)
        if trial.error:
            self._client.set_tag(run, "error", trial.error)
        self._client.set_terminated(run, "FAILED" if trial.status == "failed" else "FINISHED")
        del self._runs[trial.id]

    def final(self, final: Final) -> None:
        run = self._begin(_final_name(final), final.arch)
        for name, value in final_scalars(final).items():
            self._client.log_metric(run, name, value, step=final.epochs)
        self._client.set_terminated(run, "FAILED" if final.error else "FINISHED")

    def close(self) -> None:
        for run in self._runs.values():
            self._client.set_terminated(run, "KILLED")

    def _run(self, trial: Trial) -> str:
        if trial.id not in self._runs:
            self._runs[trial.id] = self._begin(_name(trial), trial.arch)
        return self._runs[trial.id]

    def _begin(self, name: str, arch: Architecture) -> str:
        run = self._client.create_run(self._experiment, run_name=name, tags=self._tags).info.run_id
        for choice, value in hyperparameters(arch).items():
            self._client.log_param(run, choice, value)
        return run


TRACKERS: dict[str, Callable[[Path, Mapping[str, Any]], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}
"""By name: of its folder and the run's config."""


def check(names: tuple[str, ...]) -> None:
    """Raises InputError for a name that is none, and for a library that is not installed."""
    for name in names:
        if name not in TRACKERS:
            raise one_of("log", name, TRACKERS)
        if name != "tensorboard":
            _library(name)


def export(run: Run, tracker: Tracker) -> None:
    """All that a run's record holds, then the tracker is closed."""
    for trial in run.trials.values():
        for k in range(1, len(trial.measurements) + 1):
            tracker.measured(trial.replace(measurements=trial.measurements[:k]))
        if trial.status != "running":
            tracker.ended(trial)
    for final in run.finals:
        tracker.final(final)
    tracker.close()


def _library(name: str) -> Any:
    """Raises InputError where it is not installed."""
    try:
        return __import__(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise InputError(f"log: {name} is not installed; pip install {name}") from None


def _name(trial: Trial) -> str:
    return f"trial_{trial.id:04}"


def _final_name(final: Final) -> str:
    """Several networks may be trained from one seed."""
    return f"final_{_digest(final.arch.to_json())[:4]}_seed_{final.seed}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
