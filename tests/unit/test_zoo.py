"""Every named network: in its space, of its published size, found by its name."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from nas.errors import InputError
from nas.objectives.train import build, size_of
from nas.training.hyper import hyper_of
from search_spaces import FAMILIES, SPACES
from search_spaces.resnet import NAMED
from search_spaces.zoo import ZOO, find_architecture, merged

EXPECTED = {
    *("logistic", "logistic_binary", "mlp", "lenet5", "lenet5_dense", "alexnet", "alexnet_one_group"),
    *(
        "googlenet",
        "googlenet_aux",
        "googlenet_bn",
        "resnet18",
        "resnet34",
        "resnet50",
        "resnet101",
        "resnet152",
    ),
    *("resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "resnet1202", "plain20", "plain56"),
    *(
        "densenet121",
        "densenet161",
        "densenet169",
        "densenet201",
        "densenet40",
        "densenetbc100",
        "cat_neuron",
    ),
}
COUNTED = ("mbconv", "resnet", "darts", "densenet")  # by tests/golden/test_*_counts.py


def test_the_published_networks_are_there():
    assert set(ZOO) >= EXPECTED
    assert {family.SPACE.name for family in FAMILIES} <= set(SPACES)


@pytest.mark.parametrize("name", ZOO)
def test_a_named_network_is_a_point_of_its_space(name):
    """A whole point, hyperparameters included, that its text and JSON bring back."""
    named = ZOO[name]
    space = SPACES[named.space]
    space.validate(named.arch)
    assert space.from_string(space.to_string(named.arch)) == named.arch
    assert hyper_of(named.arch).batch_size >= 1
    assert named.source
    assert find_architecture(name) == (space, named.arch, named)


@pytest.mark.parametrize("name", [name for name in ZOO if ZOO[name].space not in COUNTED])
def test_its_parameters_are_those_published(name):
    named = ZOO[name]
    network = build(SPACES[named.space], named.arch, named.num_classes)
    assert size_of(network, named.image_shape).params == named.params


def test_names_are_given_once_and_plain():
    twice = {"resnet20": dataclasses.replace(NAMED["resnet20"], space="elsewhere")}
    with pytest.raises(ValueError, match="resnet20: named by resnet and by elsewhere"):
        merged([NAMED, twice])
    with pytest.raises(ValueError, match="ResNet-20: not lower-case"):
        merged([{"ResNet-20": NAMED["resnet20"]}])


def test_an_architecture_is_found_by_its_text(tmp_path, monkeypatch):
    space = SPACES["chain"]
    arch = space.sample(0)
    assert find_architecture(f"chain:{space.to_string(arch)}") == (space, arch, None)
    assert find_architecture(f"chain:{arch.to_json()}") == (space, arch, None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(
        "from search_spaces.chain import chain_space\nSPACE = chain_space(name='own')\n"
    )
    found, own, named = find_architecture(f"own.py:{space.to_string(arch)}")
    assert (found.name, own, named) == ("own", arch, None)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("resnet2", "near: resnet20"),
        ("ResNet-110", "near: resnet110$"),
        ("lenet", "near: lenet5, lenet5_dense"),
        ("desnet121", "near: densenet121"),
        ("xyz", "the named ones are logistic, "),
        ("chian:depth=1", "'chian' is not one of chain"),
        ("none.py:depth=1", "no file none.py"),
    ],
)
def test_what_is_not_found_is_named_in_one_line(text, says):
    with pytest.raises(InputError, match=says) as caught:
        find_architecture(text)
    assert "\n" not in str(caught.value)


def test_an_architecture_of_any_space_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from nas.space import Integer, SearchSpace\n"
        'SPACE = SearchSpace("first", {"depth": Integer(1, 3)})\n'
        'tiny = SearchSpace("tiny", {"width": Integer(1, 3)})\n'
    )
    for text, space, arch in (("depth=2", "first", {"depth": 2}), ("tiny:width=3", "tiny", {"width": 3})):
        found = find_architecture(f"{file}:{text}")
        assert (found[0].name, dict(found[1]), found[2]) == (space, arch, None)
    assert dict(find_architecture(f'{file}:{{"depth": 1}}')[1]) == {"depth": 1}
    with pytest.raises(InputError, match=r"has no wide that is a SearchSpace; say one of .*mine.py:SPACE, "):
        find_architecture(f"{file}:wide:width=3")
