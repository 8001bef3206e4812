"""experiments/bergstra_bengio_2012.py: its networks against numpy, its smoke scale as started from a shell."""

from __future__ import annotations

import dataclasses
import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nas.data.config import DataConfig
from nas.errors import InputError
from nas.record import Record, Run, read_run, record_difference
from nas.space import Architecture
from nas.strategies import STRATEGIES, StrategyConfig, recorded
from nas.trial import Trial

ROOT = Path(__file__).parents[2]
ARMS = ("rectangles-grid", "rectangles-random")
ARCH = Architecture(
    preprocessing="raw",
    hidden=20.4,
    activation="sigmoid",
    weights="normal",
    scale="fan_in",
    multiplier=0.7,
    batch_size=20,
    learning_rate=0.5,
    anneal_start=300.0,
    penalty=True,
    l2=3e-5,
)


@pytest.fixture(scope="module")
def experiment() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "experiments")
        yield importlib.import_module("bergstra_bengio_2012")


@pytest.fixture(scope="module")
def networks(experiment: ModuleType) -> Any:
    return importlib.import_module("_hidden_layer")


@pytest.fixture(scope="module")
def problem(networks: ModuleType) -> Any:
    return networks.Problem(DataConfig("digits"), 100)


def trained(networks: ModuleType, problem: Any, arch: Architecture, epochs: int) -> tuple[list[Any], Any]:
    """Every epoch's measurement, and the test of the best of them."""
    objective, trial = networks.HiddenLayerObjective(problem), Trial(0, arch, epochs, seed=3)
    measured = list(objective(trial))
    best = 1 + int(np.argmax([measurement.valid_accuracy for measurement in measured]))
    return measured, objective.final(trial, best)


def searched(
    experiment: ModuleType, problem: Any, archs: list[Architecture], least: int, most: int, out: Path
) -> Run:
    """These networks as the trials of a search."""
    scale = dataclasses.replace(experiment.SCALES["smoke"], least_epochs=least, most_epochs=most)
    plan = StrategyConfig(trials=len(archs), epochs=most)
    strategy = recorded(STRATEGIES["random"](experiment.SPACE, plan), dict(enumerate(archs)))
    with Record.create(out, {"strategy": "random"}) as record:
        return experiment.search_and_test(strategy, problem, scale, record)


# ------------------------------------------------------------------------------------------ the networks


@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
def test_training_is_gradient_descent_worked_out_by_hand(
    networks: ModuleType, problem: Any, activation: str
) -> None:
    arch = ARCH.set(activation=activation, l2=3.1e-5)
    first, _ = problem.start(arch, 3)
    assert problem.inputs_used(arch) == 64
    w, _, v, _ = (np.asarray(leaf, np.float64) for leaf in first)
    w, v = w[:, :20], v[:20]  # the padding left out
    b, c = np.zeros(20), np.zeros(10)
    x = problem.dataset.train.images.reshape(-1, 64) / 255.0
    labels = problem.dataset.train.labels
    steps, losses = len(labels) // 20, []
    for t in range(5 * steps):
        rows = slice(t % steps * 20, t % steps * 20 + 20)
        sums = x[rows] @ w + b
        h = np.tanh(sums) if activation == "tanh" else 1 / (1 + np.exp(-sums))
        slope = 1 - h**2 if activation == "tanh" else h * (1 - h)
        logits = h @ v + c
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        losses.append(-np.log(p[np.arange(20), labels[rows]]).mean())
        back = (p - np.eye(10)[labels[rows]]) / 20
        hidden = (back @ v.T) * slope
        rate = 0.5 * 300 / max(t, 300)
        w, v, b, c = (
            w - rate * (x[rows].T @ hidden + 2 * 3.1e-5 * w),
            v - rate * (h.T @ back + 2 * 3.1e-5 * v),
            b - rate * hidden.sum(axis=0),
            c - rate * back.sum(axis=0),
        )
    assert 5 * steps > 300  # it was annealed
    measured, final = trained(networks, problem, arch, 5)
    by_epoch = np.reshape(losses, (5, steps)).mean(axis=1)
    np.testing.assert_allclose([m.train_loss for m in measured], by_epoch, rtol=1e-4)
    valid = problem.dataset.valid
    h = valid.images.reshape(-1, 64) / 255.0 @ w + b
    h = np.tanh(h) if activation == "tanh" else 1 / (1 + np.exp(-h))
    accuracy = ((h @ v + c).argmax(axis=1) == valid.labels).mean()
    assert measured[-1].valid_accuracy == pytest.approx(accuracy, abs=1e-6)
    assert final.params == 64 * 20 + 20 + 20 * 10 + 10
    assert final.valid_accuracy == max(m.valid_accuracy for m in measured)
    assert measured[final.epochs - 1].valid_accuracy == final.valid_accuracy


