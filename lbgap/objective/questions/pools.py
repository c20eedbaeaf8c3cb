"""Which samples are cut into pieces: drawn from all, and targets that a loss may treat in a way of their own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lbgap.problem import trees
from lbgap.problem.batch import Batch
from lbgap.problem.call import LABELS
from lbgap.problem.stored import Samples
from lbgap.problem.trees import Tree

SMALLEST = 4
ENTRIES = 2**22  # of the outputs of a pool
ROWS, COLUMNS = 2**16, 256  # of the targets that are searched
COMPARED = 2**18  # entries of the inputs that are searched
GROUP = 4  # samples of a group
SWEPT = 2**24  # entries up to here are swept for the smallest and the largest
SEARCHED = 4  # tensors of the inputs
KINDS = 256  # classes of which each has a sample in the mixture


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
        Indices, int64 on the CPU, in random order, each of them once.
    """
    size = max(SMALLEST, min(wanted, ENTRIES // max(1, entries)))
    generator = torch.Generator().manual_seed(0)
    if samples > 1000 * size:  # too many to shuffle
        chosen: Tensor = torch.randint(samples, (size,), generator=generator, device="cpu").unique()
        return chosen
    return torch.randperm(samples, generator=generator, device="cpu")[:size]


def extremes(inputs: Tree) -> Tensor:
    """Samples that stand out: the largest, the smallest, those with the most and with the fewest zeros.

    A padded sequence that is longer than all others, say, which alone decides what is done with a batch.

    Args:
        inputs: Of all samples, ``(n, ...)``, or a tree of such.

    Returns:
        Indices, ``(samples,)`` int64 on the CPU, each once.
    """
    if not isinstance(inputs, Tensor):
        each: Tensor = torch.cat([extremes(part) for part in trees.tensors(inputs)[:SEARCHED]]).unique()
        return each
    part, rows = _searched(_flat(inputs))
    if not part.numel():
        return rows[:0]
    step = math.ceil(part.numel() / COMPARED)
    part, rows = part[::step], rows[::step]
    sizes, zeros = part.abs().double().mean(1), (part == 0).double().mean(1)
    chosen = torch.stack([sizes.argmax(), sizes.argmin(), zeros.argmax(), zeros.argmin()])
    found: Tensor = rows[chosen.cpu()].unique()
    return found


def column(targets: Tree) -> Tensor | None:
    """Of targets in a tree those that a loss most likely treats by their values: labels, or else the last integers."""
    if isinstance(targets, Tensor):
        return targets
    named = targets if isinstance(targets, dict) else {}
    labels: Tensor | None = next((named[name] for name in LABELS if isinstance(named.get(name), Tensor)), None)
    if labels is not None:
        return labels
    integers = [part for part in trees.tensors(targets) if not (part.is_floating_point() or part.is_complex())]
    return integers[-1] if integers else None


def unlike(data: Samples) -> list[Batch]:
    """Batches that are not like the pool, where batches cannot be joined: the last, the shortest, and by their targets.

    Args:
        data: All samples.
    """
    if data.table is not None or data.is_streamed:
        return []
    batches = [batch for batch in data.chunks() if batch.cuttable and batch.size > 1]
    keys: list[Callable[[Batch], float]] = [
        lambda batch: sum(part.numel() for part in batch.tensors()) / batch.size,
        lambda batch: _lowest(batch.targets, torch.Tensor.amin),
        lambda batch: -_lowest(batch.targets, torch.Tensor.amax),
    ]
    known, found = {_place(data.pool)}, []
    for batch in [*batches[-1:], *(min(batches, key=key) for key in keys if batches)]:
        if _place(batch) not in known:
            known.add(_place(batch))
            found.append(batch)
    return found


def _place(batch: Batch) -> int:
    """What tells a batch from others: where its first tensor lies."""
    return batch.tensors()[0].data_ptr()


def _lowest(targets: Tree, end: Callable[[Tensor], Tensor]) -> float:
    """The smallest, or the largest, of the targets that a loss most likely treats by their values."""
    chosen = column(targets)
    usable = chosen is not None and chosen.numel() and not chosen.is_complex()
    return float(end(chosen.double())) if chosen is not None and usable else 0.0


def groups(targets: Tree) -> list[Group]:
    """Samples with the smallest, the largest, the most frequent and the rarest target, and zero.

    Args:
        targets: Of all samples, ``(n, ...)``, or a tree of such, of which one :func:`column` is taken.

    Returns:
        Groups for each of these values, of at most four samples: in which it has the largest share, and where a sample
        has several targets, the smallest.
    """
    chosen = column(targets)
    if chosen is None:
        return []
    flat = _flat(chosen)
    part, rows = _searched(flat)
    if not part.numel():
        return []
    values = [*(flat if flat.numel() <= SWEPT else part).aminmax()]
    if part.is_floating_point():
        values.append(torch.zeros_like(values[0]))
    else:
        found, counts = part.reshape(-1)[:: math.ceil(part.numel() / ROWS)].unique(return_counts=True)
        values += [found[counts.argmax()], found[counts.argmin()]]
    made: dict[str, Group] = {}
    for value in values:
        share = (part == value).double().mean(1)
        word = f"{value.item():g}" if part.is_floating_point() else str(int(value))
        if share.max() > 0:
            made.setdefault(word, Group(word, rows[(share == share.max()).nonzero()[:GROUP, 0].cpu()]))
            if part.shape[1] > 1 and share.min() < share.max():
                least = rows[(share == share.min()).nonzero()[:GROUP, 0].cpu()]
                made.setdefault(f"least often {word}", Group(f"least often {word}", least))
        elif flat.numel() <= SWEPT:  # it is rare, or zero and nowhere
            chosen = (flat == value).any(1).nonzero()[:GROUP, 0].cpu()
            if len(chosen):
                made.setdefault(word, Group(word, chosen))
    return list(made.values())


def mixture(targets: Tree, wanted: int) -> Tensor:
    """One sample of each class where targets are one class index each: ``(samples,)`` int64, on the CPU.

    Args:
        targets: Of all samples, ``(n, ...)``.
        wanted: How many at most; of more classes some, spread evenly.
    """
    targets = column(targets)
    if targets is None or targets.dim() != 1 or targets.is_floating_point() or targets.is_complex():
        return torch.empty(0, dtype=torch.int64, device="cpu")
    part, rows = _searched(_flat(targets))
    found, inverse = part[:, 0].cpu().unique(return_inverse=True)
    first = torch.zeros(len(found), dtype=torch.int64, device="cpu")
    first[inverse] = torch.arange(len(inverse), device="cpu")
    size = min(wanted, len(found))
    return rows[first[torch.arange(size, device="cpu") * len(found) // max(1, size)]]


def _flat(targets: Tensor) -> Tensor:
    """Targets as real numbers, ``(n, entries)``."""
    targets = torch.view_as_real(targets) if targets.is_complex() else targets
    targets = targets.view(torch.uint8) if targets.dtype == torch.bool else targets
    return targets.flatten(1) if targets.dim() > 1 else targets[:, None]


def _searched(flat: Tensor) -> tuple[Tensor, Tensor]:
    """Some of the targets, ``(samples, entries)``, spread evenly; and the samples that they are of, on the CPU."""
    columns = flat[:, :: max(1, math.ceil(flat.shape[1] / COLUMNS))]
    step = max(math.ceil(len(flat) / ROWS), math.ceil(columns.numel() / (16 * ROWS)), 1)
    return columns[::step], torch.arange(0, len(flat), step, device="cpu")
