"""The claims of papers as data, what a run of an experiment leaves, and the rule that judges one by the other."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from nas.errors import InputError
from nas.record.files import environment
from nas.report.statistics.intervals import Interval

RESULT = "result.json"
STARTED = time.monotonic()
Z95 = 1.959964


@dataclasses.dataclass(frozen=True)
class Number:
    """One number that a paper reports, or says on which side of a bound it lies."""

    name: str
    """of the measured number in a result file"""
    says: str
    """what is measured, with its unit"""
    published: float | None = None
    digits: int = 2
    """behind the point of the published number: it is rounded there"""
    spread: float | None = None
    """standard deviation over runs, as published"""
    runs: int = 1
    """that the published number is the mean of"""
    side: Literal["above", "below"] | None = None
    bound: float = 0.0
    """the claim's direction: the number lies on this side of this bound"""
    comparable: tuple[str, ...] = ("paper",)
    """the scales whose protocol is the published one, so that the number itself can be reproduced"""


@dataclasses.dataclass(frozen=True)
class Claim:
    """What a paper says: the head of an experiment file. What this code gets is in result files, not here."""

    experiment: str
    """name of its file, without .py"""
    paper: str
    """authors, title, venue, year"""
    where: str
    """table or figure"""
    says: str
    """the claim in a sentence"""
    hardware_hours: str
    """what the paper took, on what"""
    numbers: tuple[Number, ...]
    past: str = ""
    """what an earlier state of this code got, as written down before runs left results; nothing is judged by it"""
    covers: tuple[str, ...] = ()
    """files and folders of the repository, beside the experiment's own, that the results follow from"""


class Result(NamedTuple):
    """What a run of one scale leaves: small, plain JSON."""

    experiment: str
    scale: str
    command: str
    commit: str
    """with "+ changes" where files were not committed"""
    protocol: str
    """hash of the experiment's code at the run, see `protocol_of`"""
    versions: Mapping[str, str]
    hardware: str
    seconds: float
    """of the process that ended the run"""
    resumed: bool
    """whether others were at it before, whose seconds are not counted"""
    seeds: int
    numbers: Mapping[str, Interval]
    """by `Number.name`, each with its 95 % interval"""


# ------------------------------------------------------------------------------------------------- what is measured


def exactly(value: float) -> Interval:
    """A number that no chance is in."""
    return Interval(value, value, value, 1)


def of_images(share: float, images: int) -> Interval:
    """A share of so many images, in per cent, of one training, with Wilson's interval: of images, not of seeds."""
    z2 = Z95**2
    centre = (share + z2 / (2 * images)) / (1 + z2 / images)
    half = Z95 / (1 + z2 / images) * math.sqrt(share * (1 - share) / images + z2 / (4 * images**2))
    return Interval(100 * share, 100 * (centre - half), 100 * (centre + half), 1)


def difference(one: Interval, other: Interval) -> Interval:
    """``one`` less ``other``, measured apart: half widths add as squares."""
    half = math.hypot(one.half_width, other.half_width)
    mean = one.mean - other.mean
    return Interval(mean, mean - half, mean + half, min(one.n, other.n))


# ------------------------------------------------------------------------------------------------------ the verdict

VERDICTS = ("reproduced", "direction reproduced", "not reproduced", "not run at scale", "stale")


def verdict(number: Number, result: Result | None, protocol: str) -> str:
    """The rule of the ledger.

    Not run at scale: no result of the scales cpu or paper has the number. Stale: the code has changed since
    (`protocol_of`). Reproduced: the scale's protocol is the published one, and the 95 % interval of the difference
    (ours from its interval, theirs from standard deviation, runs and rounding) holds 0. Direction reproduced: ours
    lies with its whole interval on the side that is claimed. Anything else, and a number without an interval: not
    reproduced.
    """
    if result is None or result.scale == "smoke" or number.name not in result.numbers:
        return "not run at scale"
    if result.protocol != protocol:
        return "stale"
    ours = result.numbers[number.name]
    if number.published is not None and result.scale in number.comparable:
        theirs = Z95 * (number.spread or 0.0) / math.sqrt(number.runs)
        margin = math.hypot(ours.half_width, theirs) + 0.5 * 10**-number.digits
        if abs(ours.mean - number.published) <= margin:
            return "reproduced"
    if (number.side == "above" and ours.low > number.bound) or (
        number.side == "below" and ours.high < number.bound
    ):
        return "direction reproduced"
    return "not reproduced"


# --------------------------------------------------------------------------------------------------- the code's hash

ROOT = Path(__file__).resolve().parents[1]
SHARED = ("_experiment", "_ledger", "_plan")  # command line, tables, axes, this: no result follows from them


def protocol_of(experiment: Path, covers: Sequence[str] = ()) -> str:
    """12 hexadecimal digits of the code that an experiment's results follow from.

    Covered: the experiment's file, the modules of ``experiments/`` that it imports but those that all share, and what
    its claim ``covers``. Not covered: comments, docstrings, layout, the claim itself, and the rest of the library.
    Raises InputError where a covered file is missing.
    """
    digest = hashlib.sha256()
    for path in _covered(experiment, covers):
        digest.update(f"{path.name}\n{_meaning(path)}\n".encode())
    return digest.hexdigest()[:12]


