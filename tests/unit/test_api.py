"""`import nas`: what it has, what it costs, what it takes and gives."""

from __future__ import annotations

import doctest
import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nas
from nas.api import inputs
from nas.errors import InputError
from nas.objectives.own import OBJECTIVES
from nas.proxies import Proxy
from nas.record import find_runs, read_run
from nas.report.report import write_report
from nas.run.methods import GIVEN
from nas.run.options import SearchOptions
from nas.strategies import STRATEGIES, StrategyConfig
from nas.strategies.base import FullBudget, drawn
from nas.strategies.hyperband import HyperbandConfig
from nas.trial import Trial
from tests.spaces import line_of

SPACE = nas.SearchSpace("line", {"x": nas.Integer(0, 9), "score": nas.Categorical((1, 2))})
MODULES = ("nas.api.searching", "nas.api.runs", "nas.api.drawing", "nas.objectives.own")


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def far(arch: Any) -> float:
    return -abs(arch["x"] - 7)


def sampling(space: nas.SearchSpace, config: StrategyConfig) -> Any:
    return FullBudget(space, config, lambda i: drawn(space, config.seed, i))


def searched(**settings: Any) -> nas.Run:
    return nas.search(SPACE, objective=far, engine="local", **{"trials": 6, **settings})


# ------------------------------------------------------------------------------------------------ the package


def test_importing_is_light_and_everything_named_is_there() -> None:
    program = (
        "import sys, nas\n"
        "heavy = {'jax', 'flax', 'ray', 'numpy', 'matplotlib', 'pandas', 'search_spaces'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        "nas.SearchSpace, nas.SearchOptions, nas.search\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "['numpy']"]
    for name in nas.__all__:
        assert getattr(nas, name) is not None
    assert set(nas.__all__) == {name for names in nas._HOMES.values() for name in names}
    with pytest.raises(AttributeError, match="module 'nas' has no attribute 'serch'"):
        nas.serch  # noqa: B018 # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_of_docstrings_run(module: str) -> None:
    found = doctest.testmod(importlib.import_module(module))
    assert found.failed == 0
    assert found.attempted > 0 or module == "nas.objectives.own"


def test_every_function_has_an_example() -> None:
    for name in ("search", "compare", "trainable", "draw", "load_run", "load_runs"):
        assert ">>> " in (getattr(nas, name).__doc__ or ""), name


# ------------------------------------------------------------------------------------------------------- runs


def test_a_run_has_its_best_its_trials_a_frame_and_shows_itself() -> None:
    run = searched()
    assert run.folder == Path("runs/line-mnist5k-random-0")
    assert isinstance(run.best, Trial)
    assert run.best.score == max(trial.score for trial in run.trials.values())
    frame = run.to_pandas()
    assert list(frame.trial) == list(range(6))
    assert list(frame.x) == [trial.arch["x"] for trial in run.trials.values()]
    assert set(frame.choice_score) <= {1, 2}  # a choice of a name that a column has
    assert list(frame.score) == [far(trial.arch) for trial in run.trials.values()]
    assert list(run.to_pandas("measurements").score) == list(frame.score)
    assert len(run.to_pandas("finals")) == 0
    assert "random" in run.table()
    page = run._repr_html_()
    assert "<table>" in page
    assert "data:image/png;base64," in page
    assert run.plot()._repr_png_().startswith(b"\x89PNG")
    assert nas.load_run(run.folder) == run
    assert nas.load_run(run.folder).space is None
    assert line_of(nas.load_run(run.folder).draw).endswith("give it: load_run(folder, space=…)")
    assert searched().folder == Path("runs/line-mnist5k-random-0-2")
    assert len(nas.load_runs("runs")) == 2


def test_a_run_goes_on_and_a_folder_is_not_overwritten() -> None:
    run = searched(out="r")
    assert "holds a run already" in line_of(searched, out="r")
    assert searched(out="r", resume=True) == run
    assert line_of(searched, resume=True) == "resume: say in which folder: out=…"


def test_strategies_are_compared() -> None:
    runs = nas.compare(
        SPACE,
        strategies=["random", sampling],
        objective=far,
        seeds=2,
        engine="local",
        total_epochs=4,
        out="c",
    )
    assert isinstance(runs, nas.Runs)
    assert sorted(path.name for path in Path("c").iterdir()) == [
        "random-0",
        "random-1",
        "sampling-0",
        "sampling-1",
    ]
    assert [run.strategy for run in runs] == ["random", "sampling", "random", "sampling"]
    assert len(runs.trials) == len(runs.to_pandas()) == 16
    assert runs.best is not None
    assert runs.best.score == runs.to_pandas().score.max()
    assert list(runs.to_pandas().strategy.unique()) == ["random", "sampling"]
    assert [row.count("|") for row in runs.table().splitlines()[:2]] == [12, 12]
    assert "<img" in runs._repr_html_()


