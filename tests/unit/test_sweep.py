"""One search from options to record: what is decided between the strategy and the engine."""

from __future__ import annotations

import dataclasses

import pytest

from nas.data.config import DataConfig
from nas.objectives.train import TrainObjective
from nas.run.options import SearchOptions
from nas.run.search import search
from nas.strategies import StrategyConfig
from search_spaces import SPACES

SMALL = SearchOptions(
    fix=("depth=1", "width=8", "kernel=3", "stride=2", "head_depth=0", "augmentation=none"),
    engine="local",
    test_seeds=2,
    data=DataConfig(dataset="digits", subset=200),
    plan=StrategyConfig(trials=2, epochs=1),
)


def test_a_network_that_two_searches_chose_is_trained_to_the_end_once(tmp_path, monkeypatch):
    first = search(SMALL, "random", tmp_path / "a", SPACES)
    assert [final.seed for final in first.finals] == [0, 1]

    def trained_again(*job):
        raise AssertionError(job)

    monkeypatch.setattr(TrainObjective, "final", trained_again)
    second = search(SMALL, "random", tmp_path / "b", SPACES, tested=first.finals)
    assert second.finals == first.finals
    broken = [dataclasses.replace(final, error="out of memory") for final in first.finals]
    with pytest.raises(AssertionError):
        search(SMALL, "random", tmp_path / "c", SPACES, tested=broken)
