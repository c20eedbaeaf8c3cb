"""Same inputs, same outputs: nothing random, and nothing that a pass leaves behind."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lbgap.objective.questions.case import YES, Case
from lbgap.objective.questions.kept import Kept, check_again, same

MAX_DRAWS = 60  # passes of a model that draws random numbers: what it does with few of them it does seldom


def ask(case: Case) -> str:
    """Ask it of the few samples, at the minimizer and some way off.

    Raises:
        ValueError: An output differs from one pass to the next, or a pass writes into a parameter or a buffer.
    """
    _check_norms(case)
    kept, before = Kept(case), _drawn(case)
    first, again = case.seen(case.first), _seen(case)
    kept.check(case.centre)
    _check_same(first, again)
    if not torch.equal(before, _drawn(case)):
        for _ in range(MAX_DRAWS):
            _check_same(again, _seen(case))
    if case.fails_elsewhere():
        return case.fails_elsewhere()
    with case.elsewhere():
        kept = Kept(case)
        once, again = (_seen(case) for _ in range(2))
        kept.check(case.displaced)
        _check_same(once, again)
    return YES


def ask_again(case: Case) -> None:
    """Ask once more after all other questions, which a counter or a growing cache has counted.

    Raises:
        ValueError: The few samples have another output than in the first pass.
    """
    check_again(case.seen(case.first), _seen(case))


def _seen(case: Case) -> list[Tensor]:
    """What the few samples give."""
    return case.seen(case.output(case.evaluator.few().inputs))


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


def _drawn(case: Case) -> Tensor:
    """The state of the generator that the model would draw from."""
    device = case.evaluator.device
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _check_same(once: Sequence[Tensor], again: Sequence[Tensor]) -> None:
    if not same(once, again):
        raise ValueError(
            "the model gives different outputs for the same inputs in evaluation mode: a sharpness of it "
            "would not repeat; turn its randomness off (functional dropout without training=self.training?)"
        )
