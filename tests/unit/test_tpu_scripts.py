"""scripts/tpu: what it asks of gcloud and kubectl, by stand-ins, and its manifests by KubeRay's own schema."""

from __future__ import annotations

import importlib
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from nas.errors import InputError

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "tpu"
sys.path.insert(0, str(ROOT / "scripts" / "tpu"))
cloud: Any = importlib.import_module("_cloud")
slices: Any = importlib.import_module("_slices")
SEARCH = ("python", "scripts/search.py", "--address", "auto", "--out", "runs/a b")
CLUSTERS = {
    "vm": {"zone": "us-west4-a", "on": "vm", "topology": "v5e:2x2", "slices": 2, "spot": True, "price": 1.5},
    "gke": {"zone": "us-east5-b", "on": "gke", "topology": "v6e:4x4", "image": "repository/nas:1"},
}


@pytest.mark.parametrize("name", CLUSTERS)
@pytest.mark.parametrize("what", ["up", "submit", "logs", "down"])
def test_a_dry_run_prints_every_command_and_manifest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, what: str
) -> None:
    monkeypatch.setenv("PATH", "")  # nothing is run
    monkeypatch.setattr(cloud.importlib.metadata, "version", lambda package: "2.60.0")
    if what == "submit":
        cloud.submit(cloud.Submit("sweep", **CLUSTERS[name], dry_run=True, command=SEARCH))
    else:
        getattr(cloud, what)(cloud.Common("sweep", **CLUSTERS[name], dry_run=True))
    printed = capsys.readouterr().out
    path = GOLDEN / f"{name}-{what}.txt"
    if os.environ.get("NAS_WRITE_GOLDEN"):
        path.write_text(printed)
    assert printed == path.read_text()


def closed(schema: Any) -> Any:
    """The schema with no properties but its own: a misspelt field of a manifest would be ignored by Kubernetes."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    done = {key: closed(value) for key, value in schema.items()}
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        done["additionalProperties"] = False
    return done


SCHEMA = closed(json.loads((ROOT / "tests/golden/rayjob_schema.json").read_text()))
SCHEMA["properties"]["metadata"] = {"type": "object"}  # every object's


@pytest.mark.parametrize("topology", ["v4:2x2x1", "v5e:2x4", "v5e:4x4", "v6e:1x1", "v5p:2x2x4"])
@pytest.mark.parametrize("spot", [False, True])
@pytest.mark.some(4)
def test_manifests_are_kuberays(topology: str, spot: bool) -> None:
    of = slices.slice_of(topology)
    job = slices.ray_job(
        "sweep", of, slices=3, spot=spot, image="i", command=shlex.join(SEARCH), ray_version="2.60.0"
    )
    jsonschema.validate(job, SCHEMA)
    group = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    pod = group["template"]["spec"]
    chips = int(pod["containers"][0]["resources"]["limits"]["google.com/tpu"])
    assert group["numOfHosts"] * chips == of.chips
    assert ("tolerations" in pod) == spot
    assert shlex.split(job["spec"]["entrypoint"]) == list(SEARCH)
    group["numOfHost"] = 1
    with pytest.raises(jsonschema.ValidationError, match="numOfHost"):
        jsonschema.validate(job, SCHEMA)


@pytest.mark.parametrize(
    ("topology", "accelerator_type", "hosts", "machine"),
    [  # of Google's lists of accelerator types and of GKE's machine types
        ("v5e:1x1", "v5litepod-1", 1, "ct5lp-hightpu-1t"),
        ("v5e:2x4", "v5litepod-8", 1, "ct5lp-hightpu-8t"),
        ("v5e:4x4", "v5litepod-16", 4, "ct5lp-hightpu-4t"),
        ("v6e:16x16", "v6e-256", 64, "ct6e-standard-4t"),
        ("v4:2x2x1", "v4-8", 1, "ct4p-hightpu-4t"),
        ("v5p:2x2x2", "v5p-16", 2, "ct5p-hightpu-4t"),
    ],
)
def test_slices_have_googles_names(topology: str, accelerator_type: str, hosts: int, machine: str) -> None:
    of = slices.slice_of(topology)
    assert (of.accelerator_type, of.hosts, of.machine) == (accelerator_type, hosts, machine)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"topology": "v9:2x2"}, r"^topology: 'v9' is not one of v4, v5e, v5p, v6e"),
        ({"topology": "v5e:2x2x1"}, r"^topology: v5e:2x2x1: v5e has 2 dimensions, such as 2x2$"),
        ({"topology": "v5e:3x3"}, r"^topology: v5e:3x3: 9 chips are no slice"),
        ({"name": "A b"}, r"^name: 'A b' is not made of"),
        ({"slices": 0}, r"^slices: 0 is below 1$"),
        ({"price": -1.0}, r"^price: -1.0 is not above 0$"),
    ],
)
def test_what_cannot_be_meant_is_one_line(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        cloud.Common(**{"name": "a", "zone": "z"} | given)


GCLOUD = """#!/bin/bash
echo "$*" >>"$VM/calls"
case "$*" in
    *"queued-resources create"*) echo "${5} WAITING_FOR_RESOURCES" >>"$VM/states" ;;
    *"queued-resources delete"*) sed -i "/^${5} /d" "$VM/states" ;;
    *"queued-resources list"*"value(name)"*)
        [ ! -e "$VM/offline" ] || exit 1
        sed 's, .*,,; s,^,projects/p/queuedResources/,' "$VM/states" ;;
    *"queued-resources list"*)
        name=$(sed 's,.*name~/\\(.*\\)[$].*,\\1,' <<<"$*")
        sed -n "s/^$name //p" "$VM/states"
        sed -i "s/^$name WAITING_FOR_RESOURCES/$name ACTIVE/" "$VM/states" ;;
    *"instances create"*) echo "$4" >"$VM/head" ;;
    *"instances list"*) [ ! -e "$VM/head" ] || cat "$VM/head" ;;
    *"instances delete"*) [ ! -e "$VM/refuses" ] ;;
    *"instances describe"*) echo 10.0.0.2 ;;
    "compute scp "*) [ ! -e "$VM/execute" ] || cp "${@:3:$#-5}" "$VM" ;;
    "compute ssh "*) [ ! -e "$VM/execute" ] || { cd "$VM" && bash -c "${@: -1}"; } ;;
