"""What a search has of a cluster, and what becomes of its trials when it loses some: without any Ray."""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path
from typing import Any

import pytest

from nas.errors import InputError
from nas.record import Record
from nas.run import options
from nas.run.driver import SearchState
from nas.run.options import SearchOptions, cluster_of, local_accelerators
from nas.run.tune import Cluster
from nas.run.tune import cluster as clusters
from nas.run.tune import search as searching
from nas.run.tune.cluster import note_unused, settled, worker_environment
from nas.run.tune.search import _Work
from nas.run.tune.worker import from_config
from nas.strategies import STRATEGIES, combined_config
from nas.trial import Measurement
from tests.synthetic import SPACE

Config: Any = combined_config(STRATEGIES.values())
TPU_HOST = {"CPU": 112.0, "TPU": 8.0}
SMALL_HOST = {"CPU": 24.0, "TPU": 4.0}
GPU_HOST = {"CPU": 16.0, "GPU": 2.0}
HEAD = {"CPU": 4.0}


def cluster_with(monkeypatch: pytest.MonkeyPatch, nodes: list[dict[str, float]], **given: Any) -> Cluster:
    """What the options mean where these are the nodes."""
    monkeypatch.setattr(options, "local_accelerators", dict)
    monkeypatch.setattr(clusters.ray, "nodes", lambda: [{"Alive": True, "Resources": node} for node in nodes])
    monkeypatch.setattr(
        clusters.ray,
        "cluster_resources",
        lambda: {name: sum(node.get(name, 0) for node in nodes) for name in ("CPU", "TPU", "GPU")},
    )
    return settled(Cluster(**cluster_of(SearchOptions(address="head:6379", **given))))


@pytest.mark.parametrize(
    ("nodes", "given", "resources", "room", "note"),
    [
        ([HEAD, TPU_HOST, TPU_HOST], {}, {"CPU": 14, "TPU": 1}, 16, ""),
        ([HEAD, TPU_HOST, SMALL_HOST], {"chips_per_trial": 4}, {"CPU": 24, "TPU": 4}, 3, ""),
        ([HEAD, TPU_HOST], {"workers": 2}, {"CPU": 56, "TPU": 1}, 2, "2 of its 8 TPU are used"),
        ([HEAD, TPU_HOST], {"chips_per_trial": 0}, {"CPU": 1}, 116, "0 of its 8 TPU are used"),
        ([HEAD, GPU_HOST], {}, {"CPU": 8, "GPU": 1}, 2, ""),
        ([HEAD, GPU_HOST], {"gpus_per_worker": 0.5}, {"CPU": 4, "GPU": 0.5}, 4, ""),
        ([GPU_HOST, TPU_HOST], {}, {"CPU": 14, "TPU": 1}, 8, "0 of its 2 GPU are used"),
        ([GPU_HOST, TPU_HOST], {"gpus_per_worker": 1}, {"CPU": 8, "GPU": 1}, 2, "0 of its 8 TPU are used"),
        ([HEAD, HEAD], {}, {"CPU": 1}, 8, ""),
        ([HEAD, HEAD], {"workers": 2}, {"CPU": 4}, 2, ""),
        ([HEAD, HEAD], {"workers": 4, "cpus_per_worker": 3}, {"CPU": 3}, 2, ""),
    ],
)
def test_accelerators_and_cores_are_the_clusters(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    nodes: list[dict[str, float]],
    given: dict[str, Any],
    resources: dict[str, float],
    room: int,
    note: str,
) -> None:
    cluster = cluster_with(monkeypatch, nodes, **given)
    assert cluster.resources == resources
    assert clusters.room(cluster) == room
    assert ("JAX_PLATFORMS" in worker_environment(cluster)) == (set(resources) == {"CPU"})
    note_unused(cluster)
    said = capsys.readouterr().err
    assert said == (f"note: cluster: {note}\n" if note else "")


