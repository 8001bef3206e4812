"""Several objectives and constraints through the local engine: what is measured, recorded, told, failed."""

import dataclasses
import functools
import json
import math
import os
import signal
import subprocess
import sys
from typing import Any

import cloudpickle
import numpy as np
import pytest

from nas.data.config import DataConfig
from nas.errors import InputError
from nas.goals import Goals, LatencyConfig, parse_goals
from nas.objectives.base import TrialFailed
from nas.objectives.latency import Latency
from nas.objectives.predicted_latency import LatencyPredictor, MeasuredNetwork
from nas.objectives.quantities import Measured, sign_of
from nas.objectives.several import SeveralObjective, SeveralSetup
from nas.own_file import pickled, value_named
from nas.record import Record, read_run, same_record
from nas.run import local, several
from nas.run.driver import evaluate
from nas.run.options import SearchOptions, flat
from nas.run.plan import plan
from nas.run.search import search
from nas.run.several import nothing_found
from nas.space import Architecture, Categorical, SearchSpace
from nas.strategies import STRATEGIES, StrategyConfig
from nas.trial import INFEASIBLE, Measurement, MeasurementWithValues, Trial, measurement_of
from search_spaces import SPACES

WIDTHS = SearchSpace("widths", {"width": Categorical(tuple(range(1, 9)))})


class Trained:
    """Wider networks are better; width 7's loss is not a number."""

    def __init__(self):
        self.trained = []

    def __call__(self, trial):
        self.trained.append(trial.id)
        for unit in range(trial.spent + 1, trial.budget + 1):
            loss = math.nan if trial.arch["width"] == 7 else 1.0
            yield Measurement(unit, trial.arch["width"] / 10, loss, 0.5, 0.5, evaluate_seconds=1.0)


def objective(*objectives: str, constraints: tuple[str, ...] = (), values=None) -> Any:
    """Without data or networks: `Trained`, and quantities that are known of a width."""
    goals = parse_goals(objectives, constraints, sign_of)
    made: Any = SeveralObjective.__new__(SeveralObjective)
    made.setup = dataclasses.replace(SETUP, goals=goals)
    made.training = Trained()
    made._quantities = Known(values or (lambda width: {"params": 10.0 * width, "latency_ms": 8.0 - width}))
    return made


class Known:
    def __init__(self, values):
        self.values, self.asked = values, 0

    def __call__(self, arch):
        self.asked += 1
        return Measured(self.values(arch["width"]), 0.25)

    def size(self, arch):
        return 10 * arch["width"], 3


SETUP = SeveralSetup(Goals(()), None, None)  # type: ignore[arg-type]


def last(trial: Trial) -> MeasurementWithValues:
    newest = trial.measurements[-1]
    assert isinstance(newest, MeasurementWithValues)
    return newest


def trial(width, budget=2, **more):
    return Trial(0, Architecture({"width": width}), budget, seed=0, **more)


def test_a_measurement_has_all_values_and_their_gains_and_the_cost_once():
    made = objective("valid_accuracy", "params", constraints=("latency_ms<6",))
    first, second = (last(t) for t in evaluate(made, trial(4)))
    assert first.values == {"valid_accuracy": 0.4, "params": 40, "latency_ms": 4}
    assert (first.gains, first.violation, first.value) == ((0.4, -40), 0, 0.4)
    assert (first.evaluate_seconds, second.evaluate_seconds) == (1.25, 1.0)
    again = trial(4, budget=3).add(first).add(second)
    (third,) = (last(t) for t in evaluate(made, again))
    assert third.values == second.values
    assert made._quantities.asked == 1  # a promoted trial keeps what was measured


def test_what_is_known_to_violate_a_constraint_is_not_trained_and_may_be_asked_again():
    made = objective("valid_accuracy", "params", constraints=("params<=20",))
    (told,) = evaluate(made, trial(4))
    measurement = told.measurements[-1]
    assert (measurement.violation, measurement.last, made.training.trained) == (1.0, True, [])
    assert math.isnan(measurement.valid_accuracy)
    assert measurement.value == INFEASIBLE * 2
    (again,) = evaluate(made, told.replace(budget=4))
    assert [m.budget for m in again.measurements] == [1, 2]
    (kept, _) = evaluate(made, trial(2))
    assert kept.measurements[-1].violation == 0
    assert made.training.trained == [0]


