"""Derivatives along a direction, against one gradient a sample and dense Hessians in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lbgap import Objective
from lbgap.objective import tangents

pytestmark = pytest.mark.usefixtures("one_thread")


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def labels(samples=12, classes=3):
    return torch.randint(0, classes, (samples,), generator=torch.Generator().manual_seed(1))


def seeded(build, seed=0):
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(seed)
        return build()


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.second.weight = self.first.weight

    def forward(self, inputs):
        return self.out(self.second(self.first(inputs).tanh()))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.out = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, inputs):
        return self.out(self.lstm(inputs)[0][:, -1])


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
        self.out = nn.Linear(4, 3)

    def forward(self, inputs):
        return self.out(self.layer(inputs)[:, -1])


class Square(torch.autograd.Function):
    """No forward rule at all."""

    @staticmethod
    def forward(ctx, inputs):
        ctx.save_for_backward(inputs)
        return inputs**2

    @staticmethod
    def backward(ctx, gradient):
        (inputs,) = ctx.saved_tensors
        return 2 * inputs * gradient


class Dropping(torch.autograd.Function):
    """A forward rule that drops the derivative without a word."""

    @staticmethod
    def forward(inputs):
        return inputs**2

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])

    @staticmethod
    def backward(ctx, gradient):
        (inputs,) = ctx.saved_tensors
        return 2 * inputs * gradient

    @staticmethod
    def jvp(ctx, tangent):
        return torch.zeros_like(tangent)


class Custom(nn.Linear):
    def __init__(self, function):
        super().__init__(4, 3)
        self.function = function

    def forward(self, inputs):
        return self.function.apply(super().forward(inputs))


MODELS = {
    "dense": (lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)), (4,)),
    "convolution": (
        lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 3)),
        (1, 8, 8),
    ),
    "tied": (Tied, (4,)),
    "lstm": (Recurrent, (5, 4)),
    "attention": (Attention, (5, 4)),
    "no forward rule": (lambda: Custom(Square), (4,)),
    "a forward rule that drops": (lambda: Custom(Dropping), (4,)),
}


def reference(model, data, direction, loss=F.cross_entropy):
    """``<d, grad l_i>`` from one gradient a sample."""
    inputs, targets = data
    parameters = list(model.parameters())
    found = []
    for index in range(len(inputs)):
        value = loss(model(inputs[index : index + 1].clone()), targets[index : index + 1])
        gradient = torch.autograd.grad(value, parameters)
        found.append(_flat(gradient) @ direction)
    return torch.stack(found)


def _flat(parts):
    return torch.cat([part.reshape(-1) for part in parts])


@pytest.mark.parametrize("name", MODELS)
def test_directional_derivatives_are_those_of_one_gradient_a_sample(name):
    build, shape = MODELS[name]
    model = seeded(build).double().eval()
    data = normal(12, *shape), labels()
    objective = Objective(model, data, precision="float64", batch_size=5)
    direction = normal(objective.n, seed=2)
    found = objective.directional_derivatives(objective.theta, direction)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, reference(model, data, direction), rtol=1e-10, atol=1e-12)
    gradient = objective.loss_and_gradient(objective.theta)[1]  # the replica is as before
    torch.testing.assert_close(found.mean(), gradient @ direction, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("dense", tangents.forward),
        ("convolution", tangents.forward),
        ("no forward rule", tangents.backward),
        ("a forward rule that drops", tangents.backward),
    ],
)
def test_forward_where_it_can_be_trusted(name, rule):
    build, shape = MODELS[name]
    objective = Objective(seeded(build), (normal(12, *shape, dtype=torch.float32), labels()))
    direction = normal(objective.n, seed=2, dtype=torch.float32)
    with tangents.differentiable():
        assert (
            tangents.choose(objective._evaluator.flat, lambda: objective._evaluator.data.pool.inputs.clone(), direction)
            is rule
        )


def test_output_tangents_are_the_derivative_of_the_outputs():
    model = seeded(MODELS["dense"][0]).double().eval()
    objective = Objective(model, (normal(12, 4), labels()), precision="float64", batch_size=5)
    theta, direction = objective.theta, normal(objective.n, seed=2)
    parts, steps = objective.split(theta), objective.split(direction)
    outputs, tangents = objective.output_tangents(theta, direction)

    def at(t):
        values = {key: part + t * steps[key] for key, part in parts.items()}
        return torch.func.functional_call(model, values, (normal(12, 4),))

    torch.testing.assert_close(outputs, at(0))
    step = 1e-6  # central differences: an error of step^2 and of rounding / step
    torch.testing.assert_close(tangents, (at(step) - at(-step)) / (2 * step), rtol=1e-7, atol=1e-8)


def test_only_the_parameters_that_may_move_take_part():
    model = seeded(MODELS["dense"][0]).double().eval()
    data = normal(12, 4), labels()
    whole = Objective(model, data, precision="float64")
    part = Objective(model, data, precision="float64", parameters="3.*")
    direction = normal(part.n, seed=2)
    padded = torch.zeros(whole.n, dtype=torch.float64)
    for name, values in part.split(direction).items():
        whole.split(padded)[name].copy_(values)
    torch.testing.assert_close(
        part.directional_derivatives(part.theta, direction), whole.directional_derivatives(whole.theta, padded)
    )


def test_batch_statistics_are_differentiated_too():
    model = seeded(MODELS["dense"][0]).double()
    data = normal(12, 4), labels()
    objective = Objective(model, data, precision="float64", batch_norm="batch", batch_size=6)
    direction = normal(objective.n, seed=2)
    each = objective.directional_derivatives(objective.theta, direction)
    gradient = objective.loss_and_gradient(objective.theta)[1]
    torch.testing.assert_close(each.mean(), gradient @ direction, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("loss", "targets"),
    [
        ("mse", normal(12, 3, seed=4)),
        (nn.CrossEntropyLoss(), labels()),
        (lambda o, t: (o - t).pow(4).mean(), normal(12, 3)),
    ],
)
def test_other_losses(loss, targets):
    model = seeded(Tied).double()
    objective = Objective(model, (normal(12, 4), targets), precision="float64", loss=loss, batch_size=5)
    direction = normal(objective.n, seed=2)
    plain = F.mse_loss if loss == "mse" else loss
    torch.testing.assert_close(
        objective.directional_derivatives(objective.theta, direction),
        reference(model, (normal(12, 4), targets), direction, plain),
        rtol=1e-10,
        atol=1e-12,
    )


def test_a_loss_that_mixes_samples_is_refused():
    def mixing(output, target):
        return (output - output.mean(0, keepdim=True)).square().mean()

    objective = Objective(seeded(Tied), (normal(12, 4, dtype=torch.float32), labels()), loss=mixing, judge=False)
    with pytest.raises(
        ValueError, match="'mixing' must be a mean of one term a sample, but the term of a sample depends"
    ):
        objective.directional_derivatives(objective.theta, objective.theta)


def test_directions_that_do_not_fit():
    objective = Objective(seeded(Tied), (normal(12, 4, dtype=torch.float32), labels()))
    theta = objective.theta
    with pytest.raises(ValueError, match=r"direction must be \(\d+,\) torch.float32 on cpu, got \(3,\)"):
        objective.directional_derivatives(theta, theta[:3])
    with pytest.raises(ValueError, match=r"theta must be .* got .* torch.float64"):
        objective.output_tangents(theta.double(), theta)
    with pytest.raises(ValueError, match=r"vectors must be \(k, \d+\), got shape"):
        objective.curvatures(theta, theta)
    with pytest.raises(ValueError, match=r"vectors must be \(\d+,\) torch.float32 on cpu, got \(\d+,\) torch.float64"):
        objective.curvatures(theta, theta[None].double())


def test_a_model_without_a_second_derivative():
    class Once(Square):
        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, gradient):
            (inputs,) = ctx.saved_tensors
            return 2 * inputs * gradient

    objective = Objective(seeded(lambda: Custom(Once)), (normal(12, 4, dtype=torch.float32), labels()))
    with pytest.raises(ValueError, match="has no derivative along a direction, neither forward nor by a second"):
        objective.directional_derivatives(objective.theta, objective.theta)
    with pytest.raises(ValueError, match="the model or the loss cannot be differentiated twice"):
        objective.curvatures(objective.theta, objective.theta[None])


@pytest.mark.parametrize("name", ["tied", "lstm", "attention", "no forward rule"])
def test_curvatures_are_those_of_the_dense_hessian(name):
    build, shape = MODELS[name]
    model = seeded(build).double().eval()
    inputs, targets = normal(12, *shape), labels()
    objective = Objective(model, (inputs, targets), precision="float64", batch_size=5)
    theta = objective.theta
    vectors = normal(3, objective.n, seed=2)
    vectors[2] = 0
    objective.split(vectors[2])[objective.names[-1]].fill_(1.0)
    parameters = list(model.parameters())
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        value = F.cross_entropy(model(inputs), targets)
        slope = _flat(torch.autograd.grad(value, parameters, create_graph=True))
        hessian = torch.stack(
            [_flat(torch.autograd.grad(one, parameters, retain_graph=True, materialize_grads=True)) for one in slope]
        )
    expected = torch.einsum("ki,ij,kj->k", vectors, hessian, vectors)
    torch.testing.assert_close(objective.curvatures(theta, vectors), expected, rtol=1e-9, atol=1e-11)
    assert objective.curvatures(theta, vectors[:0]).shape == (0,)


class OnceOnly(torch.autograd.Function):
    """A square whose backward pass has no derivative of its own."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return 2 * ctx.saved_tensors[0] * g


