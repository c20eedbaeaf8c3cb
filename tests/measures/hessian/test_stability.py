"""The edge of stability, against descent itself."""

import pytest
import torch

import lbgap


def test_the_edge(quadratic):
    objective = quadratic([20.0, 3.0, 1.0])
    for rate, side in ((0.05, "below"), (0.2, "above")):
        found = lbgap.edge_of_stability(objective, learning_rate=rate)
        assert found.value == pytest.approx(20 * rate / 2, rel=1e-3)
        assert found.status.startswith(f"{side} the edge; ")
        assert found.details["limit"] == pytest.approx(2 / rate)
    polyak = lbgap.edge_of_stability(objective, learning_rate=0.1, momentum=0.9)
    nesterov = lbgap.edge_of_stability(objective, learning_rate=0.1, momentum=0.9, nesterov=True)
    assert polyak.details["limit"] == pytest.approx(38)
    assert nesterov.details["limit"] == pytest.approx(38 / 2.8)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("nesterov", [False, True])
def test_the_limit_is_where_descent_diverges(quadratic, momentum, nesterov):
    limit = lbgap.edge_of_stability(quadratic([1.0]), learning_rate=0.1, momentum=momentum, nesterov=nesterov).details[
        "limit"
    ]
    for factor, stable in ((0.99, True), (1.01, False)):
        x = torch.ones(1, dtype=torch.float64, requires_grad=True)
        descent = torch.optim.SGD([x], lr=0.1, momentum=momentum, nesterov=nesterov and momentum > 0)
        if nesterov and not momentum:
            continue
        for _ in range(4000):
            x.grad = factor * limit * x.detach()
            descent.step()
        assert (abs(float(x.detach())) < 1) == stable
