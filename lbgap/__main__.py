"""``python -m lbgap``: the command line."""

from lbgap.cli import main

if __name__ == "__main__":
    main()
