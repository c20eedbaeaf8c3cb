"""Work on a GPU that is done again and again, recorded once as a CUDA graph and from then on replayed."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lbgap.layers import displaced
from lbgap.system import device as hardware

Outputs = tuple[Tensor, ...]
Work = Callable[[], Outputs]
Replay = Callable[[], None]
Record = Callable[[Work, torch.device], tuple[Replay, Outputs]]

UNREPEATED = "nothing was repeated"
SYNCHRONISES = "called a synchronizing CUDA operation"  # what torch warns of


class Graphs:
    """CUDA graphs of pieces of work on one device: fixed sequences of kernels, launched in one go.

    A piece of work runs as it is the first time, is recorded the second time and replayed from then on. Work that
    needs the host in between is never recorded. A new graph is compared with the work itself, where the parameters are
    and some way off, for what the host has made of them would stand in it as a constant. One that differs ends it: then
    everything runs as it is, which gives the same numbers, and :attr:`status` says why.
    """

    def __init__(
        self,
        device: torch.device,
        notes: list[str],
        refused: str | None = None,
        record: Record | None = None,
        moving: Sequence[Tensor] = (),
    ) -> None:
        """Begin with none.

        Args:
            device: Where the work is done.
            notes: Gets a sentence where work turns out not to be fit for a graph.
            refused: Why nothing may be recorded, if so.
            record: Records work as it runs on a device; returns what replays it, and the outputs that a replay writes.
            moving: The parameters that work depends on, which change between two replays.
        """
        self._device = device
        self._notes = notes
        self._refused = refused
        self._record = record or record_cuda
        self._moving = moving
        self.drop()

    @property
    def status(self) -> str:
        """``"captured"``, or ``"none: "`` and the reason."""
        if self._recorded:
            return "captured"
        return f"none: {self._refused or UNREPEATED}"

    def drop(self) -> None:
        """Forget all graphs, and free their memory; they are recorded anew as if for the first time."""
        self._begun: set[Hashable] = set()
        self._recorded: dict[Hashable, tuple[Replay, Outputs, list[Tensor]]] = {}

    def run(self, key: Hashable, work: Work, written: Tensor, dtype: torch.dtype) -> Outputs:
        """Do a piece of work.

        Args:
            key: Names the work: calls of one key are the same kernels on the same memory.
            work: Does it as it is; its outputs are floating.
            written: What it writes beside its outputs.
            dtype: That it computes in, whose rounding a replay may differ by.

        Returns:
            What the work returned, or copies of the same out of its graph.
        """
        if self._refused is not None:
            return work()
        if key in self._recorded:
            replay, outputs, _ = self._recorded[key]
            replay()
            return tuple(output.clone() for output in outputs)
        if key not in self._begun:
            self._begun.add(key)
            return work()
        return self._begin(key, work, written, dtype)

    def _begin(self, key: Hashable, work: Work, written: Tensor, dtype: torch.dtype) -> Outputs:
        """Record the work, and compare replays with what the work itself gives, here and at another point."""
        try:
            with watched(self._device) as seen:
                expected = work()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of an operation that cannot be looked at, or of the work itself, then here again
            self._refuse(f"the model or the loss cannot be watched ({hardware.first_line(error)})")
            return work()
        if seen.unfit is not None:
            self._refuse(seen.unfit)
            return expected
        before = written.clone()
        try:
            replay, outputs = self._record(work, self._device)
            replay()
        except Exception as error:  # whatever it is: the work as it is needs no graph
            self._refuse(f"the capture failed ({hardware.first_line(error)})")
            return work()
        differs = "a replay did not repeat the gradient"
        if _agree((*outputs, written), (*expected, before), dtype):
            differs = self._differs_elsewhere(work, replay, outputs, written, dtype)
        if differs:
            self._refuse(differs)
            return work()
        written.copy_(before)
        self._recorded[key] = replay, outputs, seen.held
        return expected

    def _differs_elsewhere(
        self, work: Work, replay: Replay, outputs: Outputs, written: Tensor, dtype: torch.dtype
    ) -> str:
        """Why a graph is none of the work where the parameters are some way off; empty if it is."""
        with displaced(self._moving):
            try:
                expected = work()
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # such as of a matrix that has no Cholesky factor there
                return f"the model or the loss fails some way off ({hardware.first_line(error)})"
            there = written.clone()
            replay()
            same = _agree((*outputs, written), (*expected, there), dtype)
        return "" if same else "a replay did not repeat the gradient where the parameters are others"

    def _refuse(self, reason: str) -> None:
        self.drop()
        self._refused = reason
        self._notes.append(f"no CUDA graph of the gradient: {reason}")


class Watch(TorchDispatchMode):
    """Looks at every operation of a piece of work, those of a backward pass included.

    Attributes:
        unfit: The first reason why the work cannot be replayed without the host; None if there is none.
        held: Tensors that the work reads and did not make: a graph needs their memory for as long as it lives.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.unfit: str | None = None
        self.held: list[Tensor] = []
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation, and judge it."""
        kwargs = kwargs or {}
        read = list(_tensors((args, tuple(kwargs.values()))))
        for tensor in read:
            if self._is_new(tensor):
                self.held.append(tensor)
        result = func(*args, **kwargs)
        made = list(_tensors((result,)))
        for tensor in made:
            self._is_new(tensor)
        self.unfit = self.unfit or _unfit(func, read, made)
        return result

    def _is_new(self, tensor: Tensor) -> bool:
        if tensor.layout != torch.strided:
            return True
        place = tensor.untyped_storage()._cdata
        new = place not in self._known
        self._known.add(place)
        return new


def _unfit(func: Any, read: list[Tensor], made: list[Tensor]) -> str | None:
    """Why an operation needs the host; None if it does not."""
    name = str(func)
    tags = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
    by_number = name == "aten.index.Tensor" and not any(part.dtype in (torch.bool, torch.uint8) for part in read[1:])
    if tags & set(func.tags) and not by_number:
        return f"the model or the loss decides on values ({name})"
    # A single number of the host may take part in an operation, as a constant; but it must not be copied.
    copy = name.startswith(("aten._to_copy", "aten.copy_"))
    places = {tensor.device.type for tensor in [*made, *(part for part in read if part.dim() or copy)]}
    if len(places) > 1:
        return f"the model or the loss moves data between {' and '.join(sorted(places))} ({name})"
    return None


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """All tensors in nested tuples and lists."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(value)


