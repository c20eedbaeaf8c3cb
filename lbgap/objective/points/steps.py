"""Find the steps of a network, where all of its layers are usual ones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lbgap import layers
from lbgap.flat import FlatModule
from lbgap.layers import FORWARD_HOOKS, MEANS, NORMS, POINTWISE, Layer, UnknownError, check_hooks, read_layers
from lbgap.objective.points.rules import (
    Convolution,
    Kind,
    Linear,
    Norm,
    Places,
    Pointwise,
    Rule,
    Samplewise,
    Sum,
    Weighted,
)

INPLACE: dict[type[nn.Module], Any] = {nn.Tanh: torch.tanh_, nn.Sigmoid: torch.sigmoid_}
MAXIMA = (nn.MaxPool1d, nn.MaxPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d)


@dataclass
class Step:
    """One layer of the network.

    Attributes:
        rule: How values pass through it.
        sources: Places of its inputs among the values: 0 is the network's input, i + 1 what step i returns.
    """

    rule: Rule
    sources: tuple[int, ...]


def steps_of(flat: FlatModule, inputs: Tensor) -> list[Step]:
    """Find the layers of a replica, in the order in which they run.

    Args:
        flat: The replica.
        inputs: One sample or more.

    Raises:
        UnknownError: Something in it is no usual layer; the message says what.
    """
    if flat.call.kind != "one" or not isinstance(inputs, Tensor):
        raise UnknownError("inputs that are not one tensor")
    check_hooks(flat.module, FORWARD_HOOKS)
    for name, child in flat.module.named_modules():
        if "parametrizations" in child._modules:
            raise UnknownError(f"a parametrisation of {name or 'the model'}")
    places: Places = {}
    offset = 0
    for parameter in flat.moving:
        places[id(parameter)] = slice(offset, offset + parameter.numel())
        offset += parameter.numel()
    return [Step(_rule(layer, places), layer.sources) for layer in read_layers(flat.module, inputs, RULES)]


def _pointwise(layer: nn.Module) -> Pointwise:
    """An activation, beside the same that writes into its input, if torch has it."""
    if not hasattr(layer, "inplace"):
        return Pointwise(layer, INPLACE.get(type(layer)))
    ways: list[Any] = [copy.copy(layer), copy.copy(layer)]
    for way, inplace in zip(ways, (False, True), strict=True):
        way.inplace = inplace
    return Pointwise(*ways)


def _reshape(layer: nn.Module) -> Samplewise:
    return Samplewise(layer, linear=True, fresh=False)


RULES: dict[type[nn.Module], Callable[[Any, str, Places], Rule | None]] = {  # None: not with these settings
    nn.Linear: lambda layer, _, places: Linear(layer, places),
    **dict.fromkeys((nn.Conv1d, nn.Conv2d), lambda layer, _, places: Convolution(layer, places)),
    **dict.fromkeys(NORMS, Norm),
    **dict.fromkeys(POINTWISE, lambda layer, *_: _pointwise(layer)),
    **dict.fromkeys(MEANS, lambda layer, *_: Samplewise(layer, linear=True)),
    **dict.fromkeys(MAXIMA, lambda layer, *_: None if layer.return_indices else Samplewise(layer)),
    nn.Flatten: lambda layer, *_: _reshape(layer) if layer.start_dim >= 1 else None,
    nn.Unflatten: lambda layer, *_: _reshape(layer) if layer.dim == 1 else None,
    layers.Sum: lambda *_: Sum(),
}


def _rule(layer: Layer, places: Places) -> Rule:
    """The rule of one layer."""
    kind = type(layer.module)
    rule = RULES[kind](layer.module, layer.name, places) if kind in RULES else None
    if rule is None:
        raise UnknownError(f"{kind.__name__}, or some setting of it")
    return rule


def fold_norms(steps: list[Step], kinds_of: Callable[[list[Step]], list[Kind]]) -> list[Step]:
    """Multiply batch-norms with running statistics into the layers with weights that they follow.

    Args:
        steps: As :func:`steps_of` found them; not changed.
        kinds_of: From steps to the kind of each value.

    Returns:
        New steps; a batch-norm that was folded is an identity.
    """
    folded = [Step(copy.copy(step.rule), step.sources) for step in steps]
    kinds, users = kinds_of(folded), [0] * (len(steps) + 1)
    for step in steps:
        for source in step.sources:
            users[source] += 1
    for step in folded:
        place = step.sources[0]
        before = folded[place - 1].rule if place else None
        if not isinstance(step.rule, Norm) or step.rule.batch or not isinstance(before, Weighted):
            continue
        if users[place] == 1 and kinds[place] is Kind.OWN and before.norm is None:
            before.norm, before.statistics = step.rule, step.rule.statistics
            step.rule = Samplewise(lambda x: x, fresh=False)
    return folded
