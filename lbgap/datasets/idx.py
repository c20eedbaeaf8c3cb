"""IDX files, the format of the MNIST distribution."""

from __future__ import annotations

import contextlib
import gzip
import math
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from lbgap.datasets._shared import one_line

MOST_BYTES = 2**30  # of one array, so that a small gzip file cannot fill the memory

_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: str | os.PathLike[str]) -> Tensor:
    """Read one array from an IDX file.

    Args:
        path: The file; gzip is recognised by its content, not by its name. No more of it is unpacked than its
            header announces.

    Returns:
        The array, in native byte order and in the dtype of the file: uint8, int8, int16, int32, float32 or
        float64.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A corrupt gzip stream, a header that is not IDX, a length that contradicts the header, or
            more than 1 GiB.
    """
    try:
        with _opened(Path(path)) as file:
            return _read(path, file)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: corrupt gzip ({one_line(error)}): fetch the file again") from error


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes] | gzip.GzipFile]:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if not packed:
            yield file
            return
        with gzip.GzipFile(fileobj=file) as unpacked:
            yield unpacked


def _read(path: str | os.PathLike[str], file: IO[bytes] | gzip.GzipFile) -> Tensor:
    head = file.read(4)
    known = len(head) == 4 and head[:2] == b"\0\0" and head[2] in _TYPES
    if not (known and 1 <= head[3] <= 32):
        raise ValueError(
            f"{path}: expected an IDX header (00 00, type code, number of dimensions), "
            f"got {head.hex(' ') or 'an empty file'}: this is not an IDX file"
        )
    dtype, dimensions = np.dtype(_TYPES[head[2]]), head[3]
    sizes = file.read(4 * dimensions)
    if len(sizes) < 4 * dimensions:
        raise ValueError(
            f"{path}: truncated, expected a header of {4 + 4 * dimensions} bytes, got {4 + len(sizes)}: "
            "fetch the file again"
        )
    shape = struct.unpack(f">{dimensions}I", sizes)
    expected = math.prod(shape) * dtype.itemsize
    if expected > MOST_BYTES:
        raise ValueError(
            f"{path}: expected at most {MOST_BYTES} bytes of data, the header announces {expected} for shape "
            f"{shape}: fetch the file again, or save it as .npz"
        )
    content = file.read(expected)
    if len(content) < expected:
        raise ValueError(
            f"{path}: truncated, expected {expected} bytes of data for shape {shape}, got {len(content)}: "
            "fetch the file again"
        )
    if file.read(1):  # the end of a gzip stream is also where its checksum is looked at
        raise ValueError(
            f"{path}: too long, expected {expected} bytes of data for shape {shape}, got more: fetch the file again"
        )
    array = np.frombuffer(content, dtype)
    return torch.from_numpy(array.astype(dtype.newbyteorder("="))).reshape(shape)
