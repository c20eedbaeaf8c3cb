"""The ops on the random matrix: native, their plain-PyTorch twins, and the dense matrix, on every size and layout."""

import math

import pytest
import torch

from lbgap import _extension, ops, reference
from lbgap.reference import subspace_entries

needs_native = pytest.mark.skipif("cpu" not in _extension.NATIVE_DEVICES, reason="no compiled library")

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.float64)
BLOCK, SLAB = 8192, 2048
SIZES = [(0, 3), (1, 1), (2, 5), (63, 4), (65, 129), (SLAB + 1, 7), (BLOCK - 1, 3), (BLOCK + 1, 5), (3 * BLOCK + 70, 9)]
ARGS = (17, 2)  # seed and stream

# torch itself warns about its own forward-mode rules, when it first loads them.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")


@pytest.fixture(autouse=True)
def one_thread():
    """Tensors this small gain nothing from a second thread, and lose much where other processes compete."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=[pytest.param("native", marks=needs_native), "torch"])
def backend(request, monkeypatch):
    """Run the wrappers on the compiled library, then on the twins."""
    if request.param == "torch":
        monkeypatch.setattr(_extension, "NATIVE_DEVICES", frozenset())
    return request.param


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def dense(n, p, distribution, first=0):
    return subspace_entries(n, p, *ARGS, distribution, CPU, first=first).double()


@pytest.mark.pairs({"n, p": SIZES, "k": [None, 0, 1, 3], "dtype": DTYPES, "distribution": reference.DISTRIBUTIONS})
def test_apply_is_the_dense_product(backend, distribution, dtype, k, n, p):
    a, rows = dense(n, p, distribution), () if k is None else (k,)
    x, z = normal(n, dtype=dtype), normal(*rows, p, seed=1)
    out = torch.full((*rows, n), torch.nan, dtype=dtype)
    ops.subspace_apply(x, z, *ARGS, distribution, out)
    expected = x.double() + z @ a.T
    # p products and sums in float64, then one rounding to the dtype.
    bound = 2 * (p + 2) * 2.0**-53 * (x.double().abs() + z.abs() @ a.abs().T) + torch.finfo(dtype).eps * expected.abs()
    assert ((out.double() - expected).abs() <= bound).all()


@pytest.mark.pairs({"n, p": SIZES, "k": [None, 0, 1, 3], "dtype": DTYPES, "distribution": reference.DISTRIBUTIONS})
def test_project_is_the_dense_product(backend, distribution, dtype, k, n, p):
    a, rows = dense(n, p, distribution), () if k is None else (k,)
    g = normal(*rows, n, dtype=dtype)
    found = ops.subspace_project(g, p, *ARGS, distribution)
    assert (found.shape, found.dtype) == ((*rows, p), torch.float64)
    # Adding n numbers in any order errs by less than n 2^-53 of the sum of their magnitudes; twice, for both sides.
    bound = 2 * (n + 1) * 2.0**-53 * (g.double().abs() @ a.abs())
    assert ((found - g.double() @ a).abs() <= bound).all()


@pytest.mark.pairs({"n, p": [*SIZES, (5, 0)], "distribution": reference.DISTRIBUTIONS})
def test_gram_is_the_dense_product(backend, distribution, n, p):
    a = dense(n, p, distribution)
    found = ops.subspace_gram(n, p, *ARGS, distribution, CPU)
    assert (found.shape, found.dtype) == ((p, p), torch.float64)
    assert torch.equal(found, found.T) or backend == "torch"
    assert ((found - a.T @ a).abs() <= 2 * (n + 1) * 2.0**-53 * (a.abs().T @ a.abs())).all()


@needs_native
@pytest.mark.parametrize("distribution", reference.DISTRIBUTIONS)
@pytest.mark.parametrize("first", [5, 2**32 - 100])
def test_parts_of_the_rows_make_the_whole(distribution, first):
    a = dense(300, 6, distribution, first)
    z, g = normal(6), normal(300)
    out = torch.empty(300, dtype=torch.float64)
    ops.subspace_apply(torch.zeros(300, dtype=torch.float64), z, *ARGS, distribution, out, first=first)
    part = torch.empty(100, dtype=torch.float64)
    ops.subspace_apply(torch.zeros(100, dtype=torch.float64), z, *ARGS, distribution, part, first=first + 150)
    assert torch.equal(part, out[150:250])
    bound = 600 * 2.0**-53
    assert ((out - a @ z).abs() <= bound * (a.abs() @ z.abs())).all()
    found = ops.subspace_project(g, 6, *ARGS, distribution, first=first)
    assert ((found - a.T @ g).abs() <= bound * (a.abs().T @ g.abs())).all()
    gram = ops.subspace_gram(300, 6, *ARGS, distribution, CPU, first=first)
    assert ((gram - a.T @ a).abs() <= bound * (a.abs().T @ a.abs())).all()


@pytest.mark.parametrize("distribution", reference.DISTRIBUTIONS)
def test_apply_and_project_are_adjoint(backend, distribution):
    n, p = BLOCK + 100, 130
    z, g = normal(p), normal(n, seed=1)
    out = torch.empty(n, dtype=torch.float64)
    ops.subspace_apply(torch.zeros(n, dtype=torch.float64), z, *ARGS, distribution, out)
    found = ops.subspace_project(g, p, *ARGS, distribution)
    a = dense(n, p, distribution)
    bound = 2 * (n + p) * 2.0**-53 * float(g.abs() @ a.abs() @ z.abs())
    assert abs(float(g @ out - found @ z)) <= bound


@needs_native
def test_k_points_have_the_bits_of_one():
    x, z, g = normal(500), normal(3, 10), normal(3, 500)
    out, one = torch.empty(3, 500, dtype=torch.float64), torch.empty(500, dtype=torch.float64)
    ops.subspace_apply(x, z, *ARGS, "normal", out)
    projected = ops.subspace_project(g, 10, *ARGS, "normal")
    for i in range(3):
        ops.subspace_apply(x, z[i], *ARGS, "normal", one)
        assert torch.equal(one, out[i])
        assert torch.equal(projected[i], ops.subspace_project(g[i], 10, *ARGS, "normal"))


@needs_native
@pytest.mark.parametrize("begin", [0, 3, 5, 14])
def test_an_out_that_overlaps_the_centre_in_part_is_refused(begin):
    memory = torch.zeros(20)
    with pytest.raises(RuntimeError, match="out overlaps centre without being it: pass a separate tensor"):
        ops.subspace_apply(
            memory[begin : begin + 5], torch.ones(3, 2).double(), *ARGS, "normal", memory[:15].view(3, 5)
        )
    assert not memory.any()


@needs_native
@pytest.mark.parametrize("distribution", reference.DISTRIBUTIONS)
def test_bits_do_not_depend_on_the_number_of_threads(distribution):
    n, p = 7 * BLOCK + 3, 21
    x, z, g = normal(n, dtype=torch.float32), normal(2, p), normal(2, n, seed=3)
    results = []
    for threads in (1, 2, 3):  # the fixture above sets them back
        torch.set_num_threads(threads)
        out = torch.empty(2, n)
        ops.subspace_apply(x, z, *ARGS, distribution, out)
        projected = ops.subspace_project(g, p, *ARGS, distribution)
        results.append((out, projected, ops.subspace_gram(n, p, *ARGS, distribution, CPU)))
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


def test_any_layout(backend):
    n, p = 100, 5
    x, z, g = normal(n), normal(3, p), normal(3, n)
    expected = torch.empty(3, n, dtype=torch.float64)
    ops.subspace_apply(x, z, *ARGS, "normal", expected)
    projected = ops.subspace_project(g, p, *ARGS, "normal")

    def strided(values):
        return values.new_full((*values.shape[:-1], 2 * values.shape[-1]), torch.nan)[..., ::2].copy_(values)

    def padded(values):
        return values.new_full((*values.shape[:-1], values.shape[-1] + 3), torch.nan)[..., 1:-2].copy_(values)

    def transposed(values):
        return values.mT.contiguous().mT if values.dim() == 2 else values

    for lay in (strided, padded, transposed):
        out = lay(torch.zeros(3, n, dtype=torch.float64))
        ops.subspace_apply(lay(x), lay(z), *ARGS, "normal", out)
        # The native ops sum in one order; the twin's products choose theirs by the layout.
        units = 0 if backend == "native" else 1000
        torch.testing.assert_close(out, expected, rtol=0, atol=units * 2.0**-53)
        found = ops.subspace_project(lay(g), p, *ARGS, "normal")
        torch.testing.assert_close(found, projected, rtol=0, atol=units * 2.0**-53)
    row = torch.empty_like(x)
    ops.subspace_apply(x, z[0], *ARGS, "normal", row)
    ops.subspace_apply(x, z[0], *ARGS, "normal", x)
    assert torch.equal(x, row)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_and_infinity_stay_where_they_belong(backend, value):
    z, g = torch.zeros(2, 3, dtype=torch.float64), torch.zeros(2, 70)
    z[1, 2], g[1, 65] = value, value
    out = torch.empty(2, 70)
    ops.subspace_apply(torch.ones(70), z, *ARGS, "normal", out)
    assert (out[0] == 1).all()
    assert not out[1].isfinite().any()
    projected = ops.subspace_project(g, 3, *ARGS, "normal")
    assert (projected[0] == 0).all()
    assert not projected[1].isfinite().any()


@needs_native
@pytest.mark.parametrize("shape", [(70,), (3, 70), (0, 70)], ids=str)
def test_opcheck(shape):
    raw = torch.ops.lbgap
    z, out = torch.ones(*shape[:-1], 5, dtype=torch.float64), torch.empty(shape)
    torch.library.opcheck(raw.subspace_apply.default, (torch.ones(70), z, 0, 1, 2, 0, out))
    torch.library.opcheck(raw.subspace_project.default, (torch.ones(shape), 5, 1, 1, 2, 0))
    torch.library.opcheck(raw.subspace_gram.default, (torch.empty(0), 70, 5, 2, 1, 2, 0))


def test_compile_traces_through_without_a_break(backend):
    def both(x, z):
        out = torch.empty_like(x)
        ops.subspace_apply(2 * x, z, 1, 2, "normal", out)
        return ops.subspace_project(out, 5, 1, 2, "normal") + ops.subspace_gram(7, 5, 1, 2, "normal", x.device)[0]

    torch.compiler.reset()
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    x, z = normal(40, dtype=torch.float32), normal(5)
    assert torch.equal(compiled(x, z), both(x, z))


def good(**changes):
    args = {"centre": torch.zeros(5), "z": torch.zeros(2, 3, dtype=torch.float64), "seed": 0, "stream": 0}
    args |= {"distribution": "normal", "out": torch.zeros(2, 5)} | changes
    return args


BAD = [
    ({"distribution": "gauss"}, ValueError, "distribution must be one of 'normal', 'uniform', 'rademacher', got 'gau"),
    ({"seed": -1}, ValueError, "seed must be at least 0 and below"),
    ({"seed": 1.0}, TypeError, "seed must be a whole number, got 1.0"),
    ({"stream": 2**32}, ValueError, "stream must be at least 0 and below 4294967296"),
    ({"stream": True}, TypeError, "stream must be a whole number"),
    ({"first": -1}, ValueError, "first must be at least 0"),
    ({"z": torch.zeros(2, 3)}, TypeError, "z must be float64, got torch.float32"),
    ({"z": torch.zeros(3, dtype=torch.float64)}, ValueError, r"out \(n,\) or \(k, n\), got"),
    ({"centre": torch.zeros(4)}, ValueError, "centre must be"),
    ({"out": torch.zeros(2, 5, dtype=torch.float64)}, TypeError, "must both be float32 or both float64"),
    ({"centre": torch.zeros(5, device="meta")}, ValueError, "must be on one device"),
    ({"out": torch.zeros(2, 1).expand(2, 5)}, ValueError, "share memory"),
    ({"centre": torch.zeros(5, requires_grad=True)}, ValueError, r"centre requires a gradient.*centre\.detach\(\)"),
    ({"z": torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)}, ValueError, "z requires a gradient"),
]


@pytest.mark.parametrize(("changes", "error", "message"), BAD)
def test_apply_refuses(backend, changes, error, message):
    with pytest.raises(error, match=message):
        ops.subspace_apply(**good(**changes))


@pytest.mark.parametrize(
    ("g", "p", "error", "message"),
    [
        (torch.zeros(5), -1, ValueError, "p must be at least 0"),
        (torch.zeros(5), 2.0, TypeError, "p must be a whole number"),
        (torch.zeros(1, 1, 5), 2, ValueError, "g must be"),
        (torch.zeros(5, dtype=torch.int64), 2, TypeError, "g must be float32 or float64"),
        (torch.zeros(5, requires_grad=True), 2, ValueError, "g requires a gradient"),
    ],
)
def test_project_refuses(backend, g, p, error, message):
    with pytest.raises(error, match=message):
        ops.subspace_project(g, p, 0, 0, "normal")


@needs_native
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"centre": torch.zeros(4)}, "centre must be a contiguous"),
        ({"z": torch.zeros(2, 3)}, "z must be float64"),
        ({"z": torch.zeros(3, 3, dtype=torch.float64)}, "as many rows as out"),
        ({"z": torch.zeros(3, dtype=torch.float64)}, "as many rows as out"),
        ({"z": torch.zeros(2, 6, dtype=torch.float64)[:, ::2]}, "contiguous rows"),
        ({"out": torch.zeros(2, 10)[:, ::2]}, "contiguous rows"),
        ({"out": torch.zeros(5).expand(2, 5)}, "overlap"),
        ({"code": 3}, "unknown distribution"),
        ({"stream": -1}, "stream must be between"),
    ],
)
def test_raw_apply_guards_memory(changes, message):
    args = good() | {"code": 0} | changes
    with pytest.raises(RuntimeError, match=message):
        torch.ops.lbgap.subspace_apply(args["centre"], args["z"], args["code"], 0, args["stream"], 0, args["out"])


@needs_native
def test_raw_ops_refuse_gradients():
    leaf = torch.zeros(5, requires_grad=True)
    with pytest.raises(ValueError, match="an input of subspace_project requires a gradient"):
        torch.ops.lbgap.subspace_project(leaf, 2, 0, 0, 0, 0)
    with pytest.raises(ValueError, match="an input of subspace_apply requires a gradient"):
        torch.ops.lbgap.subspace_apply(leaf, torch.zeros(2, dtype=torch.float64), 0, 0, 0, 0, torch.zeros(5))
