"""What every strategy is: a searcher that asks for work and is told how it went."""

from __future__ import annotations

import dataclasses
import itertools
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, Protocol, Self

import numpy as np

from nas.errors import InputError
from nas.space import Architecture, SearchSpace, When
from nas.trial import Trial

MOST_SEEDS = 100_000  # repetitions of one thing; more are a slip, and would fill the memory with plans
LARGEST_SEED = 2**32 - 1  # the largest that every generator of random numbers here takes as it is
MOST_DRAWS = 100  # for each different architecture wanted


@dataclasses.dataclass(frozen=True)
class StrategyConfig:
    """What every strategy is told. A strategy with options of its own has a subclass; an option of one name has
    one meaning and one default wherever it occurs.

    Raises ``InputError`` where a value cannot be meant.
    """

    seed: int = 0
    """everything random in a strategy comes from this number"""
    trials: int | None = None
    """how many architectures to try; default: the strategy's own plan where it has one"""
    epochs: int = 9
    """R, the most budget (epochs) one trial can get"""

    def __post_init__(self) -> None:
        check_at_least("seed", self.seed, 0)
        if self.seed > LARGEST_SEED:
            raise InputError(f"strategy: seed={self.seed} is more than {LARGEST_SEED}")
        check_at_least("trials", self.trials, 1)
        check_at_least("epochs", self.epochs, 1)

    def without_end(self) -> Self:
        """The same for a search that ends with another budget than its strategy's own plan."""
        return self

    def __reduce__(self) -> Any:
        """To another process: a class that was made for several strategies, or a command line, is made again there."""
        found = [c for c in type(self).__mro__ if getattr(sys.modules[c.__module__], c.__name__, None) is c]
        configs = tuple(c for c in found if issubclass(c, StrategyConfig))
        return _config_again, (configs, {f.name: getattr(self, f.name) for f in dataclasses.fields(self)})


def check_at_least(name: str, value: float | None, low: float) -> None:
    """Raises InputError where the option ``name`` has a value below ``low``."""
    if value is not None and value < low:
        raise InputError(f"strategy: {name}={value} is less than {low}")


class PlannedBudget(NamedTuple):
    """What all of a search comes to: how many trials start, and the epochs that all of them take at most."""

    trials: float
    epochs: float


class Strategy(Protocol):
    """A searcher without I/O, clock or global randomness.

    Its state comes from its seed and what it was asked and told, so the same calls on a fresh one give
    the same answers. Any number of trials may be outstanding and be told in any order.
    """

    def ask(self, arch: Architecture | None = None) -> Trial | None:
        """The next piece of work, as a trial to be run up to ``trial.budget``.

        A new trial has the next id, counting from 0, and no measurements; a promoted one keeps its id and
        measurements and has a larger budget. None with trials outstanding: wait; with none: the search is
        over. ``arch``, where given, is the architecture of the trial should it be new, in place of the
        strategy's own proposal; ``InputError`` if the space does not hold it.
        """
        ...

    def candidates(self) -> Iterator[Architecture]:
        """What the next new trial may be, the strategy's own proposal first; changes nothing.

        To be read before the next ``ask`` or ``tell``; without end where the strategy draws. Empty where
        ``ask`` would not answer with a new trial.
        """
        ...

    def tell(self, trial: Trial) -> None:
        """How an asked trial went: its status and measurements up to ``trial.budget``.

        It is compared by ``rung_score``; a failed one is never promoted. ``ValueError`` for a trial that is
        not outstanding.
        """
        ...

    @property
    def paused(self) -> frozenset[int]:
        """Ids of the told trials that may still be promoted; every other told trial is over."""
        ...


def trials_times_epochs(config: StrategyConfig, space: SearchSpace) -> PlannedBudget | None:
    """The plan of a strategy that trains ``config.trials`` architectures for the whole budget; None: without end."""
    return None if config.trials is None else PlannedBudget(config.trials, config.trials * config.epochs)


@dataclasses.dataclass(frozen=True)
class StrategyRecord:
    """A strategy as `nas.strategies.STRATEGIES` lists it: all that the rest of the code knows about it.

    Args:
        make: a fresh strategy for a space and a config.
        config: the class of its config: its own options and what every strategy is told.
        planned_budget: what a search comes to; None where it has no end of its own, and then the search must
            be given one (a number of trials, or epochs in all).
        random_trials: how many trials are drawn at random before anything told matters; with no more than
            these the strategy is random search. Infinite where it never matters.
        shares_weights: a trial is a whole search with shared weights, not one architecture.
        objectives: "one": it compares trials by one number; "several": it searches for the front of several; "any": it
            learns nothing of either.
    """

    make: Callable[[SearchSpace, Any], Strategy]
    config: type[StrategyConfig] = StrategyConfig
    planned_budget: Callable[[Any, SearchSpace], PlannedBudget | None] = trials_times_epochs
    random_trials: Callable[[Any, SearchSpace], float] = lambda config, space: 0
    shares_weights: bool = False
    objectives: Literal["one", "several", "any"] = "one"

    def __call__(self, space: SearchSpace, config: StrategyConfig) -> Strategy:
        """A fresh strategy; of ``config``, which may be another's or several's, it is told its own part."""
        return self.make(space, self.own(config))

    def own(self, config: StrategyConfig) -> Any:
        """``config`` as this strategy's own: the options that both have, the others at their defaults."""
        return converted(config, self.config)


