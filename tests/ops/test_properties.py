"""Any combination of sizes, layouts and numbers: the tests of the ops on what their lists of cases leave out.

The box ops have theirs in ``test_box.py``, the Cauchy search on strongly coupled coordinates in ``test_history.py``.
"""

import pytest
import torch

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lbgap import _extension, ops, reference
from lbgap.ops.points import WIDEST
from tests.ops import test_history as history
from tests.ops import test_points as points
from tests.ops import test_rng as rng
from tests.ops import test_subspace as subspace
from tests.ops import test_tangents as tangents

needs_native = pytest.mark.skipif("cpu" not in _extension.NATIVE_DEVICES, reason="no compiled library")
# The fixtures hold nothing that an example changes.
some = settings(
    derandomize=True, deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

# torch itself warns about its own forward-mode rules, when it first loads them.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")

LENGTHS = st.integers(0, 300) | st.sampled_from([511, 512, 513, 1023, 1024, 1025])
DTYPES = st.sampled_from([torch.float32, torch.float64])
DISTRIBUTIONS = st.sampled_from(reference.DISTRIBUTIONS)
ROWS = st.none() | st.integers(0, 6)


@pytest.fixture(params=[pytest.param("native", marks=needs_native), "torch"])
def backend(request, monkeypatch):
    """Run the wrappers on the compiled library, then on the twins."""
    if request.param == "torch":
        monkeypatch.setattr(_extension, "NATIVE_DEVICES", frozenset())
    return request.param


@pytest.fixture
def where(backend):
    """The module whose ops are tested."""
    return ops if backend == "native" else reference


# History


@some
@given(n=LENGTHS, c=st.integers(1, 12), dtype=DTYPES)
def test_append(where, n, c, dtype):
    history.test_append(where, n, c, dtype)


@some
@given(n=LENGTHS, c=st.integers(0, 12), dtype=DTYPES)
def test_gram(where, n, c, dtype):
    history.test_gram(where, n, c, dtype)


@some
@given(n=LENGTHS, c=st.integers(0, 12), dtype=DTYPES, project=st.booleans())
def test_combine(where, n, c, dtype, project):
    history.test_combine(where, n, c, dtype, project)


@some
@given(n=LENGTHS, dtype=DTYPES, alpha=st.just(0.0) | st.floats(1e-3, 10))
def test_line_and_step(where, n, dtype, alpha):
    history.test_line(where, n, dtype)
    history.test_step(where, n, dtype, alpha)


@some
@given(n=LENGTHS, c=st.integers(0, 8), dtype=DTYPES)
def test_cauchy(where, n, c, dtype):
    history.test_cauchy(where, n, c, dtype)


@needs_native
@some
@given(n=LENGTHS, c=st.integers(0, 12), dtype=DTYPES, name=st.sampled_from(history.OPS))
def test_native_and_twin_agree(n, c, dtype, name):
    history.test_native_and_twin_agree(n, c, dtype, name)


# Many points


@some
@given(
    dtype=DTYPES,
    layout=st.sampled_from(points.LAYOUTS),
    samples=st.integers(0, 150),
    k=st.integers(0, 4),
    classes=st.integers(1, 40) | st.integers(120, 270),
)
def test_xent(backend, dtype, layout, samples, k, classes):
    points.test_xent_is_that_of_float64(backend, dtype, layout, samples, k, classes)


@some
@given(dtype=DTYPES, m=LENGTHS, k=st.integers(0, 10), j=st.integers(0, 4) | st.integers(5, 18))
def test_blend(backend, dtype, m, k, j):
    points.test_blend_is_a_sum_in_float64_rounded_once(backend, dtype, m, k, j)


@some
@given(
    dtype=DTYPES,
    widths=st.lists(st.integers(1, 20) | st.integers(WIDEST - 2, WIDEST), min_size=1, max_size=4),
    samples=st.integers(0, 140),
)
def test_chain(backend, dtype, widths, samples):
    points.test_chain_is_the_network_in_float64(backend, dtype, widths, samples)


# The random matrix


@some
@given(distribution=DISTRIBUTIONS, dtype=DTYPES, k=ROWS, n=LENGTHS, p=st.integers(1, 140))
def test_apply_and_project(backend, distribution, dtype, k, n, p):
    subspace.test_apply_is_the_dense_product(backend, distribution, dtype, k, n, p)
    subspace.test_project_is_the_dense_product(backend, distribution, dtype, k, n, p)


@some
@given(distribution=DISTRIBUTIONS, n=st.integers(0, 150), p=st.integers(0, 140))
def test_gram_of_the_matrix(backend, distribution, n, p):
    subspace.test_gram_is_the_dense_product(backend, distribution, n, p)


@needs_native
@some
@given(
    distribution=DISTRIBUTIONS,
    rows=st.integers(0, 150),
    p=st.integers(0, 140),
    seed=st.integers(0, 2**63 - 1),
    stream=st.integers(0, 2**32 - 1),
    first=st.integers(0, 2**62) | st.integers(2**32 - 300, 2**32),
)
def test_entries_have_the_bits_of_the_twin(distribution, rows, p, seed, stream, first):
    rng.test_native_has_the_bits_of_the_twin(distribution, rows, p, seed, stream, first)


# Tangents


SHAPES = st.tuples(*(st.integers(0, 4) for _ in range(2)), st.integers(1, 40), st.integers(1, 6), st.integers(1, 6))


@some
@given(name=st.sampled_from(tangents.POINTWISE), dtype=st.sampled_from(tangents.DTYPES), shape=SHAPES)
def test_pointwise_tangents(backend, name, dtype, shape):
    tangents.test_results_are_within_rounding_of_float64(backend, name, dtype, shape)


@st.composite
def windows(draw):
    """Kernel, stride, padding and dilation that max-pooling of a plane of 5 x 5 and more accepts."""
    kernel = [draw(st.integers(1, 3)) for _ in range(2)]
    stride, dilation = ([draw(st.integers(1, largest)) for _ in range(2)] for largest in (4, 2))
    return kernel, stride, [draw(st.integers(0, size // 2)) for size in kernel], dilation


@some
@given(
    name=st.sampled_from(["tangents_gather", "tangents_scatter"]),
    dtype=st.sampled_from(tangents.DTYPES),
    chosen=windows(),
    shape=st.tuples(*(st.integers(0, 3) for _ in range(2)), st.integers(1, 4), st.integers(5, 9), st.integers(5, 9)),
)
def test_pooling(backend, name, dtype, chosen, shape):
    tangents.assert_pooling(name, dtype, chosen, shape)
