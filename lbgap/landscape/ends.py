"""Evaluate combinations of a few vectors: what lines, curves and planes share."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lbgap.checks import whole
from lbgap.objective import Objective
from lbgap.system.progress import evaluations_bar

MOST_POINTS = 100_000
MODES = ("eval", "batch", "freeze", "recalibrate")
BLOCK = 256  # points between two moves of the progress bar; a multiple of what is evaluated at once
Pairs = list[tuple[float, float]]


class Combined:
    """The loss at combinations of a few vectors, the ends, on one or two data sets.

    Attributes:
        objectives: One for each data set, the training data's first.
        ends: ``(j, n)``.
        buffers: The buffers that are combined with the same coefficients; see ``Objective.combination_losses``.
    """

    ends: Tensor
    buffers: Mapping[str, Tensor]

    def __init__(self, model: nn.Module, sets: Sequence[Any], batch_norm: str, options: Mapping[str, Any]) -> None:
        """Load the data.

        Args:
            model: Whose buffers and frozen parameters all points have.
            sets: Training data, and test data if there are any.
            batch_norm: One of :data:`MODES`.
            options: Those of an :class:`lbgap.Objective`.

        Raises:
            ValueError: As :class:`lbgap.Objective`.
            TypeError: The same.
        """
        check_batch_norm(batch_norm)
        self.mode, self._options = batch_norm, dict(options)
        self._within = "batch" if batch_norm == "batch" else "eval"
        self.objectives = [Objective(model, samples, batch_norm=self._within, **options) for samples in sets]

    def at(self, rows: Tensor) -> list[Pairs]:
        """Loss and accuracy at each row of coefficients ``(k, j)``, on each data set; accuracies may be NaN."""
        found: list[Pairs] = [[] for _ in self.objectives]
        for some in rows.split(1) if self.mode == "recalibrate" else [rows]:
            if self.mode == "recalibrate":
                self._recalibrate(some)
            for objective, pairs in zip(self.objectives, found, strict=True):
                pairs += self._block(objective, some)
        return found

    def _block(self, objective: Objective, rows: Tensor) -> Pairs:
        losses, accuracies = objective.combination_losses(
            rows, self.ends, buffers=self.buffers, accuracy=objective.classes is not None
        )
        shown = [math.nan] * len(rows) if accuracies is None else accuracies.tolist()
        return list(zip(losses.tolist(), shown, strict=True))

    def _recalibrate(self, row: Tensor) -> None:
        """Give all objectives the statistics of the training data at one point."""
        point = (row.to(self.ends.device) @ self.ends.double())[0].to(self.ends)
        statistics = self.objectives[0].statistics(point)
        for objective in self.objectives:
            objective.set_buffers(statistics)

    @property
    def own_statistics(self) -> bool:
        """Whether batch-norm makes of an end something else than its model."""
        return self.objectives[0].has_batch_norm and self.mode in ("freeze", "recalibrate")

    def compare(self, models: Sequence[tuple[str, str, nn.Module]]) -> None:
        """Compare the first ends with the models that they are, on a few samples of the training data.

        Args:
            models: Of each end: where it is, what it is called, and the model.

        Raises:
            ValueError: A model keeps more than its parameters and floating-point buffers.
        """
        few = self.objectives[0].few()
        options = {**self._options, "batch_size": None, "device": self.ends.device}
        if options.get("precision") == "mixed":
            options["precision"] = "float32"
        own = [Objective(model, few, batch_norm=self._within, **options) for _, _, model in models]
        found, _ = own[0].combination_losses(
            torch.eye(len(self.ends))[: len(models)], self.ends.to(own[0].dtype), buffers=self.buffers
        )
        for (place, name, _), objective, value in zip(models, own, found, strict=True):
            expected = objective.losses(objective.theta[None])[0]
            if not torch.isclose(value, expected, rtol=1e-4, atol=1e-6, equal_nan=True):
                raise ValueError(
                    f"at {place} the loss of a few samples is {float(value):g}, but the {name} model's own is "
                    f"{float(expected):g}: it depends on more than parameters and floating-point buffers"
                )

    def settings(self) -> dict[str, Any]:
        """Everything that the values depend on."""
        first = self.objectives[0]
        found = first.settings()
        if first.has_batch_norm:
            found["batch_norm"] = self.mode
        if len(self.objectives) > 1:
            test = self.objectives[1]
            found |= {"test_samples": test.samples, "test_batch_size": test.batch_size}
        return found


class Ends(Combined):
    """Two minimizers, and the loss at combinations of them on one or two data sets.

    Attributes:
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
        check_batch_norm(batch_norm)
        check_same_architecture(small, large)
        for role, model in (("small-batch", small), ("large-batch", large)):
            check_finite(model, role)
        super().__init__(small, sets, batch_norm, options)
        x_s = self.objectives[0].theta
        x_l = flat_like(large, self.objectives[0])
        if torch.equal(x_s, x_l):
            raise ValueError("the two models have the same parameters: a line needs two different minimizers")
        self.ends = torch.stack([x_s, x_l])
        self.distance = float((x_l.double() - x_s.double()).norm())
        self.buffers = combined_buffers((small, large), batch_norm)
        self._models = small, large

    def evaluate(self, rows: Sequence[tuple[float, ...]], title: str, progress: bool) -> list[Pairs]:
        """Loss and accuracy at each row of coefficients of the ends, on each data set; accuracies may be NaN."""
        found: list[Pairs] = [[] for _ in self.objectives]
        block = 1 if self.mode == "recalibrate" else BLOCK
        with evaluations_bar(title, len(rows) * len(found), progress) as visited:
            for first in range(0, len(rows), block):
                some = self.at(torch.tensor(rows[first : first + block], dtype=torch.float64))
                for pairs, new in zip(found, some, strict=True):
                    pairs += new
                    for loss, _ in new if visited is not None else ():
                        visited(0, loss)  # type: ignore[misc]
        return found

    def check(self) -> str:
        """Compare the ends with the models themselves, on a few samples of the training data.

        Returns:
            Which ends were compared; with ``"freeze"`` and ``"recalibrate"`` batch-norm makes others of them.

        Raises:
            ValueError: A model keeps more than its parameters and floating-point buffers.
        """
        if self.own_statistics and self.mode == "recalibrate":
            return "none: statistics are those of each point"
        small, large = self._models
        ends = [("alpha = 0", "small-batch", small), ("alpha = 1", "large-batch", large)]
        self.compare(ends[:1] if self.own_statistics else ends)
        return "small: statistics are those of the small-batch model" if self.own_statistics else "both"

    def settings(self) -> dict[str, Any]:
        """Everything that the values depend on."""
        return {**super().settings(), "distance": self.distance}