def converted(config: StrategyConfig, to: type[StrategyConfig]) -> Any:
    """``config`` as another class: the options that both have, the others at their defaults."""
    names = [field.name for field in dataclasses.fields(to)]
    return to(**{name: getattr(config, name) for name in names if hasattr(config, name)})


def combined_config(records: Iterable[StrategyRecord]) -> type[StrategyConfig]:
    """A config with the options of all ``records``; `StrategyRecord.own` takes each one's part of it."""
    return _combined(dict.fromkeys(record.config for record in records))


def _combined(given: Iterable[type[StrategyConfig]]) -> type[StrategyConfig]:
    configs = list(given) or [StrategyConfig]
    bases = [c for c in configs if not any(c is not other and issubclass(other, c) for other in configs)]
    if len(bases) == 1:
        return bases[0]
    return dataclasses.dataclass(frozen=True)(type("CombinedConfig", tuple(bases), {"__doc__": ""}))


def _config_again(configs: Iterable[type[StrategyConfig]], values: dict[str, Any]) -> StrategyConfig:
    return _combined(configs)(**values)


def trial_seed(seed: int, i: int) -> int:
    """The training seed of trial ``i`` in a search seeded ``seed``; in [0, 2**31)."""
    return int(np.random.SeedSequence(seed, spawn_key=(i,)).generate_state(1)[0]) >> 1


def sample_architecture(space: SearchSpace, seed: int, i: int) -> Architecture:
    """The architecture of trial ``i`` wherever trials are drawn at random."""
    return space.sample((seed, i))


def sample_architectures(space: SearchSpace, seed: int, count: int, option: str) -> list[Architecture]:
    """The first ``count`` different ones of `sample_architecture`, or those that `MOST_DRAWS` draws for each find.

    Raises InputError, which names ``option``, where ``space`` has fewer.
    """
    size = space.size()
    if size.value < count:
        raise InputError(f"{option}: {count} is more than the {size} of {space.name}")
    found: dict[Architecture, None] = {}
    for i in range(MOST_DRAWS * count):
        found[sample_architecture(space, seed, i)] = None
        if len(found) == count:
            break
    return list(found)


def drawn(space: SearchSpace, seed: int, i: int) -> Iterator[Architecture]:
    """Candidates for trial ``i`` without end: ``sample_architecture``, then others as random."""
    yield sample_architecture(space, seed, i)
    yield from (space.sample((seed, i, k)) for k in itertools.count(1))


