"""The loss along paths between minimizers."""

from lbgap.landscape.curve import curve
from lbgap.landscape.line import Line, line
from lbgap.landscape.shape import Shape

__all__ = ["Line", "Shape", "curve", "line"]
