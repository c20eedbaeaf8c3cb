"""What a pass must leave as it is: parameters, whether they move or rest, buffers, and the outputs of later passes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lbgap.objective.questions.case import Case

TOLERANCE = 1e-5  # of the largest output: what kernels that do not repeat their bits make


class Kept:
    """The state of a replica before a pass, compared with that after it.

    Parameters that move are compared with the point where the replica stands, and by the versions that writing counts;
    those that rest by a sum, which needs no copy.
    """

    def __init__(self, case: Case) -> None:
        """Take note of the state.

        Args:
            case: Whose replica is about to run.
        """
        self._flat = case.evaluator.flat
        self._versions = [parameter._version for parameter in self._flat.moving]
        self._buffers = {name: value.clone() for name, value in self._flat.module.named_buffers() if _is_dense(value)}
        parameters = self._flat.module.named_parameters()
        self._frozen = {name: _sum(value) for name, value in parameters if not value.requires_grad}

    def check(self, theta: Tensor) -> None:
        """Refuse a model that has written into something.

        Args:
            theta: Where the replica should stand, ``(n,)``.

        Raises:
            ValueError: It has; the message says into what.
        """
        flat = self._flat
        written = [p._version != before for p, before in zip(flat.moving, self._versions, strict=True)]
        if not any(written) and not torch.equal(flat.theta, theta):  # by .data, where no version counts
            pairs = zip(flat.moving, flat.parts(theta), strict=True)
            written = [not _equal(parameter.detach(), part) for parameter, part in pairs]
        if any(written):
            raise ValueError(
                f"the model writes into its parameter {flat.names[written.index(True)]!r} when it runs, so that its "
                "gradient is not that of the loss: constrain it where it is trained, not in forward, or compute with a "
                "copy of it"
            )
        buffers = dict(flat.module.named_buffers())
        for name, value in self._buffers.items():
            if name not in buffers or not _equal(buffers[name], value):
                raise ValueError(_remembers("buffer", name))
        parameters = dict(flat.module.named_parameters())
        for name, value in self._frozen.items():
            if name not in parameters or not torch.equal(_sum(parameters[name]), value):
                raise ValueError(_remembers("frozen parameter", name))


def same(once: Sequence[Tensor], again: Sequence[Tensor]) -> bool:
    """Whether two outputs, as lists of tensors, are equal but for kernels that do not repeat their bits."""
    return len(once) == len(again) and all(map(_same, once, again))


def _same(once: Tensor, again: Tensor) -> bool:
    if once.shape != again.shape:
        return False
    if torch.equal(once, again):
        return True
    size = float(once.abs().nan_to_num(0, 0, 0).max()) if once.numel() else 0.0
    return torch.allclose(once, again, rtol=TOLERANCE, atol=0.1 * TOLERANCE * size, equal_nan=True)


def check_again(first: Sequence[Tensor], later: Sequence[Tensor]) -> None:
    """Refuse a model that has another output for the same inputs after other passes.

    Raises:
        ValueError: It has.
    """
    if not same(first, later):
        raise ValueError(
            "the model gives other outputs for the same inputs after some passes: it keeps something of what was "
            "evaluated before (a counter, a cache?); make its output depend on its inputs and parameters alone"
        )


def _remembers(what: str, name: str) -> str:
    return (
        f"the model changes its {what} {name!r} in evaluation mode: its loss would depend on what was evaluated "
        "before; change it only where self.training"
    )


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same, be it NaN."""
    return torch.equal(one, other) or (one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num()))


def _is_dense(value: Tensor) -> bool:
    return value.layout == torch.strided


def _sum(value: Tensor) -> Tensor:
    """A number that changes with a tensor's values."""
    value = value.detach()
    return value.sum(dtype=torch.float64).nan_to_num() if value.is_floating_point() else value.sum()
