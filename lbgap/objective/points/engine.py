"""Evaluate many points of a network in one pass over the data, layer by layer.

The weights of points that are combinations of a few ends are blended layer by layer as they are used. What the first
layer makes of its input is linear in the combination, so that its products are formed for the ends and blended.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lbgap import ops
from lbgap.flat import FlatModule
from lbgap.layers import UnknownError, displace
from lbgap.objective.points.chain import MOST, TILE, Chain, find_chain
from lbgap.objective.points.rules import Kind, Run, own
from lbgap.objective.points.source import Combinations, Separate, Source
from lbgap.objective.points.steps import Step, fold_norms, steps_of
from lbgap.problem.batch import Batch
from lbgap.problem.loss import Loss
from lbgap.system.device import first_line

PER_CALL = 1_000_000  # operations that a call of a layer costs beside its own: some 10 microseconds
TRIED_SAMPLES, OTHER_SAMPLES = 16, 5  # by which a plan is compared with its network
PER_ELEMENT = 16  # and those that an element costs that is written to memory once more


@dataclass(frozen=True)
class Work:
    """What evaluating some points costs, in operations of a sample but for the calls.

    Attributes:
        products: Multiplications and additions in layers with weights, times samples.
        moved: Elements written beside what the plain loop writes.
        calls: Layers that are called.
    """

    products: float
    moved: float
    calls: float

    @property
    def total(self) -> float:
        """All of it in operations."""
        return self.products + PER_ELEMENT * self.moved + PER_CALL * self.calls


class Plan:
    """The layers of a network, each with the kind of what it returns, for points of one source.

    Attributes:
        steps: The layers.
        kinds: Of each value; 0 is the network's input, i + 1 what step i returns.
        chain: What runs tile by tile instead of layer by layer, if the network is narrow.
    """

    def __init__(self, steps: list[Step], spans: bool) -> None:
        def kinds_of(steps: Sequence[Step]) -> list[Kind]:
            kinds = [Kind.SHARED]
            for step in steps:
                kinds.append(step.rule.kind([kinds[source] for source in step.sources], spans))
            return kinds

        self.steps = fold_norms(steps, kinds_of)
        self.kinds = kinds_of(self.steps)
        self.chain: Chain | None = find_chain(self.steps, self.kinds)
        reads = [(source, index) for index, step in enumerate(self.steps) for source in step.sources]
        self._single = [sum(source == place for source, _ in reads) <= 1 for place in range(len(self.kinds))]
        self._last = dict(reads)  # who is the last to read a value
        self.loops = any(s.rule.loops and k is Kind.OWN for s, k in zip(self.steps, self.kinds[1:], strict=True))
        self._sizes: list[int] = []
        weighted = [i for i, step in enumerate(self.steps) if step.rule.affine]
        self._exact = weighted[-1] if weighted else -1

    def measure(self, source: Source, inputs: Tensor) -> Tensor:
        """Evaluate a few samples in full precision, and keep how large the values of a sample are."""
        run = Run(source, source.dtype)
        values = self._once(run, inputs)
        copies = {Kind.SHARED: 1, Kind.SPANNED: source.j}
        self._sizes = [
            0 if value is None else value.numel() // (len(inputs) * copies[kind])
            for value, kind in zip(values, self.kinds, strict=True)
        ]
        output = self._each(run, values, self._sizes, len(inputs))
        if self.chain is not None:
            elements, outputs = self.chain.layers[0].affine
            if self._sizes[self.steps[self.chain.head].sources[0]] * outputs != elements:
                self.chain = None  # its layers are applied to several rows of a sample
        return output

    def chunk(self, samples: int, source: Source, budget: int) -> int:
        """How many points fit in memory at once, one at least.

        Args:
            samples: In a micro-batch.
            source: The points.
            budget: Bytes; half of them are left to weights, data and the loss.
        """
        if self.loops:
            return 1
        each = 0
        for place, (step, kind) in enumerate(zip(self.steps, self.kinds[1:], strict=True), 1):
            if kind is Kind.OWN and step.rule.fresh:
                each += samples * self._sizes[place] + (step.rule.affine[0] if step.rule.affine else 0)
                each += sum(samples * self._sizes[s] for s in step.sources if self.kinds[s] is Kind.SPANNED)
        once = sum(
            samples * source.j * size
            for size, kind in zip(self._sizes, self.kinds, strict=True)
            if kind is Kind.SPANNED
        )
        return max(1, (budget // (2 * source.dtype.itemsize) - once) // max(1, each))

    def statistics(self) -> set[str]:
        """Names of the buffers that may go with the points."""
        return {name for step in self.steps for name in step.rule.statistics}

    def better(self, source: Source, samples: int, batches: int, chunk: int, narrow: bool = False) -> bool:
        """Whether to use this plan, or its chain, rather than to evaluate the points one after the other."""
        if narrow:
            mine = self.chain_work(source.k, source.j, samples, batches)
        else:
            mine = self.work(source.k, source.j, samples, batches, chunk)
        return mine.total < self.plain_work(source.k, samples, batches).total

    def work(self, k: int, j: int, samples: int, batches: int, chunk: int) -> Work:
        """Count what this plan does for k points."""
        products = moved = calls = 0.0
        rounds = -(-k // chunk)
        for place, (step, kind) in enumerate(zip(self.steps, self.kinds[1:], strict=True), 1):
            times = {Kind.SHARED: 1, Kind.SPANNED: j, Kind.OWN: k}[kind]
            calls += batches * (k if step.rule.loops and kind is Kind.OWN else rounds if kind is Kind.OWN else 1)
            if step.rule.affine:
                elements, outputs = step.rule.affine
                products += times * samples * 2.0 * elements * self._sizes[place] / outputs
                if kind is Kind.OWN and j:
                    moved += k * batches * elements
            if kind is Kind.OWN:
                blended = sum(self._sizes[s] for s in step.sources if self.kinds[s] is Kind.SPANNED)
                products += k * samples * 2.0 * j * blended
                moved += k * samples * blended
        return Work(products, moved, calls)

    def chain_work(self, k: int, j: int, samples: int, batches: int) -> Work:
        """Count what the chain does for k points: its products are as fast as those of a matrix product."""
        assert self.chain is not None
        first, *rest = (layer.affine[0] for layer in self.chain.layers)
        tiles = batches * -(-samples // (batches * TILE))
        products = samples * 2.0 * ((j or k) * first + k * (j * self.chain.widths[0] + sum(rest)))
        products += k * tiles * 2.0 * max(j, 1) * self.chain.numel
        moved = 0.0 if j else float(k * batches * self.chain.numel)
        calls = batches * (self.chain.head + (2 if j else 2 * -(-k // MOST)))
        for place, step in enumerate(self.steps[: self.chain.head], 1):
            if step.rule.affine:
                products += samples * 2.0 * step.rule.affine[0] * self._sizes[place] / step.rule.affine[1]
        return Work(products, moved, float(calls))

    def plain_work(self, k: int, samples: int, batches: int) -> Work:
        """Count what evaluating the points one after the other does."""
        products = 0.0
        for place, step in enumerate(self.steps, 1):
            if step.rule.affine:
                products += k * samples * 2.0 * step.rule.affine[0] * self._sizes[place] / step.rule.affine[1]
        return Work(products, 0.0, float(k * batches * len(self.steps)))

    def sweep(
        self,
        source: Source,
        batches: Iterable[Batch],
        loss: Loss,
        *,
        chunk: int,
        low: torch.dtype,
        accuracy: bool,
        native: bool = False,
        narrow: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Evaluate all points on all batches.

        Args:
            source: The points.
            batches: Inputs and targets.
            loss: What is summed.
            chunk: Points at once.
            low: The type of products, but for those of shared inputs and of the last layer.
            accuracy: Whether to count the correct samples too.
            native: Whether the compiled op sums the losses, where it can.
            narrow: Whether to run the chain.

        Returns:
            The summed loss and the number of correct samples of each point, ``(k,)`` float64.
        """
        sums = torch.zeros(source.k, 2, dtype=torch.float64, device=source.device)
        scratch: dict[Any, Tensor] = {}
        for inputs, targets in batches:
            run = Run(source, low)
            if narrow:
                assert self.chain is not None
                sums += self.chain.sums(source, self._shared(run, inputs), targets)
                continue
            values = self._once(run, inputs)
            for first in range(0, source.k, chunk):
                some = slice(first, first + chunk)
                output = self._each(Run(source[some], low, scratch=scratch), list(values)).to(source.dtype)
                if native and loss.by_class(targets):
                    sums[some] += ops.xent_points(output, targets)
                    continue
                if accuracy:  # before the loss, which may overwrite the output
                    sums[some, 1] += loss.correct(output, targets)
                sums[some, 0] += loss.totals(output, targets)
        return sums[:, 0], sums[:, 1]

    def _shared(self, run: Run, inputs: Tensor) -> Tensor:
        """What the chain begins with, ``(batch, features)``."""
        assert self.chain is not None
        value = self._once(run, inputs, self.chain.head)[self.steps[self.chain.head].sources[0]]
        assert value is not None
        return value.flatten(1)

    def _once(self, run: Run, inputs: Tensor, stop: int | None = None) -> list[Tensor | None]:
        """What is the same for all points, or linear in their coefficients, of all steps or of those before one."""
        values: list[Tensor | None] = [inputs]
        for step, kind in zip(self.steps[:stop], self.kinds[1:], strict=False):
            if kind is Kind.OWN:
                values.append(None)
                continue
            taken = [values[source] for source in step.sources]
            known = [value for value in taken if value is not None]
            values.append(step.rule.once(run, kind, *known))
        return values

    def _each(self, run: Run, values: list[Tensor | None], sizes: list[int] | None = None, samples: int = 1) -> Tensor:
        """The rest, for some points; returns the output ``(k, batch, ...)``."""
        for index, (step, kind) in enumerate(zip(self.steps, self.kinds[1:], strict=True)):
            if kind is not Kind.OWN:
                continue
            run.exact = index == self._exact
            values[index + 1] = self._apply(run, step, values)
            if sizes is not None:
                sizes[index + 1] = values[index + 1].numel() // (samples * run.source.k)  # type: ignore[union-attr]
            for source in step.sources:  # free what nobody reads any more
                if self.kinds[source] is Kind.OWN and self._last[source] == index:
                    values[source] = None
        output = values[-1]
        assert output is not None
        return own(run, output, self.kinds[-1], len(self.steps))

    def _apply(self, run: Run, step: Step, values: Sequence[Tensor | None]) -> Tensor:
        taken = [value for value in (values[source] for source in step.sources) if value is not None]
        owned = [self._owned(source) for source in step.sources]
        pairs = zip(taken, step.sources, strict=True)
        return step.rule.each(run, owned, *(own(run, value, self.kinds[s], (step.rule, s)) for value, s in pairs))

    def _owned(self, place: int) -> bool:
        """Whether a value, as one of each point, lies in memory that nothing else reads."""
        if self.kinds[place] is Kind.SPANNED:
            return True  # it is blended anew for each reader
        while self.kinds[place] is Kind.OWN and self._single[place]:
            if self.steps[place - 1].rule.fresh:
                return True
            place = self.steps[place - 1].sources[0]
            if self.kinds[place] is Kind.SPANNED:
                return True
        return False


