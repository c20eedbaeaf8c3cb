"""Figures: what is drawn, also where numbers are not finite, and the files they become."""

import itertools
import math
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import matplotlib
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from lbgap import Asymmetry, Density, plotting
from lbgap.landscape import Line
from lbgap.landscape.shape import shape_of
from lbgap.measures import SharpnessCurve
from lbgap.status import status

inf, nan = math.inf, math.nan


def make_line(train_loss, train_accuracy=None, test_loss=None, test_accuracy=None):
    alphas = tuple(-1 + 3 * index / (len(train_loss) - 1) for index in range(len(train_loss)))
    return Line(
        value=1.0,
        status=status("complete", points=len(alphas)),
        settings={"loss": "cross_entropy"},
        evaluations=4.0,
        seconds=0.0,
        alphas=alphas,
        train_loss=train_loss,
        train_accuracy=train_accuracy,
        test_loss=test_loss,
        test_accuracy=test_accuracy,
        shape=shape_of(alphas, train_loss, (train_loss[1], train_loss[2]), 0.1),
        test_shape=None,
    )


def full_line():
    return make_line((3.0, 0.1, 2.0, 5.0), (10.0, 99.0, 40.0, 12.0), (3.5, 0.9, 2.5, 6.0), (9.0, 80.0, 35.0, 11.0))


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


class TestLine:
    def test_losses_left_accuracies_right_test_data_dashed(self):
        line = full_line()
        losses, accuracies = plotting.plot_line(line, "a title").axes
        drawn = {
            (axes.get_ylabel(), curve.get_linestyle()): tuple(curve.get_ydata())
            for axes in (losses, accuracies)
            for curve in axes.lines
            if len(curve.get_ydata()) == 4
        }
        assert drawn == {
            ("cross-entropy loss", "-"): line.train_loss,
            ("cross-entropy loss", "--"): line.test_loss,
            ("accuracy in %", "-"): line.train_accuracy,
            ("accuracy in %", "--"): line.test_accuracy,
        }
        assert losses.get_title() == "a title"
        assert losses.get_ylim()[0] == 0
        assert losses.get_xlim() == (-1, 2)

    def test_without_accuracy_and_test_data_there_is_one_axis_and_no_legend(self):
        figure = plotting.plot_line(make_line((3.0, 0.1, 2.0)))
        assert len(figure.axes) == 1
        assert not figure.legends

    @pytest.mark.parametrize(
        "losses", [(inf,) * 4, (nan, inf, 1.0, 2.0), (1.0, 2.0, inf, nan), (0.0,) * 4, (1e300, 1.0, 1e-300, 0.0)]
    )
    def test_losses_that_are_not_finite_leave_a_gap_and_the_axis_whole(self, losses):
        figure = plotting.plot_line(make_line(losses, test_loss=losses[::-1]))
        plotting.encode(figure, "png")
        assert figure.axes[0].get_xlim() == (-1, 2)

    def test_a_negative_loss_is_not_cut_off(self):
        assert plotting.plot_line(make_line((-3.0, -2.0, -1.0))).axes[0].get_ylim()[0] < -3


class TestBars:
    def test_bars_are_medians_and_dots_the_values(self):
        figure = plotting.plot_bars(["a", "b"], {"one": [[1, 3, 8], [2, 4]], "two": [[5], [6]]}, "phi in %")
        axes = figure.axes[0]
        tops = [bar.get_y() + bar.get_height() for bar in axes.patches]
        assert tops == pytest.approx([3, 3, 5, 6])
        assert [float(dot.get_ydata()[0]) for dot in axes.lines] == [1, 3, 8, 2, 4, 5, 6]
        assert axes.get_yscale() == "log"
        assert axes.get_ylim()[0] < 1
        assert axes.get_ylabel() == "phi in %"
        assert [label.get_text() for label in figure.legends[0].get_texts()] == ["one", "two"]

    def test_zeros_are_written(self):
        figure = plotting.plot_bars(["a", "b"], {"one": [[0, 2.0], [0]], "two": [[0.0], [3]]}, "y")
        assert texts(figure) == ["0", "0", "0"]
        plotting.encode(figure, "png")

    def test_nothing_but_zeros(self):
        figure = plotting.plot_bars(["a"], {"one": [[0.0, 0.0]]}, "y")
        assert texts(figure) == ["0", "0"]
        plotting.encode(figure, "svg")

    @pytest.mark.parametrize("values", [[[inf, 1.0], [2.0]], [[inf], [inf]], [[nan, inf], [0.0]]])
    def test_infinities_and_nan_are_written(self, values):
        figure = plotting.plot_bars(["a", "b"], {"one": values}, "y")
        odd = [value for group in values for value in group if not 0 < value < inf]
        assert texts(figure) == [f"{value:g}" for value in odd]
        plotting.encode(figure, "png")


