"""MNIST-1D, generated."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import gaussian_filter1d

from lbgap.checks import is_whole, whole
from lbgap.datasets._shared import generator
from lbgap.problem.samples import Data, Split

_Floats: TypeAlias = npt.NDArray[np.float64]

# Heights of the ten 12-point curves of MNIST-1D, digit by digit (greydanus/mnist1d, Apache-2.0).
_TEMPLATES = (
    (5, 6, 6.5, 6.75, 7, 7, 7, 7, 6.75, 6.5, 6, 5),
    (5, 3, 3, 3.4, 3.8, 4.2, 4.6, 5, 5.4, 5.8, 5, 5),
    (5, 6, 6.5, 6.5, 6, 5.25, 4.75, 4, 3.5, 3.5, 4, 5),
    (5, 6, 6.5, 6.5, 6, 5, 5, 6, 6.5, 6.5, 6, 5),
    (5, 4.4, 3.8, 3.2, 2.6, 2.6, 5, 5, 5, 5, 5, 5),
    (5, 3, 3, 3, 3, 5, 6, 6.5, 6.5, 6, 4.5, 5),
    (5, 4, 3.5, 3.25, 3, 3, 3, 3, 3.25, 3.5, 4, 5),
    (5, 7, 7, 6.6, 6.2, 5.8, 5.4, 5, 4.6, 4.2, 5, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 4, 3.5, 3.5, 4, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 5, 5, 4.7, 4.3, 5),
)
_PADDING = (36, 60)  # zeros appended, both ends included
_SCALE, _SHEAR, _TRANSLATION = 0.4, 0.75, 48
_CORRELATED_NOISE, _NOISE_SIGMA, _IID_NOISE = 0.25, 2, 0.02
_LENGTH = 40


def mnist1d(samples: int = 5000, seed: int = 42) -> Data:
    """Generate MNIST-1D: ten short curves, padded, scaled, moved, sheared and drowned in noise.

    Follows the construction and the constants of Greydanus and Kobak, "Scaling Down Deep Learning with
    MNIST-1D", arXiv 2011.14439, and of their repository ``greydanus/mnist1d`` (Apache-2.0), from which the
    template values are taken as data. The random draws are not those of the published file: the samples
    agree in distribution, not bit for bit. The global random state is neither read nor changed.

    Args:
        samples: How many samples in all, at least 10; the first 80 % (rounded down) train, the rest test.
        seed: Seed of the draws, not negative. The same seed gives the same samples.

    Returns:
        Inputs ``(n, 40)`` float32, standardised by the mean and deviation of all samples, and targets
        ``(n,)`` int64, of classes that differ in size by at most one sample over both splits.

    Raises:
        ValueError: Too few samples, or a negative seed.
    """
    if is_whole(samples) and samples < len(_TEMPLATES):
        raise ValueError(f"mnist1d needs at least {len(_TEMPLATES)} samples, got {samples}: one of each class")
    samples = whole("samples", samples, len(_TEMPLATES))
    rng = generator(seed)
    labels = rng.permutation(np.arange(samples) % len(_TEMPLATES))
    curves = _distort(labels, rng)
    curves = (curves - curves.mean()) / curves.std()
    inputs, targets = torch.from_numpy(curves.astype(np.float32)), torch.from_numpy(labels.astype(np.int64))
    cut = samples * 4 // 5
    return Data("mnist1d", Split(inputs[:cut], targets[:cut]), Split(inputs[cut:], targets[cut:]), len(_TEMPLATES))


def _distort(labels: npt.NDArray[np.integer[Any]], rng: np.random.Generator) -> _Floats:
    """One distorted curve ``(n, 40)`` for each label, in the order of operations of the original."""
    heights = np.asarray(_TEMPLATES)
    points = heights.shape[1]
    heights = (heights - heights[:, :1]) / heights.std(1, keepdims=True) / 6
    heights = np.pad(heights, ((0, 0), (0, _PADDING[1])))
    n, length = len(labels), heights.shape[1]

    # Pad by a random number of zeros, and stretch the result to the longest length.
    padded = points + rng.integers(_PADDING[0], _PADDING[1], size=(n, 1), endpoint=True)
    position = np.linspace(0, 1, length) * (padded - 1)
    left = np.minimum(position.astype(np.int64), length - 2)
    share, row = position - left, labels[:, None]
    curves = (1 - share) * heights[row, left] + share * heights[row, left + 1]
    curves *= 1 + _SCALE * (rng.random((n, 1)) - 0.5)

    # Roll; correlated noise then fills what was padding, and iid noise covers all.
    source = (np.arange(length) - rng.integers(_TRANSLATION, size=(n, 1))) % length
    curves = np.take_along_axis(curves, source, axis=1)
    signal = np.take_along_axis(position < points, source, axis=1)
    hum = gaussian_filter1d(_CORRELATED_NOISE * rng.standard_normal((n, length)), _NOISE_SIGMA, axis=1)
    curves = np.where(signal, curves, hum) + _IID_NOISE * rng.standard_normal((n, length))
    curves -= _SHEAR * (rng.random((n, 1)) - 0.5) * np.linspace(-0.5, 0.5, length)

    position = np.linspace(0, length - 1, _LENGTH)
    left = np.minimum(position.astype(np.int64), length - 2)
    share = position - left
    return np.asarray((1 - share) * curves[:, left] + share * curves[:, left + 1])
