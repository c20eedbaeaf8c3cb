"""What a user passes as data, as samples in a fixed order that every pass reads alike."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

import torch

from lbgap.problem.batch import Batch
from lbgap.problem.call import Call
from lbgap.problem.gather import Gathered
from lbgap.problem.pieces import Pieces
from lbgap.problem.sound import sound, without_text
from lbgap.problem.sources.base import Source
from lbgap.problem.sources.take import take
from lbgap.problem.stored import Samples, Table
from lbgap.problem.stream import Stream
from lbgap.problem.trees import Tree
from lbgap.system.memory import free_host_bytes

SHARE = 2  # data take at most a half of the free memory: training and measures need some, too
DREW = "random numbers are drawn while the data are read: they are kept as one reading from a fixed seed found them"

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
        return kept.samples(own=source.has_borders)
    if streams:
        return Stream(source, taken, notes)
    why, remedy = "an iterator can be read only once", "pass a function that returns a new iterator at each call"
    if source.repeats:
        why, remedy = "all of them are needed at once", "pass fewer samples"
    raise MemoryError(f"the data do not fit into memory ({limit / 2**20:.0f} MiB are free), and {why}: {remedy}")


def units(samples: Samples, size: int | None) -> tuple[Samples, int | None]:
    """The batches whose samples see each other: those that the user made.

    Args:
        samples: All.
        size: That of the user's loader; None if there is none.

    Returns:
        The samples, in their own borders where these are not those of one size; and that size.
    """
    borders = samples.borders
    if not borders or not samples.joins:
        return samples, size
    if all(one == borders[0] for one in borders[:-1]) and borders[-1] <= borders[0]:
        return samples, borders[0]
    if isinstance(samples, Stream):
        return samples.in_own_borders(), size
    assert isinstance(samples, Table)
    ends = itertools.accumulate(borders, initial=0)
    pieces = [samples.pool.rows(slice(*border)) for border in itertools.pairwise(ends)]
    return Pieces(pieces, pieces[0].tensors()[0].device), size


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
        _check_again(source)
    if not same or reading.drew:
        notes.append(FROZEN if not same else DREW)
    return kept


def _check_again(source: Source) -> None:
    """Refuse what can be iterated over once and does not say so: its first batch went to whoever looked at it."""
    again = source.read()
    with closing(again):
        if next(again, None) is None:
            raise ValueError(
                f"the data ({source.name}) are used up by one reading, of which the first batch was taken already: "
                "pass a function that makes a new iterator of batches at each call, or the iterator itself"
            )


__all__ = ["FROZEN", "Ready", "Source", "budget", "hold", "take", "units"]
