"""Number and sums of the eigenvalues above a threshold, against dense matrices."""

import pytest
import torch

import lbgap
from lbgap.measures.hessian.mass import mass


def test_positive_mass_of_a_network(network):
    objective, matrix = network
    exact = torch.linalg.eigvalsh(matrix)
    found = lbgap.positive_mass(objective, threshold=0.01, top=12, relative_error=None, max_products=1000)
    details = found.details
    expected = {
        "sum": float(exact[exact > 0.01].sum()),
        "positive": float(exact.clamp_min(0).sum()),
        "negative": float(exact.clamp_max(0).sum()),
        "trace": float(exact.sum()),
        "negative_share": float(exact.clamp_max(0).sum().neg() / exact.abs().sum()),
    }
    assert abs(found.value - float((exact > 0.01).sum())) <= 4 * found.standard_error + 0.5
    for name, value in expected.items():
        assert abs(details[name] - value) <= 4 * details[f"{name}_standard_error"] + 1e-3 * float(exact[-1]), name
    assert details["eigenvalues"] == pytest.approx(exact.flip(0)[:12].tolist(), abs=1e-5)


def test_all_of_them_found_one_by_one(quadratic):
    found = lbgap.positive_mass(quadratic([9.0, 8.0, 7.0] + [0.001] * 40 + [-0.002] * 40), top=5)
    assert (found.value, found.standard_error) == (3.0, 0.0)
    assert found.details["threshold"] == pytest.approx(0.09)
    assert found.details["sum"] == pytest.approx(24)
    share, error = (found.details[f"negative_share{suffix}"] for suffix in ("", "_standard_error"))
    assert abs(share - 0.08 / 24.12) < 4 * error
    assert found.status.startswith("all of them are among the 5 eigenvalues found one by one; of the rest: ")


def test_more_of_them_than_were_found(quadratic):
    found = lbgap.positive_mass(quadratic([9.0] * 30 + [0.0] * 70), top=4, threshold=1.0, relative_error=0.02)
    assert abs(found.value - 30) < 4 * found.standard_error
    assert found.status.startswith("beyond 4 eigenvalues found one by one it is an estimate: ")


def test_a_hessian_of_zeros_has_no_mass(quadratic):
    found = lbgap.positive_mass(quadratic([0.0] * 20))
    assert found.value == 0
    assert found.details["negative_share"] == 0
    assert found.details["threshold"] == 1


def test_mass_reads_what_a_density_holds(quadratic):
    density = lbgap.spectral_density(quadratic(torch.linspace(-1, 3, 50)))
    assert mass(density, 0.5)["sum"] == density.sum(lambda x: x * (x > 0.5))[0]


def test_one_parameter_has_no_rest(quadratic):
    with pytest.raises(ValueError, match="needs two or more parameters that may move, got 1"):
        lbgap.positive_mass(quadratic([2.0]))


def test_copies_that_a_block_missed_are_not_claimed_to_be_found():
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(200, 200, dtype=torch.float64, generator=generator))[0]
    values = torch.cat((torch.full((30,), 5.0), torch.linspace(0, 1, 170))).double()
    matrix = (basis * values) @ basis.T
    found = lbgap.positive_mass((matrix + matrix.T) / 2, threshold=3.0, top=40)
    assert found.value == pytest.approx(30, abs=4 * found.standard_error)
    assert found.standard_error > 0.1
    assert found.status.startswith("beyond 40 eigenvalues found one by one it is an estimate: ")
