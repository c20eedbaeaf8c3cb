"""Operators: what they are made of, what they make of vectors, and one line for whatever does not fit."""

import math

import pytest
import torch
from torch import nn

import lbgap
from lbgap import LinearOperator, Objective

pytestmark = pytest.mark.usefixtures("one_thread")


def symmetric(n, dtype=torch.float64, seed=0):
    matrix = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return ((matrix + matrix.T) / 2).to(dtype)


def vectors(k, n, dtype=torch.float64):
    return torch.randn(k, n, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


# Of a dense matrix.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (5, 3), (3, 7), (40, 0)])
def test_products_of_a_dense_matrix(n, k, dtype):
    matrix, given = symmetric(n, dtype), vectors(k, n, dtype)
    operator = LinearOperator.of(matrix)
    assert (operator.size, operator.dtype, operator.device) == (n, dtype, torch.device("cpu"))
    assert operator.name == "matrix"
    found = operator(given)
    assert found.shape == (k, n)
    assert found.dtype == dtype
    # n products of numbers below 4, each rounded, and n sums
    rounding = 2 * n * 16 * torch.finfo(dtype).eps
    assert torch.allclose(found.double(), given.double() @ matrix.double(), rtol=0, atol=rounding)


def test_products_are_in_full_float32():
    matrix, given = symmetric(64, torch.float32), vectors(4, 64, torch.float32)
    exact = LinearOperator.of(matrix)(given)
    place = torch.backends.mkldnn.matmul
    before = place.fp32_precision
    try:
        place.fp32_precision = "bf16"
        assert torch.equal(LinearOperator.of(matrix)(given), exact)
        assert place.fp32_precision == "bf16"
    finally:
        place.fp32_precision = before


def test_what_rounding_leaves_is_symmetrised():
    matrix = symmetric(4)
    rounded = matrix.clone()
    rounded[0, 1] *= 1 + 1e-15
    assert rounded[0, 1] != rounded[1, 0]
    products = LinearOperator.of(rounded)(torch.eye(4, dtype=torch.float64))
    assert torch.equal(products, products.T)
    assert torch.allclose(products, matrix, rtol=1e-14, atol=0)


def test_a_matrix_with_a_gradient_and_one_of_inference_mode():
    matrix = symmetric(3)
    expected = LinearOperator.of(matrix)(torch.eye(3, dtype=torch.float64))
    assert not LinearOperator.of(matrix.clone().requires_grad_())(torch.eye(3, dtype=torch.float64)).requires_grad
    with torch.inference_mode():
        inside = matrix.clone()
    assert torch.equal(LinearOperator.of(inside)(torch.eye(3, dtype=torch.float64)), expected)
    with torch.inference_mode():
        assert torch.equal(LinearOperator.of(inside)(torch.eye(3, dtype=torch.float64)), expected)


NOT_A_MATRIX = [
    ([[1.0]], TypeError, r"matrix must be a tensor \(n, n\), got list"),
    (torch.zeros(3), ValueError, r"matrix must be \(n, n\), n at least 1, got \(3,\)"),
    (torch.zeros(2, 3), ValueError, r"matrix must be \(n, n\), n at least 1, got \(2, 3\)"),
    (torch.zeros(2, 2, 2), ValueError, r"matrix must be \(n, n\), n at least 1, got \(2, 2, 2\)"),
    (torch.zeros(0, 0), ValueError, r"matrix must be \(n, n\), n at least 1, got \(0, 0\)"),
    (
        torch.eye(2, dtype=torch.int64),
        ValueError,
        r"must be float32 or float64, got torch.int64: convert it by .double",
    ),
    (torch.eye(2, dtype=torch.bfloat16), ValueError, "must be float32 or float64, got torch.bfloat16"),
    (torch.eye(2, dtype=torch.complex64), ValueError, "must be float32 or float64, got torch.complex64"),
    (torch.eye(2).to_sparse(), ValueError, r"matrix must be dense, got torch.sparse_coo: pass a LinearOperator"),
    (torch.tensor([[1.0, 2.0], [3.0, 1.0]]), ValueError, r"symmetric, but its entries at \[0, 1\] and \[1, 0\] are 2 "),
    (torch.tensor([[1.0, math.nan], [math.nan, 1.0]]), ValueError, r"matrix must be finite, got nan at \[0, 1\]"),
    (torch.tensor([[1.0, 0.0], [0.0, -math.inf]]), ValueError, r"matrix must be finite, got -inf at \[1, 1\]"),
]


@pytest.mark.parametrize(("matrix", "error", "message"), NOT_A_MATRIX)
def test_what_is_no_symmetric_matrix(matrix, error, message):
    with pytest.raises(error, match=message) as caught:
        LinearOperator.of(matrix)
    assert "\n" not in str(caught.value)


def test_an_asymmetry_just_beyond_rounding():
    matrix = torch.eye(3)
    matrix[0, 2] = 2000 * torch.finfo(torch.float32).eps
    with pytest.raises(ValueError, match=r"pass \(matrix \+ matrix.T\) / 2"):
        LinearOperator.of(matrix)
    matrix[0, 2] /= 4
    LinearOperator.of(matrix)


# Of a function.


WRONG = [
    ({"multiply": torch.eye(3)}, TypeError, r"multiply must be a function of vectors \(k, n\), got Tensor"),
    ({"size": 0}, ValueError, "size must be at least 1, got 0"),
    ({"size": 2.0}, TypeError, "size must be a whole number, got 2.0"),
    ({"dtype": torch.float16}, ValueError, "dtype must be torch.float32 or torch.float64, got torch.float16"),
    ({"device": "gpu"}, ValueError, "device must be 'cpu', 'cuda' or 'cuda:N', got 'gpu'"),
    ({"name": None}, TypeError, "name must be a string, got None"),
]


@pytest.mark.parametrize(("options", "error", "message"), WRONG, ids=[next(iter(case[0])) for case in WRONG])
def test_what_makes_no_operator(options, error, message):
    with pytest.raises(error, match=message) as caught:
        LinearOperator(**{"multiply": lambda v: v, "size": 3, **options})
    assert "\n" not in str(caught.value)


def test_a_device_by_name_and_a_size_of_numpy():
    operator = LinearOperator(lambda v: 2 * v, torch.tensor(3), device="cpu")
    assert (operator.size, operator.device) == (3, torch.device("cpu"))
    assert operator(torch.ones(1, 3)).tolist() == [[2.0, 2.0, 2.0]]


RETURNED = [
    (lambda v: v[:, :2], ValueError, r"must return \(2, 3\) torch.float32 on cpu, got \(2, 2\) torch.float32 on cpu"),
    (lambda v: v[:1], ValueError, r"must return \(2, 3\) torch.float32 on cpu, got \(1, 3\)"),
    (lambda v: v[0], ValueError, r"must return \(2, 3\) torch.float32 on cpu, got \(3,\)"),
    (lambda v: v.double(), ValueError, r"must return \(2, 3\) torch.float32 on cpu, got \(2, 3\) torch.float64"),
    (lambda v: v.to("meta"), ValueError, r"must return .* on cpu, got \(2, 3\) torch.float32 on meta"),
    (lambda v: v.to_sparse(), ValueError, r"must return .* on cpu, got .* on cpu, torch.sparse_coo"),
    (lambda v: v.numpy(), TypeError, r"must return \(2, 3\) torch.float32 on cpu, got ndarray"),
    (lambda v: None, TypeError, r"must return \(2, 3\) torch.float32 on cpu, got NoneType"),
    (lambda v: v.mul_(2), ValueError, r"'odd' changed its vectors in place: let it return new ones"),
    (lambda v: v / torch.tensor([[1.0], [0.0]]), FloatingPointError, "product of 'odd' with vector 1 is NaN or infin"),
    (lambda v: v * math.nan, FloatingPointError, "product of 'odd' with vector 0 is NaN or infinite"),
]


@pytest.mark.parametrize(("multiply", "error", "message"), RETURNED)
def test_what_multiply_may_not_return(multiply, error, message):
    with pytest.raises(error, match=message) as caught:
        LinearOperator(multiply, 3, name="odd")(torch.ones(2, 3))
    assert "\n" not in str(caught.value)


def test_products_too_large_to_add_up_are_finite():
    found = LinearOperator(lambda v: v * 3e38, 3)(torch.ones(2, 3))
    assert found.isfinite().all()


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (torch.ones(3), ValueError, r"vectors must be \(k, 3\) torch.float32 on cpu, got \(3,\) torch.float32 on cpu"),
        (torch.ones(2, 4), ValueError, r"vectors must be \(k, 3\) torch.float32 on cpu, got \(2, 4\)"),
        (torch.ones(2, 3).double(), ValueError, r"vectors must be \(k, 3\) torch.float32 on cpu, got .* torch.float64"),
        ([[1.0, 2.0, 3.0]], TypeError, r"vectors must be \(k, 3\) torch.float32 on cpu, got list"),
    ],
)
def test_vectors_that_do_not_fit(given, error, message):
    with pytest.raises(error, match=message):
        LinearOperator(lambda v: v, 3)(given)


