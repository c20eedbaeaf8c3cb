"""The data of a user, as an objective evaluates them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lbgap.problem.call import Call, CallFunction, choose
from lbgap.problem.heads import check_shift
from lbgap.problem.hold import Ready, hold, take
from lbgap.problem.loss import Loss
from lbgap.problem.stored import Samples, Table


def read(
    model: nn.Module,
    data: Any,
    loss: Loss,
    call: CallFunction | None,
    notes: list[str],
    place: torch.device | None,
) -> tuple[Samples, Call, int | None]:
    """All samples, how they enter the model, and the batch size of their loader.

    Args:
        model: The user's.
        data: The user's.
        loss: What the targets are for.
        call: The user's.
        notes: Takes sentences on what is done otherwise than asked.
        place: Where tensors in memory have to be; None for anywhere.

    Raises:
        TypeError: The data are of no kind that is known.
        ValueError: They do not fit the model, their order is not fixed, or they are elsewhere.
        MemoryError: They do not fit into memory, and cannot be read again.
    """
    if isinstance(data, Ready):
        return Table(data.batch, place or torch.device("cpu")), data.call, None
    source = take(data)
    chosen = choose(model, loss, source.first(), call)
    check_shift(model, loss, chosen.call.targets)
    notes += [*source.notes, *chosen.notes]
    samples = hold(source, chosen.call.split, notes)
    if place is not None and source.in_memory is not None and source.in_memory != place:
        raise ValueError(
            f"the model is on {place} and the data on {source.in_memory}: move one of them, or pass device="
        )
    return samples, chosen.call, source.batch_size
