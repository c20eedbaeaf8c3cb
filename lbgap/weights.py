"""Weights from the disk into a model: which name is which, and what does not fit."""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lbgap.system import checkpoints

# What DistributedDataParallel, torch.compile, activation checkpoints and FSDP put into the names of what they wrap.
_WRAPPERS = {"module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}
_AVERAGED = "n_averaged"  # AveragedModel counts what it has averaged
_COUNT = "num_batches_tracked"  # of batch-norm, which torch before 0.4.1 did not write
_REAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32)


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> nn.Module:
    """Fill a model with the weights of a file, and return it.

    The file may be a state dict saved by ``torch.save``; a checkpoint that holds one under ``"state_dict"``,
    ``"model_state_dict"``, ``"model"``, ``"module"`` or any other name, beside what else a training keeps; a
    ``.safetensors`` file; the index of weights in several files (``model.safetensors.index.json``,
    ``pytorch_model.bin.index.json``); or a folder with one of these, as ``save_pretrained`` and
    :func:`lbgap.train` write it. What is in it decides, not how it is called. Nothing is unpickled but tensors and
    plain values (``weights_only=True``).

    Names may differ by what wraps a model: ``module.`` and ``_orig_mod.`` (DistributedDataParallel, ``torch.compile``,
    AveragedModel) are read past, in the file and in the model, and so is one first part that all names of either have
    in common (Lightning's ``model.``). All tensors of the model have to be there and none may be left over, but for the
    counters of batch-norm and of AveragedModel; where the model has one tensor under two names, one of them is enough.

    Args:
        model: The network; its parameters and buffers are overwritten in place, with their dtypes and devices. Whether
            it trains or evaluates stays as it is.
        path: The file or folder. Floating-point weights are rounded to the model's dtype.

    Returns:
        The same model.

    Raises:
        FileNotFoundError: There is no such file, or one of several is missing.
        ValueError: The file is of another kind, holds objects that would have to be unpickled, or is damaged; tensors
            are missing, left over, of another shape or kind (complex, boolean or whole numbers for floating-point
            ones), quantised or sparse; several entries of a checkpoint fit. The model is then as it was.
        TypeError: ``model`` is not a module or ``path`` not a path.

    Example:
        >>> import tempfile, torch, lbgap
        >>> trained = torch.nn.Linear(3, 1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"epoch": 7, "state_dict": trained.state_dict()}, f"{folder}/last.ckpt")
        ...     model = lbgap.load_weights(torch.nn.Linear(3, 1), f"{folder}/last.ckpt")
        >>> torch.equal(model.weight, trained.weight)
        True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path must be that of a file or a folder, got {type(path).__name__}")
    entries = checkpoints.read_weights(path)
    if len(entries) == 1:
        (weights,) = entries.values()
        return fill(model, weights, os.fspath(path))
    own = _own(model)
    matches = {entry: _closest(own, weights) for entry, weights in entries.items()}
    fits = [entry for entry, match in matches.items() if not match.problems]
    meant = [entry for entry in checkpoints.ENTRIES if entry in matches and entry not in fits]
    if near := [entry for entry in meant if matches[entry].is_near]:
        fits = near[:1]  # to be refused: another entry that fits is of other weights
    if len(fits) > 1:
        listed = ", ".join(repr(entry) if entry else "no entry" for entry in fits)
        raise ValueError(
            f"{os.fspath(path)} holds several weights that fit the model, under {listed}: save those that you mean by "
            f"themselves, for example torch.save(torch.load(path)[{max(fits, key=bool)!r}], ...)"
        )
    entry = next(iter(fits or entries))
    others = ", ".join(repr(other) for other in entries if other not in ("", entry))
    beside = f" (it also has {others})" if others else ""
    source = f"entry {entry!r} of {os.fspath(path)}" if entry else os.fspath(path)
    return fill(model, entries[entry], source + beside)


def fill(model: nn.Module, weights: Mapping[str, Any], source: str) -> nn.Module:
    """Copy named tensors into a model that has exactly those; see :func:`load_weights`.

    Args:
        model: The network.
        weights: A ``state_dict``, on any device.
        source: Where the tensors come from, for the message.

    Returns:
        The same model.

    Raises:
        ValueError: They do not fit, or the model's shapes or values are not known yet.
    """
    own = _own(model)
    match = _closest(own, weights)
    refused = f"the weights of {source} do not fit the model"
    if match.problems:
        raise ValueError(f"{refused}: {_listed(match.problems)}{match.remedy}")
    pairs = {name: weights[other] for name, other in match.names.items()}
    wrong = [problem for name, value in pairs.items() if (problem := _other_kind(name, value, own[name]))]
    if wrong:
        raise ValueError(f"{refused}: {_listed(wrong)}; convert these tensors and save them anew")
    for names in _tied(own):
        given = [name for name in names if name in pairs]
        for name in given[1:]:
            if not _equal(pairs[given[0]], pairs[name]):
                raise ValueError(f"{refused}: {given[0]!r} and {name!r} are one tensor of the model, but differ there")
        pairs |= {name: pairs[given[0]] for name in names if given}
    before = {name: value.clone() if isinstance(value, Tensor) else value for name, value in own.items()}
    try:
        model.load_state_dict({name: pairs.get(name, value) for name, value in own.items()})
    except RuntimeError as error:  # of a model that reads weights in a way of its own
        with torch.no_grad():
            for name, value in model.state_dict().items():
                if isinstance(value, Tensor) and isinstance(before.get(name), Tensor):
                    value.copy_(before[name])
        raise ValueError(f"{refused}: {' '.join(str(error).split())}") from error
    return model


class _Match(NamedTuple):
    """One way to read the names: that of the file for each of the model's, and what then does not fit.

    Attributes:
        names: Of the model, to those of the file.
        missing: Problems of names that the file lacks.
        left: Of names that the model lacks.
        shapes: Of values that have another shape.
    """

    names: dict[str, str]
    missing: list[str]
    left: list[str]
    shapes: list[str]

    @property
    def problems(self) -> list[str]:
        """All of them."""
        return [*self.missing, *self.left, *self.shapes]

    @property
    def is_near(self) -> bool:
        """Whether these are weights of the model, and others beside them or but for a few."""
        few = not self.missing or len(self.problems) <= len(self.names)
        return bool(self.names and self.problems) and not self.shapes and few

    @property
    def remedy(self) -> str:
        """What to do where the file has more than the model."""
        if not self.left or self.missing or self.shapes:
            return ""
        return (
            "; what is left over belongs around the model (to a loss?): load all into the module that was saved, or "
            "save the rest by itself"
        )


def _own(model: nn.Module) -> dict[str, Any]:
    """The state of a model that has a place for each value.

    Raises:
        ValueError: It has not.
    """
    own = dict(model.state_dict())
    for name, value in own.items():
        if is_lazy(value):
            raise ValueError(f"parameter {name!r} of the model has no shape yet: run one batch through the model first")
        if isinstance(value, Tensor) and (why := _unwritable(value)):
            raise ValueError(f"{name!r} of the model {why}")
    return own


def _unwritable(value: Tensor) -> str | None:
    """Why nothing can be written into a tensor, or ``None`` if it can."""
    if value.is_meta:
        return (
            "is on the meta device, where nothing can be loaded: build the model on a real one, or move it by "
            "model.to_empty(device='cpu')"
        )
    if value.is_inference() and not torch.is_inference_mode_enabled():
        return "was made in inference mode, and cannot be written: build the model outside of torch.inference_mode()"
    if value.layout is torch.strided and any(
        step == 0 < size - 1 for step, size in zip(value.stride(), value.shape, strict=True)
    ):
        return "is expanded, so that its values are one in memory: clone it in the model"
    return None


def _closest(own: Mapping[str, Any], weights: Mapping[str, Any]) -> _Match:
    """The first way to read the names by which all fit, or that by which fewest do not."""
    again = {name for names in _tied(own) for name in names[1:]}
    found = [_compare(own, weights, *names) for names in _readings([*own], again, [*weights])]
    parts = (_compare(own, weights, *names) for names in _parts([*own], [*weights]))
    found += [match for match in parts if not match.missing and not match.shapes]
    return min(found, key=lambda match: len(match.problems))


def _readings(own: list[str], again: set[str], stored: list[str]) -> Iterator[tuple[dict[str, str], dict[str, str]]]:
    """Ways to read the names of the model and of the file: what to compare, to the name itself.

    Args:
        own: Those of the model.
        again: Of these, further names of one tensor: a head that is tied to the embeddings of the part below it.
        stored: Those of the file.
    """
    yield _keyed(own, str), _keyed(stored, str)
    mine, others = _keyed(own, _unwrapped), _keyed(stored, _unwrapped)
    yield mine, others
    yield mine, _keyed(stored, functools.partial(_with_norm, {*mine}))
    once = {key: name for key, name in mine.items() if name not in again}
    for one, two in ((mine, _shorter(others)), (_shorter(once), others)):
        if one and two:
            yield one, two


def _parts(own: list[str], stored: list[str]) -> Iterator[tuple[dict[str, str], dict[str, str]]]:
    """Ways to read the names of a part of what the file has, as the network beside a loss; see :func:`_readings`."""
    mine, others = _keyed(own, _unwrapped), _keyed(stored, _unwrapped)
    counts = Counter(name.partition(".")[0] for name in others if "." in name)
    for part in (f"{first}." for first, count in counts.items() if count >= len(mine) / 2):
        inside = {key.removeprefix(part): name for key, name in others.items() if key.startswith(part)}
        yield mine, inside | {f"/{key}": name for key, name in others.items() if not key.startswith(part)}


def _keyed(names: Iterable[str], key: Callable[[str], str]) -> dict[str, str]:
    """Names by what they are compared by: themselves, if two of them were the same."""
    names = [*names]
    keyed = {key(name): name for name in names}
    return keyed if len(keyed) == len(names) else {name: name for name in names}


def _unwrapped(name: str) -> str:
    *above, last = name.split(".")
    return ".".join([*(part for part in above if part not in _WRAPPERS), last])


def _with_norm(own: set[str], name: str) -> str:
    """What a tensor of the older weight-norm is called in the newer one, if the model has that: torch reads both."""
    plain = _unwrapped(name)
    place, _, kind = plain.rpartition("_")
    above, _, tensor = place.rpartition(".")
    now = f"{above}.".lstrip(".") + f"parametrizations.{tensor}.original{'gv'.find(kind)}"
    return now if kind in ("g", "v") and now in own else plain


def _shorter(names: Mapping[str, str]) -> dict[str, str]:
    """The same without the first part, if all have it in common; else none."""
    parts = {key: key.partition(".") for key in names if key != _AVERAGED}
    if len({first for first, _, _ in parts.values()}) != 1 or not all(rest for _, _, rest in parts.values()):
        return {}
    return {parts[key][2] if key in parts else key: name for key, name in names.items()}


def _compare(
    own: Mapping[str, Any], weights: Mapping[str, Any], mine: Mapping[str, str], others: Mapping[str, str]
) -> _Match:
    """Pair the names by what they are compared by."""
    names = {name: others[key] for key, name in mine.items() if key in others}
    tied = {name for group in _tied(own) if not names.keys().isdisjoint(group) for name in group}
    spared = {name for name in own if name in tied or name.rpartition(".")[2] == _COUNT} | _counter(own)
    missing = [f"{name!r} is missing" for name in own if name not in names and name not in spared]
    counter = _counter(weights)
    left = [f"{name!r} is not in the model" for key, name in others.items() if key not in mine and name not in counter]
    shapes = [
        f"{name!r} has shape {tuple(weights[other].shape)}, the model needs {tuple(own[name].shape)}"
        for name, other in names.items()
        if _has_shape(name, own[name]) and _has_shape(other, weights[other]) and own[name].shape != weights[other].shape
    ]
    return _Match(names, missing, left, shapes)


def _has_shape(name: str, value: Any) -> bool:
    """Whether a value is a parameter or buffer, or could be one: what modules keep beside these may be anything."""
    return isinstance(value, Tensor) and not value.is_nested and not name.endswith("_extra_state")


def _counter(names: Iterable[str]) -> set[str]:
    """That of AveragedModel, if the names are of one."""
    rest = [name for name in names if name != _AVERAGED]
    return {_AVERAGED} if all(name.startswith("module.") for name in rest) else set()


def _tied(own: Mapping[str, Any]) -> list[list[str]]:
    """The names of each tensor that has several."""
    names: dict[object, list[str]] = {}
    for name, value in own.items():
        if type(value) is Tensor and value.layout is torch.strided and value.numel():
            place = (value.data_ptr(), value.device, value.shape, value.stride(), value.dtype)
            names.setdefault(place, []).append(name)
    return [group for group in names.values() if len(group) > 1]


def _equal(one: Tensor, other: Tensor) -> bool:
    return bool(one.shape == other.shape and torch.eq(one, other).logical_or(one.isnan() & other.isnan()).all())


def _other_kind(name: str, value: Any, own: Any) -> str | None:
    """Why a value cannot stand for the model's, or ``None`` if it can."""
    if not _has_shape(name, own):
        return None
    if type(value) not in (Tensor, nn.Parameter, type(own)):
        return f"{name!r} is a {type(value).__name__}, the model needs a plain {_word(own.dtype)} tensor"
    if value.layout is not torch.strided or value.is_quantized or value.is_nested:
        kind = "quantised" if value.is_quantized else "nested" if value.is_nested else "sparse"
        return f"{name!r} is {kind}, the model needs a plain {_word(own.dtype)} tensor"
    if value.is_meta:
        return f"{name!r} is on the meta device and has no values"
    if value.dtype == own.dtype:
        return None
    if not any(value.dtype in kind and own.dtype in kind for kind in (_REAL, _WHOLE)):
        return f"{name!r} is {_word(value.dtype)}, the model needs {_word(own.dtype)}"
    if not _holds(own.dtype, value):
        return f"{name!r} has values beyond {_word(own.dtype)}, the dtype of the model"
    return None


def _holds(dtype: torch.dtype, value: Tensor) -> bool:
    """Whether the values are within the range of a dtype of the same kind."""
    there = value.to(dtype)
    if dtype in _WHOLE:
        return torch.equal(there.to(torch.int64), value.to(torch.int64))
    return bool((there.isfinite() == value.isfinite()).all())


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _listed(problems: list[str]) -> str:
    more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
    return f"{', '.join(problems[:3])}{more}"
