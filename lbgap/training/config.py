"""The facts that a training depends on, as ``config.json`` holds them, and their comparison on a resume."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lbgap.datasets import Split
from lbgap.result import own_version
from lbgap.system.files import digest

FORMAT = "lbgap training run, format 1"
DIGITS = 32  # of a digest: the first 128 bits

_ABSENT = object()
# What may change without changing a bit of the result, or is taken from where the training began.
_FREE = {"model.start", "environment.python", "environment.numpy", "coupled", "notes"}


def describe_model(model: nn.Module) -> dict[str, Any]:
    """Name a model: its class, its size, and a digest of the values it starts from.

    Args:
        model: The model before training.

    Returns:
        ``name``, ``parameters`` and ``trainable`` (scalars; tied ones count once), ``dtype`` and ``start``.
    """
    parameters = list(model.parameters())
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    values = [value for value in model.state_dict().values() if isinstance(value, Tensor)]
    return {
        "name": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in parameters),
        "trainable": sum(parameter.numel() for parameter in trainable),
        "dtype": str(trainable[0].dtype).removeprefix("torch."),
        "start": digest(values)[:DIGITS],
    }


def describe_data(split: Split) -> dict[str, Any]:
    """Name a data set by its size and by a digest of its bytes.

    Args:
        split: The samples as the user passed them.

    Returns:
        ``samples``, ``shape`` of one input, ``dtype`` of the inputs and ``digest``.
    """
    return {
        "samples": len(split.inputs),
        "shape": list(split.inputs.shape[1:]),
        "dtype": str(split.inputs.dtype).removeprefix("torch."),
        "digest": digest(split)[:DIGITS],
    }


def describe_environment(device: torch.device, packages: Sequence[str] = ()) -> dict[str, Any]:
    """Name the versions and the hardware that decide about rounding.

    Args:
        device: Where the training runs.
        packages: Others that the training uses.

    Returns:
        Versions (``None`` for an lbgap that is not installed), ``device``, its ``hardware``,
        ``threads``, and the precision of matrix products.
    """
    cuda = device.type == "cuda"
    return {
        "lbgap": own_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "device": device.type,
        "hardware": torch.cuda.get_device_name(device) if cuda else torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        **{name: importlib.metadata.version(name) for name in packages},
    }


def differences(there: Mapping[str, Any], here: Mapping[str, Any], *, ignore: str = "") -> list[str]:
    """List the settings on which two configurations disagree, apart from those that change no bit.

    Args:
        there: What ``config.json`` says.
        here: What this call would write.
        ignore: A top-level key to leave out.

    Returns:
        One phrase a setting, its key dotted, with both values.
    """
    old, new = _flat(there), _flat(here)
    phrases = []
    for key in sorted(old.keys() | new.keys()):
        first, second = old.get(key, _ABSENT), new.get(key, _ABSENT)
        if first != second and key not in _FREE and key.split(".")[0] != (ignore or None):
            phrases.append(f"{key} is {_show(first)} there but {_show(second)} here")
    return phrases


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _show(value: object) -> str:
    return "absent" if value is _ABSENT else repr(value)
