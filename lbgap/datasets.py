"""The data sets that need no download, and readers for files."""

from __future__ import annotations

import difflib
import gzip
import math
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from lbgap.samples import Data, DataLike, Split, as_tensors, checked

__all__ = ["NAMES", "Data", "DataLike", "Split", "as_tensors", "digits", "load", "mnist", "mnist1d", "npz", "read_idx"]

NAMES = ("mnist1d", "digits", "mnist")

_Floats: TypeAlias = npt.NDArray[np.float64]

# Heights of the ten 12-point curves of MNIST-1D, digit by digit (greydanus/mnist1d, Apache-2.0).
_TEMPLATES = (
    (5, 6, 6.5, 6.75, 7, 7, 7, 7, 6.75, 6.5, 6, 5),
    (5, 3, 3, 3.4, 3.8, 4.2, 4.6, 5, 5.4, 5.8, 5, 5),
    (5, 6, 6.5, 6.5, 6, 5.25, 4.75, 4, 3.5, 3.5, 4, 5),
    (5, 6, 6.5, 6.5, 6, 5, 5, 6, 6.5, 6.5, 6, 5),
    (5, 4.4, 3.8, 3.2, 2.6, 2.6, 5, 5, 5, 5, 5, 5),
    (5, 3, 3, 3, 3, 5, 6, 6.5, 6.5, 6, 4.5, 5),
    (5, 4, 3.5, 3.25, 3, 3, 3, 3, 3.25, 3.5, 4, 5),
    (5, 7, 7, 6.6, 6.2, 5.8, 5.4, 5, 4.6, 4.2, 5, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 4, 3.5, 3.5, 4, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 5, 5, 4.7, 4.3, 5),
)
_PADDING = (36, 60)  # zeros appended, both ends included
_SCALE, _SHEAR, _TRANSLATION = 0.4, 0.75, 48
_CORRELATED_NOISE, _NOISE_SIGMA, _IID_NOISE = 0.25, 2, 0.02
_LENGTH = 40

_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def mnist1d(samples: int = 5000, seed: int = 42) -> Data:
    """Generate MNIST-1D: ten short curves, padded, scaled, moved, sheared and drowned in noise.

    Follows the construction and the constants of Greydanus and Kobak, "Scaling Down Deep Learning with
    MNIST-1D", arXiv 2011.14439, and of their repository ``greydanus/mnist1d`` (Apache-2.0), from which the
    template values are taken as data. The random draws are not those of the published file: the samples
    agree in distribution, not bit for bit. The global random state is neither read nor changed.

    Args:
        samples: How many samples in all, at least 10; the first 80 % (rounded down) train, the rest test.
        seed: Seed of the draws, not negative. The same seed gives the same samples.

    Returns:
        Inputs ``(n, 40)`` float32, standardised by the mean and deviation of all samples, and targets
        ``(n,)`` int64, of classes that differ in size by at most one sample over both splits.

    Raises:
        ValueError: Too few samples, or a negative seed.
    """
    if samples < len(_TEMPLATES):
        raise ValueError(f"mnist1d needs at least {len(_TEMPLATES)} samples, got {samples}: one of each class")
    rng = _generator(seed)
    labels = rng.permutation(np.arange(samples) % len(_TEMPLATES))
    curves = _distort(labels, rng)
    curves = (curves - curves.mean()) / curves.std()
    inputs, targets = torch.from_numpy(curves.astype(np.float32)), torch.from_numpy(labels.astype(np.int64))
    cut = samples * 4 // 5
    return Data("mnist1d", Split(inputs[:cut], targets[:cut]), Split(inputs[cut:], targets[cut:]), len(_TEMPLATES))


