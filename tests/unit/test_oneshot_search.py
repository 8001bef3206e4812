"""Whole searches with shared weights: what they find, how they go on after a stop, what ends them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import signal
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest

from nas.ending import Terminated, terminate
from nas.errors import InputError
from nas.nn.layout import Layout
from nas.nn.supernet import supernet_of
from nas.objectives import oneshot
from nas.objectives.oneshot import settings_space
from nas.oneshot import search as searching
from nas.oneshot.monitor import Epoch, dominant_eigenvalue
from nas.oneshot.programs import Search
from nas.oneshot.search import SupernetSearch
from nas.oneshot.settings import METHODS, Settings, published, settings_of
from nas.record import Record, record_difference
from nas.run import local
from nas.space import Architecture, Categorical, SearchSpace
from nas.strategies import STRATEGIES
from nas.strategies.grid import GridConfig
from nas.training.checkpoint import Checkpoints
from nas.training.config import TrainingConfig
from nas.training.loop import Data
from nas.trial import SupernetMeasurement, measurement_of
from search_spaces import nasbench201
from tests.supernets import PLANTED, planted_network

GOOD = Architecture({"op_1": "good", "op_2": "good"})


def hook(space):
    def build(arch, classes):
        return planted_network({name: arch[name] for name in ("op_1", "op_2")}, classes)

    return supernet_of(space, [["op_1", "op_2"]], build, skip="other")


SPACE = SearchSpace("planted", {name: Categorical(PLANTED[::-1]) for name in ("op_1", "op_2")}, supernet=hook)


@functools.cache
def data(seed: int, count: int = 640) -> Data:
    """Which half of an image is brighter, under much noise; see `tests.supernets.planted_batch`."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count).astype(np.int32)
    images = rng.standard_normal((count, 4, 4, 4))
    images[:, :2] += 0.2 * (2 * labels - 1)[:, None, None, None]
    images[:, 2:] -= 0.2 * (2 * labels - 1)[:, None, None, None]
    pixels = np.clip(128 + 32 * images, 0, 255).astype(np.uint8)
    return Data(*jax.device_put((pixels, labels, np.full(4, 0.5, np.float32), np.full(4, 0.125, np.float32))))


def planted_search(method: str, *, epochs: int = 10, **changes) -> SupernetSearch:
    given = {"batch_size": 32, "learning_rate": 0.05, "weight_decay": 0.0, "augmentation": "none"}
    given |= {"alpha_learning_rate": 0.05, "candidates": 20}
    given |= {"partial_channels": 2} if method == "pc_darts" else {}
    given |= {"stages": "3-2", "deeper": 0} if method == "p_darts" else {}
    settings = settings_of(dict(METHODS[method][0]) | given | changes)
    return SupernetSearch(
        supernet=hook(SPACE),
        settings=settings,
        sizes={},
        train=data(0),
        valid=data(1, 90),
        num_classes=2,
        config=TrainingConfig(evaluate_batch_size=40),
        seed=3,
        epochs=epochs,
    )


def timeless(measurement: SupernetMeasurement) -> SupernetMeasurement:
    return dataclasses.replace(measurement, compile_seconds=0.0, train_seconds=0.0, evaluate_seconds=0.0)


def same(a, b) -> bool:
    return [repr(timeless(m)) for m in a] == [repr(timeless(m)) for m in b]


def quickly(*names: str, of) -> list:
    """``of``, all but ``names`` marked slow: what relaxations do is tested one by one in test_oneshot_bilevel."""
    return [name if name in names else pytest.param(name, marks=pytest.mark.slow) for name in of]


@pytest.mark.parametrize("method", quickly("gdas", "spos", of=METHODS))
def test_every_search_finds_the_planted_operations(method):
    seen = list(planted_search(method, stop="none").run(10))
    assert [m.budget for m in seen] == list(range(1, 11))
    assert seen[-1].derived == GOOD
    assert seen[-1].skips == 0
    assert seen[-1].valid_accuracy > 0.6
    assert all(math.isfinite(m.train_loss) and math.isfinite(m.valid_loss) for m in seen)
    if method in ("rsps", "spos"):
        assert math.isnan(seen[-1].entropy)
        assert math.isnan(seen[-1].eigenvalue)
        assert seen[-1].weights["op_1"] == {"other": 0.0, "noise": 0.0, "good": 1.0}
    else:
        assert seen[-1].entropy < seen[0].entropy <= 1
        assert math.isfinite(seen[-1].eigenvalue)
        assert max(seen[-1].weights["op_1"], key=seen[-1].weights["op_1"].__getitem__) == "good"
    assert len(seen[-1].weights["op_2"]) == (2 if method == "p_darts" else 3)


