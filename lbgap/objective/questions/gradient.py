"""With and without gradients a model is one function."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lbgap.flat import FlatModule
from lbgap.objective.questions.case import YES, Case
from lbgap.objective.questions.kept import Kept, check_again
from lbgap.objective.questions.rounding import differ, wide
from lbgap.problem import trees

DOUBT = (
    "not judged: with and without gradients outputs differ, perhaps by rounding, and the model runs in float32 alone"
)


def ask(case: Case) -> str:
    """Ask it of the few samples, at the minimizer and some way off.

    Raises:
        ValueError: The outputs differ, or the pass of a gradient writes into a parameter or a buffer.
    """
    doubt = _compare(case, case.first, case.centre)
    if case.fails_elsewhere():
        return case.fails_elsewhere()
    with case.elsewhere():
        return _compare(case, case.output(case.evaluator.few().inputs), case.displaced) or doubt or YES


def _compare(case: Case, plain: Any, theta: Tensor) -> str:
    """Compare the output of a gradient's pass with that of a value's, where the replica stands; returns a doubt."""
    kept = Kept(case)
    recorded = case.output(case.evaluator.few().inputs, grad=True)
    kept.check(theta)
    answer = differ(case, case.seen(recorded), case.seen(plain), functools.partial(_both, case))
    if answer:
        check_again(case.seen(plain), case.seen(case.output(case.evaluator.few().inputs)))  # a counter explains more
        raise ValueError(
            "the model gives other outputs with gradients than without (torch.is_grad_enabled() or requires_grad in "
            "its code?): its loss and its gradient would be of two functions; make it compute the same in both"
        )
    return DOUBT if answer is None else ""


def _both(case: Case, flat: FlatModule) -> Sequence[Tensor]:
    """The outputs of a float64 copy in the passes of a gradient and of a value."""
    with torch.enable_grad():
        recorded = trees.detached(flat.run(wide(case.evaluator.few()).inputs))
    with case.evaluator.unrecorded():
        return [*case.seen(recorded), *case.seen(trees.detached(flat.run(wide(case.evaluator.few()).inputs)))]
