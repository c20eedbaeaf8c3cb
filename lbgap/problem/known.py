"""The losses of torch, taken apart: the sum over a batch, and the weight that torch divides it by."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from lbgap.problem.base import Loss, LossFunction, Sums, check_output, dims, one_line
from lbgap.problem.forms import (
    CROSS_ENTROPY,
    HUBER,
    INDICES,
    KL,
    L1,
    MSE,
    MULTILABEL,
    MULTILABEL_SOFT,
    VALUES,
    Form,
)

COUNTED = 2**20  # targets whose weights are added up at once


@dataclass(frozen=True)
class Known(Loss):
    """A loss of torch with its options.

    The sum is that of the elements' losses; the weight is what torch divides the sum by. With ``reduction="sum"`` the
    value is the plain sum over the whole set: the set has the weight 1, and each sample an equal share of it.

    Attributes:
        form: Which one.
        options: Its keywords, tensors detached.
        reduction: ``"mean"``, ``"sum"``, ``"none"``, or ``"batchmean"`` of ``kl_div``.
        samples: How many the whole set has, once fitted.
        complete: Whether no target of the whole set is known to be ignored.
        length: Targets of each sample, once fitted; 0 where not all have as many.
    """

    name: str
    given: str | LossFunction
    form: Form
    options: Mapping[str, Any]
    reduction: str = "mean"
    class_dim: int = 1
    samples: int | None = None
    complete: bool = False
    length: int | None = None
    _casts: dict[tuple[torch.dtype, torch.device], dict[str, Any]] = field(
        default_factory=dict, compare=False, repr=False
    )

    def facts(self) -> dict[str, Any]:
        """As :meth:`Loss.facts`; tensors as lists."""
        usual = inspect.signature(self.form.function).parameters
        given = {**self.options, "reduction": self.reduction}
        changed = {
            name: value.tolist() if isinstance(value, Tensor) else value
            for name, value in sorted(given.items())
            if isinstance(value, Tensor) or value != usual[name].default
        }
        return {**super().facts(), **({"loss_options": changed} if changed else {})}

    @property
    def separable(self) -> bool:
        """Always."""
        return True

    @property
    def even(self) -> bool:
        """As :attr:`Loss.even`."""
        plain = self.complete and self._class_weight is None and self.length != 0
        return self.reduction != "sum" and (plain or not self.form.ratio or self.reduction != "mean")

    @property
    def classification(self) -> bool:
        """As :attr:`Loss.classification`."""
        return self.form.ratio

    @property
    def ignored(self) -> int:
        """The class index that does not count, where the mean is a ratio."""
        return int(self.options.get("ignore_index", -100))

    @property
    def _class_weight(self) -> Tensor | None:
        return self.options.get("weight") if self.form.targets == INDICES else None

    def sums(self, output: Tensor, target: Tensor) -> Sums:
        """As :meth:`Loss.sums`."""
        each = self._each(output, target)
        return Sums(each.sum(), each.detach().sum(dtype=torch.float64), functools.partial(self.weight, target))

    def weight(self, target: Tensor) -> float:
        """As :meth:`Loss.weight`; always a number."""
        if self.reduction == "sum":
            return len(target) / (self.samples or max(1, len(target)))
        if not self._is_ratio(target):
            return float(len(target))
        weight = self._class_weight
        if weight is None and self.complete:
            return float(target.numel())
        if weight is None:
            return float((target != self.ignored).sum())
        weight, total = weight.to(target.device, torch.float64), 0.0
        for some in target.flatten().split(COUNTED):
            total += float(weight[some[some != self.ignored].long()].sum())
        return total

    def mean(self, output: Tensor, target: Tensor) -> Tensor:
        """As :meth:`Loss.mean`."""
        if self.reduction == "none":
            return self._call(output, target, "none").mean()
        if self.form is KL and self.reduction == "mean":  # of which torch warns
            return self._call(output, target, "none").mean()
        return self._call(output, target, self.reduction)

    def totals(self, outputs: Tensor, target: Tensor) -> Tensor:
        """As :meth:`Loss.totals`."""
        if not (self.even and self.reduction == "mean" and self.class_dim == 1 and self.form in (CROSS_ENTROPY, MSE)):
            return super().totals(outputs, target)
        target = self._target(outputs, target)
        targets = target.expand(len(outputs), *target.shape)
        if self.form is CROSS_ENTROPY:  # the classes in the place where torch wants them
            outputs, targets = outputs.movedim(2, 1), targets.movedim(2, 1) if target.is_floating_point() else targets
        each = self._function(outputs, targets, "none")
        each = each.flatten(2) if each.dim() > 2 else each.unsqueeze(2)
        each = each.sum(2) if self._is_ratio(target) else each.mean(2)
        return each.sum(1, dtype=torch.float64)

    def _each(self, output: Tensor, target: Tensor) -> Tensor:
        """Terms of the sum: one a sample, ``(batch,)``, or one a target that may be ignored."""
        each = self._call(output, target, "none")
        if self._is_ratio(target) or (each.dim() == 1 and self.class_dim > 0):
            return each
        rows = each.reshape(len(target), -1)
        return rows.sum(1) if self.reduction in ("sum", "batchmean") else rows.mean(1)

    def _is_ratio(self, target: Tensor) -> bool:
        """Whether the mean is divided by the weights of the targets, which may be ignored."""
        return self.form.ratio and self.reduction == "mean" and not target.is_floating_point()

    def _call(self, output: Tensor, target: Tensor, reduction: str) -> Tensor:
        """What torch returns, with the classes in dimension 1."""
        target = self._target(output, target)
        if self.class_dim < 0:
            output = output.flatten(0, -2)
            target = target.flatten(0, -2) if target.is_floating_point() else target.flatten()
        return self._function(output, target, reduction)

    def _function(self, output: Tensor, target: Tensor, reduction: str) -> Tensor:
        try:
            return self.form.function(output, target, **self._at(output), reduction=reduction)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise one_line(error, self.name, output, target) from error

    def _target(self, output: Tensor, target: Tensor) -> Tensor:
        """Targets in the dtype that torch takes."""
        if self.form.targets == VALUES:
            return target if target.is_floating_point() else target.to(output.dtype)
        return target.long() if target.dtype == torch.bool else target

    def _at(self, output: Tensor) -> dict[str, Any]:
        """The options, tensors in the dtype and on the device of the outputs."""
        key = (output.dtype, output.device)
        if key not in self._casts:
            self._casts[key] = {
                name: value.to(output.device, output.dtype) if isinstance(value, Tensor) else value
                for name, value in self.options.items()
            }
        return self._casts[key]

    # What it is known to be.

    def by_class(self, target: Tensor) -> bool:
        """As :meth:`Loss.by_class`."""
        plain = self.form is CROSS_ENTROPY and self._class_weight is None and not self._smoothing and self.complete
        return plain and target.dim() == 1 and target.dtype == torch.int64

    @property
    def _smoothing(self) -> float:
        return float(self.options.get("label_smoothing", 0.0))

    def soft_targets(self, output: Tensor, target: Tensor) -> Tensor | None:
        """As :meth:`Loss.soft_targets`."""
        if self.form is not CROSS_ENTROPY or output.dim() != 2:
            return None
        weight, smoothing, target = self._at(output).get("weight"), self._smoothing, self._target(output, target)
        spread = smoothing / output.shape[1]
        if target.is_floating_point():
            soft = target.to(output.dtype)
            soft = soft * (1 - smoothing) + spread if smoothing else soft
            return soft if weight is None else soft * weight
        counts = torch.ne(target, self.ignored)
        labels = target.where(counts, 0)[:, None]
        each = torch.ones_like(labels, dtype=output.dtype) if weight is None else weight[labels]
        soft = torch.zeros_like(output).scatter_(1, labels, (1 - smoothing) * each)
        if smoothing:
            soft += spread if weight is None else spread * weight
        return soft * counts[:, None]

    def quadratic(self, output: Tensor) -> float | None:
        """As :meth:`Loss.quadratic`."""
        if self.form is not MSE:
            return None
        return 2.0 if self.reduction == "sum" else 2 / max(1, output[:1].numel())

    def classes(self, output: Tensor, target: Tensor) -> int | None:
        """As :meth:`Loss.classes`."""
        if self.form.targets != INDICES or target.is_floating_point():
            return None
        return output.shape[self.class_dim]

    def _counts(self, target: Tensor) -> Tensor | None:
        weight = self._class_weight
        if self.form.targets != INDICES or target.is_floating_point():
            return None
        if weight is None and (self.complete or not self.form.ratio):
            return None
        counts = torch.ne(target, self.ignored) if self.form.ratio else torch.ones_like(target, dtype=torch.bool)
        if weight is None:
            return counts
        known = counts & (target >= 0) & (target < len(weight))  # targets may not have been checked yet
        return counts & (~known | (weight.to(target.device) != 0)[target.where(known, 0).long()])

    # What it is fitted to.

    def check_all(self, output: Tensor, targets: Iterable[Tensor]) -> Self:
        """As :meth:`Loss.check_all`."""
        output = check_output(output)
        fitted: Self | None = None
        ratio, floating, weight = False, False, 0.0
        for target in targets:
            if fitted is None:
                one = fitted = self._fit(output, target)
                ratio, floating = self._is_ratio(target), target.is_floating_point()
            else:
                if self.form.targets == INDICES and target.is_floating_point() != floating:
                    raise TypeError(
                        f"the loss {self.name!r} needs targets of one kind in all batches, got class indices in some "
                        "and floating-point numbers in others: convert them"
                    )
                one = fitted._fit(output, target, first=False)
                fitted = fitted.joined(one)
            weight += one.weight(target) if ratio else 0.0
            del target  # before the next one is read
        assert fitted is not None
        if ratio and not 0 < weight < float("inf"):
            raise ValueError(
                f"the loss {self.name!r} counts no target of these data: all of them are ignored, or the weights of "
                "their classes do not add up to a positive number"
            )
        return fitted

    def joined(self, other: Self) -> Self:
        """As :meth:`Loss.joined`."""
        if self.class_dim != other.class_dim:
            raise ValueError(
                f"the loss {self.name!r} found the classes in dimension {self.class_dim} of some outputs, and "
                f"{other.class_dim} of others: let the model return one layout"
            )
        return replace(
            self,
            samples=(self.samples or 0) + (other.samples or 0),
            complete=self.complete and other.complete,
            length=self.length if self.length == other.length else 0,
        )

    def _sized(self, target: Tensor) -> Self:
        """The loss of as many samples."""
        return replace(self, samples=len(target), length=target[:1].numel())

    def _fit(self, output: Tensor, target: Tensor, *, first: bool = True) -> Self:
        """Fit the loss to a piece of the targets.

        Args:
            output: Of the first piece.
            target: ``(n, ...)``.
            first: Whether it is that piece; shapes are compared for it alone.
        """
        fitted = self._sized(target)
        if self.form.targets != INDICES:
            if first:
                self._check_values(output, target)
            return fitted
        if first and (output.dim() < 2 or output.shape[self.class_dim] < 2):
            raise ValueError(
                f"the loss {self.name!r} needs an output (batch, classes) with two classes or more, got shape "
                f"{tuple(output.shape)}: return one logit per class"
            )
        if self.form is CROSS_ENTROPY and (target.is_floating_point() or target.is_complex()):
            if first:
                self._check_shape(output, target)
            fitted = replace(fitted, complete=True)
        else:
            fitted = self._check_indices(output, target, fitted, first=first)
        if first:
            self._check_class_weight(output.shape[self.class_dim])
        return fitted

    def _check_values(self, output: Tensor, target: Tensor) -> None:
        """Refuse targets, or weights of elements, that are not of the outputs' shape."""
        if output.dim() < 2 and self.form in (MULTILABEL, MULTILABEL_SOFT):
            raise ValueError(
                f"the loss {self.name!r} needs outputs (batch, classes), got shape {tuple(output.shape)}: return "
                "one number per class"
            )
        self._check_shape(output, target)
        for name in ("weight", "pos_weight"):
            self._check_element_weight(name, output)

    def _check_indices(self, output: Tensor, target: Tensor, fitted: Self, *, first: bool = True) -> Self:
        """Refuse indices of another shape, or out of range; returns the loss that knows whether all count."""
        after = tuple(output.shape[2:] if self.class_dim > 0 else output.shape[1:-1])
        if target.is_floating_point() or target.is_complex():
            raise TypeError(f"the loss {self.name!r} needs class indices, got {target.dtype}: use .long()")
        if first and tuple(target.shape[1:]) != after:
            shape = ",".join(f" {size}" for size in after)
            raise ValueError(
                f"{self.name} needs targets of shape (n,{shape}) for outputs {tuple(output.shape)}, got "
                f"{tuple(target.shape)}: pass class indices, one per sample"
            )
        if not target.numel():  # of a sequence of which no token has another before it
            return replace(fitted, complete=False)
        indices, classes = target.long() if target.dtype == torch.bool else target, output.shape[self.class_dim]
        low, high = (int(end) for end in indices.aminmax())
        complete = not (self.form.ratio and low <= self.ignored <= high and bool((indices == self.ignored).any()))
        if not complete and not (low >= 0 and high < classes):
            others = indices[indices != self.ignored]
            low, high = (int(end) for end in others.aminmax()) if others.numel() else (0, 0)
        if low < 0 or high >= classes:
            marks = indices[(indices < 0) | (indices >= classes)].unique().tolist()
            hint = ""
            if len(marks) == 1:
                hint = f", or pass torch.nn.CrossEntropyLoss(ignore_index={marks[0]}) if that marks what does not count"
            raise ValueError(
                f"targets must be class indices in 0..{classes - 1} (the model has {classes} outputs), "
                f"got {low}..{high}: renumber the classes or widen the last layer{hint}"
            )
        return replace(fitted, complete=complete)

    def _check_shape(self, output: Tensor, target: Tensor) -> None:
        """Refuse targets that torch would broadcast against the outputs."""
        if target.shape[1:] != output.shape[1:]:
            hint = "one an output"
            if target.numel() // max(1, len(target)) == output[:1].numel():
                hint = f"them as target.reshape(-1,{dims(output)})"
            if self.form.targets == INDICES:
                hint = "class indices as integers, or one probability per class"
            raise ValueError(
                f"loss {self.name!r} needs targets of the output's shape (n,{dims(output)}), got (n,{dims(target)}) "
                f"{target.dtype}: pass {hint}"
            )

    def _check_class_weight(self, classes: int) -> None:
        weight = self._class_weight
        if weight is not None and tuple(weight.shape) != (classes,):
            raise ValueError(
                f"the loss {self.name!r} needs one weight a class, ({classes},), got {tuple(weight.shape)}: pass as "
                "many as the model has outputs"
            )

    def _check_element_weight(self, name: str, output: Tensor) -> None:
        """Refuse weights of elements that are not the same for every sample."""
        weight = self.options.get(name)
        if weight is None:
            return
        shape = (1, *output.shape[1:])
        # Of these torch takes only weights of the outputs' own shape, and divides by their sum.
        whole = self.form in (MSE, L1, HUBER) or (weight.dim() == output.dim() and weight.shape[0] != 1)
        if whole:
            raise ValueError(
                f"the {name} {tuple(weight.shape)} of the loss {self.name!r} has a dimension of the batch, which "
                "micro-batches cut: pass weights of samples as part of the targets, to a callable that returns "
                "(sum, weight)"
            )
        try:
            fits = torch.broadcast_shapes(weight.shape, shape) == shape
        except RuntimeError:
            fits = False
        if not fits:
            raise ValueError(
                f"the {name} {tuple(weight.shape)} of the loss {self.name!r} does not fit outputs "
                f"(n,{dims(output)}): pass one an output"
            )
