"""The record: nothing complete is ever lost, nothing is glued, and what is damaged is named."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import deque
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from nas.errors import InputError
from nas.record import (
    CONFIG,
    ENV,
    TRIALS,
    Record,
    find_runs,
    is_run,
    read_run,
    record_difference,
    same_record,
    without_times,
)
from nas.record import files as files_module
from nas.record.files import environment
from nas.space import Architecture
from nas.trial import Final, Measurement, ScoreMeasurement, Trial

ROOT = Path(__file__).parents[2]
CONFIG_VALUES = {"space": "chain", "strategy": "random", "seed": 0, "epochs": 3, "fix": (), "rate": 0.1}
ENV_VALUES = {"python": "3.11"}


def arch(index: int) -> Architecture:
    return Architecture({"depth": 1 + index % 3, "rate": 0.1 * (index + 1), "norm": "batch"})


def trial(index: int, budget: int = 3) -> Trial:
    return Trial(id=index, arch=arch(index), budget=budget, seed=100 + index, bracket=0, rung=0)


def measurement(budget: int, accuracy: float = 0.5, seconds: float = 1.0) -> Measurement:
    return Measurement(
        budget=budget,
        valid_accuracy=accuracy,
        valid_loss=1.0 / 3.0,
        train_accuracy=0.7,
        train_loss=0.9,
        compile_seconds=seconds,
        train_seconds=2 * seconds,
        evaluate_seconds=0.5 * seconds,
    )


def create(folder: Path, **options) -> Record:
    return Record.create(folder, CONFIG_VALUES, env=ENV_VALUES, fsync=False, **options)


def resume(folder: Path, config=None, **options) -> Record:
    return Record.resume(folder, config or CONFIG_VALUES, env=ENV_VALUES, fsync=False, **options)


SCRIPT = [
    ("start", (trial(0, budget=1),), {}),
    ("measure", (0, measurement(1, 0.5)), {"params": 10, "macs_per_image": 20}),
    ("start", (trial(1),), {}),
    ("measure", (1, measurement(1, math.nan)), {}),
    ("end", (1, "failed", 'loss is NaN\n"quoted" ünï \N{SNOWMAN}'), {"train_seconds": 7.0}),
    ("start", (trial(0, budget=3),), {}),
    ("measure", (0, measurement(2, 0.6)), {}),
    ("measure", (0, measurement(3, 0.7)), {}),
    ("end", (0, "completed"), {}),
    ("final", (Final(arch(0), seed=5, epochs=3, test_accuracy=0.75, params=10, train_seconds=3.0),), {}),
    ("done", (), {}),
]


def play(record: Record, script=SCRIPT) -> None:
    for name, arguments, options in script:
        getattr(record, name)(*arguments, **options)


def go_on(record: Record) -> None:
    """What a resumed driver does: the whole script again, leaving out the measurements it finds."""
    for name, arguments, options in SCRIPT:
        if name == "measure":
            known = record.trials[arguments[0]]
            if known.spent >= arguments[1].budget:
                continue
        if name == "final" and record.finals:
            continue
        getattr(record, name)(*arguments, **options)


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / TRIALS).read_text().splitlines()]


# What is written is what is read.


def test_a_run_reads_back_as_it_was_written(tmp_path):
    with create(tmp_path / "run") as record:
        play(record)
        live = record.run()
    run = read_run(tmp_path / "run")
    assert repr(run) == repr(live)  # repr, because NaN differs from itself
    assert run.config == {**CONFIG_VALUES, "fix": []}
    assert run.env == ENV_VALUES
    assert run.done
    assert run.trials[0] == trial(0).replace(
        status="completed",
        measurements=(measurement(1, 0.5), measurement(2, 0.6), measurement(3, 0.7)),
        params=10,
        macs_per_image=20,
    )
    assert run.trials[1].status == "failed"
    assert run.trials[1].error == 'loss is NaN\n"quoted" ünï \N{SNOWMAN}'
    assert math.isnan(run.trials[1].measurements[0].valid_accuracy)
    assert [seen.trial_id for seen in run.history] == [0, 1, 0, 0]
    (final,) = run.finals
    assert (final.arch, final.test_accuracy, final.seed) == (arch(0), 0.75, 5)
    assert math.isnan(final.test_loss)
    assert run.epochs_spent == 4
    assert (run.compile_seconds, run.train_seconds, run.evaluate_seconds) == (4.0, 8.0 + 7.0, 2.0)
    assert run.seconds == 21.0
    assert run.wall_seconds > 0


def test_numpy_scalars_are_recorded_exactly_and_infinity_as_null(tmp_path):
    accuracy: Any = np.float32(0.1)
    with create(tmp_path / "run") as record:
        record.start(trial(0).replace(id=np.int64(0), seed=np.uint64(2**63)))
        record.measure(0, dataclasses.replace(measurement(1), valid_accuracy=accuracy, valid_loss=math.inf))
    run = read_run(tmp_path / "run")
    assert run.trials[0].seed == 2**63
    assert run.trials[0].measurements[0].valid_accuracy == float(accuracy)
    assert math.isnan(run.trials[0].measurements[0].valid_loss)
    assert '"valid_loss": null' in (tmp_path / "run" / TRIALS).read_text()


def test_every_line_is_strict_json(tmp_path):
    with create(tmp_path / "run") as record:
        play(record)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    for line in (tmp_path / "run" / TRIALS).read_bytes().splitlines():
        json.loads(line.decode("ascii"), parse_constant=refuse)


def test_best_is_the_highest_last_score_of_the_trials_not_failed_and_of_equals_the_first(tmp_path):
    with create(tmp_path / "run") as record:
        assert record.run().best is None
        for index, accuracies in enumerate([[0.5], [0.99, 0.6], [0.4, 0.8], [0.8], [0.9], [math.nan]]):
            record.start(trial(index))
            for epoch, accuracy in enumerate(accuracies, 1):
                record.measure(index, measurement(epoch, accuracy))
        record.end(4, "failed", "worker died")
        best = record.run().best
    assert best is not None
    assert best.id == 2


# Kill -9 at any byte.


@pytest.mark.parametrize(
    ("tail", "stride"),
    [
        pytest.param(b"", 1, id="killed", marks=pytest.mark.slow),
        pytest.param(b"\0" * 40, 7, id="zeros"),  # what a power cut may leave where a line was coming
    ],
)
def test_cut_at_every_byte_nothing_whole_is_lost_and_the_run_goes_on_the_same(tmp_path, tail, stride):
    with create(tmp_path / "whole") as record:
        play(record)
    data = (tmp_path / "whole" / TRIALS).read_bytes()
    ends = [index for index, byte in enumerate(data) if byte == ord("\n")]
    cut = tmp_path / "cut"
    with create(cut):
        pass
    for size in range(0, len(data) + 1, stride):
        # A line is whole once its closing brace is there, newline or not.
        whole = sum(end <= size for end in ends) if not tail else sum(end < size for end in ends)
        (cut / TRIALS).write_bytes(data[:size] + tail)
        before = read_run(cut)  # a reader never minds a torn line
        assert len(before.history) == sum(
            '"measurement"' in line for line in data.decode().splitlines()[:whole]
        )
        with resume(cut) as record:
            assert repr(record.run()) == repr(before)
            left = (cut / TRIALS).read_bytes()
            assert left == b"".join(line + b"\n" for line in data.splitlines()[:whole])
            go_on(record)
        assert record_difference(tmp_path / "whole", cut) is None


def test_a_writer_killed_at_random_moments_loses_nothing_and_repeats_nothing(tmp_path):
    folder = tmp_path / "run"
    program = textwrap.dedent(
        f"""
        import sys
        sys.path.insert(0, {str(ROOT)!r})
        from nas.record import Record, is_run
        from nas.space import Architecture
        from nas.trial import Measurement, Trial
        folder = {str(folder)!r}
        open = Record.resume if is_run(folder) else Record.create
        with open(folder, {{"seed": 0}}, env={{}}) as record:
            print("ready", flush=True)
            for index in range(100_000):
                record.start(Trial(index, Architecture(depth=index), 2, seed=index))
                for budget in range(record.trials[index].spent + 1, 3):
                    record.measure(index, Measurement(budget, 0.5, 0.5, 0.5, 0.5))
                record.end(index, "completed")
        """
    )
    known: dict[int, Trial] = {}
    rng = np.random.default_rng(0)
    for _ in range(4):
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=float(rng.uniform(0.02, 0.2)))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        run = read_run(folder)
        assert len(run.trials) >= len(known)
        for index, old in known.items():
            assert run.trials[index].measurements[: len(old.measurements)] == old.measurements
        known = dict(run.trials)
    assert list(known) == list(range(len(known)))
    assert len(known) > 1
    assert {t.spent for t in list(known.values())[:-1]} == {2}


def test_killed_while_the_folder_was_made_the_folder_is_free_again(tmp_path, monkeypatch):
    def killed(path, value):
        raise KeyboardInterrupt

    monkeypatch.setattr(files_module, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        create(tmp_path / "run")
    monkeypatch.undo()
    assert not is_run(tmp_path / "run")
    with pytest.raises(InputError, match="no run to resume there; start it without --resume"):
        resume(tmp_path / "run")
    with create(tmp_path / "run") as record:
        play(record)
    assert read_run(tmp_path / "run").done


# Resumption.


def test_a_resumed_search_repeats_itself_without_writing_and_then_goes_on(tmp_path):
    with create(tmp_path / "run") as record:
        play(record)
    before = (tmp_path / "run" / TRIALS).read_bytes()
    with resume(tmp_path / "run") as record:
        go_on(record)
        assert (tmp_path / "run" / TRIALS).read_bytes() == before
        record.start(trial(2))
    assert (tmp_path / "run" / TRIALS).read_bytes().startswith(before)
    assert list(read_run(tmp_path / "run").trials) == [0, 1, 2]


def test_wall_time_goes_on_from_the_record_and_leaves_the_time_between_out(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with create(tmp_path / "run") as record:
        record.start(trial(0))
        now[0] += 10
        record.measure(0, measurement(1))
        now[0] += 5  # lost: nothing was recorded afterwards
    now[0] = 7.0
    with resume(tmp_path / "run") as record:
        now[0] += 2
        record.measure(0, measurement(2))
        assert record.elapsed_seconds == 12
    run = read_run(tmp_path / "run")
    assert [seen.elapsed_seconds for seen in run.history] == [10, 12]
    assert run.wall_seconds == 12


def test_another_config_is_refused_key_by_key_and_the_record_left_alone(tmp_path):
    with create(tmp_path / "run") as record:
        play(record)
    (tmp_path / "run" / TRIALS).write_bytes((tmp_path / "run" / TRIALS).read_bytes() + b'{"torn')
    changed = {**CONFIG_VALUES, "epochs": 9, "workers": 2}
    del changed["rate"]
    with pytest.raises(InputError) as refusal:
        resume(tmp_path / "run", changed)
    assert str(refusal.value) == (
        f"{tmp_path}/run: cannot resume with another config: epochs=9 (recorded: 3), rate=nothing "
        "(recorded: 0.1), workers=2 (recorded: nothing); choose another --out"
    )
    assert (tmp_path / "run" / TRIALS).read_bytes().endswith(b'{"torn')
    with resume(tmp_path / "run", changed, may_differ=("epochs", "workers", "rate")) as record:
        assert record.config["epochs"] == 3
    assert read_run(tmp_path / "run").config["epochs"] == 3


def test_a_changed_environment_is_noted_beside_the_first(tmp_path):
    with create(tmp_path / "run"):
        pass
    for env in ({"python": "3.11"}, {"python": "3.12", "cpu": "x"}, {"python": "3.12", "cpu": "y"}):
        with Record.resume(tmp_path / "run", CONFIG_VALUES, env=env):
            pass
    assert read_run(tmp_path / "run").env == {
        "python": "3.11",
        "resumed": [{"python": "3.12", "cpu": "x"}, {"cpu": "y"}],
    }


def test_a_search_that_proposes_something_else_on_resumption_is_refused(tmp_path):
    with create(tmp_path / "run") as record:
        record.start(trial(0))
    with resume(tmp_path / "run") as record:
        with pytest.raises(InputError, match="trial 0 was recorded with another architecture or seed"):
            record.start(trial(0).replace(arch=arch(1)))
        with pytest.raises(InputError, match="trial 0 was recorded with another architecture or seed"):
            record.start(trial(0).replace(seed=1))


# Folders.


def test_an_existing_run_is_never_overwritten(tmp_path):
    with create(tmp_path / "run") as record:
        play(record)
    before = (tmp_path / "run" / TRIALS).read_bytes()
    with pytest.raises(InputError, match="run: holds a run already; go on with --resume or choose another"):
        create(tmp_path / "run")
    assert (tmp_path / "run" / TRIALS).read_bytes() == before


def test_trials_without_config_are_not_overwritten_either(tmp_path):
    with create(tmp_path / "run") as record:
        play(record)
    (tmp_path / "run" / CONFIG).unlink()
    with pytest.raises(InputError, match=r"has trials\.jsonl but no config\.json; choose another --out"):
        create(tmp_path / "run")
    with pytest.raises(InputError, match=r"not a run folder, config\.json is missing"):
        read_run(tmp_path / "run")
    with pytest.raises(InputError, match="no run to resume there"):
        resume(tmp_path / "run")


def test_a_folder_of_other_things_may_become_a_run(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with create(tmp_path):
        pass
    assert is_run(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_two_writers_of_one_folder_are_one_too_many(tmp_path):
    refused = "run: another process is writing this run"
    with create(tmp_path / "run") as record:
        play(record)
        with pytest.raises(InputError, match=refused):
            resume(tmp_path / "run")
        program = (
            f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
            "from nas.record import Record\n"
            "try: Record.resume(sys.argv[1], {}, may_differ=tuple(sys.argv[2:]), env={})\n"
            "except ValueError as error: print(error)"
        )
        command = [sys.executable, "-c", program, str(tmp_path / "run"), *CONFIG_VALUES]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert refused in said
    with resume(tmp_path / "run"):
        pass


def test_two_creators_of_one_folder_are_one_too_many(tmp_path, monkeypatch):
    first: list[Record] = []
    lock = files_module._lock

    def overtaken(descriptor, folder):
        monkeypatch.setattr(files_module, "_lock", lock)
        first.append(create(folder))
        lock(descriptor, folder)

    monkeypatch.setattr(files_module, "_lock", overtaken)
    with pytest.raises(InputError, match="another process is writing this run"):
        create(tmp_path / "run")
    play(first[0])
    first[0].close()

    def overtaken_and_done(descriptor, folder):
        monkeypatch.setattr(files_module, "_lock", lock)
        with create(folder):
            pass
        lock(descriptor, folder)

    monkeypatch.setattr(files_module, "_lock", overtaken_and_done)
    with pytest.raises(InputError, match="holds a run already"):
        create(tmp_path / "other")


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/run: cannot write \(Not a directory\)"):
        create(tmp_path / "file" / "run")
    if os.geteuid() == 0:
        return  # to root everything is writable
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(InputError, match=r"locked/run: cannot write \(Permission denied\)"):
        create(tmp_path / "locked" / "run")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_users_folder_is_one_line(tmp_path):
    with create(tmp_path / "run"):
        pass
    for folder in [tmp_path, *list(tmp_path.parents)[:3]]:  # pytest's own folders are private
        if folder.stat().st_uid == 0 and folder not in (Path("/tmp"), Path("/")):
            folder.chmod(0o755)
    program = (
        f"import os, sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from nas.record import Record\n"
        f"os.seteuid(65534); place = {str(tmp_path)!r}; config = {CONFIG_VALUES!r}\n"
        "for make, folder in (Record.create, '/new'), (Record.resume, '/run'):\n"
        "    try: make(place + folder, config)\n"
        "    except ValueError as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == [
        f"{tmp_path}/new: cannot write (Permission denied)",
        f"{tmp_path}/run: cannot write (Permission denied)",
    ]


def test_runs_are_found_in_folders_of_runs_once_each(tmp_path):
    for name in ("b/random-1", "b/random-0", "a"):
        with create(tmp_path / name):
            pass
    (tmp_path / "b" / "random-0" / "checkpoints").mkdir()
    (tmp_path / "b" / CONFIG).write_text("{}")  # what compares runs may keep its own config above them
    (tmp_path / "b" / "unborn").mkdir()
    (tmp_path / "b" / "unborn" / TRIALS).write_text("")
    found = find_runs([tmp_path / "b", tmp_path / "a", tmp_path / "b" / "random-1", tmp_path])
    assert [str(path.relative_to(tmp_path)) for path in found] == ["b/random-0", "b/random-1", "a"]
    (tmp_path / "b" / "unborn" / TRIALS).write_text("{}\n")  # no longer unborn, but damaged
    assert tmp_path / "b" / "unborn" in find_runs([tmp_path])
    with pytest.raises(InputError, match=r"missing: no such folder"):
        find_runs([tmp_path / "missing"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: no run folder in it"):
        find_runs([tmp_path / "empty"])


# Full disks.


def full_after(monkeypatch, allowed: int, code: int = errno.ENOSPC, truncate: bool = True):
    """os.write takes ``allowed`` bytes in all and then no more; as a disk does, it first writes a part."""
    write, left = os.write, [allowed]

    def limited(descriptor, data):
        if not left[0]:
            raise OSError(code, os.strerror(code))
        written = write(descriptor, bytes(data)[: left[0]])
        left[0] -= written
        return written

    def broken(descriptor, size):
        raise OSError(errno.EIO, "I/O error")

    monkeypatch.setattr(files_module.os, "write", limited)
    if not truncate:
        monkeypatch.setattr(files_module.os, "ftruncate", broken)


@pytest.mark.parametrize("truncate", [True, False])
@pytest.mark.parametrize("allowed", [0, 1, 40, 200])
def test_a_line_cut_by_a_full_disk_is_reported_and_never_glued_to(tmp_path, monkeypatch, allowed, truncate):
    folder = tmp_path / "run"
    with create(folder) as record:
        play(record, SCRIPT[:3])
        before = (folder / TRIALS).read_bytes()
        full_after(monkeypatch, allowed, truncate=truncate)
        with pytest.raises(InputError) as refusal:
            record.measure(1, measurement(1))
        assert str(refusal.value) == f"{folder}: disk full; 1 measurements kept"
        assert record.trials[1].measurements == ()
        torn = (folder / TRIALS).read_bytes()
        assert torn.startswith(before)
        assert len(torn) == len(before) + (0 if truncate else allowed)
        assert len(read_run(folder).history) == 1
        monkeypatch.undo()  # room again: the same writer may go on
        record.measure(1, measurement(1))
        after = (folder / TRIALS).read_bytes()
        assert after.startswith(before)
    assert [line["event"] for line in lines(folder)] == ["trial", "measurement", "trial", "measurement"]
    with resume(folder) as record:
        assert (folder / TRIALS).read_bytes() == after


def test_a_line_cut_by_a_full_disk_and_then_a_kill_is_repaired_on_resumption(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    with create(folder) as record:
        play(record, SCRIPT[:3])
        full_after(monkeypatch, 30, truncate=False)
        with pytest.raises(InputError, match="disk full; 1 measurements kept"):
            record.measure(1, measurement(1))
        monkeypatch.undo()
    assert not (folder / TRIALS).read_bytes().endswith(b"\n")
    with resume(folder) as record:
        go_on(record)
    with create(tmp_path / "whole") as record:
        play(record)
    assert same_record(tmp_path / "whole", folder)


@pytest.mark.parametrize(
    ("code", "said"), [(errno.EDQUOT, "disk full"), (errno.EIO, r"cannot write \(Input/output error\)")]
)
def test_other_trouble_with_the_disk_is_one_line_too(tmp_path, monkeypatch, code, said):
    with create(tmp_path / "run") as record:
        play(record, SCRIPT[:2])
        full_after(monkeypatch, 3, code)
        with pytest.raises(InputError, match=f"run: {said}; 1 measurements kept"):
            record.start(trial(7))


def test_a_failing_fsync_takes_its_line_back(tmp_path, monkeypatch):
    with Record.create(tmp_path / "run", CONFIG_VALUES, env={}) as record:
        play(record, SCRIPT[:2])

        def fail(descriptor):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(files_module.os, "fsync", fail)
        with pytest.raises(InputError, match="disk full; 1 measurements kept"):
            record.start(trial(1))
        monkeypatch.undo()
    assert list(read_run(tmp_path / "run").trials) == [0]


def test_a_full_disk_while_the_folder_is_made_is_one_line_and_leaves_it_free(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files_module.os, "fsync", fail)
    with pytest.raises(InputError, match=r"run: disk full$"):
        create(tmp_path / "run")
    monkeypatch.undo()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [TRIALS]
    with create(tmp_path / "run"):
        pass


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_the_device_that_is_always_full(tmp_path, monkeypatch):
    with create(tmp_path / "run") as record:
        play(record, SCRIPT[:2])
        full = os.open("/dev/full", os.O_WRONLY)
        write = os.write
        monkeypatch.setattr(files_module.os, "write", lambda _, data: write(full, data))
        with pytest.raises(InputError, match="run: disk full; 1 measurements kept"):
            record.start(trial(1))
        os.close(full)


def test_a_real_disk_that_fills_up(tmp_path):
    """A tmpfs of 64 KiB, filled by a search until it overflows; then given room, and resumed to the end."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = (
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True, check=False
        )
        if os.geteuid() == 0
        else None
    )
    if mounted is None or mounted.returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        folder = disk / "run"
        with create(folder) as record:
            record.start(trial(0))
            with pytest.raises(InputError) as refusal:
                deque((record.measure(0, measurement(budget)) for budget in range(1, 10_000)), maxlen=0)
            kept = record.trials[0].spent
        assert kept > 50
        assert str(refusal.value) == f"{folder}: disk full; {kept} measurements kept"
        assert read_run(folder).trials[0].spent == kept
        subprocess.run(["mount", "-o", "remount,size=1m", str(disk)], check=True)
        with resume(folder) as record:
            record.measure(0, measurement(kept + 1))
        assert read_run(folder).trials[0].spent == kept + 1
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# Damage.


