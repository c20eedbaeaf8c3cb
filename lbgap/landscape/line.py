"""Loss and accuracy on the straight line through two minimizers (Keskar et al. 2016, figure 3)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lbgap.checks import Amount, any_number, whole
from lbgap.flat import Selection
from lbgap.landscape.combined import Pairs
from lbgap.landscape.ends import Ends
from lbgap.landscape.given import take
from lbgap.landscape.shape import Shape, shape_of, status_of
from lbgap.objective import Objective
from lbgap.problem.call import CallFunction
from lbgap.problem.loss import LossFunction
from lbgap.result import Result, versions
from lbgap.system.progress import Report, check_progress

MAX_POINTS = 100_000
SNAP = 1e-12  # of alpha
Weights = Callable[[float], tuple[float, float]]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Line(Result):
    """Loss and accuracy on a path through two minimizers, such as ``alpha x_l + (1 - alpha) x_s``.

    Attributes:
        value: The barrier of the training loss between the minimizers, that of ``shape``; NaN where it is not known.
        alphas: Where, ``(points,)``: 0 is the small-batch minimizer x_s, 1 the large-batch one x_l.
        train_loss: Mean loss over the training data; infinite or NaN where it overflows.
        train_accuracy: In percent; None where the model is not a classifier.
        test_loss: The same over the test data; None without.
        test_accuracy: The same over the test data; None without.
        shape: Barrier between the minimizers and their widths, by the training loss.
        test_shape: The same by the test loss; None without.
        evaluations: Passes over the training data; those over the test data are as many, and not counted.
    """

    alphas: tuple[float, ...]
    train_loss: tuple[float, ...]
    train_accuracy: tuple[float, ...] | None
    test_loss: tuple[float, ...] | None
    test_accuracy: tuple[float, ...] | None
    shape: Shape
    test_shape: Shape | None

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON; NaN and infinity become None."""
        tested = None if self.test_shape is None else self.test_shape.to_dict()
        return {**super().to_dict(), "shape": self.shape.to_dict(), "test_shape": tested}

    def _headline(self) -> str:
        where = f"at alpha {self.shape.barrier_alpha:.4g}"
        return f"{self.settings['measure']}: barrier {self.value:.6g} of the training loss, {where}"

    def _numbers(self) -> list[str]:
        lines = []
        if self.test_shape is not None:
            tested = self.test_shape
            lines.append(f"barrier {tested.barrier:.6g} of the test loss, at alpha {tested.barrier_alpha:.4g}")
        lines.append(f"width until the training loss has risen by {self.shape.rise:g}: {self.shape.widths()}")
        grid = f"{len(self.alphas):,} points from {self.alphas[0]:g} to {self.alphas[-1]:g}"
        return [*lines, f"{grid}, minimizers {self.settings['distance']:.6g} apart"]


