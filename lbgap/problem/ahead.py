"""Reading ahead: one thread works through an iterator, a bounded number of items before whoever asks for them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from typing import TypeVar

Item = TypeVar("Item")
DEPTH = 2
SECONDS = 0.05  # between two looks at whether anybody still waits for what does not fit into the queue


class _End:
    """Stands behind the last item."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


def ahead(items: Iterator[Item], depth: int = DEPTH) -> Generator[Item]:
    """Yield the items of an iterator, which a thread asks it for; the thread ends with this generator.

    Args:
        items: Is advanced in the thread alone.
        depth: How many items may wait.

    Raises:
        BaseException: Whatever the iterator raises.
    """
    waiting: queue.Queue[Item | _End] = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: Item | _End) -> bool:
        while not stopped.is_set():
            try:
                waiting.put(item, timeout=SECONDS)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for item in items:
                if not put(item):
                    return
        except BaseException as error:
            put(_End(error))
        else:
            put(_End())

    thread = threading.Thread(target=work, name="lbgap reads ahead", daemon=True)
    try:
        thread.start()
        while True:
            item = waiting.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item
            del item  # or it would be held while the next one is waited for
    finally:
        stopped.set()
        while not waiting.empty():
            waiting.get_nowait()
        if thread.ident is not None:  # an interrupt may have come before it was started
            thread.join()
