"""The loss along paths between minimizers."""

from lbgap.landscape.line import Line, line

__all__ = ["Line", "line"]
