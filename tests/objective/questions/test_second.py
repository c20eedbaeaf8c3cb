"""Second derivatives are those of the gradient: differences say so, and rounding and kinks do not count."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lbgap
from lbgap import Objective

pytestmark = pytest.mark.usefixtures("one_thread")
KINDS = ["hessian", "ggn"]
REFUSED = r"other second derivatives .* than differences say.*take it out, or pass judge=False$"
GENERATOR = torch.Generator().manual_seed(1)
X, Y = torch.randn(60, 4, generator=GENERATOR), torch.randint(0, 3, (60,), generator=GENERATOR)


def tanh(exact):
    class Tanh(torch.autograd.Function):
        """A hyperbolic tangent whose backward pass keeps its input, or a value without a graph."""

        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.tanh()

        @staticmethod
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            return g * (1 - (x if exact else x.detach()).tanh() ** 2)

    return Tanh.apply


class Net(nn.Module):
    def __init__(self, between=torch.tanh, hidden=5, outputs=3):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.between, self.b = nn.Linear(4, hidden), between, nn.Linear(hidden, outputs)

    def forward(self, x):
        return self.b(self.between(self.a(x)))


def fused(dtype):
    class Fused(torch.autograd.Function):
        """A cross-entropy that computes its gradient in the forward pass, in some type."""

        @staticmethod
        def forward(ctx, output, target):
            ctx.g = output.to(dtype).softmax(1).sub_(F.one_hot(target, output.shape[1]))
            return F.cross_entropy(output.to(dtype), target, reduction="none").to(output.dtype)

        @staticmethod
        def backward(ctx, g):
            return g[:, None] * ctx.g.to(g.dtype), None

    return lambda output, target: Fused.apply(output, target)


def masked(output, target):
    return ((output[:, 0] - target[:, 0]) ** 2 * target[:, 1]).sum(), target[:, 1].sum()


def multiplied(objective, kind="hessian"):
    return objective.hvp(objective.theta, torch.ones_like(objective.theta)[None], kind=kind)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_that_keeps_its_gradient_is_refused(kind, dtype):
    objective = Objective(Net(), (X, Y), loss=fused(dtype))
    with pytest.raises(ValueError, match=f"^the loss '<lambda>' has {REFUSED}"):
        multiplied(objective, kind)
    assert "second derivatives" not in objective.judged
    multiplied(objective, "fisher")  # needs none
    multiplied(Objective(Net(), (X, Y), loss=fused(dtype), judge=False), kind)


@pytest.mark.parametrize("measure", [lbgap.eigenvalues, lbgap.hessian_trace, lbgap.relative_flatness])
def test_measures_of_such_a_loss_are_refused(measure):
    with pytest.raises(ValueError, match=REFUSED):
        measure(Net(), (X, Y), loss=fused(torch.float32))


def test_batch_sharpness_of_such_a_loss_is_refused():
    with pytest.raises(ValueError, match=REFUSED):
        lbgap.batch_sharpness(Net(), (X, Y), loss=fused(torch.float32), batch=16)


def test_a_loss_that_runs_in_float32_alone_is_refused():
    keeps = fused(torch.float32)

    def loss(output, target):
        assert output.dtype == torch.float32
        return keeps(output, target)

    with pytest.raises(ValueError, match=REFUSED):
        multiplied(Objective(Net(), (X, Y), loss=loss))


def test_the_loss_of_a_large_network_is_refused():
    objective = Objective(Net(hidden=600_000), (X[:20], Y[:20]), loss=fused(torch.float32))
    assert objective.n > 4_000_000
    with pytest.raises(ValueError, match=REFUSED):
        multiplied(objective)


def test_a_large_network_is_not_copied():
    objective = Objective(Net(hidden=600_000), (X[:20], Y[:20]))
    theta = objective.theta
    multiplied(objective)
    expected = "not judged: the model has over 4,000,000 parameters; only the loss was"
    assert objective.judged["second derivatives"] == expected
    assert torch.equal(objective.theta, theta)


@pytest.mark.parametrize("ignored", [0, 50])  # the first samples, which count for nothing
def test_a_layer_whose_backward_is_made_of_stored_values_is_refused(ignored):
    targets = torch.stack([X[:, 0], (torch.arange(60) >= ignored).float()], 1)
    objective = Objective(Net(tanh(False), outputs=1), (X, targets), loss=masked)
    with pytest.raises(ValueError, match=f"^model and loss have {REFUSED}"):
        multiplied(objective)
    with pytest.raises(ValueError, match=REFUSED):
        objective.curvatures(objective.theta, objective.theta[None])
    right = Objective(Net(outputs=1), (X, targets), loss=masked)
    torch.testing.assert_close(multiplied(objective, "ggn"), multiplied(right, "ggn"))  # of first derivatives
    assert objective.judged["second derivatives"] == "yes"


def test_a_layer_whose_backward_can_be_differentiated_is_judged_right():
    objective, other = (Objective(Net(between), (X, Y)) for between in (tanh(True), torch.tanh))
    torch.testing.assert_close(multiplied(objective), multiplied(other))
    assert objective.judged["second derivatives"] == other.judged["second derivatives"] == "yes"
    assert objective.settings()["judged"]["second derivatives"] == "yes"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1e-6, 100.0])
def test_flat_and_saturated_losses_are_judged_right(scale, kind):
    objective = Objective(nn.Sequential(Net(), Scale(scale)), (X, Y))
    multiplied(objective, kind)
    assert objective.judged["second derivatives"] == "yes"


class Scale(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


@pytest.mark.parametrize("kind", KINDS)
def test_kinks_and_what_is_linear_are_judged_right(kind):
    for between, loss in ((torch.relu, F.cross_entropy), (F.hardtanh, lambda o, t: o.abs().mean(1)), (abs, _mean)):
        objective = Objective(Net(between), (X, Y), loss=loss)
        multiplied(objective, kind)
        assert objective.judged["second derivatives"] == "yes"


def _mean(output, _):
    return output.mean(1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("dtype", "answer"), [(torch.float32, "yes"), (torch.bfloat16, "not judged: rounding, or kinks, are larger")]
)
def test_rounding_inside_is_no_fault(dtype, answer, kind):
    objective = Objective(Net(lambda x: x.to(dtype).to(x.dtype).tanh()), (X, Y))
    multiplied(objective, kind)
    assert objective.judged["second derivatives"].startswith(answer)


def test_samples_that_see_each_other():
    loss = fused(torch.float32)
    options = {"coupled": True, "batch_size": 20}
    multiplied(right := Objective(Net(), (X, Y), **options))
    assert right.judged["second derivatives"] == "yes"
    with pytest.raises(ValueError, match=REFUSED):
        multiplied(Objective(Net(), (X, Y), loss=lambda o, t: loss(o - o.mean(0), t).mean(), **options))


def test_it_is_asked_once_and_shared_with_parts(monkeypatch):
    objective = Objective(Net(), (X, Y))
    part = objective.part(torch.arange(10))
    multiplied(part)
    assert objective.judged["second derivatives"] == "yes"
    monkeypatch.setattr("lbgap.objective.questions.second.ask", None)
    multiplied(objective)
    multiplied(objective, "fisher")
    multiplied(unasked := Objective(Net(), (X, Y), judge=False))
    assert isinstance(unasked.judged, str)


def test_the_random_state_stays():
    objective = Objective(Net(), (X, Y))
    state = torch.get_rng_state()
    multiplied(objective)
    assert torch.equal(torch.get_rng_state(), state)
