"""Spectral norms of weights at other points: what ``torch.nn.utils`` keeps of them is true of one point alone.

A weight that is divided by its largest singular value (Miyato et al. 2018, arXiv 1802.05957) has the singular vectors
u and v beside it as buffers, where a power iteration has brought them during training. Half-way between two minimizers
the vectors half-way are no singular vectors, and have not even length one. So the vectors of each point's own weight
are computed, which that iteration would come to, and one function is evaluated everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.spectral_norm import SpectralNorm

from lbgap.flat import FlatModule, Selection
from lbgap.objective import Objective
from lbgap.problem.call import PLAIN, Call, CallFunction

NOTE = "spectral norms are those of the weights of each point, at the minimizers too"


@dataclass(frozen=True)
class Norm:
    """One weight that is divided by its spectral norm.

    Attributes:
        u: Name of the buffer of its left singular vector.
        v: Of the right one.
        matrix: Returns the weight before that, ``(rows, columns)``.
    """

    u: str
    v: str
    matrix: Callable[[], Tensor]


class SpectralNorms:
    """The singular vectors that a network divides by, at any of its points.

    Attributes:
        own: Name of each buffer to its value in the network itself; empty where it has no spectral norm.
    """

    def __init__(
        self, module: nn.Module, objective: Objective, parameters: Selection, call: CallFunction | None = None
    ) -> None:
        """Find them.

        Args:
            module: The network.
            objective: Its loss, with the same parameters that may move.
            parameters: Which may move; see :func:`lbgap.flat.select_parameters`.
            call: ``call(model, batch)`` of the user's.
        """
        names = [name for norm in _find(module) for name in (norm.u, norm.v)]
        self.own = {name: module.get_buffer(name).detach().clone() for name in names}
        self._flat: FlatModule | None = None
        if names:  # a replica of its own, for the point that the objective is at belongs to whoever evaluates it
            self._flat = FlatModule(
                module,
                parameters=parameters,
                dtype=objective.dtype,
                device=objective.device,
                call=PLAIN if call is None else Call("own", function=call),
            )

    def __len__(self) -> int:
        """How many buffers there are."""
        return len(self.own)

    @torch.no_grad()
    def at(self, point: Tensor) -> dict[str, Tensor]:
        """The buffers at a point ``(n,)``, in float64."""
        found: dict[str, Tensor] = {}
        if self._flat is None:
            return found
        self._flat.theta.copy_(point)
        for norm in _find(self._flat.module):
            found[norm.u], found[norm.v] = _vectors(norm.matrix().double())
            for name in (norm.u, norm.v):  # which another norm of the same weight may depend on
                self._flat.module.get_buffer(name).copy_(found[name])
        return found


def _vectors(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The singular vectors u and v of the largest singular value, by the smaller of the two squares of a matrix."""
    rows, columns = matrix.shape
    if rows > columns:
        v, u = _vectors(matrix.mT)
        return u, v
    if not matrix.isfinite().all():  # of a point far away, whose loss is not finite either
        return matrix.new_full((rows,), torch.nan), matrix.new_full((columns,), torch.nan)
    u = torch.linalg.eigh(matrix @ matrix.mT).eigenvectors[:, -1]
    return u, F.normalize(matrix.mT @ u, dim=0)


def _find(module: nn.Module) -> Iterator[Norm]:
    """All spectral norms, in the order in which they are computed."""
    for prefix, child in module.named_modules():
        at = f"{prefix}." if prefix else ""
        if isinstance(child, ParametrizationList):
            for index, part in child.named_children():
                if isinstance(part, _SpectralNorm) and hasattr(part, "_u"):
                    yield Norm(f"{at}{index}._u", f"{at}{index}._v", _parametrized(child, part))
        for hook in child._forward_pre_hooks.values():
            if isinstance(hook, SpectralNorm):
                yield Norm(f"{at}{hook.name}_u", f"{at}{hook.name}_v", _hooked(child, hook))


def _parametrized(weight: ParametrizationList, norm: _SpectralNorm) -> Callable[[], Tensor]:
    """What the parametrizations before this one make of a weight."""

    def matrix() -> Tensor:
        met: list[Tensor] = []
        handle = norm.register_forward_pre_hook(lambda _, arguments: met.append(arguments[0]))
        try:
            weight()
        finally:
            handle.remove()
        return norm._reshape_weight_to_matrix(met[0])

    return matrix


def _hooked(module: nn.Module, norm: SpectralNorm) -> Callable[[], Tensor]:
    def matrix() -> Tensor:
        return norm.reshape_weight_to_matrix(module.get_parameter(f"{norm.name}_orig"))

    return matrix
