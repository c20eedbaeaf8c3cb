"""Loss and accuracy on the curve through two minimizers (Keskar et al. 2016, figure 7)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from lbgap.checks import Amount
from lbgap.flat import Selection
from lbgap.landscape.line import Line, evaluate_path
from lbgap.objective import Objective
from lbgap.problem.call import CallFunction
from lbgap.problem.loss import LossFunction
from lbgap.system.progress import Report

TURNS = ((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))


def curve(
    small: nn.Module | Objective,
    large: nn.Module,
    data: Any = None,
    *,
    test_data: Any = None,
    points: int = 25,
    low: float = -1.0,
    high: float = 2.0,
    rise: float = 0.1,
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
) -> Line:
    """Evaluate ``f(sin(alpha pi / 2) x_l + cos(alpha pi / 2) x_s)`` on training and test data.

    Keskar et al. 2016 (arXiv 1609.04836), figure 7. Between minimizers of about the same length, orthogonal to each
    other, the curve keeps that length where a line goes closer to the origin. Buffers are what they are on a
    :func:`lbgap.line`: with ``batch_norm="eval"`` the statistics of batch-norm follow the same curve. That both ends
    have the models' own losses is checked on a few samples, where statistics and spectral norms are those of the ends.

    Args:
        small: The small-batch minimizer x_s, at alpha = 0, never changed; or an :class:`~lbgap.objective.Objective` of
            it, in which case ``data`` and the keywords from ``loss`` on belong to it and must not be given here.
        large: The large-batch minimizer x_l, at alpha = 1, of the same architecture; never changed.
        data: Training data: ``(inputs, targets)``, a ``Dataset``, a ``DataLoader``, dicts and more (docs/data.md).
        test_data: Test data, or None. With an objective they are evaluated in batches of its size; where that is all
            training samples, in a size of their own.
        points: How many values of alpha, evenly spaced.
        low: Smallest alpha.
        high: Largest alpha.
        rise: For the widths: by how much the loss may rise above that of a minimizer.
        progress: True for a bar on standard error, or a function that is called with a
            :class:`~lbgap.system.progress.Progress`.
        loss: ``"cross_entropy"`` (the default), ``"mse"``, ``"bce"``, ``"nll"``, ``"l1"``, ``"huber"``; a loss of
            torch; or ``loss(output, target)``: the mean over the batch, one value a sample, or ``(sum, weight)``.
        parameters: Which may move: ``"all"`` (the default), ``"weights"``, or names and patterns of them. The others
            have to be the same in both models.
        batch_norm: ``"eval"`` (the default): running statistics, combined as the parameters are, variances no lower
            than zero; ``"batch"``: statistics of each evaluation batch, as in the paper's scripts; ``"freeze"``: those
            of x_s everywhere; ``"recalibrate"``: estimated anew on the training data at each point.
        precision: ``"float32"`` (the default), ``"float64"``, or ``"mixed"``: products in bfloat16 where the network
            allows it, so that all values are exact to some 0.1 % only.
        batch_size: Samples in a micro-batch, or a share of the training data (0.1, ``"10%"``); with
            ``batch_norm="batch"`` part of the result, 5,000 by default.
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
        The curve, as :func:`lbgap.line` returns a line.

    Raises:
        ValueError: The models differ in architecture or in what is frozen, or are identical; another buffer differs
            and enters the loss, or they keep more than parameters and buffers; ``points``, ``rise`` or the range is not
            usable; the data do not fit; or something that belongs to the objective was given.
        TypeError: An argument is of the wrong kind.
    """
    options: dict[str, Any] = {"loss": loss, "parameters": parameters, "precision": precision}
    options |= {"batch_size": batch_size, "device": device, "backend": backend, "coupled": coupled, "judge": judge}
    options["call"] = call
    return evaluate_path(
        "curve", turn, small, large, data, test_data, (points, low, high, rise), batch_norm, options, progress
    )


def turn(alpha: float) -> tuple[float, float]:
    """``cos(alpha pi / 2)`` and ``sin(alpha pi / 2)``, exact where alpha is whole."""
    if alpha == int(alpha):
        return TURNS[int(alpha) % 4]
    return math.cos(alpha * math.pi / 2), math.sin(alpha * math.pi / 2)
