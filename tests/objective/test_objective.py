"""The objective: exact means and gradients, nothing of the caller's touched, the same bits wherever it is called."""

import contextlib
import copy
import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lbgap import Objective
from lbgap.objective.judge import QUESTIONS
from lbgap.system import device as hardware

needs_bfloat16 = pytest.mark.skipif(
    not hardware.bfloat16_products("cpu"), reason="no bfloat16 matrix products on this processor"
)


pytestmark = pytest.mark.usefixtures("one_thread")


def seeded(build, seed=0):
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(seed)
        return build()


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def labels(samples, classes=3, seed=1):
    return torch.randint(0, classes, (samples,), generator=torch.Generator().manual_seed(seed))


def dense():
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3))


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, inputs):
        return self.used(inputs)


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
        self.lstm, self.out = nn.LSTM(4, 5, batch_first=True, dropout=0.0), nn.Linear(5, 3)

    def forward(self, inputs):
        return self.out(self.lstm(inputs)[0][:, -1])


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.encoder = nn.Embedding(9, 4), nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.out = nn.Linear(4, 3)

    def forward(self, inputs):
        return self.out(self.encoder(self.embed(inputs)).mean(1))


def frozen():
    model = dense()
    model[0].weight.requires_grad_(False)
    model[1].bias.requires_grad_(False)
    return model


def convolutional():
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(16, 3))


SAMPLES = 11
MODELS = {
    "dense": (dense, normal(SAMPLES, 4)),
    "unused": (Unused, normal(SAMPLES, 4)),
    "tied": (Tied, normal(SAMPLES, 4)),
    "frozen": (frozen, normal(SAMPLES, 4)),
    "lstm": (Recurrent, normal(SAMPLES, 5, 4)),
    "transformer": (Attention, torch.randint(0, 9, (SAMPLES, 5), generator=torch.Generator().manual_seed(2))),
    "conv": (convolutional, normal(SAMPLES, 2, 4, 4)),
    "in-place first": (lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 3)), normal(SAMPLES, 4)),
}
LOSSES = {
    "cross_entropy": (labels(SAMPLES), F.cross_entropy),
    "mse": (normal(SAMPLES, 3, seed=3, dtype=torch.float64), F.mse_loss),
}


def reference(model, inputs, targets, function):
    """Loss and flat gradient of the mean over all samples at once, by autograd in float64."""
    model = copy.deepcopy(model).double().eval()
    convert = [t.double() if t.is_floating_point() else t for t in (inputs.clone(), targets)]
    moving = [p for p in model.parameters() if p.requires_grad]
    loss = function(model(convert[0]), convert[1])
    gradients = torch.autograd.grad(loss, moving, materialize_grads=True)
    return loss.item(), torch.cat([g.reshape(-1) for g in gradients])


@pytest.mark.parametrize("batch_size", [None, 1, 4, 5, 11, 100])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradient_are_those_of_the_full_batch(name, loss, batch_size):
    (build, inputs), (targets, function) = MODELS[name], LOSSES[loss]
    model = seeded(build)
    objective = Objective(model, (inputs, targets), loss=loss, precision="float64", batch_size=batch_size)
    expected, gradient = reference(model, inputs, targets, function)
    out = torch.empty_like(gradient)
    value, returned = objective.loss_and_gradient(objective.theta, out=out)
    assert returned is out
    assert float(value) == pytest.approx(expected, rel=1e-13)
    assert float(objective.loss(objective.theta)) == pytest.approx(expected, rel=1e-13)
    torch.testing.assert_close(out, gradient, rtol=1e-12, atol=1e-12)
    assert (value.dtype, value.dim(), objective.n, objective.samples) == (torch.float64, 0, len(gradient), SAMPLES)
    assert objective.evaluations == 2


@pytest.mark.parametrize("name", MODELS)
def test_float32_is_close_to_float64(name):
    build, inputs = MODELS[name]
    model, data = seeded(build), (inputs, labels(SAMPLES))
    value, gradient = (objective := Objective(model, data)).loss_and_gradient(objective.theta)
    expected, exact = reference(model, *data, F.cross_entropy)
    assert float(value) == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(gradient.double(), exact, rtol=1e-4, atol=1e-6)
    assert (objective.theta.dtype, gradient.dtype, value.dtype) == (torch.float32, torch.float32, torch.float64)