def line(
    small: nn.Module | Objective,
    large: nn.Module,
    data: Any = None,
    *,
    test_data: Any = None,
    points: int = 25,
    low: float = -1.0,
    high: float = 2.0,
    rise: float = 0.1,
    progress: Report = False,
    loss: str | LossFunction | None = None,
    parameters: Selection | None = None,
    batch_norm: str | None = None,
    precision: str | None = None,
    batch_size: Amount | None = None,
    device: str | torch.device | None = None,
    backend: str | None = None,
    coupled: bool | None = None,
    judge: bool | None = None,
    call: CallFunction | None = None,
) -> Line:
    """Evaluate ``f(alpha x_l + (1 - alpha) x_s)`` on training and test data.

    Keskar et al. 2016 (arXiv 1609.04836), figure 3. Parameters that may move are interpolated, and so are the
    statistics of batch-norm with ``batch_norm="eval"``. Spectral norms of ``torch.nn.utils`` are those of the weights
    of each point. That both ends have the models' own losses is checked on a few samples, where statistics and norms
    are those of the ends.

    Args:
        small: The small-batch minimizer x_s, at alpha = 0, never changed; or an :class:`~lbgap.objective.Objective` of
            it, in which case ``data`` and the keywords from ``loss`` on belong to it and must not be given here.
        large: The large-batch minimizer x_l, at alpha = 1, of the same architecture; never changed.
        data: Training data: ``(inputs, targets)``, a ``Dataset``, a ``DataLoader``, dicts and more (docs/data.md).
        test_data: Test data, or None. With an objective they are evaluated in batches of its size; where that is all
            training samples, in a size of their own.
        points: How many values of alpha, evenly spaced.
        low: Smallest alpha.
        high: Largest alpha.
        rise: For the widths: by how much the loss may rise above that of a minimizer.
        progress: True for a bar on standard error, or a function that is called with a
            :class:`~lbgap.system.progress.Progress`.
        loss: ``"cross_entropy"`` (the default), ``"mse"``, ``"bce"``, ``"nll"``, ``"l1"``, ``"huber"``; a loss of
            torch; or ``loss(output, target)``: the mean over the batch, one value a sample, or ``(sum, weight)``.
        parameters: Which may move: ``"all"`` (the default), ``"weights"``, or names and patterns of them. The others
            have to be the same in both models.
        batch_norm: ``"eval"`` (the default): running statistics, combined as the parameters are, variances no lower
            than zero; ``"batch"``: statistics of each evaluation batch, as in the paper's scripts; ``"freeze"``: those
            of x_s everywhere; ``"recalibrate"``: estimated anew on the training data at each point.
        precision: ``"float32"`` (the default), ``"float64"``, or ``"mixed"``: products in bfloat16 where the network
            allows it, so that all values are exact to some 0.1 % only.
        batch_size: Samples in a micro-batch, or a share of the training data (0.1, ``"10%"``); with
            ``batch_norm="batch"`` part of the result, 5,000 by default.
        device: Where to compute; the small model's device by default.
        backend: ``"auto"`` (the default), ``"native"`` or ``"torch"``.
        coupled: True where the samples of a batch see each other, in model or loss: the value is then the mean
            over the loader's batches, or over those of ``batch_size``, each counted by its weight: its samples, or for
            a ratio what the loss divides by. Their size is part of the result.
        judge: False leaves out the questions asked of model, loss and data before a number is believed
            (docs/limits.md), which the result then says.
        call: ``call(model, batch)``, which returns the output, where batches enter the model in a way of their own
            (docs/data.md).

    Returns:
        The line.

    Raises:
        ValueError: The models differ in architecture or in what is frozen, or are identical; another buffer differs
            and enters the loss, or they keep more than parameters and buffers; ``points``, ``rise`` or the range is not
            usable; the data do not fit; or something that belongs to the objective was given.
        TypeError: An argument is of the wrong kind.

    Example:
        >>> import torch, lbgap
        >>> small, large = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
        >>> found = lbgap.line(small, large, (torch.eye(2), torch.tensor([0, 1])), points=7)
        >>> found.alphas[3], found.value >= 0, found.status.name
        (0.5, True, 'complete')
    """
    options: dict[str, Any] = {"loss": loss, "parameters": parameters, "precision": precision}
    options |= {"batch_size": batch_size, "device": device, "backend": backend, "coupled": coupled, "judge": judge}
    options["call"] = call
    return evaluate_path(
        "line",
        lambda alpha: (1 - alpha, alpha),
        small,
        large,
        data,
        test_data,
        (points, low, high, rise),
        batch_norm,
        options,
        progress,
    )


