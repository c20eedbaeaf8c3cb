"""One line for each argument that is wrong; those of eigenvalues stand beside it."""

import pytest

import lbgap

REFUSED = [
    (lbgap.spectral_density, {"steps": 0}, ValueError, "steps must be at least 1"),
    (lbgap.spectral_density, {"points": 1}, ValueError, "points must be at least 2"),
    (lbgap.spectral_density, {"threshold": 0}, ValueError, "threshold must be finite and above zero, got 0"),
    (lbgap.spectral_density, {"resolution": -1}, ValueError, "resolution must be finite and above zero, got -1"),
    (
        lbgap.spectral_density,
        {"max_products": 19},
        ValueError,
        "max_products must be at least 20, two probes of 10 steps, got 19",
    ),
    (lbgap.spectral_density, {"known": [1.0]}, TypeError, "known must be what lbgap.eigenvalues returned, got list"),
    (lbgap.positive_mass, {"threshold": 0}, ValueError, "threshold must be finite and above zero, got 0"),
    (lbgap.positive_mass, {"top": 0}, ValueError, "top must be at least 1"),
    (lbgap.positive_mass, {"steps": True}, TypeError, "steps must be a whole number, got True"),
    (lbgap.edge_of_stability, {"learning_rate": 0}, ValueError, "learning_rate must be finite and above zero"),
    (lbgap.edge_of_stability, {"learning_rate": 1, "momentum": 1}, ValueError, "momentum must be below one, got 1"),
    (lbgap.edge_of_stability, {"learning_rate": 1, "nesterov": 1}, TypeError, "nesterov must be True or False"),
    *[
        case
        for measure in (lbgap.spectral_density, lbgap.positive_mass)
        for case in (
            (measure, {"relative_error": 0}, ValueError, "relative_error must be finite and above zero"),
            (measure, {"kind": 2}, ValueError, "kind must be one of"),
            (
                measure,
                {"progress": None},
                TypeError,
                "progress must be True, False or a function of a Progress, got None",
            ),
            (measure, {"max_products": 0}, ValueError, "max_products must be at least 1"),
        )
    ],
    (lbgap.hessian_trace, {"method": "exact"}, ValueError, r"method must be one of 'hutchinson', 'hutch\+\+', got"),
    (lbgap.hessian_trace, {"sketch": 3}, ValueError, r"sketch belongs to method='hutch\+\+', got 3"),
    (lbgap.hessian_trace, {"method": "hutch++", "sketch": 0}, ValueError, "sketch must be at least 1"),
    (
        lbgap.hessian_trace,
        {"method": "hutch++", "max_products": 9, "sketch": 4},
        ValueError,
        "max_products must be at least 10 with a",
    ),
    *[
        case
        for measure in (lbgap.hessian_trace, lbgap.hessian_diagonal)
        for case in (
            (measure, {"max_products": 1}, ValueError, "max_products must be at least 2"),
            (measure, {"max_products": 2.5}, TypeError, "max_products must be a whole number, got 2.5"),
            (measure, {"relative_error": 0}, ValueError, "relative_error must be finite and above zero"),
            (measure, {"relative_error": "5 %"}, TypeError, "relative_error must be a number, got str"),
            (measure, {"kind": "Hessian"}, ValueError, "kind must be one of 'hessian', 'ggn', 'fisher'"),
            (measure, {"seed": None}, TypeError, "seed must be a whole number, got None"),
            (
                measure,
                {"progress": "yes"},
                TypeError,
                "progress must be True, False or a function of a Progress, got 'yes'",
            ),
        )
    ],
]


@pytest.mark.parametrize(("measure", "options", "error", "message"), REFUSED)
def test_what_is_wrong_is_said(quadratic, measure, options, error, message):
    with pytest.raises(error, match=message) as caught:
        measure(quadratic(range(1, 11)), **options)
    assert "\n" not in str(caught.value)
