"""Searches on simulated clusters against schedules made by hand, and against the loop of one worker."""

from __future__ import annotations

import dataclasses
import heapq
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nas.errors import InputError
from nas.objectives.table import TableObjective
from nas.record.comparison import SEARCHES, Job, Search, read_comparison
from nas.run import simulated
from nas.run.simulated import TableOptions, benchmark, compare, compare_workers
from nas.run.simulated_cluster import PLAIN, SimulatedCluster, execute
from nas.space import Architecture, Categorical, SearchSpace
from nas.strategies import STRATEGIES, combined_config
from nas.strategies.base import LARGEST_SEED, Strategy, new_trial
from nas.strategies.successive_halving import HalvingConfig
from nas.tables import Table, write_table
from nas.trial import Trial
from tests.planted import planted

Config: Any = combined_config(STRATEGIES.values())
SPACE = SearchSpace("toy", {f"edge_{k}": Categorical(("none", "skip", "conv")) for k in range(4)})
_, TABLE = planted(SPACE, 4, noise=0.01)
MEAN = TableObjective(SPACE, TABLE).mean_training_seconds


def spaces(name: str) -> Mapping[str, SearchSpace]:
    return {"toy": SPACE}


def timed(seconds: Sequence[float], epochs: int = 1) -> tuple[TableObjective, list[Architecture]]:
    """Architectures whose epochs take these seconds; each is better than the one before."""
    archs = list(SPACE.enumerate())
    table: Table = planted(SPACE, 4, epochs=9)[1]
    times = np.ones((len(archs), 1), np.float32)
    times[: len(seconds), 0] = seconds
    cost = next(iter(table.costs.values()))
    made = cost._replace(train_seconds=times, evaluate_seconds=np.zeros_like(times))
    rising = np.linspace(0.1, 0.9, len(archs), dtype=np.float32)[:, None, None]
    columns = {
        column: curve._replace(values=np.broadcast_to(rising, curve.values.shape).copy())
        for column, curve in table.columns.items()
    }
    table = dataclasses.replace(table, columns=columns, costs=dict.fromkeys(table.costs, made))
    return TableObjective(SPACE, table, epochs=tuple(range(1, epochs + 1))), archs


class Listed:
    """A strategy that asks for these architectures in turn, each up to ``epochs``; notes what it is told."""

    def __init__(self, archs: Sequence[Architecture], epochs: int = 1) -> None:
        self.archs, self.epochs, self.asked = archs, epochs, 0
        self.told: list[Trial] = []

    def ask(self, arch: Architecture | None = None) -> Trial | None:
        if self.asked == len(self.archs):
            return None
        trial = new_trial(Config(seed=0), self.asked, self.archs[self.asked], self.epochs)
        self.asked += 1
        return trial

    def candidates(self):
        return iter(())

    def tell(self, trial: Trial) -> None:
        self.told.append(trial)

    @property
    def paused(self) -> frozenset[int]:
        return frozenset()


def one_worker(strategy: Strategy, objective: TableObjective, job: Job, budget_seconds: float) -> Search:
    """The loop that searches over tables were made with before there were clusters."""
    spent, units, trials, best = 0.0, 0, 0, -math.inf
    leaders: list[tuple[float, float, float, str]] = []
    while (trial := strategy.ask()) is not None:
        measurements = objective.measurements(trial.arch, trial.seed)
        cut = False
        for measurement in measurements[trial.spent : trial.budget]:
            if spent + measurement.seconds > budget_seconds:
                cut = True
                break
            spent += measurement.seconds
            trials += measurement.budget == 1
            units += 1
            if measurement.valid_accuracy > best:
                best = measurement.valid_accuracy
                test = float(objective.test_accuracies[objective.row(trial.arch)])
                leaders.append((spent, best, test, objective.space.to_string(trial.arch)))
        if cut:
            break
        strategy.tell(trial.replace(status="completed", measurements=measurements[: trial.budget]))
    costs, valid, test, archs = zip(*leaders, strict=True)
    return Search(job.strategy, job.seed, trials, units, spent, costs, valid, test, archs)


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.some(5)
def test_one_worker_without_noise_is_the_loop_to_the_bit(name: str) -> None:
    objective = TableObjective(SPACE, TABLE)
    for seed in range(3):
        plan = Config(seed=seed, epochs=9, iterations=None, startup=6)
        before = one_worker(STRATEGIES[name](SPACE, plan), objective, Job(seed, name), 23.7 * MEAN)
        now = execute(STRATEGIES[name](SPACE, plan), objective, Job(seed, name), 23.7 * MEAN)
        assert now.cluster is not None
        assert now.cluster.wall_seconds == now.cost_seconds
        assert now.cluster.incumbents_wall_seconds == now.costs_seconds
        assert dataclasses.replace(now, cluster=None) == before


