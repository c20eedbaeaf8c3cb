"""Losses that weigh or ignore targets: values, products, derivatives and accuracies against dense float64."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, jacrev

import lbgap
from lbgap import Objective
from lbgap.objective.products import general

pytestmark = pytest.mark.usefixtures("one_thread")
N, C = 21, 3
WEIGHT = torch.tensor([0.5, 2.0, 0.0])


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels(*shape, ignored=8):
    drawn = torch.randint(0, C, shape, generator=torch.Generator().manual_seed(1))
    drawn[:ignored] = -100
    return drawn


def dense(*last):
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, C), *last).double()
    for number, parameter in enumerate(model.parameters()):
        parameter.data.copy_(normal(*parameter.shape, seed=number) / 2)
    return model


class Tokens(nn.Module):
    """``(batch, 4)`` to ``(batch, 4, classes)``."""

    def __init__(self):
        super().__init__()
        self.body = dense()

    def forward(self, inputs):
        return self.body(inputs[:, None] * torch.arange(1.0, 5.0, dtype=inputs.dtype)[:, None])


INPUTS = normal(N, 4, seed=7)
PAIR = "a pair (sum, weight)"


def pair(output, target):
    counts = target >= 0
    each = F.cross_entropy(output, target, reduction="none")
    return each.sum(), counts.sum()


LAST = nn.LogSoftmax(1)
# Model, targets, the loss, and its value on all samples beside the terms of the samples, by torch.
CASES = {
    "ignored": (dense(), labels(N), "cross_entropy", lambda o, t: F.cross_entropy(o, t, reduction="none")),
    "weights": (
        dense(),
        labels(N),
        nn.CrossEntropyLoss(WEIGHT),
        lambda o, t: F.cross_entropy(o, t, WEIGHT.double(), reduction="none"),
    ),
    "smoothing": (
        dense(),
        labels(N),
        nn.CrossEntropyLoss(WEIGHT, label_smoothing=0.2),
        lambda o, t: F.cross_entropy(o, t, WEIGHT.double(), label_smoothing=0.2, reduction="none"),
    ),
    "probabilities": (
        dense(),
        normal(N, C, seed=3).softmax(1),
        nn.CrossEntropyLoss(WEIGHT, label_smoothing=0.2),
        lambda o, t: F.cross_entropy(o, t, WEIGHT.double(), label_smoothing=0.2, reduction="none"),
    ),
    "nll": (
        dense(LAST),
        labels(N),
        nn.NLLLoss(WEIGHT),
        lambda o, t: F.nll_loss(o, t, WEIGHT.double(), reduction="none"),
    ),
    "tokens": (
        Tokens(),
        labels(N, 4),
        "cross_entropy",
        lambda o, t: F.cross_entropy(o.movedim(-1, 1), t, reduction="none").sum(1),
    ),
    "sum": (
        dense(),
        normal(N, C, seed=3),
        nn.MSELoss(reduction="sum"),
        lambda o, t: (o - t).square().sum(1),
    ),
    "bce": (
        dense(),
        normal(N, C, seed=3) < 0,
        "bce",
        lambda o, t: F.binary_cross_entropy_with_logits(o, t.double(), reduction="none").mean(1),
    ),
    "numbers": (
        dense(nn.Linear(C, 1), nn.Flatten(0)),
        normal(N, seed=3),
        "huber",
        lambda o, t: F.huber_loss(o, t, reduction="none"),
    ),
    PAIR: (dense(), labels(N), pair, lambda o, t: F.cross_entropy(o, t, reduction="none")),
}
DIVISORS = {
    "ignored": 13,
    "weights": float(WEIGHT.double()[labels(N)[8:]].sum()),
    "smoothing": float(WEIGHT.double()[labels(N)[8:]].sum()),
    "probabilities": N,
    "nll": float(WEIGHT.double()[labels(N)[8:]].sum()),
    "tokens": 13 * 4,
    "sum": 1,
    "bce": N,
    "numbers": N,
    PAIR: 13,
}


class Dense:
    """A case by torch alone: the terms of the samples, scaled so that their mean is the value."""

    def __init__(self, name):
        self.model, self.targets, self.loss, self._each = CASES[name]
        self._divisor = DIVISORS[name]
        self.theta = torch.cat([p.detach().flatten() for p in self.model.parameters()])

    def outputs(self, theta):
        named = dict(self.model.named_parameters())
        parts = theta.split([p.numel() for p in named.values()])
        state = {key: part.view_as(p) for (key, p), part in zip(named.items(), parts, strict=True)}
        return functional_call(self.model, state, (INPUTS,))

    def terms(self, theta):
        return self.terms_of(self.outputs(theta))

    def terms_of(self, outputs):
        return self._each(outputs, self.targets) * len(INPUTS) / self._divisor

    def value(self, theta):
        return self.terms(theta).mean()

    def matrix(self, kind):
        if kind == "hessian":
            return torch.autograd.functional.hessian(self.value, self.theta)
        if kind == "fisher":
            rows = jacrev(self.terms)(self.theta)
            return rows.T @ rows / len(rows)
        outputs, slopes = self.outputs(self.theta), jacrev(self.outputs)(self.theta)
        inner = torch.autograd.functional.hessian(lambda o: self.terms_of(o).mean(), outputs.detach())
        slopes = slopes.flatten(0, -2)
        return slopes.T @ inner.reshape(outputs.numel(), -1) @ slopes

    def objective(self, **options):
        return Objective(self.model, (INPUTS, self.targets), loss=self.loss, **{"precision": "float64", **options})


def assert_close(found, expected, tolerance=1e-11):
    assert float((found - expected).norm()) <= tolerance * float(expected.norm())


@pytest.mark.parametrize("size", [5, N])
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name, size):
    case = Dense(name)
    objective = case.objective(batch_size=size)
    theta = case.theta.requires_grad_()
    value = case.value(theta)
    (gradient,) = torch.autograd.grad(value, theta)
    found, slope = objective.loss_and_gradient(objective.theta)
    assert float(found) == pytest.approx(float(value.detach()), rel=1e-13)
    assert_close(slope, gradient)
    assert float(objective.loss(objective.theta)) == float(found)
    assert objective.settings()["weight"] == pytest.approx(DIVISORS[name], rel=1e-14)


@pytest.mark.parametrize("way", ["engine", "general"])
@pytest.mark.parametrize("kind", ["hessian", "ggn", "fisher"])
@pytest.mark.parametrize("name", CASES)
def test_products(name, kind, way):
    case = Dense(name)
    objective = case.objective(batch_size=10)
    if way == "general":
        objective._products.way = "general: asked for"
    found = objective.hvp(objective.theta, torch.eye(objective.n, dtype=torch.float64), kind=kind)
    assert_close(found, case.matrix(kind))
    if name not in ("tokens", "nll", "numbers"):
        assert objective.hvp_way.startswith(way)


@pytest.mark.parametrize("name", CASES)
def test_derivatives_along_a_direction(name):
    case = Dense(name)
    objective, direction = case.objective(batch_size=10), normal(len(case.theta), seed=5)
    each = objective.directional_derivatives(objective.theta, direction)
    assert_close(each, jacrev(case.terms)(case.theta) @ direction)
    curvature = direction @ case.matrix("hessian") @ direction
    assert_close(objective.curvatures(objective.theta, direction[None])[0], curvature)


@pytest.mark.parametrize("name", CASES)
def test_fisher_rao_norm(name):
    case = Dense(name)
    expected = case.theta @ case.matrix("fisher") @ case.theta
    assert lbgap.fisher_rao_norm(case.objective(batch_size=10)).value == pytest.approx(float(expected), rel=1e-11)


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(WEIGHT), "cross_entropy"])
def test_labels_of_the_model_need_targets_that_count_alike(loss):
    with pytest.raises(ValueError, match=r"class indices that all count alike.*: use labels='data'"):
        lbgap.fisher_rao_norm(dense(), (INPUTS, labels(N)), loss=loss, labels="model")
    plain = lbgap.fisher_rao_norm(dense(), (INPUTS, labels(N, ignored=0)), loss=nn.CrossEntropyLoss(), labels="model")
    named = lbgap.fisher_rao_norm(dense(), (INPUTS, labels(N, ignored=0)), labels="model")
    assert plain.value == named.value


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("name", CASES)
def test_many_points_and_combinations(name, backend):
    case = Dense(name)
    objective = case.objective(batch_size=6, backend=backend)
    points = case.theta + 0.1 * normal(40, len(case.theta), seed=6)
    expected = torch.stack([case.value(point) for point in points])
    assert_close(objective.losses(points), expected)
    ends = points[:3]
    coefficients = torch.rand(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    accuracy = objective.classes is not None
    losses, accuracies = objective.combination_losses(coefficients, ends, accuracy=accuracy)
    assert_close(losses, torch.stack([case.value(point) for point in coefficients @ ends]))
    if accuracy:
        assert accuracies.tolist() == pytest.approx([share(case, point) for point in coefficients @ ends], rel=1e-14)


def share(case, theta):
    """Accuracy in percent of the targets that count."""
    counts = case.targets >= 0
    if isinstance(case.loss, nn.Module):
        counts = counts & (case.targets != 2)  # whose weight is 0
    right = case.outputs(theta).argmax(-1) == case.targets
    return 100 * float(right[counts].double().mean())


@pytest.mark.parametrize("name", ["ignored", "weights", "nll", "tokens"])
def test_accuracies(name):
    case = Dense(name)
    objective = case.objective(batch_size=6)
    assert objective.classes == C
    loss, accuracy = objective.loss_and_accuracy(objective.theta)
    assert float(accuracy) == pytest.approx(share(case, case.theta), rel=1e-14)
    assert float(loss) == float(objective.loss(objective.theta))
    slope = objective.log_probability_direction(objective.theta, 1)[0]
    expected = case.outputs(case.theta).log_softmax(-1)[..., 1].mean()
    assert float(slope) == pytest.approx(float(expected), rel=1e-13)


def test_parts_have_their_own_weight():
    case = Dense("weights")
    chosen = torch.tensor([0, 3, 9, 10, 14, 20])
    part = case.objective(batch_size=4).part(chosen)
    expected = F.cross_entropy(case.model(INPUTS[chosen]), case.targets[chosen], WEIGHT.double())
    assert float(part.loss(part.theta)) == pytest.approx(float(expected.detach()), rel=1e-13)
    pairs = Dense(PAIR).objective(batch_size=4).part(chosen)
    expected = F.cross_entropy(case.model(INPUTS[chosen]), case.targets[chosen])
    assert float(pairs.loss(pairs.theta)) == pytest.approx(float(expected.detach()), rel=1e-13)


def test_a_part_of_a_sum_estimates_the_whole():
    case = Dense("sum")
    chosen = torch.tensor([0, 3, 9, 10, 14, 20])
    part = case.objective(batch_size=4).part(chosen)
    expected = (case.model(INPUTS[chosen]) - case.targets[chosen]).square().sum() * N / 6
    assert float(part.loss(part.theta)) == pytest.approx(float(expected.detach()), rel=1e-13)


def test_a_part_that_counts_nothing_is_refused():
    part = Dense("ignored").objective().part(torch.arange(8))
    with pytest.raises(ValueError, match="counts none of these 8 samples: the sum of their weights is 0"):
        part.loss(part.theta)


def test_weights_that_the_loss_returns_take_one_pass():
    seen = []

    def loss(output, target):
        seen.append(len(target))
        return pair(output, target)

    objective = Objective(dense(), (INPUTS, labels(N)), loss=loss, precision="float64", batch_size=10)
    seen.clear()
    objective.loss(objective.theta)
    assert seen == [10, 10, 1, 10, 10, 1]
    objective.loss(objective.theta)
    assert len(seen) == 9


def test_the_few_samples_that_are_tried_count():
    targets = labels(100, ignored=90)
    inputs = normal(100, 4)
    objective = Objective(dense(), (inputs, targets), precision="float64")
    assert torch.equal(objective.few().targets, targets[90:])
    some = labels(100, ignored=20)
    assert torch.equal(Objective(dense(), (inputs, some)).few().targets, some[20:52])


@pytest.mark.parametrize("ignored", [0, 20, 90])
def test_the_few_samples_weigh_something_where_the_loss_returns_weights(ignored):
    targets, inputs = labels(100, ignored=ignored), normal(100, 4)
    objective = Objective(dense(), (inputs, targets), loss=pair, precision="float64", batch_size=50)
    assert torch.equal(objective.few().targets, targets[ignored : ignored + 32])
    tried = objective._products._some(objective._evaluator.batches)
    assert bool((tried.targets >= 0).all())


@pytest.mark.parametrize("loss", ["cross_entropy", pair])
def test_a_subset_is_of_samples_that_count(loss):
    targets, inputs = labels(400, ignored=0), normal(400, 4)
    targets[torch.arange(400) % 40 != 39] = -100
    objective = Objective(dense(), (inputs, targets), loss=loss, precision="float64")
    for samples, size in ((5, 5), (40, 10)):
        few = objective.subset(samples)
        assert (few.samples, few.weight, few.empty) == (size, size, False)
    expected = F.cross_entropy(dense()(inputs), targets).detach()
    assert float(few.loss(few.theta)) == pytest.approx(float(expected), rel=1e-13)
    assert objective.part(torch.arange(39)).empty
    targets[:] = labels(400, ignored=0)
    objective = Objective(dense(), (inputs, targets), loss=loss, precision="float64")
    assert torch.equal(objective.subset(5)._evaluator.data.pool.targets, targets[::80])


@pytest.mark.parametrize("loss", ["cross_entropy", pair])
def test_a_search_scouts_on_samples_that_count(loss):
    targets, inputs = labels(4000, ignored=3993), normal(4000, 4)
    found = lbgap.fast_sharpness(dense(), (inputs, targets), loss=loss, restarts=2, epsilon=1e-2, precision="float64")
    some = lbgap.fast_sharpness(dense(), (inputs[3993:], targets[3993:]), epsilon=1e-2, precision="float64")
    assert found.settings["scout"] == 128
    assert found.value >= some.value * (1 - 1e-9) > 0


def test_targets_out_of_range_among_the_ignored():
    targets = labels(N)
    targets[-1] = C
    with pytest.raises(ValueError, match=r"in 0..2 .*got 0..3"):
        Objective(dense(), (INPUTS, targets))


def test_booleans_stay():
    targets = normal(N) < 0
    objective = Objective(dense(), (INPUTS, targets), precision="float64")
    assert objective.few().targets.dtype == torch.bool
    expected = F.cross_entropy(dense()(INPUTS), targets.long())
    assert float(objective.loss(objective.theta)) == pytest.approx(float(expected.detach()), rel=1e-13)
    assert objective.classes == C
    right = 100 * float((dense()(INPUTS).argmax(1) == targets.long()).double().mean())
    assert float(objective.loss_and_accuracy(objective.theta)[1]) == pytest.approx(right, rel=1e-14)


def test_a_line_evaluates_the_loss_of_each_set():
    first, second = dense(), copy.deepcopy(dense())
    second.load_state_dict({key: value + 0.1 for key, value in first.state_dict().items()})
    train, test = (INPUTS, labels(N)), (normal(9, 4, seed=8), labels(9, ignored=4))
    line = lbgap.line(first, second, train, test_data=test, loss=nn.CrossEntropyLoss(WEIGHT), precision="float64")
    for losses, (inputs, targets) in ((line.train_loss, train), (line.test_loss, test)):
        # alpha = 0 is the first model, alpha = 1 the second one
        for alpha, model in ((0.0, first), (1.0, second)):
            found = losses[line.alphas.index(alpha)]
            expected = float(F.cross_entropy(model(inputs), targets, WEIGHT.double()).detach())
            assert found == pytest.approx(expected, rel=1e-12)


def test_the_engine_is_compared_on_samples_that_count():
    targets = labels(60, ignored=40)
    objective = Objective(dense(), (normal(60, 4), targets), precision="float64", batch_size=10)
    seen = []
    add_products = general.add_products

    def spy(flat, loss, batch, vectors, out, kind):
        seen.append(batch.targets)
        add_products(flat, loss, batch, vectors, out, kind)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(general, "add_products", spy)
        objective.hvp(objective.theta, torch.ones(1, objective.n, dtype=torch.float64))
    assert objective.hvp_way == "engine"
    assert len(seen) == 3  # the question of second derivatives, and the trial at two points
    assert all(bool((part >= 0).all()) for part in seen)
