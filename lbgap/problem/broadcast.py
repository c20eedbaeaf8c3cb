"""Whether a callable loss lets torch broadcast one sample's output against the targets of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lbgap.problem.base import LossFunction, dims
from lbgap.problem.forms import FORMS, VALUES

SIZES = (5, 3)  # of the batches on which it must show, so that no other dimension is taken for that of the batch
ELEMENTWISE = tuple(form.function for form in FORMS if form.targets == VALUES)


class _Watch(TorchFunctionMode):
    """Notes an operation that takes outputs ``(batch, 1, ...)`` and targets ``(batch, ...)`` to pairs of samples."""

    def __init__(self, samples: int) -> None:
        super().__init__()
        self.samples, self.found = samples, ""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [one for one in args if isinstance(one, Tensor)]
        if len(tensors) == 2 and isinstance(result, Tensor):
            one, other = sorted(tensors, key=lambda tensor: tensor.requires_grad)
            apart = not one.requires_grad and other.requires_grad and one.dim() != other.dim()
            if apart and one.dim() and other.dim() and len(one) == len(other) == self.samples:
                grown = result.numel() > max(one.numel(), other.numel()) and result.shape[:1] == (self.samples,)
                if (func in ELEMENTWISE and one.numel() == other.numel()) or (
                    grown and result.dim() == max(one.dim(), other.dim())
                ):
                    self.found = f"(n,{dims(other)}) and (n,{dims(one)})"
        return result


def check_broadcast(function: LossFunction, name: str, output: Tensor, target: Tensor) -> None:
    """Refuse a callable that broadcasts outputs and targets against each other over the batch.

    Args:
        function: It.
        name: What it is called.
        output: ``(batch, ...)``.
        target: ``(n, ...)``, of another number of dimensions.

    Raises:
        ValueError: It does; the value would be a mean over all pairs of samples.
    """
    found = []
    for samples in SIZES:
        if min(len(output), len(target)) < samples:
            return
        watch = _Watch(samples)
        try:
            with torch.enable_grad(), watch:
                function(
                    output[:samples].detach().clone().requires_grad_(), target[:samples].to(output.device, copy=True)
                )
        except torch.OutOfMemoryError:
            raise
        except Exception:
            return  # it has accepted more samples, and goes on to be judged by these
        found.append(watch.found)
    if all(found):
        raise ValueError(
            f"the loss {name!r} lets torch broadcast outputs and targets, {found[0]}, to all pairs of samples: give "
            "them one shape, such as target[:, None] or output.squeeze(1)"
        )