@pytest.mark.parametrize(
    "multiply", [lambda v: v, lambda v: v[:, :], lambda v: torch.ones((), dtype=v.dtype).expand(len(v), 3)]
)
def test_products_may_be_written_to(multiply):
    given = torch.ones(2, 3)
    found = LinearOperator(multiply, 3)(given)
    found += 1
    assert given.tolist() == [[1.0] * 3] * 2
    assert found.tolist() == [[2.0] * 3] * 2


def test_no_vectors_are_not_multiplied():
    assert LinearOperator(lambda v: 1 / 0, 3)(torch.empty(0, 3)).shape == (0, 3)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_multiply_may_differentiate(context):
    point = torch.tensor([1.0, 2.0, 3.0])

    def multiply(rows):
        x = point.clone().requires_grad_()
        (slope,) = torch.autograd.grad(x.pow(3).sum(), x, create_graph=True)
        return torch.stack([torch.autograd.grad(slope, x, row, retain_graph=True)[0] for row in rows])

    with context():
        found = LinearOperator(multiply, 3)(torch.ones(1, 3).clone())
    assert found.tolist() == [[6.0, 12.0, 18.0]]
    assert not found.requires_grad


# Of an objective.


@pytest.mark.parametrize("kind", ["hessian", "ggn", "fisher"])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_the_operator_of_an_objective(kind, precision):
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    data = torch.randn(10, 3), torch.arange(10) % 2
    objective = Objective(model, data, precision=precision)
    operator = objective.operator(kind)
    assert (operator.size, operator.dtype, operator.device) == (objective.n, objective.dtype, objective.device)
    assert operator.name == kind
    given = vectors(3, objective.n, objective.dtype)
    assert torch.equal(operator(given), objective.hvp(objective.theta, given, kind=kind))
    assert objective.operator().name == "hessian"


