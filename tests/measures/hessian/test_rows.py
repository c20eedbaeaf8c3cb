"""Spans and orthonormal bases of rows that depend on each other, more or less."""

import pytest
import torch

from lbgap.measures.hessian.lanczos import Basis
from lbgap.measures.hessian.probes import Probes
from lbgap.measures.hessian.products import Products
from lbgap.measures.hessian.rows import dots, gram, lengths, orthonormal, project_out, span
from lbgap.operators import LinearOperator

DTYPES = [torch.float64, torch.float32]


def normals(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def away(rows):
    """How far rows are from orthonormal."""
    return float((rows.double() @ rows.double().T - torch.eye(len(rows), dtype=torch.float64)).abs().max())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("k", "rank", "n"), [(1, 1, 1), (4, 4, 4), (6, 2, 50), (5, 3, 5), (8, 1, 30), (3, 3, 40)])
def test_the_span_of_rows_that_depend_on_each_other_exactly(k, rank, n, dtype):
    """Whole numbers, whose sums and products are not rounded."""
    generator = torch.Generator().manual_seed(k)
    base = torch.randint(-4, 5, (rank, n), generator=generator).to(dtype)
    base[:, :rank] += 9 * torch.eye(rank, dtype=dtype)
    rows = torch.cat((torch.eye(rank), torch.randint(-2, 3, (k - rank, rank), generator=generator))).to(dtype) @ base
    found = span(rows)
    if dtype == torch.float32:  # whose rounding inner products in float64 resolve
        assert found.shape == (rank, n)
    assert rank <= len(found) <= min(k, n)
    assert away(found) < 16 * torch.finfo(dtype).eps
    left = rows - rows @ found.T @ found
    assert left.abs().max() < 64 * torch.finfo(dtype).eps * rows.abs().max()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("small", [1e-3, 1e-6, 1e-9, 1e-12, 1e-15, 0.0])
def test_the_span_of_rows_that_nearly_depend_on_each_other(small, dtype):
    one, other = (row / row.norm() for row in normals(2, 40))
    rows = torch.stack((one, one + small * other, 2 * one - small * other)).to(dtype)
    found = span(rows)
    assert 1 <= len(found) <= 3
    assert away(found) < 16 * torch.finfo(dtype).eps
    left = rows - rows @ found.T @ found
    # What inner products in float64 resolve is kept.
    assert left.norm() < 1e-6 if dtype == torch.float64 else left.norm() < 1e-5


def test_the_span_of_nothing():
    assert span(torch.zeros(3, 5)).shape == (0, 5)
    assert orthonormal(torch.zeros(0, 5)).shape == (0, 5)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_lengths_do_not_matter(scale):
    rows = normals(3, 20) * torch.tensor([[scale], [1.0], [1 / scale]], dtype=torch.float64)
    found = orthonormal(orthonormal(rows))
    assert len(found) == 3
    assert away(found) < 1e-14


def test_a_row_that_is_there_twice_is_dropped():
    rows = normals(2, 10)
    found = orthonormal(orthonormal(torch.cat((rows, rows))))
    assert found.shape == (2, 10)
    assert away(found) < 1e-14


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("values", [[2.0] * 9, [3.0, 1.0] + [0.0] * 30, [0.0] * 6, [1.0, -1.0] * 8, [5.0]])
@pytest.mark.parametrize("block", [1, 3, 8])
def test_a_basis_stays_orthonormal_when_its_space_ends(values, block, dtype):
    operator = LinearOperator.of(torch.tensor(values, dtype=dtype).diag())
    basis = Basis(Products(operator, 1000), Probes(operator, 0), len(values), block)
    while basis.width:
        basis.expand()
        assert away(basis.vectors(torch.eye(basis.size, dtype=torch.float64))) < 32 * torch.finfo(dtype).eps
    assert basis.size == len(values)
    found = basis.ritz()[0].tolist()
    assert found == pytest.approx(sorted(values), abs=64 * torch.finfo(dtype).eps * max(map(abs, values)))


def test_inner_products_are_float64():
    rows, other = normals(2, 9).float(), normals(2, 9, seed=1).float()
    assert dots(rows, other).tolist() == pytest.approx((rows.double() * other.double()).sum(1).tolist(), rel=1e-14)
    assert torch.allclose(gram(rows), rows.double() @ rows.double().T, rtol=1e-14)
    assert lengths(rows).tolist() == pytest.approx(rows.double().norm(dim=1).tolist(), rel=1e-14)
    assert {part(rows).dtype for part in (gram, lengths)} == {dots(rows, other).dtype} == {torch.float64}


def test_a_projection_is_subtracted_in_place():
    basis, rows = torch.linalg.qr(normals(10, 3))[0].T.contiguous(), normals(2, 10, seed=1)
    before = rows.clone()
    inner = project_out(basis, rows)
    assert torch.allclose(inner, basis @ before.T)
    assert torch.allclose(rows, before - before @ basis.T @ basis)
    assert (basis @ rows.T).abs().max() < 1e-14
