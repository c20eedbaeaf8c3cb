"""How values and their tangents pass through a layer without parameters, forwards and backwards.

Pearlmutter, "Fast Exact Multiplication by the Hessian", Neural Computation 6 (1994): with R{.} the derivative along a
vector, a network y = f(x) with the gradient g of the loss in y also carries R{y} forwards and R{g} backwards. Here
values are ``(batch, ...)`` and the tangents of k vectors ``(batch, k, ...)``, so that a product which treats samples
alike takes all k as one larger batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lbgap import reference
from lbgap.layers import UnknownError

Map = Callable[[Tensor], Tensor]
Tangents = tuple[Tensor | None, ...]


@dataclass
class Run:
    """What all layers share while one set of vectors is multiplied.

    Attributes:
        k: Number of vectors.
        second: Whether the second derivatives of the layers count (the Hessian), or only those of the loss.
        dtype: Of the tangents, and of values and gradients where they enter products with them.
        parts: For each parameter that moves the vectors' part, ``(k, *shape)``.
        out: The same views of the result, added to at the end.
        ops: Who runs the pointwise parts: :mod:`lbgap.ops` or :mod:`lbgap.reference`.
        buffers: Memory, kept from one set of vectors to the next.
    """

    k: int
    second: bool
    dtype: torch.dtype
    parts: list[Tensor]
    out: list[Tensor]
    ops: Any
    buffers: dict[tuple[int, str, torch.dtype], Tensor] = field(default_factory=dict)

    def buffer(
        self, owner: object, role: str, shape: tuple[int, ...], like: Tensor, dtype: torch.dtype | None = None
    ) -> Tensor:
        """Uninitialised memory that the same owner gets again the next time: fresh pages cost much."""
        dtype, count = dtype or self.dtype, torch.Size(shape).numel()
        key = (id(owner), role, dtype)
        if key not in self.buffers or self.buffers[key].numel() < count:
            self.buffers[key] = torch.empty(count, dtype=dtype, device=like.device)
        return self.buffers[key][:count].view(shape)


class Rule:
    """A layer: how values, tangents, gradients and tangents of gradients pass through it.

    Attributes:
        moves: Whether it has a parameter that moves.
        fresh: Whether the tangent that it returns has memory of its own.
    """

    moves = False
    fresh = True

    def begin(self, run: Run) -> None:
        """Prepare for a set of vectors."""
        self.run = run

    def forward(self, *x: Tensor) -> tuple[Tensor, Any]:
        """Return the value, and what the other calls of the same batch need."""
        raise NotImplementedError

    def tangent(self, saved: Any, rx: Tangents, owned: bool) -> Tensor | None:
        """Return R{y}; None is zero. The memory of ``rx`` may be overwritten where it is ``owned``."""
        raise NotImplementedError

    def backward(self, saved: Any, g: Tensor) -> tuple[Tensor, ...]:
        """Return the gradient in each input."""
        raise NotImplementedError

    def backward_tangent(
        self, saved: Any, g: Tensor | None, r: Tensor, rx: Tangents, owned: bool, wanted: bool
    ) -> Tangents:
        """Return R{gradient} in each input, if ``wanted``; ``r``, that in the output, may be overwritten.

        ``g`` is None where second derivatives of the layers do not count.
        """
        raise NotImplementedError

    def finish(self) -> None:
        """Add what was gathered over the batches to the result, and let go of it."""
        del self.run


class Pointwise(Rule):
    """A function of each element."""

    def __init__(self, function: Map, piecewise_linear: bool) -> None:
        self._function, self._linear = function, piecewise_linear

    def forward(self, *x: Tensor) -> tuple[Tensor, Any]:
        """Return the value; saved are the first and, where it counts, the second derivative, in its dtype."""
        with torch.enable_grad():
            leaf = x[0].detach().requires_grad_()
            y = self._function(leaf)
            curved = not self._linear and self.run.second
            (first,) = torch.autograd.grad(y.sum(), leaf, create_graph=curved)
            second = torch.autograd.grad(first.sum(), leaf)[0] if curved else None
        return y.detach(), (first.detach(), second)

    def tangent(self, saved: Any, rx: Tangents, owned: bool) -> Tensor | None:
        """R{y} = f' R{x}."""
        (tangent,) = rx
        first, second = saved
        if tangent is None:
            return None
        # R{x} itself is wanted again backwards where there is a second derivative.
        alone = owned and second is None
        out = tangent if alone else self.run.buffer(self, "tangent", tuple(tangent.shape), tangent)
        self.run.ops.tangents_scale(tangent, first, out)
        return out

    def backward(self, saved: Any, g: Tensor) -> tuple[Tensor, ...]:
        """g_x = f' g."""
        return (g * saved[0],)

    def backward_tangent(
        self, saved: Any, g: Tensor | None, r: Tensor, rx: Tangents, owned: bool, wanted: bool
    ) -> Tangents:
        """R{g_x} = f' R{g} + f'' g R{x}."""
        first, second = saved
        if second is not None and g is not None and rx[0] is not None:
            self.run.ops.tangents_curve(r, first, second * g, rx[0], r)
        else:
            self.run.ops.tangents_scale(r, first, r)
        return (r,)


class Flatten(Rule):
    """All but the batch dimension as one."""

    fresh = False

    def forward(self, *x: Tensor) -> tuple[Tensor, Any]:
        """Return the value; saved is the shape of a sample."""
        return x[0].flatten(1), x[0].shape[1:]

    def tangent(self, saved: Any, rx: Tangents, owned: bool) -> Tensor | None:
        """R{y} is R{x} in another shape."""
        return None if rx[0] is None else rx[0].flatten(2)

    def backward(self, saved: Any, g: Tensor) -> tuple[Tensor, ...]:
        """g_x is g in the shape of x."""
        return (g.unflatten(1, saved),)

    def backward_tangent(
        self, saved: Any, g: Tensor | None, r: Tensor, rx: Tangents, owned: bool, wanted: bool
    ) -> Tangents:
        """R{g_x} is R{g} in the shape of x."""
        return (r.unflatten(2, saved),)


