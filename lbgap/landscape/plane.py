"""Loss and accuracy on a plane of the parameter space."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lbgap.checks import Amount, dense, flag, positive, whole
from lbgap.flat import Selection
from lbgap.landscape.buffers import combined_buffers
from lbgap.landscape.combined import Combined
from lbgap.landscape.directions import check_models, kind_of, make_frame, roles
from lbgap.landscape.ends import another
from lbgap.landscape.frame import Frame, Range
from lbgap.landscape.given import Given, take
from lbgap.landscape.grid import Grid, Rows, check_grid
from lbgap.landscape.record import NO_BATCH_NORM, opened
from lbgap.objective import Objective
from lbgap.problem.call import CallFunction
from lbgap.problem.loss import LossFunction
from lbgap.result import Result, versions
from lbgap.status import Status, status
from lbgap.system import files
from lbgap.system.progress import Report, check_progress, evaluations_bar

TOLERANCE = 0.02  # of refine=True


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Plane(Result):
    """Loss and accuracy on a grid of points in a plane; values are rows of columns, ``values[row][column]``.

    Attributes:
        value: How far the training loss in the plane, on the grid and at the marks, rises above that of the lowest
            mark: infinite where it overflows, NaN where that of no mark is finite.
        x: Coordinates of the columns, ascending, in the units that ``axes[0]`` names.
        y: Coordinates of the rows, ascending, in the units that ``axes[1]`` names.
        train_loss: Mean loss over the training data; infinite or NaN where it overflows.
        train_accuracy: In percent; None where the model is not a classifier.
        test_loss: The same over the test data; None without.
        test_accuracy: The same over the test data; None without.
        evaluated: Which values were evaluated; the others were interpolated between them.
        marks: Name and coordinates of each minimizer in the plane.
        mark_loss: Training loss at each mark, which lies between points of the grid; one that is a model's own is
            that model's loss.
        path: Coordinates of each iterate of a trajectory, projected into the plane; None without.
        axes: What x and y are, with their units.
        eigenvalues: Of the Hessian, one for each direction that is an eigenvector of it; None without.
        explained: Share of the trajectory's variance along each principal component; None without.
        evaluations: Passes over the training data by this call, those of a search for eigenvectors included; those over
            the test data are not, nor is what ``out`` had kept.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]
    train_loss: Rows
    train_accuracy: Rows | None
    test_loss: Rows | None
    test_accuracy: Rows | None
    evaluated: tuple[tuple[bool, ...], ...]
    marks: tuple[tuple[str, float, float], ...]
    mark_loss: tuple[float, ...]
    path: tuple[tuple[float, float], ...] | None
    axes: tuple[str, str]
    eigenvalues: tuple[float, float] | None
    explained: tuple[float, float] | None

    @property
    def evaluated_points(self) -> int:
        """How many points of the grid were evaluated."""
        return sum(map(sum, self.evaluated))

    def _headline(self) -> str:
        return f"plane: the training loss rises by up to {self.value:.6g}"

    def _numbers(self) -> list[str]:
        marks = (f"{name} {loss:.6g}" for (name, *_), loss in zip(self.marks, self.mark_loss, strict=True))
        return [
            f"loss at the marks: {', '.join(marks)}",
            f"x from {self.x[0]:.4g} to {self.x[-1]:.4g}, {len(self.x)} columns: {self.axes[0]}",
            f"y from {self.y[0]:.4g} to {self.y[-1]:.4g}, {len(self.y)} rows: {self.axes[1]}",
        ]


