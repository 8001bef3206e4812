"""Every claim of the experiments beside what this code got: python scripts/ledger.py

An experiment that has run leaves ``result.json`` in its folder. ``--add`` takes it into ``experiments/results/``, and
``docs/ledger.md`` is made of the claims in ``experiments/*.py`` and of these files by the rule in
`experiments._ledger.verdict`:

    python experiments/nasbench201_2020.py --scale cpu
    python scripts/ledger.py --add runs/nasbench201_2020-cpu
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from experiments._ledger import (
    RESULT,
    ROOT,
    VERDICTS,
    Claim,
    Number,
    Result,
    claim_of,
    experiments,
    protocol_of,
    read_result,
    results_of,
    verdict,
)
from nas.errors import InputError
from nas.run.command_line import run

RESULTS = ROOT / "experiments" / "results"
SCALES = ("paper", "cpu", "smoke")  # the larger scale that has a number is the one that is shown


@dataclasses.dataclass(frozen=True)
class Config:
    """Write the ledger of claims, docs/ledger.md; it is made of files alone, by a stated rule."""

    add: tuple[Path, ...] = ()
    """folders of experiments that have run: their results are taken in first"""
    out: Path | None = None
    """file to write; default: docs/ledger.md"""
    check: bool = False
    """write nothing; an error where the file would change or a claim is stale"""


@dataclasses.dataclass(frozen=True)
class Row:
    claim: Claim
    number: Number
    result: Result | None
    verdict: str


def main(config: Config) -> None:
    if config.check and config.add:
        raise InputError("check: it writes nothing, and --add takes results in; say one of them")
    for folder in config.add:
        add(folder)
    out = config.out or ROOT / "docs" / "ledger.md"
    found = list(rows())
    text = ledger(found)
    counts = Counter(row.verdict for row in found)
    summary = ", ".join(f"{counts[name]} {name}" for name in VERDICTS)
    if not config.check:
        try:
            out.write_text(text)
        except OSError as error:
            raise InputError(f"out: cannot write {out} ({error.strerror})") from None
        print(f"{summary}\n{out}")
        return
    if not out.is_file() or out.read_text() != text:
        raise InputError(f"{out}: is not what python scripts/ledger.py would write")
    if counts["stale"]:
        stale = sorted({row.claim.experiment for row in found if row.verdict == "stale"})
        raise InputError(f"{out}: stale: {', '.join(stale)}; run them again and --add their folders")
    print(summary)


def add(folder: Path) -> None:
    """Take a run's result in, in place of an earlier one of its scale. Raises InputError where it has none."""
    path = folder / RESULT if folder.is_dir() else folder
    if not path.is_file():
        raise InputError(f"add: {folder}: has no {RESULT}; an experiment leaves it when it ends")
    result = read_result(path)
    names = [one.stem for one in experiments()]
    if result.experiment not in names:
        raise InputError(f"add: {path}: {result.experiment} is not one of {', '.join(names)}")
    RESULTS.mkdir(exist_ok=True)
    shutil.copyfile(path, RESULTS / f"{result.experiment}-{result.scale}.json")


def rows() -> Iterator[Row]:
    for path in experiments():
        claim = claim_of(path)
        results = results_of(path.stem)
        protocol = protocol_of(path, claim.covers)
        for number in claim.numbers:
            having = [results[scale] for scale in SCALES if scale in results]
            shown = next((one for one in having if number.name in one.numbers), None)
            yield Row(claim, number, shown, verdict(number, shown, protocol))


def ledger(found: list[Row]) -> str:
    """The page: what verdicts mean, a table of the numbers, what ran, and what was said before there were results."""
    counts = Counter(row.verdict for row in found)
    lines = [
        "# Ledger of claims",
        "",
        "Made by `python scripts/ledger.py` of the claims in `experiments/*.py` and of what their runs left in",
        "`experiments/results/`; nothing in it is written by hand. " + _rule(),
        "",
        ", ".join(f"{counts[name]} {name}" for name in VERDICTS) + ".",
        "",
        "| Experiment | Claim | Published | Ours, 95 % interval | Scale | Seeds | Verdict |",
        "| --- | --- | ---: | ---: | --- | ---: | --- |",
    ]
    lines += [_row(row) for row in found]
    lines += ["", "## Papers", ""]
    for claim in {row.claim.experiment: row.claim for row in found}.values():
        lines.append(
            f"- **{claim.experiment}**: {claim.paper}; {claim.where}. {_sentence(claim.says)} There: "
        )
        lines[-1] += f"{claim.hardware_hours}."
    ran = {(one.experiment, one.scale): one for row in found if (one := row.result) is not None}
    lines += [
        "",
        "## Runs",
        "",
        "Seconds are those of the process that ended the run, other work on the machine included.",
        "",
        "| Command | Seconds | Hardware | Commit | JAX | Protocol |",
        "| --- | ---: | --- | --- | --- | --- |",
    ]
    for one in ran.values():
        seconds = f"{one.seconds:,.0f}{' (resumed)' if one.resumed else ''}"
        lines.append(
            f"| `{one.command}` | {seconds} | {one.hardware} | {_short(one.commit)} "
            f"| {one.versions.get('jax', '–')} | {one.protocol} |"
        )
    lines += [
        "",
        "## Before there were result files",
        "",
        "What earlier states of this code got at scales that have not been run since, as it was written down then. No",
        "verdict rests on it.",
        "",
    ]
    judged = {row.claim.experiment for row in found if row.verdict not in ("not run at scale", "stale")}
    for claim in {row.claim.experiment: row.claim for row in found}.values():
        if claim.past and claim.experiment not in judged:
            lines.append(f"- **{claim.experiment}**: {claim.past}")
    return "\n".join(lines) + "\n"


def _rule() -> str:
    return (
        "**Reproduced**: at a scale whose\nprotocol is the published one, the 95 % interval of the difference between "
        "our number and theirs holds 0.\n**Direction reproduced**: our number lies, with its whole interval, on the "
        "side that is claimed. **Not\nreproduced**: neither, also where a number has no interval to show it. "
        "**Stale**: the code\nof the experiment (its file, the modules beside it, the files "
        "that its claim covers; comments and docstrings aside) is\nnot the one that the result was run with. **Not "
        "run at scale**: a smoke run shows that it works, and says nothing\nof the claim."
    )


def _row(row: Row) -> str:
    number, result = row.number, row.result
    published = "–" if number.published is None else f"{number.published:.{number.digits}f}"
    if number.spread is not None:
        published += f" ± {number.spread:g}"
    if number.published is None and number.side is not None:
        published = f"{number.side} {number.bound:g}"
    ours = scale = seeds = "–"
    if result is not None:
        one = result.numbers[number.name]
        ours = f"{one.mean:.4g}"
        if not math.isnan(one.low) and one.low != one.high:
            ours += f" ({one.low:.4g} to {one.high:.4g})"
        scale, seeds = result.scale, str(result.seeds)
    cells = (row.claim.experiment, number.says, published, ours, scale, seeds, row.verdict)
    return f"| {' | '.join(cells)} |"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _short(commit: str) -> str:
    head, _, changes = commit.partition(" ")
    return f"{head[:10]} {changes}".strip()


if __name__ == "__main__":
    run(main)
