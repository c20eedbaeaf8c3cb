"""Evaluate combinations of two minimizers: what a line and a curve through them share."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lbgap._progress import evaluations_bar
from lbgap.objective import Objective

MOST_POINTS = 100_000
MODES = ("eval", "batch", "freeze", "recalibrate")
BLOCK = 256  # points between two moves of the progress bar; a multiple of what is evaluated at once
Pairs = list[tuple[float, float]]


class Ends:
    """Two minimizers, and the loss at combinations of them on one or two data sets.

    Attributes:
        objectives: One for each data set, the training data's first.
        distance: ``|x_l - x_s|``, over all parameters that may move.
    """

    def __init__(
        self, small: nn.Module, large: nn.Module, sets: Sequence[Any], batch_norm: str, options: Mapping[str, Any]
    ) -> None:
        """Load models and data.

        Args:
            small: The small-batch minimizer x_s.
            large: The large-batch minimizer x_l.
            sets: Training data, and test data if there are any.
            batch_norm: One of :data:`MODES`.
            options: Those of an :class:`lbgap.Objective`.

        Raises:
            ValueError: The models differ in architecture or are identical, one has a parameter that is not finite, or
                an option is out of its range.
            TypeError: One is not a module.
        """
        if batch_norm not in MODES:
            raise ValueError(
                f"batch_norm must be {', '.join(map(repr, MODES[:-1]))} or 'recalibrate', got {batch_norm!r}"
            )
        check_same_architecture(small, large)
        _check_finite(small, large)
        self._mode, self._options = batch_norm, dict(options)
        self._within = "batch" if batch_norm == "batch" else "eval"
        self.objectives = [Objective(small, samples, batch_norm=self._within, **options) for samples in sets]
        first = self.objectives[0]
        x_s = first.theta
        named = dict(large.named_parameters())
        x_l = torch.cat([named[name].detach().reshape(-1) for name in first.names]).to(x_s)
        if torch.equal(x_s, x_l):
            raise ValueError("the two models have the same parameters: a line needs two different minimizers")
        self._points = torch.stack([x_s, x_l])
        self.distance = float((x_l.double() - x_s.double()).norm())
        self._buffers = _buffers(small, large, batch_norm)
        self._models = small, large

    def evaluate(self, rows: Sequence[tuple[float, float]], title: str, progress: bool) -> list[Pairs]:
        """Loss and accuracy at each row of coefficients of (x_s, x_l), on each data set; accuracies may be NaN."""
        found: list[Pairs] = [[] for _ in self.objectives]
        block = 1 if self._mode == "recalibrate" else BLOCK
        with evaluations_bar(title, len(rows) * len(found), progress) as visited:
            for first in range(0, len(rows), block):
                some = torch.tensor(rows[first : first + block], dtype=torch.float64)
                if self._mode == "recalibrate":
                    self._recalibrate(some)
                for objective, pairs in zip(self.objectives, found, strict=True):
                    pairs += self._block(objective, some)
                    for loss, _ in pairs[-len(some) :] if visited is not None else ():
                        visited(0, loss)  # type: ignore[misc]
        return found

    def _block(self, objective: Objective, rows: Tensor) -> Pairs:
        losses, accuracies = objective.combination_losses(
            rows, self._points, buffers=self._buffers, accuracy=objective.classes is not None
        )
        shown = [math.nan] * len(rows) if accuracies is None else accuracies.tolist()
        return list(zip(losses.tolist(), shown, strict=True))

    def _recalibrate(self, row: Tensor) -> None:
        """Give all objectives the statistics of the training data at one point."""
        point = (row.to(self._points.device) @ self._points.double())[0].to(self._points)
        statistics = self.objectives[0].statistics(point)
        for objective in self.objectives:
            objective.set_buffers(statistics)

    def check(self) -> str:
        """Compare the ends with the models themselves, on a few samples of the training data.

        Returns:
            Which ends were compared; with ``"freeze"`` and ``"recalibrate"`` batch-norm makes others of them.

        Raises:
            ValueError: A model keeps more than its parameters and floating-point buffers.
        """
        changed = self.objectives[0].has_batch_norm and self._mode in ("freeze", "recalibrate")
        if changed and self._mode == "recalibrate":
            return "none: statistics are those of each point"
        few = self.objectives[0].few()
        options = {**self._options, "batch_size": None, "device": self._points.device}
        if options.get("precision") == "mixed":
            options["precision"] = "float32"
        own = [Objective(model, few, batch_norm=self._within, **options) for model in self._models]
        ends = self._points.to(own[0].dtype)
        found, _ = own[0].combination_losses(torch.eye(2), ends, buffers=self._buffers)
        for index, name in enumerate(("small", "large")[: 1 if changed else 2]):
            expected = own[index].losses(own[index].theta[None])[0]
            if not torch.isclose(found[index], expected, rtol=1e-4, atol=1e-6, equal_nan=True):
                raise ValueError(
                    f"at alpha = {index} the loss of a few samples is {float(found[index]):g}, but the {name}-batch "
                    f"model's own is {float(expected):g}: it depends on more than parameters and floating-point buffers"
                )
        return "small: statistics are those of the small-batch model" if changed else "both"

    def settings(self) -> dict[str, Any]:
        """Everything that the values depend on."""
        first = self.objectives[0]
        found = {**first.settings(), "distance": self.distance}
        if first.has_batch_norm:
            found["batch_norm"] = self._mode
        if len(self.objectives) > 1:
            test = self.objectives[1]
            found |= {"test_samples": test.samples, "test_batch_size": test.batch_size}
        return found


def _buffers(small: nn.Module, large: nn.Module, batch_norm: str) -> dict[str, Tensor]:
    """The floating buffers that enter the output and are combined, ``(2, *shape)``."""
    theirs = dict(large.named_buffers())
    found = {}
    for prefix, module in small.named_modules():
        if batch_norm != "eval" and isinstance(module, _BatchNorm):
            continue
        for name, ours in module.named_buffers(prefix, recurse=False):
            if ours.is_floating_point():
                found[name] = torch.stack([ours.double(), theirs[name].to(ours.device).double()])
    return found


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


def _check_finite(small: nn.Module, large: nn.Module) -> None:
    """Refuse a model that is no minimizer, and would make every other point NaN.

    Raises:
        ValueError: A parameter holds NaN or infinity.
    """
    for role, model in (("small", small), ("large", large)):
        for name, value in model.named_parameters():
            if not value.isfinite().all():
                raise ValueError(
                    f"parameter {name!r} of the {role}-batch model holds NaN or infinity: it is no minimizer; train it "
                    "with a smaller learning rate"
                )


def _check_shapes(kind: str, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        shapes = [tuple(tensors[name].shape) if name in tensors else "absent" for tensors in (ours, theirs)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"the models differ: {kind} {name!r} is {shapes[0]} in one and {shapes[1]} in the other")


def check_range(points: int, low: float, high: float) -> None:
    """Refuse values of alpha that are none.

    Raises:
        TypeError: A number is of the wrong kind.
        ValueError: It is out of its range.
    """
    if isinstance(points, bool) or not isinstance(points, int):
        raise TypeError(f"points must be a whole number, got {points!r}")
    if not 2 <= points <= MOST_POINTS:
        raise ValueError(f"points must be between 2 and {MOST_POINTS:,}, got {points}")
    for name, value in (("low", low), ("high", high)):
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise TypeError(f"{name} must be a number, got {value!r}")
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"low and high must be finite with low < high, got {low} and {high}")


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
