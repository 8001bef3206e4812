"""Figures of searches with shared weights show the numbers of their record; reports take such runs beside others."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from nas.record import Record, Run, read_run
from nas.report import plots, supernet_plots
from nas.report.report import MOST_SEARCHES, write_report
from nas.report.result_table import notes
from nas.space import Architecture, Cell
from nas.trial import Measurement, SupernetMeasurement, Trial

VALUES = ("none", "skip", "conv")
CHOICES = ("edge_0_1", "edge_0_2")
Epochs = Sequence[Mapping[str, Any]]


def epoch(budget: int, *, weights: Mapping[str, Mapping[str, float]] | None = None, **more) -> dict[str, Any]:
    """``skip`` of the first edge grows by 0.1 an epoch, at the cost of ``conv``; derived: the heaviest."""
    if weights is None:
        skip = 0.2 + 0.1 * budget
        weights = {CHOICES[0]: {"none": 0.1, "skip": skip, "conv": 0.9 - skip}}
        weights |= {CHOICES[1]: {"none": 0.2, "skip": 0.3, "conv": 0.5}}
    derived = Architecture(
        {name: max(of, key=of.__getitem__) for name, of in weights.items() if name != "edges"}
    )
    accuracy = 0.5 + 0.01 * budget
    fields = {
        "valid_accuracy": accuracy,
        "valid_loss": 2.0 / budget,
        "train_accuracy": 0.4,
        "train_loss": 1.0,
    }
    signs = {"entropy": 1 - 0.1 * budget, "skips": budget - 1, "eigenvalue": 0.5 * budget}
    fields |= {"budget": budget, "train_seconds": 1.0, "derived": derived, "weights": weights, **signs}
    return fields | more


def record(
    folder: Path,
    trials: Sequence[tuple[Mapping[str, Any], Epochs]],
    strategy: str = "darts",
    **config,
) -> Run:
    """A run of trials with these settings and epochs."""
    values = {"space": "cells", "dataset": "digits", "strategy": strategy, "seed": 0, **config}
    with Record.create(folder, values, env={}, fsync=False) as opened:
        for index, (settings, epochs) in enumerate(trials):
            opened.start(Trial(index, Architecture(settings), 9, seed=index, params=1_930_618))
            for fields in epochs:
                opened.measure(index, SupernetMeasurement(**fields))
            opened.end(index, "completed")
        opened.done()
    return read_run(folder)


def searches(run: Run, group: str = "darts") -> list[supernet_plots.SupernetSearch]:
    return supernet_plots.searches({group: [run]})


def drawn(figure: Figure | None) -> Figure:
    assert figure is not None
    figure.canvas.draw()
    return figure


def panels(figure: Figure) -> dict[str, Axes]:
    """Visible axes by the name written in them."""
    return {axes.texts[0].get_text(): axes for axes in figure.axes if axes.get_visible()}


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for of in figure.legends for text in of.get_texts()]


def thick(axes: Axes) -> list[list[float]]:
    return [np.asarray(line.get_ydata()).tolist() for line in axes.lines if line.get_linewidth() > 2]


def test_a_panel_has_the_weights_of_its_choice_and_what_is_derived_is_thick(tmp_path):
    (search,) = searches(record(tmp_path / "a", [({}, [epoch(k) for k in range(1, 6)])]))
    shown = panels(drawn(supernet_plots.weights_figure(search)))
    assert list(shown) == list(CHOICES)
    by_hand = {"none": [0.1] * 5, "skip": [0.3, 0.4, 0.5, 0.6, 0.7], "conv": [0.6, 0.5, 0.4, 0.3, 0.2]}
    lines = [np.asarray(line.get_ydata()) for line in shown["edge_0_1"].lines]
    for wanted in by_hand.values():
        assert sum(np.allclose(line, wanted) for line in lines) == 1
    assert len(lines) == 3
    assert thick(shown["edge_0_1"]) == [
        pytest.approx(by_hand["skip"])
    ]  # the heaviest at the end, not at first
    assert thick(shown["edge_0_2"]) == [[0.5] * 5]
    assert np.asarray(shown["edge_0_1"].lines[0].get_xdata()).tolist() == [1, 2, 3, 4, 5]


def genotype(budget: int, operation: str, source: int) -> dict[str, Any]:
    """The architecture has other names than the open choices, as cells that keep some of their edges have."""
    return epoch(budget, derived=Architecture(edge_op=operation, edge_input=source, cells=20, rate=0.1))


def test_a_space_that_calls_its_edges_otherwise_is_asked(tmp_path):
    (search,) = searches(record(tmp_path / "a", [({}, [genotype(k, "conv", 2) for k in (1, 2)])]))
    asked: list[tuple[Any, Any]] = []

    def operations(config: Mapping[str, Any], arch: Architecture) -> dict[str, str]:
        asked.append((config["space"], arch))
        return {"edge_0_1": "none", "edge_0_2": arch["edge_op"]}

    shown = panels(drawn(supernet_plots.weights_figure(search, operations)))
    assert asked == [("cells", search.epochs[-1].derived)]
    assert [thick(shown[name]) for name in CHOICES] == [[[0.1, 0.1]], [[0.5, 0.5]]]
    for unknown in (None, lambda config, arch: None):
        shown = panels(drawn(supernet_plots.weights_figure(search, unknown)))
        assert [thick(shown[name]) for name in CHOICES] == [[], []]


def test_weights_of_edges_are_a_line_in_the_panels_of_their_edges(tmp_path):
    epochs = []
    for k in (1, 2):
        weights = {**epoch(k)["weights"], "edges": {"edge_0_1": 0.3 + 0.1 * k, "edge_0_2": 0.7 - 0.1 * k}}
        epochs.append(epoch(k, weights=weights))
    (search,) = searches(record(tmp_path / "a", [({}, epochs)]))
    figure = drawn(supernet_plots.weights_figure(search))
    shown = panels(figure)
    assert list(shown) == list(CHOICES)
    values = [np.asarray(line.get_ydata()).tolist() for line in shown["edge_0_2"].lines]
    assert values[-1] == pytest.approx([0.6, 0.5])
    assert len(values) == 4
    assert legend(figure)[-1] == "the edge itself"
    assert supernet_plots.decided_choices(search) == list(CHOICES)


def test_values_that_a_stage_drops_have_no_weight_from_there_on(tmp_path):
    left = {name: {"skip": 0.4, "conv": 0.6} for name in CHOICES}
    (search,) = searches(record(tmp_path / "a", [({}, [epoch(1), epoch(2, weights=left)])]))
    axes = panels(drawn(supernet_plots.weights_figure(search)))["edge_0_1"]
    (gone,) = (line.get_ydata() for line in axes.lines if math.isnan(np.asarray(line.get_ydata())[1]))
    assert np.asarray(gone)[0] == 0.1


def test_where_one_value_at_a_time_is_taken_nothing_is_mixed(tmp_path):
    one_hot = {name: {"none": 0.0, "skip": 1.0, "conv": 0.0} for name in CHOICES}
    (search,) = searches(record(tmp_path / "a", [({}, [epoch(1, weights=one_hot, entropy=math.nan)])]))
    assert supernet_plots.weights_figure(search) is None
    assert supernet_plots.derived_figure(search) is not None


def test_every_epoch_of_what_is_derived_has_its_colour(tmp_path):
    (search,) = searches(record(tmp_path / "a", [({}, [epoch(k) for k in range(1, 6)])]))
    figure = drawn(supernet_plots.derived_figure(search))
    (mesh,) = (of for of in figure.axes[0].collections if isinstance(of, QuadMesh))
    colours = np.asarray(mesh.get_array())
    first, second = (
        style.color for style in itertools.islice(plots.line_styles(), 2)
    )  # skip, conv; none is grey
    assert np.allclose(colours[0], [to_rgb(second)] * 2 + [to_rgb(first)] * 3)
    assert np.allclose(colours[1], [to_rgb(second)] * 5)
    assert supernet_plots.changes(search) == [(3, search.epochs[1].derived, search.epochs[2].derived)]


def test_choices_that_the_search_does_not_decide_have_no_row(tmp_path):
    (search,) = searches(record(tmp_path / "a", [({}, [genotype(1, "conv", 1), genotype(2, "skip", 2)])]))
    assert supernet_plots.decided_choices(search) == ["edge_op", "edge_input"]
    drawn(supernet_plots.derived_figure(search))


def test_losses_and_signs_have_a_line_a_trial_and_their_mean_while_all_go_on(tmp_path):
    stopped = [epoch(1, valid_loss=4.0), epoch(2, valid_loss=3.0, stopped=True)]
    whole = [epoch(k) for k in (1, 2, 3)]
    found = searches(record(tmp_path / "a", [({"repetition": 0}, stopped), ({"repetition": 1}, whole)]))
    loss, accuracy = drawn(supernet_plots.learning_figure(found)).axes
    values = [np.asarray(line.get_ydata()).tolist() for line in loss.lines]
    assert values[:3] == [[4.0, 3.0], [2.0, 1.0, pytest.approx(2 / 3)], [3.0, 2.0]]
    assert np.asarray(accuracy.lines[1].get_ydata()).tolist() == pytest.approx([51, 52, 53])
    entropy, skips, eigenvalue = drawn(supernet_plots.signs_figure(found)).axes
    for axes, last in ((entropy, 0.8), (skips, 1), (eigenvalue, 1.0)):
        (mark,) = (line for line in axes.lines if line.get_marker() == "s")
        assert (np.asarray(mark.get_xdata()).tolist(), np.asarray(mark.get_ydata()).tolist()) == ([2], [last])


def test_an_entropy_that_hardly_moves_has_plain_labels(tmp_path):
    """The axis once read 1e-7+9.99998e-1."""
    epochs = [epoch(k, entropy=0.9999998 + 1e-8 * k, eigenvalue=math.nan) for k in range(1, 6)]
    figure = drawn(supernet_plots.signs_figure(searches(record(tmp_path / "a", [({}, epochs)]))))
    entropy = figure.axes[0]
    low, high = entropy.get_ylim()
    assert high - low >= 0.0199
    labels = [label.get_text() for label in entropy.get_yticklabels()]
    assert entropy.yaxis.get_offset_text().get_text() == ""
    assert all(len(label) <= 6 for label in labels), labels


def test_what_was_not_recorded_has_no_panel(tmp_path):
    found = searches(
        record(tmp_path / "a", [({}, [epoch(1, eigenvalue=math.nan, entropy=math.nan, train_loss=math.nan)])])
    )
    assert len(drawn(supernet_plots.signs_figure(found)).axes) == 1
    for figure in (supernet_plots.learning_figure, supernet_plots.signs_figure):
        drawn(figure(found))
        assert figure([]) is None


def test_settings_that_differ_have_colours_and_repetitions_have_not(tmp_path):
    trials = [({"repetition": k % 2, "order": "first", "rate": 0.1 * (k // 2)}, [epoch(1)]) for k in range(4)]
    figure = drawn(supernet_plots.signs_figure(searches(record(tmp_path / "a", trials))))
    assert legend(figure) == ["darts: rate=0", "darts: rate=0.1"]
    trials = [({"rate": 0.1 * k}, [epoch(1)]) for k in range(supernet_plots.MOST_COLOURS + 1)]
    assert legend(drawn(supernet_plots.signs_figure(searches(record(tmp_path / "b", trials))))) == []


@pytest.mark.slow
def test_a_report_has_the_searches_and_the_best_of_them_by_itself(tmp_path):
    trials = [
        ({"repetition": k}, [epoch(1), epoch(2, valid_accuracy=0.9 - 0.1 * k)])
        for k in range(MOST_SEARCHES + 2)
    ]
    record(tmp_path / "run", trials)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "supernet_weights_old_trial_0.png").write_bytes(b"of an earlier report")
    files = write_report([tmp_path / "run"], tmp_path / "out").files
    names = {path.name for path in files if path.suffix == ".png"}
    own = {f"{kind}_trial_{k}.png" for k in range(4) for kind in ("supernet_weights", "supernet_derived")}
    general = {"anytime_epochs.png", "anytime_seconds.png", "supernet_learning.png", "supernet_signs.png"}
    assert names == own | general
    assert not (tmp_path / "out" / "supernet_weights_old_trial_0.png").exists()
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(names)
    assert page.count("<details open>") == 1
    assert "2 more trials of this run are in its record" in page
    assert "darts, seed 0, trial 0: 2 epochs" in page
    again = write_report([tmp_path / "run"], tmp_path / "again").files
    for left, right in zip(files, again, strict=True):
        assert left.read_bytes() == right.read_bytes()


@pytest.mark.slow
def test_the_cells_that_a_search_ended_with_are_drawn(tmp_path):
    run = record(tmp_path / "run", [({}, [epoch(1), epoch(5)])])
    asked: list[tuple[Any, Any]] = []

    def cells(config: Mapping[str, Any], arch: Architecture) -> dict[str, Cell]:
        asked.append((config["space"], arch))
        return {"normal": Cell(("in", "out"), (("in", "out", arch["edge_0_1"]),))}

    files = write_report([tmp_path / "run"], cells=cells).files
    assert asked == [("cells", run.trials[0].chosen)]
    assert "supernet_cells_trial_0.png" in {path.name for path in files}
    pictures = sum(path.suffix == ".png" for path in files)
    assert (tmp_path / "run" / "report.html").read_text().count("data:image/png;base64,") == pictures
    files = write_report([tmp_path / "run"], cells=lambda config, arch: None).files
    assert not any("cells" in path.name for path in files)
    assert not (tmp_path / "run" / "supernet_cells_trial_0.png").exists()


def test_changes_are_told_in_words(tmp_path):
    record(tmp_path / "run", [({}, [epoch(k, stopped=k == 4) for k in range(1, 5)])])
    write_report([tmp_path / "run"])
    page = (tmp_path / "run" / "report.html").read_text()
    assert (
        "darts, seed 0: 4 epochs, stopped by its own rule; the architecture changed 1 times, last in epoch 3"
        in page
    )
    assert '<tr><td>3</td><td class="text">edge_0_1: conv → skip</td></tr>' in page
    assert "edge_0_1=conv, edge_0_2=conv" in page
    assert "skip connections: 3; entropy 0.600; dominant eigenvalue 2" in page


def networks(folder: Path) -> Run:
    """A random search of nine networks."""
    config = {"space": "cells", "dataset": "digits", "strategy": "random", "seed": 0}
    with Record.create(folder, config, env={}, fsync=False) as opened:
        for k in range(9):
            opened.start(Trial(k, Architecture(depth=k % 3), 1, seed=k, params=1000 + k))
            opened.measure(k, Measurement(1, 0.5 + 0.03 * (k % 3) + 0.001 * k, 1.0, 0.5, 1.0, 0.0, 1.0))
            opened.end(k, "completed")
        opened.done()
    return read_run(folder)


@pytest.mark.slow
def test_networks_and_searches_do_not_mix_in_a_report(tmp_path, monkeypatch):
    random = networks(tmp_path / "random")
    trials = [
        ({"repetition": k % 5, "rate": k // 5}, [epoch(1, valid_accuracy=0.5 + 0.01 * k)]) for k in range(10)
    ]
    darts = record(tmp_path / "darts", trials)
    told: dict[str, Any] = {}

    def importance(attribution: Any) -> None:
        told[attribution.choices[0].choice] = (attribution.trials, len(attribution.choices))

    monkeypatch.setattr(plots, "importance_figure", importance)
    pareto: Callable[..., Figure | None] = plots.pareto_figure
    figure = pareto({"random": [random], "darts": [darts]})
    assert figure is not None
    labels = figure.axes[0].get_legend_handles_labels()[1]
    assert labels == ["random", "Pareto front"]
    assert pareto({"darts": [darts]}) is None
    write_report([tmp_path / "random", tmp_path / "darts"], tmp_path / "out")
    assert told == {"depth": (9, 1), "rate": (10, 1)}  # a repetition is no setting
    said = [note for note in notes([random, darts]) if "shared weights" in note]
    assert len(said) == 1
    assert said[0].startswith("darts: ")
    assert (tmp_path / "out" / "supernet_weights_darts_trial_9.png").exists()


@pytest.mark.slow
def test_runs_in_folders_of_one_name_have_files_of_their_own(tmp_path):
    for seed in (0, 1):
        record(tmp_path / str(seed) / "run", [({}, [epoch(1)])], seed=seed)
    files = write_report([tmp_path / "0", tmp_path / "1"], tmp_path / "out").files
    names = [path.name for path in files if path.name.startswith("supernet_derived")]
    assert names == ["supernet_derived_1_trial_0.png", "supernet_derived_2_trial_0.png"]