def test_a_damaged_line_in_the_middle_is_named_and_nothing_is_touched(tmp_path):
    folder = tmp_path / "run"
    with create(folder) as record:
        play(record)
    whole = (folder / TRIALS).read_bytes().splitlines(keepends=True)
    for number, line in enumerate(whole, 1):
        for damage in (line[: len(line) // 2] + b"\n", b"\xff" + line, b"\n", line[:-2] + b"\0\0\n"):
            damaged = b"".join([*whole[: number - 1], damage, *whole[number:]])
            (folder / TRIALS).write_bytes(damaged)
            with pytest.raises(InputError) as refusal:
                read_run(folder)
            assert str(refusal.value) == f"{folder}/{TRIALS}:{number}: damaged line, not JSON"
            with pytest.raises(InputError, match=rf"{TRIALS}:{number}: damaged line"):
                resume(folder)
            assert (folder / TRIALS).read_bytes() == damaged


TOO_LONG = "damaged line, 10000000000000000000… does not fit into 64 bits"
MEASURED = '{"event": "measurement", "id": 2, "budget": 1, "valid_accuracy": '


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[1]", "not a JSON object"),
        ('{"event": "party"}', "event='party' is not one of trial, promotion, measurement, end, final, done"),
        ('{"event": "measurement", "id": 9, "budget": 1}', "measurement of trial 9, which was not started"),
        ('{"event": "end", "id": "x"}', "id='x' is not an integer"),
        ('{"event": "trial", "id": 5, "arch": []}', "arch=[] is not a JSON object"),
        ('{"event": "trial", "id": 0, "arch": {}, "budget": 1, "seed": 0}', "trial 0 a second time"),
        ('{"event": "promotion", "id": 2, "budget": 3}', "trial 2 promoted from budget 3 to 3"),
        (
            '{"event": "end", "id": 2, "status": "lost"}',
            "status='lost' is not one of completed, stopped, failed",
        ),
        ('{"event": "end", "id": 2, "status": "failed"}', "trial 2 failed without a reason"),
        ('{"event": "end", "id": 0, "status": "stopped"}', "end of trial 0, which has ended (completed)"),
        ('{"event": "measurement", "id": 2, "budget": 1}', "valid_accuracy='missing' is not a number"),
        ('{"event": "measurement", "id": 2, "budget": true}', "budget=True is not an integer"),
        (
            '{"event": ["trial"]}',
            "event=['trial'] is not one of trial, promotion, measurement, end, final, done",
        ),
        (
            '{"event": "end", "id": 1' + 400 * "0" + "}",
            TOO_LONG,
        ),
        (
            '{"event": "end", "id": 1' + 9999 * "0" + "}",
            TOO_LONG,
        ),
        (
            '{"event": "end", "id": 36893488147419103232}',
            "damaged line, 36893488147419103232 does not fit into 64 bits",
        ),
        ('{"event": "done", "elapsed_seconds": 1e999}', "damaged line, 1e999 does not fit into 64 bits"),
        ('{"event": "done", "elapsed_seconds": NaN}', "damaged line, not JSON (NaN)"),
        ('{"event": "done", "elapsed_seconds": 1e300}', "elapsed_seconds=1e+300 is not between 0 and 1e+12"),
        ('{"event": "done", "elapsed_seconds": -1}', "elapsed_seconds=-1 is not between 0 and 1e+12"),
        (
            '{"event": "end", "id": 2, "status": "stopped", "train_seconds": -0.5}',
            "train_seconds=-0.5 is not between 0 and 1e+12",
        ),
        ('{"event": "x", "y": ' + 65 * "[" + 65 * "]" + "}", "damaged line, nested too deeply"),
        ('{"event": "x", "y": ' + 99_999 * "[" + 99_999 * "]" + "}", "damaged line, nested too deeply"),
        ('{"event": "trial", "id": -1, "arch": {}, "budget": 1, "seed": 0}', "id=-1 is below 0"),
        ('{"event": "trial", "id": 3, "arch": {}, "budget": -1, "seed": 0}', "budget=-1 is below 1"),
        ('{"event": "measurement", "id": 2, "budget": -1}', "budget=-1 is below 1"),
        (
            MEASURED + "2}",
            "valid_accuracy=2 is not between 0 and 1",
        ),
        (
            MEASURED + "-1.0}",
            "valid_accuracy=-1.0 is not between 0 and 1",
        ),
        (
            '{"event": "final", "arch": {}, "seed": 0, "epochs": 1, "test_accuracy": 1.5}',
            "test_accuracy=1.5 is not between 0 and 1",
        ),
    ],
)
def test_a_line_that_makes_no_sense_is_named(tmp_path, line, said):
    folder = tmp_path / "run"
    with create(folder) as record:
        play(record)
        record.start(trial(2))
    count = len(lines(folder))
    with (folder / TRIALS).open("a") as file:
        file.write(line + "\n")
    with pytest.raises(InputError) as refusal:
        read_run(folder)
    assert str(refusal.value) == f"{folder}/{TRIALS}:{count + 1}: {said}"


