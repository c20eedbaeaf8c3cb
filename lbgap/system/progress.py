"""What long work says of itself: a bar on standard error, a call of the user's function, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple


class Progress(NamedTuple):
    """How far a piece of work is; what a function that is passed as ``progress`` is called with.

    Attributes:
        title: What is measured.
        done: How much of it is done.
        total: How much there will be, as far as is known before; never less than what is done.
        unit: What is counted: ``"evaluations"``, ``"products"``, ``"points"`` ...
        value: The largest loss so far, where one is searched; else None.
    """

    title: str
    done: float
    total: float
    unit: str
    value: float | None = None


Report = bool | Callable[[Progress], object]  # what every measure takes as ``progress``


def check_progress(progress: object, heard: str = "a Progress") -> None:
    """Refuse what is no way to report progress.

    Args:
        progress: What the user passed.
        heard: What a function is called with.

    Raises:
        TypeError: It is neither a boolean nor callable.
    """
    if not isinstance(progress, bool) and not callable(progress):
        raise TypeError(f"progress must be True, False or a function of {heard}, got {progress!r}")


@contextmanager
def evaluations_bar(title: str, total: int, progress: Report) -> Iterator[Callable[[float, float], None] | None]:
    """Report evaluations done and the largest value so far.

    Args:
        title: What is measured.
        total: Evaluations, about.
        progress: True for a bar, False for nothing, or a function that is called with a :class:`Progress`.

    Yields:
        What a maximiser calls with ``(evaluations, value)``, or None.
    """
    if not isinstance(progress, bool):
        report, done, largest = progress, 0, float("-inf")

        def call(_: float, value: float) -> None:
            nonlocal done, largest
            done, largest = done + 1, max(value, largest)
            report(Progress(title, done, max(total, done), "evaluations", largest))

        yield call
        return
    if not progress:
        yield None
        return
    from rich import progress as rich_progress
    from rich.console import Console

    columns = ("[progress.description]{task.description}", "largest loss {task.fields[largest]:.6g}")
    with rich_progress.Progress(
        rich_progress.TextColumn(columns[0]),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TimeRemainingColumn(),
        rich_progress.TextColumn(columns[1]),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task(title, total=total, largest=float("-inf"))

        def advance(_: float, value: float) -> None:
            bar.update(task, advance=1, largest=max(value, bar.tasks[task].fields["largest"]))

        yield advance


@contextmanager
def products_bar(title: str, total: int, progress: Report, unit: str = "products") -> Iterator[Callable[[int], None]]:
    """Report Hessian-vector products, or what else is counted, done of so many at most.

    Args:
        title: What is measured.
        total: Products at most.
        progress: True for a bar, False for nothing, or a function that is called with a :class:`Progress`.
        unit: What is counted.

    Yields:
        What hears of each number of products as they are done.
    """
    if not isinstance(progress, bool):
        report, done = progress, 0

        def call(count: int) -> None:
            nonlocal done
            done += count
            report(Progress(title, done, max(total, done), unit))

        yield call
        return
    if not progress:
        yield lambda count: None
        return
    from rich import progress as rich_progress
    from rich.console import Console

    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TimeElapsedColumn(),
    )
    with rich_progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"{title}: {unit}", total=total)
        yield lambda count: bar.update(task, advance=count)


@contextmanager
def bytes_bar(title: str, total: int, show: bool) -> Iterator[Callable[[int], None] | None]:
    """Show how much of a file has arrived.

    Args:
        title: The file.
        total: Its size in bytes.
        show: Whether to show anything.

    Yields:
        What hears of the number of bytes that are there, or None.
    """
    if not show:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=total)
        yield lambda arrived: progress.update(task, completed=arrived)
