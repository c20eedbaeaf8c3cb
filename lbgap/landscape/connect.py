"""A path of low loss between two minimizers, found by training (Garipov et al. 2018)."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lbgap.checks import positive, whole
from lbgap.landscape.combined import MODES
from lbgap.landscape.ends import Ends
from lbgap.landscape.line import Line, as_line
from lbgap.landscape.shape import shape_of
from lbgap.losses import LossFunction
from lbgap.objective import Objective
from lbgap.result import plain, versions
from lbgap.system.progress import products_bar
from lbgap.training.batches import derive_seed, epoch_batches

KINDS = ("bezier", "polygon")
BATCH_SIZE = 128
PLACES = 2  # stream of the random places on the path, beside those of a training
LENGTH_POINTS = 1000
RISE = 1.0  # of the widths that a line reports; a path has none to show


@dataclass(frozen=True, eq=False)
class Connection:
    """A trained path between two minimizers, and the straight line for comparison.

    Attributes:
        kind: ``"bezier"`` or ``"polygon"``.
        path: Loss and accuracy at t = ``path.alphas`` from 0 to 1; its barrier is ``path.shape.barrier``.
        straight: The same on the straight line.
        control: ``(2 + bends, n)``: x_s, the trained bends, x_l.
        epoch_loss: Mean loss over each epoch of the training, at random places on the path.
        length: Euclidean length of the path.
        distance: Euclidean distance of the minimizers.
        settings: Everything that the result depends on.
        seconds: Wall-clock time of the call.
    """

    kind: str
    path: Line
    straight: Line
    control: Tensor = field(repr=False)
    epoch_loss: tuple[float, ...] = field(repr=False)
    length: float
    distance: float
    settings: dict[str, Any] = field(repr=False)
    seconds: float

    def point(self, t: float) -> Tensor:
        """The parameters at a place of the path, flat, ``(n,)``; those that may move, in the order of ``Objective``.

        Args:
            t: From 0, which is x_s, to 1, which is x_l.

        Raises:
            ValueError: It is outside.
        """
        if not 0 <= t <= 1:
            raise ValueError(f"t must be from 0 to 1, got {t}")
        return _combine(weights_at(self.kind, t, len(self.control) - 2), self.control)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the control points, ready for JSON; NaN and infinity become None."""
        names = ("kind", "epoch_loss", "length", "distance", "settings", "seconds")
        lines = {"path": self.path.to_dict(), "straight": self.straight.to_dict()}
        return {**{name: plain(getattr(self, name)) for name in names}, **lines}

    def __str__(self) -> str:
        lines = [
            f"A path of low loss ({self.kind}) of length {self.length:.4g} between minimizers {self.distance:.4g} apart"
        ]
        for name, attribute in (("training", "shape"), ("test", "test_shape")):
            here, there = getattr(self.path, attribute), getattr(self.straight, attribute)
            if here is not None and there is not None:
                barriers = f"{here.barrier:.4g} on the path, {there.barrier:.4g} on the straight line"
                lines.append(f"  barrier of the {name} loss: {barriers}")
        return "\n".join(lines)


