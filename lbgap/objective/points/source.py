"""Where the parameters of k points come from: given as they are, or as combinations of a few ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lbgap import ops

Buffers = Mapping[str, Tensor]


class Source:
    """The parameters of k points.

    Attributes:
        k: Number of points.
        j: Number of ends that they are combinations of; 0 where they are given as they are.
        dtype: Of the parameters.
        device: Where they are.
        buffers: Names of the buffers that go with the points, instead of those of the replica.
    """

    k: int
    dtype: torch.dtype
    device: torch.device
    j: int = 0
    buffers: frozenset[str] = frozenset()

    def __getitem__(self, chosen: slice | Tensor) -> Source:
        """Some of the points."""
        raise NotImplementedError

    def parameter(self, place: slice, shape: torch.Size) -> Tensor:
        """One parameter of all points, ``(k, *shape)``, from its place in a vector ``(n,)``."""
        raise NotImplementedError

    def point(self, index: int) -> Tensor:
        """One point, ``(n,)``."""
        raise NotImplementedError

    def buffers_at(self, index: int) -> dict[str, Tensor]:
        """The buffers of one point."""
        return {}

    def is_end(self) -> list[bool]:
        """Which of the points are one of the ends."""
        return [False] * self.k


class Separate(Source):
    """Points as they are, ``(k, n)``."""

    def __init__(self, points: Tensor) -> None:
        self.k, self.dtype, self.device = len(points), points.dtype, points.device
        self._points = points

    def __getitem__(self, chosen: slice | Tensor) -> Separate:
        """Some of the points."""
        return Separate(self._points[chosen])

    def parameter(self, place: slice, shape: torch.Size) -> Tensor:
        """A view of the points."""
        return self._points[:, place].unflatten(1, shape) if shape else self._points[:, place].squeeze(1)

    def point(self, index: int) -> Tensor:
        """One point, ``(n,)``."""
        return self._points[index]


class Combinations(Source):
    """Points ``coefficients @ ends``, never formed as a whole."""

    def __init__(
        self, coefficients: Tensor, ends: Tensor, buffers: Buffers | None = None, *, native: bool = False
    ) -> None:
        """Begin.

        Args:
            coefficients: ``(k, j)`` float64.
            ends: ``(j, n)``.
            buffers: Name to ``(j, *shape)``, combined with the same coefficients, variances no lower than zero.
            native: Whether the compiled op blends the ends.
        """
        self.native = native
        self.k, self.j = coefficients.shape
        self.dtype, self.device = ends.dtype, ends.device
        self.coefficients = coefficients
        self.rounded = coefficients.to(ends.dtype)
        self._ends = ends
        self._buffers = dict(buffers or {})
        self.buffers = frozenset(self._buffers)

    def __getitem__(self, chosen: slice | Tensor) -> Combinations:
        """Some of the points."""
        return Combinations(self.coefficients[chosen], self._ends, self._buffers, native=self.native)

    def parameter(self, place: slice, shape: torch.Size) -> Tensor:
        """A parameter of all points."""
        ends = self._ends[:, place]
        return self.blend(ends, ends.new_empty(self.k, ends.shape[1])).view(self.k, *shape)

    def blend(self, ends: Tensor, out: Tensor) -> Tensor:
        """Combine ``(j, m)`` numbers to ``(k, m)``, in ``out``: the op in float64, rounded once."""
        if self.native:
            ops.blend_points(self.coefficients, ends, out)
            return out
        return torch.mm(self.rounded, ends, out=out)

    def end(self, place: slice, shape: torch.Size) -> Tensor:
        """A parameter of all ends, ``(j, *shape)``."""
        part = self._ends[:, place]
        return part.unflatten(1, shape) if shape else part.squeeze(1)

    def buffer(self, name: str) -> Tensor:
        """A buffer of all points, ``(k, *shape)`` float64."""
        return _combine(self.coefficients, self._buffers[name], name)

    def point(self, index: int) -> Tensor:
        """One point, ``(n,)``, combined in float64 from the ends that take part: an end is itself to the bit."""
        row = self.coefficients[index]
        return _sum(row.tolist(), self._ends).to(self._ends.dtype)

    def buffers_at(self, index: int) -> dict[str, Tensor]:
        """The buffers of one point, float64."""
        row = self.coefficients[index].tolist()
        found = {}
        for name, ends in self._buffers.items():
            value = _sum(row, ends)
            found[name] = value.clamp_min(0) if is_variance(name) else value
        return found

    def is_end(self) -> list[bool]:
        """Which of the points are one of the ends."""
        one = (self.coefficients == 1).sum(1) == 1
        rest = (self.coefficients == 0).sum(1) == self.j - 1
        found: list[bool] = (one & rest).tolist()
        return found


def is_variance(name: str) -> bool:
    """Whether a buffer of this name must not be negative."""
    return name.endswith("running_var")


def _combine(coefficients: Tensor, ends: Tensor, name: str) -> Tensor:
    value = (coefficients @ ends.double().flatten(1)).view(len(coefficients), *ends.shape[1:])
    return value.clamp_min(0) if is_variance(name) else value


def _sum(row: Sequence[float], ends: Tensor) -> Tensor:
    """One combination in float64, without the ends of coefficient zero."""
    terms = [c * end.double() for c, end in zip(row, ends, strict=True) if c != 0]
    total = terms[0] if terms else torch.zeros_like(ends[0], dtype=torch.float64)
    for term in terms[1:]:
        total = total + term
    return total
