"""APGD: projected sign ascent with momentum that halves its own step (Croce and Hein 2020, Algorithm 1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lbgap.maximize.climb import Climb, Listener, Maximum, evaluate, starting_point, stuck
from lbgap.maximize.region import Box
from lbgap.objective import Objective
from lbgap.status import status

ITERATIONS = 30
MOMENTUM = 0.75
NEEDED_INCREASES = 0.75
FIRST_PERIOD, SHORTER_BY, SHORTEST_PERIOD = 22, 3, 6  # per cent of the iterations
FIRST_STEP = 2.0  # half-widths


def checkpoints(iterations: int) -> list[int]:
    """The iterations at which the step may be halved: w_j = ceil(p_j N), section 3.2 of the paper."""
    previous, share, found = 0, FIRST_PERIOD, []
    while share < 100:
        found.append(-(-share * iterations // 100))
        previous, share = share, share + max(share - previous - SHORTER_BY, SHORTEST_PERIOD)
    return found


def maximise(
    objective: Objective,
    region: Box,
    *,
    start: Tensor | None = None,
    base: float | None = None,
    iterations: int = ITERATIONS,
    report: Listener | None = None,
) -> Maximum:
    """Climb by steps of ``step * r * sign(g)`` (r the half-widths), the first of twice the half-width.

    At each checkpoint the step is halved, and the search goes back to the best point, if fewer than 75 % of the
    iterations since the last one went up, or if neither step nor best value changed since then.

    Args:
        objective: What to maximise.
        region: Where.
        start: ``(n,)``; the centre by default.
        base: The loss at the centre; not used.
        iterations: Gradients at most; the point after the last is evaluated too.
        report: Called with ``(evaluations, value)`` of every point.

    Returns:
        The best point visited.

    Raises:
        FloatingPointError: The loss is NaN or infinite at the start.
    """
    climb = Climb(objective, region, report)
    point = starting_point(region, start)
    half_width = region.half_width()
    previous, gradient, best_gradient, move, new = (torch.empty_like(point) for _ in range(5))
    halvings = checkpoints(iterations)
    step, halved, increases, last, best_before = FIRST_STEP, False, 0, math.inf, math.nan
    for iteration in range(iterations):
        exact = start is None and iteration == 0
        try:
            value, gap, flips = evaluate(objective, region, point, gradient, new, rough=not exact)
        except FloatingPointError as error:
            if iteration == 0:
                raise
            return climb.finish(status("not_finite", error=error))
        better = climb.visit(point, value)
        if better:
            climb.gap = gap
            best_gradient.copy_(gradient)
            if flips == 0:
                return climb.finish(stuck(gradient, start, iteration + 1))
        increases += value > last
        last, momentum = value, iteration > 0
        if iteration == 0:
            best_before = value
        elif iteration in halvings:
            period = iteration - max([w for w in halvings if w < iteration], default=0)
            halved = increases < NEEDED_INCREASES * period or (not halved and climb.value == best_before)
            if halved:
                # Croce and Hein keep the momentum of the point that is left; here it starts afresh.
                step, last, momentum = step / 2, climb.value, False
                point.copy_(climb.best)
                gradient.copy_(best_gradient)
            best_before, increases = climb.value, 0
        torch.sign(gradient, out=move).mul_(half_width)
        region.step(point, move, step, out=new)
        if momentum:
            torch.sub(new, point, out=move).mul_(MOMENTUM)
            move.add_(point, alpha=1 - MOMENTUM).sub_(previous, alpha=1 - MOMENTUM)
            region.step(point, move, 1.0, out=new)
        previous, point, new = point, new, previous
    return climb.finish(status("limit.gradients", gradients=iterations), last=point)
