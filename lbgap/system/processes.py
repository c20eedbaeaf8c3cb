"""Processes of this package's own: work spread over them, Ctrl-C left to the first, a GPU for each."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.sharedctypes import Synchronized
from typing import TypeVar

import torch

Work = TypeVar("Work")
Result = TypeVar("Result")


def take_gpu(number: int) -> None:
    """Make one GPU the current one of this process.

    Args:
        number: Of the process among its like, from 0; counted round if there are fewer GPUs.
    """
    if count := torch.cuda.device_count():
        torch.cuda.set_device(number % count)


@contextmanager
def interrupts_ignored() -> Iterator[None]:
    """Ignore Ctrl-C; processes that are started meanwhile inherit that, and leave it to their parent for good."""
    if threading.current_thread() is not threading.main_thread():  # where no handler can be set, nor is one called
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


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
