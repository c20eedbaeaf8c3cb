"""Find and load the compiled libraries, and say which backend serves which device."""

from __future__ import annotations

import importlib.machinery
import importlib.util
from pathlib import Path
from typing import Any

import torch

BACKENDS = ("auto", "native", "torch")


def _find(name: str) -> Path | None:
    """The compiled file of a library beside this one, if it was built."""
    folder = Path(__file__).parent
    suffixes = [*importlib.machinery.EXTENSION_SUFFIXES, ".abi3.so", ".so"]
    return next((path for suffix in suffixes if (path := folder / f"{name}{suffix}").exists()), None)


def _load_cpu() -> bool:
    path = _find("_cpu")
    if path is None:
        return False
    if hasattr(torch.ops.lbgap, "box_project") and str(path.resolve()) not in torch.ops.loaded_libraries:
        # Two registrations of one operator end the process, here or when the first is unloaded.
        raise ImportError(f"another copy of lbgap is loaded in this process: import only one of it and {path.parent}")
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        raise ImportError(
            f"lbgap's compiled library {path.name} does not load with torch {torch.__version__} ({error}): "
            "reinstall lbgap, or set LBGAP_BUILD=0 while installing for the pure-PyTorch package"
        ) from error
    return True


def _load_host() -> Any:
    """The ``_host`` module, or None where it was not built; a broken one raises."""
    return importlib.import_module("lbgap._host") if _find("_host") else None


host: Any = _load_host()
NATIVE_DEVICES: frozenset[str] = frozenset({"cpu"} if _load_cpu() else ())


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
    available = device.type in NATIVE_DEVICES
    if backend == "native" and not available:
        built = f"libraries for {', '.join(sorted(NATIVE_DEVICES))}" if NATIVE_DEVICES else "no compiled library"
        raise ValueError(
            f"backend='native' has no ops for device {device.type!r} (this installation has {built}): "
            "use backend='auto', or reinstall with a C++ compiler"
        )
    return "native" if available and backend != "torch" else "torch"
