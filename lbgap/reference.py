"""The plain-PyTorch twin of every native op: oracle, fallback and benchmark opponent.

Same names, same arguments, same results as :mod:`lbgap.ops`, on any device. The box is (centre x,
absolute a, relative b): coordinate i may be anywhere in x_i -+ (a + b |x_i|). The history ops have the bounds
lower - (a + b |lower|) and upper + (a + b |upper|).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

DISTRIBUTIONS = ("normal", "uniform", "rademacher")  # in the order of csrc/cpu/subspace.h
CHUNK = 2**17  # entries of A that exist at a time, and the integers behind them
MASK = 0xFFFFFFFF
# As in csrc/rng.h, the highest power first: -2 (log(1 + t) - t + t^2 / 2) / t^3, sin(pi/2 x) / x and
# cos(pi/2 x) / (1 - x^2), the last two in x^2.
LOG = (-0.174008757, 0.285349846, -0.298295379, 0.331551671, -0.399261266, 0.500026762, -0.66667819)
SINE = (0.000151485103, -0.00467376644, 0.0796896815, -0.645963728, 1.57079637)
COSINE = (2.36014457e-05, -0.000893537013, 0.0199686065, -0.233700514, 1.0)


def _bounds(centre: Tensor, absolute: float, relative: float) -> tuple[Tensor, Tensor]:
    half_width = absolute + relative * centre.abs()
    return centre - half_width, centre + half_width


def box_project(y: Tensor, centre: Tensor, absolute: float, relative: float, out: Tensor) -> None:
    """Project ``y`` onto the box; see :func:`lbgap.ops.box_project`."""
    lower, upper = _bounds(centre, absolute, relative)
    out.copy_(torch.clamp(y, lower, upper))


def box_step(
    y: Tensor,
    direction: Tensor,
    alpha: float,
    centre: Tensor,
    absolute: float,
    relative: float,
    out: Tensor,
) -> Tensor:
    """Step from ``y`` along ``direction`` and project; see :func:`lbgap.ops.box_step`."""
    lower, upper = _bounds(centre, absolute, relative)
    free = y + alpha * direction
    new = torch.clamp(free, lower, upper)
    moved = new.double() - y.double()
    squared_length = moved.square().sum(-1)
    slope = (direction.double() * moved).sum(-1)
    clipped = (new != free).sum(-1, dtype=torch.float64)
    out.copy_(new)
    return torch.stack([squared_length, slope, clipped], dim=-1)


def box_vertex(y: Tensor, gradient: Tensor, centre: Tensor, absolute: float, relative: float, out: Tensor) -> Tensor:
    """Go to the vertex furthest along ``gradient``; see :func:`lbgap.ops.box_vertex`."""
    lower, upper = _bounds(centre, absolute, relative)
    vertex = torch.where(gradient > 0, upper, torch.where(gradient < 0, lower, y))
    vertex = torch.where(gradient.isnan(), gradient, vertex)
    gap = (gradient.double() * (vertex.double() - y.double())).sum(-1)
    flips = (vertex != y).sum(-1, dtype=torch.float64)
    out.copy_(vertex)
    return torch.stack([gap, flips], dim=-1)


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


def philox(counter: tuple[Tensor, ...], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Philox 4x32-10 (Salmon et al. 2011) on int64 tensors that hold 32-bit words.

    Args:
        counter: Four tensors of shapes that broadcast, values below 2**32.
        key: Two words.

    Returns:
        Four words for each counter, int64.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # A product beyond 2^63 wraps around, and its 64 bits are right.
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c2 = (b >> 32 & MASK) ^ c1 ^ k0, (a >> 32 & MASK) ^ c3 ^ k1
        c1, c3 = b & MASK, a & MASK
        k0, k1 = k0 + 0x9E3779B9 & MASK, k1 + 0xBB67AE85 & MASK
    return c0, c1, c2, c3


def subspace_entries(
    rows: int, p: int, seed: int, stream: int, distribution: str, device: torch.device, *, first: int = 0
) -> Tensor:
    """Rows of the random matrix A, bit for bit as the native ops draw them.

    Args:
        rows: How many.
        p: Number of columns.
        seed: Of A.
        stream: Which of the seed's matrices.
        distribution: One of :data:`DISTRIBUTIONS`.
        device: Where to compute.
        first: Index of the first of the rows.

    Returns:
        ``(rows, p)`` float32.
    """
    columns = 128 if distribution == "rademacher" else 4
    row = (torch.arange(rows, device=device) + first)[:, None]
    group = torch.arange(-(-p // columns), device=device)[None]
    counter = (row & MASK, row >> 32, group, torch.full_like(group, stream))
    words = torch.stack(philox(counter, (seed & MASK, seed >> 32 & MASK)), dim=-1)
    if distribution == "rademacher":
        bits = words[..., None] >> torch.arange(32, device=device) & 1
        entries = (1 - 2 * bits).to(torch.float32)
    elif distribution == "uniform":
        entries = (_signed(words) >> 8).to(torch.float32) * 2.0**-23
    else:
        entries = _box_muller(words)
    return entries.flatten(1)[:, :p]


def _signed(words: Tensor) -> Tensor:
    """The low 32 bits as a signed number."""
    return words.to(torch.int32)


def _polynomial(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    value = x * coefficients[0] + coefficients[1]
    for coefficient in coefficients[2:]:
        value = value * x + coefficient
    return value


def _box_muller(words: Tensor) -> Tensor:
    """Standard normal numbers, two from each pair of words ``(..., 2 m)``; csrc/rng.h says how."""
    a, b = words[..., ::2], words[..., 1::2]
    v = (a >> 1).to(torch.int32).to(torch.float32) + 0.5
    bits = v.view(torch.int32) - 0x3F3504F3
    t = ((bits & 0x7FFFFF) + 0x3F3504F3).view(torch.float32) - 1.0
    square = t * t
    tail = t * square * _polynomial(LOG, t)
    minus_two_log = (31 - (bits >> 23)).to(torch.float32) * 1.38629436 + ((square - (t + t)) + tail)
    # By way of float64, which rounds to the nearest float32: torch's own float32 root may be a unit off.
    radius = minus_two_log.double().sqrt().to(torch.float32)
    x = _signed(b << 1).to(torch.float32) * 2.0**-31
    square = x * x
    cosine = _polynomial(COSINE, square) * (1.0 - square)
    cosine = torch.where(b >> 31 == 1, -cosine, cosine)
    return torch.stack([radius * cosine, radius * (_polynomial(SINE, square) * x)], dim=-1).flatten(-2)


def _slabs(
    n: int, p: int, seed: int, stream: int, distribution: str, device: torch.device, first: int
) -> Iterator[tuple[slice, Tensor]]:
    """The rows of A in slabs of at most ``CHUNK`` entries, or one row, in float64."""
    rows = max(1, CHUNK // max(1, p))
    for begin in range(0, n, rows):
        count = min(rows, n - begin)
        entries = subspace_entries(count, p, seed, stream, distribution, device, first=first + begin)
        yield slice(begin, begin + count), entries.double()


def subspace_apply(
    centre: Tensor, z: Tensor, seed: int, stream: int, distribution: str, out: Tensor, *, first: int = 0
) -> None:
    """Go from ``centre`` along the columns of A; see :func:`lbgap.ops.subspace_apply`."""
    for part, a in _slabs(len(centre), z.shape[-1], seed, stream, distribution, z.device, first):
        out[..., part] = centre[part].double() + z @ a.T


def subspace_project(g: Tensor, p: int, seed: int, stream: int, distribution: str, *, first: int = 0) -> Tensor:
    """Inner products with the columns of A; see :func:`lbgap.ops.subspace_project`."""
    result = g.new_zeros((*g.shape[:-1], p), dtype=torch.float64)
    for part, a in _slabs(g.shape[-1], p, seed, stream, distribution, g.device, first):
        result += g[..., part].double() @ a
    return result


def subspace_gram(
    n: int, p: int, seed: int, stream: int, distribution: str, device: torch.device, *, first: int = 0
) -> Tensor:
    """Inner products of the columns of A; see :func:`lbgap.ops.subspace_gram`."""
    result = torch.zeros(p, p, dtype=torch.float64, device=device)
    for _, a in _slabs(n, p, seed, stream, distribution, device, first):
        result += a.T @ a
    return result
