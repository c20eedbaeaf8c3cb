"""How values and tangents pass through a layer with weights: linear or convolutional, batch-norm folded into it.

Such a layer is bilinear in its input x and its weight W, so with V = R{W} and g the gradient of the loss in y = W x::

    R{y} = W R{x} + V x        R{g_x} = W' R{g} + V' g        R{g_W} = R{g} x' + g R{x}'

W is shared by all vectors and samples, so the terms in it take the k tangents of a batch as one batch k times as
large; x and g are shared by all vectors, so the others take the k matrices V as one layer with k times as many
outputs (or inputs). Either way it is one product for all vectors, and its result lies as ``(batch, k, ...)``.

A batch-norm in evaluation mode scales and shifts each output of the layer before it: W~ = s W, b~ = s (b - mean) +
shift with s = scale / sqrt(var + eps). The rules run on W~ and b~, and R{.} of this map is applied once for all
samples, so that the batch-norm costs no pass over the activations.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv1d_input, conv1d_weight, conv2d_input, conv2d_weight
from torch.nn.modules.batchnorm import _BatchNorm

from lbgap.layers import UnknownError
from lbgap.objective.products.rules import Rule, Run, Tangents

Places = dict[int, int]  # id of a parameter that moves -> its place among those


class Parts:
    """The vectors' parts for one tensor of a layer: a parameter that moves, or a constant."""

    def __init__(self, value: Tensor, places: Places) -> None:
        self.value = value.detach()
        self._place = places.get(id(value))

    @property
    def moves(self) -> bool:
        """Whether it is a parameter that moves."""
        return self._place is not None

    def vectors(self, run: Run) -> Tensor:
        """The vectors' parts, ``(k, *shape)``; zero for a constant."""
        if self._place is None:
            return self.value.new_zeros(1).expand(run.k, *self.value.shape)
        return run.parts[self._place]

    def add(self, run: Run, product: Tensor) -> None:
        """Add to the result."""
        if self._place is not None:
            run.out[self._place] += product


def channel_shape(value: Tensor) -> tuple[int, ...]:
    """The shape that lays one number a channel along ``(batch, channels, ...)``."""
    return (1, -1, *[1] * (value.dim() - 2))


class Norm:
    """The scale and shift of a batch-norm in evaluation mode."""

    def __init__(self, module: _BatchNorm, places: Places) -> None:
        mean, variance = module.running_mean, module.running_var
        assert mean is not None
        assert variance is not None
        self.mean, self._variance, self._eps = mean, variance, module.eps
        self.scale = Parts(module.weight if module.affine else torch.ones_like(mean), places)
        self.shift = Parts(module.bias if module.affine else torch.zeros_like(mean), places)
        self.moves = self.scale.moves or self.shift.moves

    def inverse(self) -> Tensor:
        """1 / sqrt(var + eps), ``(channels,)``; computed at each call, for buffers may be set."""
        return (self._variance + self._eps).rsqrt()


class Weighted(Rule):
    """What linear and convolutional layers share: the weight with the batch-norm folded in, and the way back.

    A class derived from this one keeps, for each set of vectors, ``gathered``: over all batches the sums of g x'
    and g (None where they do not count), and their tangents.
    """

    def __init__(self, module: nn.Linear | nn.Conv1d | nn.Conv2d, places: Places) -> None:
        weight = module.weight
        self._weight = Parts(weight, places)
        bias = module.bias
        self._bias = Parts(weight.detach().new_zeros(len(weight)) if bias is None else bias, places)
        self.moves = self._weight.moves or self._bias.moves
        self.norm: Norm | None = None

    def fold(self, norm: Norm) -> None:
        """Take a batch-norm in that follows."""
        self.norm = norm
        self.moves = self.moves or norm.moves

    def effective(self) -> tuple[Tensor, Tensor]:
        """Weight ``(out, rest)`` and bias ``(out,)`` as the samples meet them."""
        weight, bias = self._weight.value.flatten(1), self._bias.value
        if self.norm is None:
            return weight, bias
        s = self.norm.scale.value * self.norm.inverse()
        return s[:, None] * weight, s * (bias - self.norm.mean) + self.norm.shift.value

    def effective_vectors(self, run: Run) -> tuple[Tensor, Tensor]:
        """Their tangents, ``(k, out, rest)`` and ``(k, out)``."""
        v, u = self._weight.vectors(run).flatten(2), self._bias.vectors(run)
        if self.norm is None:
            return v, u
        inverse = self.norm.inverse()
        s, rs = self.norm.scale.value * inverse, self.norm.scale.vectors(run) * inverse
        weight = torch.addcmul(s[:, None] * v, rs[..., None], self._weight.value.flatten(1))
        return weight, rs * (self._bias.value - self.norm.mean) + s * u + self.norm.shift.vectors(run)

    def pull_back(self, run: Run, g: tuple[Tensor, Tensor] | None, r: tuple[Tensor, Tensor]) -> None:
        """Add R{gradient} in the parameters, given gradients ``g`` and R{gradients} ``r`` in weight and bias as met.

        Args:
            run: The set of vectors.
            g: ``(out, rest)`` and ``(out,)``.
            r: ``(k, out, rest)`` and ``(k, out)``.
        """
        r_weight, r_bias = r
        shape = (run.k, *self._weight.value.shape)
        if self.norm is None:
            self._weight.add(run, r_weight.reshape(shape))
            self._bias.add(run, r_bias)
            return
        inverse, centred = self.norm.inverse(), self._bias.value - self.norm.mean
        s, rs = self.norm.scale.value * inverse, self.norm.scale.vectors(run) * inverse
        weight = self._weight.value.flatten(1)
        scale = torch.einsum("koi,oi->ko", r_weight, weight) + r_bias * centred
        pulled, shifted = s[:, None] * r_weight, s * r_bias
        if g is not None:
            vectors, u = self._weight.vectors(run).flatten(2), self._bias.vectors(run)
            scale += torch.einsum("koi,oi->ko", vectors, g[0]) + u * g[1]
            pulled.addcmul_(rs[..., None], g[0])
            shifted.addcmul_(rs, g[1])
        self._weight.add(run, pulled.view(shape))
        self._bias.add(run, shifted)
        self.norm.scale.add(run, inverse * scale)
        self.norm.shift.add(run, r_bias)

    @property
    def _gradient_counts(self) -> bool:
        """Whether the gradient itself enters the result: through the scale of a batch-norm."""
        return self.run.second and self.norm is not None and self.moves


