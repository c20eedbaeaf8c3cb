"""Is the gradient that of the loss? A quotient of differences, taken where rounding is far below the rise."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lbgap.flat import FlatModule
from lbgap.layers import PERIOD, displace
from lbgap.objective.questions.case import YES, Case
from lbgap.objective.questions.fresh import copied, precisely
from lbgap.problem.batch import Batch
from lbgap.problem.loss import Sums
from lbgap.replica import Arguments
from lbgap.system.device import first_line

SEEN = 4096  # values of a parameter that say how large they are
SAMPLES = 8  # enough for a formula that is wrong, and cheap in float64
FLATTEST = 1e-2  # of the whole gradient's 1-norm: what parameters with less are weighted by
ROUNDING = 16.0  # in units of the last place of loss and outputs: what a pass is taken to be wrong by
CLOSE = 3e-4  # relative: quotient and gradient agree
COARSE = 5e-2  # relative: they do so far as a pass rounded to float32 shows it; further away the gradient is wrong
SIDEWAYS = 2  # directions besides: along its signs a gradient that lacks a part is off by very little
PIECE = 2**20  # entries of which signs are made at a time
ENTRIES = 2**16  # of a parameter, at most, that move in these
SHORT = 1e-4  # of the largest slope that a direction of its length could have: less says little
GRAINS = 100.0  # of a parameter's rounding: shorter steps may not move it
FINE_STEPS = (1e4, 1e5, 1e6)  # predicted rise, in units of rounding in float64
COARSE_STEPS = (1e2, 3e2, 1e3)  # in units of rounding in float32
NOT = "not judged: "


class WrittenError(ValueError):
    """A pass writes into parameters."""


class Probe(NamedTuple):
    """Rises of the loss along a direction, in units of what the gradient predicts: 1 is right.

    Attributes:
        predicted: What it predicts.
        ahead: To one side.
        behind: From the other.
    """

    predicted: float
    ahead: float
    behind: float

    @property
    def mean(self) -> float:
        """Of both sides: without the curvature."""
        return (self.ahead + self.behind) / 2


def ask(case: Case) -> str:
    """Ask whether the loss rises as its gradient says, along the gradient's signs, the parameters and noise.

    Asked at a point some way off, for a minimizer may be at a kink (a ReLU of zero: a block that is zero at the start),
    where the loss is flat, or saturated. Each parameter's signs are weighted so that all parameters count alike. The
    steps begin where the rise that the gradient predicts is far above rounding in float64, and go on to where it is so
    for a pass that rounds to float32 inside.

    Raises:
        ValueError: It does not, by quotients that agree with each other; or a pass writes into parameters.
    """
    what = "the loss"
    case.forget()
    try:
        found = precisely(case, lambda dtype: _judge(case, dtype, of_loss=True))
        if isinstance(found, str) and found.startswith(NOT):
            other = precisely(case, lambda dtype: _judge(case, dtype, of_loss=False))
            if isinstance(other, float):
                what, found = "a sum of the outputs", other
            elif other == YES:
                found = f"{YES} (of the outputs, where the loss is too flat)"
    except (torch.OutOfMemoryError, WrittenError):
        raise
    except Exception as error:  # of the user's code, where parameters are no others than those of a minimizer
        return f"{NOT}the model does not run with moved parameters ({first_line(error)})"
    if isinstance(found, str):
        return found
    raise ValueError(
        f"{what} rises {found:.4g} times as fast as its gradient says: something gives another gradient than that of "
        "what it computes (detach() of a part, a straight-through estimator, a hook, a backward() of one's own, "
        "Embedding(max_norm=)?); mend that, or pass judge=False"
    )


def _judge(case: Case, dtype: torch.dtype, *, of_loss: bool) -> str | float:
    """The answer, or how many times as fast as its gradient says the loss, or a sum of the outputs, rises."""
    evaluator = case.evaluator
    batch = evaluator.few()
    batch = batch if evaluator.coupled or not batch.cuttable else batch.rows(slice(SAMPLES))
    flat = copied(case, dtype, evaluator.flat.module)
    displace(flat.moving)
    line = _Line(case, flat, batch, of_loss=of_loss)
    if line.written:
        raise WrittenError(
            f"the model writes into its parameter {line.written[0]!r} when it runs (Embedding(max_norm=)?), so that "
            "its gradient is that of another function: write into parameters outside of forward, or pass judge=False"
        )
    if not math.isfinite(line.loss) or not math.isfinite(line.slope):
        return NOT + "loss or gradient is not finite"
    if line.slope == 0:
        return NOT + "the gradient is zero"
    wrong = None
    for size in line.sizes() if dtype == torch.float64 else ():
        fine = list(_fine(line, size))
        if any(min(abs(probe.ahead - 1), abs(probe.mean - 1)) <= CLOSE for probe in fine):
            sideways = _sideways(line)
            return YES if sideways is None else sideways
        found = _wrong(fine, CLOSE, 2 * CLOSE)
        # Steps that are below the rounding of larger values do not move the loss at all: that says nothing.
        if found is not None and line.tells(fine) and (size == line.scale or abs(found) > COARSE):
            wrong = found
    rounding = line.rounding()
    if wrong is not None and rounding <= torch.finfo(dtype).eps:
        return wrong
    if rounding > torch.finfo(torch.float32).eps:
        return NOT + "the model rounds to less than float32 inside"
    coarse = [line.probe(steps * line.scale * ROUNDING * torch.finfo(torch.float32).eps) for steps in COARSE_STEPS]
    if any(_agree(pair, COARSE) and abs(pair[0].mean - 1) <= COARSE for pair in itertools.pairwise(coarse)):
        sideways = _sideways(line) if dtype == torch.float64 else None
        return f"{YES} (to {COARSE:.0%})" if sideways is None else sideways
    wrong = _wrong(coarse, COARSE, COARSE if dtype == torch.float64 else 4 * COARSE)
    if wrong is not None and line.tells(coarse):
        return wrong
    return NOT + "rounding, or kinks of the loss, are larger than the rises that the gradient predicts"


def _sideways(line: _Line) -> float | None:
    """How many times as fast as its gradient says the loss rises along other directions, where that is not once."""
    for number in range(SIDEWAYS):
        line.turn(number)
        if abs(line.slope) < SHORT:
            continue
        fine = list(_fine(line, line.scale))
        if not any(min(abs(probe.ahead - 1), abs(probe.mean - 1)) <= CLOSE for probe in fine):
            found = _wrong(fine, CLOSE, 2 * CLOSE)
            # A pass that rounds to float32 somewhere does not see such steps.
            if found is not None and line.tells(fine) and line.rounding() <= torch.finfo(torch.float64).eps:
                return found
    return None


def _fine(line: _Line, size: float) -> Iterator[Probe]:
    """Probes where float64 rounds values of a size far less than the loss rises; as few as are needed."""
    for steps in FINE_STEPS:
        step = steps * ROUNDING * size * torch.finfo(torch.float64).eps
        ahead = line.rise(step)
        if abs(ahead - 1) <= CLOSE:
            yield Probe(step, ahead, ahead)
            return
        yield Probe(step, ahead, line.rise(-step))


def _agree(probes: Sequence[Probe], tolerance: float) -> bool:
    """Whether all steps give the same quotient, on both sides."""
    sides = [side for probe in probes for side in (probe.ahead, probe.behind)]
    if len(probes) < 2 or not all(map(math.isfinite, sides)):
        return False
    return max(sides) - min(sides) <= tolerance * max(1.0, *map(abs, sides))


def _wrong(probes: Sequence[Probe], tolerance: float, off: float) -> float | None:
    """The quotient that all steps agree on, if it is off by more than this from the gradient's."""
    if not _agree(probes, tolerance) or abs(probes[-1].mean - 1) <= off:
        return None
    return probes[-1].mean


