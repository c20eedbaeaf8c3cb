"""Vertex ascent: Frank-Wolfe with a full step, ``y <- x + r sign(grad f(y))``, keeping the best point."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lbgap.maximize.climb import Climb, Listener, Maximum, evaluate, starting_point, stuck
from lbgap.maximize.region import Box
from lbgap.objective import Objective
from lbgap.status import status

ITERATIONS = 20
TOLERANCE = 5e-4


def maximise(
    objective: Objective,
    region: Box,
    *,
    start: Tensor | None = None,
    base: float | None = None,
    iterations: int = ITERATIONS,
    tolerance: float = TOLERANCE,
    report: Listener | None = None,
) -> Maximum:
    """Jump from vertex to vertex of the box along the gradient.

    Near a minimizer the gradient is tiny and line searches hardly move; its signs are as good as ever. Every
    iteration is one gradient. It stops when the Frank-Wolfe gap, which is what the next vertex gains to first
    order, or the last gain itself falls under ``tolerance`` times the rise so far.

    With ``precision="mixed"`` the gradient at the centre is in full precision, since that step chooses the basin and
    the gradient is smallest there. Where bfloat16 ends at a point whose gap still promises more, or where the loss has
    not even doubled, so that its 8 bits resolve the rise to a percent at best, the climb goes on in full precision.

    Args:
        objective: What to maximise.
        region: Where.
        start: ``(n,)``; the centre by default.
        base: The loss at the centre, from which the rise counts; the loss at the start by default.
        iterations: Gradients at most; the vertex after the last is evaluated too.
        tolerance: Share of the rise that is not worth another gradient.
        report: Called with ``(evaluations, value)`` of every point.

    Returns:
        The best point visited.

    Raises:
        FloatingPointError: The loss is NaN or infinite at the start.
    """
    climb = Climb(objective, region, report)
    point = starting_point(region, start)
    gradient, vertex = torch.empty_like(point), torch.empty_like(point)
    rough = objective.mixed
    for iteration in range(1, iterations + 1):
        exact = not rough or (start is None and iteration == 1)
        try:
            value, gap, flips = evaluate(objective, region, point, gradient, vertex, rough=not exact)
        except FloatingPointError as error:
            if iteration == 1:
                raise
            return climb.finish(status("not_finite", error=error))
        base = value if base is None else base
        gain = value - climb.value
        better = climb.visit(point, value)
        if better:
            climb.gap = gap
        point, vertex = vertex, point
        enough = tolerance * (climb.value - base)
        if better and flips == 0:
            ended = stuck(gradient, start, iteration)
        elif gap < enough:
            ended = status("converged.gap", gradients=iteration, percent=100 * tolerance)
        elif gain < enough:
            ended = status("converged.gain", gradients=iteration, percent=100 * tolerance)
        else:
            continue
        if not (rough and (climb.gap > enough or climb.value < 2 * base)):
            return climb.finish(ended)
        rough, climb.value = False, -math.inf  # the best point is evaluated anew
        point.copy_(climb.best)
    return climb.finish(status("limit.gradients", gradients=iterations), last=point)
