"""The command line: a file a command, listed in ``app``; they share ``options``, ``show`` and ``minimizers``."""
