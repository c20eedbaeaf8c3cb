"""What a user sees of a command: its result as tables or JSON, and every failure as one line on standard error."""

from __future__ import annotations

import functools
import json
import os
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

import typer

from lbgap.cli.interrupt import INTERRUPTED

if TYPE_CHECKING:  # rich is loaded when something is printed: the shell's completion prints nothing
    from rich.console import Console
    from rich.table import Table

UsageError = cast(type[Exception], typer.BadParameter.__base__)  # typer's own or click's, depending on its version


@functools.cache
def errors() -> Console:
    """Standard error, where notes, progress and failures go."""
    from rich.console import Console

    return Console(stderr=True, soft_wrap=True)


def escape(text: str) -> str:
    """Text of a user, to be printed as it stands."""
    from rich.markup import escape as escaped

    return escaped(text)


@contextmanager
def one_line() -> Iterator[None]:
    """Run a command; every failure is one line on standard error and a non-zero exit, every warning a note."""
    with warnings.catch_warnings():
        warnings.showwarning = _note
        try:
            yield
        except UsageError as error:
            fail(cast(Any, error).format_message(), 2)
        except OSError as error:
            fail(": ".join(str(part) for part in (error.filename, error.strerror) if part) or str(error), 1)
        except (ValueError, TypeError, FloatingPointError, ImportError) as error:
            fail(str(error) or type(error).__name__, 1)
        except (MemoryError, OverflowError, RuntimeError) as error:
            if not re.search("alloc|overflow|^$", str(error), re.IGNORECASE):  # torch's are plain RuntimeErrors
                raise
            fail(f"too large for the memory: {str(error) or type(error).__name__}", 1)


def _note(message: Warning | str, *_: object, **__: object) -> None:
    errors().print(f"[yellow]lbgap:[/] note: {escape(' '.join(str(message).split()))}", highlight=False)


def fail(reason: str, code: int) -> NoReturn:
    """Say why on one line, in the words of the command line, and leave."""
    text = "".join(reason.strip().splitlines()[:1])
    text = re.sub(r"train\(\.\.\., out=(.*), resume=True\)", r"lbgap train --out \1 --resume", text)
    for python, option in (("resume=True", "--resume"), ("download=True", "--download")):
        text = text.replace(python, option)
    text = re.sub(r"(needs|with) data_dir\b", r"\1 --data-dir", text)
    if text:  # nothing is left to say where typer has shown the help
        errors().print(f"[bold red]lbgap:[/] {escape(text)}", highlight=False)
    sys.exit(code)


@contextmanager
def resumable(how: str) -> Iterator[None]:
    """Say after Ctrl-C how the work goes on."""
    try:
        yield
    except KeyboardInterrupt:
        fail(f"interrupted; what is finished is kept, {how} goes on from there", INTERRUPTED)


def show(as_json: bool, result: dict[str, Any], *parts: Table | str) -> None:
    """Print a result, either for a program or for a person."""
    if as_json:
        print(json.dumps(result, indent=2, allow_nan=False), flush=True)
        return
    from rich.console import Console

    write(Console(), parts)


def write(console: Console, parts: Iterable[Table | str]) -> None:
    """Print tables and sentences as all commands do."""
    for part in parts:
        console.print(part, highlight=False, soft_wrap=isinstance(part, str))


def new_table(*headings: str) -> Table:
    """An empty table that is narrow enough for 80 columns; nothing in its first column is cut."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index else "left", overflow="ellipsis" if index else "fold")
    return table


def new_grid(gap: int) -> Table:
    """An empty table without headings and lines.

    Args:
        gap: Spaces between its columns.
    """
    from rich.table import Table

    return Table.grid(padding=(0, gap))


def bullets(sentences: Iterable[str]) -> Table:
    """A list of sentences, broken at the width of the terminal."""
    table = new_grid(1)
    for sentence in sentences:
        table.add_row("*", escape(sentence))
    return table


def writable(folder: Path) -> Path:
    """Make a folder for results, before the work rather than after it."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"--out must be a folder, got the file {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"--out {folder} is not writable: choose another folder")
    return folder


def fresh(folder: Path, name: str) -> Path:
    """A stem in a folder that no earlier result has: ``name``, ``name-2``, ``name-3`` ..."""
    number = 1
    while any(folder.glob(f"{name}{'' if number == 1 else f'-{number}'}.*")):
        number += 1
    return folder / (name if number == 1 else f"{name}-{number}")
