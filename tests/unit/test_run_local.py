"""The engine in this process, and what it shares with the other one."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nas.errors import InputError
from nas.objectives.base import TrialFailed
from nas.record import Record, Run, record_difference
from nas.run import local
from nas.run.driver import (
    MAX_CONSECUTIVE_FAILURES,
    BudgetSpent,
    Ended,
    Event,
    Measured,
    Started,
    describe_error,
    one_line,
)
from nas.strategies import STRATEGIES, combined_config
from nas.trial import Measurement, Trial
from tests.synthetic import SPACE, Setup, units_done

R = 9
Config: Any = combined_config(STRATEGIES.values())
CONFIGS: dict[str, dict[str, Any]] = {
    "grid": {"trials": 6},
    "random": {"trials": 6},
    "successive_halving": {},
    "hyperband": {},
    "asha": {"trials": 12},
    "tpe": {"trials": 7, "startup": 4},
    "evolution": {"trials": 7, "population": 4},
    "local_search": {"trials": 7},
    "reinforce": {"trials": 7},
    "bananas": {"trials": 7, "startup": 4},
    "bohb": {},
}
FAULTS: dict[str, Any] = {"raises": {2: 1, 5: 3}, "memory": (4,), "nan": (7,), "unsaved": {1: 1, 6: 3}}


def search(
    folder: Path,
    strategy: str,
    *,
    resume: bool = False,
    each: int = 1,
    objective: Any = None,
    total_epochs: int | None = None,
    on_event: Callable[[Event], None] | None = None,
    **settings: Any,
) -> Run:
    """A search of ``SPACE``; ``settings`` are those of the strategy, else of the objective's faults."""
    names = {field.name for field in dataclasses.fields(Config)}
    config = Config(epochs=R, **{k: v for k, v in settings.items() if k in names})
    setup = Setup(folder.with_suffix(".log"), **{k: v for k, v in settings.items() if k not in names})
    opened = Record.resume if resume else Record.create
    with opened(folder, {"seed": config.seed}, env={}, fsync=False) as record:
        return local.execute(
            STRATEGIES[strategy](SPACE, config),
            objective or setup(folder / "checkpoints"),
            record,
            epochs=R,
            total_epochs=total_epochs,
            trials_per_program=each,
            on_event=on_event,
        )


def statuses(run: Run) -> dict[int, str]:
    return {trial.id: trial.status for trial in run.trials.values()}


def cut(source: Path, target: Path, lines: int) -> Path:
    """A run killed after so many lines of ``source``'s record; its checkpoints are lost as well."""
    Record.create(target, {"seed": 0}, env={}, fsync=False).close()
    whole = (source / "trials.jsonl").read_bytes().splitlines(keepends=True)
    (target / "trials.jsonl").write_bytes(b"".join(whole[:lines]))
    return target


def test_full_budget_trials_are_completed_and_rungs_stop_the_others(tmp_path: Path) -> None:
    run = search(tmp_path / "random", "random", trials=4)
    assert statuses(run) == dict.fromkeys(range(4), "completed")
    assert [trial.spent for trial in run.trials.values()] == [R] * 4
    run = search(tmp_path / "halving", "successive_halving")
    assert sorted(trial.spent for trial in run.trials.values()) == [1] * 6 + [3] * 2 + [9]
    assert [trial.spent for trial in run.trials.values() if trial.status == "completed"] == [9]
    trained = run.trials[run.best.id] if run.best else None
    assert trained is not None
    assert (trained.params, trained.macs_per_image) == (
        1000 * trained.arch["depth"],
        10 * trained.arch["width_1"],
    )


@pytest.mark.parametrize(
    "strategy", [name for name, record in STRATEGIES.items() if record.objectives != "several"]
)
def test_budget_of_the_search_is_kept_to_the_unit(tmp_path: Path, strategy: str) -> None:
    events: list[Event] = []
    run = search(tmp_path / "run", strategy, total_epochs=20, on_event=events.append, **CONFIGS[strategy])
    assert run.epochs_spent == 20
    assert events.count(BudgetSpent(20)) == 1
    assert "running" not in statuses(run).values()
    for trial in run.trials.values():
        assert trial.status == ("completed" if trial.spent == R else "stopped")


