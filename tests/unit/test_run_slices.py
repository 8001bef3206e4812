"""Trials on whole TPU slices: fake ones, of nodes of a Ray cluster on this machine, with real collectives over gloo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nas.record import read_run
from tests.clusters import ENVIRONMENT, ROOT, Nodes, Search, cluster, counts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SEARCH = (
    "--space", "minichain", "--dataset", "digits", "--subset", "600", "--strategy", "random", "--epochs", "3",
    "--hyper", "batch_size=64", "--test-seeds", "1", "--final-epochs", "2", "--seed", "3",
)  # fmt: skip


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    with cluster() as started:
        yield started


def add_host(nodes: Nodes, name: str, number: int) -> int:
    """A host with four chips of a slice that has two of them."""
    head = {"TPU-v5litepod-8-head": 1} if number == 0 else {}
    labels = {"ray.io/tpu-slice-name": name, "ray.io/tpu-worker-id": str(number)}
    return nodes.add(1, resources={"TPU": 4, **head}, labels=labels)


def started(folder: Path, *options: str) -> Search:
    command = [sys.executable, str(ROOT / "scripts" / "search.py"), *SEARCH, *options, "--out", str(folder)]
    env = os.environ | ENVIRONMENT | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return Search(folder, process)


def measurements(folder: Path) -> dict[tuple[Any, ...], dict[str, float]]:
    """Losses and accuracies by trial and unit, and those of the final training."""
    events = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    return {
        (event["event"], event.get("id"), event.get("budget")): {
            name: value
            for name, value in event.items()
            if isinstance(value, float) and name.endswith(("_loss", "_accuracy"))
        }
        for event in events
        if event["event"] in ("measurement", "final")
    }


def test_a_trial_on_a_slice_has_the_losses_of_one_process(nodes: Nodes, tmp_path: Path) -> None:
    for name in "ab":
        for number in (1, 0):
            add_host(nodes, name, number)
    address = ("--address", nodes.address, "--chips-per-trial")
    slices = started(tmp_path / "slices", *address, "8", "--trials", "4")
    code, said = slices.end(500)
    assert code == 0, said
    code, said = started(tmp_path / "one", "--engine", "local", "--trials", "4").end(500)
    assert code == 0, said
    found, wanted = measurements(tmp_path / "slices"), measurements(tmp_path / "one")
    assert found.keys() == wanted.keys()
    assert len(found) == 13
    for key, values in wanted.items():
        assert found[key] == pytest.approx(values, rel=2e-3, abs=2e-3), key
    assert counts(tmp_path / "slices")[1] == {"lost": 0, "doubled": 0, "failed": 0}

    code, said = started(tmp_path / "none", *address, "16").end(100)
    assert code == 2
    assert said.splitlines()[-1] == (
        "error: cluster: tpus_per_worker=16 is more than the 4 of a host, and its slices have 8"
    )


@pytest.mark.parametrize(("number", "how"), [(1, "kill"), (0, "remove"), (1, "drain")])
def test_a_host_that_is_lost_costs_no_trial(nodes: Nodes, tmp_path: Path, number: int, how: str) -> None:
    hosts = {k: add_host(nodes, "a", k) for k in (0, 1)}
    search = started(tmp_path / "run", "--address", nodes.address, "--chips-per-trial", "8", "--trials", "6")
    search.wait_for(4, 300)
    nodes.remove(hosts[number], how)
    time.sleep(5)
    add_host(nodes, "a" if number else "b", number)
    if not number:  # without its first host a slice is none: another comes
        add_host(nodes, "b", 1)
    code, said = search.end(500)
    assert code == 0, said
    assert counts(tmp_path / "run")[1] == {"lost": 0, "doubled": 0, "failed": 0}
    assert [trial.spent for trial in read_run(tmp_path / "run").trials.values()] == [3] * 6
