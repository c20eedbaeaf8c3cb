"""The loss along paths between minimizers, and on planes."""

from lbgap.landscape.connect import Connection, connect
from lbgap.landscape.curve import curve
from lbgap.landscape.line import Line, line
from lbgap.landscape.plane import Plane, plane
from lbgap.landscape.shape import Shape

__all__ = ["Connection", "Line", "Plane", "Shape", "connect", "curve", "line", "plane"]
