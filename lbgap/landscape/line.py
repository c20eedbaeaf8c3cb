"""Loss and accuracy on the straight line through two minimizers (Keskar et al. 2016, figure 3)."""

from __future__ import annotations

import math
import numbers
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lbgap._progress import evaluations_bar
from lbgap._result import plain, versions
from lbgap.losses import LossFunction
from lbgap.objective import Objective

MOST_POINTS = 100_000


@dataclass(frozen=True, eq=False)
class Line:
    """Loss and accuracy at ``alpha x_l + (1 - alpha) x_s``.

    Attributes:
        alphas: Where, ``(points,)``: 0 is the small-batch minimizer x_s, 1 the large-batch one x_l.
        train_loss: Mean loss over the training data; infinite or NaN where it overflows.
        train_accuracy: In percent; None where the model is not a classifier.
        test_loss: The same over the test data; None without.
        test_accuracy: The same over the test data; None without.
        settings: Everything that the result depends on.
        seconds: Wall-clock time of the call.
    """

    alphas: tuple[float, ...] = field(repr=False)
    train_loss: tuple[float, ...]
    train_accuracy: tuple[float, ...] | None
    test_loss: tuple[float, ...] | None
    test_accuracy: tuple[float, ...] | None
    settings: dict[str, Any] = field(repr=False)
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON; NaN and infinity become None."""
        names = ("alphas", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "settings", "seconds")
        return {name: plain(getattr(self, name)) for name in names}


def line(
    small: nn.Module,
    large: nn.Module,
    data: Any,
    *,
    test_data: Any = None,
    points: int = 25,
    low: float = -1.0,
    high: float = 2.0,
    loss: str | LossFunction = "cross_entropy",
    batch_norm: str = "batch",
    precision: str = "float32",
    batch_size: int | None = None,
    device: str | torch.device | None = None,
    progress: bool = False,
) -> Line:
    """Evaluate ``f(alpha x_l + (1 - alpha) x_s)`` on training and test data.

    Trainable parameters and floating-point buffers are interpolated, variances no lower than zero, so that with
    ``batch_norm="eval"`` both ends are the models' own losses. With ``"batch"`` (as in the paper's scripts) each
    evaluation batch brings its own statistics instead.

    Args:
        small: The small-batch minimizer x_s, at alpha = 0; never changed.
        large: The large-batch minimizer x_l, at alpha = 1, of the same architecture; never changed.
        data: Training data, as for :func:`lbgap.fast_sharpness`.
        test_data: Test data, or None.
        points: How many values of alpha, evenly spaced.
        low: Smallest alpha.
        high: Largest alpha.
        loss: ``"cross_entropy"``, ``"mse"`` or ``loss(output, target) -> mean over the batch``.
        batch_norm: ``"batch"`` or ``"eval"``.
        precision: ``"float32"`` or ``"float64"``.
        batch_size: Samples in a micro-batch; with ``batch_norm="batch"`` part of the result, 5,000 by default.
        device: Where to compute; the small model's device by default.
        progress: Show a progress bar on standard error.

    Returns:
        The line.

    Raises:
        ValueError: The models differ in architecture or in what is frozen, or are identical; ``points`` or
            the range is not usable; the data do not fit.
        TypeError: An argument is of the wrong kind.
    """
    began = time.perf_counter()
    _check_range(points, low, high)
    if precision not in ("float32", "float64"):
        raise ValueError(f"precision must be 'float32' or 'float64' on a line, got {precision!r}")
    check_same_architecture(small, large)
    sets = [data] if test_data is None else [data, test_data]
    objectives = [
        Objective(
            small,
            samples,
            loss=loss,
            batch_norm=batch_norm,
            precision=precision,
            batch_size=batch_size,
            device=device,
        )
        for samples in sets
    ]
    first = objectives[0]
    x_s = first.theta
    ends = dict(large.named_parameters())
    x_l = torch.cat([ends[name].detach().reshape(-1) for name in first.names]).to(x_s)
    if torch.equal(x_s, x_l):
        raise ValueError("the two models have the same parameters: a line needs two different minimizers")
    alphas = torch.linspace(low, high, points, dtype=torch.float64).tolist()
    values: list[list[tuple[float, float]]] = [[] for _ in objectives]
    with evaluations_bar("line", points * len(sets), progress) as visited:
        for alpha in alphas:
            point = (alpha * x_l.double() + (1 - alpha) * x_s.double()).to(x_s)
            buffers = _blend_buffers(small, large, alpha, batch_norm)
            for objective, found in zip(objectives, values, strict=True):
                objective.set_buffers(buffers)
                found.append(_evaluate(objective, point))
                if visited is not None:
                    visited(0, found[-1][0])
    settings = {"measure": "line", "points": points, "low": float(low), "high": float(high), **first.settings()}
    if test_data is not None:
        settings |= {"test_samples": objectives[1].samples, "test_batch_size": objectives[1].batch_size}
    settings["versions"] = versions()
    train_loss, train_accuracy = _columns(values[0])
    test_loss, test_accuracy = _columns(values[1]) if len(sets) > 1 else (None, None)
    return Line(
        alphas=tuple(alphas),
        train_loss=train_loss,
        train_accuracy=train_accuracy,
        test_loss=test_loss,
        test_accuracy=test_accuracy,
        settings=settings,
        seconds=time.perf_counter() - began,
    )


def check_same_architecture(small: nn.Module, large: nn.Module) -> None:
    """Refuse two models that are not points of one parameter space.

    Args:
        small: The one.
        large: The other.

    Raises:
        TypeError: One is not a module.
        ValueError: They differ; the message names the first parameter, buffer or module that does.
    """
    for role, model in (("small", small), ("large", large)):
        if not isinstance(model, nn.Module):
            raise TypeError(f"the {role}-batch model must be a torch.nn.Module, got {type(model).__name__}")
    parameters = dict(large.named_parameters())
    _check_shapes("parameter", dict(small.named_parameters()), parameters)
    for name, ours in small.named_parameters():
        if ours.requires_grad != parameters[name].requires_grad:
            raise ValueError(f"parameter {name!r} is frozen in one model only: freeze it in both or in neither")
        if not ours.requires_grad and not torch.equal(ours.cpu(), parameters[name].cpu()):
            raise ValueError(f"frozen parameter {name!r} differs between the models: unfreeze it to interpolate it")
    buffers = dict(large.named_buffers())
    _check_shapes("buffer", dict(small.named_buffers()), buffers)
    for name, value in small.named_buffers():
        counter = name.endswith("num_batches_tracked")  # which enters no evaluation
        if not (counter or value.is_floating_point() or torch.equal(value.cpu(), buffers[name].cpu())):
            raise ValueError(f"the models differ: buffer {name!r} has other values and cannot be interpolated")
    modules = dict(large.named_modules())
    for name, module in small.named_modules():
        kinds = [type(m).__qualname__ for m in (module, modules.get(name, module))]
        if kinds[0] != kinds[1]:
            where = f"module {name!r}" if name else "the whole"
            raise ValueError(f"the models differ: {where} is {kinds[0]} in one and {kinds[1]} in the other")


def _check_shapes(kind: str, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        shapes = [tuple(tensors[name].shape) if name in tensors else "absent" for tensors in (ours, theirs)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"the models differ: {kind} {name!r} is {shapes[0]} in one and {shapes[1]} in the other")


def _check_range(points: int, low: float, high: float) -> None:
    if isinstance(points, bool) or not isinstance(points, int):
        raise TypeError(f"points must be a whole number, got {points!r}")
    if not 2 <= points <= MOST_POINTS:
        raise ValueError(f"points must be between 2 and {MOST_POINTS:,}, got {points}")
    for name, value in (("low", low), ("high", high)):
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise TypeError(f"{name} must be a number, got {value!r}")
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"low and high must be finite with low < high, got {low} and {high}")


def _blend_buffers(small: nn.Module, large: nn.Module, alpha: float, batch_norm: str) -> dict[str, Tensor]:
    """Interpolate the floating buffers that enter the output; variances stay at zero or above."""
    theirs = dict(large.named_buffers())
    blended = {}
    for prefix, module in small.named_modules():
        if batch_norm == "batch" and isinstance(module, _BatchNorm):
            continue
        for name, ours in module.named_buffers(prefix, recurse=False):
            if ours.is_floating_point():
                value = alpha * theirs[name].to(ours.device).double() + (1 - alpha) * ours.double()
                blended[name] = value.clamp_min(0) if name.endswith("running_var") else value
    return blended


def _evaluate(objective: Objective, point: Tensor) -> tuple[float, float]:
    if objective.classes is None:
        return float(objective.losses(point[None])[0]), math.nan
    value, accuracy = objective.loss_and_accuracy(point)
    return float(value), float(accuracy)


def _columns(values: list[tuple[float, float]]) -> tuple[tuple[float, ...], tuple[float, ...] | None]:
    losses, accuracies = zip(*values, strict=True)
    return tuple(losses), None if all(math.isnan(a) for a in accuracies) else tuple(accuracies)
