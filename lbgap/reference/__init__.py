"""The plain-PyTorch twin of every native op: oracle, fallback and benchmark opponent.

Same names, same arguments, same results as :mod:`lbgap.ops`, on any device. The box is (centre x,
absolute a, relative b): coordinate i may be anywhere in x_i -+ (a + b |x_i|). The history ops have the bounds
lower - (a + b |lower|) and upper + (a + b |upper|).
"""

from __future__ import annotations

from lbgap.reference.box import box_project, box_step, box_vertex
from lbgap.reference.history import (
    history_append,
    history_cauchy,
    history_combine,
    history_gram,
    history_line,
    history_step,
)
from lbgap.reference.points import blend_points, chain_points, xent_points
from lbgap.reference.subspace import (
    DISTRIBUTIONS,
    philox,
    subspace_apply,
    subspace_entries,
    subspace_gram,
    subspace_project,
)
from lbgap.reference.tangents import (
    tangents_affine,
    tangents_curve,
    tangents_gather,
    tangents_scale,
    tangents_scatter,
    tangents_softmax,
)

__all__ = [
    "DISTRIBUTIONS",
    "blend_points",
    "box_project",
    "box_step",
    "box_vertex",
    "chain_points",
    "history_append",
    "history_cauchy",
    "history_combine",
    "history_gram",
    "history_line",
    "history_step",
    "philox",
    "subspace_apply",
    "subspace_entries",
    "subspace_gram",
    "subspace_project",
    "tangents_affine",
    "tangents_curve",
    "tangents_gather",
    "tangents_scale",
    "tangents_scatter",
    "tangents_softmax",
    "xent_points",
]
