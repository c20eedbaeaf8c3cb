"""How the values of many points pass through a layer.

A value is of one of three kinds. ``SHARED``: the same for all points, ``(batch, ...)``, as the network's input is.
``SPANNED``: linear in the coefficients of the points, ``(j, batch, ...)``, one value for each end: so is what a layer
makes of a shared input, for which j products serve all points. ``OWN``: one value a point, ``(k, batch, ...)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lbgap.objective.points.source import Combinations, Source

NARROW = 32  # outputs of a linear layer

Places = dict[int, slice]


class Kind(Enum):
    """How a value depends on the points."""

    SHARED = 0
    SPANNED = 1
    OWN = 2


@dataclass
class Run:
    """What the layers share while some points are evaluated on one batch.

    Attributes:
        source: The points.
        low: The type of the products of values that are a point's own.
        exact: Whether the layer at work computes in full precision all the same.
        scratch: Memory that is used again by the next points, by layer.
    """

    source: Source
    low: torch.dtype
    exact: bool = False
    scratch: dict[Any, Tensor] = field(default_factory=dict)

    def buffer(self, key: Any, shape: Sequence[int], like: Tensor) -> Tensor:
        """Memory of a layer, which no other value needs any more."""
        found = self.scratch.get(key)
        if found is None or found.shape != torch.Size(shape) or found.dtype != like.dtype:
            found = self.scratch[key] = like.new_empty(shape)
        return found


class Parameter:
    """A parameter of a layer: where it lies in a point, or its one value if it does not move."""

    def __init__(self, value: Tensor, places: Places) -> None:
        self.value = value
        self.place = places.get(id(value))

    def of_points(self, source: Source) -> Tensor:
        """Its values at all points, ``(k, *shape)``."""
        if self.place is None:
            return self.value.detach().expand(source.k, *self.value.shape)
        return source.parameter(self.place, self.value.shape)

    def of_ends(self, source: Combinations) -> Tensor:
        """Its values at the ends, ``(j, *shape)``."""
        assert self.place is not None
        return source.end(self.place, self.value.shape)


def own(run: Run, value: Tensor, kind: Kind, key: Any) -> Tensor:
    """Make a value one of each point; what was spanned lies in memory of its own then."""
    if kind is Kind.OWN:
        return value
    if kind is Kind.SHARED:
        return value.expand(run.source.k, *value.shape)
    assert isinstance(run.source, Combinations)
    out = run.buffer((key, "blend"), (run.source.k, *value.shape[1:]), value)
    run.source.blend(value.reshape(len(value), -1), out.view(run.source.k, -1))
    return out


class Rule:
    """One layer.

    Attributes:
        fresh: Whether what it returns lies in memory of its own.
        affine: Elements and outputs of its weight; None without.
        loops: Whether it takes points one by one, so that nothing is gained by several at once.
        statistics: Names of buffers that may differ between the points.
    """

    fresh = True
    affine: tuple[int, int] | None = None
    loops = False
    statistics: tuple[str, ...] = ()

    def kind(self, kinds: Sequence[Kind], spans: bool) -> Kind:
        """The kind of the result, from those of the inputs; ``spans``: whether points are combinations of ends."""
        return Kind.SHARED if all(kind is Kind.SHARED for kind in kinds) else Kind.OWN

    def once(self, run: Run, kind: Kind, *values: Tensor) -> Tensor:
        """The result for all points at once, shared or spanned."""
        raise NotImplementedError

    def each(self, run: Run, owned: Sequence[bool], *values: Tensor) -> Tensor:
        """The result of each point, from values of each point; those owned may be overwritten."""
        raise NotImplementedError


def merged(function: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    """Apply to ``(k, batch, ...)`` what is made for ``(batch, ...)``."""
    result: Tensor = function(value.flatten(0, 1)).unflatten(0, value.shape[:2])
    return result


class Samplewise(Rule):
    """A layer without parameters that treats each sample alike; ``linear``: also a linear one, without a constant."""

    def __init__(self, function: Callable[[Tensor], Tensor], linear: bool = False, fresh: bool = True) -> None:
        self._function, self._linear, self.fresh = function, linear, fresh

    def kind(self, kinds: Sequence[Kind], spans: bool) -> Kind:
        """A linear map of what is spanned is spanned."""
        return kinds[0] if self._linear else super().kind(kinds, spans)

    def once(self, run: Run, kind: Kind, *values: Tensor) -> Tensor:
        """Apply it."""
        return self._function(values[0]) if kind is Kind.SHARED else merged(self._function, values[0])

    def each(self, run: Run, owned: Sequence[bool], *values: Tensor) -> Tensor:
        """Apply it to all points as to one larger batch."""
        return merged(self._function, values[0])


class Pointwise(Rule):
    """An activation: each number by itself, whatever the shape.

    Attributes:
        relu: Whether it is the rectifier.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], inplace: Callable[[Tensor], Tensor] | None) -> None:
        self._function, self._inplace = function, inplace
        self.relu = isinstance(function, nn.ReLU)

    def once(self, run: Run, kind: Kind, *values: Tensor) -> Tensor:
        """Apply it."""
        return self._function(values[0])

    def each(self, run: Run, owned: Sequence[bool], *values: Tensor) -> Tensor:
        """Apply it, in place where that is allowed."""
        return self._inplace(values[0]) if self._inplace and owned[0] else self._function(values[0])


