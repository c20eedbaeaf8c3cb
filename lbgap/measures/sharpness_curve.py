"""Sharpness against the size of the box."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Unpack

import torch
from torch import nn

from lbgap.checks import several, shown
from lbgap.maximize.region import check_box
from lbgap.measures.call import Search, as_objective, separate
from lbgap.measures.sharpness import Sharpness, fast_sharpness
from lbgap.objective import Objective
from lbgap.objective.coordinates import RandomManifold
from lbgap.result import Result
from lbgap.status import status

EPSILONS = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class SharpnessCurve(Result):
    """phi at each of several epsilons: certified lower bounds that never fall.

    Attributes:
        value: phi in percent at the largest epsilon, to which ``status`` belongs, too.
        epsilons: Sizes of the box, increasing.
        values: phi in percent at each.
        results: The whole result at each.
    """

    epsilons: tuple[float, ...]
    values: tuple[float, ...]
    results: tuple[Sharpness, ...]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the points in parameter space, ready for JSON; NaN and infinity become None."""
        return {"lower_bound": True, **super().to_dict()}

    def _headline(self) -> str:
        return f"sharpness curve: certified lower bounds up to phi >= {self.value:.6g} %"

    def _numbers(self) -> list[str]:
        return [f"epsilon {e:<8g} phi >= {v:.6g} %" for e, v in zip(self.epsilons, self.values, strict=True)]


def sharpness_curve(
    model: nn.Module | Objective,
    data: Any = None,
    epsilons: Iterable[float] = EPSILONS,
    **search: Unpack[Search],
) -> SharpnessCurve:
    """Measure phi (Keskar et al. 2016, Metric 2.1) at several epsilons, in the full space.

    Each epsilon is searched from the minimizer and from the best point of the one before, stretched to the larger box.
    A larger box contains the smaller one, so what was found there counts here too: phi never falls along the curve.

    Args:
        model: As in :func:`lbgap.fast_sharpness`; an :class:`~lbgap.objective.Objective` in place of model and data.
        data: The data; None with an objective.
        epsilons: Sizes of the box, above zero and increasing.
        **search: Other keywords of :func:`lbgap.fast_sharpness`, without ``epsilon``, ``start`` and the random
            manifolds'.

    Returns:
        phi at each epsilon; :func:`lbgap.plotting.plot_curves` draws it.

    Raises:
        ValueError: ``epsilons`` is empty or does not increase; or as :func:`lbgap.fast_sharpness`.
        TypeError: As :func:`lbgap.fast_sharpness`.

    Example:
        >>> import torch, lbgap
        >>> data = torch.eye(2), torch.tensor([0, 1])
        >>> curve = lbgap.sharpness_curve(torch.nn.Linear(2, 2), data, epsilons=(1e-3, 1e-2))
        >>> curve.values[0] <= curve.values[1]
        True
    """
    began = time.perf_counter()
    listed = several(epsilons)
    if listed is None:
        raise TypeError(f"epsilons must be several numbers such as (5e-4, 1e-3), got {shown(epsilons)}")
    sizes = tuple(check_box("keskar", size, torch.float64) for size in listed)
    if not sizes or any(b <= a for a, b in itertools.pairwise(sizes)):
        raise ValueError(f"epsilons must be one or more numbers that increase, got {sizes}: sort them")
    own, rest = separate("sharpness_curve", search)
    objective = as_objective(model, data, own)
    if isinstance(objective.coordinates, RandomManifold):
        raise ValueError("a curve is one of the full space: pass the objective that the random manifold was made of")
    found: list[Sharpness] = []
    for size in sizes:
        start = None
        if found:
            centre = objective.theta
            start = centre + (size / found[-1].settings["epsilon"]) * (found[-1].point - centre)
        now = fast_sharpness(objective, epsilon=size, start=start, **rest)
        found.append(now if not found or now.max_loss >= found[-1].max_loss else _from_smaller(now, found[-1]))
    last = found[-1]
    shared = {name: each for name, each in last.settings.items() if name != "start"}
    return SharpnessCurve(
        value=last.value,
        status=last.status,
        settings={**shared, "measure": "sharpness_curve", "epsilon": list(sizes)},
        epsilons=sizes,
        values=tuple(result.value for result in found),
        results=tuple(found),
        evaluations=sum(result.evaluations for result in found),
        seconds=time.perf_counter() - began,
    )


def _from_smaller(now: Sharpness, before: Sharpness) -> Sharpness:
    """The result in a larger box where the smaller one's point is still the best known."""
    kept = ("value", "values", "max_loss", "point", "history", "searched")
    ended = status("smaller_box", ended=now.status)
    # The gap known there is that of the smaller box.
    return dataclasses.replace(now, status=ended, gap=math.nan, **{name: getattr(before, name) for name in kept})
