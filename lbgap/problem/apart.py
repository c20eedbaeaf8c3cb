"""Which loss of torch something that a user passed is, and with what options."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor, nn
from torch.nn import _reduction

from lbgap.problem.base import LossFunction
from lbgap.problem.forms import FORMS, KL, REDUCTIONS, Form
from lbgap.problem.known import Known


def take_apart(loss: LossFunction) -> Known | None:
    """Find out which loss of torch something is.

    Args:
        loss: A module of torch or a subclass that keeps its ``forward``, a function of ``torch.nn.functional``, or such
            a function in ``functools.partial``.

    Returns:
        The loss with its options; None if it is none of these.

    Raises:
        ValueError: It has trainable tensors.
    """
    inner = getattr(loss, "_orig_mod", loss)  # what torch.compile was given
    function, keywords = inner, {}
    if isinstance(loss, functools.partial):
        function, keywords = loss.func, dict(loss.keywords)
        if loss.args:
            return None
    for form in FORMS:
        if function is form.function and set(keywords) <= {*form.options, "reduction", "size_average", "reduce"}:
            return _known(form.function.__name__, loss, form, keywords)
        if isinstance(inner, form.module) and _is_plain(inner, form.module):
            options = {option: getattr(inner, option) for option in form.options if hasattr(inner, option)}
            return _known(type(inner).__name__, loss, form, {**options, "reduction": inner.reduction})
    return None


def _is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling a module does what torch's own does."""
    own = type(module)
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return (
        own.forward is kind.forward
        and own.__call__ is nn.Module.__call__
        and not hooks
        and "forward" not in module.__dict__
    )


def _known(name: str, given: LossFunction, form: Form, keywords: dict[str, Any]) -> Known | None:
    reduction = keywords.pop("reduction", "mean")
    legacy = keywords.pop("size_average", None), keywords.pop("reduce", None)
    if legacy != (None, None):
        reduction = _reduction.legacy_get_string(*legacy, emit_warning=False)
    if reduction not in (*REDUCTIONS, "batchmean" if form is KL else "mean"):
        return None  # torch says what is wrong with it
    for option, value in keywords.items():
        if isinstance(value, Tensor) and value.requires_grad:
            raise ValueError(
                f"the loss {name!r} has a trainable tensor, its {option!r}, which would not move: pass a detached one"
            )
    options = {
        option: value.detach().clone() if isinstance(value, Tensor) else value
        for option, value in keywords.items()
        if value is not None
    }
    return Known(name, given, form, options, reduction)
