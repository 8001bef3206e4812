"""A table as an objective: budgets, costs, noise and the judgement, against the numbers that were planted."""

from __future__ import annotations

import dataclasses
import math
import time

import numpy as np
import pytest

from nas.errors import InputError
from nas.objectives.base import TrialFailed
from nas.objectives.table import TableObjective
from nas.record import Record
from nas.run import local
from nas.space import Categorical, SearchSpace
from nas.strategies import STRATEGIES, StrategyConfig
from nas.tables import Column, Curve, Size, Table, Task
from nas.tables.table import Cost
from nas.trial import Trial

SPACE = SearchSpace("toy", {"depth": Categorical((1, 2, 3)), "kind": Categorical(("conv", "pool"))})
ARCHS = tuple(SPACE.to_string(arch) for arch in SPACE.enumerate())
VALID = Column("digits", 9, "valid_accuracy")
TEST = Column("digits-all", 9, "test_accuracy")
EPOCHS = (1, 2, 3, 6, 9)


def planted(**changes) -> Table:
    """Row r, repetition s, epoch e: valid 0.r s e as digits; row 5 has one repetition; row 4 misses an epoch."""
    rows, seeds, epochs = np.ogrid[: len(ARCHS), :2, 1:10]
    every = (0.1 * rows + 0.01 * seeds + 0.001 * epochs).astype(np.float32)
    valid = every[:, :, [epoch - 1 for epoch in EPOCHS]].copy()
    valid[5, 1] = np.nan
    valid[4, :, 2] = np.nan
    test = (0.2 + 0.1 * rows + 0.02 * seeds + 0 * epochs).astype(np.float32)[:, :, [2, 8]]
    test[3, 1] = np.nan
    table = Table(
        name="planted",
        space="toy",
        archs=ARCHS,
        columns={
            VALID: Curve(EPOCHS, valid),
            VALID.sibling("train_loss"): Curve(tuple(range(1, 10)), 1 - every),
            TEST: Curve((3, 9), test),
        },
        sizes={"digits": Size(np.arange(6) * 10, np.arange(6) * 100)},
        costs={
            ("digits", 9): Cost(np.full((6, 2), [4.0, 5.0], np.float32), np.full((6, 1), 0.5, np.float32))
        },
        tasks={"digits": Task(VALID, TEST)},
    )
    return dataclasses.replace(table, **changes)


def trial(row: int, budget: int, seed: int = 0) -> Trial:
    return Trial(0, SPACE.from_string(ARCHS[row]), budget, seed)


def test_a_unit_is_a_step_along_the_known_epochs():
    objective = TableObjective(SPACE, planted())
    assert (objective.epochs, objective.units, objective.final_epochs) == (EPOCHS, 5, 9)
    measurements = list(objective(trial(2, 5, seed=1)))
    assert [m.budget for m in measurements] == [1, 2, 3, 4, 5]
    assert [m.valid_accuracy for m in measurements] == [0.211, 0.212, 0.213, 0.216, 0.219]
    assert [m.train_seconds for m in measurements] == [5.0, 5.0, 5.0, 15.0, 15.0]
    assert [m.evaluate_seconds for m in measurements] == [0.5] * 5
    assert [m.train_loss for m in measurements] == pytest.approx(
        [0.789, 0.788, 0.787, 0.784, 0.781], abs=1e-6
    )
    assert all(math.isnan(m.valid_loss) and math.isnan(m.train_accuracy) for m in measurements)


def test_coarser_steps_cost_as_much_training_and_fewer_validations():
    objective = TableObjective(SPACE, planted(), epochs=(3, 9))
    measurements = list(objective(trial(2, 2)))
    assert [(m.budget, m.valid_accuracy) for m in measurements] == [(1, 0.203), (2, 0.209)]
    assert [m.seconds for m in measurements] == [12.5, 24.5]
    for wrong in ((9, 3), (3, 3), ()):
        with pytest.raises(InputError, match="are not rising epochs"):
            TableObjective(SPACE, planted(), epochs=wrong)
    with pytest.raises(InputError, match=r"has no digits/9/valid_accuracy@4; it has .*@1,2,3,6,9"):
        TableObjective(SPACE, planted(), epochs=(4,))


def test_how_a_budget_is_cut_into_calls_changes_nothing():
    objective = TableObjective(SPACE, planted())
    whole = tuple(objective(trial(1, 5, seed=3)))
    first = trial(1, 2, seed=3)
    for measurement in objective(first):
        first = first.add(measurement)
    rest = tuple(objective(first.replace(budget=5)))
    assert first.measurements + rest == whole == objective.measurements(first.arch, 3)


def test_the_seed_picks_the_repetition():
    objective = TableObjective(SPACE, planted())
    seen = {seed: next(objective(trial(0, 1, seed))).valid_accuracy for seed in range(4)}
    assert seen == {0: 0.001, 1: 0.011, 2: 0.001, 3: 0.011}
    assert {next(objective(trial(5, 1, seed))).valid_accuracy for seed in range(4)} == {0.501}


