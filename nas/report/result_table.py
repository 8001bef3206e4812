"""The comparison table: one row a strategy, from records alone, as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from nas.errors import InputError
from nas.record import MAY_DIFFER, Run
from nas.report.statistics import FEWEST, FRACTION, Interval, mean_interval

NO_VALUE = "–"


@dataclasses.dataclass(frozen=True)
class Row:
    """The results of one strategy's runs. Counts and seconds are means a run; NaN where not known.

    ``best_valid_accuracy`` is over runs. ``test_accuracy`` is over the runs, each with the mean of its final
    trainings; with one run it is over that run's final trainings (``test_over`` says which).
    ``params`` and ``macs_per_image`` are those of the networks tested, or found where none was tested yet.
    ``*_seconds`` are compute seconds of the search and the final trainings together.
    """

    strategy: str
    runs: int
    trials: float
    failed_trials: int
    epochs: float
    best_valid_accuracy: Interval
    test_accuracy: Interval
    test_over: str
    params: float
    macs_per_image: float
    compile_seconds: float
    train_seconds: float
    evaluate_seconds: float
    search_seconds: float
    final_seconds: float
    wall_seconds: float
    incomplete_runs: int

    @property
    def all_seconds(self) -> float:
        return self.search_seconds + self.final_seconds


def group_runs(runs: Iterable[Run]) -> dict[str, tuple[Run, ...]]:
    """Runs that differ in nothing but their seed and where they ran (`MAY_DIFFER`), under the label of their row.

    The label is the strategy, with what else differs between the rows in brackets; rows and runs keep the
    order in which they came.

    Raises:
        InputError: two runs of one row have the same seed: counted twice, they would feign precision.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(json.dumps(_identity(run), sort_keys=True), []).append(run)
    for group in groups.values():
        seen: dict[int | None, Run] = {}
        for run in group:
            twin = seen.setdefault(run.seed, run)
            if twin is not run:
                raise InputError(
                    f"{run.folder}: the same {run.strategy} search with seed={run.seed} as {twin.folder}; "
                    "report on one of them"
                )
    labels = _labels([group[0] for group in groups.values()])
    return {label: tuple(group) for label, group in zip(labels, groups.values(), strict=True)}


def comparison(runs: Iterable[Run]) -> tuple[Row, ...]:
    """One row for each group of `group_runs`, whose errors it raises."""
    return tuple(_row(label, group) for label, group in group_runs(runs).items())


def notes(runs: Iterable[Run]) -> tuple[str, ...]:
    """The notes below the table: how numbers were averaged, what is incomplete, what failed."""
    groups = group_runs(runs)
    rows = [_row(label, group) for label, group in groups.items()]
    said = [
        "Trials, epochs and seconds: mean a run. "
        "Seconds: compute of the search and the final trainings, summed over workers."
    ]
    tested = [row for row in rows if row.test_accuracy.n > 1]
    over = {row.test_over for row in tested}
    if over:
        means = {
            frozenset({"runs"}): "mean over runs of each run's final trainings",
            frozenset({"trainings"}): "mean over the final trainings of one search",
        }
        mean = means.get(frozenset(over), "mean over runs, or over final trainings where a row has one run")
        few = [row for row in tested if row.test_accuracy.n < FEWEST]
        with_interval = [] if len(few) == len(tested) else ["with the 95 % t interval"]
        without = [f"with their number n where they are fewer than {FEWEST}, too few for an interval"]
        said.append(f"Test: {', '.join([mean, *with_interval, *(without if few else [])])}.")
    for label, group in groups.items():
        if any(trial.chosen != trial.arch for run in group for trial in run.trials.values()):
            said.append(
                f"{label}: a trial is a whole search with shared weights; validation accuracies are with those "
                "weights, here and in the plots, and not to be set beside those of networks trained by themselves."
            )
        for run in group:
            name = run_name(label, run)
            running = sum(trial.status == "running" for trial in run.trials.values())
            if not run.done:
                state = (
                    f"{len(run.trials)} trials so far, {running} of them open"
                    if run.trials
                    else "no trials yet"
                )
                said.append(f"{name}: incomplete, still running or interrupted ({state}).")
            reasons = _counted(trial.error or "no reason given" for trial in run.failed)
            if reasons:
                said.append(f"{name}: {len(run.failed)} of {len(run.trials)} trials failed ({reasons}).")
            untested = [final.error for final in run.finals if final.error is not None]
            of = f"{len(untested)} of {len(run.finals)}"
            if untested:
                said.append(f"{name}: {of} final trainings failed ({_counted(untested)}).")
    return tuple(said)


def run_name(label: str, run: Run) -> str:
    """``LABEL, seed N``."""
    return label if run.seed is None else f"{label}, seed {run.seed}"


