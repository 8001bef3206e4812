"""The comparison table: numbers worked out by hand, and what its notes must not keep quiet about."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

import pytest

from nas.errors import InputError
from nas.record import MAY_DIFFER, Record, Run, read_run
from nas.report.result_table import (
    comparison,
    format_count,
    format_mean,
    format_percent,
    format_seconds,
    group_runs,
    notes,
    to_csv,
    to_latex,
    to_markdown,
)
from nas.space import Architecture
from nas.trial import Final, Measurement, Trial

ARCH = Architecture(depth=2)


def make(
    folder: Path,
    strategy: str | None = "random",
    seed: int = 0,
    *,
    valid: float = 0.9,
    tests: tuple[float, ...] = (0.88,),
    done: bool = True,
    **config,
) -> Run:
    """A run of two trials: one of three epochs with ``valid`` at its end, one that failed after one."""
    values = {"space": "chain", "dataset": "digits", "strategy": strategy, "seed": seed, **config}
    with Record.create(folder, values, env={}, fsync=False) as record:
        record.start(Trial(0, ARCH, 3, seed=1, params=61_706, macs_per_image=416_520))
        for budget, accuracy in enumerate((0.5, 0.95, valid), 1):
            cost = {"compile_seconds": 2.0 * (budget == 1), "train_seconds": 1.0, "evaluate_seconds": 0.25}
            record.measure(0, Measurement(budget, accuracy, 0.1, 0.1, 0.1, **cost))
        record.end(0, "completed")
        record.start(Trial(1, ARCH.set(depth=3), 3, seed=2, params=1))
        record.measure(1, Measurement(1, 0.99, 0.1, 0.1, 0.1))
        record.end(1, "failed", "loss is NaN\nTraceback", train_seconds=0.5)
        for index, test in enumerate(tests):
            record.final(Final(ARCH, index, 9, test, 0.1, valid, 0.1, 61_706, 416_520, train_seconds=10.0))
        if done:
            record.done()
    return read_run(folder)


def test_a_row_adds_up(tmp_path):
    (row,) = comparison([make(tmp_path / "a", tests=(0.87, 0.89))])
    assert (row.strategy, row.runs, row.trials, row.failed_trials, row.epochs) == ("random", 1, 2, 1, 4)
    assert row.best_valid_accuracy.mean == 0.9  # the last epoch, not the best one, and not the failed trial
    assert row.test_accuracy.mean == pytest.approx(0.88)
    assert math.isnan(row.test_accuracy.low)  # two say nothing of their spread
    assert (row.test_accuracy.n, row.test_over) == (2, "trainings")
    assert (row.params, row.macs_per_image) == (61_706, 416_520)
    assert (row.compile_seconds, row.train_seconds, row.evaluate_seconds) == (2.0, 3.5 + 20, 0.75)
    assert (row.search_seconds, row.final_seconds, row.all_seconds) == (6.25, 20.0, 26.25)
    assert row.incomplete_runs == 0


def test_seeds_are_averaged_and_the_test_interval_is_over_searches(tmp_path):
    runs = [
        make(tmp_path / str(seed), seed=seed, valid=0.9 + 0.01 * seed, tests=(0.8 + 0.02 * seed, 0.9))
        for seed in range(5)
    ]
    (row,) = comparison(runs)
    assert row.runs == 5
    assert row.failed_trials == 5
    assert row.trials == 2
    assert row.best_valid_accuracy.mean == pytest.approx(0.92)
    assert row.test_accuracy.mean == pytest.approx(0.87)
    assert (row.test_accuracy.n, row.test_over) == (5, "runs")
    # t(0.975, 4) = 2.776445; the standard deviation of 0, 1, 2, 3, 4 is sqrt(2.5).
    assert row.test_accuracy.half_width == pytest.approx(2.776445 * 0.01 * math.sqrt(2.5 / 5), rel=1e-5)


def test_an_interval_is_given_from_five_values_on_and_holds_possible_ones_only(tmp_path):
    """The t interval of 0.5, 1.0, 1.0, 1.0, 1.0 goes from 0.62 to 1.18."""
    few = [make(tmp_path / f"a{k}", seed=k, valid=v, tests=(v,)) for k, v in enumerate((0.2, 0.9, 0.9, 0.9))]
    assert "| 72.50 (n=4) |" in to_markdown(comparison(few))
    assert "72.50 (n=4) &" in to_latex(comparison(few))
    (line,) = csv.DictReader(io.StringIO(to_csv(comparison(few))))
    assert (line["test_accuracy_n"], line["test_accuracy_low"], line["best_valid_accuracy_high"]) == (
        "4",
        "",
        "",
    )
    assert any("with their number n where they are fewer than 5" in note for note in notes(few))
    many = [
        make(tmp_path / f"b{k}", seed=k, valid=v, tests=(v,)) for k, v in enumerate((0.5, 1.0, 1.0, 1.0, 1.0))
    ]
    half = 2.776445 * math.sqrt(0.05) / math.sqrt(5)
    assert f"| 90.00 [{100 * (0.9 - half):.2f}, 100.00] |" in to_markdown(comparison(many))
    (line,) = csv.DictReader(io.StringIO(to_csv(comparison(many))))
    assert (float(line["test_accuracy_high"]), float(line["best_valid_accuracy_high"])) == (1.0, 1.0)
    assert any("with the 95 % t interval." in note for note in notes(many))


def test_runs_that_differ_in_more_than_the_seed_get_rows_that_say_so(tmp_path):
    runs = [
        make(tmp_path / "a", epochs=3, workers=1),
        make(tmp_path / "b", seed=1, epochs=3, workers=2),
        make(tmp_path / "c", epochs=9),
        make(tmp_path / "d", "grid", epochs=9),
    ]
    groups = group_runs(runs)
    assert {label: len(group) for label, group in groups.items()} == {
        "random (epochs=3)": 2,
        "random (epochs=9)": 1,
        "grid": 1,
    }
    other = make(tmp_path / "e", "grid", dataset="mnist5k", fix=["norm=batch", "depth=1"])
    assert list(group_runs([runs[3], other])) == [
        "grid (dataset=digits, epochs=9)",
        "grid (dataset=mnist5k, fix=norm=batch+depth=1)",
    ]
    assert list(group_runs([runs[0], other])) == ["random (dataset=digits)", "grid (dataset=mnist5k)"]
    odd = [make(tmp_path / str(i), "asha", eta=eta) for i, eta in enumerate((3, "3", None))]
    assert list(group_runs(odd)) == ["asha (eta=3)", "asha (eta=3) #2", "asha"]


def test_where_a_run_was_made_makes_no_row_of_its_own(tmp_path):
    """Two engines, machines, clusters; and the same again with all that a search's config has of that kind."""
    local = {"engine": "local", "workers": None, "data_dir": "/a"}
    ray = {"engine": "ray", "workers": 4, "address": "auto", "data_dir": "/b"}
    runs = [make(tmp_path / "a", seed=0, **local), make(tmp_path / "b", seed=1, **ray)]
    assert {label: len(group) for label, group in group_runs(runs).items()} == {"random": 2}
    runs = [
        make(tmp_path / f"{k}", seed=k, **dict[str, Any]({name: f"{k}"})) for k, name in enumerate(MAY_DIFFER)
    ]
    assert [len(group) for group in group_runs(runs).values()] == [len(MAY_DIFFER)]


