"""The cases of tests with many parameters: each pair of values and each corner, and no more than that takes."""

import itertools
from types import SimpleNamespace

import pytest

from tests.pairs import few, generate


def pairs_of(cases):
    return set(itertools.chain.from_iterable(itertools.combinations(enumerate(case), 2) for case in cases))


@pytest.mark.parametrize(
    ("sizes", "at_most"), [((9, 5, 2, 6), 66), ((39, 3, 4), 160), ((4, 5, 3, 2, 3), 60), ((1, 1, 1), 1)]
)
def test_each_pair_and_each_corner_is_there(sizes, at_most):
    cases = list(itertools.product(*map(range, sizes)))
    found = few(cases, sizes)
    assert pairs_of(found) == pairs_of(cases)
    assert set(itertools.product(*((0, size - 1) for size in sizes))) <= set(found)
    assert sorted(set(found)) == found == few(cases, sizes)
    assert len(found) <= at_most


def test_what_no_case_has_is_not_asked_for():
    cases = [case for case in itertools.product(range(4), range(3), range(3)) if sum(case) != 3]
    found = few(cases, (4, 3, 3))
    assert set(found) < set(cases)
    assert pairs_of(found) == pairs_of(cases)


def test_one_parameter_has_all_its_values():
    assert few([(0,), (1,), (2,)], (3,)) == [(0,), (1,), (2,)]


@pytest.mark.parametrize("full", [False, True])
def test_names_and_values_are_those_of_the_mark(full):
    parameters = {"n, p": [(0, 3), (7, 5), (9, 1)], "k": [None, 1, 2], "dtype": [float, complex]}
    given = []
    generate(
        SimpleNamespace(
            definition=SimpleNamespace(
                get_closest_marker=lambda name: SimpleNamespace(args=(parameters,)), originalname="test_it"
            ),
            module=SimpleNamespace(_affordable=lambda test, n, **others: test == "test_it" and n != 7),
            config=SimpleNamespace(getoption=lambda name: full),
            parametrize=lambda names, cases, ids: given.extend((names, cases, ids)),
        )
    )
    names, cases, ids = given
    assert names == ["n", "p", "k", "dtype"]
    whole = [
        [n, p, k, dtype] for (n, p), k, dtype in itertools.product([(0, 3), (9, 1)], *list(parameters.values())[1:])
    ]
    assert cases == whole if full else len(cases) < len(whole)
    assert [ids(value) for value in (float, None, (1, 2))] == ["float", "None", "(1, 2)"]
