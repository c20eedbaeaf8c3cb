"""What tests of an objective on any batches share."""

import copy

import pytest
from torch.func import functional_call

from lbgap import Objective
from lbgap.problem import hold
from lbgap.problem.stream import Stream
from tests.objective.batches import CASES, seeded


@pytest.fixture
def case(request, monkeypatch):
    """An objective on a case, and the exact value as a function of flat float64 parameters."""
    build, data, exact, options, kind = CASES[request.param]
    if kind is Stream:
        monkeypatch.setattr(hold, "budget", lambda: 0)
    model = seeded(build)
    double = copy.deepcopy(model).double().eval()

    def value(theta):
        parts, start = {}, 0
        for name, parameter in double.named_parameters():
            parts[name] = theta[start : start + parameter.numel()].view_as(parameter)
            start += parameter.numel()
        return exact(lambda *inputs: functional_call(double, parts, inputs))

    def objective(**more):
        made = Objective(model, data(), **{**options, **more})
        assert type(made._evaluator.data) is kind
        return made

    objective.name = request.param
    return objective, value