def test_what_is_not_in_the_table_fails_as_a_trial():
    wider = SearchSpace("toy", {**SPACE.choices, "kind": Categorical(("conv", "pool", "skip"))})
    objective = TableObjective(wider, planted())
    outside = Trial(0, wider.from_string("depth=1,kind=skip"), 1, 0)
    with pytest.raises(TrialFailed, match=r"planted: has no depth=1,kind=skip among its 6"):
        next(objective(outside))
    with pytest.raises(TrialFailed, match=rf"digits/9/valid_accuracy of {ARCHS[4]} is not known"):
        next(objective(trial(4, 1)))
    with pytest.raises(InputError, match="a budget of 6 is more than the 5 units of digits/9/valid_accuracy"):
        next(objective(trial(0, 6)))
    assert objective.final(outside.arch, 0, 9).error == "table planted: has no depth=1,kind=skip among its 6"


def test_the_judgement_is_the_test_columns():
    objective = TableObjective(SPACE, planted())
    arch = SPACE.from_string(ARCHS[2])
    final = objective.final(arch, 1, 3)
    assert (final.test_accuracy, final.epochs, final.seed, final.error) == (0.42, 3, 1, None)
    assert (final.params, final.macs_per_image) == (20, 200) == objective.describe(trial(2, 1))
    assert math.isnan(final.valid_accuracy)  # that training has no validation column
    assert objective.final(SPACE.from_string(ARCHS[3]), 1, 9).test_accuracy == 0.5  # it has one repetition
    with pytest.raises(
        InputError, match=r"has no digits-all/9/test_accuracy@5; it has .*, digits-all/9/test_accuracy@3,9$"
    ):
        objective.final(arch, 0, 5)
    np.testing.assert_allclose(objective.test_accuracies, [0.21, 0.31, 0.41, 0.5, 0.61, 0.71], rtol=1e-6)
    assert objective.regret(arch) == pytest.approx(0.3)


def test_finals_cost_what_their_training_did():
    cost = Cost(np.full((6, 1), 8.0, np.float32), np.full((6, 1), 0.25, np.float32))
    objective = TableObjective(
        SPACE, planted(costs={**planted().costs, ("digits-all", 9): cost}), test_epoch=3
    )
    final = objective.final(SPACE.from_string(ARCHS[0]), 1, objective.final_epochs)
    assert (final.train_seconds, final.evaluate_seconds) == (24.0, 0.25)


def test_a_narrower_space_has_its_own_optimum():
    narrow = SPACE.fix("kind", "conv")
    objective = TableObjective(narrow, planted())
    known = ~np.isnan(objective.test_accuracies)
    assert known.tolist() == ["conv" in text for text in ARCHS]
    best = max(narrow.enumerate(), key=lambda arch: objective.test_accuracies[objective.row(arch)])
    assert objective.regret(best) == 0


@pytest.mark.parametrize(
    ("options", "changes", "says"),
    [
        ({"dataset": "mnist"}, {}, "table planted: dataset: 'mnist' is not one of digits"),
        ({"valid": TEST}, {}, "a search sees a valid_accuracy, not digits-all/9/test_accuracy"),
        ({"test": VALID}, {}, "a choice is judged by a test_accuracy, not digits/9/valid"),
        (
            {"test_epoch": 8},
            {},
            "has no digits-all/9/test_accuracy@8; it has digits/9/train_loss@1..9, digits/9/valid",
        ),
        ({"valid": Column("digits", 12, "valid_accuracy")}, {}, "has no digits/12/valid_accuracy; it has"),
        ({}, {"space": "chain"}, "table planted: is of the space chain, not toy"),
        ({}, {"tasks": {}}, "has no protocol of its own; it has digits/9"),
        ({}, {"costs": {}}, "has no seconds of digits/9, only of nothing"),
        ({}, {"archs": ("x",) * 6}, "holds no architecture of toy: toy: 'x' is not name=value"),
    ],
)
def test_bad_input_is_one_line(options, changes, says):
    with pytest.raises(InputError) as caught:
        TableObjective(SPACE, planted(**changes), **options)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_engine_searches_a_table(tmp_path):
    """The whole way: a search over the planted table ends at the validation's best, failures and all."""
    objective = TableObjective(SPACE, planted())
    strategy = STRATEGIES["grid"](SPACE, StrategyConfig(epochs=objective.units))
    with Record.create(tmp_path / "run", {"strategy": "grid"}, env={}, fsync=False) as record:
        run = local.execute(strategy, objective, record, epochs=objective.units)
    assert run.best is not None
    assert run.best.arch == SPACE.from_string(ARCHS[5])
    assert run.best.params == 50
    assert [t.error for t in run.failed] == [f"table planted: {VALID} of {ARCHS[4]} is not known"]
    assert run.train_seconds == pytest.approx(
        sum(
            9 * (5 if t.seed % 2 and t.arch != run.best.arch else 4)
            for t in run.trials.values()
            if t.status != "failed"
        ),
        abs=0.05,  # what the engine itself takes
    )


def test_a_query_takes_microseconds():
    objective = TableObjective(SPACE, planted())
    archs = [SPACE.sample((0, i)).set() for i in range(200)]
    archs = [arch for arch in archs if SPACE.to_string(arch) != ARCHS[4]]
    began = time.process_time()
    for seed in range(100):
        for arch in archs:
            objective.measurements(arch, seed)
    assert (time.process_time() - began) / (100 * len(archs)) < 50e-6