def to_markdown(rows: Sequence[Row]) -> str:
    """An aligned Markdown table."""
    return markdown(cells(rows))


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """An aligned Markdown table of cells, the head first; all columns but the first are right-aligned."""
    head, *body = ([cell.replace("|", r"\|") for cell in line] for line in lines)
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]

    def line(texts: Sequence[str]) -> str:
        first, *others = texts
        padded = [first.ljust(widths[0])]
        padded += [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * widths[0]] + ["-" * (width - 1) + ":" for width in widths[1:]]
    return "\n".join([line(head), line(rule), *map(line, body)]) + "\n"


def to_latex(rows: Sequence[Row]) -> str:
    """A ``tabular`` for the booktabs package."""
    return latex(cells(rows))


def latex(lines: Sequence[Sequence[str]]) -> str:
    """A ``tabular`` of cells, the head first."""
    head, *body = ([_latex(cell) for cell in line] for line in lines)
    written = [
        rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
        r"\toprule",
        " & ".join(head) + r" \\",
        r"\midrule",
        *(" & ".join(line) + r" \\" for line in body),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(written) + "\n"


def to_csv(rows: Sequence[Row]) -> str:
    """Every number in full, units in the names; empty where not known."""
    return csv_text([_flat(row) for row in rows])


def csv_text(flat: Sequence[Mapping[str, object]]) -> str:
    """Rows of equal names, below a line of these names."""
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(flat[0]) if flat else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue()


def format_count(value: float) -> str:
    """Three significant digits with k, M, G or T: 61706 -> ``61.7 k``."""
    if math.isnan(value):
        return NO_VALUE
    for unit in ("", " k", " M", " G", " T"):
        if abs(value) < 999.5 or unit == " T":
            break
        value /= 1000
    if not unit and value == int(value):
        return f"{value:.0f}"
    return f"{value:#.3g}".rstrip(".") + unit


def format_seconds(value: float) -> str:
    """Whole seconds from 100 on, else about three digits."""
    if math.isnan(value):
        return NO_VALUE
    decimals = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:,.{decimals}f}"


def format_percent(value: float | Interval) -> str:
    """A fraction as a percentage, two decimals; an interval as ``mean ± half width``, or ``mean [low, high]`` where it
    was cut; too few values for one as ``mean (n=2)``."""
    interval = value if isinstance(value, Interval) else Interval(value, math.nan, math.nan, 1)
    if math.isnan(interval.mean):
        return NO_VALUE
    mean, low, high = (f"{100 * part:.2f}" for part in interval[:3])
    if math.isnan(interval.low):
        return f"{mean} (n={interval.n})" if interval.n > 1 else mean
    if not math.isclose(interval.high - interval.mean, interval.mean - interval.low, abs_tol=1e-9):
        return f"{mean} [{low}, {high}]"
    return f"{mean} ± {100 * interval.half_width:.2f}"


def format_mean(value: float) -> str:
    """A mean of whole numbers: a decimal only where it is not whole itself."""
    if math.isnan(value):
        return NO_VALUE
    return f"{value:,.0f}" if value == int(value) or value >= 100 else f"{value:,.1f}"


_COLUMNS: Mapping[str, Callable[[Row], str]] = {
    "Strategy": lambda row: row.strategy,
    "Seeds": lambda row: str(row.runs),
    "Trials": lambda row: format_mean(row.trials),
    "Failed": lambda row: str(row.failed_trials),
    "Epochs": lambda row: format_mean(row.epochs),
    "Best valid. %": lambda row: format_percent(row.best_valid_accuracy.mean),
    "Test %": lambda row: format_percent(row.test_accuracy),
    "Params": lambda row: format_count(row.params),
    "Mult-adds": lambda row: format_count(row.macs_per_image),
    "Compile s": lambda row: format_seconds(row.compile_seconds),
    "Train s": lambda row: format_seconds(row.train_seconds),
    "All s": lambda row: format_seconds(row.all_seconds),
}


def cells(rows: Sequence[Row]) -> list[list[str]]:
    """The table as text: its head, then a line a row."""
    columns = dict(_COLUMNS)
    if not any(row.failed_trials for row in rows):
        del columns["Failed"]
    return [list(columns), *([cell(row) for cell in columns.values()] for row in rows)]


