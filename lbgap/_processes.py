"""What all that starts processes of its own shares."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
