"""Moving the parameters moves the function: what caches them in evaluation mode is mended, or refused."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lbgap import Objective, eigenvalues, fast_sharpness, train

pytestmark = pytest.mark.usefixtures("one_thread")


def make_data(samples=50):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(samples, 8, generator=generator), torch.randint(0, 4, (samples,), generator=generator)


class Cached(nn.Module):
    """Keeps something made of its weight in evaluation mode, and clears it in a pass in training mode."""

    def __init__(self, detach):
        super().__init__()
        self.w, self.out, self.cache, self.detach = nn.Parameter(torch.randn(16, 8)), nn.Linear(16, 4), None, detach

    def make(self):
        weight = torch.tanh(self.w)
        return weight.detach() if self.detach else weight

    def weight(self):
        if self.training:
            self.cache = None
            return torch.tanh(self.w)
        if self.cache is None:
            self.cache = self.make()
        return self.cache

    def forward(self, inputs):
        return self.out(torch.relu(inputs @ self.weight().T))


class InDict(Cached):
    def weight(self):
        if self.training:
            self.cache = None
            return torch.tanh(self.w)
        self.cache = self.cache or {}
        if "w" not in self.cache:
            self.cache["w"] = self.make()
        return self.cache["w"]


class InBuffer(Cached):
    def __init__(self, detach):
        super().__init__(detach)
        self.register_buffer("kept", None, persistent=False)

    def weight(self):
        if self.training:
            self.kept = None
            return torch.tanh(self.w)
        if self.kept is None:
            self.kept = torch.tanh(self.w).detach()
        return self.kept


class ClearedByTrain(Cached):
    def train(self, mode=True):
        self.cache = None
        super().train(mode)  # and returns nothing

    def weight(self):
        return torch.tanh(self.w) if self.training else super().weight()


class KeptByTraining(Cached):
    def weight(self):
        if self.training or self.cache is None:
            self.cache = torch.tanh(self.w)
        return self.cache


class ByInstance(Cached):
    @functools.lru_cache  # noqa: B019 - what users write
    def made(self):
        return torch.tanh(self.w).detach()

    def weight(self):
        return torch.tanh(self.w) if self.training else self.made()


class TiedCache(Cached):
    """Uses its weight once as it is and once as it was: every parameter has a gradient path."""

    def forward(self, inputs):
        return self.out(torch.relu(inputs @ self.weight().T) + torch.relu(inputs @ torch.tanh(self.w).T))


class Fused(Cached):
    """Makes another parameter in evaluation mode."""

    def train(self, mode=True):
        super().train(mode)
        self.fused = None if mode else nn.Parameter(torch.tanh(self.w).detach())
        return self

    def weight(self):
        return torch.tanh(self.w) if self.training else self.fused


class Always(Cached):
    def weight(self):
        if self.cache is None:
            self.cache = self.make()
        return self.cache


class Dropping(Cached):
    def forward(self, inputs):
        return self.out(F.dropout(torch.relu(inputs @ self.weight().T), 0.5, self.training))


def evaluated(model, *, gradients):
    model.eval()
    with torch.set_grad_enabled(gradients):
        model(make_data()[0][:3])
    return model


def value(parameters, kind=Cached):
    inputs, targets = make_data()
    hidden = torch.relu(inputs.double() @ torch.tanh(parameters["w"]).T)
    if kind is TiedCache:
        hidden = 2 * hidden
    return F.cross_entropy(F.linear(hidden, parameters["out.weight"], parameters["out.bias"]), targets)


@pytest.mark.parametrize("before", ["never evaluated", "with gradients", "without"])
@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("kind", [Cached, InDict, InBuffer, ClearedByTrain, KeptByTraining, ByInstance, TiedCache])
def test_caches_follow(kind, detach, before):
    model = kind(detach)
    if before != "never evaluated":
        evaluated(model, gradients=before == "with gradients")
    check(model, kind)


def test_parameters_that_evaluation_mode_makes():
    check(Fused(True), Fused)


def check(model, kind):
    objective = Objective(model, make_data(), precision="float64")
    theta = objective.theta
    for step in (0.0, 0.1, -0.3):
        parts = {name: part.requires_grad_() for name, part in objective.split(theta + step).items()}
        expected = value(parts, kind)
        loss, gradient = objective.loss_and_gradient(theta + step)
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=0)
        torch.testing.assert_close(objective.loss(theta + step), expected.detach(), rtol=1e-12, atol=0)
        wanted = torch.cat([part.flatten() for part in torch.autograd.grad(expected, [*parts.values()])])
        torch.testing.assert_close(gradient, wanted, rtol=1e-10, atol=1e-12)
    assert objective.notes == [
        "kept in training mode, alone, with the same outputs: 'the model', for in evaluation mode outputs or "
        "gradients do not follow their parameters (a cache, merged weights)"
    ]
    assert "yes, with 'the model' in training mode" in objective.judged.values()


@pytest.mark.parametrize("detach", [True, False])
def test_only_what_caches_stays_in_training_mode(detach):
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(), Cached(detach), nn.Dropout())
    model[1].running_mean.normal_()
    expected = F.cross_entropy(model.eval()[3:](model[:3](make_data()[0])), make_data()[1])
    objective = Objective(model.train(), make_data())
    replica = objective.model()
    training = [name for name, module in replica.named_modules() if module.training]
    assert training == ["3"]
    assert [name for name, module in replica.eval().named_modules() if module.training] == ["3"]
    torch.testing.assert_close(objective.loss(objective.theta).float(), expected.detach())
    assert all(module.training for module in model.modules())


def test_every_measure_of_a_mended_model_is_about_the_function():
    model = Cached(True)
    plain = nn.Sequential(nn.Linear(8, 16, bias=False), nn.ReLU(), nn.Linear(16, 4))
    torch.nn.utils.parametrize.register_parametrization(plain[0], "weight", Tanh())
    with torch.no_grad():
        plain[0].parametrizations.weight.original.copy_(model.w)
        plain[2].load_state_dict(model.out.state_dict())
    data = make_data()
    found, expected = (fast_sharpness(one, data, epsilon=1e-2).value for one in (model, plain))
    assert found == pytest.approx(expected, rel=1e-5)
    found, expected = (eigenvalues(one, data, k=1, precision="float64").values[0] for one in (model, plain))
    assert float(found) == pytest.approx(float(expected), rel=1e-8)
    objective = Objective(model, data, precision="float64")
    points = objective.theta + 0.1 * torch.randn(3, objective.n, dtype=torch.float64)
    torch.testing.assert_close(
        objective.losses(points), torch.stack([objective.loss(point) for point in points]), rtol=1e-12, atol=0
    )


class Tanh(nn.Module):
    def forward(self, weight):
        return torch.tanh(weight)


@pytest.mark.parametrize("judge", [True, False])
def test_nothing_is_mended_unasked(judge):
    objective = Objective(Cached(True), make_data(), judge=judge)
    moved = objective.theta
    moved[:128] += 1
    same = objective.loss(moved) == objective.loss(objective.theta)
    assert bool(same) is not judge


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Always(True), "moving 'w' changes the outputs, but no gradient reaches that"),
        (lambda: Always(False), "in evaluation mode the model computes with something made of its parameters before"),
        (
            lambda: evaluated(Always(False), gradients=True),
            "in evaluation mode the model computes with 'cache' made of",
        ),
        (lambda: Dropping(True), "gradients reach 'w' in training mode and not in evaluation mode"),
        (lambda: Dropping(False), "in evaluation mode the model computes with something made of its parameters before"),
    ],
)
def test_caches_that_cannot_be_mended(build, message):
    with pytest.raises(ValueError, match=message) as caught:
        Objective(build(), make_data())
    assert "\n" not in str(caught.value)
    assert "judge=False" in str(caught.value)


class TiedAlways(Always):
    forward = TiedCache.forward


def test_a_cache_of_what_also_moves_by_another_way():
    with pytest.raises(ValueError, match=r"TiedAlways caches something made of its parameters in evaluation mode"):
        Objective(TiedAlways(True), make_data())


class ByVersion(Cached):
    """Makes its cache anew where the parameter was written to: nothing to mend."""

    def weight(self):
        if self.cache is None or self.cache[0] != self.w._version:
            self.cache = (self.w._version, torch.tanh(self.w).detach())
        return self.cache[1] if not torch.is_grad_enabled() else torch.tanh(self.w)


def averaging():
    """Takes statistics of its own in training mode, and keeps a constant tensor: another function there, no cache."""

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.scale = nn.Linear(8, 4), torch.full((4,), 2.0)
            self.register_buffer("mean", torch.zeros(4))

        def forward(self, inputs):
            output = self.layer(inputs)
            if self.training:
                self.mean.lerp_(output.detach().mean(0), 0.5)
            return (output - self.mean) * self.scale

    return Own()


class Unit(nn.Module):
    """Runs only with parameters such as those of a minimizer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 4)
        nn.init.ones_(self.layer.weight)

    def forward(self, inputs):
        if not (self.layer.weight == 1).all():
            raise ValueError("weights must be one")
        return self.layer(inputs)