def test_one_search_given_twice_is_refused(tmp_path):
    runs = [make(tmp_path / "a"), make(tmp_path / "b")]
    with pytest.raises(InputError, match=r"b: the same random search with seed=0 as .*a; report on one"):
        comparison(runs)


def test_the_markdown_table_to_the_letter(tmp_path):
    runs = [
        make(tmp_path / "a", seed=0, tests=(0.87, 0.89)),
        make(tmp_path / "b", "hyper|band", tests=()),
    ]
    assert to_markdown(comparison(runs)) == MARKDOWN


MARKDOWN = "".join(
    f"| {left} | {right} |\n"
    for left, right in (
        (
            "Strategy    | Seeds | Trials | Failed | Epochs | Best valid. %",
            "     Test % | Params | Mult-adds | Compile s | Train s | All s",
        ),
        (
            "----------- | ----: | -----: | -----: | -----: | ------------:",
            "----------: | -----: | --------: | --------: | ------: | ----:",
        ),
        (
            "random      |     1 |      2 |      1 |      4 |         90.00",
            "88.00 (n=2) | 61.7 k |     417 k |      2.00 |    23.5 |  26.2",
        ),
        (
            r"hyper\|band |     1 |      2 |      1 |      4 |         90.00",
            "          – | 61.7 k |     417 k |      2.00 |    3.50 |  6.25",
        ),
    )
)


