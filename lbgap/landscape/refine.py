"""Evaluate a grid only where the surface bends, and interpolate the rest.

The grid is cut into patches. In each the loss is evaluated on 5 x 5 nodes, and what the polynomial of degree two in
each coordinate through 3 x 3 of them predicts at the others is compared with what they are. Where that is good, the
patch is filled from polynomials through 3 x 3 nodes of each quarter, which are twice as close; where not, or where
a value is not finite, the patch is quartered, down to single points.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PATCHES = 4  # along each axis at first: a bend narrower than a 16th of the plane may be missed
Span = tuple[int, int]


@dataclass(frozen=True)
class Patch:
    """A part of a grid, bounds included.

    Attributes:
        rows: The first and the last row.
        columns: The first and the last column.
    """

    rows: Span
    columns: Span

    def nodes(self) -> tuple[list[int], list[int]]:
        """Rows and columns that are evaluated."""
        return _fine(self.rows), _fine(self.columns)

    def quarters(self) -> list[Patch]:
        """Its parts; a side of length one is not cut."""
        return [Patch(rows, columns) for rows in _halves(self.rows) for columns in _halves(self.columns)]


def refine(
    shape: tuple[int, int],
    evaluate: Callable[[list[tuple[int, int]]], None],
    values: Tensor,
    evaluated: Tensor,
    allowed: Callable[[Tensor], Tensor],
) -> None:
    """Evaluate what is needed of a grid, and interpolate the rest.

    Args:
        shape: Rows and columns.
        evaluate: Evaluates points, given as (row, column), into ``values`` and ``evaluated``.
        values: ``(quantities, rows, columns)`` float64, filled.
        evaluated: ``(rows, columns)`` bool, which of them are no interpolations.
        allowed: From values ``(quantities, ...)`` to how far an interpolation may be off.
    """
    live = [Patch(rows, columns) for rows in _first(shape[0]) for columns in _first(shape[1])]
    smooth: list[Patch] = []
    while live:
        wanted = {(row, column) for patch in live for row in patch.nodes()[0] for column in patch.nodes()[1]}
        evaluate(sorted(point for point in wanted if not evaluated[point]))
        bent = [patch for patch in live if _bent(patch, values, allowed)]
        # Those that were good enough may be so no more, with what was evaluated on their border for a neighbour.
        refuted = [patch for patch in smooth if _refuted(patch, values, evaluated, allowed)]
        smooth = [patch for patch in (*smooth, *live) if patch not in {*bent, *refuted}]
        live = [quarter for patch in (*refuted, *bent) for quarter in patch.quarters()]
    for patch in smooth:
        for part in patch.quarters():
            _fill(part, values, evaluated)


def _bent(patch: Patch, values: Tensor, allowed: Callable[[Tensor], Tensor]) -> bool:
    """Whether interpolation is not good enough; never where nothing is left to interpolate."""
    rows, columns = patch.nodes()
    if len(rows) > patch.rows[1] - patch.rows[0] and len(columns) > patch.columns[1] - patch.columns[0]:
        return False
    known = values[:, rows][:, :, columns]
    off = (_predicted(values, _coarse(patch.rows), _coarse(patch.columns), rows, columns) - known).abs()
    return not bool((off <= allowed(known)).all())  # nor is NaN


def _refuted(patch: Patch, values: Tensor, evaluated: Tensor, allowed: Callable[[Tensor], Tensor]) -> bool:
    """Whether a value that was evaluated is not what the patch would be filled with."""
    for part in patch.quarters():
        here, found = _filling(part, values)
        known = values[:, here[0], here[1]]
        good = (found - known).abs() <= allowed(known)
        if not bool((good | ~evaluated[here]).all()):
            return True
    return False


def _fill(patch: Patch, values: Tensor, evaluated: Tensor) -> None:
    here, found = _filling(patch, values)
    part = values[:, here[0], here[1]]
    part.copy_(torch.where(evaluated[here], part, found))


def _filling(patch: Patch, values: Tensor) -> tuple[tuple[slice, slice], Tensor]:
    """Where a quarter lies, and what it would be filled with."""
    rows, columns = (list(range(first, last + 1)) for first, last in (patch.rows, patch.columns))
    found = _predicted(values, _coarse(patch.rows), _coarse(patch.columns), rows, columns)
    return (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)), found


def _predicted(
    values: Tensor, rows: Sequence[int], columns: Sequence[int], to_rows: Sequence[int], to_columns: Sequence[int]
) -> Tensor:
    """Interpolate from nodes to others: Lagrange's polynomials, a product of one in each coordinate."""
    nodes = values[:, list(rows)][:, :, list(columns)]
    return _weights(rows, to_rows).to(values) @ nodes @ _weights(columns, to_columns).to(values).T


def _weights(nodes: Sequence[int], targets: Sequence[int]) -> Tensor:
    found = torch.ones(len(targets), len(nodes), dtype=torch.float64, device="cpu")
    for column, node in enumerate(nodes):
        for other in nodes:
            if other != node:
                factors = [(at - other) / (node - other) for at in targets]
                found[:, column] *= torch.tensor(factors, dtype=torch.float64, device="cpu")
    return found


def _first(count: int) -> list[Span]:
    """Cut an axis into the first patches."""
    bounds = sorted({part * (count - 1) // PATCHES for part in range(PATCHES + 1)})
    return list(itertools.pairwise(bounds))


def _coarse(span: Span) -> list[int]:
    return sorted({span[0], sum(span) // 2, span[1]})


def _fine(span: Span) -> list[int]:
    return sorted({node for half in _halves(span) for node in _coarse(half)})


def _halves(span: Span) -> list[Span]:
    middle = sum(span) // 2
    return [span] if middle == span[0] else [(span[0], middle), (middle, span[1])]