def test_a_last_batch_that_is_smaller_counts_by_its_samples():
    model = nn.Linear(1, 1, bias=False)
    inputs, targets = torch.arange(1.0, 8).view(7, 1), torch.zeros(7, 1)
    objective = Objective(model, (inputs, targets), loss="mse", precision="float64", batch_size=3)
    weight = float(objective.theta)
    assert float(objective.loss(objective.theta)) == pytest.approx(weight**2 * 140 / 7, rel=1e-14)


def test_probabilities_are_targets():
    model, inputs, targets = seeded(dense), normal(SAMPLES, 4), normal(SAMPLES, 3, seed=5).softmax(1).double()
    objective = Objective(model, (inputs, targets), precision="float64", batch_size=4)
    expected, _ = reference(model, inputs, targets, F.cross_entropy)
    assert float(objective.loss(objective.theta)) == pytest.approx(expected, rel=1e-13)
    assert objective.classes is None


def test_a_callable_loss():
    model, inputs, targets = seeded(dense), normal(SAMPLES, 4), normal(SAMPLES, 3, seed=5)
    objective = Objective(model, (inputs, targets), loss=nn.HuberLoss(delta=0.3), precision="float64", batch_size=4)
    expected, _ = reference(model, inputs, targets, nn.HuberLoss(delta=0.3))
    assert float(objective.loss(objective.theta)) == pytest.approx(expected, rel=1e-13)
    assert objective.settings()["loss"] == "HuberLoss"


@pytest.mark.parametrize("parameters", ["weights", "4.*", ["0.bias", "4.bias"], iter(["0.*"])])
def test_a_selection_is_held_and_recorded(parameters):
    given = parameters if isinstance(parameters, str | list) else ["0.*"]
    model = seeded(dense)
    objective = Objective(model, (normal(SAMPLES, 4), labels(SAMPLES)), parameters=parameters)
    assert objective.settings()["parameters"] == given
    everything = Objective(model, (normal(SAMPLES, 4), labels(SAMPLES)))
    _, part = objective.loss_and_gradient(objective.theta)
    _, whole = everything.loss_and_gradient(everything.theta)
    sizes = [p.numel() for p in model.parameters()]
    chosen = [g for name, g in zip(everything.names, whole.split(sizes), strict=True) if name in objective.names]
    assert torch.equal(part, torch.cat(chosen))


def test_gradients_are_accumulated_in_place():
    objective = Objective(seeded(dense), (normal(SAMPLES, 4), labels(SAMPLES)), batch_size=3)
    places = [p.grad.data_ptr() for p in objective._evaluator.flat.moving]
    first = objective.loss_and_gradient(objective.theta)[1]
    second = objective.loss_and_gradient(objective.theta)[1]
    assert torch.equal(first, second)
    assert first.data_ptr() != second.data_ptr() != objective._evaluator.flat.gradient.data_ptr()
    assert [p.grad.data_ptr() for p in objective._evaluator.flat.moving] == places


# Batch-norm and batches.


def test_batch_norm_of_each_batch():
    model, inputs, targets = seeded(dense).eval(), normal(SAMPLES, 4), labels(SAMPLES)
    objective = Objective(model, (inputs, targets), precision="float64", batch_norm="batch", batch_size=4)
    training = copy.deepcopy(model).double()
    training[1].train()
    parts = zip(inputs.double().split(4), targets.split(4), strict=True)
    expected = sum(F.cross_entropy(training(x), y, reduction="sum").item() for x, y in parts) / SAMPLES
    for _ in range(2):
        assert float(objective.loss(objective.theta)) == pytest.approx(expected, rel=1e-13)
    objective.loss_and_gradient(objective.theta)
    assert objective.settings()["batch_norm"] == "batch"
    assert objective.settings()["batch_size"] == 4
    assert torch.equal(model[1].running_mean, torch.zeros(6))
    assert int(model[1].num_batches_tracked) == 0


