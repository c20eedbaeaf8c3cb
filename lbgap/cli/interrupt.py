"""What Ctrl-C does: it ends a process that is only starting on the spot, and unwinds a command that works."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

INTERRUPTED = 130  # what typer exits with after Ctrl-C
SENTENCE = "lbgap: interrupted\n"


def _end(*_: object) -> None:
    os.write(2, SENTENCE.encode())
    os._exit(INTERRUPTED)


@contextmanager
def _instead(old: Callable[..., Any], new: Callable[..., Any]) -> Iterator[None]:
    """Replace a handler of SIGINT; where another one is set, or none, it stays."""
    in_main = threading.current_thread() is threading.main_thread()  # other threads may set none
    replaced = in_main and signal.getsignal(signal.SIGINT) is old
    if replaced:
        signal.signal(signal.SIGINT, new)
    try:
        yield
    finally:
        if replaced:
            signal.signal(signal.SIGINT, old)


def ends_at_once() -> AbstractContextManager[None]:
    """Let Ctrl-C end the process: libraries that are just being loaded swallow a KeyboardInterrupt, or print of it.

    Nothing is there yet that would have to be cleaned up.
    """
    return _instead(signal.default_int_handler, _end)


def unwinds() -> AbstractContextManager[None]:
    """Let Ctrl-C raise KeyboardInterrupt again, for work that ends in order."""
    return _instead(_end, signal.default_int_handler)
