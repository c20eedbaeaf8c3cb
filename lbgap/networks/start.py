"""Layers with weights, filled from a generator of their own: the global random state is neither read nor changed."""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias, TypeVar, get_args

import torch
from torch import nn

from lbgap.checks import whole

Initialisation: TypeAlias = Literal["torch", "uniform"]
Layer = TypeVar("Layer", nn.Linear, nn.Conv1d, nn.Conv2d)


class Start:
    """Makes the layers of one network, whose parameters are drawn in the order in which they are asked for."""

    def __init__(self, seed: int, initialisation: Initialisation) -> None:
        """Begin a stream of draws.

        Args:
            seed: Not negative.
            initialisation: ``"torch"`` or ``"uniform"``, as in :func:`lbgap.networks.mlp`.

        Raises:
            ValueError: A negative seed, or an unknown initialisation.
            TypeError: A seed that is not an integer.
        """
        seed = whole("seed", seed, 0)
        if initialisation not in get_args(Initialisation):
            raise ValueError(f"initialisation must be 'torch' or 'uniform', got {initialisation!r}")
        self._generator = torch.Generator().manual_seed(seed)
        self._glorot = initialisation == "uniform"

    def linear(self, inputs: int, outputs: int) -> nn.Linear:
        """A linear layer with biases."""
        # On "meta" the layer's own initialisation draws nothing.
        return self._filled(nn.Linear(inputs, outputs, device="meta", dtype=torch.float32))

    def convolution(self, dimensions: int, inputs: int, outputs: int, size: int) -> nn.Conv1d | nn.Conv2d:
        """A convolution with biases and stride 1 whose output is as large as its input; ``size`` is odd."""
        settings: dict[str, Any] = {"padding": size // 2, "device": "meta", "dtype": torch.float32}
        if dimensions == 1:
            return self._filled(nn.Conv1d(inputs, outputs, size, **settings))
        return self._filled(nn.Conv2d(inputs, outputs, size, **settings))

    def _filled(self, layer: Layer) -> Layer:
        layer.to_empty(device="cpu")
        assert layer.bias is not None
        with torch.no_grad():
            if self._glorot:
                nn.init.xavier_uniform_(layer.weight, generator=self._generator)
                layer.bias.zero_()
            else:  # the draws of the layers' own reset_parameters, in its order
                nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=self._generator)
                bound = 1 / math.sqrt(layer.weight[0].numel())
                layer.bias.uniform_(-bound, bound, generator=self._generator)
        return layer


def norm(dimensions: int, features: int) -> nn.BatchNorm1d | nn.BatchNorm2d:
    """A batch-norm of ``features`` channels of signals (1), images (2) or single numbers (0)."""
    kind = nn.BatchNorm2d if dimensions == 2 else nn.BatchNorm1d
    return kind(features, device="cpu", dtype=torch.float32)