def test_latex_is_escaped_and_has_as_many_cells_as_columns(tmp_path):
    text = to_latex(comparison([make(tmp_path / "a", "a_b&c 100%", tests=(0.87, 0.89))]))
    assert r"a\_b\&c 100\% & 1 &" in text
    assert r"& 88.00 (n=2) &" in text
    lines = text.splitlines()
    columns = lines[0].count("r") - "tabular".count("r") + 1
    for line in (lines[2], lines[4]):
        assert line.replace(r"\&", "").count("&") == columns - 1


def test_csv_has_every_number_in_full(tmp_path):
    text = to_csv(comparison([make(tmp_path / "a", valid=1 / 3, tests=())]))
    (row,) = csv.DictReader(io.StringIO(text))
    assert float(row["best_valid_accuracy_mean"]) == 1 / 3
    assert row["best_valid_accuracy_low"] == ""
    assert row["test_accuracy_mean"] == ""
    assert row["params"] == "61706.0"
    assert row["failed_trials"] == "1"
    assert "nan" not in text


def test_notes_tell_of_failures_and_of_what_is_incomplete(tmp_path):
    runs = [make(tmp_path / "a"), make(tmp_path / "b", seed=1, done=False, tests=(math.nan,))]
    config = {"space": "chain", "dataset": "digits", "strategy": "grid", "seed": 0}
    with Record.create(tmp_path / "c", config, env={}) as record:
        record.final(Final(ARCH, 0, 9, error="out of memory"))
        runs.append(record.run())
    said = notes(runs)
    assert "random, seed 0: 1 of 2 trials failed (loss is NaN)." in said
    assert (
        "random, seed 1: incomplete, still running or interrupted (2 trials so far, 0 of them open)." in said
    )
    assert "grid, seed 0: incomplete, still running or interrupted (no trials yet)." in said
    assert "grid, seed 0: 1 of 1 final trainings failed (out of memory)." in said
    assert not any("random, seed 0: incomplete" in note for note in said)


def test_a_run_without_a_search_and_one_without_anything(tmp_path):
    with Record.create(tmp_path / "a", {"dataset": "digits"}, env={}) as record:
        for seed in range(2):  # on their way the final trainings are trials
            record.start(Trial(seed, ARCH, 9, seed))
            record.measure(seed, Measurement(1, 0.5, 0.1, 0.1, 0.1, train_seconds=2.0))
        record.final(
            Final(ARCH, 0, 9, 0.9, 0.1, 0.92, 0.1, params=7, train_seconds=2.0, evaluate_seconds=1.0)
        )
        under_way = record.run()
        record.final(Final(ARCH, 1, 9, error="loss is NaN", train_seconds=5.0))
        record.done()
        training = record.run()
    with Record.create(tmp_path / "b", {"strategy": "asha", "dataset": "digits"}, env={}) as record:
        empty = record.run()
    rows = comparison([training, empty])
    assert rows[0].strategy == "training"
    assert (rows[0].best_valid_accuracy.mean, rows[0].test_accuracy.mean, rows[0].params) == (0.92, 0.9, 7)
    assert [comparison([run])[0].all_seconds for run in (under_way, training)] == [3.0 + 2.0, 3.0 + 5.0]
    assert math.isnan(rows[1].best_valid_accuracy.mean)
    assert math.isnan(rows[1].params)
    assert "nan" not in to_markdown(rows).lower()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0, "0"),
        (7, "7"),
        (999, "999"),
        (12.5, "12.5"),
        (1000, "1.00 k"),
        (61_706, "61.7 k"),
        (99_960, "100 k"),
        (999_499, "999 k"),
        (999_501, "1.00 M"),
        (3_349_342, "3.35 M"),
        (4.1e9, "4.10 G"),
        (math.nan, "–"),
    ],
)
def test_counts_have_three_digits(value, said):
    assert format_count(value) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.046, "0.05"), (9.994, "9.99"), (9.996, "10.0"), (99.94, "99.9"), (99.96, "100"), (12345.6, "12,346")],
)
def test_seconds_have_sensible_digits(value, said):
    assert format_seconds(value) == said


def test_means_and_percentages():
    assert [format_mean(value) for value in (12.0, 12.25, 126.67, 1234.0)] == ["12", "12.2", "127", "1,234"]
    assert format_percent(0.97125) == "97.12"
    assert format_percent(math.nan) == "–"