def test_a_constraint_on_the_accuracy_is_judged_after_the_training():
    made = objective("valid_accuracy", constraints=("valid_accuracy>=0.5",))
    told = [t.measurements[-1] for t in evaluate(made, trial(4))]
    assert [(m.last, round(m.violation, 9), m.valid_accuracy) for m in told] == [(False, 0.2, 0.4)] * 2


def test_a_score_among_the_goals_takes_no_training():
    made = objective("params", "latency_ms")
    (told, _) = evaluate(made, trial(3))
    assert (told.measurements[-1].gains, made.training.trained) == ((-30, -5), [])


@pytest.mark.parametrize(
    ("width", "objectives", "values", "said"),
    [
        (7, ("valid_accuracy", "valid_loss"), None, "valid_loss is nan, not a finite number after 1 units"),
        (3, ("valid_accuracy", "params"), lambda width: {"params": math.inf}, "params is inf"),
    ],
)
def test_a_goal_that_is_not_a_number_is_a_failed_trial_with_one_line(width, objectives, values, said):
    from nas.objectives.quantities import check_finite

    made = objective(*objectives, values=values)
    if values is not None:
        known = made._quantities.values
        made._quantities.values = lambda width: check_finite(known(width), ["params"]) or known(width)
    with pytest.raises(TrialFailed, match=said) as failure:
        list(evaluate(made, trial(width)))
    assert "\n" not in str(failure.value)


def run(folder, made, strategy="evolution", trials=12, resume=False, **config):
    config = StrategyConfig(seed=3, trials=trials, epochs=2, **config)
    opened = Record.resume if resume else Record.create
    with opened(folder, {"strategy": strategy, "seed": 3}) as record:
        return local.execute(STRATEGIES[strategy](WIDTHS, config), made, record, epochs=2)


def test_the_record_is_read_back_and_a_nan_among_the_objectives_fails_its_trial_alone(tmp_path):
    done = run(tmp_path / "a", objective("valid_accuracy", "valid_loss", "params"), "random", trials=20)
    read = read_run(tmp_path / "a")
    assert read.trials == done.trials
    failed = [t for t in read.trials.values() if t.status == "failed"]
    assert {t.arch["width"] for t in failed} == {7}
    assert all(isinstance(seen.measurement, MeasurementWithValues) for seen in read.history)
    for seen in read.history:
        assert measurement_of(json.loads(json.dumps(seen.measurement.fields()))) == seen.measurement
    assert [t.arch["width"] for t in read.front] == sorted(
        {t.arch["width"] for t in read.trials.values()} - {7}, reverse=True
    )


@pytest.mark.parametrize(
    "strategy", ["evolution", "local_search", "tpe", "hyperband", "asha", "reinforce", "bananas"]
)
def test_a_search_under_a_constraint_finds_the_best_that_keeps_it(tmp_path, strategy):
    made = objective("valid_accuracy", constraints=("params<=50",))
    done = run(tmp_path / "a", made, strategy, trials=40)
    assert done.best is not None
    assert done.best.arch["width"] == 5
    assert not any(t.feasible for t in done.trials.values() if t.arch["width"] > 5)


def test_a_search_that_was_stopped_goes_on_to_the_same_record(tmp_path):
    made = objective("valid_accuracy", constraints=("params<=50",))
    run(tmp_path / "whole", made)
    run(tmp_path / "cut", made)
    file = tmp_path / "cut" / "trials.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    for cut in (len(lines) // 3, len(lines) // 2):
        file.write_text("".join(lines[:cut]))
        run(tmp_path / "cut", made, resume=True)
        assert same_record(tmp_path / "whole", tmp_path / "cut")


