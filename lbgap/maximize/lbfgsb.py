"""L-BFGS-B on torch tensors, wherever they live (Byrd, Lu, Nocedal, Zhu 1995; Morales and Nocedal 2011)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lbgap import ops, reference
from lbgap.maximize.climb import Climb, Listener, Maximum, starting_point, stuck
from lbgap.maximize.region import Box
from lbgap.maximize.wolfe import Trial, line_search
from lbgap.objective import Objective
from lbgap.status import Status, status

ITERATIONS = 20
HISTORY = 10
SCALINGS = ("box", "paper")
GRADIENT_TOLERANCE, VALUE_TOLERANCE = 1e-5, 2.2e-9  # SciPy's

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Solution:
    """How a minimisation ended.

    Attributes:
        value: The function where it ended.
        iterations: Steps taken.
        gradients: How often the function was evaluated, with its gradient.
        projected_gradient: Largest coordinate of ``|P(x - g) - x|`` where it was last known.
        status: Why it ended.
    """

    value: float
    iterations: int
    gradients: int
    projected_gradient: float
    status: Status


class History:
    """The last pairs of differences s and y, and the model ``B = theta I - W' middle W`` that they define.

    Rows are reused in place; ``order`` has them from the oldest to the newest.
    """

    def __init__(self, like: Tensor, size: int) -> None:
        self._s, self._y = like.new_zeros((size, len(like))), like.new_zeros((size, len(like)))
        self._ss, self._sy, self._yy = np.zeros((3, size, size))
        self.forget()

    def forget(self) -> None:
        """Begin anew, with B = I."""
        self.order: list[int] = []
        self.theta = 1.0
        self.middle: Matrix = np.zeros((0, 0))

    @property
    def s(self) -> Tensor:
        """The differences of points known, ``(c, n)``."""
        return self._s[: len(self.order)]

    @property
    def y(self) -> Tensor:
        """The differences of gradients known, ``(c, n)``."""
        return self._y[: len(self.order)]

    def append(self, run: Any, x_new: Tensor, x: Tensor, g_new: Tensor, g: Tensor) -> Tensor:
        """Write the next pair; :meth:`accept` takes their products."""
        self._row = self.order[0] if len(self.order) == len(self._s) else len(self.order)
        count = max(len(self.order), self._row + 1)
        products: Tensor = run.history_append(x_new, x, g_new, g, self._s[:count], self._y[:count], self._row)
        return products

    def accept(self, products: Matrix, descent: float) -> None:
        """Take the pair just written into the model, unless the function was not convex along it.

        Args:
            products: What :meth:`append` returned, ``(c, 4)``.
            descent: ``-<g, s>``, by which the curvature is judged.
        """
        row, count = self._row, len(products)
        if not products[row, 1] > np.finfo(np.float64).eps * descent or not products[row, 3] < math.inf:
            if len(self.order) == len(self._s):  # the oldest pair was written over
                self.order.remove(row)
                self._close_gap(row)
                self._rebuild()
            return
        self._ss[row, :count] = self._ss[:count, row] = products[:, 0]
        self._sy[:count, row], self._sy[row, :count] = products[:, 1], products[:, 2]
        self._yy[row, :count] = self._yy[:count, row] = products[:, 3]
        self.order = [*(other for other in self.order if other != row), row]
        self.theta = float(products[row, 3] / products[row, 1])
        self._rebuild()

    def _close_gap(self, row: int) -> None:
        """Move the last row into one that is free, so that the rows known are the first."""
        last = len(self.order)
        if row == last:
            return
        for vectors in (self._s, self._y):
            vectors[row].copy_(vectors[last])
        for products in (self._ss, self._sy, self._yy):
            products[row], products[:, row] = products[last].copy(), products[:, last].copy()
            products[row, row] = products[last, last]
        self.order[self.order.index(last)] = row

    def _rebuild(self) -> None:
        """Compute the middle matrix of the compact form (Byrd et al. 1995, eq. 3.4) for W = [y, s]."""
        c, by_age = len(self.order), np.argsort(self.order)
        age = np.ix_(self.order, self.order)
        sy, ss = self._sy[age], self._ss[age]
        later = np.tril(sy, -1)
        inverse = np.block([[-np.diag(np.diag(sy)), later.T], [later, self.theta * ss]])
        scale = np.repeat([1.0, self.theta], c)
        rows = np.concatenate([by_age, c + by_age])
        try:
            middle = np.linalg.inv(inverse)
        except np.linalg.LinAlgError:
            self.forget()
            return
        self.middle = np.ascontiguousarray((scale[:, None] * middle * scale)[np.ix_(rows, rows)])


class Minimiser:
    """One run of L-BFGS-B. Vectors of n that it holds: x, g, the next two, one more, and 2m of the history."""

    def __init__(
        self,
        evaluate: Callable[[Tensor, Tensor], float],
        x: Tensor,
        lower: Tensor,
        upper: Tensor,
        *,
        absolute: float = 0.0,
        relative: float = 0.0,
        history: int = HISTORY,
        backend: str = "native",
    ) -> None:
        """Begin at a point.

        Args:
            evaluate: The function: of a point ``(n,)``, and of where its gradient goes, ``(n,)``; returns its value.
            x: Where to start, ``(n,)`` float32 or float64, inside the bounds; it is moved in place.
            lower: Lower bounds, ``(n,)``, which may be minus infinity.
            upper: Upper bounds.
            absolute: Half-width by which the bounds are wider than that.
            relative: Half-width per unit of a bound.
            history: Pairs to remember.
            backend: ``"native"`` or ``"torch"``.
        """
        self._function = evaluate
        self._run: Any = ops if backend == "native" else reference
        self._bounds = (lower, upper, absolute, relative)
        self.x, self._z, self._trial = x, torch.empty_like(x), torch.empty_like(x)
        self._g, self._g_new = torch.empty_like(x), torch.empty_like(x)
        self._history = History(x, min(history, max(len(x), 1)))
        self._gradients = 0
        self.synchronisations = 0
        self.value = self._evaluate(self.x, self._g)

    def minimise(
        self,
        iterations: int,
        *,
        gradient_tolerance: float = GRADIENT_TOLERANCE,
        value_tolerance: float = VALUE_TOLERANCE,
    ) -> Solution:
        """Take steps until nothing is left to gain.

        Args:
            iterations: Steps at most.
            gradient_tolerance: Ends where no coordinate of ``|P(x - g) - x|`` is above it.
            value_tolerance: Ends where a step lowers the value by less than this share of its size, or of 1.
        """
        projected, again = math.nan, False
        for taken in range(iterations):
            projected, weights = self._direction()
            if projected <= gradient_tolerance:
                return self._ended(taken, projected, status("converged.gradient"))
            before = self.value
            if not self._search(weights, first=taken == 0):
                if not self._history.order:
                    return self._ended(taken, projected, status("rounding.line"))
                self._history.forget()
                continue
            # Without a tolerance rounding alone ends the search: the model may mislead, as where no step is found.
            if before == self.value and value_tolerance == 0 and self._history.order and not again:
                self._history.forget()
                again = True
                continue
            again = False
            if before - self.value <= value_tolerance * max(abs(before), abs(self.value), 1.0):
                return self._ended(taken + 1, projected, status("converged.step"))
        return self._ended(iterations, projected, status("limit.iterations"))

    @property
    def gradient(self) -> Tensor:
        """The gradient at ``x``, ``(n,)``."""
        return self._g

    @property
    def scratch(self) -> Tensor:
        """A vector ``(n,)`` that is free between calls."""
        return self._z

    def _ended(self, taken: int, projected: float, ended: Status) -> Solution:
        return Solution(self.value, taken, self._gradients, projected, ended)

    def _evaluate(self, point: Tensor, gradient: Tensor) -> float:
        self._gradients += 1
        return self._function(point, gradient)

    def _host(self, *tensors: Tensor) -> list[Matrix]:
        """Bring small results to the host, all in one go."""
        self.synchronisations += 1
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors]).cpu().numpy()
        ends = np.cumsum([tensor.numel() for tensor in tensors])[:-1]
        return [part.reshape(tensor.shape) for part, tensor in zip(np.split(flat, ends), tensors, strict=True)]

    def _direction(self) -> tuple[float, Matrix | None]:
        """Put the end of the next line into ``_z``; returns the projected gradient and the subspace step's weights."""
        h = self._history
        cauchy = self._cauchy(self._z)
        gram = self._run.history_gram(self._z, self.x, self._g, h.s, h.y, h.theta, *self._bounds)
        found, products = self._host(cauchy, gram)
        weights = self._subspace(products, found[2:]) if h.order else None
        if weights is not None:
            self._combine(self._z, weights, project=True)
        return float(found[1]), weights

    def _cauchy(self, out: Tensor) -> Tensor:
        h = self._history
        middle = torch.from_numpy(h.middle)
        found: Tensor = self._run.history_cauchy(self.x, self._g, h.s, h.y, middle, h.theta, *self._bounds, out)
        return found

    def _combine(self, point: Tensor, weights: Matrix, project: bool) -> None:
        h = self._history
        q = torch.from_numpy(weights)
        self._run.history_combine(point, self.x, self._g, h.s, h.y, q, h.theta, *self._bounds, project)

    def _subspace(self, products: Matrix, at_cauchy: Matrix) -> Matrix | None:
        """Weights q of the step ``-(h + W' q) / theta`` of the free coordinates (Byrd et al. 1995, section 5.1)."""
        if products[-1, -1] == 0:
            return None
        theta, middle = self._history.theta, self._history.middle
        gram, with_h = products[:-1, :-1], products[:-1, -1]
        of_cauchy = middle @ at_cauchy
        reduced = middle @ (with_h - gram @ of_cauchy)
        try:
            solved = np.linalg.solve(np.eye(len(gram)) - middle @ gram / theta, reduced)
        except np.linalg.LinAlgError:
            return None
        weights: Matrix = solved / theta - of_cauchy
        return weights if np.isfinite(weights).all() else None

    def _truncate(self, weights: Matrix) -> None:
        """Put the subspace step of 1995 into ``_z``, cut where it leaves the bounds."""
        self._cauchy(self._trial)
        self._z.copy_(self._trial)
        self._combine(self._z, weights, project=False)
        line = self._host(self._run.history_line(self._g, self._trial, self._z, *self._bounds))[0]
        self._run.history_step(self._trial, self._z, float(min(1.0, line[2])), *self._bounds, self._z)

    def _line(self, gradient: Tensor) -> Tensor:
        line: Tensor = self._run.history_line(gradient, self.x, self._z, *self._bounds)
        return line

    def _search(self, weights: Matrix | None, first: bool) -> bool:
        """Search along the line from x to ``_z``; where it falls, go there and remember the pair."""
        # The end of the line is nearly always taken: it is evaluated before its slope is known, to save a wait.
        self._trial.copy_(self._z)
        value = self._evaluate(self._trial, self._g_new)
        line, line_new = self._host(self._line(self._g), self._line(self._g_new))
        end: Trial | None = Trial(1.0, value, float(line_new[0]))
        if not line[0] < 0 and weights is not None:
            self._truncate(weights)
            line, end = self._host(self._line(self._g))[0], None
        if not line[0] < 0:
            return False
        last = 1.0 if end else math.nan

        def evaluate(step: float) -> Trial:
            nonlocal last
            if end is not None and step == last == 1:
                return end
            last = step
            self._run.history_step(self.x, self._z, step, *self._bounds, self._trial)
            value = self._evaluate(self._trial, self._g_new)
            return Trial(step, value, float(self._host(self._line(self._g_new))[0][0]))

        eps = float(torch.finfo(self.x.dtype).eps)
        noise = 0.0 if self.x.dtype == torch.float64 else 2 * eps * abs(self.value)
        # The first model knows no curvature; SciPy too lets it go no further than its own end.
        longest = 1.0 if first else max(float(line[2]), 1.0)
        start = Trial(0.0, self.value, float(line[0]))
        taken = line_search(evaluate, start, 1.0, longest, noise)
        if taken is None:
            return False
        if taken.step != last:
            taken = evaluate(taken.step)
        products = self._history.append(self._run, self._trial, self.x, self._g_new, self._g)
        self.x.copy_(self._trial)
        self._g, self._g_new, self.value = self._g_new, self._g, taken.value
        self._history.accept(self._host(products)[0], -start.slope * taken.step)
        return True


