"""The random matrix: known answers, the same bits everywhere, and the moments of its entries."""

import math

import numpy as np
import pytest
import torch

from lbgap import _extension, ops
from lbgap.reference import DISTRIBUTIONS, philox, subspace_entries
from lbgap.reference.subspace import _box_muller

needs_native = pytest.mark.skipif("cpu" not in _extension.NATIVE_DEVICES, reason="no compiled library")

CPU = torch.device("cpu")
SEED = 0x0123_4567_89AB_CDEF
# philox4x32 10 of Random123's kat_vectors: counter, key, answer.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text):
    return [int(word, 16) for word in text.split()]


def native(rows, p, seed, stream, distribution, first=0):
    """The entries that the native op multiplies: A times the identity."""
    out = torch.empty(p, rows)
    ops.subspace_apply(
        torch.zeros(rows), torch.eye(p, dtype=torch.float64), seed, stream, distribution, out, first=first
    )
    return out.T


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_known_answers(counter, key, answer):
    found = philox(tuple(torch.tensor(word) for word in words(counter)), tuple(words(key)))
    assert [int(word) for word in found] == words(answer)


@needs_native
def test_native_known_answers():
    """Of the three only zeros are the counter of an entry: row 0, group 0, stream 0."""
    signs = native(1, 128, 0, 0, "rademacher")
    bits = [word >> bit & 1 for word in words(KNOWN[0][2]) for bit in range(32)]
    assert signs.tolist() == [[1.0 - 2.0 * bit for bit in bits]]
    signed = np.array(words(KNOWN[0][2]), dtype=np.uint32).view(np.int32)
    assert native(1, 4, 0, 0, "uniform").tolist() == [[(int(word) >> 8) / 2**23 for word in signed]]


@needs_native
@pytest.mark.pairs(
    {
        "seed, stream, first": [(0, 0, 0), (SEED, 2**32 - 1, 2**32 - 40), (2**63 - 1, 7, 2**62 + 3)],
        "rows, p": [
            (0, 3),
            (3, 0),
            (1, 1),
            (1, 5),
            (63, 4),
            (64, 127),
            (65, 128),
            (67, 129),
            (100, 260),
            (8192 + 65, 7),
        ],
        "distribution": DISTRIBUTIONS,
    }
)
def test_native_has_the_bits_of_the_twin(distribution, rows, p, seed, stream, first):
    expected = subspace_entries(rows, p, seed, stream, distribution, CPU, first=first)
    assert expected.shape == (rows, p)
    assert expected.dtype == torch.float32
    assert torch.equal(native(rows, p, seed, stream, distribution, first), expected)


@needs_native
def test_normal_entries_of_a_million_rows_have_the_bits_of_the_twin():
    expected = subspace_entries(1_000_003, 2, SEED, 3, "normal", CPU)
    assert torch.equal(native(1_000_003, 2, SEED, 3, "normal"), expected)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_an_entry_depends_on_its_own_place_alone(distribution):
    whole = subspace_entries(300, 260, SEED, 1, distribution, CPU)
    part = subspace_entries(100, 130, SEED, 1, distribution, CPU, first=150)
    assert torch.equal(part, whole[150:250, :130])


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_every_seed_stream_and_far_row_is_another_matrix(distribution):
    places = [(0, 0, 0), (1, 0, 0), (2**32, 0, 0), (0, 1, 0), (0, 2**31, 0), (0, 0, 2**32), (0, 0, 2**40)]
    drawn = [subspace_entries(64, 128, seed, stream, distribution, CPU, first=first) for seed, stream, first in places]
    # Equal signs are half of all, give or take five standard deviations; equal numbers are rare.
    most = 64 * 128 * (0.5 if distribution == "rademacher" else 1e-2) + 5 * math.sqrt(64 * 128 / 4)
    for index, one in enumerate(drawn):
        assert all(int((one == other).sum()) < most for other in drawn[:index])