@pytest.mark.parametrize(
    ("strategy", "total_epochs", "each"),
    [
        ("random", 23, 1),
        ("successive_halving", None, 1),
        ("hyperband", 31, 1),
        ("hyperband", 6, 1),  # spent where a rung ends
        ("hyperband", 31, 4),
        ("asha", None, 1),
        ("evolution", 31, 1),
        ("evolution", 31, 3),  # asked for three at a time, and so told
    ],
)
@pytest.mark.some(2)
def test_resumed_after_any_line_the_record_is_that_of_an_undisturbed_run(
    tmp_path: Path, strategy: str, total_epochs: int | None, each: int
) -> None:
    def run(folder: Path, **options: Any) -> Run:
        config = CONFIGS[strategy] | FAULTS | options
        return search(folder, strategy, total_epochs=total_epochs, each=each, **config)

    run(tmp_path / "whole")
    lines = len((tmp_path / "whole" / "trials.jsonl").read_bytes().splitlines())
    for n in range(lines + 1):
        folder = cut(tmp_path / "whole", tmp_path / str(n), n)
        held = {(i, m.budget) for i, trial in _read(folder).items() for m in trial.measurements}
        run(folder, resume=True)
        assert record_difference(tmp_path / "whole", folder) is None, f"cut after line {n}"
        assert not held.intersection(units_done(folder.with_suffix(".log")))


def _read(folder: Path) -> dict[int, Trial]:
    with Record.resume(folder, {"seed": 0}, env={}, fsync=False) as record:
        return dict(record.trials)


def test_tpe_proposes_the_same_after_a_resumption(tmp_path: Path) -> None:
    search(tmp_path / "whole", "tpe", **CONFIGS["tpe"])
    for n in (45, 58, 70):  # amid and behind the random trials
        folder = cut(tmp_path / "whole", tmp_path / str(n), n)
        search(folder, "tpe", resume=True, **CONFIGS["tpe"])
        assert record_difference(tmp_path / "whole", folder) is None


def test_failed_trials_have_a_reason_and_the_search_goes_on(tmp_path: Path) -> None:
    run = search(tmp_path / "run", "random", trials=9, **FAULTS)
    failed = {trial.id: (trial.spent, trial.error) for trial in run.failed}
    assert failed == {
        2: (0, "loss is nan in epoch 1"),
        4: (0, "MemoryError: out of memory"),
        5: (2, "loss is nan in epoch 3"),
        7: (0, "valid_accuracy is not a number after 1 units"),
    }
    assert [trial.id for trial in run.trials.values() if trial.status == "completed"] == [0, 1, 3, 6, 8]
    assert run.best is not None
    assert run.best.status == "completed"
    lost = [seconds for seconds in (run.train_seconds,) if seconds > 0]
    assert lost, "the time of failed units must be counted"


def test_nothing_but_failures_end_the_search(tmp_path: Path) -> None:
    with pytest.raises(
        InputError,
        match=rf"^search: {MAX_CONSECUTIVE_FAILURES} trials failed in a row, .*: loss is nan in epoch 1$",
    ):
        search(tmp_path / "run", "random", total_epochs=50, everything_fails=True)


class Typo:
    """An objective whose code is wrong for architectures of ``depth`` >= ``above``."""

    def __init__(self, above: int = 0) -> None:
        self.above = above

    def describe(self, trial: Trial) -> tuple[None, None]:
        return None, None

    def __call__(self, trial: Trial) -> Iterator[Measurement]:
        for budget in range(trial.spent + 1, trial.budget + 1):
            if trial.arch["depth"] >= self.above:
                raise ValueError(f"no {trial.arch['depth']}")
            yield Measurement(budget, 0.5, 0.1, 0.5, 0.1)


