"""An objective on batches as people have them, against float64 autograd: values, gradients, products, a line."""

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

import lbgap
from tests.objective.batches import (
    CASES,
    CLASSES,
    IDS,
    LABELS,
    MASK,
    RAW,
    SAMPLES,
    Two,
    X,
    Z,
    draw,
    everywhere,
    near,
    refused,
    seeded,
    some,
)

pytestmark = pytest.mark.usefixtures("one_thread")

# Values and derivatives.


@everywhere
def test_values_and_gradients(case):
    build, value = case
    # In float64 nothing but its rounding is left; in float32 each of 41 terms is rounded some ten times.
    for precision, close in (("float64", 1e-12), ("float32", 1e-5)):
        objective = build(precision=precision)
        assert objective.judged["additive"] in ("yes", "not judged: batches that cannot be cut")
        for theta in (objective.theta, *near(objective.theta, 1)):
            at = theta.double().requires_grad_()
            exact = value(at)
            slope = torch.autograd.grad(exact, at)[0]
            found, gradient = objective.loss_and_gradient(theta)
            assert float(found) == pytest.approx(float(exact.detach()), rel=close)
            assert torch.allclose(gradient.double(), slope, rtol=close, atol=close)
            assert float(objective.loss(theta)) == float(found)
    assert objective.samples == SAMPLES


@everywhere
def test_products_with_the_hessian(case):
    build, value = case
    objective = build(precision="float64")
    theta = near(objective.theta, 1)[0]
    hessian = torch.autograd.functional.hessian(value, theta)
    vectors = torch.randn(3, objective.n, dtype=torch.float64, generator=draw(9))
    assert torch.allclose(objective.hvp(theta, vectors), vectors @ hessian, rtol=1e-9, atol=1e-11)


@everywhere
def test_losses_of_many_points(case):
    build, value = case
    objective = build(precision="float64")
    points = near(objective.theta, 5)
    exact = torch.stack([value(point) for point in points])
    assert torch.allclose(objective.losses(points), exact, rtol=1e-12)
    coefficients = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.25, 0.75], [-1.0, 2.0]], dtype=torch.float64)
    found, accuracies = objective.combination_losses(coefficients, points[:2])
    exact = torch.stack([value(point) for point in coefficients @ points[:2]])
    assert torch.allclose(found, exact, rtol=1e-12)
    assert accuracies is None


@everywhere
def test_the_sharpness_is_reached_at_a_point(case):
    build, value = case
    objective = build()
    found = lbgap.fast_sharpness(objective, epsilon=0.1, restarts=1)
    point = found.point.double()
    base, highest = float(value(objective.theta.double())), float(value(point))
    assert found.base_loss == pytest.approx(base, rel=1e-5)
    assert found.max_loss == pytest.approx(highest, rel=1e-5)
    assert found.value == pytest.approx(100 * (highest - base) / (1 + base), rel=1e-3)
    assert found.max_loss > found.base_loss
    half = 0.1 * (objective.theta.abs() + 1)
    assert bool(((found.point - objective.theta).abs() <= half * (1 + 1e-5)).all())


@everywhere
def test_a_line_between_two_models(case):
    """Its ends are those models, and so is what lies between."""
    build, value = case
    objective = build(precision="float64")
    other = seeded(CASES[build.name][0], 1)
    ends = [objective.theta, torch.cat([part.detach().flatten() for part in other.parameters()]).double()]
    found = lbgap.line(objective, other, points=4, low=0.0, high=1.0)
    assert found.alphas == pytest.approx([0, 1 / 3, 2 / 3, 1])
    exact = [float(value(torch.lerp(*ends, alpha))) for alpha in found.alphas]
    assert found.train_loss == pytest.approx(exact, rel=1e-10)


# The Gauss-Newton and the Fisher matrix, where there is one tensor.


@some("a dict", "padded", "a padded stream", "two inputs")
def test_products_with_the_gauss_newton_matrix(case):
    build, _ = case
    objective = build(precision="float64")
    model = CASES[build.name][0]
    plain = seeded(model).double()
    parts = dict(plain.named_parameters())
    inputs = (X.double(), Z.double()) if model is Two else (IDS, MASK.double())

    def outputs(*values):
        return functional_call(plain, dict(zip(parts, values, strict=True)), inputs)

    jacobian = torch.autograd.functional.jacobian(outputs, tuple(parts.values()))
    jacobian = torch.cat([part.flatten(2) for part in jacobian], 2)  # (samples, classes, n)
    shares = outputs(*parts.values()).softmax(1).detach()
    inner = torch.diag_embed(shares) - shares[:, :, None] * shares[:, None, :]
    ggn = torch.einsum("sci,scd,sdj->ij", jacobian, inner, jacobian) / SAMPLES
    slopes = torch.einsum("sci,sc->si", jacobian, shares - F.one_hot(LABELS, CLASSES))
    vectors = torch.randn(2, objective.n, dtype=torch.float64, generator=draw(5))
    for kind, matrix in (("ggn", ggn), ("fisher", slopes.T @ slopes / SAMPLES)):
        found = objective.hvp(objective.theta, vectors, kind=kind)
        assert torch.allclose(found, vectors @ matrix, rtol=1e-9, atol=1e-11)
    norm = lbgap.fisher_rao_norm(objective).value
    assert norm == pytest.approx(float((slopes @ objective.theta).square().mean()), rel=1e-9)


@some(*RAW)
def test_what_needs_one_tensor(case):
    objective = case[0]()
    vectors = torch.randn(2, objective.n)
    for kind in ("ggn", "fisher"):
        message = (
            rf"kind='{kind}' needs a model that returns one tensor: pass a loss by name, or call=lambda model, batch"
        )
        refused(ValueError, message, objective.hvp, objective.theta, vectors, kind=kind)
    message = "a derivative of the outputs along a direction needs a model that returns one tensor"
    refused(ValueError, message, lbgap.fisher_rao_norm, objective)
    refused(ValueError, "accuracy needs class indices", objective.loss_and_accuracy, objective.theta)
    assert objective.classes is None
