"""CIFAR-10 and CIFAR-100, from their binary archives; the Python ones are pickles, which nothing here reads."""

from __future__ import annotations

import gzip
import os
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import numpy as np
import numpy.typing as npt
import torch

from lbgap.datasets._download import Source, fetch
from lbgap.datasets._shared import one_line
from lbgap.problem.samples import Data, Split

IMAGE = (3, 32, 32)
MOST_BYTES = 2**28  # that an archive may unpack to; the real ones unpack to 184 million

# From tarfile ValueError comes by a bad number in a header, RecursionError by headers of headers.
_CORRUPT = (gzip.BadGzipFile, EOFError, zlib.error, tarfile.TarError, ValueError, RecursionError)


@dataclass(frozen=True)
class Archive:
    """What one of the data sets is made of.

    Attributes:
        name: Of the data set.
        classes: How many.
        labels: Bytes in front of each image, of which the last is the class.
        folder: In the archive.
        train: The files of the training images and how many each holds.
        test: The same of the test images.
        source: Where the archive comes from.
    """

    name: str
    classes: int
    labels: int
    folder: str
    train: dict[str, int]
    test: dict[str, int]
    source: Source

    @property
    def record(self) -> int:
        """Bytes of one image and its labels."""
        return self.labels + IMAGE[0] * IMAGE[1] * IMAGE[2]

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        return {name: images * self.record for name, images in {**self.train, **self.test}.items()}