@pytest.mark.parametrize("method", quickly("spos", of=["darts", "gdas", "p_darts", "spos", "sdarts_rs"]))
def test_a_search_goes_on_to_the_bit(method, tmp_path):
    undisturbed = list(planted_search(method, epochs=4).run(4))
    for stop in (2, 3) if method == "p_darts" else (2,):
        keeper = Checkpoints(tmp_path / str(stop))
        run = planted_search(method, epochs=4).run(4, checkpoints=keeper)
        first = [next(run) for _ in range(stop)]
        run.close()
        keeper.close()
        again = Checkpoints(tmp_path / str(stop))
        rest = list(planted_search(method, epochs=4).run(4, checkpoints=again, measured=first))
        again.close()
        assert same(first + rest, undisturbed)
    # Without a checkpoint it begins anew, and yields what is not known yet.
    rest = list(planted_search(method, epochs=4).run(4, measured=undisturbed[:3]))
    assert same(rest, undisturbed[3:])


@pytest.mark.parametrize("method", quickly("spos", of=["darts", "p_darts", "spos"]))
def test_a_search_goes_on_in_mid_epoch_to_the_bit(method, tmp_path, monkeypatch):
    undisturbed = list(planted_search(method, epochs=4).run(4))
    step, steps = Search.step, 0

    def counted(*given, **more):
        nonlocal steps
        steps += 1
        if steps in stops:
            signal.raise_signal(signal.SIGTERM)
        return step(*given, **more)

    monkeypatch.setattr(Search, "step", counted)
    stops = ()
    list(planted_search(method, epochs=4).run(1))
    an_epoch, steps = steps, 0
    stops = (1, 2 * an_epoch + 1, 4 * an_epoch)  # the second in a stage of p_darts that has just begun
    before = signal.signal(signal.SIGTERM, terminate)
    seen = []
    try:
        for ends in (True, True, True, False):
            keeper = Checkpoints(tmp_path)
            run = planted_search(method, epochs=4).run(4, checkpoints=keeper, measured=tuple(seen))
            with pytest.raises(Terminated) if ends else contextlib.nullcontext():
                for measurement in run:
                    seen.append(measurement)
            keeper.close()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert same(seen, undisturbed)
    assert steps == 4 * an_epoch, "steps were done twice"


def test_a_checkpoint_ahead_of_the_record_is_yielded_first(tmp_path):
    keeper = Checkpoints(tmp_path)
    seen = list(planted_search("darts_first", epochs=3).run(2, checkpoints=keeper))
    keeper.close()
    again = Checkpoints(tmp_path)
    rest = list(planted_search("darts_first", epochs=3).run(3, checkpoints=again, measured=seen[:1]))
    again.close()
    assert same(rest[:1], seen[1:])
    assert [m.budget for m in rest] == [2, 3]


def test_a_stage_begun_ahead_of_the_record_begins_the_search_again(tmp_path):
    """A checkpoint in the middle of a stage's first epoch, whose narrowing the record does not have yet."""
    search = planted_search("p_darts", epochs=4)
    seen = list(search.run(3))
    keeper = Checkpoints(tmp_path)
    stage = search._stage(2, seen[:2])
    keeper.keep(2, stage.initial, {"steps": 1, "measurements": [m.fields() for m in seen[:2]]}, 1)
    keeper.close()
    again = Checkpoints(tmp_path)
    rest = list(planted_search("p_darts", epochs=4).run(3, checkpoints=again, measured=seen[:1]))
    again.close()
    assert same(rest, seen[1:])


def test_epochs_are_as_short_as_told():
    search = planted_search("darts_first", epochs=2)
    assert search._steps == 10
    short = dataclasses.replace(search, config=dataclasses.replace(search.config, steps_per_epoch=3))
    assert len(short._plan(np.random.default_rng(0), short._halves[0], short._steps)["index"]) == 3
    assert short._steps == 3
    with pytest.raises(InputError, match=r"^steps_per_epoch: 11 is more than the 10 of a pass over the 320"):
        dataclasses.replace(search, config=dataclasses.replace(search.config, steps_per_epoch=11))


