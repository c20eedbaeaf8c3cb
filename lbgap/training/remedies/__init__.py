"""Remedies for the generalisation gap of large-batch training, for ``lbgap.train(..., remedies=[...])``."""

from lbgap.training.remedies.augment import Augment
from lbgap.training.remedies.average import SWA
from lbgap.training.remedies.base import Remedy
from lbgap.training.remedies.conservative import Conservative
from lbgap.training.remedies.displace import ASAM, SAM, Robust, SmoothOut
from lbgap.training.remedies.ghost import GhostBatchNorm
from lbgap.training.remedies.inputs import Adversarial, Stability
from lbgap.training.remedies.local import LocalSGD
from lbgap.training.remedies.schedules import Batches, Grow, LinearRate, SqrtRate

__all__ = [
    "ASAM",
    "SAM",
    "SWA",
    "Adversarial",
    "Augment",
    "Batches",
    "Conservative",
    "GhostBatchNorm",
    "Grow",
    "LinearRate",
    "LocalSGD",
    "Remedy",
    "Robust",
    "SmoothOut",
    "SqrtRate",
    "Stability",
]