esac
"""


@pytest.fixture
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A cluster on a stand-in, with its folder ``vm``, and a repository of its own."""
    vm, repository = tmp_path / "vm", tmp_path / "repository"
    for folder in (vm, repository, tmp_path / "bin"):
        folder.mkdir()
    (vm / "states").touch()
    gcloud = tmp_path / "bin" / "gcloud"
    gcloud.write_text(GCLOUD)
    gcloud.chmod(0o755)
    subprocess.run(["git", "init", "--quiet"], cwd=repository, check=True)
    (repository / "tracked.txt").write_text("sent\n")
    monkeypatch.setenv("PATH", f"{gcloud.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("VM", str(vm))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(cloud, "ROOT", repository)
    monkeypatch.setattr(cloud, "WAIT_SECONDS", 0)
    made = cloud.Machines(cloud.Common("sweep", "zone-a", slices=2, spot=True))
    made.vm = vm
    return made


def calls(machines: Any, *parts: str) -> list[str]:
    lines = (machines.vm / "calls").read_text().splitlines()
    return [line for line in lines if all(part in line for part in parts)]


def test_up_makes_what_is_not_there_and_again_what_was_preempted(machines: Any) -> None:
    machines.up()
    assert [line.split()[4] for line in calls(machines, "queued-resources create")] == ["sweep-0", "sweep-1"]
    assert all("--spot" in line for line in calls(machines, "queued-resources create"))
    assert len(calls(machines, "instances create")) == 1
    assert len(calls(machines, "ray start --head")) == 1
    assert len(calls(machines, "ray start --address 10.0.0.2:6379")) == 2
    (machines.vm / "states").write_text("sweep-0 ACTIVE\nsweep-1 SUSPENDED\n")
    (machines.vm / "calls").unlink()
    machines.up()
    assert [line.split()[4] for line in calls(machines, "queued-resources delete")] == ["sweep-1"]
    assert [line.split()[4] for line in calls(machines, "queued-resources create")] == ["sweep-1"]
    assert not calls(machines, "instances create")


def test_submit_sends_the_tree_follows_the_command_and_keeps_its_records(
    machines: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    (machines.vm / "execute").touch()
    (machines.vm / "nas-search").mkdir()
    mirror = cloud.ROOT / "runs" / "sweep"
    steps = "mkdir -p runs/a/checkpoints && touch runs/a/checkpoints/1 && cat tracked.txt"
    steps += " && echo '{}' >>runs/a/trials.jsonl"
    assert machines.submit(("bash", "-c", f"{steps}; exit 7")) == 7
    assert "sent\n" in capfd.readouterr().out
    assert (mirror / "a/trials.jsonl").read_text() == "{}\n"
    assert not (mirror / "a/checkpoints").exists()
    # The head is lost, its disk too: what was copied is kept, and sent to the next one.
    (machines.vm / "nas-search/runs").rename(machines.vm / "lost")
    machines.mirror()
    assert "the last copy is kept" in capfd.readouterr().err
    assert (mirror / "a/trials.jsonl").exists()
    assert machines.submit(("bash", "-c", steps)) == 0
    assert (mirror / "a/trials.jsonl").read_text() == "{}\n{}\n"


def test_down_copies_the_records_and_deletes_all(machines: Any) -> None:
    states = ["sweep-0 ACTIVE", "sweep-1 SUSPENDED", "sweep-2 ACTIVE"]  # more than --slices says
    (machines.vm / "states").write_text("\n".join(states) + "\n")
    machines.down()
    deleted = [line.split()[4] for line in calls(machines, "queued-resources delete")]
    assert deleted == ["sweep-0", "sweep-1", "sweep-2"]
    order = [line.split()[1] for line in calls(machines) if "list" not in line]
    assert order[0] == "ssh", "the records are copied before anything is deleted"
    assert calls(machines)[-1].startswith("compute instances delete sweep-head ")


@pytest.mark.parametrize("what", ["offline", "refuses"])
def test_what_may_go_on_costing_is_an_error(machines: Any, what: str) -> None:
    """A list that could not be had is not an empty one, and a machine that was not deleted is named."""
    (machines.vm / "states").write_text("sweep-0 ACTIVE\n")
    (machines.vm / what).touch()
    with pytest.raises(InputError, match="status 1" if what == "offline" else "may cost: sweep-head"):
        machines.down()
    assert len(calls(machines, "queued-resources delete")) == (what == "refuses")


@pytest.mark.parametrize("what", ["up", "submit"])
def test_scripts_are_called_by_their_names(what: str) -> None:
    command = [str(ROOT / "scripts/tpu" / what), "a", "--zone", "z", "--dry-run"]
    if what == "submit":
        command += ["--", *SEARCH, "--dry-run"]
    environment = os.environ | {"PYTHON": sys.executable}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert ("queued-resources create a-0" in done.stdout) == (what == "up")
    if what == "submit":
        assert "python scripts/search.py --address auto" in done.stdout
        done = subprocess.run(command[:5], env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert done.stderr.startswith("error: command: missing")
