"""MNIST, from its four IDX files."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from lbgap.datasets._download import Source, fetch
from lbgap.datasets.idx import read_idx
from lbgap.problem.samples import Data, Split

# Sizes and SHA-256 sums are those that TensorFlow Datasets publishes for the same files.
_MIRRORS = ("https://storage.googleapis.com/cvdf-datasets/mnist/", "https://ossci-datasets.s3.amazonaws.com/mnist/")
_FILES = {
    "train-images": (9_912_422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
    "train-labels": (28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
    "t10k-images": (1_648_877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
    "t10k-labels": (4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
}


def mnist(
    data_dir: str | os.PathLike[str], flatten: bool = True, *, download: bool = False, progress: bool = False
) -> Data:
    """Read MNIST from its four IDX files, plain or gzipped.

    Args:
        data_dir: The folder with ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and the two
            ``t10k`` files; ``train-images.idx3-ubyte`` and the suffix ``.gz`` are recognised as well.
        flatten: Whether to return the images as vectors.
        download: Whether to fetch those that are missing, 11 MiB in all, each checked by its SHA-256; the folder
            is made if there is none.
        progress: Whether to show on standard error how much has arrived.

    Returns:
        Inputs ``(n, 784)``, or ``(n, 1, 28, 28)`` without ``flatten``, float32 in [0, 1]; targets ``(n,)``
        int64. The 60,000 training and 10,000 test images are those of the files.

    Raises:
        FileNotFoundError: One of the files is missing.
        ValueError: One of them is damaged, or does not hold 28x28 images or one label for each; or what was fetched
            has another checksum, and was discarded.
        ConnectionError: A file cannot be fetched; what arrived is kept, and the same call goes on from there.
    """
    folder = Path(data_dir)
    if download:
        for stem, (size, sha256) in _FILES.items():
            if _find(folder, stem) is None:
                name = f"{stem}-{_kind(stem)}.gz"
                fetch(Source(name, tuple(mirror + name for mirror in _MIRRORS), size, sha256), folder, progress)
    return Data("mnist", _read(folder, "train", flatten), _read(folder, "t10k", flatten), 10)


def _read(folder: Path, part: str, flatten: bool) -> Split:
    path = _found(folder, f"{part}-images")
    labels_path = _found(folder, f"{part}-labels")
    images = read_idx(path)
    if images.dtype != torch.uint8 or images.shape[1:] != (28, 28) or len(images) == 0:
        raise ValueError(
            f"{path}: expected uint8 images of shape (n, 28, 28), got {images.dtype} {tuple(images.shape)}: "
            "this is not an MNIST image file"
        )
    labels = read_idx(labels_path)
    if labels.dtype != torch.uint8 or labels.shape != (len(images),) or labels.max() > 9:
        raise ValueError(
            f"{labels_path}: expected {len(images)} uint8 labels in 0..9, got {labels.dtype} {tuple(labels.shape)} "
            f"up to {labels.max() if labels.numel() else 'nothing'}: take images and labels from the same set"
        )
    shape = (-1, 784) if flatten else (-1, 1, 28, 28)
    return Split(images.float().div_(255).reshape(shape), labels.long())


def _kind(stem: str) -> str:
    return "idx3-ubyte" if stem.endswith("images") else "idx1-ubyte"


def _find(folder: Path, stem: str) -> Path | None:
    for separator in "-.":
        for suffix in ("", ".gz"):
            if (path := folder / f"{stem}{separator}{_kind(stem)}{suffix}").is_file():
                return path
    return None


def _found(folder: Path, stem: str) -> Path:
    path = _find(folder, stem)
    if path is None:
        kind = _kind(stem)
        raise FileNotFoundError(
            f"no {stem}-{kind} (or {stem}.{kind}, plain or .gz) in {folder}: "
            "put the four MNIST files there, name their folder with data_dir, or fetch them with download=True"
        )
    return path
