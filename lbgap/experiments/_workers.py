"""Work spread over processes of one thread each, in a fixed order of results, that Ctrl-C ends."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch

Work = TypeVar("Work")
Result = TypeVar("Result")


@contextmanager
def in_processes(function: Callable[[Work], Result], works: Sequence[Work], workers: int) -> Iterator[Iterator[Result]]:
    """Call a function on each piece of work, several at a time.

    Args:
        function: Of a module, so that other processes find it.
        works: What it is called with; each can be pickled, as this package's own small records can.
        workers: How many processes at most; each has one thread, since small networks do not gain from more.

    Yields:
        What it returned, in the order of ``works``; an error that one raised is raised when its turn comes. At the end
        of the block the processes are gone, finished or not.
    """
    with _interrupts_ignored():
        pool = multiprocessing.get_context("spawn").Pool(min(len(works), workers), initializer=_start)
    with pool:
        yield pool.imap(function, works)


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Ignore Ctrl-C; processes that are started meanwhile inherit that, and leave it to their parent for good."""
    if threading.current_thread() is not threading.main_thread():  # where no handler can be set, nor is one called
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _start() -> None:
    torch.set_num_threads(1)
