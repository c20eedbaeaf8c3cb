"""The command ``lbgap info``."""

from __future__ import annotations

from typing import Any

from lbgap.cli.options import AsJson
from lbgap.cli.show import escape, new_grid, show


def info(as_json: AsJson = False) -> None:
    """Show versions, which library serves which device, compiler, SIMD level, threads and copy bandwidth."""
    import torch

    from lbgap import _extension
    from lbgap.result import versions
    from lbgap.system import device as hardware

    host = _extension.host
    threads = torch.get_num_threads()
    native = ", ".join(sorted(_extension.NATIVE_DEVICES))
    facts: dict[str, Any] = {
        **versions(),
        "backend": f"native for {native}" if native else "torch: no compiled library (LBGAP_BUILD=0 or no compiler)",
        "compiler": host.compiler() if host else None,
        "flags": host.flags() if host else None,
        "simd": host.simd_level() if host else None,
        "threads": threads,
        "bfloat16 products": hardware.bfloat16_products("cpu"),
        "copy bandwidth GB/s": round(host.copy_bandwidth(1 << 28, threads) / 1e9, 1) if host else None,
        "CUDA of torch": torch.version.cuda,
        "GPU kernels": _gpu_kernels(),
        "GPUs": _gpus(),
    }
    table = new_grid(2)
    for name, value in facts.items():
        table.add_row(name, escape("-" if value is None else str(value)))
    show(as_json, facts, table)


def _gpu_kernels() -> str:
    """For which architectures the CUDA library was compiled, and whether it is loaded."""
    import torch

    from lbgap import _extension

    compiled = _extension.host.cuda_architectures() if _extension.host else ""
    if not compiled:
        return "not built (no CUDA toolkit, or FORCE_CUDA=0)"
    if "cuda" in _extension.NATIVE_DEVICES:
        return f"for compute capability {compiled}"
    return f"for compute capability {compiled}, not loaded: torch {torch.__version__} has no CUDA"


def _gpus() -> list[str] | None:
    """Name, compute capability and backend of every GPU that torch can use."""
    import torch

    from lbgap import _extension

    if not torch.cuda.is_available():
        return None
    found = []
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        backend = _extension.resolve_backend("auto", torch.device("cuda", index))
        found.append(f"{torch.cuda.get_device_name(index)} ({major}.{minor}): {backend}")
    return found