def test_an_objective_refuses_a_kind_at_once():
    objective = Objective(nn.Linear(2, 2), (torch.eye(2), torch.tensor([0, 1])))
    with pytest.raises(ValueError, match="kind must be one of 'hessian', 'ggn', 'fisher', got 'gauss'"):
        objective.operator("gauss")


def test_what_multiply_keeps_is_not_written_into():
    matrix, kept = torch.diag(torch.arange(1.0, 31.0)), {}

    def multiply(rows):
        key = rows.numpy().tobytes()
        kept.setdefault(key, rows @ matrix)
        return kept[key]

    operator = LinearOperator(multiply, 30)
    first, again = (lbgap.eigenvalues(operator, k=2) for _ in range(2))
    assert first.values == again.values
    assert torch.equal(first.vectors, again.vectors)
    assert lbgap.hessian_trace(operator).value == lbgap.hessian_trace(operator).value == 465.0


def test_a_matrix_that_changes_later_does_not_change_its_operator():
    matrix = torch.eye(3)
    operator = LinearOperator.of(matrix)
    matrix.zero_()
    assert torch.equal(operator(torch.ones(1, 3)), torch.ones(1, 3))


def test_what_nobody_else_keeps_is_not_copied():
    made = []

    def multiply(rows):
        made.append(2 * rows)
        return made[-1]

    for fresh in (True, False):
        found = LinearOperator(multiply, 3, fresh=fresh)(torch.ones(2, 3))
        assert torch.equal(found, torch.full((2, 3), 2.0))
        assert (found.data_ptr() == made[-1].data_ptr()) is fresh
    with pytest.raises(TypeError, match="fresh must be True or False"):
        LinearOperator(multiply, 3, fresh=1)
