"""Recorded runs as values to look at: their best, their trials, a DataFrame, plots; notebooks show them."""

from __future__ import annotations

import base64
import dataclasses
import html
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from nas import record
from nas.api.drawing import Figure, drawn, png_of, shown
from nas.errors import InputError
from nas.record.comparison import Comparison, Search
from nas.space import SearchSpace
from nas.storage import copied
from nas.trial import Trial

if TYPE_CHECKING:
    import pandas

Rows = Literal["trials", "measurements", "finals"]
Cost = Literal["epochs", "seconds", "wall_seconds"]


@dataclasses.dataclass(frozen=True)
class Run(record.Run):
    """A search as recorded. ``trials`` are by id, ``best`` is the one with the highest score.

    ``space`` is the space that was searched, where it is known: `draw` needs it.
    """

    space: SearchSpace | None = dataclasses.field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, run: record.Run, space: SearchSpace | None = None) -> Self:
        return cls(**{f.name: getattr(run, f.name) for f in dataclasses.fields(record.Run)}, space=space)

    def to_pandas(self, rows: Rows = "trials") -> pandas.DataFrame:
        """A row a trial, a measurement or a final training; each choice of the architectures is a column.

        >>> import nas
        >>> run = nas.search(nas.SearchSpace("s", {"x": nas.Integer(0, 9)}), objective=lambda arch: -arch["x"],
        ...                  trials=5, engine="local")
        >>> list(run.to_pandas().columns[:3]), len(run.to_pandas())
        (['trial', 'status', 'x'], 5)
        """
        import pandas

        return pandas.DataFrame(list(rows_of(self, rows)))

    def plot(self, cost: Cost = "epochs") -> Figure:
        """The best so far over what the search had spent: epochs, seconds of compute, or wall-clock seconds."""
        return Runs((self,)).plot(cost)

    def table(self) -> str:
        """The result table, as Markdown."""
        return Runs((self,)).table()

    def draw(self, arch: Mapping[str, Any] | None = None) -> Figure:
        """The network of the best architecture, or of ``arch``. Raises InputError."""
        best = self.best
        if arch is None and best is None:
            raise InputError(f"{self.folder}: no trial was measured there")
        if self.space is None:
            raise InputError(
                f"{self.folder}: its space {self.config.get('space')} is not known here; "
                "give it: load_run(folder, space=…)"
            )
        from nas.data.config import DataConfig

        data = DataConfig.of(self.config).load()
        meant = arch if arch is not None else best.chosen if best is not None else {}
        return drawn(self.space, meant, num_classes=data.num_classes, image_shape=data.image_shape)

    def _repr_html_(self) -> str:
        return Runs((self,))._repr_html_()


@dataclasses.dataclass(frozen=True)
class Runs(Sequence[Run]):
    """Several searches, in the order in which they were made."""

    runs: tuple[Run, ...]

    def __getitem__(self, index: Any) -> Any:
        return Runs(self.runs[index]) if isinstance(index, slice) else self.runs[index]

    def __len__(self) -> int:
        return len(self.runs)

    def __iter__(self) -> Iterator[Run]:
        return iter(self.runs)

    @property
    def best(self) -> Trial | None:
        """The best trial of all."""
        best = [run.best for run in self.runs if run.best is not None]
        return max(best, key=lambda trial: trial.score, default=None)

    @property
    def trials(self) -> tuple[Trial, ...]:
        return tuple(trial for run in self.runs for trial in run.trials.values())

    def to_pandas(self, rows: Rows = "trials") -> pandas.DataFrame:
        """As of each run, with its strategy and seed in front."""
        import pandas

        return pandas.DataFrame(
            [
                {"strategy": run.strategy, "seed": run.seed, **row}
                for run in self.runs
                for row in rows_of(run, rows)
            ]
        )

    def plot(self, cost: Cost = "epochs") -> Figure:
        """The best so far over cost, a line a strategy. Raises InputError where there is nothing to plot."""
        from nas.report import result_table
        from nas.report.plots import anytime_figure
        from nas.report.score_plot import score_figure

        groups = result_table.group_runs(self.runs)
        figure = anytime_figure(groups, cost) or score_figure(groups)
        if figure is None:
            raise InputError("plot: nothing was measured")
        return shown(figure)

    def table(self) -> str:
        """The result table, as Markdown."""
        from nas.report import result_table

        return result_table.to_markdown(result_table.comparison(self.runs))

    def _repr_html_(self) -> str:
        from nas.report import result_table

        head, *body = result_table.cells(result_table.comparison(self.runs))
        parts = [html_table(head, body)]
        best = self.best
        if best is not None:
            parts.append(f"<p>best: score {best.score:.6g}, trial {best.id}</p>{best.chosen._repr_html_()}")
            parts.append(_picture(self))
        return "\n".join(parts)