def test_first_trials_that_all_fail_alike_end_the_search_and_leave_their_tracebacks(tmp_path: Path) -> None:
    line = next(
        k for k, text in enumerate(Path(__file__).read_text().splitlines(), 1) if "raise ValueError" in text
    )
    place = rf"\(test_run_local\.py:{line}\)"
    with pytest.raises(InputError, match=rf"first 3 trials failed alike: ValueError: no \d {place}; whole"):
        search(tmp_path / "run", "random", trials=9, objective=Typo())
    kept = [(tmp_path / "run" / "errors" / f"trial_{k}.txt").read_text() for k in range(3)]
    assert all("Traceback" in text and "raise ValueError(" in text for text in kept)
    run = search(tmp_path / "run", "random", trials=9, objective=Typo(99), resume=True)
    assert [trial.status for trial in run.trials.values()] == ["failed"] * 3 + ["completed"] * 6
    # Resumed with the fault still there, it ends again.
    with pytest.raises(InputError, match="first 3 trials failed alike"):
        search(tmp_path / "again", "random", trials=9, objective=Typo())
    with pytest.raises(InputError, match="first 3 trials failed alike"):
        search(tmp_path / "again", "random", trials=9, objective=Typo(), resume=True)
    assert len(list((tmp_path / "again" / "errors").iterdir())) == 6


def test_a_fault_of_some_architectures_does_not_end_the_search(tmp_path: Path) -> None:
    run = search(tmp_path / "run", "random", trials=20, objective=Typo(2))
    assert 3 < len(run.failed) < 20


def test_failures_of_the_architectures_own_do_not_end_the_search_early(tmp_path: Path) -> None:
    run = search(tmp_path / "run", "random", trials=5, everything_fails=True)
    assert len(run.failed) == 5
    run = search(tmp_path / "memory", "random", trials=5, memory=tuple(range(5)))
    assert {trial.error for trial in run.failed} == {"MemoryError: out of memory"}
    assert not (tmp_path / "memory" / "errors").exists()


def test_interrupted_search_can_be_resumed(tmp_path: Path) -> None:
    seen: list[Event] = []

    def interrupt(event: Event) -> None:
        seen.append(event)
        if sum(isinstance(e, Measured) for e in seen) == 17:
            raise KeyboardInterrupt

    search(tmp_path / "whole", "hyperband")
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "run", "hyperband", on_event=interrupt)
    assert "running" in {trial.status for trial in _read(tmp_path / "run").values()}
    search(tmp_path / "run", "hyperband", resume=True)
    assert record_difference(tmp_path / "whole", tmp_path / "run") is None
    done = units_done(tmp_path / "run.log")
    assert len(done) == len(set(done))


def test_finished_search_is_not_run_again(tmp_path: Path) -> None:
    search(tmp_path / "run", "evolution", **CONFIGS["evolution"])
    before = (tmp_path / "run" / "trials.jsonl").read_bytes()
    log = (tmp_path / "run.log").read_bytes()
    search(tmp_path / "run", "evolution", resume=True, **CONFIGS["evolution"])
    assert (tmp_path / "run" / "trials.jsonl").read_bytes() == before
    assert (tmp_path / "run.log").read_bytes() == log


def test_another_search_does_not_go_on_with_a_record(tmp_path: Path) -> None:
    search(tmp_path / "run", "random", trials=4)
    with pytest.raises(InputError, match="the strategy no longer proposes trial 2 with budget 9"):
        search(tmp_path / "run", "random", trials=2, resume=True)


