"""Data that are a ``DataLoader``: read in the order of its data set, all of it, with its workers and its collation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

from lbgap.problem.sources.base import Source
from lbgap.problem.sources.iterables import Repeated, Stateful

REMEDY = "pass shuffle=False, or loader.dataset"


class Loaded(Source):
    """A loader of torch's own, of which a copy is read: what the user iterates over is not touched."""

    def __init__(self, loader: DataLoader[Any], order: Sequence[int] | None, size: int | None) -> None:
        """Remember it; nothing is read.

        Args:
            loader: The user's.
            order: Indices in the order in which they are read; None for all, or for an iterable data set.
            size: How many samples there are, if that is known.
        """
        super().__init__()
        self._loader, self._order, self.size = loader, order, size
        batches = loader.batch_sampler
        self.batch_size = batches.batch_size if isinstance(batches, BatchSampler) else loader.batch_size
        self.name = type(loader).__name__

    def open(self) -> Iterator[Any]:
        """Its batches."""
        return iter(self._copy(self._loader.num_workers))

    def open_for_first(self) -> Iterator[Any]:
        """Its batches, without starting its workers where they only share the work."""
        iterable = isinstance(self._loader.dataset, IterableDataset)
        return iter(self._copy(self._loader.num_workers if iterable else 0))

    def _copy(self, workers: int) -> DataLoader[Any]:
        loader = self._loader
        options: dict[str, Any] = {}
        if workers:
            options = {
                "num_workers": workers,
                "prefetch_factor": loader.prefetch_factor,
                "multiprocessing_context": loader.multiprocessing_context,
                "worker_init_fn": loader.worker_init_fn,
                "timeout": loader.timeout,
            }
        return DataLoader(
            loader.dataset,
            batch_size=self.batch_size,
            sampler=None if self._order is None else list(self._order),
            collate_fn=loader.collate_fn,
            **options,
        )


def from_loader(loader: DataLoader[Any]) -> Source:
    """Find out in which order a loader can be read.

    Raises:
        TypeError: Its data set has no length.
        ValueError: It repeats samples, weighs them, or orders them in a way of its own.
    """
    kind, notes = type(loader), list[str]()
    stateful = hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")
    own = kind.__iter__ is not DataLoader.__iter__ or kind._get_iterator is not DataLoader._get_iterator
    order, size, batches = None, None, loader.batch_sampler
    if isinstance(loader.dataset, IterableDataset):
        if loader.drop_last:
            notes.append("the loader drops samples at the end: all are read")
    else:
        if batches is not None and type(batches) is not BatchSampler:
            raise ValueError(
                f"expected a loader with the standard BatchSampler, got {type(batches).__name__}, which makes batches "
                f"of its own: {REMEDY}, or a function that returns an iterator of batches"
            )
        order, size = _order(loader, notes)
        if isinstance(batches, BatchSampler) and batches.drop_last and size % batches.batch_size:
            notes.append(f"the loader drops {size % batches.batch_size} samples at the end: all are read")
        size = None if batches is None else size
    if own and not (stateful and notes):
        if notes:
            raise ValueError(
                f"expected a loader that reads all samples in order, got a {kind.__name__} with an iterator of its "
                f"own, where {notes[0].split(':')[0]}: {REMEDY}"
            )
        source: Source = (
            Stateful(loader, generator=loader.generator, size=size)
            if stateful
            else Repeated(loader, generator=loader.generator, size=size)
        )
        source.batch_size = batches.batch_size if isinstance(batches, BatchSampler) else loader.batch_size
        return source
    loaded = Loaded(loader, order, size)
    loaded.notes += notes
    return loaded


def _order(loader: DataLoader[Any], notes: list[str]) -> tuple[Sequence[int] | None, int]:
    """The indices that a loader of a map-style data set is read in, None for all; and how many."""
    batches = loader.batch_sampler
    sampler: object = batches.sampler if isinstance(batches, BatchSampler) else loader.sampler
    dataset: Any = loader.dataset
    if not hasattr(dataset, "__len__"):
        raise TypeError(
            f"expected a Dataset with a length, got {type(dataset).__name__} without: define __len__, or pass a "
            "function that returns an iterator of batches"
        )
    samples, kind = len(dataset), type(sampler).__name__
    if isinstance(sampler, SubsetRandomSampler):
        notes.append("the loader shuffles a subset: its indices are read in ascending order")
        order = sorted(int(index) for index in sampler.indices)
        return order, len(order)
    if isinstance(sampler, RandomSampler):
        if sampler.replacement or sampler.num_samples != samples:
            drawn = "with replacement" if sampler.replacement else f"{sampler.num_samples} of {samples}"
            raise ValueError(
                f"expected a loader that reads each sample once, got a {kind} that draws {drawn}: pass loader.dataset, "
                "or a Subset of it"
            )
        notes.append("the loader shuffles: its data set is read in order")
        return None, samples
    if isinstance(sampler, WeightedRandomSampler):
        raise ValueError(
            f"expected a loader that reads each sample once, got a {kind}, which draws by weights: pass "
            "loader.dataset, and give the weights to the loss"
        )
    if isinstance(sampler, DistributedSampler):
        raise ValueError(
            f"expected a loader that reads all samples, got a {kind}, which gives each process a share: pass "
            "loader.dataset, or a Subset of it"
        )
    if type(sampler) is not SequentialSampler:
        raise ValueError(
            f"expected a loader that reads in order, got a {kind}: results would not repeat: {REMEDY}, or a Subset"
        )
    if len(sampler) != samples:
        raise ValueError(
            f"expected a loader that reads all {samples} samples, got a sampler of {len(sampler)}: pass "
            "loader.dataset, or a Subset of it"
        )
    return None, samples
