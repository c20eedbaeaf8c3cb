"""With and without gradients a model is one function."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lbgap.objective.questions.case import YES, Case
from lbgap.objective.questions.rounding import differ, wide

DOUBT = (
    "not judged: with and without gradients outputs differ, perhaps by rounding, and the model runs in float32 alone"
)


def ask(case: Case) -> str:
    """Ask it of the few samples, at the minimizer and some way off.

    Raises:
        ValueError: The outputs differ.
    """
    doubt = _compare(case, case.first)
    with case.elsewhere():
        return _compare(case, case.output(case.evaluator.few().inputs)) or doubt or YES


def _compare(case: Case, plain: Tensor) -> str:
    """Compare the output of a gradient's pass with that of a value's, where the replica stands; returns a doubt."""
    inputs = case.evaluator.few().inputs
    recorded = case.output(inputs, grad=True)
    few = case.evaluator.few().inputs
    answer = differ(case, [recorded], [plain], functools.partial(_both, few, case.evaluator.unrecorded))
    if answer:
        raise ValueError(
            "the model gives other outputs with gradients than without (torch.is_grad_enabled() or requires_grad in "
            "its code?): its loss and its gradient would be of two functions; make it compute the same in both"
        )
    return DOUBT if answer is None else ""


def _both(inputs: Tensor, unrecorded: Callable[[], torch.set_grad_enabled], module: nn.Module) -> Sequence[Tensor]:
    """The outputs of a float64 copy in the passes of a gradient and of a value."""
    with torch.enable_grad():
        recorded = module(wide(inputs)).detach()
    with unrecorded():
        return recorded, module(wide(inputs)).detach()
