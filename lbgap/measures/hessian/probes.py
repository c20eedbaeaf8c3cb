"""Random vectors to multiply."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lbgap.measures.hessian.products import Products
from lbgap.operators import LinearOperator

AT_ONCE = 8  # vectors in one call, which share what does not depend on them
LARGEST = 1 << 28  # numbers in vectors that are held at the same time (1 GiB of float32)


class Probes:
    """Random vectors for an operator, of one stream.

    They are drawn on the CPU, so that every device gets the same and, but for rounding, every dtype.
    """

    def __init__(self, operator: LinearOperator, seed: int) -> None:
        """Begin the stream of this seed."""
        self._operator, self._generator = operator, torch.Generator().manual_seed(seed)

    def normals(self, count: int) -> Tensor:
        """Standard normal ``(count, n)``."""
        rows = self._empty(count)
        for row in rows:
            row.copy_(torch.randn(row.shape, generator=self._generator, dtype=torch.float64, device="cpu"))
        return rows

    def signs(self, count: int) -> Tensor:
        """Independent signs ``(count, n)``."""
        rows = self._empty(count)
        for row in rows:
            bits = torch.randint(0, 2, row.shape, generator=self._generator, dtype=torch.int8, device="cpu")
            row.copy_(bits.mul_(2).sub_(1))
        return rows

    def signs_for(self, products: Products) -> Iterator[Tensor]:
        """Blocks of sign vectors until the products run out, at most :data:`AT_ONCE` each."""
        at_once = max(1, min(AT_ONCE, LARGEST // self._operator.size))
        while products.left > 0:
            yield self.signs(min(at_once, products.left))

    def _empty(self, count: int) -> Tensor:
        to = self._operator
        return torch.empty(count, to.size, dtype=to.dtype, device=to.device)
