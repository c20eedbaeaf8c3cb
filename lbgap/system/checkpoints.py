"""Weights from the disk, in whichever format: the content of a file decides, not its name, and no code of it runs."""

from __future__ import annotations

import os
import pickle
import re
import stat
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lbgap.system import files
from lbgap.system.device import first_line
from lbgap.system.kinds import Kind, recognise

Weights = dict[str, Any]  # tensors by name; under names that end with `_extra_state` anything

# Where programs keep the weights of a checkpoint that holds more, the usual ones first.
ENTRIES = ("state_dict", "model_state_dict", "model", "module")
# Entries that hold a value for each weight that is none: what optimizers keep, and gradients.
_NO_WEIGHTS = re.compile(r"(?i)(^|[_.\-/ ])(exp_avg|exp_inf|momentum|moments?|velocity|square_avg|grad|optim)")
_IN_FOLDER = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_EXPECTED = (
    "expected a state dict saved by torch.save, a .safetensors file, or the index of several "
    "(model.safetensors.index.json)"
)
MAX_SHOWN = 200  # characters of a path that is none
_SAVE = "torch.save(model.state_dict(), path)"


def read_weights(path: files.PathLike) -> dict[str, Weights]:
    """Read the weights of a file or a folder.

    A file is a state dict of ``torch.save``, or a checkpoint that holds one beside other things; safetensors; or the
    index of weights in several files, which are read one after the other. A folder has one of ``model.safetensors``,
    ``pytorch_model.bin`` or the index of one of these.

    Args:
        path: The file or folder.

    Returns:
        What may be the weights, by the entry of the checkpoint where they stand, ``""`` if they are not under any; the
        likeliest first. Tensors are on the CPU, and may be mapped to the file.

    Raises:
        FileNotFoundError: There is no such file, or one that the index names is missing.
        ValueError: The file is of another kind, holds more than tensors and plain values, has no tensors by name, or
            is damaged; the folder holds none of these files; an index and its files contradict each other.
    """
    path = Path(path)
    if stat.S_ISDIR(_mode(path)):
        path = _in_folder(path)
    if not stat.S_ISREG(_mode(path)):
        raise ValueError(f"{path} is a pipe, a socket or a device, not a file: save what it gives, and pass that")
    kind = recognise(path)
    return {"": _read_index(path)} if kind.format == "json" else _read_file(path, kind)


def _mode(path: Path) -> int:
    """Of a file or folder.

    Raises:
        FileNotFoundError: It is missing.
        PermissionError: It may not be read.
        ValueError: There can be nothing of that name.
    """
    try:
        return path.stat().st_mode
    except (FileNotFoundError, PermissionError):
        raise
    except (OSError, ValueError) as error:
        why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else first_line(error)
        name = str(path).replace("\0", "\\0")
        shown = name if len(name) <= MAX_SHOWN else f"{name[:MAX_SHOWN]}..."
        raise ValueError(f"{shown} is no path of a file or a folder ({why}): pass that of the weights") from error


def _in_folder(folder: Path) -> Path:
    for name in _IN_FOLDER:
        if (folder / name).is_file():
            return folder / name
    names = sorted(entry.name for entry in folder.iterdir())
    if {"state.safetensors", "metrics.jsonl"} <= {*names}:
        raise ValueError(f"{folder} is an unfinished run: finish it, or pass one of the files in {folder / 'iterates'}")
    if "adapter_config.json" in names:
        raise ValueError(f"{folder} holds adapters, not the weights of a model: load it by PeftModel.from_pretrained")
    if ".metadata" in names:
        raise ValueError(
            f"{folder} is a distributed checkpoint: make one file of it by dcp_to_torch_save of "
            "torch.distributed.checkpoint.format_utils"
        )
    if "saved_model.pb" in names:
        raise ValueError(f"{folder} is a TensorFlow model: {_EXPECTED}")
    found = f"it has {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}" if names else "it is empty"
    raise ValueError(f"{folder} has none of {', '.join(_IN_FOLDER)} ({found}): pass the file with the weights itself")


def _read_file(path: Path, kind: Kind) -> dict[str, Weights]:
    """The weights in one file, by entry."""
    if kind.format == "safetensors":
        return {"": dict(files.read_safetensors(path)[0])}
    if kind.format in ("torch", "torch pickles"):
        return _entries(_read_torch(path, kind), path)
    if kind.format == "damaged":
        raise ValueError(f"{path} is {kind.words}: restore or delete it")
    raise ValueError(f"{path} is {kind.words}: {_EXPECTED}")


def _read_torch(path: Path, kind: Kind) -> Any:
    """What a file of ``torch.save`` holds, where that is tensors and plain values alone.

    Raises:
        ValueError: It holds more, or is damaged.
        OSError: It cannot be read.
    """
    # torch.load takes what is called .safetensors for such a file, whatever it is, unless it is open already.
    mapped = kind.format == "torch" and path.suffix != ".safetensors"
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols and storages, which concern who wrote the file
            return torch.load(os.fspath(path) if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} {_refused(str(error), path, kind)}") from None
    except (OSError, MemoryError):
        raise
    except Exception as error:  # torch raises errors of a dozen types about bytes that are not as they should be
        raise ValueError(
            f"{path} is damaged, or of a version of torch that this one does not read ({first_line(error)}): restore "
            f"it, or save the weights anew by {_SAVE}"
        ) from error


