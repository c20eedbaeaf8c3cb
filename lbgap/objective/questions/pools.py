"""Which samples are cut into pieces: drawn from all, and targets that a loss may treat in a way of their own."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

SMALLEST = 4
ENTRIES = 2**22  # of the outputs of a pool
ROWS, COLUMNS = 2**16, 256  # of the targets that are searched
GROUP = 4  # samples of a group
KINDS = 256  # values of which each has a sample in the mixture


class Group(NamedTuple):
    """Samples whose targets are one value, or mostly.

    Attributes:
        value: It, in words.
        rows: Their indices, ``(samples,)`` int64 on the CPU.
    """

    value: str
    rows: Tensor


def draw(wanted: int, samples: int, entries: int) -> Tensor:
    """Draw samples from all.

    Args:
        wanted: How many, if their outputs are not too large.
        samples: How many there are.
        entries: Numbers in the output for one sample.

    Returns:
        Indices, int64 on the CPU, in random order; of fewer than four samples all, several times.
    """
    size = max(SMALLEST, min(wanted, ENTRIES // max(1, entries)))
    generator = torch.Generator().manual_seed(0)
    if samples > 1000 * size:  # too many to shuffle
        return torch.randint(samples, (size,), generator=generator, device="cpu")
    order = torch.randperm(samples, generator=generator, device="cpu")[:size]
    return order.repeat(-(-SMALLEST // len(order)))


def groups(targets: Tensor) -> list[Group]:
    """Samples with the smallest, the largest, the most frequent and the rarest target, and zero.

    Args:
        targets: Of all samples, ``(n, ...)``.

    Returns:
        A group for each of these values, of at most four samples in which it has the largest share.
    """
    part, rows = _searched(targets)
    if not part.numel():
        return []
    values = [part.min(), part.max()]
    if part.is_floating_point():
        values.append(torch.zeros_like(values[0]))
    else:
        found, counts = part.reshape(-1)[:: math.ceil(part.numel() / ROWS)].unique(return_counts=True)
        values += [found[counts.argmax()], found[counts.argmin()]]
    made: dict[str, Group] = {}
    for value in values:
        share = (part == value).double().mean(1)
        if (largest := share.max()) > 0:
            chosen = (share == largest).nonzero()[:GROUP, 0].cpu()
            word = f"{value.item():g}" if part.is_floating_point() else str(value.item())
            made.setdefault(word, Group(word, rows[chosen]))
    return list(made.values())


def mixture(targets: Tensor) -> Tensor:
    """One sample of each class, of up to 256, where targets are one class index each: ``(samples,)`` int64, on the CPU.

    Args:
        targets: Of all samples, ``(n, ...)``.
    """
    if targets.dim() != 1 or targets.is_floating_point() or targets.is_complex():
        return torch.empty(0, dtype=torch.int64, device="cpu")
    part, rows = _searched(targets)
    found, inverse = part[:, 0].cpu().unique(return_inverse=True)
    first = torch.zeros(len(found), dtype=torch.int64, device="cpu")
    first[inverse] = torch.arange(len(inverse), device="cpu")
    return rows[first[:KINDS]]


def _searched(targets: Tensor) -> tuple[Tensor, Tensor]:
    """Some of the targets, ``(samples, entries)``, spread evenly; and the samples that they are of, on the CPU."""
    if targets.is_complex():
        targets = torch.view_as_real(targets)
    flat = targets.reshape(len(targets), -1)
    columns = flat[:, :: max(1, math.ceil(flat.shape[1] / COLUMNS))]
    step = math.ceil(len(flat) * max(1, columns.shape[1]) / (16 * ROWS)) if columns.shape[1] > 1 else 1
    step = max(step, math.ceil(len(flat) / ROWS))
    rows = torch.arange(0, len(flat), step, device="cpu")
    part = columns[::step]
    return part.long() if part.dtype == torch.bool else part, rows