def test_a_score_may_be_any_number(tmp_path):
    with create(tmp_path / "run") as record:
        record.start(trial(0))
        record.measure(0, ScoreMeasurement.of(1, -2.5e6, evaluate_seconds=0.1))
    assert read_run(tmp_path / "run").trials[0].score == -2.5e6


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1' + 400 * "0" + "}", "damaged, 10000000000000000000… does not fit into 64 bits"),
        ('{"a": ' + 99_999 * "[" + 99_999 * "]" + "}", "damaged, nested too deeply"),
        ('{"a": ' + 500 * '{"b": ' + "1" + 500 * "}" + "}", "damaged, nested too deeply"),
        ('{"seed": [1]}', "seed=[1] is not an integer"),
    ],
)
def test_a_config_that_no_run_has_is_named(tmp_path, text, said):
    folder = tmp_path / "run"
    with create(folder):
        pass
    (folder / CONFIG).write_text(text)
    with pytest.raises(InputError) as refusal:
        read_run(folder)
    assert str(refusal.value) == f"{folder}/{CONFIG}: {said}"


def test_a_config_that_could_not_be_read_again_is_not_written(tmp_path):
    with pytest.raises(InputError, match=r"its config cannot be recorded: .* does not fit into 64 bits"):
        Record.create(tmp_path / "run", {"seed": 10**20}, env={})
    assert not (tmp_path / "run").exists()


