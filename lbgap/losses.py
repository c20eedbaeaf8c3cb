"""The losses that training and measuring share: a sum over samples that can be averaged exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

LossFunction = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Loss:
    """A loss that knows its sum over the samples of a batch.

    Attributes:
        name: What a result records: ``"cross_entropy"``, ``"mse"`` or the callable's own name.
        classification: Whether targets are class indices or class probabilities.
        function: ``function(output, target)``, the mean over the batch; ``None`` for the built-in losses.
    """

    name: str
    classification: bool
    function: LossFunction | None = None

    def total(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Sum the loss over the samples of one batch.

        Args:
            output: What the model returned, ``(batch, ...)``.
            target: What it should have returned, ``(batch, ...)``.

        Returns:
            The differentiable sum, a 0-d tensor of the output's dtype, and the same sum accumulated in
            float64 without a gradient.

        Raises:
            TypeError: A callable loss did not return a tensor.
            ValueError: It returned a tensor with more than one element.
        """
        if self.function is None:
            each = self._each(output, target)
            return each.sum(), each.detach().sum(dtype=torch.float64)
        mean = self.function(output, target)
        if not isinstance(mean, Tensor):
            raise TypeError(
                f"the loss must return a tensor (the mean over the batch), got {type(mean).__name__}: "
                "return a 0-d torch.Tensor"
            )
        if mean.numel() != 1:
            raise ValueError(
                f"the loss must be a scalar (the mean over the batch), got shape {tuple(mean.shape)}: "
                "reduce it with .mean()"
            )
        total = mean.reshape(()) * len(output)
        return total, mean.detach().reshape(()).double() * len(output)

    def _each(self, output: Tensor, target: Tensor) -> Tensor:
        """One loss per sample, ``(batch,)``; extra dimensions of a sample are averaged."""
        if self.classification:
            each = F.cross_entropy(output, target, reduction="none")
        else:
            each = F.mse_loss(output, target, reduction="none")
        return each.flatten(1).mean(1) if each.dim() > 1 else each

    def check(self, output: Tensor, target: Tensor) -> None:
        """Refuse targets that the built-in losses would misread or silently drop.

        Args:
            output: What the model returned for the samples, or for some of them: only its shape counts.
            target: The targets of all samples, ``(n, ...)``.

        Raises:
            TypeError: The output is not a tensor, or the targets have the wrong kind of dtype.
            ValueError: Output, shape or range of the targets do not fit the loss.
        """
        if not isinstance(output, Tensor):
            raise TypeError(
                f"the model must return one tensor, got {type(output).__name__}: wrap it in a module that does"
            )
        if self.function is not None:
            return
        if self.classification and not target.is_floating_point():
            self._check_classes(output, target)
        elif target.shape[1:] != output.shape[1:]:
            raise ValueError(
                f"loss {self.name!r} needs targets of the output's shape (n, {_dims(output)}), "
                f"got (n, {_dims(target)}): reshape the targets"
            )
        elif not target.is_floating_point():
            raise TypeError(f"loss {self.name!r} needs floating-point targets, got {target.dtype}: use .float()")

    @staticmethod
    def _check_classes(output: Tensor, target: Tensor) -> None:
        if output.dim() < 2:
            raise ValueError(
                f"cross_entropy needs an output (batch, classes), got shape {tuple(output.shape)}: "
                "return one logit per class"
            )
        if target.shape[1:] != output.shape[2:]:
            raise ValueError(
                f"cross_entropy needs targets of shape (n,{_dims(output, 2)}) for outputs (n, classes,"
                f"{_dims(output, 2)}), got {tuple(target.shape)}: pass class indices, one per sample"
            )
        classes = output.shape[1]
        low, high = int(target.min()), int(target.max())
        if low < 0 or high >= classes:
            raise ValueError(
                f"targets must be class indices in 0..{classes - 1} (the model has {classes} outputs), "
                f"got {low}..{high}: renumber the classes or widen the last layer"
            )


def _dims(tensor: Tensor, skip: int = 1) -> str:
    return ", ".join(str(size) for size in tensor.shape[skip:])


def resolve_loss(loss: str | LossFunction) -> Loss:
    """Turn what the user passed as ``loss`` into a :class:`Loss`.

    Args:
        loss: ``"cross_entropy"``, ``"mse"`` or a callable ``loss(output, target)`` that returns the mean
            over the batch.

    Returns:
        The loss.

    Raises:
        ValueError: The name is not known.
        TypeError: It is neither a name nor a callable.
    """
    if loss == "cross_entropy":
        return Loss("cross_entropy", classification=True)
    if loss == "mse":
        return Loss("mse", classification=False)
    if isinstance(loss, str):
        raise ValueError(f"loss must be 'cross_entropy', 'mse' or a callable, got {loss!r}")
    if callable(loss):
        return Loss(getattr(loss, "__name__", type(loss).__name__), classification=False, function=loss)
    raise TypeError(f"loss must be 'cross_entropy', 'mse' or a callable, got {type(loss).__name__}")
