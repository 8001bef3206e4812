"""The arrows of the house point one way, and the requirements are what is imported."""

import ast
import contextlib
import functools
import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from docs.draw_imports import cycles, import_graph

ROOT = Path(__file__).parents[2]
HOUSE = ("nas", "search_spaces", "experiments", "scripts")
# Installed for another package's sake; never imported by name.
INDIRECT = {"array-record": "tensorflow-datasets reads its files with it"}


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


@functools.cache
def imports(path: Path) -> set[str]:
    """Every dotted name imported anywhere in the file; ``from a import b`` is ``a`` and ``a.b``."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
            base = ".".join([*package, *filter(None, [node.module])])
            names.update({base, *(f"{base}.{alias.name}" for alias in node.names)})
    return names


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def offenders(folder: str, *forbidden: str, but_for: tuple[str, ...] = ()) -> list[str]:
    """``file: name`` for every import of ``forbidden`` under ``folder``, outside the paths of ``but_for``."""
    return [
        f"{path.relative_to(ROOT)}: {name}"
        for path in sources(folder)
        if not path.relative_to(ROOT).as_posix().startswith(but_for)
        for name in sorted(imports(path))
        if within(name, *forbidden)
    ]


def test_imports_sees_every_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / "nas" / "run" / "x.py"
    path.parent.mkdir(parents=True)
    path.write_text("import a.b as c\ndef f():\n    from d import e\nfrom . import g\nfrom ..h import i\n")
    assert imports(path) == {"a.b", "d", "d.e", "nas.run", "nas.run.g", "nas.h", "nas.h.i"}
    assert offenders("nas", "d", "a") == ["nas/run/x.py: a.b", "nas/run/x.py: d", "nas/run/x.py: d.e"]
    assert offenders("nas", "d", but_for=("nas/run/",)) == []


def test_nas_knows_no_network_and_no_experiment() -> None:
    assert offenders("nas", "search_spaces", "experiments", "scripts") == []
    assert offenders("search_spaces", "experiments", "scripts") == []


def test_a_search_space_needs_spaces_and_operations_only() -> None:
    allowed = ("nas.space", "nas.nn", "nas.cpu", "nas.errors", "nas.own_file")
    seen = {name for path in sources("search_spaces") for name in imports(path) if within(name, "nas")}
    assert {name for name in seen if not within(name, *allowed)} <= {"nas"}


@pytest.mark.parametrize(
    "part",
    ["strategies", "objectives", "training", "cpu", "nn", "data", "tables", "record", "report", "proxies"],
)
def test_only_scripts_and_experiments_stand_above_the_drivers(part: str) -> None:
    assert offenders(f"nas/{part}", "nas.run") == []


def test_a_strategy_touches_no_files_clock_or_global_randomness() -> None:
    assert offenders("nas/strategies", "os", "pathlib", "io", "time", "datetime", "random", "secrets") == []
    assert (
        offenders("nas/strategies", "nas.objectives", "nas.training", "nas.record", "nas.report", "nas.data")
        == []
    )


def test_a_record_knows_no_report_and_a_report_runs_nothing() -> None:
    assert (
        offenders("nas/record", "nas.report", "nas.objectives", "nas.training", "nas.data", "nas.run") == []
    )
    assert offenders("nas/report", "nas.objectives", "nas.data", "nas.oneshot", "nas.run", "importlib") == []


def test_the_lowerings_need_nothing_else_of_nas() -> None:
    """`nas.cpu` can leave the house one day."""
    seen = {name for path in sources("nas/cpu") for name in imports(path) if within(name, "nas")}
    assert {name for name in seen if not within(name, "nas.cpu")} <= {"nas"}
    assert offenders("nas/cpu", "flax", "optax") == []


def test_a_search_space_value_needs_no_network_library() -> None:
    heavy = ("jax", "flax", "optax", "ray")
    assert offenders("nas/space", *heavy) == []
    for name in ("trial.py", "errors.py"):
        assert [module for module in imports(ROOT / "nas" / name) if within(module, *heavy)] == [], name


def test_a_search_space_knows_no_search() -> None:
    seen = {name for path in sources("nas/space") for name in imports(path) if within(name, "nas")}
    assert {name for name in seen if not within(name, "nas.space", "nas.errors")} == set()


def test_no_module_imports_itself_through_others() -> None:
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]
    assert cycles(import_graph()) == []


LONGEST = 520


def test_no_file_is_longer_than_can_be_read_at_a_time() -> None:
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in sources(*HOUSE)
    }
    assert {file for file, lines in lengths.items() if lines > LONGEST} == set()


@pytest.mark.parametrize(
    ("library", "home"),
    [
        ("ray", ("nas/run/tune/",)),
        ("tensorflow_datasets", ("nas/data/",)),
        ("flax.linen", ("search_spaces/", "nas/nn/", "scripts/bench_training.py", "scripts/_plain.py")),
        ("matplotlib", ("nas/report/", "experiments/")),
    ],
)
def test_a_library_has_one_home(library: str, home: tuple[str, ...]) -> None:
    assert [line for folder in HOUSE for line in offenders(folder, library, but_for=home)] == []


@pytest.mark.parametrize("folder", ["scripts", "experiments"])
def test_a_script_has_no_other_modules_name(folder: str) -> None:
    """Python puts a script's folder first on the path: a `profile.py` there is what cProfile would import."""
    installed = set(sys.stdlib_module_names) | set(importlib.metadata.packages_distributions())
    assert {path.stem for path in sources(folder)} & installed - {"__init__"} == set()