def test_damaged_config_and_env_are_named(tmp_path):
    folder = tmp_path / "run"
    with create(folder):
        pass
    for name in (ENV, CONFIG):
        whole = (folder / name).read_text()
        (folder / name).write_text('{"seed": ')
        with pytest.raises(InputError, match=rf"run/{name}: damaged, not JSON"):
            read_run(folder)
        with pytest.raises(InputError, match=rf"run/{name}: damaged, not JSON"):
            resume(folder)
        (folder / name).write_text(whole)


def test_what_is_not_a_run_folder_says_what_is_missing(tmp_path):
    with pytest.raises(InputError, match=r"nowhere: no such folder"):
        read_run(tmp_path / "nowhere")
    with create(tmp_path / "run"):
        pass
    (tmp_path / "run" / TRIALS).unlink()
    with pytest.raises(InputError, match=r"run: not a run folder, trials\.jsonl is missing"):
        read_run(tmp_path / "run")


def test_a_record_changed_or_removed_under_its_writer_is_noticed(tmp_path):
    with create(tmp_path / "run") as record:
        play(record, SCRIPT[:1])
        with (tmp_path / "run" / TRIALS).open("a") as file:
            file.write("{}\n")
        with pytest.raises(InputError, match=r"trials\.jsonl was changed by another program"):
            record.start(trial(1))
    with create(tmp_path / "other") as record:
        (tmp_path / "other" / TRIALS).unlink()
        with pytest.raises(InputError, match=r"trials\.jsonl was removed while the run was going"):
            record.start(trial(0))


