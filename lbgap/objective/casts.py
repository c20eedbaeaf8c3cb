"""Which floating-point types the replica has in the place of the model's own, and what to do where that matters."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor, nn

DTYPES = re.compile(r"dtype|scalar type|type for|\b(BFloat16|Half|Float|Double)\b", re.IGNORECASE)  # in torch's errors


def note(model: nn.Module, dtype: torch.dtype) -> str:
    """A sentence on what is not measured in its own type; empty where nothing is, or where only digits were added.

    Args:
        model: The user's.
        dtype: The replica's.
    """
    named = {"parameters": _floating(model.named_parameters()), "buffers": _floating(model.named_buffers())}
    cast = {kind: found for kind, found in named.items() if any(_loses(one, dtype) for one in found.values())}
    if not cast:
        return ""
    own = sorted({_short(one) for found in cast.values() for one in found.values()})
    wider = "" if torch.float64 not in next(iter(cast.values())).values() else "; precision='float64' keeps all digits"
    return f"the model's {' and '.join(cast)} are {' and '.join(own)}: they are measured in {_short(dtype)}{wider}"


def remedy(model: nn.Module, dtype: torch.dtype, inputs: Collection[torch.dtype], error: Exception) -> str:
    """What was cast, and what to do, for the message on a model that does not run; empty where that is not the reason.

    Args:
        model: The user's.
        dtype: The replica's.
        inputs: Floating-point types of the inputs as the user gave them.
        error: What the model raised.
    """
    if not DTYPES.search(str(error)):
        return ""
    parameters = _floating(model.named_parameters())
    everything = [(f"its parameter {name!r}", own) for name, own in parameters.items()]
    everything += [(f"its buffer {name!r}", own) for name, own in _floating(model.named_buffers()).items()]
    everything += [("the inputs", own) for own in inputs]
    cast = next(((name, own) for name, own in everything if own != dtype), None)
    if cast is None:
        return ""
    name, own = cast
    how = "let the model cast to the dtype of its parameters, as x.to(self.weight.dtype) does"
    if set(parameters.values()) == {own} and own in (torch.float32, torch.float64):
        how += f", or pass precision={_short(own)!r}"
    return f" (lbgap made {name} {_short(dtype)}, {_short(own)} before: {how})"


def _floating(named: Iterable[tuple[str, Tensor]]) -> Mapping[str, torch.dtype]:
    return {name: tensor.dtype for name, tensor in named if tensor.is_floating_point()}


def _loses(own: torch.dtype, dtype: torch.dtype) -> bool:
    """Whether a value is computed with in another type than the model does, but for digits that the user asked for."""
    return own != dtype and (own.itemsize < 4 or own.itemsize > dtype.itemsize)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
