"""The experiments with ImageNet's networks at their smallest scale, on CIFAR-10 read from its files; their plans."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nas.record import read_run
from nas.training.hyper import hyper_of
from search_spaces import SPACES
from search_spaces.zoo import ZOO

ROOT = Path(__file__).parents[2]
# Each with the options, and the folders and what the table is to have.
EXPERIMENTS = {
    "alexnet_2012": ("lit", "unlit"),
    "googlenet_2014": ("auxiliary", "bare"),
    "resnet_imagenet_2015": ("plain_18", "residual_18"),
    "densenet_2017": ("bc100", "plain40"),
}


def data_dir() -> str:
    places = (os.environ.get("TFDS_DATA_DIR"), ROOT.parent / "shared/data/tfds")
    found = next((str(path) for path in places if path and (Path(path) / "cifar10").is_dir()), None)
    if found is None:
        pytest.skip("no prepared cifar10: set TFDS_DATA_DIR")
    return found


def experiment(name: str, *options: object) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("XLA_")}
    return subprocess.run(
        [sys.executable, f"experiments/{name}.py", "--data-dir", data_dir(), *map(str, options)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def scales(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[Any, Any]:
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    return importlib.import_module(name).SCALES


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_scale_trains_networks_of_their_spaces(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the paper's scale, of which no more can be run here: what it would train is what was published."""
    for key, scale in scales(name, monkeypatch).items():
        for network in scale.networks:
            named = ZOO[network.name]
            arch = network.arch(scale.changes)
            SPACES[named.space].validate(arch)
            assert hyper_of(arch).batch_size >= 32
            paper = "paper" in key if isinstance(key, tuple) else key == "paper"
            if paper:
                different = {choice for choice in arch if arch[choice] != named.arch[choice]}
                assert different <= {"shortcut"}, f"{name} {key}: {network.label}"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "folders"), EXPERIMENTS.items())
def test_smoke(name: str, folders: tuple[str, ...], tmp_path: Path) -> None:
    out = tmp_path / name
    done = experiment(name, "--scale", "smoke", "--out", out)
    assert done.returncode == 0, done.stderr
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "result.json").is_file()
    table = (out / "table.md").read_text()
    assert table.strip() in done.stdout
    for folder in folders:
        run = read_run(out / folder)
        assert run.done
        final = run.finals[0]
        assert 0 < final.test_accuracy < final.test_top5_accuracy < 1
    # Resumed when it is done, it says the same again without training.
    again = experiment(name, "--scale", "smoke", "--out", out, "--resume")
    assert again.returncode == 0, again.stderr
    assert (out / "table.md").read_text() == table
