"""What the machine can do, where it decides how something is computed."""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CPU_CACHE_BYTES = 32 * 2**20
GPU_BATCH_BYTES = 2 * 2**30
BATCH_SHARE = 4  # a micro-batch takes at most a quarter of the free memory of a GPU
RESIDENT_SHARE = 2  # and the data at most a half of it, or they stay on the host


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


@contextlib.contextmanager
def repeatable(device_type: str) -> Iterator[None]:
    """Let cuDNN choose kernels that repeat their bits, and not by a timing; the caller's settings are put back."""
    cudnn: Any = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    try:
        if device_type == "cuda":
            cudnn.deterministic, cudnn.benchmark = True, False
        yield
    finally:
        if device_type == "cuda":
            cudnn.deterministic, cudnn.benchmark = before


def scalars_on_host() -> contextlib.AbstractContextManager[Any]:
    """Around a step of an optimiser of torch, or its making: counts that it keeps stand where they do by default.

    They have no device of their own, so that they would follow the caller's default one, and with it what is saved of a
    training. No code of the caller's runs inside.
    """
    return contextlib.nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")


def free_bytes(device: torch.device) -> int:
    """Bytes that new tensors on a CUDA device may take: those that are free, and those that torch holds unused."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def batch_budget(device: torch.device) -> int:
    """Bytes of activations that one micro-batch may take: the cache of a CPU, a share of a GPU's memory.

    A constant for each kind of device, so that the same call makes the same micro-batches everywhere; less where a
    GPU has little memory left, and then a power of two, so that it does not follow every small change of it.
    """
    if device.type == "cpu":
        return CPU_CACHE_BYTES
    if device.type != "cuda":
        return GPU_BATCH_BYTES
    share = max(1, free_bytes(device) // BATCH_SHARE)
    return min(GPU_BATCH_BYTES, 1 << (share.bit_length() - 1))


def fit(tensors: Iterable[Tensor], device: torch.device, dtype: torch.dtype) -> bool:
    """Whether data may lie on a device, floating ones as ``dtype``: always, but on a GPU beside what it computes."""
    if device.type != "cuda":
        return True
    needed = 0
    for tensor in tensors:
        there = tensor.device == device and (tensor.dtype == dtype or not tensor.is_floating_point())
        size = dtype.itemsize if tensor.is_floating_point() else tensor.element_size()
        needed += 0 if there else size * tensor.numel()
    return needed <= free_bytes(device) // RESIDENT_SHARE


def pinned(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A copy in host memory that a GPU can read by itself, so that a transfer from there need not be waited for."""
    return torch.empty_like(tensor, dtype=dtype, device="cpu", pin_memory=True).copy_(tensor)


def read(tensor: Tensor) -> list[float]:
    """Bring a small tensor ``(k,)`` to the host: the one place where a loop waits for its device.

    Only the work enqueued so far is waited for, not all of the device.
    """
    if tensor.device.type == "cuda":
        host = torch.empty_like(tensor, device="cpu", pin_memory=True)
        host.copy_(tensor, non_blocking=True)
        torch.cuda.current_stream(tensor.device).record_event().synchronize()
        tensor = host
    values: list[float] = tensor.tolist()
    return values


def release(device: torch.device) -> None:
    """Give back the memory that nobody uses any more, after a device ran out of it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


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


def usable(device: str | torch.device | None, default: torch.device) -> torch.device:
    """Find the device that a user named.

    Args:
        device: ``"cpu"``, ``"cuda"`` (the current one), ``"cuda:N"``, or ``None``.
        default: For ``None``.

    Raises:
        ValueError: It is none of these, or this machine does not have it.
    """
    try:
        place = default if device is None else torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be 'cpu', 'cuda' or 'cuda:N', got {device!r}") from error
    if place.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be 'cpu' or 'cuda', got {str(place)!r}: pass device='cpu'")
    if place.type == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if count == 0:
        raise ValueError(f"device is {str(place)!r}, but this PyTorch sees no GPU: pass device='cpu'")
    index = torch.cuda.current_device() if place.index is None else place.index
    if index >= count:
        raise ValueError(f"device is {str(place)!r}, but there are {count} GPUs: pass a number below {count}")
    return torch.device("cuda", index)


def first_line(error: BaseException) -> str:
    """What an error says, on one line."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
