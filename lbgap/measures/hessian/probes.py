"""What all curvature measures share: products that are counted, random vectors, and the rule that ends a mean."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lbgap.checks import whole
from lbgap.measures.call import Call
from lbgap.objective.products.output import check_kind

FEWEST = 8  # draws before a standard error is believed
AT_ONCE = 8  # vectors in one call, which share what does not depend on them
LARGEST = 1 << 28  # numbers in vectors that are held at the same time (1 GiB of float32)


class Products:
    """Products of the Hessian at the minimizer with vectors, counted, and random vectors to multiply.

    Attributes:
        kind: ``"hessian"``, ``"ggn"`` or ``"fisher"``.
        most: The limit that the caller gave.
        count: Products so far.
        like: The minimizer ``(n,)``.
        generator: Of the random vectors, on the CPU, so that every device draws the same.
    """

    def __init__(self, this: Call, kind: str, most: int, seed: int, told: Callable[[int], None] | None = None) -> None:
        """Begin at zero; ``told`` hears of each number of products as they are done."""
        self._objective, self._told = this.objective, told
        self.kind, self.most, self.count, self.like = kind, most, 0, this.centre
        self.generator = torch.Generator().manual_seed(seed)

    @property
    def left(self) -> int:
        """How many the limit still allows."""
        return self.most - self.count

    def __call__(self, vectors: Tensor) -> Tensor:
        """``H v`` for each row: ``(k, n)`` to a fresh ``(k, n)``.

        Raises:
            FloatingPointError: A product is NaN or infinite.
        """
        self.count += len(vectors)
        found = self._objective.hvp(self.like, vectors, kind=self.kind)
        if self._told is not None:
            self._told(len(vectors))
        return found

    def normals(self, count: int) -> Tensor:
        """Standard normal ``(count, n)``; the same on every device and, but for rounding, in every dtype."""
        rows = self.like.new_empty(count, len(self.like))
        for row in rows:
            row.copy_(torch.randn(row.shape, generator=self.generator, dtype=torch.float64, device="cpu"))
        return rows

    def signs(self, count: int) -> Tensor:
        """Independent signs ``(count, n)``."""
        rows = self.like.new_empty(count, len(self.like))
        for row in rows:
            bits = torch.randint(0, 2, row.shape, generator=self.generator, dtype=torch.int8, device="cpu")
            row.copy_(bits.mul_(2).sub_(1))
        return rows

    def probes(self) -> Iterator[Tensor]:
        """Blocks of sign vectors until the products run out, at most :data:`AT_ONCE` each."""
        most = max(1, min(AT_ONCE, LARGEST // len(self.like)))
        while self.left > 0:
            yield self.signs(min(most, self.left))


def check_limits(kind: str, most: int, seed: int, least: int = 1) -> tuple[int, int]:
    """Check what all curvature measures take; returns ``most`` and ``seed``.

    Raises:
        ValueError: A number is out of its range, or ``kind`` is unknown.
        TypeError: A number is not whole.
    """
    check_kind(kind)
    return whole("most", most, least), whole("seed", seed, 0)


def dots(one: Tensor, other: Tensor) -> Tensor:
    """Inner products of rows, ``(k,)`` float64: the sum over each block of columns in full precision."""
    total = torch.zeros(len(one), dtype=torch.float64, device=one.device)
    for a, b in zip(one.split(1 << 20, dim=-1), other.split(1 << 20, dim=-1), strict=True):
        total += (a.double() * b.double()).sum(-1)
    return total


@dataclass
class Mean:
    """The mean of independent draws, which stops once it is known as well as was asked.

    Attributes:
        relative_error: Largest standard error as a share of the estimate; None to go on to the limit.
        draws: The draws so far.
        offset: What is known exactly and added to their mean.
    """

    relative_error: float | None
    draws: list[float] = field(default_factory=list)
    offset: float = 0.0

    @property
    def value(self) -> float:
        """The estimate."""
        return self.offset + (statistics.fmean(self.draws) if self.draws else 0.0)

    @property
    def variance(self) -> float:
        """Unbiased, of one draw; NaN of a single one, zero of none."""
        return statistics.variance(self.draws) if len(self.draws) > 1 else math.nan if self.draws else 0.0

    @property
    def error(self) -> float:
        """Standard error of the estimate."""
        return math.sqrt(self.variance / len(self.draws)) if self.draws else 0.0

    @property
    def relative(self) -> float:
        """The standard error as a share of the estimate."""
        return share(self.error, self.value)

    @property
    def reached(self) -> bool:
        """Whether the standard error is believed, and as small as was asked."""
        return self.relative_error is not None and len(self.draws) >= FEWEST and self.relative <= self.relative_error


def share(error: float, value: float) -> float:
    """An error relative to a value; zero of zero."""
    return error / abs(value) if value else math.inf if error else 0.0


def ended(count: int, what: str, relative: float, asked: float | None, reached: bool) -> str:
    """The status of an estimate: why it ended, and what to try for a better one."""
    size = f"the standard error is {100 * relative:.2g} % of {what}"
    if reached:
        return f"{count} products: {size}, within the {100 * (asked or 0):g} % asked for"
    if asked is None:
        return f"{count} products, all that were asked for: {size}"
    return f"{count} products, the limit: {size}; try a larger most"
