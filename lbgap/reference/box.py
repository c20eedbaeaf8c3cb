"""Plain-PyTorch twins of the box ops."""

from __future__ import annotations

import torch
from torch import Tensor


def _bounds(centre: Tensor, absolute: float, relative: float) -> tuple[Tensor, Tensor]:
    half_width = absolute + relative * centre.abs()
    return centre - half_width, centre + half_width


def box_project(y: Tensor, centre: Tensor, absolute: float, relative: float, out: Tensor) -> None:
    """Project ``y`` onto the box; see :func:`lbgap.ops.box_project`."""
    lower, upper = _bounds(centre, absolute, relative)
    out.copy_(torch.clamp(y, lower, upper))


def box_step(
    y: Tensor,
    direction: Tensor,
    alpha: float,
    centre: Tensor,
    absolute: float,
    relative: float,
    out: Tensor,
) -> Tensor:
    """Step from ``y`` along ``direction`` and project; see :func:`lbgap.ops.box_step`."""
    lower, upper = _bounds(centre, absolute, relative)
    free = y + alpha * direction
    new = torch.clamp(free, lower, upper)
    moved = new.double() - y.double()
    squared_length = moved.square().sum(-1)
    slope = (direction.double() * moved).sum(-1)
    clipped = (new != free).sum(-1, dtype=torch.float64)
    out.copy_(new)
    return torch.stack([squared_length, slope, clipped], dim=-1)


def box_vertex(y: Tensor, gradient: Tensor, centre: Tensor, absolute: float, relative: float, out: Tensor) -> Tensor:
    """Go to the vertex furthest along ``gradient``; see :func:`lbgap.ops.box_vertex`."""
    lower, upper = _bounds(centre, absolute, relative)
    vertex = torch.where(gradient > 0, upper, torch.where(gradient < 0, lower, y))
    vertex = torch.where(gradient.isnan(), gradient, vertex)
    gap = (gradient.double() * (vertex.double() - y.double())).sum(-1)
    flips = (vertex != y).sum(-1, dtype=torch.float64)
    out.copy_(vertex)
    return torch.stack([gap, flips], dim=-1)
