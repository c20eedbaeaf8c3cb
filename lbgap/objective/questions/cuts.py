"""The loss of two pieces together against their losses apart, from outputs that are there: many cuts cost little."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lbgap.objective.questions import rounding
from lbgap.objective.questions.case import Case
from lbgap.problem import trees
from lbgap.problem.base import tolerance
from lbgap.problem.trees import Tree
from lbgap.system.device import first_line

WIDE_ENTRIES = 2**20  # outputs up to here are summed in float64 at once, larger ones where there is a doubt
SAME_VALUE = SAME_WEIGHT = 1e-5
REMEDY = (
    "return (sum, weight) where it is a ratio of sums (class weights, masks, ignored targets), pass coupled=True with "
    "a batch_size= where the samples of a batch are meant to see each other, or judge=False"
)

Weights = list[tuple[float, float] | None]  # of the pieces of each cut


class Value(NamedTuple):
    """The loss of some samples.

    Attributes:
        total: Their sum.
        weight: What the sum is divided by.
    """

    total: float
    weight: float


class Targets(NamedTuple):
    """Targets of one value, or mostly.

    Attributes:
        value: It, in words.
        rows: Which samples they are of, on the CPU.
        targets: ``(rows, ...)``.
    """

    value: str
    rows: Tensor
    targets: Tree


class Cut(NamedTuple):
    """Two pieces whose loss together is compared with their losses apart.

    Attributes:
        outputs: Of one piece and of the other, ``(rows, ...)`` each.
        targets: As many.
        value: Of the targets of the first piece, if they are a group.
        rows: Of such a piece the samples that its targets are of, on the CPU.
        paired: Whether these are outputs that the loss must take with these targets: those of the same samples at the
            minimizer.
    """

    outputs: tuple[Any, Any]
    targets: tuple[Tree, Tree]
    value: str | None = None
    rows: Tensor | None = None
    paired: bool = True


def make(
    pieces: Sequence[Tensor], outputs: Any, targets: Tree, groups: Sequence[Targets], mixture: Tree
) -> Iterator[Cut]:
    """All cuts of some samples.

    Args:
        pieces: Places among the samples, each place in one piece.
        outputs: Of the samples, ``(rows, ...)``.
        targets: Of the samples, ``(rows, ...)``.
        groups: Further targets, which a loss may treat in a way of their own.
        mixture: Further targets, one of each kind, ``(rows, ...)``.
    """
    order = torch.cat(tuple(pieces))
    half = max(1, len(order) // 2)
    chosen = [order[:half], order[half:], *pieces]
    parts = [(trees.rows(outputs, rows), trees.rows(targets, rows)) for rows in chosen]
    for (one, its), (other, others) in (parts[:2], (parts[-2], parts[-1]), (parts[2], parts[-1])):
        yield Cut((one, other), (its, others))
    for word, samples, group in groups:
        size = max(2, len(samples))  # twice one that is alone: a batch of one may be none that passes have
        rows, places = (torch.arange(size, device="cpu") % many for many in (len(samples), len(order)))
        some = trees.rows(outputs, places)
        yield Cut((some, parts[-1][0]), (trees.rows(group, rows), parts[-1][1]), word, samples, paired=False)
    many = trees.count(mixture)
    if many > 3:
        some = trees.rows(outputs, torch.arange(many, device="cpu") % len(order))
        halves = slice(many // 2), slice(many // 2, None)
        one, other = ((trees.rows(some, half), trees.rows(mixture, half)) for half in halves)
        yield Cut((one[0], other[0]), (one[1], other[1]), paired=False)


def compare(case: Case, cut: Cut) -> tuple[float, float] | None:
    """Compare the loss of two pieces together with their losses apart.

    Returns:
        The weights of the pieces; None where the loss is not finite.

    Raises:
        ValueError: They differ, or a piece has no finite loss although both together have one.
    """
    try:
        both, one, other = values = _values(case, cut)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        if not cut.paired and (cut.rows is None or not _fails(case, cut.rows)):
            return None
        raise ValueError(_not_taken(case, cut, first_line(error))) from error
    if not math.isfinite(both.total):
        return None
    if not (math.isfinite(one.total) and math.isfinite(other.total)):
        raise ValueError(_not_finite(case, cut, values))
    missed = abs(both.total - one.total - other.total)
    size = sum(abs(each.total) for each in values)
    if missed > tolerance(torch.float64) * size and not _is_rounding(case, cut, missed, size):
        again = _values(case, cut)[0].total
        if not abs(again - both.total) < 0.1 * missed:
            raise ValueError(_not_the_same(case, both.total, again))
        raise ValueError(_not_a_mean(case, cut, values))
    if abs(both.weight - one.weight - other.weight) > SAME_WEIGHT * abs(both.weight):
        raise ValueError(
            f"the loss {case.evaluator.loss.name!r} returns the weight {both.weight:g} for a batch, but {one.weight:g} "
            f"and {other.weight:g} for its pieces: return what its sum is divided by, summed over the samples"
        )
    return one.weight, other.weight


def _fails(case: Case, rows: Tensor) -> bool:
    """Whether the loss does not run on some samples, and on the outputs that are theirs."""
    batch = case.rows(rows.repeat(2) if len(rows) == 1 else rows)
    output = case.output(batch.inputs)
    try:
        sum_up(case, output, batch.targets, None)
    except torch.OutOfMemoryError:
        raise
    except Exception:
        return True
    return False


def _values(case: Case, cut: Cut) -> tuple[Value, Value, Value]:
    """The loss of both pieces together and of each, in float64 where it runs in it and that is not much work."""
    wanted = [torch.float64] if sum(part.numel() for part in trees.observed(cut.outputs[1])) <= WIDE_ENTRIES else []
    for dtype in (*wanted, None):
        try:
            both = sum_up(case, trees.join(cut.outputs), trees.join(cut.targets), dtype)
            one, other = (sum_up(case, *pair, dtype) for pair in zip(cut.outputs, cut.targets, strict=True))
        except torch.OutOfMemoryError:
            raise
        except Exception:
            if dtype is None:
                raise
        else:
            break
    return both, one, other


def sum_up(case: Case, output: Any, target: Tree, dtype: torch.dtype | None) -> Value:
    """The loss of some samples, as the pass of a value sums it."""
    output, target = (trees.cloned(part if dtype is None else trees.cast(part, dtype)) for part in (output, target))
    with case.evaluator.unrecorded():
        sums = case.evaluator.loss.sums(output, target)
    return Value(float(sums.exact), float(sums.weight))


def _is_rounding(case: Case, cut: Cut, missed: float, size: float) -> bool:
    """Whether a difference is what rounding makes, in the narrowest type that the loss computes in.

    Sums may be small because their terms cancel: then it is the terms that rounding follows from.
    """
    narrowest = rounding.Narrowest()
    with narrowest:
        _values(case, cut)
    bound = tolerance(narrowest.dtype)
    if missed <= bound * size:
        return True
    terms = 0.0
    for outputs, targets in zip(cut.outputs, cut.targets, strict=True):
        for row in range(trees.count(targets)):
            pair = torch.tensor([row, row], dtype=torch.int64, device="cpu")
            try:  # twice the same: a batch of one may be none that passes have
                twice = sum_up(case, trees.rows(outputs, pair), trees.rows(targets, pair), None)
            except torch.OutOfMemoryError:
                raise
            except Exception:
                return False
            terms += abs(twice.total) if math.isfinite(twice.total) else 0.0
    return missed <= bound * terms


def check_alone(case: Case, output: Any, target: Tree) -> None:
    """Refuse a loss that trains something of its own, or that is random.

    Raises:
        ValueError: It does, or is.
    """
    loss = case.evaluator.loss
    with torch.enable_grad():
        try:
            first, second = (loss.sums(trees.cloned(output), trees.cloned(target)) for _ in range(2))
        except torch.OutOfMemoryError:
            raise
        except Exception:  # which the cuts say more of
            return
    if first.total.requires_grad:
        raise ValueError(
            "the loss depends on trainable tensors besides the model's output (a penalty on parameters?), which would "
            "not move: leave them out, or detach() them"
        )
    if not torch.isclose(first.exact, second.exact, rtol=SAME_VALUE, atol=0.0, equal_nan=True):
        raise ValueError(_not_the_same(case, float(first.exact), float(second.exact)))


def check_weights(case: Case, here: Weights, there: Weights) -> None:
    """Refuse weights that move with the parameters: what they divide would not be the derivative of the mean."""
    for one, other in zip(here, there, strict=True):
        if one and other and any(abs(x - y) > SAME_WEIGHT * abs(x) for x, y in zip(one, other, strict=True)):
            raise ValueError(
                f"the weight that the loss {case.evaluator.loss.name!r} returns depends on the parameters: let it "
                "follow from the targets alone, or pass coupled=True with a batch_size= and return the quotient"
            )


# What is wrong.


def _not_the_same(case: Case, once: float, again: float) -> str:
    return (
        f"the loss {case.evaluator.loss.name!r} gives {once:.9g} and then {again:.9g} for the same outputs: there must "
        "be nothing random in it, and nothing that it keeps of earlier batches"
    )


def _not_taken(case: Case, cut: Cut, what: str) -> str:
    what = what if what.startswith("the loss") else f"the loss {case.evaluator.loss.name!r} does not run: {what}"
    counts = [trees.count(part) for part in cut.targets]
    few = case.evaluator.few_samples
    which = f"on {counts[0]}, {counts[1]} or all of these"
    which = f"on samples whose targets are {cut.value}" if cut.value else f"{which}, though on {few} it ran"
    return f"{what} ({which}): let it take any batch, or pass coupled=True with batch_size="


def _not_finite(case: Case, cut: Cut, values: Sequence[Value]) -> str:
    bad = next(each.total for each in values[1:] if not math.isfinite(each.total))
    which = f"whose targets are {cut.value}" if cut.value and not math.isfinite(values[1].total) else "of a batch"
    return (
        f"the loss {case.evaluator.loss.name!r} is {bad:g} for samples {which}, but finite for these and others "
        "together: return (sum, weight) from it, both zero where nothing counts, or pass coupled=True with batch_size="
    )


def _not_a_mean(case: Case, cut: Cut, values: Sequence[Value]) -> str:
    return not_a_mean(case, [trees.count(part) for part in cut.targets], values, _broadcast(cut))


def not_a_mean(case: Case, counts: Sequence[int], values: Sequence[Value], broadcast: str = "") -> str:
    """What is wrong with a loss whose sums do not add up.

    Args:
        case: Whose loss it is.
        counts: Samples of the two pieces.
        values: Of both together, and of each.
        broadcast: What is known of shapes that do not fit.
    """
    name = case.evaluator.loss.name
    both, one, other = (each.total / each.weight if each.weight else math.nan for each in values)
    expected = (values[1].total + values[2].total) / values[0].weight if values[0].weight else math.nan
    numbers = (
        f"{counts[0]} samples gave {one:.6g}, {counts[1]} others {other:.6g}, and all together {both:.6g} in place of "
        f"{expected:.6g}"
    )
    # A ratio over samples of which none in one piece counts is that of the other piece: it adds up too.
    if abs(both - one - other) <= SAME_VALUE * abs(both) and min(abs(one), abs(other)) > SAME_VALUE * abs(both):
        return f"the loss {name!r} must be the mean over the batch, not its sum: {numbers}: use reduction='mean'"
    if broadcast:
        return (
            f"the loss {name!r} is no mean over samples, for {broadcast}: {numbers}: give both one shape, by "
            "squeeze(1) or unsqueeze(1)"
        )
    labels = isinstance(case.pool.targets, dict) and "labels" in case.pool.targets
    hint = ", loss='model' or 'causal_lm' where it is a model of transformers with these labels" if labels else ""
    return f"the loss {name!r} is no mean over samples: {numbers}: {REMEDY}{hint}"


def _broadcast(cut: Cut) -> str:
    """Outputs and targets of different shapes, in words; nothing if they fit."""
    output, target = cut.outputs[0], cut.targets[0]
    if not isinstance(output, Tensor) or not isinstance(target, Tensor) or not target.is_floating_point():
        return ""
    if output.dim() == target.dim() or output[0].numel() != target[0].numel():
        return ""
    shapes = [
        f"(n{''.join(f', {size}' for size in part.shape[1:])}{',' * (part.dim() == 1)})" for part in (output, target)
    ]
    return f"outputs {shapes[0]} and targets {shapes[1]} broadcast"