@pytest.mark.parametrize(("samples", "batch_size"), [(1, None), (5001, None), (9, 4), (3, 1), (5, 2)])
def test_batch_norm_of_one_sample_is_refused(samples, batch_size):
    with pytest.raises(ValueError, match=r"leaves a batch of one sample, which has no statistics: choose another"):
        Objective(seeded(dense), (normal(samples, 4), labels(samples)), batch_norm="batch", batch_size=batch_size)


def test_batches_of_batch_norm():
    model, data = seeded(dense), (normal(40, 4), labels(40))
    loader = DataLoader(TensorDataset(*data), batch_size=16)
    sizes = [
        Objective(model, source, batch_norm="batch", batch_size=size).batch_size
        for source, size in ((data, None), (loader, None), (loader, 10), (data, 64))
    ]
    assert sizes == [40, 16, 10, 40]
    assert Objective(model, loader).batch_size == 40
    plain = Objective(nn.Linear(4, 3), data, batch_norm="batch")
    assert plain.settings()["batch_norm"] == "none in the model"


def test_micro_batches_follow_from_the_activations(monkeypatch):
    wide = nn.Sequential(nn.Linear(4, 1000), nn.ReLU(), nn.Linear(1000, 3))
    data = (normal(600, 4), labels(600))
    assert Objective(wide, data).batch_size == 600
    # 4 + 1000 + 3 numbers a sample, or fewer where a result is saved once for two operations.
    monkeypatch.setattr(hardware, "CPU_CACHE_BYTES", 400 * 1000 * 4)
    assert 200 <= Objective(wide, data).batch_size <= 400
    monkeypatch.setattr(hardware, "CPU_CACHE_BYTES", 1)
    assert Objective(wide, data).batch_size == 32
    assert Objective(wide, data, batch_size=7).batch_size == 7


def test_frozen_weights_are_no_activations():
    model = nn.Sequential(nn.Linear(4, 2000), nn.Linear(2000, 2000), nn.Linear(2000, 3))
    data = (normal(2000, 4), labels(2000))
    assert Objective(model, data, parameters="0.bias").batch_size == 2000


class Sparse(nn.Module):
    """Saves a sparse tensor for the backward pass."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(4, 3)
        self.register_buffer("mix", torch.eye(4).to_sparse())

    def forward(self, inputs):
        return torch.sparse.mm(self.mix, self.out(inputs).T.repeat(2, 1)[:4]).T[:, :3]


def test_a_model_with_sparse_tensors():
    inputs, targets = normal(5, 4), labels(5)
    objective = Objective(seeded(Sparse), (inputs, targets))
    assert math.isfinite(objective.loss(objective.theta))


# Data.


class Samples(Dataset):
    def __init__(self, inputs, targets):
        self.inputs, self.targets = inputs, targets

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        return self.inputs[index], int(self.targets[index])


def test_all_kinds_of_data_give_the_same_bits():
    model, data = seeded(dense), (normal(SAMPLES, 4), labels(SAMPLES))
    kinds = (
        data,
        list(data),
        TensorDataset(*data),
        Samples(*data),
        DataLoader(TensorDataset(*data), batch_size=3),
        DataLoader(Samples(*data), batch_size=4),
        (data[0].double(), data[1].int()),
        (data[0].clone().requires_grad_(), data[1]),
    )
    found = [Objective(model, kind) for kind in kinds]
    values = [objective.loss_and_gradient(objective.theta) for objective in found]
    assert len({float(value) for value, _ in values}) == 1
    assert all(torch.equal(gradient, values[0][1]) for _, gradient in values)


# What belongs to the caller.


class Watchful(nn.Module):
    """In-place on its inputs, dropout, batch-norm, a frozen layer, modes that differ, and a hook."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.ReLU(inplace=True), nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.Linear(6, 3)
        )
        self.body[1].bias.requires_grad_(False)
        self.train()
        self.body[2].eval()
        self.body[1].register_forward_hook(lambda module, inputs, output: output * 2)

    def forward(self, inputs):
        return self.body(inputs)


def spoiling(output, target):
    """A loss that overwrites what it is given."""
    loss = F.cross_entropy(output, target.clone())
    target.zero_()
    return loss


def everything(objective):
    """Call everything that an objective offers."""
    theta = objective.theta
    objective.loss(theta)
    objective.loss_and_gradient(theta)
    objective.direction(theta)
    objective.log_probability_direction(theta, 1)
    objective.losses(torch.stack([theta, 2 * theta]))
    objective.loss_and_accuracy(theta)
    small = objective.subset(5)
    if small is not None:
        small.loss(theta)
    json.dumps(objective.settings(), allow_nan=False)


