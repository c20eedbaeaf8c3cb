"""The data sets that need no download, and readers for the files of others."""

from lbgap.datasets.cifar import cifar10, cifar100
from lbgap.datasets.digits import digits
from lbgap.datasets.idx import read_idx
from lbgap.datasets.load import NAMES, load
from lbgap.datasets.mnist import mnist
from lbgap.datasets.mnist1d import mnist1d
from lbgap.datasets.npz import npz
from lbgap.problem.samples import Data, DataLike, Split, as_tensors

__all__ = [
    "NAMES",
    "Data",
    "DataLike",
    "Split",
    "as_tensors",
    "cifar10",
    "cifar100",
    "digits",
    "load",
    "mnist",
    "mnist1d",
    "npz",
    "read_idx",
]