def maximise(
    objective: Objective,
    region: Box,
    *,
    start: Tensor | None = None,
    base: float | None = None,
    iterations: int = ITERATIONS,
    scaling: str = "box",
    report: Listener | None = None,
) -> Maximum:
    """Maximise with L-BFGS-B. Values are always computed in the objective's full precision.

    Args:
        objective: What to maximise.
        region: Where.
        start: ``(n,)``; the centre by default.
        base: The loss at the centre; not used.
        iterations: Steps at most; each takes one or more gradients.
        scaling: ``"box"``: the loss is scaled so that the first steepest step is as long as the diagonal of the box;
            ``"paper"``: it is not, as in SciPy, and near a minimizer the first step is tiny.
        report: Called with ``(evaluations, value)`` of every point.

    Returns:
        The best point visited.

    Raises:
        FloatingPointError: The loss is NaN or infinite at the start.
    """
    climb = Climb(objective, region, report)
    x = starting_point(region, start)
    scale = 1.0

    def descend(point: Tensor, gradient: Tensor) -> float:
        nonlocal scale
        value = float(objective.loss_and_gradient(point, out=gradient)[0])
        first = climb.value == -math.inf
        climb.visit(point, value)
        if first and scaling == "box":
            length = float(gradient.norm(dtype=torch.float64))
            scale = float(region.half_width().norm(dtype=torch.float64)) / length if length else 1.0
            scale = scale if math.isfinite(scale) else 1.0
        gradient.mul_(-scale)
        return -scale * value

    try:
        run = Minimiser(
            descend,
            x,
            region.centre,
            region.centre,
            absolute=region.absolute,
            relative=region.relative,
            backend=region.backend,
        )
        tolerances = {} if scaling == "paper" else {"gradient_tolerance": 0.0}
        solution = run.minimise(iterations, **tolerances)
    except FloatingPointError as error:
        if climb.value == -math.inf:
            raise
        return climb.finish(status("not_finite", error=error))
    gradient = run.gradient
    gap, flips = region.vertex(run.x, gradient.neg_(), out=run.scratch).tolist()
    if torch.equal(run.x, climb.best):
        climb.gap = gap / scale
    ended = status(
        "*.lbfgsb",
        name=solution.status.name,
        ended=solution.status,
        iterations=solution.iterations,
        gradients=solution.gradients,
    )
    if solution.iterations == 0:
        why = status("too_small.scaling") if scaling == "paper" and flips else stuck(gradient, start, 1)
        ended = status("*.because", name=why.name, ended=ended, why=why)
    elif solution.iterations == iterations:
        ended = status("*.more", name=solution.status.name, ended=ended)
    return climb.finish(ended)
