"""Whether two outputs differ by more than rounding: told apart in a float64 copy where float32 leaves a doubt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lbgap.flat import FlatModule
from lbgap.objective.questions.case import Case
from lbgap.objective.questions.fresh import copied
from lbgap.problem.base import tolerance
from lbgap.problem.batch import Batch

NEAR = 100  # units in the last place that rounding may make anywhere
CLEAR = 1e-3  # of a row: more than rounding makes in float32, but where a value is rounded to whole numbers
CLEAR_SHARE = 0.25  # of the rows: more than those in which such a step falls to the other side
SMALL_ROWS = 0.1, 1e-3  # of the median, and of the largest row: what a row counts for at least

Outputs = Callable[[FlatModule], Sequence[Tensor]]


class Narrowest(TorchDispatchMode):
    """Notes the floating type with the fewest digits that anything is computed in.

    Attributes:
        dtype: It; float64 as long as there was no other.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtype = torch.float64

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation, and look at what it makes."""
        result = func(*args, **(kwargs or {}))
        for one in result if isinstance(result, tuple | list) else (result,):
            if isinstance(one, Tensor) and one.is_floating_point() and one.dim():
                self.dtype = max(self.dtype, one.dtype, key=lambda dtype: torch.finfo(dtype).eps)
        return result


def differ(case: Case, found: Sequence[Tensor], expected: Sequence[Tensor], again: Outputs) -> bool | None:
    """Whether outputs differ by more than rounding.

    Args:
        case: Whose replica stands where they were computed.
        found: Outputs ``(rows, ...)`` of the replica, tensor by tensor.
        expected: As many, of the same shapes.
        again: From a float64 copy of the replica to those found followed by those expected.

    Returns:
        True or False; None where float32 leaves a doubt and the copy does not run.
    """
    errors = torch.cat([row_errors(*pair, SMALL_ROWS[0], "median") for pair in zip(found, expected, strict=True)])
    eps = max(torch.finfo(part.dtype).eps if part.is_floating_point() else 0.0 for part in found)
    if bool((errors <= NEAR * eps).all()):
        return False
    try:
        flat, narrowest = in_float64(case), Narrowest()
        with narrowest:
            outputs = list(again(flat))
    except torch.OutOfMemoryError:
        raise
    except Exception:  # code that names float32, or keeps what cannot be copied
        return True if float((errors > CLEAR).double().mean()) >= CLEAR_SHARE else None
    half = len(outputs) // 2
    pairs = zip(outputs[:half], outputs[half:], strict=True)
    exact = torch.cat([row_errors(*pair, SMALL_ROWS[1], "max") for pair in pairs])
    return bool((exact > tolerance(narrowest.dtype)).any())


def row_errors(found: Tensor, expected: Tensor, share: float, which: str) -> Tensor:
    """The largest error in each row, relative to its largest entry, ``(rows,)`` float64.

    Args:
        found: ``(rows, ...)``.
        expected: ``(rows, ...)``.
        share: Of the median or of the maximum over the rows that a row counts for at least.
        which: ``"median"`` or ``"max"``.
    """
    if found.shape != expected.shape:
        return torch.full((1,), torch.inf, dtype=torch.float64, device=found.device)
    if not len(found) or not found[0].numel():
        return torch.zeros(len(found), dtype=torch.float64, device=found.device)
    found, expected = (torch.view_as_real(part) if part.is_complex() else part for part in (found, expected))
    one, other = (part.double().reshape(len(part), -1) for part in (found, expected))
    same = (one == other) | (one.isnan() & other.isnan())
    size = torch.maximum(one.nan_to_num(0, 0, 0).abs(), other.nan_to_num(0, 0, 0).abs()).amax(1)
    size = torch.maximum(size, share * (size.median() if which == "median" else size.max()))
    error = torch.where(same, 0.0, (one - other).abs()).nan_to_num(torch.inf, torch.inf).amax(1)
    return torch.where(error > 0, error / size, 0.0)


def in_float64(case: Case) -> FlatModule:
    """A copy of the replica in float64, where the replica stands: an error where there is none."""
    return copied(case, torch.float64, case.evaluator.flat.module)


def wide(batch: Batch) -> Batch:
    """Fresh samples for a float64 model: floating values in float64, others as they are."""
    return batch.cast(torch.float64)
