"""Trials of one network as one program: what each comes to is what it comes to alone."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from nas.objectives.train import DataConfig, TrainSetup
from nas.record import Record, Run
from nas.record.reading import read_run
from nas.run import local
from nas.run.together import CompileAhead
from nas.space import Architecture, Categorical, LogUniform, SearchSpace
from nas.strategies import STRATEGIES
from nas.strategies.hyperband import HyperbandConfig
from nas.training.config import TrainingConfig
from nas.trial import Trial
from search_spaces import minichain

STATED = ("train_loss", "train_accuracy", "valid_loss", "valid_accuracy")
BASE = dict(minichain.SPACE.sample(0))
SETUP = TrainSetup(
    SearchSpace(
        "rates",
        {
            "learning_rate": LogUniform(0.01, 0.2, changes_program=False),
            "weight_decay": LogUniform(1e-5, 1e-2, changes_program=False),
            "width": Categorical((4, 6)),
        },
        build=lambda arch, classes: minichain.build(Architecture(BASE, width=arch["width"]), classes),
    ),
    DataConfig("digits", subset=400),
    TrainingConfig(steps_per_epoch=5, ema_decay=0.9),
    epochs=2,
    overrides={"batch_size": 32, "optimiser": "momentum", "augmentation": "crop"},
)


def searched(folder: Path, trials_per_program: int) -> Run:
    """Hyperband: trials of two networks, promoted ones going on from their checkpoints."""
    config = HyperbandConfig(seed=1, epochs=2, eta=2)
    with Record.create(folder, {}, env={}) as record:
        objective = SETUP(record.folder / "checkpoints")
        strategy = STRATEGIES["hyperband"](SETUP.space, config)
        return local.execute(strategy, objective, record, epochs=2, trials_per_program=trials_per_program)


def test_a_search_in_programs_of_eight_has_the_trials_of_one_by_one(tmp_path: Path):
    one, eight = searched(tmp_path / "one", 1), searched(tmp_path / "eight", 8)
    alone, together = ([run.trials[k] for k in sorted(run.trials)] for run in (one, eight))
    assert [(t.id, t.arch, t.budget, t.status) for t in together] == [
        (t.id, t.arch, t.budget, t.status) for t in alone
    ]
    assert len({t.arch["width"] for t in alone}) == 2
    assert {t.spent for t in alone} == {1, 2}
    for a, b in zip(alone, together, strict=True):
        for seen, by_itself in zip(b.measurements, a.measurements, strict=True):
            assert seen.budget == by_itself.budget
            for name in STATED:
                assert getattr(seen, name) == pytest.approx(getattr(by_itself, name), rel=2e-3, abs=1e-3)
        assert all(m.train_seconds > 0 for m in b.measurements)


def test_the_next_program_compiles_while_one_trains(tmp_path: Path):
    """Its seconds are in the record as hidden, those that were waited for are no more than without."""
    run = searched(tmp_path / "ahead", 8)
    hidden = [trial.measurements[0].hidden_compile_seconds for trial in run.trials.values()]
    assert hidden[0] == 0
    assert max(hidden) > 0
    assert all(m.hidden_compile_seconds == 0 for trial in run.trials.values() for m in trial.measurements[1:])
    assert read_run(tmp_path / "ahead").trials == run.trials


@pytest.mark.slow
def test_workers_of_ray_train_as_one_program_too(tmp_path: Path):
    from nas.run import tune

    with Record.create(tmp_path / "ray", {}, env={}) as record:
        config = HyperbandConfig(seed=1, epochs=2, eta=2)
        strategy, cluster = STRATEGIES["hyperband"](SETUP.space, config), tune.Cluster(workers=2)
        there = tune.execute(strategy, SETUP, record, epochs=2, cluster=cluster, trials_per_program=8)
    here = searched(tmp_path / "local", 1)
    assert {k: (t.arch, t.spent, t.status) for k, t in there.trials.items()} == {
        k: (t.arch, t.spent, t.status) for k, t in here.trials.items()
    }
    for k, trial in here.trials.items():
        for seen, alone in zip(there.trials[k].measurements, trial.measurements, strict=True):
            assert seen.valid_loss == pytest.approx(alone.valid_loss, rel=2e-3, abs=1e-3)


def test_what_cannot_be_compiled_ahead_fails_in_its_own_training(tmp_path: Path):
    class Broken:
        def compile(self, trials: object) -> None:
            raise RuntimeError("no such program")

        def grouped(self, trials: object) -> object: ...

        def together(self, trials: object) -> object: ...

    ahead = CompileAhead(Broken())  # type: ignore[arg-type]
    ahead.start([])
    assert ahead.hidden_seconds() >= 0
    assert ahead.hidden_seconds() == 0


def test_one_whose_loss_is_no_number_fails_and_the_others_go_on(tmp_path: Path):
    objective = SETUP(tmp_path)
    rates = (0.05, 1e30, 0.02)
    archs = [
        dataclasses.replace(SETUP, overrides={}).space.canonical(
            {"learning_rate": 0.05, "weight_decay": 1e-4, "width": 4}
        )
        for _ in rates
    ]
    trials = [Trial(k, arch, 2, seed=k) for k, arch in enumerate(archs)]
    hyper = objective.hyper
    objective.hyper = lambda arch: dataclasses.replace(hyper(arch), learning_rate=next(given))  # type: ignore[method-assign]
    given = iter(rates * 2)
    assert objective.grouped(trials) == [trials]
    with objective.together(trials) as members:
        ends = []
        for member, trial in zip(members, trials, strict=True):
            try:
                ends.append([m.train_loss for m in member(trial)])
            except Exception as failure:
                ends.append(str(failure))
    assert [len(end) for end in (ends[0], ends[2])] == [2, 2]
    assert all(math.isfinite(loss) for loss in (*ends[0], *ends[2]))
    assert ends[1].startswith("loss is ")
    assert np.diff(ends[0])[0] < 0