N, P = 50_000, 8
MOMENTS = {
    # Means of e, e^2, e^3, e^4, and their variances from the even moments up to the eighth.
    "normal": (0, 1, 0, 3, 15, 105),
    "uniform": (0, 1 / 3, 0, 1 / 5, 1 / 7, 1 / 9),
    "rademacher": (0, 1, 0, 1, 1, 1),
}


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_moments(distribution):
    """Within four standard errors; the seed is fixed."""
    entries = subspace_entries(N, P, 12, 0, distribution, CPU).double()
    _, second, _, fourth, sixth, eighth = MOMENTS[distribution]
    count = N * P
    for power, mean, square in ((1, 0, second), (2, second, fourth), (3, 0, sixth), (4, fourth, eighth)):
        error = math.sqrt((square - mean**2) / count)
        # Multiples of 2^-23 on [-1, 1) have the mean -2^-24.
        assert abs(float(entries.pow(power).mean()) - mean) <= 4 * error + 2.0**-23


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_neighbours_do_not_correlate(distribution):
    """Neighbouring rows and columns, Box-Muller pairs among them, and their squares."""
    entries = subspace_entries(N, P, 13, 0, distribution, CPU).double()
    second, fourth = MOMENTS[distribution][1], MOMENTS[distribution][3]
    for values, variance in ((entries, second), (entries.square() - second, fourth - second**2)):
        for one, other in (
            (values[1:], values[:-1]),
            (values[:, 1:], values[:, :-1]),
            (values[:, ::2], values[:, 1::2]),
        ):
            assert abs(float((one * other).mean())) <= 4 * variance / math.sqrt(one.numel()) + 2.0**-23


def test_normal_entries_follow_the_normal_distribution():
    """Kolmogorov and Smirnov: the largest distance of two distribution functions; 1.95 / sqrt(count) has p = 1e-3."""
    entries = subspace_entries(N, P, 14, 0, "normal", CPU).double().flatten().sort().values
    count = len(entries)
    expected = torch.special.ndtr(entries)
    steps = torch.arange(1, count + 1, dtype=torch.float64) / count
    assert float(torch.maximum(steps - expected, expected - (steps - 1 / count)).max()) < 1.95 / math.sqrt(count)


def test_box_muller_is_accurate():
    """Against the exact functions in float64, at the extremes of the words too."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randint(0, 2**32, (2, 100_000), generator=generator)
    corners = torch.tensor([0, 1, 2, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 2, 2**32 - 1])
    grid = torch.cartesian_prod(corners, corners)
    a, b = torch.cat([a, grid[:, 0]]), torch.cat([b, grid[:, 1]])
    found = _box_muller(torch.stack([a, b], dim=-1)).double()
    # u is a float32 number itself: v = (a >> 1) + 1/2 is rounded twice.
    u = ((a >> 1).to(torch.float32) + 0.5).double() * 2.0**-31
    radius = (-2 * u.log()).sqrt()
    signed = (b << 1).to(torch.int32).to(torch.float32).double() * 2.0**-31
    angle = math.pi / 2 * signed
    sign = 1.0 - 2.0 * (b >> 31)
    expected = torch.stack([radius * sign * angle.cos(), radius * angle.sin()], dim=-1)
    # About ten roundings of 2^-24 each, and as much again for the polynomials.
    assert float((found - expected).abs().max()) <= 12 * 2.0**-24 * float(radius.max())
    assert float(found.abs().max()) == pytest.approx(math.sqrt(2 * 32 * math.log(2)), rel=1e-6)
    assert found.isfinite().all()


@needs_native
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_entries_do_not_depend_on_the_number_of_threads(distribution):
    threads = torch.get_num_threads()
    try:
        drawn = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            drawn.append(native(5 * 8192 + 9, 5, SEED, 0, distribution))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])


def test_drawing_changes_no_global_state():
    before = torch.get_rng_state()
    subspace_entries(10, 10, 0, 0, "normal", CPU)
    ops.subspace_project(torch.ones(10), 3, 0, 0, "normal")
    assert torch.equal(torch.get_rng_state(), before)
