"""Whether a model, a loss and data make a function that can be measured: asked of a few samples before any number."""

from __future__ import annotations

import contextlib
import functools
import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lbgap.objective import activations, casts
from lbgap.objective.passes import BATCH_NORM_BATCH, PROBE_SAMPLES, Evaluator
from lbgap.objective.questions import additive, gradient, moves, paths, repeats, slope
from lbgap.objective.questions.case import Case
from lbgap.problem import trees
from lbgap.problem.batch import Batch
from lbgap.problem.call import OutputError
from lbgap.problem.own import Own
from lbgap.problem.trees import Tree
from lbgap.replica import Watch, originals
from lbgap.system import device as hardware
from lbgap.system.device import first_line

SMALLEST_BATCH = 32
TOGETHER = 2**16  # samples up to which a model is tried on all of them
PASSES_ONCE_MORE = 16  # after a remedy: as many as the questions before it took
QUESTIONS: dict[str, Callable[[Case], str]] = {
    "repeats": repeats.ask,
    "with and without gradients": gradient.ask,
    "gradient paths": paths.ask,
    "moves": moves.ask,
    "additive": additive.ask,
    "slope": slope.ask,
}
ANOTHER = "call computes with another model than the one it is given: use its first argument"
NOT_ASKED = "judge=False: nobody asked whether this is the loss of the model (docs/limits.md)"


def judge(
    evaluator: Evaluator,
    model: nn.Module,
    centre: Tensor,
    batch_size: int | None,
    loader_batch: int | None,
    *,
    asked: bool,
) -> tuple[Any, dict[str, str] | str]:
    """Ask all questions, and choose the micro-batch by what a sample takes.

    Args:
        evaluator: At the minimizer.
        model: The user's own.
        centre: The minimizer, ``(n,)``.
        batch_size: What the user asked for.
        loader_batch: That of the user's loader, which only counts where the samples of a batch see each other.
        asked: Whether to ask more than a pass needs.

    Returns:
        The output for a few samples, without a graph; and question to answer, or that none was asked.

    Raises:
        ValueError: A question has the wrong answer; the message says which, and what to do.
        MemoryError: Not even one sample fits, or with statistics of the batch a batch does not.
    """
    if not evaluator.data.cuttable:
        evaluator.batch_size = evaluator.few_samples = evaluator.data.pool.size
    if evaluator.coupled:
        evaluator.batch_size = _unit(evaluator, batch_size, loader_batch)
        if not evaluator.flat.takes_statistics:
            evaluator.few_samples = min(evaluator.few_samples, evaluator.batch_size)
    probed = evaluator.within_memory(lambda: _probe_or_unit(evaluator, model))
    if not evaluator.coupled:
        evaluator.batch_size = _micro_batch(evaluator, batch_size, probed.bytes_each)
    if evaluator.bfloat16:
        evaluator.within_memory(lambda: _try_bfloat16(evaluator))
    if not asked:
        evaluator.notes.append(NOT_ASKED)
        return probed.output, NOT_ASKED
    case = Case(evaluator, model, centre, probed.plain)
    with evaluator.exact(), evaluator.context(False), _same_draws(evaluator):
        for name, ask in QUESTIONS.items():
            case.answers[name] = answer = evaluator.within_memory(functools.partial(_ask, case, ask))
            # What was mended may count, or fill a cache, anew.
            for _ in range(PASSES_ONCE_MORE if answer.startswith("yes, ") else 1):
                evaluator.within_memory(lambda: repeats.ask_again(case))
    return probed.output, case.answers


