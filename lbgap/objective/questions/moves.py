"""Does moving the parameters move the function, as it would in a fresh copy of the user's model?"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lbgap.objective.questions.case import YES, Case
from lbgap.objective.questions.fresh import copied, fresh, is_users, outputs, precisely, refreshed, same
from lbgap.objective.questions.remedy import remedy
from lbgap.system.device import first_line


def ask(case: Case) -> str:
    """Compare the replica some way off with a fresh copy of the user's model that has these parameters.

    Raises:
        ValueError: They differ: the model computes with something made of other parameters.
    """
    # Whatever a module of the user's keeps may have been made of parameters: a tensor, an array, a number.
    stale = any(is_users(module) and not _is_ours(module) for module in case.model.modules())
    try:
        if _follows(case, stale):
            return YES
        mended = remedy(case)
        if mended is not None and _follows(case, stale):
            return mended
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of the user's code, where parameters are no others than those of a minimizer
        return f"not judged: the model does not run with moved parameters ({first_line(error)})"
    raise ValueError(
        f"{type(case.model).__name__} caches something made of its parameters in evaluation mode: with moved "
        "parameters it returns something else than a copy that was never evaluated; compute that in every forward, or "
        "clear it in train(), or pass judge=False"
    )


def _is_ours(module: nn.Module) -> bool:
    """Whether a module is one of this package's networks, which keep nothing."""
    return type(module).__module__.partition(".")[0] == "lbgap"


def _follows(case: Case, stale: bool) -> bool:
    """Whether the replica returns what a copy does.

    Args:
        case: Whose replica it is.
        stale: Whether the user's model may hold what was made of its parameters.
    """
    flat, few = case.evaluator.flat, case.evaluator.few
    with case.elsewhere():
        here = outputs(case, flat, few())
        follows = same(here, outputs(case, fresh(case, flat.theta), few())) or precisely(
            case, lambda dtype: _agree(case, flat.theta, dtype)
        )
        if follows and not stale:
            return True
        # What the user's model keeps since it was evaluated shows after a pass in training mode, which clears it.
        if same(here, outputs(case, refreshed(case, flat.theta, few()), few())):
            return True
    # Or that pass makes another function of it, at the minimizer too.
    return follows and not same(outputs(case, flat, few()), outputs(case, refreshed(case, case.centre, few()), few()))


def _agree(case: Case, theta: Tensor, dtype: torch.dtype) -> bool:
    """The first comparison once more, where rounding does not count."""
    few, module = case.evaluator.few, case.evaluator.flat.module
    here = outputs(case, copied(case, dtype, module), few())
    return same(here, outputs(case, fresh(case, theta, dtype=dtype), few()))