@contextlib.contextmanager
def watched(device: torch.device) -> Iterator[Watch]:
    """Watch the work that is done inside; on a GPU torch is also asked what waits for it, which not every op says."""
    watch = Watch()
    if device.type != "cuda":
        with watch:
            yield watch
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        before = torch.cuda.get_sync_debug_mode()
        try:
            torch.cuda.set_sync_debug_mode("warn")  # not "error", which would also strike other threads of the caller
            with watch:
                yield watch
        finally:
            torch.cuda.set_sync_debug_mode(before)
    if watch.unfit is None and any(SYNCHRONISES in str(warning.message) for warning in caught):
        watch.unfit = "the model or the loss waits for the GPU"


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """The stream that records and replays: one a device, since libraries keep memory for each that they meet."""
    return torch.cuda.Stream(device)


@contextlib.contextmanager
def _aside(device: torch.device) -> Iterator[torch.cuda.Stream]:
    """Let that stream do what is enqueued inside, in its turn among what the current stream does."""
    stream, current = _stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(current)
    try:
        with torch.cuda.stream(stream):
            yield stream
    finally:
        current.wait_stream(stream)


def record_cuda(work: Work, device: torch.device) -> tuple[Replay, Outputs]:
    """Record work as a CUDA graph with a memory pool of its own.

    It runs once more on the stream that records, so that what libraries set up for a stream is there. That belongs to
    the graph from then on: on the same stream no two replays can use it at once, whatever streams their callers are on.
    """
    graph = torch.cuda.CUDAGraph()
    # Around torch's own context, which leaves its stream the current one where a capture fails.
    with _aside(device) as stream:
        work()
        # "thread_local": other threads of the caller may go on allocating.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            outputs = work()

    def replay() -> None:
        with _aside(device):
            graph.replay()

    return replay, outputs


def _agree(found: Outputs, expected: Outputs, dtype: torch.dtype) -> bool:
    """Whether two results are equal but for rounding: to half of the digits of a type, as vectors."""
    lengths = []
    for one, other in zip(found, expected, strict=True):
        finite = other.nan_to_num()
        lengths += [(one.nan_to_num() - finite).norm(dtype=torch.float64), finite.norm(dtype=torch.float64)]
    values = hardware.read(torch.stack(lengths))
    tolerance = torch.finfo(dtype).eps ** 0.5
    return all(differ <= tolerance * size for differ, size in zip(values[::2], values[1::2], strict=True))