# Misuse is refused before it reaches the file.


def test_nonsense_is_refused_and_not_written(tmp_path):
    with create(tmp_path / "run") as record:
        play(record)
        before = (tmp_path / "run" / TRIALS).read_bytes()
        with pytest.raises(ValueError, match="trial 0, which has ended"):
            record.measure(0, measurement(4))
        with pytest.raises(ValueError, match="trial 0, which has ended"):
            record.start(trial(0, budget=9))
        with pytest.raises(ValueError, match="trial 9, which was not started"):
            record.measure(9, measurement(1))
        with pytest.raises(ValueError, match="second final training"):
            record.final(record.finals[0])
        with pytest.raises(TypeError, match="cannot be recorded"):
            record.final(dataclasses.replace(record.finals[0], test_accuracy=cast(float, {1})))
        assert (tmp_path / "run" / TRIALS).read_bytes() == before
        record.start(trial(2))
        record.measure(2, measurement(2))
        for budget in (1, 2):
            with pytest.raises(ValueError, match=f"trial 2 measured at budget {budget} after 2"):
                record.measure(2, measurement(budget))
        with pytest.raises(ValueError, match="failed without a reason"):
            record.end(2, "failed")
        assert len(lines(tmp_path / "run")) == len(before.splitlines()) + 2
    with pytest.raises(ValueError, match="closed"):
        record.start(trial(3))


