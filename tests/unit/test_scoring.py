"""Training-free scores in use: as an objective, as a filter on both engines, and many of them in a file."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import pytest

from nas.data.config import DataConfig
from nas.errors import InputError
from nas.objectives.base import TrialFailed
from nas.objectives.score import Scorer, ScoreSetup
from nas.proxies import PROXIES
from nas.record import Record, read_run, record_difference
from nas.report import result_table
from nas.run.options import SearchOptions
from nas.run.scoring import read_score_table, score_architectures
from nas.run.search import search
from nas.strategies import StrategyConfig, sample_architecture
from nas.strategies.base import drawn
from nas.tables.scores import FILE, read_scores
from nas.trial import Measurement, MeasurementWithTest, ScoreMeasurement, Trial
from search_spaces.nasbench201 import nasbench201_space

TINY = nasbench201_space(channels=4, cells=1, name="tiny")
DIGITS = DataConfig("digits", subset=200)
ARCHS = [sample_architecture(TINY, 0, i) for i in range(5)]
NOTHING = TINY.from_string("|none~0|+|none~0|none~1|+|none~0|none~1|none~2|")


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer(TINY, DIGITS, ["flops", "naswot", "ntk_condition"], batch_size=4)


# ------------------------------------------------------------------------------------------------ the objective


@pytest.mark.slow
def test_a_trial_is_worth_its_score_whatever_its_seed(scorer: Scorer):
    objective = ScoreSetup(TINY, DIGITS, "ntk_condition", batch_size=4)()
    trial = Trial(0, ARCHS[1], budget=2, seed=5)
    first, second = objective(trial)
    assert first.value == second.value == -scorer(ARCHS[1])["ntk_condition"].value
    assert first.evaluate_seconds > 0 == second.evaluate_seconds
    assert (first.budget, second.budget) == (1, 2)
    assert math.isnan(first.valid_accuracy)
    assert trial.add(first).score == first.score
    assert next(iter(objective(trial.add(first)))).budget == 2
    assert objective.describe(trial).macs_per_image == scorer(ARCHS[1])["flops"].value


def test_what_has_no_finite_score_fails_with_its_seconds():
    objective = ScoreSetup(TINY, DIGITS, "naswot", batch_size=4)()
    with pytest.raises(TrialFailed, match="naswot: no finite score") as failure:
        next(objective(Trial(0, NOTHING, budget=1, seed=0)))
    assert failure.value.evaluate_seconds > 0


def test_every_kind_of_measurement_is_read_as_it_was_written(tmp_path: Path):
    kinds = [
        ScoreMeasurement.of(1, -3.5, evaluate_seconds=0.25),
        Measurement(2, 0.5, 1.0, 0.25, 2.0),
        MeasurementWithTest(3, 0.5, 1.0, 0.25, 2.0, test_accuracy=0.75, test_loss=0.5),
    ]
    with Record.create(tmp_path, {}, env={}) as record:
        record.start(Trial(0, ARCHS[0], budget=3, seed=0))
        for one in kinds:
            record.measure(0, one)
    found = read_run(tmp_path).trials[0].measurements
    assert [type(one) for one in found] == [type(one) for one in kinds]
    assert [one.value for one in found] == [-3.5, 0.5, 0.5]


@pytest.mark.slow
def test_a_search_by_score_trains_its_best_alone(tmp_path: Path):
    options = SearchOptions(
        space="tiny",
        objective=("flops",),
        engine="local",
        test_seeds=1,
        data=DIGITS,
        plan=StrategyConfig(trials=8, epochs=1),
        hyper=("learning_rate=0.1", "batch_size=32"),
    )
    run = search(options, "evolution", tmp_path / "run", {"tiny": TINY})
    assert run.best is not None
    assert run.best.score == max(trial.macs_per_image or 0 for trial in run.trials.values())
    assert [(final.arch, final.epochs, final.error) for final in run.finals] == [(run.best.arch, 1, None)]
    (row,) = result_table.comparison([run])
    assert math.isnan(row.best_valid_accuracy.mean)
    assert run.evaluate_seconds > 0 == run.train_seconds
    with pytest.raises(InputError, match="objective: 'flop' is not one of valid_accuracy, "):
        search(dataclasses.replace(options, objective="flop"), "random", tmp_path / "x", {"tiny": TINY})


# ---------------------------------------------------------------------------------------------------- the filter


@pytest.mark.slow
def test_a_filtered_search_trains_the_best_of_its_candidates_and_pays_for_choosing(tmp_path: Path):
    options = SearchOptions(
        space="tiny",
        filter="naswot",
        filter_candidates=4,
        score_batch_size=4,
        engine="local",
        test_seeds=0,
        data=DIGITS,
        plan=StrategyConfig(trials=2, epochs=1),
    )
    run = search(options, "random", tmp_path / "run", {"tiny": TINY})
    scorer = Scorer(TINY, DIGITS, ["naswot"], batch_size=4)
    for i, trial in run.trials.items():
        candidates = list(itertools.islice(drawn(TINY, 0, i), 4))
        assert trial.arch == max(candidates, key=lambda arch: scorer(arch)["naswot"].value)
    plain = search(dataclasses.replace(options, filter=None), "random", tmp_path / "plain", {"tiny": TINY})
    assert run.evaluate_seconds > plain.evaluate_seconds
    with pytest.raises(InputError, match="filter: 'nashwot' is not one of params"):
        search(dataclasses.replace(options, filter="nashwot"), "random", tmp_path / "x", {"tiny": TINY})


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["random", "grid", "asha", "hyperband", "evolution"])
def test_both_engines_filter_alike(tmp_path: Path, strategy: str):
    config = StrategyConfig(epochs=3, trials=6 if strategy != "hyperband" else None)
    options = SearchOptions(space="tiny", filter="flops", filter_candidates=3, engine="local", data=DIGITS)
    here = dataclasses.replace(options, plan=config, test_seeds=0, score_batch_size=4)
    search(here, strategy, tmp_path / "here", {"tiny": TINY})
    there = dataclasses.replace(here, engine="ray", workers=1, cpus_per_worker=1)
    search(there, strategy, tmp_path / "there", {"tiny": TINY})
    assert record_difference(tmp_path / "here", tmp_path / "there") is None


# ------------------------------------------------------------------------------------------------------ the file


@pytest.mark.slow
def test_scores_in_a_file_go_on_after_a_torn_line(tmp_path: Path, scorer: Scorer):
    config = {"seed": 0}
    whole = score_architectures(scorer, ARCHS, tmp_path / "a", config)
    for name in scorer.names:
        sign = PROXIES[name].sign
        assert whole.values[name].tolist() == [sign * scorer(arch)[name].value for arch in ARCHS]
    assert whole.archs == tuple(map(TINY.to_string, ARCHS))
    score_architectures(scorer, ARCHS[:3], tmp_path / "b", config)
    torn = tmp_path / "b" / FILE
    torn.write_bytes(torn.read_bytes()[:-7])
    said: list[tuple[int, int]] = []
    again = score_architectures(
        scorer, ARCHS, tmp_path / "b", config, resume=True, on_scored=lambda *of: said.append(of)
    )
    assert said == [(3, 5), (4, 5), (5, 5)]
    assert again.archs == whole.archs
    for name in scorer.names:
        assert again.values[name].tolist() == whole.values[name].tolist()


@pytest.mark.parametrize("left", [None, "", "architecture,fl"])
def test_scores_go_on_where_the_process_was_killed_before_the_first_line(
    tmp_path: Path, scorer: Scorer, left: str | None
):
    whole = score_architectures(scorer, ARCHS[:2], tmp_path / "a", {})
    score_architectures(scorer, [], tmp_path / "b", {})
    (tmp_path / "b" / FILE).unlink()
    if left is not None:
        (tmp_path / "b" / FILE).write_text(left)
    again = score_architectures(scorer, ARCHS[:2], tmp_path / "b", {}, resume=True)
    assert again.archs == whole.archs


def test_a_score_does_not_depend_on_what_else_is_asked():
    alone = Scorer(TINY, DIGITS, ["linear_regions"], batch_size=4)(ARCHS[0])
    beside = Scorer(TINY, DIGITS, ["zico", "linear_regions", "snip"], batch_size=4)(ARCHS[0])
    assert beside["linear_regions"].value == alone["linear_regions"].value
    more = Scorer(TINY, DIGITS, ["linear_regions"], batch_size=4, batches=3)(ARCHS[0])
    assert more["linear_regions"].value > alone["linear_regions"].value


def test_infinite_and_missing_scores_are_kept_apart(tmp_path: Path):
    scorer = Scorer(TINY, DIGITS, ["naswot", "zico"], batch_size=4, batches=2)
    scorer.batches = scorer.batches[:1]
    found = score_architectures(scorer, [NOTHING], tmp_path / "a", {})
    assert found.values["naswot"].tolist() == [-math.inf]
    assert math.isnan(found.values["zico"][0])
    assert (tmp_path / "a" / FILE).read_text().endswith('"zico: needs at least 2 batches, 1 given"\n')


def test_scores_of_a_space_are_what_a_search_over_a_table_reads(tmp_path: Path, scorer: Scorer):
    """Header, signs, seconds, and cells of what has no score are those of one format."""
    weak = Scorer(TINY, DIGITS, ["flops", "ntk_condition", "zico"], batch_size=4, batches=2)
    weak.batches = weak.batches[:1]
    score_architectures(weak, ARCHS, tmp_path / "a", {})
    for path in (tmp_path / "a", tmp_path / "a" / FILE):
        found = read_scores(path, TINY)
        assert list(found) == ["flops", "ntk_condition", "zico"]
        for arch in ARCHS:
            direct = scorer(arch)
            assert found["flops"].values[arch] == direct["flops"].value
            assert found["ntk_condition"].values[arch] == -direct["ntk_condition"].value
            assert math.isnan(found["zico"].values[arch])
            assert found["ntk_condition"].seconds[arch] > 0


def test_other_scores_are_not_mixed_in(tmp_path: Path, scorer: Scorer):
    out = tmp_path / "a"
    score_architectures(scorer, ARCHS[:1], out, {"seed": 0})
    with pytest.raises(InputError, match="holds files already; go on with --resume"):
        score_architectures(scorer, ARCHS, out, {"seed": 0})
    with pytest.raises(InputError, match="was begun with seed=0, not 1"):
        score_architectures(scorer, ARCHS, out, {"seed": 1}, resume=True)
    with pytest.raises(InputError, match="holds other architectures"):
        score_architectures(scorer, ARCHS[1:], out, {"seed": 0}, resume=True)
    (out / FILE).write_text("arch,flops\nx,what\n")
    with pytest.raises(InputError, match=r"its first line is not architecture,SCORE"):
        read_score_table(out)
    with pytest.raises(InputError, match="there is no file"):
        read_score_table(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"names": ["snap"]}, "score: 'snap' is not one of params"),
        ({"batch_size": 1}, "score: batch_size=1 is less than 2"),
        ({"batches": 1}, "score: batches=1 is less than the 2 that zico need"),
        ({"batch_size": 500}, "digits: 2 batches of 500 images are more than its 180 training images"),
    ],
)
def test_a_scorer_that_cannot_be_is_refused(options: dict[str, Any], says: str):
    with pytest.raises(InputError, match=says):
        Scorer(TINY, DIGITS, **({"names": ["zico"], **options}))
