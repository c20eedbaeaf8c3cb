"""Whether the loss of samples adds up from pieces, so that it is one number for every size of the batches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lbgap.problem.base import tolerance
from lbgap.problem.loss import Loss

SAMPLES = 8, 64  # at least and at most; half are spread over the data, half over their sorted targets
OUTPUTS = 2**18  # numbers in the outputs of these samples, unless that leaves too few of them
WORK = 2**24  # numbers in the outputs of all cuts, unless that leaves too few of them
CUTS = 8
FEWEST = 2  # of a piece: a loss may squeeze a batch of one
COLUMNS = 4  # of the targets that are sorted by
GROUPS = 16  # values of a column that are cut off
ENTRIES = 2**22  # of the targets that are searched


class Total(NamedTuple):
    """The loss of some samples.

    Attributes:
        value: Their sum.
        rounding: Its relative error at most, in the type that the loss returned, which it may choose itself.
    """

    value: float
    rounding: float


def draw(targets: Tensor, entries: int) -> Tensor:
    """Choose samples that show how a loss treats targets of all kinds.

    Args:
        targets: Of all samples, ``(n, ...)``.
        entries: Numbers in the output for one sample.

    Returns:
        Indices in ascending order, int64 on the device of the targets; of one sample several times the same.
    """
    count = len(targets)
    half = min(SAMPLES[1], max(SAMPLES[0], OUTPUTS // max(1, entries))) // 2
    found = [_spread(count, half)]
    searched = _spread(count, max(SAMPLES[1], ENTRIES // max(1, targets[:1].numel())))
    columns = _columns(targets[searched.to(targets.device)]).cpu()
    for column in columns:
        values, order = column.sort(stable=True)
        counts = values.unique_consecutive(return_counts=True)[1]
        firsts = counts.cumsum(0) - counts
        found.append(searched[order[firsts[_spread(len(firsts), half // len(columns))]]])
    rows: Tensor = torch.cat(found).unique()
    return rows.repeat_interleave(-(-2 * FEWEST // len(rows))).to(targets.device)


def adds_up(loss: Loss, output: Tensor, target: Tensor) -> bool:
    """Whether the loss of some samples is the mean of the losses of two pieces, each counted by its samples.

    It is tried for halves, as they come and sorted by targets, and for one value of the targets against the others;
    and again a random step off, for a fresh network may give all samples one output, on which a ratio shows as little
    as in a constant.

    Args:
        loss: Not of the kind that returns a weight.
        output: Of the samples, ``(samples, ...)``, four or more.
        target: Of the samples, ``(samples, ...)``.

    Returns:
        False also where it takes the samples together, but not a piece of them, or the other way round.
    """
    cuts = list(itertools.islice(_cuts(target), max(CUTS, WORK // max(1, output.numel()))))
    if not all(_agree(loss, output, target, cut) for cut in cuts):
        return False
    if not output.is_floating_point():
        return True
    noise = torch.randn(output.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32, device="cpu").to(
        output
    )
    moved = output + noise * (output.std() if bool(output.std() > 0) else 1.0)
    # Not where it does not run: these outputs may be none of the model's, such as negative probabilities.
    return all(_agree(loss, moved, target, cut) is not False for cut in cuts)


def _spread(count: int, wanted: int) -> Tensor:
    """At most so many places, evenly from the first to the last."""
    places = torch.linspace(0, count - 1, max(1, min(wanted, count)), dtype=torch.float64, device="cpu")
    return places.to(torch.int64)


def _columns(targets: Tensor) -> Tensor:
    """Numbers by which samples are sorted, ``(columns, n)`` float64: some of their targets, their mean and extremes."""
    values = torch.view_as_real(targets.resolve_conj()) if targets.is_complex() else targets
    flat = values.reshape(len(values), -1).double().nan_to_num(math.inf)
    if not flat.shape[1]:
        return flat.new_zeros((1, len(flat)))
    some = flat[:, _spread(flat.shape[1], COLUMNS).to(flat.device)].T
    return some if flat.shape[1] == 1 else torch.cat((torch.stack((flat.mean(1), flat.amin(1), flat.amax(1))), some))


def _cuts(target: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Places of two pieces, the most telling ones first."""
    half, columns = len(target) // 2, _columns(target)
    for order in (torch.arange(len(target), device=target.device), *columns.argsort(stable=True)):
        yield order[:half], order[half:]
    for column in columns:
        values = column.unique()
        for value in values[_spread(len(values), GROUPS).to(values.device)] if len(values) > 1 else ():
            group = column == value
            yield _enough(group.nonzero().flatten()), _enough((~group).nonzero().flatten())


def _enough(rows: Tensor) -> Tensor:
    return rows.repeat(FEWEST) if len(rows) < FEWEST else rows


def _agree(loss: Loss, output: Tensor, target: Tensor, cut: tuple[Tensor, Tensor]) -> bool | None:
    """Whether it adds up from two pieces, to rounding; in float64 where it runs in it. None where it does not run."""
    for wide in (True, False):
        part = output.double() if wide and output.is_floating_point() else output
        aim = target.double() if wide and target.is_floating_point() else target
        try:
            both, one, other = (_total(loss, part[rows], aim[rows]) for rows in (torch.cat(cut), *cut))
        except torch.OutOfMemoryError:
            raise
        except Exception:
            continue
        if not math.isfinite(both.value):
            return True  # says nothing
        size = abs(both.value) + abs(one.value) + abs(other.value)
        return abs(both.value - one.value - other.value) <= both.rounding * size
    return None


def _total(loss: Loss, output: Tensor, target: Tensor) -> Total:
    sums = loss.sums(output, target)  # which may overwrite these copies
    return Total(float(sums.exact), tolerance(sums.total.dtype))