def generator(seed: int, i: int, *use: int) -> np.random.Generator:
    """The randomness of trial ``i`` for one ``use`` of it; independent of other trials' and other uses'."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(i, 0, *use)))


def exists(space: SearchSpace, name: str, values: Mapping[str, Any]) -> bool:
    """Whether choice ``name`` exists where the choices before it have ``values``."""
    whens = space.conditions.get(name, ())
    whens = (whens,) if isinstance(whens, When) else whens
    return all(when.choice in values and values[when.choice] in when for when in whens)


def rung_score(trial: Trial) -> float:
    """What is maximised (`Measurement.value`), up to ``trial.budget``; -inf if failed, unmeasured or not a number.

    A trial that violates a constraint has a finite one, below those of all that violate none, and the lower the more
    it violates them.
    """
    reached = [m.value for m in trial.measurements if m.budget <= trial.budget]
    if trial.status == "failed" or not reached or math.isnan(reached[-1]):
        return -math.inf
    return reached[-1]


def promote(trials: Iterable[Trial], n: int) -> tuple[Trial, ...]:
    """The ``n`` best trials of a rung by ``rung_score``, best first, ties to the lower id.

    Fewer where fewer have a score: a failed trial is never promoted.
    """
    scored = [trial for trial in trials if rung_score(trial) > -math.inf]
    return tuple(sorted(scored, key=lambda trial: (-rung_score(trial), trial.id))[:n])


class Outstanding:
    """The trials that were asked and not yet told, by id."""

    def __init__(self) -> None:
        self._trials: dict[int, Trial] = {}

    def add(self, trial: Trial) -> Trial:
        self._trials[trial.id] = trial
        return trial

    def remove(self, trial: Trial) -> None:
        """Raises ValueError where the trial is not outstanding."""
        if self._trials.pop(trial.id, None) is None:
            raise ValueError(f"tell: trial {trial.id} is not outstanding")


class FullBudget:
    """Every architecture trained for the whole budget; the one open question is which comes next.

    ``propose(i)`` gives candidates for trial ``i``, its own architecture first and none when there are no
    more, or none yet. ``take(trial)`` hears of each new trial, ``observe(trial)`` of each told one.
    """

    def __init__(
        self,
        space: SearchSpace,
        config: StrategyConfig,
        propose: Callable[[int], Iterator[Architecture]],
        *,
        take: Callable[[Trial], None] = lambda trial: None,
        observe: Callable[[Trial], None] = lambda trial: None,
    ) -> None:
        self._space, self._config = space, config
        self._propose, self._take, self._observe = propose, take, observe
        self._asked = 0
        self._outstanding = Outstanding()

    def ask(self, arch: Architecture | None = None) -> Trial | None:
        if self._asked == self._config.trials:
            return None
        if arch is None:
            arch = next(self._propose(self._asked), None)
            if arch is None:
                return None
        else:
            self._space.validate(arch)
        trial = new_trial(self._config, self._asked, arch, self._config.epochs)
        self._asked += 1
        self._take(trial)
        return self._outstanding.add(trial)

    def candidates(self) -> Iterator[Architecture]:
        return iter(()) if self._asked == self._config.trials else self._propose(self._asked)

    def tell(self, trial: Trial) -> None:
        self._outstanding.remove(trial)
        self._observe(trial)

    @property
    def paused(self) -> frozenset[int]:
        return frozenset()


def new_trial(
    config: StrategyConfig,
    i: int,
    arch: Architecture,
    budget: int,
    bracket: int | None = None,
    rung: int | None = None,
) -> Trial:
    """Trial ``i`` of the search, without measurements."""
    return Trial(i, arch, budget, trial_seed(config.seed, i), bracket, rung)


class Recorded:
    """See ``recorded``."""

    def __init__(self, strategy: Strategy, archs: Mapping[int, Architecture]) -> None:
        self._strategy, self._archs = strategy, archs
        self._next = 0

    def ask(self, arch: Architecture | None = None) -> Trial | None:
        trial = self._strategy.ask(self._archs.get(self._next, arch))
        if trial is not None and trial.id == self._next:
            self._next += 1
        return trial

    def candidates(self) -> Iterator[Architecture]:
        return self._strategy.candidates()

    def tell(self, trial: Trial) -> None:
        self._strategy.tell(trial)

    @property
    def paused(self) -> frozenset[int]:
        return self._strategy.paused


def recorded(strategy: Strategy, archs: Mapping[int, Architecture]) -> Strategy:
    """``strategy`` (fresh) with trial ``i`` given ``archs[i]`` wherever a record has decided it already.

    For a run that goes on after parallel workers: what they told came in an order that a replay need not
    repeat, so proposals that depend on it are taken from the record. The strategy hears of them as of its
    own (``Strategy.ask(arch)``), and proposes by itself what the record does not hold.
    """
    return Recorded(strategy, archs)


class Filtered:
    """See ``filtered``."""

    def __init__(self, strategy: Strategy, score: Callable[[Architecture], float], n: int) -> None:
        self._strategy, self._score, self._n = strategy, score, n
        self._scores: dict[Architecture, float] = {}

    def ask(self, arch: Architecture | None = None) -> Trial | None:
        return self._strategy.ask(next(self.candidates(), None) if arch is None else arch)

    def candidates(self) -> Iterator[Architecture]:
        """The ``n`` candidates of each turn, best first."""
        return self.ranked(self._strategy.candidates())

    def ranked(self, proposed: Iterator[Architecture]) -> Iterator[Architecture]:
        """``proposed``, each ``n`` of them put into the order of their scores."""
        while turn := list(itertools.islice(proposed, self._n)):
            yield from sorted(turn, key=self._scored, reverse=True)

    def _scored(self, arch: Architecture) -> float:
        if arch not in self._scores:
            score = self._score(arch)
            self._scores[arch] = -math.inf if math.isnan(score) else score
        return self._scores[arch]

    def tell(self, trial: Trial) -> None:
        self._strategy.tell(trial)

    @property
    def paused(self) -> frozenset[int]:
        return self._strategy.paused


def filtered(strategy: Strategy, score: Callable[[Architecture], float], n: int) -> Filtered:
    """``strategy`` where each new trial is the best, by ``score``, of its first ``n`` candidates.

    A training-free score ranks what a strategy would propose, before anything is trained. Ties go to the
    earlier candidate, NaN is worst. An architecture is scored once. The grid is so put into another
    order and still visited once. Raises ``InputError`` where ``n`` is less than 1.
    """
    check_at_least("n", n, 1)
    return Filtered(strategy, score, n)