# Comparison, times aside.


def test_same_record_sees_everything_but_times(tmp_path):
    folders = [tmp_path / name for name in "ab"]
    for seconds, folder in enumerate(folders, 1):
        with create(folder) as record:
            record.start(trial(0))
            record.measure(0, measurement(1, seconds=seconds))
            record.end(0, "completed", train_seconds=seconds)
    assert (folders[0] / TRIALS).read_bytes() != (folders[1] / TRIALS).read_bytes()
    assert same_record(*folders)
    with resume(folders[1]) as record:
        record.start(trial(1))
    assert record_difference(*folders) == "3 lines != 4 lines"
    with resume(folders[0]) as record:
        record.start(trial(1).replace(seed=0))
    assert not same_record(*folders)
    assert str(record_difference(*folders)).startswith("line 4: ")


def test_without_times_goes_down_to_every_depth():
    value = {"a": 1, "b_seconds": 2, "c": [{"d_seconds": 3, "e": {"f_seconds": 4}}]}
    assert without_times(value) == {"a": 1, "c": [{"e": {}}]}


def test_environment_names_versions_and_devices_but_no_place(tmp_path):
    env = environment(["TPU v4"])
    assert env["devices"] == ["TPU v4"]
    assert env["packages"]["numpy"] == np.__version__
    text = json.dumps(env)
    assert os.uname().nodename not in text
    assert str(Path.home()) not in text
    assert str(ROOT) not in text


def test_reading_and_writing_records_needs_no_jax():
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import nas.record; "
        "print([name for name in ('jax', 'matplotlib', 'pandas', 'scipy') if name in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said == "[]\n"