def _covered(experiment: Path, covers: Sequence[str]) -> list[Path]:
    found = [experiment]
    for node in ast.walk(ast.parse(experiment.read_text())):
        module = node.module if isinstance(node, ast.ImportFrom) else None
        helper = experiment.parent / f"{module}.py"
        if module and module.startswith("_") and module not in SHARED and helper.is_file():
            found.append(helper)
    for name in covers:
        path = ROOT / name
        if not path.exists():
            raise InputError(f"{experiment.name}: covers {name}, which is not there")
        found += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return list(dict.fromkeys(found))


def _meaning(path: Path) -> str:
    """A file's statements without docstrings and claims."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [one for one in body if not _is_text(one) and not _is_claim(one)]  # type: ignore[attr-defined]
    return ast.dump(tree)


def _is_text(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _is_claim(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and [getattr(of, "id", "") for of in node.targets] == ["CLAIM"]


# ------------------------------------------------------------------------------------------------------ result files


def leave_result(
    out: Path,
    claim: Claim,
    scale: str,
    numbers: Mapping[str, Interval],
    *,
    seeds: int,
    resumed: bool,
) -> None:
    """Write ``out/result.json`` of a run that has ended. ValueError for a number that the claim does not name."""
    experiment = claim.experiment
    unknown = set(numbers) - {number.name for number in claim.numbers}
    if unknown:
        raise ValueError(f"{experiment}: {', '.join(sorted(unknown))}: not among the claim's numbers")
    env = environment()
    commit = str(env.get("commit", "unknown"))
    result = Result(
        experiment=experiment,
        scale=scale,
        command=_command(experiment),
        commit=f"{commit} + changes" if env.get("uncommitted_changes") else commit,
        protocol=protocol_of(ROOT / "experiments" / f"{experiment}.py", claim.covers),
        versions={"python": env["python"], **env["packages"]},
        hardware=f"{env['cpu_count']} cores of {env['cpu']}",
        seconds=round(time.monotonic() - STARTED, 1),
        resumed=resumed,
        seeds=seeds,
        numbers=numbers,
    )
    fields = result._asdict() | {"numbers": {name: _plain(one) for name, one in numbers.items()}}
    (out / RESULT).write_text(json.dumps(fields, indent=1, ensure_ascii=False) + "\n")
    print(out / RESULT)


def _command(experiment: str) -> str:
    """As a stranger can type it: without the folders of this machine."""
    words, kept = iter(sys.argv[1:] if Path(sys.argv[0]).stem == experiment else ()), []
    for word in words:
        if word.split("=")[0] in ("--out", "--data-dir", "--bench-dir"):
            if "=" not in word:
                next(words, None)
        elif word != "--resume":
            kept.append(word)
    return " ".join(["python", f"experiments/{experiment}.py", *kept])


def _plain(one: Interval) -> dict[str, Any]:
    ends = {name: getattr(one, name) for name in ("mean", "low", "high")}
    return {name: float(f"{of:.6g}") if math.isfinite(of) else None for name, of in ends.items()} | {
        "n": one.n
    }


def read_result(path: Path) -> Result:
    """Raises InputError where the file is no result."""
    try:
        fields = json.loads(path.read_text())
        numbers = {
            name: Interval(**{key: math.nan if value is None else value for key, value in of.items()})  # type: ignore[arg-type]
            for name, of in fields.pop("numbers").items()
        }
        return Result(numbers=numbers, **fields)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: is not the result of an experiment ({error})") from None


# ------------------------------------------------------------------------------------------------------- all claims


def claim_of(experiment: Path) -> Claim:
    """The ``CLAIM`` of an experiment's file, whose other code is not run. Raises InputError where it has none."""
    values = {
        target.id: node
        for node in ast.parse(experiment.read_text()).body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    if "CLAIM" not in values:
        raise InputError(f"{experiment}: has no CLAIM")
    scope: dict[str, Any] = {"Claim": Claim, "Number": Number}
    read = {node.id for node in ast.walk(values["CLAIM"]) if isinstance(node, ast.Name)}
    wanted = [values[name] for name in values if name in read - {"CLAIM"}]  # constants that it names
    exec(compile(ast.Module([*wanted, values["CLAIM"]], []), str(experiment), "exec"), scope)
    return scope["CLAIM"]


def experiments(folder: Path = ROOT / "experiments") -> list[Path]:
    """The files of experiments, by name."""
    return sorted(path for path in folder.glob("*.py") if not path.name.startswith("_"))


def results_of(experiment: str, folder: Path = ROOT / "experiments" / "results") -> dict[str, Result]:
    """The results in the repository, by scale."""
    found = [read_result(path) for path in sorted(folder.glob(f"{experiment}-*.json"))]
    return {one.scale: one for one in found if one.experiment == experiment}