@pytest.mark.parametrize(
    ("nodes", "given", "complaint"),
    [
        ([HEAD], {"chips_per_trial": 1}, "^cluster: workers=1 need 1 TPU, Ray has 0$"),
        ([HEAD, TPU_HOST], {"gpus_per_worker": 1}, "^cluster: workers=1 need 1 GPU, Ray has 0$"),
        (
            [SMALL_HOST, SMALL_HOST],
            {"chips_per_trial": 8},
            "^cluster: tpus_per_worker=8 is more than the 4 of a host, and it has no slice of several hosts$",
        ),
        ([TPU_HOST], {"chips_per_trial": 3}, "^cluster: tpus_per_worker: 3 is not one of 1, 2, 4, 8$"),
    ],
)
def test_accelerators_that_are_not_there_stop_a_search(
    monkeypatch: pytest.MonkeyPatch, nodes: list[dict[str, float]], given: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        cluster_with(monkeypatch, nodes, **given)


@pytest.mark.parametrize(
    ("have", "given", "workers", "resources"),
    [
        ({"tpu": 8}, {"cpus_per_worker": 2}, 8, {"CPU": 2, "TPU": 1}),
        ({"tpu": 8}, {"cpus_per_worker": 2, "chips_per_trial": 4}, 2, {"CPU": 2, "TPU": 4}),
        ({"tpu": 8}, {"cpus_per_worker": 2, "chips_per_trial": 0, "workers": 3}, 3, {"CPU": 2}),
        ({"gpu": 4}, {"cpus_per_worker": 2}, 4, {"CPU": 2, "GPU": 1}),
        ({"gpu": 4}, {"cpus_per_worker": 2, "chips_per_trial": 2}, 2, {"CPU": 2, "GPU": 2}),
        ({"gpu": 4}, {"cpus_per_worker": 2, "gpus_per_worker": 0.5}, 8, {"CPU": 2, "GPU": 0.5}),
        ({}, {"cpus_per_worker": 2, "workers": 5}, 5, {"CPU": 2}),
    ],
)
def test_this_machine_trains_one_trial_a_chip_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
    have: dict[str, int],
    given: dict[str, Any],
    workers: int,
    resources: dict[str, float],
) -> None:
    monkeypatch.setattr(options, "local_accelerators", lambda: have)
    cluster = Cluster(**cluster_of(SearchOptions(**given)))
    assert (cluster.workers, cluster.resources) == (workers, resources)


def test_more_chips_than_any_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "local_accelerators", dict)
    with pytest.raises(
        InputError, match=r"^chips_per_trial: 2 is more than the 0 accelerators of this machine$"
    ):
        cluster_of(SearchOptions(chips_per_trial=2))
    with pytest.raises(InputError, match=r"^gpus_per_worker: say this or chips_per_trial$"):
        SearchOptions(chips_per_trial=2, gpus_per_worker=1)