def flat_like(model: nn.Module, objective: Objective) -> Tensor:
    """The parameters of a model of the same architecture, ``(n,)`` as those of an objective."""
    named = dict(model.named_parameters())
    theta = objective.theta
    return torch.cat([named[name].detach().reshape(-1).to(theta) for name in objective.names])


def check_batch_norm(batch_norm: str) -> None:
    """Refuse a mode of batch-norm that is none.

    Raises:
        ValueError: It is not one of :data:`MODES`.
    """
    if batch_norm not in MODES:
        raise ValueError(f"batch_norm must be {', '.join(map(repr, MODES[:-1]))} or 'recalibrate', got {batch_norm!r}")


def combined_buffers(models: Sequence[nn.Module], batch_norm: str) -> dict[str, Tensor]:
    """The floating buffers that enter the output and are combined, ``(j, *shape)``, one a model."""
    others = [dict(model.named_buffers()) for model in models[1:]]
    found = {}
    for prefix, module in models[0].named_modules():
        if batch_norm != "eval" and isinstance(module, _BatchNorm):
            continue
        for name, ours in module.named_buffers(prefix, recurse=False):
            if ours.is_floating_point():
                every = [ours, *(theirs[name] for theirs in others)]
                found[name] = torch.stack([values.to(ours.device, torch.float64) for values in every])
    return found


def check_same_architecture(
    small: nn.Module, large: nn.Module, names: tuple[str, str] = ("small-batch", "large-batch")
) -> None:
    """Refuse two models that are not points of one parameter space.

    Args:
        small: The one.
        large: The other.
        names: What they are called.

    Raises:
        TypeError: One is not a module.
        ValueError: They differ; the message names the first parameter, buffer or module that does.
    """
    for role, model in zip(names, (small, large), strict=True):
        if not isinstance(model, nn.Module):
            raise TypeError(f"the {role} model must be a torch.nn.Module, got {type(model).__name__}")
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


def check_finite(model: nn.Module, role: str) -> None:
    """Refuse a model that is no minimizer, and would make every other point NaN.

    Raises:
        ValueError: A parameter holds NaN or infinity.
    """
    for name, value in model.named_parameters():
        if not value.isfinite().all():
            raise ValueError(
                f"parameter {name!r} of the {role} model holds NaN or infinity: it is no minimizer; train it with a "
                "smaller learning rate"
            )


def _check_shapes(kind: str, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        shapes = [tuple(tensors[name].shape) if name in tensors else "absent" for tensors in (ours, theirs)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"the models differ: {kind} {name!r} is {shapes[0]} in one and {shapes[1]} in the other")


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
