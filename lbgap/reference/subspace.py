"""Plain-PyTorch twins of the ops on the random matrix A, and the generator that it is drawn with."""

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