def plane(
    models: nn.Module | Objective | Sequence[nn.Module | Objective],
    data: Any = None,
    *,
    directions: str | Tensor | None = None,
    normalise: str = "filter",
    test_data: Any = None,
    points: int | tuple[int, int] = 51,
    x_range: Range | None = None,
    y_range: Range | None = None,
    refine: float | bool | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    seed: int = 0,
    progress: Report = False,
    loss: str | LossFunction | None = None,
    parameters: Selection | None = None,
    batch_norm: str | None = None,
    precision: str | None = None,
    batch_size: Amount | None = None,
    device: str | torch.device | None = None,
    backend: str | None = None,
    coupled: bool | None = None,
    judge: bool | None = None,
    call: CallFunction | None = None,
) -> Plane:
    """Evaluate loss and accuracy on a plane of the parameter space, on training and test data.

    Three minimizers span a plane in which distances are those of the parameter space (Garipov et al. 2018,
    arXiv 1802.10026). From one minimizer the plane goes along two directions: random ones, normalised filter by filter
    (Li et al. 2018, arXiv 1712.09913), eigenvectors of the Hessian, or any others. A trajectory is shown along its
    principal components (the same, section 7.2).

    Args:
        models: Three minimizers, one, or the iterates of a training, the last one being the centre; never changed. In
            place of one minimizer, the first of three or the last iterate an :class:`~lbgap.objective.Objective` of it
            may stand, in which case ``data`` and the keywords from ``loss`` on belong to it and must not be given here.
        data: Training data: ``(inputs, targets)``, a ``Dataset``, a ``DataLoader``, dicts and more (docs/data.md).
        test_data: Test data, or None. With an objective they are evaluated in batches of its size; where that is all
            training samples, in a size of their own.
        directions: ``"minimizers"``: through three of them, the default where there are three. ``"random"``: Gaussian,
            the default where there is one. ``"eigenvectors"``: of the two largest eigenvalues of the Hessian, of length
            1. ``"pca"``: the principal components of the iterates, of length 1. Or a tensor ``(2, n)``.
        normalise: Of random directions. ``"filter"``: each filter (index of a parameter's first dimension) has the norm
            of the minimizer's, and parameters of one dimension, which are biases and those of normalisation layers, do
            not move; ``"layer"``: the same for whole parameters; ``"none"``: all parameters move, and the direction has
            the norm of them all.
        points: Along each axis, or columns and rows.
        x_range: First and last x; by default what is marked with a margin of 20 % on each side, or (-1, 1) around one
            minimizer. In units that ``axes`` of the result names.
        y_range: The same for y.
        refine: None: evaluate every point. A tolerance: evaluate some 17 x 17 points, more where every other
            one does not predict the rest, and interpolate in between. Where both are known, interpolated and evaluated
            losses differ by at most this share of the latter, and accuracies by this share of 100 % and the sampling
            error of an accuracy (50 % over the root of the number of samples). True means 0.02. A bend narrower than a
            16th of the plane may be missed. ``evaluated`` of the result says which values are not interpolated.
        out: A folder that keeps what was evaluated as it comes.
        resume: Whether a plane in ``out`` is continued, killed or finished: it ends with the same bits as one that was
            not interrupted. One of other models, data or settings is refused.
        seed: Of random directions, and of the search for eigenvectors.
        progress: True for a bar on standard error, or a function that is called with a
            :class:`~lbgap.system.progress.Progress`.
        loss: ``"cross_entropy"`` (the default), ``"mse"``, ``"bce"``, ``"nll"``, ``"l1"``, ``"huber"``; a loss of
            torch; or ``loss(output, target)``: the mean over the batch, one value a sample, or ``(sum, weight)``.
        parameters: Which may move: ``"all"`` (the default), ``"weights"``, or names and patterns of them. The others
            have to be the same in all models.
        batch_norm: ``"eval"`` (the default): running statistics, between three minimizers combined as the parameters
            are (variances no lower than zero), else those of the centre; ``"batch"``: statistics of each evaluation
            batch; ``"freeze"``: those of the first minimizer or the centre everywhere; ``"recalibrate"``: estimated
            anew on the training data at each point.
        precision: ``"float32"`` (the default), ``"float64"``, or ``"mixed"``: products in bfloat16 where the network
            allows it.
        batch_size: Samples in a micro-batch, or a share of the training data (0.1, ``"10%"``); with
            ``batch_norm="batch"`` part of the result, 5,000 by default.
        device: Where to compute; the device of the first model, or of the last iterate, by default.
        backend: ``"auto"`` (the default), ``"native"`` or ``"torch"``.
        coupled: True where the samples of a batch see each other, in model or loss: the value is then the mean
            over the loader's batches, or over those of ``batch_size``, each counted by its weight: its samples, or for
            a ratio what the loss divides by. Their size is part of the result.
        judge: False leaves out the questions asked of model, loss and data before a number is believed
            (docs/limits.md), which the result then says.
        call: ``call(model, batch)``, which returns the output, where batches enter the model in a way of their own
            (docs/data.md).

    Returns:
        The plane.

    Raises:
        ValueError: The models differ in architecture, are identical or lie on a line; the directions are parallel,
            not finite or of the wrong shape; an argument is out of its range; the data do not fit; ``out`` holds
            another plane; or something that belongs to the objective was given.
        TypeError: An argument is of the wrong kind.
        OSError: ``out`` holds something else, or cannot be written.

    Example:
        >>> import torch, lbgap
        >>> found = lbgap.plane(torch.nn.Linear(2, 2), (torch.eye(2), torch.tensor([0, 1])), points=(5, 3))
        >>> len(found.train_loss), len(found.train_loss[0]), found.evaluated_points
        (3, 5, 15)
    """
    began = time.perf_counter()
    if not isinstance(models, nn.Module | Objective | Sequence):
        raise TypeError(f"models must be a module or a sequence of them, got {type(models).__name__}")
    several = [models] if isinstance(models, nn.Module | Objective) else list(models)
    if isinstance(directions, np.ndarray):
        directions = dense("directions", "(2, n)", directions, torch.float64, torch.device("cpu"))
    kind = kind_of(several, directions, normalise)
    (columns, rows), asked = check_grid(points, x_range, y_range)
    tolerance = _tolerance(refine)
    seed = whole("seed", seed, 0)
    resume = flag("resume", resume)
    if resume and out is None:
        raise ValueError("resume=True needs the folder of the plane that goes on: pass it as `out`")
    check_progress(progress)
    options: dict[str, Any] = {"loss": loss, "parameters": parameters, "precision": precision}
    options |= {"batch_size": batch_size, "device": device, "backend": backend, "coupled": coupled, "judge": judge}
    options["call"] = call
    given, modules = _taken(several, kind, data, batch_norm, options)
    check_models(modules, kind, given)
    combined = Combined(given, data, test_data)
    own = {
        "measure": "plane",
        "directions": kind,
        "normalise": normalise if kind == "random" else None,
        "points": [columns, rows],
        "x_range": asked[0],
        "y_range": asked[1],
        "refine": tolerance,
        "seed": seed,
    }
    facts = {**own, **_facts(combined), **_digests(modules, directions, combined)} if out is not None else {}
    with opened(out, resume, facts) as record:
        frame = make_frame(
            kind, modules, combined.objectives[0], directions, normalise, seed, progress, record.directions
        )
        checked = _check_ends(frame, kind, modules, combined)
        grid = Grid(frame, combined, record, (columns, rows), asked)
        with evaluations_bar(
            "plane", (rows * columns + len(frame.marks)) * len(combined.objectives), progress
        ) as report:
            mark_loss = grid.at_marks(report)
            grid.fill(tolerance, report)
    ranges = {"x_range": [grid.x[0], grid.x[-1]], "y_range": [grid.y[0], grid.y[-1]]}
    statistics = {"ends_checked": checked, "statistics": _statistics(kind, combined)}
    settings = {**combined.settings(), **own, **ranges, **frame.details, **statistics, "versions": versions()}
    tested = len(combined.objectives) > 1
    losses = grid.loss(0)
    return Plane(
        value=_rise(losses, mark_loss),
        status=_status(losses, mark_loss, int(grid.evaluated.sum()), tolerance),
        settings=settings,
        evaluations=combined.evaluations,
        seconds=time.perf_counter() - began,
        x=tuple(grid.x),
        y=tuple(grid.y),
        train_loss=losses,
        train_accuracy=grid.accuracy(0),
        test_loss=grid.loss(1) if tested else None,
        test_accuracy=grid.accuracy(1) if tested else None,
        evaluated=tuple(tuple(row) for row in grid.evaluated.tolist()),
        marks=frame.marks,
        mark_loss=mark_loss,
        path=frame.path,
        axes=frame.axes,
        eigenvalues=frame.eigenvalues,
        explained=frame.explained,
    )


