"""Find the steps of a network, where the engine has rules for all of its layers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from lbgap.flat import FlatModule
from lbgap.layers import HOOKS, MEANS, NORMS, Layer, Sum, UnknownError, check_hooks, read_layers
from lbgap.objective.products.rules import Add, Flatten, Linear, MaxPool, Pointwise, Rule, Windows
from lbgap.objective.products.weighted import BatchNorm, Convolution, Dense, Norm, Places, Weighted

PIECEWISE_LINEAR = (nn.ReLU, nn.ReLU6, nn.LeakyReLU)
SMOOTH = (nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU, nn.Softplus)
MAXIMA = {nn.MaxPool1d: F.max_pool1d, nn.MaxPool2d: F.max_pool2d}


@dataclass
class Step:
    """One layer of the network.

    Attributes:
        rule: How values pass through it.
        sources: Places of its inputs among the values: 0 is the network's input, i + 1 what step i returns.
        owned: Whether no other layer needs the memory of its inputs' tangents.
        wanted: Whether a parameter that moves lies before it.
    """

    rule: Rule
    sources: tuple[int, ...]
    owned: bool = False
    wanted: bool = False


def steps_of(flat: FlatModule, inputs: Tensor) -> list[Step]:
    """Find the layers of a replica, in the order in which they run.

    Args:
        flat: The replica.
        inputs: One sample or more.

    Raises:
        UnknownError: Something in it has no rule; the message says what.
    """
    if flat.call.kind != "one" or not isinstance(inputs, Tensor):
        raise UnknownError("inputs that are not one tensor")
    check_hooks(flat.module, HOOKS)
    layers = read_layers(flat.module, inputs, RULES)
    _check_single(layers)
    places: Places = {id(parameter): place for place, parameter in enumerate(flat.moving)}
    reads = [source for layer in layers for source in layer.sources]
    steps: list[Step] = []
    values = [0]  # of each value of the layers that of the steps
    for layer in layers:
        sources = tuple(values[source] for source in layer.sources)
        before = steps[-1].rule if steps and sources == (len(steps),) and reads.count(layer.sources[0]) == 1 else None
        if isinstance(layer.module, NORMS) and isinstance(before, Weighted) and before.norm is None:
            before.fold(_norm(layer.module, places))
        else:
            steps.append(Step(_rule(layer.module, places), sources))
        values.append(len(steps))
    _finish(steps)
    return steps


def _check_single(layers: Sequence[Layer]) -> None:
    """Refuse parameters that serve twice: second derivatives across two uses of one would be lost."""
    used: set[int] = set()
    for layer in layers:
        own = {id(parameter) for parameter in layer.module.parameters()}
        if own & used:
            raise UnknownError(f"a parameter that serves twice, in {layer.name!r}")
        used |= own


def _finish(steps: Sequence[Step]) -> None:
    """Note of each step what it may overwrite and what is wanted of it."""
    reads = [source for step in steps for source in step.sources]
    exclusive, moving = [reads.count(0) == 1], [False]
    for place, step in enumerate(steps, 1):
        step.owned = all(exclusive[source] for source in step.sources)
        step.wanted = any(moving[source] for source in step.sources)
        exclusive.append(reads.count(place) <= 1 and (step.rule.fresh or step.owned))
        moving.append(step.rule.moves or step.wanted)


def _norm(layer: Any, places: Places) -> Norm:
    if layer.running_mean is None:
        raise UnknownError("a batch-norm with statistics of the batch")
    return Norm(layer, places)


def _convolution(layer: Any, places: Places) -> Convolution:
    if layer.groups != 1 or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        raise UnknownError("a convolution in groups, or padded otherwise than with a number of zeros")
    return Convolution(layer, places)


def _pointwise(layer: Any, _: Places) -> Pointwise:
    if getattr(layer, "inplace", False):
        layer = copy.copy(layer)
        layer.inplace = False
    return Pointwise(layer, piecewise_linear=isinstance(layer, PIECEWISE_LINEAR))


def _max_pool(layer: Any, _: Places) -> MaxPool | None:
    """Max-pooling that also says where the largest elements are."""
    function, dimensions = MAXIMA[type(layer)], 1 if type(layer) is nn.MaxPool1d else 2
    arguments = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.ceil_mode)

    def both(number: Any) -> tuple[int, ...]:
        return (number,) * dimensions if isinstance(number, int) else tuple(number)

    windows = Windows(*(both(number) for number in arguments[:4]))
    return MaxPool(lambda x: function(x, *arguments, return_indices=True), windows)


RULES: dict[type[nn.Module], Callable[[Any, Places], Rule | None]] = {  # None: not with these settings
    nn.Linear: Dense,
    **dict.fromkeys((nn.Conv1d, nn.Conv2d), _convolution),
    **dict.fromkeys(NORMS, lambda layer, places: BatchNorm(_norm(layer, places))),
    **dict.fromkeys((*PIECEWISE_LINEAR, *SMOOTH), _pointwise),
    **dict.fromkeys(MEANS, lambda layer, _: Linear(layer)),
    **dict.fromkeys(MAXIMA, _max_pool),
    nn.Flatten: lambda layer, _: Flatten() if (layer.start_dim, layer.end_dim) == (1, -1) else None,
    nn.Unflatten: lambda layer, _: Linear(layer, fresh=False) if layer.dim == 1 else None,
    Sum: lambda *_: Add(),
}


def _rule(layer: nn.Module, places: Places) -> Rule:
    """The rule of one layer."""
    rule = RULES[type(layer)](layer, places) if type(layer) in RULES else None
    if rule is None:
        raise UnknownError(f"{type(layer).__name__}, or some setting of it")
    return rule
