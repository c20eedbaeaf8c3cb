"""A line search for the strong Wolfe conditions (Nocedal and Wright 2006, algorithms 3.5 and 3.6)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

DECREASE, CURVATURE = 1e-3, 0.9  # as in L-BFGS-B
GROWTH = (1.1, 4.0)  # of a step that is still falling steeply
MARGIN = 0.1  # of an interval, that a step inside it keeps from its ends
EVALUATIONS = 20


@dataclass(frozen=True)
class Trial:
    """The function along the line at one step: its value and its derivative."""

    step: float
    value: float
    slope: float


def line_search(
    evaluate: Callable[[float], Trial], start: Trial, step: float, longest: float, noise: float = 0.0
) -> Trial | None:
    """Find a step of sufficient decrease at which the slope has fallen to a part of what it was.

    Args:
        evaluate: The function at a step.
        start: The function at step 0; its slope is negative.
        step: The first one to try.
        longest: No step may be longer; where the function still falls there, it is taken.
        noise: Values are known to this: there the slope decides.

    Returns:
        The step taken, the best known where 20 evaluations did not meet the conditions, or None where no lower
        value was found.
    """

    def too_high(now: Trial) -> bool:
        return not now.value <= start.value + DECREASE * now.step * start.slope + noise

    def flat(now: Trial) -> bool:
        return abs(now.slope) <= -CURVATURE * start.slope

    low, high, step = start, None, min(step, longest)
    for _ in range(EVALUATIONS):
        now = evaluate(step)
        if too_high(now) or now.value > low.value + noise:
            high = now
        elif flat(now) or (high is None and step >= longest and now.slope < 0):
            return now
        elif high is None:
            low, high = (now, low) if now.slope >= 0 else (now, None)
        else:
            low, high = now, low if now.slope * (high.step - low.step) >= 0 else high
        if high is None:
            grown = _cubic(start, low)
            shortest, furthest = (factor * low.step for factor in GROWTH)
            step = min(grown if shortest <= grown <= furthest else furthest, longest)
        else:
            inside, width = _cubic(low, high), abs(high.step - low.step)
            first = min(low.step, high.step)
            near = min(max(inside, first + MARGIN * width), first + (1 - MARGIN) * width)
            step = first + width / 2 if math.isnan(inside) else near
            if not first < step < first + width:
                break
    return low if low.step > 0 else None


def _cubic(a: Trial, b: Trial) -> float:
    """Where the cubic with these values and slopes has its minimum; NaN where it has none (eq. 3.59)."""
    if a.step == b.step:
        return math.nan
    d = a.slope + b.slope - 3 * (a.value - b.value) / (a.step - b.step)
    square = d * d - a.slope * b.slope
    if not 0 <= square < math.inf:
        return math.nan
    root = math.copysign(math.sqrt(square), b.step - a.step)
    under = b.slope - a.slope + 2 * root
    return b.step - (b.step - a.step) * (b.slope + root - d) / under if under else math.nan
