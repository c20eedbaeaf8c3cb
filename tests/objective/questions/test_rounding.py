"""Two outputs that differ: by rounding, or by more."""

import pytest
import torch
from torch import nn

from lbgap import Objective
from lbgap.objective.questions import rounding
from lbgap.objective.questions.case import Case

pytestmark = pytest.mark.usefixtures("one_thread")


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def case():
    model = nn.Linear(8, 4)
    objective = Objective(model, (normal(20, 8), torch.arange(20) % 4))
    evaluator = objective._evaluator
    return Case(evaluator, model, objective.theta, evaluator.flat.module(evaluator.few().inputs).detach())


def test_errors_are_of_rows():
    one = torch.tensor([[1.0, 2.0], [0.0, 0.0], [100.0, 0.0], [4.0, 4.0]])
    other = one + torch.tensor([[0.0, 1e-3], [0.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    errors = rounding.row_errors(one, other, 0.0, "max")
    torch.testing.assert_close(errors, torch.tensor([1e-3 / 2.001, 0, 0.01, 0]).double(), rtol=1e-4, atol=0)
    assert float(rounding.row_errors(one, other, 0.5, "max")[0]) == pytest.approx(1e-3 / 50, rel=1e-4)
    assert float(rounding.row_errors(one, other, 10.0, "median")[0]) == pytest.approx(1e-3 / 20.01, rel=1e-4)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_must_be_so_in_both(value):
    one = torch.tensor([[1.0, value], [2.0, 3.0]])
    assert not rounding.row_errors(one, one.clone(), 0.1, "median").any()
    assert rounding.row_errors(one, torch.ones(2, 2), 0.1, "median")[0] == torch.inf


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_nothing_does_not_differ(shape):
    assert not rounding.row_errors(torch.ones(shape), torch.ones(shape), 0.1, "median").any()


def test_other_shapes_differ():
    assert rounding.row_errors(torch.ones(2, 3), torch.ones(2, 4), 0.1, "median") == torch.inf


def test_complex_outputs():
    one = torch.complex(normal(3, 2), normal(3, 2))
    assert rounding.row_errors(one, one + 1e-2j, 0.0, "max").min() > 1e-3
    assert not rounding.row_errors(one, one.clone(), 0.0, "max").any()


def never(_):
    raise AssertionError


def test_equal_outputs_need_no_copy(case):
    assert rounding.differ(case, [case.first], [case.first * (1 + 1e-6)], never) is False


def test_a_copy_settles_it(case):
    found = [case.first], [case.first + 1e-4]
    inputs = case.evaluator.few().inputs.double()
    assert rounding.differ(case, *found, lambda m: [m.run(inputs), m.run(inputs)]) is False
    assert rounding.differ(case, *found, lambda m: [m.run(inputs), m.run(inputs) + 1e-8]) is True


@pytest.mark.parametrize(
    ("dtype", "allowed"), [(torch.float64, 1e-11), (torch.float32, 1e-6), (torch.bfloat16, 5e-3), (torch.float16, 1e-3)]
)
def test_the_narrowest_type_of_the_copy_decides(case, dtype, allowed):
    inputs = case.evaluator.few().inputs.double()

    def outputs(error):
        def again(flat):
            output = flat.run(inputs).to(dtype).double()
            return output, output * (1 + error)

        return again

    found = [case.first], [case.first + 1]
    assert rounding.differ(case, *found, outputs(allowed)) is False
    assert rounding.differ(case, *found, outputs(1e3 * allowed)) is True


def test_without_a_copy_clear_differences_count(case):
    def rows(count):
        return torch.where(torch.arange(20)[:, None] < count, case.first + 0.1, case.first)

    assert rounding.differ(case, [case.first], [case.first + 1e-4], never) is None
    assert rounding.differ(case, [case.first], [rows(2)], never) is None
    assert rounding.differ(case, [case.first], [rows(10)], never) is True


def test_the_copy_is_where_the_replica_stands(case):
    with case.elsewhere():
        copy, theta = rounding.in_float64(case).module, case.evaluator.flat.theta.clone()
    assert torch.equal(torch.cat([part.flatten() for part in copy.parameters()]).float(), theta)
    assert not torch.equal(theta, case.centre)
    assert torch.equal(case.evaluator.flat.theta, case.centre)
    assert torch.equal(theta, case.displaced)
    assert all(part.dtype == torch.float64 for part in copy.parameters())
    assert all(part.dtype == torch.float32 for part in case.evaluator.flat.module.parameters())
