"""Training to a minimizer, reproducibly: the same call gives the same bits, interrupted or not."""

from lbgap.training import remedies
from lbgap.training.run import Run, SavedRun, read_iterates, read_run
from lbgap.training.together import train_together
from lbgap.training.trainer import train

__all__ = ["Run", "SavedRun", "read_iterates", "read_run", "remedies", "train", "train_together"]