def make_curve(values, epsilons=None):
    epsilons = epsilons or tuple(10.0 ** (index - 4) for index in range(len(values)))
    return SharpnessCurve(
        epsilons=epsilons,
        values=values,
        results=(),
        value=values[-1],
        status=status("exact"),
        settings={},
        evaluations=0.0,
        seconds=0.0,
    )


class TestCurves:
    def test_one_curve_a_label_on_logarithmic_axes(self):
        curves = {"sb": make_curve((0.1, 2.0, 30.0)), "lb": make_curve((1.0, 20.0), (1e-3, 2e-2))}
        figure = plotting.plot_curves(curves, "a title")
        (axes,) = figure.axes
        drawn = {line.get_label(): (tuple(line.get_xdata()), tuple(line.get_ydata())) for line in axes.lines}
        assert drawn == {label: (curve.epsilons, curve.values) for label, curve in curves.items()}
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
        assert [label.get_text() for label in figure.legends[0].get_texts()] == ["sb", "lb"]
        assert "size of the box" in axes.get_xlabel()
        assert "percent" in axes.get_ylabel()
        assert axes.get_title() == "a title"

    @pytest.mark.parametrize("odd", [0.0, inf, nan])
    def test_what_a_logarithm_has_no_place_for_leaves_a_gap(self, odd):
        figure = plotting.plot_curves({"sb": make_curve((0.1, odd, 30.0))})
        heights = figure.axes[0].lines[0].get_ydata()
        assert math.isnan(heights[1])
        assert (heights[0], heights[2]) == (0.1, 30.0)
        assert figure.axes[0].get_ylim()[0] > 0
        plotting.encode(figure, "png")

    @pytest.mark.parametrize("values", [(0.0, 0.0), (0.0,), (5.0,), (1e-12, 1e12)])
    def test_few_or_extreme_values(self, values):
        for kind in ("png", "svg"):
            assert plotting.encode(plotting.plot_curves({"sb": make_curve(values)}), kind)

    @pytest.mark.parametrize("count", [7, 8, 20, 28])
    def test_many_curves_can_be_told_apart(self, count):
        figure = plotting.plot_curves({f"run {index}": make_curve((1.0, 2.0 + index)) for index in range(count)})
        looks = [(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines]
        assert len(set(looks)) == count
        assert len(figure.legends[0].get_texts()) == count
        assert len({color for color, _ in looks[:7]}) == 7


def make_density(values, known=(), n=100):
    nodes, weights = torch.tensor([values, values]).double(), torch.full((2, len(values)), 1 / len(values)).double()
    fields = {"grid": (0.0,), "density": (0.0,), "standard_error": (0.0,), "width": 1.0, "relative_error": 0.0}
    kept = {"value": 0.0, "products": 0, "evaluations": 0.0, "status": "", "settings": {"points": 200}, "seconds": 0.0}
    return Density(**fields, nodes=nodes, weights=weights, known=known, n=n, **kept).at(0.5)


class TestDensities:
    def test_curves_bands_ticks_and_threshold(self):
        densities = {"sb": make_density([0.0, 1.0], (5.0,)), "lb": make_density([0.0, 3.0], (9.0, 7.0))}
        figure = plotting.plot_densities(densities, 0.5, "a title")
        (axes,) = figure.axes
        lines = {line.get_label(): line for line in axes.lines}
        for label, found in densities.items():
            assert tuple(lines[label].get_xdata()) == found.grid
            assert max(lines[label].get_ydata()) == pytest.approx(max(found.density))
        assert sorted(tuple(line.get_xdata()) for line in axes.lines if line.get_marker() == "|") == [
            (5.0,),
            (9.0, 7.0),
        ]
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["sb", "lb", "large: above 0.5"]
        assert (axes.get_yscale(), axes.get_title()) == ("log", "a title")
        single = 1 / (100 * densities["sb"].width * math.sqrt(2 * math.pi))
        assert axes.get_ylim()[0] == pytest.approx(single / 10)

    @pytest.mark.parametrize("values", [[0.0], [1e-12], [-1e9, 1e9]])
    def test_extreme_values(self, values):
        for kind in ("png", "svg"):
            assert plotting.encode(plotting.plot_densities({"_a$b$": make_density(values)}), kind)


def make_asymmetry(ahead, behind):
    names = tuple(f"d {index}" for index in range(len(ahead)))
    ladder = tuple(10.0 ** (index - 2) for index in range(len(ahead[0])))
    empty = ((),) * len(names)
    return Asymmetry(
        names=names,
        distances=ladder,
        ahead=empty,
        behind=empty,
        sharpness_ahead=ahead,
        sharpness_behind=behind,
        indices=empty,
        index=(0.25,) * len(names),
        base_loss=0.0,
        value=0.25,
        status=status("complete.sides"),
        settings={},
        evaluations=0.0,
        seconds=0.0,
    )


class TestAsymmetry:
    @pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
    def test_one_panel_a_direction(self, count):
        found = make_asymmetry(((1.0, 2.0, 8.0),) * count, ((2.0, 3.0, 4.0),) * count)
        figure = plotting.plot_asymmetry(found, "a title")
        panels = [axes for axes in figure.axes if axes.get_visible()]
        assert [panel.get_title() for panel in panels] == [f"d {index}: index +0.25" for index in range(count)]
        for panel in panels:
            assert [tuple(line.get_ydata()) for line in panel.lines] == [(1.0, 2.0, 8.0), (2.0, 3.0, 4.0)]
            assert (panel.get_xscale(), panel.get_yscale()) == ("log", "log")
        assert "percent" in figure.get_supylabel()
        plotting.encode(figure, "png")

    @pytest.mark.parametrize("side", [(0.0, 0.0), (inf, inf), (0.0, inf), (1.0, inf)])
    def test_what_has_no_place_leaves_a_gap(self, side):
        figure = plotting.plot_asymmetry(make_asymmetry((side,), ((0.0, 0.0),)))
        drawn = figure.axes[0].lines[0].get_ydata()
        assert [math.isnan(y) for y in drawn] == [not 0 < y < inf for y in side]
        plotting.encode(figure, "svg")


class TestFiles:
    def test_png_and_svg_are_written_whole(self, tmp_path):
        paths = plotting.save(plotting.plot_line(full_line()), tmp_path / "line.v1")
        assert paths == [tmp_path / "line.v1.png", tmp_path / "line.v1.svg"]
        assert sorted(tmp_path.iterdir()) == paths
        assert imread(paths[0]).shape == (600, 960, 4)
        root = ElementTree.parse(paths[1]).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"

    def test_a_folder_that_is_missing_is_named(self, tmp_path):
        with pytest.raises(OSError, match=r"cannot write .*missing"):
            plotting.save(plotting.plot_line(full_line()), tmp_path / "missing" / "line")

    @pytest.mark.parametrize("kind", ["png", "svg"])
    def test_the_same_figure_gives_the_same_bytes(self, kind):
        first, again, other = (
            plotting.encode(plotting.plot_line(line), kind)
            for line in (full_line(), full_line(), make_line((1.0, 2.0, 3.0)))
        )
        assert first == again
        assert first != other
        figure = plotting.plot_bars(["a"], {"one": [[0, inf, 3.0]]}, "y")
        assert plotting.encode(figure, kind) == plotting.encode(figure, kind)


def test_matplotlibs_global_state_stays_as_it_is(tmp_path):
    before = dict(matplotlib.rcParams)
    plotting.save(plotting.plot_line(full_line()), tmp_path / "line")
    assert dict(matplotlib.rcParams) == before


def test_pyplot_is_not_imported():
    code = "import sys, lbgap.plotting, lbgap.plotting.page; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_labels_of_curves_are_plain_text():
    curve = make_curve((1.0, 2.0), (1e-3, 1e-2))
    figure = plotting.plot_curves({"_hidden": curve, r"a$\x$b": curve})
    plotting.encode(figure, "png")
    assert [text.get_text().strip() for text in figure.legends[0].get_texts()] == ["_hidden", r"a\$\x\$b"]


def test_labels_lie_neither_on_each_other_nor_on_points():
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    points = {f"label {index}": (10 ** (index % 4 / 2), index // 4 / 2) for index in range(12)}
    points |= {"_far": (1e3, 9.0), "$alone$": (1e-3, 9.0)}
    axes.plot(*zip(*points.values(), strict=True), ".")
    axes.set_xscale("log")
    plotting.label_points(axes, points)
    figure.canvas.draw()
    written = [text for text in axes.texts if text.get_text()]
    assert [text.get_text() for text in written] == [*list(points)[:-2], " _far", r"\$alone\$"]
    boxes = [Text.get_window_extent(text) for text in written]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    places = axes.transData.transform(list(points.values()))
    assert not any(box.contains(*place) for box in boxes for place in places)
    away = [[math.dist(place, ((b.x0 + b.x1) / 2, (b.y0 + b.y1) / 2)) for place in places] for b in boxes]
    assert [row.index(min(row)) for row in away[-2:]] == [12, 13]
