"""The handwritten digits that scikit-learn ships."""

from __future__ import annotations

import torch

from lbgap.datasets._shared import generator
from lbgap.problem.samples import Data, Split


def digits(seed: int = 0, test_fraction: float = 0.2) -> Data:
    """Load the 1,797 handwritten digits of 8x8 pixels that scikit-learn ships, shuffled once.

    Source: the test part of "Optical Recognition of Handwritten Digits", UCI repository (Alpaydin and
    Kaynak, 1998), as in ``sklearn.datasets.load_digits``. The split is not stratified.

    Args:
        seed: Seed of the shuffle, not negative. The same seed gives the same split.
        test_fraction: Share of the samples kept for testing, between 0 and 1.

    Returns:
        Inputs ``(n, 64)`` float32 in [0, 1], targets ``(n,)`` int64.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: A fraction that leaves no training or no test sample, or a negative seed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError('digits needs scikit-learn: pip install "lbgap[digits]"') from error
    pixels, labels = load_digits(return_X_y=True)
    held = round(len(labels) * test_fraction) if 0 < test_fraction < 1 else 0
    if not 0 < held < len(labels):
        raise ValueError(f"test_fraction must lie between 0 and 1, got {test_fraction}: try 0.2")
    order = torch.from_numpy(generator(seed).permutation(len(labels)))
    inputs, targets = torch.from_numpy(pixels / 16).float()[order], torch.from_numpy(labels).long()[order]
    return Data("digits", Split(inputs[held:], targets[held:]), Split(inputs[:held], targets[:held]), 10)
