"""Attention as every pass computes it; and what fused kernels do in plain operations, which have all derivatives.

In evaluation mode and without gradients the attention layers of ``torch.nn`` take another path than with them, which
rounds otherwise, pads otherwise, and leaves out code of subclasses. No pass takes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import BaseTorchFunctionMode

ENTERED = (F.multi_head_attention_forward, torch.autograd.grad)  # what attends inside, the latter by recomputing
FAST = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)  # layers with a fast path


class NoFastPath(BaseTorchFunctionMode):
    """While it is entered, the attention layers of ``torch.nn`` compute without gradients as they do with them.

    A mode of whatever kind keeps their fast path off, in this thread alone; ``torch.backends.mha.set_fastpath_enabled``
    is a switch of the whole process. Fused kernels stay in use.
    """


class PlainOperations(NoFastPath):
    """While it is entered, fused operations are a few plain ones in this thread.

    ``scaled_dot_product_attention``, whose kernels have neither a forward rule nor a second backward, and for which
    ``torch.nn.attention.sdpa_kernel`` does the same by switches of the whole process; and weight normalisation, whose
    second derivative is wrong on a CPU.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run what was called, or what stands for it."""
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return attend(*args, **kwargs)
        if func is torch._weight_norm:
            return weight_norm(*args, **kwargs)
        if func in ENTERED:  # a mode sleeps inside of what it is given, but the attention is in there
            with self:
                return _body(func)(*args, **kwargs)
        return func(*args, **kwargs)


def has_fast_path(module: nn.Module) -> bool:
    """Whether a module, or one inside of it, computes otherwise where no gradient is recorded."""
    return any(isinstance(part, FAST) for part in module.modules())


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """A weight from its direction and its length, as ``torch._weight_norm`` (Salimans and Kingma 2016, eq. 2).

    Args:
        v: Directions, of the weight's shape.
        g: Lengths, with a size of 1 in all dimensions but ``dim``.
        dim: The dimension of the lengths; -1 for one length.
    """
    return v * (g / torch.norm_except_dim(v, 2, dim))


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attend as ``scaled_dot_product_attention`` does by its backend ``MATH``, to the bit.

    Args:
        query: ``(..., L, E)``.
        key: ``(..., S, E)``.
        value: ``(..., S, Ev)``.
        attn_mask: Broadcasts to ``(..., L, S)``: false where a key does not take part, or what is added to the scores.
        dropout_p: The share of the weights that are dropped.
        is_causal: Whether a query takes part in no later key.
        scale: Of the scores; 1 / sqrt(E) by default.
        enable_gqa: Whether several heads of queries share one of keys.

    Returns:
        ``(..., L, Ev)``.
    """
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(attn_mask.logical_not(), -torch.inf)
    output: Tensor = torch.ops.aten._scaled_dot_product_attention_math(
        query, key, value, attn_mask, dropout_p, is_causal, None, scale=scale, enable_gqa=enable_gqa
    )[0]
    return output


def _body(function: Callable[..., Any]) -> Callable[..., Any]:
    """A Python function of torch whose calls a mode sees: a copy that does not hand itself to the mode once more."""
    names = {**function.__globals__, "has_torch_function": lambda _: False}
    body = FunctionType(function.__code__, names, function.__name__, function.__defaults__)
    body.__kwdefaults__ = function.__kwdefaults__
    return body
