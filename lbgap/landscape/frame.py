"""The affine map from the coordinates of a plane to points of the parameter space."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

SNAP = 1e-12  # of a coefficient
Range = tuple[float, float]


@dataclass(frozen=True)
class Frame:
    """An affine map from coordinates (x, y) to coefficients of three ends.

    Attributes:
        ends: ``(3, n)``: three minimizers, or the centre and two directions.
        origin: Coefficients at (0, 0), ``(3,)`` float64.
        slopes: What they change by along x and y, ``(2, 3)`` float64.
        marks: Name and coordinates of each minimizer; mark i is the point of the i-th unit vector.
        axes: What x and y are, with units, short enough for a figure; distances are Euclidean, of all that may move.
        ranges: Of x and y, unless the caller says otherwise.
        path: Coordinates of the iterates of a trajectory.
        eigenvalues: Along the directions, where they are eigenvectors.
        explained: Shares of the variance, where they are principal components.
        details: What else belongs into the settings.
    """

    ends: Tensor
    origin: Tensor
    slopes: Tensor
    marks: tuple[tuple[str, float, float], ...]
    axes: tuple[str, str]
    ranges: tuple[Range, Range]
    path: tuple[tuple[float, float], ...] | None = None
    eigenvalues: tuple[float, float] | None = None
    explained: tuple[float, float] | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def coefficients(self, points: Tensor) -> Tensor:
        """Coefficients ``(k, 3)`` of points ``(k, 2)``; those that rounding has moved off 0 or 1 are put back."""
        found = self.origin + points @ self.slopes
        nearest = found.round()
        return torch.where((found - nearest).abs() < SNAP, nearest, found)