# Sizes and SHA-256 sums are those that TensorFlow Datasets publishes for the same archives.
CIFAR10 = Archive(
    "cifar10",
    10,
    1,
    "cifar-10-batches-bin",
    {f"data_batch_{number}.bin": 10_000 for number in range(1, 6)},
    {"test_batch.bin": 10_000},
    Source(
        "cifar-10-binary.tar.gz",
        ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
        170_052_171,
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    ),
)
CIFAR100 = Archive(
    "cifar100",
    100,
    2,
    "cifar-100-binary",
    {"train.bin": 50_000},
    {"test.bin": 10_000},
    Source(
        "cifar-100-binary.tar.gz",
        ("https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",),
        168_513_733,
        "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    ),
)


def cifar10(data_dir: str | os.PathLike[str], *, download: bool = False, progress: bool = False) -> Data:
    """Read CIFAR-10 from its binary archive, packed or unpacked.

    Args:
        data_dir: The folder with ``cifar-10-binary.tar.gz``, or with what is unpacked of it: the folder
            ``cifar-10-batches-bin`` or its files ``data_batch_1.bin`` to ``data_batch_5.bin`` and
            ``test_batch.bin``.
        download: Whether to fetch the archive if neither is there, 162 MiB, checked by its SHA-256; the folder is
            made if there is none.
        progress: Whether to show on standard error how much has arrived.

    Returns:
        Inputs ``(n, 3, 32, 32)`` float32 in [0, 1], red, green and blue; targets ``(n,)`` int64. The 50,000
        training and 10,000 test images are those of the files, in their order.

    Raises:
        FileNotFoundError: The archive and all or some of its files are missing.
        ValueError: It is damaged, of another length, or holds a label out of range; or what was fetched has
            another checksum, and was discarded.
        ConnectionError: It cannot be fetched; what arrived is kept, and the same call goes on from there.
    """
    return _cifar(CIFAR10, Path(data_dir), download, progress)


def cifar100(data_dir: str | os.PathLike[str], *, download: bool = False, progress: bool = False) -> Data:
    """Read CIFAR-100 with its 100 fine labels from its binary archive, packed or unpacked.

    Args:
        data_dir: The folder with ``cifar-100-binary.tar.gz``, or with what is unpacked of it: the folder
            ``cifar-100-binary`` or its files ``train.bin`` and ``test.bin``.
        download: As in :func:`cifar10`; 161 MiB.
        progress: As in :func:`cifar10`.

    Returns:
        As :func:`cifar10`.

    Raises:
        FileNotFoundError: As in :func:`cifar10`.
        ValueError: As in :func:`cifar10`.
        ConnectionError: As in :func:`cifar10`.
    """
    return _cifar(CIFAR100, Path(data_dir), download, progress)


def _cifar(archive: Archive, folder: Path, download: bool, progress: bool) -> Data:
    packed = folder / archive.source.name
    unpacked = _unpacked(archive, folder, partly=download or packed.is_file())
    if unpacked is None and download and not packed.is_file():
        fetch(archive.source, folder, progress)
    if unpacked is not None:
        contents = _read_files(archive, unpacked)
    elif packed.is_file():
        contents = _read_archive(archive, packed)
    else:
        raise FileNotFoundError(
            f"no {packed.name}, nor {archive.folder} with {', '.join(archive.sizes)}, in {folder}: put the archive "
            "there, name its folder with data_dir, or fetch it with download=True"
        )
    source = packed if unpacked is None else unpacked
    train, test = (_split(archive, source, [contents[name] for name in part]) for part in (archive.train, archive.test))
    return Data(archive.name, train, test, archive.classes)


def _unpacked(archive: Archive, folder: Path, partly: bool) -> Path | None:
    """The folder with the unpacked files; None if there is none, or one with some of them where that is allowed."""
    for place in (folder / archive.folder, folder):
        missing = [name for name in archive.sizes if not (place / name).is_file()]
        if not missing:
            return place
        if len(missing) < len(archive.sizes) and not partly:
            raise FileNotFoundError(f"no {', '.join(missing)} in {place}: unpack the whole of {archive.source.name}")
    return None


def _read_files(archive: Archive, place: Path) -> dict[str, bytes]:
    contents = {}
    for name, expected in archive.sizes.items():
        _check_size(place / name, (place / name).stat().st_size, expected)
        contents[name] = (place / name).read_bytes()
        _check_size(place / name, len(contents[name]), expected)
    return contents


class _OtherError(ValueError):
    """A file that can be read, but is not what it is named after."""


def _check_size(path: Path | str, arrived: int, expected: int) -> None:
    if arrived != expected:
        raise _OtherError(
            f"{path}: {'truncated' if arrived < expected else 'too long'}, expected {expected} bytes, got {arrived}: "
            "fetch the binary version of the archive again"
        )


class _Limited:
    """A stream that ends in an error where more comes out of it than a data set can hold."""

    def __init__(self, path: Path, file: gzip.GzipFile) -> None:
        self._path, self._file, self._left = path, file, MOST_BYTES

    def read(self, size: int) -> bytes:
        """Read at most so many bytes."""
        content = self._file.read(size)
        self._left -= len(content)
        if self._left < 0:
            raise _OtherError(
                f"{self._path}: expected at most {MOST_BYTES} bytes unpacked, got more: this is another archive"
            )
        return content


def _read_archive(archive: Archive, path: Path) -> dict[str, bytes]:
    """Read the expected files of an archive into memory. Nothing is written, whatever the names in it."""
    wanted = {f"{archive.folder}/{name}": name for name in archive.sizes}
    contents: dict[str, bytes] = {}
    try:
        with gzip.open(path) as unpacked:
            stream = _Limited(path, unpacked)
            with tarfile.open(fileobj=cast(IO[bytes], stream), mode="r|") as members:
                for member in members:
                    name = wanted.get(member.name)
                    if name is not None:
                        contents[name] = _read_member(path, members, member, archive.sizes[name], name in contents)
            while stream.read(2**20):  # to the end, where gzip looks at its checksum
                pass
    except _OtherError:
        raise
    except _CORRUPT as error:
        raise ValueError(f"{path}: corrupt archive ({one_line(error)}): fetch it again") from error
    missing = [full for full, name in wanted.items() if name not in contents]
    if missing:
        raise ValueError(f"{path}: expected {', '.join(missing)} in it, found none: fetch the binary version again")
    return contents


def _read_member(path: Path, members: tarfile.TarFile, member: tarfile.TarInfo, size: int, again: bool) -> bytes:
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or again:
        what = "a second time" if again else "that is no plain file"
        raise _OtherError(f"{path}: holds {member.name} {what}: this is not the archive that it is named after")
    _check_size(f"{path}: {member.name}", member.size, size)
    file = members.extractfile(member)
    assert file is not None
    return file.read()


def _split(archive: Archive, source: Path, contents: Sequence[bytes]) -> Split:
    records: npt.NDArray[np.uint8] = np.concatenate(
        [np.frombuffer(content, np.uint8).reshape(-1, archive.record) for content in contents]
    )
    labels = torch.from_numpy(records[:, archive.labels - 1].astype(np.int64))
    if len(labels) and int(labels.max()) >= archive.classes:
        raise ValueError(
            f"{source}: expected labels in 0..{archive.classes - 1}, got {int(labels.max())}: fetch the binary version "
            "of the archive again"
        )
    inputs = torch.from_numpy(records[:, archive.labels :].astype(np.float32))
    return Split(inputs.div_(255).reshape(-1, *IMAGE), labels)
