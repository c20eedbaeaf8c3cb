"""What a long training tells while it runs: a bar on stderr, or calls to the user's function."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Metrics = dict[str, Any]


class Reporter:
    """Tells nobody; the base of those that do."""

    def batch(self, epochs_done: float) -> None:
        """Take note of a batch.

        Args:
            epochs_done: Epochs done so far, with the share of the current one.
        """

    def epoch(self, metrics: Metrics) -> None:
        """Take note of a finished epoch.

        Args:
            metrics: What was measured after it.
        """


class _Caller(Reporter):
    def __init__(self, function: Callable[[Metrics], object]) -> None:
        self._function = function

    def epoch(self, metrics: Metrics) -> None:
        self._function(dict(metrics))


class _Bar(Reporter):
    def __init__(self, advance: Callable[[float, str], None]) -> None:
        self._advance, self._loss = advance, ""

    def batch(self, epochs_done: float) -> None:
        self._advance(epochs_done, self._loss)

    def epoch(self, metrics: Metrics) -> None:
        self._loss = f"loss {metrics['train_loss']:.4g}"
        self._advance(metrics["epoch"], self._loss)


@contextmanager
def reporting(progress: bool | Callable[[Metrics], object], limit: int, done: int) -> Iterator[Reporter]:
    """Open what ``progress`` asks for and close it at the end.

    Args:
        progress: ``True`` for a bar on stderr, ``False`` for nothing, or a function that is called with a
            copy of the metrics of each epoch.
        limit: The most epochs that the training can take.
        done: Epochs done before this call.

    Yields:
        Whom to tell.
    """
    if not isinstance(progress, bool):
        yield _Caller(progress)
        return
    if not progress:
        yield Reporter()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("training"),
        BarColumn(),
        TextColumn("epoch {task.fields[done]} of {task.total:.0f}"),
        TextColumn("{task.fields[loss]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("training", total=limit, completed=done, done=done, loss="")
        yield _Bar(lambda epochs, loss: bar.update(task, completed=epochs, done=int(epochs), loss=loss))
