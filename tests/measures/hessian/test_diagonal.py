"""Diagonal against dense matrices, and the rule that stops it."""

import pytest
import torch

import lbgap


@pytest.mark.parametrize("seed", range(3))
def test_diagonal_of_a_network(network, seed):
    objective, matrix = network
    found = lbgap.hessian_diagonal(objective, relative_error=None, max_products=200, seed=seed)
    away = (found.values - matrix.diagonal()).abs() / found.standard_errors
    assert (away < 2).double().mean() > 0.9
    assert away.max() < 6  # the largest of 121
    assert found.draws == 200
    record = found.to_dict()
    assert record["value"] == found.value == pytest.approx(float(found.values.sum()))
    assert record["least"] <= record["largest"]
    assert not {"values", "standard_errors"} & set(record)


def test_a_diagonal_matrix_needs_one_product(quadratic):
    objective = quadratic(torch.diag(torch.tensor([3.0, -1.0, 0.0, 2.0])))
    found = lbgap.hessian_diagonal(objective)
    assert found.values.tolist() == pytest.approx([3, -1, 0, 2])
    assert found.standard_errors.tolist() == [0] * 4
    assert found.draws == 8


def test_the_diagonal_stops_by_its_rule(quadratic):
    objective = quadratic([3.0, 2.0] + [1.0] * 20)
    found = lbgap.hessian_diagonal(objective, relative_error=0.05, max_products=5000)
    assert found.relative_error == pytest.approx(float(found.standard_errors.norm() / found.values.norm()))
    assert found.relative_error <= 0.05
    assert found.draws == sum(objective.calls) < 5000


def test_a_tiny_matrix_has_errors():
    """Its squares are no numbers of float32, yet neither exact nor converged."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(40, 40, generator=generator)
    matrix = matrix + matrix.T
    large, tiny = (lbgap.hessian_diagonal(matrix * scale, max_products=40) for scale in (1.0, 2.0**-100))
    assert torch.equal(tiny.values * 2.0**100, large.values)
    torch.testing.assert_close(tiny.standard_errors * 2.0**100, large.standard_errors, rtol=1e-5, atol=0)
    assert tiny.status == large.status
