"""Every estimator on matrices of known spectra: tensors, operators, objectives; and what is refused with them."""

import dataclasses
import json
import math
from functools import partial

import pytest
import torch
from torch import nn

import lbgap
from lbgap import LinearOperator, Objective

SPECTRA = {
    "indefinite": [4.0, 2.5, 1.0, 0.5, -0.5, -1.0, -3.0],
    "repeated": [5.0] * 3 + [4.0, 3.0] + [0.1] * 30,
    "zero": [0.0] * 12,
    "one row": [2.5],
    "one negative row": [-3.0],
    "one row of zero": [0.0],
    "negative definite": [-float(i) for i in range(1, 21)],
    "low rank": [7.0, -3.0] + [0.0] * 40,
    "two rows": [3.0, 1.0],  # fewer than a block has vectors
    "a multiple of the identity": [-2.0] * 15,
    "far apart": [10.0**-i for i in range(25)],
}
ESTIMATORS = {
    "eigenvalues": partial(lbgap.eigenvalues, k=2),
    "spectral_density": partial(lbgap.spectral_density, steps=4),
    "hessian_trace": lbgap.hessian_trace,
    "hutch++": partial(lbgap.hessian_trace, method="hutch++", sketch=2),
    "hessian_diagonal": lbgap.hessian_diagonal,
    "positive_mass": partial(lbgap.positive_mass, top=2, steps=4),
}


@pytest.fixture(params=["rotated", "diagonal"])
def matrix_of(request):
    """A function that makes a matrix of its eigenvalues; a diagonal one is multiplied without any rounding."""

    def build(values, dtype=torch.float64):
        values = torch.tensor(values, dtype=torch.float64)
        if request.param == "diagonal":
            return values.diag().to(dtype)
        generator = torch.Generator().manual_seed(len(values))
        normals = torch.randn(len(values), len(values), generator=generator, dtype=torch.float64)
        basis, _ = torch.linalg.qr(normals)
        return LinearOperator.of(basis @ values.diag() @ basis.T)(torch.eye(len(values), dtype=torch.float64)).to(dtype)

    return build


def size(values):
    return max(map(abs, values))


def rounding(dtype, values):
    """What products and sums of so many terms are off by, at most."""
    return 16 * len(values) * torch.finfo(dtype).eps * size(values)


