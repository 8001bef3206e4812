"""Twenty lines of Python: an own space, strategy, objective and folder of images, searched; the same from the shell."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from sklearn.datasets import load_digits

ROOT = Path(__file__).parents[2]
PROGRAM = """\
import flax.linen as nn
import nas
from nas.strategies.base import FullBudget, drawn

class Net(nn.Module):
    width: int
    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(nn.relu(nn.Conv(self.width, (3, 3), (2, 2))(x)).mean((1, 2)))

SPACE = nas.SearchSpace("mine", {"width": nas.Categorical((4, 8, 16)), "learning_rate": nas.LogUniform(1e-2, 0.3)},
                        build=lambda arch, classes: Net(arch["width"]))

def narrow(space, config):
    return FullBudget(space, config, lambda i: (a for a in drawn(space, config.seed, i) if a["width"] < 16))

def thrifty(training, arch):
    for epoch in training:
        yield epoch.valid_accuracy - 1e-3 * arch["width"]
"""
CALL = """
if __name__ == "__main__":
    runs = nas.compare(SPACE, "images/", [narrow, "random", "hyperband"], thrifty, epochs=3, total_epochs=6,
                       engine={engine!r}, workers=2, test_seeds=0, out="runs")
    print(runs.to_pandas().to_json(orient="records"))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    digits: Any = load_digits()
    for k in range(200):
        of = tmp_path / "images" / str(digits.target[k])
        of.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[k] * 15).astype("uint8")).save(of / f"{k}.png")
    (tmp_path / "my.py").write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_is_twenty_lines() -> None:
    lines = (PROGRAM + CALL).splitlines()
    assert len([line for line in lines if line.strip()]) <= 20 + 1


@pytest.mark.parametrize("engine", ["local", pytest.param("ray", marks=pytest.mark.slow)])
def test_from_python(engine: str, folder: Path) -> None:
    (folder / "program.py").write_text(PROGRAM + CALL.format(engine=engine))
    done = subprocess.run([sys.executable, "program.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads(done.stdout.splitlines()[-1])
    assert {row["strategy"] for row in rows} == {"narrow", "random", "hyperband"}
    assert all(row["status"] in ("completed", "stopped") for row in rows)
    assert all(row["width"] < 16 for row in rows if row["strategy"] == "narrow")
    measured = [row for row in rows if row["epochs"]]  # the budget may end before a trial has begun
    assert len(measured) >= 6
    for row in measured:
        assert row["score"] == pytest.approx(row["valid_accuracy"] - 1e-3 * row["width"])


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["my.py:narrow", "hyperband"])
def test_from_the_shell_with_files_in_another_folder_and_resumed(strategy: str, folder: Path) -> None:
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    strategy = strategy.replace("my.py", "../my.py")
    command = [
        sys.executable,
        str(ROOT / "scripts/search.py"),
        "--space",
        "../my.py",
        "--dataset",
        "../images/",
    ]
    command += [
        "--strategy",
        strategy,
        "--objective",
        "../my.py:thrifty",
        "--epochs",
        "3",
        "--total-epochs",
        "6",
    ]
    command += ["--workers", "2", "--test-seeds", "1", "--out", "run"]
    done = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "best: ../my.py:width=" in done.stdout
    recorded = (elsewhere / "run" / "trials.jsonl").read_bytes()
    again = subprocess.run([*command, "--resume"], cwd=elsewhere, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr[-3000:]
    assert (elsewhere / "run" / "trials.jsonl").read_bytes() == recorded
    (folder / "images" / "0" / "more.png").write_bytes(next((folder / "images" / "1").iterdir()).read_bytes())
    changed = subprocess.run(
        [*command, "--resume"], cwd=elsewhere, capture_output=True, text=True, check=False
    )
    assert changed.returncode == 2
    assert "dataset_checksum" in changed.stderr.splitlines()[-1]
