"""The operators, one thin wrapper each: native where a compiled library serves the device.

The box is (centre x, absolute a, relative b): coordinate i may be anywhere in x_i -+ (a + b |x_i|). It is
never stored as bounds. The random matrix A is ``(n, p)`` and never stored either: entry (i, j) is a function of
``(distribution, seed, stream, first + i, j)``, a float32 number whatever the dtype of the vectors.

Tangents are derivatives along k vectors, ``(batch, k, ...)``, beside values ``(batch, ...)`` that all k share.

Points are combinations ``(k, j)`` of j ends; where a coefficient is exactly zero the end takes no part.

Everywhere else than on a natively served device the call goes to the twin in :mod:`lbgap.reference`. None of these
ops has derivatives, so all refuse inputs that require a gradient.
"""

from lbgap.ops.box import box_project, box_step, box_vertex
from lbgap.ops.history import history_append, history_cauchy, history_combine, history_gram, history_line, history_step
from lbgap.ops.points import blend_points, chain_points, xent_points
from lbgap.ops.subspace import subspace_apply, subspace_gram, subspace_project
from lbgap.ops.tangents import (
    tangents_affine,
    tangents_curve,
    tangents_gather,
    tangents_scale,
    tangents_scatter,
    tangents_softmax,
)

__all__ = [
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
    "subspace_apply",
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