@pytest.mark.parametrize("precision", ["float32", "float64", pytest.param("mixed", marks=needs_bfloat16)])
@pytest.mark.parametrize("batch_norm", ["eval", "batch"])
@pytest.mark.parametrize("loss", ["cross_entropy", spoiling])
def test_nothing_of_the_caller_changes(precision, batch_norm, loss, caller_state):
    model, inputs, targets = seeded(Watchful), normal(SAMPLES, 4), labels(SAMPLES)
    model.body[4].weight.grad = torch.ones(3, 6)
    hook = next(iter(model.body[1]._forward_hooks.values()))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    places = {name: value.data_ptr() for name, value in model.state_dict().items()}
    samples, state = (inputs.clone(), targets.clone()), caller_state()
    everything(Objective(model, (inputs, targets), precision=precision, batch_norm=batch_norm, batch_size=4, loss=loss))
    assert caller_state() == state
    assert torch.equal(inputs, samples[0])
    assert torch.equal(targets, samples[1])
    assert {name: value.data_ptr() for name, value in model.state_dict().items()} == places
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == [True, True, True, True, False, True, True]
    assert [p.requires_grad for p in model.parameters()] == [True, False, True, True, True, True]
    assert [p.grad is None for p in model.parameters()] == [True, True, True, True, False, True]
    assert torch.equal(model.body[4].weight.grad, torch.ones(3, 6))
    assert list(model.body[1]._forward_hooks.values()) == [hook]
    assert not any(m._forward_hooks or m._backward_hooks for m in model.modules() if m is not model.body[1])


def test_overwritten_data_do_not_change_the_value():
    model, data = seeded(Watchful), (normal(SAMPLES, 4), labels(SAMPLES))
    plain = Objective(model, data)
    spoilt = Objective(model, data, loss=spoiling)
    for _ in range(2):
        assert float(spoilt.loss(spoilt.theta)) == pytest.approx(float(plain.loss(plain.theta)), rel=1e-6)


def test_a_learnable_loss_keeps_its_gradients():
    temperature = torch.ones((), requires_grad=True)

    def loss(output, target):
        return F.cross_entropy(output / temperature.detach(), target) + 0 * output.sum()

    objective = Objective(seeded(dense), (normal(SAMPLES, 4), labels(SAMPLES)), loss=loss)
    objective.loss_and_gradient(objective.theta)
    assert temperature.grad is None


def default_dtype():
    @contextlib.contextmanager
    def manager():
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(torch.float32)

    return manager()


def reduced_products():
    @contextlib.contextmanager
    def manager():
        torch.set_float32_matmul_precision("medium")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision("highest")

    return manager()


CONTEXTS = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast, off": lambda: torch.autocast("cpu", torch.bfloat16, enabled=False),
    "default dtype": default_dtype,
    "reduced products": reduced_products,
}


@pytest.mark.parametrize("precision", ["float32", "float64", pytest.param("mixed", marks=needs_bfloat16)])
@pytest.mark.parametrize("context", CONTEXTS)
def test_the_same_bits_in_any_context(context, precision, caller_state):
    model = seeded(lambda: nn.Sequential(nn.Linear(40, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 3)))
    data = (normal(50, 40), labels(50))

    def evaluate(objective):
        theta, found = objective.theta, []
        for point in (theta, 1.5 * theta, theta + 0.01):
            found += [objective.loss(point), *objective.loss_and_gradient(point), *objective.direction(point)]
            found += objective.log_probability_direction(point, 2)
            found += [objective.subset(9).loss(point), objective.losses(point[None])]
        return found

    expected = evaluate(outside := Objective(model, data, precision=precision))
    with CONTEXTS[context]():
        inside = Objective(model, data, precision=precision)
        state = caller_state()
        found = [evaluate(inside), evaluate(outside)]
        assert caller_state() == state
    found.append(evaluate(inside))
    for values in found:
        assert all(torch.equal(one, other) for one, other in zip(values, expected, strict=True))