def _refused(error: str, path: Path, kind: Kind) -> str:
    """Why ``weights_only=True`` refused a file, by what torch says of it."""
    if found := re.search(r"GLOBAL (\S*[^\s.])\s", error):
        return (
            f"holds more than tensors and plain values ({found[1]}), which is not unpickled here, for that can run any "
            f"code: save the weights alone, {_SAVE}"
        )
    if "operand" in error and (kind.format == "torch" or _protocol(path) != 2):
        return f"was saved with a pickle_protocol of its own, which is not read here: save the weights by {_SAVE}"
    if kind.format == "torch":
        return f"holds more than tensors and plain values, which is not unpickled here: save the weights alone, {_SAVE}"
    return "is damaged, not a torch checkpoint: restore or delete it"


def _protocol(path: Path) -> int:
    """Of the pickle at the start of a file."""
    with path.open("rb") as file:
        return file.read(2)[1]


def _entries(found: Any, path: Path) -> dict[str, Weights]:
    """What may be the weights in a checkpoint, the likeliest first.

    Raises:
        ValueError: Nothing.
    """
    if isinstance(found, Tensor):
        raise ValueError(f"{path} holds one tensor, not tensors by name: save the weights by {_SAVE}")
    if not isinstance(found, Mapping):
        raise ValueError(f"{path} holds {type(found).__name__}, not tensors by name: save the weights by {_SAVE}")
    under = {key: _named(value) for key, value in found.items() if isinstance(value, Mapping)}
    every = {key: under[key] for key in (*ENTRIES, *under) if under.get(key)} | {"": _named(found)}
    unusable = {key: weights for key, weights in every.items() if not isinstance(key, str) or _NO_WEIGHTS.search(key)}
    every = {key: weights for key, weights in every.items() if weights and key not in unusable}
    if not every:
        keys = ", ".join(str(key) for key in [*found][:5]) or "nothing"
        why = "no weights, but what an optimizer keeps" if any(unusable.values()) else "no tensors by name"
        raise ValueError(f"{path} has {why} (it holds {keys}): save the weights by {_SAVE}")
    _check_keys(found, unusable, path)
    if not any(key in ENTRIES for key in every) and "" in every:
        return {"": every.pop(""), **every}
    return every


def _check_keys(found: Mapping[Any, Any], unusable: Mapping[Any, Weights], path: Path) -> None:
    """Refuse weights beside others that are under a key which is no string, and would be left aside.

    Raises:
        ValueError: There are some.
    """
    strange = [key for key, value in found.items() if not isinstance(key, str) and isinstance(value, Tensor)]
    strange += [key for key, weights in unusable.items() if weights and not isinstance(key, str)]
    if strange:
        raise ValueError(
            f"{path} has weights under the key {strange[0]!r}, which is no string, beside others: save those that you "
            f"mean by themselves, by {_SAVE}"
        )


def _named(values: Mapping[Any, Any]) -> Weights:
    """The tensors of a mapping that have names, empty if there are none."""
    named = {key: value for key, value in values.items() if isinstance(key, str)}
    tensors = {key: value.detach() for key, value in named.items() if isinstance(value, Tensor)}
    extra = {key: value for key, value in named.items() if key.endswith("_extra_state")} if tensors else {}
    return {key: tensors.get(key, extra.get(key)) for key in named if key in tensors or key in extra}


def _read_index(path: Path) -> Weights:
    """The weights that an index finds in several files, all of the index's folder."""
    index = files.read_json(path)
    shard_of = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(shard_of, dict) or not shard_of or not all(isinstance(name, str) for name in shard_of.values()):
        raise ValueError(f"{path} is a JSON file without a weight_map, not the index of weights: {_EXPECTED}")
    shards = sorted({*shard_of.values()})
    for shard in shards:
        if shard in ("", ".", "..") or "/" in shard or "\\" in shard or Path(shard).is_absolute() or Path(shard).drive:
            raise ValueError(f"{path} names {shard!r}, which is not a file of its own folder: it is not read")
    missing = [shard for shard in shards if not (path.parent / shard).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{path} names {len(shards)} files, of which {len(missing)} are missing, {missing[0]} first: "
            "put them into its folder"
        )
    weights: Weights = {}
    for shard in shards:
        entries = _read_file(path.parent / shard, recognise(path.parent / shard))
        found = entries.get("", {})
        here = {name for name, place in shard_of.items() if place == shard}
        if found.keys() != here:
            name = min(found.keys() ^ here)
            has = "has" if name in found else "lacks"
            raise ValueError(
                f"{path.parent / shard} {has} {name!r}, other than {path.name} says: the two are not of one set"
            )
        weights.update(found)
    return weights
