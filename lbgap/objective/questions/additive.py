"""The loss of samples together is made of their losses apart, wherever they are cut: what every pass relies on."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lbgap.flat import FlatModule
from lbgap.objective.questions import cuts, pools, rounding, together
from lbgap.objective.questions.case import YES, Case
from lbgap.objective.questions.kept import check_again
from lbgap.problem import trees
from lbgap.system.device import first_line

DOUBT = "not judged: outputs differ by the batch, perhaps by rounding, and the model runs in float32 alone"
UNKNOWN = "not judged: the loss is not finite on the samples that were tried"
LARGEST_LAST = 1024  # samples of a last batch that is tried out


class Pool(NamedTuple):
    """Samples that are evaluated together and in pieces.

    Attributes:
        rows: Their indices among all samples, on the CPU.
        pieces: Places in ``rows``, each place in one piece.
    """

    rows: Tensor
    pieces: tuple[Tensor, ...]


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
    if not case.pool.cuttable:
        return "not judged: batches that cannot be cut"
    pool, outputs = _drawn(case)
    groups = pools.groups(case.pool.targets)
    others = [] if evaluator.loss.separable else pools.unlike(evaluator.data)
    if trees.size(outputs) != len(pool.rows):
        doubt = together.ask_others(case, others)
        answer = together.ask(case, pool.rows, pool.pieces, groups)
        return doubt if doubt and answer == YES else answer
    targets = case.rows(pool.rows).targets
    further = [cuts.Targets(*group, case.rows(group.rows).targets) for group in groups]
    kinds = min(pools.KINDS, pools.ENTRIES // _entries(case))
    mixture = case.rows(pools.mixture(case.pool.targets, kinds)).targets
    doubt = _compare_outputs(case, pool, outputs)
    cuts.check_alone(case, outputs, targets)
    here = [cuts.compare(case, cut) for cut in cuts.make(pool.pieces, outputs, targets, further, mixture)]
    if not any(here):
        return UNKNOWN
    if case.fails_elsewhere():
        return case.fails_elsewhere()
    with case.elsewhere():
        outputs = _one_each(case, pool.rows)
        other_doubt = _compare_outputs(case, pool, outputs)
    moved = (
        cut._replace(rows=None, paired=False) for cut in cuts.make(pool.pieces, outputs, targets, further, mixture)
    )
    cuts.check_weights(case, here, [cuts.compare(case, cut) for cut in moved])
    return doubt or other_doubt or together.ask_others(case, others) or YES


def _entries(case: Case) -> int:
    """Numbers in the output for one sample."""
    return max(1, sum(part.numel() for part in trees.observed(case.first)) // case.evaluator.few_samples)


def _check_last(case: Case) -> None:
    """Refuse batches of which the last is smaller than model or loss take, where samples are meant to see each other.

    Raises:
        ValueError: It is.
    """
    evaluator = case.evaluator
    last = evaluator.samples % evaluator.batch_size if evaluator.data.table is not None else 0
    if not 0 < last <= LARGEST_LAST:
        return
    batch = case.rows(torch.arange(evaluator.samples - last, evaluator.samples, device="cpu"))
    try:
        cuts.sum_up(case, case.output(batch.inputs), batch.targets, None)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise ValueError(
            f"{evaluator.samples} samples in batches of {evaluator.batch_size} leave a last one of {last}, which the "
            f"model or the loss does not take ({first_line(error)}): choose a batch_size that divides "
            f"{evaluator.samples}, or pass fewer samples"
        ) from error


def _drawn(case: Case) -> tuple[Pool, Any]:
    """Draw samples and pieces, and their outputs at the minimizer: in any order, or as the data have them.

    Raises:
        ValueError: The model runs in neither order.
    """
    pool = _pool(case, in_order=False)
    try:
        return pool, case.output(case.rows(pool.rows).inputs)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # of a model that wants its batches sorted, by the lengths of sequences for example
        pool = _pool(case, in_order=True)
        return pool, _run(case, pool.rows)


def _pool(case: Case, *, in_order: bool) -> Pool:
    """Draw the samples and the pieces: a third and the rest, and one alone if passes will have such a batch."""
    evaluator = case.evaluator
    # Half as many again as the few, if passes take as many: where memory is short they may take no more than the few.
    wanted = min(evaluator.few_samples * 3 // 2, max(evaluator.few_samples, evaluator.batch_size))
    drawn = pools.draw(wanted, case.pool.size, _entries(case))
    outliers = pools.extremes(case.pool.inputs)
    drawn = torch.cat([outliers, drawn[~torch.isin(drawn, outliers)]])[: len(drawn)]
    times = -(-pools.SMALLEST // len(drawn))  # of very few samples each several times, and always in one piece
    order = torch.randperm(len(drawn), generator=torch.Generator().manual_seed(1), device="cpu")
    order = (order[:, None] * times + torch.arange(times, device="cpu")).flatten()
    alone = evaluator.batch_size == 1 or any(size % evaluator.batch_size == 1 for size in evaluator.data.sizes())
    sizes = [1] if alone else []
    sizes.append(max(2 - alone, (len(order) - alone) // 3))
    pieces = order.split([*sizes, len(order) - sum(sizes)])
    if in_order:
        drawn, pieces = drawn.sort().values, tuple(piece.sort().values for piece in pieces)
    return Pool(drawn.repeat_interleave(times), pieces)


def _compare_outputs(case: Case, pool: Pool, outputs: Any) -> str:
    """Compare the outputs of all samples together, where the replica stands, with those of the pieces.

    Returns:
        A doubt.

    Raises:
        ValueError: They differ.
    """
    _check_count(case, outputs, pool.rows)
    apart = [part for piece in pool.pieces for part in case.seen(_one_each(case, pool.rows[piece]))]
    expected = [part for piece in pool.pieces for part in case.seen(trees.rows(outputs, piece))]
    answer = rounding.differ(case, apart, expected, functools.partial(_again, case, pool))
    if answer:
        check_again(case.seen(outputs), case.seen(_one_each(case, pool.rows)))  # a counter explains more
        raise ValueError(
            "the output for a sample depends on the others of its batch, so that the loss depends on how the data are "
            f"cut: {_hint(case.evaluator.flat.module)}, or pass coupled=True with a batch_size= if that is meant, or "
            "judge=False"
        )
    return DOUBT if answer is None else ""


def _one_each(case: Case, rows: Tensor) -> Any:
    """The outputs for some samples.

    Raises:
        ValueError: They are not one for each, or the model does not run on as many samples.
    """
    output = _run(case, rows)
    _check_count(case, output, rows)
    return output


def _run(case: Case, rows: Tensor) -> Any:
    """What the model returns for some samples.

    Raises:
        ValueError: It does not run on as many.
    """
    inputs = case.rows(rows).inputs
    try:
        return case.output(inputs)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise ValueError(
            f"the model runs on {case.evaluator.few_samples} samples, but not on {len(rows)} ({first_line(error)}): "
            "let it take a batch of any size, or pass judge=False"
        ) from error


def _check_count(case: Case, output: Any, rows: Tensor) -> None:
    """Refuse outputs that are not one for each sample."""
    if trees.size(output) != len(rows):
        got = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else trees.describe(output)
        raise ValueError(
            f"the model must return one output per sample, got {got} for {len(rows)} samples: "
            f"{_hint(case.evaluator.flat.module)}"
        )


def _again(case: Case, pool: Pool, flat: FlatModule) -> Sequence[Tensor]:
    """The outputs of a float64 copy: of each piece, then of the same samples among all."""

    def run(rows: Tensor) -> Any:
        return trees.detached(flat.run(rounding.wide(case.rows(rows)).inputs))

    with case.evaluator.unrecorded():
        apart = [part for piece in pool.pieces for part in case.seen(run(pool.rows[piece]))]
        every = run(pool.rows)
        return [*apart, *(part for piece in pool.pieces for part in case.seen(trees.rows(every, piece)))]


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
