"""Data sets by name, as the command line asks for them."""

from __future__ import annotations

import os

from lbgap.checks import hint
from lbgap.datasets.cifar import cifar10, cifar100
from lbgap.datasets.digits import digits
from lbgap.datasets.mnist import mnist
from lbgap.datasets.mnist1d import mnist1d
from lbgap.datasets.npz import npz
from lbgap.problem.samples import Data

_FILES = {"mnist": mnist, "cifar10": cifar10, "cifar100": cifar100}
NAMES = ("mnist1d", "digits", *_FILES)


def load(
    name: str | os.PathLike[str],
    data_dir: str | os.PathLike[str] | None = None,
    *,
    download: bool = False,
    progress: bool = False,
) -> Data:
    """Load a data set by name, as the command line does.

    Args:
        name: ``"mnist1d"``, ``"digits"``, ``"mnist"``, ``"cifar10"``, ``"cifar100"``, or a path that ends in
            ``.npz``.
        data_dir: Where the files of ``"mnist"``, ``"cifar10"`` and ``"cifar100"`` lie; the others need none.
        download: Whether to fetch the files of those three into ``data_dir`` where they are missing; nothing is
            fetched for the others.
        progress: Whether to show on standard error how much of them has arrived.

    Returns:
        The data set, with the defaults of its own function.

    Raises:
        ValueError: An unknown name, one that needs ``data_dir`` without it, or a damaged file.
        FileNotFoundError: A file is missing.
        ConnectionError: A file cannot be fetched.
        ImportError: ``"digits"`` without scikit-learn.
    """
    name = os.fspath(name)
    if name.endswith(".npz"):
        return npz(name)
    if name == "mnist1d":
        return mnist1d()
    if name == "digits":
        return digits()
    if name in _FILES:
        if data_dir is None:
            raise ValueError(
                f"{name} needs data_dir, got none: name the folder with its files, or one to fetch them into"
            )
        return _FILES[name](data_dir, download=download, progress=progress)
    raise ValueError(
        f"data must be one of {', '.join(NAMES)} or a path ending in .npz, got {name!r}{hint(name, NAMES)}"
    )