class BatchNorm(Rule):
    """A batch-norm in evaluation mode that no layer with weights precedes."""

    def __init__(self, norm: Norm) -> None:
        self._norm = norm
        self.moves = self._norm.moves

    def begin(self, run: Run) -> None:
        """Lay the vectors out along the channels."""
        super().begin(run)
        self._inverse = self._norm.inverse()
        self._s = self._norm.scale.value * self._inverse
        self._v, self._u = self._norm.scale.vectors(run), self._norm.shift.vectors(run)
        self._sums = [torch.zeros_like(self._v, memory_format=torch.contiguous_format) for _ in range(2)]

    def forward(self, *x: Tensor) -> tuple[Tensor, Any]:
        """Return the value; saved is the normalised input, and the shape that lays channels along it."""
        shape = channel_shape(x[0])
        normal = (x[0] - self._norm.mean.view(shape)) * self._inverse.view(shape)
        y = torch.addcmul(self._norm.shift.value.view(shape), normal, self._norm.scale.value.view(shape))
        return y, (normal, shape)

    def _wide(self, numbers: Tensor, shape: tuple[int, ...]) -> Tensor:
        """One number a channel, or one a vector and channel, along ``(batch, k, channels, ...)``."""
        return numbers.view(1, *numbers.shape, *shape[2:]).to(self.run.dtype)

    def tangent(self, saved: Any, rx: Tangents, owned: bool) -> Tensor | None:
        """R{y} = s R{x} + R{scale} x^ + R{shift}."""
        normal, shape = saved
        if rx[0] is None:
            if not self.moves:
                return None
            return self._wide(self._u, shape).addcmul(
                self._wide(self._v, shape), normal.unsqueeze(1).to(self.run.dtype)
            )
        # R{x} itself is wanted again backwards where the scale moves.
        alone = owned and not self.moves
        out = rx[0] if alone else self.run.buffer(self, "tangent", tuple(rx[0].shape), rx[0])
        own = (self._v, normal, self._u) if self.moves else (None, None, None)
        self.run.ops.tangents_affine(rx[0], self._s, *own, out)
        return out

    def backward(self, saved: Any, g: Tensor) -> tuple[Tensor, ...]:
        """g_x = s g."""
        return (g * self._s.view(saved[1]),)

    def backward_tangent(
        self, saved: Any, g: Tensor | None, r: Tensor, rx: Tangents, owned: bool, wanted: bool
    ) -> Tangents:
        """R{g_x} = s R{g} + R{s} g; the sums over samples are gathered for the scale and the shift."""
        normal, _ = saved
        places = [0, *range(3, r.dim())]
        if self.moves:
            self._sums[0] += (r * normal.unsqueeze(1).to(r.dtype)).sum(places)
            self._sums[1] += r.sum(places)
            if g is not None and rx[0] is not None:
                self._sums[0] += (g.unsqueeze(1).to(r.dtype) * rx[0]).sum(places) * self._inverse
        if not wanted:
            return (None,)
        own = (self._v * self._inverse, g) if g is not None and self._norm.scale.moves else (None, None)
        self.run.ops.tangents_affine(r, self._s, *own, None, r)
        return (r,)

    def finish(self) -> None:
        """Add the sums to the result."""
        self._norm.scale.add(self.run, self._sums[0])
        self._norm.shift.add(self.run, self._sums[1])
        del self._s, self._inverse, self._u, self._v, self._sums
        super().finish()


