"""The ledger of claims: its rule, what makes a result stale, what a run leaves, the page and its command."""

from __future__ import annotations

import dataclasses
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import _ledger
from experiments._ledger import Claim, Number, Result, protocol_of, read_result, verdict
from nas.errors import InputError
from nas.report.statistics.intervals import Interval

ROOT = Path(__file__).parents[2]
EXPERIMENTS = _ledger.experiments()


def result(mean: float, low: float, high: float, scale: str = "paper") -> Result:
    numbers = {"n": Interval(mean, low, high, 5)}
    return Result("e", scale, "python e.py", "c", "abc", {"jax": "1"}, "2 cores", 1.0, False, 5, numbers)


PUBLISHED = Number("n", "a number", 93.70, 2, 0.36, 500)
ABOVE = Number("n", "a number", side="above", bound=1.0)
BOTH = dataclasses.replace(PUBLISHED, side="below", bound=94.0)


@pytest.mark.parametrize(
    ("number", "ours", "says"),
    [
        (PUBLISHED, None, "not run at scale"),
        (PUBLISHED, result(93.70, 93.6, 93.8, "smoke"), "not run at scale"),
        (dataclasses.replace(PUBLISHED, name="m"), result(93.70, 93.6, 93.8), "not run at scale"),
        (PUBLISHED, result(93.72, 93.70, 93.74), "reproduced"),
        (PUBLISHED, result(93.72, 93.70, 93.74)._replace(protocol="abd"), "stale"),
        # 0.06 apart: more than 1.96 0.36 / sqrt(500) = 0.032 and 0.02 as squares, and half of the last digit
        (PUBLISHED, result(93.76, 93.74, 93.78), "not reproduced"),
        (PUBLISHED, result(93.744, 93.744, 93.744), "not reproduced"),
        (PUBLISHED, result(93.7365, 93.7365, 93.7365), "reproduced"),
        (dataclasses.replace(PUBLISHED, runs=1), result(94.3, 94.3, 94.3), "reproduced"),
        (PUBLISHED, result(93.72, 93.70, 93.74, "cpu"), "not reproduced"),
        (dataclasses.replace(PUBLISHED, comparable=("cpu",)), result(93.7, 93.6, 93.8, "cpu"), "reproduced"),
        (BOTH, result(93.2, 93.0, 93.4), "direction reproduced"),
        (BOTH, result(92.5, 92.4, 94.1), "not reproduced"),
        (ABOVE, result(2.0, 1.5, 2.5, "cpu"), "direction reproduced"),
        (ABOVE, result(2.0, 0.9, 3.1), "not reproduced"),
        (ABOVE, result(2.0, math.nan, math.nan), "not reproduced"),
        (PUBLISHED, result(93.70, math.nan, math.nan), "not reproduced"),
    ],
)
def test_the_rule(number: Number, ours: Result | None, says: str) -> None:
    assert verdict(number, ours, "abc") == says
    assert says in _ledger.VERDICTS


CODE = '''"""A docstring."""
from _helper import value
from _ledger import Claim

CLAIM = Claim(says="one thing")


def measure():
    """Another."""
    return value + 1  # a comment
'''