def test_several_steps_in_one_program_are_compiled_before_they_are_timed(monkeypatch):
    search = planted_search("darts_first", epochs=2, warmup=0.5, eigenvalue=False)
    search = dataclasses.replace(search, config=dataclasses.replace(search.config, steps_per_call=5))
    stage = search._stage(0, [])
    assert set(stage.search._programs) == {"predict", "search_steps", "weights_steps"}
    monkeypatch.setattr("nas.oneshot.programs.compiled", None)
    search._epoch(stage, stage.initial, 0, {}, lambda *of: None)


def test_curvature_in_bfloat16_is_exact_and_differences_are_refused():
    whole = planted_search("darts_first", epochs=1)
    half = dataclasses.replace(whole, config=dataclasses.replace(whole.config, dtype="bfloat16"))
    found = []
    for search in (whole, half):
        stage = search._stage(0, [])
        stage = stage._replace(initial=stage.initial._replace(alphas=jax.numpy.linspace(-1, 1, 6)))
        found.append(search._eigenvalue(stage, stage.initial))
    assert found[1] == pytest.approx(found[0], rel=0.15)
    with pytest.raises(InputError, match=r"^supernet: order=difference needs dtype=float32, not bfloat16"):
        dataclasses.replace(half, settings=dataclasses.replace(half.settings, order="difference"))


def test_an_eigenvalue_of_what_is_not_finite_is_none():
    assert math.isnan(dominant_eigenvalue(lambda along: along * math.nan, 4))


def test_what_a_sampled_search_derives_is_judged_with_the_weights_of_its_edges(monkeypatch):
    search = planted_search("gdas", epochs=1, edge_weights=True)
    stage = search._stage(0, [])
    state = stage.initial._replace(alphas=jax.numpy.asarray([9, 0, 0, 0, 9, 0, 0, 1.0]))
    judged: list[np.ndarray] = []
    accuracy = SupernetSearch._accuracy

    def seen(self, stage, state, mixing, *of, **more):
        judged.append(np.asarray(mixing))
        return accuracy(self, stage, state, mixing, *of, **more)

    monkeypatch.setattr(SupernetSearch, "_accuracy", seen)
    search._look(stage, state, 0, [])
    edges = np.exp([0, 1.0]) / np.exp([0, 1.0]).sum()
    np.testing.assert_allclose(judged[0], [edges[0], 0, 0, 0, edges[1], 0, *edges], rtol=1e-6)


def test_alphas_rest_in_the_warm_up():
    seen = list(planted_search("darts_first", epochs=4, warmup=0.5).run(4))
    assert seen[0].weights == seen[1].weights != seen[2].weights


def test_images_for_weights_and_architecture_are_apart():
    search = planted_search("darts_first")
    one, other = search._halves
    assert len(one) == len(other) == 320
    assert not set(one.tolist()) & set(other.tolist())


def test_evaluation_counts_every_image_once():
    """90 images in batches of 40: the last batch is filled up, and only its own 10 count."""
    search = planted_search("darts_first")
    stage = search._stage(0, [])
    state = stage.search.init(0)
    mixing = jax.numpy.asarray(stage.layout.one_hot(GOOD))
    found = search._accuracy(stage, state, mixing, search.valid, np.arange(90))
    correct = loss = 0.0
    for chosen, count in ((range(40), 40), (range(40, 80), 40), ([*range(80, 90), *range(30)], 10)):
        images = (np.asarray(search.valid.images)[list(chosen)] / 255.0 - 0.5) / 0.125
        logits = np.asarray(
            stage.search.predict(state, mixing, jax.numpy.asarray(images, np.float32)), np.float64
        )
        labels = np.asarray(search.valid.labels)[list(chosen)]
        log = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        correct += (logits.argmax(-1) == labels)[:count].sum()
        loss -= log[np.arange(40), labels][:count].sum()
    assert found.accuracy == pytest.approx(correct / 90)
    assert found.loss == pytest.approx(loss / 90, rel=1e-5)


def test_evolution_judges_so_many_different_architectures_and_gets_nearer():
    layout = oneshot.supernet_of(nasbench201.SPACE).layout()
    rng = np.random.default_rng(0)
    worth = {name: dict(zip(values, rng.random(len(values)), strict=True)) for name, values in layout.choices}
    scores: list[float] = []

    def judge(arch):
        scores.append(sum(worth[name][value] for name, value in arch.items()))
        return scores[-1]

    found = searching.evolved(rng, layout, lambda genes: Architecture(layout.best(genes)), judge, 300, 20, 5)
    assert len(scores) == len(found) == 300
    assert list(found.values()) == scores
    assert np.mean(scores[20:100]) > np.mean(scores[:20]) + 0.5
    best = sum(max(of.values()) for of in worth.values())
    scores.clear()
    searching.drawn(rng, layout, lambda genes: Architecture(layout.best(genes)), judge, 300)
    assert max(scores) < max(found.values()) <= best


