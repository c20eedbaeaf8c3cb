"""What every loss is: a sum over the samples of a batch, and the weight by which such sums are averaged."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from lbgap.problem import trees
from lbgap.problem.trees import Tree

COARSE = 1e-5  # bfloat16 and float16: one rounding there outweighs what many operations add up to
SHOWN = 3  # parts of a tree that a message names
LossFunction = Callable[[Any, Any], Any]
"""Takes ``(output, target)``; returns a mean, values ``(batch, ...)``, or a sum and its weight."""


@dataclass(frozen=True)
class Sums:
    """The loss of a batch: sums over sums of weights are the value, however the samples are cut into batches.

    Attributes:
        total: The weighted sum, differentiable, 0-d of the output's dtype.
        exact: The same accumulated in float64, without a gradient.
        weigh: Gives :attr:`weight`, which waits for the device where targets are counted.
    """

    total: Tensor
    exact: Tensor
    weigh: Callable[[], float]

    @property
    def weight(self) -> float:
        """What the sum is divided by: the number of samples where the loss is a mean over them."""
        return self.weigh()


class Loss(ABC):
    """A loss that knows its sum over the samples of a batch.

    :meth:`check` fits it to outputs and targets: what it returns knows where the classes are, and whether all targets
    count. The rest works before too, with the classes in dimension 1. Outputs and targets are tensors, or where
    :attr:`raw` is true trees of them.

    Attributes:
        name: What a result records.
        given: What a user passes to have it.
        class_dim: Dimension of the output in which its classes are, 1 or -1.
        weighs: Whether it returns its weight with each sum, so that targets alone do not tell.
        raw: Whether it takes outputs as the model returns them, and of a batch that is a dict or an object all of it.
    """

    name: str
    given: str | LossFunction
    class_dim: int = 1
    weighs: bool = False
    raw: bool = False

    def facts(self) -> dict[str, Any]:
        """What a result records, ready for JSON: ``loss``, and ``loss_options`` where torch's defaults were changed."""
        return {"loss": self.name}

    @property
    def separable(self) -> bool:
        """Whether it is known to be a sum of one term a sample."""
        return False

    @property
    def even(self) -> bool:
        """Whether all samples are known to have one weight, so that the mean of means of equal batches is the mean."""
        return False

    @property
    def classification(self) -> bool:
        """Whether it is a negative log-likelihood of classes, whose accuracy is worth recording."""
        return False

    def for_model(self, model: nn.Module) -> Loss:
        """The loss of a model: the same, unless the model is what says what the loss is.

        Args:
            model: The user's.

        Raises:
            ValueError: It is not known what the model's own loss is a mean over.
        """
        return self

    @abstractmethod
    def sums(self, output: Any, target: Tree) -> Sums:
        """Sum the loss over the samples of one batch.

        Args:
            output: What the model returned, ``(batch, ...)``.
            target: What it should have returned, ``(batch, ...)``.

        Raises:
            TypeError: A callable loss did not return tensors.
            ValueError: It returned a tensor of another shape.
            Exception: Whatever a loss raises keeps its type, and says in one line which loss it was.
        """

    @abstractmethod
    def weight(self, target: Tree) -> float | None:
        """The weight of a batch of these targets, ``(batch, ...)``; None where only the outputs tell."""

    @abstractmethod
    def mean(self, output: Any, target: Tree) -> Tensor:
        """The loss of one batch as the user wrote it: what a step of a training differentiates.

        Args:
            output: What the model returned, ``(batch, ...)``.
            target: What it should have returned, ``(batch, ...)``.

        Returns:
            A differentiable 0-d tensor of the output's dtype.

        Raises:
            TypeError: As :meth:`sums`.
            ValueError: As :meth:`sums`.
        """

    def check(self, output: Any, target: Tree) -> Self:
        """Refuse outputs and targets that the loss would misread or silently drop, and fit it to them.

        Args:
            output: What the model returned for the first samples, or for all of them.
            target: The targets of all samples, ``(n, ...)``.

        Returns:
            The loss of these data, or of a part of them.

        Raises:
            TypeError: The output is not a tensor, or the targets have the wrong kind of dtype.
            ValueError: Output, shape or range of the targets do not fit the loss.
        """
        return self.check_all(output, (target,))

    @abstractmethod
    def check_all(self, output: Any, targets: Iterable[Tree]) -> Self:
        """As :meth:`check`, for targets that come piece by piece, in order.

        A piece may have other sizes after the first dimension than the one before, as batches have that are padded
        each for itself: with the output only the first is compared.

        Args:
            output: What the model returned for the first samples of the first piece, or for all of that.
            targets: Those of all samples; at least one piece. None is kept while the next one is read.

        Returns:
            The loss of all of these data, or of a part of them.

        Raises:
            TypeError: As :meth:`check`.
            ValueError: As :meth:`check`.
        """

    def joined(self, other: Self) -> Self:
        """The loss of the data that this one and another, fitted likewise, are fitted to.

        Raises:
            ValueError: They take the outputs otherwise.
        """
        return self

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
        return torch.stack([self.sums(output, target).exact for output in outputs])

    # What the loss is known to be, for whoever has a faster way.

    def by_class(self, target: Tree) -> bool:
        """Whether the sum is plain cross-entropy with one class index a sample, ``(batch,)`` int64, that counts."""
        return False

    def soft_targets(self, output: Any, target: Tree) -> Tensor | None:
        """What the sum is the cross-entropy with: ``u`` of ``-sum_c u_c log p_c``, class weights and all.

        Args:
            output: ``(batch, classes)``.
            target: ``(batch, ...)``.

        Returns:
            ``(batch, classes)`` of the output's dtype; None where the loss is no such sum.
        """
        return None

    def quadratic(self, output: Any) -> float | None:
        """The second derivative of the sum in every single output ``(batch, ...)``; None where it is no constant."""
        return None

    # Classes and accuracy.

    def classes(self, output: Any, target: Tree) -> int | None:
        """Number of classes if the targets ``(n, ...)`` are class indices of such outputs, else None."""
        return None

    def correct(self, outputs: Any, target: Tree) -> Tensor:
        """Count the outputs whose largest entry is the class of a target that counts; NaN is no answer.

        Args:
            outputs: ``(batch, classes)``, with the dimensions of the targets after the batch or, where
                :attr:`class_dim` is -1, after it; or those of several networks, ``(k, batch, ...)``.
            target: Class indices, ``(batch, ...)``, or a probability for each class.

        Returns:
            0-d float64, or ``(k,)``; NaN where outputs or targets are no tensors.
        """
        if not (isinstance(outputs, Tensor) and isinstance(target, Tensor)):
            return torch.full((), math.nan, dtype=torch.float64, device=device_of(target))
        labels = target.argmax(self.class_dim) if target.is_floating_point() else target
        networks = outputs.dim() - labels.dim() - 1
        dim = self.class_dim + networks if self.class_dim > 0 else self.class_dim
        found = outputs.argmax(dim)
        right = (found == labels) & ~outputs.gather(dim, found.unsqueeze(dim)).squeeze(dim).isnan()
        counts = self._counts(target)
        right = right if counts is None else right & counts
        return right.flatten(networks).sum(networks, dtype=torch.float64)

    def counted(self, target: Tree) -> int:
        """How many answers :meth:`correct` judges: the targets that are not ignored and whose class has a weight."""
        counts = self._counts(target)
        if counts is not None:
            return int(counts.sum())
        if not isinstance(target, Tensor):
            return trees.count(target)
        rows = self.classification and target.is_floating_point() and target.dim() > 1  # of probabilities
        return target.numel() // target.shape[self.class_dim] if rows else target.numel()

    def counting(self, target: Tree, limit: int | None = None) -> Tensor:
        """Which samples have a target that counts.

        Args:
            target: ``(batch, ...)``.
            limit: How many to find at most, the first ones; None for all.

        Returns:
            Their indices, ascending, ``(samples,)`` int64, on the targets' device.
        """
        counts = self._counts(target)
        if counts is None:
            return torch.arange(trees.count(target), device=device_of(target))[:limit]
        return counts.reshape(len(counts), -1).any(1).nonzero().flatten()[:limit]

    def _counts(self, target: Tree) -> Tensor | None:
        """Which class indices count, a mask ``(batch, ...)``; None if all do, or the targets are none."""
        return None


