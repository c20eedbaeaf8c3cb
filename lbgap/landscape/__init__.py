"""The loss along paths between minimizers."""

from lbgap.landscape.asymmetry import Asymmetry, asymmetry
from lbgap.landscape.curve import curve
from lbgap.landscape.line import Line, line
from lbgap.landscape.shape import Shape

__all__ = ["Asymmetry", "Line", "Shape", "asymmetry", "curve", "line"]
