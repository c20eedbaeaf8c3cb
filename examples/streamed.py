"""Data that do not fit into memory: a function that returns their batches, called anew for each pass over them.

The data lie on the disk in several files. A few batches are in memory at a time, read while the model computes. Where
all of them fit, they are read once and kept.

    python examples/streamed.py

prints the sharpness, searched on a part of the samples and evaluated on all of them.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

import lbgap

FEATURES, CLASSES = 32, 4
Batches = Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]]


def write(folder: Path, files: int, count: int) -> None:
    """Make samples up, a file at a time."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((CLASSES, FEATURES))
    for number in range(files):
        labels = rng.integers(CLASSES, size=count)
        inputs = centres[labels] + 2 * rng.standard_normal((count, FEATURES))
        np.savez(folder / f"{number:04}.npz", inputs=inputs.astype(np.float32), labels=labels)


def reader(folder: Path, batch_size: int) -> Batches:
    """A function that reads them all, in the same order each time."""

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for path in sorted(folder.glob("*.npz")):
            with np.load(path) as file:
                inputs, labels = file["inputs"], file["labels"]
            for start in range(0, len(inputs), batch_size):
                yield inputs[start : start + batch_size], labels[start : start + batch_size]

    return batches


def main(folder: Path, files: int = 8, count: int = 2000) -> tuple[nn.Module, Batches, lbgap.Sharpness]:
    """Write, train, measure, and print what was found."""
    torch.manual_seed(0)
    write(folder, files, count)
    batches = reader(folder, batch_size=500)
    model = nn.Sequential(nn.Linear(FEATURES, 32), nn.ReLU(), nn.Linear(32, CLASSES))
    adam = torch.optim.Adam(model.parameters(), lr=0.01)
    for inputs, labels in batches():
        adam.zero_grad()
        nn.functional.cross_entropy(model(torch.from_numpy(inputs)), torch.from_numpy(labels)).backward()
        adam.step()

    found = lbgap.fast_sharpness(model, batches, epsilon=1e-3, restarts=2, samples=count)
    print(found)
    return model, batches, found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        main(Path(made))
