"""A Ray cluster of TPU slices on Google Cloud: scripts/tpu/up, submit, logs and down; see docs/guide/tpu.md.

Never run on real TPUs by us: none was at hand. What is tested is what it asks of gcloud and kubectl, against
stand-ins, and its manifests against KubeRay's schema.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import tyro
from _slices import Slice, ray_job, slice_of

from nas.errors import InputError
from nas.run.command_line import run

ROOT = Path(__file__).resolve().parents[2]
FOLDER = "nas-search"  # on the machines
MIRROR_SECONDS = 60
WAIT_SECONDS = 20


@dataclasses.dataclass(frozen=True)
class Common:
    """What all four are told."""

    name: tyro.conf.Positional[str]
    """of the cluster: lower-case letters, digits and dashes"""
    zone: str
    """where it is, such as us-west4-a"""
    on: Literal["vm", "gke"] = "vm"
    """vm: queued resources, TPU machines beside a small one that is the head; gke: pods of KubeRay's RayJob"""
    topology: str = "v5e:2x2"
    """of one slice: generation:shape"""
    slices: int = 1
    """how many of them; small ones are had, and lost, one by one"""
    spot: bool = False
    """at the price, and with the risk, of spot machines"""
    image: str | None = None
    """(gke) the container image of scripts/tpu/Dockerfile"""
    price: float | None = None
    """dollars of a chip-hour, as Google's price list has it for your region; up and submit say what an hour costs"""
    dry_run: bool = False
    """print every command and manifest; run nothing"""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", self.name):
            raise InputError(f"name: {self.name!r} is not made of lower-case letters, digits and dashes")
        if self.slices < 1:
            raise InputError(f"slices: {self.slices} is below 1")
        if self.price is not None and not self.price > 0:
            raise InputError(f"price: {self.price} is not above 0")
        slice_of(self.topology)

    @property
    def slice(self) -> Slice:
        return slice_of(self.topology)

    @property
    def parts(self) -> list[str]:
        """The names of the slices."""
        return [f"{self.name}-{i}" for i in range(self.slices)]

    @property
    def head(self) -> str:
        return f"{self.name}-head"


@dataclasses.dataclass(frozen=True)
class Submit(Common):
    """Run a command of this repository on the cluster, follow it, and keep its records here."""

    command: tyro.conf.Positional[tuple[str, ...]] = ()
    """behind --, such as: -- python scripts/search.py --address auto --out runs/a"""


