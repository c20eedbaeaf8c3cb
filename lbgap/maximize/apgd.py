"""APGD: projected sign ascent with momentum that halves its own step (Croce and Hein 2020, Algorithm 1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lbgap.maximize.climb import Climb, Maximum, Visited, starting_point
from lbgap.maximize.vertex import ENDED, FIXED, NO_GRADIENT
from lbgap.objective import Objective
from lbgap.region import Box

ITERATIONS = 30
MOMENTUM = 0.75
NEEDED_INCREASES = 0.75
FIRST_PERIOD, SHORTER_BY, SHORTEST_PERIOD = 0.22, 0.03, 0.06
FIRST_STEP = 2.0  # half-widths


def checkpoints(iterations: int) -> list[int]:
    """The iterations at which the step may be halved: w_j = ceil(p_j N), section 3.2 of the paper."""
    previous, share, found = 0.0, FIRST_PERIOD, []
    while share < 1:
        found.append(math.ceil(share * iterations))
        previous, share = share, share + max(share - previous - SHORTER_BY, SHORTEST_PERIOD)
    return found


def maximise(
    objective: Objective,
    region: Box,
    *,
    start: Tensor | None = None,
    base: float = -math.inf,
    iterations: int = ITERATIONS,
    visited: Visited | None = None,
) -> Maximum:
    """Climb by steps of ``step * r * sign(g)`` (r the half-widths), the first of twice the half-width.

    At each checkpoint the step is halved, and the search goes back to the best point, if fewer than 75 % of the
    iterations since the last one went up, or if neither step nor best value changed.

    Args:
        objective: What to maximise.
        region: Where.
        start: ``(n,)``; the centre by default.
        base: The loss at the centre; not used.
        iterations: Gradients at most.
        visited: Called with ``(evaluations, value)`` of every point.

    Returns:
        The best point visited.

    Raises:
        FloatingPointError: The loss is NaN or infinite at the start.
    """
    climb = Climb(objective, region, visited)
    point = starting_point(region, start)
    half_width = region.half_width()
    previous, gradient, best_gradient, move, new = (torch.empty_like(point) for _ in range(5))
    halvings = checkpoints(iterations)
    step, last, increases = FIRST_STEP, -math.inf, 0
    at_checkpoint = (step, -math.inf)
    for iteration in range(1, iterations + 1):
        try:
            value = float(objective.direction(point, out=gradient)[0])
        except FloatingPointError as error:
            if iteration == 1:
                raise
            return climb.finish(f"stopped at a point without a finite loss: {error}")
        better = climb.visit(point, value)
        gap = float(region.vertex(point, gradient, out=new)[0])
        if better:
            climb.gap = gap
            best_gradient.copy_(gradient)
        increases += value > last
        last = value
        momentum = iteration > 1
        if iteration in halvings:
            period = iteration - max([w for w in halvings if w < iteration], default=0)
            if increases < NEEDED_INCREASES * period or at_checkpoint == (step, climb.value):
                # Croce and Hein keep the momentum of the point that is left; here it starts afresh.
                step, last, momentum = step / 2, climb.value, False
                point.copy_(climb.best)
                gradient.copy_(best_gradient)
            at_checkpoint, increases = (step, climb.value), 0
        torch.sign(gradient, out=move).mul_(half_width)
        moved = region.step(point, move, step, out=new)
        if momentum:
            torch.sub(new, point, out=move).mul_(MOMENTUM)
            move.add_(point, alpha=1 - MOMENTUM).sub_(previous, alpha=1 - MOMENTUM)
            moved = region.step(point, move, 1.0, out=new)
        if float(moved[0]) == 0:
            return climb.finish(FIXED.format(iteration) if gradient.any() else NO_GRADIENT)
        previous, point, new = point, new, previous
    return climb.finish(ENDED.format(iterations))
