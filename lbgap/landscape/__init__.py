"""The loss along paths between minimizers, and on planes."""

from lbgap.landscape.asymmetry import Asymmetry, asymmetry
from lbgap.landscape.curve import curve
from lbgap.landscape.line import Line, line
from lbgap.landscape.plane import Plane, plane
from lbgap.landscape.shape import Shape

__all__ = ["Asymmetry", "Line", "Plane", "Shape", "asymmetry", "curve", "line", "plane"]
