"""Find the layers of a module and how they are joined, where all of them are usual ones."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from lbgap.flat import FlatModule
from lbgap.layers import (
    FORWARD_HOOKS,
    FUNCTIONS,
    MEANS,
    NORMS,
    OFF,
    POINTWISE,
    RESHAPES,
    UnknownError,
    check_hooks,
    is_size,
    trace,
)
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
SUMS = (operator.add, torch.add, "add")


@dataclass
class Step:
    """One layer of the network.

    Attributes:
        rule: How values pass through it.
        sources: Places of its inputs among the values: 0 is the network's input, i + 1 what step i returns.
    """

    rule: Rule
    sources: tuple[int, ...]


def steps_of(flat: FlatModule) -> list[Step]:
    """Find the layers of a replica, in the order in which they run.

    Raises:
        UnknownError: Something in it is no usual layer; the message says what.
    """
    _check_plain(flat.module)
    builder = _Builder(flat)
    module = nn.Sequential(flat.module) if builder.alone else flat.module
    for node in trace(module, _Tracer()).nodes:
        builder.take(node)
    return builder.steps


def _check_plain(module: nn.Module) -> None:
    check_hooks(module, FORWARD_HOOKS)
    for name, child in module.named_modules():
        if "parametrizations" in child._modules:
            raise UnknownError(f"a parametrisation of {name or 'the model'}")


class _Tracer(fx.Tracer):
    """Finds the model itself a layer too, where it is one."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in (nn.Linear, *NORMS, *POINTWISE) or super().is_leaf_module(m, module_qualified_name)


class _Builder:
    """Turns the nodes of a graph into steps."""

    def __init__(self, flat: FlatModule) -> None:
        self.alone = type(flat.module).__module__.startswith("torch.nn") and not isinstance(flat.module, nn.Sequential)
        self._module = flat.module
        self._places: Places = {}
        offset = 0
        for parameter in flat.moving:
            self._places[id(parameter)] = slice(offset, offset + parameter.numel())
            offset += parameter.numel()
        self.steps: list[Step] = []
        self._values: dict[fx.Node, int] = {}
        self._sizes: set[fx.Node] = set()

    def take(self, node: fx.Node) -> None:
        """Add what a node does."""
        if node.op == "placeholder":
            if self._values:
                raise UnknownError("a model with several inputs")
            self._values[node] = 0
        elif node.op == "output":
            if self._source(node.args[0]) != len(self.steps) or not self.steps:
                raise UnknownError("an output that is not that of the last layer")
        elif node.op == "get_attr":
            raise UnknownError(f"the tensor {node.target!r} outside of a layer")
        elif is_size(node, self._sizes):
            self._sizes.add(node)
        elif node.op == "call_module":
            name = "" if self.alone else str(node.target)
            if len(node.args) != 1 or node.kwargs:
                raise UnknownError(f"further arguments of {name!r}")
            self._layer(node, self._module.get_submodule(name), name)
        else:
            self._function(node)

    def _source(self, node: Any) -> int:
        if not isinstance(node, fx.Node) or node not in self._values:
            raise UnknownError(f"the input {node!r} of a layer")
        return self._values[node]

    def _append(self, node: fx.Node, rule: Rule, sources: tuple[int, ...]) -> None:
        self.steps.append(Step(rule, sources))
        self._values[node] = len(self.steps)

    def _layer(self, node: fx.Node, layer: nn.Module, name: str) -> None:
        """Add a layer that is applied to one value."""
        argument = node.args[0] if node.args else None
        source = self._source(argument)
        if getattr(layer, "inplace", False):
            self._check_unshared(argument)
        if layer.training:
            raise UnknownError(f"{type(layer).__name__} in training mode")
        self._append(node, self._rule(layer, name), (source,))

    def _check_unshared(self, node: Any) -> None:
        """Refuse to write into a value that something else reads, be it by another view of it."""
        while True:
            if len(node.users) != 1:
                raise UnknownError("a layer that writes into what another one reads")
            place = self._values[node]
            if place == 0 or self.steps[place - 1].rule.fresh:
                return
            node = node.args[0]

    def _rule(self, layer: nn.Module, name: str) -> Rule:
        """The rule of one layer."""
        kind = type(layer)
        if kind is nn.Linear:
            return Linear(layer, self._places)
        if kind in (nn.Conv1d, nn.Conv2d):
            return Convolution(layer, self._places)
        if kind in NORMS:
            return Norm(layer, name, self._places)
        if kind in POINTWISE:
            return _pointwise(layer)
        if kind in OFF:
            return Samplewise(lambda x: x, linear=True, fresh=False)
        if kind in MEANS:
            return Samplewise(layer, linear=True)
        if kind in MAXIMA and not getattr(layer, "return_indices", False):
            return Samplewise(layer)
        if kind is nn.Flatten and getattr(layer, "start_dim", 0) >= 1:
            return Samplewise(layer, linear=True, fresh=False)
        if kind is nn.Unflatten and getattr(layer, "dim", 0) == 1:
            return Samplewise(layer, linear=True, fresh=False)
        raise UnknownError(f"{kind.__name__}, or some setting of it")

    def _function(self, node: fx.Node) -> None:
        """Add a function or a method of tensors."""
        arguments = node.args[1:]
        if node.target in SUMS and len(node.args) == 2 and not node.kwargs:
            self._append(node, Sum(), tuple(self._source(value) for value in node.args))
        elif node.target in RESHAPES:
            self._reshape(node)
        elif node.target is F.dropout and not node.kwargs.get("training", True) and len(arguments) < 2:
            self._layer(node, nn.Identity().eval(), "")
        elif node.target in FUNCTIONS and len(node.all_input_nodes) == 1 and node.args:
            if node.target in (torch.flatten, "flatten") and not (arguments or node.kwargs):
                raise UnknownError("flattening samples into one")  # the default differs from the module's
            try:
                layer = FUNCTIONS[node.target](*arguments, **node.kwargs)
            except TypeError as error:
                raise UnknownError(f"the arguments of {_name(node)}") from error
            self._layer(node, layer.eval(), "")
        else:
            raise UnknownError(_name(node))

    def _reshape(self, node: fx.Node) -> None:
        """Add ``x.view(x.size(0), -1)`` or its like."""
        shape = node.args[1:] if len(node.args) != 2 else node.args[1]
        if not isinstance(shape, tuple | list) or len(shape) != 2 or node.kwargs or shape[1] != -1:
            raise UnknownError("a reshape other than to (batch, -1)")
        if shape[0] not in self._sizes:
            raise UnknownError("a reshape other than to (batch, -1)")
        self._append(node, Samplewise(nn.Flatten(), linear=True, fresh=False), (self._source(node.args[0]),))


def _pointwise(layer: nn.Module) -> Pointwise:
    """An activation, beside the same that writes into its input, if torch has it."""
    if not hasattr(layer, "inplace"):
        return Pointwise(layer, INPLACE.get(type(layer)))
    ways: list[Any] = [copy.copy(layer), copy.copy(layer)]
    for way, inplace in zip(ways, (False, True), strict=True):
        way.inplace = inplace
    return Pointwise(*ways)


def _name(node: fx.Node) -> str:
    return f"the operation {getattr(node.target, '__name__', node.target)!r}"


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
