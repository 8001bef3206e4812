"""torch's DataLoader with torchvision's transforms over class folders: a process of scripts/bench_input.py.

Prints the images a second. Arguments: folder, size, batch, processes, seconds, colour, warm batches.
"""

from __future__ import annotations

import itertools
import sys
import time


def main(folder: str, size: int, batch: int, workers: int, seconds: float, colour: float, warm: int) -> None:
    import torch  # pyright: ignore[reportMissingImports]
    from torchvision import datasets, transforms  # pyright: ignore[reportMissingImports]

    torch.manual_seed(0)
    steps = [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()]
    if colour:
        steps.append(transforms.ColorJitter(colour, colour, colour))
    images = datasets.ImageFolder(folder, transforms.Compose([*steps, transforms.PILToTensor()]))
    endless = torch.utils.data.RandomSampler(images, replacement=True, num_samples=10**9)
    loader = torch.utils.data.DataLoader(images, batch, sampler=endless, num_workers=workers)
    batches = iter(loader)
    for _ in itertools.islice(batches, warm):
        pass
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        count += len(next(batches)[1])
    print(count / (time.perf_counter() - began), flush=True)


if __name__ == "__main__":
    _, of, side, images, processes, length, factors, ahead = sys.argv
    main(of, int(side), int(images), int(processes), float(length), float(factors), int(ahead))
