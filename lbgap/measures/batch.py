"""What single batches see: the curvature along their gradients, and how noisy these are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from lbgap.checks import Amount, amount, counted, positive, whole
from lbgap.measures.call import Options, call
from lbgap.measures.draws import ended, known, mean_and_error
from lbgap.objective import Objective
from lbgap.result import Measure
from lbgap.status import status
from lbgap.system.progress import Report, check_progress, products_bar

POPULATIONS = ("data", "distribution")


def batch_sharpness(
    model: nn.Module | Objective,
    data: Any = None,
    *,
    batch: Amount,
    relative_error: float | None = 0.05,
    draws: int = 200,
    seed: int = 0,
    progress: Report = False,
    **options: Unpack[Options],
) -> Measure:
    """Measure the curvature that mini-batches see along their own gradients.

    ``E g_B' H_B g_B / |g_B|^2`` over batches B drawn without replacement: the batch sharpness of Andreyev and
    Beneventano 2024 (arXiv 2412.20553), which stabilises near 2 / learning rate in training by stochastic gradient
    descent. The mean over draws is unbiased. With a batch as large as the data it is the curvature along the gradient.

    Args:
        model: Any ``torch.nn.Module`` that can be differentiated twice, never changed; or an
            :class:`~lbgap.objective.Objective`.
        data: ``(inputs, targets)``, a ``Dataset``, a ``DataLoader``, dicts and more (docs/data.md).
        batch: Samples of a batch, or a share of all (0.1, ``"10%"``); with ``batch_norm="batch"`` or ``coupled=True``
            they see each other, as in training.
        relative_error: Stop after eight draws or more once the standard error is at most this share of the mean; None
            for all draws. Stopping on the error makes it slightly too small.
        draws: Batches at most, two or more.
        seed: Of the batches.
        progress: True for a bar on standard error, or a function that is called with each
            :class:`~lbgap.system.progress.Progress`.
        options: ``loss``, ``parameters``, ``batch_norm``, ``precision``, ``batch_size``, ``device``, ``backend``,
            ``coupled``, ``judge`` and ``call``, as in :func:`lbgap.fast_sharpness`.

    Returns:
        The mean and its standard error. In ``details``: ``ratio_of_means``, ``E g_B' H_B g_B / E |g_B|^2``, which
        weights batches by their gradients and is biased by one part in the number of draws, ``gradient_squared``, the
        mean of ``|g_B|^2``, ``draws``, and ``empty``: how many further draws held ignored samples alone, which have no
        mean and are left out. NaN where a batch has no gradient at all.

    Raises:
        ValueError: An argument is out of its range, the model cannot be differentiated twice, or hardly a batch holds
            samples that count.
        TypeError: An argument is of the wrong kind.
        FloatingPointError: The loss of a batch, its gradient or a product is NaN or infinite.

    Example:
        >>> import torch, lbgap
        >>> data = torch.eye(4), torch.tensor([0, 1, 0, 1])
        >>> lbgap.batch_sharpness(torch.nn.Linear(4, 2), data, batch=2).value > 0
        True
    """
    size, relative_error, draws, seed = _check(batch, relative_error, draws, seed)
    check_progress(progress)
    with (
        call("batch_sharpness", model, data, options) as task,
        products_bar("batch sharpness", draws, progress, "batches") as report,
    ):
        quotients: list[float] = []
        squares: list[float] = []
        empty = 0
        task.objective.check_cuttable("batch_sharpness")
        batch = counted(size, task.objective.samples)
        base = float(task.objective.loss(task.centre))
        for part in _batches(task.objective, batch, 1, draws, seed):
            if part.empty:
                empty += 1
                report(1)
                continue
            gradient = part.loss_and_gradient(task.centre)[1]
            length = float(gradient.double().norm())
            squares.append(length**2)
            if not length:
                quotients.append(math.nan)
                break
            unit = gradient / length  # products with a tiny vector would lose its direction
            product = part.hvp(task.centre, unit[None])[0]
            quotients.append(float((unit.double() * product.double()).sum() / unit.double().square().sum()))
            report(1)
            if known(quotients, relative_error) or batch == task.objective.samples:
                break
        if len(quotients) < (1 if batch == task.objective.samples or any(map(math.isnan, quotients)) else 2):
            raise ValueError(
                f"batch_sharpness needs two batches with samples that count, got {len(quotients)} in {draws} draws of "
                f"{batch} samples: pass a larger batch"
            )
        value, error = mean_and_error(quotients) if len(quotients) > 1 else (quotients[0], math.nan)
        weighted = math.fsum(q * s for q, s in zip(quotients, squares, strict=True))
        details = {
            "ratio_of_means": weighted / math.fsum(squares) if any(squares) else math.nan,
            "gradient_squared": math.fsum(squares) / len(squares),
            "draws": len(quotients),
            "empty": empty,
        }
        own = {"batch": batch, "relative_error": relative_error, "draws": draws, "seed": seed}
        if math.isnan(value):
            why = status("no_gradient.batch")
        elif batch == task.objective.samples:
            why = status("exact.batch")
        else:
            why = ended(quotients, relative_error)
        return task.result(value, standard_error=error, base_loss=base, status=why, own=own, details=details)


def noise_scale(
    model: nn.Module | Objective,
    data: Any = None,
    *,
    batch: Amount = 32,
    population: str = "data",
    relative_error: float | None = 0.05,
    draws: int = 200,
    seed: int = 0,
    progress: Report = False,
    **options: Unpack[Options],
) -> Measure:
    """Measure the gradient noise scale: the batch size at which noise and signal of a gradient are equal.

    ``tr(Sigma) / |G|^2``, the simple noise scale of McCandlish et al. 2018 (arXiv 1812.06162, equation 2.9), Sigma the
    covariance of the gradient of one sample and G its mean. ``tr(Sigma)`` is estimated from batches of b samples drawn
    without replacement from the N, each giving ``|g_B - g|^2 / (1/b - 1/N)``: unbiased, and the same in the mean as
    their ``(|g_B|^2 - |g|^2) / (1/b - 1/N)`` (appendix A.1 with the data as the big batch), but with less variance.
    Where samples have weights the gradient of one is that of its term ``w_i l_i N / W`` of the mean, with the weight W
    of all (docs/losses.md), and ``g_B`` the mean of those: zero where all of a batch are ignored.

    Args:
        model: Any ``torch.nn.Module``, never changed; or an :class:`~lbgap.objective.Objective`.
        data: ``(inputs, targets)``, a ``Dataset``, a ``DataLoader``, dicts and more (docs/data.md).
        batch: b, below the number of samples, or a share of them (0.1, ``"10%"``); it does not change the value in
            the mean.
        population: Of what G is the mean gradient. ``"data"``: of these samples, so that it is known exactly.
            ``"distribution"``: of what they were drawn from; ``|G|^2`` is then ``|g|^2 - tr(Sigma) / N``, unbiased as
            in the source, and at a minimizer often not above zero.
        relative_error: Stop after eight draws or more once the standard error of ``tr(Sigma)`` is at most this share of
            it; None for all draws. Stopping on the error makes it slightly too small.
        draws: Batches at most, two or more.
        seed: Of the batches.
        progress: True for a bar on standard error, or a function that is called with each
            :class:`~lbgap.system.progress.Progress`.
        options: ``loss``, ``parameters``, ``batch_norm`` (not ``"batch"``), ``precision``, ``batch_size``, ``device``,
            ``backend``, ``coupled``, ``judge`` and ``call``, as in :func:`lbgap.fast_sharpness`.

    Returns:
        The scale in samples, and its standard error to first order; NaN where ``|G|^2`` is not above zero. In
        ``details``: ``trace``, tr(Sigma), and its standard error; ``gradient_squared``, ``|G|^2``; and ``draws``.

    Raises:
        ValueError: An argument is out of its range, or the samples of a batch see each other.
        TypeError: An argument is of the wrong kind.
        FloatingPointError: The loss of a batch or its gradient is NaN or infinite.

    Example:
        >>> import torch, lbgap
        >>> data = torch.eye(4), torch.tensor([0, 1, 0, 1])
        >>> lbgap.noise_scale(torch.nn.Linear(4, 2), data, batch=2).value > 0
        True
    """
    if population not in POPULATIONS:
        raise ValueError(f"population must be 'data' or 'distribution', got {population!r}")
    size, relative_error, draws, seed = _check(batch, relative_error, draws, seed)
    check_progress(progress)
    with (
        call("noise_scale", model, data, options) as task,
        products_bar("noise scale", draws, progress, "batches") as report,
    ):
        objective, total = task.objective, task.objective.samples
        if objective.coupled:
            raise ValueError(
                f"noise_scale needs samples whose gradients do not depend on each other: {objective.uncoupling}"
            )
        objective.check_cuttable("noise_scale")
        batch = counted(size, total)
        base, mean = objective.loss_and_gradient(task.centre)
        traces: list[float] = []
        for part in _batches(objective, batch, 0, draws, seed):
            away = -mean.double()
            if not part.empty:
                # The mean of the samples' terms w_i l_i N / W, with the weight W of all: by its own it is a ratio.
                share = part.weight / objective.weight / (batch / total)
                away += part.loss_and_gradient(task.centre)[1].double() * share
            traces.append(float(away.square().sum()) / (1 / batch - 1 / total))
            report(1)
            if known(traces, relative_error):
                break
        trace, error = mean_and_error(traces)
        of_data = float(mean.double().square().sum())
        squared = of_data if population == "data" else of_data - trace / total
        exists = squared > 0
        why = ended(traces, relative_error, " of tr(Sigma)") if exists else status("no_gradient.noise")
        # The derivative of the ratio in tr(Sigma), which |G|^2 depends on for the distribution.
        slope = 1 / squared if population == "data" and exists else of_data / squared**2 if exists else math.nan
        return task.result(
            trace / squared if exists else math.nan,
            standard_error=slope * error,
            base_loss=float(base),
            status=why,
            own={
                "batch": batch,
                "population": population,
                "relative_error": relative_error,
                "draws": draws,
                "seed": seed,
            },
            details={
                "trace": trace,
                "trace_standard_error": error,
                "gradient_squared": squared,
                "draws": len(traces),
            },
        )


def _check(
    batch: Amount, relative_error: float | None, draws: int, seed: int
) -> tuple[int | float, float | None, int, int]:
    """Check what both take."""
    size, draws, seed = amount("batch", batch), whole("draws", draws, 2), whole("seed", seed, 0)
    return size, None if relative_error is None else positive("relative_error", relative_error, "0.05"), draws, seed


def _batches(objective: Objective, batch: int, spare: int, draws: int, seed: int) -> Iterator[Objective]:
    """The objective on random batches, each drawn without replacement.

    Raises:
        ValueError: A batch is as large as the data where none may be, or larger.
    """
    largest = objective.samples - 1 + spare
    if batch > largest:
        raise ValueError(f"batch must be between 1 and {largest}, got {batch}")
    generator = torch.Generator().manual_seed(seed)
    for _ in range(draws):
        chosen: Tensor = torch.randperm(objective.samples, generator=generator, device="cpu")[:batch].sort().values
        yield objective.part(chosen)