class Linear(Rule):
    """A linear function of each sample without parameters, such as a mean over windows."""

    def __init__(self, function: Map, fresh: bool = True) -> None:
        self._function, self.fresh = function, fresh

    def forward(self, *x: Tensor) -> tuple[Tensor, Any]:
        """Return the value; saved is the shape of a sample."""
        y = self._function(x[0])
        if len(y) != len(x[0]):
            raise UnknownError("a mean over the batch")
        return y, x[0].shape[1:]

    def tangent(self, saved: Any, rx: Tangents, owned: bool) -> Tensor | None:
        """The same function of R{x}."""
        return None if rx[0] is None else self._function(rx[0].flatten(0, 1)).unflatten(0, rx[0].shape[:2])

    def backward(self, saved: Any, g: Tensor) -> tuple[Tensor, ...]:
        """The transposed function of g."""
        with torch.enable_grad():
            leaf = g.new_zeros(len(g), *saved).requires_grad_()
            return torch.autograd.grad(self._function(leaf), leaf, g)

    def backward_tangent(
        self, saved: Any, g: Tensor | None, r: Tensor, rx: Tangents, owned: bool, wanted: bool
    ) -> Tangents:
        """The transposed function of R{g}."""
        return (self.backward(saved, r.flatten(0, 1))[0].unflatten(0, r.shape[:2]),)


@dataclass(frozen=True)
class Windows:
    """The windows of max-pooling, one number for each of the dimensions in which they move.

    Attributes:
        kernel: Elements of a window.
        stride: From a window to the next.
        padding: On both sides.
        dilation: From an element of a window to the next.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    @property
    def overlapping(self) -> bool:
        """Whether an element may be in several."""
        spans = (d * (size - 1) + 1 for d, size in zip(self.dilation, self.kernel, strict=True))
        return any(span > stride for span, stride in zip(spans, self.stride, strict=True))


class MaxPool(Rule):
    """The largest element of each window; windows move one or two trailing dimensions."""

    def __init__(self, function: Callable[[Tensor], tuple[Tensor, Tensor]], windows: Windows) -> None:
        self._function, self._windows, self._dimensions = function, windows, len(windows.kernel)

    def forward(self, *x: Tensor) -> tuple[Tensor, Any]:
        """Return the value; saved are the places of the largest elements, and the shape of a sample."""
        if self._windows.overlapping and x[0].is_cuda and self.run.ops is reference:
            raise UnknownError(
                "max-pooling with overlapping windows, whose sums have no fixed order on a GPU without its kernels"
            )
        y, places = self._function(x[0])
        return y, (self._planes(places, 1), x[0].shape[1:])

    def _planes(self, values: Tensor, at: int) -> Tensor:
        """The values with a dimension of channels, of which samples without one have one."""
        return values if values.dim() == at + 1 + self._dimensions else values.unsqueeze(at)

    def tangent(self, saved: Any, rx: Tangents, owned: bool) -> Tensor | None:
        """R{y} is R{x} at these places."""
        places, before = saved
        if rx[0] is None:
            return None
        tangents = self._planes(rx[0], 2)
        out = self.run.buffer(self, "tangent", (*tangents.shape[:2], *places.shape[1:]), tangents)
        self.run.ops.tangents_gather(tangents, places, out)
        return out.view(*out.shape[:2], *self._sample(before, places))

    def backward(self, saved: Any, g: Tensor) -> tuple[Tensor, ...]:
        """g_x is g at these places, else zero."""
        return (self._scatter(saved, g.unsqueeze(1))[:, 0],)

    def backward_tangent(
        self, saved: Any, g: Tensor | None, r: Tensor, rx: Tangents, owned: bool, wanted: bool
    ) -> Tangents:
        """R{g_x} is R{g} at these places, else zero."""
        return (self._scatter(saved, r),)

    def _sample(self, before: torch.Size, places: Tensor) -> tuple[int, ...]:
        """The shape of a sample of the value."""
        return (*before[: -self._dimensions], *places.shape[2:])

    def _scatter(self, saved: Any, r: Tensor) -> Tensor:
        places, before = saved
        batch, k = r.shape[:2]
        out = r.new_empty(batch, k, places.shape[1], *before[-self._dimensions :])
        w = self._windows
        planes = self._planes(r, 2)
        self.run.ops.tangents_scatter(planes, places, w.kernel, w.stride, w.padding, w.dilation, out)
        return out.view(batch, k, *before)


class Add(Rule):
    """The sum of two branches."""

    def forward(self, *x: Tensor) -> tuple[Tensor, Any]:
        """Return the value."""
        if x[0].shape != x[1].shape:
            raise UnknownError(f"a sum of shapes {tuple(x[0].shape)} and {tuple(x[1].shape)}")
        return x[0] + x[1], None

    def tangent(self, saved: Any, rx: Tangents, owned: bool) -> Tensor | None:
        """R{y} is the sum."""
        one, other = rx
        if one is None or other is None:
            only = other if one is None else one
            return None if only is None else only.clone()
        return one + other

    def backward(self, saved: Any, g: Tensor) -> tuple[Tensor, ...]:
        """Each branch has g."""
        return g, g

    def backward_tangent(
        self, saved: Any, g: Tensor | None, r: Tensor, rx: Tangents, owned: bool, wanted: bool
    ) -> Tangents:
        """Each branch has R{g}, in memory of its own."""
        return r, r.clone()
