"""What the first pass over samples that do not fit into memory keeps of them."""

from __future__ import annotations

import zlib
from typing import Any

import torch
from torch import Tensor

from lbgap.problem.batch import Batch
from lbgap.problem.gather import Gathered, form
from lbgap.problem.trees import Tree
from lbgap.system.files import bytes_of

TARGET_BYTES = 32 * 2**20
POOL_SAMPLES, POOL_BYTES = 1024, 64 * 2**20
SPREAD = 16  # later batches that have a share in the pool
BLOCKS, BLOCK_BYTES = 32, 2048  # of each tensor, that its checksum is of


def checksum(batch: Batch) -> int:
    """A number that differs between batches that differ in shape, type or one of some blocks of their bytes."""
    total = batch.size
    for part in batch.stored():
        total = zlib.crc32(f"{part.dtype} {tuple(part.shape)}".encode(), total)
        flat = bytes_of(part).numpy()
        if flat.size <= BLOCKS * BLOCK_BYTES:
            total = zlib.crc32(flat.data, total)
            continue
        last = flat.size - BLOCK_BYTES
        for block in range(BLOCKS):
            start = last * block // (BLOCKS - 1)
            total = zlib.crc32(flat[start : start + BLOCK_BYTES].data, total)
    return total


class Pool:
    """Some samples of the first batch, and of batches that are spread over all that follow."""

    def __init__(self) -> None:
        """Begin with none."""
        self._first: Batch | None = None
        self._later: list[Batch] = []
        self._stride, self._seen, self._form = 1, 0, None

    def add(self, batch: Batch) -> None:
        """Take note of the next batch."""
        self._seen += 1
        if self._first is None:
            self._first = _some(batch, POOL_SAMPLES // 2, POOL_BYTES // 2)
            self._form = form(self._first)
        elif self._seen % self._stride == 0 and batch.cuttable and form(batch) == self._form:
            if len(self._later) == SPREAD:
                self._later = self._later[1::2]
                self._stride *= 2
                if self._seen % self._stride:
                    return
            self._later.append(_some(batch, POOL_SAMPLES // 2 // SPREAD, POOL_BYTES // 2 // SPREAD))

    def joined(self) -> Batch:
        """All of them as one."""
        assert self._first is not None
        kept = Gathered()
        for batch in [self._first, *(self._later if self._first.cuttable else ())]:
            kept.add(batch)
        return kept.samples().pool


def _some(batch: Batch, samples: int, size: int) -> Batch:
    """A copy of the first samples of a batch, no more than a number or that many bytes, but one."""
    if not batch.cuttable:
        return batch.map(_copied)
    each = max(1, batch.nbytes // batch.size)
    count = max(1, min(samples, batch.size, size // each))
    return batch.rows(slice(count)).map(_copied)


def _copied(part: Tensor) -> Tensor:
    return part.detach().to("cpu", copy=True)


class Column:
    """The targets of all samples, where they are one tensor a batch, of one kind, and small.

    They lie in one piece of memory: small tensors that stay between the large ones of a pass would fill it with holes.
    """

    def __init__(self) -> None:
        """Begin with none."""
        self._bytes: bytearray | None = bytearray()
        self._kind: Any = None
        self._sizes: list[int] = []

    def add(self, targets: Tree) -> None:
        """Take note of those of the next batch."""
        if self._bytes is None:
            return
        one = isinstance(targets, Tensor)
        kind = (targets.shape[1:], targets.dtype) if one else None
        self._kind = self._kind or kind
        if not one or kind != self._kind or not targets.numel() or len(self._bytes) + targets.nbytes > TARGET_BYTES:
            self._bytes = None
            return
        self._bytes += bytes_of(targets).numpy().data
        self._sizes.append(len(targets))

    def pieces(self) -> list[Tensor] | None:
        """Those of each batch; None where they are not kept."""
        if not self._bytes:
            return None
        shape, dtype = self._kind
        return list(torch.frombuffer(self._bytes, dtype=dtype).reshape(-1, *shape).split(self._sizes))