def test_listeners_hear_everything_in_order_and_what_is_replayed(tmp_path: Path) -> None:
    events: list[Event] = []
    search(tmp_path / "run", "successive_halving", on_event=events.append, **FAULTS)
    promoted = [e.trial.budget for e in events if isinstance(e, Started)]
    assert promoted == [1] * 9 + [3] * 3 + [9]
    assert [e.trial.measurements[-1].budget for e in events if isinstance(e, Measured)].count(1) == 5
    ended = [(e.trial.id, e.trial.status) for e in events if isinstance(e, Ended)]
    assert len(ended) == 9
    assert (4, "failed") in ended
    assert not any(e.replayed for e in events if not isinstance(e, BudgetSpent))

    again: list[Event] = []
    search(tmp_path / "run", "successive_halving", resume=True, on_event=again.append, **FAULTS)
    assert all(e.replayed for e in again if not isinstance(e, BudgetSpent))

    def key(e: Any) -> tuple[Any, ...]:
        return type(e), e.trial.id, e.trial.budget, e.trial.spent

    assert [key(e) for e in again if not isinstance(e, Ended)] == [
        key(e) for e in events if not isinstance(e, Ended)
    ]


def test_checkpoints_are_kept_while_a_trial_may_go_on(tmp_path: Path) -> None:
    kept: list[set[int]] = []

    def look(event: Event) -> None:
        if isinstance(event, Started):
            kept.append({int(path.name) for path in (tmp_path / "run" / "checkpoints").glob("*")})

    search(tmp_path / "run", "successive_halving", on_event=look)
    assert kept[8] == set(range(8))
    assert len(kept[9]) == 3  # the promoted; the others' are gone
    assert not (tmp_path / "run" / "checkpoints").exists()


class _Odd:
    """An objective that breaks its contract, or that fails when it is told to stop."""

    def __init__(self, *units: int, closing: Exception | None = None, accuracy: float = 0.5) -> None:
        self.units, self.closing, self.accuracy = units, closing, accuracy

    def describe(self, trial: Trial) -> tuple[None, None]:
        return None, None

    def __call__(self, trial: Trial) -> Iterator[Measurement]:
        try:
            for unit in self.units:
                yield Measurement(unit, self.accuracy, 1.0, 0.5, 1.0)
        finally:
            if self.closing is not None:
                raise self.closing


@pytest.mark.parametrize(
    ("objective", "error"),
    [
        (_Odd(1, 2, 3), "the objective ended after 3 of 9 units"),
        (_Odd(1, 3), "the objective measured unit 3 after 1"),
        (_Odd(*range(1, 10), closing=OSError("disk\nfull")), "OSError: disk full"),
        (_Odd(closing=TrialFailed("no memory")), "no memory"),
        (_Odd(1, accuracy=97.0), "valid_accuracy 97.0 is not between 0 and 1"),
    ],
)
def test_objective_is_held_to_its_contract(tmp_path: Path, objective: _Odd, error: str) -> None:
    run = search(tmp_path / "run", "random", trials=1, objective=objective)
    assert run.trials[0].status == "failed"
    assert re.sub(r" \(test_run_local\.py:\d+\)$", "", run.trials[0].error or "") == error


def test_objective_is_closed_where_the_budget_ends(tmp_path: Path) -> None:
    closed: list[int] = []

    class Counting(_Odd):
        def __call__(self, trial: Trial) -> Iterator[Measurement]:
            with contextlib.ExitStack() as stack:
                stack.callback(closed.append, trial.id)
                yield from super().__call__(trial)

    search(tmp_path / "run", "random", total_epochs=14, objective=Counting(*range(1, 20)))
    assert closed == [0, 1]


def test_budget_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^search: total_epochs=0 is less than 1$"):
        search(tmp_path / "run", "random", total_epochs=0)


def test_errors_fit_on_a_line() -> None:
    assert describe_error(KeyError("a\n b")) == "KeyError: 'a\\n b'"
    assert describe_error(MemoryError()) == "MemoryError: out of memory"
    assert describe_error(AssertionError()) == "AssertionError"
    assert one_line("a\n\n  b\tc") == "a b c"
    assert len(one_line("x" * 1000)) == 300
