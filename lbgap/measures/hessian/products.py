"""Products with a matrix, counted, up to a limit."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from lbgap.operators import LinearOperator


class Products:
    """A matrix whose products are counted.

    Attributes:
        operator: The matrix.
        max_products: The limit that the caller gave.
        count: Products so far.
    """

    def __init__(
        self, operator: LinearOperator, max_products: int, report: Callable[[int], None] | None = None
    ) -> None:
        """Begin at zero; ``report`` hears of each number of products as they are done."""
        self.operator, self.max_products, self.count, self._report = operator, max_products, 0, report

    @property
    def left(self) -> int:
        """How many the limit still allows."""
        return self.max_products - self.count

    def __call__(self, vectors: Tensor) -> Tensor:
        """Multiply ``(k, n)`` vectors; the products are a fresh ``(k, n)``.

        Raises:
            ValueError: What the operator makes of them does not fit.
            FloatingPointError: A product is NaN or infinite.
        """
        self.count += len(vectors)
        found = self.operator(vectors)
        if self._report is not None:
            self._report(len(vectors))
        return found
