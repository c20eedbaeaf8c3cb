"""Find the layers of a module and how they are joined, where the engine has rules for all of them."""

from __future__ import annotations

import copy
import operator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from lbgap.flat import FlatModule
from lbgap.layers import FUNCTIONS, HOOKS, MEANS, NORMS, OFF, RESHAPES, UnknownError, check_hooks, is_size, trace
from lbgap.objective.products.rules import Add, Flatten, Linear, MaxPool, Pointwise, Rule, Windows
from lbgap.objective.products.weighted import BatchNorm, Convolution, Dense, Norm, Places, Weighted

PIECEWISE_LINEAR = (nn.ReLU, nn.ReLU6, nn.LeakyReLU)
SMOOTH = (nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU, nn.Softplus)
MAXIMA = {nn.MaxPool1d: F.max_pool1d, nn.MaxPool2d: F.max_pool2d}
KNOWN: dict[Any, type[nn.Module]] = {**FUNCTIONS, F.relu6: nn.ReLU6}
SUMS = (operator.add, operator.iadd, torch.add, "add")


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


def steps_of(flat: FlatModule) -> list[Step]:
    """Find the layers of a replica, in the order in which they run.

    Raises:
        UnknownError: Something in it has no rule; the message says what.
    """
    check_hooks(flat.module, HOOKS)
    builder = _Builder(flat)
    for node in trace(nn.Sequential(flat.module), fx.Tracer()).nodes:  # a lone layer is one, too
        builder.take(node)
    return builder.finished()


