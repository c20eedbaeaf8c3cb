"""``python -m lbgap``: the command line."""

import os
import sys

from lbgap.cli.app import main
from lbgap.cli.interrupt import INTERRUPTED

if __name__ == "__main__":
    try:
        main()
    except SystemExit as end:
        if end.code == INTERRUPTED:  # Python would end a module by the signal where a library had met it first
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(INTERRUPTED)
        raise