def test_evolution_ends_where_a_space_has_no_further_architectures():
    layout = Layout.of({"a": (1, 2), "b": (1, 2, 3)})
    found = searching.evolved(
        np.random.default_rng(0),
        layout,
        lambda genes: Architecture(layout.best(genes)),
        lambda arch: 0.0,
        50,
        4,
        2,
    )
    assert len(found) == 6


def test_early_stopping_ends_the_trial_with_the_architecture_that_counts(monkeypatch, tmp_path):
    """Through the engine: the record says stopped, the chosen architecture is that of the epoch before."""
    space = settings_space("darts_plus", hook(SPACE), ("augmentation=none", "batch_size=32"), 1)
    derived = ["good", "noise", "other", "other"]

    class Scripted(SupernetSearch):
        def _look(self, stage, state, epoch, before):
            def derive(layout, weights, most_skips=None):
                return Architecture({"op_1": derived[epoch], "op_2": derived[epoch]})

            changed = dataclasses.replace(self.supernet, derive=derive)
            return SupernetSearch._look(
                dataclasses.replace(self, supernet=changed), stage, state, epoch, before
            )

    class Objective:
        def __init__(self, folder):
            self.folder = folder

        def describe(self, trial):
            return 1, 1

        def __call__(self, trial):
            plain = planted_search("darts_plus", epochs=4)
            fields = {f.name: getattr(plain, f.name) for f in dataclasses.fields(plain)}
            yield from Scripted(**fields).run(trial.budget, measured=trial.measurements)

    config = GridConfig(epochs=4, grid_shuffle=False)

    def run(folder, resume=False):
        with (Record.resume if resume else Record.create)(
            folder, {"strategy": "darts_plus"}, env={}
        ) as record:
            return local.execute(STRATEGIES["grid"](space, config), Objective(folder), record, epochs=4)

    found = run(tmp_path / "a")
    [trial] = found.trials.values()
    assert trial.status == "stopped"
    assert trial.spent == 3
    assert trial.measurements[-1].last
    assert trial.chosen == Architecture({"op_1": "noise", "op_2": "noise"})
    assert found.best == trial
    # Killed between the last measurement and the line that ends the trial: nothing is searched again.
    lines = (tmp_path / "a" / "trials.jsonl").read_text().splitlines(keepends=True)
    run(tmp_path / "b")
    (tmp_path / "b" / "trials.jsonl").write_text("".join(lines[:-1]))
    monkeypatch.setattr(Scripted, "run", None)
    run(tmp_path / "b", resume=True)
    assert record_difference(tmp_path / "a", tmp_path / "b") is None


def test_how_a_supernet_is_run_changes_no_result():
    plain, other = (
        list(planted_search("darts_first", epochs=2, **ways).run(2))
        for ways in ({}, {"batched": True, "remat": True})
    )
    assert [m.derived for m in other] == [m.derived for m in plain]
    np.testing.assert_allclose([m.train_loss for m in other], [m.train_loss for m in plain], rtol=1e-4)
    not_a_graph = dataclasses.replace(hook(SPACE), build=lambda operations, classes: nn.Dense(classes))
    search = dataclasses.replace(planted_search("darts_first", remat=True), supernet=not_a_graph)
    with pytest.raises(InputError, match="remat: needs a Graph, not Dense"):
        next(search.run(1))


def test_a_measurement_survives_json():
    [measurement] = planted_search("darts_first", epochs=1).run(1)
    assert measurement_of(measurement.fields()) == measurement


def test_settings_are_a_grid_of_searches():
    space = settings_space("darts", hook(SPACE), ("order=first,difference", "learning_rate=0.1"), 3)
    points = list(space.enumerate())
    assert len(points) == 6
    assert {(p["repetition"], p["order"]) for p in points} == {
        (k, order) for k in range(3) for order in ("first", "difference")
    }
    assert settings_of(points[0]) == Settings(order="first", learning_rate=0.1)


