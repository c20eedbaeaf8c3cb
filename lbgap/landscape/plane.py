"""Loss and accuracy on a plane of the parameter space."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lbgap._result import plain

Rows = tuple[tuple[float, ...], ...]


@dataclass(frozen=True, eq=False)
class Plane:
    """Loss and accuracy on a grid of points in a plane; values are rows of columns, ``values[row][column]``.

    Attributes:
        x: Coordinates of the columns, ascending, in the units that ``axes[0]`` names.
        y: Coordinates of the rows, ascending, in the units that ``axes[1]`` names.
        train_loss: Mean loss over the training data; infinite or NaN where it overflows.
        train_accuracy: In percent; None where the model is not a classifier.
        test_loss: The same over the test data; None without.
        test_accuracy: The same over the test data; None without.
        evaluated: Which values were evaluated; the others were interpolated between them.
        marks: Name and coordinates of each minimizer in the plane.
        path: Coordinates of each iterate of a trajectory, projected into the plane; None without.
        axes: What x and y are, with their units.
        evaluations: How many points of the grid were evaluated.
        settings: Everything that the result depends on.
        seconds: Wall-clock time of the call.
        mark_loss: Training loss at each mark, which lies between points of the grid; one that is a model's own is
            that model's loss.
        eigenvalues: Of the Hessian, one for each direction that is an eigenvector of it; None without.
        explained: Share of the trajectory's variance along each principal component; None without.
    """

    x: tuple[float, ...] = field(repr=False)
    y: tuple[float, ...] = field(repr=False)
    train_loss: Rows = field(repr=False)
    train_accuracy: Rows | None = field(repr=False)
    test_loss: Rows | None = field(repr=False)
    test_accuracy: Rows | None = field(repr=False)
    evaluated: tuple[tuple[bool, ...], ...] = field(repr=False)
    marks: tuple[tuple[str, float, float], ...]
    path: tuple[tuple[float, float], ...] | None
    axes: tuple[str, str]
    evaluations: int
    settings: dict[str, Any] = field(repr=False)
    seconds: float = 0.0
    mark_loss: tuple[float, ...] = ()
    eigenvalues: tuple[float, float] | None = None
    explained: tuple[float, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON; NaN and infinity become None."""
        return {name: plain(getattr(self, name)) for name in self.__dataclass_fields__}
