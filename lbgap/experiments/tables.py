"""Tables 3 and 4 of the paper: phi in the full space and on random manifolds, by its recipe and by vertex ascent."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lbgap.measures.sharpness import Sharpness, fast_sharpness
from lbgap.objective import Objective
from lbgap.result import plain, versions

EPSILONS = (1e-3, 5e-4)
SUBSPACE, TRIALS = 100, 5
RESTARTS, MANIFOLD_RESTARTS = 10, 3
# What the tables compare: the recipe as the paper gives it, from one start, and what is searched for here.
METHODS: dict[str, dict[str, Any]] = {"recipe": {"method": "scipy"}, "vertex": {"method": "vertex"}}
SPACES: dict[str, dict[str, Any]] = {"full space": {}, "manifold": {"subspace": SUBSPACE, "trials": TRIALS}}


@dataclass(frozen=True)
class Cell:
    """One entry of a table: phi of the minimizers of one group.

    Attributes:
        space: ``"full space"`` (Table 3) or ``"manifold"`` (Table 4).
        epsilon: Size of the box.
        method: ``"recipe"`` or ``"vertex"``.
        values: phi in percent of each minimizer; on manifolds each is the mean over the trials.
    """

    space: str
    epsilon: float
    method: str
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over the minimizers."""
        return statistics.fmean(self.values)

    @property
    def standard_deviation(self) -> float:
        """Over the minimizers, with one less than their number in the denominator; NaN for one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else math.nan

    def __str__(self) -> str:
        """As the paper prints it; one minimizer has no deviation."""
        if math.isnan(self.standard_deviation):
            return short(self.mean, 4)
        return f"{short(self.mean, 4)} ± {short(self.standard_deviation, 2)}"


def short(number: float, digits: int) -> str:
    """So many digits at least, and no power of ten unless the number is tiny or huge."""
    return f"{number:.0f}" if 10**digits <= abs(number) < 1e9 else f"{number:.{digits}g}"


@dataclass(frozen=True, eq=False)
class Tables:
    """The two tables.

    Attributes:
        groups: For each group of minimizers, such as those of one batch size, its cells in the order of the columns.
        results: Every sharpness behind them: minimizer, group, space and method first.
        seconds: Wall-clock time by method.
    """

    groups: dict[str, tuple[Cell, ...]]
    results: tuple[tuple[str, str, str, str, Sharpness], ...] = field(repr=False)

    @property
    def seconds(self) -> dict[str, float]:
        """Wall-clock time of all sharpnesses, by method."""
        return {m: sum(found.seconds for *_, method, found in self.results if method == m) for m in METHODS}

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        cells = {
            group: [
                {
                    "space": cell.space,
                    "epsilon": cell.epsilon,
                    "method": cell.method,
                    "mean": plain(cell.mean),
                    "standard_deviation": plain(cell.standard_deviation),
                    "values": plain(cell.values),
                }
                for cell in row
            ]
            for group, row in self.groups.items()
        }
        results = [
            {"minimizer": name, "group": group, "space": space, "by": method, **found.to_dict()}
            for name, group, space, method, found in self.results
        ]
        return {"groups": cells, "results": results, "seconds": self.seconds, "versions": versions()}


def paper_tables(
    minimizers: Iterable[tuple[str, str, Objective]],
    *,
    epsilons: Sequence[float] = EPSILONS,
    restarts: int = RESTARTS,
    seed: int = 0,
    spaces: Sequence[str] = tuple(SPACES),
    report: Callable[[str], None] | None = None,
) -> Tables:
    """Measure phi as in Tables 3 and 4 of Keskar et al. 2016 (arXiv 1609.04836).

    The recipe is that of the paper, 10 iterations of SciPy's L-BFGS-B from one start. Vertex ascent has ``restarts``
    further starts in the full space, and 3 of them on manifolds (100 dimensions, normal entries, 5 trials), where the
    loss has many local maxima.

    Args:
        minimizers: Name, group and objective of each; those of one group are averaged.
        epsilons: Sizes of the box.
        restarts: Further starts of vertex ascent; on manifolds at most 3.
        seed: Of the starts and the manifolds.
        spaces: Some of :data:`SPACES`: ``"full space"`` for Table 3, ``"manifold"`` for Table 4.
        report: Called with a sentence before every measurement.

    Raises:
        ValueError: There is no minimizer, or one has fewer than 100 parameters; or as :func:`lbgap.fast_sharpness`.
    """
    epsilons = tuple(dict.fromkeys(epsilons))  # a second time would count as a second minimizer
    results: list[tuple[str, str, str, str, Sharpness]] = []
    for name, group, objective in minimizers:
        for space, spaced in ((space, SPACES[space]) for space in spaces):
            for epsilon in epsilons:
                for method, chosen in METHODS.items():
                    if report is not None:
                        report(f"{name}: {space}, epsilon {epsilon:g}, {method}")
                    more = 0 if method == "recipe" else restarts if not spaced else min(restarts, MANIFOLD_RESTARTS)
                    found = fast_sharpness(objective, epsilon=epsilon, restarts=more, seed=seed, **spaced, **chosen)
                    results.append((name, group, space, method, found))
    if not results:
        raise ValueError("there is no minimizer to measure: give one or more")
    groups: dict[str, tuple[Cell, ...]] = {}
    for group in dict.fromkeys(result[1] for result in results):
        groups[group] = tuple(
            Cell(space, epsilon, method, _values(results, group, space, epsilon, method))
            for space in spaces
            for epsilon in epsilons
            for method in METHODS
        )
    return Tables(groups, tuple(results))


def _values(
    results: list[tuple[str, str, str, str, Sharpness]], group: str, space: str, epsilon: float, method: str
) -> tuple[float, ...]:
    wanted = (group, space, method, float(epsilon))
    return tuple(f.value for _, g, s, m, f in results if (g, s, m, f.settings["epsilon"]) == wanted)
