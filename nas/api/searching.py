"""`search` and `compare`: options as keywords, values in place of names, runs to look at."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nas.api import inputs
from nas.api.inputs import DataSet, Objective, Space, Strategy
from nas.api.runs import Run, Runs, TableRuns
from nas.errors import InputError
from nas.run.options import SearchOptions

if TYPE_CHECKING:
    from nas.space import SearchSpace

Engine = Literal["ray", "local"]


def search(
    space: Space = "chain",
    dataset: DataSet | None = None,
    strategy: Strategy = "random",
    objective: Objective | None = None,
    *,
    trials: int | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    engine: Engine | None = None,
    workers: int | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    options: SearchOptions | None = None,
    **settings: Any,
) -> Run:
    """Search ``space`` with one strategy; train the best network anew and test it; everything is in a folder.

    >>> import nas
    >>> run = nas.search("chain", "digits", strategy="random", trials=2, epochs=1, engine="local", subset=400,
    ...                  fix={"depth": 1, "width": 16}, test_seeds=0)
    >>> len(run.trials), run.best.arch["depth"]
    (2, 1)

    Args:
        space: its name, ``my.py`` (its ``SPACE``) or ``my.py:NAME``, or a `SearchSpace`.
        dataset: a name, a folder of class folders of images, an ``.npz`` file, or arrays: ``(images, labels)``,
            ``((images, labels), (test_images, test_labels))`` or a mapping as an ``.npz`` file would have it.
        strategy: its name, ``my.py:NAME``, a `StrategyRecord`, or a function or class of ``(space, config)``.
        objective: ``train``, a score's name, ``my.py:NAME``, a function (`nas.objectives.own`), or several names.
        trials, epochs, seed: how many architectures, the epochs of each at most, what everything is drawn from.
        engine: ``ray``, trials side by side in ``workers`` processes, or ``local``, one after the other in this one.
        out: the folder of the run; default: a new one below ``runs``.
        resume: go on with the run in ``out``; spaces, strategies and functions are to be given again.
        options: what all other settings are, in one `SearchOptions`.
        settings: the other options of ``scripts/search.py``, by their names there with underscores.

    Raises:
        InputError: something given cannot be meant; said before anything is computed or written.
    """
    from nas.run.search import search as run_search

    given = settings | _given(trials=trials, epochs=epochs, seed=seed, engine=engine, workers=workers)
    chosen, spaces = _chosen(space, dataset, objective, options)
    name = inputs.strategy_of(strategy)
    chosen = inputs.options_with(chosen, [name], given)
    folder = _folder(out, chosen, name, resume)
    found = run_search(chosen, name, folder, spaces, resume=resume)
    return Run.of(found, spaces[chosen.space])


def compare(
    space: Space | None = None,
    dataset: DataSet | None = None,
    strategies: Strategy | Iterable[Strategy] | None = None,
    objective: Objective | None = None,
    *,
    seeds: int | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    options: SearchOptions | None = None,
    **settings: Any,
) -> Runs | TableRuns:
    """Search with several strategies from several seeds, each search with the same epochs.

    >>> import nas
    >>> runs = nas.compare("minichain", strategies=["random", "evolution"], objective="table", seeds=3)
    >>> sorted(set(runs.to_pandas().strategy))
    ['evolution', 'random']

    With ``objective="table"`` a benchmark table answers at simulated cost, hundreds of searches in a minute; the
    result is a `TableRuns`, the settings are those of ``scripts/compare.py --objective table``.

    Args:
        seeds: searches of each strategy, from ``seed``, ``seed + 1``, …; default: 1, on a table 500.
        others: as of `search`.
    """
    from nas.run.comparing import compare as run_compare

    if objective == "table":
        if options is not None:
            raise InputError("options: on a table give its settings by name")
        return _on_table(space, dataset, strategies, seeds, out, resume, settings)
    chosen, spaces = _chosen("chain" if space is None else space, dataset, objective, options)
    wanted = ("grid", "random", "hyperband", "asha") if strategies is None else strategies
    names = inputs.strategies_of(wanted)
    chosen = inputs.options_with(chosen, names, settings)
    folder = _folder(out, chosen, "compare", resume)
    found = run_compare(chosen, names, folder, spaces, seeds=1 if seeds is None else seeds, resume=resume)
    return Runs(tuple(Run.of(run, spaces[chosen.space]) for run in found))


def trainable(
    space: SearchSpace,
    dataset: DataSet = "mnist5k",
    objective: Objective = "train",
    *,
    epochs: int = 9,
    seed: int = 0,
    **settings: Any,
) -> Any:
    """A trainable for a `ray.tune.Tuner` of one's own, with ``space.to_tune()`` as its parameter space.

    >>> import nas
    >>> space = nas.SearchSpace("tiny", {"depth": nas.Integer(1, 2)})
    >>> made = nas.trainable(space, "digits", objective=lambda arch: arch["depth"], epochs=1)
    >>> sorted(space.to_tune())
    ['depth']

    Each step is a unit of the objective and reports its measurement's fields and its ``value``, which is to be
    maximised; see `nas.run.tune.trainable`.
    """
    import functools

    from nas.run.plan import plan
    from nas.run.tune import trainable as make
    from nas.run.tune.space import from_tune

    chosen, spaces = _chosen(space, dataset, objective, None)
    chosen = inputs.options_with(
        chosen, ["random"], {"trials": 1, "epochs": epochs, "seed": seed, **settings}
    )
    planned = plan(chosen, "random", spaces)
    arch_of = functools.partial(from_tune, planned.space)
    return make(planned.setup, arch_of, epochs=planned.config.epochs, seed=seed)


def _chosen(
    space: Space, dataset: DataSet | None, objective: Objective | None, options: SearchOptions | None
) -> tuple[SearchOptions, Any]:
    """``options`` with what is to be searched, and the spaces there are."""
    chosen = options or SearchOptions()
    name, spaces = inputs.spaces_of(space)
    chosen = dataclasses.replace(chosen, space=name)
    if dataset is not None:
        data = dataclasses.replace(chosen.data, dataset=inputs.dataset_of(dataset))
        chosen = dataclasses.replace(chosen, data=data)
    if objective is not None:
        chosen = dataclasses.replace(chosen, objective=inputs.objective_of(objective))
    return chosen, spaces


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _folder(out: str | os.PathLike[str] | None, options: SearchOptions, name: str, resume: bool) -> Path:
    """``out``, else a folder below ``runs`` that nothing is in yet."""
    from nas.run.methods import label_of

    if out is not None:
        return Path(out)
    if resume:
        raise InputError("resume: say in which folder: out=…")
    first = f"{Path(options.space).stem}-{options.data.label}-{label_of(name)}-{options.plan.seed}"
    folder, k = Path("runs") / first, 1
    while folder.exists():
        k += 1
        folder = Path("runs") / f"{first}-{k}"
    return folder


def _on_table(
    space: Space | None,
    dataset: DataSet | None,
    strategies: Strategy | Iterable[Strategy] | None,
    seeds: int | None,
    out: str | os.PathLike[str] | None,
    resume: bool,
    settings: dict[str, Any],
) -> TableRuns:
    from nas.run import simulated
    from nas.run.simulated import TableOptions

    if not (space is None or isinstance(space, str | os.PathLike)):
        raise InputError("space: on a table it is given by its name or file")
    if not (dataset is None or isinstance(dataset, str)):
        raise InputError("dataset: on a table it is one of the table's")
    names = inputs.strategies_of(strategies)
    given = settings | _given(space=None if space is None else os.fspath(space), dataset=dataset, seeds=seeds)
    options = inputs.table_options(names, given)
    name = Path(options.table or options.space or "").stem
    folder = Path(out) if out is not None else None
    if folder is None:
        folder, k = Path("runs") / f"compare-{name}-table", 1
        while folder.exists() and not resume:
            k += 1
            folder = Path("runs") / f"compare-{name}-table-{k}"
    assert isinstance(options, TableOptions)
    found = simulated.compare(options, inputs.named_spaces, folder, resume=resume)
    return TableRuns(found)