class Dense(Weighted):
    """A linear layer. The bias is one more column of the weight, met by an input that is always one."""

    def begin(self, run: Run) -> None:
        """Lay weight and vectors out for the products."""
        super().begin(run)
        weight, bias = self.effective()
        self._outputs, self._inputs = weight.shape
        self._whole = torch.cat([weight, bias[:, None]], 1)
        self._low = weight.to(run.dtype)
        self._sum = torch.zeros_like(self._whole) if self._gradient_counts else None
        if not self.moves:
            return
        v, u = self.effective_vectors(run)
        k, outputs, inputs = v.shape
        across = run.buffer(self, "across", (k, outputs, inputs + 1), weight)
        across[..., :inputs].copy_(v)
        across[..., inputs].copy_(u)
        self._across = across.flatten(0, 1)  # (k out, in + 1)
        along = run.buffer(self, "along", (outputs, k, inputs), weight)
        self._along = along.copy_(v.transpose(0, 1)).flatten(1)  # (out, k in)
        # Sums of x' R{g}, not of its transpose: products with few columns, an odd number of them, were seen to run at
        # two thirds of the speed.
        self._first = run.buffer(self, "first", (inputs + 1, k * outputs), weight, weight.dtype).zero_()
        self._second = run.buffer(self, "second", (outputs, k * inputs), weight, weight.dtype).zero_()

    def forward(self, *x: Tensor) -> tuple[Tensor, Any]:
        """Return the value; saved is the input with the ones, as the tangents meet it."""
        if x[0].dim() != 2:
            raise UnknownError(f"a linear layer on inputs of shape {tuple(x[0].shape)}")
        ones = torch.cat([x[0], x[0].new_ones(len(x[0]), 1)], 1)
        return ones @ self._whole.t(), ones.to(self.run.dtype)

    def tangent(self, saved: Any, rx: Tangents, owned: bool) -> Tensor | None:
        """R{y} = R{x} W' + x V'."""
        if rx[0] is None and not self.moves:
            return None
        x, batch, k = saved, len(saved), self.run.k
        out = self.run.buffer(self, "tangent", (batch, k, self._outputs), x)
        if rx[0] is not None:
            torch.mm(rx[0].reshape(batch * k, -1), self._low.t(), out=out.view(batch * k, -1))
            if self.moves:
                out.view(batch, -1).addmm_(x, self._across.t())
        else:
            torch.mm(x, self._across.t(), out=out.view(batch, -1))
        return out

    def backward(self, saved: Any, g: Tensor) -> tuple[Tensor, ...]:
        """g_x = g W."""
        return ((g.to(self.run.dtype) @ self._low).to(g.dtype),)

    def backward_tangent(
        self, saved: Any, g: Tensor | None, r: Tensor, rx: Tangents, owned: bool, wanted: bool
    ) -> Tangents:
        """R{g_x} = R{g} W + g V; gathered are g' x, x' R{g} and g' R{x}."""
        x, batch, k = saved, len(saved), self.run.k
        low = None if g is None else g.to(r.dtype)
        if self.moves:
            _accumulate(self._first, x.t(), r.reshape(batch, -1))
            if low is not None and rx[0] is not None:
                _accumulate(self._second, low.t(), rx[0].reshape(batch, -1))
            if low is not None and self._sum is not None:
                _accumulate(self._sum, low.t(), x)
        if not wanted:
            return (None,)
        if owned and rx[0] is not None and rx[0].is_contiguous():
            out = rx[0]  # which no one reads any more
        else:
            out = self.run.buffer(self, "gradient", (batch, k, self._inputs), x)
        torch.mm(r.reshape(batch * k, -1), self._low, out=out.view(batch * k, -1))
        if self.moves and low is not None:
            out.view(batch, -1).addmm_(low, self._along)
        return (out,)

    def finish(self) -> None:
        """Add what was gathered to the result."""
        if self.moves:
            k, bias = self.run.k, self._inputs
            r = self._first.view(-1, k, self._outputs).permute(1, 2, 0).contiguous()
            weight = r[..., :bias].add_(self._second.view(self._outputs, k, -1).transpose(0, 1))
            g = None if self._sum is None else (self._sum[:, :bias], self._sum[:, bias])
            self.pull_back(self.run, g, (weight, r[..., bias]))
            del self._across, self._along, self._first, self._second
        del self._whole, self._low, self._sum
        super().finish()


