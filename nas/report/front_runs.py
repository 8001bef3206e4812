"""What real runs with several objectives have in a report beside others: their fronts, hypervolumes and tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from nas.record import Run
from nas.record.fronts import FrontSearch
from nas.report import front, plots, result_table
from nas.report.front_plots import front_figure, volume_figure
from nas.space import Architecture


class FrontPart(NamedTuple):
    """What runs with several objectives add to a report."""

    texts: Mapping[str, str]
    figures: Mapping[str, Figure | None]
    notes: tuple[str, ...]
    tables: Sequence[tuple[str, Sequence[Sequence[str]]]]
    """Titles, and lines of cells with the head first."""


def front_part(groups: Mapping[str, Sequence[Run]], text: Callable[[Run, Architecture], str]) -> FrontPart:
    """Of the runs with several objectives among ``groups``; empty where there are none.

    Those with other objectives than the first of them are left out, and a note says so.
    """
    several = {label: runs for label, runs in groups.items() if front.goals_of(runs[0]) is not None}
    if not several:
        return FrontPart({}, {}, (), ())
    goals = front.goals_of(next(iter(several.values()))[0]) or {}
    # Gains are in the order of a run's own objectives.
    kept = {
        label: runs
        for label, runs in several.items()
        if list((front.goals_of(runs[0]) or {}).items()) == list(goals.items())
    }
    searches = {label: [front.of_run(label, run) for run in runs] for label, runs in kept.items()}
    every = [search for each in searches.values() for search in each]
    runs = [run for each in kept.values() for run in each]
    scale = front.scale_of(goals, every, front.worst_of(runs))
    if scale is None:
        return FrontPart({}, {}, ("Fronts: no network was measured that keeps the constraints.",), ())
    held = front.rows(searches, scale)
    ordered = {row.strategy: searches[row.strategy] for row in held}
    lines = front.cells(held, judged="validation")
    networks: list[list[str]] = []
    for label, each in kept.items():
        for run in each:
            texts = {trial.id: text(run, trial.arch) for trial in run.front}
            found = front.front_cells(result_table.run_name(label, run), run, texts)
            networks += found if not networks else found[1:]
    volumes = front.volumes(ordered, scale)
    ranks = front.ranking(_of_common_seeds(volumes, ordered))
    notes = [front.scale_note(scale, "the front of all these runs together")]
    notes += [front.latency_note(run) for run in runs[:1] if front.latency_note(run)]
    if len(kept) < len(several):
        notes.append(
            f"Fronts are of {', '.join(goals)}; runs with others, or in another order, are left out of them."
        )
    return FrontPart(
        {
            "front.md": f"{result_table.markdown(networks)}\n{result_table.markdown(lines)}",
            "front.csv": front.networks_csv(networks),
            "front.tex": result_table.latex([line[:-1] for line in networks]),
        },
        {
            "front": front_figure(ordered, scale),
            "hypervolume": volume_figure(ordered, scale, "compute of the search (s)"),
            "front_ranks": None if ranks is None else plots.rank_figure(ranks),
        },
        tuple(notes),
        (("The networks of the front", networks), ("Hypervolumes", lines)),
    )


def _of_common_seeds(
    volumes: Mapping[str, np.ndarray], searches: Mapping[str, Sequence[FrontSearch]]
) -> dict[str, np.ndarray]:
    """The ``volumes`` of each row's searches from the seeds that all rows have, in the order of these."""
    by_seed = {
        label: dict(zip((search.seed for search in each), volumes[label], strict=True))
        for label, each in searches.items()
    }
    common = sorted(set.intersection(*(set(of) for of in by_seed.values())))
    return {label: np.array([of[seed] for seed in common]) for label, of in by_seed.items()}
