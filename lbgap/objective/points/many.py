"""Choose how the losses of many points are evaluated, and say how."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lbgap.layers import UnknownError
from lbgap.objective.passes import Evaluator
from lbgap.objective.points.engine import Plan, make_plan
from lbgap.objective.points.source import Source
from lbgap.system import device as hardware

ONE_BY_ONE, LAYERS, TILES = "one after the other", "layer by layer", "tile by tile"
REFUSED = "combinations ran in float32: "  # how a note begins
Single = Callable[[Tensor, bool], tuple[Tensor, Tensor]]


class Evaluated(NamedTuple):
    """The losses of many points.

    Attributes:
        losses: ``(k,)`` float64; NaN and infinite ones as they are.
        accuracies: In percent, ``(k,)`` float64; zero where they were not asked for.
        way: How they were evaluated.
    """

    losses: Tensor
    accuracies: Tensor
    way: str


class Many:
    """Points of one network: by a plan of its layers where there is one that pays, one after the other elsewhere."""

    def __init__(self, native: bool) -> None:
        """Begin; no plan is made yet.

        Args:
            native: Whether compiled ops run, where they can.
        """
        self._native = native
        self._plans: dict[bool, Plan | str] = {}  # for points as they are and for combinations; or why there is none

    def evaluate(
        self,
        evaluator: Evaluator,
        source: Source,
        single: Single,
        count: Callable[[int], None],
        *,
        complete: bool,
        accuracy: bool = False,
        bfloat16: bool = False,
    ) -> Evaluated:
        """Evaluate all points.

        Args:
            evaluator: On the samples concerned.
            source: The points.
            single: Evaluates one point; from it and whether the accuracy counts to what ``Evaluator.values`` returns.
            count: Takes the number of points that a plan evaluates.
            complete: Whether they are points of all parameters.
            accuracy: Whether to return accuracies too.
            bfloat16: Whether products may run in bfloat16.
        """
        found = torch.zeros(2, source.k, dtype=torch.float64, device=evaluator.device)
        plan = self._plan(evaluator, source, bfloat16) if complete else None
        if bfloat16 and plan is None and source.k:
            why = self._plans.get(True)
            evaluator.note(
                REFUSED, why if isinstance(why, str) else "buffers besides batch-norm's, or a restricted space"
            )
        bfloat16 = bfloat16 and plan is not None
        narrow = plan is not None and self._narrow(evaluator, plan, bfloat16)
        alone = [end and not bfloat16 for end in source.is_end()] if plan else [True] * source.k
        rest = torch.tensor([i for i, one in enumerate(alone) if not one], dtype=torch.int64, device=evaluator.device)
        if plan is not None and len(rest):
            count(len(rest))
            low = torch.bfloat16 if bfloat16 else evaluator.flat.theta.dtype
            totals, correct = self._sweep(evaluator, plan, source, rest, low, accuracy, narrow)
            found[0, rest], found[1, rest] = totals / evaluator.weight, correct
        before = {name: evaluator.flat.module.get_buffer(name).clone() for name in source.buffers}
        try:
            for index in (i for i, one in enumerate(alone) if one):
                evaluator.set_buffers(source.buffers_at(index))
                shares, correct = single(source.point(index), accuracy)
                found[0, index], found[1, index] = shares.sum(), correct.sum()
        finally:
            evaluator.set_buffers(before)
        way = ONE_BY_ONE if plan is None else TILES if narrow else LAYERS
        answers = evaluator.counted if accuracy else 1
        return Evaluated(found[0], 100.0 * found[1] / answers, way)

    def _sweep(
        self,
        evaluator: Evaluator,
        plan: Plan,
        source: Source,
        chosen: Tensor,
        low: torch.dtype,
        accuracy: bool,
        narrow: bool,
    ) -> tuple[Tensor, Tensor]:
        """Summed losses and correct samples of the chosen points, by a plan."""

        def sweep() -> tuple[Tensor, Tensor]:
            chunk = plan.chunk(evaluator.batch_size, source, hardware.batch_budget(evaluator.device))
            with torch.no_grad(), evaluator.exact(), evaluator.context(False):
                return plan.sweep(
                    source[chosen],
                    evaluator.batches(),
                    evaluator.loss,
                    chunk=chunk,
                    low=low,
                    accuracy=accuracy,
                    native=self._native,
                    narrow=narrow,
                )

        return evaluator.within_memory(sweep)

    def _plan(self, evaluator: Evaluator, source: Source, bfloat16: bool) -> Plan | None:
        """The plan for these points; None where one pass a point is as fast, or the only way."""
        if source.k < 2 - bfloat16:
            return None
        spans = source.j > 0
        if spans not in self._plans:
            try:
                with evaluator.exact(), evaluator.context(False):
                    self._plans[spans] = evaluator.within_memory(
                        lambda: make_plan(evaluator.flat, evaluator.few().inputs, spans)
                    )
            except UnknownError as error:
                self._plans[spans] = str(error)
        plan = self._plans[spans]
        if isinstance(plan, str) or not source.buffers <= plan.statistics():
            return None
        chunk = plan.chunk(evaluator.batch_size, source, hardware.batch_budget(evaluator.device))
        batches = math.ceil(evaluator.samples / evaluator.batch_size)
        narrow = self._narrow(evaluator, plan, bfloat16)
        return plan if bfloat16 or plan.better(source, evaluator.samples, batches, chunk, narrow) else None

    def _narrow(self, evaluator: Evaluator, plan: Plan, bfloat16: bool) -> bool:
        """Whether the op for narrow chains evaluates a plan."""
        targets = evaluator.data.pool.targets
        able = self._native and not bfloat16 and isinstance(targets, Tensor) and evaluator.loss.by_class(targets)
        return able and plan.chain is not None
