"""The loss along paths between minimizers."""

from lbgap.landscape.asymmetry import Asymmetry, asymmetry
from lbgap.landscape.line import Line, line

__all__ = ["Asymmetry", "Line", "asymmetry", "line"]