def _taken(
    several: Sequence[nn.Module | Objective],
    kind: str,
    data: Any,
    batch_norm: str | None,
    options: Mapping[str, Any],
) -> tuple[Given, list[nn.Module]]:
    """The minimizer whose loss is evaluated, which alone may be an objective, and the modules of all.

    Raises:
        ValueError: As :func:`lbgap.landscape.given.take`, or another one is an objective.
        TypeError: One is not a module.
    """
    place = len(several) - 1 if kind == "pca" else 0
    for index, one in enumerate(several):
        if isinstance(one, Objective) and index != place:
            raise ValueError(
                "an Objective may stand for the first of three minimizers or for the last iterate alone, got one as "
                f"model {index + 1} of {len(several)}: pass its module"
            )
    names = roles(len(several), kind)
    given = take(several[place], data, batch_norm, options, role=names[place])
    return given, [
        given.module if index == place else another(one, name, given)
        for index, (one, name) in enumerate(zip(several, names, strict=True))
    ]


def _rise(losses: Rows, mark_loss: Sequence[float]) -> float:
    """How far the loss rises above that of the lowest mark."""
    lowest = min((loss for loss in mark_loss if math.isfinite(loss)), default=math.nan)
    every = (loss for row in (*losses, mark_loss) for loss in row)
    return max(math.inf if math.isnan(loss) else loss for loss in every) - lowest


