"""``python -m lbgap``: the command line."""

from lbgap.cli.app import main

if __name__ == "__main__":
    main()
