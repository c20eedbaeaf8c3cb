"""What the machine can do, where it decides how something is computed."""

from __future__ import annotations

import functools
from pathlib import Path

import torch

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


def batch_budget(device_type: str) -> int:
    """Bytes of activations that one micro-batch may take: the cache of a CPU, a share of a GPU's memory.

    A constant for each kind of device, so that the same call makes the same micro-batches everywhere.
    """
    return CPU_CACHE_BYTES if device_type == "cpu" else GPU_BATCH_BYTES
