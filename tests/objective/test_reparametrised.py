"""Pruned layers, and weight and spectral norms of both kinds: against dense computations with the user's module."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune

import lbgap
from lbgap import Objective

STEP = 1e-5  # of differences in float64: the square of it, and 1e-16 by it, are below 1e-9
OLD = ("ignore:`torch.nn.utils.weight_norm:FutureWarning", "ignore:.*spectral_norm.*deprecated:FutureWarning")
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings(*OLD)]


def make_model():
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def make_data():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(40, 6, generator=generator), torch.randint(3, (40,), generator=generator)


def both(model):
    nn.utils.weight_norm(model[0])
    prune.l1_unstructured(model[2], "weight", 0.5)


CHANGES = {
    "pruned": (lambda m: prune.l1_unstructured(m[0], "weight", 0.5), "0.weight_orig"),
    "pruned by rows": (lambda m: prune.random_structured(m[2], "weight", 0.5, dim=0), "2.weight_orig"),
    "pruned everywhere": (
        lambda m: prune.global_unstructured([(m[0], "weight"), (m[2], "bias")], prune.L1Unstructured, amount=0.4),
        "2.bias_orig",
    ),
    "pruned for good": (
        lambda m: (prune.l1_unstructured(m[0], "weight", 0.5), prune.remove(m[0], "weight")),
        "0.weight",
    ),
    "old weight norm": (lambda m: nn.utils.weight_norm(m[0]), "0.weight_g"),
    "weight norm": (lambda m: parametrizations.weight_norm(m[0]), "0.parametrizations.weight.original0"),
    "old spectral norm": (lambda m: nn.utils.spectral_norm(m[2]), "2.weight_orig"),
    "spectral norm": (lambda m: parametrizations.spectral_norm(m[2]), "2.parametrizations.weight.original"),
    "weight norm and pruned": (both, "2.weight_orig"),
}


@pytest.mark.parametrize("ran", [False, True], ids=["fresh", "ran"])
@pytest.mark.parametrize(("change", "name"), CHANGES.values(), ids=CHANGES)
def test_value_gradient_and_products(change, name, ran):
    """At a point off the minimizer, where masks and singular vectors are what they are in the module."""
    model, (inputs, targets) = make_model(), make_data()
    change(model)
    if ran:
        model(inputs).sum().backward()
    objective = Objective(model, (inputs, targets), precision="float64")
    assert name in objective.names
    drawn = torch.Generator().manual_seed(1)
    theta = objective.theta + 0.1 * torch.randn(objective.n, generator=drawn, dtype=torch.float64)
    vectors = torch.randn(2, objective.n, generator=drawn, dtype=torch.float64)

    dense = make_model()
    change(dense)
    dense.load_state_dict(model.state_dict())
    dense = dense.double().eval()
    moving = dict(dense.named_parameters())
    assert tuple(moving) == objective.names

    def at(point):
        """Loss and gradient, by the module itself."""
        with torch.no_grad():
            for own, value in zip(moving.values(), objective.split(point).values(), strict=True):
                own.copy_(value)
        loss = F.cross_entropy(dense(inputs.double()), targets)
        return loss.detach(), torch.cat([part.reshape(-1) for part in torch.autograd.grad(loss, moving.values())])

    for found, expected in zip(objective.loss_and_gradient(theta), at(theta), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    for vector, product in zip(vectors, objective.hvp(theta, vectors), strict=True):
        # The fused kernel of weight normalisation has wrong second derivatives: differences of the gradient have not.
        ahead, behind = at(theta + STEP * vector)[1], at(theta - STEP * vector)[1]
        torch.testing.assert_close(product, (ahead - behind) / (2 * STEP), rtol=1e-7, atol=1e-8)


def test_pruned_weights_count_for_nothing():
    """phi of the loss with the mask: what moves at its zeros changes no output, and has no gradient."""
    model = make_model()
    prune.l1_unstructured(model[0], "weight", 0.5)
    objective = Objective(model, make_data())
    _, gradient = objective.loss_and_gradient(objective.theta)
    assert not objective.split(gradient)["0.weight_orig"][model[0].weight_mask == 0].any()
    assert lbgap.fast_sharpness(model, make_data()).value > 0
    kept = copy.deepcopy(dict(model.named_buffers()))
    assert torch.equal(model[0].weight_mask, kept["0.weight_mask"])


def test_a_lazy_layer_that_has_seen_data():
    model = nn.Sequential(nn.LazyLinear(8), nn.Tanh(), nn.LazyLinear(3))
    with pytest.raises(ValueError, match=r"'0.weight' has no shape yet: run one batch through the model first"):
        Objective(model, make_data())
    model(make_data()[0])
    objective = Objective(model, make_data())
    with torch.no_grad():
        expected = F.cross_entropy(model(make_data()[0]), make_data()[1])
    assert float(objective.loss(objective.theta)) == pytest.approx(float(expected), rel=1e-6)