def _status(losses: Rows, mark_loss: Sequence[float], evaluated: int, tolerance: float | None) -> Status:
    """How far a rise is to be trusted."""
    every = [loss for row in losses for loss in row]
    bad = sum(not math.isfinite(loss) for loss in every)
    if not any(map(math.isfinite, mark_loss)):
        return status("not_finite.minimizer")
    if bad:
        return status("not_finite.points", bad=bad, points=len(every))
    if tolerance is None:
        return status("complete", points=len(every))
    return status("refined", evaluated=evaluated, points=len(every), tolerance=tolerance)


def _tolerance(refine: float | bool | None) -> float | None:
    if refine is None or refine is False:
        return None
    return TOLERANCE if refine is True else positive("refine", refine, "0.02")


def _facts(combined: Combined) -> dict[str, Any]:
    """What the values depend on beside the weights, and a plane that goes on must have in common with its beginning."""
    names = ("loss", "n", "samples", "batch_size", "precision", "device", "test_samples", "test_batch_size")
    found = combined.settings()
    facts = {name: found[name] for name in names if name in found}
    facts["batch_norm"] = combined.mode if combined.has_batch_norm else NO_BATCH_NORM
    return facts if found["parameters"] == "all" else {**facts, "parameters": found["parameters"]}


def _digests(models: Sequence[nn.Module], directions: Any, combined: Combined) -> dict[str, str]:
    tensors = [tensor for model in models for tensor in (*model.parameters(), *model.buffers())]
    found = {"weights digest": files.digest(tensors)}
    if isinstance(directions, Tensor):
        found["directions digest"] = files.digest([directions])
    for name, objective in zip(("data", "test data"), combined.objectives, strict=False):
        found[f"{name} digest"] = objective.digest()
    # Weights do not tell a network from one of other activations, nor a name a loss from another one: their value does.
    objective = combined.objectives[0]
    value = f"{float(objective.losses(objective.theta[None])[0]):.5g}"
    return {**found, "loss there": value}


def _check_ends(frame: Frame, kind: str, models: Sequence[nn.Module], combined: Combined) -> str:
    """Give the points their ends, and compare those that are minimizers with the models; returns which they were.

    Raises:
        ValueError: A model keeps more than its parameters and floating-point buffers.
    """
    combined.ends = frame.ends
    combined.buffers = combined_buffers(models, combined.mode) if kind == "minimizers" else {}
    if kind == "minimizers":
        combined.check_buffers(models)
    if combined.norms:
        return "none: spectral norms are those of the weights of each point"
    if combined.own_statistics and combined.mode == "recalibrate":
        return "none: statistics are those of each point"
    own = models if kind == "minimizers" else models[-1:]
    ends = [(f"({x:.4g}, {y:.4g})", name, model) for (name, x, y), model in zip(frame.marks, own, strict=True)]
    some = ends[:1] if combined.own_statistics else ends
    combined.compare(some)
    return "all" if len(some) == len(ends) else "first: statistics are those of the first minimizer"


def _statistics(kind: str, combined: Combined) -> str:
    """Whose statistics batch-norm has, in words."""
    if not combined.objectives[0].has_batch_norm:
        return "none in the model"
    centre = "the first minimizer" if kind == "minimizers" else "the last iterate" if kind == "pca" else "the minimizer"
    if combined.mode == "eval" and kind == "minimizers":
        return "combined as the parameters are"
    words = {"batch": "of each evaluation batch", "recalibrate": "estimated anew at each point"}
    return words.get(combined.mode, f"of {centre} everywhere")
