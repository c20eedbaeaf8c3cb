"""Eigenpairs against dense matrices: multiplicities, negatives, clusters, zeros, limits, and what is refused."""

import json
import math

import pytest
import torch
from torch import nn

import lbgap


def orthonormal(found, tolerance):
    vectors = found.vectors.double()
    assert (vectors @ vectors.T - torch.eye(len(vectors), dtype=torch.float64)).abs().max() < tolerance


def true_residuals(found, matrix):
    vectors = found.vectors.double()
    away = vectors @ matrix - torch.tensor(found.values, dtype=torch.float64)[:, None] * vectors
    return away.norm(dim=1).tolist()


@pytest.mark.parametrize("which", ["largest", "smallest", "both"])
@pytest.mark.parametrize("block", [1, 2, 5])
def test_pairs_of_a_network(network, which, block):
    objective, matrix = network
    exact = torch.linalg.eigvalsh(matrix).flip(0).tolist()
    found = lbgap.eigenvalues(objective, k=4, which=which, block=block, tolerance=1e-8)
    expected = {"largest": exact[:4], "smallest": exact[-4:], "both": exact[:4] + exact[-4:]}[which]
    assert found.values == pytest.approx(expected, abs=1e-12 * exact[0] + 1e-14)
    assert all(found.converged)
    assert found.residuals == pytest.approx(true_residuals(found, matrix), abs=1e-14)
    assert max(found.residuals) <= 1e-8 * exact[0]
    orthonormal(found, 1e-13)


@pytest.mark.parametrize(
    ("values", "k"),
    [
        ([5.0] * 3 + [4.0, 3.0] + [0.1] * 50, 5),  # repeated less often than a block is wide
        ([3.0] * 20, 5),  # a multiple of the identity: every Krylov space ends at once
        ([2.0, 1.0] + [0.0] * 60, 4),  # rank two
        ([1.0, 1 - 1e-6, 1 - 2e-6] + [0.5] * 30, 3),  # clustered
        ([-7.0, 3.0, 2.0] + [-1.0] * 20, 3),  # the largest in absolute value is negative
        ([-3.0, -2.0, -1.0], 2),
        ([9.0] * 30 + [0.0] * 70, 4),  # more copies than a block holds
        ([2.0], 1),
        ([1.0, 2.0, 3.0], 3),
        (list(range(1, 201)), 6),
    ],
)
@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_known_spectra(quadratic, values, k, precision):
    objective = quadratic(values, precision)
    tolerance = 1e-9 if precision == "float64" else 1e-5
    found = lbgap.eigenvalues(objective, k=k, tolerance=tolerance, block=min(k, 4))
    scale = max(map(abs, values))
    rounding = 64 * torch.finfo(objective.dtype).eps * scale
    assert all(found.converged), found.status
    assert found.values == pytest.approx(sorted(values, reverse=True)[:k], abs=rounding)
    assert found.residuals == pytest.approx(true_residuals(found, objective.matrix.double()), abs=rounding)
    orthonormal(found, 64 * torch.finfo(objective.dtype).eps)


@pytest.mark.parametrize("block", [1, 3])
@pytest.mark.parametrize("which", ["largest", "smallest", "both"])
def test_restarts_find_the_same_as_one_large_basis(quadratic, which, block):
    objective = quadratic([1.05**i for i in range(80)])
    small, large = (
        lbgap.eigenvalues(objective, k=3, which=which, tolerance=1e-7, max_basis=size, block=block, max_products=9999)
        for size in (14, 80)
    )
    assert small.values == pytest.approx(large.values, rel=1e-6)
    assert all(small.converged)
    assert all(large.converged)
    assert small.products > large.products
    overlap = (small.vectors * large.vectors).sum(1).abs()
    assert overlap.min() > 1 - 1e-6


def test_both_ends_of_a_small_matrix_are_each_eigenvalue_once(quadratic):
    found = lbgap.eigenvalues(quadratic([3.0, -1.0, 2.0]), k=2, which="both")
    assert found.values == pytest.approx([3, 2, -1])


def test_a_hessian_of_zeros(quadratic):
    found = lbgap.eigenvalues(quadratic([0.0] * 30), k=3)
    assert (found.values, found.residuals, found.converged) == ((0.0,) * 3, (0.0,) * 3, (True,) * 3)
    assert found.status == f"every one of {found.products} products was zero"


