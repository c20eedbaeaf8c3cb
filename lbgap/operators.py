"""A symmetric matrix that is known by its products with vectors alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class LinearOperator:
    """A symmetric matrix of size n, as what it makes of vectors.

    Attributes:
        multiply: From ``(k, n)``, k vectors as rows, to their products, a fresh ``(k, n)``.
        size: n.
        dtype: Of the vectors, and of their products.
        device: Where they are.
        name: Of the matrix, for results.
    """

    multiply: Callable[[Tensor], Tensor]
    size: int
    dtype: torch.dtype = torch.float32
    device: torch.device = CPU
    name: str = "operator"

    def __call__(self, vectors: Tensor) -> Tensor:
        """Multiply ``(k, n)`` vectors."""
        return self.multiply(vectors)
