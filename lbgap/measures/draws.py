"""Random draws of measures, the mean of what they give, and the rule that ends it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from lbgap.status import Status, status

FEWEST = 8  # draws before a standard error is believed


def normals(centre: Tensor, seed: int) -> Iterator[Tensor]:
    """Standard normal vectors like ``centre``, without end; the same from any device and, but for rounding, dtype."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randn(centre.shape, generator=generator, dtype=torch.float64, device="cpu").to(centre)


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """The mean of independent draws, two or more, and its standard error."""
    drawn = torch.tensor(values, dtype=torch.float64, device="cpu")
    return float(drawn.mean()), float(drawn.std()) / math.sqrt(len(values))


def share(error: float, value: float) -> float:
    """An error relative to a value; zero of zero."""
    return error / abs(value) if value else math.inf if error else 0.0


def known(values: list[float], relative_error: float | None) -> bool:
    """Whether the mean of draws is known as well as was asked; None asks for all draws."""
    if relative_error is None or len(values) < FEWEST:
        return False
    mean, error = mean_and_error(values)
    return error <= relative_error * abs(mean)


def ended(values: list[float], relative_error: float | None, what: str = "") -> Status:
    """Why a mean of draws, two or more, ended, and how well it is known.

    Args:
        values: The draws.
        relative_error: What was asked for.
        what: Of what the standard error is, where that is not the result's value.
    """
    mean, error = mean_and_error(values)
    draws, percent = len(values), 100 * share(error, mean)
    if known(values, relative_error):
        return status("converged.draws", draws=draws, what=what, percent=percent, asked=100 * (relative_error or 0))
    key = "complete.draws" if relative_error is None else "limit.draws"
    return status(key, draws=draws, what=what, percent=percent)
