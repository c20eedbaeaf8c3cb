"""Work spread over processes of one thread each, in a fixed order of results, that Ctrl-C ends."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.sharedctypes import Synchronized
from typing import TypeVar

import torch

from lbgap._processes import interrupts_ignored, take_gpu

Work = TypeVar("Work")
Result = TypeVar("Result")


@contextmanager
def in_processes(
    function: Callable[[Work], Result], works: Sequence[Work], workers: int, *, gpus: bool = False
) -> Iterator[Iterator[Result]]:
    """Call a function on each piece of work, several at a time.

    Args:
        function: Of a module, so that other processes find it.
        works: What it is called with; each can be pickled, as this package's own small records can.
        workers: How many processes at most; each has one thread, since small networks do not gain from more.
        gpus: Whether each takes a GPU of its own, counted round if there are fewer.

    Yields:
        What it returned, in the order of ``works``; an error that one raised is raised when its turn comes, and
        ``OSError`` where a process was killed. At the end of the block the processes are gone, finished or not.
    """
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    place = context.Value("i", 0) if gpus else None
    executor = ProcessPoolExecutor(min(len(works), workers), context, _start, (place,))
    try:
        with interrupts_ignored():
            futures = [executor.submit(function, work) for work in works]  # which starts the processes
        yield _results(futures)
    finally:
        for process in set(multiprocessing.active_children()) - others:
            process.kill()
        executor.shutdown(cancel_futures=True)


def _results(futures: Sequence[Future[Result]]) -> Iterator[Result]:
    for future in futures:
        try:
            yield future.result()
        except BrokenProcessPool:
            raise OSError(
                "a process was killed, by the system where memory runs out: what is finished is kept, and the same "
                "call goes on; let fewer work at a time"
            ) from None


def _start(place: Synchronized[int] | None) -> None:
    torch.set_num_threads(1)
    if place is not None:
        with place.get_lock():
            number, place.value = place.value, place.value + 1
        take_gpu(number)
