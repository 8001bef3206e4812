"""Several strategies from several seeds, each search with the same epochs, recorded side by side."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from nas.errors import InputError
from nas.record import Run, is_run
from nas.run.methods import label_of
from nas.run.options import SearchOptions
from nas.run.plan import check_strategies, pass_epochs
from nas.run.search import search, session
from nas.space import SearchSpace
from nas.storage import mirrored
from nas.strategies.base import MOST_SEEDS
from nas.training.processes import is_writer


def compare(
    options: SearchOptions,
    strategies: Sequence[str],
    out: Path,
    spaces: Mapping[str, SearchSpace],
    *,
    seeds: int = 1,
    resume: bool = False,
) -> list[Run]:
    """A run of each strategy from each of ``seeds`` seeds, in a folder of ``out`` each; ``out`` may be a URL.

    Every search gets ``options.total_epochs``, by default those of one pass of Hyperband. A network that several
    of them chose is trained to the end once. Raises InputError.
    """
    if not strategies or len(set(strategies)) < len(strategies):
        raise InputError(f"strategies: {' '.join(strategies) or 'none'}: each is to be named once")
    check_strategies(strategies)
    if not 1 <= seeds <= MOST_SEEDS:
        raise InputError(f"seeds: {seeds} is not from 1 to {MOST_SEEDS}")
    with mirrored(out, resume=resume, writes=is_writer()) as folder:
        return _compare(options, strategies, folder, spaces, seeds, resume)


def _compare(
    options: SearchOptions,
    strategies: Sequence[str],
    out: Path,
    spaces: Mapping[str, SearchSpace],
    seeds: int,
    resume: bool,
) -> list[Run]:
    if resume and not (out.is_dir() and any(is_run(folder) for folder in out.iterdir())):
        raise InputError(f"{out}: no comparison to resume there")
    if not resume and out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out}: holds files already; go on with --resume or choose another --out")
    if options.total_epochs is None:
        options = dataclasses.replace(options, total_epochs=pass_epochs(options.plan))
    runs: list[Run] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(session(options))
        for k in range(seeds):
            for strategy in strategies:
                seed = options.plan.seed + k
                one = dataclasses.replace(options, plan=dataclasses.replace(options.plan, seed=seed))
                folder = out / f"{label_of(strategy)}-{seed}"
                going_on = resume and is_run(folder)
                tested = [final for run in runs for final in run.finals]
                runs.append(search(one, strategy, folder, spaces, resume=going_on, tested=tested))
    return runs