def tolerance(dtype: torch.dtype) -> float:
    """What rounding makes of a relative error at most, after many operations in a type."""
    eps = float(torch.finfo(dtype).eps)
    return eps**0.6 if eps < COARSE else 2 * eps


def check_output(output: object) -> Tensor:
    """Refuse what is no output for each sample.

    Raises:
        TypeError: It is not a tensor.
        ValueError: It is a single number.
    """
    if not isinstance(output, Tensor):
        raise TypeError(f"the model must return one tensor, got {type(output).__name__}: wrap it in a module that does")
    if output.dim() == 0:
        raise ValueError(
            "the model must return one output per sample, (batch, ...), got a single number: let it return its output, "
            "of which a callable loss(output, batch) makes a number"
        )
    return output


def device_of(tree: Tree) -> torch.device:
    """Where the first tensor of a tree is; the CPU where it has none."""
    return next((part.device for part in trees.tensors(tree)), torch.device("cpu"))


def dims(tensor: Tensor, skip: int = 1) -> str:
    """The sizes of a tensor after the first ones, as a shape ``(n,...)`` goes on."""
    return ",".join(f" {size}" for size in tensor.shape[skip:])


def described(tree: Any) -> str:
    """What a message says of outputs or targets: the shapes and dtypes of their tensors, a few of them."""
    if isinstance(tree, Tensor):
        return f"{tuple(tree.shape)} {tree.dtype}"
    kind = type(tree).__name__
    if isinstance(tree, Mapping):
        parts = [f"{name} {described(part)}" for name, part in [*tree.items()][:SHOWN]]
        inside = ", ".join([*parts, *["..."][: len(tree) > SHOWN]])
        return f"{{{inside}}}" if kind == "dict" else f"{kind} {{{inside}}}"
    if isinstance(tree, tuple | list):
        inside = ", ".join([*map(described, tree[:SHOWN]), *["..."][: len(tree) > SHOWN]])
        return f"({inside})" if isinstance(tree, tuple) else f"[{inside}]"
    return kind


def one_line(error: Exception, name: str, output: Any, target: Tree) -> Exception:
    """What a loss raised, with its type, as one line that names the loss.

    Args:
        error: What was raised.
        name: Of the loss.
        output: What the loss was called with.
        target: Likewise.

    Returns:
        An error of the same type where that takes one string, else a ``ValueError`` that names it.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    what = f"the loss {name!r} does not accept outputs {described(output)} with targets {described(target)}: "
    hint = ""
    if isinstance(error, RuntimeError) and ("dtype" in text or "scalar type" in text or "device" in text):
        hint = " (tensors inside the loss must follow the outputs: use .to(output))"
    try:
        found = type(error)(what + text + hint)
        if isinstance(found, KeyError) or str(found) == what + text + hint:
            return found
    except Exception:
        pass
    return ValueError(f"{what}{type(error).__name__}: {text}{hint}")
