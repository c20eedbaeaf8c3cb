"""One layer at a time: the same as with its parameters chosen by name, and never above the whole network."""

import copy
import itertools
import math

import pytest
import torch
from torch import nn

import lbgap
from lbgap.system import device as hardware

LAYERS = ["0", "1", "3", "4", "6"]


class Nested(nn.Module):
    """A parameter of its own, a block inside a block, and one matrix used twice."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.block = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Tanh(), nn.Linear(4, 4)))
        self.tied = nn.Linear(4, 4, bias=False)
        self.tied.weight = self.block[0].weight

    def forward(self, inputs):
        return self.tied(self.block(inputs * self.scale))


class Sum(nn.Module):
    """Two layers side by side: any convex loss of it is a convex function of its parameters."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)

    def forward(self, inputs):
        return self.first(inputs) + self.second(inputs.square())


def seeded(build):
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(0)
        return build()


def small_data(features=4, classes=4, samples=40):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(samples, features, generator=generator), torch.randint(classes, (samples,), generator=generator)


@pytest.mark.parametrize(
    "options",
    [{}, {"batch_norm": "batch", "batch_size": 500}, {"samples": 200, "seed": 4}, {"restarts": 3}, {"method": "apgd"}],
)
@pytest.mark.parametrize("regime", ["SB", "LB"])
def test_each_layer_is_what_its_parameters_alone_give(minimizers, mnist1d_train, regime, options):
    # In float64, so that no sign of a gradient, and no vertex, hangs on the order of a sum.
    model, options = minimizers[regime], {"precision": "float64", "epsilon": 2e-3, **options}
    found = lbgap.layer_sharpness(model, mnist1d_train, **options)
    assert list(found) == LAYERS
    own = {name: value for name, value in options.items() if name in ("batch_norm", "batch_size", "precision")}
    objective = lbgap.Objective(model, mnist1d_train, **own)
    for layer, result in found.items():
        alone = lbgap.fast_sharpness(model, mnist1d_train, parameters=layer, **options)
        assert result.max_loss == pytest.approx(alone.max_loss, rel=1e-12)  # a mean of 2,000 losses in float64
        assert result.base_loss == pytest.approx(alone.base_loss, rel=1e-12)
        assert result.value > 0
        assert result.settings["n"] == alone.settings["n"] == len(alone.point)
        assert float(objective.loss(result.point)) == result.max_loss
        parts = zip(objective.split(result.point).items(), objective.split(objective.theta).values(), strict=True)
        moved = {name for (name, now), before in parts if not torch.equal(now, before)}
        assert moved == set(result.settings["parameters"]) == {f"{layer}.weight", f"{layer}.bias"}


def test_scouts_climb_on_few_samples(minimizers, mnist1d_train):
    objective = lbgap.Objective(minimizers["LB"], mnist1d_train)
    found = lbgap.layer_sharpness(objective, restarts=4)
    # Sums of the same whole numbers of samples, each divided by 2,000.
    assert sum(result.evaluations for result in found.values()) == pytest.approx(objective.evaluations, rel=1e-12)
    for result in found.values():
        assert result.settings["scout"] == 128
        assert {climb["samples"] for climb in result.starts} == {128, 2000}
        assert float(objective.loss(result.point)) == result.max_loss
    few = lbgap.layer_sharpness(objective)
    assert all(found[layer].value >= few[layer].value for layer in LAYERS)


def test_a_part_of_the_samples(minimizers, mnist1d_train):
    objective = lbgap.Objective(minimizers["SB"], mnist1d_train)
    for result in lbgap.layer_sharpness(objective, samples=100).values():
        assert result.searched["samples"] == 100
        assert result.settings["samples"] == 2000
        assert float(objective.loss(result.point)) == result.max_loss
        assert "searched on 100 samples, where phi is" in str(result)


def test_no_layer_is_above_the_whole():
    model, data = seeded(Sum).double(), small_data(2, 2)
    objective = lbgap.Objective(model, data, precision="float64")
    epsilon = 0.3
    half_width = epsilon * (objective.theta.abs() + 1)
    corners = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=8)), dtype=torch.float64)
    whole = float(objective.losses(objective.theta + corners * half_width).max())  # a convex loss: at a corner
    full = lbgap.fast_sharpness(objective, epsilon=epsilon, restarts=10)
    found = lbgap.layer_sharpness(objective, epsilon=epsilon, restarts=10)
    for index, result in enumerate(found.values()):
        inside = torch.zeros(8, dtype=torch.float64)
        inside[4 * index : 4 * index + 4] = 1
        exact = float(objective.losses(objective.theta + corners * half_width * inside).max())
        assert result.max_loss == pytest.approx(exact, rel=1e-12)  # float64; the corners are rounded once
        assert result.max_loss < full.max_loss <= whole * (1 + 1e-12)


def test_tied_frozen_and_own_parameters():
    model, data = seeded(Nested), small_data()
    assert list(lbgap.layer_sharpness(model, data)) == ["", "block.0", "block.1.1"]  # the tied matrix once
    model.block[1][1].requires_grad_(False)
    found = lbgap.layer_sharpness(model, data)
    assert list(found) == ["", "block.0"]
    assert found[""].settings["parameters"] == ["scale"]
    alone = lbgap.fast_sharpness(model, data, parameters="scale")
    assert found[""].max_loss == pytest.approx(alone.max_loss, rel=1e-6)  # a few roundings of float32
    model.block[0].bias.requires_grad_(False)
    assert lbgap.layer_sharpness(model, data)["block.0"].settings["parameters"] == ["block.0.weight"]


def test_only_chosen_parameters_move(minimizers, mnist1d_train):
    found = lbgap.layer_sharpness(minimizers["LB"], mnist1d_train, parameters="weights")
    assert {layer: result.settings["parameters"] for layer, result in found.items()} == {
        layer: [f"{layer}.weight"] for layer in ("0", "3", "6")
    }


