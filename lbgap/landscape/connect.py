"""A path of low loss between two minimizers, found by training (Garipov et al. 2018)."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lbgap.checks import Amount, amount, counted, positive, whole
from lbgap.flat import Selection
from lbgap.landscape.ends import Ends
from lbgap.landscape.given import MODES, Given, take
from lbgap.landscape.line import Line, as_line
from lbgap.landscape.shape import shape_of
from lbgap.objective import Objective
from lbgap.problem.call import CallFunction
from lbgap.problem.loss import LossFunction
from lbgap.result import Result, versions
from lbgap.status import Status, status
from lbgap.system.device import scalars_on_host
from lbgap.system.progress import Report, check_progress, products_bar
from lbgap.training.batches import derive_seed, epoch_batches, split_batches

KINDS = ("bezier", "polygon")
BATCH_SIZE = 128
PLACES = 2  # stream of the random places on the path, beside those of a training
LENGTH_POINTS = 1000
RISE = 1.0  # of the widths that a line reports; a path has none to show


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Connection(Result):
    """A trained path between two minimizers, and the straight line for comparison.

    Attributes:
        value: The barrier of the training loss on the path, ``path.value``; that of the line is ``straight.value``.
        kind: ``"bezier"`` or ``"polygon"``.
        path: Loss and accuracy at t = ``path.alphas`` from 0 to 1.
        straight: The same on the straight line.
        control: ``(2 + bends, n)``: x_s, the trained bends, x_l; not in :meth:`to_dict`.
        epoch_loss: Mean loss over each epoch of the training, at random places on the path.
        length: Euclidean length of the path.
        distance: Euclidean distance of the minimizers.
        evaluations: Passes over the training data, those of the training included; those over the test data are not.
    """

    apart: ClassVar[frozenset[str]] = frozenset({"control"})

    kind: str
    path: Line
    straight: Line
    control: Tensor
    epoch_loss: tuple[float, ...]
    length: float
    distance: float

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

    def _headline(self) -> str:
        path, straight = self.value, self.straight.value
        return f"connect: barrier {path:.6g} of the training loss on the path, {straight:.6g} on the straight line"

    def _numbers(self) -> list[str]:
        lines = []
        here, there = self.path.test_shape, self.straight.test_shape
        if here is not None and there is not None:
            lines.append(f"barrier {here.barrier:.6g} of the test loss on the path, {there.barrier:.6g} on the line")
        s = self.settings
        size = f"{self.kind} of length {self.length:.6g} between minimizers {self.distance:.6g} apart"
        return [*lines, f"{size}, bends {s['bends']}, epochs {s['epochs']}, points {s['points']}"]


def connect(
    small: nn.Module | Objective,
    large: nn.Module,
    data: Any = None,
    *,
    test_data: Any = None,
    kind: str = "bezier",
    bends: int = 1,
    epochs: int = 30,
    train_batch_size: Amount | None = None,
    learning_rate: float = 1e-2,
    points: int = 61,
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
) -> Connection:
    """Train a path of low loss between two minimizers, and compare its barrier with that of the straight line.

    Garipov et al. 2018 (arXiv 1802.10026), equation 2: the mean loss over t uniform in [0, 1] is lowered, a batch and a
    place t at a time, over the bends of a Bezier curve (their equation 4) or a polygonal chain (equation 3). The bends
    begin on the straight line. We step by ADAM where they use SGD; the rate falls as in the authors' training.

    Args:
        small: The small-batch minimizer x_s, at t = 0, never changed; or an :class:`~lbgap.objective.Objective` of
            it, in which case ``data`` and the keywords from ``loss`` on belong to it and must not be given here.
        large: The large-batch minimizer x_l, at t = 1, of the same architecture; never changed.
        data: Training data: ``(inputs, targets)``, a ``Dataset``, a ``DataLoader``, dicts and more (docs/data.md).
        test_data: Test data, or None. With an objective they are evaluated in batches of its size; where that is all
            training samples, in a size of their own.
        kind: ``"bezier"`` or ``"polygon"``.
        bends: Points of the path that are trained.
        epochs: Passes over the training data. With 0 the path is the straight line.
        train_batch_size: Samples in a batch of the training, or a share (0.1, ``"10%"``); 128 by default, or all if
            there are fewer; with ``coupled=True`` as many as in a batch of the evaluation. A batch of ignored samples
            alone is left out.
        learning_rate: Of ADAM, for the first half of the epochs; then it falls linearly to a hundredth.
        points: How many places of path and straight line are evaluated, evenly spaced in t.
        seed: Of the order of the samples and of the places.
        progress: True for bars on standard error, or a function that is called with a
            :class:`~lbgap.system.progress.Progress`.
        loss: ``"cross_entropy"`` (the default), ``"mse"``, ``"bce"``, ``"nll"``, ``"l1"``, ``"huber"``; a loss of
            torch; or ``loss(output, target)``: the mean over the batch, one value a sample, or ``(sum, weight)``.
        parameters: Which may move: ``"all"`` (the default), ``"weights"``, or names and patterns of them. The others
            have to be the same in both models.
        batch_norm: A path has no running statistics, and is trained with those of each batch of the training. Then
            ``"recalibrate"`` (the default): statistics are estimated anew on the training data at each place, as the
            paper's authors do; ``"batch"``: those of each evaluation batch. Where there is batch-norm the other modes
            are refused, also as that of an objective.
        precision: ``"float32"`` (the default) or ``"float64"``.
        batch_size: Samples in a micro-batch of the evaluation; with ``batch_norm="batch"`` part of the result.
        device: Where to compute; the small model's device by default.
        backend: ``"auto"`` (the default), ``"native"`` or ``"torch"``.
        coupled: True where the samples of a batch see each other, in model or loss: the value is then the mean
            over the loader's batches, or over those of ``batch_size``, each counted by its weight: its samples, or for
            a ratio what the loss divides by. Their size is part of the result.
        judge: False leaves out the questions asked of model, loss and data before a number is believed
            (docs/limits.md), which the result then says.
        call: ``call(model, batch)``, which returns the output, where batches enter the model in a way of their own
            (docs/data.md).

    Returns:
        The path.

    Raises:
        ValueError: As :func:`lbgap.line`, or an option of the training is out of its range.
        TypeError: An argument is of the wrong kind.
        FloatingPointError: The training loss became NaN or infinite.
    """
    began = time.perf_counter()
    if kind not in KINDS:
        raise ValueError(f"kind must be 'bezier' or 'polygon', got {kind!r}")
    bends, epochs, points = whole("bends", bends, 1), whole("epochs", epochs, 0), whole("points", points, 3)
    if train_batch_size is not None:
        train_batch_size = amount("train_batch_size", train_batch_size)
    seed = whole("seed", seed, 0)
    learning_rate = positive("learning_rate", learning_rate, "1e-2")
    check_progress(progress)
    options: dict[str, Any] = {"loss": loss, "parameters": parameters, "precision": precision}
    options |= {"batch_size": batch_size, "device": device, "backend": backend, "coupled": coupled, "judge": judge}
    options["call"] = call
    given = _given(small, data, batch_norm, options)
    ends = Ends(given, large, data, test_data)
    _check_statistics(given, ends)
    checked = ends.check()
    trainer, size = _trainer(given, ends, data, train_batch_size)
    trained, losses = _train(trainer, ends, kind, bends, epochs, size, learning_rate, seed, progress)
    own = 0.0 if trainer is ends.objectives[0] else trainer.evaluations  # of one that was made for the training
    straight_rows = [(1 - index / (points - 1), index / (points - 1)) for index in range(points)]
    straight = _evaluate(ends, straight_rows, "straight line", progress, checked)
    ends.buffers = {name: _spread(values, bends) for name, values in ends.buffers.items()}
    ends.ends = trained
    rows = [weights_at(kind, index / (points - 1), bends) for index in range(points)]
    path = _evaluate(ends, rows, "path", progress, checked)
    settings = {"measure": "connect", "kind": kind, "bends": bends, "epochs": epochs, "seed": seed}
    settings |= {"train_batch_size": size, "learning_rate": learning_rate, "optimizer": "Adam"}
    settings |= {"points": points, **ends.settings(), "ends_checked": checked, "versions": versions()}
    return Connection(
        value=path.value,
        status=_status(path, straight, epochs),
        settings=settings,
        evaluations=ends.evaluations + own,
        seconds=time.perf_counter() - began,
        kind=kind,
        path=path,
        straight=straight,
        control=trained,
        epoch_loss=tuple(losses),
        length=_length(kind, trained),
        distance=ends.distance,
    )


def _given(small: nn.Module | Objective, data: Any, batch_norm: str | None, options: dict[str, Any]) -> Given:
    """Take the small-batch minimizer, and refuse what no path can be trained with."""
    if batch_norm is not None and batch_norm not in MODES:
        raise ValueError(f"batch_norm must be 'batch' or 'recalibrate', got {batch_norm!r}")
    given = take(small, data, batch_norm, options, default="recalibrate")
    precision = given.options.get("precision", "float32")
    if precision not in ("float32", "float64"):
        raise ValueError(f"precision must be 'float32' or 'float64' to train a path, got {precision!r}")
    return given


def _check_statistics(given: Given, ends: Ends) -> None:
    """Refuse running statistics, of which a path has none."""
    if ends.has_batch_norm and ends.mode not in ("batch", "recalibrate"):
        otherwise = "build the Objective with batch_norm='batch'"
        if given.objective is None:
            otherwise = "pass 'batch' or 'recalibrate'"
        raise ValueError(f"batch_norm={ends.mode!r} takes running statistics, of which a path has none: {otherwise}")


def _trainer(given: Given, ends: Ends, data: Any, train_batch_size: int | float | None) -> tuple[Objective, int]:
    """An objective whose parts are the batches of the training, and how many samples those have."""
    objective = ends.objectives[0]
    samples = objective.samples
    fixed = given.options.get("coupled") if given.objective is None else objective.coupling == "coupled=True"
    usual = objective.batch_size if fixed else min(BATCH_SIZE, samples)
    size = usual if train_batch_size is None else counted(train_batch_size, samples)
    if size > samples:
        raise ValueError(f"train_batch_size must be at most the {samples} training samples, got {size}")
    if not (objective.has_batch_norm or objective.coupled):
        return objective, size
    if size < 2:
        what = "the statistics of batch-norm" if objective.has_batch_norm else "samples that see each other"
        raise ValueError(f"train_batch_size must be at least 2 for {what}, got 1")
    if given.objective is None and objective.has_batch_norm:  # one that takes any number of samples as one batch
        options = {**given.options, "batch_norm": "batch", "batch_size": samples, "device": ends.ends.device}
        return Objective(given.module, data, **options), size
    largest = max(map(len, split_batches(torch.arange(samples, device="cpu"), size)))
    if largest > objective.batch_size:
        raise ValueError(
            f"a batch of the training, of up to {largest} samples, has to fit into one of the Objective's, of "
            f"{objective.batch_size}: pass a smaller train_batch_size, or build it with a larger batch_size"
        )
    return objective, size


def _status(path: Line, straight: Line, epochs: int) -> Status:
    """How far the barrier of the path is to be trusted."""
    if path.status.name != "complete":
        return path.status
    if epochs == 0:
        return status("untrained")
    return status("not_lower" if path.value >= straight.value > 0 else "trained")


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


@torch.inference_mode(False)
def _train(
    objective: Objective,
    between: Ends,
    kind: str,
    bends: int,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    progress: Report,
) -> tuple[Tensor, list[float]]:
    """Lower the mean loss over the path; returns the control points and the mean loss of each epoch."""
    places = torch.Generator().manual_seed(derive_seed(seed, 0, PLACES))
    ends, buffers = between.ends, {name: _spread(values, bends) for name, values in between.buffers.items()}
    middle = torch.nn.Parameter(_spread(ends, bends)[1:-1].clone())
    with scalars_on_host():
        optimizer = torch.optim.Adam([middle], lr=learning_rate)
    gradient = torch.empty_like(ends[0])
    middle.grad = torch.empty_like(middle)
    losses = []
    batches = -(-objective.samples // batch_size)
    bar = products_bar("training the path", epochs * batches, progress, "batches")
    with bar as report, torch.no_grad(), between.lent(objective):
        for epoch in range(1, epochs + 1):
            optimizer.param_groups[0]["lr"] = learning_rate * _share_of_rate((epoch - 1) / epochs)
            total, counted = torch.zeros((), dtype=torch.float64, device=ends.device), 0
            for batch in epoch_batches(objective.samples, batch_size, seed, epoch):
                place = torch.rand((), dtype=torch.float64, generator=places, device="cpu")
                weights = weights_at(kind, float(place), bends)
                part = objective.part(batch)
                if part.empty:  # ignored samples alone, which have no mean
                    report(1)
                    continue
                point = _combine(weights, torch.cat([ends[:1], middle, ends[1:]]))
                coefficients = torch.tensor([weights], dtype=torch.float64, device="cpu")
                objective.set_buffers(between.buffers_at(coefficients, point, buffers))
                try:
                    loss, _ = part.loss_and_gradient(point, out=gradient)
                except FloatingPointError as error:
                    raise _diverged(epoch, learning_rate) from error
                for row, weight in zip(middle.grad, weights[1:-1], strict=True):
                    torch.mul(gradient, weight, out=row)
                with scalars_on_host():
                    optimizer.step()
                total += loss * len(batch)
                counted += len(batch)
                report(1)
            losses.append(float(total) / counted)
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


def _evaluate(ends: Ends, rows: Sequence[tuple[float, ...]], title: str, progress: Report, checked: str) -> Line:
    began, before = time.perf_counter(), ends.evaluations
    found = ends.evaluate(rows, title, progress)
    alphas = [index / (len(rows) - 1) for index in range(len(rows))]
    shapes = []
    for pairs in found:
        losses = [loss for loss, _ in pairs]
        shapes.append(shape_of(alphas, losses, (losses[0], losses[-1]), RISE))
    settings = {"measure": title, **ends.settings(), "ends_checked": checked, "versions": versions()}
    return as_line(alphas, found, shapes, settings, ends.evaluations - before, began)


def _length(kind: str, control: Tensor) -> float:
    """Euclidean length, of a curve that of a chain of a thousand segments."""
    bends = len(control) - 2
    steps = bends + 1 if kind == "polygon" else LENGTH_POINTS
    rows = [weights_at(kind, i / steps, bends) for i in range(steps + 1)]
    weights = torch.tensor(rows, dtype=torch.float64, device="cpu")
    legs = (control[1:].double() - control[:-1].double()).cpu()
    gram = legs @ legs.T
    # Weights that sum to zero, as those of a difference do, are combinations of the legs.
    moves = -(weights[1:] - weights[:-1]).cumsum(1)[:, :-1]
    return float(((moves @ gram) * moves).sum(1).clamp(min=0).sqrt().sum())