def test_a_model_and_data_made_in_inference_mode():
    with torch.inference_mode():
        model, data = seeded(dense), (normal(SAMPLES, 4), labels(SAMPLES))
    objective = Objective(model, data)
    objective.loss_and_gradient(objective.theta)
    expected = Objective(seeded(dense), (normal(SAMPLES, 4), labels(SAMPLES)))
    assert torch.equal(objective.theta, expected.theta)
    assert float(objective.loss(objective.theta)) == float(expected.loss(expected.theta))


def test_products_are_in_full_float32_whatever_was_set():
    places = (torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv, torch.backends.cuda.matmul)
    before = [place.fp32_precision for place in places]
    objective = Objective(seeded(dense), (normal(SAMPLES, 4), labels(SAMPLES)))
    try:
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        seen = []
        handle = objective._evaluator.flat.module.register_forward_hook(
            lambda *_: seen.append(torch.backends.mkldnn.matmul.fp32_precision)
        )
        objective.loss_and_gradient(objective.theta)
        handle.remove()
        objective.settings()  # torch's own getter raises where the old and the new switches are mixed
        assert seen == ["ieee"]
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
        with hardware.full_float32("cuda"):
            assert torch.backends.cuda.matmul.fp32_precision == torch.backends.cudnn.conv.fp32_precision == "ieee"
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value


# Mixed precision.


@needs_bfloat16
def test_only_directions_are_rough_in_mixed_precision():
    model = seeded(lambda: nn.Sequential(nn.Linear(40, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 3)))
    data = (normal(50, 40), labels(50))
    mixed, full = Objective(model, data, precision="mixed"), Objective(model, data)
    theta = full.theta
    assert torch.equal(mixed.loss(theta), full.loss(theta))
    assert torch.equal(mixed.loss_and_gradient(theta)[1], full.loss_and_gradient(theta)[1])
    assert torch.equal(full.direction(theta)[1], full.loss_and_gradient(theta)[1])
    rough, exact = mixed.direction(theta)[1], full.direction(theta)[1]
    assert not torch.equal(rough, exact)
    assert F.cosine_similarity(rough, exact, dim=0) > 0.999
    assert mixed.mixed
    assert not full.mixed
    assert mixed.settings()["directions"] == "bfloat16"
    assert mixed.notes == []


def test_mixed_precision_without_the_hardware(monkeypatch):
    monkeypatch.setattr(hardware, "bfloat16_products", lambda _: False)
    model, data = seeded(dense), (normal(SAMPLES, 4), labels(SAMPLES))
    with pytest.warns(UserWarning, match="precision='mixed' ran in float32: no bfloat16 matrix products on this cpu"):
        objective = Objective(model, data, precision="mixed")
    full = Objective(model, data)
    assert torch.equal(objective.direction(full.theta)[1], full.direction(full.theta)[1])
    assert not objective.mixed
    assert objective.settings()["precision"] == "mixed"
    assert objective.settings()["directions"] == "float32"
    assert objective.settings()["notes"] == [
        "precision='mixed' ran in float32: no bfloat16 matrix products on this cpu"
    ]


def test_the_processor_is_read_once_and_any_may_lack_bfloat16(monkeypatch, tmp_path):
    assert isinstance(hardware.bfloat16_products("cpu"), bool)
    assert not hardware.bfloat16_products("mps")
    hardware.bfloat16_products.cache_clear()
    monkeypatch.setattr(hardware, "Path", lambda _: tmp_path / "nothing")
    assert not hardware.bfloat16_products("cpu")
    hardware.bfloat16_products.cache_clear()


# What else can be evaluated.


def test_losses_of_several_points_come_as_they_are():
    objective = Objective(seeded(dense), (normal(SAMPLES, 4), labels(SAMPLES)), batch_size=4)
    theta = objective.theta
    broken, huge = theta.clone(), theta.clone()
    broken[0], huge[-1] = math.nan, math.inf
    values = objective.losses(torch.stack([theta, broken, 2 * theta, huge]))
    assert values.dtype == torch.float64
    alone = torch.stack([objective.loss(theta), objective.loss(2 * theta)])
    torch.testing.assert_close(values[[0, 2]], alone, rtol=4 * torch.finfo(torch.float32).eps, atol=0)
    assert not values[[1, 3]].isfinite().any()
    assert objective.losses(theta.new_empty(0, objective.n)).shape == (0,)
    assert objective.evaluations == 6


