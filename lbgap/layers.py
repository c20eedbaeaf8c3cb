"""What every reader of a network's layers shares: the usual layers, and how a module becomes a graph of them."""

from __future__ import annotations

import copy
import operator
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules import module as global_hooks

from lbgap.system.device import first_line

MEANS = (nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
OFF = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout)
FUNCTIONS: dict[Any, type[nn.Module]] = {  # to the module that takes the same further arguments
    **dict.fromkeys((F.relu, torch.relu, "relu"), nn.ReLU),
    **dict.fromkeys((F.tanh, torch.tanh, "tanh"), nn.Tanh),
    **dict.fromkeys((F.sigmoid, torch.sigmoid, "sigmoid"), nn.Sigmoid),
    **dict.fromkeys((torch.flatten, "flatten"), nn.Flatten),
    F.leaky_relu: nn.LeakyReLU,
    F.gelu: nn.GELU,
    F.silu: nn.SiLU,
    F.elu: nn.ELU,
    F.softplus: nn.Softplus,
    F.max_pool1d: nn.MaxPool1d,
    F.max_pool2d: nn.MaxPool2d,
    F.avg_pool1d: nn.AvgPool1d,
    F.avg_pool2d: nn.AvgPool2d,
    F.adaptive_avg_pool1d: nn.AdaptiveAvgPool1d,
    F.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
}
RESHAPES = ("view", "reshape", torch.reshape)
POINTWISE = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.SiLU, nn.GELU, nn.Tanh, nn.Sigmoid, nn.Softplus),
    *(nn.Hardtanh, nn.Hardswish, nn.Mish),
)
FORWARD_HOOKS = ("forward_hooks", "forward_pre_hooks")
HOOKS = (*FORWARD_HOOKS, "backward_hooks", "backward_pre_hooks")


class UnknownError(Exception):
    """A network that there are no rules for; the message names what was met."""


def hooked_everywhere(kinds: Sequence[str]) -> bool:
    """Whether a hook of one of these kinds is on all modules of the process."""
    return any(getattr(global_hooks, f"_global_{kind}", None) for kind in kinds)


def is_hooked(module: nn.Module, kinds: Sequence[str]) -> bool:
    """Whether a module itself has a hook of one of these kinds, or another forward than its class."""
    return any(getattr(module, f"_{kind}", None) for kind in kinds) or "forward" in vars(module)


def check_hooks(module: nn.Module, kinds: Sequence[str]) -> None:
    """Refuse a module that does more than its layers.

    Args:
        module: With its submodules.
        kinds: Of hooks that matter, some of :data:`HOOKS`.

    Raises:
        UnknownError: It does; the message says where.
    """
    if hooked_everywhere(kinds):
        raise UnknownError("a hook on all modules")
    for name, child in module.named_modules():
        if is_hooked(child, kinds):
            raise UnknownError(f"a hook on {name or 'the model'}, or a replaced forward")


def trace(module: nn.Module, tracer: fx.Tracer) -> fx.Graph:
    """The graph of a module, found on a copy, for its code may keep what passes through it.

    Args:
        module: It shares its parameters and buffers with the copy.
        tracer: Says what is a layer.

    Raises:
        UnknownError: torch.fx cannot follow its code.
    """
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return tracer.trace(copy.deepcopy(module, dict(shared)))
    except Exception as error:  # whatever the model's code raises when what it meets is no tensor
        raise UnknownError(f"code that torch.fx cannot trace ({first_line(error)})") from error


def is_size(node: fx.Node, sizes: set[fx.Node]) -> bool:
    """Whether a node is the shape of a tensor or the number of samples in it, which reshapes need.

    Args:
        node: Any.
        sizes: The nodes before it of which that is true.
    """
    if node.op == "call_method" and node.target == "size":
        return node.args[1:] in ((), (0,)) and not node.kwargs
    if node.op == "call_function" and node.target is getattr:
        return node.args[1] == "shape"
    return node.target is operator.getitem and node.args[0] in sizes and node.args[1:] == (0,)
