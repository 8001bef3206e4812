"""Bad input, as a user would give it: one clear line, a non-zero exit, results kept.

Scripts run in this process (`script` in conftest.py). Damaged records, full disks and dying workers are tested
where they are handled: test_record.py, test_run_ray.py, test_kill_resume.py.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


SEARCH = ("--space", "chain", "--dataset", "digits", "--engine", "local", "--epochs", "1", "--trials", "1")

WRONG = {
    "unknown option": (("search", "--sapce", "chain"), "Unrecognized options: --sapce"),
    "not a number": (("search", "--epochs", "many"), "--epochs"),
    "a table of a space without end": (
        ("make_table", "--space", "chain", "--dataset", "digits"),
        "space chain: dropout is continuous: --fix dropout=",
    ),
    "a table of no seeds": (("make_table", "--dataset", "digits", "--seeds", "0"), "seeds: 0 is below 1"),
    "unknown engine": (("search", "--engine", "spark"), "'spark'"),
    "unknown space": (("search", "--space", "chian"), "space: 'chian' is not one of chain"),
    "unknown strategy": (("search", *SEARCH, "--strategy", "rnadom"), "strategy: 'rnadom' is not one of grid"),
    "unknown, but nearly a strategy": (("search", *SEARCH, "--strategy", "rnadom"), "(did you mean random?)"),
    "unknown strategies": (("compare", "--strategies", "random", "foo"), "strategy: 'foo' is not one of"),
    "a strategy twice": (("compare", "--strategies", "random", "random"), "each is to be named once"),
    "no strategies": (("compare", "--strategies"), "strategies"),
    "unknown objective": (("compare", "--objective", "tabel"), "objective: 'tabel' is not one of train, table"),
    "an option of training over a table": (
        ("compare", "--objective", "table", "--space", "nasbench201", "--engine", "local"), "options: --engine"),
    "an option of tables in training": (("compare", "--budget-seconds", "5"), "Unrecognized options: --budget-seconds"),
    "no table": (("compare", "--objective", "table", "--seeds", "2"), "table: say --table or --space"),
    "a table that is not there": (
        ("compare", "--objective", "table", "--table", "none.npz"), "table: there is no file none.npz"),
    "no table of a space": (
        ("compare", "--objective", "table", "--space", "natssize"),
        "table natssize: say where natssize.npz is",
    ),
    "unknown data set": (("search", *SEARCH, "--dataset", "cifra10"), "cifra10"),
    "a data set not prepared": (("search", *SEARCH, "--dataset", "cifar100", "--data-dir", "here"), "prepare_data.py"),
    "unknown choice": (("search", *SEARCH, "--fix", "colour=red"), "colour"),
    "impossible value": (("search", *SEARCH, "--fix", "depth=9"), "chain: depth=9 is not one of 1..6"),
    "impossible number": (("search", *SEARCH, "--fix", "learning_rate=5"), "learning_rate"),
    "not an assignment": (("search", *SEARCH, "--fix", "depth"), "depth"),
    "several values fixed": (("search", *SEARCH, "--fix", "depth=1,2"), "chain: cannot fix depth=1,2: give one value"),
    "an empty narrowing": (("search", *SEARCH, "--narrow", "width="), "width"),
    "a range the wrong way": (("search", *SEARCH, "--narrow", "learning_rate=0.1..0.01"), "learning_rate"),
    "no trials": (("search", *SEARCH, "--trials", "0"), "trials=0 is less than 1"),
    "no epochs": (("search", *SEARCH, "--epochs", "0"), "epochs=0 is less than 1"),
    "eta of one": (("search", *SEARCH, "--strategy", "hyperband", "--eta", "1"), "eta=1 is less than 2"),
    "an empty grid": (("search", *SEARCH, "--strategy", "grid", "--grid-points", "0"), "grid_points=0"),
    "a grid without end": (
        ("search", *SEARCH[:-2], "--strategy", "grid"), "--trials or --total-epochs"),
    "no budget": (("search", *SEARCH, "--total-epochs", "0"), "total_epochs: 0 is below 1"),
    "unknown dtype": (("search", *SEARCH, "--dtype", "float8"), "dtype: 'float8' is not one of"),
    "impossible fraction": (("search", *SEARCH, "--valid-fraction", "1.5"), "valid_fraction"),
    "a subset too large": (("search", *SEARCH, "--subset", "100000"), "subset"),
    "hyper that the space has": (("search", *SEARCH, "--hyper", "learning_rate=1"), "hyper: learning_rate is a choice"),
    "hyper unknown": (("search", *SEARCH, "--hyper", "momentum=1"), "hyper: 'momentum' is not one of"),
    "nothing to resume": (("search", *SEARCH, "--out", "nowhere", "--resume"), "nowhere: no run to resume"),
    "more devices than there are": (("search", *SEARCH, "--devices", "64"), "devices: 64"),
    "no such architecture": (("train", "--arch", "lenet"), "arch: lenet is neither"),
    "not an architecture": (("train", "--arch", "chain:depth=9"), "depth=9"),
    "architecture of no space": (("train", "--arch", "chian:depth=1"), "chian"),
    "no such run": (("report", "nowhere"), "nowhere"),
    "no run named": (("report",), "no run folder given"),
    "a run without a name": (("report", ""), "an argument: is empty"),
    "no scores": (("score", "--dataset", "digits", "--scores"), "scores: none given; name all, or some of params"),
    "supernet of a space without": (
        ("search", "--dataset", "digits", "--space", "resnet", "--strategy", "darts"),
        "space: resnet cannot be searched by a supernet"),
    "supernet without its strategy": (
        ("search", *SEARCH, "--strategy", "random", "--supernet", "channels=4"),
        "--supernet: random has no such option, only darts, darts_first"),
    "another strategy's option": (
        ("search", *SEARCH, "--strategy", "tpe", "--population", "5"),
        "--population: tpe has no such option, only evolution"),
    "another strategy's option in a comparison": (
        ("compare", "--strategies", "random", "tpe", "--eta", "3"),
        "--eta: random, tpe has no such option, only successive_halving, hyperband, asha, bohb"),
    "another strategy's switch": (
        ("search", *SEARCH, "--no-grid-shuffle"), "--no-grid-shuffle: random has no such option, only grid"),
    "a seed too large": (("search", *SEARCH, "--seed", "1" + 20 * "0"), "seed=100000000000000000000 is more than"),
    "a split seed too large": (
        ("search", *SEARCH, "--split-seed", "1" + 20 * "0"), "split_seed: 100000000000000000000 is not from 0 to"),
    "a seed of a training too large": (
        ("train", "--arch", "lenet5", "--dataset", "digits", "--seed", "1" + 20 * "0"), "seed: 100000000000000000000"),
    "a latency predicted from nothing": (
        ("search", *SEARCH, "--strategy", "nsga2", "--objective", "valid_accuracy", "predicted_latency_ms"),
        "predicted_latency_ms: say --latency-predictor FOLDER"),
    "too few networks to predict from": (
        ("predict_latency", "--networks", "3"), "networks: 3 is below 20"),
    "an empty name": (("search", *SEARCH, "--out", ""), "--out: is empty"),
    "an empty name behind a sign": (("search", *SEARCH, "--out="), "--out: is empty"),
    "a name too long": (("search", *SEARCH, "--out", "x" * 300), "File name too long"),
    "a training of no epochs": (("train", "--arch", "lenet5", "--dataset", "digits", "--epochs", "0"), "epochs: 0 is"),
    "no trainings": (("train", "--arch", "lenet5", "--dataset", "digits", "--seeds", "0"), "seeds: at least one"),
    "fewer than no trainings": (("train", "--arch", "lenet5", "--dataset", "digits", "--seeds", "-2"), "seeds: at"),
    "no number of accelerators": (("search", *SEARCH, "--gpus-per-worker", "nan"), "gpus_per_worker: nan is not"),
    "more cores than there are": (
        ("search", *SEARCH, "--engine", "ray", "--workers", "1", "--cpus-per-worker", "99999"),
        "cluster: cpus_per_worker=99999 is more than the"),
    "a table of fewer than no epochs": (
        ("make_table", "--dataset", "digits", "--epochs", "-1"), "epochs: -1 is below 1"),
    "supernet strategy unknown": (
        ("search", "--space", "nasbench201", "--strategy", "dartz"), "strategy: 'dartz' is not one of"),
    "supernet too small": (
        ("search", "--dataset", "digits", "--space", "nasbench201", "--strategy", "darts", "--supernet", "channels=0"),
        "supernet: channels=0 is below 1"),
    "supernet setting unknown": (
        ("search", "--dataset", "digits", "--space", "darts", "--strategy", "gdas", "--supernet", "width=3"),
        "supernet: 'width' is not one of"),
    "an image beyond all memory": (
        ("describe", "mlp", "--static", "--input", "999999x999999x999999"), "input 999999x999999x999999: an image has"),
    "more seeds than anybody waits for": (
        ("compare", "--objective", "table", "--space", "minichain", "--seeds", "1" + "0" * 30), "is above 100000"),
    "more trainings than anybody waits for": (
        ("train", "--arch", "lenet5", "--dataset", "digits", "--seeds", "1" + "0" * 30), "is above 100000"),
    "images too large": (("search", *SEARCH, "--image-size", "1" + "0" * 30), "is more than 10000"),
    "scores from a seed too large": (("score", *SEARCH[:4], "--seed", "1" + "0" * 30), "is not one of 0..4294967295"),
    "more scores than networks": (
        ("score", "--space", "minichain", "--dataset", "digits", "--architectures", "361"), "more than the 360 of"),
    "a drawing of a name too long": (("describe", "lenet5", "--static", "--draw", "x" * 300 + ".png"), "too long"),
    "a report of a name too long": (("report", "x" * 5000), "too long"),
    "a file that is no space": (("search", "--space", "none.py"), "space: no file none.py"),
    "an objective that is none": (
        ("search", *SEARCH, "--objective", "valid_accuracy", "latncy_ms"), "did you mean latency_ms?"),
    "a constraint that is none": (("search", *SEARCH, "--constraint", "params=3"), "'params=3' is not NAME<NUMBER"),
    "no such device to measure on": (
        ("search", *SEARCH, "--objective", "valid_accuracy", "latency_ms", "--latency-device", "abacus"),
        "latency_device: 'abacus' is not one of cpu"),
    "a strategy for one objective": (
        ("search", *SEARCH, "--objective", "valid_accuracy", "params", "--strategy", "evolution"),
        "evolution takes one objective; for several there are grid, random"),
    "a device's column that the table lacks": (
        ("compare", "--objective", "table", "valid_accuracy", "latency_ms:phone", "--space", "minichain"),
        "table minichain: has no latency_ms:phone"),
    "a constraint that no network of a table keeps": (
        ("compare", "--space", "minichain", "--objective", "table", "valid_accuracy", "--constraint", "params<1"),
        "constraint: params<1: none of the 360 architectures of table minichain keeps it"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_one_line(script, case, tmp_path):
    arguments, says = WRONG[case]
    code, _, err = script(*arguments)
    assert code == 2
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    assert says in lines[0]
    assert "Traceback" not in err
    assert not list(tmp_path.rglob("trials.jsonl"))  # nothing was begun


def test_a_run_folder_is_never_overwritten(script):
    assert script("search", *SEARCH, "--out", "run", "--test-seeds", "0")[0] == 0
    before = Path("run/trials.jsonl").read_bytes()
    code, _, err = script("search", *SEARCH, "--out", "run", "--test-seeds", "0")
    assert code == 2
    assert "run: holds a run already; go on with --resume or choose another --out" in err
    code, _, err = script("search", *SEARCH, "--out", "run", "--resume", "--seed", "5")
    assert code == 2
    assert "seed" in err
    assert Path("run/trials.jsonl").read_bytes() == before
    assert script("search", *SEARCH, "--out", "run", "--test-seeds", "0", "--resume")[0] == 0
    assert Path("run/trials.jsonl").read_bytes() == before


def test_a_damaged_record_is_named_by_line(script):
    assert script("search", *SEARCH, "--out", "run", "--test-seeds", "0")[0] == 0
    lines = Path("run/trials.jsonl").read_text().splitlines(keepends=True)
    Path("run/trials.jsonl").write_text(lines[0] + "{damaged\n" + "".join(lines[1:]))
    for arguments in (
        ("report", "run"),
        ("search", *SEARCH, "--out", "run", "--resume", "--test-seeds", "0"),
    ):
        code, _, err = script(*arguments)
        assert code == 2
        assert "trials.jsonl:2" in err


def test_a_loss_that_is_not_a_number_is_a_failed_trial(script):
    """Every network of this space overflows at once: the search ends well, says so, and tests nothing."""
    Path("hot.py").write_text(
        "import dataclasses\nfrom search_spaces import SPACES\n"
        "from nas.space import Categorical\n"
        "chain = SPACES['chain']\n"
        "hot = Categorical((1e12,), changes_program=False)\n"
        "SPACE = dataclasses.replace(chain, name='hot', choices={**chain.choices, 'learning_rate': hot})\n"
    )
    code, _, err = script(
        "search",
        "--space",
        "hot.py",
        *SEARCH[2:],
        "--trials",
        "2",
        "--fix",
        "normalisation=none",
        "--out",
        "run",
    )
    assert code == 2
    assert "no trial could be measured" in err
    ends = [json.loads(line) for line in Path("run/trials.jsonl").read_text().splitlines()]
    ends = [event for event in ends if event["event"] == "end"]
    assert [event["status"] for event in ends] == ["failed", "failed"]
    assert all("loss is" in event["error"] for event in ends)


def test_a_network_too_large_for_memory_is_a_failed_trial(script):
    Path("huge.py").write_text(
        "from search_spaces.chain import chain_space\nSPACE = chain_space(widths=(1 << 21,), name='huge')\n"
    )
    code, _, err = script(
        "search", "--space", "huge.py", *SEARCH[2:], "--fix", "depth=2", "kernel=5", "--out", "run"
    )
    assert code == 2
    assert "GiB" in Path("run/trials.jsonl").read_text()
    assert "no trial could be measured" in err


SHRINKING = """
import flax.linen as nn
from nas.space import Integer, SearchSpace