def _distort(labels: npt.NDArray[np.integer[Any]], rng: np.random.Generator) -> _Floats:
    """One distorted curve ``(n, 40)`` for each label, in the order of operations of the original."""
    heights = np.asarray(_TEMPLATES)
    points = heights.shape[1]
    heights = (heights - heights[:, :1]) / heights.std(1, keepdims=True) / 6
    heights = np.pad(heights, ((0, 0), (0, _PADDING[1])))
    n, length = len(labels), heights.shape[1]

    # Pad by a random number of zeros, and stretch the result to the longest length.
    padded = points + rng.integers(_PADDING[0], _PADDING[1], size=(n, 1), endpoint=True)
    position = np.linspace(0, 1, length) * (padded - 1)
    left = np.minimum(position.astype(np.int64), length - 2)
    share, row = position - left, labels[:, None]
    curves = (1 - share) * heights[row, left] + share * heights[row, left + 1]
    curves *= 1 + _SCALE * (rng.random((n, 1)) - 0.5)

    # Roll; correlated noise then fills what was padding, and iid noise covers all.
    source = (np.arange(length) - rng.integers(_TRANSLATION, size=(n, 1))) % length
    curves = np.take_along_axis(curves, source, axis=1)
    signal = np.take_along_axis(position < points, source, axis=1)
    hum = gaussian_filter1d(_CORRELATED_NOISE * rng.standard_normal((n, length)), _NOISE_SIGMA, axis=1)
    curves = np.where(signal, curves, hum) + _IID_NOISE * rng.standard_normal((n, length))
    curves -= _SHEAR * (rng.random((n, 1)) - 0.5) * np.linspace(-0.5, 0.5, length)

    position = np.linspace(0, length - 1, _LENGTH)
    left = np.minimum(position.astype(np.int64), length - 2)
    share = position - left
    return np.asarray((1 - share) * curves[:, left] + share * curves[:, left + 1])


def _generator(seed: int) -> np.random.Generator:
    if seed < 0:
        raise ValueError(f"seed must be an integer >= 0, got {seed}")
    return np.random.default_rng(seed)


