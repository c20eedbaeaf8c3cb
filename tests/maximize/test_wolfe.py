"""The line search: strong Wolfe conditions on functions of one variable, the longest step, and noise."""

import math

import pytest

from lbgap.maximize.wolfe import CURVATURE, DECREASE, EVALUATIONS, Trial, line_search

FUNCTIONS = {
    "parabola": (lambda t: (t - 1) ** 2, lambda t: 2 * (t - 1)),
    "far minimum": (lambda t: (t - 1e4) ** 2, lambda t: 2 * (t - 1e4)),
    "near minimum": (lambda t: 1e6 * t * t - t, lambda t: 2e6 * t - 1),
    "very near minimum": (lambda t: 1e12 * t * t - t, lambda t: 2e12 * t - 1),
    "quartic": (lambda t: (t - 3) ** 4, lambda t: 4 * (t - 3) ** 3),
    "wavy": (lambda t: math.sin(5 * t) + 0.2 * (t - 8) ** 2, lambda t: 5 * math.cos(5 * t) + 0.4 * (t - 8)),
    "moré thuente 1": (lambda t: -t / (t * t + 2), lambda t: (t * t - 2) / (t * t + 2) ** 2),
    "barrier": (
        lambda t: -math.log(1 - t) - 9 * t if t < 1 else math.inf,
        lambda t: 1 / (1 - t) - 9 if t < 1 else math.nan,
    ),
    "plateau": (lambda t: math.exp(-t) + 1e-3 * t, lambda t: 1e-3 - math.exp(-t)),
}


class Line:
    """A function of the step that remembers where it was evaluated."""

    def __init__(self, value, slope):
        self.value, self.slope, self.steps = value, slope, []

    def __call__(self, step):
        self.steps.append(step)
        return self.at(step)

    def at(self, step):
        return Trial(step, self.value(step), self.slope(step))

    def search(self, step=1.0, longest=math.inf, noise=0.0):
        return line_search(self, self.at(0.0), step, longest, noise)


@pytest.mark.parametrize("step", [1e-3, 0.1, 1.0, 30.0])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_strong_wolfe_conditions(name, step):
    value, slope = FUNCTIONS[name]
    if name == "wavy":
        value, slope = (lambda t: FUNCTIONS[name][0](t + 0.5)), (lambda t: FUNCTIONS[name][1](t + 0.5))
    line = Line(value, slope)
    start, found = line.at(0.0), line.search(step)
    assert start.slope < 0
    assert found == line.at(found.step)
    assert found.step in line.steps
    assert found.value <= start.value + DECREASE * found.step * start.slope
    assert abs(found.slope) <= -CURVATURE * start.slope
    assert len(line.steps) <= EVALUATIONS


@pytest.mark.parametrize("longest", [1e-3, 0.5, 0.999, 7.0])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_step_is_longer_than_the_longest(name, longest):
    line = Line(*FUNCTIONS[name])
    if line.slope(0.0) >= 0:
        return
    found = line.search(longest=longest)
    assert 0 < found.step <= longest
    assert max(line.steps) <= longest
    assert found.value < line.value(0.0)


def test_the_first_step_is_taken_where_it_will_do():
    line = Line(*FUNCTIONS["parabola"])
    assert line.search().step == 1
    assert line.steps == [1.0]


@pytest.mark.parametrize("longest", [1.0, 3.0, 1e4])
def test_a_concave_function_goes_to_the_longest_step(longest):
    line = Line(lambda t: -t - t * t, lambda t: -1 - 2 * t)
    assert line.search(longest=longest).step == longest
    assert line.steps == sorted(line.steps)


def test_a_function_that_falls_forever_is_followed_far():
    line = Line(lambda t: -t, lambda t: -1.0)
    assert line.search().step == pytest.approx(4.0 ** (EVALUATIONS - 1))


def test_nothing_lower_is_none():
    assert Line(lambda t: t, lambda t: -1.0).search() is None
    assert Line(lambda t: 0.0 if t == 0 else math.nan, lambda t: -1.0).search() is None
    assert Line(lambda t: 0.0 if t == 0 else math.inf, lambda t: -1.0).search() is None


def test_the_best_is_kept_where_the_conditions_cannot_be_met():
    """The slope says down, the values say down, but never flat: after the last evaluation the best one is taken."""
    line = Line(lambda t: abs(t - 0.3) - 0.3, lambda t: -1.0 if t < 0.3 else 1.0)
    found = line.search()
    assert found.value == min(line.value(step) for step in line.steps)
    assert found.value < 0
    assert len(line.steps) <= EVALUATIONS


def test_rounding_of_the_values_does_not_hide_the_minimum():
    """Near a minimum values in float32 are equal or rise by a unit: there the slope decides, if told of the noise."""
    noise = 1e-7

    def value(t):
        return 1 + 1e-9 * (t - 1) ** 2 + noise * math.sin(1e9 * t) / 2

    line = Line(value, lambda t: 2e-9 * (t - 1))
    found = line.search(step=3.0, noise=noise)
    assert abs(found.slope) <= CURVATURE * 2e-9
    assert abs(found.step - 1) <= CURVATURE