def test_two_workers_by_hand() -> None:
    """Graham's list scheduling of 3, 2, 2, 4, 1: the workers are free at 0 and 0, 2, 3, 4, 5."""
    objective, archs = timed([3, 2, 2, 4, 1])
    listed = Listed(archs[:5])
    found = execute(listed, objective, Job(0, "listed"), 1000.0, workers=2)
    # Worker 0: trial 0 until 3, trial 3 until 7. Worker 1: trial 1 until 2, trial 2 until 4, trial 4 until 5.
    assert [trial.id for trial in listed.told] == [1, 0, 2, 4, 3]
    assert found.cluster is not None
    assert found.cluster.wall_seconds == 7
    assert found.cost_seconds == 12
    # Rising accuracies: leaders are 1 (at 2), 2 (at 4, not 0 at 3), 4 (at 5); 3 at 7 is worse than 4.
    assert found.archs == tuple(SPACE.to_string(archs[k]) for k in (1, 2, 4))
    assert found.cluster.incumbents_wall_seconds == (2, 4, 5)
    assert found.costs_seconds == (2, 7, 8)  # 2, 2 + 3 + 2, and 1 more


def list_schedule(seconds: Sequence[float], workers: int, speeds: Sequence[float] = (1.0,)) -> float:
    """The makespan of Graham's list scheduling: each job to the worker that is free first."""
    free = [(0.0, k) for k in range(workers)]
    end = 0.0
    for job in seconds:
        when, k = heapq.heappop(free)
        when += job / speeds[k % len(speeds)]
        end = max(end, when)
        heapq.heappush(free, (when, k))
    return end


@pytest.mark.parametrize(
    ("workers", "speeds"), [(1, (1.0,)), (3, (1.0,)), (7, (1.0, 0.25)), (100, (2.0, 1.0, 3.0))]
)
def test_any_number_of_workers_is_list_scheduling(workers: int, speeds: tuple[float, ...]) -> None:
    seconds = np.random.default_rng(5).uniform(1, 9, 60).astype(np.float32).astype(float)
    objective, archs = timed(list(seconds), epochs=3)
    seconds = np.array(
        [objective.measurements(arch, 0)[0].seconds for arch in archs[:60]]
    )  # as the table has them
    cluster = SimulatedCluster(worker_speeds=speeds, startup_seconds=11.0)
    found = execute(Listed(archs[:60], 3), objective, Job(0, "listed"), 1e6, workers=workers, cluster=cluster)
    assert found.cluster is not None
    assert found.cluster.wall_seconds - 11 == pytest.approx(list_schedule(list(3 * seconds), workers, speeds))
    assert (found.trials, found.units) == (60, 180)


def test_the_budget_is_all_workers_together() -> None:
    """Units of 4 seconds on 3 workers, 50 seconds in all: 12 units begin, those under way are finished."""
    objective, archs = timed([4.0] * 30, epochs=5)
    found = execute(Listed(archs[:30], 5), objective, Job(0, "listed"), 50.0, workers=3)
    assert found.units == 12
    assert found.cost_seconds == 48
    assert found.cluster is not None
    assert found.cluster.wall_seconds == 16
    with pytest.raises(
        InputError, match=r"budget_seconds: 3 is too little: listed with seed 0 measured nothing"
    ):
        execute(Listed(archs, 5), objective, Job(0, "listed"), 3.0, workers=3)


