"""The networks of the paper, built from a seed or a run's configuration, and the user's own by path."""

from lbgap.networks.convolutional import c1, c1_1d, c2, c2_1d, c3, c4
from lbgap.networks.dense import f1, f2, mlp
from lbgap.networks.registry import NETWORKS, build, known, specify
from lbgap.networks.start import Initialisation
from lbgap.networks.user import from_path

__all__ = [
    "NETWORKS",
    "Initialisation",
    "build",
    "c1",
    "c1_1d",
    "c2",
    "c2_1d",
    "c3",
    "c4",
    "f1",
    "f2",
    "from_path",
    "known",
    "mlp",
    "specify",
]