class _Builder:
    """Turns the nodes of a graph into steps."""

    def __init__(self, flat: FlatModule) -> None:
        self._module = nn.Sequential(flat.module)
        self._places: Places = {id(parameter): place for place, parameter in enumerate(flat.moving)}
        self._steps: list[Step] = []
        self._values: dict[fx.Node, int] = {}
        self._sizes: set[fx.Node] = set()
        self._parameters: set[int] = set()
        self._views: set[fx.Node] = set()

    def take(self, node: fx.Node) -> None:
        """Add what a node does."""
        if node.op == "placeholder":
            if self._values:
                raise UnknownError("a model with several inputs")
            self._values[node] = 0
        elif node.op == "output":
            if self._source(node.args[0]) != len(self._steps) or not self._steps:
                raise UnknownError("an output that is not that of the last layer")
        elif node.op == "get_attr":
            raise UnknownError(f"the tensor {str(node.target).removeprefix('0.')!r} outside of a layer")
        elif is_size(node, self._sizes):
            self._sizes.add(node)
        elif node.op == "call_module":
            self._take_module(node, self._layer(str(node.target)))
        else:
            self._take_function(node)

    def finished(self) -> list[Step]:
        """The steps, each with what it may overwrite and what is wanted of it."""
        users = [0] * (len(self._steps) + 1)
        for step in self._steps:
            for source in step.sources:
                users[source] += 1
        exclusive, moving = [users[0] == 1], [False]
        for step, count in zip(self._steps, users[1:], strict=True):
            step.owned = all(exclusive[source] for source in step.sources)
            step.wanted = any(moving[source] for source in step.sources)
            exclusive.append(count <= 1 and (step.rule.fresh or step.owned))
            moving.append(step.rule.moves or step.wanted)
        return self._steps

    def _layer(self, name: str) -> nn.Module:
        """A layer with parameters of its own: second derivatives across two uses of one would be lost."""
        layer = self._module.get_submodule(name)
        for parameter in layer.parameters():
            if id(parameter) in self._parameters:
                raise UnknownError(f"a parameter that serves twice, in {name.removeprefix('0.')!r}")
            self._parameters.add(id(parameter))
        return layer

    def _source(self, node: Any) -> int:
        if not isinstance(node, fx.Node) or node not in self._values:
            raise UnknownError(f"the input {node!r} of a layer")
        return self._values[node]

    def _take_module(self, node: fx.Node, layer: nn.Module) -> None:
        """Add a layer that is applied to one value."""
        source = self._source(node.args[0] if node.args else None)
        if node.op == "call_module" and (len(node.args) != 1 or node.kwargs):
            raise UnknownError(f"further arguments of {node.target!r}")
        if getattr(layer, "inplace", False):
            self._check_unshared(node.args[0])
        kind = type(layer)
        if kind in OFF:
            if layer.training:
                raise UnknownError(f"{kind.__name__} in training mode")
            self._views.add(node)
            self._values[node] = source
        elif kind in NORMS and self._foldable(node.args[0]):
            before = self._steps[-1].rule
            assert isinstance(before, Weighted)
            before.fold(self._norm(layer))
            self._values[node] = source
        else:
            if kind in (nn.Flatten, nn.Unflatten):
                self._views.add(node)
            self._append(node, self._rule(layer), (source,))

    def _append(self, node: fx.Node, rule: Rule, sources: tuple[int, ...]) -> None:
        self._steps.append(Step(rule, sources))
        self._values[node] = len(self._steps)

    def _check_unshared(self, node: Any) -> None:
        """Refuse to write into a value that something else reads."""
        while True:
            if len(node.users) != 1:
                raise UnknownError("a layer that writes into what another one reads")
            if node not in self._views:
                return
            node = node.args[0]

    def _foldable(self, node: Any) -> bool:
        """Whether a batch-norm comes right after a layer with weights, of which nothing else reads."""
        last = self._steps[-1].rule if self._steps and self._values[node] == len(self._steps) else None
        alone = node.op == "call_module" and len(node.users) == 1 and node not in self._views
        return alone and isinstance(last, Weighted) and last.norm is None

    def _norm(self, layer: Any) -> Norm:
        if layer.training or layer.running_mean is None:
            raise UnknownError("a batch-norm with statistics of the batch")
        return Norm(layer, self._places)

    def _rule(self, layer: Any) -> Rule:
        """The rule of one layer."""
        kind = type(layer)
        if kind is nn.Linear:
            return Dense(layer, self._places)
        if kind in (nn.Conv1d, nn.Conv2d):
            if layer.groups != 1 or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
                raise UnknownError("a convolution in groups, or padded otherwise than with a number of zeros")
            return Convolution(layer, self._places)
        if kind in NORMS:
            return BatchNorm(self._norm(layer))
        if kind in PIECEWISE_LINEAR + SMOOTH:
            if getattr(layer, "inplace", False):
                layer = copy.copy(layer)
                layer.inplace = False
            return Pointwise(layer, piecewise_linear=kind in PIECEWISE_LINEAR)
        if kind in MEANS:
            return Linear(layer)
        if kind in MAXIMA and not layer.return_indices:
            return _max_pool(layer)
        if kind is nn.Flatten and (layer.start_dim, layer.end_dim) == (1, -1):
            return Flatten()
        if kind is nn.Unflatten and layer.dim == 1:
            return Linear(layer, fresh=False)
        raise UnknownError(f"{kind.__name__}, or some setting of it")

    def _take_function(self, node: fx.Node) -> None:
        """Add a function or a method of tensors."""
        arguments = node.args[1:]
        if node.target in SUMS and len(node.args) == 2 and not node.kwargs:
            if node.target is operator.iadd:
                self._check_unshared(node.args[0])
            self._append(node, Add(), tuple(self._source(value) for value in node.args))
        elif node.target in RESHAPES:
            self._take_reshape(node)
        elif node.target is F.dropout and not node.kwargs.get("training", True) and len(arguments) < 2:
            self._take_module(node, nn.Identity().eval())
        elif node.target in KNOWN and len(node.all_input_nodes) == 1 and node.args:
            try:
                layer = KNOWN[node.target](*arguments, **node.kwargs)
            except TypeError as error:
                raise UnknownError(f"the arguments of {_name(node)}") from error
            if node.target in (torch.flatten, "flatten") and not (arguments or node.kwargs):
                raise UnknownError("flattening samples into one")  # the default differs from the module's
            self._take_module(node, layer.eval())
        else:
            raise UnknownError(_name(node))

    def _take_reshape(self, node: fx.Node) -> None:
        """Add ``x.view(x.size(0), -1)`` or its like."""
        shape = node.args[1:] if len(node.args) != 2 else node.args[1]
        if not isinstance(shape, tuple | list) or len(shape) != 2 or node.kwargs:
            raise UnknownError("a reshape other than to (batch, -1)")
        samples: Any = shape[0]
        width: Any = shape[1]
        rest_known = isinstance(width, int) and (width == -1) != (samples == -1)
        if not rest_known or not (samples in self._sizes or samples == -1):
            raise UnknownError("a reshape other than to (batch, -1)")
        self._views.add(node)
        self._append(node, Flatten(None if width == -1 else width), (self._source(node.args[0]),))


def _name(node: fx.Node) -> str:
    return f"the operation {getattr(node.target, '__name__', node.target)!r}"


def _max_pool(layer: Any) -> MaxPool:
    """Max-pooling that also says where the largest elements are."""
    function, dimensions = MAXIMA[type(layer)], 1 if type(layer) is nn.MaxPool1d else 2
    arguments = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.ceil_mode)

    def both(number: Any) -> tuple[int, ...]:
        return (number,) * dimensions if isinstance(number, int) else tuple(number)

    windows = Windows(*(both(number) for number in arguments[:4]))
    return MaxPool(lambda x: function(x, *arguments, return_indices=True), windows)
