"""The losses that have a name: those of torch, which refuse targets that the name does not fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn, Self

import torch
from torch import Tensor

from lbgap.problem.base import dims
from lbgap.problem.forms import BCE_LOGITS, CROSS_ENTROPY, HUBER, L1, MSE, NLL, Form
from lbgap.problem.known import Known

NAMES: dict[str, tuple[Form, dict[str, Any]]] = {
    "cross_entropy": (CROSS_ENTROPY, {}),
    "mse": (MSE, {}),
    "bce": (BCE_LOGITS, {}),
    "nll": (NLL, {}),
    "l1": (L1, {}),
    "huber": (HUBER, {}),
}
# Operations whose results have no bounds, as autograd names them, and those that leave it to what they are made of.
LINEAR = {"Addmm", "Mm", "Bmm", "Baddbmm", "Addbmm", "Mv", "Addmv", "Dot", "Linear", "Convolution"}
LINEAR |= {"NativeBatchNorm", "NativeLayerNorm"}
KEEPING = {"View", "UnsafeView", "ReshapeAlias", "Alias", "Clone", "Squeeze", "Unsqueeze", "Select", "Slice", "Expand"}
KEEPING |= {"T", "Transpose", "Permute", "ToCopy", "Mean", "Sum", "Add", "Sub", "Neg", "Mul"}
KEEPING |= {"Index", "IndexSelect", "Gather", "Split", "SplitWithSizes", "Unbind"}
JOINING = {"Cat", "Stack"}  # to which all that they join has to be linear
SURE = 1e-3  # by which probabilities that the model returns may miss a sum of one


@dataclass(frozen=True)
class Named(Known):
    """A loss by name: a mean, over class indices that may lie in any layout, or over values."""

    def _fit(self, output: Tensor, target: Tensor, *, first: bool = True) -> Self:
        """As :meth:`Known._fit`; the classes may be in the last dimension too."""
        floating = target.is_floating_point() or target.is_complex()
        if self.form in (CROSS_ENTROPY, NLL):
            fitted = self._with_classes(output, target, floating) if first else self._sized(target)
            if not floating:
                fitted = fitted._check_indices(output, target, fitted, first=first)
            elif first:
                self._check_shape(output, target)
                if target.is_complex():
                    self._refuse_dtype(target)
                fitted = replace(fitted, complete=True)
            else:
                _probability_dim(target, [self.class_dim])
                fitted = replace(fitted, complete=True)
            if self.form is NLL and first:
                _check_log_probabilities(output, fitted.class_dim)
            return fitted
        if first:
            self._check_shape(output, target)
        if self.form is BCE_LOGITS:
            _check_shares(target)
            if first:
                _check_logits(output)
        elif not target.is_floating_point():
            self._refuse_dtype(target)
        return replace(self._sized(target), complete=True)

    def _refuse_dtype(self, target: Tensor) -> NoReturn:
        raise TypeError(f"loss {self.name!r} needs floating-point targets, got {target.dtype}: use .float()")

    def _with_classes(self, output: Tensor, target: Tensor, floating: bool) -> Self:
        """Find the dimension of the classes, and refuse targets of another loss."""
        fitted = self._sized(target)
        if output.dim() < 2 or output[0].numel() == 1:
            self._refuse_column(output, target)
        if floating:
            if target.shape[1:] == output.shape[1:] and self.form is CROSS_ENTROPY and not target.is_complex():
                fitted = replace(fitted, class_dim=_probability_dim(target))
            elif self.form is NLL:
                raise TypeError(f"loss 'nll' needs class indices, got {target.dtype}: use .long()")
        elif output.dim() > 2:
            fitted = replace(fitted, class_dim=self._layout(output, target))
        elif target.shape[1:] == output.shape[1:]:
            self._refuse_members(target)
        if output.shape[fitted.class_dim] < 2:
            self._refuse_column(output, target)
        return fitted

    def _layout(self, output: Tensor, target: Tensor) -> int:
        """Where the classes are, by the shape of their indices."""
        after = tuple(target.shape[1:])
        first, last = after == tuple(output.shape[2:]), after == tuple(output.shape[1:-1])
        if first and last:
            raise ValueError(
                f"loss {self.name!r} cannot tell where the classes are in outputs (n,{dims(output)}) with targets "
                f"(n,{dims(target)}): pass torch.nn.{self.form.module.__name__}() if they are in dimension 1, else "
                "let the model end with .movedim(-1, 1) as well"
            )
        if not first and not last and after == tuple(output.shape[1:]):
            self._refuse_members(target)
        return -1 if last else 1

    def _refuse_members(self, target: Tensor) -> NoReturn:
        one = target.dim() == 2 and _is_binary(target) and bool((target.sum(1) == 1).all())
        raise ValueError(
            f"loss {self.name!r} needs class indices, got one {str(target.dtype).removeprefix('torch.')} for each "
            f"output, (n,{dims(target)}): pass {'target.argmax(1), or ' if one else ''}loss='bce' if a sample may have "
            "several classes"
        )

    def _refuse_column(self, output: Tensor, target: Tensor) -> NoReturn:
        hint = ""
        if _is_binary(target):
            hint = ", or pass loss='bce' for one logit of two classes"
        elif target.is_floating_point():
            hint = ", or pass loss='mse' for values"
        raise ValueError(
            f"{self.name} needs an output (batch, classes) with two classes or more, got shape "
            f"{tuple(output.shape)}: return one logit per class{hint}"
        )


def _is_binary(target: Tensor) -> bool:
    return target.dtype == torch.bool or (not target.is_complex() and bool(((target == 0) | (target == 1)).all()))


def _probability_dim(target: Tensor, among: Sequence[int] = (1, -1)) -> int:
    """Which dimension of targets ``(n, ...)`` holds distributions.

    Args:
        target: The targets.
        among: Where they may be.

    Raises:
        ValueError: None does, or it cannot be told.
    """
    if bool(target.amin() >= 0):
        fits = [dim for dim in (among if target.dim() > 2 else among[:1]) if _sums_to_one(target, dim)]
        if len(fits) == 2:
            raise ValueError(
                f"loss 'cross_entropy' cannot tell where the classes are in targets (n,{dims(target)}): pass "
                "torch.nn.CrossEntropyLoss() if they are in dimension 1, else move them there"
            )
        if fits:
            return fits[0]
    if _is_binary(target):
        raise ValueError(
            "loss 'cross_entropy' needs class indices, or rows of probabilities that sum to one, got rows of zeros and "
            "ones with another sum: pass loss='bce' if a sample may have several classes"
        )
    raise ValueError(
        "loss 'cross_entropy' needs class indices, or rows of probabilities that are not negative and sum to one, got "
        "other numbers: pass loss='mse' for values, or torch.nn.CrossEntropyLoss() to take them as they are"
    )


def _sums_to_one(target: Tensor, dim: int) -> bool:
    """Whether all sums are one, but for the rounding of the dtype that the numbers come from."""
    off = float((target.sum(dim, dtype=torch.float64) - 1).abs().amax())
    for dtype in (target.dtype, torch.float32, torch.float16, torch.bfloat16):  # which may have been converted since
        close = off <= max(8, target.shape[dim]) * torch.finfo(dtype).eps
        if close and torch.equal(target.to(dtype).to(target.dtype), target):
            return True
    return False


def _check_shares(target: Tensor) -> None:
    """Refuse targets of ``"bce"`` outside of zero to one."""
    if target.dtype == torch.bool:
        return
    if target.is_complex():
        raise TypeError(f"loss 'bce' needs targets between 0 and 1, got {target.dtype}: use .real")
    low, high = (float(end) for end in target.aminmax())
    if low < 0 or high > 1:
        raise ValueError(f"loss 'bce' needs targets between 0 and 1, got {low:g}..{high:g}: rescale them")


def _check_logits(output: Tensor) -> None:
    """Refuse outputs of ``"bce"`` that look like probabilities, unless a last layer shows that they have no bounds."""
    if not bool(output.any()):  # a last layer that begins at zero; a sigmoid returns a half there
        return
    if bool(((output >= 0) & (output <= 1)).all()) and not _is_linear(output.grad_fn):
        raise ValueError(
            "loss 'bce' needs logits, got outputs that all lie between 0 and 1, like probabilities: pass "
            "torch.nn.BCELoss(), or torch.nn.BCEWithLogitsLoss() if they are logits"
        )


def _is_linear(node: Any) -> bool:
    """Whether what an operation of a graph returns is linear in the weights of a layer, as far as its name says."""
    if node is None:
        return False
    name = node.name().rstrip("0123456789").removesuffix("Backward")
    sources = (source for source, _ in node.next_functions)
    if name == "Div":  # by a number, not by what is divided: a share has bounds
        above, *below = sources
        return _is_linear(above) and not any(below)
    if name in JOINING:
        return all(map(_is_linear, sources))
    return name in LINEAR or (name in KEEPING and any(map(_is_linear, sources)))


def _check_log_probabilities(output: Tensor, dim: int) -> None:
    """Refuse outputs of ``"nll"`` whose exponentials do not sum to one."""
    off = output.detach().double().logsumexp(dim).abs()
    if not bool((off <= SURE).all()) and bool(off.isfinite().all()):
        raise ValueError(
            "loss 'nll' needs log-probabilities, got outputs whose exponentials do not sum to one: let the model end "
            "with log_softmax, or pass loss='cross_entropy' for logits"
        )