def digits(seed: int = 0, test_fraction: float = 0.2) -> Data:
    """Load the 1,797 handwritten digits of 8x8 pixels that scikit-learn ships, shuffled once.

    Source: the test part of "Optical Recognition of Handwritten Digits", UCI repository (Alpaydin and
    Kaynak, 1998), as in ``sklearn.datasets.load_digits``. The split is not stratified.

    Args:
        seed: Seed of the shuffle, not negative. The same seed gives the same split.
        test_fraction: Share of the samples kept for testing, between 0 and 1.

    Returns:
        Inputs ``(n, 64)`` float32 in [0, 1], targets ``(n,)`` int64.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: A fraction that leaves no training or no test sample, or a negative seed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError('digits needs scikit-learn: pip install "lbgap[digits]"') from error
    pixels, labels = load_digits(return_X_y=True)
    held = round(len(labels) * test_fraction) if 0 < test_fraction < 1 else 0
    if not 0 < held < len(labels):
        raise ValueError(f"test_fraction must lie between 0 and 1, got {test_fraction}: try 0.2")
    order = torch.from_numpy(_generator(seed).permutation(len(labels)))
    inputs, targets = torch.from_numpy(pixels / 16).float()[order], torch.from_numpy(labels).long()[order]
    return Data("digits", Split(inputs[held:], targets[held:]), Split(inputs[:held], targets[:held]), 10)


def mnist(data_dir: str | os.PathLike[str], flatten: bool = True) -> Data:
    """Read MNIST from its four IDX files, plain or gzipped; nothing is downloaded.

    Args:
        data_dir: The folder with ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and the two
            ``t10k`` files; ``train-images.idx3-ubyte`` and the suffix ``.gz`` are recognised as well.
        flatten: Whether to return the images as vectors.

    Returns:
        Inputs ``(n, 784)``, or ``(n, 1, 28, 28)`` without ``flatten``, float32 in [0, 1]; targets ``(n,)``
        int64.

    Raises:
        FileNotFoundError: One of the files is missing.
        ValueError: One of them is damaged, or does not hold 28x28 images or one label for each.
    """
    folder = Path(data_dir)
    return Data("mnist", _read_mnist(folder, "train", flatten), _read_mnist(folder, "t10k", flatten), 10)


def _read_mnist(folder: Path, part: str, flatten: bool) -> Split:
    path = _find_idx(folder, f"{part}-images", "idx3-ubyte")
    images = read_idx(path)
    if images.dtype != torch.uint8 or images.shape[1:] != (28, 28) or len(images) == 0:
        raise ValueError(
            f"{path}: expected uint8 images of shape (n, 28, 28), got {images.dtype} {tuple(images.shape)}: "
            "this is not an MNIST image file"
        )
    path = _find_idx(folder, f"{part}-labels", "idx1-ubyte")
    labels = read_idx(path)
    if labels.dtype != torch.uint8 or labels.shape != (len(images),) or labels.max() > 9:
        raise ValueError(
            f"{path}: expected {len(images)} uint8 labels in 0..9, got {labels.dtype} {tuple(labels.shape)} "
            f"up to {labels.max() if labels.numel() else 'nothing'}: take images and labels from the same set"
        )
    shape = (-1, 784) if flatten else (-1, 1, 28, 28)
    return Split(images.float().div_(255).reshape(shape), labels.long())


def _find_idx(folder: Path, stem: str, kind: str) -> Path:
    for separator in "-.":
        for suffix in ("", ".gz"):
            if (path := folder / f"{stem}{separator}{kind}{suffix}").is_file():
                return path
    raise FileNotFoundError(
        f"no {stem}-{kind} (or {stem}.{kind}, plain or .gz) in {folder}: "
        "put the four MNIST files there, or name their folder with data_dir"
    )


def read_idx(path: str | os.PathLike[str]) -> Tensor:
    """Read one array from an IDX file, the format of the MNIST distribution.

    Args:
        path: The file; gzip is recognised by its content, not by its name.

    Returns:
        The array, in native byte order and in the dtype of the file: uint8, int8, int16, int32, float32 or
        float64.

    Raises:
        ValueError: A corrupt gzip stream, a header that is not IDX, or a length that contradicts the header.
    """
    content = Path(path).read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: corrupt gzip ({_one_line(error)}): fetch the file again") from error
    known = len(content) >= 4 and content[:2] == b"\0\0" and content[2] in _IDX_TYPES
    if not (known and 1 <= content[3] <= 32):
        raise ValueError(
            f"{path}: expected an IDX header (00 00, type code, number of dimensions), "
            f"got {content[:4].hex(' ') or 'an empty file'}: this is not an IDX file"
        )
    dtype, start = np.dtype(_IDX_TYPES[content[2]]), 4 + 4 * content[3]
    if len(content) < start:
        raise ValueError(
            f"{path}: truncated, expected a header of {start} bytes, got {len(content)}: fetch the file again"
        )
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    expected, arrived = math.prod(shape) * dtype.itemsize, len(content) - start
    if arrived != expected:
        raise ValueError(
            f"{path}: {'truncated' if arrived < expected else 'too long'}, expected {expected} bytes of data "
            f"for shape {shape}, got {arrived}: fetch the file again"
        )
    array = np.frombuffer(content, dtype, offset=start)
    return torch.from_numpy(array.astype(dtype.newbyteorder("="))).reshape(shape)


def npz(path: str | os.PathLike[str]) -> Data:
    """Read a data set of the user's own from a NumPy archive; pickled objects are refused.

    Args:
        path: An ``.npz`` file with ``features`` ``(n, ...)`` and ``labels`` ``(n, ...)``, and optionally
            both ``test_features`` and ``test_labels``.

    Returns:
        The data set, named after the file. Features become float32. Integer labels become int64 class
        indices, and ``classes`` is the largest of them plus one; floating labels become float32.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The file is damaged or holds pickled objects; an array is missing, has the wrong dtype
            or length, or holds NaN or infinities.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: pass the path of an .npz with 'features' and 'labels'")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: expected a zip archive, got another or a truncated file: {_SAVE_NPZ}")
    wanted = {"features", "labels"}
    try:
        with np.load(path, allow_pickle=False) as archive:
            found = set(archive.files)
            if found & {"test_features", "test_labels"}:
                wanted |= {"test_features", "test_labels"}
            arrays = {key: np.asarray(archive[key]) for key in sorted(wanted & found)}
    except _UNREADABLE as error:
        raise ValueError(f"{path}: expected plain arrays, cannot read it ({_one_line(error)}): {_SAVE_NPZ}") from error
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


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def load(name: str | os.PathLike[str], data_dir: str | os.PathLike[str] | None = None) -> Data:
    """Load a data set by name, as the command line does.

    Args:
        name: ``"mnist1d"``, ``"digits"``, ``"mnist"``, or a path that ends in ``.npz``.
        data_dir: Where the files of ``"mnist"`` lie; the others need none.

    Returns:
        The data set, with the defaults of its own function.

    Raises:
        ValueError: An unknown name, ``"mnist"`` without ``data_dir``, or a damaged file.
        FileNotFoundError: A file is missing.
        ImportError: ``"digits"`` without scikit-learn.
    """
    name = os.fspath(name)
    if name.endswith(".npz"):
        return npz(name)
    if name == "mnist1d":
        return mnist1d()
    if name == "digits":
        return digits()
    if name == "mnist":
        if data_dir is None:
            raise ValueError("mnist needs data_dir, got none: name the folder with its four IDX files")
        return mnist(data_dir)
    close = difflib.get_close_matches(name, NAMES, 1)
    hint = f": did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"data must be one of {', '.join(NAMES)} or a path ending in .npz, got {name!r}{hint}")
