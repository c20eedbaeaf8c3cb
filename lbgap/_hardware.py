"""What the machine can do, where it decides how something is computed."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CPU_CACHE_BYTES = 32 * 2**20
GPU_BATCH_BYTES = 2 * 2**30


@functools.cache
def bfloat16_products(device_type: str) -> bool:
    """Whether matrix products in bfloat16 run in hardware, so that ``precision="mixed"`` gains from them."""
    if device_type == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    if device_type != "cpu":
        return False
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False
    return bool({"avx512_bf16", "amx_bf16"} & set(flags))


@contextlib.contextmanager
def full_float32(device_type: str) -> Iterator[None]:
    """Compute float32 products in float32, whatever the caller allows; his settings are put back.

    PyTorch runs convolutions on a GPU in TF32 unless told otherwise, and matrix products where the user asked for
    it, on a CPU in bfloat16. TF32 rounds a weight by up to 5e-4 of itself: as much as the box of a sharpness is wide.
    """
    backends: Any = torch.backends  # whose stubs lack what follows
    cuda = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)
    cpu = (backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn)
    places = {"cuda": cuda, "cpu": cpu}.get(device_type, ())
    reduced = [(place, place.fp32_precision) for place in places if place.fp32_precision not in ("none", "ieee")]
    try:
        for place, _ in reduced:
            place.fp32_precision = "ieee"
        yield
    finally:
        for place, before in reduced:
            place.fp32_precision = "none"  # what a wider setting says, if that is where it came from
            if place.fp32_precision != before:
                place.fp32_precision = before


def batch_budget(device_type: str) -> int:
    """Bytes of activations that one micro-batch may take: the cache of a CPU, a share of a GPU's memory.

    A constant for each kind of device, so that the same call makes the same micro-batches everywhere.
    """
    return CPU_CACHE_BYTES if device_type == "cpu" else GPU_BATCH_BYTES


class SavedBytes:
    """Counts what autograd saves for the backward pass, each storage once."""

    def __init__(self, constant: Iterable[Tensor]) -> None:
        """Begin; ``constant`` tensors do not count, for they do not grow with the batch."""
        self._constant = {_place(tensor) for tensor in constant}
        self._bytes: dict[int, int] = {}

    def note(self, tensor: Tensor) -> Tensor:
        """Take note of one tensor, and hand it on."""
        place = _place(tensor)
        if place and place not in self._constant:
            self._bytes[place] = max(self._bytes.get(place, 0), tensor.nbytes)
        return tensor

    def total(self) -> int:
        """Bytes of all but the constant tensors."""
        return sum(self._bytes.values())


def _place(tensor: Tensor) -> int:
    """Where a tensor lies; 0 where it has no storage of one piece."""
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else 0


def usable(device: str | torch.device) -> torch.device:
    """The device of that name.

    Raises:
        ValueError: There is none, or this installation cannot compute there.
    """
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(f"device {str(device)!r} cannot be used: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """What an error says, on one line."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
