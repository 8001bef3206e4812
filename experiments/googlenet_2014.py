"""GoogLeNet, one network and one crop: python experiments/googlenet_2014.py --scale smoke

Szegedy et al. 2014 won ILSVRC 2014 with a top-5 error of 6.67 %: seven networks averaged over 144 crops each. One
network with one crop has 10.07 % (table 3), and that is what is trained here, with the two auxiliary classifiers of
section 5 and without them. The network has, the paper says, 12 times fewer parameters than AlexNet. Everything is
fixed beforehand; the test images are read once, at the end.

Different from the paper: the rate falls linearly over 100 passes (the paper: by 4 % every 8 epochs, for how long it
does not say); no averaging of weights (Polyak) for the final model; no ensembles, no 144 crops.

6.67 % was found in other texts; 10.07 %, "12 times fewer" and the recipe are from memory of the paper, which was not
at hand. That 12 is counted in another way than here: layer by layer AlexNet has 60,965,224 and GoogLeNet 6,998,552.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from _experiment import Claim, ExperimentConfig, Interval, Number, difference, exactly, run
from _imagenet import CROPS, IMAGENET, Network, Scale, Trained, enlarged, train_all

from search_spaces.zoo import ZOO

CLAIM = Claim(
    experiment="googlenet_2014",
    paper="Szegedy et al.: Going deeper with convolutions, CVPR 2015 (arXiv 1409.4842, 2014)",
    where="table 3, sections 1 and 5",
    says="ImageNet top-5 error of one GoogLeNet with one crop: 10.07 % (seven networks, 144 crops: 6.67 %), with 12 "
    "times fewer parameters than AlexNet",
    hardware_hours="not stated: a few high-end GPUs could do it within a week",
    numbers=(
        Number("top5", "GoogLeNet, one crop, ImageNet top-5 error, %", 10.07),
        Number("fewer", "parameters of AlexNet over those of GoogLeNet", 12, 0, comparable=("cpu", "paper")),
        Number(
            "auxiliary_gain", "with less without auxiliary classifiers, top-1 error, points", side="below"
        ),
    ),
)

LIT = (f"{CROPS}+colour",)
NETWORKS = (
    Network("auxiliary", "GoogLeNet", "googlenet_aux", top5=10.07, hyper=LIT),
    Network("bare", "GoogLeNet, no auxiliary classifiers", "googlenet", hyper=LIT),
)
SCALES = {
    "smoke": Scale(
        NETWORKS, enlarged(64, 320), 1, changes={"scale": 0.125, "stem_width": 8, "batch_size": 32}
    ),
    "cpu": Scale(NETWORKS, enlarged(64, 20_000), 8, changes={"scale": 0.25, "stem_width": 16}),
    "paper": Scale(NETWORKS, IMAGENET, 100),
}


@dataclasses.dataclass(frozen=True)
class Config(ExperimentConfig):
    """Train GoogLeNet with and without its auxiliary classifiers; errors in table.md."""

    seed: int = 0
    """of initial weights, order of images and augmentation"""


def main(config: Config) -> None:
    train_all(config, __file__, CLAIM, SCALES[config.scale], numbers, config.seed)


def numbers(done: Mapping[str, Trained]) -> dict[str, Interval]:
    auxiliary, bare = done["auxiliary"], done["bare"]
    return {
        "top5": auxiliary.top5,
        "fewer": exactly(ZOO["alexnet"].params / ZOO["googlenet"].params),
        "auxiliary_gain": difference(auxiliary.top1, bare.top1),
    }


if __name__ == "__main__":
    run(main, compute=True)
