"""Figures and the page of a plane: what is drawn, also where the loss is not finite, and in a browser."""

import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from importlib.util import find_spec

import numpy as np
import pytest
from matplotlib.colors import LogNorm, Normalize
from matplotlib.image import imread

from lbgap import plotting
from lbgap.landscape.plane import Plane
from lbgap.plotting import page as pages
from lbgap.status import status

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HEADLESS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--enable-unsafe-swiftshader", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1000,1800"),
    "--virtual-time-budget=20000",
)


def rows(values):
    return tuple(map(tuple, values.tolist()))


def make_plane(test=True, change=None, **others):
    x, y = np.linspace(-1, 1, 9), np.linspace(-1.5, 1.5, 7)
    losses = 0.01 + 3 * x**2 + np.exp(2 * y[:, None] ** 2)
    if change is not None:
        change(losses)
    evaluated = (np.arange(7)[:, None] % 2 == 0) & (np.arange(9) % 2 == 0)
    plane = Plane(
        value=float(losses.max()) - 1.0,
        status=status("refined", evaluated=int(evaluated.sum()), points=63, tolerance=0.02),
        settings={"loss": "cross_entropy", "batch_norm": "eval"},
        evaluations=22.0,
        seconds=0.0,
        x=tuple(x),
        y=tuple(y),
        train_loss=rows(losses),
        train_accuracy=None,
        test_loss=rows(losses + 0.5) if test else None,
        test_accuracy=None,
        evaluated=rows(evaluated),
        marks=(("SB", 0.0, 0.0), ("$LB$ <b>", 0.5, 0.25)),
        mark_loss=(1.0, 2.0),
        path=None,
        axes=("distance along $u$", "distance along $v$"),
        eigenvalues=None,
        explained=None,
    )
    return replace(plane, **others)


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_both_data_sets_have_the_same_logarithmic_levels():
    figure = plotting.plot_plane(make_plane(), "a title")
    train, test = (axes for axes in figure.axes if axes.get_title())
    assert (train.get_title(), test.get_title(), figure.get_suptitle()) == ("train data", "test data", "a title")
    first, second = (axes.collections[0] for axes in (train, test))
    assert isinstance(first.norm, LogNorm)
    assert np.array_equal(first.levels, second.levels)
    ratios = first.levels[1:] / first.levels[:-1]
    assert np.allclose(ratios, ratios[0])
    plane = make_plane()
    assert first.levels[0] == pytest.approx(np.min(plane.train_loss))
    assert first.levels[-1] == pytest.approx(np.max(plane.test_loss))
    assert (train.get_xlabel(), train.get_ylabel()) == plane.axes
    assert train.get_aspect() == 1


def test_without_test_data_there_is_one_panel():
    figure = plotting.plot_plane(make_plane(test=False), "a title")
    assert [axes.get_title() for axes in figure.axes][:1] == ["a title"]
    assert figure.get_suptitle() == ""
    assert len(figure.axes) == 2  # with the bar of colours


def test_marks_trajectory_and_evaluated_points_are_drawn_where_they_are():
    plane = make_plane(test=False, path=((-0.9, -1.0), (-0.5, 0.0), (0.0, 0.0)))
    figure = plotting.plot_plane(plane)
    places = [tuple(map(tuple, line.get_xydata())) for line in figure.axes[0].lines]
    assert plane.path in places
    assert ((0.0, 0.0),) in places
    assert ((0.5, 0.25),) in places
    dots = next(place for place in places if len(place) == plane.evaluated_points)
    assert set(dots) == {(x, y) for x in plane.x[::2] for y in plane.y[::2]}
    assert legend(figure) == ["SB", r"\$LB\$ <b>", "trajectory", "evaluated (32% of the grid)"]


def test_a_full_grid_shows_no_dots():
    plane = make_plane(evaluated=((True,) * 9,) * 7)
    assert not any("evaluated" in text for text in legend(plotting.plot_plane(plane)))


@pytest.mark.parametrize("value", [math.inf, math.nan, -math.inf])
def test_what_is_not_finite_is_hatched_and_a_hole(value):
    def change(losses):
        losses[5:, 6:] = value

    plane = make_plane(change=change)
    figure = plotting.plot_plane(plane)
    assert legend(figure)[-1] == "loss not finite"
    axes = figure.axes[0]
    assert axes.patch.get_hatch() == "///"
    inside = [any(path.contains_point((x, 1.25)) for path in axes.collections[0].get_paths()) for x in (-0.5, 0.75)]
    assert inside == [True, False]
    heights, logarithmic = plotting.planes.surface_heights(plotting.planes.values(plane, "train"))
    assert logarithmic
    assert np.array_equal(np.isnan(heights), ~np.isfinite(plane.train_loss))
    assert np.allclose(10 ** heights[:5], np.array(plane.train_loss)[:5])
    plotting.plot_surface(plane)


