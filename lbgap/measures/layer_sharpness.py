"""The sharpness of one layer at a time."""

from __future__ import annotations

import dataclasses
from typing import Any, Unpack

from torch import nn

from lbgap.measures.call import Search, as_objective, separate
from lbgap.measures.sharpness import Sharpness, fast_sharpness
from lbgap.objective import Objective


def layer_sharpness(
    model: nn.Module | Objective, data: Any = None, epsilon: float = 1e-3, **search: Unpack[Search]
) -> dict[str, Sharpness]:
    """Measure phi (Keskar et al. 2016, Metric 2.1) of each layer alone: its own box, the other layers at rest.

    A layer is a module with parameters of its own. These boxes are faces of the box of the whole network, so no true
    phi of a layer is above the network's; they do not add up to it.

    Args:
        model: As in :func:`lbgap.fast_sharpness`; an :class:`~lbgap.objective.Objective` in place of model and data.
        data: The data; None with an objective.
        epsilon: Size of the boxes.
        **search: Other keywords of :func:`lbgap.fast_sharpness`, without ``start`` and the random manifolds'.

    Returns:
        Name of each layer and its sharpness, whose ``point`` is one of the full space ``(n,)``, in the model's order.

    Raises:
        ValueError: As :func:`lbgap.fast_sharpness`.
        TypeError: As :func:`lbgap.fast_sharpness`.

    Example:
        >>> import torch, lbgap
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
        >>> data = torch.eye(2), torch.tensor([0, 1])
        >>> list(lbgap.layer_sharpness(model, data))
        ['0', '2']
    """
    own, rest = separate("layer_sharpness", search)
    objective = as_objective(model, data, own)
    layers: dict[str, list[str]] = {}
    for name in objective.names:
        layers.setdefault(name.rpartition(".")[0], []).append(name)
    found = {}
    for name, names in layers.items():
        layer = objective.some(names)
        one = fast_sharpness(layer, epsilon=epsilon, **rest)
        found[name] = dataclasses.replace(one, point=layer.point(one.point))
    return found
