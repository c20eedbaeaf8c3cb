"""Narrow networks, linear layers with ReLU between them, whose points run through all layers tile by tile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lbgap import ops
from lbgap.objective.points.rules import Kind, Linear, Parameter, Pointwise, Samplewise
from lbgap.objective.points.source import Combinations, Source
from lbgap.objective.points.steps import Step
from lbgap.ops.points import DEEPEST, WIDEST

TILE = 512  # samples for which the op blends the weights of a point anew, as csrc/cpu/points.h has it
MOST = 128  # separate points at once: each looks at the coefficients of all


@dataclass(frozen=True)
class Chain:
    """Where in a plan such a network is: all of it, but for what is the same for all points.

    Attributes:
        head: Index of the first of its steps.
        layers: The linear layers.
    """

    head: int
    layers: tuple[Linear, ...]

    @property
    def widths(self) -> list[int]:
        """Outputs of each layer."""
        return [layer.weight.value.shape[0] for layer in self.layers]

    @property
    def numel(self) -> int:
        """Weights and biases of all layers but the first."""
        return sum(layer.affine[0] + layer.affine[1] for layer in self.layers[1:])

    def sums(self, source: Source, inputs: Tensor, targets: Tensor) -> Tensor:
        """Evaluate all points on one batch.

        Args:
            source: The points.
            inputs: Of the first layer, ``(batch, features)``.
            targets: Class indices, ``(batch,)``.

        Returns:
            The summed loss and the number of correct samples of each point, ``(k, 2)`` float64.
        """
        if isinstance(source, Combinations):
            first, ends = self._first(source, inputs), self._rest(source)
            return ops.chain_points(source.coefficients, first, ends, self.widths, targets)
        found = []
        for begin in range(0, source.k, MOST):
            some = source[begin : begin + MOST]
            alone = torch.eye(some.k, dtype=torch.float64, device=some.device)
            found.append(ops.chain_points(alone, self._first(some, inputs), self._rest(some), self.widths, targets))
        return torch.cat(found)

    def _first(self, source: Source, inputs: Tensor) -> Tensor:
        """The first layer's products at each end, or separate point: ``(ends, outputs, batch)``."""
        layer = self.layers[0]
        weight = _at_ends(layer.weight, source)
        columns = inputs.T.expand(len(weight), -1, -1)
        if layer.bias is None:
            return torch.bmm(weight, columns)
        return torch.baddbmm(_at_ends(layer.bias, source)[..., None], weight, columns)

    def _rest(self, source: Source) -> Tensor:
        """The other layers at each end, or separate point, one after the other."""
        parts = []
        for layer in self.layers[1:]:
            weight = _at_ends(layer.weight, source)
            bias = weight.new_zeros(weight.shape[:2]) if layer.bias is None else _at_ends(layer.bias, source)
            parts += [weight.flatten(1), bias]
        if parts:
            return torch.cat(parts, 1)
        return torch.empty(source.j or source.k, 0, dtype=source.dtype, device=source.device)


def _at_ends(parameter: Parameter, source: Source) -> Tensor:
    """A parameter of all ends; separate points are their own."""
    return parameter.of_ends(source) if isinstance(source, Combinations) else parameter.of_points(source)


def find_chain(steps: Sequence[Step], kinds: Sequence[Kind]) -> Chain | None:
    """Find out whether a plan is a narrow chain from where the points begin to differ.

    Args:
        steps: The layers.
        kinds: Of each value.
    """
    head = next((index for index, kind in enumerate(kinds[1:]) if kind is not Kind.SHARED), len(steps))
    layers: list[Linear] = []
    ready = True  # whether a linear layer may come next
    for index, step in enumerate(steps[head:], head):
        rule = step.rule
        if index > head and step.sources != (index,):
            return None
        if isinstance(rule, Linear):
            if not (ready and rule.moves and rule.norm is None and rule.affine[1] <= WIDEST):
                return None
            if layers and rule.weight.value.shape[1] != layers[-1].weight.value.shape[0]:
                return None  # it is applied to several rows of a sample
            layers.append(rule)
            ready = False
        elif isinstance(rule, Pointwise) and rule.relu and layers:
            ready = True
        elif not isinstance(rule, Samplewise) or rule.fresh:  # what is left changes nothing of (batch, features)
            return None
    return Chain(head, tuple(layers)) if 1 <= len(layers) <= DEEPEST and not ready else None