def test_a_function_that_can_be_differentiated_once_is_refused_and_not_taken_for_linear():
    def loss(output, target):
        return OnceOnly.apply(output).mean()

    objective = Objective(nn.Linear(3, 2), (torch.randn(6, 3), torch.zeros(6, 2)), loss=loss)
    with pytest.raises(
        ValueError, match=r"the model or the loss cannot be differentiated twice: .*once_differentiable"
    ):
        objective.curvatures(objective.theta, torch.ones(1, objective.n))


def test_curvature_of_what_is_linear_is_zero():
    objective = Objective(
        nn.Linear(4, 1), (normal(5, 4, dtype=torch.float32), torch.zeros(5, 1)), loss=lambda o, _: o.mean()
    )
    assert objective.curvatures(objective.theta, objective.theta[None]).tolist() == [0.0]


def test_passes_are_counted():
    objective = Objective(seeded(Tied), (normal(12, 4, dtype=torch.float32), labels()))
    theta = objective.theta
    objective.directional_derivatives(theta, theta)
    objective.output_tangents(theta, theta)
    assert objective.evaluations == 2
    objective.curvatures(theta, torch.stack([theta, theta]))
    assert objective.evaluations == 5


class Frozen(nn.Module):
    """A first layer that ``torch.no_grad`` hides from the gradient, though its parameters may move."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 60), nn.Linear(60, 3)

    def forward(self, inputs):
        with torch.no_grad():
            hidden = self.first(inputs).relu()
        return self.last(hidden)


def test_derivatives_are_those_of_the_gradient_where_no_grad_hides_parameters():
    data = normal(50, 4, dtype=torch.float32), torch.arange(50) % 3
    objective = Objective(Frozen(), data, judge=False)
    gradient = objective.loss_and_gradient(objective.theta)[1].double()
    for seed in range(30):
        direction = normal(objective.n, seed=seed, dtype=torch.float32)
        found = objective.directional_derivatives(objective.theta, direction).mean()
        torch.testing.assert_close(found, gradient @ direction.double(), rtol=1e-4, atol=1e-5)


def test_vectors_made_in_inference_mode():
    objective = Objective(nn.Linear(4, 3), (normal(20, 4, dtype=torch.float32), torch.arange(20) % 3))
    with torch.inference_mode():
        vectors = normal(2, objective.n, dtype=torch.float32)
    found = objective.curvatures(objective.theta, vectors)
    assert torch.equal(found, objective.curvatures(objective.theta, vectors.clone()))
