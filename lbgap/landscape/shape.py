"""How high the barrier between two minimizers is, and how wide each of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lbgap.result import plain
from lbgap.status import Status, status


@dataclass(frozen=True)
class Shape:
    """What a path through two minimizers, at 0 and at 1, says about them; lengths are in units of alpha.

    Attributes:
        barrier: How far the loss between them rises above the straight line between their own losses, at the points
            evaluated (Entezari et al. 2022, arXiv 2110.06296, equation 1). Where both losses are equal this is the
            barrier of Frankle et al. 2020 (arXiv 1912.05671), who subtract their mean: zero, or close to it, where the
            minimizers are linearly mode-connected. Infinite where a loss between them overflows; NaN where no point
            between them was evaluated, or the loss of a minimizer is not finite.
        barrier_alpha: Where; 0 if there is no barrier, NaN if it is not known.
        rise: By how much the loss rises within a width.
        small_outer: Width of x_s on the side away from x_l: how far one can go until the loss has risen by ``rise``
            above that of x_s, between two points by interpolation; None where it does not in the range, NaN where
            that of x_s is not finite.
        small_inner: The same on the side of x_l.
        large_inner: Width of x_l on the side of x_s.
        large_outer: The same on the other side.
    """

    barrier: float
    barrier_alpha: float
    rise: float
    small_outer: float | None
    small_inner: float | None
    large_inner: float | None
    large_outer: float | None

    def widths(self) -> str:
        """The widths in words, in units of alpha."""

        def both(left: float | None, right: float | None) -> str:
            return " and ".join("beyond the range" if one is None else f"{one:.4g}" for one in (left, right))

        return (
            f"{both(self.small_outer, self.small_inner)} at 0, {both(self.large_inner, self.large_outer)} at 1 "
            "(left and right)"
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {name: plain(value) for name, value in vars(self).items()}


def shape_of(alphas: Sequence[float], losses: Sequence[float], ends: tuple[float, float], rise: float) -> Shape:
    """Find barrier and widths.

    Args:
        alphas: Where the loss was evaluated, increasing.
        losses: What it is there.
        ends: The losses at 0 and 1.
        rise: For the widths, above zero.
    """
    points = sorted({**dict(zip(alphas, losses, strict=True)), 0.0: ends[0], 1.0: ends[1]}.items())
    between = [(loss - ((1 - a) * ends[0] + a * ends[1]), a) for a, loss in points if 0 < a < 1]
    between = [(math.inf if math.isnan(height) else height, a) for height, a in between]
    known = bool(between) and all(map(math.isfinite, ends))
    barrier, place = max([(0.0, 0.0), *between], key=lambda pair: pair[0]) if known else (math.nan, math.nan)
    up = [(a, loss) for a, loss in points if a >= 0], [(a, loss) for a, loss in points if a >= 1]
    down = [(a, loss) for a, loss in points[::-1] if a <= 0], [(a, loss) for a, loss in points[::-1] if a <= 1]
    widths = [_width(side, rise) for side in (down[0], up[0], down[1], up[1])]
    return Shape(barrier, place, rise, *widths)


def status_of(shape: Shape, losses: Sequence[float]) -> Status:
    """How far the barrier of a path is to be trusted.

    Args:
        shape: Of the path.
        losses: At its points.
    """
    if any(width is not None and math.isnan(width) for width in (shape.small_inner, shape.large_inner)):
        return status("not_finite.minimizer")
    if math.isnan(shape.barrier):
        return status("nothing_between")
    bad = sum(not math.isfinite(loss) for loss in losses)
    return status("not_finite.points" if bad else "complete", bad=bad, points=len(losses))


def _width(points: Sequence[tuple[float, float]], rise: float) -> float | None:
    """How far from the first point the loss first reaches its own there plus ``rise``."""
    (begin, base), before = points[0], points[0]
    if not math.isfinite(base):
        return math.nan
    for point in points[1:]:
        alpha, loss = point
        if not loss < base + rise:
            share = (base + rise - before[1]) / (loss - before[1]) if math.isfinite(loss) else 1.0
            return abs(before[0] + share * (alpha - before[0]) - begin)
        before = point
    return None
