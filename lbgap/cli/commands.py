"""The list of commands, each of which is loaded when it is asked for."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import typer

from lbgap import __version__
from lbgap.cli.interrupt import INTERRUPTED, unwinds
from lbgap.cli.show import one_line

# Name, which is also that of its function: the module in which that stands.
COMMANDS = {
    "demo": "demo",
    "train": "train",
    "sharpness": "sharpness",
    "measure": "measure",
    "spectrum": "spectrum",
    "line": "paths",
    "curve": "paths",
    "plane": "plane",
    "connect": "paths",
    "paper": "paper",
    "report": "paper",
    "sweep": "sweep",
    "worker": "sweep",
    "info": "info",
}


class _Lazy(dict[str, Any]):
    """The commands of a group by name, in the order of the help, each made by a function when it is looked up."""

    def __init__(self, names: Iterable[str], make: Callable[[str], Any]) -> None:
        super().__init__(dict.fromkeys(names))
        self._make = make

    def __getitem__(self, name: str) -> Any:
        if super().__getitem__(name) is None:
            self[name] = self._make(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        try:
            return self[name]
        except KeyError:
            return default

    def items(self) -> Any:
        return [(name, self[name]) for name in self]


def _command(name: str) -> Any:
    module = importlib.import_module(f"lbgap.cli.{COMMANDS[name]}")
    if name == "measure":
        group: Any = typer.main.get_group(
            typer.Typer(
                name=name,
                no_args_is_help=True,
                help="Measure minimizers on their training data, by a command for each measure.",
            )
        )
        group.commands = _Lazy(module.MEASURES, lambda measure: _made(measure, module.MEASURES[measure].call()))
        return group
    return _made(name, getattr(module, name))


def _made(name: str, function: Callable[..., None]) -> Any:
    """What typer makes of a function. PyTorch is loaded before that runs, but for neither help nor completion."""

    @functools.wraps(function)
    def loaded(**arguments: object) -> None:
        import torch  # noqa: F401

        with unwinds():
            function(**arguments)

    app = typer.Typer(add_completion=False)
    app.command(name)(loaded)
    return typer.main.get_command(app)


def _version(asked: bool) -> None:
    if asked:
        print(f"lbgap {__version__}")
        raise typer.Exit


app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="How sharp the minima of neural networks are, and why large-batch training generalises worse.",
)


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
        group: Any = typer.main.get_command(app)
        group.commands = _Lazy(COMMANDS, _command)
        code = group(prog_name="lbgap", standalone_mode=False)  # a number only where the command ended early
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        sys.exit(code)