def _ask(case: Case, ask: Callable[[Case], str]) -> str:
    """Ask one question; code of the user's that fails in a way that the question does not know leaves it open."""
    try:
        return ask(case)
    except (ValueError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        return f"not judged: the model or the loss does not run where that is asked ({first_line(error)})"


class Probed(NamedTuple):
    """What a pass of a few samples shows.

    Attributes:
        output: Of a gradient's pass, detached.
        plain: Of a value's pass.
        bytes_each: What autograd saves of a sample.
    """

    output: Any
    plain: Any
    bytes_each: int


def _same_draws(evaluator: Evaluator) -> contextlib.AbstractContextManager[None]:
    """Leave the random state of the process as it is."""
    return torch.random.fork_rng([evaluator.device] if evaluator.device.type == "cuda" else [])


def _probe_or_unit(evaluator: Evaluator, model: nn.Module) -> Probed:
    """Run a few samples, or where samples see each other and a few cannot be run, a whole batch of them."""
    by_statistics = evaluator.flat.takes_statistics
    if not evaluator.coupled or by_statistics or evaluator.few_samples >= evaluator.batch_size:
        return _probe(evaluator, model)
    try:
        return _probe(evaluator, model)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # of a model or a loss that takes batches of one size
        evaluator.few_samples = evaluator.batch_size
        return _probe(evaluator, model)


def _probe(evaluator: Evaluator, model: nn.Module) -> Probed:
    """Run a few samples: do model, loss and data fit, is there a gradient, how large is a sample's activations?"""
    few, pristine = evaluator.few(), evaluator.few()
    versions = [part._version for part in few.tensors()]
    with evaluator.exact(), evaluator.context(False), _same_draws(evaluator):
        try:
            output, saved = activations.recorded(evaluator.flat, few.inputs, lambda: evaluator.few().inputs)
        except (torch.OutOfMemoryError, OutputError):
            raise
        except Exception as error:
            _check_together(evaluator, few.size, error)
            how = f"; {ANOTHER}" if _calls_another(evaluator, model) else ""
            how = how or casts.remedy(model, evaluator.flat.theta.dtype, evaluator.given, error)
            raise ValueError(
                f"the model does not accept inputs {_shown(few.inputs)}: {first_line(error)}"
                f"{how or _how(evaluator, few, error)}"
            ) from error
        evaluator.fit(output, few)
        _check_means(evaluator)
        if evaluator.returns_tensor and few.cuttable and len(output) != few.size:
            raise ValueError(f"the model must return one output per sample, got {len(output)} for {few.size}")
        with torch.enable_grad():
            _check_gradient(evaluator, output, few.targets, model)
        plain = _plain(evaluator)
    evaluator.flat.check_views()
    evaluator.overwrites = _overwritten(few, pristine) or [part._version for part in few.tensors()] != versions
    return Probed(trees.detached(output), plain, max(1, saved // few.size))


def _check_together(evaluator: Evaluator, few: int, error: Exception) -> None:
    """Say so where a model runs on all samples of a table together, as on the nodes of a graph, and not on a few."""
    table = evaluator.data.table
    if evaluator.coupled or table is None or not few < table.size <= TOGETHER:
        return
    try:
        with evaluator.unrecorded():
            evaluator.flat.run(evaluator.copied(table).inputs)
    except Exception:
        return
    raise ValueError(
        f"the model runs on all {table.size} samples together, but not on {few} of them ({first_line(error)}): pass "
        f"coupled=True, batch_size={table.size} if they belong together"
    ) from error


def _shown(inputs: Tree) -> str:
    if isinstance(inputs, Tensor):
        return f"of shape {tuple(inputs.shape)}, {inputs.dtype}"
    return trees.describe(inputs)


def _how(evaluator: Evaluator, few: Batch, error: Exception) -> str:
    """What to do with inputs that enter a model in another way than the usual one."""
    if evaluator.flat.call.function is not None and isinstance(error, AttributeError):
        return "; call gets the plain network, out of its wrappers (no .module, no ._orig_mod)"
    if isinstance(few.inputs, Tensor) or evaluator.flat.call.function is not None:
        return ""
    example = "batch.x, batch.edge_index" if trees.is_graph(few.inputs) else "..."
    return f"; pass call=lambda model, batch: model({example}) if they enter in another way"


def _plain(evaluator: Evaluator) -> Any:
    """The output of a value's pass; finds out whether the model differentiates inside and needs a graph for it."""
    for evaluator.needs_grad in (False, True):
        try:
            with evaluator.unrecorded():
                return trees.detached(evaluator.flat.run(evaluator.few().inputs))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if evaluator.needs_grad:
                raise ValueError(f"the model does not run a second time: {first_line(error)}") from error
    raise AssertionError


def _try_bfloat16(evaluator: Evaluator) -> None:
    """Take directions in float32 where the model, the loss or their gradient is nothing that autocast can run."""
    few = evaluator.few()
    with evaluator.exact(), _same_draws(evaluator), torch.enable_grad():
        try:
            with evaluator.context(True):
                output = evaluator.flat.run(few.inputs)
            with evaluator.context(False):
                total = evaluator.loss.sums(trees.cast(output, evaluator.flat.theta.dtype), few.targets).total
                parts = torch.autograd.grad(total, evaluator.flat.moving, allow_unused=True)
            why = "" if all(part is None or part.isfinite().all() for part in parts) else "its gradient is not finite"
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            why = first_line(error)
    if why:
        evaluator.bfloat16 = False
        evaluator.notes.append(f"precision='mixed' ran in float32: the model does not run in bfloat16 ({why})")


def _check_means(evaluator: Evaluator) -> None:
    """Refuse means over batches of which nobody knows how many samples they have; else say what they count by.

    Raises:
        ValueError: That is so.
    """
    loss, data = evaluator.loss, evaluator.data
    if not isinstance(loss, Own) or loss.weighs or data.joins:
        return
    counts = [1] if data.cuttable else [trees.known_count(targets) for targets in data.targets()]
    if len(counts) > 1 and None in counts:
        raise ValueError(
            f"the loss {loss.name!r} returns a mean over a batch whose tensors do not share their first dimension, so "
            "that nobody knows how many samples it is over: return (sum, weight)"
        )
    if len(counts) > 1:
        evaluator.notes.append(
            "each batch counts by its graphs in the mean of the loss: return (sum, weight) to count nodes or tokens"
        )
    elif data.cuttable and not evaluator.coupled:
        evaluator.notes.append(
            "batches differ in form, and each counts by its samples in the mean of the loss: return (sum, weight) to "
            "count tokens"
        )


def _check_gradient(evaluator: Evaluator, output: Any, targets: Tree, model: nn.Module) -> None:
    """Refuse a loss without a gradient in the parameters that may move."""
    total = evaluator.loss.sums(output, targets).total
    try:
        found = total.requires_grad and any(
            part is not None for part in torch.autograd.grad(total, evaluator.flat.moving, allow_unused=True)
        )
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ValueError(f"the loss cannot be differentiated: {first_line(error)}") from error
    if not found:
        how = "check parameters= and that neither model nor loss detaches its output"
        if any(getattr(module, "merged", False) is True for module in evaluator.flat.module.modules()):
            how = "adapters are merged into the weights, so call model.unmerge_adapter() first"
        if _calls_another(evaluator, model):
            how = ANOTHER
        raise ValueError(f"the loss does not depend on the parameters that may move: {how}")


def _calls_another(evaluator: Evaluator, model: nn.Module) -> bool:
    """Whether ``call`` of the user's computes with the user's own model."""
    if evaluator.flat.call.function is None:
        return False
    own = originals(model)
    inputs, kinds = evaluator.few().inputs, {part.dtype for part in own.values() if part.is_floating_point()}
    with evaluator.unrecorded(), Watch(own) as watch:
        for kind in kinds:  # which it may be of, where the replica is of another
            with contextlib.suppress(Exception):
                evaluator.flat.run(trees.cast(inputs, kind))
    return bool(watch.found)


def _overwritten(used: Batch, fresh: Batch) -> bool:
    """Whether model or loss have written into their inputs."""
    mine, other = used.stored(), fresh.stored()
    return len(mine) != len(other) or not all(torch.equal(*parts) for parts in zip(mine, other, strict=True))


def _unit(evaluator: Evaluator, given: int | None, loader_batch: int | None) -> int:
    """The batch whose samples see each other."""
    if not evaluator.data.joins:
        return _own_borders(evaluator, given)
    wanted = given or loader_batch
    if wanted is None and not evaluator.flat.takes_statistics:
        raise ValueError(
            "coupled=True needs to know which samples see each other: pass batch_size=, or the DataLoader whose "
            "batches they are"
        )
    samples = evaluator.samples
    size = min(wanted or BATCH_NORM_BATCH, samples)
    if samples % size == 1 or size == 1:
        what = f"{samples} samples in batches of {size} leaves a batch of one sample"
        raise _alone(evaluator, what, "choose another batch_size")
    return size


def _alone(evaluator: Evaluator, what: str, remedy: str) -> ValueError:
    """The refusal of a batch of one sample, where samples are meant to see each other."""
    lacks = "has no statistics" if evaluator.flat.takes_statistics else "sees no other"
    return ValueError(f"{evaluator.coupling} with {what}, which {lacks}: {remedy}")


def _own_borders(evaluator: Evaluator, given: int | None) -> int:
    """The largest batch, where batches are the units themselves.

    Raises:
        ValueError: Another size was asked for, or one of them has one sample.
    """
    sizes = evaluator.data.sizes()
    if given is not None and given != max(sizes):
        raise ValueError(
            f"batch_size={given} cannot be had of batches that differ in form, of {min(sizes)} to {max(sizes)} "
            "samples, which see each other: leave it out, or let the loader make batches of that size"
        )
    if min(sizes) < 2 and evaluator.data.cuttable:
        what = f"a batch of one sample (batch {sizes.index(min(sizes)) + 1} of {len(sizes)})"
        raise _alone(evaluator, what, "let the loader make others")
    return max(sizes)


def _micro_batch(evaluator: Evaluator, wanted: int | None, bytes_each: int) -> int:
    """A batch that decides about speed and memory alone."""
    samples = evaluator.samples
    if not evaluator.data.cuttable:
        return max(evaluator.data.sizes())
    if wanted is not None:
        return min(wanted, samples)
    fitting = max(SMALLEST_BATCH, hardware.batch_budget(evaluator.device) // bytes_each)
    few = evaluator.few_samples
    fitting = fitting if few == PROBE_SAMPLES else few  # as many as the probe came down to
    return math.ceil(samples / math.ceil(samples / fitting))


def has_bfloat16(device_type: str, notes: list[str]) -> bool:
    """Whether mixed precision means anything here; if not, a note and a warning say so."""
    if hardware.bfloat16_products(device_type):
        return True
    note = f"precision='mixed' ran in float32: no bfloat16 matrix products on this {device_type}"
    notes.append(note)
    warnings.warn(note, stacklevel=4)
    return False
