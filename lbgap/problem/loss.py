"""The losses that training and measuring share: a sum over samples that can be averaged exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LossFunction = Callable[[Tensor, Tensor], Tensor]


class Sums(NamedTuple):
    """The loss of a batch: sums over sums of weights are the mean, however the samples are cut into batches.

    Attributes:
        total: The weighted sum, differentiable, 0-d of the output's dtype.
        exact: The same accumulated in float64, without a gradient.
        weight: What the sum is divided by: the number of samples where the loss is a mean over them.
    """

    total: Tensor
    exact: Tensor
    weight: float


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

    def sums(self, output: Tensor, target: Tensor) -> Sums:
        """Sum the loss over the samples of one batch.

        Args:
            output: What the model returned, ``(batch, ...)``.
            target: What it should have returned, ``(batch, ...)``.

        Raises:
            TypeError: A callable loss did not return a tensor.
            ValueError: It returned a tensor with more than one element.
        """
        weight = self.weight(target)
        if self.function is None:
            each = self._each(output, target)
            return Sums(each.sum(), each.detach().sum(dtype=torch.float64), weight)
        mean = self._own(output, target)
        return Sums(mean * weight, mean.detach().double() * weight, weight)

    def weight(self, target: Tensor) -> float:
        """The weight of a batch of these targets, ``(batch, ...)``: its number of samples."""
        return len(target)

    def mean(self, output: Tensor, target: Tensor) -> Tensor:
        """Average the loss over the samples of one batch: what a step of a training differentiates.

        Args:
            output: What the model returned, ``(batch, ...)``.
            target: What it should have returned, ``(batch, ...)``.

        Returns:
            The differentiable mean, a 0-d tensor of the output's dtype.

        Raises:
            TypeError: As :meth:`sums`.
            ValueError: As :meth:`sums`.
        """
        if self.function is not None:
            return self._own(output, target)
        return F.cross_entropy(output, target) if self.classification else F.mse_loss(output, target)

    def _own(self, output: Tensor, target: Tensor) -> Tensor:
        """What a callable returns, 0-d."""
        assert self.function is not None
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
        return mean.reshape(())

    def by_class(self, target: Tensor) -> bool:
        """Whether this is cross-entropy with one class index a sample: ``(batch,)`` int64."""
        return self.function is None and self.classification and target.dim() == 1 and target.dtype == torch.int64

    def totals(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Sum the loss over the samples of one batch, for the outputs of several networks.

        Args:
            outputs: ``(k, batch, ...)``.
            target: What each of them should have returned, ``(batch, ...)``.

        Returns:
            ``(k,)`` float64, each as :attr:`Sums.exact`, without a gradient.

        Raises:
            TypeError: As :meth:`sums`.
            ValueError: As :meth:`sums`.
        """
        if self.function is not None:
            return torch.stack([self.sums(output, target).exact for output in outputs])
        targets = target.expand(len(outputs), *target.shape)
        if not self.classification:
            each = F.mse_loss(outputs, targets, reduction="none")
        else:  # the classes in the place where torch wants them
            targets = targets.movedim(2, 1) if target.is_floating_point() else targets
            each = F.cross_entropy(outputs.movedim(2, 1), targets, reduction="none")
        each = each.flatten(2).mean(2) if each.dim() > 2 else each
        return each.sum(1, dtype=torch.float64)

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
        if output.dim() == 0:
            raise ValueError("the model must return one output per sample, (batch, ...), got a single number")
        if self.function is not None:
            return
        if self.classification and (output.dim() < 2 or output.shape[1] < 2):
            raise ValueError(
                "cross_entropy needs an output (batch, classes) with two classes or more, got shape "
                f"{tuple(output.shape)}: return one logit per class"
            )
        if self.classification and not (target.is_floating_point() or target.is_complex()):
            self._check_classes(output, target)
        elif target.shape[1:] != output.shape[1:]:
            hint = "class indices as integers, or one probability per class" if self.classification else "one an output"
            raise ValueError(
                f"loss {self.name!r} needs targets of the output's shape (n,{_dims(output)}), got (n,{_dims(target)}) "
                f"{target.dtype}: pass {hint}"
            )
        elif not target.is_floating_point():
            raise TypeError(f"loss {self.name!r} needs floating-point targets, got {target.dtype}: use .float()")

    def check_mean(self, once: Tensor, again: Tensor, target: Tensor) -> None:
        """Refuse a callable that is no mean over the batch, is random, or trains something of its own.

        Args:
            once: What the model returned for some samples, detached.
            again: The same once more.
            target: The targets of these samples.

        Raises:
            ValueError: The loss is none that can be averaged over batches, or depends on more than the output.
        """
        if self.function is None:
            return
        first, second = (self.sums(output.detach().clone(), target.clone()) for output in (once, again))
        both = self.sums(torch.cat([once, again]), torch.cat([target, target])).exact
        if first.total.requires_grad:
            raise ValueError(
                "the loss depends on trainable tensors besides the model's output (a penalty on parameters?), which "
                "would not move: leave them out, or detach() them"
            )
        if both.isfinite() and not torch.isclose(both, first.exact + second.exact, rtol=1e-3, atol=1e-6):
            raise ValueError(
                f"the loss must be the mean over the batch: {len(once)} samples gave "
                f"{float(first.exact) / len(once):g}, the same twice over {float(both) / len(once) / 2:g}; use "
                "reduction='mean', and nothing random"
            )

    @staticmethod
    def _check_classes(output: Tensor, target: Tensor) -> None:
        if target.shape[1:] != output.shape[2:]:
            raise ValueError(
                f"cross_entropy needs targets of shape (n,{_dims(output, 2)}) for outputs {tuple(output.shape)}, got "
                f"{tuple(target.shape)}: pass class indices, one per sample"
            )
        classes = output.shape[1]
        low, high = int(target.min()), int(target.max())
        if low < 0 or high >= classes:
            raise ValueError(
                f"targets must be class indices in 0..{classes - 1} (the model has {classes} outputs), "
                f"got {low}..{high}: renumber the classes or widen the last layer"
            )


def _dims(tensor: Tensor, skip: int = 1) -> str:
    return ",".join(f" {size}" for size in tensor.shape[skip:])


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
    if isinstance(loss, type):
        raise TypeError(
            f"loss must be a function of (output, target), got the class {loss.__name__}: pass an instance of it"
        )
    if callable(loss):
        return Loss(getattr(loss, "__name__", type(loss).__name__), classification=False, function=loss)
    raise TypeError(f"loss must be 'cross_entropy', 'mse' or a callable, got {type(loss).__name__}")
