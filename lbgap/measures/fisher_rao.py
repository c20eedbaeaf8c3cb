"""The Fisher-Rao norm: the length of the parameters as the loss, or the model's own labels, feels it."""

from __future__ import annotations

import math
from typing import Any, Unpack

from torch import nn

from lbgap.measures.call import Call, Options, call
from lbgap.objective import Objective
from lbgap.result import Measure
from lbgap.status import status
from lbgap.system.progress import Report, check_progress, products_bar

LABELS = ("data", "model")


def fisher_rao_norm(
    model: nn.Module | Objective,
    data: Any = None,
    *,
    labels: str = "data",
    progress: Report = False,
    **options: Unpack[Options],
) -> Measure:
    """Measure the Fisher-Rao norm of the parameters, squared.

    ``<x, I(x) x> = E <x, grad l(x)>^2``: Liang et al. 2019 (arXiv 1711.01530). It does not change when
    the layers of a ReLU network are rescaled against each other. For such a network without biases and with L hidden
    layers it is ``(L + 1)^2 E <dl/d output, output>^2`` (their Theorem 3.1).

    One directional derivative a sample by forward-mode differentiation: no gradient of a sample is formed.

    Args:
        model: Any ``torch.nn.Module``, never changed; or an :class:`~lbgap.objective.Objective`.
        data: ``(inputs, targets)``, a ``Dataset``, a ``DataLoader``, dicts and more (docs/data.md).
        labels: Over what the expectation is. ``"data"``: the given pairs (the empirical Fisher matrix). ``"model"``:
            the inputs, and for each the labels that the model itself predicts, averaged exactly; needs
            ``cross_entropy`` with class indices.
        progress: True for a bar on standard error, or a function that is called with each
            :class:`~lbgap.system.progress.Progress`.
        options: ``loss``, ``parameters``, ``batch_norm``, ``precision``, ``batch_size``, ``device``, ``backend``,
            ``coupled``, ``judge`` and ``call``, as in :func:`lbgap.fast_sharpness`. Parameters that may not
            move count as constants. A callable loss must be a mean of one term a sample.

    Returns:
        The squared norm; in ``details`` the ``norm`` itself, and for ``labels="data"`` ``radial_slope``, the mean of
        ``<x, grad l>``: the derivative of the loss in log |x|.

    Raises:
        ValueError: Unknown labels; the loss does not fit them; or the model can be differentiated along a direction
            neither forward nor by a second backward pass.
        TypeError: An argument is of the wrong kind.
        FloatingPointError: A loss or a derivative is NaN or infinite.

    Example:
        >>> import torch, lbgap
        >>> lbgap.fisher_rao_norm(torch.nn.Linear(2, 2), (torch.eye(2), torch.tensor([0, 1]))).value > 0
        True
    """
    if labels not in LABELS:
        raise ValueError(f"labels must be 'data' or 'model', got {labels!r}")
    check_progress(progress)
    with (
        call("fisher_rao_norm", model, data, options) as task,
        products_bar("Fisher-Rao norm", 2, progress, "steps") as report,
    ):
        if labels == "model" and not task.objective.by_class:
            raise ValueError(
                "labels='model' needs cross_entropy with class indices that all count alike, whose outputs are a "
                f"distribution of labels; got the loss {task.objective.settings()['loss']!r}"
                f"{'' if task.objective.classes else ' without classes'}: use labels='data'"
            )
        base = float(task.objective.loss(task.centre))
        report(1)
        value, details = (_of_pairs if labels == "data" else _of_predictions)(task)
        report(1)
        return task.result(
            value,
            base_loss=base,
            status=status("exact"),
            own={"labels": labels},
            details={"norm": math.sqrt(value), **details},
        )


def _of_pairs(task: Call) -> tuple[float, dict[str, Any]]:
    each = task.objective.directional_derivatives(task.centre, task.centre)
    return float(each.square().mean()), {"radial_slope": float(each.mean())}


def _of_predictions(task: Call) -> tuple[float, dict[str, Any]]:
    """The derivative of ``-log p_y`` along x is ``mean_p(t) - t_y``, t that of the logits: a variance of t."""
    outputs, tangents = (part.double() for part in task.objective.output_tangents(task.centre, task.centre))
    probabilities = outputs.softmax(1)
    mean = (probabilities * tangents).sum(1, keepdim=True)
    value = float((probabilities * (tangents - mean).square()).sum(1).mean())
    if not math.isfinite(value):
        raise FloatingPointError("an output of the model, or its derivative, is NaN or infinite: check its weights")
    return value, {}
