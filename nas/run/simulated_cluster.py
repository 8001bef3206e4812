"""A cluster on simulated time: one search over a table, carried out by any number of workers that differ and fail.

An event-driven simulation. Every worker has one piece of work at a time ("bring trial i to budget b"), which it
works off unit by unit; a unit takes what the table says. As soon as a worker is free it gets the next piece of
work; where the strategy has none while others are at work, it waits until something is told. That is list
scheduling (Graham, "Bounds on multiprocessing timing anomalies", 1969) of work that appears as the search goes on.
"""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from nas.errors import InputError
from nas.objectives.base import TrialFailed
from nas.objectives.table import TableObjective
from nas.record.comparison import ClusterUse, Job, Search
from nas.run.driver import MAX_CONSECUTIVE_FAILURES
from nas.space import Architecture
from nas.strategies import Strategy
from nas.strategies.base import LARGEST_SEED, generator
from nas.tables.scores import Score
from nas.trial import Measurement, Trial

MOST_WORKERS = 1_000_000
MOST_AN_HOUR = 3600.0  # failures or preemptions: with more than one a second nothing would ever end
SLOWEST, FASTEST = 1e-3, 1e3
LONGEST_STARTUP = 1e6  # seconds: more than a week is a slip
HOUR = 3600.0


@dataclasses.dataclass(frozen=True)
class SimulatedCluster:
    """What the workers are like; with the defaults all alike, never failing, and at once there.

    Failures and preemptions come at random moments (a Poisson process) of the hours that a worker is at work.
    A failure ends the trial, which stays failed. A preemption loses the unit under way: the next free worker goes
    on from the unit before it, and the worker is back after ``startup_seconds``.
    """

    worker_speeds: tuple[float, ...] = (1.0,)
    """how fast the workers are, dealt to them in turn: 1 0.5 makes every second one take twice the table's seconds"""
    straggler_rate: float = 0.0
    """the part of the pieces of work that a worker takes longer for, drawn at random"""
    straggler_factor: float = 5.0
    """how many times longer a straggler takes"""
    failure_rate: float = 0.0
    """failures per hour that a worker is at work; each ends its trial as failed"""
    preemption_rate: float = 0.0
    """preemptions per hour that a worker is at work; each loses the unit under way and restarts the worker"""
    startup_seconds: float = 0.0
    """simulated seconds before a worker can begin, at the start and after a preemption"""
    price_per_worker_hour: float | None = None
    """what a worker costs an hour, from the start of the search to its end; default: cost in worker-hours"""

    def __post_init__(self) -> None:
        if not self.worker_speeds:
            raise InputError("worker_speeds: is empty")
        for speed in self.worker_speeds:
            if not SLOWEST <= speed <= FASTEST:
                raise InputError(f"worker_speeds: {speed:g} is not from {SLOWEST:g} to {FASTEST:g}")
        for name, high in (
            ("straggler_rate", 1.0),
            ("failure_rate", MOST_AN_HOUR),
            ("preemption_rate", MOST_AN_HOUR),
        ):
            if not 0 <= getattr(self, name) <= high:
                raise InputError(f"{name}: {getattr(self, name):g} is not from 0 to {high:g}")
        if not 1 <= self.straggler_factor <= FASTEST:
            raise InputError(f"straggler_factor: {self.straggler_factor:g} is not from 1 to {FASTEST:g}")
        if not 0 <= self.startup_seconds <= LONGEST_STARTUP:
            raise InputError(
                f"startup_seconds: {self.startup_seconds:g} is not from 0 to {LONGEST_STARTUP:g}"
            )
        price = self.price_per_worker_hour
        if price is not None and not 0 < price < math.inf:
            raise InputError(f"price_per_worker_hour: {price:g} is not a number above 0")


PLAIN = SimulatedCluster()


class AccumulatedScore:
    """A score as a function of architectures that knows what it has cost so far; `filtered` asks for each once."""

    def __init__(self, score: Score) -> None:
        self._score = score
        self.seconds = 0.0

    def __call__(self, arch: Architecture) -> float:
        self.seconds += self._score.seconds.get(arch, 0.0)
        return self._score.values.get(
            arch, math.nan
        )  # it is not in the table either, and its trial will fail


def execute(
    strategy: Strategy,
    objective: TableObjective,
    job: Job,
    budget_seconds: float,
    scoring: AccumulatedScore | None = None,
    *,
    workers: int = 1,
    cluster: SimulatedCluster = PLAIN,
    on_measured: Callable[[Trial, Measurement, float], None] = lambda trial, measurement, cost_seconds: None,
) -> Search:
    """Ask, look up, tell, until the next unit would cost more than what is left of the budget.

    The budget is what all workers together are at work, in their seconds: the search ends with the first unit that
    would take more than is left, which is not measured, and the units under way are brought to their end. (With
    one worker, what a budget cuts off is lost, as in the benchmarks' own scripts.) A trial that comes back with a
    larger budget pays for the units beyond those it has. The incumbent is the architecture with the highest
    validation accuracy measured so far, at any unit; its test accuracy is read when it comes to lead, and told to
    nobody. What scoring candidates costs counts: the worker that the trial is for does it first.

    What is random comes from ``job.seed``, for each kind of event by itself. ``on_measured`` hears of every unit, with
    what the search has cost by its end.

    Raises InputError: the budget does not suffice for one unit, or nothing but failures come.
    """
    simulation = _Simulation(strategy, objective, job, budget_seconds, scoring, workers, cluster)
    simulation.on_measured = on_measured
    return simulation.run()


