"""Progress on standard error for work that takes long; nothing at all when it is not asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def evaluations_bar(title: str, total: int, show: bool) -> Iterator[Callable[[float, float], None] | None]:
    """Show evaluations done and the largest value so far.

    Args:
        title: What is measured.
        total: Evaluations at most.
        show: Whether to show anything.

    Yields:
        What a maximiser calls with ``(evaluations, value)``, or None.
    """
    if not show:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = ("[progress.description]{task.description}", "largest loss {task.fields[largest]:.6g}")
    console = Console(stderr=True)
    with Progress(
        TextColumn(columns[0]),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn(columns[1]),
        console=console,
        transient=True,
    ) as progress:
        task = progress.add_task(title, total=total, largest=float("-inf"))

        def visited(_: float, value: float) -> None:
            largest = max(value, progress.tasks[task].fields["largest"])
            progress.update(task, advance=1, largest=largest)

        yield visited


@contextmanager
def products_bar(title: str, total: int, show: bool, unit: str = "products") -> Iterator[Callable[[int], None] | None]:
    """Show Hessian-vector products, or what else is counted, done of so many at most.

    Args:
        title: What is measured.
        total: Products at most.
        show: Whether to show anything.
        unit: What is counted.

    Yields:
        What hears of each number of products as they are done, or None.
    """
    if not show:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(f"{title}: {unit}", total=total)
        yield lambda count: progress.update(task, advance=count)


@contextmanager
def bytes_bar(title: str, total: int, show: bool) -> Iterator[Callable[[int], None] | None]:
    """Show how much of a file has arrived.

    Args:
        title: The file.
        total: Its size in bytes.
        show: Whether to show anything.

    Yields:
        What is told the number of bytes that are there, or None.
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
