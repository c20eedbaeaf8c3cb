"""The buffers of several models: which are combined as parameters are, and which have no value between them."""

from __future__ import annotations

from collections.abc import Container, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

STATISTICS = ("running_mean", "running_var")


def combined_buffers(models: Sequence[nn.Module], batch_norm: str) -> dict[str, Tensor]:
    """The statistics that are combined, those of batch-norm with ``"eval"`` alone: name to ``(j, *shape)`` float64."""
    found = {}
    for name, module in _floating(models[0]):
        combined = isinstance(module, _NormBase) and (batch_norm == "eval" or not isinstance(module, _BatchNorm))
        if combined and name.rpartition(".")[2] in STATISTICS:
            found[name] = _stack(models, name)
    return found


def differing_buffers(models: Sequence[nn.Module], known: Container[str], dtype: torch.dtype) -> dict[str, Tensor]:
    """The floating buffers that are no statistics and not the same in all models: name to ``(j, *shape)`` float64.

    Args:
        models: Of one architecture.
        known: Names of buffers that are computed at each point.
        dtype: That they are evaluated in.
    """
    found = {}
    for name, module in _floating(models[0]):
        if name in known or (isinstance(module, _NormBase) and name.rpartition(".")[2] in STATISTICS):
            continue
        values = _stack(models, name)
        met = values.to(dtype)
        if not all(torch.equal(value.nan_to_num(), met[0].nan_to_num()) for value in met[1:]):
            found[name] = values
    return found


def _floating(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Names of the floating buffers, and the modules that they belong to."""
    return [
        (name, module)
        for prefix, module in model.named_modules()
        for name, value in module.named_buffers(prefix, recurse=False)
        if value.is_floating_point()
    ]


def _stack(models: Sequence[nn.Module], name: str) -> Tensor:
    values = [model.get_buffer(name) for model in models]
    return torch.stack([value.to(values[0].device, torch.float64) for value in values])
