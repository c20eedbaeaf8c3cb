"""Fisher-Rao norm and relative flatness, against dense matrices in float64 and closed forms."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lbgap


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels(samples=20, classes=3):
    return torch.randint(0, classes, (samples,), generator=torch.Generator().manual_seed(1))


def network(*widths, bias=True):
    layers = []
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(0)
        for inside, outside in itertools.pairwise(widths):
            layers += [nn.Linear(inside, outside, bias=bias, dtype=torch.float64), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def data():
    return normal(20, 4), labels()


def along_itself(model, value):
    """``<x, grad value>``."""
    gradient = torch.autograd.grad(value, list(model.parameters()), retain_graph=True)
    return sum((part * parameter.detach()).sum() for part, parameter in zip(gradient, model.parameters(), strict=True))


def test_fisher_rao_of_the_data():
    model, (inputs, targets) = network(4, 6, 5, 3), data()
    each = [along_itself(model, F.cross_entropy(model(x[None]), y[None])) for x, y in zip(inputs, targets, strict=True)]
    m = lbgap.fisher_rao_norm(model, (inputs, targets), precision="float64", batch_size=7)
    assert m.value == pytest.approx(float(torch.stack(each).square().mean()), rel=1e-12)
    assert m.details["norm"] == pytest.approx(math.sqrt(m.value))
    assert m.details["radial_slope"] == pytest.approx(float(torch.stack(each).mean()), rel=1e-10)
    assert math.isnan(m.standard_error)
    assert m.evaluations == 2


def test_fisher_rao_of_the_models_own_labels():
    model, (inputs, targets) = network(4, 6, 5, 3), data()
    expected = 0.0
    for x in inputs:
        log_p = model(x[None]).log_softmax(1)[0]
        expected += sum(float(p.detach().exp() * along_itself(model, -p) ** 2) for p in log_p) / len(inputs)
    m = lbgap.fisher_rao_norm(model, (inputs, targets), labels="model", precision="float64", batch_size=7)
    assert m.value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("hidden", [(), (6,), (6, 5), (6, 5, 4)])
@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_fisher_rao_of_networks_without_biases(hidden, loss):
    model = network(4, *hidden, 3, bias=False)
    inputs, targets = data()
    if loss == "mse":
        targets = normal(20, 3, seed=3)
    output = model(inputs).detach().requires_grad_()
    total = (
        F.cross_entropy(output, targets, reduction="sum")
        if loss == "cross_entropy"
        else (output - targets).square().mean(1).sum()
    )
    (slope,) = torch.autograd.grad(total, output)
    expected = (len(hidden) + 1) ** 2 * float((slope * output.detach()).sum(1).square().mean())
    m = lbgap.fisher_rao_norm(model, (inputs, targets), loss=loss, precision="float64")
    assert m.value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("loss", "targets"), [("mse", normal(20, 3)), (lambda o, t: F.cross_entropy(o, t), labels())])
def test_labels_of_the_model_need_cross_entropy(loss, targets):
    with pytest.raises(ValueError, match=r"labels='model' needs cross_entropy with class indices.*use labels='data'"):
        lbgap.fisher_rao_norm(network(4, 3), (normal(20, 4), targets), labels="model", loss=loss)
    with pytest.raises(ValueError, match=r"needs cross_entropy .* without classes"):
        lbgap.fisher_rao_norm(network(4, 3), (normal(20, 4), normal(20, 3).softmax(1)), labels="model")


# Relative flatness.


def dense(model, inputs, targets, name):
    """kappa from the dense Hessian of one layer."""
    weight = dict(model.named_parameters())[name].detach()

    def loss(values):
        return F.cross_entropy(torch.func.functional_call(model, {name: values}, (inputs,)), targets)

    hessian = torch.func.hessian(loss)(weight)  # (out, in, out, in)
    return float(torch.einsum("sjtj,st->", hessian, weight @ weight.T).detach())


@pytest.mark.parametrize("layer", ["0", "2.weight", "4", None])
def test_relative_flatness_of_the_dense_hessian(layer):
    model, samples = network(4, 6, 5, 3), data()
    name = "4.weight" if layer is None else f"{layer.removesuffix('.weight')}.weight"
    expected = dense(model, *samples, name)
    exact = lbgap.relative_flatness(model, samples, layer=layer, exact=True, precision="float64", batch_size=7)
    assert exact.value == pytest.approx(expected, rel=1e-10)
    assert exact.settings["layer"] == name
    assert math.isnan(exact.standard_error)
    estimate = lbgap.relative_flatness(model, samples, layer=layer, exact=False, draws=300, precision="float64")
    assert abs(estimate.value - expected) < 4 * estimate.standard_error
    assert 0 < estimate.standard_error < abs(expected)


def test_relative_flatness_of_the_last_layer_under_cross_entropy():
    model, (inputs, targets) = network(4, 6, 3), data()
    features, weight = model[1](model[0](inputs)).detach(), model[2].weight.detach()
    p = model(inputs).softmax(1).detach()
    blocks = (torch.diag_embed(p) - p[:, :, None] * p[:, None, :]) * features.square().sum(1)[:, None, None]
    expected = float((blocks.mean(0) * (weight @ weight.T)).sum())
    m = lbgap.relative_flatness(model, (inputs, targets), exact=True, precision="float64")
    assert m.value == pytest.approx(expected, rel=1e-12)


def test_exact_where_that_is_cheaper():
    model, samples = network(4, 6, 3), data()
    assert lbgap.relative_flatness(model, samples, draws=18).settings["exact"] is True  # rank 3, 6 inputs
    few = lbgap.relative_flatness(model, samples, draws=17)
    assert few.settings["exact"] is False
    assert few.details == {"outputs": 3, "inputs": 6, "rank": 3}
    assert few.status == "estimated from 17 draws; 18 products would be exact (exact=True)"
    assert few.evaluations == 1 + 17 + 2  # the loss, 17 products, and a gradient for every 16 of them


def test_a_weight_of_zeros_has_rank_zero():
    model = network(4, 6, 3)
    nn.init.zeros_(model[2].weight)
    m = lbgap.relative_flatness(model, data())
    assert (m.value, m.details["rank"]) == (0.0, 0)


def test_layers_that_are_none():
    model = network(4, 6, 3)
    with pytest.raises(ValueError, match=r"layer must be one of '0.weight', '2.weight', got '1'"):
        lbgap.relative_flatness(model, data(), layer="1")
    with pytest.raises(ValueError, match=r"needs a weight with two dimensions .* which are 0.bias, 2.bias"):
        lbgap.relative_flatness(model, data(), parameters="*.bias")
