"""Along which two directions a plane lies: through three minimizers, or of a kind from one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lbgap.landscape.ends import check_finite, check_same_architecture, flat_like
from lbgap.landscape.frame import Frame, Range
from lbgap.landscape.given import Given
from lbgap.measures.draws import normals
from lbgap.measures.hessian.eigenvalues import eigenvalues
from lbgap.objective import Objective
from lbgap.system.progress import Report

KINDS = ("minimizers", "random", "eigenvectors", "pca")
NORMALISE = ("filter", "layer", "none")
ORDINALS = ("first", "second", "third")
MARGIN = 0.2  # of what is marked, on each side
FLAT = 1e-6  # sine of the angle below which two directions are one: float32 does not tell them apart
AT_ONCE = 1 << 22  # numbers of a trajectory that are in float64 at the same time
Found = tuple[Tensor, tuple[float, ...]]


def kind_of(models: Sequence[object], directions: str | Tensor | None, normalise: str) -> str:
    """What the directions are, by their name and the number of models.

    Raises:
        ValueError: There is no such kind, or it needs another number of models.
        TypeError: ``directions`` is neither a name nor a tensor.
    """
    if normalise not in NORMALISE:
        raise ValueError(f"normalise must be 'filter', 'layer' or 'none', got {normalise!r}")
    if isinstance(directions, Tensor):
        kind = "given"
    elif directions is None:
        kind = "random" if len(models) == 1 else "minimizers"
    elif not isinstance(directions, str):
        raise TypeError(f"directions must be a name or a (2, n) tensor, got {type(directions).__name__}")
    elif directions not in KINDS:
        raise ValueError(f"directions must be {', '.join(map(repr, KINDS))} or a (2, n) tensor, got {directions!r}")
    else:
        kind = directions
    if kind == "minimizers" and len(models) != 3:
        raise ValueError(
            f"a plane goes through three minimizers, got {len(models)} models: pass three, or one with "
            "directions='random', or the iterates of a training with directions='pca'"
        )
    if kind == "pca" and len(models) < 3:
        raise ValueError(
            f"directions='pca' needs three iterates or more, the last one being the centre, got {len(models)}"
        )
    if kind not in ("minimizers", "pca") and len(models) != 1:
        shown = "a tensor of directions" if kind == "given" else f"directions={kind!r}"
        raise ValueError(f"{shown} needs one minimizer, got {len(models)}")
    return kind


def roles(count: int, kind: str) -> list[str]:
    """What so many models are called in messages."""
    if kind == "pca":
        return [f"{number}." for number in range(1, count + 1)]
    return list(ORDINALS) if count == 3 else ["given"]


def check_models(models: Sequence[nn.Module], kind: str, given: Given) -> None:
    """Refuse models that are not finite points of one parameter space.

    Args:
        models: All of them.
        kind: As :func:`kind_of` returns it.
        given: The one whose loss is evaluated.

    Raises:
        ValueError: They differ, or one has a parameter that is not finite.
    """
    names = roles(len(models), kind)
    for model, name in zip(models, names, strict=True):
        parameters = given.options.get("parameters", "all")
        check_same_architecture(models[0], model, (names[0], name), parameters=parameters, bare=given.bare)
        check_finite(model, name)


def make_frame(
    kind: str,
    models: Sequence[nn.Module],
    objective: Objective,
    directions: str | Tensor | None,
    normalise: str,
    seed: int,
    progress: Report,
    kept: Callable[[Callable[[], Found]], Found],
) -> Frame:
    """Place the plane.

    Args:
        kind: As :func:`kind_of` returns it.
        models: The minimizers, or the trajectory.
        objective: The loss of the first minimizer, or of the last iterate.
        directions: The tensor, if it is one.
        normalise: Of random directions.
        seed: Of random directions, and of the search for eigenvectors.
        progress: How the progress of that search is reported.
        kept: Returns what a function makes, now or in the call that this one goes on with: two directions and numbers.

    Raises:
        ValueError: The directions are parallel or zero, are not finite, or have the wrong shape.
        TypeError: They are not floating-point numbers.
    """
    if kind == "minimizers":
        return _through(models, objective)
    if kind == "pca":
        return _pca(models, objective)
    centre = objective.theta
    if kind == "random":
        rows = _random(objective, normalise, seed)
        units = {"filter": "filter norms", "layer": "layer norms", "none": "norms of all parameters"}
        return _around(centre, rows, tuple(f"random direction {i}, in {units[normalise]}" for i in (1, 2)))
    if kind == "eigenvectors":
        return _eigenvectors(objective, seed, progress, kept)
    assert isinstance(directions, Tensor)  # else there is another kind
    rows = _given(directions, objective)
    lengths = rows.double().norm(dim=1).tolist()
    return _around(centre, rows, tuple(f"coefficient of direction {i + 1}, of length {lengths[i]:.4g}" for i in (0, 1)))


def _through(models: Sequence[nn.Module], objective: Objective) -> Frame:
    """The plane through three minimizers, in Euclidean coordinates (Garipov et al. 2018, arXiv 1802.10026)."""
    ends = torch.stack([flat_like(model, objective) for model in models])
    for i, j in itertools.combinations(range(3), 2):
        if torch.equal(ends[i], ends[j]):
            raise ValueError(
                f"the {ORDINALS[i]} and the {ORDINALS[j]} model have the same parameters: a plane needs three "
                "different minimizers"
            )
    u, v = (end.double() - ends[0].double() for end in ends[1:])
    length, whole = float(u.norm()), float(v.norm())
    u /= length
    along = float(v @ u)
    v -= along * u
    height = float(v.norm())
    if height <= FLAT * whole:
        raise ValueError("the three models lie on one straight line, which spans no plane: use lbgap.line, or another")
    slope_x = [-1 / length, 1 / length, 0.0]
    share = along / length  # of the way to the second, below the third
    slope_y = [(share - 1) / height, -share / height, 1 / height]
    corners = [(0.0, 0.0), (length, 0.0), (along, height)]
    return Frame(
        ends=ends,
        origin=torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64, device="cpu"),
        slopes=torch.tensor([slope_x, slope_y], dtype=torch.float64, device="cpu"),
        marks=tuple((name, *at) for name, at in zip(ORDINALS, corners, strict=True)),
        axes=("first to second, Euclidean distance", "line to third, Euclidean distance"),
        ranges=_widened(corners),
    )


def _around(
    centre: Tensor, rows: Tensor, axes: tuple[str, ...], name: str = "minimizer", what: str = "directions", **rest: Any
) -> Frame:
    """The plane of a centre and two directions.

    Raises:
        ValueError: They are parallel, or one is zero.
    """
    one, two = (row / float(row.norm()) for row in rows.double())
    if not float((two - float(one @ two) * one).norm()) > FLAT:  # nor is NaN
        raise ValueError(f"the two {what} are parallel, or one is zero: they span no plane")
    return Frame(
        ends=torch.cat((centre[None], rows)),
        origin=torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64, device="cpu"),
        slopes=torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64, device="cpu"),
        marks=((name, 0.0, 0.0),),
        axes=(axes[0], axes[1]),
        **{"ranges": ((-1.0, 1.0), (-1.0, 1.0)), **rest},
    )


def _random(objective: Objective, normalise: str, seed: int) -> Tensor:
    """Two Gaussian directions, normalised filter by filter (Li et al. 2018, arXiv 1712.09913, section 4).

    Raises:
        ValueError: There is nothing that a normalised direction moves.
    """
    centre = objective.theta
    drawn = normals(centre, seed)
    rows = torch.stack([next(drawn) for _ in range(2)])
    for row in rows:
        if normalise == "none":
            row *= float(centre.double().norm() / row.double().norm())
            continue
        for part, own in zip(objective.split(row).values(), objective.split(centre).values(), strict=True):
            if own.dim() < 2:
                part.zero_()
                continue
            kept = 1 if normalise == "filter" else 0
            sizes = (values.double().flatten(kept).norm(dim=kept, keepdim=True) for values in (own, part))
            ratio = torch.divide(*sizes).to(part)
            part *= ratio.view(*ratio.shape[:kept], *[1] * (part.dim() - kept))
    if not rows.any():
        raise ValueError(
            f"normalise={normalise!r} moves parameters of two or more dimensions only, and of those all are zero or "
            "there are none: pass normalise='none'"
        )
    return rows


def _eigenvectors(
    objective: Objective, seed: int, progress: Report, kept: Callable[[Callable[[], Found]], Found]
) -> Frame:
    """Along the eigenvectors of the two largest eigenvalues of the Hessian."""
    if objective.n < 2:
        raise ValueError("a plane needs two parameters that may move, got 1")

    def search() -> Found:
        found = eigenvalues(objective, k=2, seed=seed, progress=progress)
        return found.vectors, (*found.values, *found.residuals)

    rows, numbers = kept(search)
    values = numbers[0], numbers[1]
    return _around(
        objective.theta,
        rows.to(objective.theta),
        tuple(f"eigenvector {i + 1} (eigenvalue {value:.3g}), distance" for i, value in enumerate(values)),
        eigenvalues=values,
        details={"eigenvalue_residuals": list(numbers[2:])},
    )


def _given(directions: Tensor, objective: Objective) -> Tensor:
    if directions.shape != (2, objective.n):
        raise ValueError(
            f"directions must be (2, {objective.n}), one number for each parameter that may move, got "
            f"{tuple(directions.shape)}"
        )
    if not directions.is_floating_point():
        raise TypeError(f"directions must hold floating-point numbers, got {directions.dtype}")
    rows = directions.detach().to(objective.theta)
    if not rows.isfinite().all():
        raise ValueError("directions must be finite, got NaN or infinity")
    return rows


def _pca(models: Sequence[nn.Module], objective: Objective) -> Frame:
    """Through the last iterate along the principal components of all (Li et al. 2018, arXiv 1712.09913, section 7.2).

    They come from the inner products of the differences to the last iterate, centred, an m x m matrix for m iterates.

    Raises:
        ValueError: The iterates lie on a line.
    """
    centre, count = objective.theta, len(models)
    gram = torch.zeros(count, count, dtype=torch.float64, device=centre.device)
    for _, part in _differences(models, objective):
        gram += part @ part.T
    middle = torch.eye(count, dtype=torch.float64, device=centre.device) - 1 / count
    values, vectors = torch.linalg.eigh(middle @ gram @ middle)
    values, vectors = values[[-1, -2]], vectors[:, [-1, -2]]
    if not float(values[1]) > FLAT**2 * float(values[0]):
        raise ValueError(f"the {count} iterates lie on one straight line, which spans no plane: use lbgap.line")
    weights = vectors / values.sqrt()  # of the differences in each direction, of length 1
    coordinates = gram @ weights
    signs = torch.where(coordinates[0] < 0, -1.0, 1.0)  # an eigenvector has none: the first iterate lies ahead
    weights, coordinates = weights * signs, coordinates * signs
    rows = torch.empty(2, len(centre), dtype=torch.float64, device=centre.device)
    for place, part in _differences(models, objective):
        rows[:, place] = weights.T @ part
    explained = (values / (middle @ gram @ middle).trace()).tolist()
    path = (*((float(x), float(y)) for x, y in coordinates[:-1].tolist()), (0.0, 0.0))
    return _around(
        centre,
        rows.to(centre),
        tuple(f"component {i + 1} ({100 * share:.3g} % of variance), distance" for i, share in enumerate(explained)),
        "last iterate",
        "principal components",
        ranges=_widened(path),
        path=path,
        explained=(explained[0], explained[1]),
        details={"iterates": count},
    )


def _differences(models: Sequence[nn.Module], objective: Objective) -> Iterator[tuple[slice, Tensor]]:
    """Differences of all iterates to the last one, in pieces of their columns: places and ``(m, columns)`` float64."""
    named = [dict(model.named_parameters()) for model in models]
    first, count = 0, max(1, AT_ONCE // len(models))
    for name in objective.names:
        parts = [values[name].detach().reshape(-1) for values in named]
        for at in range(0, len(parts[0]), count):
            block = torch.stack([part[at : at + count].to(objective.theta.device, torch.float64) for part in parts])
            yield slice(first + at, first + at + block.shape[1]), block - block[-1]
        first += len(parts[0])


def _widened(points: Sequence[tuple[float, float]]) -> tuple[Range, Range]:
    """The box of some points, with a margin."""

    def wider(values: Sequence[float]) -> Range:
        low, high = min(values), max(values)
        return low - MARGIN * (high - low), high + MARGIN * (high - low)

    return wider([x for x, _ in points]), wider([y for _, y in points])
