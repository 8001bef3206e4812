"""A training-free score as an objective of one measurement, and as a function of an architecture."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from nas import cpu
from nas.data.config import DataConfig
from nas.errors import InputError, one_of
from nas.objectives.base import TrialFailed
from nas.objectives.train import build
from nas.proxies import PROXIES, Probe, Proxy, ScoreError, batches_of, initial_variables
from nas.proxies.passes import Size
from nas.space import Architecture, SearchSpace
from nas.trial import ScoreMeasurement, Trial


class Scored(NamedTuple):
    """One score of one network: as the score gives it, unsigned; NaN where there is none, and ``error`` says why.

    ``seconds`` are of computing it after the scores before it, whose passes it may share.
    """

    value: float
    seconds: float
    error: str = ""


class Scorer:
    """Scores architectures of ``space`` on the first training images of ``data``.

    ``names`` of `nas.proxies.PROXIES`; ``seed`` draws every network's weights; ``batches`` of ``batch_size``
    images, None: for each score as many as it needs, so that its value does not depend on what else is asked.
    """

    def __init__(
        self,
        space: SearchSpace,
        data: DataConfig,
        names: Sequence[str],
        *,
        seed: int = 0,
        batch_size: int = 32,
        batches: int | None = None,
        proxies: Mapping[str, Proxy] = PROXIES,
    ) -> None:
        for name in names:
            check_score(name, known=proxies)
        if batch_size < 2:
            raise InputError(f"score: batch_size={batch_size} is less than 2")
        needed = max((proxies[name].batches for name in names), default=0)
        count = needed if batches is None else batches
        if count < needed:
            raise InputError(f"score: batches={count} is less than the {needed} that {', '.join(names)} need")
        cpu.native_status()  # built, where nobody has, before any time is taken
        self.space, self.names, self.seed = space, tuple(names), seed
        self.proxies = proxies
        self.batch_size = batch_size
        self.dataset = data.load()
        self.batches = batches_of(self.dataset, count, batch_size)
        self._seen = {name: max(1, proxies[name].batches) if batches is None else count for name in names}

    def probe(self, arch: Architecture) -> Probe:
        network = build(self.space, arch, self.dataset.num_classes)
        shape = self.dataset.image_shape
        variables = initial_variables(network, shape, self.seed)
        return Probe(network, variables, shape, self.batches, seed=self.seed)

    def __call__(self, arch: Architecture) -> dict[str, Scored]:
        """All scores of ``arch``, by name; building the network is the first one's time."""
        found: dict[str, Scored] = {}
        probe = None
        for name in self.names:
            start = time.perf_counter()
            try:
                probe = probe or self.probe(arch)
                probe.batches = self.batches[: self._seen[name]]
                value, error = self.proxies[name].score(probe), ""
            except (ScoreError, InputError, jax.errors.JaxRuntimeError) as problem:
                value, error = np.nan, " ".join(str(problem).split())
            found[name] = Scored(float(value), time.perf_counter() - start, error)
        return found


def check_score(name: str, place: str = "score", *others: str, known: Mapping[str, Proxy] = PROXIES) -> None:
    """Raises InputError where there is no such score; ``others`` would have been right at that place too."""
    if name not in known:
        raise one_of(place, name, (*others, *known))


@dataclasses.dataclass(frozen=True)
class ScoreSetup:
    """What a worker needs to score architectures by one score: settings, no data. Raises InputError.

    ``proxy`` is the score, unless it is that of `PROXIES`; it goes with the setup, for a worker does not know what
    a program has added there.
    """

    space: SearchSpace
    data: DataConfig
    score: str
    seed: int = 0
    batch_size: int = 32
    proxy: Proxy | None = None

    def __post_init__(self) -> None:
        if self.proxy is None:
            check_score(self.score)
            object.__setattr__(self, "proxy", PROXIES[self.score])

    def __call__(self, checkpoints: Path | None = None) -> ScoreObjective:
        """The objective; it keeps no checkpoints."""
        return ScoreObjective(self)


class ScoreObjective:
    """A trial is worth its score, which it has after one unit of budget; further ones say the same.

    All networks' weights are drawn from the setup's seed rather than the trial's, so that scores differ by
    the architecture.
    """

    def __init__(self, setup: ScoreSetup) -> None:
        self.setup = setup
        assert setup.proxy is not None
        self._proxy = setup.proxy
        self._scorer = Scorer(
            setup.space,
            setup.data,
            [setup.score],
            seed=setup.seed,
            batch_size=setup.batch_size,
            proxies={setup.score: self._proxy},
        )

    def __call__(self, trial: Trial) -> Iterator[ScoreMeasurement]:
        """See `nas.objectives.base.Objective`. TrialFailed where the network has no finite score."""
        value, seconds, error = self.signed(trial.arch)
        if not np.isfinite(value):
            raise TrialFailed(error or f"{self.setup.score}: no finite score", evaluate_seconds=seconds)
        for unit in range(trial.spent, trial.budget):
            yield ScoreMeasurement.of(unit + 1, value, evaluate_seconds=seconds)
            seconds = 0.0

    def signed(self, arch: Architecture) -> Scored:
        """The score with its sign turned so that higher is better."""
        found = self._scorer(arch)[self.setup.score]
        return found._replace(value=self._proxy.sign * found.value)

    def describe(self, trial: Trial) -> Size:
        return self._scorer.probe(trial.arch).cut.size
