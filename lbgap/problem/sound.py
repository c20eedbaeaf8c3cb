"""What no measure can use, refused: batches whose parts disagree, or that are not finite."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lbgap.problem import trees
from lbgap.problem.batch import Batch
from lbgap.problem.sources.base import EMPTY
from lbgap.problem.sources.leaves import Path, located, parts
from lbgap.problem.splits import Split
from lbgap.problem.trees import Tree

ROLES = ("inputs", "targets")


def sound(batch: Batch, where: str = "data", start: int = 0, roles: tuple[str, str] = ROLES) -> Batch:
    """Refuse what no measure can use; make integer targets that are one tensor int64, but for booleans.

    Args:
        batch: Some samples.
        where: What a message calls them.
        start: The index of the first of them.
        roles: What a message calls inputs and targets.

    Raises:
        TypeError: Something stands in it that is no tensor, number or None.
        ValueError: No samples, lengths or devices that disagree, or NaN or infinite values; an infinity is allowed in
            a part with "mask" in its name.
    """
    inputs, targets = batch
    if isinstance(inputs, Tensor) and isinstance(targets, Tensor):
        _check_lengths(inputs, targets, where, roles)
    if batch.size == 0:
        raise ValueError(EMPTY)
    named = _named(batch, roles)
    devices = {tensor.device: path for path, tensor in named}
    if len(devices) > 1:
        one, other = [*devices][:2]
        pair = len(named) == 2 and isinstance(inputs, Tensor)
        parts_of = f"{roles[0]} and {roles[1]}" if pair else f"{located(devices[one])} and {located(devices[other])}"
        raise ValueError(f"expected {parts_of} on one device, got {one} and {other}: move them with .to(device)")
    for path, tensor in named:
        masked = any("mask" in step.lower() for step in path if isinstance(step, str))
        if (bad := first_not_finite(tensor, masked=masked)) is None:
            continue
        at = f"sample {start + bad}" if batch.cuttable else where
        if not masked:
            raise ValueError(
                f"expected finite {located(path)}, got NaN or infinity, first in {at}: repair or remove it"
            )
        raise ValueError(f"expected numbers in {located(path)}, got NaN, first in {at}: repair or remove it")
    return settled(batch)


def settled(batch: Batch) -> Batch:
    """The same with integer targets that are one tensor as int64, but for booleans."""
    targets = batch.targets
    if not isinstance(targets, Tensor) or targets.is_floating_point() or targets.is_complex():
        return batch
    return batch if targets.dtype in (torch.int64, torch.bool) else Batch(batch.inputs, targets.long())


def checked(split: Split, roles: tuple[str, str] = ROLES) -> Split:
    """Refuse inputs and targets that no measure can use; make integer targets int64, but for booleans.

    Args:
        split: Both.
        roles: What a message calls them.

    Raises:
        ValueError: As :func:`sound`.
    """
    _check_lengths(*split, "data", roles)
    batch = sound(Batch(*split), roles=roles)
    return split if batch.targets is split.targets else Split(*batch)


def _named(batch: Batch, roles: tuple[str, str]) -> list[tuple[Path, Tensor]]:
    """All tensors of a batch, each once, with what leads to them."""
    found: dict[int, tuple[Path, Tensor]] = {}
    for role, tree in zip(roles, batch, strict=True):
        for path, leaf in parts(tree, (role,)):
            if isinstance(leaf, Tensor):
                found.setdefault(id(leaf), (path, leaf))
            elif isinstance(leaf, list):  # of numbers: one for each sample would not be cut with the rest
                if batch.cuttable and len(leaf) == batch.size:
                    _refuse(path, leaf)
            elif not isinstance(leaf, int | float | complex | None):
                _refuse(path, leaf)
    if not found:
        raise TypeError(
            "expected tensors in each batch, got one without any: pass (inputs, targets), or a dict of tensors"
        )
    return [*found.values()]


def _refuse(path: Path, leaf: Any) -> None:
    name = next((step for step in path[1:] if isinstance(step, str)), None)
    remedy = "convert it, or leave it out"
    if name is not None:
        remedy = f"leave {name!r} out (a Hugging Face data set: set_format('torch', columns=[...])), or encode it"
    raise TypeError(f"expected {located(path)} as tensors or numbers, got a {type(leaf).__name__}: {remedy}")


def without_text(tree: Tree, notes: list[str]) -> Tree:
    """A dict without its columns of strings, which a loss has no use for; a note names them."""
    if not isinstance(tree, dict):
        return tree
    texts = [name for name, part in tree.items() if trees.is_text(part)]
    if not texts:
        return tree
    note = f"columns of strings are left out: {', '.join(map(repr, texts))}"
    if note not in notes:
        notes.append(note)
    return {name: part for name, part in tree.items() if name not in texts}


def _check_lengths(inputs: Tensor, targets: Tensor, where: str, roles: tuple[str, str]) -> None:
    for role, part in zip(roles, (inputs, targets), strict=True):
        if part.dim() == 0:
            raise ValueError(f"{where}: expected {role} of shape (n, ...), got a single number: add a dimension")
    if len(inputs) != len(targets):
        raise ValueError(
            f"{where}: expected as many {roles[1]} as {roles[0]}, got {len(inputs)} {roles[0]} and "
            f"{len(targets)} {roles[1]}: pass one target per sample"
        )


def first_not_finite(part: Tensor, *, masked: bool = False) -> int | None:
    """The index of the first sample with a NaN or an infinity, without a mask as large as the data.

    Args:
        part: ``(n, ...)``, or a number.
        masked: Whether an infinity is meant.
    """
    if part.numel() == 0 or not (part.is_floating_point() or part.is_complex()) or part.is_meta:
        return None
    if part.layout != torch.strided or part.is_nested:  # which is of one batch
        return 0 if any(first_not_finite(one, masked=masked) is not None for one in trees.stored(part)) else None
    rows = len(part) if part.dim() else 1
    flat = (torch.view_as_real(part.detach()) if part.is_complex() else part.detach()).reshape(rows, -1)
    low, high = flat.aminmax()
    if masked:
        return None if not (torch.isnan(low) or torch.isnan(high)) else int(flat.isnan().any(1).nonzero()[0])
    if torch.isfinite(low) and torch.isfinite(high):
        return None
    return int(torch.isfinite(flat).all(1).logical_not().nonzero()[0])
