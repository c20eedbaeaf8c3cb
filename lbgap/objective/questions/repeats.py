"""Same inputs, same outputs: nothing random, and nothing that a pass leaves behind."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lbgap.objective.questions.case import YES, Case

TOLERANCE = 1e-5  # of the largest output: what kernels that do not repeat their bits make


def ask(case: Case) -> str:
    """Ask it of the few samples, at the minimizer and some way off.

    Raises:
        ValueError: An output differs from one pass to the next, or a pass writes into a parameter or a buffer.
    """
    _check_norms(case)
    flat, few = case.evaluator.flat, case.evaluator.few
    buffers = {name: value.clone() for name, value in flat.module.named_buffers() if value.layout == torch.strided}
    frozen = {name: _sum(value) for name, value in flat.module.named_parameters() if not value.requires_grad}

    def check_written(versions: list[int], theta: Tensor) -> None:
        _check_moving(case, versions, theta)
        _check_buffers(dict(flat.module.named_buffers()), buffers)
        _check_frozen(dict(flat.module.named_parameters()), frozen)

    versions = [parameter._version for parameter in flat.moving]
    again = case.output(few().inputs)
    check_written(versions, case.centre)
    _check_same(case.first, again)
    with case.elsewhere():
        versions = [parameter._version for parameter in flat.moving]
        once, again = (case.output(few().inputs) for _ in range(2))
        check_written(versions, case.displaced)
        _check_same(once, again)
    return YES


def ask_again(case: Case) -> None:
    """Ask once more after all other questions, which a counter or a growing cache has counted.

    Raises:
        ValueError: The few samples have another output than in the first pass.
    """
    output = case.output(case.evaluator.few().inputs)
    if not _same(case.first, output):
        raise ValueError(
            "the model gives other outputs for the same inputs after some passes: it keeps something of what was "
            "evaluated before (a counter, a cache?); make its output depend on its inputs and parameters alone"
        )


def _check_norms(case: Case) -> None:
    """Refuse embeddings that scale their rows down in a pass, also where the few samples have no such row."""
    flat = case.evaluator.flat
    moving = {id(parameter): name for name, parameter in zip(flat.names, flat.moving, strict=True)}
    for module in flat.module.modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None:
            name = moving.get(id(module.weight))
            if name is not None:
                raise ValueError(
                    f"{type(module).__name__}(max_norm={module.max_norm}) writes into its parameter {name!r} when it "
                    "runs, so that its gradient is not that of the loss: freeze it, or set max_norm=None on a copy of "
                    "the model whose rows have that norm"
                )


def _check_moving(case: Case, versions: list[int], theta: Tensor) -> None:
    """Refuse a model that writes into parameters that are to move, be it the value that they have."""
    flat = case.evaluator.flat
    for name, parameter, before, part in zip(flat.names, flat.moving, versions, flat.parts(theta), strict=True):
        # Writing through .data counts no version, and there values tell.
        if parameter._version != before or not _equal(parameter, part):
            raise ValueError(
                f"the model writes into its parameter {name!r} when it runs, so that its gradient is not that of the "
                "loss: constrain it where it is trained, not in forward, or compute with a copy of it"
            )


def _check_same(once: Tensor, again: Tensor) -> None:
    if not _same(once, again):
        raise ValueError(
            "the model gives different outputs for the same inputs in evaluation mode: a sharpness of it "
            "would not repeat; turn its randomness off (functional dropout without training=self.training?)"
        )


def _same(once: Tensor, again: Tensor) -> bool:
    """Whether two outputs are equal but for kernels that do not repeat their bits."""
    if once.shape != again.shape:
        return False
    if torch.equal(once, again):
        return True
    size = float(once.detach().abs().nan_to_num(0, 0, 0).max()) if once.numel() else 0.0
    return torch.allclose(once, again, rtol=TOLERANCE, atol=0.1 * TOLERANCE * size, equal_nan=True)


def _check_buffers(now: dict[str, Tensor], before: dict[str, Tensor]) -> None:
    """Refuse a model that remembers what it was evaluated on."""
    for name, value in before.items():
        if name not in now or not _equal(now[name], value):
            raise ValueError(
                f"the model changes its buffer {name!r} in evaluation mode: its loss would depend on what was "
                "evaluated before; change it only where self.training"
            )


def _check_frozen(now: dict[str, nn.Parameter], before: dict[str, Tensor]) -> None:
    """Refuse a model that changes what is to rest; a sum tells that without a copy."""
    for name, value in before.items():
        if name not in now or not torch.equal(_sum(now[name]), value):
            raise ValueError(
                f"the model changes its frozen parameter {name!r} in evaluation mode: its loss would depend on what "
                "was evaluated before; change it only where self.training"
            )


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same, be it NaN."""
    return torch.equal(one, other) or torch.equal(one.nan_to_num(), other.nan_to_num())


def _sum(value: Tensor) -> Tensor:
    """A number that changes with a tensor's values."""
    value = value.detach()
    return value.sum(dtype=torch.float64).nan_to_num() if value.is_floating_point() else value.sum()