@pytest.mark.parametrize(
    ("method", "texts", "says"),
    [
        ("dart", (), "strategy: 'dart' is not one of"),
        ("darts", ("speed=1",), "supernet: 'speed' is not one of"),
        ("darts", ("order=third",), "supernet: order: 'third' is not one of first, exact, difference"),
        ("darts", ("batch_size=many",), "supernet: batch_size=many is not int"),
        ("darts", ("batch_size=0",), "supernet: batch_size=0 is below 1"),
        ("darts", ("learning_rate=0..1",), "supernet: learning_rate needs values"),
        ("darts", ("edge_weights=perhaps",), "supernet: edge_weights"),
        ("darts", ("partial_channels=4",), "supernet: partial_channels=4 needs edge_weights=True"),
        ("p_darts", ("stages=3-5",), "supernet: stages=3-5 do not fall"),
        ("p_darts", ("stages=x",), "supernet: stages=x is neither all nor of the form 8-5-3"),
        (
            "p_darts",
            ("stages=5-1",),
            "supernet: stages=5-1 is neither all nor of the form 8-5-3, of numbers from 2",
        ),
        (
            "p_darts",
            ("relaxation=gumbel",),
            "supernet: stages=8-5-3 is for selection=strongest and a relaxation",
        ),
        ("rsps", ("stages=3-2",), "supernet: stages=3-2 is for selection=strongest"),
        ("darts", ("deeper=2",), "supernet: deeper=2 needs stages"),
        ("darts", ("clip_norm=0",), "supernet: clip_norm=0.0 is not a finite number above 0"),
        (
            "rsps",
            ("alpha_learning_rate=0.1",),
            "supernet: alpha_learning_rate is for selection=strongest, not random",
        ),
        ("spos", ("eigenvalue=true",), "supernet: eigenvalue is for selection=strongest, not evolution"),
        ("spos", ("relaxation=gumbel",), "supernet: relaxation is for selection=strongest, not evolution"),
        ("darts", ("skip_dropout_decay=0.1",), "supernet: skip_dropout_decay needs skip_dropout"),
        (
            "darts",
            ("skip_dropout=0.3",),
            "supernet: skip_dropout needs a supernet that drops skip connections out",
        ),
        ("robust_darts", ("eigenvalue=false",), "supernet: stop=curvature needs eigenvalue=True"),
        ("rsps", ("stop=skips",), "supernet: stop=skips is for a search of one stage by alphas"),
        ("darts", ("augmentation=crop+blur",), "supernet: augmentation"),
        ("darts", ("temperature=5",), "supernet: temperature is for relaxation=gumbel, not softmax"),
        ("gdas", ("temperature=0",), "supernet: temperature=0.0 is not a finite number above 0"),
        (
            "sdarts_rs",
            ("perturbation_steps=3",),
            "supernet: perturbation_steps is for relaxation=adversarial",
        ),
        ("sdarts_adv", ("radius=-1",), "supernet: radius=-1.0 is not a finite number of at least 0"),
        ("sdarts_adv", ("perturbation_steps=0",), "supernet: perturbation_steps=0 is below 1"),
        ("sdarts_adv", ("radius=nan",), "supernet: radius=nan is not a finite number"),
        ("darts_plus", ("stop_ratio=0.5",), "supernet: stop_ratio is for stop=curvature, not skips"),
        ("rsps", ("population=9",), "supernet: population is for selection=evolution, not random"),
        ("spos", ("mutation=1.5",), "supernet: mutation=1.5 is not from 0 to 1"),
        (
            "p_darts",
            ("skip_dropout=0.1-0.4",),
            "supernet: skip_dropout=0.1-0.4 is neither one share below 1 nor",
        ),
        ("darts", ("skip_dropout=some",), "supernet: skip_dropout=some is neither"),
    ],
)
def test_bad_settings_are_one_line(method, texts, says):
    with pytest.raises(InputError) as error:
        settings_space(method, hook(SPACE), texts, 1)
    assert str(error.value).startswith(says) or says in str(error.value)
    assert "\n" not in str(error.value)


def test_settings_about_skips_need_a_space_with_skips():
    without = dataclasses.replace(hook(SPACE), skip=None)
    with pytest.raises(
        InputError, match=r"^supernet: stop=skips \(darts_plus\) needs a space with skip conn"
    ):
        settings_space("darts_plus", without, (), 1)
    with pytest.raises(InputError, match=r"^supernet: most_skips needs a space with skip connections"):
        settings_space("p_darts", without, ("most_skips=1",), 1)
    assert len(list(settings_space("p_darts", without, (), 1).enumerate())) == 1
    channels = dataclasses.replace(hook(SPACE), sizes={"channels": 16})
    with pytest.raises(InputError, match=r"^supernet: partial_channels=4 does not divide channels=6"):
        settings_space("pc_darts", channels, ("channels=8,6",), 1)


