"""A callable of the user's as a loss: it returns a mean, a value for each sample, or a sum and its weight."""

from __future__ import annotations

import copy
import functools
import math
import numbers
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from lbgap.problem import trees
from lbgap.problem.base import Loss, LossFunction, Sums, check_output, device_of, one_line
from lbgap.problem.broadcast import check_broadcast
from lbgap.problem.trees import Tree

TRIED = 32  # outputs that are kept for asking what targets weigh
WEIGHED = 4096  # samples that are asked for their weight together
WEIGHED_ENTRIES = 2**20  # of their outputs
MAX_CALLS = 8192  # of the loss, in one search for samples that weigh something


class Returned(NamedTuple):
    """What a callable returned for a batch.

    Attributes:
        values: 0-d, a mean or a sum; or of each sample, ``(batch,)``.
        weight: Of the sum; None where it is none.
    """

    values: Tensor
    weight: float | Tensor | None


@dataclass(frozen=True)
class Own(Loss):
    """A callable ``loss(output, target)``, which takes outputs as the model returns them, and any tree as target.

    Attributes:
        function: What is called; a module in copies of its own, of the outputs' dtype and in evaluation mode.
        weighs: Whether it returns pairs of a sum and a weight, once fitted.
        outputs: A few outputs, once fitted, ``(few, ...)``: with them it says what targets weigh. None where outputs
            or targets cannot be cut.
    """

    name: str
    given: LossFunction
    function: LossFunction
    weighs: bool = False
    raw: bool = True
    outputs: Any = field(default=None, compare=False, repr=False)

    def sums(self, output: Any, target: Tree) -> Sums:
        """As :meth:`Loss.sums`."""
        values, weight = self._call(output, target)
        if weight is not None:
            return Sums(values, values.detach().double(), functools.partial(_number, weight, self.name))
        samples = float(trees.count(target))
        exact = values.detach()
        if values.dim():
            return Sums(values.sum(), exact.sum(dtype=torch.float64), lambda: samples)
        return Sums(values * samples, exact.double() * samples, lambda: samples)

    def weight(self, target: Tree) -> float | None:
        """As :meth:`Loss.weight`."""
        return None if self.weighs else float(trees.count(target))

    def mean(self, output: Any, target: Tree) -> Tensor:
        """As :meth:`Loss.mean`."""
        values, weight = self._call(output, target)
        return values / weight if weight is not None else values.mean() if values.dim() else values

    def classes(self, output: Any, target: Tree) -> int | None:
        """As :meth:`Loss.classes`: where outputs and targets have the usual form, and all targets are classes."""
        if not (isinstance(output, Tensor) and isinstance(target, Tensor)):
            return None
        if output.dim() != 2 or output.shape[1] < 2 or target.dim() != 1 or target.dtype != torch.int64:
            return None
        low, high = (int(end) for end in target.aminmax())
        return output.shape[1] if low >= 0 and high < output.shape[1] else None

    def check_all(self, output: Any, targets: Iterable[Tree]) -> Self:
        """As :meth:`Loss.check_all`: call it on a few samples of the first piece; the others are not read."""
        target = next(iter(targets))
        if isinstance(output, Tensor):
            check_output(output)
        found, wanted = trees.size(output), trees.size(target)
        some, beside = output, target
        if found is not None and wanted is not None:
            few = slice(min(found, wanted))  # all that there are: it may take batches of one size
            some, beside = trees.rows(output, few), trees.rows(target, few)
        some, beside = _copied(some), _copied(beside, device_of(output) if trees.tensors(output) else None)
        weight = self._call(some, beside).weight
        if weight is not None:
            _number(weight, self.name)
        tensors = isinstance(output, Tensor) and isinstance(target, Tensor) and wanted is not None
        if tensors and output.dim() != target.dim():
            check_broadcast(self.function, self.name, output, target)
        if weight is None or found is None or wanted is None:
            return replace(self, weighs=weight is not None, outputs=None)
        return replace(self, weighs=True, outputs=_copied(trees.rows(output, slice(TRIED))))

    def counting(self, target: Tree, limit: int | None = None) -> Tensor:
        """As :meth:`Loss.counting`: those that weigh something, asked in chunks and their halves.

        All of them where it does not run on a few samples; some may be missed where these are very many.
        """
        samples = trees.size(target)
        if self.outputs is None or samples is None:
            return super().counting(target, limit)
        entries = sum(part[0].numel() for part in trees.tensors(self.outputs))
        size = max(1, min(WEIGHED, WEIGHED_ENTRIES // max(1, entries)))
        waiting = [(first, min(first + size, samples)) for first in range(0, samples, size)][::-1]
        found: list[int] = []
        for _ in range(MAX_CALLS):
            if not waiting or len(found) == limit:
                break
            first, end = waiting.pop()
            try:
                weight = self._weigh(trees.rows(target, slice(first, end)), end - first)
            except torch.OutOfMemoryError:
                raise
            except Exception:  # of a loss that takes batches of one size
                return super().counting(target, limit)
            if weight > 0 and end - first == 1:
                found.append(first)
            elif weight > 0:
                middle = (first + end) // 2
                waiting += [(middle, end), (first, middle)]
        return torch.tensor(found, dtype=torch.int64, device=device_of(target))

    def _weigh(self, target: Tree, samples: int) -> float:
        """The weight of the targets of some samples, with whatever outputs."""
        device, kept = device_of(self.outputs), trees.size(self.outputs)
        if samples == 1:  # one may be too few
            target, samples = trees.rows(target, torch.zeros(2, dtype=torch.int64, device="cpu")), 2
        rows = torch.arange(samples, device=device) % (kept or 1)
        return self.sums(trees.rows(self.outputs, rows), _copied(target, device)).weight

    def _call(self, output: Any, target: Tree) -> Returned:
        """Call it, and judge what comes back."""
        try:
            returned = self.function(output, target)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise one_line(error, self.name, output, target) from error
        return _judged(returned, trees.count(target), known=trees.known_count(target) is not None)


def _copied(tree: Tree, device: torch.device | None = None) -> Tree:
    """A copy without a graph, which a loss may overwrite, on a device if there is one."""
    return trees.map_tensors(lambda part: part.detach().to(device, copy=True), tree)


def _judged(returned: object, samples: int, *, known: bool) -> Returned:
    """What a loss returned for some samples, if it is one of the forms that are known.

    Args:
        returned: That.
        samples: How many there were, or one for a batch that cannot be cut.
        known: Whether that number is none of the latter.

    Raises:
        TypeError: It is not.
        ValueError: It is a tensor of another shape.
    """
    forms = "return the mean over the batch, one value per sample, or (sum, weight)"
    if isinstance(returned, (tuple, list)):
        if len(returned) != 2 or not isinstance(returned[0], Tensor):
            kinds = ", ".join(type(one).__name__ for one in returned)
            raise TypeError(f"the loss must return a tensor or a pair (sum, weight), got ({kinds}): {forms}")
        total, weight = returned
        number = isinstance(weight, numbers.Real) or (isinstance(weight, Tensor) and weight.numel() == 1)
        if total.numel() != 1 or not number:
            raise ValueError(
                f"the loss must return a pair (sum, weight) of two numbers, got a sum of shape {tuple(total.shape)} "
                f"and a {type(weight).__name__}: add them up over the batch"
            )
        if isinstance(weight, Tensor):
            if weight.requires_grad:
                raise ValueError(
                    "the weight that the loss returns depends on the model's output, but must follow from the targets "
                    "alone: use .detach() if it does"
                )
            weight = weight.reshape(())
        return Returned(_real(total).reshape(()), weight)
    if not isinstance(returned, Tensor):
        raise TypeError(
            f"the loss must return a tensor (the mean over the batch), got {type(returned).__name__}: {forms}"
        )
    returned = _real(returned)
    if returned.numel() == 1:
        return Returned(returned.reshape(()), None)
    if returned.numel() and not known:
        raise ValueError(
            "the loss must return a scalar (the mean over the batch) or (sum, weight) where batches cannot be cut into "
            f"samples, got shape {tuple(returned.shape)}: add the values up, and return their number as the weight"
        )
    if returned.dim() == 0 or len(returned) != samples or not returned.numel():
        raise ValueError(
            f"the loss must be a scalar (the mean over the batch) or have one row per sample, got shape "
            f"{tuple(returned.shape)} for {samples} samples: reduce it with .mean()"
        )
    return Returned(returned.flatten(1).mean(1) if returned.dim() > 1 else returned, None)


def _real(value: Tensor) -> Tensor:
    if not value.is_floating_point():
        raise TypeError(f"the loss must return floating-point numbers, got {value.dtype}: it has no gradient")
    return value


def _number(weight: Any, name: str) -> float:
    """The weight of a sum as a number."""
    value = float(weight)
    if not (0 <= value < math.inf):
        raise ValueError(
            f"the loss {name!r} returned the weight {value:g} with a sum: it must be finite and not negative"
        )
    return value


@dataclass(frozen=True)
class Copies:
    """A loss module in copies, one for each dtype and device of outputs; the user's own is never called."""

    module: nn.Module
    _made: dict[tuple[torch.dtype, torch.device] | None, nn.Module] = field(
        default_factory=dict, compare=False, repr=False
    )

    def __call__(self, output: Any, target: Tree) -> Any:
        """Call the copy for such outputs: of the dtype and on the device of their first floating tensor."""
        first = _first(output)
        key = None if first is None else (first.dtype, first.device)
        if key not in self._made:
            module = copy.deepcopy(self.module)
            self._made[key] = module if first is None else _cast(module, first)
        return self._made[key](output, target)


def _first(output: Any) -> Tensor | None:
    """The first floating tensor of an output; of an object that is no container, of its attributes."""
    inside = [output, *getattr(output, "__dict__", {}).values()] if not isinstance(output, Tensor) else [output]
    return next((part for one in inside for part in trees.observed(trees.plain(one))), None)


def _cast(module: nn.Module, output: Tensor) -> nn.Module:
    """Take a module of one's own to where outputs are; tensors that it holds as plain attributes go with it."""
    dtype = output.dtype if output.is_floating_point() else None
    module = module.to(output.device, dtype)
    for part in module.modules():
        for name, value in part.__dict__.items():
            if isinstance(value, Tensor) and not value.requires_grad:
                part.__dict__[name] = value.to(output.device, dtype if value.is_floating_point() else None)
    return module


def own(loss: LossFunction) -> Own:
    """Take a callable as a loss.

    Args:
        loss: A function, or a module, of which a copy in evaluation mode is called.

    Raises:
        ValueError: It is a module with trainable parameters, or one that holds tensors and cannot be copied.
    """
    name = getattr(loss, "__name__", type(loss).__name__)
    if not isinstance(loss, nn.Module):
        return Own(name, loss, loss)
    held = [*loss.named_parameters(), *loss.named_buffers()]
    trained = [place for place, value in held if value.requires_grad]
    if trained:
        raise ValueError(
            f"the loss {name!r} has trainable parameters of its own, {trained[0]!r}, which would not move: make them "
            "part of the model, or call loss.requires_grad_(False)"
        )
    try:
        return Own(name, loss, Copies(copy.deepcopy(loss).eval()))
    except Exception as error:
        if not held:
            return Own(name, loss, loss)
        text = " ".join(str(error).split())
        raise ValueError(f"the loss {name!r} cannot be copied ({text}): pass a function in its place") from error