@pytest.mark.parametrize(
    "build",
    [
        lambda: ByVersion(True),
        lambda: evaluated(ByVersion(True), gradients=False),
        averaging,
        lambda: evaluated(averaging(), gradients=True),
        lambda: nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.GELU(), nn.Dropout(), nn.Linear(16, 4)),
    ],
)
def test_models_that_follow(build):
    objective = Objective(build(), make_data())
    assert objective.judged["moves"] == "yes"
    assert not objective.notes


def test_models_that_run_only_where_they_are():
    judged = Objective(Unit(), make_data()).judged
    assert judged["moves"] == "not judged: the model does not run with moved parameters (weights must be one)"
    assert judged["slope"].startswith("not judged: the model does not run with moved parameters")


def test_training_leaves_nothing_stale():
    for detach in (True, False):
        run = train(evaluated(Cached(detach), gradients=True), make_data(), batch_size=10, epochs=2)
        model = run.model
        expected = value({name: part.detach().double() for name, part in model.named_parameters()})
        assert run.metrics[-1]["train_loss"] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("kind", [float, list, "array", "buffer"])
def test_numbers_that_were_kept_before_the_model_came(kind):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.scale = nn.Linear(8, 16), nn.Linear(16, 4), None
            if kind == "buffer":
                self.register_buffer("kept", torch.zeros(()))

        def make(self):
            value = self.a.weight.detach().norm()
            if kind == "buffer":
                self.kept.copy_(value)
                return True
            return [float(value)] if kind is list else float(value) if kind is float else value.numpy()

        def forward(self, inputs):
            if self.training:
                self.scale = None
            if self.scale is None:
                self.scale = self.make()
            scale = self.kept if kind == "buffer" else self.scale[0] if kind is list else float(self.scale)
            return self.b(torch.tanh(self.a(inputs)) / scale)

    inputs, targets = make_data()
    torch.manual_seed(0)
    model = Scaled().eval()
    model(inputs)
    with pytest.raises(ValueError, match=r"caches something made of its parameters|as fast as its gradient says"):
        Objective(model, (inputs, targets))