# ------------------------------------------------------------------------------------------------ what is given


def test_settings_go_where_they_belong() -> None:
    given = {
        "subset": 300,
        "clip_norm": 1.0,
        "eta": 4,
        "epochs": 5,
        "fix": {"depth": 3},
        "narrow": {"width": (16, 32), "learning_rate": "1e-3..1e-2"},
        "hyper": "learning_rate=0.1",
        "test_seeds": 0,
    }
    options = inputs.options_with(SearchOptions(), ["hyperband"], given)
    assert (options.data.subset, options.training.clip_norm, options.test_seeds) == (300, 1.0, 0)
    assert isinstance(options.plan, HyperbandConfig)
    assert (options.plan.eta, options.plan.epochs) == (4, 5)
    assert options.fix == ("depth=3",)
    assert options.narrow == ("width=16,32", "learning_rate=1e-3..1e-2")
    assert options.hyper == ("learning_rate=0.1",)
    assert line_of(inputs.options_with, SearchOptions(), ["random"], {"trails": 3}).endswith(
        "(did you mean trials?)"
    )
    assert "'eta' is not one of" in line_of(inputs.options_with, SearchOptions(), ["random"], {"eta": 3})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"engine": "Local"}, "engine: 'Local' is not one of ray, local .did you mean local"),
        ({"test_seeds": 1.5}, "test_seeds: 1.5 is no whole number"),
        ({"trials": "3"}, "trials: '3' is no whole number or None"),
        ({"clip_norm": "much"}, "clip_norm: 'much' is no number or None"),
    ],
)
def test_a_setting_of_another_kind_is_one_line(given: dict[str, Any], said: str) -> None:
    with pytest.raises(nas.InputError, match=said):
        nas.search(SPACE, objective=far, **({"trials": 2, "engine": "local"} | given))
    assert not Path("runs").exists()


def test_on_a_table_settings_are_those_of_the_script() -> None:
    found = nas.compare(
        "minichain", strategies=["random", "random+params"], objective="table", seeds=2, workers=4,
        startup_seconds=1.0,
    )  # fmt: skip
    assert set(found.to_pandas().strategy) == {"random", "random+params"}
    assert len(nas.compare("minichain", strategies="random", objective="table", seeds=2).to_pandas()) == 2
    with pytest.raises(nas.InputError, match="options: on a table"):
        nas.compare("minichain", objective="table", options=nas.SearchOptions())


def test_a_strategy_may_have_any_name_and_a_resumed_comparison_has_to_be_there() -> None:
    def _mine(space: nas.SearchSpace, config: StrategyConfig) -> Any:
        return FullBudget(space, config, lambda i: drawn(space, config.seed, i))

    run = nas.search(SPACE, objective=far, strategy=_mine, trials=3, engine="local", out="runs/mine")
    run.plot()
    assert write_report(["runs/mine"], "runs/mine").files
    with pytest.raises(nas.InputError, match="runs/typo: no comparison to resume there"):
        nas.compare(SPACE, objective=far, strategies=["random"], engine="local", out="runs/typo", resume=True)


def test_searches_on_other_images_are_no_pairs() -> None:
    for name in ("digits", "mnist5k"):
        nas.compare(
            "minichain", name, strategies=["random", "evolution"], objective=hill_of_depth, trials=2, seeds=2,
            engine="local", out=f"runs/{name}", test_seeds=0,
        )  # fmt: skip
    runs = [read_run(folder) for folder in find_runs([Path("runs")])]
    assert len({run.images for run in runs}) == 2
    shown = write_report(["runs"], "runs")
    assert any("Which choices mattered is left out" in note for note in shown.notes)


def hill_of_depth(arch: Any) -> float:
    return arch["depth"]


def test_options_of_one_call_are_the_base_of_another() -> None:
    base = SearchOptions(engine="local", plan=StrategyConfig(trials=2, seed=3))
    run = nas.search(SPACE, objective=far, options=base)
    assert (len(run.trials), run.seed) == (2, 3)