def connect(
    small: nn.Module,
    large: nn.Module,
    data: Any,
    *,
    test_data: Any = None,
    kind: str = "bezier",
    bends: int = 1,
    epochs: int = 30,
    train_batch_size: int | None = None,
    learning_rate: float = 1e-2,
    points: int = 61,
    loss: str | LossFunction = "cross_entropy",
    batch_norm: str = "batch",
    precision: str = "float32",
    batch_size: int | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Connection:
    """Train a path of low loss between two minimizers, and compare its barrier with that of the straight line.

    Garipov et al. 2018 (arXiv 1802.10026), equation 2: the mean loss over t uniform in [0, 1] is lowered, a batch and a
    place t at a time, over the bends of a Bezier curve (their equation 4) or a polygonal chain (equation 3). The bends
    begin on the straight line. We step by ADAM where they use SGD; the rate falls as in the authors' training.

    Args:
        small: The small-batch minimizer x_s, at t = 0; never changed.
        large: The large-batch minimizer x_l, at t = 1, of the same architecture; never changed.
        data: Training data, as for :func:`lbgap.fast_sharpness`.
        test_data: Test data, or None.
        kind: ``"bezier"`` or ``"polygon"``.
        bends: Points of the path that are trained.
        epochs: Passes over the training data. With 0 the path is the straight line.
        train_batch_size: Samples in a batch of the training; 128 by default, or all if there are fewer.
        learning_rate: Of ADAM, for the first half of the epochs; then it falls linearly to a hundredth.
        points: How many places of path and straight line are evaluated, evenly spaced in t.
        loss: ``"cross_entropy"``, ``"mse"`` or ``loss(output, target) -> mean over the batch``.
        batch_norm: ``"batch"``: statistics of each batch; ``"recalibrate"``: the same in training, then estimated anew
            on the training data at each place. A path has no running statistics, so that the other modes are refused
            where there is batch-norm.
        precision: ``"float32"`` or ``"float64"``.
        batch_size: Samples in a micro-batch of the evaluation; with ``batch_norm="batch"`` part of the result.
        device: Where to compute; the small model's device by default.
        seed: Of the order of the samples and of the places.
        progress: Show progress bars on standard error.

    Returns:
        The path.

    Raises:
        ValueError: As :func:`lbgap.line`, or an option of the training is out of its range.
        TypeError: An argument is of the wrong kind.
        FloatingPointError: The training loss became NaN or infinite.
    """
    began = time.perf_counter()
    _check(kind, precision, batch_norm)
    bends, epochs, points = whole("bends", bends, 1), whole("epochs", epochs, 0), whole("points", points, 3)
    if train_batch_size is not None:
        train_batch_size = whole("train_batch_size", train_batch_size, 1)
    seed = whole("seed", seed, 0)
    positive("learning_rate", learning_rate, "1e-2")
    options: dict[str, Any] = {"loss": loss, "precision": precision, "batch_size": batch_size, "device": device}
    ends = Ends(small, large, [data] if test_data is None else [data, test_data], batch_norm, options)
    normed = ends.objectives[0].has_batch_norm
    if normed and batch_norm not in ("batch", "recalibrate"):
        raise ValueError(
            f"batch_norm={batch_norm!r} takes running statistics, of which a path has none: "
            "pass 'batch' or 'recalibrate'"
        )
    checked = ends.check()
    samples = ends.objectives[0].samples
    train_batch_size = min(BATCH_SIZE, samples) if train_batch_size is None else train_batch_size
    if train_batch_size > samples:
        raise ValueError(f"train_batch_size must be at most the {samples} training samples, got {train_batch_size}")
    if normed and train_batch_size < 2:
        raise ValueError("train_batch_size must be at least 2 for the statistics of batch-norm, got 1")
    objective = ends.objectives[0]
    if normed:  # one that takes any number of samples as one batch
        whole_batch = {**options, "batch_size": samples, "device": ends.ends.device}
        objective = Objective(small, data, batch_norm="batch", **whole_batch)
    trained, losses = _train(
        objective, ends.ends, kind, bends, epochs, train_batch_size, float(learning_rate), seed, progress
    )
    straight_rows = [(1 - index / (points - 1), index / (points - 1)) for index in range(points)]
    straight = _evaluate(ends, straight_rows, "straight line", progress, checked)
    ends.buffers = {name: _spread(values, bends) for name, values in ends.buffers.items()}
    ends.ends = trained
    rows = [weights_at(kind, index / (points - 1), bends) for index in range(points)]
    path = _evaluate(ends, rows, "path", progress, checked)
    settings = {"measure": "connect", "kind": kind, "bends": bends, "epochs": epochs, "seed": seed}
    settings |= {"train_batch_size": train_batch_size, "learning_rate": float(learning_rate), "optimizer": "Adam"}
    settings |= {"points": points, **ends.settings(), "ends_checked": checked, "versions": versions()}
    return Connection(
        kind=kind,
        path=path,
        straight=straight,
        control=trained,
        epoch_loss=tuple(losses),
        length=_length(kind, trained),
        distance=ends.distance,
        settings=settings,
        seconds=time.perf_counter() - began,
    )


def _check(kind: str, precision: str, batch_norm: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind must be 'bezier' or 'polygon', got {kind!r}")
    if precision not in ("float32", "float64"):
        raise ValueError(f"precision must be 'float32' or 'float64' to train a path, got {precision!r}")
    if batch_norm not in MODES:
        raise ValueError(f"batch_norm must be 'batch' or 'recalibrate', got {batch_norm!r}")


def weights_at(kind: str, t: float, bends: int) -> tuple[float, ...]:
    """Coefficients of x_s, the bends and x_l at a place of the path.

    Args:
        kind: ``"bezier"``: those of a curve of degree ``bends + 1``; ``"polygon"``: of a chain of so many segments,
            each of which takes the same share of t.
        t: From 0 to 1.
        bends: How many.

    Returns:
        ``2 + bends`` numbers that are not negative and sum to one; exactly one and zeros at both ends.
    """
    degree = bends + 1
    if kind == "bezier":
        return tuple(math.comb(degree, i) * t**i * (1 - t) ** (degree - i) for i in range(degree + 1))
    segment = min(int(t * degree), bends)
    share = t * degree - segment
    found = [0.0] * (degree + 1)
    found[segment], found[segment + 1] = 1 - share, share
    return tuple(found)


def _combine(weights: tuple[float, ...], points: Tensor) -> Tensor:
    """Their combination, in the dtype of the points; those with weight zero do not count."""
    found = torch.zeros_like(points[0])
    for weight, point in zip(weights, points, strict=True):
        if weight:
            found.add_(point, alpha=weight)
    return found


def _train(
    objective: Objective,
    ends: Tensor,
    kind: str,
    bends: int,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    progress: bool,
) -> tuple[Tensor, list[float]]:
    """Lower the mean loss over the path; returns the control points and the mean loss of each epoch."""
    places = torch.Generator().manual_seed(derive_seed(seed, 0, PLACES))
    middle = torch.nn.Parameter(_spread(ends, bends)[1:-1].clone())
    optimizer = torch.optim.Adam([middle], lr=learning_rate)
    gradient = torch.empty_like(ends[0])
    middle.grad = torch.empty_like(middle)
    losses = []
    batches = -(-objective.samples // batch_size)
    with products_bar("training the path", epochs * batches, progress, "batches") as done, torch.no_grad():
        for epoch in range(1, epochs + 1):
            optimizer.param_groups[0]["lr"] = learning_rate * _share_of_rate((epoch - 1) / epochs)
            total = torch.zeros((), dtype=torch.float64, device=ends.device)
            for batch in epoch_batches(objective.samples, batch_size, seed, epoch):
                weights = weights_at(kind, float(torch.rand((), dtype=torch.float64, generator=places)), bends)
                point = _combine(weights, torch.cat([ends[:1], middle, ends[1:]]))
                try:
                    loss, _ = objective.part(batch).loss_and_gradient(point, out=gradient)
                except FloatingPointError as error:
                    raise _diverged(epoch, learning_rate) from error
                for row, weight in zip(middle.grad, weights[1:-1], strict=True):
                    torch.mul(gradient, weight, out=row)
                optimizer.step()
                total += loss * len(batch)
                if done is not None:
                    done(1)
            losses.append(float(total) / objective.samples)
    return torch.cat([ends[:1], middle.detach(), ends[1:]]), losses


def _diverged(epoch: int, learning_rate: float) -> FloatingPointError:
    return FloatingPointError(
        f"the loss on the path is not finite in epoch {epoch}: pass a smaller learning_rate than {learning_rate:g}"
    )


def _share_of_rate(done: float) -> float:
    """The share of the learning rate after a share of the epochs: 1, then down to 0.01 at nine tenths."""
    return 1.0 if done <= 0.5 else max(0.01, 1 - 0.99 * (done - 0.5) / 0.4)


def _spread(values: Tensor, bends: int) -> Tensor:
    """Values at both ends ``(2, ...)``, and between them those of the bends on the straight line."""
    shares = torch.linspace(0, 1, bends + 2, dtype=values.dtype, device=values.device)
    shares = shares.view(-1, *[1] * (values.dim() - 1))
    return torch.lerp(values[:1], values[1:], shares)


def _evaluate(ends: Ends, rows: Sequence[tuple[float, ...]], title: str, progress: bool, checked: str) -> Line:
    began = time.perf_counter()
    found = ends.evaluate(rows, title, progress)
    alphas = [index / (len(rows) - 1) for index in range(len(rows))]
    shapes = []
    for pairs in found:
        losses = [loss for loss, _ in pairs]
        shapes.append(shape_of(alphas, losses, (losses[0], losses[-1]), RISE))
    settings = {"measure": title, **ends.settings(), "ends_checked": checked, "versions": versions()}
    return as_line(alphas, found, shapes, settings, began)


def _length(kind: str, control: Tensor) -> float:
    """Euclidean length, of a curve that of a chain of a thousand segments."""
    bends = len(control) - 2
    steps = bends + 1 if kind == "polygon" else LENGTH_POINTS
    weights = torch.tensor([weights_at(kind, i / steps, bends) for i in range(steps + 1)], dtype=torch.float64)
    legs = (control[1:].double() - control[:-1].double()).cpu()
    gram = legs @ legs.T
    # Weights that sum to zero, as those of a difference do, are combinations of the legs.
    moves = -(weights[1:] - weights[:-1]).cumsum(1)[:, :-1]
    return float(((moves @ gram) * moves).sum(1).clamp(min=0).sqrt().sum())