def _some(tensor: Tensor) -> Tensor:
    """Some entries of a tensor, spread evenly, in one row: a view of a contiguous one."""
    return tensor.reshape(-1)[:: max(1, -(-tensor.numel() // ENTRIES))]


class _Line:
    """The loss of a few samples along a direction, or a sum of their outputs with signs.

    Attributes:
        loss: Where it begins.
        slope: What the gradient says of the direction.
        linear: Larger rises than this say nothing of the slope.
        scale: How large loss, outputs and what the rounding of parameters changes are.
        written: Names of parameters that a pass writes into.
    """

    def __init__(self, case: Case, flat: FlatModule, batch: Batch, *, of_loss: bool) -> None:
        """Evaluate loss and gradient where a copy is.

        Args:
            case: Says how to evaluate.
            flat: A copy of the replica, which is moved.
            batch: The samples.
            of_loss: Whether it is the loss.
        """
        self._case, self._flat, self._of_loss = case, flat, of_loss
        dtype = flat.theta.dtype
        self._batch = batch.cast(dtype)
        self.scale = self.slope = self.linear = self._at = 0.0
        gradients: Sequence[Tensor | None] = [None] * len(flat.moving)
        versions = [parameter._version for parameter in flat.moving]
        with torch.enable_grad():
            sums = self._sums()
            changes = [parameter._version != before for parameter, before in zip(flat.moving, versions, strict=True)]
            self.written = list(itertools.compress(flat.names, changes))
            if sums.total.requires_grad:
                total = sums.total / sums.weight
                found = torch.autograd.grad(total, flat.moving, allow_unused=True)
                gradients = [part.to_dense() if part is not None and part.is_sparse else part for part in found]
        self.loss = float(sums.exact / sums.weight)
        norms = [0.0 if part is None else float(torch.linalg.vector_norm(part, 1)) for part in gradients]
        self._gradients = gradients
        self._weights: list[float] = []
        self._sizes: list[float] = []
        self._sideways: list[tuple[Tensor, Tensor]] = []
        self._grain = math.inf
        whole = sum(norms)
        if not math.isfinite(whole):
            self.slope = whole
            return
        self.scale = max(self.scale, abs(self.loss))
        self.linear = abs(self.loss) if of_loss else self.scale
        for parameter, part, norm in zip(flat.moving, gradients, norms, strict=True):
            if part is None or not norm:
                self._weights.append(0.0)
                self._sizes.append(0.0)
                continue
            weight = 1 / max(norm, FLATTEST * whole)
            self.slope += weight * norm
            # What the rounding of the parameters themselves amounts to.
            size = float(parameter.detach().flatten()[:SEEN].abs().mean())
            self.scale = max(self.scale, size * norm / math.sqrt(part.numel()))
            self._grain = min(self._grain, size * torch.finfo(dtype).eps / weight)
            self._weights.append(weight)
            self._sizes.append(size)

    def turn(self, number: int) -> None:
        """Go another way from now on, in place of along the gradient's signs, from where it began.

        Args:
            number: Each is another way: 0 along the parameters, which a scale made of them without a gradient does not
                see, the others along noise.
        """
        self._step(0.0)
        self.slope, self._grain, self._sideways = 0.0, math.inf, []
        noise = torch.randn(ENTRIES, generator=torch.Generator().manual_seed(number), dtype=torch.float32, device="cpu")
        found = []
        for place, (part, whole) in enumerate(zip(self._flat.moving, self._gradients, strict=True)):
            if whole is not None:
                entries, gradient = _some(part.detach()), _some(whole)
                made = noise.roll(place)[: len(entries)].to(part) if number else entries.clone()
                made.mul_(gradient != 0)  # what has no gradient is not meant to move (Embedding(padding_idx=))
                length = float(torch.linalg.vector_norm(made))
                largest = float(torch.linalg.vector_norm(gradient)) * length
                found.append((place, entries, made, float(torch.dot(gradient, made)), length, largest))
        total = math.hypot(*(largest for *_, largest in found))
        for place, entries, made, slope, length, largest in found:
            if largest:
                # All parameters alike, and none against another.
                weight = math.copysign(1 / max(largest, FLATTEST * total), slope)
                self.slope += weight * slope
                step = abs(weight) * length / math.sqrt(len(entries))
                self._grain = min(self._grain, self._sizes[place] * torch.finfo(made.dtype).eps / step)
                self._sideways.append((entries, made.mul_(weight)))

    def tells(self, probes: Sequence[Probe]) -> bool:
        """Whether probes moved parameters, and no further than the slope reaches."""
        moved = abs(probes[0].predicted / self.slope) > GRAINS * self._grain
        return moved and probes[-1].predicted <= self.linear

    def _along(self) -> Iterator[tuple[Tensor, Tensor]]:
        """What moves, and its part of the direction, which along the signs is made anew each time."""
        if self._sideways:
            yield from self._sideways
            return
        for part, gradient, weight in zip(self._flat.moving, self._gradients, self._weights, strict=True):
            if gradient is not None and weight:
                pieces = zip(part.detach().view(-1).split(PIECE), gradient.reshape(-1).split(PIECE), strict=True)
                for piece, slopes in pieces:
                    yield piece, slopes.sign().mul_(weight)

    def probe(self, rise: float) -> Probe:
        """Step to both sides.

        Args:
            rise: What the gradient predicts.
        """
        return Probe(rise, self.rise(rise), self.rise(-rise))

    def rise(self, predicted: float) -> float:
        """The rise of the loss in a step, in units of what the gradient predicts.

        Args:
            predicted: That.
        """
        self._step(predicted / self.slope)
        with torch.enable_grad():
            sums = self._sums()
        return (float(sums.exact / sums.weight) - self.loss) / predicted

    def _step(self, step: float) -> None:
        """Go so far from where it began."""
        if step == self._at:
            return
        with torch.no_grad():
            for part, direction in self._along():
                part.add_(direction, alpha=step - self._at)
        self._at = step

    def sizes(self) -> list[float]:
        """How large what is rounded may be: as the largest output, or, where that counts for nothing, as the loss."""
        size = abs(self.loss)
        return [self.scale, size] if 0 < 10 * size < self.scale else [self.scale]

    def rounding(self) -> float:
        """The coarsest precision that a pass computes with somewhere, relative: smaller steps may vanish there."""
        met = {self._flat.theta.dtype}
        with Arguments(lambda part: met.add(part.dtype) if part.is_floating_point() and part.dim() else None):
            self._sums()
        return max(torch.finfo(dtype).eps for dtype in met)

    def _sums(self) -> Sums:
        """The loss; how large the outputs are goes into ``scale``."""
        evaluator, (inputs, targets) = self._case.evaluator, self._batch.clone()
        with evaluator.exact(), evaluator.context(False):
            output = self._flat.run(inputs)
            if self._of_loss and self.scale:
                return evaluator.loss.sums(output, targets)
            seen = [part for part in self._case.seen(output, self._batch) if part.numel()]
            if not self.scale:
                sizes = (part.detach().nan_to_num(0, 0, 0).abs().max() for part in seen if part.is_floating_point())
                self.scale = max([self.scale, *map(float, sizes)])
            if self._of_loss:
                return evaluator.loss.sums(output, targets)
            total = torch.stack([_signed_sum(part) for part in seen]).sum()
            return Sums(total, total.detach().double(), lambda: sum(part.numel() for part in seen))


def _signed_sum(output: Tensor) -> Tensor:
    signs = 1 - 2 * (torch.arange(output.numel(), device=output.device) * PERIOD % 7 % 2)
    return (output.flatten() * signs.to(output)).sum()
