"""Does a gradient reach every parameter that may move, and only these?"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from lbgap.objective.questions.case import YES, Case
from lbgap.objective.questions.fresh import copied, few, listed, outputs, precisely, refreshed, same, seeded
from lbgap.objective.questions.graph import Graph
from lbgap.objective.questions.remedy import remedy
from lbgap.replica import OUTSIDE, Watch, originals, set_mode

MAX_BATCHES = 8  # of samples that are tried to find a path that the first ones do not take
UNLESS = "or pass judge=False"


def ask(case: Case) -> str:
    """Ask whether gradients reach all parameters that may move, and nothing outside of the replica.

    A cut shows where parameters have no gradient path, and moving them changes the outputs all the same.

    Raises:
        ValueError: A gradient is cut, or the model computes with tensors outside of its replica.
    """
    flat = case.evaluator.flat
    own = originals(case.model)
    first = case.evaluator.few()  # of data whose memory a buffer of the model may share
    with Watch({**own, **flat.kept}) as watch:
        graph = Graph(outputs(case, flat, first))
    again = Graph(outputs(case, flat, few(case)))
    outside = graph.outside(again, flat.moving)
    _check_private(own, [name for name in watch.found if name in own], outside)
    answer, kept = YES, [name for name in watch.found if name in flat.kept]
    if outside or kept or graph.shares(again):
        answer = remedy(case) or ""
        if not answer:
            raise ValueError(_outside(outside[0]) if outside else _before(kept))
        graph = Graph(outputs(case, flat, case.evaluator.few()))
    missing = _missing(case, graph)
    return _judge_missing(case, missing, answer) if missing else answer


def _check_private(own: Mapping[str, Tensor], found: Sequence[str], outside: Sequence[Tensor]) -> None:
    """Refuse a replica that computes with the original's tensors.

    Args:
        own: Those, by name.
        found: Which of them a pass was seen to compute with.
        outside: What gradients reach besides the replica's parameters.
    """
    names = {id(tensor): name for name, tensor in own.items()}
    reached = [*found, *(names[id(leaf)] for leaf in outside if id(leaf) in names)]
    if reached:
        raise ValueError(OUTSIDE.format(name=reached[0]))


def _outside(leaf: Tensor) -> str:
    return (
        f"the model computes with a trainable tensor of shape {tuple(leaf.shape)} that is none of its parameters, so "
        f"that it would not move: register it (nn.Parameter, nn.ModuleList) or detach() it, {UNLESS}"
    )


def _before(kept: Sequence[str]) -> str:
    return (
        f"in evaluation mode the model computes with {listed(kept) if kept else 'something'} made of its parameters "
        "before, which does not follow when they move: compute it in every forward, or clear it in train(), "
        f"{UNLESS}"
    )


def _missing(case: Case, graph: Graph) -> list[str]:
    """Names of parameters without a gradient path, in some more samples than the first if there are such."""
    flat, samples, size = case.evaluator.flat, case.evaluator.samples, case.evaluator.few_samples
    missing = {name: id(part) for name, part in zip(flat.names, flat.moving, strict=True)}
    missing = {name: key for name, key in missing.items() if key not in graph.leaves}
    tried = min(max(0, samples - size), MAX_BATCHES * size)
    chosen = torch.linspace(size, samples - 1, tried, dtype=torch.float64, device="cpu").long()
    for rows in chosen.split(size) if missing and tried else ():
        if case.evaluator.coupled and len(rows) < size:
            break
        leaves = Graph(outputs(case, flat, case.rows(rows))).leaves
        missing = {name: key for name, key in missing.items() if key not in leaves}
        if not missing:
            break
    return list(missing)


def _judge_missing(case: Case, missing: Sequence[str], answer: str) -> str:
    """Tell parameters that count for nothing from those whose gradient is cut, or merged in evaluation mode."""
    trained = _in_training(case, missing)
    never = [name for name in missing if name not in trained]
    if never and _matter(case, never):
        raise ValueError(
            f"moving {listed(never)} changes the outputs, but no gradient reaches that: mend what cuts it "
            "(torch.no_grad, detach(), .data, NumPy; torch.utils.checkpoint needs use_reentrant=False), or leave it "
            f"out by parameters=, {UNLESS}"
        )
    if trained and _matter(case, trained):
        mended = remedy(case, trained)
        if mended is None:
            raise ValueError(
                f"gradients reach {listed(trained)} in training mode and not in evaluation mode, where the model "
                "computes with something made of it before (merged or cached weights): leave it unmerged in "
                f"evaluation mode, or leave it out by parameters=, {UNLESS}"
            )
        answer, missing = mended, never
    if missing:
        case.evaluator.notes.append(
            f"no gradient path to {listed(missing)}, in the samples tried: they count as directions without an effect"
        )
    return answer


def _in_training(case: Case, missing: Collection[str]) -> list[str]:
    """Which parameters have a gradient path in training mode; none if the model does not run in it."""
    made = copied(case)
    try:
        set_mode(made.module, True)
        with seeded(case, 0):
            leaves = Graph(outputs(case, made, case.evaluator.few())).leaves
    except torch.OutOfMemoryError:
        raise
    except Exception:  # of the user's code: batch-norm of one sample, say
        return []
    parts = zip(made.names, made.moving, strict=True)
    return [name for name, part in parts if name in missing and id(part) in leaves]


def _matter(case: Case, names: Collection[str]) -> bool:
    """Whether moving these parameters alone changes what the model returns in evaluation mode."""

    def changed(dtype: torch.dtype) -> bool:
        found = []
        for displaced in ((), names):
            made = refreshed(case, case.centre, case.evaluator.few(), dtype=dtype, displaced=displaced)
            found.append(outputs(case, made, case.evaluator.few()))
        return not same(found[0], found[1])

    return precisely(case, changed)