@dataclasses.dataclass(frozen=True)
class TableRuns(Sequence[Search]):
    """Searches over a benchmark table. A search has incumbents: each with its cost and accuracies."""

    comparison: Comparison

    def __getitem__(self, index: Any) -> Any:
        return self.comparison.searches[index]

    def __len__(self) -> int:
        return len(self.comparison.searches)

    @property
    def best(self) -> Search:
        """The search that ended with the highest validation accuracy."""
        return max(self.comparison.searches, key=lambda search: search.valid_accuracies[-1])

    @property
    def trials(self) -> int:
        """How many trials all searches began."""
        return sum(search.trials for search in self.comparison.searches)

    def to_pandas(self) -> pandas.DataFrame:
        """A row a search: what it ended with and what it spent."""
        import pandas

        names = ("strategy", "seed", "trials", "units", "cost_seconds")
        return pandas.DataFrame(
            [
                {name: getattr(search, name) for name in names}
                | {
                    "valid_accuracy": search.valid_accuracies[-1],
                    "test_accuracy": search.test_accuracies[-1],
                    "architecture": search.archs[-1],
                }
                for search in self.comparison.searches
            ]
        )

    def plot(self) -> Figure:
        """Test regret over simulated cost, a line a strategy."""
        from nas.report.plots import regret_figure

        found = self.comparison
        return shown(regret_figure(found.complete(), found.optimum, found.budget_seconds))

    def _repr_html_(self) -> str:
        rows = []
        for strategy, searches in self.comparison.complete().items():
            means = [
                sum(getattr(search, name)[-1] for search in searches) / max(1, len(searches))
                for name in ("valid_accuracies", "test_accuracies")
            ]
            rows.append([strategy, str(len(searches)), *(f"{100 * mean:.2f}" for mean in means)])
        head = ["strategy", "searches", "mean valid. %", "mean test %"]
        return f"{html_table(head, rows)}{image(self.plot())}"


def load_run(folder: str | os.PathLike[str], space: Any = None) -> Run:
    """The run in ``folder``, finished or not, also of earlier versions.

    >>> import nas
    >>> made = nas.search(nas.SearchSpace("s", {"x": nas.Integer(0, 9)}), objective=lambda arch: -arch["x"],
    ...                   trials=3, engine="local", out="runs/loaded")
    >>> nas.load_run("runs/loaded").best == made.best
    True

    Nothing is run that the folder names: a space in a file is known where it is given again as ``space``.

    Raises:
        InputError: there is no run, or it is damaged.
    """
    found = record.read_run(copied(os.fspath(folder)))
    return Run.of(found, _space_of(found.config, space))


def load_runs(*folders: str | os.PathLike[str], space: Any = None) -> Runs:
    """The runs in these folders, each a run's or one with runs below it, as `compare` leaves one. Raises InputError.

    >>> import nas
    >>> space = nas.SearchSpace("s", {"x": nas.Integer(0, 9)})
    >>> for seed in range(2):
    ...     run = nas.search(space, objective=lambda arch: -arch["x"], trials=3, engine="local", seed=seed,
    ...                      out=f"runs/several/{seed}")
    >>> len(nas.load_runs("runs/several"))
    2
    """
    if not folders:
        raise InputError("load_runs: name at least one folder")
    return Runs(
        tuple(load_run(found, space) for found in record.find_runs([Path(folder) for folder in folders]))
    )


def _space_of(config: Mapping[str, Any], space: Any) -> SearchSpace | None:
    from nas.api.inputs import spaces_of
    from nas.own_file import named_in_file

    if space is not None:
        name, spaces = spaces_of(space)
        return spaces[name]
    name = str(config.get("space"))
    if named_in_file(name) is not None:
        return None
    try:
        return spaces_of(name)[1].get(name)
    except InputError:
        return None


def rows_of(run: record.Run, rows: Rows) -> Iterator[dict[str, Any]]:
    """See `Run.to_pandas`."""
    if rows == "trials":
        for trial in run.trials.values():
            last = trial.measurements[-1] if trial.measurements else None
            row: dict[str, Any] = {"trial": trial.id, "status": trial.status}
            row |= _choices(trial.chosen) | {"score": trial.score if last is not None else None}
            row |= {
                "budget": trial.budget,
                "epochs": trial.spent,
                "bracket": trial.bracket,
                "rung": trial.rung,
            }
            row |= _measured(last) | {"params": trial.params, "macs_per_image": trial.macs_per_image}
            for name in ("compile_seconds", "train_seconds", "evaluate_seconds"):
                row[name] = sum(getattr(measurement, name) for measurement in trial.measurements)
            yield row | {"error": trial.error}
    elif rows == "measurements":
        for seen in run.history:
            arch = run.trials[seen.trial_id].arch
            fields = {k: v for k, v in seen.measurement.fields().items() if not isinstance(v, dict)}
            yield {
                "trial": seen.trial_id,
                **fields,
                "elapsed_seconds": seen.elapsed_seconds,
                **_choices(arch),
            }
    elif rows == "finals":
        for final in run.finals:
            fields = {f.name: getattr(final, f.name) for f in dataclasses.fields(final)}
            del fields["arch"]
            yield fields | _choices(final.arch)
    else:
        raise InputError(f"rows: {rows!r} is not one of trials, measurements, finals")


# What a row has beside choices; a choice of such a name gets another column.
_OWN = {
    "trial",
    "status",
    "score",
    "budget",
    "epochs",
    "seed",
    "strategy",
    "error",
    "params",
    "bracket",
    "rung",
}


def _choices(arch: Mapping[str, Any]) -> dict[str, Any]:
    return {f"choice_{name}" if name in _OWN else name: value for name, value in arch.items()}


def _measured(measurement: Any) -> dict[str, Any]:
    names = ("valid_accuracy", "valid_loss", "train_accuracy", "train_loss")
    return {name: getattr(measurement, name, None) for name in names}


def _picture(runs: Runs) -> str:
    try:
        return image(runs.plot())
    except InputError:
        return ""


def image(figure: Figure) -> str:
    """A figure within a page."""
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(png_of(figure)).decode()}">'


def html_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{html.escape(str(cell))}</{tag}>' for cell in cells)}</tr>"

    return f"<table>{row(head, 'th')}{''.join(row(cells, 'td') for cells in body)}</table>"
