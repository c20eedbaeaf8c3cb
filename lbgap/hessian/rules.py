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

from lbgap._layers import UnknownError

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
        buffers: Memory, kept from one set of vectors to the next.
    """

    k: int
    second: bool
    dtype: torch.dtype
    parts: list[Tensor]
    out: list[Tensor]
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
        """Return the value; saved are the first and, where it counts, the second derivative."""
        with torch.enable_grad():
            leaf = x[0].detach().requires_grad_()
            y = self._function(leaf)
            curved = not self._linear and self.run.second
            (first,) = torch.autograd.grad(y.sum(), leaf, create_graph=curved)
            second = torch.autograd.grad(first.sum(), leaf)[0] if curved else None
        return y.detach(), (first.detach(), first.detach().to(self.run.dtype).unsqueeze(1), second)

    def tangent(self, saved: Any, rx: Tangents, owned: bool) -> Tensor | None:
        """R{y} = f' R{x}."""
        (tangent,) = rx
        _, first, second = saved
        if tangent is None:
            return None
        return tangent.mul_(first) if owned and second is None else tangent * first

    def backward(self, saved: Any, g: Tensor) -> tuple[Tensor, ...]:
        """g_x = f' g."""
        return (g * saved[0],)

    def backward_tangent(
        self, saved: Any, g: Tensor | None, r: Tensor, rx: Tangents, owned: bool, wanted: bool
    ) -> Tangents:
        """R{g_x} = f' R{g} + f'' g R{x}."""
        _, first, second = saved
        r = r.mul_(first)
        if second is not None and g is not None and rx[0] is not None:
            r.addcmul_((second * g).to(r.dtype).unsqueeze(1), rx[0])
        return (r,)


class Flatten(Rule):
    """All but the batch dimension as one; ``width``, if given, is what the model says that it has."""

    fresh = False

    def __init__(self, width: int | None = None) -> None:
        self._width = width

    def forward(self, *x: Tensor) -> tuple[Tensor, Any]:
        """Return the value; saved is the shape of a sample."""
        y = x[0].flatten(1)
        if x[0].dim() < 2 or self._width not in (None, y.shape[1]):
            raise UnknownError(f"a reshape to (..., {self._width}) of {tuple(x[0].shape)}")
        return y, x[0].shape[1:]

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


class MaxPool(Rule):
    """The largest element of each window; windows move one or two trailing dimensions."""

    def __init__(self, function: Callable[[Tensor], tuple[Tensor, Tensor]], dimensions: int, overlapping: bool) -> None:
        self._function, self._dimensions, self._overlapping = function, dimensions, overlapping

    def forward(self, *x: Tensor) -> tuple[Tensor, Any]:
        """Return the value; saved are the places of the largest elements, and the shape of a sample."""
        if self._overlapping and x[0].is_cuda:
            raise UnknownError("max-pooling with overlapping windows, whose sums have no fixed order on a GPU")
        y, places = self._function(x[0])
        return y, (places.flatten(-self._dimensions), y.shape[1:], x[0].shape[1:])

    def tangent(self, saved: Any, rx: Tangents, owned: bool) -> Tensor | None:
        """R{y} is R{x} at these places."""
        places, after, _ = saved
        if rx[0] is None:
            return None
        flat = rx[0].flatten(-self._dimensions)
        places = places.unsqueeze(1).expand(-1, self.run.k, *places.shape[1:])
        tangent: Tensor = flat.gather(-1, places).unflatten(-1, after[-self._dimensions :])
        return tangent

    def backward(self, saved: Any, g: Tensor) -> tuple[Tensor, ...]:
        """g_x is g at these places, else zero."""
        places, _, before = saved
        return (self._scatter(g, places, (len(g), *before)),)

    def backward_tangent(
        self, saved: Any, g: Tensor | None, r: Tensor, rx: Tangents, owned: bool, wanted: bool
    ) -> Tangents:
        """R{g_x} is R{g} at these places, else zero."""
        places, _, before = saved
        places = places.unsqueeze(1).expand(-1, self.run.k, *places.shape[1:])
        return (self._scatter(r, places, (len(r), self.run.k, *before)),)

    def _scatter(self, g: Tensor, places: Tensor, shape: tuple[int, ...]) -> Tensor:
        g = g.flatten(-self._dimensions)
        zeros = g.new_zeros(shape).flatten(-self._dimensions)
        return zeros.scatter_add_(-1, places, g).view(shape)


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
