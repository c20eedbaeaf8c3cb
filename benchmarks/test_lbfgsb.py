"""L-BFGS-B without its evaluations: what the method itself costs on n coordinates, against SciPy's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.optimize
import torch
from torch import Tensor

from benchmarks.conftest import synchronise
from lbgap.maximize.lbfgsb import HISTORY, Minimiser

# Iterations that do not count, and those that do: the paper's ten from the start, and some with a full history.
PHASES = {"first 10 iterations": (0, 10), "5 iterations, history full": (HISTORY, 5)}
VECTORS = 2 * HISTORY + 6  # of n numbers: the history, x, g, the next two, one more, and the best point of a climb
EPSILON = 1e-3
FREE = 0.2  # share of the coordinates that end inside the box
TARGETS = (("faster", "scipy", 15.0), ("most", "waits", 3.0), ("most", "vectors", float(VECTORS)))


class Clock:
    """Seconds, except those in which it is stopped."""

    def __init__(self) -> None:
        self._stopped, self._depth, self._since = 0.0, 0, 0.0

    def __call__(self) -> float:
        """Seconds since some moment."""
        return (self._since if self._depth else perf_counter()) - self._stopped

    def stop(self) -> None:
        """Stand still until as many calls of :meth:`resume`."""
        if not self._depth:
            self._since = perf_counter()
        self._depth += 1

    def resume(self) -> None:
        """Go on."""
        self._depth -= 1
        if not self._depth:
            self._stopped += perf_counter() - self._since

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Stand still inside the block."""
        self.stop()
        try:
            yield
        finally:
            self.resume()


CLOCK = Clock()


class Valley:
    """``d (x - c)^2 / 2`` in each coordinate, d between 1 and 1,000: a box around 0 cuts four in five off from c."""

    def __init__(self, n: int, dtype: torch.dtype, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        share, steepness, reach = torch.rand(3, n, generator=generator, dtype=torch.float32)
        side = torch.where(reach < 0.5, -EPSILON, EPSILON)
        self.c = (side * torch.where(share < FREE, reach, 1 + reach)).to(device, dtype)
        self.d = (1000**steepness).to(device, dtype)
        self.zero = torch.zeros_like(self.c)
        self.evaluations = 0

    def __call__(self, x: Tensor, gradient: Tensor) -> float:
        """The value, with its gradient."""
        self.evaluations += 1
        away = x - self.c
        torch.mul(self.d, away, out=gradient)
        return float(away.mul_(gradient).sum(dtype=torch.float64)) / 2

    def gained(self, value: float) -> float:
        """How much of what there is to gain a value is, 1 at the minimum."""
        rubbish = torch.empty_like(self.c)
        first, last = (self(x, rubbish) for x in (self.zero, self.c.clamp(-EPSILON, EPSILON)))
        return (first - value) / (first - last)


class Found:
    """What the last call of a row came to."""

    value = free = waits = vectors = 0.0
    evaluations = 0


def with_scipy(valley: Valley, found: Found, skipped: int, timed: int) -> Callable[[], None]:
    def evaluate(x: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        with CLOCK.stopped():
            gradient = torch.empty_like(valley.c)
            return valley(torch.from_numpy(x), gradient), gradient.numpy()

    def call() -> None:
        taken = 0

        def callback(_: npt.NDArray[np.float64]) -> None:
            nonlocal taken
            taken += 1
            if taken == skipped:
                CLOCK.resume()

        if skipped:
            CLOCK.stop()
        result = scipy.optimize.minimize(
            evaluate,
            np.zeros(len(valley.c)),
            jac=True,
            method="L-BFGS-B",
            bounds=scipy.optimize.Bounds(-EPSILON, EPSILON),
            callback=callback,
            options={"maxiter": skipped + timed, "ftol": 0, "gtol": 0},
        )
        assert result.nit == skipped + timed
        found.value, found.evaluations = result.fun, result.nfev
        found.free = float((np.abs(result.x) < EPSILON).mean())

    return call


def with_lbgap(valley: Valley, found: Found, skipped: int, timed: int) -> Callable[[], None]:
    def evaluate(x: Tensor, gradient: Tensor) -> float:
        synchronise(x.device)  # what the method has enqueued is its own time
        with CLOCK.stopped():
            return valley(x, gradient)

    def call() -> None:
        x = torch.zeros_like(valley.c)
        run = Minimiser(evaluate, x, valley.zero, valley.zero, absolute=EPSILON)
        with CLOCK.stopped():
            if skipped:
                run.minimise(skipped, gradient_tolerance=0.0, value_tolerance=-1.0)
            before, evaluations = run.synchronisations, valley.evaluations
        solution = run.minimise(timed, gradient_tolerance=0.0, value_tolerance=-1.0)
        synchronise(x.device)
        with CLOCK.stopped():
            assert solution.iterations == timed
            found.value, found.evaluations = solution.value, solution.gradients
            # A line search that goes on waits once more for each of its evaluations; the target is without those.
            further = valley.evaluations - evaluations - timed
            found.waits = (run.synchronisations - before - further) / timed
            tensors = (*vars(run).values(), *vars(run._history).values())
            held = {t.data_ptr(): t.numel() for t in tensors if isinstance(t, Tensor)}
            found.vectors = sum(held.values()) / len(x) + 1  # a climb keeps its best point besides
            found.free = float((x.abs() < x.new_tensor(EPSILON)).double().mean())

    return call


@pytest.mark.benchmark(timer=CLOCK)
@pytest.mark.parametrize("backend", ["scipy", "native"])
@pytest.mark.parametrize("phase", PHASES)
def test_lbfgsb(
    phase: str,
    backend: str,
    quick: bool,
    device: torch.device,
    need: Callable[[str], None],
    measure: Callable[..., None],
    benchmark: Any,
) -> None:
    if backend == "native":
        need("native")
    n = 200_000 if quick else 4_000_000
    dtype = torch.float32 if backend == "native" else torch.float64
    valley, found = Valley(n, dtype, torch.device("cpu") if backend == "scipy" else device), Found()
    call = (with_lbgap if backend == "native" else with_scipy)(valley, found, *PHASES[phase])
    measure(
        call,
        group=f"L-BFGS-B overhead, {phase}",
        backend=backend,
        rounds=3 if quick or backend == "native" else 1,
        work={"copy": float(VECTORS * n * dtype.itemsize * PHASES[phase][1])},
        targets=TARGETS if backend == "native" else (),
        n=n,
    )
    assert valley.gained(found.value) > 0.95
    benchmark.extra_info.update(vars(found))