def test_padding_changes_nothing(networks: ModuleType, problem: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, narrow = trained(networks, problem, ARCH, 3)
    monkeypatch.setattr(networks, "WIDTHS", (512,))
    _, wide = trained(networks, problem, ARCH, 3)
    assert narrow.test_loss == pytest.approx(wide.test_loss, rel=1e-4)
    assert narrow.test_accuracy == pytest.approx(wide.test_accuracy, abs=0.011)


def test_a_training_goes_on_where_another_objective_left_off(networks: ModuleType, problem: Any) -> None:
    trial = Trial(0, ARCH, 4, seed=3)
    whole = list(networks.HiddenLayerObjective(problem)(trial))
    objective = networks.HiddenLayerObjective(problem)
    begun = list(objective(trial.replace(budget=2)))
    started = trial.replace(measurements=tuple(begun))
    for going_on in (objective, networks.HiddenLayerObjective(problem)):
        values = [m.valid_loss for m in (*begun, *going_on(started))]
        assert values == [m.valid_loss for m in whole]


def test_training_stops_at_twice_the_best_epoch_and_tests_it(
    experiment: ModuleType, problem: Any, tmp_path: Path
) -> None:
    archs = [ARCH.set(learning_rate=2.0), ARCH.set(learning_rate=1e-3)]
    run = searched(experiment, problem, archs, 3, 40, tmp_path / "run")
    measured = [trial.measurements for trial in run.trials.values()]
    bests = [1 + int(np.argmax([m.valid_accuracy for m in of])) for of in measured]
    assert [final.epochs for final in run.finals] == bests
    assert [final.valid_accuracy for final in run.finals] == [
        of[best - 1].valid_accuracy for of, best in zip(measured, bests, strict=True)
    ]
    assert 3 < len(measured[0]) == 2 * bests[0] < 40
    assert len(measured[1]) == 3 > 2 * bests[1]


def test_a_diverged_trial_has_failed_and_is_tested_with_its_best_weights(
    experiment: ModuleType,
    networks: ModuleType,
    problem: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = searched(experiment, problem, [ARCH], 4, 4, tmp_path / "whole")

    def diverging(*arguments: Any) -> Any:
        step = networks.program(*arguments)

        def after(params: Any, train: Any, valid: Any, hyper: Any, t: Any) -> Any:
            params, averages = step(params, train, valid, hyper, t)
            return params, averages * (np.nan if t >= updates else 1)

        return after

    updates = 2 * (len(problem.dataset.train) // ARCH["batch_size"])
    monkeypatch.setattr(
        problem,
        "compile",
        lambda epoch, params, hyper, kind: diverging(
            epoch,
            params,
            *(problem.on_device(kind, split) for split in ("train", "valid")),
            hyper,
            np.float32(0),
        ),
    )
    run = searched(experiment, problem, [ARCH], 4, 4, tmp_path / "run")
    (trial,), (final,) = run.trials.values(), run.finals
    assert (trial.status, trial.spent) == ("failed", 2)
    assert trial.error == "the loss is not a number after 3 epochs"
    accuracies = [m.valid_accuracy for m in whole.trials[0].measurements[:2]]
    assert (final.epochs, final.valid_accuracy) == (1 + int(np.argmax(accuracies)), max(accuracies))
    assert 0 < final.test_accuracy < 1


def test_preprocessing(experiment: ModuleType, problem: Any) -> None:
    images = problem.dataset.train.images
    raw, normalised, components = (
        problem.inputs(kind)(images) for kind in ("raw", "normalised", "components")
    )
    assert (raw.min(), raw.max(), raw.dtype) == (0, 1, np.float32)
    varies = images.reshape(len(images), -1).std(axis=0) > 0
    assert 50 < varies.sum() < 64
    np.testing.assert_allclose(normalised.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(normalised.std(axis=0), varies, atol=1e-4)
    kept = components.std(axis=0) > 0
    covariance = np.cov(components[:, kept].T, bias=True)
    np.testing.assert_allclose(covariance, np.eye(kept.sum()), atol=2e-3)
    variances = np.linalg.svd(raw - raw.mean(axis=0), compute_uv=False) ** 2
    shares = np.cumsum(variances) / variances.sum()
    for energy in (0.5, 0.8, 0.95):
        arch = ARCH.set(preprocessing="components", energy=energy)
        _, hyper = problem.start(arch, 0)
        count = problem.inputs_used(arch)
        assert shares[count - 2] < energy <= shares[count - 1]
        assert hyper.inputs.sum() == count


# ------------------------------------------------------------------------------------------ the space


def test_trials_are_drawn_from_the_distributions_of_the_paper(experiment: ModuleType) -> None:
    archs = [experiment.SPACE.sample((0, k)) for k in range(600)]
    units = np.array([round(arch["hidden"]) for arch in archs])
    assert (units.min(), units.max()) >= (18, 900)
    assert units.max() <= 1024
    assert np.median(units) == pytest.approx(np.sqrt(18 * 1024), rel=0.15)
    assert np.median([arch["learning_rate"] for arch in archs]) == pytest.approx(0.1, rel=0.5)
    assert np.mean([arch["penalty"] for arch in archs]) == pytest.approx(0.5, abs=0.07)
    for kind in ("raw", "normalised", "components"):
        assert np.mean([arch["preprocessing"] == kind for arch in archs]) == pytest.approx(1 / 3, abs=0.07)


def test_a_grid_has_as_many_trials_as_the_random_search(experiment: ModuleType) -> None:
    sizes = {name: int(experiment.grid_of(scale).size().value) for name, scale in experiment.SCALES.items()}
    assert sizes == {"smoke": 8, "cpu": 64, "paper": 100}
    assert [experiment.SCALES[name].trials for name in sizes] == [8, 64, 256]
    arch = next(iter(experiment.grid_of(experiment.SCALES["cpu"]).enumerate()))
    experiment.SPACE.validate(arch)


def test_relevance_finds_the_choice_that_matters(experiment: ModuleType) -> None:
    archs = [experiment.SPACE.restrict(fix=("preprocessing=raw",)).sample((1, k)) for k in range(40)]
    matters = [np.sin(6 * experiment.unit_of(arch, "learning_rate")) for arch in archs]
    noise = np.random.default_rng(0).normal(0, 0.05, 40)
    finals = [
        SimpleNamespace(arch=arch, valid_accuracy=float(value))
        for arch, value in zip(archs, matters + noise, strict=True)
    ]
    found = experiment.relevance(SimpleNamespace(finals=finals), 2)
    medians = {name: np.median(values) for name, values in found.items()}
    assert max(medians, key=medians.__getitem__) == "learning_rate"
    assert "preprocessing" not in medians
    assert medians["learning_rate"] > 4 * np.median(list(medians.values()))


# ------------------------------------------------------------------------------------------ the whole


def started(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    script = ROOT / "experiments" / "bergstra_bengio_2012.py"
    command = [sys.executable, str(script), "--scale", "smoke", "--out", str(out), *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("bergstra") / "run"
    done = started(out)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


@pytest.mark.slow
def test_smoke(finished: tuple[Path, str], experiment: ModuleType, tmp_path: Path) -> None:
    out, printed = finished
    assert printed.startswith((out / "table.md").read_text())
    for name in ("efficiency.png", "relevance.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    for arm in ARMS:
        run = read_run(out / arm)
        assert run.done
        assert len(run.finals) == len(run.trials) == 8
        assert [final.arch for final in run.finals] == [trial.arch for trial in run.trials.values()]
        for final, trial in zip(run.finals, run.trials.values(), strict=True):
            assert final.epochs <= trial.spent <= 6
            assert 0.4 < final.test_accuracy < 1
    with pytest.raises(InputError, match="is not empty; go on with --resume or choose another --out"):
        experiment.main(experiment.Config(out=out))
    with pytest.raises(InputError, match="start it without --resume"):
        experiment.main(experiment.Config(out=tmp_path / "none", resume=True))


@pytest.mark.slow
@pytest.mark.parametrize("cut", ["final", "measurement"])
def test_a_killed_run_goes_on(finished: tuple[Path, str], tmp_path: Path, cut: str) -> None:
    whole, _ = finished
    out = tmp_path / "run"
    (out / ARMS[0]).mkdir(parents=True)
    for name in ("config.json", "env.json"):
        (out / ARMS[0] / name).write_bytes((whole / ARMS[0] / name).read_bytes())
    lines = (whole / ARMS[0] / "trials.jsonl").read_bytes().splitlines(keepends=True)
    last = [k for k, line in enumerate(lines) if f'"event": "{cut}"'.encode() in line][2]
    (out / ARMS[0] / "trials.jsonl").write_bytes(b"".join(lines[: last + 1]) + lines[last + 1][:9])
    done = started(out, "--resume")
    assert done.returncode == 0, done.stderr
    for arm in ARMS:
        assert record_difference(whole / arm, out / arm) is None
