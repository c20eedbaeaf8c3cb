"""Sweeps over configurations and seeds, by many processes on one machine or many, which may be killed at any moment."""

from __future__ import annotations

import os
from typing import Any


def need_optuna() -> None:
    """Refuse to go on without Optuna, which keeps the trials of a sweep.

    Raises:
        ImportError: It is not installed.
    """
    try:
        import optuna  # noqa: F401
    except ModuleNotFoundError as error:
        raise ImportError('sweeps need Optuna: pip install "lbgap[sweeps]"') from error


def read_sweep(source: str | os.PathLike[str], *, name: str | None = None) -> list[dict[str, Any]]:
    """Read the table of a sweep, finished or not; ``pandas.DataFrame(read_sweep(...))`` takes it as it is.

    Args:
        source: The folder of the sweep, or ``postgresql://user@host/database``.
        name: Of the sweep; needed only where a database holds several.

    Returns:
        A dict a trial, all with the same keys, in the order of the sweep: ``trial``; ``state``: ``"complete"``,
        ``"failed"``, ``"running"`` or ``"waiting"``; the settings and ``seed``; ``train_loss``,
        ``train_accuracy``, ``test_loss``, ``test_accuracy`` (percent), ``distance``; ``epoch``, ``epochs``,
        ``reason``, ``seconds``, ``parameters``; ``phi_NAME_EPSILON`` (percent) and its ``_seconds``,
        ``_evaluations`` and ``_standard_deviation``; ``error``, ``folder`` (relative to that of the sweep),
        ``threads``, ``host``, ``lbgap`` and ``torch`` (versions). What is not known is None.

    Raises:
        FileNotFoundError: The folder holds no sweep.
        ValueError: The database holds none of that name, or one of another version.
        ImportError: Optuna, or the driver of the database, is not installed.
        OSError: The database cannot be reached.
    """
    need_optuna()
    from lbgap.sweeps import store, table

    found = store.Store.open(store.place(source), name)
    try:
        return table.rows(found.definition, found.rows())
    finally:
        found.close()