class Commands:
    """Runs commands, or prints them where ``dry``."""

    def __init__(self, dry: bool) -> None:
        self.dry = dry

    def __call__(self, *words: str, check: bool = True, **options: Any) -> int:
        """The exit status. Raises InputError where that is not 0, unless told not to ``check``."""
        if self.dry:
            print(shlex.join(words), flush=True)
            return 0
        if shutil.which(words[0]) is None:
            raise InputError(f"tpu: {words[0]} is not installed")
        status = subprocess.run(words, check=False, **options).returncode
        if check and status:
            raise InputError(f"tpu: status {status} of {shlex.join(words)[:200]}")
        return status

    def read(self, *words: str, dry: str) -> str:
        """What the command prints; ``dry`` stands for it in a dry run. Raises InputError where it fails: that is no
        answer, and what is not known of may go on costing."""
        if self.dry:
            print(shlex.join(words), flush=True)
            return dry
        if shutil.which(words[0]) is None:
            raise InputError(f"tpu: {words[0]} is not installed")
        done = subprocess.run(words, check=False, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise InputError(f"tpu: status {done.returncode} of {shlex.join(words)[:200]}")
        return done.stdout.strip()


def say_price(config: Common) -> None:
    chips = config.slices * config.slice.chips
    cost = "" if config.price is None else f", ${chips * config.price:.2f} an hour"
    print(
        f"# {config.slices} x {config.topology}: {chips} chips{cost}; it costs until scripts/tpu/down",
        flush=True,
    )


# ------------------------------------------------------------------------------------------- TPU virtual machines

# The machine's own Python may be too old, or lack venv: uv brings one.
INSTALL = f"""set -eu
mkdir -p {FOLDER} && tar -xzf nas-search.tar.gz -C {FOLDER} && cd {FOLDER}
good='import ensurepip, sys; sys.exit(sys.version_info < (3, 11))'
if [ ! -x .venv/bin/python ] && ! python3 -c "$good" 2>/dev/null; then
    python3 -m pip --version >/dev/null 2>&1 || (sudo apt-get -qq update && sudo apt-get -qq install -y python3-pip)
    python3 -m pip install --quiet --user --break-system-packages uv 2>/dev/null ||
        python3 -m pip install --quiet --user uv
    python3 -m uv venv --quiet --seed --python 3.12 .venv
fi
./scripts/setup.sh {{requirements}}
mkdir -p ~/.ray && install -m 600 ~/nas-token ~/.ray/auth_token"""
RAY = f"cd {FOLDER} && export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 && .venv/bin/ray"


class Machines:
    """The head, on a machine of its own that is not taken away, and slices of TPUs."""

    def __init__(self, config: Common) -> None:
        self.config, self.run = config, Commands(config.dry_run)
        self._zone = ("--zone", config.zone)

    def up(self) -> None:
        """Make what is not there, wait for it, install this tree, start Ray. Again: what was preempted is made anew."""
        config, run = self.config, self.run
        found = run.read(
            "gcloud", "compute", "instances", "list", "--filter", f"name={config.head}",
            "--format", "value(name)", dry="",
        )  # fmt: skip
        if config.head not in found.split():
            run("gcloud", "compute", "instances", "create", config.head, *self._zone, "--machine-type", "e2-standard-8",
                "--image-family", "ubuntu-2404-lts-amd64", "--image-project", "ubuntu-os-cloud",
                "--boot-disk-size", "100GB")  # fmt: skip
        for part in config.parts:
            state = self._state(part, dry="")
            if state in ("SUSPENDED", "SUSPENDING", "FAILED"):
                self._delete(part)
                state = ""
            if not state:
                self._create(part)
        address = run.read(
            "gcloud", "compute", "instances", "describe", config.head, *self._zone,
            "--format", "value(networkInterfaces[0].networkIP)", dry="HEAD_ADDRESS",
        )  # fmt: skip
        with archived(run) as archive, token(run) as secret:
            self._to_head(archive, secret)
            self._head(INSTALL.format(requirements="requirements.txt"))
            started = f"{RAY} status --address {address}:6379 >/dev/null 2>&1"
            self._head(
                f"({started}) || ({RAY} start --head --port 6379 --num-cpus 0 --include-dashboard false)"
            )
            for part in config.parts:
                while (state := self._state(part, dry="ACTIVE")) != "ACTIVE":
                    if state in ("SUSPENDED", "SUSPENDING", "FAILED", ""):
                        raise InputError(f"tpu: {part} is {state or 'gone'}; scripts/tpu/up again asks anew")
                    print(f"# {part}: {state}", flush=True)
                    time.sleep(WAIT_SECONDS)
                run(
                    "gcloud",
                    "compute",
                    "tpus",
                    "tpu-vm",
                    "scp",
                    archive,
                    secret,
                    f"{part}:",
                    *self._zone,
                    "--worker",
                    "all",
                )
                # A slice whose Ray is there is at work, on trials that a new start would end.
                there = f"({RAY} status --address {address}:6379 && pgrep -x raylet) >/dev/null 2>&1"
                install = INSTALL.format(requirements="requirements-tpu.txt")
                stop = f"({RAY} stop) >/dev/null 2>&1 || true"
                start = f"{RAY} start --address {address}:6379"
                self._slice(part, f"if {there}; then exit 0; fi\n{install}\ncd\n{stop}\n{start}")

    def submit(self, command: tuple[str, ...]) -> int:
        """Run the command on the head, apart from this connection; follow it, and mirror its records meanwhile."""
        with archived(self.run) as archive:
            self._to_head(archive)
        kept = ROOT / self._mirror
        if (
            kept.is_dir() and not self.run.dry
        ):  # the records of a head that is gone: --resume goes on with them
            with tempfile.TemporaryDirectory() as folder:
                records = Path(folder) / "records.tar.gz"
                subprocess.run(["tar", "-czf", records, "-C", kept, "."], check=True)
                self._to_head(str(records))
            self._head(f"mkdir -p {FOLDER}/runs && tar -xzf records.tar.gz --skip-old-files -C {FOLDER}/runs")
        log = f"runs/{self.config.name}.log"
        inner = f"{shlex.join(command)} >{log} 2>&1 </dev/null; echo $? >{log}.status"
        self._head(
            f"set -eu; tar -xzf nas-search.tar.gz -C {FOLDER}; cd {FOLDER}; "
            f"mkdir -p runs; rm -f {log}.status; : >{log}; "
            "export RAY_AUTH_MODE=token JAX_PLATFORMS=cpu PATH=$PWD/.venv/bin:$PATH; "
            f"setsid nohup bash -c {shlex.quote(inner)} >/dev/null 2>&1 &"
        )
        over = threading.Event()
        mirror = threading.Thread(target=self._mirror_until, args=(over,), daemon=True)
        if not self.run.dry:
            mirror.start()
        try:
            return self.logs()
        finally:
            over.set()
            if mirror.is_alive():  # at a copy of its own
                mirror.join()
            self.mirror()

    def logs(self) -> int:
        """Follow the log of what was submitted last; its exit status."""
        log = f"{FOLDER}/runs/{self.config.name}.log"
        follow = (
            f"test -f {log} || {{ echo 'nothing was submitted' >&2; exit 2; }}; "
            f"tail -n +1 -f {log} & while [ ! -f {log}.status ]; do sleep 1; done; sleep 1; kill $!; "
            f"exit $(cat {log}.status)"
        )
        return self._head(follow, check=False)

    def mirror(self) -> None:
        """Copy the records on the head to runs/NAME here; a copy that breaks off leaves the one before."""
        fetch = ["gcloud", "compute", "ssh", self.config.head, *self._zone, "--command",
                 f"tar -C {FOLDER}/runs -cz --exclude checkpoints ."]  # fmt: skip
        if self.run.dry:
            print(f"{shlex.join(fetch)} | tar -xz -C {self._mirror}", flush=True)
            return
        into = ROOT / self._mirror
        part = into.with_name(f".{into.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        sent = subprocess.run(fetch, check=False, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        got = subprocess.run(
            ["tar", "-xz", "-C", part], input=sent.stdout, check=False, stderr=subprocess.DEVNULL
        )
        if sent.returncode or got.returncode:
            shutil.rmtree(part)
            print("tpu: the records could not be copied; the last copy is kept", file=sys.stderr, flush=True)
            return
        shutil.rmtree(into, ignore_errors=True)
        part.rename(into)

    def down(self) -> None:
        """Copy the records once more, then delete everything."""
        self.mirror()
        listed = self.run.read(
            "gcloud", "compute", "tpus", "queued-resources", "list", *self._zone,
            "--filter", f"name~/{self.config.name}-[0-9]+$", "--format", "value(name)",
            dry="\n".join(self.config.parts),
        )  # fmt: skip
        left = []
        for part in listed.split():  # whatever --slices says: one that is forgotten would go on costing
            name = part.rpartition("/")[2]
            left += [name] if self._delete(name, check=False) else []
        head = self.config.head
        if self.run("gcloud", "compute", "instances", "delete", head, *self._zone, "--quiet", check=False):
            left.append(head)
        if left:
            raise InputError(f"tpu: not deleted, and may cost: {' '.join(left)}; scripts/tpu/down again")

    @property
    def _mirror(self) -> str:
        return f"runs/{self.config.name}"

    def _mirror_until(self, over: threading.Event) -> None:
        while not over.wait(MIRROR_SECONDS):
            self.mirror()

    def _state(self, part: str, dry: str) -> str:
        return self.run.read(
            "gcloud", "compute", "tpus", "queued-resources", "list", *self._zone, "--filter", f"name~/{part}$",
            "--format", "value(state.state)", dry=dry,
        )  # fmt: skip

    def _create(self, part: str) -> None:
        of = self.config.slice
        self.run("gcloud", "compute", "tpus", "queued-resources", "create", part, "--node-id", part, *self._zone,
                 "--accelerator-type", of.accelerator_type, "--runtime-version", of.generation.runtime,
                 *(("--spot",) if self.config.spot else ()))  # fmt: skip

    def _delete(self, part: str, *, check: bool = True) -> int:
        words = ("gcloud", "compute", "tpus", "queued-resources", "delete", part)
        return self.run(*words, *self._zone, "--force", "--quiet", check=check)

    def _to_head(self, *files: str) -> None:
        self.run("gcloud", "compute", "scp", *files, f"{self.config.head}:", *self._zone)

    def _head(self, command: str, *, check: bool = True) -> int:
        return self.run(
            "gcloud", "compute", "ssh", self.config.head, *self._zone, "--command", command, check=check
        )

    def _slice(self, part: str, command: str) -> None:
        self.run(
            "gcloud",
            "compute",
            "tpus",
            "tpu-vm",
            "ssh",
            part,
            *self._zone,
            "--worker",
            "all",
            "--command",
            command,
        )


@contextlib.contextmanager
def archived(run: Commands) -> Iterator[str]:
    """This working tree, what git tracks or would, as a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = "nas-search.tar.gz" if run.dry else str(Path(folder) / "nas-search.tar.gz")
        if not run.dry:
            names = subprocess.run(
                ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                cwd=ROOT, check=True, stdout=subprocess.PIPE,
            ).stdout  # fmt: skip
            names = b"\0".join(
                name for name in names.split(b"\0") if name and (ROOT / os.fsdecode(name)).exists()
            )
            subprocess.run(["tar", "--null", "-czf", path, "-T", "-"], cwd=ROOT, check=True, input=names)
        yield path


@contextlib.contextmanager
def token(run: Commands) -> Iterator[str]:
    """What the machines of the cluster tell each other, kept in ~/.ray as Ray has it for a local one."""
    if run.dry:
        yield "nas-token"
        return
    import secrets

    kept = Path.home() / ".ray" / "auth_token"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.touch(0o600)
        kept.write_text(secrets.token_hex(32))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "nas-token"
        path.touch(0o600)
        path.write_text(kept.read_text().strip())
        yield str(path)


# ------------------------------------------------------------------------------------------------------------ GKE


class Pods:
    """A cluster of GKE with KubeRay, and a RayJob on it."""

    def __init__(self, config: Common) -> None:
        self.config, self.run = config, Commands(config.dry_run)
        self._zone = ("--zone", config.zone)

    def up(self) -> None:
        """The cluster with Google's KubeRay, and pools of TPU machines, from none to as many as the slices have."""
        config, of = self.config, self.config.slice
        found = self.run.read(
            "gcloud", "container", "clusters", "list", "--filter", f"name={config.name}",
            "--format", "value(name)", dry="",
        )  # fmt: skip
        if config.name not in found.split():
            self.run("gcloud", "container", "clusters", "create", config.name, *self._zone, "--addons", "RayOperator",
                     "--machine-type", "e2-standard-8", "--num-nodes", "1")  # fmt: skip
        # A slice of several hosts is a pool of its own; hosts that are slices by themselves are one pool.
        names = ["tpu"] if of.hosts == 1 else [f"tpu-{i}" for i in range(config.slices)]
        most = str(config.slices if of.hosts == 1 else of.hosts)
        there = self.run.read(
            "gcloud", "container", "node-pools", "list", "--cluster", config.name, *self._zone,
            "--format", "value(name)", dry="",
        )  # fmt: skip
        for pool in [name for name in names if name not in there.split()]:
            self.run("gcloud", "container", "node-pools", "create", pool, "--cluster", config.name, *self._zone,
                     "--machine-type", of.machine, "--num-nodes", "0", "--enable-autoscaling", "--min-nodes", "0",
                     "--max-nodes", most, *(("--tpu-topology", of.topology) if of.hosts > 1 else ()),
                     *(("--spot",) if config.spot else ()))  # fmt: skip
        self.run("gcloud", "container", "clusters", "get-credentials", config.name, *self._zone)

    def submit(self, command: tuple[str, ...]) -> int:
        config = self.config
        if config.image is None:
            raise InputError("image: pods need one; scripts/tpu/Dockerfile makes it")
        manifest = ray_job(
            config.name,
            config.slice,
            slices=config.slices,
            spot=config.spot,
            image=config.image,
            command=shlex.join(command),
            ray_version=importlib.metadata.version("ray"),
        )
        text = json.dumps(manifest, indent=2)  # which is YAML, too
        # A job of this name that has ended would not run again.
        self.run("kubectl", "delete", "rayjob", config.name, "--ignore-not-found", "--wait")
        if self.run.dry:
            print(f"kubectl apply -f - <<'END'\n{text}\nEND", flush=True)
        else:
            self.run("kubectl", "apply", "-f", "-", input=text, text=True)
        return self.logs()

    def logs(self) -> int:
        """Follow what the command says; 1 where the job did not succeed."""
        name = self.config.name
        self.run("kubectl", "wait", "--for", "jsonpath={.status.jobDeploymentStatus}=Running", f"rayjob/{name}",
                 "--timeout", "24h")  # fmt: skip
        self.run("kubectl", "logs", "--follow", "--tail", "-1", "--selector", f"job-name={name}", check=False)
        state = self.run.read(
            "kubectl", "get", f"rayjob/{name}", "--output", "jsonpath={.status.jobStatus}", dry="SUCCEEDED"
        )
        return 0 if state == "SUCCEEDED" else 1

    def down(self) -> None:
        self.run("kubectl", "delete", "rayjob", self.config.name, "--ignore-not-found", check=False)
        self.run("gcloud", "container", "clusters", "delete", self.config.name, *self._zone, "--quiet")


def place(config: Common) -> Machines | Pods:
    return Machines(config) if config.on == "vm" else Pods(config)


def up(config: Common) -> None:
    say_price(config)
    place(config).up()


def submit(config: Submit) -> None:
    if not config.command:
        raise InputError(
            "command: missing; it stands behind --, such as -- python scripts/search.py --address auto"
        )
    say_price(config)
    ended(place(config).submit(config.command))


def logs(config: Common) -> None:
    ended(place(config).logs())


def down(config: Common) -> None:
    place(config).down()


def ended(status: int) -> None:
    if status:
        sys.stdout.flush()
        os._exit(status)  # the command's own, whatever it is


def command_after_dashes(main: Any, argv: list[str]) -> Any:
    """Of ``submit``, everything behind ``--`` as it stands: its options are not ours."""
    if main is not submit or "--" not in argv:
        return main
    at = argv.index("--")
    words, sys.argv[1:] = tuple(argv[at + 1 :]), argv[:at]

    def with_command(config: Common) -> None:
        submit(Submit(**dataclasses.asdict(config), command=words))

    return with_command


if __name__ == "__main__":
    chosen = {"up": up, "submit": submit, "logs": logs, "down": down}[sys.argv.pop(1)]
    run(command_after_dashes(chosen, sys.argv[1:]))
