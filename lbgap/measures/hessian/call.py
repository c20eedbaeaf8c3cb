"""What the estimators of this folder share: the matrix that they are called with, and what a result says of it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from lbgap.checks import whole
from lbgap.measures.call import Call, Options, Work, call, check_names, working
from lbgap.objective import Objective
from lbgap.objective.products.output import check_kind
from lbgap.operators import LinearOperator
from lbgap.result import Result, versions
from lbgap.status import Status, status

Subject = nn.Module | Objective | LinearOperator | Tensor  # what has a matrix, or is one; a module comes with its data


@dataclass(frozen=True, eq=False)
class Task(Work):
    """One call of an estimator.

    Attributes:
        operator: The matrix.
        kind: ``"hessian"``, ``"ggn"`` or ``"fisher"`` where the matrix is one of an objective; else None.
        model: The call as one on an objective; None where the matrix came by itself.
    """

    operator: LinearOperator
    kind: str | None
    model: Call | None

    @property
    def evaluations(self) -> float:
        """Passes over the data so far."""
        return 0.0 if self.model is None else self.model.evaluations

    @property
    def matrix(self) -> Objective | LinearOperator:
        """What a further estimator is called with."""
        return self.operator if self.model is None else self.model.objective

    @property
    def rows(self) -> str:
        """What the size of the matrix is the number of, for messages."""
        return "rows of the matrix" if self.model is None else "parameters that may move"

    def base_loss(self) -> float:
        """Evaluate the loss at the minimizer; NaN where there is only a matrix."""
        return math.nan if self.model is None else float(self.model.objective.loss(self.model.centre))

    def settings(self, own: dict[str, Any]) -> dict[str, Any]:
        """Everything that the result depends on; ``own`` are the keywords of the estimator."""
        if self.model is not None:
            return self.model.settings(own)
        operator = self.operator
        return {
            "measure": self.measure,
            **{name: value for name, value in own.items() if name != "kind"},
            "n": operator.size,
            "dtype": str(operator.dtype).removeprefix("torch."),
            "device": str(operator.device),
            "name": operator.name,
            "versions": versions(),
        }


@contextmanager
def estimate(measure: str, subject: Subject, data: Any, kind: str, options: Options) -> Iterator[Task]:
    """Take the matrix that an estimator was called with, and run it without recording gradients.

    Args:
        measure: Name of the estimator.
        subject: A module or an objective, whose matrix of second derivatives is meant; or a matrix itself.
        data: The data of a module.
        kind: Which matrix of an objective.
        options: What belongs to an objective.

    Raises:
        ValueError: As :func:`lbgap.measures.call.as_objective` and :meth:`lbgap.operators.LinearOperator.of`; or a
            matrix came together with what belongs to a model.
        TypeError: Likewise; or an option that no measure has.
    """
    began = time.perf_counter()
    if not isinstance(subject, LinearOperator | Tensor | np.ndarray):
        if data is None and not isinstance(subject, nn.Module | Objective):
            raise TypeError(
                f"{measure} needs a module with its data, an Objective, a LinearOperator or a tensor (n, n), got "
                f"{type(subject).__name__}"
            )
        with call(measure, subject, data, options) as model:
            yield Task(measure, began, model.objective.operator(kind), kind, model)
        return
    _refuse(measure, data, kind, options)
    operator = subject if isinstance(subject, LinearOperator) else LinearOperator.of(subject)
    with working(operator.device.type):
        yield Task(measure, began, operator, None, None)


def _refuse(measure: str, data: Any, kind: str, options: Options) -> None:
    """Refuse what a matrix has no use for.

    Raises:
        ValueError: There is something.
        TypeError: No measure has such an option.
    """
    check_names(measure, options, Options.__annotations__)
    given = ["data"] if data is not None else []
    given += [name for name, value in options.items() if value is not None]
    given += ["kind"] if kind != "hessian" else []
    if given:
        raise ValueError(f"{', '.join(given)} cannot go with a matrix, which is multiplied as it is: leave that out")


def check_limits(kind: str, max_products: int, seed: int, least: int = 1) -> tuple[int, int]:
    """Check what all estimators take; returns ``max_products`` and ``seed``.

    Raises:
        ValueError: A number is out of its range, or ``kind`` is unknown.
        TypeError: A number is not whole.
    """
    check_kind(kind)
    return whole("max_products", max_products, least), whole("seed", seed, 0)


def ended(products: int, what: str, relative: float, asked: float | None, reached: bool) -> Status:
    """The status of an estimate: why it ended, and what to try for a better one."""
    name = "converged" if reached else "complete" if asked is None else "limit"
    return status(f"{name}.products", products=products, error=100 * relative, what=what, asked=100 * (asked or 0))


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Spectral(Result):
    """What is found of a symmetric matrix by its products.

    Attributes:
        products: Products with the matrix.
    """

    products: int

    @property
    def matrix(self) -> str:
        """What the matrix is called: ``"hessian"``, ``"ggn"``, ``"fisher"``, or the name of its operator."""
        return str(self.settings["kind"] if "samples" in self.settings else self.settings["name"])

    def _work(self) -> list[str]:
        return [f"{self.products} products"]