def test_where_every_network_violates_the_constraint_one_line_says_which_is_nearest(tmp_path):
    done = run(tmp_path / "a", objective("valid_accuracy", constraints=("params<5",)))
    assert done.best is None
    assert done.front == ()
    config = {**done.config, "constraint": ["params<5"]}
    said = nothing_found(dataclasses.replace(done, config=config))
    assert "none of the 12 networks measured keeps params<5; the nearest, trial" in said
    assert "\n" not in said


# -------------------------------------------------------------------------------------------------- real networks


OPTIONS = SearchOptions(
    space="mlp",
    engine="local",
    fix=("depth=1", "batch_size=64"),
    data=DataConfig("digits"),
    test_seeds=1,
    plan=StrategyConfig(trials=2, epochs=1),
    latency=LatencyConfig(latency_repetitions=5),
)


def options(*objectives: str, constraints: tuple[str, ...] = (), **more) -> SearchOptions:
    return dataclasses.replace(OPTIONS, objective=objectives, constraint=constraints, **more)


@pytest.mark.parametrize(
    ("given", "strategy", "said"),
    [
        (
            options("valid_accuracy", "latency_us"),
            "random",
            "objective: 'latency_us' is not one of .*latency_ms",
        ),
        (options("train", constraints=("speed<3",)), "random", "constraint: 'speed' is not one of"),
        (
            options("valid_accuracy", "params"),
            "hyperband",
            "hyperband takes one objective; for several there are grid",
        ),
        (options("valid_accuracy", "params"), "darts_first", "darts_first trains shared weights"),
        (
            options("train", "latency_ms", latency=LatencyConfig("abacus")),
            "random",
            "latency_device: 'abacus' is not one of cpu",
        ),
        (
            options("train", "latency_ms", latency=LatencyConfig("abacus"), engine="ray"),
            "random",
            "latency_device: 'abacus' is not one of cpu",
        ),
    ],
)
def test_what_cannot_be_meant_is_said_before_anything_is_written(given, strategy, said, tmp_path):
    with pytest.raises(InputError, match=said):
        search(given, strategy, tmp_path / "run", SPACES)
    assert not (tmp_path / "run").exists()


def test_one_objective_is_what_it_was_and_its_config_too():
    one = options("valid_accuracy")
    assert (one.objective, flat(one)["objective"]) == (("train",), "train")
    assert plan(one, "random", SPACES).goals is None
    assert plan(options("naswot"), "random", SPACES).goals is None
    assert not {"constraint", "front", "latency_device"} & set(flat(one))
    assert dataclasses.replace(one, objective="naswot").objective == ("naswot",)


@pytest.mark.slow
def test_a_search_with_real_networks(tmp_path):
    (tmp_path / "own.py").write_text("def cost(arch):\n    return 1.0 * arch['depth']\n")
    names = ("valid_accuracy", "params", "activation_bytes", "synflow", f"{tmp_path}/own.py:cost:min")
    done = search(options(*names, front=1), "random", tmp_path / "run", SPACES)
    assert done.done
    for t in done.trials.values():
        assert t.values["params"] == t.params
        assert t.values[f"{tmp_path}/own.py:cost"] == t.arch["depth"]
        assert np.sign(t.gains).tolist() == [1, -1, -1, 1, -1]
    assert {final.arch for final in done.finals} <= {t.arch for t in done.front}
    assert len(done.finals) == 1
    assert done.config["goals"]["synflow"] == 1


def test_latency_is_measured_once_by_the_meter_given(tmp_path):
    class Meter:
        asked = 0

        def __call__(self, arch):
            self.asked += 1
            return Latency(3.0, 2.5, 3.5, 0.01)

    from nas.run.metering import metered

    planned = plan(options("params", "latency_ms", constraints=("latency_ms<=2",)), "random", SPACES)
    meter = Meter()
    assert isinstance(planned.setup, SeveralSetup)
    made = metered(planned.setup, meter)(None)
    one = Trial(0, SPACES["mlp"].sample(0), 1, 0)
    for _ in range(2):
        (told,) = evaluate(made, one)
    assert meter.asked == 1
    assert told.values["latency_ms_high"] == 3.5
    assert told.measurements[-1].violation == 0.5


