"""Vertex ascent: Frank-Wolfe with a full step, ``y <- x + r sign(grad f(y))``, keeping the best point."""

from __future__ import annotations

import torch
from torch import Tensor

from lbgap.maximize.climb import Climb, Maximum, Visited, starting_point
from lbgap.objective import Objective
from lbgap.region import Box

ITERATIONS = 8
NO_GRADIENT = "could not move: the gradient is exactly zero; try restarts, or precision='float64'"
FIXED = "converged after {} gradients: the point is the vertex that its own gradient points to"


def maximise(
    objective: Objective,
    region: Box,
    *,
    start: Tensor | None = None,
    iterations: int = ITERATIONS,
    visited: Visited | None = None,
) -> Maximum:
    """Jump from vertex to vertex of the box along the gradient.

    Near a minimizer the gradient is tiny and line searches hardly move; its signs are as good as ever. Every
    iteration is one gradient; it stops as soon as the gradient points to the vertex where it already is, or a
    vertex comes back.

    Args:
        objective: What to maximise.
        region: Where.
        start: ``(n,)``; the centre by default.
        iterations: Gradients at most.
        visited: Called with ``(evaluation, value)`` of every point.

    Returns:
        The best point visited.

    Raises:
        FloatingPointError: The loss is NaN or infinite at the start.
    """
    climb = Climb(objective, region, visited)
    point = starting_point(region, start)
    gradient = torch.empty_like(point)
    seen: set[float] = set()
    for iteration in range(1, iterations + 1):
        try:
            value = float(objective.direction(point, out=gradient)[0])
        except FloatingPointError as error:
            if iteration == 1:
                raise
            return climb.finish(f"stopped at a vertex without a finite loss: {error}")
        better = climb.visit(point, value)
        gap, flips = region.vertex(point, gradient, out=point).tolist()
        climb.gap = gap if better else climb.gap
        if flips == 0:
            return climb.finish(FIXED.format(iteration) if gradient.any() else NO_GRADIENT)
        if value in seen:
            return climb.finish(f"converged after {iteration} gradients: the same vertices come back")
        seen.add(value)
    return climb.finish(f"stopped after {iterations} gradients; more iterations may find a larger value")
