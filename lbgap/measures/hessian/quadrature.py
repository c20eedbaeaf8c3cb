"""Gauss quadratures of a spectrum, and the smooth density of their nodes."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

FALL = 1.25  # two Gaussians one resolution apart: each has fallen by this factor in the middle
NO_WEIGHT = 1e-20  # of a node beyond the end of a Krylov space
TAILS = 6.0  # widths that the grid goes beyond the outermost node


def nodes_and_weights(diagonal: Tensor, off: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the Gauss quadratures of some tridiagonal matrices (Golub and Welsch 1969).

    Args:
        diagonal: ``(k, steps)`` float64.
        off: ``(k, steps - 1)``.

    Returns:
        Two ``(k, steps)`` on the CPU: eigenvalues, and the squared first entries of the eigenvectors.
    """
    matrices = torch.diag_embed(diagonal) + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
    nodes, vectors = torch.linalg.eigh(matrices.cpu())
    return nodes, vectors[:, 0].square()


def sums(
    function: Callable[[Tensor], Tensor], nodes: Tensor, weights: Tensor, known: tuple[float, ...], n: int
) -> Tensor:
    """The sum of a function over all eigenvalues as each probe sees it, ``(probes,)`` float64.

    Args:
        function: From a float64 tensor to one of the same shape, or with more dimensions in front.
        nodes: ``(probes, steps)``, of the matrix on what is orthogonal to the eigenvectors that are known.
        weights: ``(probes, steps)``.
        known: Eigenvalues that count exactly.
        n: Size of the matrix.
    """
    exact = function(torch.tensor(known, dtype=torch.float64, device="cpu")).sum(-1)
    rest = (weights * function(nodes)).sum(-1)
    return exact[..., None] + (n - len(known)) * rest


def extent(nodes: Tensor, weights: Tensor, known: tuple[float, ...]) -> tuple[float, float]:
    """The least and the largest node that has a weight, or eigenvalue that is known."""
    values = [*nodes[weights > NO_WEIGHT].tolist(), *known]
    return min(values), max(values)


def _width(low: float, high: float, steps: int, resolution: float | None) -> float:
    """Standard deviation of the Gaussians."""
    resolution = resolution or max((high - low) / steps, 1e-3 * max(-low, high)) or 1e-3
    return resolution / (2 * math.sqrt(2 * math.log(FALL)))


def smooth(
    nodes: Tensor, weights: Tensor, known: tuple[float, ...], n: int, steps: int, resolution: float | None, points: int
) -> tuple[Tensor, Tensor, Tensor, float, float]:
    """Grid, density, its standard error, the width, and the integral of the error."""
    exact = torch.tensor(known, dtype=torch.float64, device="cpu")
    low, high = extent(nodes, weights, known)
    width = _width(low, high, steps, resolution)
    low, high = low - TAILS * width, high + TAILS * width
    grid = torch.linspace(low, high, points, dtype=torch.float64, device="cpu")

    def gaussians(centres: Tensor) -> Tensor:
        """``(..., points)``: one at each centre."""
        away = (grid - centres[..., None]) / width
        return torch.exp(-away.square() / 2) / (width * math.sqrt(2 * math.pi))

    each = torch.stack([(w[:, None] * gaussians(t)).sum(0) for t, w in zip(nodes, weights, strict=True)])
    each = (1 - len(known) / n) * each + gaussians(exact).sum(0) / n
    error = each.std(0) / math.sqrt(len(each))
    return grid, each.mean(0), error, width, float(torch.trapezoid(error, grid))
