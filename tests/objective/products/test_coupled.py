"""Products of a loss whose samples see each other: those of the mean over fixed batches, dense and in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from lbgap import Objective, eigenvalues
from lbgap.flat import FlatModule
from lbgap.objective.products import general
from lbgap.problem.batch import Batch
from lbgap.problem.loss import resolve_loss

pytestmark = pytest.mark.usefixtures("one_thread")
SAMPLES = 22  # in batches of 8, 8 and 6, or of 22


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seeded(build):
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(0)
        return build().double()


class Pairs(nn.Module):
    """Two views of each sample, encoded to unit vectors."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))

    def forward(self, x):
        return F.normalize(self.layers(x), dim=-1)


def infonce(output, _):
    return F.cross_entropy(output[:, 0] @ output[:, 1].T / 0.2, torch.arange(len(output)))


def barlow(output, _):
    one, other = (view - view.mean(0) for view in output.unbind(1))
    return (one.T @ other / len(one) - torch.eye(3, dtype=output.dtype)).square().mean()


def centred(output, target):
    return F.cross_entropy(output - output.mean(0), target)


VIEWS = normal(SAMPLES, 2, 4), torch.zeros(SAMPLES, dtype=torch.float64)
CLASSES = normal(SAMPLES, 4), torch.randint(0, 3, (SAMPLES,), generator=torch.Generator().manual_seed(1))
NORMED = lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))  # noqa: E731
CASES = {
    "statistics of the batch": (NORMED, CLASSES, F.cross_entropy, {"batch_norm": "batch"}),
    "a loss over pairs": (Pairs, VIEWS, barlow, {"loss": barlow, "coupled": True}),
    "centred outputs": (lambda: nn.Linear(4, 3), CLASSES, centred, {"loss": centred, "coupled": True}),
    "said to be coupled": (lambda: nn.Linear(4, 3), CLASSES, F.cross_entropy, {"coupled": True}),
}


def dense(model, data, loss, size, kind):
    """The matrix of the mean over fixed batches, each weighted by its samples."""
    model = model.train()  # batch-norm with the statistics of the batch
    named = {name: parameter.detach() for name, parameter in model.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    theta = torch.cat([value.flatten() for value in named.values()])

    def outputs(theta, inputs):
        parts = theta.split([value.numel() for value in named.values()])
        pairs = zip(named.items(), parts, strict=True)
        parameters = {name: part.view_as(value) for (name, value), part in pairs}
        return functional_call(model, {**parameters, **{k: v.clone() for k, v in buffers.items()}}, (inputs,))

    total = torch.zeros(len(theta), len(theta), dtype=torch.float64)
    for inputs, targets in zip(data[0].split(size), data[1].split(size), strict=True):
        if kind == "hessian":
            found = torch.autograd.functional.hessian(lambda at, x=inputs, y=targets: loss(outputs(at, x), y), theta)
        else:  # J' H J with the Hessian of the batch's loss in all outputs at once
            output = outputs(theta, inputs)
            jacobian = torch.autograd.functional.jacobian(lambda at, x=inputs: outputs(at, x), theta)
            jacobian = jacobian.reshape(output.numel(), -1)
            curvature = torch.autograd.functional.hessian(lambda out, y=targets: loss(out, y), output)
            found = jacobian.T @ curvature.reshape(output.numel(), -1) @ jacobian
        total += found * len(inputs) / len(data[0])
    return total


@pytest.mark.parametrize("size", [8, SAMPLES])
@pytest.mark.parametrize("kind", ["hessian", "ggn"])
@pytest.mark.parametrize("name", CASES)
def test_products_are_those_of_the_mean_over_the_batches(name, kind, size):
    build, data, loss, options = CASES[name]
    objective = Objective(seeded(build), data, precision="float64", batch_size=size, **options)
    expected = dense(seeded(build), data, loss, size, kind)
    assert objective.coupled
    matrix = objective.hvp(objective.theta, torch.eye(objective.n, dtype=torch.float64), kind=kind)
    torch.testing.assert_close(matrix, expected, rtol=1e-9, atol=1e-12)
    assert objective.hvp_way == "general: the samples of a batch see each other"
    if kind == "hessian":
        vectors = normal(3, objective.n, seed=5)
        curved = objective.curvatures(objective.theta, vectors)
        torch.testing.assert_close(curved, ((vectors @ expected) * vectors).sum(1), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["statistics of the batch", "a loss over pairs"])
def test_eigenvalues_are_those_of_the_dense_matrix(name):
    build, data, loss, options = CASES[name]
    objective = Objective(seeded(build), data, precision="float64", batch_size=8, **options)
    expected = torch.linalg.eigvalsh(dense(seeded(build), data, loss, 8, "hessian")).flip(0)[:2]
    found = torch.tensor(eigenvalues(objective, k=2, tolerance=1e-8).values, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=0)


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
@pytest.mark.parametrize("loss", [infonce, barlow])
def test_a_batch_has_one_matrix_of_all_its_outputs(loss, kind):
    flat = FlatModule(seeded(Pairs), dtype=torch.float64)
    named = resolve_loss(loss)
    expected = torch.zeros(len(flat.theta), len(flat.theta), dtype=torch.float64)
    for inputs, targets in zip(*(part.split(8) for part in VIEWS), strict=True):
        general.add_products(flat, named, Batch(inputs, targets), torch.eye(len(flat.theta)).double(), expected, kind)
    found = dense(seeded(Pairs), VIEWS, loss, 8, kind)
    torch.testing.assert_close(expected / SAMPLES, found, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_fisher_needs_samples_that_do_not_see_each_other(name):
    build, data, _, options = CASES[name]
    objective = Objective(seeded(build), data, precision="float64", batch_size=8, **options)
    with pytest.raises(ValueError, match="kind='fisher' needs the gradient of each sample, which with coupled=True"):
        objective.hvp(objective.theta, normal(1, objective.n), kind="fisher")


def test_derivatives_of_each_sample_are_those_in_its_fixed_batch():
    build, data, _, options = CASES["statistics of the batch"]
    objective = Objective(seeded(build), data, precision="float64", batch_size=8, **options)
    direction = normal(objective.n, seed=3)
    each = objective.directional_derivatives(objective.theta, direction)
    step = 1e-6 * direction
    up, down = (objective.loss(objective.theta + sign * step) for sign in (1, -1))
    _, gradient = objective.loss_and_gradient(objective.theta)
    torch.testing.assert_close(each.mean(), gradient @ direction, rtol=1e-12, atol=0)
    torch.testing.assert_close((up - down) / 2e-6, each.mean(), rtol=1e-6, atol=0)


def test_a_loss_over_pairs_has_no_derivative_of_each_sample():
    build, data, _, options = CASES["a loss over pairs"]
    objective = Objective(seeded(build), data, precision="float64", batch_size=8, **options)
    with pytest.raises(ValueError, match="must be a mean of one term a sample"):
        objective.directional_derivatives(objective.theta, normal(objective.n))