def test_mixed_precision_falls_back(minimizers, mnist1d_train, monkeypatch):
    monkeypatch.setattr(hardware, "bfloat16_products", lambda _: False)
    with pytest.warns(UserWarning, match="ran in float32"):
        mixed = lbgap.layer_sharpness(minimizers["LB"], mnist1d_train, precision="mixed")
    single = lbgap.layer_sharpness(minimizers["LB"], mnist1d_train)
    assert [result.value for result in mixed.values()] == [result.value for result in single.values()]
    assert all("ran in float32" in result.settings["notes"][0] for result in mixed.values())


@pytest.mark.skipif(not hardware.bfloat16_products("cpu"), reason="no bfloat16 matrix products on this processor")
def test_mixed_precision_reports_float32(minimizers, mnist1d_train):
    objective = lbgap.Objective(minimizers["LB"], mnist1d_train)
    mixed = lbgap.layer_sharpness(minimizers["LB"], mnist1d_train, precision="mixed")
    assert all(float(objective.loss(result.point)) == result.max_loss for result in mixed.values())


def test_the_model_stays_as_it_is(minimizers, mnist1d_train):
    model = copy.deepcopy(minimizers["SB"]).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    objective = lbgap.Objective(model, mnist1d_train)
    full = lbgap.fast_sharpness(objective)
    lbgap.layer_sharpness(objective, restarts=2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(module.training for module in model.modules())
    # Nor does the objective remember its layers.
    assert {**lbgap.fast_sharpness(objective).to_dict(), "seconds": 0} == {**full.to_dict(), "seconds": 0}


# A layer as an objective.


def restricted():
    objective = lbgap.Objective(seeded(Nested), small_data())
    return {"layer": objective.some(["block.0.weight", "block.0.bias"]), "manifold": objective.manifold(3)}


@pytest.mark.parametrize("name", ["layer", "manifold"])
def test_derivatives_along_directions_are_refused(name):
    part = restricted()[name]
    theta = part.theta
    message = "^derivatives along directions are those of the full space: pass the objective of all of it$"
    for call in (
        lambda: part.output_tangents(theta, theta),
        lambda: part.directional_derivatives(theta, theta),
        lambda: part.curvatures(theta, theta[None]),
        lambda: lbgap.fisher_rao_norm(part),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("name", ["layer", "manifold"])
def test_parts_by_name_are_those_of_the_full_space(name):
    part = restricted()[name]
    message = "^only vectors of the full space have a part for each parameter: pass the objective of it$"
    for call in (
        lambda: part.split(part.theta),
        lambda: lbgap.relative_flatness(part),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("name", ["layer", "manifold"])
def test_a_part_of_a_part_is_refused(name):
    part = restricted()[name]
    message = "^this objective is on a part of the space already: pass the one that it was made of$"
    for call in (
        lambda: part.some(part.names[:1]),
        lambda: part.manifold(2),
        lambda: lbgap.layer_sharpness(part),
        lambda: lbgap.fast_sharpness(part, subspace=2),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_parameters_that_are_none():
    objective = lbgap.Objective(seeded(Nested), small_data())
    for names, got in (([], r"\[\]"), (["block.0.weight", "block.9"], r"\['block.9'\]")):
        with pytest.raises(ValueError, match=rf"^names must be one or more of scale, .*, got {got}$"):
            objective.some(names)


def test_the_gradient_of_a_layer_is_its_part_of_the_whole():
    objective = lbgap.Objective(seeded(Nested), small_data(), precision="float64")
    layer = objective.some(["scale", "block.1.1.weight"])
    value, gradient = layer.loss_and_gradient(layer.theta)
    whole, full = objective.loss_and_gradient(objective.theta)
    parts = objective.split(full)
    assert value == whole
    assert torch.equal(gradient, torch.cat([parts["scale"], parts["block.1.1.weight"].reshape(-1)]))
    assert torch.equal(layer.point(layer.theta), objective.theta)
    out = torch.empty_like(gradient)
    assert layer.loss_and_gradient(layer.theta, out=out)[1] is out
    assert torch.equal(out, gradient)


def test_a_gradient_that_is_not_finite_is_that_of_a_parameter():
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.before, self.root = nn.Linear(1, 1), nn.Linear(1, 1)

        def forward(self, inputs):
            return self.before(inputs) + self.root(inputs).sqrt()

    model = Root()
    nn.init.zeros_(model.root.weight)
    nn.init.zeros_(model.root.bias)  # a square root at zero: its value is, its slope is not finite
    data = torch.ones(3, 1), torch.zeros(3, 1)
    layer = lbgap.Objective(model, data, loss="mse").some(["root.weight", "root.bias"])
    with pytest.raises(FloatingPointError, match=r"its gradient with respect to 'root\.weight' is NaN or infinite"):
        layer.loss_and_gradient(layer.theta)


@pytest.mark.parametrize("name", ["start", "subspace", "trials", "epsilons"])
def test_keywords_of_a_single_search(name):
    message = rf"^layer_sharpness\(\) got an unexpected keyword argument '{name}': beside its own it takes loss, "
    with pytest.raises(TypeError, match=message):
        lbgap.layer_sharpness(seeded(Nested), small_data(), **{name: 2})


@pytest.mark.parametrize(
    ("epsilon", "message"), [(0, "above zero"), (math.nan, "got nan"), (-1e-3, "got -0.001: try 1e-3 or 5e-4")]
)
def test_an_epsilon_that_is_none(epsilon, message):
    with pytest.raises(ValueError, match=message):
        lbgap.layer_sharpness(seeded(Nested), small_data(), epsilon=epsilon)