def _row(label: str, runs: Sequence[Run]) -> Row:
    tested = [
        mean_interval(
            (final.test_accuracy for final in run.best_finals if final.error is None), within=FRACTION
        )
        for run in runs
    ]
    several = len(runs) > 1
    found = [(_size(run, "params"), _size(run, "macs_per_image")) for run in runs]

    def seconds(name: str) -> float:
        return _mean(_search_seconds(run, name) + _final_seconds(run, name) for run in runs)

    return Row(
        strategy=label,
        runs=len(runs),
        trials=_mean(len(run.trials) for run in runs),
        failed_trials=sum(len(run.failed) for run in runs),
        epochs=_mean(run.epochs_spent for run in runs),
        best_valid_accuracy=mean_interval((_valid_accuracy(run) for run in runs), within=FRACTION),
        test_accuracy=(
            mean_interval((test.mean for test in tested), within=FRACTION) if several else tested[0]
        ),
        test_over="runs" if several else "trainings",
        params=_mean(params for params, _ in found),
        macs_per_image=_mean(macs for _, macs in found),
        compile_seconds=seconds("compile_seconds"),
        train_seconds=seconds("train_seconds"),
        evaluate_seconds=seconds("evaluate_seconds"),
        search_seconds=_mean(_search_seconds(run, "seconds") for run in runs),
        final_seconds=_mean(_final_seconds(run, "seconds") for run in runs),
        wall_seconds=_mean(run.wall_seconds for run in runs),
        incomplete_runs=sum(not run.done for run in runs),
    )


def _search_seconds(run: Run, name: str) -> float:
    return getattr(run, name) if run.is_search else 0.0


def _final_seconds(run: Run, name: str) -> float:
    """Without a search the trials are the final trainings themselves: those finished count once."""
    finished = {final.seed for final in run.finals}
    under_way = [
        measurement
        for trial in run.trials.values()
        if not run.is_search and trial.seed not in finished
        for measurement in trial.measurements
    ]
    return sum(getattr(spent, name) for spent in (*run.finals, *under_way))


def _valid_accuracy(run: Run) -> float:
    """Of the best trial; where there was no search, of the trainings."""
    if run.is_search:
        return math.nan if run.best is None else run.best.valid_accuracy
    return mean_interval(final.valid_accuracy for final in run.finals).mean


def _size(run: Run, name: str) -> float:
    sizes = [getattr(final, name) for final in run.best_finals]
    if not sizes and run.best is not None and run.best.chosen == run.best.arch:  # a supernet's is another's
        sizes = [getattr(run.best, name)]
    return _mean(math.nan if size is None else size for size in sizes)


def _mean(values: Iterable[float]) -> float:
    return mean_interval(values).mean


def _counted(reasons: Iterable[str]) -> str:
    counts: dict[str, int] = {}
    for reason in reasons:
        first = (reason.strip().splitlines() or [""])[0]
        counts[first] = counts.get(first, 0) + 1
    return "; ".join(reason if count == 1 else f"{count} x {reason}" for reason, count in counts.items())


def _identity(run: Run) -> dict[str, Any]:
    """The part of a run's config that must be equal for runs to share a row; empty values count as absent."""
    kept = {name: value for name, value in run.config.items() if name not in (*MAY_DIFFER, "seed", "note")}
    return {name: value for name, value in kept.items() if value not in (None, [], {})} | {
        "strategy": run.strategy
    }


def _labels(runs: Sequence[Run]) -> list[str]:
    """The strategy, and in brackets what tells rows of one strategy apart; space and data set wherever
    they differ at all. No two labels are equal."""
    configs = [_identity(run) for run in runs]
    names = dict.fromkeys(name for config in configs for name in config)
    labels: list[str] = []
    for config in configs:
        rivals = [other for other in configs if other["strategy"] == config["strategy"]]
        details = [
            f"{name}={_short(config[name])}"
            for name in names
            if name in config and name != "strategy"
            if _differ(configs if name in ("space", "dataset") else rivals, name)
        ]
        label = f"{config['strategy']} ({', '.join(details)})" if details else config["strategy"]
        same = sum(other.partition(" #")[0] == label for other in labels)
        labels.append(f"{label} #{same + 1}" if same else label)
    return labels


def _differ(configs: Iterable[Mapping[str, Any]], name: str) -> bool:
    return len({json.dumps(config.get(name)) for config in configs}) > 1


def _short(value: Any) -> str:
    if isinstance(value, list):
        return "+".join(map(_short, value))
    return value if isinstance(value, str) else json.dumps(value)


def _flat(row: Row) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(row):
        value = getattr(row, field.name)
        if isinstance(value, Interval):
            flat |= {f"{field.name}_{part}": number for part, number in value._asdict().items()}
        else:
            flat[field.name] = value
    flat["all_seconds"] = row.all_seconds
    return {
        name: "" if isinstance(value, float) and math.isnan(value) else value for name, value in flat.items()
    }


_LATEX = {"%": r"\%", "_": r"\_", "&": r"\&", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}"}
_LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {"±": r"$\pm$", "–": "--", "|": r"\textbar{}", "<": r"\textless{}", ">": r"\textgreater{}"}


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