def make_plan(flat: FlatModule, inputs: Tensor, spans: bool) -> Plan:
    """Find the plan of a network, and try it out.

    Args:
        flat: The replica.
        inputs: A few samples.
        spans: Whether points are combinations of ends.

    Raises:
        UnknownError: It has none, or its outputs are not those of the network; the message says why.
    """
    plan = Plan(steps_of(flat, inputs), spans)
    theta = flat.theta.clone()
    try:  # at this point; then with other samples at one some way off, where code may take another path
        _try(plan, flat, inputs[:TRIED_SAMPLES], spans)
        displace(flat.moving)
        _try(plan, flat, inputs[-OTHER_SAMPLES:], spans)
    except (UnknownError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise UnknownError(f"a trial that fails ({first_line(error)})") from error
    finally:
        flat.theta.copy_(theta)
    return plan


def _try(plan: Plan, flat: FlatModule, inputs: Tensor, spans: bool) -> None:
    """Compare the outputs of a plan with those of its network, at the point where the replica is.

    Raises:
        UnknownError: They differ.
    """
    theta = flat.theta[None]
    source: Source = Separate(theta)
    if spans:
        source = Combinations(torch.ones(1, 1, dtype=torch.float64, device=theta.device), theta)
    expected = flat.module(inputs.clone())
    found = plan.measure(source, inputs)[0]
    close = float(torch.finfo(theta.dtype).eps) ** 0.5
    size = close * float(expected.detach().nan_to_num(0, 0, 0).abs().amax())  # outputs may all be small
    if found.shape != expected.shape or not torch.allclose(found, expected, rtol=close, atol=size, equal_nan=True):
        raise UnknownError("layers whose outputs differ from the network's own")