class Sum(Rule):
    """The sum of two values, as residual networks form it."""

    def kind(self, kinds: Sequence[Kind], spans: bool) -> Kind:
        """The sum of two spanned values is spanned."""
        return kinds[0] if kinds[0] is kinds[1] else Kind.OWN

    def once(self, run: Run, kind: Kind, *values: Tensor) -> Tensor:
        """Add."""
        return values[0] + values[1]

    def each(self, run: Run, owned: Sequence[bool], *values: Tensor) -> Tensor:
        """Add, into one of the two where that is allowed."""
        a, b = values
        for into, other, free in ((a, b, owned[0]), (b, a, owned[1])):
            if (
                free
                and into.dtype == torch.result_type(a, b)
                and into.shape == torch.broadcast_shapes(a.shape, b.shape)
            ):
                return into.add_(other)
        return a + b


class Norm(Rule):
    """A batch-norm, with running statistics or those of the batch."""

    def __init__(self, layer: Any, name: str, places: Places) -> None:
        self.layer, self._name = layer, name
        self.batch = layer.running_mean is None
        if not self.batch:
            self.statistics = tuple(f"{name}.{kind}".lstrip(".") for kind in ("running_mean", "running_var"))
        self._parts = [None if p is None else Parameter(p, places) for p in (layer.weight, layer.bias)]

    def kind(self, kinds: Sequence[Kind], spans: bool) -> Kind:
        """Its statistics are a point's own."""
        return Kind.OWN

    def _scale_shift(self, run: Run) -> list[Tensor | None]:
        return [None if part is None else part.of_points(run.source) for part in self._parts]

    def _statistic(self, run: Run, kind: str) -> Tensor:
        name = f"{self._name}.{kind}".lstrip(".")
        value: Tensor = getattr(self.layer, kind)
        if name in run.source.buffers:
            assert isinstance(run.source, Combinations)
            return run.source.buffer(name).to(value.dtype)
        return value.expand(run.source.k, *value.shape)

    def affine_map(self, run: Run) -> tuple[Tensor, Tensor]:
        """Scale and shift ``(k, channels)`` that running statistics amount to."""
        mean, variance = self._statistic(run, "running_mean"), self._statistic(run, "running_var")
        scale, shift = self._scale_shift(run)
        s = (variance + self.layer.eps).rsqrt()
        s = s if scale is None else s * scale
        t = -mean * s
        return s, t if shift is None else t + shift

    def each(self, run: Run, owned: Sequence[bool], *values: Tensor) -> Tensor:
        """One scale and one shift a point and channel."""
        x = values[0]
        if self.batch:
            return self._by_batch(run, x, owned[0])
        s, t = self.affine_map(run)
        shape = (len(x), 1, -1, *(1,) * (x.dim() - 3))
        s, t = s.to(x.dtype).view(shape), t.to(x.dtype).view(shape)
        return torch.addcmul(t, x, s, out=x) if owned[0] else torch.addcmul(t, x, s)

    def _by_batch(self, run: Run, x: Tensor, owned: bool) -> Tensor:
        """Point by point: torch's own kernel reads the batch in one go, where a reduction of all points does not."""
        scale, shift = self._scale_shift(run)
        parts = zip(x, *(part if part is not None else [None] * len(x) for part in (scale, shift)), strict=True)
        done = (F.batch_norm(one, None, None, s, t, training=True, eps=self.layer.eps) for one, s, t in parts)
        if len(x) == 1:
            return next(done)[None]
        out = x if owned else torch.empty_like(x)
        for target, one in zip(out, done, strict=True):
            target.copy_(one)
        return out


