"""The frame of the questions: what is asked, in which order, what it costs, and what a pass needs even unasked."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lbgap
from lbgap import Objective
from lbgap.flat import FlatModule
from lbgap.objective import activations, judge
from lbgap.system import device as hardware

pytestmark = pytest.mark.usefixtures("one_thread")

needs_bfloat16 = pytest.mark.skipif(
    not hardware.bfloat16_products("cpu"), reason="no bfloat16 matrix products on this processor"
)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


X, Y = normal(600, 8), torch.arange(600) % 4


def dense():
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 4))


def test_what_was_asked_is_part_of_the_result():
    settings = Objective(dense(), (X, Y)).settings()
    assert settings["judged"] == dict.fromkeys(judge.QUESTIONS, "yes")
    assert json.loads(json.dumps(settings)) == settings
    assert lbgap.fast_sharpness(dense(), (X, Y)).settings["judged"] == settings["judged"]


def test_nothing_is_asked_where_that_is_wished(monkeypatch):
    monkeypatch.setattr(judge, "QUESTIONS", {"never": lambda _: 1 / 0})
    objective = Objective(dense(), (X, Y), judge=False)
    assert objective.settings()["judged"] == judge.NOT_ASKED
    assert objective.notes == [judge.NOT_ASKED]


def test_the_same_numbers_whether_asked_or_not():
    asked, unasked = (Objective(dense_of(0), (X, Y), judge=wanted) for wanted in (True, False))
    theta = asked.theta
    assert torch.equal(theta, unasked.theta)
    assert asked.batch_size == unasked.batch_size
    assert torch.equal(asked.loss(theta), unasked.loss(theta))
    assert torch.equal(asked.loss_and_gradient(theta)[1], unasked.loss_and_gradient(theta)[1])


def dense_of(seed):
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(seed)
        return dense()


def test_the_replica_is_back_at_the_minimizer():
    objective = Objective(dense(), (X, Y))
    assert torch.equal(objective._evaluator.flat.theta, objective.theta)
    assert not objective._evaluator.flat.gradient.any()


class Watched(nn.Module):
    """Counts samples and passes, in all copies."""

    sizes: list[int]

    def __init__(self, sizes):
        super().__init__()
        self.body, self.note = dense(), sizes.append

    def forward(self, inputs):
        self.note(len(inputs))
        return self.body(inputs)


def test_questions_take_few_passes_over_few_samples():
    sizes = []
    Objective(Watched(sizes), (normal(20_000, 8), torch.arange(20_000) % 4))
    assert max(sizes) <= 48
    assert sum(sizes) <= 30 * 32


def test_a_float64_copy_is_made_only_where_there_is_a_doubt(monkeypatch):
    monkeypatch.setattr("lbgap.objective.questions.rounding.in_float64", lambda _: 1 / 0)
    assert Objective(dense(), (X, Y)).judged["additive"] == "yes"


def test_the_order_of_the_questions():
    """Noise is not taken for samples that see each other, and time that comes first for nothing else."""
    assert next(iter(judge.QUESTIONS)) == "repeats"

    class Noisy(nn.Linear):
        def forward(self, inputs):
            return F.dropout(super().forward(inputs), 0.5)

    with pytest.raises(ValueError, match="different outputs for the same inputs"):
        Objective(Noisy(8, 4), (X, Y))


# What a pass needs.


class Inside(nn.Module):
    """The slope of a network in its inputs, as force fields and flows compute it."""

    def __init__(self, how):
        super().__init__()
        self.potential, self.how = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1)), how

    def forward(self, inputs):
        return self.how(self.potential, inputs)


def by_grad(potential, inputs):
    inputs = inputs.detach().requires_grad_()
    return torch.autograd.grad(potential(inputs).sum(), inputs, create_graph=True)[0]


def by_vmap(potential, inputs):
    return torch.func.vmap(torch.func.grad(lambda one: potential(one).sum()))(inputs)


def by_jvp(potential, inputs):
    return torch.func.jvp(potential, (inputs,), (torch.ones_like(inputs),))[1].expand(-1, 8)


def by_own_mode(potential, inputs):
    with torch.enable_grad():
        return by_grad(potential, inputs)


@pytest.mark.parametrize("how", [by_grad, by_vmap, by_jvp, by_own_mode])
def test_models_that_differentiate_inside(how):
    model, data = Inside(how), (X[:60], X[:60])
    objective = Objective(model, data, loss="mse", precision="float64", batch_size=25)
    assert objective._evaluator.needs_grad == (how is by_grad)
    twin, inputs = copy.deepcopy(model).double(), X[:60].double()
    expected = F.mse_loss(twin(inputs), inputs)
    slopes = torch.autograd.grad(expected, list(twin.parameters())[:3])  # none in the last bias
    theta = objective.theta
    value, gradient = objective.loss_and_gradient(theta)
    torch.testing.assert_close(value, expected.detach(), rtol=1e-13, atol=0)
    torch.testing.assert_close(gradient[:-1], torch.cat([part.flatten() for part in slopes]), rtol=1e-10, atol=1e-14)
    assert not gradient[-1]
    for found in (objective.loss(theta), *objective.losses(torch.stack([theta, theta]))):
        torch.testing.assert_close(found, expected.detach(), rtol=1e-13, atol=0)

    vector, step = normal(1, objective.n, seed=3).double(), 1e-5
    differences = [objective.loss_and_gradient(theta + sign * step * vector[0])[1] for sign in (1, -1)]
    product = objective.hvp(theta, vector)[0]
    # Central differences err by about step^2.
    torch.testing.assert_close(product, (differences[0] - differences[1]) / (2 * step), rtol=1e-6, atol=1e-8)
    assert float(objective.curvatures(theta, vector)) == pytest.approx(float(vector[0] @ product), rel=1e-10)
    along = objective.directional_derivatives(theta, vector[0])
    assert float(along.mean()) == pytest.approx(float(gradient @ vector[0]), rel=1e-10)
    part = objective.subset(20)
    assert float(part.loss(theta)) == pytest.approx(float(part.loss_and_gradient(theta)[0]), rel=1e-13)
    assert isinstance(objective.model(), Inside)


@pytest.mark.parametrize("how", [by_grad, by_vmap])
def test_measures_of_models_that_differentiate_inside(how):
    model, data = Inside(how), (X[:40], X[:40])
    assert lbgap.fast_sharpness(model, data, loss="mse", iterations=3).value > 0
    assert len(lbgap.eigenvalues(model, data, loss="mse", k=1).values) == 1
    assert len(lbgap.plane(model, data=data, loss="mse", points=3).train_loss) == 3


def test_statistics_of_a_model_that_differentiates_inside():
    model = Inside(by_grad)
    model.potential.insert(1, nn.BatchNorm1d(16))
    objective = Objective(model, (X, X), loss="mse")
    found = objective.statistics(objective.theta)
    torch.testing.assert_close(found["potential.1.running_mean"], model.potential[0](X).mean(0).detach())


def test_activations_are_counted_without_hooks_where_these_are_refused():
    layer = nn.Linear(8, 64)

    def plain(_, inputs):
        return layer(inputs).tanh()

    def functional(_, inputs):  # the same layers
        return plain(_, inputs) + 0 * torch.func.grad(lambda one: one.sum())(torch.ones(2)).sum()

    sizes = []
    for how in (plain, functional):
        model = Inside(how)
        model.potential = layer
        output, size = activations.recorded(FlatModule(model), X[:32], lambda: X[:32].clone())
        assert output.requires_grad
        sizes.append(size)
    assert sizes[0] == 32 * (8 + 64) * 4
    assert sizes[0] <= sizes[1] <= 2 * sizes[0]


def test_activations_of_tensors_without_storage():
    Objective(Inside(by_jvp), (X, X), loss="mse")


@pytest.mark.parametrize("last", [1, 7])
def test_each_batch_must_have_an_output_for_each_sample(last):
    class Short(nn.Linear):
        def forward(self, inputs):
            output = super().forward(inputs)
            return output[:-1] if len(inputs) == last else output

    objective = Objective(Short(8, 4), (X[: 20 + last], Y[: 20 + last]), batch_size=20, judge=False)
    message = rf"one output per sample, got shape \({last - 1}, 4\) for a batch of {last}: make its first dimension"
    for evaluate in (objective.loss, objective.loss_and_gradient):
        with pytest.raises(ValueError, match=message):
            evaluate(objective.theta)


# Samples that see each other.


def pairs(size):
    def nce(output, _):
        return F.cross_entropy(output @ output.T, torch.arange(size or len(output)))

    return nce


@pytest.mark.parametrize(("batch_size", "few"), [(8, 8), (60, 32)])
def test_no_more_than_a_batch_is_tried_out(batch_size, few):
    objective = Objective(dense(), (X, Y), loss=pairs(None), coupled=True, batch_size=batch_size)
    assert objective.few().size == few


def test_a_whole_batch_is_tried_out_where_it_must_be_whole():
    objective = Objective(dense(), (X, Y), loss=pairs(60), coupled=True, batch_size=60)
    assert objective.few().size == 60
    assert objective.judged["additive"] == "not judged: coupled=True"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coupled": True}, "with coupled=True another size is another function: pass a smaller batch_size$"),
        ({"batch_norm": "batch"}, "with batch_norm='batch' another size .*smaller batch_size, or batch_norm='eval'$"),
    ],
)
def test_a_batch_that_does_not_fit_says_why_it_may_not_be_smaller(options, message):
    class Starved(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.largest = dense(), 10**9

        def forward(self, inputs):
            if len(inputs) > self.largest:
                raise torch.OutOfMemoryError
            return self.body(inputs)

    objective = Objective(Starved(), (X, Y), batch_size=60, **options)
    objective._evaluator.flat.module.largest = 40
    with pytest.raises(MemoryError, match=message):
        objective.loss(objective.theta)


@pytest.mark.parametrize(("largest", "batch_size", "few"), [(40, 32, 32), (40, 8, 32), (20, 16, 16)])
def test_memory_that_is_short_shortens_what_is_tried_out(largest, batch_size, few):
    class Hungry(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = dense()

        def forward(self, inputs):
            if len(inputs) > largest:
                raise torch.OutOfMemoryError
            return self.body(inputs)

    objective = Objective(Hungry(), (X, Y), batch_size=batch_size)
    assert (objective.batch_size, objective.few().size) == (batch_size, few)
    assert objective.judged == dict.fromkeys(judge.QUESTIONS, "yes")


# Mixed precision.


class Scattering(nn.Module):
    """Adds what autocast makes bfloat16 to float32, which torch refuses."""

    def __init__(self):
        super().__init__()
        self.inner, self.out = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, inputs):
        return self.out(torch.zeros(len(inputs), 8).index_add(0, torch.arange(len(inputs)), self.inner(inputs)))


class Unsloped(nn.Linear):
    """Its gradient is no number in bfloat16, where a small difference is zero."""

    def forward(self, inputs):
        output = super().forward(inputs)
        shifted = output * 0 + 256
        return output + (shifted + 0.1 - 256).sqrt()


@needs_bfloat16
@pytest.mark.parametrize(
    ("model", "why"),
    [(Scattering, "index_add_(): self (Float) and source"), (Unsloped, "its gradient is not finite")],
)
def test_mixed_precision_falls_back_where_autocast_does_not_run(model, why):
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(0)
        built = model() if model is Scattering else model(8, 4)
    plain = lbgap.fast_sharpness(built, (X, Y), iterations=3)
    mixed = lbgap.fast_sharpness(built, (X, Y), iterations=3, precision="mixed")
    assert mixed.value == plain.value
    assert mixed.settings["directions"] == "float32"
    (note,) = mixed.settings["notes"]
    assert note.startswith("precision='mixed' ran in float32: the model does not run in bfloat16 (")
    assert why in note


@needs_bfloat16
def test_mixed_precision_stays_where_autocast_runs():
    objective = Objective(dense(), (X, Y), precision="mixed")
    assert objective.mixed
    assert objective.notes == []


def test_a_model_that_runs_once():
    class Once(nn.Linear):
        ran = False

        def forward(self, inputs):
            if self.ran:
                raise RuntimeError("the stream is at its end")
            self.ran = True
            return super().forward(inputs)

    with pytest.raises(ValueError, match="the model does not run a second time: the stream is at its end") as caught:
        Objective(Once(8, 4), (X, Y))
    assert "\n" not in str(caught.value)