class Stack(nn.Module):
    depth: int

    @nn.compact
    def __call__(self, x, *, train=False):
        for i in range(self.depth):
            x = nn.max_pool(nn.Conv(4, (3, 3), padding="VALID", name=f"conv_{i}")(x), (2, 2), (2, 2))
        return nn.Dense(10)(x.mean((1, 2)))

SPACE = SearchSpace("shrinking", {"depth": Integer(1, 4)}, build=lambda arch, classes: Stack(arch["depth"]))
"""


def test_maps_without_pixels_are_a_failed_trial_and_no_named_network(script):
    """Images of 8x8: conv_0 leaves 6, its pooling 3, conv_1 one pixel, and its pooling none."""
    Path("shrinking.py").write_text(SHRINKING)
    code, _, err = script(
        "search", "--space", "shrinking.py", *SEARCH[2:], "--fix", "depth=2", "--out", "run"
    )
    assert code == 2
    assert "no trial could be measured" in err
    assert "leaves no pixels of an image of 8x8x1: [0, 0, 4]" in Path("run/trials.jsonl").read_text()
    for command in (
        ("describe", "shrinking.py:depth=4", "--input", "8x8x1"),
        ("train", "--arch", "shrinking.py:depth=4", *SEARCH[2:4], "--out", "end"),
    ):
        code, _, err = script(*command)
        assert code == 2
        line = err.splitlines()[-1]
        assert "leaves no pixels of an image of 8x8x1" in line


def test_scores_into_a_file(script):
    Path("taken").write_text("")
    code, _, err = script(
        "score", *SEARCH[:4], "--scores", "params", "--architectures", "1", "--out", "taken"
    )
    assert code == 2
    assert err.splitlines() == ["error: taken: File exists"]


def test_a_folder_of_the_cache_that_others_can_write_to_ends_the_search(script, monkeypatch, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    cache.chmod(0o777)
    monkeypatch.setenv("NAS_CACHE_DIR", str(cache))
    code, _, err = script("search", *SEARCH, "--out", "run")
    assert code == 2
    [line] = err.splitlines()
    assert f"error: cache: {cache} is writable by others (mode 0777)" in line
    assert not Path("run").exists()


def test_a_full_disk(tmp_path):
    """A file-size limit stands for a full disk: the write stops half way, what was recorded stays readable."""
    program = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from nas.record import Record\nfrom nas.space import Architecture\nfrom nas.trial import Trial\n"
        "record = Record.create(sys.argv[1], {'strategy': 'random', 'seed': 0}, env={})\n"
        "for i in range(1000): record.start(Trial(i, Architecture({'a': i}), 1, 0))\n"
    )
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "run")], capture_output=True, text=True, timeout=120
    )
    assert done.returncode != 0
    assert "InputError" in done.stderr
    from nas.record import Record, read_run

    kept = len(read_run(tmp_path / "run").trials)
    assert kept > 5
    with Record.resume(tmp_path / "run", {"strategy": "random", "seed": 0}) as record:
        assert len(record.trials) == kept


def test_an_unwritable_folder(script):
    Path("file").write_text("")
    code, _, err = script("search", *SEARCH, "--out", "file/run")
    assert code == 2
    assert "file/run" in err
    assert len(err.strip().splitlines()) == 1


def test_ctrl_c_is_one_line_and_resumable(script, monkeypatch):
    from nas.objectives.train import TrainObjective

    whole = TrainObjective.__call__

    def interrupted(self, trial):
        steps = whole(self, trial)
        yield next(steps)
        if trial.id == 1:
            raise KeyboardInterrupt
        yield from steps

    options = (*SEARCH[:-4], "--epochs", "2", "--trials", "3", "--out", "run", "--test-seeds", "0")
    with monkeypatch.context() as patched:
        patched.setattr(TrainObjective, "__call__", interrupted)
        code, _, err = script("search", *options)
    assert code == 130
    assert err.strip().splitlines()[-1].startswith("error: interrupted")
    assert script("search", *options, "--resume")[0] == 0
    assert script("search", *(*options[:-3], "whole", *options[-2:]))[0] == 0
    from nas.record import record_difference

    assert record_difference("run", "whole") is None


def test_a_constraint_that_every_network_violates_is_one_line_at_the_end(script):
    arguments = (
        "--objective",
        "valid_accuracy",
        "--constraint",
        "params<10",
        "--trials",
        "3",
        "--out",
        "run",
    )
    code, out, err = script("search", *SEARCH, *arguments)
    assert code == 2
    assert "| random" in out
    said = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert "run: none of the 3 networks measured keeps params<10; the nearest, trial" in said[0]
    assert "Traceback" not in err
    assert script("report", "run")[0] == 0


def test_an_objective_that_is_not_a_number_fails_its_trials_alone(script):
    Path("own.py").write_text(
        "def cost(arch):\n    return float('nan') if arch['depth'] > 3 else 1.0 * arch['depth']\n"
    )
    arguments = (
        "--objective",
        "params",
        "own.py:cost:min",
        "--trials",
        "12",
        "--out",
        "run",
        "--test-seeds",
        "0",
    )
    code, out, err = script("search", *SEARCH[:-2], *arguments)
    assert code == 0, err
    assert "front: chain:" in out
    lines = [json.loads(line) for line in Path("run/trials.jsonl").read_text().splitlines()]
    errors = {line["error"] for line in lines if line.get("status") == "failed"}
    assert errors == {"own.py:cost is nan, not a finite number"}
    assert script("report", "run")[0] == 0
