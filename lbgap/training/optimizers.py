"""Optimisers by name: those of torch, with the paper's ADAM as the default, and LARS and LAMB for large batches."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

import torch
from torch.nn import Parameter
from torch.optim import Optimizer

from lbgap.checks import advice, meant, real
from lbgap.system.device import scalars_on_host

_REFUSED = {
    "LBFGS": "it evaluates each batch several times a step, which needs a closure",
    "SparseAdam": "it takes sparse gradients only",
}
PACKAGE = "pytorch_optimizer"
_ELSEWHERE = {"lars": "LARS", "lamb": "Lamb"}
_RESERVED = {
    "lr": "pass learning_rate instead",
    "params": "the model's trainable parameters are taken",
    "differentiable": "a training cannot be differentiated through",
}


def resolve_optimizer(name: str) -> str:
    """Find an optimiser of ``torch.optim`` by name, or one that the package pytorch-optimizer adds.

    Args:
        name: The name of its class, in upper or lower case. In pytorch-optimizer are ``"LARS"`` (You et al. 2017, arXiv
            1708.03888) and ``"Lamb"`` (You et al. 2020, arXiv 1904.00962).

    Returns:
        The name as its package writes it.

    Raises:
        ImportError: It needs pytorch-optimizer, which is not installed.
        TypeError: It is not a string.
        ValueError: There is none of that name, or it is of a kind that this training cannot drive.
    """
    if not isinstance(name, str):
        raise TypeError(f"optimizer must be the name of a class of torch.optim such as 'Adam', got {name!r}")
    known = {
        key.lower(): key
        for key, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, Optimizer) and value is not Optimizer
    }
    if name.lower() in _ELSEWHERE and name.lower() not in known:
        _elsewhere(name)
        return _ELSEWHERE[name.lower()]
    found = known.get(name.lower())
    usable = sorted(key for key in known.values() if key not in _REFUSED)
    if found is None:
        close = meant(name.lower(), [key.lower() for key in usable])
        hint = f"did you mean {known[close]!r}?" if close else f"choose one of {', '.join(usable)}"
        raise ValueError(f"optimizer {name!r} is not in torch.optim: {hint}")
    if found in _REFUSED:
        raise ValueError(f"optimizer {found!r} cannot be used: {_REFUSED[found]}; choose one of {', '.join(usable)}")
    return found


def in_torch(name: str) -> bool:
    """Whether an optimiser of that name, as :func:`resolve_optimizer` returned it, is torch's own."""
    return hasattr(torch.optim, name)


def _elsewhere(name: str) -> ModuleType:
    try:
        return importlib.import_module(PACKAGE)
    except ImportError as error:
        raise ImportError(
            f"optimizer {name!r} is in the package pytorch-optimizer, which cannot be imported ({error}): "
            "pip install 'lbgap[optimizers]'"
        ) from error


def make_optimizer(
    name: str, parameters: Iterable[Parameter], learning_rate: float, options: Mapping[str, Any]
) -> Optimizer:
    """Build an optimiser.

    Args:
        name: As :func:`resolve_optimizer` returned it.
        parameters: What it may change.
        learning_rate: Its ``lr``, positive.
        options: Its other arguments, such as ``{"momentum": 0.9}``.

    Returns:
        The optimiser.

    Raises:
        TypeError: The learning rate is not a number, or ``options`` not a mapping.
        ValueError: The learning rate is not positive, or the optimiser refuses an option.
    """
    learning_rate = real("learning_rate", learning_rate, positive=True)
    if not isinstance(options, Mapping):
        raise TypeError(f"optimizer_options must be a dict such as {{'weight_decay': 1e-4}}, got {options!r}")
    kind = getattr(torch.optim, name, None) or getattr(_elsewhere(name), name)
    taken = inspect.signature(kind).parameters.values()
    known = [entry.name for entry in taken if entry.name not in _RESERVED and entry.kind is not entry.VAR_KEYWORD]
    for key in options:
        if key in _RESERVED:
            raise ValueError(f"optimizer_options cannot set {key!r}: {_RESERVED[key]}")
        if key not in known:
            hint = advice(str(key), known, "it takes")
            raise ValueError(f"optimizer_options has {key!r}, which {name} does not take: {hint}")
    try:
        with scalars_on_host():
            optimizer = kind(list(parameters), lr=learning_rate, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} refuses these parameters or options: {' '.join(str(error).split())}") from error
    assert isinstance(optimizer, Optimizer)
    return optimizer
