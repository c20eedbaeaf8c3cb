"""Spectral density and what is read off it: moments, counts, known eigenvalues, errors, limits."""

import json
import math
import statistics

import pytest
import torch

import lbgap
from lbgap.measures.hessian.lanczos import tridiagonals
from lbgap.measures.hessian.quadrature import nodes_and_weights


def moments(matrix, order):
    return float(torch.linalg.eigvalsh(matrix).pow(order).sum())


@pytest.mark.parametrize("order", [0, 1, 2, 3, 4])
def test_moments_of_a_network(network, order):
    objective, matrix = network
    found = lbgap.spectral_density(objective, relative_error=None, max_products=40 * 16)
    value, error = found.sum(lambda x: x.pow(order))
    expected = moments(matrix, order)
    assert abs(value - expected) <= 4 * error + 1e-10 * abs(expected)


def test_gauss_quadrature_is_exact_up_to_twice_the_steps(quadratic):
    objective = quadratic([3.0, -1.0, 0.5, 2.0, 1.0, -0.2, 0.1, 4.0])
    start = torch.randn(3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start /= start.norm(dim=1, keepdim=True)
    nodes, weights = nodes_and_weights(*tridiagonals(lambda v: v @ objective.matrix, start, 4))
    for order in range(8):
        expected = (start @ torch.linalg.matrix_power(objective.matrix, order) * start).sum(1)
        assert (weights * nodes**order).sum(1).tolist() == pytest.approx(expected.tolist(), rel=1e-10)


@pytest.mark.parametrize("values", [[2.0] * 30, [0.0] * 30, [1.0, 2.0] * 15, [5.0]])
def test_krylov_spaces_that_end_early(quadratic, values):
    found = lbgap.spectral_density(quadratic(values))
    trace, error = found.sum(lambda x: x)
    assert abs(trace - sum(values)) <= 4 * error + 1e-10
    assert found.weights.sum(1).tolist() == pytest.approx([1.0] * len(found.weights))
    assert found.grid[0] < min(values)
    assert found.grid[-1] > max(values)
    assert max(abs(found.grid[0] - min(values)), abs(found.grid[-1] - max(values))) < 1
    assert str(found).startswith(f"spectral density of the hessian: from {min(values):g} to {max(values):g}, ")


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_the_integral_is_one(quadratic, precision):
    found = lbgap.spectral_density(quadratic(torch.linspace(-1, 3, 200), precision), steps=20)
    grid, density = (torch.tensor(each, dtype=torch.float64) for each in (found.grid, found.density))
    assert float(torch.trapezoid(density, grid)) == pytest.approx(1, abs=1e-3)  # but for the tails beyond 4 widths
    assert found.relative_error == pytest.approx(float(torch.trapezoid(torch.tensor(found.standard_error), grid)))
    flat = density[(grid > -0.5) & (grid < 2.5)]
    assert float(flat.mean()) == pytest.approx(0.25, rel=0.1)


def test_the_width_follows_from_the_resolution(quadratic):
    objective = quadratic(torch.linspace(0, 4, 100))
    chosen, given = (lbgap.spectral_density(objective, steps=20, resolution=size) for size in (None, 0.05))
    assert given.width == pytest.approx(0.05 / (2 * math.sqrt(2 * math.log(1.25))))
    assert chosen.width == pytest.approx(0.7485 * 4 / 20, rel=0.02)


def test_known_eigenvalues_count_exactly(quadratic):
    values = [100.0, 50.0, 20.0] + [1.0] * 30 + [-0.5] * 30
    objective = quadratic(values)
    top = lbgap.eigenvalues(objective, k=3, tolerance=1e-9)
    found = lbgap.spectral_density(objective, known=top)
    assert found.nodes.max() < 1.01
    assert found.sum(lambda x: (x > 10).double()) == (3.0, 0.0)
    assert found.sum(lambda x: x * (x > 10))[0] == pytest.approx(170)
    trace, error = found.sum(lambda x: x)
    assert abs(trace - sum(values)) < 4 * error
    blind = lbgap.spectral_density(objective)
    assert blind.sum(lambda x: x)[1] > 5 * error


def test_errors_are_those_of_many_seeds(quadratic):
    objective = quadratic(torch.linspace(-1, 3, 80))
    found = [
        lbgap.spectral_density(objective, steps=15, relative_error=None, max_products=150, seed=s) for s in range(60)
    ]
    values = [each.sum(lambda x: (x > 1.5).double()) for each in found]
    spread = statistics.stdev(value for value, _ in values)
    assert statistics.fmean(error for _, error in values) == pytest.approx(spread, rel=0.3)
    assert abs(statistics.fmean(value for value, _ in values) - 30) < 4 * spread / math.sqrt(60) + 1


def test_it_stops_by_its_rule(quadratic):
    objective = quadratic(torch.linspace(-1, 3, 80))
    loose, tight = (
        lbgap.spectral_density(objective, steps=10, relative_error=error, max_products=5000) for error in (0.5, 0.03)
    )
    assert len(loose.nodes) == 4
    assert tight.relative_error <= 0.03
    assert tight.products == 10 * len(tight.nodes) < 5000
    assert "within the 3 % asked for" in tight.status
    assert loose.products + tight.products == sum(objective.calls)


def test_it_goes_on_until_the_sum_above_a_threshold_is_known(quadratic):
    values = [3.0] * 5 + [1e-3] * 300
    without, with_it = (
        lbgap.spectral_density(quadratic(values), steps=5, relative_error=0.1, threshold=threshold, max_products=5000)
        for threshold in (None, 1.0)
    )
    assert without.products < with_it.products < 5000
    value, error = with_it.sum(lambda x: x * (x > 1))
    assert error <= 0.1 * value
    assert abs(value - 15) < 4 * error
    assert f"that of the sum above 1 {100 * error / value:.2g} % of it" in with_it.status


@pytest.mark.parametrize(("max_products", "probes"), [(20, 2), (29, 2), (30, 3), (57, 5)])
def test_the_limit_is_kept(quadratic, max_products, probes):
    objective = quadratic(torch.linspace(-1, 3, 80))
    found = lbgap.spectral_density(objective, steps=10, relative_error=1e-9, max_products=max_products)
    assert len(found.nodes) == probes
    assert found.products == sum(objective.calls) == 10 * probes
    assert found.status.startswith(f"{probes} probes, the limit")
    assert max(objective.calls) <= 4


def test_it_repeats_and_is_json(network):
    objective, _ = network
    one, again, other = (lbgap.spectral_density(objective, steps=8, seed=seed).to_dict() for seed in (0, 0, 1))
    assert one["density"] == again["density"] != other["density"]
    assert json.loads(json.dumps(one, allow_nan=False)) == one


def test_eigenvalues_of_something_else(quadratic):
    top = lbgap.eigenvalues(quadratic(range(1, 11)), k=2)
    with pytest.raises(
        ValueError,
        match="of the same matrix, the hessian with 5 parameters that may move, got those of the hessian with 10",
    ):
        lbgap.spectral_density(quadratic(range(1, 6)), known=top)
    every = lbgap.eigenvalues(quadratic(range(1, 11)), k=10)
    with pytest.raises(ValueError, match="known holds all 10 eigenvalues: there is nothing left"):
        lbgap.spectral_density(quadratic(range(1, 11)), known=every)
