"""The sharpness of one layer at a time."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Unpack

from torch import nn

from lbgap.measures.call import Search, as_objective, separate
from lbgap.measures.sharpness import Sharpness, fast_sharpness
from lbgap.objective import Objective
from lbgap.result import Result


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class LayerSharpness(Result, Mapping[str, Sharpness]):
    """The sharpness of each layer alone: a mapping of its name to its :class:`~lbgap.Sharpness`, in the model's order.

    Attributes:
        value: phi in percent of the sharpest layer, to which ``status`` belongs, too.
        layer: Its name.
        layers: Each layer's whole result.
    """

    layer: str
    layers: dict[str, Sharpness]

    def __getitem__(self, layer: str) -> Sharpness:
        """The result of a layer."""
        return self.layers[layer]

    def __iter__(self) -> Iterator[str]:
        """The names of the layers."""
        return iter(self.layers)

    def __len__(self) -> int:
        """How many layers there are."""
        return len(self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the points in parameter space, ready for JSON; NaN and infinity become None."""
        return {"lower_bound": True, **super().to_dict()}

    def _headline(self) -> str:
        which = f"layer {self.layer}" if self.layer else "the model's own parameters"
        return f"sharpness of each layer: certified lower bounds, the largest phi >= {self.value:.6g} % of {which}"

    def _numbers(self) -> list[str]:
        names = [name or "(own)" for name in self.layers]
        counts = [f"{one.settings['n']:,}" for one in self.layers.values()]
        wide, high = max(map(len, names)), max(map(len, counts))
        rows = zip(names, counts, self.layers.values(), strict=True)
        return [f"{name:<{wide}}  {n:>{high}} parameters  phi >= {one.value:.6g} %" for name, n, one in rows]


def layer_sharpness(
    model: nn.Module | Objective, data: Any = None, *, epsilon: float = 1e-3, **search: Unpack[Search]
) -> LayerSharpness:
    """Measure phi (Keskar et al. 2016, Metric 2.1) of each layer alone: its own box, the other layers at rest.

    A layer is a module with parameters of its own. These boxes are faces of the box of the whole network, so no true
    phi of a layer is above the network's; they do not add up to it.

    Args:
        model: As in :func:`lbgap.fast_sharpness`; an :class:`~lbgap.objective.Objective` in place of model and data.
        data: The data; None with an objective.
        epsilon: Size of the boxes.
        **search: Other keywords of :func:`lbgap.fast_sharpness`, without ``start`` and the random manifolds'.

    Returns:
        The sharpness of each layer by its name; its ``point`` is one of the full space ``(n,)``.

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
    began = time.perf_counter()
    own, rest = separate("layer_sharpness", search)
    objective = as_objective(model, data, own)
    layers: dict[str, list[str]] = {}
    for name in objective.names:
        layers.setdefault(name.rpartition(".")[0], []).append(name)
    found: dict[str, Sharpness] = {}
    for name, names in layers.items():
        layer = objective.some(names)
        one = fast_sharpness(layer, epsilon=epsilon, **rest)
        found[name] = dataclasses.replace(one, point=layer.point(one.point))
    sharpest = max(found, key=lambda name: found[name].value)
    shared = {**found[sharpest].settings, "measure": "layer_sharpness", **objective.settings()}
    return LayerSharpness(
        value=found[sharpest].value,
        status=found[sharpest].status,
        settings=shared,
        evaluations=sum(one.evaluations for one in found.values()),
        seconds=time.perf_counter() - began,
        layer=sharpest,
        layers=found,
    )
