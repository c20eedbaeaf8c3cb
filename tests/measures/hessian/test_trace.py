"""Trace against dense matrices, its errors against many seeds, and the rules that stop it and the diagonal."""

import math
import statistics

import pytest

import lbgap


@pytest.mark.parametrize("method", ["hutchinson", "hutch++"])
@pytest.mark.parametrize("seed", range(5))
def test_trace_of_a_network(network, method, seed):
    objective, matrix = network
    found = lbgap.hessian_trace(objective, method=method, relative_error=None, max_products=100, seed=seed)
    assert abs(found.value - float(matrix.trace())) < 4 * found.standard_error
    assert found.details["products"] == 100
    assert found.details["draws"] == (100 if method == "hutchinson" else 80)
    assert found.base_loss == pytest.approx(float(objective.loss(objective.theta)))
    assert found.details["mean"] == found.value / objective.n
    assert found.status.startswith("100 products, all that were asked for: the standard error is ")


def test_variance_of_one_draw(quadratic):
    objective = quadratic([5.0, 3.0, -2.0] + [0.5] * 40)
    matrix = objective.matrix
    expected = 2 * float(matrix.square().sum() - matrix.diagonal().square().sum())
    found = lbgap.hessian_trace(objective, relative_error=None, max_products=4000)
    # The variance of a sample variance is about 2 / m for normal draws; quadratic forms have heavier tails.
    assert found.details["variance"] == pytest.approx(expected, rel=0.2)
    assert found.details["frobenius"] == pytest.approx(float(matrix.norm()), rel=0.05)


@pytest.mark.parametrize("method", ["hutchinson", "hutch++"])
def test_errors_are_those_of_many_seeds(quadratic, method):
    objective = quadratic([20.0, 10.0] + [1.0 / (i + 1) for i in range(60)])
    exact = float(objective.matrix.trace())
    options = {"method": method, "relative_error": None, "max_products": 40}
    found = [lbgap.hessian_trace(objective, seed=seed, **options) for seed in range(200)]
    away = [(each.value - exact) / each.standard_error for each in found]
    assert abs(statistics.fmean(each.value - exact for each in found)) < 4 * statistics.stdev(
        each.value for each in found
    ) / math.sqrt(200)
    assert statistics.fmean(abs(each) < 2 for each in away) > 0.9


def test_hutch_takes_outliers_exactly(quadratic):
    objective = quadratic([1000.0, 500.0, 200.0] + [1.0] * 100)
    plain, sketched = (
        lbgap.hessian_trace(objective, method=method, relative_error=None, max_products=60)
        for method in ("hutchinson", "hutch++")
    )
    assert sketched.standard_error < plain.standard_error / 20
    assert abs(sketched.value - 1800) < 4 * sketched.standard_error


def test_a_sketch_of_the_whole_space_is_exact(quadratic):
    objective = quadratic([3.0, -1.0, 0.5, 2.0])
    found = lbgap.hessian_trace(objective, method="hutch++")
    assert found.value == pytest.approx(4.5)
    assert (found.standard_error, found.details["draws"]) == (0.0, 0)
    assert found.status == "exact, to rounding: 4 products, one for each row"


@pytest.mark.parametrize("method", ["hutchinson", "hutch++"])
def test_low_rank_and_zero(quadratic, method):
    low = lbgap.hessian_trace(quadratic([2.0, 1.0] + [0.0] * 50), method=method, max_products=100)
    assert abs(low.value - 3) <= 4 * low.standard_error + 1e-9
    zero = lbgap.hessian_trace(quadratic([0.0] * 20), method=method)
    assert (zero.value, zero.standard_error) == (0.0, 0.0)
    assert "within the 5 % asked for" in zero.status


@pytest.mark.parametrize("relative_error", [0.2, 0.05, 0.02])
def test_the_rule_stops_as_soon_as_it_holds(quadratic, relative_error):
    objective = quadratic([3.0, 2.0] + [1.0] * 20)
    found = lbgap.hessian_trace(objective, relative_error=relative_error, max_products=5000)
    assert found.standard_error <= relative_error * found.value
    assert found.details["products"] == sum(objective.calls) < 5000
    assert f"within the {100 * relative_error:g} % asked for" in found.status
    before = found.details["products"] - objective.calls[-1]
    if before >= 8:
        earlier = lbgap.hessian_trace(objective, relative_error=None, max_products=before)
        assert earlier.standard_error > relative_error * earlier.value


@pytest.mark.parametrize("max_products", [2, 7, 30])
@pytest.mark.parametrize("measure", [lbgap.hessian_trace, lbgap.hessian_diagonal])
def test_the_limit_is_kept(quadratic, measure, max_products):
    objective = quadratic([3.0, -2.9] + [0.1, -0.1] * 20)
    found = measure(objective, relative_error=1e-9, max_products=max_products)
    assert sum(objective.calls) == max_products
    assert max(objective.calls) <= 8
    assert found.status.startswith(f"{max_products} products, the limit: ")
    assert found.status.endswith("try a larger max_products")


@pytest.mark.parametrize("measure", [lbgap.hessian_trace, lbgap.hessian_diagonal])
def test_the_same_seed_gives_the_same_draws(network, measure):
    objective, _ = network
    first, again, other = (measure(objective, max_products=9, seed=seed).to_dict() for seed in (3, 3, 4))
    assert first["value"] == again["value"] != other["value"]
