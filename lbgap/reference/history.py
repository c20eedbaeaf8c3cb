"""Plain-PyTorch twins of the ops on the history of a quasi-Newton method."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

PATH_CHUNK = 65536


def _limits(lower: Tensor, upper: Tensor, absolute: float, relative: float) -> tuple[Tensor, Tensor]:
    def width(bound: Tensor) -> Tensor | float:
        return absolute if relative == 0 else absolute + relative * bound.abs()

    return lower - width(lower), upper + width(upper)


def _free(point: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return (point > low) & (point < high)


def _rows(s: Tensor, y: Tensor) -> Iterator[Tensor]:
    """The rows of W in float64, one at a time."""
    for row in (*y, *s):
        yield row.double()


def history_append(x_new: Tensor, x: Tensor, g_new: Tensor, g: Tensor, s: Tensor, y: Tensor, row: int) -> Tensor:
    """Write one more pair of differences; see :func:`lbgap.ops.history_append`."""
    torch.sub(x_new, x, out=s[row])
    torch.sub(g_new, g, out=y[row])
    one_s, one_y = s[row].double(), y[row].double()
    pairs = ((a.double(), b.double()) for a, b in zip(s, y, strict=True))
    return torch.stack([torch.stack([a @ one_s, a @ one_y, b @ one_s, b @ one_y]) for a, b in pairs])


def history_cauchy(
    x: Tensor,
    g: Tensor,
    s: Tensor,
    y: Tensor,
    middle: Tensor,
    theta: float,
    lower: Tensor,
    upper: Tensor,
    absolute: float,
    relative: float,
    out: Tensor,
) -> Tensor:
    """Find the generalized Cauchy point, here by sorting; see :func:`lbgap.ops.history_cauchy`."""
    low, high = _limits(lower, upper, absolute, relative)
    times = torch.where(g > 0, x - low, x - high) / g
    times = torch.where(g == 0, torch.inf, times.clamp(min=0)).double()
    size = g.double().abs()
    moved = torch.where(size > 0, size * times.clamp(max=1), 0)
    projected = torch.cat([moved, moved.new_zeros(1)]).amax()
    gradient = torch.where(times > 0, g, 0).double()
    middle = middle.to(x.device)
    g2 = gradient.square().sum()
    p = torch.stack([g2, *(-(w @ gradient) for w in _rows(s, y))])[1:]
    h, t, end = torch.zeros_like(p), g2.new_zeros(()), g2.new_full((), torch.inf)
    finite = ((gradient != 0) & times.isfinite()).nonzero().squeeze(1)
    left = int((gradient != 0).sum())
    for chunk in finite[times[finite].argsort(stable=True)].split(PATH_CHUNK):
        # At the j-th breakpoint, all before it being hit.
        at, gs = times[chunk], gradient[chunk]
        gw = gs[:, None] * torch.cat([y[:, chunk], s[:, chunk]]).double().T
        was_g2 = g2 - (gs.square().cumsum(0) - gs.square())
        was_p = p + (gw.cumsum(0) - gw)
        was_h = h + ((at[:, None] * gw).cumsum(0) - at[:, None] * gw)
        slope = was_g2 * (theta * at - 1) - ((was_p @ middle) * (at[:, None] * was_p - was_h)).sum(1)
        turned = (slope >= 0).nonzero()
        if len(turned):
            j = int(turned[0])
            g2, p, h, end = was_g2[j], was_p[j], was_h[j], at[j]
            t = at[j - 1] if j else t
            break
        g2, p, h = g2 - gs.square().sum(), p + gw.sum(0), h + (at[:, None] * gw).sum(0)
        left, t = left - len(chunk), (at[-1] if len(chunk) else t)
    if left == 0:
        p = torch.zeros_like(p)
    else:
        slope = g2 * (theta * t - 1) - (p @ middle) @ (t * p - h)
        curvature = theta * g2 - (p @ middle) @ p
        t = torch.where((curvature > 0) & (slope < 0), t - slope / curvature, t).minimum(end)
    free = torch.clamp(x - t.to(x.dtype) * g, low, high)
    out.copy_(torch.where(g == 0, x, torch.where(times <= t, torch.where(g > 0, low, high), free)))
    return torch.cat([torch.stack([t, projected]), t * p - h])


def history_gram(
    point: Tensor,
    x: Tensor,
    g: Tensor,
    s: Tensor,
    y: Tensor,
    theta: float,
    lower: Tensor,
    upper: Tensor,
    absolute: float,
    relative: float,
) -> Tensor:
    """Multiply the history with itself over the free coordinates; see :func:`lbgap.ops.history_gram`."""
    free = _free(point, *_limits(lower, upper, absolute, relative))
    h = torch.where(free, g.double() + theta * (point.double() - x.double()), 0)

    def rows() -> Iterator[Tensor]:
        yield from (torch.where(free, w, 0) for w in _rows(s, y))
        yield h

    return torch.stack([torch.stack([a @ b for b in rows()]) for a in rows()])


def history_combine(
    point: Tensor,
    x: Tensor,
    g: Tensor,
    s: Tensor,
    y: Tensor,
    q: Tensor,
    theta: float,
    lower: Tensor,
    upper: Tensor,
    absolute: float,
    relative: float,
    project: bool,
) -> None:
    """Add the subspace step; see :func:`lbgap.ops.history_combine`."""
    low, high = _limits(lower, upper, absolute, relative)
    step = g.double() + theta * (point.double() - x.double())
    for weight, w in zip(q.tolist(), _rows(s, y), strict=True):
        step += weight * w
    moved = (point.double() - step / theta).to(x.dtype)
    moved = torch.clamp(moved, low, high) if project else moved
    point.copy_(torch.where(_free(point, low, high), moved, point))


def history_line(
    g: Tensor, x: Tensor, z: Tensor, lower: Tensor, upper: Tensor, absolute: float, relative: float
) -> Tensor:
    """Measure the direction of a line search; see :func:`lbgap.ops.history_line`."""
    low, high = _limits(lower, upper, absolute, relative)
    d = z.double() - x.double()
    room = (torch.where(d > 0, high, low).double() - x.double()) / d
    longest = torch.cat([torch.where(d == 0, torch.inf, room.clamp(min=0)), d.new_full((1,), torch.inf)]).amin()
    return torch.stack([g.double() @ d, d @ d, longest])


def history_step(
    x: Tensor, z: Tensor, alpha: float, lower: Tensor, upper: Tensor, absolute: float, relative: float, out: Tensor
) -> None:
    """Go to a point of the line; see :func:`lbgap.ops.history_step`."""
    out.copy_(torch.clamp(x + alpha * (z - x), *_limits(lower, upper, absolute, relative)))