def test_only_devices_of_googles_are_tpus(tmp_path: Path) -> None:
    for name in ("dev/vfio/vfio", "dev/vfio/7", "dev/vfio/8", "dev/vfio/9", "dev/nvidia0", "dev/nvidiactl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "dev/accel").mkdir()  # as NVIDIA's driver makes it
    for group, vendor in (("7", "0x1ae0"), ("8", "0x10de"), ("9", "0x1AE0\n")):
        folder = tmp_path / "sys/kernel/iommu_groups" / group / "devices/0000:00:05.0"
        folder.mkdir(parents=True)
        (folder / "vendor").write_text(vendor)
    assert local_accelerators(tmp_path) == {"gpu": 1, "tpu": 2}
    for i in range(4):
        (tmp_path / f"dev/accel{i}").touch()
    assert local_accelerators(tmp_path) == {"gpu": 1, "tpu": 4}
    assert local_accelerators(tmp_path / "sys") == {}


class Fate:
    """Stands for `nas.run.tune.losses.Death`: the test decides whose fault it was, and when that is known."""

    known: dict[str, bool | None]

    def __init__(self, error: Any, on_cluster: bool) -> None:
        self.error = error

    def own(self) -> bool | None:
        return self.known[str(self.error)]


class Workers:
    """A search of three trials of two units, carried out by hand as Tune would."""

    def __init__(self, record: Record, each: int = 1) -> None:
        self.state = SearchState(record, epochs=2)
        strategy = STRATEGIES["random"](SPACE, Config(epochs=2, trials=3))
        self.work = _Work(strategy, self.state, deque(), each=each)
        self._ids = 0

    def take(self) -> tuple[str, int, int]:
        """Tune's id of the next piece of work, its trial, and the units that it has already."""
        self._ids += 1
        config = self.work.give(str(self._ids))
        assert isinstance(config, dict), config
        self.work.took(str(self._ids))
        (trial,) = from_config(config)
        return str(self._ids), trial.id, trial.spent

    def unit(self, tune_id: str, trial: int, unit: int) -> None:
        measurement = Measurement(unit, 0.5, 0.0, 0.0, 0.0)
        said = {"process": "here 1", "id": trial, "budget": unit, "params": 1, "macs_per_image": 1}
        said["over"] = unit == 2
        self.work.hear(tune_id, said | {"measurement": json.dumps(measurement.fields())})
        if unit == 2:
            self.work.done(tune_id)


@pytest.fixture
def workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(searching, "Death", Fate)
    with Record.create(tmp_path / "run", {}, env={}, fsync=False) as record:
        yield Workers(record)


def test_nodes_that_are_lost_again_and_again_cost_no_trial(workers: Workers) -> None:
    Fate.known = {"node": False}
    for _ in range(10):
        tune_id, trial, spent = workers.take()
        assert (trial, spent) == (0, min(1, spent))
        if not spent:
            workers.unit(tune_id, trial, 1)
        workers.work.died(tune_id, Exception("node"))
    for want in ((0, 1), (1, 0), (2, 0)):
        tune_id, trial, spent = workers.take()
        assert (trial, spent) == want
        for unit in range(spent + 1, 3):
            workers.unit(tune_id, trial, unit)
    assert workers.work.give("last") == "FINISHED"
    assert [trial.status for trial in workers.state.trials.values()] == ["completed"] * 3
    assert workers.work.error is None


def test_a_trial_fails_when_two_of_its_workers_died_by_themselves(workers: Workers) -> None:
    Fate.known = {"node": False, "own": True}
    for cause in ("own", "node", "node", "own"):
        tune_id, trial, _ = workers.take()
        assert trial == 0
        workers.work.died(tune_id, Exception(cause))
    assert workers.take()[1] == 1
    assert workers.state.trials[0].status == "failed"
    assert workers.state.trials[0].error == "the worker died: killed, crashed or out of memory"


def test_of_trials_that_shared_a_dying_worker_only_the_guilty_one_fails(workers: Workers) -> None:
    Fate.known = {"own": True}
    together = Workers(workers.state._record, each=3)
    config = together.work.give("all")
    assert isinstance(config, dict)
    assert [trial.id for trial in from_config(config)] == [0, 1, 2]
    together.work.died("all", Exception("own"))
    for _ in range(3):
        tune_id, trial, spent = together.take()  # each alone
        if trial == 1:
            together.work.died(tune_id, Exception("own"))
            continue
        for unit in range(spent + 1, 3):
            together.unit(tune_id, trial, unit)
    assert together.work.give("last") == "FINISHED"
    statuses = {i: trial.status for i, trial in together.state.trials.items()}
    assert statuses == {0: "completed", 1: "failed", 2: "completed"}


@pytest.mark.parametrize("own", [False, True])
def test_a_trial_waits_till_it_is_known_whether_a_node_was_lost(workers: Workers, own: bool) -> None:
    Fate.known = {"first": None, "second": None}
    for cause in ("first", "second"):
        tune_id, trial, _ = workers.take()
        assert trial == 0
        workers.work.died(tune_id, Exception(cause))
    assert workers.take()[1] == 1
    assert workers.state.trials[0].status == "running"
    Fate.known = {"first": True, "second": own}
    assert workers.take()[1] == (2 if own else 0)
    assert workers.state.trials[0].status == ("failed" if own else "running")


def test_a_search_does_not_end_while_a_trial_waits_for_its_verdict(workers: Workers) -> None:
    Fate.known = {"unknown": None}
    for want in (0, 1, 2):
        for _ in range(2):
            tune_id, trial, _ = workers.take()
            assert trial == want
            workers.work.died(tune_id, Exception("unknown"))
    assert workers.work.give("next") is None
    Fate.known = {"unknown": False}
    assert workers.take()[1] in (0, 1, 2)
