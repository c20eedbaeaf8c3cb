"""Figures, drawn without matplotlib's global state and saved as PNG and SVG."""

from lbgap.plotting.base import BLUE, ORANGE, VERMILION, encode, plain, save
from lbgap.plotting.charts import plot_asymmetry, plot_bars, plot_connection, plot_curves, plot_densities, plot_line
from lbgap.plotting.interactive import surface_html
from lbgap.plotting.labels import label_points
from lbgap.plotting.planes import plot_plane, plot_surface

__all__ = [
    "BLUE",
    "ORANGE",
    "VERMILION",
    "encode",
    "label_points",
    "plain",
    "plot_asymmetry",
    "plot_bars",
    "plot_connection",
    "plot_curves",
    "plot_densities",
    "plot_line",
    "plot_plane",
    "plot_surface",
    "save",
    "surface_html",
]
