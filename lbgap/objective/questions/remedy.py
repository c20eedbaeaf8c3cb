"""Modules that cache something made of their parameters in evaluation mode: they are kept in training mode, alone."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from lbgap.flat import FlatModule
from lbgap.layers import displace
from lbgap.objective.questions.case import Case
from lbgap.objective.questions.fresh import (
    copied,
    few,
    fresh,
    is_users,
    listed,
    outputs,
    precisely,
    refreshed,
    same,
    seeded,
)
from lbgap.objective.questions.graph import Graph
from lbgap.replica import Watch, held_tensors

MAX_TRIALS = 24
MAX_KINDS = 8


def remedy(case: Case, owners: Collection[str] = ()) -> str | None:
    """Keep in training mode what caches something in evaluation mode, if this is the same function, and moves.

    Args:
        case: Whose replica is copied anew then, with a note.
        owners: Names of parameters that have no gradient path in evaluation mode.

    Returns:
        An answer that says what was done; None if no set of modules is known that mends it.
    """
    found = _smallest(case, owners)
    if not found:
        return None
    evaluator = case.evaluator
    evaluator.flat.replicate(case.model, found)
    evaluator.graphs.drop()
    case.centre.copy_(evaluator.flat.theta)  # which the model changes where it merges parameters in evaluation mode
    evaluator.notes.append(
        f"kept in training mode, alone, with the same outputs: {listed(found)}, for in evaluation mode outputs or "
        "gradients do not follow their parameters (a cache, merged weights)"
    )
    return f"yes, with {listed(found)} in training mode"


def _smallest(case: Case, owners: Collection[str]) -> list[str]:
    """The first set of modules that mends the replica, without the kinds of modules that it does not need."""
    tried: set[frozenset[str]] = set()
    kind = {name: type(module) for name, module in case.model.named_modules()}

    def mends(names: frozenset[str]) -> bool:
        if not names or names in tried or len(tried) >= MAX_TRIALS:
            return False
        tried.add(names)
        return precisely(case, lambda dtype: _mends(case, names, owners, dtype))

    found = next(filter(mends, _candidates(case, owners)), frozenset())
    for one in {kind[name] for name in found}:
        fewer = frozenset(name for name in found if kind[name] is not one)
        if mends(fewer):
            found = fewer
    return sorted(found)


def _candidates(case: Case, owners: Collection[str]) -> Iterator[frozenset[str]]:
    """Sets of modules that may cache something, the likely ones first."""
    modules = {
        name: module
        for name, module in case.model.named_modules()
        if is_users(module) and not isinstance(module, _NormBase | _DropoutNd)
    }

    def named(names: Collection[str]) -> frozenset[str]:
        return frozenset(name for name in names if name in modules)

    before = {(name, key) for name, key, _ in held_tensors(case.model)}
    after = {(name, key) for name, key, x in held_tensors(case.evaluator.flat.module) if x.is_floating_point()}
    begun = named({name for name, _ in after - before})
    holding = named({name for name, _ in after})
    owning = named({name.rpartition(".")[0] for name in owners})
    clearing = named([name for name, module in modules.items() if type(module).train is not nn.Module.train])
    yield from (begun, owning, begun | owning, holding, holding | owning, clearing, holding | owning | clearing)
    kinds: dict[type[nn.Module], set[str]] = {}
    for name, module in modules.items():
        kinds.setdefault(type(module), set()).add(name)
    each = [frozenset(chosen) for chosen in kinds.values()][:MAX_KINDS]
    yield from each
    yield frozenset(modules)
    yield from (frozenset(modules) - names for names in each)


def _mends(case: Case, names: frozenset[str], owners: Collection[str], dtype: torch.dtype) -> bool:
    """Whether a replica with these modules in training mode is the user's function, at the minimizer and elsewhere."""
    mended = copied(case, dtype)
    mended.replicate(case.model, names)
    first = few(case)
    with Watch(mended.kept) as watch, seeded(case, 0):
        here = outputs(case, mended, first)
    with seeded(case, 1):
        again = outputs(case, mended, few(case))
    graph, other = Graph(here), Graph(again)
    if watch.found or not same(here, again) or graph.shares(other) or graph.outside(other, mended.moving):
        return False
    moving = dict(zip(mended.names, mended.moving, strict=True))
    if any(id(moving[name]) not in graph.leaves for name in owners):
        return False
    if not same(here, outputs(case, copied(case, dtype), few(case))):
        return False
    displace(mended.moving)
    moved = outputs(case, mended, few(case))
    return any(same(moved, outputs(case, other, few(case))) for other in _references(case, mended))


def _references(case: Case, mended: FlatModule) -> Iterator[FlatModule]:
    """The user's model in evaluation mode with the parameters of a replica."""
    dtype = mended.theta.dtype
    yield fresh(case, mended.theta, dtype=dtype)
    yield refreshed(case, mended.theta, few(case), dtype=dtype)  # of a model that was evaluated before it came here
