"""The sharpness of one layer at a time."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from lbgap.losses import Loss
from lbgap.measures.call import Search, as_objective, separate
from lbgap.measures.sharpness import Sharpness, fast_sharpness
from lbgap.objective import Objective
from lbgap.result import Result


class Layer(Objective):
    """An objective as a function of some of its parameters, the others resting at the minimizer.

    It shares the replica of the objective that it was made of, and its evaluations count there too.

    Attributes:
        n: Number of parameters that move.
        names: Their names.
    """

    def __init__(self, objective: Objective, names: list[str]) -> None:
        """Let only the parameters of these names move."""
        self.__dict__.update(objective.__dict__)
        self._full, self._whole, self.evaluated, self._restricted = objective, objective, 0, True
        self._x, self._names = objective._centre, tuple(names)
        self._centre = self._own(self._x)
        self.n = len(self._centre)
        self.parameters = self._names

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters that may move, in the order of ``theta``."""
        return self._names

    def point(self, part: Tensor) -> Tensor:
        """The point of the full space with these parameters: a fresh ``(n,)``."""
        full = self._x.clone()
        for view, value in zip(self._views(full), self._views(full, part), strict=True):
            view.copy_(value)
        return full

    def _views(self, full: Tensor, part: Tensor | None = None) -> list[Tensor]:
        """The pieces of a full vector that move; or those of ``part``, in the same shapes."""
        pieces = [piece for name, piece in self._full.split(full).items() if name in self._names]
        if part is None:
            return pieces
        return [own.view_as(piece) for own, piece in zip(part.split([p.numel() for p in pieces]), pieces, strict=True)]

    def _own(self, full: Tensor) -> Tensor:
        return torch.cat([piece.reshape(-1) for piece in self._views(full)])

    def _move(self, theta: Tensor) -> None:
        self._flat.theta.copy_(self._x)
        for view, value in zip(self._views(self._flat.theta), self._views(self._flat.theta, theta), strict=True):
            view.copy_(value)

    def _gradient(self, theta: Tensor, out: Tensor | None, loss: Loss, *, bfloat16: bool) -> tuple[Tensor, Tensor]:
        report, full = super()._gradient(theta, self._flat.gradient, loss, bfloat16=bfloat16)
        own = self._own(full)
        return report, own if out is None else out.copy_(own)


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
        with torch.inference_mode(False), torch.no_grad():
            layer = Layer(objective, names)
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