def test_spaces_by_name_file_and_value(tmp_path: Path) -> None:
    name, spaces = inputs.spaces_of("chain")
    assert spaces[name].name == "chain"
    (tmp_path / "my.py").write_text("import nas\nSPACE = nas.SearchSpace('mine', {'x': nas.Integer(0, 1)})\n")
    name, spaces = inputs.spaces_of(tmp_path / "my.py")
    assert spaces[name].name == "mine"
    assert inputs.spaces_of(SPACE) == ("line", {"line": SPACE})
    assert line_of(inputs.spaces_of, "chian").endswith("(did you mean chain?)")


def test_without_the_package_of_spaces_by_name_a_value_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "SPACES_BY_NAME", "no_such_package")
    assert line_of(inputs.spaces_of, "chain").endswith("is not installed; give a SearchSpace")


def test_data_by_name_path_and_value(tmp_path: Path) -> None:
    assert inputs.dataset_of("digits") == "digits"
    (tmp_path / "cifar10").mkdir()
    assert inputs.dataset_of(tmp_path / "cifar10") == f"{tmp_path}/cifar10/"
    images, labels = np.zeros((8, 2, 2), np.uint8), np.arange(8) % 2
    two = inputs.dataset_of((images, labels))
    assert inputs.dataset_of({"images": images, "labels": labels}) == two
    pairs = inputs.dataset_of(((images, labels), (images, labels)))
    assert sorted(np.load(pairs).files) == ["images", "labels", "test_images", "test_labels"]
    assert inputs.dataset_of((images, labels, images, labels)) == pairs
    assert "3 arrays are neither" in line_of(inputs.dataset_of, (images, labels, images))
    assert line_of(inputs.dataset_of, 3) == "dataset: a int is neither a name, a path nor arrays"


def test_strategies_and_objectives_by_name_and_value() -> None:
    assert inputs.strategy_of("hyperband") == "hyperband"
    assert inputs.strategy_of(STRATEGIES["asha"]) == "asha"
    assert inputs.strategy_of(sampling) == "sampling"
    assert "sampling" in GIVEN
    assert line_of(inputs.strategy_of, "hyperbnd").endswith("(did you mean hyperband?)")

    def random(space: Any, config: Any) -> Any: ...

    assert "is the name of another strategy" in line_of(inputs.strategy_of, random)
    assert inputs.objective_of("naswot") == ("naswot",)
    assert inputs.objective_of(["valid_accuracy", "params"]) == ("valid_accuracy", "params")
    assert inputs.objective_of(far) == ("far",)
    assert OBJECTIVES["far"] is far
    proxy: Any = Proxy(far, 1, 0)
    assert inputs.objective_of(proxy) == ("far",)

    def params(arch: Any) -> Any: ...

    assert "is the name of another objective" in line_of(inputs.objective_of, params)
    with pytest.raises(InputError, match="did you mean network"):
        inputs.objective_of(lambda nework: 1)


# ----------------------------------------------------------------------------------------- shown in a notebook


def test_a_space_shows_its_choices() -> None:
    page = SPACE._repr_html_()
    assert "<b>line</b>: 2 choices, 20 architectures" in page
    assert page.count("<tr>") == 3


def test_an_architecture_is_drawn_from_its_choices() -> None:
    chain = nas.Architecture(depth=2, width_1=16, width_2=32, act="relu<")
    page = chain._repr_html_()
    assert "depth=2, act=relu&lt;" in page
    assert page.count("<rect") == 2
    assert page.count("marker-end") == 1
    cell = nas.Architecture(edge_0_1="conv", edge_0_2="skip", edge_1_2="pool")
    page = cell._repr_html_()
    assert page.count("<circle") == 3
    assert page.count("marker-end") == 3
    assert all(f">{text}</text>" in page for text in ("conv", "skip", "pool", "0", "1", "2"))
    assert page == nas.Architecture(edge_1_0="conv", edge_2_0="skip", edge_2_1="pool")._repr_html_()


@pytest.mark.parametrize("more", [{"kernel_1_1": 3}, {}])
def test_layers_of_stages_are_a_box_each(more: dict[str, int]) -> None:
    page = nas.Architecture(kernel_1_2=5, kernel_2_1=7, width_2_1=16, **more)._repr_html_()
    assert page.count("<rect") == 2 + len(more)
    assert "<circle" not in page
    texts = re.findall(">([^<]+)</text>", page)
    assert texts == ["1, 1", "kernel 3"] * len(more) + ["1, 2", "kernel 5", "2, 1", "kernel 7", "width 16"]


def test_a_space_goes_to_ray_tune_and_back() -> None:
    domains = SPACE.to_tune()
    assert list(domains) == ["x", "score"]
    assert SPACE.from_tune({"x": 3, "score": 2, "other": 1}) == {"x": 3, "score": 2}