def symmetric(n=12, dtype=torch.float64):
    matrix = torch.randn(n, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return ((matrix + matrix.T) / 2).to(dtype)


# The right values.


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("which", ["largest", "smallest", "both"])
@pytest.mark.parametrize("name", SPECTRA)
def test_eigenvalues(matrix_of, name, which, dtype):
    values = SPECTRA[name]
    k = min(3, len(values))
    matrix = matrix_of(values, dtype)
    exact = sorted(values, reverse=True)
    expected = {"largest": exact[:k], "smallest": exact[-k:], "both": exact[:k] + exact[-k:]}[which]
    expected = exact if which == "both" and 2 * k >= len(values) else expected
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    found = lbgap.eigenvalues(matrix, k=k, which=which, block=5, tolerance=tolerance)
    assert all(found.converged), found.status
    # Some eigenvalue is no further away than the residual.
    assert found.values == pytest.approx(expected, abs=max(found.residuals) + rounding(dtype, values))
    assert found.value == found.values[0]
    vectors = found.vectors.double()
    assert (vectors @ vectors.T - torch.eye(len(vectors))).abs().max() < 64 * torch.finfo(dtype).eps
    away = vectors @ matrix.double() - torch.tensor(found.values, dtype=torch.float64)[:, None] * vectors
    assert found.residuals == pytest.approx(away.norm(dim=1).tolist(), abs=rounding(dtype, values))
    assert found.status.name == ("zero" if name in ("zero", "one row of zero") else "converged")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", SPECTRA)
def test_density_integral_and_moments(matrix_of, name, dtype):
    values = SPECTRA[name]
    found = lbgap.spectral_density(matrix_of(values, dtype), relative_error=None, max_products=640)
    grid, density = (torch.tensor(each, dtype=torch.float64) for each in (found.grid, found.density))
    assert float(torch.trapezoid(density, grid)) == pytest.approx(1, abs=1e-3)
    exact, slack = torch.tensor(values, dtype=torch.float64), rounding(dtype, values)
    for order in range(5):
        value, error = found.sum(lambda x, order=order: x**order)
        assert abs(value - float(exact.pow(order).sum())) <= 4 * error + len(values) * slack * size(values) ** order
    middle = size(values) / 2
    count, error = found.sum(lambda x: (x > middle).double())
    assert abs(count - float((exact > middle).sum())) <= 4 * error + 1e-6
    assert found.value == found.sum(lambda x: x)[0]
    assert min(values) - slack <= found.nodes[found.weights > 1e-12].min()
    assert found.nodes[found.weights > 1e-12].max() <= max(values) + slack


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("method", ["hutchinson", "hutch++"])
@pytest.mark.parametrize("name", SPECTRA)
def test_trace(matrix_of, name, method, dtype):
    values, products = SPECTRA[name], 120
    for seed in range(5):
        found = lbgap.hessian_trace(
            matrix_of(values, dtype), method=method, relative_error=None, max_products=products, seed=seed
        )
        slack = len(values) * rounding(dtype, values)
        assert abs(found.value - math.fsum(values)) <= 4 * found.standard_error + slack
        assert math.isnan(found.base_loss)
        assert found.details["mean"] == found.value / len(values)
        if method == "hutchinson":
            squares = math.sqrt(math.fsum(value**2 for value in values))
            assert found.details["frobenius"] == pytest.approx(squares, rel=0.3, abs=slack)
        if found.status.name == "exact":
            assert found.value == pytest.approx(math.fsum(values), abs=slack)
            assert found.details["products"] == len(values) <= 10


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", SPECTRA)
def test_diagonal(matrix_of, name, dtype):
    values = SPECTRA[name]
    matrix = matrix_of(values, dtype)
    found = lbgap.hessian_diagonal(matrix, relative_error=None, max_products=300)
    away = (found.values - matrix.diagonal()).abs().double()
    assert (away <= 6 * found.standard_errors + rounding(dtype, values)).all()
    assert found.values.dtype == found.standard_errors.dtype == dtype
    assert found.value == pytest.approx(float(found.values.double().sum()))
    spread = (matrix.double().square().sum(1) - matrix.double().diagonal().square()) / 300
    expected = spread.clamp_min(0).sqrt().norm()
    assert float(found.standard_errors.double().norm()) == pytest.approx(
        float(expected), rel=0.2, abs=rounding(dtype, values)
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", [name for name, values in SPECTRA.items() if len(values) > 1])
def test_positive_mass(matrix_of, name, dtype):
    values = SPECTRA[name]
    found = lbgap.positive_mass(matrix_of(values, dtype), threshold=0.7, top=4, relative_error=None, max_products=300)
    sums = {
        "sum": math.fsum(value for value in values if value > 0.7),
        "positive": math.fsum(max(value, 0) for value in values),
        "negative": math.fsum(min(value, 0) for value in values),
        "trace": math.fsum(values),
    }
    slack = 100 * len(values) * rounding(dtype, values)
    # Four eigenvalues are found to 1e-3 of the largest.
    assert abs(found.value - sum(value > 0.7 for value in values)) <= 4 * found.standard_error + 1e-4
    for key, value in sums.items():
        error = found.details[f"{key}_standard_error"]
        assert abs(found.details[key] - value) <= 4 * error + slack + 1e-5 * size(values), key
    assert math.isnan(found.base_loss)


def test_one_row_has_no_rest():
    with pytest.raises(ValueError, match="needs two or more rows of the matrix, got 1"):
        lbgap.positive_mass(torch.ones(1, 1))
    with pytest.raises(ValueError, match="k must be at most the number of rows of the matrix, 1, got 2"):
        lbgap.eigenvalues(torch.ones(1, 1), k=2)


def test_known_eigenvalues_of_a_matrix():
    matrix = torch.diag(torch.tensor([100.0, 50.0] + [1.0] * 20, dtype=torch.float64))
    top = lbgap.eigenvalues(matrix, k=2, tolerance=1e-9)
    found = lbgap.spectral_density(matrix, known=top)
    assert found.sum(lambda x: (x > 10).double()) == (2.0, 0.0)
    assert found.value == pytest.approx(170, rel=1e-9)
    named = LinearOperator.of(matrix, name="mine")
    with pytest.raises(ValueError, match=r"of the same matrix, the mine with 22 rows .* those of the matrix with 22"):
        lbgap.spectral_density(named, known=top)


# Hutch++ on few rows, and on products that depend on each other exactly.


@pytest.mark.parametrize("seed", range(20))
def test_what_is_called_exact_is(seed):
    matrix = torch.diag(torch.tensor([-1.0, 2.0, 3.0, -4.0], dtype=torch.float64))
    found = lbgap.hessian_trace(matrix, method="hutch++", seed=seed)
    assert found.status == "exact, to rounding: 4 products, one for each row"
    assert (found.value, found.standard_error, found.details["draws"]) == (0.0, 0.0, 0)
    bias = lbgap.hessian_trace(torch.eye(6, dtype=torch.float64) / 3, method="hutch++", seed=seed)
    assert bias.value == pytest.approx(2, rel=1e-15)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("rank", [1, 2, 5, 9])
def test_a_sketch_of_products_that_depend_on_each_other(rank, dtype):
    matrix = torch.diag(torch.tensor([float(i + 1) for i in range(rank)] + [0.0] * 50, dtype=dtype))
    for seed in range(10):
        found = lbgap.hessian_trace(matrix, method="hutch++", seed=seed)
        exact = rank * (rank + 1) / 2
        assert abs(found.value - exact) <= 4 * found.standard_error + 64 * torch.finfo(dtype).eps * exact


def test_more_rows_than_products_at_once():
    matrix = symmetric(30)
    found = lbgap.hessian_trace(matrix, method="hutch++", sketch=64)
    assert found.settings["sketch"] == found.details["products"] == 30
    assert found.value == pytest.approx(float(matrix.trace()), rel=1e-14)
    with pytest.raises(ValueError, match="max_products must be at least 30 with a sketch of 30, got 29"):
        lbgap.hessian_trace(matrix, method="hutch++", sketch=64, max_products=29)


# The same bits, however the matrix is given.


def bits(found):
    """Everything but what says how the matrix was given, and the time."""
    left_out = {"seconds", "settings", "evaluations", "base_loss", "apart"}
    fields = {each.name: getattr(found, each.name) for each in dataclasses.fields(found)}
    return {
        name: value.tolist() if isinstance(value, torch.Tensor) else value
        for name, value in fields.items()
        if name not in left_out
    }


@pytest.mark.parametrize("kind", ["hessian", "ggn", "fisher"])
@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_model_an_objective_and_its_operator(name, precision, kind):
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    data = torch.randn(30, 4), torch.arange(30) % 3
    options = {"precision": precision, "batch_size": 16}
    objective = Objective(model, data, **options)
    of_model = ESTIMATORS[name](model, data, kind=kind, **options)
    assert bits(of_model) == bits(ESTIMATORS[name](objective, kind=kind))
    of_operator = ESTIMATORS[name](objective.operator(kind))
    assert bits(of_model) == bits(of_operator)
    assert of_operator.settings["name"] == kind
    assert of_operator.evaluations == 0.0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_tensor_and_its_operators(name, dtype):
    matrix = symmetric(dtype=dtype)
    expected = bits(ESTIMATORS[name](matrix))
    for operator in (LinearOperator.of(matrix), LinearOperator(lambda v: v @ matrix, 12, dtype)):
        assert bits(ESTIMATORS[name](operator)) == expected


@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_operator_that_returns_what_it_was_given(name):
    found = ESTIMATORS[name](LinearOperator(lambda vectors: vectors, 9, torch.float64))
    error = 4 * found.standard_error if name == "hutch++" else 1e-12
    assert found.value == pytest.approx(1 if name == "eigenvalues" else 9, abs=error)


CONTEXTS = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_same_bits_in_any_context(name, context, caller_state):
    matrix = symmetric(dtype=torch.float32)
    outside = bits(ESTIMATORS[name](matrix))
    with CONTEXTS[context]():
        state = caller_state()
        assert bits(ESTIMATORS[name](matrix)) == outside
        assert bits(ESTIMATORS[name](matrix.clone())) == outside
        assert caller_state() == state


@pytest.mark.parametrize("name", ESTIMATORS)
def test_progress_goes_to_a_function(name):
    heard = []
    found = ESTIMATORS[name](symmetric(), progress=heard.append)
    assert heard[-1].unit == "products"
    if name == "positive_mass":
        assert [each.title for each in heard if each.done < 3] == ["eigenvalues"]
        assert heard[-1].title == "density"
    else:
        products = found.details["products"] if "details" in bits(found) else found.products
        assert heard[-1].done == products
        assert [each.done for each in heard] == sorted({each.done for each in heard})


# What results say of the matrix.

KEYWORDS = {
    "eigenvalues": {"k", "which", "tolerance", "max_products", "block", "max_basis", "seed"},
    "spectral_density": {
        *("steps", "known", "resolution", "points", "relative_error", "threshold", "max_products", "seed"),
    },
    "hessian_trace": {"method", "relative_error", "max_products", "sketch", "seed"},
    "hutch++": {"method", "relative_error", "max_products", "sketch", "seed"},
    "hessian_diagonal": {"relative_error", "max_products", "seed"},
    "positive_mass": {"threshold", "top", "steps", "relative_error", "max_products", "seed"},
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_settings_of_a_matrix(name):
    found = ESTIMATORS[name](LinearOperator.of(symmetric(dtype=torch.float32), name="covariance"))
    assert set(found.settings) == {"measure", "n", "dtype", "device", "name", "versions", *KEYWORDS[name]}
    kept = {key: found.settings[key] for key in ("n", "dtype", "device", "name")}
    assert kept == {"n": 12, "dtype": "float32", "device": "cpu", "name": "covariance"}
    record = found.to_dict()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["evaluations"] == 0.0


@pytest.mark.parametrize(
    ("name", "beginning"),
    [
        ("eigenvalues", "eigenvalues of the covariance: "),
        ("spectral_density", "spectral density of the covariance: from "),
        ("hessian_diagonal", "diagonal of the covariance: from "),
        ("hessian_trace", "hessian_trace: "),
        ("positive_mass", "positive_mass: "),
    ],
)
def test_what_is_printed_of_a_matrix(name, beginning):
    found = ESTIMATORS[name](LinearOperator.of(symmetric(), name="covariance"))
    lines = str(found).splitlines()
    assert lines[0].startswith(beginning)
    assert any(line.startswith("  12 rows, ") and line.endswith(" on cpu") for line in lines)
    assert lines[-1] == f"  {found.status}"
    assert "nan" not in str(found)


@pytest.mark.parametrize("name", ["eigenvalues", "spectral_density", "hessian_diagonal"])
def test_one_line_and_what_is_left_out_of_a_record(name):
    found = ESTIMATORS[name](symmetric())
    assert repr(found) == f"{type(found).__name__}(value={found.value:.6g}, status={found.status.name!r})"
    assert found.to_dict()["status_name"] == found.status.name
    large = {"eigenvalues": {"vectors"}, "hessian_diagonal": {"values", "standard_errors"}, "spectral_density": set()}
    assert not large[name] & set(found.to_dict())
    assert set(found.to_dict()) >= {"value", "status", "settings", "evaluations", "seconds", "products"}


# What is refused.


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("given", [symmetric(), LinearOperator.of(symmetric())], ids=["tensor", "operator"])
def test_what_belongs_to_a_model(name, given):
    cases = [
        ((given, (torch.eye(2), torch.zeros(2))), {}, "data cannot go with a matrix"),
        ((given,), {"loss": "mse"}, "loss cannot go with a matrix"),
        ((given,), {"kind": "ggn"}, "kind cannot go with a matrix, which is multiplied as it is: leave that out"),
        ((given,), {"precision": "float64", "device": "cpu"}, "precision, device cannot go with a matrix"),
    ]
    for arguments, options, message in cases:
        with pytest.raises(ValueError, match=message) as caught:
            ESTIMATORS[name](*arguments, **options)
        assert "\n" not in str(caught.value)
    with pytest.raises(TypeError, match=r"\w+\(\) got an unexpected keyword argument 'eps'"):
        ESTIMATORS[name](given, eps=1)
    with pytest.raises(ValueError, match="kind must be one of 'hessian', 'ggn', 'fisher', got 'gauss'"):
        ESTIMATORS[name](given, kind="gauss")


@pytest.mark.parametrize("name", ESTIMATORS)
def test_what_has_no_matrix(name):
    with pytest.raises(TypeError, match=r"needs a module with its data, an Objective, a LinearOperator or a tensor"):
        ESTIMATORS[name]([[1.0]])
    with pytest.raises(ValueError, match=r"matrix must be symmetric, but its entries at \[0, 1\] and \[1, 0\]"):
        ESTIMATORS[name](torch.triu(torch.ones(3, 3)))
    with pytest.raises(TypeError, match="data is missing"):
        ESTIMATORS[name](nn.Linear(2, 2))


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize(
    ("multiply", "error", "message"),
    [
        (
            lambda v: v[:, 1:],
            ValueError,
            r"multiply of 'odd' must return \(\d, 12\) torch.float64 on cpu, got \(\d, 11",
        ),
        (lambda v: v.float(), ValueError, r"multiply of 'odd' must return .* got \(\d, 12\) torch.float32 on cpu"),
        (lambda v: v * math.nan, FloatingPointError, "the product of 'odd' with vector 0 is NaN or infinite"),
        (lambda v: v.mul_(2), ValueError, "multiply of 'odd' changed its vectors in place"),
    ],
    ids=["shape", "dtype", "NaN", "in place"],
)
def test_operators_that_are_wrong(name, multiply, error, message):
    with pytest.raises(error, match=message) as caught:
        ESTIMATORS[name](LinearOperator(multiply, 12, torch.float64, name="odd"))
    assert "\n" not in str(caught.value)
