"""Few cases of a test with many parameters: every two values of two parameters meet, and so do the outermost of all.

A mark ``pairs({names: values, ...})`` does what one ``parametrize`` for each would do. With ``pytest --full`` every
combination is a case, without it most of three and more parameters are left out. Values are in order: the first and the
last of each are its corners.
"""

import itertools


def few(cases, sizes):
    """Some of these cases, tuples of indices: all corners of the product of sizes, then those that add most pairs."""
    corners = [case for case in cases if all(i in (0, size - 1) for i, size in zip(case, sizes, strict=True))]
    pairs = {case: set(itertools.combinations(enumerate(case), 2)) for case in cases}
    left = set().union(*pairs.values()).difference(*(pairs[case] for case in corners))
    chosen = set(corners)
    while left:
        best = max(cases, key=lambda case: len(pairs[case] & left))  # the first of equals
        chosen.add(best)
        left -= pairs[best]
    return [case for case in cases if case in chosen] if len(sizes) > 1 else cases


def generate(metafunc):
    """Parametrize a test by its mark; ``_affordable`` of its module, if there, may refuse cases."""
    mark = metafunc.definition.get_closest_marker("pairs")
    if mark is None:
        return
    (parameters,) = mark.args
    names = [key.replace(",", " ").split() for key in parameters]
    values = [list(given) for given in parameters.values()]

    def case(indices):
        found = []
        for own, given, i in zip(names, values, indices, strict=True):
            found += given[i] if len(own) > 1 else [given[i]]
        return found

    flat = list(itertools.chain(*names))
    affordable = getattr(metafunc.module, "_affordable", None)
    cases = list(itertools.product(*(range(len(given)) for given in values)))
    if affordable is not None:
        test = metafunc.definition.originalname
        cases = [one for one in cases if affordable(test, **dict(zip(flat, case(one), strict=True)))]
    if not metafunc.config.getoption("full"):
        cases = few(cases, [len(given) for given in values])
    metafunc.parametrize(flat, [case(one) for one in cases], ids=_name)


def _name(value):
    return getattr(value, "__name__", None) or str(value)
