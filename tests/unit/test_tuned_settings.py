"""Settings chosen on another table: the script that chooses, the page that it made, the options it chooses among."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nas.errors import InputError
from nas.strategies import STRATEGIES
from nas.strategies.bananas import BananasConfig, standardised
from nas.strategies.bohb import BohbConfig, _Density

ROOT = Path(__file__).parents[2]


def rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def test_defaults_are_what_was_chosen() -> None:
    """Of the page that `python scripts/tune_strategies.py --page` wrote, with the defaults of now."""
    found = rows((ROOT / "docs" / "guide" / "tuned_settings.md").read_text())
    least: dict[str, tuple[float, str, str]] = {}
    for strategy, setting, value, *_, mean, _, _ in found:
        regret = float(mean.partition(" ")[0])
        least[strategy] = min(least.get(strategy, (np.inf, "", "")), (regret, setting, value))
    assert set(least) == {"reinforce", "bananas", "bohb"}
    for strategy, (_, setting, value) in least.items():
        assert str(getattr(STRATEGIES[strategy].config(), setting)) == value, strategy


@pytest.mark.slow
def test_the_script_says_the_same_twice_and_goes_on(tmp_path: Path) -> None:
    def started(*options: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, str(ROOT / "scripts" / "tune_strategies.py"), "--seeds", "2", *options]
        return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)

    done = started("--out", str(tmp_path / "a"))
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "a" / "table.md").read_text()
    assert len(rows(text)) == 10
    assert text in done.stdout
    again = started("--out", str(tmp_path / "a"))
    assert again.returncode == 2
    assert "is not empty; go on with --resume" in again.stderr
    assert started("--out", str(tmp_path / "a"), "--resume").stdout == done.stdout


def test_standardised_targets() -> None:
    found = standardised(np.array([0.5, -np.inf, 0.9, 0.7]))
    np.testing.assert_allclose(found, (np.array([0.5, 0.5, 0.9, 0.7]) - 0.65) / np.std([0.5, 0.5, 0.9, 0.7]))
    np.testing.assert_array_equal(standardised(np.array([0.5, 0.5])), [0, 0])
    with pytest.raises(
        InputError, match="strategy: targets: 'ranks' is not one of normal_scores, standardised"
    ):
        BananasConfig(targets="ranks")


@pytest.mark.parametrize("pseudo", [0.5, 1.0, 3.0])
def test_a_bandwidth_counts_each_value_as_if_so_many_trials_more_had_it(pseudo: float) -> None:
    """Alone, the density of a value is (trials that have it + pseudo) / (trials + pseudo * values)."""
    rows = np.array([[0.0]] * 5 + [[2.0]] * 2)
    points = np.concatenate([(rows == np.arange(4)).astype(float), np.ones((7, 1))], axis=1)
    density = _Density(rows, points, np.array([4]), np.zeros(1), pseudo)
    values = np.concatenate([np.eye(4), np.ones((4, 1))], axis=1)
    found = np.exp(density.log(values))
    expected = (np.array([5, 0, 2, 0]) + pseudo) / (7 + 4 * pseudo)
    np.testing.assert_allclose(found / found.sum(), expected)


def test_pseudo_trials_are_above_0() -> None:
    with pytest.raises(InputError, match="pseudo_trials=0 is not above 0"):
        BohbConfig(pseudo_trials=0)
