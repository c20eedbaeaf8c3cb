"""The loss of samples together is made of their losses apart, wherever they are cut: what every pass relies on."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lbgap.objective.questions import pools, rounding
from lbgap.objective.questions.case import YES, Case
from lbgap.objective.questions.kept import check_again
from lbgap.system.device import first_line

WIDE_ENTRIES = 2**20  # outputs up to here are summed in float64 at once, larger ones where there is a doubt
DOUBT = "not judged: outputs differ by the batch, perhaps by rounding, and the model runs in float32 alone"
UNKNOWN = "not judged: the loss is not finite on the samples that were tried"
REMEDY = (
    "return (sum, weight) where it is a ratio of sums (class weights, masks, ignored targets), pass coupled=True with "
    "a batch_size= where the samples of a batch are meant to see each other, or judge=False"
)


LARGEST_LAST = 1024  # samples of a last batch that is tried out
SAME_VALUE, SAME_WEIGHT = 1e-5, 1e-6
Weights = list[tuple[float, float] | None]  # of the pieces of each cut


class Value(NamedTuple):
    """The loss of some samples.

    Attributes:
        total: Their sum.
        weight: What the sum is divided by.
    """

    total: float
    weight: float


class Pool(NamedTuple):
    """Samples that are evaluated together and in pieces.

    Attributes:
        rows: Their indices among all samples, on the CPU.
        pieces: Places in ``rows``, each place in one piece.
    """

    rows: Tensor
    pieces: tuple[Tensor, ...]


class Cut(NamedTuple):
    """Two pieces whose loss together is compared with their losses apart.

    Attributes:
        outputs: Of one piece and of the other, ``(rows, ...)`` each.
        targets: As many.
        value: Of the targets of the first piece, if they are a group.
        paired: Whether outputs and targets are of the same samples.
    """

    outputs: tuple[Tensor, Tensor]
    targets: tuple[Tensor, Tensor]
    value: str | None = None
    paired: bool = True


def ask(case: Case) -> str:
    """Ask it of random samples, at the minimizer and some way off: of the outputs, then of sums and weights.

    Raises:
        ValueError: The samples of a batch see each other, or the loss is no mean over samples.
    """
    evaluator = case.evaluator
    if evaluator.flat.takes_statistics:
        return "not judged: batch_norm='batch'"
    if evaluator.coupled:
        _check_last(case)
        return "not judged: coupled=True"
    pool = _pool(case)
    targets = case.rows(pool.rows).targets
    others = [(group.value, case.rows(group.rows).targets) for group in pools.groups(evaluator.data.targets)]
    kinds = min(pools.KINDS, pools.ENTRIES // max(1, case.first[:1].numel()))
    mixture = case.rows(pools.mixture(evaluator.data.targets, kinds)).targets
    outputs, doubt = _outputs(case, pool)
    _check_alone(case, outputs, targets)
    here = [_compare(case, cut) for cut in _cuts(pool, outputs, targets, others, mixture)]
    with case.elsewhere():
        outputs, other_doubt = _outputs(case, pool)
    there = [_compare(case, cut) for cut in _cuts(pool, outputs, targets, others, mixture)]
    _check_weights(case, here, there)
    if not any(here):
        return UNKNOWN
    return doubt or other_doubt or YES


def _check_last(case: Case) -> None:
    """Refuse batches of which the last is smaller than model or loss take, where samples are meant to see each other.

    Raises:
        ValueError: It is.
    """
    evaluator = case.evaluator
    last = evaluator.samples % evaluator.batch_size
    if not 0 < last <= LARGEST_LAST:
        return
    batch = case.rows(torch.arange(evaluator.samples - last, evaluator.samples, device="cpu"))
    try:
        _value(case, case.output(batch.inputs), batch.targets, None)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise ValueError(
            f"{evaluator.samples} samples in batches of {evaluator.batch_size} leave a last one of {last}, which the "
            f"model or the loss does not take ({first_line(error)}): choose a batch_size that divides "
            f"{evaluator.samples}, or pass fewer samples"
        ) from error


# The model.


def _pool(case: Case) -> Pool:
    """Draw the samples and the pieces: a third and the rest, and one alone if passes will have such a batch."""
    evaluator = case.evaluator
    # Without a graph half as many again need less memory than the few did with one.
    drawn = pools.draw(evaluator.few_samples * 3 // 2, evaluator.samples, case.first[:1].numel())
    times = -(-pools.SMALLEST // len(drawn))  # of very few samples each several times, and always in one piece
    order = torch.randperm(len(drawn), generator=torch.Generator().manual_seed(1), device="cpu")
    order = (order[:, None] * times + torch.arange(times, device="cpu")).flatten()
    alone = evaluator.batch_size == 1 or evaluator.samples % evaluator.batch_size == 1
    sizes = [1] if alone else []
    sizes.append(max(2 - alone, (len(order) - alone) // 3))
    return Pool(drawn.repeat_interleave(times), order.split([*sizes, len(order) - sum(sizes)]))


def _outputs(case: Case, pool: Pool) -> tuple[Tensor, str]:
    """The outputs of all samples together, where the replica stands, compared with those of the pieces; and a doubt."""
    together = _one_each(case, pool.rows)
    apart = [_one_each(case, pool.rows[piece]) for piece in pool.pieces]
    expected = [together[piece.to(together.device)] for piece in pool.pieces]
    answer = rounding.differ(case, apart, expected, functools.partial(_again, case, pool))
    if answer:
        check_again(together, _one_each(case, pool.rows))  # a counter explains more
        raise ValueError(
            "the output for a sample depends on the others of its batch, so that the loss depends on how the data are "
            f"cut: {_hint(case.evaluator.flat.module)}, or pass coupled=True with a batch_size= if that is meant, or "
            "judge=False"
        )
    return together, DOUBT if answer is None else ""


def _one_each(case: Case, rows: Tensor) -> Tensor:
    """The outputs for some samples.

    Raises:
        ValueError: They are not one for each, or the model does not run on as many samples.
    """
    inputs = case.rows(rows).inputs
    try:
        output = case.output(inputs)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise ValueError(
            f"the model runs on {len(case.first)} samples, but not on {len(rows)} ({first_line(error)}): let it take a "
            "batch of any size"
        ) from error
    if output.shape[:1] != (len(rows),):
        raise ValueError(
            f"the model must return one output per sample, got shape {tuple(output.shape)} for {len(rows)} samples: "
            f"{_hint(case.evaluator.flat.module)}"
        )
    return output


def _again(case: Case, pool: Pool, module: nn.Module) -> Sequence[Tensor]:
    """The outputs of a float64 copy: of each piece, then of the same samples among all."""
    with case.evaluator.unrecorded():
        apart = [module(rounding.wide(case.rows(pool.rows[piece]).inputs)).detach() for piece in pool.pieces]
        together = module(rounding.wide(case.rows(pool.rows).inputs)).detach()
    return [*apart, *(together[piece.to(together.device)] for piece in pool.pieces)]


def _hint(module: nn.Module) -> str:
    """Where samples may see each other."""
    for name, part in module.named_modules():
        if getattr(part, "batch_first", True) is False:
            kind = type(part).__name__
            return (
                f"{name or 'the model'!r} is a {kind} with batch_first=False, which takes the first dimension for time"
            )
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.training:
            return f"the batch-norm {name!r} stays in training mode"
    return "take nothing over its first dimension (a mean, a softmax, attention, time)"


# The loss.


def _cuts(
    pool: Pool, outputs: Tensor, targets: Tensor, groups: Sequence[tuple[str, Tensor]], mixture: Tensor
) -> Iterator[Cut]:
    """All cuts of the samples whose outputs these are."""
    order = torch.cat(pool.pieces)
    half = max(1, len(order) // 2)
    chosen = [order[:half], order[half:], *pool.pieces]
    parts = [(outputs[rows.to(outputs.device)], targets[rows.to(targets.device)]) for rows in chosen]
    for (one, its), (other, others) in (parts[:2], (parts[-2], parts[-1]), (parts[2], parts[-1])):
        yield Cut((one, other), (its, others))
    for value, group in groups:
        size = max(2, len(group))  # twice the same one, where it is alone: a batch of one may be none that passes have
        rows = torch.arange(size, device=group.device) % len(group)
        some = outputs[torch.arange(size, device=outputs.device) % len(outputs)]
        yield Cut((some, parts[-1][0]), (group[rows], parts[-1][1]), value, paired=False)
    if len(mixture) > 3:
        some = outputs[torch.arange(len(mixture), device=outputs.device) % len(outputs)]
        half = len(mixture) // 2
        yield Cut((some[:half], some[half:]), (mixture[:half], mixture[half:]), paired=False)


def _compare(case: Case, cut: Cut) -> tuple[float, float] | None:
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
        if not cut.paired:  # an output and a target that do not belong together
            return None
        raise ValueError(
            f"the loss {case.evaluator.loss.name!r} does not run on some of the few samples ({first_line(error)}): let "
            "it take a batch of any size, or pass coupled=True with a batch_size= that it takes"
        ) from error
    if not math.isfinite(both.total):
        return None
    if not (math.isfinite(one.total) and math.isfinite(other.total)):
        raise ValueError(_not_finite(case, cut, values))
    missed = abs(both.total - one.total - other.total)
    size = sum(abs(value.total) for value in values)
    if missed > rounding.tolerance(torch.float64) * size and not _is_rounding(case, cut, missed, size):
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


def _values(case: Case, cut: Cut) -> tuple[Value, Value, Value]:
    """The loss of both pieces together and of each, in float64 where it runs in it and that is not much work."""
    wanted = [torch.float64] if cut.outputs[1].numel() <= WIDE_ENTRIES else []
    for dtype in (*wanted, None):
        try:
            both = _value(case, torch.cat(cut.outputs), torch.cat(cut.targets), dtype)
            one, other = (_value(case, *pair, dtype) for pair in zip(cut.outputs, cut.targets, strict=True))
        except torch.OutOfMemoryError:
            raise
        except Exception:
            if dtype is None:
                raise
        else:
            break
    return both, one, other


def _value(case: Case, output: Tensor, target: Tensor, dtype: torch.dtype | None) -> Value:
    """The loss of some samples, as the pass of a value sums it."""
    output, target = (part.to(dtype) if part.is_floating_point() else part for part in (output, target))
    with case.evaluator.unrecorded():
        sums = case.evaluator.loss.sums(output.clone(), target.clone())
    return Value(float(sums.exact), float(sums.weight))


def _is_rounding(case: Case, cut: Cut, missed: float, size: float) -> bool:
    """Whether a difference is what rounding makes, in the narrowest type that the loss computes in.

    Sums may be small because their terms cancel: then it is the terms that rounding follows from.
    """
    narrowest = rounding.Narrowest()
    with narrowest:
        _values(case, cut)
    bound = rounding.tolerance(narrowest.dtype)
    if missed <= bound * size:
        return True
    terms = 0.0
    for outputs, targets in zip(cut.outputs, cut.targets, strict=True):
        for output, target in zip(outputs[:, None], targets[:, None], strict=True):
            try:  # twice the same: a batch of one may be none that passes have
                twice = _value(case, torch.cat((output, output)), torch.cat((target, target)), None)
            except torch.OutOfMemoryError:
                raise
            except Exception:
                return False
            terms += abs(twice.total) if math.isfinite(twice.total) else 0.0
    return missed <= bound * terms


def _check_alone(case: Case, output: Tensor, target: Tensor) -> None:
    """Refuse a loss that trains something of its own, or that is random.

    Raises:
        ValueError: It does, or is.
    """
    loss = case.evaluator.loss
    with torch.enable_grad():
        try:
            first, second = (loss.sums(output.clone(), target.clone()) for _ in range(2))
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


def _check_weights(case: Case, here: Weights, there: Weights) -> None:
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


def _not_finite(case: Case, cut: Cut, values: Sequence[Value]) -> str:
    bad = next(value.total for value in values[1:] if not math.isfinite(value.total))
    which = f"whose targets are {cut.value}" if cut.value and not math.isfinite(values[1].total) else "of a batch"
    return (
        f"the loss {case.evaluator.loss.name!r} is {bad:g} for samples {which}, but finite for these and others "
        "together: return (sum, weight) from it, both zero where nothing counts, or pass coupled=True with batch_size="
    )


def _not_a_mean(case: Case, cut: Cut, values: Sequence[Value]) -> str:
    name, counts = case.evaluator.loss.name, [len(part) for part in cut.outputs]
    both, one, other = (value.total / value.weight if value.weight else math.nan for value in values)
    expected = (values[1].total + values[2].total) / values[0].weight if values[0].weight else math.nan
    numbers = (
        f"{counts[0]} samples gave {one:.6g}, {counts[1]} others {other:.6g}, and all together {both:.6g} in place of "
        f"{expected:.6g}"
    )
    if abs(both - one - other) <= SAME_VALUE * abs(both):
        return f"the loss {name!r} must be the mean over the batch, not its sum: {numbers}: use reduction='mean'"
    output, target = cut.outputs[0], cut.targets[0]
    if target.is_floating_point() and output.dim() != target.dim() and output[0].numel() == target[0].numel():
        shapes = [
            f"(n{''.join(f', {size}' for size in part.shape[1:])}{',' * (part.dim() == 1)})"
            for part in (output, target)
        ]
        return (
            f"the loss {name!r} is no mean over samples, for outputs {shapes[0]} and targets {shapes[1]} broadcast: "
            f"{numbers}: give both one shape, by squeeze(1) or unsqueeze(1)"
        )
    return f"the loss {name!r} is no mean over samples: {numbers}: {REMEDY}"
