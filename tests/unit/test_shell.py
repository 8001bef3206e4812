"""The shell scripts, with stand-ins for the programs that they call."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = (
    "bash",
    "env",
    "cat",
    "cp",
    "dirname",
    "git",
    "gzip",
    "mkdir",
    "mktemp",
    "mv",
    "nohup",
    "rm",
    "sleep",
    "tail",
    "tar",
)
NEW, OLD = 0, 1
# `-m venv DIR` puts the stand-in itself there; everything else it is asked to do is written down.
PYTHON = """#!/bin/bash
case "$*" in
    *ensurepip*) exit {age} ;;
    *sys.version*) echo 3.9.2 ;;
    "-m venv "*) mkdir -p "${{@: -1}}/bin" && cp "$0" "${{@: -1}}/bin/python" ;;
    *) echo "$*" >>"$CALLS" ;;
esac
{then}
"""
# Keeps what it is told, and gives the command of `ssh` to a shell in its own folder, as the VM would.
GCLOUD = """#!/bin/bash
printf '%s|' "${@:1:5}" >>"$CALLS"
echo "${@: -2}" >>"$CALLS"
case "$*" in
    *"tpu-vm scp"*) cp "$5" "$VM/${6#*:}" ;;
    *"tpu-vm ssh"*) [ ! -e "$VM/gone" ] && cd "$VM" && bash -c "$7" ;;