class _Piece(NamedTuple):
    """A piece of work that no worker has: ``trial``, of whose ``measurements`` the first ``done`` are made."""

    trial: Trial
    measurements: Sequence[Measurement]
    done: int


class _Worker:
    """A worker, its piece of work, and what happens to it next. Without work it is starting or waits."""

    __slots__ = (
        "began",
        "done",
        "end",
        "fails",
        "measurements",
        "number",
        "seconds",
        "slowness",
        "speed",
        "strikes",
        "trial",
    )

    def __init__(self, number: int, speed: float) -> None:
        self.number, self.speed = number, speed
        self.trial: Trial | None = None
        self.measurements: Sequence[Measurement] = ()
        self.done = 0  # units of the trial
        self.slowness = 1.0  # seconds here over those in the table
        self.began = self.end = self.seconds = 0.0  # of the unit under way
        self.strikes = math.inf  # when a failure or a preemption would interrupt it, and which of them
        self.fails = False


class _Simulation:
    def __init__(
        self,
        strategy: Strategy,
        objective: TableObjective,
        job: Job,
        budget_seconds: float,
        scoring: AccumulatedScore | None,
        workers: int,
        cluster: SimulatedCluster,
    ) -> None:
        self._strategy, self._objective, self._scoring = strategy, objective, scoring
        self._job, self._budget_seconds, self._cluster = job, budget_seconds, cluster
        speeds = cluster.worker_speeds
        start = cluster.startup_seconds
        # Sorted, so it is a heap: when, in which order, and to whom something happens next.
        self._events = [(start, k, _Worker(k, speeds[k % len(speeds)])) for k in range(workers)]
        self._order = workers
        self._free: list[tuple[int, _Worker]] = []  # a heap: the one with the lowest number first
        self._left: deque[_Piece] = deque()  # by preempted workers
        self.on_measured: Callable[[Trial, Measurement, float], None] = lambda trial, measurement, cost: None
        self._over = False  # no unit begins any more
        self._spent = 0.0  # worker-seconds of the units begun: what the budget goes by
        self._done = 0.0  # the same of the units that have ended
        self._units = self._trials = self._failures_in_a_row = 0
        self._best = -math.inf
        self._leaders: list[tuple[float, float, float, str]] = []
        self._leads_at: list[float] = []  # on the clock
        self._wall = self._lost = 0.0
        self._stragglers = self._failures = self._preemptions = 0
        noise = (cluster.straggler_rate, cluster.failure_rate, cluster.preemption_rate)
        self._random: list[np.random.Generator | None] = [
            # As if of a trial that no search comes to: independent of all that strategies draw.
            generator(job.seed, LARGEST_SEED, kind) if rate else None
            for kind, rate in enumerate(noise)
        ]

    def run(self) -> Search:
        events = self._events
        event = heapq.heappop(events)
        while True:
            now, _, worker = event
            following = self._go_on(worker, now)
            if following is not None:
                event = heapq.heappushpop(events, following)
            elif events:
                event = heapq.heappop(events)
            else:
                break
        return self._search()

    # ------------------------------------------------------------------------------------------- what happens

    def _go_on(self, worker: _Worker, now: float) -> tuple[float, int, _Worker] | None:
        """What ``worker`` comes to at the time ``now``; the event that follows for itself, if one is known."""
        trial = worker.trial
        if trial is not None:
            if worker.strikes < worker.end:
                return self._interrupt(worker, trial, now)
            self._measure(worker, trial, now)
            if worker.done < trial.budget:
                return self._begin_unit(worker, now)
            worker.trial = None
            self._strategy.tell(
                trial.replace(status="completed", measurements=worker.measurements[: trial.budget])
            )
        heapq.heappush(self._free, (worker.number, worker))
        self._give(now)
        return None

    def _measure(self, worker: _Worker, trial: Trial, now: float) -> None:
        """The unit of ``worker`` has come to its end."""
        measurement = worker.measurements[worker.done]
        worker.done += 1
        self._wall = now
        self._failures_in_a_row = 0
        self._done += worker.seconds
        self._units += 1
        self._trials += measurement.budget == 1
        self.on_measured(trial, measurement, self._done + self._scored)
        if measurement.valid_accuracy > self._best:
            self._best = measurement.valid_accuracy
            test = float(self._objective.test_accuracies[self._objective.row(trial.arch)])
            cost = self._done + self._scored
            self._leaders.append((cost, self._best, test, self._objective.space.to_string(trial.arch)))
            self._leads_at.append(now)

    def _interrupt(self, worker: _Worker, trial: Trial, now: float) -> tuple[float, int, _Worker] | None:
        """A failure or a preemption has struck ``worker`` within a unit."""
        lost = now - worker.began
        self._done += lost
        self._lost += lost
        self._wall = now
        worker.trial = None
        if worker.fails:
            self._failures += 1
            told = trial.replace(status="failed", error="the worker failed (simulated)")
            self._strategy.tell(told.replace(measurements=tuple(worker.measurements[: worker.done])))
            heapq.heappush(self._free, (worker.number, worker))
            self._give(now)
            return None
        self._preemptions += 1
        self._left.append(_Piece(trial, worker.measurements, worker.done))
        self._give(now)
        return self._event(now + self._cluster.startup_seconds, worker)

    def _give(self, now: float) -> None:
        """Work for the free workers, as long as there is some."""
        while self._free and not self._over:
            scored = self._scored
            piece = self._left.popleft() if self._left else self._asked()
            if piece is None:
                return
            _, worker = heapq.heappop(self._free)
            event = self._begin(worker, piece, now + (self._scored - scored))
            if event is not None:
                heapq.heappush(self._events, event)

    def _asked(self) -> _Piece | None:
        """What the strategy asks for next that the table can answer; None where there is nothing now.

        Raises InputError where there is nothing but what the table cannot answer.
        """
        while (trial := self._strategy.ask()) is not None:
            try:
                return _Piece(trial, self._objective.measurements(trial.arch, trial.seed), trial.spent)
            except TrialFailed as failure:
                self._failures_in_a_row += 1
                if self._failures_in_a_row == MAX_CONSECUTIVE_FAILURES:
                    raise InputError(
                        f"search: {MAX_CONSECUTIVE_FAILURES} trials failed in a row, the last with: {failure}"
                    ) from None
                self._strategy.tell(trial.replace(status="failed", error=str(failure)))
        return None

    # ---------------------------------------------------------------------------------------------- beginning

    def _begin(self, worker: _Worker, piece: _Piece, now: float) -> tuple[float, int, _Worker] | None:
        """``worker`` takes up ``piece``; draws what will happen to it."""
        worker.trial, worker.measurements, worker.done = piece
        cluster, (straggling, failing, preempting) = self._cluster, self._random
        worker.slowness = 1 / worker.speed
        worker.strikes = math.inf
        if straggling is not None and straggling.random() < cluster.straggler_rate:
            self._stragglers += 1
            worker.slowness *= cluster.straggler_factor
        if failing is not None:
            worker.strikes = now + failing.exponential(HOUR / cluster.failure_rate)
            worker.fails = True
        if preempting is not None:
            preempted = now + preempting.exponential(HOUR / cluster.preemption_rate)
            if preempted < worker.strikes:
                worker.strikes, worker.fails = preempted, False
        return self._begin_unit(worker, now)

    def _begin_unit(self, worker: _Worker, now: float) -> tuple[float, int, _Worker] | None:
        """The event with which the next unit ends; None where the budget does not hold it, and the search is over."""
        seconds = worker.measurements[worker.done].seconds * worker.slowness
        if self._over or self._spent + self._scored + seconds > self._budget_seconds:
            self._over, worker.trial = True, None
            return None
        worker.began, worker.end, worker.seconds = now, now + seconds, seconds
        if worker.strikes < worker.end:
            self._spent += worker.strikes - now
            return self._event(worker.strikes, worker)
        self._spent += seconds
        return self._event(worker.end, worker)

    def _event(self, when: float, worker: _Worker) -> tuple[float, int, _Worker]:
        self._order += 1
        return when, self._order, worker

    @property
    def _scored(self) -> float:
        """Seconds of scoring so far."""
        return 0.0 if self._scoring is None else self._scoring.seconds

    # --------------------------------------------------------------------------------------------- the result

    def _search(self) -> Search:
        if not self._leaders:
            lost = f" ({self._failures} failures, {self._preemptions} preemptions)" if self._lost else ""
            raise InputError(
                f"budget_seconds: {self._budget_seconds:g} is too little: {self._job.strategy} with seed "
                f"{self._job.seed} measured nothing{lost}"
            )
        # What was scored for the trial that the budget cut off counts no more than it held; so does a rounding.
        cost = min(self._done + self._scored, self._budget_seconds)
        use = ClusterUse(
            self._wall, self._lost, self._stragglers, self._failures, self._preemptions, tuple(self._leads_at)
        )
        costs, *incumbents = zip(*self._leaders, strict=True)
        return Search(
            self._job.strategy,
            self._job.seed,
            self._trials,
            self._units,
            cost,
            tuple(min(each, self._budget_seconds) for each in costs),
            *incumbents,
            cluster=use,
        )