@pytest.mark.parametrize("max_products", [12, 20, 57])
def test_the_limit_counts_every_product(quadratic, max_products):
    objective = quadratic([1 - 1e-3 * i for i in range(300)])
    found = lbgap.eigenvalues(objective, k=5, max_products=max_products, tolerance=1e-12, block=2)
    assert found.products == sum(objective.calls) <= max_products
    assert found.products > max_products - 2
    assert found.status.endswith("the limit: try a larger max_products")
    assert found.residuals == pytest.approx(true_residuals(found, objective.matrix), abs=1e-13)
    assert not any(found.converged)


def test_a_tolerance_below_rounding_is_said(quadratic):
    found = lbgap.eigenvalues(quadratic([3.0, 2.0, 1.0], "float32"), k=1, tolerance=1e-12)
    assert not found.converged[0]
    assert found.status.endswith("ended at the rounding of the products: try float64")


def test_copies_that_a_block_may_miss_are_said(quadratic):
    values = [0.0] * 30 + [float(i) for i in range(1, 21)]
    found = lbgap.eigenvalues(quadratic(values), k=3, which="smallest", block=2, tolerance=1e-6)
    assert found.status.endswith("of the values are the same, of which a block of 2 may miss more: try block=3")
    assert lbgap.eigenvalues(quadratic(values), k=3, which="smallest", block=3).values == pytest.approx([0, 0, 0])
    assert "block" not in lbgap.eigenvalues(quadratic(values), k=3, block=2).status


def test_the_same_seed_gives_the_same_bits(network):
    objective, _ = network
    one, again, other = (lbgap.eigenvalues(objective, k=3, seed=seed) for seed in (0, 0, 1))
    assert {**one.to_dict(), "seconds": 0, "evaluations": 0} == {**again.to_dict(), "seconds": 0, "evaluations": 0}
    assert torch.equal(one.vectors, again.vectors)
    assert not torch.equal(one.vectors, other.vectors)
    assert one.values == pytest.approx(other.values, rel=1e-5)


def test_of_a_model_and_its_data():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.BatchNorm1d(6), nn.Linear(6, 3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    data = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 3
    found = lbgap.eigenvalues(model, data, k=2, parameters="weights")
    assert found.vectors.shape == (2, 4 * 6 + 6 * 3)
    assert found.vectors.dtype == torch.float32
    assert found.settings["kind"] == "hessian"
    assert found.evaluations >= found.products
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert str(found).startswith("eigenvalues of the hessian: ")
    record = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert record["values"] == list(found.values)
    assert "vectors" not in record


def test_progress_goes_to_standard_error(quadratic, capsys):
    lbgap.eigenvalues(quadratic([1.0, 2.0, 3.0]), k=1, progress=True)
    assert capsys.readouterr().out == ""


REFUSED = [
    ({"k": 0}, ValueError, "k must be at least 1, got 0"),
    ({"k": 2.0}, TypeError, "k must be a whole number, got 2.0"),
    ({"k": 11}, ValueError, "k must be at most the number of parameters that may move, 10, got 11"),
    ({"which": "top"}, ValueError, "which must be one of 'largest', 'smallest', 'both', got 'top'"),
    ({"kind": "gauss"}, ValueError, "kind must be one of 'hessian', 'ggn', 'fisher', got 'gauss'"),
    ({"tolerance": 0}, ValueError, "tolerance must be finite and above zero, got 0: try 1e-3"),
    ({"tolerance": math.nan}, ValueError, "tolerance must be finite and above zero"),
    ({"max_products": 0}, ValueError, "max_products must be at least 1"),
    ({"max_products": 8}, ValueError, "max_products must be at least 12, to find 5 pairs and check them, got 8"),
    ({"block": 0}, ValueError, "block must be at least 1"),
    ({"max_basis": 8}, ValueError, "max_basis must be at least 9, for 5 pairs and two blocks of 2, got 8"),
    ({"seed": -1}, ValueError, "seed must be at least 0"),
    ({"progress": 1}, TypeError, "progress must be True, False or a function of a Progress, got 1"),
    ({"eps": 1}, TypeError, r"eigenvalues\(\) got an unexpected keyword argument 'eps'"),
    ({"loss": "mse"}, ValueError, "loss belong to the Objective"),
]


@pytest.mark.parametrize(("options", "error", "message"), REFUSED, ids=[str(case[0]) for case in REFUSED])
def test_what_is_wrong_is_said(quadratic, options, error, message):
    with pytest.raises(error, match=message) as caught:
        lbgap.eigenvalues(quadratic(range(1, 11)), **options)
    assert "\n" not in str(caught.value)