def test_nothing_changes_where_modules_are_looked_for() -> None:
    """The packages are installed, and a script finds the modules beside it by itself."""
    assert [path.name for path in sources(*HOUSE) if "sys.path" in path.read_text()] == []


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_an_installation_has_every_package_and_every_file_that_they_read() -> None:
    """The packages are those that `HOUSE` names but for the scripts; what is not Python is package data."""
    packages = project()["tool"]["setuptools"]["packages"]["find"]["include"]
    assert packages == [f"{name}*" for name in HOUSE if name != "scripts"]
    data = project()["tool"]["setuptools"]["package-data"]
    shipped = {path for name, patterns in data.items() for p in patterns for path in (ROOT / name).glob(p)}
    others = {
        path
        for name in ("nas", "search_spaces", "experiments")
        for path in (ROOT / name).rglob("*.*")
        if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts
    }
    assert others == shipped


@pytest.mark.slow
def test_it_installs_and_is_imported_from_anywhere(tmp_path: Path) -> None:
    """In an environment of its own, from a copy: installing leaves a folder beside the sources."""
    copy, environment = tmp_path / "copy", tmp_path / "environment"
    for name in ("nas", "search_spaces", "experiments"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    python = environment / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--editable", copy], check=True)
    program = "import nas.space, search_spaces.zoo, experiments; print(nas.__file__)"
    # The libraries of this environment come behind: this checkout may be installed among them.
    (site,) = (environment / "lib").glob("python*/site-packages")
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-c", program], cwd=tmp_path, env=alone, capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()) == copy / "nas" / "__init__.py"


def requirements(file: str) -> Iterator[Requirement]:
    """The lines of a requirements file and of those it includes."""
    for line in (ROOT / file).read_text().splitlines():
        line = line.partition("#")[0].strip()
        if line.startswith("-r "):
            yield from requirements(line[3:])
        elif line:
            yield Requirement(line)


def declared(file: str) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement in requirements(file)}


def imported(*folders: str) -> set[str]:
    """The distributions that the modules under ``folders`` import."""
    homes = importlib.metadata.packages_distributions()
    modules = {name.partition(".")[0] for path in sources(*folders) for name in imports(path)}
    own = {*HOUSE, "tests", "docs", *(path.stem for path in sources("scripts", "experiments", "tests"))}
    foreign = modules - set(sys.stdlib_module_names) - own
    foreign -= {
        "torch",
        "torchvision",
        "onnx",
        "onnxruntime",
    }  # optional: requirements-bench.txt, requirements-export.txt
    assert not (unknown := {module for module in foreign if module not in homes}), unknown
    return {canonicalize_name(home) for module in foreign for home in set(homes[module])}


def test_requirements_are_exactly_what_is_imported() -> None:
    assert declared("requirements.txt") - set(INDIRECT) == imported(*HOUSE)


def test_tests_import_only_what_requirements_dev_names() -> None:
    assert imported("tests") <= declared("requirements-dev.txt")


def test_constraints_pin_everything_that_gets_installed() -> None:
    lines = (line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines())
    pins = {canonicalize_name(line.partition("==")[0]): line.partition("==")[2] for line in lines if line}
    assert all(pins.values())
    needed: set[tuple[str, frozenset[str]]] = set()
    queue = list(requirements("requirements-dev.txt"))
    while queue:
        requirement = queue.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, extras) in needed:
            continue
        needed.add((name, extras))
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # what it needs shows where it is
            children = [Requirement(line) for line in importlib.metadata.requires(name) or ()]
            environments = [{"extra": extra} for extra in extras or {""}]
            queue += [c for c in children if not c.marker or any(map(c.marker.evaluate, environments))]
    assert {name for name, _ in needed} <= set(pins)


def test_what_is_imported_by_its_name_alone_is_little_and_known() -> None:
    """What no arrow shows: the names of `nas`, spaces by name, Tune for a space that is asked, parts of TFDS."""
    found = {
        (path.relative_to(ROOT).as_posix(), ast.unparse(node.args[0]))
        for path in sources("nas", "search_spaces")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module")
    }
    assert found == {
        ("nas/__init__.py", "_HOME[name]"),
        ("nas/api/inputs.py", "SPACES_BY_NAME"),
        ("nas/data/preparation.py", "name"),
        ("nas/data/tfds_records.py", "'tensorflow_datasets.proto'"),
        ("nas/space/space.py", "'nas.run.tune.space'"),
    }