def levels_seen(search: SupernetSearch) -> list[Any]:
    """The rates of every step of a whole search."""
    seen: list[Any] = []
    stepping = Search.step

    def step(self, state, train, valid, rates, seed, **more):
        seen.append(rates)
        return stepping(self, state, train, valid, rates, seed, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Search, "step", step)
        list(search.run(search.epochs))
    return seen


def test_what_a_relaxation_takes_reaches_it():
    seen = levels_seen(
        planted_search("gdas", epochs=2, temperature=4.0, temperature_min=2.0, radius=0.5, radius_min=0.1)
    )
    assert len(seen) == 20  # steps
    done = np.arange(20) / 20
    np.testing.assert_allclose([at.temperature for at in seen], 4 - 2 * done)
    np.testing.assert_allclose([at.radius for at in seen], 0.1 + 0.4 * done)
    changes = {"penalty": 3.0, "nesterov": True, "alpha_b1": 0.25, "alpha_b2": 0.75}
    at = levels_seen(planted_search("fair_darts", epochs=1, **changes))[0]
    assert (at.penalty, at.nesterov, at.alpha_b1, at.alpha_b2) == (3.0, 1.0, 0.25, 0.75)
    stage = planted_search("sdarts_adv", perturbation_steps=2, alpha_scale=0.5)._stage(0, [])
    assert stage.search.problem.perturbation_steps == 2
    assert 0.1 < float(np.std(stage.initial.alphas)) < 2


def test_dropout_of_skips_is_that_of_the_authors_code():
    """In each stage's warm-up a straight line to nothing, then anew and exponentially (Chen et al. 2019)."""
    search = planted_search("p_darts", epochs=10, skip_dropout="0.2-0.4", warmup=0.4, skip_dropout_decay=0.5)
    found = [at.dropout for at in levels_seen(search)[::10]]
    line, curve = [(5 - k - 1) / 5 for k in range(2)], [math.exp(-0.5 * k) for k in range(3)]
    np.testing.assert_allclose(found, [p * of for p in (0.2, 0.4) for of in (*line, *curve)])


def test_rules_stop_by_the_settings_numbers():
    skips = [Epoch(k) for k in range(5)]
    assert Settings(stop="skips", stop_skips=4).stop_rule(skips[:4]) is None
    assert Settings(stop="skips", stop_skips=4).stop_rule(skips) == 3
    rising = [Epoch(0, 1.0 + k) for k in range(5)]
    soon = Settings(stop="curvature", stop_window=2, stop_start=1)
    assert dataclasses.replace(soon, stop_ratio=0.1).stop_rule(rising) is None
    assert dataclasses.replace(soon, stop_ratio=0.9).stop_rule(rising) == 2
    assert Settings(stop="curvature", stop_window=2).stop_rule(rising) is None  # starts at 10


def test_a_space_has_its_authors_settings():
    supernet = oneshot.supernet_of(nasbench201.SPACE)
    [drnas] = settings_space("drnas", supernet, (), 1).enumerate()
    assert (drnas["alpha_learning_rate"], drnas["alpha_weight_decay"]) == (3e-4, 1e-3)
    assert (drnas["learning_rate"], drnas["learning_rate_min"]) == (0.025, 0.001)
    [elsewhere] = settings_space("drnas", hook(SPACE), (), 1).enumerate()
    assert (elsewhere["alpha_learning_rate"], elsewhere["learning_rate"]) == (6e-4, 0.1)
    [given] = settings_space("drnas", supernet, ("alpha_learning_rate=0.1",), 1).enumerate()
    assert given["alpha_learning_rate"] == 0.1
    known = {field.name for field in dataclasses.fields(Settings)}
    for method, settings in nasbench201.SEARCHES.items():
        assert method in METHODS
        assert set(settings) <= known
        settings_of(published(method, supernet))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"batch_size": 400}, "supernet: batch_size=400 is more than the 320 images of one half"),
        ({"deeper": 2, "stages": "3-2"}, "supernet: deeper=2 needs a supernet made of cells"),
        ({"stages": "9-8-7"}, "supernet: 3 stages in 2 epochs"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(changes, says):
    with pytest.raises(InputError, match=says):
        planted_search("darts_first", epochs=2, **changes)


def test_a_space_without_a_supernet_says_so():
    with pytest.raises(InputError, match="space: plain cannot be searched by a supernet"):
        oneshot.supernet_of(SearchSpace("plain", {"a": Categorical((1, 2))}))
