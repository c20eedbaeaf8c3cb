"""Find and load the compiled libraries, and say which backend serves which device."""

from __future__ import annotations

import importlib.machinery
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

BACKENDS = ("auto", "native", "torch")


def _find(name: str) -> Path | None:
    """The compiled file of a library beside this one, if it was built."""
    folder = Path(__file__).parent
    suffixes = [*importlib.machinery.EXTENSION_SUFFIXES, ".abi3.so", ".so"]
    return next((path for suffix in suffixes if (path := folder / f"{name}{suffix}").exists()), None)


def _load(name: str) -> bool:
    """Load the library of one device; False where it was not built."""
    path = _find(name)
    if path is None:
        return False
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        raise ImportError(
            f"lbgap's compiled library {path.name} does not load with torch {torch.__version__} ({error}): "
            "reinstall lbgap, or set LBGAP_BUILD=0 while installing for the pure-PyTorch package"
        ) from error
    return True


def _load_devices() -> Iterator[str]:
    """Load what serves this torch: the CPU's library, which has the schemas, then the GPU's where torch has CUDA."""
    path = _find("_cpu")
    registered = hasattr(torch.ops.lbgap, "box_project")
    if path is not None and registered and str(path.resolve()) not in torch.ops.loaded_libraries:
        # Two registrations of one operator end the process, here or when the first is unloaded.
        raise ImportError(f"another copy of lbgap is loaded in this process: import only one of it and {path.parent}")
    if _load("_cpu"):
        yield "cpu"
        if torch.version.cuda is not None and _load("_cuda"):
            yield "cuda"


def _load_host() -> Any:
    """The ``_host`` module, or None where it was not built; a broken one raises."""
    return importlib.import_module("lbgap._host") if _find("_host") else None


host: Any = _load_host()
NATIVE_DEVICES: frozenset[str] = frozenset(_load_devices())


def covers(architectures: str, capability: tuple[int, int]) -> bool:
    """Whether code for some architectures runs on a GPU of this compute capability.

    Args:
        architectures: Such as ``"8.0 9.0+PTX"``: machine code for the GPUs of one major version from that minor one on;
            PTX for every later GPU too.
        capability: Major and minor version.
    """
    for entry in architectures.split():
        major, minor = (int(part) for part in entry.removesuffix("+PTX").rstrip("af").split("."))
        if (major == capability[0] and minor <= capability[1]) or (
            entry.endswith("+PTX") and (major, minor) <= capability
        ):
            return True
    return False


def serves(device: torch.device) -> bool:
    """Whether a compiled library has the ops for a device, and for the generation of a GPU."""
    if device.type not in NATIVE_DEVICES:
        return False
    if device.type != "cuda" or host is None or not torch.cuda.is_available():
        return True
    return covers(host.cuda_architectures(), torch.cuda.get_device_capability(device))


def resolve_backend(backend: str, device: torch.device) -> str:
    """Choose who runs the ops on a device.

    Args:
        backend: ``"auto"``, ``"native"`` or ``"torch"``.
        device: Where the tensors are.

    Returns:
        ``"native"`` or ``"torch"``.

    Raises:
        ValueError: The name is not known, or ``"native"`` is asked for where no library serves the device.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")
    available = serves(device)
    if backend == "native" and not available:
        built = f"libraries for {', '.join(sorted(NATIVE_DEVICES))}" if NATIVE_DEVICES else "no compiled library"
        if device.type in NATIVE_DEVICES:
            built = f"code for GPUs {host.cuda_architectures()}, this one is {torch.cuda.get_device_capability(device)}"
        remedy = (
            "set TORCH_CUDA_ARCH_LIST and reinstall"
            if device.type in NATIVE_DEVICES
            else "reinstall with "
            + ("CUDA's toolkit and a torch with CUDA" if device.type == "cuda" else "a C++ compiler")
        )
        raise ValueError(
            f"backend='native' has no ops for device {device.type!r} (this installation has {built}): "
            f"use backend='auto', or {remedy}"
        )
    return "native" if available and backend != "torch" else "torch"
