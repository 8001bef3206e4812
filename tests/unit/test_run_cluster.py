"""Searches on clusters that lose nodes: real ones of Ray, of processes on this machine. See `tests.clusters`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clusters import Nodes, cluster, counts, searching

NONE = {"lost": 0, "doubled": 0, "failed": 0}

pytestmark = pytest.mark.slow  # a cluster takes its time to start


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    with cluster() as started:
        yield started


@pytest.mark.parametrize("how", ["remove", "kill", "drain"])
def test_a_node_that_is_lost_costs_no_trial(nodes: Nodes, tmp_path: Path, how: str) -> None:
    nodes.add()
    lost = nodes.add()
    with searching(tmp_path / "run", nodes.address) as search:
        search.wait_for(4)
        nodes.remove(lost, how)
        assert search.end() == (0, "")
    run, found = counts(tmp_path / "run")
    assert found == NONE
    assert [trial.spent for trial in run.trials.values()] == [4] * 8


@pytest.mark.parametrize("times", [3, 10])
def test_nodes_that_are_lost_and_come_back_one_after_the_other_cost_no_trial(
    nodes: Nodes, tmp_path: Path, times: int
) -> None:
    nodes.add()
    lost = nodes.add()
    with searching(tmp_path / "run", nodes.address, {"trials": 12 * times}) as search:
        for k in range(times):
            search.wait_for(search.measured() + 4)
            nodes.remove(lost, ("remove", "kill")[k % 2])
            lost = nodes.add()
        assert search.end(600) == (0, "")
    run, found = counts(tmp_path / "run")
    assert found == NONE
    assert [trial.spent for trial in run.trials.values()] == [4] * 12 * times


def test_a_lost_head_is_said_in_seconds_and_the_search_goes_on_elsewhere(tmp_path: Path) -> None:
    with cluster() as nodes:
        nodes.add()
        with searching(tmp_path / "run", nodes.address) as search:
            search.wait_for(6)
            nodes.remove(0, "kill")
            began = time.monotonic()
            code, said = search.end(60)
    assert (code, said.count("\n")) == (2, 1)
    assert said.startswith(f"error: cluster: the head at {nodes.address} is lost; what was measured is kept")
    assert time.monotonic() - began < 20
    with cluster() as others:
        others.add()
        with searching(tmp_path / "run", others.address, {"resume": True}) as search:
            assert search.end() == (0, "")
    run, found = counts(tmp_path / "run")
    assert found == NONE
    assert [trial.spent for trial in run.trials.values()] == [4] * 8


def test_a_trial_that_kills_its_own_worker_fails_after_its_retry(nodes: Nodes, tmp_path: Path) -> None:
    nodes.add(2)
    with searching(tmp_path / "run", nodes.address, {"trials": 4}, dies_always=[1], dies=[2]) as search:
        assert search.end() == (0, "")
    run, found = counts(tmp_path / "run")
    assert found == NONE | {"failed": 1}
    assert run.trials[1].error == "the worker died: killed, crashed or out of memory"


def test_two_searches_share_a_cluster(nodes: Nodes, tmp_path: Path) -> None:
    nodes.add(2)
    nodes.add(2)
    with (
        searching(tmp_path / "a", nodes.address, {"workers": 2}) as a,
        searching(tmp_path / "b", nodes.address, {"workers": 2}) as b,
    ):
        assert a.end() == (0, "")
        assert b.end() == (0, "")
    assert counts(tmp_path / "a")[1] == counts(tmp_path / "b")[1] == NONE


def test_a_search_takes_the_chips_of_the_cluster_and_follows_it(nodes: Nodes, tmp_path: Path) -> None:
    nodes.add(4, resources={"TPU": 2})
    with searching(tmp_path / "run", nodes.address, {"trials": 12}, seconds=4) as search:
        search.wait_for(4)
        nodes.add(4, resources={"TPU": 2})
        assert search.end() == (0, "")
    assert counts(tmp_path / "run")[1] == NONE
    lines = (tmp_path / "run.log").read_text().splitlines()
    assert len({line.split()[2] for line in lines}) == 4, "one worker a chip, of the second node too"
