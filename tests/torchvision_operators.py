"""The two operators without which torchvision is not imported, where its library is for another build of torch.

The file of torchvision on the package index is built for torch with CUDA. Beside a torch without it its library does
not load, and then it fails while it is imported, as does what imports it: timm, and all models of transformers.
"""

import importlib.util
from pathlib import Path

import torch

_KEPT: list[torch.library.Library] = []  # a library that is freed takes its operators along


def declare() -> None:
    """Declare what torchvision asks for by name, without an implementation, if its own library does not load."""
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None or _KEPT:
        return
    try:
        for library in Path(found.origin).parent.glob("_C*.so"):
            torch.ops.load_library(library)
    except (OSError, RuntimeError):
        own = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            own.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(own)