def test_loss_and_accuracy():
    model, inputs, targets = seeded(dense), normal(SAMPLES, 4), labels(SAMPLES)
    objective = Objective(model, (inputs, targets), batch_size=4)
    loss, accuracy = objective.loss_and_accuracy(objective.theta)
    by_hand = 100 * int((model.eval()(inputs).argmax(1) == targets).sum()) / SAMPLES
    assert float(accuracy) == pytest.approx(by_hand, rel=1e-15)
    assert float(loss) == float(objective.loss(objective.theta))
    assert (accuracy.dtype, accuracy.dim()) == (torch.float64, 0)


@pytest.mark.parametrize("loss", ["mse", F.l1_loss])
def test_no_accuracy_without_classes(loss):
    objective = Objective(seeded(dense), (normal(SAMPLES, 4), normal(SAMPLES, 3)), loss=loss)
    assert objective.classes is None
    with pytest.raises(ValueError, match=r"accuracy needs class indices as targets and an output \(batch, classes\)"):
        objective.loss_and_accuracy(objective.theta)
    with pytest.raises(ValueError, match="label must be a class index below 0, got 0"):
        objective.log_probability_direction(objective.theta, 0)


def test_direction_of_a_log_probability():
    model, inputs, targets = seeded(dense), normal(SAMPLES, 4), labels(SAMPLES)
    objective = Objective(model, (inputs, targets), precision="float64", batch_size=4)
    value, gradient = objective.log_probability_direction(objective.theta, 2)
    expected, exact = reference(model, inputs, targets, lambda output, _: output.log_softmax(1)[:, 2].mean())
    assert float(value) == pytest.approx(expected, rel=1e-13)
    torch.testing.assert_close(gradient, exact, rtol=1e-12, atol=1e-12)
    for label in (-1, 3):
        with pytest.raises(ValueError, match=f"label must be a class index below 3, got {label}"):
            objective.log_probability_direction(objective.theta, label)


def test_subset_is_the_same_function_on_fewer_samples():
    model, inputs, targets = seeded(dense), normal(SAMPLES, 4), labels(SAMPLES)
    objective = Objective(model, (inputs, targets), precision="float64")
    few = objective.subset(4)
    chosen = [0, 2, 5, 8]
    alone = Objective(model, (inputs[chosen], targets[chosen]), precision="float64")
    theta = 1.1 * objective.theta
    assert few.samples == few.batch_size == 4
    assert float(few.loss(theta)) == float(alone.loss(theta))
    assert torch.equal(few.loss_and_gradient(theta)[1], alone.loss_and_gradient(theta)[1])
    assert few.evaluations == 2
    assert objective.evaluations == pytest.approx(8 / SAMPLES)
    few.subset(2).loss(theta)
    assert few.evaluations == pytest.approx(2.5)
    assert objective.evaluations == pytest.approx(10 / SAMPLES)
    assert float(objective.loss(theta)) == pytest.approx(reference_at(model, inputs, targets, theta), rel=1e-13)
    assert float(objective.subset(SAMPLES).loss(theta)) == float(objective.loss(theta))


def reference_at(model, inputs, targets, theta):
    model = copy.deepcopy(model).double().eval()
    nn.utils.vector_to_parameters(theta, model.parameters())
    return F.cross_entropy(model(inputs.double()), targets).item()


def test_subset_where_the_batch_matters():
    data = (normal(SAMPLES, 4), labels(SAMPLES))
    assert Objective(seeded(dense), data, batch_norm="batch").subset(4) is None
    assert Objective(seeded(Unused), data, batch_norm="batch").subset(4).samples == 4


@pytest.mark.parametrize("samples", [0, -1, SAMPLES + 1])
def test_subset_of_no_or_too_many_samples(samples):
    with pytest.raises(ValueError, match=f"samples must be (at least 1|between 1 and {SAMPLES}), got {samples}"):
        Objective(seeded(dense), (normal(SAMPLES, 4), labels(SAMPLES))).subset(samples)