def test_a_result_is_stale_when_code_changes_and_not_when_words_do(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(_ledger, "ROOT", tmp_path)
    file, helper = tmp_path / "e.py", tmp_path / "_helper.py"
    (tmp_path / "more").mkdir()
    covered = tmp_path / "more" / "deep.py"

    def hashed(code: str = CODE, help: str = "value = 1\n", more: str = "x = 1\n") -> str:
        for path, text in ((file, code), (helper, help), (covered, more)):
            path.write_text(text)
        return protocol_of(file, ("more",))

    first = hashed()
    assert re.fullmatch("[0-9a-f]{12}", first)
    assert hashed(CODE.replace("A docstring", "Other words").replace("Another", "Words")) == first
    assert hashed(CODE.replace("# a comment", "").replace("\n\n\ndef", "\n\ndef")) == first
    assert hashed(CODE.replace("one thing", "another")) == first
    assert hashed(CODE.replace("value + 1", "value + 2")) != first
    assert hashed(help="value = 2\n") != first
    assert hashed(more="x = 2\n") != first
    covered.unlink()
    (tmp_path / "more").rmdir()
    with pytest.raises(InputError, match="covers more, which is not there"):
        protocol_of(file, ("more",))


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_has_its_claim_as_data(path: Path) -> None:
    claim = _ledger.claim_of(path)
    assert claim.experiment == path.stem
    assert claim.paper
    assert claim.says
    names = [number.name for number in claim.numbers]
    assert names
    assert len(set(names)) == len(names)
    assert "|" not in "".join(number.says for number in claim.numbers)
    protocol_of(path, claim.covers)
    for result in _ledger.results_of(path.stem).values():
        assert set(result.numbers) <= set(names)


def test_what_a_run_leaves(tmp_path, monkeypatch) -> None:
    claim = Claim("lenet_1998", "p", "w", "s", "h", (PUBLISHED,))
    words = [
        "/somewhere/experiments/lenet_1998.py",
        "--scale",
        "cpu",
        "--out",
        "/home/me/x",
        "--seed",
        "3",
        "--resume",
    ]
    monkeypatch.setattr(sys, "argv", words)
    found = {"n": Interval(1.23456789, math.nan, math.inf, 1)}
    _ledger.leave_result(tmp_path, claim, "cpu", found, seeds=4, resumed=True)
    left = read_result(tmp_path / "result.json")
    assert left.command == "python experiments/lenet_1998.py --scale cpu --seed 3"
    assert (left.experiment, left.scale, left.seeds, left.resumed) == ("lenet_1998", "cpu", 4, True)
    assert left.protocol == protocol_of(ROOT / "experiments" / "lenet_1998.py")
    assert left.numbers["n"].mean == 1.23457
    assert math.isnan(left.numbers["n"].low)
    assert math.isnan(left.numbers["n"].high)
    assert {"python", "jax"} <= set(left.versions)
    assert "/home" not in (tmp_path / "result.json").read_text()
    with pytest.raises(ValueError, match="m: not among the claim's numbers"):
        _ledger.leave_result(tmp_path, claim, "cpu", {"m": found["n"]}, seeds=4, resumed=True)
    (tmp_path / "result.json").write_text("[1")
    with pytest.raises(InputError, match="is not the result of an experiment"):
        read_result(tmp_path / "result.json")


def test_intervals() -> None:
    found = _ledger.of_images(0.01, 10_000)  # Wilson's, as tables have it
    assert (found.low, found.high) == pytest.approx((0.8226, 1.2153), abs=1e-3)
    assert _ledger.of_images(0.0, 100).low == pytest.approx(0, abs=1e-9)
    one, other = Interval(5.0, 2.0, 8.0, 9), Interval(1.0, -3.0, 5.0, 3)
    assert _ledger.difference(one, other) == Interval(4.0, -1.0, 9.0, 3)


def ledger(*options: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, str(ROOT / "scripts" / "ledger.py"), *options]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_the_page_has_every_number(tmp_path) -> None:
    out = tmp_path / "ledger.md"
    done = ledger("--out", str(out))
    assert done.returncode == 0, done.stderr
    text = out.read_text()
    for path in EXPERIMENTS:
        claim = _ledger.claim_of(path)
        for number in claim.numbers:
            assert f"| {path.stem} | {number.says} |" in text
    verdicts = [line.split("|")[-2].strip() for line in text.splitlines() if line.count("|") == 8][2:]
    assert set(verdicts) <= set(_ledger.VERDICTS)
    assert ledger("--out", str(tmp_path / "none.md"), "--check").returncode == 2
    bad = ledger("--add", str(tmp_path))
    assert bad.returncode == 2
    assert bad.stderr.strip().endswith("has no result.json; an experiment leaves it when it ends")
    assert "Traceback" not in bad.stderr


def test_the_page_in_the_repository_names_every_experiment() -> None:
    text = (ROOT / "docs" / "ledger.md").read_text()
    assert all(f"| {path.stem} |" in text for path in EXPERIMENTS)