def test_own_objectives_need_no_network_and_may_be_called_as_they_like(tmp_path):
    """Of a space without one; what is called an accuracy need be no fraction."""
    (tmp_path / "own.py").write_text(
        "from nas.space import Integer, SearchSpace\nSPACE = SearchSpace('line', {'x': Integer(0, 9)})\n"
        "def proxy_accuracy(arch):\n    return 80.0 + arch['x']\n\n\ndef cost(arch):\n    return arch['x'] ** 2\n"
    )
    own = tmp_path / "own.py"
    names = (f"{own}:proxy_accuracy", f"{own}:cost:min")
    spaces = {str(own): value_named(f"{own}:SPACE", "space")}
    asked = options(*names, constraints=(f"{own}:cost<30",), space=str(own), fix=())
    done = search(asked, "random", tmp_path / "run", spaces)
    assert done.done
    assert not done.failed
    assert {t.values[names[0]] for t in done.trials.values()} <= {80.0 + x for x in range(10)}
    assert read_run(tmp_path / "run").front == done.front


def test_the_best_of_equals_is_on_the_front(tmp_path):
    """Width 8 has the accuracy of width 4 and is larger."""

    class Equal(Trained):
        def __call__(self, trial):
            for unit in range(trial.spent + 1, trial.budget + 1):
                yield Measurement(unit, 0.5, 1.0, 0.5, 0.5)

    made = objective("valid_accuracy", "params")
    made.training = Equal()
    with Record.create(
        tmp_path / "a", {"strategy": "random", "seed": 3, "goals": {"valid_accuracy": 1, "params": -1}}
    ) as record:
        config = StrategyConfig(seed=3, trials=8, epochs=1)
        done = local.execute(STRATEGIES["random"](WIDTHS, config), made, record, epochs=1)
    assert done.best is not None
    assert done.best == done.front[0]
    assert done.best.arch["width"] == min(t.arch["width"] for t in done.trials.values())


def test_a_measuring_process_that_dies_fails_one_trial_alone(tmp_path):
    """The next network has a new process."""
    from nas.run.metering import process

    flag = tmp_path / "died"
    with process(functools.partial(dying_meter, flag)) as meter:
        with pytest.raises(TrialFailed, match="latency_ms: the process that measures died"):
            meter(Architecture({"width": 1}))
        assert meter(Architecture({"width": 2})) == Latency(1.0, 1.0, 1.0, 0.0)


def dying_meter(flag):
    """A meter whose process dies at its first measurement."""

    def meter(arch):
        if not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return Latency(1.0, 1.0, 1.0, 0.0)

    return meter


def test_a_search_by_predictions_records_which_predictor():
    networks = tuple(MeasuredNetwork({"x": k}, k, k, k, {}, 1.0 * k) for k in range(1, 30))
    one, other = (LatencyPredictor(of, {"conv": 1.0}) for of in (networks, networks[1:]))
    assert one.checksum == LatencyPredictor(networks, {"conv": 1.0}).checksum != other.checksum
    asked = options("params", "macs_per_image")
    planned = plan(asked, "random", SPACES)
    assert isinstance(planned.setup, SeveralSetup)
    quantities = dataclasses.replace(planned.setup.quantities, predictor=one)
    planned = dataclasses.replace(planned, setup=dataclasses.replace(planned.setup, quantities=quantities))
    assert several.told(asked, planned)["latency_predictor"] == one.checksum


def test_a_space_in_a_file_goes_to_a_process_by_value(tmp_path):
    """Its functions have names in this process alone."""
    (tmp_path / "mine.py").write_text("build = lambda width: width + 1\n")
    sent = pickled(value_named(f"{tmp_path / 'mine.py'}:build", "space"), cloudpickle)
    program = "import pickle, sys; print(pickle.load(sys.stdin.buffer)(2))"
    done = subprocess.run([sys.executable, "-c", program], input=sent, capture_output=True, check=True)
    assert done.stdout.strip() == b"3"
