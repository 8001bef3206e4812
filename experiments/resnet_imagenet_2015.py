"""ResNet-18 to 152 and their plain twins on ImageNet: python experiments/resnet_imagenet_2015.py --scale smoke

He et al. 2015 report errors on ImageNet's validation images, ten crops averaged: of the plain networks the deeper one
is the worse (table 2: 18 layers 27.94 %, 34 layers 28.54 %), of the residual ones the better (27.88 %, 25.03 %,
shortcuts without parameters), and so on to 152 layers (table 3: 21.43 % top-1, 5.71 % top-5). (The 3.57 % that won
ILSVRC 2015 is an ensemble of six on the test images.) Here each network is trained once, from one seed: batches of
256, rate 0.1 divided by 10 twice in 120 passes. Everything is fixed beforehand; the test images are read once, at the
end.

Different from the paper: crops of Szegedy et al. 2015 for its scale augmentation (the short side between 256 and
480); no changes of light; divided at one half and three quarters, not where the error stands still; weight decay
leaves biases and normalisation alone.

Table 2 and 3.57 % were found in other texts; table 3 is from memory of the paper, which was not at hand.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from _experiment import Claim, ExperimentConfig, Interval, Number, difference, run
from _imagenet import IMAGENET, Network, Scale, Trained, enlarged, train_all

CLAIM = Claim(
    experiment="resnet_imagenet_2015",
    paper="He, Zhang, Ren, Sun: Deep residual learning for image recognition, CVPR 2016 (arXiv 1512.03385, 2015)",
    where="tables 2 and 3",
    says="ImageNet top-1 error, ten crops: plain networks 27.94 % (18 layers) and 28.54 % (34), residual ones 27.88 % "
    "and 25.03 %, down to 21.43 % of ResNet-152",
    hardware_hours="600,000 steps of 256 images on eight GPUs; hours not stated",
    numbers=(
        Number("plain_18", "plain-18, ten crops, ImageNet top-1 error, %", 27.94),
        Number("plain_34", "plain-34, ten crops, ImageNet top-1 error, %", 28.54),
        Number("residual_18", "ResNet-18, ten crops, ImageNet top-1 error, %", 27.88),
        Number("residual_34", "ResNet-34, ten crops, ImageNet top-1 error, %", 25.03),
        Number("residual_50", "ResNet-50, ten crops, ImageNet top-1 error, %", 22.85),
        Number("residual_101", "ResNet-101, ten crops, ImageNet top-1 error, %", 21.75),
        Number("residual_152", "ResNet-152, ten crops, ImageNet top-1 error, %", 21.43),
        Number("plain_depth", "plain networks: 34 layers less 18, top-1 error, points", side="above"),
        Number("residual_depth", "residual networks: 34 layers less 18, top-1 error, points", side="below"),
    ),
)

OPTION_A = {"shortcut": "A"}
PAIRS = (
    Network("plain_18", "plain-18", "plain18", top1=27.94),
    Network("plain_34", "plain-34", "plain34", top1=28.54),
    Network("residual_18", "ResNet-18", "resnet18", OPTION_A, top1=27.88),
    Network("residual_34", "ResNet-34", "resnet34", OPTION_A, top1=25.03, top5=7.76),
)
DEEP = (
    Network("residual_50", "ResNet-50", "resnet50", top1=22.85, top5=6.71),
    Network("residual_101", "ResNet-101", "resnet101", top1=21.75, top5=6.05),
    Network("residual_152", "ResNet-152", "resnet152", top1=21.43, top5=5.71),
)
SCALES = {
    "smoke": Scale((PAIRS[0], PAIRS[2]), enlarged(32, 640), 1, changes={"width": 8, "batch_size": 64}),
    "cpu": Scale(PAIRS, enlarged(64, 20_000), 6, changes={"width": 16, "batch_size": 128}),
    "paper": Scale((*PAIRS, *DEEP), IMAGENET, 120, evaluation="ten_crop"),
}


@dataclasses.dataclass(frozen=True)
class Config(ExperimentConfig):
    """Train plain and residual networks of ImageNet's size; errors in table.md."""

    seed: int = 0
    """of initial weights, order of images and augmentation"""


def main(config: Config) -> None:
    train_all(config, __file__, CLAIM, SCALES[config.scale], numbers, config.seed)


def numbers(done: Mapping[str, Trained]) -> dict[str, Interval]:
    """Top-1 errors, and what the deeper network of a pair has more where both were trained."""
    found = {key: one.top1 for key, one in done.items()}
    for kind in ("plain", "residual"):
        if f"{kind}_34" in found:
            found[f"{kind}_depth"] = difference(found[f"{kind}_34"], found[f"{kind}_18"])
    return found


if __name__ == "__main__":
    run(main, compute=True)
