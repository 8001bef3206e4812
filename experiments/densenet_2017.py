"""Dense connections and bottlenecks on CIFAR-10, and DenseNets on ImageNet: python experiments/densenet_2017.py

Huang et al. 2017 report, on CIFAR-10 with crops and mirror images (table 2, "C10+"), a test error of 5.24 % for
DenseNet of 40 layers, growth rate 12 (1.0 M parameters), and of 4.51 % for DenseNet-BC of 100 layers, growth rate 12,
which with bottlenecks and compression has fewer (0.8 M); on ImageNet (table 3) validation errors of DenseNet-121, 169
and 201, with one crop and with ten. Here these networks are trained from one seed each with the published recipe:
batches of 64, rate 0.1 divided by 10 at one half and three quarters of 300 epochs on CIFAR-10; batches of 256,
divided at 30 and 60 of 90 epochs on ImageNet. Everything is fixed beforehand; the test images are read once, at the
end.

``--data cifar`` (the default) is table 2, ``--data imagenet`` table 3; the latter's networks are trained at smoke and
cpu scale on CIFAR-10 enlarged, through the same input from files. On ImageNet the crops are Szegedy et al. 2015's.

4.51 % is in the project's notes; all other published numbers are from memory of the paper, which was not at hand.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from _experiment import Claim, ExperimentConfig, Interval, Number, difference, run
from _imagenet import IMAGENET, Network, Scale, Trained, enlarged, train_all

from nas.data.config import DataConfig

CLAIM = Claim(
    experiment="densenet_2017",
    paper="Huang, Liu, van der Maaten, Weinberger: Densely connected convolutional networks, CVPR 2017",
    where="tables 2 and 3",
    says="CIFAR-10 test error of DenseNet-BC (100 layers, growth 12) 4.51 %, of DenseNet (40, growth 12) 5.24 %, "
    "with more parameters; ImageNet, one crop: 25.02 % (DenseNet-121), 23.80 % (169), 22.58 % (201)",
    hardware_hours="not stated",
    numbers=(
        Number("bc100", "DenseNet-BC, 100 layers, growth 12, CIFAR-10 test error, %", 4.51),
        Number("plain40", "DenseNet, 40 layers, growth 12, CIFAR-10 test error, %", 5.24),
        Number("bc_gain", "DenseNet-BC less DenseNet, CIFAR-10 test error, points", side="below"),
        Number("top1_121", "DenseNet-121, ImageNet top-1 error, %", 25.02),
        Number("top5_121", "DenseNet-121, ImageNet top-5 error, %", 7.71),
        Number("top1_169", "DenseNet-169, ImageNet top-1 error, %", 23.80),
        Number("top1_201", "DenseNet-201, ImageNet top-1 error, %", 22.58),
    ),
)

PADDED = ("augmentation=crop+flip",)
BC, PLAIN = (
    Network("bc100", "DenseNet-BC", "densenetbc100", top1=4.51, hyper=PADDED),
    Network("plain40", "DenseNet", "densenet40", top1=5.24, hyper=PADDED),
)
DEEP = (
    Network("121", "DenseNet-121", "densenet121", top1=25.02, top5=7.71),
    Network("169", "DenseNet-169", "densenet169", top1=23.80, top5=6.85),
    Network("201", "DenseNet-201", "densenet201", top1=22.58, top5=6.34),
)


def shorter(network: Network, layers: tuple[int, ...], **changes: int) -> Network:
    """With so many layers a block."""
    blocks = {f"layers_{stage}": count for stage, count in enumerate(layers, 1)}
    label = f"{network.label}, {'-'.join(map(str, layers))} layers a block"
    return dataclasses.replace(network, label=label, changes={**blocks, **changes})


# A layer of BC has two convolutions: 4 a block are as deep as 8 of the plain network.
SMOKE = (shorter(BC, (2, 2, 2), growth=8), shorter(PLAIN, (4, 4, 4), growth=4))
SMALL = (shorter(BC, (8, 8, 8)), shorter(PLAIN, (6, 6, 6)))
TINY = {"width": 16, "growth": 8, "batch_size": 64}
SCALES = {
    ("cifar", "smoke"): Scale(SMOKE, DataConfig("cifar10", subset=1000), 1),
    ("cifar", "cpu"): Scale(SMALL, DataConfig("cifar10", subset=20_000), 8),
    ("cifar", "paper"): Scale((BC, PLAIN), DataConfig("cifar10"), 300),
    ("imagenet", "smoke"): Scale((shorter(DEEP[0], (1, 2, 2, 1)),), enlarged(64, 640), 1, changes=TINY),
    ("imagenet", "cpu"): Scale(
        (shorter(DEEP[0], (3, 6, 12, 8)), shorter(DEEP[1], (3, 6, 16, 16))),
        enlarged(64, 20_000),
        6,
        changes=TINY,
    ),
    ("imagenet", "paper"): Scale(DEEP, IMAGENET, 90, ("schedule=step_2",)),
}


@dataclasses.dataclass(frozen=True)
class Config(ExperimentConfig):
    """Train DenseNets of table 2 (CIFAR-10) or of table 3 (ImageNet); their errors in table.md."""

    data: Literal["cifar", "imagenet"] = "cifar"
    """which table"""
    seed: int = 0
    """of initial weights, order of images and augmentation"""


def main(config: Config) -> None:
    train_all(config, __file__, CLAIM, SCALES[config.data, config.scale], numbers, config.seed)


def numbers(done: Mapping[str, Trained]) -> dict[str, Interval]:
    """Of table 2, or of those of table 3 that were trained."""
    if "bc100" in done:
        bc, plain = done["bc100"].top1, done["plain40"].top1
        return {"bc100": bc, "plain40": plain, "bc_gain": difference(bc, plain)}
    found = {f"top1_{key}": one.top1 for key, one in done.items()}
    return found | {"top5_121": done["121"].top5}


if __name__ == "__main__":
    run(main, compute=True)
