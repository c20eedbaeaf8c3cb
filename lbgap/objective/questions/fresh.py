"""Fresh copies of the user's model, and what they return for a few samples."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

from lbgap.flat import FlatModule
from lbgap.layers import displace
from lbgap.objective.questions.case import Case
from lbgap.problem.batch import Batch
from lbgap.replica import set_mode

TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-6}  # of the largest output
FEW = 2
Result = TypeVar("Result")


def fresh(case: Case, theta: Tensor, *, dtype: torch.dtype | None = None) -> FlatModule:
    """A copy of the user's model in evaluation mode that was evaluated at no other parameters.

    Args:
        case: Whose model it is.
        theta: Its parameters, ``(n,)``, written in training mode, in which nothing made of them is kept.
        dtype: The replica's by default.
    """
    made = _in_training_mode(case, theta, dtype)
    set_mode(made.module, False)
    return made


def refreshed(
    case: Case, theta: Tensor, batch: Batch, *, dtype: torch.dtype | None = None, displaced: Collection[str] = ()
) -> FlatModule:
    """A :func:`fresh` copy that has been through a pass in training mode: some modules clear what they keep only then.

    Layers of ``torch.nn`` stay in evaluation mode in that pass.

    Args:
        case: Whose model it is.
        theta: Its parameters, ``(n,)``.
        batch: The samples of the pass.
        dtype: The replica's by default.
        displaced: Names of parameters that are moved some way off besides.
    """
    made = _in_training_mode(case, theta, dtype)
    displace([part for name, part in zip(made.names, made.moving, strict=True) if name in displaced])
    for module in made.module.modules():
        if not is_users(module):
            module.training = False
    try:
        with seeded(case, 0):
            outputs(case, made, batch)
    except torch.OutOfMemoryError:
        raise
    except Exception:
        pass  # of the user's code, which need not run in training mode
    set_mode(made.module, False)
    return made


def _in_training_mode(case: Case, theta: Tensor, dtype: torch.dtype | None) -> FlatModule:
    """A copy with other parameters, in training mode if it lets itself be put there."""
    made = copied(case, dtype)
    with contextlib.suppress(ValueError):
        set_mode(made.module, True)
    with torch.no_grad():
        made.theta.copy_(theta)
    return made


def copied(case: Case, dtype: torch.dtype | None = None, source: nn.Module | None = None) -> FlatModule:
    """A copy in evaluation mode, at its own parameters, without a place for gradients.

    Args:
        case: Whose model is copied.
        dtype: The replica's by default.
        source: What to copy; the user's model by default.
    """
    flat = case.evaluator.flat
    statistics = "batch" if flat.takes_statistics else "eval"
    return FlatModule(
        case.model if source is None else source,
        parameters=flat.selection if source is None else "all",
        batch_norm=flat.batch_norm if source is None else statistics,
        dtype=dtype or flat.theta.dtype,
        device=flat.theta.device,
        gradients=False,
        call=flat.call,
    )


def few(case: Case) -> Batch:
    """A fresh copy of two samples, or of as many as belong together."""
    batch = case.evaluator.few()
    return batch if case.evaluator.coupled or not batch.cuttable else batch.rows(slice(FEW))


def outputs(case: Case, flat: FlatModule, batch: Batch) -> list[Tensor]:
    """The tensors that a replica returns, with their graph.

    Args:
        case: Says how to evaluate.
        flat: What to evaluate.
        batch: Samples, cast to the replica's dtype; their inputs may be overwritten.
    """
    batch = batch.cast(flat.theta.dtype)
    with torch.enable_grad(), case.evaluator.exact(), case.evaluator.context(False):
        return case.seen(flat.run(batch.inputs), batch)


@contextlib.contextmanager
def seeded(case: Case, seed: int) -> Iterator[None]:
    """Random numbers from a seed; the generators are put back as they were."""
    device = case.evaluator.device
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng([device] if on_gpu else []):
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def same(one: list[Tensor], other: list[Tensor], tolerance: float | None = None) -> bool:
    """Whether two lists of outputs agree but for rounding.

    Args:
        one: Outputs.
        other: Outputs.
        tolerance: Of the largest output; by their dtype otherwise.
    """
    if [part.shape for part in one] != [part.shape for part in other]:
        return False
    for left, right in zip(one, other, strict=True):
        left, right = left.detach(), right.detach()
        if not left.is_floating_point():
            if not torch.equal(left, right):
                return False
            continue
        allowed = TOLERANCES.get(left.dtype, 1e-2) if tolerance is None else tolerance
        left, right = left.double(), right.double()
        finite = right[right.isfinite()].abs()
        largest = float(finite.max()) if finite.numel() else 0.0
        if not torch.allclose(left, right, rtol=0.0, atol=allowed * largest, equal_nan=True):
            return False
    return True


def precisely(case: Case, work: Callable[[torch.dtype], Result]) -> Result:
    """Do some work in float64, where rounding decides nothing, or in the replica's dtype if the model refuses that.

    Args:
        case: Whose model it is about.
        work: Takes the dtype.
    """
    try:
        return work(torch.float64)
    except torch.OutOfMemoryError:
        raise
    except Exception:
        if case.evaluator.flat.theta.dtype == torch.float64:
            raise
        return work(case.evaluator.flat.theta.dtype)


def is_users(module: nn.Module) -> bool:
    """Whether a module is of the user's own kind, and no layer of torch."""
    return not type(module).__module__.startswith(("torch.nn.", "torch.ao."))


def listed(names: Collection[str]) -> str:
    """A few names, and how many more there are."""
    shown = ", ".join(repr(name or "the model") for name in list(names)[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")
