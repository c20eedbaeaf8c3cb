"""The two sides of a direction: a minimizer need not be a cone."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor, nn

from lbgap.checks import moved, positive, several, shown, whole
from lbgap.measures.call import Call, Options, call
from lbgap.measures.draws import normals
from lbgap.measures.hessian.eigenvalues import eigenvalues
from lbgap.objective import Objective
from lbgap.result import Result
from lbgap.status import Status, status
from lbgap.system.progress import Report, check_progress, evaluations_bar

LARGEST = 1 << 26  # numbers in points that are evaluated in one call, at most
LADDER = 13  # distances unless the caller gives them, from a thousandth of |x| to |x|
ROUNDING = 16  # in units of epsilon and of the loss: a rise below it is none


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Asymmetry(Result):
    """The loss on both sides of a minimizer x, along unit vectors d at distances r: ``f(x + r d)`` and ``f(x - r d)``.

    Attributes:
        value: Mean of ``|index|`` over the directions, from 0, the sides are alike, to 1, the loss rises on one only.
        names: Of the directions.
        distances: Ascending, in units of the parameters.
        ahead: ``f(x + r d)`` for each direction and distance; infinite or NaN where it overflows.
        behind: ``f(x - r d)``.
        sharpness_ahead: ``100 (max f - f(x)) / (1 + f(x))`` over the distances up to r, in percent; never falling.
        sharpness_behind: The same behind.
        indices: ``(ahead - behind) / (ahead + behind)`` of the sharpnesses, from -1 to 1; 0 where neither side rises.
        index: Mean of the indices of each direction over the distances at which the loss rises on a side; 0 without.
        base_loss: f(x).
    """

    names: tuple[str, ...]
    distances: tuple[float, ...]
    ahead: tuple[tuple[float, ...], ...]
    behind: tuple[tuple[float, ...], ...]
    sharpness_ahead: tuple[tuple[float, ...], ...]
    sharpness_behind: tuple[tuple[float, ...], ...]
    indices: tuple[tuple[float, ...], ...]
    index: tuple[float, ...]
    base_loss: float

    def _headline(self) -> str:
        return (
            f"asymmetry of a minimizer: {self.value:.6g}, at a loss of {self.base_loss:.6g}, up to a distance of "
            f"{self.distances[-1]:.4g}"
        )

    def _numbers(self) -> list[str]:
        sides = zip(self.names, self.index, self.sharpness_ahead, self.sharpness_behind, strict=True)
        return [f"{name}: index {i:+.3f}, {a[-1]:.4g} % ahead, {b[-1]:.4g} % behind" for name, i, a, b in sides]


def asymmetry(
    model: nn.Module | Objective,
    data: Any = None,
    directions: Mapping[str, Tensor] | None = None,
    *,
    top: int = 3,
    random: int = 3,
    distances: Sequence[float] | None = None,
    seed: int = 0,
    progress: Report = False,
    **options: Unpack[Options],
) -> Asymmetry:
    """Measure how differently the loss rises on the two sides of a minimizer.

    Sharpness as in Metric 2.1 of Keskar et al. 2016 (arXiv 1609.04836), but along one direction and on one side at a
    time; after He, Huang and Yuan 2019, "Asymmetric Valleys" (arXiv 1902.00744). Useful directions are those to another
    minimizer, ``other - x``, and to the point that :func:`lbgap.fast_sharpness` found, ``found.point - x``.

    Args:
        model: Any ``torch.nn.Module``, never changed; or an :class:`~lbgap.objective.Objective`.
        data: ``(inputs, targets)``, a ``Dataset``, a ``DataLoader``, dicts and more (docs/data.md).
        directions: A name and a vector ``(n,)`` for each, in the order of ``Objective.theta``; of any length.
        top: How many eigenvectors of the largest eigenvalues of the Hessian to add, "top 1" and so on. Their signs mean
            nothing: the largest entry is made positive.
        random: How many random directions to add, "random 1" and so on.
        distances: Above zero and increasing; by default 13 from a thousandth of the length of x to that length.
        seed: Of random directions and of the start of the eigenvectors.
        progress: True for bars on standard error, or a function that is called with each
            :class:`~lbgap.system.progress.Progress`.
        options: ``loss``, ``parameters``, ``batch_norm``, ``precision``, ``batch_size``, ``device``, ``backend``,
            ``coupled``, ``judge`` and ``call``, as in :func:`lbgap.fast_sharpness`.

    Returns:
        The losses, the sharpness of each side and the indices.

    Raises:
        ValueError: An argument is out of its range, there is no direction, or one is zero or does not fit.
        TypeError: An argument is of the wrong kind.
        FloatingPointError: The loss is NaN or infinite at the minimizer.

    Example:
        >>> import torch, lbgap
        >>> found = lbgap.asymmetry(torch.nn.Linear(2, 2), (torch.eye(2), torch.tensor([0, 1])), top=1, random=1)
        >>> found.names
        ('top 1', 'random 1')
    """
    top = whole("top", top, 0)
    random = whole("random", random, 0)
    seed = whole("seed", seed, 0)
    check_progress(progress)
    ladder = None if distances is None else _increasing(distances)
    with call("asymmetry", model, data, options) as task:
        chosen = _directions(task, directions or {}, top, random, seed, progress)
        if ladder is None:
            length = float(task.centre.double().norm()) or 1.0
            ladder = [length * 10 ** (-3 + 3 * step / (LADDER - 1)) for step in range(LADDER)]
        base = float(task.objective.loss(task.centre))
        if base <= -1:
            raise ValueError(
                f"sharpness divides by 1 + loss, and the loss at the minimizer is {base:g}: add a constant"
            )
        with evaluations_bar("asymmetry", 2 * len(ladder) * len(chosen), progress) as report:
            sides = [_losses(task, direction, ladder, report) for direction in chosen.values()]
        floor = ROUNDING * torch.finfo(task.objective.dtype).eps * abs(base)
        sharp = [[_one_sided(losses, base, floor) for losses in pair] for pair in sides]
        indices = [tuple(_index(a, b) for a, b in zip(ahead, behind, strict=True)) for ahead, behind in sharp]
        still = [name for name, pair in zip(chosen, sharp, strict=True) if not pair[0][-1] and not pair[1][-1]]
        own = {"directions": list(chosen), "distances": ladder, "top": top, "random": random, "seed": seed}
        index = tuple(_mean_index(i, *pair) for i, pair in zip(indices, sharp, strict=True))
        return Asymmetry(
            value=statistics.fmean(map(abs, index)),
            names=tuple(chosen),
            distances=tuple(ladder),
            ahead=tuple(tuple(pair[0]) for pair in sides),
            behind=tuple(tuple(pair[1]) for pair in sides),
            sharpness_ahead=tuple(pair[0] for pair in sharp),
            sharpness_behind=tuple(pair[1] for pair in sharp),
            indices=tuple(indices),
            index=index,
            base_loss=base,
            evaluations=task.evaluations,
            status=_status(still),
            settings=task.settings(own),
            seconds=task.seconds,
        )


def _increasing(distances: Sequence[float]) -> list[float]:
    """Check the distances.

    Raises:
        ValueError: There is none, or they do not increase from above zero.
        TypeError: One is no number.
    """
    listed = several(distances)
    if listed is None:
        raise TypeError(f"distances must be several numbers such as (0.01, 0.1), got {shown(distances)}")
    ladder = [positive("a distance", distance, "0.1") for distance in listed]
    if not ladder or any(after <= before for before, after in itertools.pairwise(ladder)):
        raise ValueError(f"distances must be one or more numbers that increase, got {listed}")
    return ladder


def _directions(
    task: Call, given: Mapping[str, Tensor], top: int, random: int, seed: int, progress: Report
) -> dict[str, Tensor]:
    """Unit vectors by name.

    Raises:
        ValueError: There is none, one is zero or does not fit, or a name is taken twice.
        TypeError: They are no mapping of tensors.
    """
    if not isinstance(given, Mapping) or not all(isinstance(vector, Tensor | np.ndarray) for vector in given.values()):
        raise TypeError("directions must map names to tensors (n,), such as {'to LB': other - x}")
    centre, found = task.centre, {}
    for name, vector in given.items():
        found[str(name)] = moved(f"direction {name!r}", f"({len(centre)},)", vector, centre.dtype, centre.device)
    for name, vector in found.items():
        if vector.shape != task.centre.shape:
            raise ValueError(f"direction {name!r} must be ({len(task.centre)},), got {tuple(vector.shape)}")
    added: dict[str, Tensor] = {}
    if top:
        vectors = eigenvalues(task.objective, k=top, seed=seed, progress=progress).vectors
        added |= {f"top {index + 1}": oriented(vector) for index, vector in enumerate(vectors)}
    added |= {f"random {i + 1}": vector for i, vector in zip(range(random), normals(task.centre, seed), strict=False)}
    twice = [name for name in found if name in added]
    if twice:
        raise ValueError(f"the name {twice[0]!r} is that of a direction which is added: give it another")
    if not (found := {**found, **added}):
        raise ValueError("asymmetry needs a direction: give directions, top or random")
    return {name: _unit(name, vector.to(task.centre)) for name, vector in found.items()}


def _unit(name: str, vector: Tensor) -> Tensor:
    length = float(vector.double().norm())
    if not 0 < length < math.inf:
        raise ValueError(f"direction {name!r} must be finite and not zero, got one of length {length}")
    return (vector.double() / length).to(vector)


def oriented(vector: Tensor) -> Tensor:
    """An eigenvector, whose sign means nothing, with its largest entry positive."""
    return vector * vector[vector.abs().argmax()].sign()


def _losses(task: Call, direction: Tensor, ladder: list[float], report: Any) -> tuple[list[float], list[float]]:
    """The loss ahead and behind at each distance."""
    both = [*ladder, *(-distance for distance in ladder)]
    steps = torch.tensor(both, dtype=torch.float32, device="cpu").to(task.centre)
    found: list[float] = []
    for part in steps.split(max(1, LARGEST // len(direction))):
        values = task.objective.losses(torch.addcmul(task.centre, part[:, None], direction)).tolist()
        found += values
        for value in values if report is not None else ():
            report(0, value)
    return found[: len(ladder)], found[len(ladder) :]


def _one_sided(losses: list[float], base: float, floor: float) -> tuple[float, ...]:
    """Percent by which the loss rises up to each distance; infinite from where it is not finite."""
    highest, found = base, []
    for value in losses:
        highest = math.inf if not math.isfinite(value) else max(highest, value)
        found.append(100 * (highest - base) / (1 + base) if highest - base > floor else 0.0)
    return tuple(found)


def _index(ahead: float, behind: float) -> float:
    """From -1, it rises behind only, to 1, ahead only."""
    if ahead == behind:
        return 0.0
    if math.inf in (ahead, behind):
        return 1.0 if ahead == math.inf else -1.0
    return (ahead - behind) / (ahead + behind)


def _mean_index(indices: tuple[float, ...], ahead: tuple[float, ...], behind: tuple[float, ...]) -> float:
    return statistics.fmean([i for i, a, b in zip(indices, ahead, behind, strict=True) if a or b] or [0.0])


def _status(still: list[str]) -> Status:
    return status("no_rise.sides", names=", ".join(still)) if still else status("complete.sides")
