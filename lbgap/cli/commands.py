"""The list of commands."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from lbgap import __version__
from lbgap.cli.demo import demo
from lbgap.cli.info import info
from lbgap.cli.interrupt import INTERRUPTED, unwinds
from lbgap.cli.measure import measure
from lbgap.cli.paper import paper, report
from lbgap.cli.paths import connect, curve, line
from lbgap.cli.plane import plane
from lbgap.cli.sharpness import sharpness
from lbgap.cli.show import one_line
from lbgap.cli.spectrum import spectrum
from lbgap.cli.sweep import sweep, worker
from lbgap.cli.train import train

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="How sharp the minima of neural networks are, and why large-batch training generalises worse.",
)
COMMANDS = (
    *(demo, train, sharpness, measure, spectrum, line, curve, plane, connect),
    *(paper, report, sweep, worker, info),
)


def _loading(command: Callable[..., None]) -> Callable[..., None]:
    """The command, before which PyTorch is loaded: every command needs it, neither help nor completion does."""

    @functools.wraps(command)
    def loaded(**arguments: object) -> None:
        import torch  # noqa: F401

        with unwinds():
            command(**arguments)

    return loaded


for command in COMMANDS:
    app.command()(_loading(command))


def _version(asked: bool) -> None:
    if asked:
        print(f"lbgap {__version__}")
        raise typer.Exit


@app.callback()
def lbgap(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Take what stands before the name of a command."""


def run() -> None:
    """Run the command that the command line names, and leave.

    Raises:
        KeyboardInterrupt: The user pressed Ctrl-C.
    """
    with one_line():
        code = app(prog_name="lbgap", standalone_mode=False)  # a number only where the command ended early
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        sys.exit(code)