def evaluate_path(
    measure: str,
    weights: Weights,
    small: nn.Module | Objective,
    large: nn.Module,
    data: Any,
    test_data: Any,
    grid: tuple[int, float, float, float],
    batch_norm: str | None,
    options: Mapping[str, Any],
    progress: Report,
) -> Line:
    """Evaluate a path through two minimizers.

    Args:
        measure: Its name, for the result.
        weights: From alpha to the coefficients of x_s and x_l: (1, 0) at 0 and (0, 1) at 1.
        small: The small-batch minimizer, or an objective of it.
        large: The large-batch minimizer.
        data: Training data.
        test_data: Test data, or None.
        grid: ``points``, ``low``, ``high`` and ``rise``.
        batch_norm: What batch-norm does.
        options: The other keywords of an :class:`lbgap.Objective`; None where the caller gave none.
        progress: How progress is reported.

    Raises:
        ValueError: As :func:`line`.
        TypeError: As :func:`line`.
    """
    began = time.perf_counter()
    points, low, high, rise = grid
    points, low, high = check_range(points, low, high)
    rise = check_rise(rise)
    check_progress(progress)
    ends = Ends(take(small, data, batch_norm, options), large, data, test_data)
    checked = ends.check()
    even = torch.linspace(low, high, points, dtype=torch.float64, device="cpu")
    alphas = [_snapped(alpha) for alpha in even.tolist()]
    missing = [end for end in (0.0, 1.0) if end not in alphas]
    found = ends.evaluate([weights(alpha) for alpha in (*alphas, *missing)], measure, progress)
    shapes = []
    for pairs in found:
        at = dict(zip((*alphas, *missing), (loss for loss, _ in pairs), strict=True))
        shapes.append(shape_of(alphas, [at[alpha] for alpha in alphas], (at[0.0], at[1.0]), float(rise)))
    settings = {"measure": measure, "points": points, "low": float(low), "high": float(high), "rise": float(rise)}
    settings |= {**ends.settings(), "evaluated": ends.objectives[0].losses_way, "ends_checked": checked}
    settings["versions"] = versions()
    return as_line(alphas, [pairs[:points] for pairs in found], shapes, settings, ends.evaluations, began)


def as_line(
    alphas: Sequence[float],
    found: Sequence[Pairs],
    shapes: Sequence[Shape],
    settings: dict[str, Any],
    evaluations: float,
    began: float,
) -> Line:
    """Put together what was found along a path.

    Args:
        alphas: Where.
        found: Loss and accuracy there, on the training data and, if there are any, on the test data.
        shapes: Barrier and widths by each of them.
        settings: Everything that the values depend on.
        evaluations: Passes over the training data.
        began: When the work began, by :func:`time.perf_counter`.
    """
    train_loss, train_accuracy = columns(found[0])
    test_loss, test_accuracy = columns(found[1]) if len(found) > 1 else (None, None)
    return Line(
        value=shapes[0].barrier,
        status=status_of(shapes[0], train_loss),
        settings=settings,
        evaluations=evaluations,
        seconds=time.perf_counter() - began,
        alphas=tuple(alphas),
        train_loss=train_loss,
        train_accuracy=train_accuracy,
        test_loss=test_loss,
        test_accuracy=test_accuracy,
        shape=shapes[0],
        test_shape=shapes[1] if len(shapes) > 1 else None,
    )


def _snapped(alpha: float) -> float:
    """A minimizer itself where rounding has missed it."""
    return float(round(alpha)) if abs(alpha - round(alpha)) < SNAP else alpha


def check_range(points: object, low: object, high: object) -> tuple[int, float, float]:
    """Refuse values of alpha that are none; returns how many, the first and the last.

    Raises:
        TypeError: A number is of the wrong kind.
        ValueError: It is out of its range.
    """
    points = whole("points", points, 2, MAX_POINTS + 1)
    least, largest = any_number("low", low), any_number("high", high)
    if not (math.isfinite(least) and math.isfinite(largest) and least < largest):
        raise ValueError(f"low and high must be finite with low < high, got {low} and {high}")
    return points, least, largest


def check_rise(rise: object) -> float:
    """Refuse a rise of the loss that is none; returns it.

    Raises:
        TypeError: It is not a number.
        ValueError: It is not above zero.
    """
    found = any_number("rise", rise)
    if not 0 < found < math.inf:
        raise ValueError(f"rise must be finite and above 0, got {rise}")
    return found


def columns(pairs: Pairs) -> tuple[tuple[float, ...], tuple[float, ...] | None]:
    """Losses, and accuracies if there are any."""
    losses, accuracies = zip(*pairs, strict=True)
    return tuple(losses), None if all(math.isnan(a) for a in accuracies) else tuple(accuracies)
