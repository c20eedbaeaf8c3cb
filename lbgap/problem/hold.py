"""What a user passes as data, as samples in a fixed order that every pass reads alike."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

import torch

from lbgap.problem.batch import Batch
from lbgap.problem.call import Call
from lbgap.problem.gather import Gathered
from lbgap.problem.sound import sound, without_text
from lbgap.problem.sources.base import Source
from lbgap.problem.sources.take import take
from lbgap.problem.stored import Samples, Table
from lbgap.problem.stream import Stream
from lbgap.problem.trees import Tree
from lbgap.system.memory import free_host_bytes

SHARE = 2  # data take at most a half of the free memory: training and measures need some, too
FROZEN = "the data draw at random (augmentation, masking): they are kept as one reading found them"


@dataclass(frozen=True)
class Ready:
    """A batch that has been taken apart already, and how it enters the model.

    Attributes:
        batch: Samples.
        call: What took it apart.
    """

    batch: Batch
    call: Call


def budget() -> float:
    """Bytes that data may take in memory."""
    free = free_host_bytes()
    return float("inf") if free is None else free // SHARE


def hold(source: Source, split: Callable[[Tree], Batch], notes: list[str], *, streams: bool = True) -> Samples:
    """Read all samples, into memory where they fit; else they are read again in each pass.

    Args:
        source: What the user has.
        split: Takes a batch apart into inputs and targets.
        notes: Takes sentences on what was done.
        streams: Whether they may be read again and again.

    Raises:
        TypeError: Something stands in a batch that is no tensor or number.
        ValueError: There are no samples, or their lengths or devices disagree, or a value is NaN or infinite.
        MemoryError: They do not fit, and cannot be read again.
    """

    def taken(tree: Tree) -> Batch:
        batch = split(tree)
        if isinstance(batch.targets, dict) and (kept := without_text(batch.targets, notes)) is not batch.targets:
            return Batch(batch.inputs, kept)
        return batch

    if source.is_whole:
        batch = sound(taken(source.first()))
        return Table(batch, batch.tensors()[0].device)
    streams = streams and source.repeats
    limit = budget() * (1 if streams else SHARE)
    kept = _gathered(source, taken, notes, limit)
    if kept is not None:
        return kept.samples()
    if streams:
        return Stream(source, taken, notes)
    why, remedy = "an iterator can be read only once", "pass a function that returns a new iterator at each call"
    if source.repeats:
        why, remedy = "all of them are needed at once", "pass fewer samples"
    raise MemoryError(f"the data do not fit into memory ({limit / 2**20:.0f} MiB are free), and {why}: {remedy}")


def _gathered(source: Source, split: Callable[[Tree], Batch], notes: list[str], limit: float) -> Gathered | None:
    """All samples in memory; None where they do not fit."""
    first = split(source.first())
    if source.size is not None and source.repeats:
        each = first.nbytes / max(1, first.size)
        if each * source.size > limit:
            return None
    kept, start, same = Gathered(source.size), 0, True
    reading = source.read()
    with closing(reading), torch.no_grad():
        for number, tree in enumerate(reading):
            if number == 0 and source.repeats:
                same = source.is_first(tree)
            batch = sound(split(tree), f"batch {number}", start)
            kept.add(batch)
            start += batch.size
            if kept.bytes > limit:
                return None
    if not same:
        notes.append(FROZEN)
    return kept


__all__ = ["FROZEN", "Ready", "Source", "budget", "hold", "take"]
