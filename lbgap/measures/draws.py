"""Random draws of measures, and the mean of what they give."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor


def normals(centre: Tensor, seed: int) -> Iterator[Tensor]:
    """Standard normal vectors like ``centre``, without end; the same from any device and, but for rounding, dtype."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randn(centre.shape, generator=generator, dtype=torch.float64, device="cpu").to(centre)


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """The mean of independent draws, two or more, and its standard error."""
    drawn = torch.tensor(values, dtype=torch.float64)
    return float(drawn.mean()), float(drawn.std()) / math.sqrt(len(values))
