"""Which remedies the large-batch training is repeated with, and how their settings follow from network and data."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

import torch

from lbgap.problem.samples import Data
from lbgap.training.batches import split_batches
from lbgap.training.remedies.base import Remedy, Role, Task
from lbgap.training.remedies.choose import parse_remedy
from lbgap.training.remedies.local import LocalSGD

REMEDIES = (
    "augment:shift=0.1{shape}",
    "conservative",
    "batches:{turn}={large}",
    "grow:every={stage},limit={large}",
    "ghost:size={small}",
    "sqrt-rate:reference={small}",
    "linear-rate:reference={small}",
    "swa",
    "smoothout:radius=0.01",
    "robust:epsilon=1e-3",
    "adversarial:epsilon=0.1",
    "stability",
    "sam",
    "asam",
    "local-sgd:workers={workers}",
)
"""Short forms with gaps: ``{small}`` and ``{large}`` are both batch sizes, ``{workers}`` how often one goes into the
other; ``{turn}`` is the epoch after half of the updates in small batches; ``{stage}`` the epochs of each size when the
batch doubles from small to large; ``{shape}`` names the shape of flat samples. The rest are defaults, but for the sizes
of a shift, a radius and an epsilon, which were chosen once for MNIST-1D; none was tuned."""
# How flat samples are to be read; those of other data, such as the features of TIMIT, have no shape to shift.
SHAPES = {"mnist1d": "40", "digits": "1x8x8", "mnist": "1x28x28"}
EXAMPLE = {"small": "2", "large": "4", "workers": "2", "turn": "2", "stage": "1", "shape": ""}


def name_of(form: str) -> str:
    """The name of the remedy of a short form."""
    return form.partition(":")[0].strip()


def checked(forms: Sequence[str]) -> tuple[str, ...]:
    """Refuse a list of remedies that cannot be meant.

    Args:
        forms: Short forms, perhaps with gaps as in :data:`REMEDIES`.

    Returns:
        The same.

    Raises:
        TypeError: It is no list of strings, or a setting is of the wrong kind.
        ValueError: A name, a setting or a gap is not known, a value is out of range, or a remedy comes twice.
    """
    if isinstance(forms, str) or not all(isinstance(form, str) for form in forms):
        raise TypeError(f"remedies must be short forms such as ['swa', 'ghost:size=32'], got {forms!r}")
    for form in forms:
        gaps = [gap for _, gap, _, _ in _pieces(form) if gap is not None and gap not in EXAMPLE]
        if gaps:
            known = ", ".join(f"{{{gap}}}" for gap in EXAMPLE)
            raise ValueError(f"a remedy may leave the gaps {known}, got {{{gaps[0]}}} in {form!r}")
        parse_remedy(form.format_map(EXAMPLE))
    names = [name_of(form) for form in forms]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"each remedy may be named once, got {name} {names.count(name)} times")
    return tuple(forms)


def _pieces(form: str) -> list[tuple[str, str | None, str | None, str | None]]:
    try:
        return list(string.Formatter().parse(form))
    except ValueError as error:
        raise ValueError(f"{form!r} is no short form of a remedy: {error}") from None


def filled(form: str, data: Data, small: int, large: int, updates: int) -> str:
    """Fill the gaps of a short form.

    Args:
        form: As in :data:`REMEDIES`.
        data: Training and test samples.
        small: Samples in a small batch.
        large: Samples in a large one.
        updates: Of the training.

    Returns:
        The short form, for this training.
    """
    samples = len(data.train.inputs)
    sizes = [min(small * 2**times, large) for times in range(math.ceil(math.log2(large / small)) + 1)]
    shape = SHAPES.get(data.name) if len(data.features) == 1 else None
    return form.format_map(
        {
            "small": small,
            "large": large,
            "workers": max(2, round(large / small)),
            "turn": 1 + max(1, round(updates / 2 / batches_in(samples, small))),
            "stage": max(1, round(updates / sum(batches_in(samples, size) for size in sizes))),
            "shape": f",shape={shape}" if shape else "",
        }
    )


def lacking(remedy: Remedy, data: Data, batch_norm: bool) -> str | None:
    """Say what a remedy needs that network or data lack; None if nothing."""
    if remedy.name == "ghost" and not batch_norm:
        return "the network has no batch-norm"
    if remedy.name == "augment" and len(data.features) == 1 and data.name not in SHAPES:
        return "the samples are flat and have no shape to shift"
    return None


def begins_small(remedy: Remedy) -> bool:
    """Whether its training begins with the small batch: it changes the batch, or is told that of one of its workers."""
    return Role.SIZE in remedy.roles or isinstance(remedy, LocalSGD)


def at_once(remedy: Remedy) -> int:
    """How many batches are taken at a time, each by a worker."""
    return remedy.workers if isinstance(remedy, LocalSGD) else 1


def epochs_within(remedy: Remedy, data: Data, batch: int, updates: int) -> int:
    """How many epochs come nearest to so many updates (of each worker, where there are several), one at least.

    Args:
        remedy: Which may change the batch from epoch to epoch.
        data: Training and test samples.
        batch: Samples in the first batch.
        updates: Wanted.
    """
    samples, taken, epoch = len(data.train.inputs), 0, 0
    updates *= at_once(remedy)
    # All that a batch size may depend on.
    task = cast(Task, SimpleNamespace(train=data.train, batch_size=batch, epoch=1))
    while taken < updates:
        task.epoch = epoch + 1
        more = batches_in(samples, remedy.batch_size(task))
        if epoch and taken + more - updates > updates - taken:
            break
        taken, epoch = taken + more, epoch + 1
    return epoch


def batches_in(samples: int, size: int) -> int:
    """How many batches, that is updates, an epoch has."""
    return len(split_batches(torch.empty(samples, dtype=torch.float32, device="cpu"), size))
