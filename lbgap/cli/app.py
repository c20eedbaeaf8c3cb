"""What ``lbgap`` runs. It is ready for Ctrl-C before it loads anything else."""

import sys

from lbgap.cli.interrupt import INTERRUPTED, SENTENCE, ends_at_once


def main() -> None:
    """Run the command line; whenever the user interrupts it, that is one line and exit status 130."""
    try:
        with ends_at_once():
            from lbgap.cli.commands import run

            run()
    except KeyboardInterrupt:
        sys.stderr.write(SENTENCE)
        sys.exit(INTERRUPTED)
