"""Whether a model, a loss and data make a function that can be measured: asked of a few samples before any number."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lbgap.objective.passes import BATCH_NORM_BATCH, PROBE_SAMPLES, Evaluator
from lbgap.objective.questions import additive, gradient, moves, paths, repeats, slope
from lbgap.objective.questions.case import Case
from lbgap.samples import Batch
from lbgap.system import device as hardware
from lbgap.system.device import first_line

SMALLEST_BATCH = 32


QUESTIONS: dict[str, Callable[[Case], str]] = {
    "repeats": repeats.ask,
    "with and without gradients": gradient.ask,
    "gradient paths": paths.ask,
    "moves": moves.ask,
    "additive": additive.ask,
    "slope": slope.ask,
}
NOT_ASKED = "judge=False: nobody asked whether this is the loss of the model (docs/limits.md)"


def judge(
    evaluator: Evaluator,
    model: nn.Module,
    centre: Tensor,
    batch_size: int | None,
    loader_batch: int | None,
    *,
    asked: bool,
) -> tuple[Tensor, dict[str, str] | str]:
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
    if evaluator.coupled:
        evaluator.batch_size = _unit(evaluator, batch_size or loader_batch)
    output, bytes_each = evaluator.within_memory(lambda: _probe(evaluator))
    if not evaluator.coupled:
        evaluator.batch_size = _micro_batch(evaluator, batch_size, bytes_each)
    if not asked:
        evaluator.notes.append(NOT_ASKED)
        return output, NOT_ASKED
    case = Case(evaluator, model, centre)
    for name, ask in QUESTIONS.items():
        case.answers[name] = evaluator.within_memory(lambda ask=ask: ask(case))  # type: ignore[misc]
    return output, case.answers


def _probe(evaluator: Evaluator) -> tuple[Tensor, int]:
    """Run a few samples: do model, loss and data fit, do they repeat, how large is a sample's activations?"""
    module = evaluator.flat.module
    devices = [evaluator.device] if evaluator.device.type == "cuda" else []
    few = evaluator.few()
    versions = [part._version for part in few]
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers() if buffer.layout == torch.strided}
    saved = hardware.SavedBytes([*module.parameters(), *module.buffers()])
    with evaluator.context(False), torch.random.fork_rng(devices):
        try:
            with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(saved.note, lambda tensor: tensor):
                output = module(few.inputs)
            with torch.no_grad():
                once, again = (module(evaluator.few().inputs) for _ in range(2))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise ValueError(
                f"the model does not accept inputs of shape {tuple(few.inputs.shape)}, {few.inputs.dtype}: "
                f"{first_line(error)}"
            ) from error
        evaluator.fit(output)
        loss = evaluator.loss
        if len(output) != few.size:
            raise ValueError(f"the model must return one output per sample, got {len(output)} for {few.size}")
        with torch.enable_grad():
            _check_gradient(evaluator, output, few.targets)
            loss.check_mean(once, again, evaluator.few().targets)
    evaluator.flat.check_views()
    _check_repeats(once, again)
    _check_buffers(dict(module.named_buffers()), buffers)
    evaluator.overwrites = _overwritten(few, evaluator.few()) or [part._version for part in few] != versions
    return output.detach(), max(1, saved.total() // few.size)


def _check_gradient(evaluator: Evaluator, output: Tensor, targets: Tensor) -> None:
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
        raise ValueError(
            "the loss does not depend on the parameters that may move: check parameters= and that neither "
            "model nor loss detaches its output"
        )


def _check_repeats(once: Tensor, again: Tensor) -> None:
    """Refuse a model whose outputs for the same inputs differ."""
    if not torch.allclose(once, again, rtol=1e-5, atol=1e-6, equal_nan=True):
        raise ValueError(
            "the model gives different outputs for the same inputs in evaluation mode: a sharpness of it "
            "would not repeat; turn its randomness off (functional dropout without training=self.training?)"
        )


def _check_buffers(now: dict[str, Tensor], before: dict[str, Tensor]) -> None:
    """Refuse a model that remembers what it was evaluated on."""
    for name, value in before.items():
        if name not in now or not torch.equal(now[name].nan_to_num(), value.nan_to_num()):
            raise ValueError(
                f"the model changes its buffer {name!r} in evaluation mode: its loss would depend on what was "
                "evaluated before; change it only where self.training"
            )


def _overwritten(used: Batch, fresh: Batch) -> bool:
    """Whether model or loss have written into their inputs."""
    return not all(torch.equal(*parts) for parts in zip(used, fresh, strict=True))


def _unit(evaluator: Evaluator, wanted: int | None) -> int:
    """The batch whose samples see each other."""
    if wanted is None and not evaluator.flat.takes_statistics:
        raise ValueError(
            "coupled=True needs to know which samples see each other: pass batch_size=, or the DataLoader whose "
            "batches they are"
        )
    samples = evaluator.samples
    size = min(wanted or BATCH_NORM_BATCH, samples)
    if samples % size == 1 or size == 1:
        what, lacks = "coupled=True", "sees no other"
        if evaluator.flat.takes_statistics:
            what, lacks = "batch_norm='batch'", "has no statistics"
        raise ValueError(
            f"{what} with {samples} samples in batches of {size} leaves a batch of one sample, which {lacks}: choose "
            "another batch_size"
        )
    return size


def _micro_batch(evaluator: Evaluator, wanted: int | None, bytes_each: int) -> int:
    """A batch that decides about speed and memory alone."""
    samples = evaluator.samples
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
