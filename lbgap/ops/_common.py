"""What the wrappers of all ops share: layouts, and what torch is told about an op."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from lbgap import _extension

DTYPES = (torch.float32, torch.float64)


def differentiable(tensor: Tensor) -> bool:
    """Whether a derivative with respect to the tensor is asked for, in reverse or in forward mode."""
    return tensor.requires_grad or unpack_dual(tensor).tangent is not None


def overlaps_itself(tensor: Tensor) -> bool:
    """Whether two elements may share memory; certain for every layout that slicing and transposing give."""
    dims = [dim for dim in zip(tensor.stride(), tensor.shape, strict=True) if dim[1] != 1]
    if tensor.numel() == 0:
        return False
    # A dimension whose step is no larger than all that those of smaller steps reach. (torch.compile cannot sort them.)
    for place, (step, _) in enumerate(dims):
        smaller = [(s, n) for at, (s, n) in enumerate(dims) if s < step or (s == step and at < place)]
        if step <= sum(s * (n - 1) for s, n in smaller):
            return True
    return False


def contiguous_rows(tensor: Tensor) -> Tensor:
    """The tensor itself if its rows are contiguous, else a copy whose rows are."""
    return tensor if tensor.shape[-1] <= 1 or tensor.stride(-1) == 1 else tensor.contiguous()


def writable(out: Tensor) -> bool:
    """Whether the native op can write into ``out`` as it is."""
    n = out.shape[-1]
    return (n <= 1 or out.stride(-1) == 1) and (out.dim() == 1 or out.shape[0] <= 1 or out.stride(0) >= n)


def on_one_device(name: str, first: Tensor, *args: Any) -> None:
    """Refuse inputs on several devices where torch only traces, and no library looks at them."""
    for arg in args:
        if isinstance(arg, Tensor) and arg.device != first.device:
            raise ValueError(f"the inputs of {name} must be on one device, got {first.device} and {arg.device}")


def check_tensors(family: str, **tensors: Tensor) -> None:
    """Refuse inputs on several devices, and derivatives, of which a family of ops has none."""
    if len({tensor.device for tensor in tensors.values()}) > 1:
        found = ", ".join(f"{name} on {tensor.device}" for name, tensor in tensors.items())
        raise ValueError(f"all tensors must be on one device, got {found}: move them")
    for name, tensor in tensors.items():
        if differentiable(tensor):
            raise ValueError(f"{name} requires a gradient, and the {family} ops have none: pass {name}.detach()")


def register(name: str, fake: Callable[..., Any]) -> None:
    """Tell torch what an op returns without running it, and make it refuse derivatives; nothing without the library."""
    if not _extension.NATIVE_DEVICES:
        return
    _refuse_gradients(name)
    torch.library.register_fake(f"lbgap::{name}", fake, allow_override=True)


def _refuse_gradients(name: str) -> None:
    """Make the raw op refuse inputs that require a gradient, and count what it writes.

    Without a kernel at this dispatch key torch would run the op, give no gradient, and warn in the backward
    pass at best; and a graph that had saved ``out`` would go on with the new values, unnoticed.
    """
    op = getattr(torch.ops.lbgap, name).default
    written = [place for place, arg in enumerate(op._schema.arguments) if arg.is_write]

    def kernel(keys: Any, *args: Tensor | float) -> Any:
        if any(isinstance(arg, Tensor) and differentiable(arg) for arg in args):
            raise ValueError(f"an input of {name} requires a gradient, and this op has none: detach() it")
        for place in written:
            torch.autograd.graph.increment_version(cast(Tensor, args[place]))
        return op.redispatch(keys & torch._C._after_autograd_keyset, *args)

    assert _library is not None
    _library.impl(name, kernel, "Autograd", with_keyset=True, allow_override=True)


_library = torch.library.Library("lbgap", "IMPL") if _extension.NATIVE_DEVICES else None