class Weighted(Rule):
    """A layer with a weight and maybe a bias, and maybe a batch-norm that was multiplied into them.

    Attributes:
        norm: That batch-norm.
        moves: Whether all its parameters may move.
    """

    affine: tuple[int, int]

    def __init__(self, layer: Any, places: Places) -> None:
        self.layer = layer
        self.weight = Parameter(layer.weight, places)
        self.bias = None if layer.bias is None else Parameter(layer.bias, places)
        self.norm: Norm | None = None
        self.affine = (layer.weight.numel(), layer.weight.shape[0])
        moves = {part.place is not None for part in (self.weight, self.bias) if part is not None}
        self.moves, self._rests = moves == {True}, moves == {False}

    def kind(self, kinds: Sequence[Kind], spans: bool) -> Kind:
        """The products of a shared input are linear in what moves."""
        if kinds[0] is not Kind.SHARED or self.norm is not None:
            return Kind.OWN
        if self._rests:
            return Kind.SHARED
        return Kind.SPANNED if spans and self.moves else Kind.OWN

    def effective(self, run: Run) -> tuple[Tensor, Tensor | None]:
        """Weight ``(k, out, ...)`` and bias ``(k, out)`` of all points, with the batch-norm."""
        weight = self.weight.of_points(run.source)
        bias = None if self.bias is None else self.bias.of_points(run.source)
        if self.norm is None:
            return weight, bias
        s, t = self.norm.affine_map(run)
        return weight * s.view(*s.shape, *(1,) * (weight.dim() - 2)), t if bias is None else torch.addcmul(t, s, bias)


class Linear(Weighted):
    """A linear layer. Where it has few outputs, as the last one, they come first in memory: the loss is faster so."""

    def once(self, run: Run, kind: Kind, *values: Tensor) -> Tensor:
        """One product for each end."""
        x = values[0]
        if kind is Kind.SHARED:
            result: Tensor = self.layer(x)
            return result
        assert isinstance(run.source, Combinations)
        weight = self.weight.of_ends(run.source)
        bias = None if self.bias is None else self.bias.of_ends(run.source)[:, None]
        rows = x.reshape(1, -1, x.shape[-1]).expand(len(weight), -1, -1)
        out = x.new_empty(*rows.shape[:2], weight.shape[1])
        return _products(bias, rows, weight.mT, out).view(len(weight), *x.shape[:-1], -1)

    def each(self, run: Run, owned: Sequence[bool], *values: Tensor) -> Tensor:
        """One product a point."""
        weight, bias = self.effective(run)
        low = weight.dtype if run.exact else run.low
        x, weight, bias = values[0].to(low), weight.to(low), None if bias is None else bias[:, None].to(low)
        k, outputs, inputs = weight.shape
        rows = x.reshape(k, -1, inputs)
        if outputs <= NARROW:
            out = run.buffer(self, (k, outputs, rows.shape[1]), x)
            out = _products(None if bias is None else bias.mT, weight, rows.mT, out).mT
        else:
            out = run.buffer(self, (k, rows.shape[1], outputs), x)
            out = _products(bias, rows, weight.mT, out)
        return out if x.dim() == 3 else out.reshape(*x.shape[:-1], outputs)


def _products(bias: Tensor | None, a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """Batched matrix products, with a bias."""
    return torch.bmm(a, b, out=out) if bias is None else torch.baddbmm(bias, a, b, out=out)


class Convolution(Weighted):
    """A convolution in one or two dimensions; with weights of their own, point by point."""

    loops = True

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        result: Tensor = self.layer._conv_forward(x, weight, bias)
        return result

    def once(self, run: Run, kind: Kind, *values: Tensor) -> Tensor:
        """One convolution, whose channels are those of all ends."""
        x = values[0]
        if kind is Kind.SHARED:
            result: Tensor = self.layer(x)
            return result
        assert isinstance(run.source, Combinations)
        weights = self.weight.of_ends(run.source)
        biases = [None] * len(weights) if self.bias is None else list(self.bias.of_ends(run.source))
        return torch.stack([self._convolve(x, w, b) for w, b in zip(weights, biases, strict=True)])

    def each(self, run: Run, owned: Sequence[bool], *values: Tensor) -> Tensor:
        """One convolution a point."""
        weight, bias = self.effective(run)
        low = weight.dtype if run.exact else run.low
        parts = [
            self._convolve(values[0][i].to(low), weight[i].to(low), None if bias is None else bias[i].to(low))
            for i in range(run.source.k)
        ]
        return parts[0][None] if len(parts) == 1 else torch.stack(parts)
