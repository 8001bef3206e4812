"""The cat neuron experiment: what it counts as a detector, and that it runs, is killed and goes on."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

ROOT = Path(__file__).parents[2]
FOLDER = str(ROOT / "experiments")


@pytest.fixture(scope="module")
def experiment() -> Any:
    sys.path.insert(0, FOLDER)
    try:
        return importlib.import_module("cat_neuron_2012")
    finally:
        sys.path.remove(FOLDER)


@pytest.fixture
def answers() -> tuple[np.ndarray, np.ndarray]:
    """Responses [600, 300] to images of three classes; a neuron for each class, of 1 from below its threshold."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 600)
    responses = rng.standard_normal((600, 300)).astype(np.float32)
    for label, (neuron, shift) in enumerate(((7, 2.0), (290, -2.5), (100, 3.0))):
        responses[labels == label, neuron] += shift
    return responses, labels


def test_the_detector_is_the_best_of_all_neurons_thresholds_and_directions(experiment, answers):
    responses, labels = answers
    found = experiment.choose(responses, labels, 3)
    assert [(detector.neuron, detector.direction) for detector in found] == [(7, 1), (290, -1), (100, 1)]
    for label, detector in enumerate(found):
        own = responses[:, detector.neuron]
        thresholds = np.linspace(own.min(), own.max(), experiment.THRESHOLDS + 2)[1:-1]
        scores = [
            balanced_accuracy_score(labels == label, detector.direction * own > detector.direction * t)
            for t in thresholds
        ]
        assert detector.threshold == pytest.approx(thresholds[int(np.argmax(scores))], abs=1e-5)


def test_the_report_is_sklearns_and_its_intervals_are_those_of_a_share(experiment, answers):
    responses, labels = answers
    found = experiment.choose(responses, labels, 3)
    other = np.random.default_rng(1).permutation(labels)
    rng = np.random.default_rng(0)
    noise = [experiment.Detector(0, 0.0, 1)] * 3
    reading = experiment.report([responses, responses], [found, noise], labels, rng)
    assert reading.accuracy.shape == reading.area.shape == (4, 2)
    for label, detector in enumerate(found):
        said = detector.detects(responses)
        assert reading.accuracy[label, 0] == pytest.approx(balanced_accuracy_score(labels == label, said))
        scores = detector.direction * responses[:, detector.neuron]
        assert reading.area[label, 0] == pytest.approx(roc_auc_score(labels == label, scores))
        # The variance of a mean of two independent shares.
        parts = [np.mean(said[labels == label]), np.mean(said[labels != label])]
        sizes = [np.sum(labels == label), np.sum(labels != label)]
        deviation = np.sqrt(sum(p * (1 - p) / n for p, n in zip(parts, sizes, strict=True))) / 2
        assert reading.resampled[:, label, 0].std() == pytest.approx(deviation, rel=0.1)
    np.testing.assert_allclose(reading.accuracy[3], reading.accuracy[:3].mean(axis=0))
    np.testing.assert_allclose(reading.resampled.mean(axis=0), reading.accuracy, atol=2e-3)
    chance = experiment.report([responses], [found], other, rng)
    assert abs(chance.accuracy[3, 0] - 0.5) < 0.05


def test_linear_filters_are_patches_where_they_stand(experiment):
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    filters = experiment.patches(
        images, 30, np.random.default_rng(1), np.full(3, 0.5, np.float32), np.full(3, 0.2, np.float32)
    )
    np.testing.assert_allclose(np.linalg.norm(filters, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(filters.sum(axis=1), 0, atol=1e-4)
    inside = (filters.reshape(30, 8, 8, 3) != 0).any(axis=3).sum(axis=(1, 2))
    assert inside.tolist() == [64, 16, 4] * 10


@pytest.fixture
def cifar10() -> Path:
    folder = Path(os.environ.get("TFDS_DATA_DIR", ROOT.parent / "shared" / "data" / "tfds"))
    if not (folder / "cifar10").is_dir():
        pytest.skip("no cifar10: TFDS_DATA_DIR is not set and there is no ../shared/data/tfds")
    return folder


def command(out: Path, data: Path, *more: str) -> list[str]:
    script = ROOT / "experiments" / "cat_neuron_2012.py"
    return [
        sys.executable,
        str(script),
        "--scale",
        "smoke",
        "--out",
        str(out),
        "--data-dir",
        str(data),
        *more,
    ]


@pytest.mark.slow
def test_smoke_killed_behind_a_checkpoint_goes_on(cifar10, tmp_path):
    out = tmp_path / "run"
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command(out, cifar10), stdout=log, stderr=log, start_new_session=True)
        limit = time.monotonic() + 120
        while process.poll() is None and not list(out.glob("checkpoints/*/1")):
            assert time.monotonic() < limit, "no checkpoint"
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)
    begun = (out / "trials.jsonl").read_bytes()
    again = subprocess.run(command(out, cifar10), capture_output=True, text=True, timeout=120)
    assert again.returncode == 2
    assert again.stderr.startswith("error: ")
    resumed = subprocess.run(command(out, cifar10, "--resume"), capture_output=True, text=True, timeout=240)
    assert resumed.returncode == 0, resumed.stderr
    assert (out / "trials.jsonl").read_bytes().startswith(begun)
    table = (out / "table.md").read_text()
    assert table in resumed.stdout
    assert [row.split("|")[1].strip() for row in table.splitlines()[2:13]][3::7] == ["cat", "mean"]
    values = json.loads((out / "table.json").read_text())
    assert np.shape(values["balanced_accuracy"]) == (11, 3)
    assert (out / "neurons.png").read_bytes().startswith(b"\x89PNG")