esac
"""


class Clone:
    """The shell scripts and requirements in a repository of their own; PATH has TOOLS and stand-ins only."""

    def __init__(self, folder: Path) -> None:
        self.root, self.bin, self.vm = folder / "clone", folder / "bin", folder / "vm"
        shutil.copytree(
            ROOT / "scripts", self.root / "scripts", ignore=shutil.ignore_patterns("*.py", "__pycache__")
        )
        for name in ("constraints.txt", "pyproject.toml", ".gitignore"):
            shutil.copy(ROOT / name, self.root)
        for path in ROOT.glob("requirements*.txt"):
            shutil.copy(path, self.root)
        self.bin.mkdir()
        self.vm.mkdir()
        for tool in TOOLS:
            if (path := shutil.which(tool)) is None:
                pytest.skip(f"{tool} is not installed")
            (self.bin / tool).symlink_to(path)

    def stand_in(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def python(self, name: str, age: int, then: str = "") -> None:
        self.stand_in(name, PYTHON.format(age=age, then=then))

    def run(self, script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        variables |= {"PATH": str(self.bin), "CALLS": str(self.bin / "calls"), "VM": str(self.vm)}
        command = [f"scripts/{script}", *arguments]
        return subprocess.run(
            command, cwd=self.root, env=variables, capture_output=True, text=True, check=False
        )

    @property
    def calls(self) -> list[str]:
        path = self.bin / "calls"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path)


def test_an_old_python_is_refused_in_one_line(clone: Clone) -> None:
    clone.python("python3", OLD)
    done = clone.run("quickstart.sh")
    assert done.returncode == 1
    assert done.stderr == (
        "error: setup: Python 3.11 or newer with its venv module is needed, found: python3 3.9.2; "
        "PYTHON=/path/to/python chooses another\n"
    )


def test_no_python_is_said_in_one_line(clone: Clone) -> None:
    done = clone.run("setup.sh", PYTHON="no-such")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "found: none;" in done.stderr


def test_unknown_requirements_name_the_choices(clone: Clone) -> None:
    done = clone.run("setup.sh", "requirements-cpu.txt")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert (
        "requirements-cpu.txt is not one of requirements-bench.txt requirements-cloud.txt requirements-data.txt "
        in done.stderr
    )


def test_a_newer_python_is_found_behind_an_old_one(clone: Clone) -> None:
    clone.python("python3", OLD)
    clone.python("python3.12", NEW)
    assert clone.run("setup.sh").returncode == 0
    assert (clone.root / ".venv/bin/python").read_text() == (clone.bin / "python3.12").read_text()


def test_pip_runs_again_only_when_something_changed(clone: Clone) -> None:
    clone.python("python3", NEW)
    for _ in range(2):
        assert clone.run("setup.sh").returncode == 0
        assert len(clone.calls) == 1
    assert clone.calls[0].endswith("--editable . -r requirements.txt -c constraints.txt")
    for name in ("constraints.txt", "requirements.txt", "pyproject.toml"):
        with (clone.root / name).open("a") as file:
            file.write("added\n")
        before = len(clone.calls)
        clone.run("setup.sh")
        clone.run("setup.sh")
        assert len(clone.calls) == before + 1, name
    clone.run("setup.sh", "requirements-dev.txt")
    assert clone.calls[-1].endswith("-r requirements-dev.txt -c constraints.txt")


def test_packages_are_compiled_at_once_only_where_they_cannot_be_at_first_import(clone: Clone) -> None:
    clone.python("python3", NEW)
    clone.run("setup.sh", PYTHONDONTWRITEBYTECODE="1")
    clone.run("setup.sh", "requirements-gpu.txt")
    clone.run("test.sh", PYTHONDONTWRITEBYTECODE="1")
    installs = [call for call in clone.calls if "install" in call]
    assert ["--no-compile" in call for call in installs] == [False, True, True]


def test_a_failed_installation_is_not_taken_for_done(clone: Clone) -> None:
    clone.python("python3", NEW, then='[[ "$*" != *pip* ]] || exit 1')
    clone.run("setup.sh")
    done = clone.run("setup.sh")
    assert (done.returncode, len(clone.calls)) == (1, 2)
    assert "pip could not install requirements.txt" in done.stderr


def test_quickstart_never_writes_into_an_existing_folder(clone: Clone) -> None:
    clone.python(
        "python3", NEW, then='[[ "$*" != *compare.py* ]] || mkdir runs runs/quickstart 2>/dev/null || true'
    )
    for _ in range(2):
        assert clone.run("quickstart.sh", "--seed", "1").returncode == 0
    first, second = (call for call in clone.calls if "compare.py" in call)
    assert first.endswith("--out runs/quickstart --seed 1")
    assert second.endswith("--out runs/quickstart-2 --seed 1")


def test_test_sh_leaves_slow_tests_out_unless_asked(clone: Clone) -> None:
    clone.python("python3", NEW)
    assert clone.run("test.sh", "-k", "space").returncode == 0
    spread = "-m pytest -n logical --dist loadfile --no-loadscope-reorder"
    assert clone.calls[-1] == f"{spread} -m not slow -k space"
    assert clone.run("test.sh", "--all", "-k", "space").returncode == 0
    assert clone.calls[-1] == f"{spread} -k space"


@pytest.mark.parametrize("check", ["ruff check", "ruff format --check", "pyright"])
def test_test_sh_fails_with_any_check(clone: Clone, check: str) -> None:
    clone.python("python3", NEW, then=f'[[ "$*" != *"{check}"* ]] || exit 3')
    assert clone.run("test.sh").returncode == 3
    assert not any("pytest" in call for call in clone.calls)


def test_tpu_is_refused_without_gcloud_in_one_line(clone: Clone) -> None:
    done = clone.run("tpu/run.sh", "vm", "zone", "--", "python", "x.py")
    assert done.returncode == 2
    assert done.stderr == "error: tpu: gcloud, the Google Cloud command line, is not installed\n"
    done = clone.run("tpu/run.sh", "vm", "python", "x.py")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "usage:" in done.stderr


def test_tpu_sends_the_tree_runs_the_command_and_brings_runs_back(clone: Clone) -> None:
    clone.stand_in("gcloud", GCLOUD)
    clone.python("python3", NEW, then='[[ "$*" != *search.py* ]] || { mkdir -p runs/a && exit 7; }')
    (clone.root / "secret").write_text("ignored by git\n")
    (clone.root / ".gitignore").write_text("secret\n")
    subprocess.run(["git", "init", "--quiet"], cwd=clone.root, check=True)
    done = clone.run("tpu/run.sh", "vm", "zone-a", "--", "python", "scripts/search.py", "--fix", "a b='c'")
    assert done.returncode == 7, done.stderr
    assert (clone.root / "runs/from-vm/runs/a").is_dir()
    assert not (clone.vm / "nas-search/secret").exists()
    steps = [call for call in clone.calls if call.startswith("compute|tpus|tpu-vm|")]
    assert len(steps) == 3  # the tree, the command, the records
    assert "scripts/search.py --fix a b='c'" in clone.calls
    assert any(call.endswith("-r requirements-tpu.txt -c constraints.txt") for call in clone.calls)
    assert all("zone-a" in call for call in steps if call.startswith("compute"))


def test_records_of_a_spot_vm_that_is_taken_away_are_here_and_go_on_on_the_next(clone: Clone) -> None:
    clone.stand_in("gcloud", GCLOUD)
    search = """[[ "$*" != *search.py* ]] || {
        mkdir -p runs/a/checkpoints && : >runs/a/checkpoints/1 && echo trial >>runs/a/trials.jsonl
        for k in {1..100}; do [ "$TAKEN" = no ] || [ -d "$ROOT/runs/from-vm/runs/a" ] || sleep 0.1; done
        [ "$TAKEN" = no ] || { : >"$VM/gone"; exit 255; }
    }"""
    clone.python("python3", NEW, then=search)
    subprocess.run(["git", "init", "--quiet"], cwd=clone.root, check=True)
    command = ("tpu/run.sh", "vm", "zone-a", "--", "python", "scripts/search.py")
    record = clone.root / "runs/from-vm/runs/a/trials.jsonl"
    done = clone.run(*command, MIRROR_SECONDS="0.2", TAKEN="yes", ROOT=str(clone.root))
    assert done.returncode == 255
    assert done.stderr.endswith("tpu: runs/ could not be copied; what was is in runs/from-vm\n")
    assert record.read_text() == "trial\n"
    assert not (record.parent / "checkpoints").exists()
    shutil.rmtree(clone.vm)
    clone.vm.mkdir()
    done = clone.run(*command, TAKEN="no", ROOT=str(clone.root))
    assert done.returncode == 0, done.stderr
    assert record.read_text() == "trial\ntrial\n"
