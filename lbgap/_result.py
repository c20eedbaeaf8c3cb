"""What all results share: the versions behind them, and a form that JSON knows."""

from __future__ import annotations

import importlib.metadata
import math
import platform
from typing import Any


def versions() -> dict[str, str]:
    """Versions of everything that computes a result."""
    packages = {name: importlib.metadata.version(name) for name in ("lbgap", "torch", "numpy", "scipy")}
    return {"python": platform.python_version(), **packages}


def plain(value: Any) -> Any:
    """Turn a value into what JSON knows; NaN and infinity become None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return value
