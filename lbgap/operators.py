"""A symmetric matrix that is known by its products with vectors alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lbgap.checks import flag, whole
from lbgap.system import device as hardware

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.float64)
ROUNDING = 1000  # in units of the dtype's epsilon and of the largest entry: what two sums of a million terms differ by


@dataclass(frozen=True, eq=False)
class LinearOperator:
    """A symmetric matrix of size n, as what it makes of vectors.

    That it is symmetric is not checked: the estimators rely on it.

    Attributes:
        multiply: From ``(k, n)``, k vectors as rows, which it leaves as they are, to their products, ``(k, n)``. It may
            differentiate.
        size: n.
        dtype: Of the vectors, and of their products: ``torch.float32`` or ``torch.float64``.
        device: Where they are, in any form that ``torch.device`` knows.
        name: Of the matrix, for results.
        fresh: Whether what ``multiply`` returns is kept by nobody else; where it may be, each call copies it.

    Raises:
        ValueError: The size, the dtype or the device is none.
        TypeError: ``multiply`` cannot be called, the size is not whole, or the name is no string.

    Example:
        >>> import torch, lbgap
        >>> weights = torch.tensor([3.0, 2.0, 1.0])
        >>> lbgap.LinearOperator(lambda vectors: vectors * weights, size=3)(torch.ones(1, 3))
        tensor([[3., 2., 1.]])
    """

    multiply: Callable[[Tensor], Tensor]
    size: int
    dtype: torch.dtype = torch.float32
    device: torch.device = CPU
    name: str = "operator"
    fresh: bool = False

    def __post_init__(self) -> None:
        if not callable(self.multiply):
            raise TypeError(f"multiply must be a function of vectors (k, n), got {type(self.multiply).__name__}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be torch.float32 or torch.float64, got {self.dtype!r}")
        if not isinstance(self.name, str):
            raise TypeError(f"name must be a string, got {self.name!r}")
        object.__setattr__(self, "fresh", flag("fresh", self.fresh))
        object.__setattr__(self, "size", whole("size", self.size, 1))
        object.__setattr__(self, "device", hardware.usable(self.device, CPU))

    @classmethod
    def of(cls, matrix: Tensor, name: str = "matrix") -> LinearOperator:
        """The operator of a dense symmetric matrix, whose products are in its full precision.

        Args:
            matrix: ``(n, n)``, float32 or float64, finite, symmetric to rounding; its symmetric part is taken.
            name: For results.

        Raises:
            ValueError: The matrix is none of these.
            TypeError: It is no tensor.
        """
        if not isinstance(matrix, Tensor):
            raise TypeError(f"matrix must be a tensor (n, n), got {type(matrix).__name__}: convert it by torch.tensor")
        if matrix.layout != torch.strided:
            raise ValueError(f"matrix must be dense, got {matrix.layout}: pass a LinearOperator of its products")
        if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
            raise ValueError(f"matrix must be (n, n), n at least 1, got {tuple(matrix.shape)}")
        if matrix.dtype not in DTYPES:
            raise ValueError(f"matrix must be float32 or float64, got {matrix.dtype}: convert it by .double()")
        with torch.inference_mode(False), torch.no_grad():
            matrix = matrix.detach().clone()
            if not matrix.isfinite().all():
                row, column = (~matrix.isfinite()).nonzero()[0].tolist()
                raise ValueError(f"matrix must be finite, got {float(matrix[row, column])} at [{row}, {column}]")
            matrix = _symmetric(matrix)

        def multiply(vectors: Tensor) -> Tensor:
            with hardware.full_float32(vectors.device.type):
                return vectors @ matrix

        return cls(multiply, len(matrix), matrix.dtype, matrix.device, name, fresh=True)

    def __call__(self, vectors: Tensor) -> Tensor:
        """Multiply vectors.

        Args:
            vectors: ``(k, n)``, of the operator's dtype and on its device.

        Returns:
            The products, a ``(k, n)`` that shares no memory with the vectors.

        Raises:
            ValueError: The vectors do not fit; or ``multiply`` changed them, or returned what does not.
            TypeError: They are no tensor, or ``multiply`` returned none.
            FloatingPointError: A product is NaN or infinite.
        """
        self._check(vectors, "vectors must be")
        if not len(vectors):
            return torch.empty_like(vectors)
        # What differentiates need not ask for it inside an estimator.
        with torch.inference_mode(False), torch.enable_grad():
            vectors = vectors.clone() if vectors.is_inference() else vectors
            before = vectors._version
            products = self.multiply(vectors)
        if vectors._version != before:
            raise ValueError(f"multiply of {self.name!r} changed its vectors in place: let it return new ones")
        self._check(products, f"multiply of {self.name!r} must return", len(vectors))
        products = products.detach()
        # The sum is one quick pass, and finite only if they all are.
        if not products.sum().isfinite() and not (finite := products.isfinite().all(1)).all():
            bad = int((~finite).nonzero()[0])
            raise FloatingPointError(f"the product of {self.name!r} with vector {bad} is NaN or infinite")
        return products if self.fresh else products.clone()  # which an estimator may overwrite

    def _check(self, rows: Tensor, who: str, count: int | None = None) -> None:
        """Refuse what are not this many vectors of this operator, or any number of them."""
        wanted = f"{who} ({'k' if count is None else count}, {self.size}) {self.dtype} on {self.device}"
        if not isinstance(rows, Tensor):
            raise TypeError(f"{wanted}, got {type(rows).__name__}")
        fits = rows.dim() == 2 and rows.shape[1] == self.size and count in (None, len(rows))
        if not fits or rows.dtype != self.dtype or rows.device != self.device or rows.layout != torch.strided:
            sparse = "" if rows.layout == torch.strided else f", {rows.layout}"
            raise ValueError(f"{wanted}, got {tuple(rows.shape)} {rows.dtype} on {rows.device}{sparse}")


def _symmetric(matrix: Tensor) -> Tensor:
    """The symmetric part of a matrix.

    Raises:
        ValueError: The rest of it is more than rounding.
    """
    away = (matrix - matrix.T).abs()
    largest = float(away.max())
    if largest == 0:
        return matrix
    if largest > ROUNDING * torch.finfo(matrix.dtype).eps * float(matrix.abs().max()):
        row, column = divmod(int(away.argmax()), len(matrix))
        raise ValueError(
            f"matrix must be symmetric, but its entries at [{row}, {column}] and [{column}, {row}] are "
            f"{float(matrix[row, column]):.6g} and {float(matrix[column, row]):.6g}: pass (matrix + matrix.T) / 2"
        )
    return (matrix + matrix.T) / 2
