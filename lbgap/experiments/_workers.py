"""Work spread over processes of one thread each, in a fixed order of results, that Ctrl-C ends."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.sharedctypes import Synchronized
from typing import TypeVar

import torch

from lbgap._processes import interrupts_ignored

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
        What it returned, in the order of ``works``; an error that one raised is raised when its turn comes. At the end
        of the block the processes are gone, finished or not.
    """
    with interrupts_ignored():
        context = multiprocessing.get_context("spawn")
        place = context.Value("i", 0) if gpus else None
        pool = context.Pool(min(len(works), workers), initializer=_start, initargs=(place,))
    with pool:
        yield pool.imap(function, works)


def _start(place: Synchronized[int] | None) -> None:
    torch.set_num_threads(1)
    if place is not None:
        with place.get_lock():
            number, place.value = place.value, place.value + 1
        torch.cuda.set_device(number % torch.cuda.device_count())
