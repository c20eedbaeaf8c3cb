"""The list of commands."""

from __future__ import annotations

import sys

import typer

from lbgap.cli.demo import demo
from lbgap.cli.info import info
from lbgap.cli.measure import measure
from lbgap.cli.paper import paper, report
from lbgap.cli.paths import connect, curve, line
from lbgap.cli.plane import plane
from lbgap.cli.sharpness import sharpness
from lbgap.cli.show import INTERRUPTED, fail, told_in_one_line
from lbgap.cli.spectrum import spectrum
from lbgap.cli.sweep import sweep, worker
from lbgap.cli.train import train

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="How sharp the minima of neural networks are, and why large-batch training generalises worse.",
)
COMMANDS = (
    *(demo, train, sharpness, measure, spectrum, line, curve, plane, connect),
    *(paper, report, sweep, worker, info),
)
for command in COMMANDS:
    app.command()(command)


def main() -> None:
    """Run the command line."""
    with told_in_one_line():
        code = app(standalone_mode=False)
        if code == INTERRUPTED:
            fail("interrupted", INTERRUPTED)
        sys.exit(code)
