"""Data sets of the user's own, from a NumPy archive."""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lbgap.datasets._shared import one_line
from lbgap.problem.samples import Data, Split, checked

MOST_BYTES = 2**34  # of arrays in one archive, so that a small file cannot fill the memory


def npz(path: str | os.PathLike[str]) -> Data:
    """Read a data set of the user's own from a NumPy archive; pickled objects are refused.

    Args:
        path: An ``.npz`` file with ``features`` ``(n, ...)`` and ``labels`` ``(n, ...)``, and optionally
            both ``test_features`` and ``test_labels``.

    Returns:
        The data set, named after the file. Features become float32. Integer labels become int64 class
        indices, and ``classes`` is the largest of them plus one; floating labels become float32, and ``(n,)`` of them
        ``(n, 1)``, as networks return one number a sample.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The file is damaged, unpacks to more than 16 GiB or holds pickled objects; an array is missing,
            has the wrong dtype or length, or holds NaN or infinities.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: pass the path of an .npz with 'features' and 'labels'")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: expected a zip archive, got another or a truncated file: {_SAVE_NPZ}")
    wanted = {"features", "labels"}
    _check_size(path)
    try:
        with np.load(path, allow_pickle=False) as archive:
            found = set(archive.files)
            if found & {"test_features", "test_labels"}:
                wanted |= {"test_features", "test_labels"}
            arrays = {key: np.asarray(archive[key]) for key in sorted(wanted & found)}
    except _UNREADABLE as error:
        raise ValueError(f"{path}: expected plain arrays, cannot read it ({one_line(error)}): {_SAVE_NPZ}") from error
    if wanted - found:
        missing, there = ", ".join(sorted(wanted - found)), ", ".join(sorted(found)) or "no arrays"
        raise ValueError(f"{path}: expected {', '.join(sorted(wanted))}, missing {missing}, found {there}: {_SAVE_NPZ}")
    train = _npz_split(path, arrays, "")
    test = _npz_split(path, arrays, "test_") if len(wanted) > 2 else None
    splits = [train] if test is None else [train, test]
    if len({(split.inputs.shape[1:], split.targets.dtype) for split in splits}) > 1:
        raise ValueError(f"{path}: features and test_features, labels and test_labels differ in kind: {_SAVE_NPZ}")
    regression = train.targets.is_floating_point()
    classes = 0 if regression else 1 + max(int(split.targets.max()) for split in splits)
    return Data(path.stem, train, test, classes)


_SAVE_NPZ = "save it with numpy.savez(path, features=..., labels=...)"
_UNREADABLE = (OSError, ValueError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error)


def _check_size(path: Path) -> None:
    """Refuse an archive by what it says that it holds, which is the most that is ever unpacked of it."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
    except _UNREADABLE as error:
        raise ValueError(f"{path}: cannot read the archive ({one_line(error)}): {_SAVE_NPZ}") from error
    if size > MOST_BYTES:
        raise ValueError(
            f"{path}: expected arrays of at most {MOST_BYTES} bytes, got {size}: read it yourself and pass tensors"
        )


def _npz_split(path: Path, arrays: dict[str, npt.NDArray[Any]], prefix: str) -> Split:
    features, labels = arrays[f"{prefix}features"], arrays[f"{prefix}labels"]
    if features.dtype.kind not in "fiub":
        raise ValueError(
            f"{path}: {prefix}features must be real numbers, got {features.dtype}: convert them to float32"
        )
    if labels.dtype.kind not in "fiu":
        raise ValueError(
            f"{path}: {prefix}labels must be integers (classes) or floats (regression), got {labels.dtype}: "
            "number the classes from 0"
        )
    labels = labels[:, None] if labels.dtype.kind == "f" and labels.ndim == 1 else labels
    with np.errstate(over="ignore"):  # what overflows float32 is refused as infinite below
        inputs = torch.from_numpy(features.astype(np.float32))
        targets = torch.from_numpy(labels.astype(np.float32 if labels.dtype.kind == "f" else np.int64))
    try:
        split = checked(Split(inputs, targets), (f"{prefix}features", f"{prefix}labels"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not targets.is_floating_point() and targets.min() < 0:
        raise ValueError(f"{path}: {prefix}labels must be class indices >= 0, got {targets.min()}: number them from 0")
    return split