def test_other_buffers():
    objective = Objective(seeded(dense), (normal(SAMPLES, 4), labels(SAMPLES)))
    before = objective.loss(objective.theta)
    objective.set_buffers({"1.running_mean": torch.ones(6)})
    assert objective.loss(objective.theta) != before
    with pytest.raises(ValueError, match=r"the model has no buffer '1.mean' of shape \(6,\)"):
        objective.set_buffers({"1.mean": torch.ones(6)})


class Counted(nn.Linear):
    """Counts the samples that pass through all copies of it."""

    passed = 0

    def forward(self, inputs):
        Counted.passed += len(inputs)
        return super().forward(inputs)


def test_evaluations_are_passes_over_the_data():
    objective = Objective(Counted(4, 3), (normal(SAMPLES, 4), labels(SAMPLES)), batch_size=4)
    Counted.passed, theta = 0, objective.theta
    objective.loss(theta)
    objective.loss_and_gradient(theta)
    objective.direction(theta)
    objective.losses(theta[None].repeat(3, 1))
    Counted.passed -= 2  # by which the layers were read: no pass over the data
    objective.loss_and_accuracy(theta)
    objective.log_probability_direction(theta, 0)
    objective.subset(5).direction(theta)
    assert objective.evaluations == pytest.approx(Counted.passed / SAMPLES)
    assert Counted.passed == 8 * SAMPLES + 5


# What is not finite.


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_names_its_batch(value):
    def loss(output, target):
        return output.mean() + torch.where(target == 7, value, 0.0).sum()

    targets = torch.zeros(SAMPLES, 1)
    targets[5] = 7
    objective = Objective(nn.Linear(4, 1), (normal(SAMPLES, 4), targets), loss=loss, batch_size=3)
    for evaluate in (objective.loss, objective.loss_and_gradient, objective.direction):
        with pytest.raises(
            FloatingPointError, match=rf"is {value} in samples 3..5 \(batch 2 of 4\): check their"
        ) as caught:
            evaluate(objective.theta)
        assert "\n" not in str(caught.value)
    assert not objective.losses(objective.theta[None]).isfinite()


def test_a_gradient_that_is_not_finite_names_its_parameter():
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.fine, self.root = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))

        def forward(self, inputs):
            return inputs * self.fine + self.root.sqrt()

    objective = Objective(Root(), (torch.ones(3, 1), torch.zeros(3, 1)), loss="mse")
    assert float(objective.loss(objective.theta)) == 1
    with pytest.raises(FloatingPointError, match=r"the loss is 1.0, but its gradient with respect to 'root' is NaN"):
        objective.loss_and_gradient(objective.theta)


@pytest.mark.parametrize(
    "theta",
    [torch.zeros(3), torch.zeros(1, 51), torch.zeros(51, dtype=torch.float64), torch.zeros(51, device="meta")],
)
def test_a_theta_that_does_not_fit(theta):
    objective = Objective(seeded(dense), (normal(SAMPLES, 4), labels(SAMPLES)))
    objective = Objective(nn.Linear(16, 3), (normal(SAMPLES, 16), labels(SAMPLES)))
    assert objective.n == 51
    with pytest.raises(ValueError, match=r"theta must be \(51,\) torch.float32 on cpu, got \("):
        objective.loss(theta)
    with pytest.raises(ValueError, match=r"points must be \(k, 51\), got shape \(51,\)"):
        objective.losses(objective.theta)


def test_settings_say_what_the_values_depend_on():
    objective = Objective(seeded(dense), (normal(SAMPLES, 4), labels(SAMPLES)), batch_size=4, parameters=["0.*"])
    settings = objective.settings()
    assert json.loads(json.dumps(settings, allow_nan=False)) == settings
    assert settings | {"threads": 1, "backend": ""} == {
        "loss": "cross_entropy",
        "parameters": ["0.*"],
        "n": 30,
        "samples": SAMPLES,
        "batch_norm": "eval",
        "batch_size": 4,
        "coupled": False,
        "weight": SAMPLES,
        "precision": "float32",
        "directions": "float32",
        "device": "cpu",
        "threads": 1,
        "backend": "",
        "data": "resident",
        "graph": "none: cpu",
        "judged": dict.fromkeys(QUESTIONS, "yes"),
        "notes": [],
    }
    assert settings["backend"] in ("native", "torch")
