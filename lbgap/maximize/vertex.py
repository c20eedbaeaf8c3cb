"""Vertex ascent: Frank-Wolfe with a full step, ``y <- x + r sign(grad f(y))``, keeping the best point."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lbgap.maximize.climb import Climb, Maximum, Visited, starting_point
from lbgap.objective import Objective
from lbgap.region import Box

ITERATIONS = 20
TOLERANCE = 5e-4
NO_GRADIENT = "could not move: the gradient is exactly zero; try restarts, or precision='float64'"
FIXED = "converged after {} gradients: the point is the vertex that its own gradient points to"
SMALL = "converged after {} gradients: the next vertex promises less than {:g} % more"
ENDED = "stopped after {} gradients, still rising: more iterations would find a larger value"


def maximise(
    objective: Objective,
    region: Box,
    *,
    start: Tensor | None = None,
    base: float = -math.inf,
    iterations: int = ITERATIONS,
    tolerance: float = TOLERANCE,
    visited: Visited | None = None,
) -> Maximum:
    """Jump from vertex to vertex of the box along the gradient.

    Near a minimizer the gradient is tiny and line searches hardly move; its signs are as good as ever. Every
    iteration is one gradient. It stops when the Frank-Wolfe gap, which is what the next vertex gains to first
    order, or the last gain itself falls under ``tolerance`` times the rise so far.

    Args:
        objective: What to maximise.
        region: Where.
        start: ``(n,)``; the centre by default.
        base: The loss at the centre, from which the rise counts.
        iterations: Gradients at most.
        tolerance: Share of the rise that is not worth another gradient.
        visited: Called with ``(evaluations, value)`` of every point.

    Returns:
        The best point visited.

    Raises:
        FloatingPointError: The loss is NaN or infinite at the start.
    """
    climb = Climb(objective, region, visited)
    point = starting_point(region, start)
    gradient = torch.empty_like(point)
    for iteration in range(1, iterations + 1):
        try:
            value = float(objective.direction(point, out=gradient)[0])
        except FloatingPointError as error:
            if iteration == 1:
                raise
            return climb.finish(f"stopped at a vertex without a finite loss: {error}")
        gain = value - climb.value
        better = climb.visit(point, value)
        gap, flips = region.vertex(point, gradient, out=point).tolist()
        climb.gap = gap if better else climb.gap
        if flips == 0:
            return climb.finish(FIXED.format(iteration) if gradient.any() else NO_GRADIENT)
        if min(gap, gain) < tolerance * (climb.value - base):
            return climb.finish(SMALL.format(iteration, 100 * tolerance))
    return climb.finish(ENDED.format(iterations))
