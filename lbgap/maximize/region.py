"""The region a sharpness is measured in: a box around the parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lbgap import _extension, ops, reference
from lbgap.checks import number

REGIONS = ("keskar", "linf", "adaptive")


@dataclass(frozen=True, eq=False)
class Box:
    """All y with ``|y_i - x_i| <= absolute + relative |x_i|``; bounds are never stored.

    Attributes:
        centre: x, ``(n,)``, float32 or float64.
        absolute: Half-width that every coordinate has.
        relative: Half-width per unit of ``|x_i|``.
        backend: ``"native"`` or ``"torch"``: who runs the ops.
    """

    centre: Tensor
    absolute: float
    relative: float
    backend: str = "torch"

    def half_width(self) -> Tensor:
        """The half-widths, a fresh ``(n,)`` tensor."""
        return self.absolute + self.relative * self.centre.abs()

    def project(self, y: Tensor, out: Tensor) -> None:
        """Project points ``(n,)`` or ``(k, n)`` onto the box; see :func:`lbgap.ops.box_project`."""
        self._op("box_project")(y, self.centre, self.absolute, self.relative, out)

    def step(self, y: Tensor, direction: Tensor, alpha: float, out: Tensor) -> Tensor:
        """Step and project; returns the sums of :func:`lbgap.ops.box_step`."""
        sums: Tensor = self._op("box_step")(y, direction, alpha, self.centre, self.absolute, self.relative, out)
        return sums

    def vertex(self, y: Tensor, gradient: Tensor, out: Tensor) -> Tensor:
        """Go to the vertex along ``gradient``; returns the sums of :func:`lbgap.ops.box_vertex`."""
        sums: Tensor = self._op("box_vertex")(y, gradient, self.centre, self.absolute, self.relative, out)
        return sums

    def excess(self, y: Tensor) -> float:
        """How far a point ``(n,)`` is outside, at most, in units in the last place of its bounds.

        Zero or less is inside, and NaN is infinitely far outside. The half-widths are those that the ops use,
        rounded to the dtype; rounding of ``x -+ r`` may leave a point of the box up to one unit outside.
        """
        if y.numel() == 0:
            return 0.0
        x = self.centre.double()
        r = self.half_width().double()
        # A unit of float32 or float64 at the larger bound; the clamp keeps the next number finite.
        dtype = self.centre.dtype
        largest = (x.abs() + r).to(dtype).clamp(max=torch.finfo(dtype).max / 2)
        unit = torch.nextafter(largest, torch.full_like(largest, torch.inf)).double() - largest.double()
        return float((((y.double() - x).abs() - r) / unit).nan_to_num(torch.inf, torch.inf, -torch.inf).max())

    def _op(self, name: str) -> Callable[..., Any]:
        op: Callable[..., Any] = getattr(ops if self.backend == "native" else reference, name)
        return op


def box(region: str, centre: Tensor, epsilon: float, backend: str = "auto") -> Box:
    """Build the box of a sharpness measure.

    Args:
        region: ``"keskar"``: half-width ``epsilon (|x_i| + 1)``, the set C_epsilon of Keskar et al. 2016,
            Metric 2.1; ``"linf"``: ``epsilon``; ``"adaptive"``: ``epsilon |x_i|``.
        centre: x, ``(n,)``, float32 or float64.
        epsilon: Size of the box, finite and above zero, also once rounded to the dtype of the centre.
        backend: ``"auto"``, ``"native"`` or ``"torch"``.

    Raises:
        ValueError: Unknown region or backend, or ``epsilon`` is not a finite number above zero.
        TypeError: ``epsilon`` is not a number.
    """
    width = check_box(region, epsilon, centre.dtype)
    absolute = 0.0 if region == "adaptive" else width
    relative = 0.0 if region == "linf" else width
    return Box(centre, absolute, relative, _extension.resolve_backend(backend, centre.device))


def check_box(region: str, epsilon: object, dtype: torch.dtype) -> float:
    """Judge what can be judged without a centre; returns ``epsilon``.

    Raises:
        ValueError: Unknown region, or ``epsilon`` is not a finite number above zero, or not in ``dtype``.
        TypeError: ``epsilon`` is not a number.
    """
    if region not in REGIONS:
        raise ValueError(f"region must be one of {', '.join(map(repr, REGIONS))}, got {region!r}")
    width = number(epsilon)
    if width is None:
        raise TypeError(f"epsilon must be a number, got {type(epsilon).__name__}: try 1e-3")
    if not 0 < torch.tensor(width, dtype=dtype, device="cpu").item() < math.inf:
        raise ValueError(f"epsilon must be finite and above zero in {dtype}, got {epsilon}: try 1e-3 or 5e-4")
    return width