def test_workers_wait_where_the_strategy_does() -> None:
    """Nine trials of one second, three of two more, one of six more: 9 workers need 1 + 2 + 6 seconds."""
    objective, _ = timed([1.0] * 81, epochs=9)
    strategy = STRATEGIES["successive_halving"](SPACE, HalvingConfig(trials=9, epochs=9))
    found = execute(strategy, objective, Job(0, "successive_halving"), 1e6, workers=9)
    assert found.cluster is not None
    assert (found.units, found.cluster.wall_seconds) == (9 + 3 * 2 + 6, 9)
    again = STRATEGIES["successive_halving"](SPACE, HalvingConfig(trials=9, epochs=9))
    two = execute(again, objective, Job(0, "successive_halving"), 1e6, workers=2)
    assert two.cluster is not None
    assert two.cluster.wall_seconds == 5 + 4 + 6  # nine on two, three on two (2 + 2), one
    assert two.archs[-1] == found.archs[-1]


def strikes(seed: int, kind: int) -> np.random.Generator:
    """The randomness of stragglers (0), failures (1) or preemptions (2) of a search, as stated."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(LARGEST_SEED, 0, kind)))


def test_failures_are_those_of_the_seed() -> None:
    """One worker, trainings of 5 units of 60 s, 20 failures an hour: drawn here again, training by training."""
    objective, archs = timed([60.0] * 40, epochs=5)
    listed = Listed(archs[:40], 5)
    found = execute(listed, objective, Job(7, "listed"), 1e9, cluster=SimulatedCluster(failure_rate=20.0))
    moments = strikes(7, 1).exponential(3600 / 20, 40)
    failed = moments < 300
    assert 5 < failed.sum() < 39
    assert [trial.status == "failed" for trial in listed.told] == failed.tolist()
    assert [len(trial.measurements) for trial in listed.told] == np.minimum(moments // 60, 5).astype(
        int
    ).tolist()
    assert found.cluster is not None
    assert found.cluster.failures == failed.sum()
    assert found.cluster.wall_seconds == pytest.approx(np.minimum(moments, 300).sum())
    assert found.cluster.lost_seconds == pytest.approx((moments % 60)[failed].sum())
    assert found.cost_seconds == pytest.approx(found.cluster.wall_seconds)


def test_preempted_work_goes_on_from_its_last_unit() -> None:
    """One worker, restarts of 100 s: every training ends, and only the units under way are lost."""
    objective, archs = timed([60.0] * 20, epochs=5)
    listed = Listed(archs[:20], 5)
    cluster = SimulatedCluster(preemption_rate=12.0, startup_seconds=100.0)
    found = execute(listed, objective, Job(3, "listed"), 1e9, cluster=cluster)
    draws = strikes(3, 2)
    now, lost, preemptions = 100.0, 0.0, 0
    for _ in range(20):
        done = 0
        while done < 5:
            until = draws.exponential(3600 / 12)
            units = min(int(until // 60), 5 - done)
            done += units
            now += 60 * units
            if done < 5:
                preemptions, lost, now = (
                    preemptions + 1,
                    lost + until - 60 * units,
                    now + until - 60 * units + 100,
                )
    assert preemptions > 5
    assert [trial.status for trial in listed.told] == ["completed"] * 20
    assert found.cluster is not None
    assert (found.units, found.cluster.preemptions) == (100, preemptions)
    assert found.cluster.wall_seconds == pytest.approx(now)
    assert found.cluster.lost_seconds == pytest.approx(lost)
    assert found.cost_seconds == pytest.approx(6000 + lost)


def test_a_preempted_trial_is_another_workers_before_anything_new() -> None:
    objective, archs = timed([60.0] * 8)
    listed = Listed(archs[:8])
    cluster = SimulatedCluster(
        preemption_rate=30.0, startup_seconds=1e6
    )  # who is preempted does not come back soon
    found = execute(listed, objective, Job(2, "listed"), 1e9, workers=4, cluster=cluster)
    draws = strikes(2, 2).exponential(120, 4)
    assert sorted(trial.id for trial in listed.told) == list(range(8))
    assert (draws < 60).any()
    assert (draws > 60).any()
    first_free = 60.0
    assert found.cluster is not None
    assert found.cluster.incumbents_wall_seconds[0] == 1e6 + first_free


def test_stragglers_take_longer() -> None:
    objective, archs = timed([10.0] * 30)
    cluster = SimulatedCluster(straggler_rate=0.3, straggler_factor=4.0)
    found = execute(Listed(archs[:30]), objective, Job(1, "listed"), 1e9, cluster=cluster)
    slow = int((strikes(1, 0).random(30) < 0.3).sum())
    assert 3 < slow < 20
    assert found.cluster is not None
    assert found.cluster.stragglers == slow
    assert found.cost_seconds == found.cluster.wall_seconds == 10 * (30 - slow) + 40 * slow


NOISY = SimulatedCluster(
    worker_speeds=(1.0, 0.5),
    straggler_rate=0.1,
    failure_rate=20.0,
    preemption_rate=50.0,
    startup_seconds=5.0,
    price_per_worker_hour=2.5,
)


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.some(5)
def test_every_strategy_runs_on_a_bad_cluster_and_twice_the_same(name: str) -> None:
    objective = TableObjective(SPACE, TABLE)
    plan = Config(seed=1, epochs=9, iterations=None, startup=6)
    first, second = (
        execute(STRATEGIES[name](SPACE, plan), objective, Job(1, name), 60 * MEAN, workers=24, cluster=NOISY)
        for _ in range(2)
    )
    assert first == second
    assert first.cluster is not None
    assert first.cluster.failures
    assert first.cluster.preemptions
    assert first.cluster.stragglers
    assert 0.5 * 60 * MEAN < first.cost_seconds <= 60 * MEAN
    assert first.cluster.lost_seconds < first.cost_seconds < 24 * first.cluster.wall_seconds
    assert list(first.cluster.incumbents_wall_seconds) == sorted(first.cluster.incumbents_wall_seconds)
    assert Search.of(json.loads(first.to_json())) == first


# ------------------------------------------------------------------------------------------------ the record


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("tables") / "toy.npz"
    write_table(TABLE, path)
    return str(path)


def options(file: str, **more: Any) -> TableOptions:
    given = {"table": file, "seeds": 3, "strategies": ("random", "hyperband", "evolution"), "processes": 1}
    return TableOptions(**{**given, **more})


def test_a_comparison_of_workers_is_one_folder_each_and_one_worker_is_as_before(
    file: str, tmp_path: Path
) -> None:
    compare(options(file), spaces, tmp_path / "before")
    found = compare_workers(options(file, workers=(1, 4)), spaces, tmp_path / "now")
    assert [comparison.folder.name for comparison in found] == ["workers-1", "workers-4"]
    assert [comparison.workers for comparison in found] == [1, 4]
    for name in (SEARCHES, "config.json"):
        assert (tmp_path / "now" / "workers-1" / name).read_bytes() == (
            tmp_path / "before" / name
        ).read_bytes()
    assert found[1].config["worker_speeds"] == [1.0]
    again = compare_workers(options(file, workers=(1, 4, 9)), spaces, tmp_path / "now", resume=True)
    assert [comparison.searches for comparison in again[:2]] == [comparison.searches for comparison in found]
    assert again[2].workers == 9
    lines = (tmp_path / "now" / "workers-9" / SEARCHES).read_text().splitlines(keepends=True)
    (tmp_path / "now" / "workers-9" / SEARCHES).write_text("".join(lines[:4]) + lines[4][:30])
    compare_workers(options(file, workers=(9,)), spaces, tmp_path / "now", resume=True)
    assert (tmp_path / "now" / "workers-9" / SEARCHES).read_text() == "".join(lines)
    with pytest.raises(InputError, match="workers-1: holds a run already"):
        compare_workers(options(file, workers=(1, 4)), spaces, tmp_path / "now")
    with pytest.raises(InputError, match="holds a comparison without a cluster"):
        compare_workers(options(file, workers=(4,)), spaces, tmp_path / "before")
    with pytest.raises(InputError, match="no comparison of workers to resume there"):
        compare_workers(options(file, workers=(4,)), spaces, tmp_path / "none", resume=True)
    slower = options(file, workers=(4,), cluster=SimulatedCluster(startup_seconds=3.0))
    with pytest.raises(InputError, match=r"another config: startup_seconds=3\.0 \(recorded: 0\.0\)"):
        compare_workers(slower, spaces, tmp_path / "now", resume=True)
    with pytest.raises(InputError, match="workers: 1 4: one number for one comparison"):
        compare(options(file, workers=(1, 4)), spaces, tmp_path / "none")


def test_a_damaged_line_of_a_cluster_is_said(file: str, tmp_path: Path) -> None:
    (found,) = compare_workers(options(file, workers=(4,), seeds=1), spaces, tmp_path)
    path = found.folder / SEARCHES
    line = path.read_text().splitlines()[0]
    for old, new, says in (
        ('"failures": 0', '"failures": -1', "failures=-1 is below 0"),
        ('"wall_seconds": ', '"wall_seconds": -', "wall_seconds=-"),
        ('"incumbents_wall_seconds": [', '"incumbents_wall_seconds": [0.5, ', "not as many as their times"),
    ):
        path.write_text(line.replace(old, new) + "\n")
        with pytest.raises(InputError, match=f"searches.jsonl:1: not a search.*{says}"):
            read_comparison(found.folder)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"worker_speeds": ()}, "worker_speeds: is empty"),
        ({"worker_speeds": (1.0, 0.0)}, "worker_speeds: 0 is not from 0.001 to 1000"),
        ({"worker_speeds": (math.nan,)}, "worker_speeds: nan is not from"),
        ({"straggler_rate": 1.5}, "straggler_rate: 1.5 is not from 0 to 1"),
        ({"straggler_factor": 0.5}, "straggler_factor: 0.5 is not from 1 to 1000"),
        ({"failure_rate": -1.0}, "failure_rate: -1 is not from 0 to 3600"),
        ({"preemption_rate": 1e9}, "preemption_rate: 1e+09 is not from 0 to 3600"),
        ({"startup_seconds": math.inf}, "startup_seconds: inf is not from 0 to 1e+06"),
        ({"price_per_worker_hour": 0.0}, "price_per_worker_hour: 0 is not a number above 0"),
    ],
)
def test_a_cluster_that_cannot_be_meant(given: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as caught:
        SimulatedCluster(**given)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("workers", "says"),
    [
        ((0,), "workers: 0 is not from 1 to 1,000,000"),
        ((4, 4), "workers: 4 4: say each number once"),
        ((), "workers: none: say each number once"),
    ],
)
def test_numbers_of_workers_that_cannot_be_meant(file: str, workers: tuple[int, ...], says: str) -> None:
    with pytest.raises(InputError) as caught:
        options(file, workers=workers)
    assert says in str(caught.value)


def test_with_everything_at_its_default_nothing_is_a_cluster(file: str) -> None:
    shared = benchmark(options(file), spaces)
    assert (shared.workers, shared.cluster) == (1, PLAIN)
    assert shared.search(Job(0, "random")).cluster is None
    assert options(file).plain
    assert not options(file, cluster=SimulatedCluster(price_per_worker_hour=1.0)).plain
    assert simulated.execute is execute