def level(losses):
    losses[:] = 2.0


def negative(losses):
    losses -= 5


def zeros(losses):
    losses[3, 3:5] = 0.0


def nothing(losses):
    losses[:] = math.inf


@pytest.mark.parametrize(
    ("change", "norm"), [(level, Normalize), (negative, Normalize), (zeros, LogNorm), (nothing, Normalize)]
)
def test_losses_that_a_logarithm_has_no_place_for(tmp_path, change, norm):
    plane = make_plane(test=False, change=change)
    figure = plotting.plot_plane(plane)
    contours = figure.axes[0].collections[0]
    assert type(contours.norm) is norm
    if change is zeros:  # they have the lowest colour
        assert contours.levels[0] == min(loss for row in plane.train_loss for loss in row if loss > 0)
        assert contours.get_paths()[0].contains_point((plane.x[3], plane.y[3]))
    for picture in (figure, plotting.plot_surface(plane)):
        for path in plotting.save(picture, tmp_path / "figure"):
            assert path.stat().st_size > 1000


def test_a_surface_of_a_positive_loss_is_logarithmic():
    axes = plotting.plot_surface(make_plane(), "a title").axes[0]
    assert axes.get_zlabel() == "cross-entropy loss, logarithmic"
    assert axes.get_title() == "a title"
    assert axes.zaxis.get_major_formatter()(2, None) == "100"
    assert plotting.plot_surface(make_plane(change=negative)).axes[0].get_zlabel() == "cross-entropy loss"


class Page(HTMLParser):
    """Collects what a page refers to, and its text outside scripts."""

    def __init__(self, page):
        super().__init__()
        self.references, self.text, self._script = [], "", False
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self._script = tag in ("script", "style")
        self.references += [value for name, value in attributes if name in ("src", "href")]

    def handle_endtag(self, tag):
        self._script = False

    def handle_data(self, data):
        self.text += "" if self._script else data


def test_a_page_refers_to_nothing_outside_itself():
    page = Page(pages.plane_page(make_plane(), "A <plane>"))
    assert page.references
    assert all(reference.startswith("data:") for reference in page.references)
    assert "20 of 63 points of the grid were evaluated; the others are interpolated" in " ".join(page.text.split())
    assert "A <plane>" in page.text
    assert "$LB$ <b>" in page.text
    settings = page.text[page.text.index("{") : page.text.rindex("}") + 1]
    assert json.loads(settings) == {"loss": "cross_entropy", "batch_norm": "eval"}


def test_a_page_says_what_its_axes_are():
    plane = make_plane(eigenvalues=(12.5, 3.25), explained=(0.75, 0.125))
    text = " ".join(Page(pages.plane_page(plane, "t")).text.split())
    assert "Eigenvalues of the Hessian along x and y: 12.5 and 3.25." in text
    assert "explain 75.0 % and 12.5 % of the variance" in text


def test_without_plotly_the_surface_stands_still(monkeypatch):
    monkeypatch.setattr(pages, "find_spec", lambda name: None)
    html = pages.plane_page(make_plane(), "t")
    page = Page(html)
    assert "install plotly (pip install 'lbgap[interactive]')" in page.text
    assert len(page.references) == 2
    assert len(html) < 2e6


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.skipif(find_spec("plotly") is None, reason="no plotly on this machine")
def test_a_browser_draws_the_surface(tmp_path):
    def change(losses):
        losses[5:, 6:] = math.inf

    page = tmp_path / "plane.html"
    page.write_text(pages.plane_page(make_plane(change=change, path=((-0.9, -1.0), (0.0, 0.0))), "A plane"))
    browser = [CHROMIUM, *HEADLESS, f"--user-data-dir={tmp_path / 'profile'}"]
    dom = subprocess.run([*browser, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120)
    assert dom.returncode == 0, dom.stderr
    drawn = dom.stdout[dom.stdout.rindex('<div id="surface"') :]
    assert re.match(r'<div id="surface"[^>]*data-drawn="true"', drawn), dom.stderr
    assert "gl-container" in drawn
    assert [label for label in ("train data", "test data", "trajectory") if f">{label}<" in drawn]
    assert "Uncaught" not in dom.stderr
    shot = tmp_path / "shot.png"
    run = subprocess.run([*browser, f"--screenshot={shot}", page.as_uri()], capture_output=True, timeout=120)
    assert run.returncode == 0
    pixels = (imread(shot)[..., :3] * 255).round().astype(int)
    # Dark blue and yellow, the colours of the surface's lowest and highest parts; the contours are in the upper half.
    below = pixels[len(pixels) // 2 :]
    blue = (below[..., 2] > below[..., 0] + 40) & (below.sum(-1) < 300)
    yellow = (below[..., 0] > below[..., 2] + 60) & (below[..., 1] > below[..., 2] + 60)
    assert blue.sum() > 500
    assert yellow.sum() > 500
