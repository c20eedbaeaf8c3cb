"""The loss of samples together against their losses apart, where outputs cannot be cut: by passes of each piece."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lbgap.flat import FlatModule
from lbgap.objective.questions import cuts, rounding
from lbgap.objective.questions.case import YES, Case
from lbgap.objective.questions.cuts import SAME_WEIGHT, Value, Weights
from lbgap.objective.questions.pools import Group
from lbgap.problem import trees
from lbgap.problem.base import tolerance
from lbgap.problem.batch import Batch
from lbgap.system.device import first_line

UNKNOWN = "not judged: the loss is not finite on the samples that were tried"
DOUBT = "not judged: sums of the loss differ by the batch, perhaps by rounding, and the model runs in float32 alone"
LARGEST = 32  # samples of a further batch
CLEAR = 1e-3  # relative: more than rounding makes in float32


class Pair(NamedTuple):
    """Two pieces.

    Attributes:
        counts: Samples in each.
        make: Gives fresh copies of both together, and of each.
        value: Of the targets of the first piece, if they are a group.
    """

    counts: tuple[int, int]
    make: Callable[[], Sequence[Batch]]
    value: str | None = None


def ask(case: Case, rows: Tensor, pieces: Sequence[Tensor], groups: Sequence[Group]) -> str:
    """Ask whether sums and weights of pieces add up, at the minimizer and some way off.

    Args:
        case: Whose model and loss it is.
        rows: Some samples, on the CPU.
        pieces: Places among them, each place in one piece.
        groups: Further samples, whose targets a loss may treat in a way of their own.

    Raises:
        ValueError: They do not.
    """
    cuts.check_alone(case, case.output(case.rows(rows).inputs), case.rows(rows).targets)
    here, doubt = _compare_all(case, rows, pieces, groups)
    if not any(here):
        return doubt or UNKNOWN
    if case.fails_elsewhere():
        return case.fails_elsewhere()
    with case.elsewhere():
        there, other_doubt = _compare_all(case, rows, pieces, groups)
    cuts.check_weights(case, here, there)
    return doubt or other_doubt or YES


def ask_others(case: Case, batches: Sequence[Batch]) -> str:
    """Ask the same of the halves of some more batches, at the minimizer; returns a doubt.

    Args:
        case: Whose model and loss it is.
        batches: Such as are not like the pool.

    Raises:
        ValueError: Sums or weights do not add up.
    """
    doubt = ""
    for batch in batches:
        half = min(batch.size, LARGEST) // 2
        cut = [slice(2 * half), slice(half), slice(half, 2 * half)]
        make = functools.partial(lambda batch, cut: [case.evaluator.copied(batch.rows(one)) for one in cut], batch, cut)
        found = _compare(case, Pair((half, half), make)) if half else None
        doubt = doubt or (found if isinstance(found, str) else "")
    return doubt


def _of_pool(case: Case, one: Tensor, other: Tensor, value: str | None = None) -> Pair:
    """Two pieces of the pool, by the indices of their samples on the CPU."""
    rows = torch.cat((one, other)), one, other
    return Pair((len(one), len(other)), lambda: [case.rows(some) for some in rows], value)


def _pairs(case: Case, rows: Tensor, pieces: Sequence[Tensor], groups: Sequence[Group]) -> Iterator[Pair]:
    """All pairs of pieces."""
    order = torch.cat(tuple(pieces))
    half = max(1, len(order) // 2)
    yield _of_pool(case, rows[order[:half]], rows[order[half:]])
    yield _of_pool(case, rows[pieces[0]], rows[pieces[-1]])
    for word, samples in groups:
        twice = samples.repeat(2) if len(samples) == 1 else samples  # a batch of one may be none that passes have
        yield _of_pool(case, twice, rows[pieces[-1]], word)


def _compare_all(case: Case, rows: Tensor, pieces: Sequence[Tensor], groups: Sequence[Group]) -> tuple[Weights, str]:
    """The weights of the pieces of each pair, None where the loss is not finite; and a doubt."""
    weights: Weights = []
    doubt = ""
    for pair in _pairs(case, rows, pieces, groups):
        found = _compare(case, pair)
        doubt = doubt or (found if isinstance(found, str) else "")
        weights.append(None if isinstance(found, str) else found)
    return weights, doubt


def _compare(case: Case, pair: Pair) -> tuple[float, float] | str | None:
    """The weights of two pieces; a doubt; or None where their loss is not finite.

    Raises:
        ValueError: Sums or weights do not add up, or model or loss do not run on a piece.
    """
    name = case.evaluator.loss.name
    try:
        both, one, other = values = _values(case, pair, case.evaluator.flat)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        which = f"samples whose targets are {pair.value}" if pair.value else " or ".join(map(str, pair.counts))
        raise ValueError(
            f"the model or the loss {name!r} does not run on {which} of the samples ({first_line(error)}): let it take "
            "any batch, or pass coupled=True with batch_size="
        ) from error
    if not math.isfinite(both.total):
        return None
    if not (math.isfinite(one.total) and math.isfinite(other.total)):
        bad = next(value.total for value in values[1:] if not math.isfinite(value.total))
        which = f"whose targets are {pair.value}" if pair.value and not math.isfinite(one.total) else "of a batch"
        raise ValueError(
            f"the loss {name!r} is {bad:g} for samples {which}, but finite for these and others together: return "
            "(sum, weight) from it, both zero where nothing counts, or pass coupled=True with batch_size="
        )
    if _missed(values) > tolerance(case.evaluator.flat.theta.dtype):
        answer = _precisely(case, pair)
        if answer is None and _missed(values) <= CLEAR:
            return DOUBT
        if answer is not False:
            raise ValueError(cuts.not_a_mean(case, pair.counts, values))
    if abs(both.weight - one.weight - other.weight) > SAME_WEIGHT * abs(both.weight):
        raise ValueError(
            f"the loss {name!r} returns the weight {both.weight:g} for a batch, but {one.weight:g} and "
            f"{other.weight:g} for its pieces: return what its sum is divided by, summed over the samples"
        )
    return one.weight, other.weight


def _values(case: Case, pair: Pair, flat: FlatModule) -> tuple[Value, Value, Value]:
    """The loss of both pieces together and of each, of a replica where it stands."""
    dtype = flat.theta.dtype
    found = []
    for given in pair.make():
        batch = given.cast(dtype)
        with case.evaluator.unrecorded():
            sums = case.evaluator.loss.sums(trees.detached(flat.run(batch.inputs)), batch.targets)
        found.append(Value(float(sums.exact), float(sums.weight)))
    return found[0], found[1], found[2]


def _missed(values: Sequence[Value]) -> float:
    """By how much two sums miss that of both, relative to them all."""
    both, one, other = (value.total for value in values)
    size = abs(both) + abs(one) + abs(other)
    return abs(both - one - other) / size if size else 0.0


def _precisely(case: Case, pair: Pair) -> bool | None:
    """Whether the sums differ in a float64 copy of the replica; None where it does not run."""
    narrowest = rounding.Narrowest()
    try:
        flat = rounding.in_float64(case)
        with narrowest:
            values = _values(case, pair, flat)
    except torch.OutOfMemoryError:
        raise
    except Exception:
        return None
    return not _missed(values) <= tolerance(narrowest.dtype)