def _accumulate(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a product to a sum that may be of a higher precision."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b


class Convolution(Weighted):
    """A convolution in one or two dimensions, in one group, padded with zeros."""

    def __init__(self, module: nn.Conv1d | nn.Conv2d, places: Places) -> None:
        super().__init__(module, places)
        self._geometry: dict[str, Any] = {
            "stride": module.stride,
            "padding": module.padding,
            "dilation": module.dilation,
        }
        one = isinstance(module, nn.Conv1d)
        self._function: Any = F.conv1d if one else F.conv2d
        self._to_input: Any = conv1d_input if one else conv2d_input
        self._to_weight: Any = conv1d_weight if one else conv2d_weight

    def begin(self, run: Run) -> None:
        """Lay weight and vectors out for the convolutions."""
        super().begin(run)
        weight, self._b = self.effective()
        shape = self._weight.value.shape
        self._w = weight.view(shape)
        self._low = self._w.to(run.dtype)
        self._sum = (torch.zeros_like(self._w), torch.zeros_like(self._b)) if self._gradient_counts else None
        if not self.moves:
            return
        v, u = self.effective_vectors(run)
        v = v.unflatten(2, shape[1:]).to(run.dtype)
        self._u = u.to(run.dtype)
        self._across = v.reshape(-1, *shape[1:])  # (k out, in, ...)
        self._along = v.transpose(0, 1).reshape(shape[0], -1, *shape[2:])  # (out, k in, ...)
        self._first = torch.zeros_like(self._across, dtype=weight.dtype)
        self._second = torch.zeros_like(self._along, dtype=weight.dtype)
        self._bias_sum = torch.zeros(run.k, shape[0], dtype=weight.dtype, device=weight.device)

    def forward(self, *x: Tensor) -> tuple[Tensor, Any]:
        """Return the value; saved is the input, as the tangents meet it."""
        return self._function(x[0], self._w, self._b, **self._geometry), x[0].to(self.run.dtype)

    def tangent(self, saved: Any, rx: Tangents, owned: bool) -> Tensor | None:
        """R{y} = W * R{x} + V * x + R{b}."""
        x, k = saved, self.run.k
        along: Tensor | None = None
        if rx[0] is not None:
            along = self._function(rx[0].flatten(0, 1), self._low, **self._geometry).unflatten(0, (len(x), k))
        if not self.moves:
            return along
        own: Tensor = self._function(x, self._across, self._u.flatten(), **self._geometry).unflatten(1, (k, -1))
        return own if along is None else along.add_(own)

    def backward(self, saved: Any, g: Tensor) -> tuple[Tensor, ...]:
        """The transposed convolution of g."""
        return (self._to_input(saved.shape, self._low, g.to(saved.dtype), **self._geometry).to(g.dtype),)

    def backward_tangent(
        self, saved: Any, g: Tensor | None, r: Tensor, rx: Tangents, owned: bool, wanted: bool
    ) -> Tangents:
        """R{g_x} is the transposed convolution of R{g} with W and of g with V; gathered are those with x and R{x}."""
        x, k, places = saved, self.run.k, [0, *range(3, r.dim())]
        low = None if g is None else g.to(r.dtype)
        if self.moves:
            self._first += self._to_weight(x, self._across.shape, r.flatten(1, 2), **self._geometry)
            self._bias_sum += r.sum(places, dtype=self._bias_sum.dtype)
            if low is not None and rx[0] is not None:
                self._second += self._to_weight(rx[0].flatten(1, 2), self._along.shape, low, **self._geometry)
            if low is not None and g is not None and self._sum is not None:
                self._sum[0].add_(self._to_weight(x, self._w.shape, low, **self._geometry))
                self._sum[1].add_(g.sum([0, *range(2, g.dim())]))
        if not wanted:
            return (None,)
        shape = (len(x) * k, *x.shape[1:])
        out = self._to_input(shape, self._low, r.flatten(0, 1), **self._geometry).unflatten(0, (len(x), k))
        if self.moves and low is not None:
            shape = (len(x), k * x.shape[1], *x.shape[2:])
            out.add_(self._to_input(shape, self._along, low, **self._geometry).unflatten(1, (k, -1)))
        return (out,)

    def finish(self) -> None:
        """Add what was gathered to the result."""
        if self.moves:
            k, shape = self.run.k, self._w.shape
            second = self._second.unflatten(1, (k, -1)).transpose(0, 1)
            r = self._first.view(k, *shape) + second
            g = None if self._sum is None else (self._sum[0].flatten(1), self._sum[1])
            self.pull_back(self.run, g, (r.flatten(2), self._bias_sum))
            del self._across, self._along, self._first, self._second, self._bias_sum, self._u
        del self._w, self._low, self._b, self._sum
        super().finish()
