"""Sharpness: how much the loss can grow in a small box around a minimizer (Keskar et al. 2016, Metric 2.1)."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lbgap.checks import Amount, amount, moved
from lbgap.flat import Selection
from lbgap.maximize.climb import Maximum, of_part
from lbgap.maximize.region import Box, box, check_box
from lbgap.maximize.search import check, check_scaling, maximise, scout_samples
from lbgap.measures.call import Call, Options
from lbgap.measures.call import call as work_on
from lbgap.objective import Objective
from lbgap.objective.coordinates import RandomManifold, check_manifold
from lbgap.problem.call import CallFunction
from lbgap.problem.loss import LossFunction
from lbgap.result import Result
from lbgap.status import status
from lbgap.system.progress import Report, check_progress, evaluations_bar


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Sharpness(Result):
    """A certified lower bound on a sharpness: the loss really has this value at ``point``, inside the region.

    Attributes:
        value: phi in percent, ``100 (max_loss - base_loss) / (1 + base_loss)``; on random manifolds the mean over the
            trials.
        values: phi of each trial; the one value in the full space.
        standard_deviation: Of the values, with one less than their number in the denominator; NaN for one.
        base_loss: Mean loss at the minimizer.
        max_loss: Mean loss at ``point``. On random manifolds this, ``point``, ``history``, ``gap`` and ``status`` are
            those of the trial with the largest phi.
        point: Where, ``(n,)`` in the full space, inside the region (on a manifold its coordinates are).
        history: ``(evaluations, loss)`` of the points visited in the climb that found it; with
            ``precision="mixed"`` these are bfloat16 values.
        gap: Frank-Wolfe gap at ``point``: zero at a stationary point of the region.
        starts: One entry a climb: its start, the loss reached, over how many samples, evaluations, gap and status.
        searched: Where the maximum was searched on a part of the data: how many ``samples``, and ``base_loss``,
            ``max_loss`` and ``value`` on them, larger than on all of the data as a maximum over a part over-fits it.
    """

    apart: ClassVar[frozenset[str]] = frozenset({"point"})

    values: tuple[float, ...]
    standard_deviation: float
    base_loss: float
    max_loss: float
    point: Tensor
    history: tuple[tuple[float, float], ...]
    gap: float
    starts: tuple[dict[str, Any], ...]
    searched: dict[str, float] | None = None

    @property
    def rise(self) -> float:
        """The raw difference ``max_loss - base_loss``, in units of the loss."""
        return self.max_loss - self.base_loss

    def to_dict(self) -> dict[str, Any]:
        """Everything but the point, ready for JSON; NaN and infinity become None."""
        return {"lower_bound": True, **super().to_dict()}

    def _headline(self) -> str:
        rise = f"the loss rises from {self.base_loss:.6g} to {self.max_loss:.6g}"
        among = " at most" if "subspace" in self.settings else ""
        return f"phi >= {self.value:.6g} %, a certified lower bound: {rise}{among}"

    def _numbers(self) -> list[str]:
        s = self.settings
        lines = []
        if "subspace" in s:
            which = f"{len(self.values)} random manifolds of {s['subspace']} dimensions, {s['distribution']}"
            lines.append(f"mean of {which}; standard deviation {self.standard_deviation:.3g} %")
        starts = f"{s['restarts'] + 1} start{'s' if s['restarts'] else ''}"
        lines.append(f"region {s['region']}, epsilon {s['epsilon']:g}, {s['method']}, {starts}, {s['backend']} backend")
        if self.searched is not None:
            part = self.searched
            lines.append(f"searched on {part['samples']:,} samples, where phi is {part['value']:.6g} %")
        return lines


def fast_sharpness(
    model: nn.Module | Objective,
    data: Any = None,
    *,
    epsilon: float = 1e-3,
    method: str = "vertex",
    iterations: int | None = None,
    restarts: int = 0,
    scout: Amount | None = None,
    scaling: str | None = None,
    start: Tensor | None = None,
    samples: Amount | None = None,
    region: str = "keskar",
    subspace: int | None = None,
    trials: int | None = None,
    distribution: str | None = None,
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
) -> Sharpness:
    """Measure the sharpness of a minimizer, in the full parameter space or on random manifolds.

    ``phi = 100 (max_y f(y) - f(x)) / (1 + f(x))`` with y in a box around the parameters x: Metric 2.1 of Keskar et
    al. 2016 (arXiv 1609.04836) with A = I. With ``subspace=p`` the box is one around the coordinates of x on a random
    manifold of p dimensions, see :class:`lbgap.objective.coordinates.RandomManifold`, and phi the mean over several.
    The maximum is searched, so phi is a lower bound; it is certified because the loss is evaluated once more at the
    point found, in at least float32 with sums in float64.

    Args:
        model: Any ``torch.nn.Module``, never changed; or an :class:`~lbgap.objective.Objective`, in which case
            ``data`` and the keywords from ``loss`` on belong to it and must not be given here.
        data: ``(inputs, targets)``, a ``Dataset``, a ``DataLoader``, dicts and more (docs/data.md).
        epsilon: Size of the box; the paper uses 1e-3 and 5e-4.
        method: ``"vertex"`` (sign ascent over vertices), ``"apgd"``, ``"lbfgsb"`` or ``"scipy"`` (the paper's recipe:
            10 iterations of L-BFGS-B).
        iterations: Iterations at most from each start; by default 20 (vertex, lbfgsb), 30 (apgd) or 10 (scipy).
        restarts: Starts beside the minimizer itself: first targeted at each class in turn, then random points. With
            any, vertex ascent also refines its best vertices by APGD.
        scout: Samples on which vertex ascent climbs from each restart first, or a share of all (0.1, ``"10%"``, as for
            ``samples`` and ``batch_size``); it goes on with all where that leads higher than every scout before. By
            default a thirty-second, at least 128, of data sets of 1,024 samples or more; 0 for none.
        scaling: Of the loss, for ``"lbfgsb"``: ``"box"`` (default), the first step is as long as the box, or
            ``"paper"``, none, as in the recipe.
        start: One more point to start from, ``(n,)``, finite, for example one found before; projected onto the region.
        samples: Search on so many samples, drawn with ``seed``, as many of each class as it has of the data; then the
            loss at the point found is evaluated on all. By default the search sees all of them.
        region: ``"keskar"``: half-width epsilon (|x_i| + 1); ``"linf"``: epsilon; ``"adaptive"``: epsilon |x_i|.
        subspace: Number p of dimensions of a random manifold, 100 in the paper; the full space by default.
        trials: How many manifolds, 5 by default.
        distribution: Of the entries of the random matrix: ``"normal"`` (default), ``"uniform"``, ``"rademacher"`` or
            ``"unit"``; the paper does not say.
        seed: Of the random starts, the random manifolds and the samples drawn.
        progress: True for a bar on standard error, or a function that is called with each
            :class:`~lbgap.system.progress.Progress`.
        loss: ``"cross_entropy"`` (default), ``"mse"``, ``"bce"``, ``"nll"``, ``"l1"`` or ``"huber"``; a loss of torch;
            or a callable ``loss(output, target)``: the mean over the batch, one value a sample, or ``(sum, weight)``.
        parameters: Which may move: ``"all"`` (default), ``"weights"`` or name patterns such as ``"layer4.*"``.
        batch_norm: ``"eval"`` (default, running statistics) or ``"batch"`` (those of each evaluation batch).
        precision: ``"float32"`` (default), ``"float64"``, or ``"mixed"``: bfloat16 chooses directions, float32
            reports.
        batch_size: Samples in a micro-batch, or a share; chosen by itself.
        device: Where to compute; the model's device by default.
        backend: ``"auto"`` (default), ``"native"`` or ``"torch"``.
        coupled: True where the samples of a batch see each other, in model or loss: the value is then the mean
            over the loader's batches, or over those of ``batch_size``, each counted by its weight: its samples, or for
            a ratio what the loss divides by. Their size is part of the result.
        judge: False leaves out the questions asked of model, loss and data before a number is believed
            (docs/limits.md), which the result then says.
        call: ``call(model, batch)``, which returns the output, where batches enter the model in a way of their own
            (docs/data.md).

    Returns:
        The sharpness with everything it depends on.

    Raises:
        ValueError: An argument is out of its range or does not fit the others.
        TypeError: An argument is of the wrong kind.
        FloatingPointError: The loss is NaN or infinite at the minimizer; the message names the batch.

    Example:
        >>> import torch, lbgap
        >>> model = torch.nn.Linear(2, 2)
        >>> data = torch.eye(2), torch.tensor([0, 1])
        >>> s = lbgap.fast_sharpness(model, data, epsilon=1e-3)
        >>> s.max_loss >= s.base_loss
        True
    """
    options: Options = {
        "loss": loss,
        "parameters": parameters,
        "batch_norm": batch_norm,
        "precision": precision,
        "batch_size": batch_size,
        "device": device,
        "backend": backend,
        "coupled": coupled,
        "judge": judge,
        "call": call,
    }
    search: dict[str, Any] = {
        **check(method, iterations, restarts, scout, seed),
        "scaling": check_scaling(method, scaling),
    }
    subspace, trials, distribution = check_manifold(subspace, trials, distribution)
    manifolds = {} if subspace is None else {"subspace": subspace, "trials": trials, "distribution": distribution}
    epsilon = check_box(region, epsilon, torch.float64)
    samples = None if samples is None else amount("samples", samples)
    check_progress(progress)
    with work_on("sharpness", model, data, options) as task:
        objective = task.objective
        if samples is not None and isinstance(objective.coordinates, RandomManifold):
            raise ValueError(
                "samples needs the objective that the random manifold was made of: pass that, with subspace"
            )
        given = None if start is None else _start(start, objective, subspace)
        searched = objective if samples is None else objective.sample(samples, search["seed"])
        return _measure(task, searched, region, epsilon, search, manifolds, given, progress)


def _start(start: Tensor, objective: Objective, subspace: int | None) -> Tensor:
    """Take a point of the full space, in any precision; refuse one where random manifolds are searched."""
    found = moved("start", f"({objective.n},)", start, objective.dtype, objective.device)
    if subspace is not None or found.shape != (objective.n,):
        raise ValueError(
            f"start must be a point ({objective.n},) of the full space, got {tuple(found.shape)}"
            + (" with subspace" if subspace is not None else "")
        )
    if not found.isfinite().all():
        raise ValueError("start must be finite, got NaN or infinity: pass a point at which the loss was evaluated")
    return found


def _measure(
    task: Call,
    searched: Objective,
    region: str,
    epsilon: float,
    search: dict[str, Any],
    manifolds: dict[str, Any],
    start: Tensor | None,
    progress: Report,
) -> Sharpness:
    """Search on these samples, evaluate on all, and write down everything that the result depends on."""
    objective, on_all = task.objective, searched is task.objective
    own = {
        "region": region,
        "epsilon": epsilon,
        **search,
        "scout": scout_samples(searched, search["method"], search["restarts"], search["scout"]),
        "searched": searched.samples,
        "start": "centre" if start is None else "given",
        **manifolds,
    }
    base_loss = loss_at_minimizer(objective)
    base = base_loss if on_all else loss_at_minimizer(searched)
    also = [] if start is None else [("given", start)]
    total = manifolds.get("trials", 1) * (search["restarts"] + 1 + len(also)) * search["iterations"]
    tops: list[Maximum] = []
    climbs: list[dict[str, Any]] = []
    with evaluations_bar("sharpness", total, progress) as report:
        for trial, space in enumerate(_spaces(searched, search["seed"], **manifolds)):
            around = box(region, space.theta, epsilon, objective.backend)
            best: Maximum | None = None  # one point at a time is held beside it
            for found in maximise(space, around, base=base, also=also, report=report, **search):
                counted = found if on_all else of_part(found, searched.samples / objective.samples)
                climbs.append({**({"trial": trial} if manifolds else {}), **entry(counted)})
                if found.samples == searched.samples and (best is None or found.value > best.value):
                    best = counted
            best = _certified(best, around, base)
            tops.append(_in_full_space(best, space, searched) if manifolds else best)
    highest = max(each.value for each in tops)
    part = {"samples": searched.samples, "base_loss": base, "max_loss": highest, "value": phi(highest, base)}
    if not on_all:
        tops = [_on_all(each, objective, base_loss, searched.samples) for each in tops]
    top = max(tops, key=lambda each: each.value)
    values = tuple(phi(each.value, base_loss) for each in tops)
    return Sharpness(
        value=statistics.fmean(values),
        values=values,
        standard_deviation=statistics.stdev(values) if len(values) > 1 else math.nan,
        base_loss=base_loss,
        max_loss=top.value,
        point=top.point,
        history=top.history,
        gap=top.gap,
        starts=tuple(climbs),
        searched=None if on_all else part,
        status=top.status,
        settings=task.settings(own),
        evaluations=task.evaluations,
        seconds=task.seconds,
    )


def phi(value: float, base: float) -> float:
    """Metric 2.1 in percent."""
    return 100 * (value - base) / (1 + base)


def loss_at_minimizer(objective: Objective) -> float:
    """The loss at the minimizer, if phi can be divided by it.

    Raises:
        ValueError: It is -1 or less.
    """
    base = float(objective.loss(objective.theta))
    if base <= -1:
        raise ValueError(
            f"phi divides by 1 + loss, and the loss at the minimizer is {base:g}: add a constant to the loss"
        )
    return base


def _spaces(
    objective: Objective, seed: int, subspace: int | None = None, trials: int = 1, distribution: str = "normal"
) -> Iterator[Objective]:
    """What is climbed: the objective itself, or a manifold for each trial."""
    if subspace is None:
        yield objective
        return
    for trial in range(trials):
        yield objective.manifold(subspace, seed=seed, trial=trial, distribution=distribution)


def _in_full_space(found: Maximum, manifold: Objective, objective: Objective) -> Maximum:
    """A maximum on a manifold as one of the full space, its loss evaluated there."""
    point = manifold.point(found.point)
    return dataclasses.replace(found, point=point, value=float(objective.loss(point)))


def _on_all(found: Maximum, objective: Objective, base: float, samples: int) -> Maximum:
    """A maximum that was searched on some samples, with its loss on all of them."""
    value = float(objective.losses(found.point[None]))
    if base < value < math.inf:
        return dataclasses.replace(found, value=value)
    if math.isfinite(value):
        why = status("no_rise.samples", samples=samples)
    else:
        why = status("not_finite.samples", samples=samples, loss=value)
    return dataclasses.replace(found, point=objective.theta, value=base, gap=math.nan, status=why)


def entry(found: Maximum) -> dict[str, Any]:
    """What a result keeps of one climb."""
    kept = ("start", "samples", "evaluations", "gap", "status")
    return {"loss": found.value, **{name: getattr(found, name) for name in kept}, "status_name": found.status.name}


def or_centre(best: Maximum, centre: Tensor, base_loss: float) -> Maximum:
    """The largest maximum, or the centre where nothing larger was found."""
    if best.value > base_loss:
        return best
    return dataclasses.replace(best, point=centre, value=base_loss, status=status("no_rise", ended=best.status))


def _certified(best: Maximum | None, region: Box, base_loss: float) -> Maximum:
    """The largest maximum, or the centre where nothing larger was found; checks that it is in the region."""
    if best is None:
        raise RuntimeError("internal error: no climb on all samples")
    best = or_centre(best, region.centre, base_loss)
    if best.point is region.centre:
        return best
    inside = torch.empty_like(best.point)
    region.project(best.point, out=inside)
    if not torch.equal(inside, best.point):
        raise RuntimeError(f"internal error: the point found is {region.excess(best.point)} ulp outside its region")
    return best
