"""Loss and accuracy on the straight line through two minimizers (Keskar et al. 2016, figure 3)."""

from __future__ import annotations

import math
import numbers
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lbgap.checks import whole
from lbgap.landscape.combined import Pairs
from lbgap.landscape.ends import Ends
from lbgap.landscape.shape import Shape, shape_of
from lbgap.losses import LossFunction
from lbgap.result import plain, versions

MOST_POINTS = 100_000
SNAP = 1e-12  # of alpha
Weights = Callable[[float], tuple[float, float]]


@dataclass(frozen=True, eq=False)
class Line:
    """Loss and accuracy on a path through two minimizers, such as ``alpha x_l + (1 - alpha) x_s``.

    Attributes:
        alphas: Where, ``(points,)``: 0 is the small-batch minimizer x_s, 1 the large-batch one x_l.
        train_loss: Mean loss over the training data; infinite or NaN where it overflows.
        train_accuracy: In percent; None where the model is not a classifier.
        test_loss: The same over the test data; None without.
        test_accuracy: The same over the test data; None without.
        settings: Everything that the result depends on.
        seconds: Wall-clock time of the call.
        shape: Barrier between the minimizers and their widths, by the training loss.
        test_shape: The same by the test loss; None without.
    """

    alphas: tuple[float, ...] = field(repr=False)
    train_loss: tuple[float, ...]
    train_accuracy: tuple[float, ...] | None
    test_loss: tuple[float, ...] | None
    test_accuracy: tuple[float, ...] | None
    settings: dict[str, Any] = field(repr=False)
    seconds: float
    shape: Shape | None = None
    test_shape: Shape | None = None

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON; NaN and infinity become None."""
        names = ("alphas", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "settings", "seconds")
        shapes = {"shape": self.shape, "test_shape": self.test_shape}
        values = {name: plain(getattr(self, name)) for name in names}
        return {**values, **{name: None if shape is None else shape.to_dict() for name, shape in shapes.items()}}


def line(
    small: nn.Module,
    large: nn.Module,
    data: Any,
    *,
    test_data: Any = None,
    points: int = 25,
    low: float = -1.0,
    high: float = 2.0,
    rise: float = 0.1,
    loss: str | LossFunction = "cross_entropy",
    batch_norm: str = "batch",
    precision: str = "float32",
    batch_size: int | None = None,
    device: str | torch.device | None = None,
    progress: bool = False,
) -> Line:
    """Evaluate ``f(alpha x_l + (1 - alpha) x_s)`` on training and test data.

    Trainable parameters are interpolated, and so are floating-point buffers, but for the statistics of batch-norm with
    ``batch_norm`` other than ``"eval"``. That both ends have the models' own losses is checked on a few samples, where
    the statistics are those of the ends.

    Args:
        small: The small-batch minimizer x_s, at alpha = 0; never changed.
        large: The large-batch minimizer x_l, at alpha = 1, of the same architecture; never changed.
        data: Training data, as for :func:`lbgap.fast_sharpness`.
        test_data: Test data, or None.
        points: How many values of alpha, evenly spaced.
        low: Smallest alpha.
        high: Largest alpha.
        rise: For the widths: by how much the loss may rise above that of a minimizer.
        loss: ``"cross_entropy"``, ``"mse"`` or ``loss(output, target) -> mean over the batch``.
        batch_norm: ``"batch"``: statistics of each evaluation batch, as in the paper's scripts; ``"eval"``: running
            statistics, combined as the parameters are, variances no lower than zero; ``"freeze"``: those of x_s
            everywhere; ``"recalibrate"``: estimated anew on the training data at each point.
        precision: ``"float32"``, ``"float64"``, or ``"mixed"``: products in bfloat16 where the network allows it, so
            that all values are exact to some 0.1 % only.
        batch_size: Samples in a micro-batch; with ``batch_norm="batch"`` part of the result, 5,000 by default.
        device: Where to compute; the small model's device by default.
        progress: Show a progress bar on standard error.

    Returns:
        The line.

    Raises:
        ValueError: The models differ in architecture or in what is frozen, or are identical; they keep more than
            parameters and floating-point buffers; ``points``, ``rise`` or the range is not usable; the data do not fit.
        TypeError: An argument is of the wrong kind.
    """
    options = {"loss": loss, "precision": precision, "batch_size": batch_size, "device": device}
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
    small: nn.Module,
    large: nn.Module,
    data: Any,
    test_data: Any,
    grid: tuple[int, float, float, float],
    batch_norm: str,
    options: Mapping[str, Any],
    progress: bool,
) -> Line:
    """Evaluate a path through two minimizers.

    Args:
        measure: Its name, for the result.
        weights: From alpha to the coefficients of x_s and x_l: (1, 0) at 0 and (0, 1) at 1.
        small: As :func:`line`, and so on.
        large: The same.
        data: The same.
        test_data: The same.
        grid: ``points``, ``low``, ``high`` and ``rise``.
        batch_norm: The same.
        options: Those of an :class:`lbgap.Objective`.
        progress: The same.

    Raises:
        ValueError: As :func:`line`.
        TypeError: As :func:`line`.
    """
    began = time.perf_counter()
    points, low, high, rise = grid
    points = check_range(points, low, high)
    check_rise(rise)
    ends = Ends(small, large, [data] if test_data is None else [data, test_data], batch_norm, options)
    checked = ends.check()
    alphas = [_snapped(alpha) for alpha in torch.linspace(low, high, points, dtype=torch.float64).tolist()]
    missing = [end for end in (0.0, 1.0) if end not in alphas]
    found = ends.evaluate([weights(alpha) for alpha in (*alphas, *missing)], measure, progress)
    shapes = []
    for pairs in found:
        at = dict(zip((*alphas, *missing), (loss for loss, _ in pairs), strict=True))
        shapes.append(shape_of(alphas, [at[alpha] for alpha in alphas], (at[0.0], at[1.0]), float(rise)))
    settings = {"measure": measure, "points": points, "low": float(low), "high": float(high), "rise": float(rise)}
    settings |= {**ends.settings(), "evaluated": ends.objectives[0].losses_way, "ends_checked": checked}
    settings["versions"] = versions()
    return as_line(alphas, [pairs[:points] for pairs in found], shapes, settings, began)


def as_line(
    alphas: Sequence[float], found: Sequence[Pairs], shapes: Sequence[Shape], settings: dict[str, Any], began: float
) -> Line:
    """Put together what was found along a path.

    Args:
        alphas: Where.
        found: Loss and accuracy there, on the training data and, if there are any, on the test data.
        shapes: Barrier and widths by each of them.
        settings: Everything that the values depend on.
        began: When the work began, by :func:`time.perf_counter`.
    """
    train_loss, train_accuracy = columns(found[0])
    test_loss, test_accuracy = columns(found[1]) if len(found) > 1 else (None, None)
    return Line(
        alphas=tuple(alphas),
        train_loss=train_loss,
        train_accuracy=train_accuracy,
        test_loss=test_loss,
        test_accuracy=test_accuracy,
        settings=settings,
        seconds=time.perf_counter() - began,
        shape=shapes[0],
        test_shape=shapes[1] if len(shapes) > 1 else None,
    )


def _snapped(alpha: float) -> float:
    """A minimizer itself where rounding has missed it."""
    return float(round(alpha)) if abs(alpha - round(alpha)) < SNAP else alpha


def check_range(points: int, low: float, high: float) -> int:
    """Refuse values of alpha that are none; returns how many.

    Raises:
        TypeError: A number is of the wrong kind.
        ValueError: It is out of its range.
    """
    points = whole("points", points, 2, MOST_POINTS + 1)
    for name, value in (("low", low), ("high", high)):
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise TypeError(f"{name} must be a number, got {value!r}")
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"low and high must be finite with low < high, got {low} and {high}")
    return points


def check_rise(rise: float) -> None:
    """Refuse a rise of the loss that is none.

    Raises:
        TypeError: It is not a number.
        ValueError: It is not above zero.
    """
    if isinstance(rise, bool) or not isinstance(rise, numbers.Real):
        raise TypeError(f"rise must be a number, got {rise!r}")
    if not 0 < rise < math.inf:
        raise ValueError(f"rise must be finite and above 0, got {rise}")


def columns(pairs: Pairs) -> tuple[tuple[float, ...], tuple[float, ...] | None]:
    """Losses, and accuracies if there are any."""
    losses, accuracies = zip(*pairs, strict=True)
    return tuple(losses), None if all(math.isnan(a) for a in accuracies) else tuple(accuracies)
