"""Trainings with losses that weigh or ignore targets: the steps of torch, and measurements of all samples at once."""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lbgap import train, train_together
from lbgap.training import batches, loop

N, C = 37, 3
WEIGHT = torch.tensor([1.0, 4.0, 0.5])


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def labels(n, ignored=12, seed=1):
    drawn = torch.randint(0, C, (n,), generator=torch.Generator().manual_seed(seed))
    drawn[torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:ignored]] = -100
    return drawn


def make_model(seed=0):
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, C)).double()
    for number, parameter in enumerate(model.parameters()):
        parameter.data.copy_(normal(*parameter.shape, seed=10 * seed + number) / 2)
    return model


DATA, OTHER = (normal(N, 6), labels(N)), (normal(23, 6, seed=2), labels(23, 5, seed=3))


def pair(output, target):
    weight = WEIGHT.to(output)[target.clamp(min=0)] * (target >= 0)
    return (weight * F.cross_entropy(output, target, reduction="none")).sum(), weight.sum()


weighted = functools.partial(F.cross_entropy, weight=WEIGHT.double())
CASES = {
    "ignored": ("cross_entropy", F.cross_entropy),
    "weights": (nn.CrossEntropyLoss(WEIGHT), weighted),
    "sum": (nn.CrossEntropyLoss(WEIGHT, reduction="sum"), functools.partial(weighted, reduction="sum")),
    "a pair": (pair, weighted),
}


@pytest.mark.parametrize("name", CASES)
def test_steps_are_those_of_torch_and_measurements_those_of_all_samples(name, monkeypatch):
    monkeypatch.setattr(loop, "EVALUATION_BATCH", 10)
    given, function = CASES[name]
    options = {"optimizer": "SGD", "learning_rate": 0.01, "batch_size": 10, "epochs": 2, "seed": 5}
    run = train(make_model(), DATA, test_data=OTHER, loss=given, **options)
    reference = make_model()
    sgd = torch.optim.SGD(reference.parameters(), lr=0.01)
    for epoch in (1, 2):
        for index in batches.epoch_batches(N, 10, 5, epoch):
            sgd.zero_grad()
            function(reference(DATA[0][index].double()), DATA[1][index]).backward()
            sgd.step()
    for one, other in zip(run.model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
    for part, (inputs, targets) in (("train", DATA), ("test", OTHER)):
        output = reference(inputs.double())
        assert run.metrics[-1][f"{part}_loss"] == pytest.approx(float(function(output, targets).detach()), rel=1e-11)
        if name != "a pair":
            right = (output.argmax(1) == targets)[targets >= 0].double().mean()
            assert run.metrics[-1][f"{part}_accuracy"] == pytest.approx(100 * float(right), rel=1e-14)


@pytest.mark.parametrize("name", CASES)
def test_several_at_once(name):
    given, _ = CASES[name]
    options = {"batch_size": 10, "epochs": 2, "loss": given, "test_data": OTHER, "optimizer": "SGD"}
    alone = [train(make_model(seed), DATA, seed=seed, **options) for seed in (0, 1)]
    together = train_together([make_model(0), make_model(1)], DATA, seeds=[0, 1], **options)
    for one, other in zip(alone, together, strict=True):
        for row, found in zip(one.metrics, other.metrics, strict=True):
            for key in row.keys() - {"seconds"}:
                assert found[key] == pytest.approx(row[key], rel=1e-10)


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = make_model()

    def forward(self, inputs):
        return self.body(torch.stack([inputs, inputs.flip(1), -inputs, 2 * inputs], 1))


def test_tokens_with_their_classes_last():
    targets = torch.stack([DATA[1], DATA[1].flip(0), DATA[1].roll(1), DATA[1].roll(2)], 1)
    run = train(Tokens(), (DATA[0], targets), epochs=1, batch_size=8, remedies="stability")
    output = run.model(DATA[0].double()).movedim(-1, 1)
    assert run.metrics[-1]["train_loss"] == pytest.approx(float(F.cross_entropy(output, targets).detach()), rel=1e-12)
    right = (output.argmax(1) == targets)[targets >= 0].double().mean()
    assert run.metrics[-1]["train_accuracy"] == pytest.approx(100 * float(right), rel=1e-14)


def test_a_loss_module_is_not_changed():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, output, target):
            self.calls += 1
            return F.cross_entropy(output, target)

    loss = Counting()
    before = copy.deepcopy(loss.state_dict())
    train(make_model(), DATA, loss=loss, epochs=1, batch_size=8)
    assert loss.state_dict() == before
    assert loss.training


def test_a_batch_of_ignored_targets_is_named():
    targets = torch.full((N,), -100)
    targets[-1] = 0
    with pytest.raises(
        FloatingPointError, match=r"became nan at epoch 1.*, or for batches whose targets are all ignored"
    ):
        train(make_model(), (DATA[0], targets), epochs=1, batch_size=5)


def test_a_callable_that_broadcasts_is_refused():
    data = DATA[0], normal(N, seed=4)
    with pytest.raises(ValueError, match="lets torch broadcast outputs and targets"):
        train(nn.Linear(6, 1), data, loss=lambda output, target: (output - target).square().mean(), epochs=1)


def test_fresh_networks_train_with_bce():
    model = nn.Sequential(nn.Linear(6, 1), nn.Tanh(), nn.Linear(1, 1))
    nn.init.constant_(model[2].bias, 0.3), nn.init.constant_(model[2].weight, 0.01)  # logits between 0 and 1
    targets = DATA[0][:, :1] > 0
    run = train(model, (DATA[0], targets), loss="bce", epochs=1)
    expected = F.binary_cross_entropy_with_logits(run.model(DATA[0]), targets.float())
    assert run.metrics[-1]["train_loss"] == pytest.approx(float(expected.detach()), rel=1e-6)
    with pytest.raises(ValueError, match=r"like probabilities: pass torch.nn.BCELoss\(\)"):
        train(nn.Sequential(model, nn.Sigmoid()), (DATA[0], targets), loss="bce", epochs=1)


def test_a_run_with_other_class_weights_is_not_continued(tmp_path):
    options = {"epochs": 1, "out": tmp_path / "run"}
    train(make_model(), DATA, loss=nn.CrossEntropyLoss(WEIGHT), **options)
    with pytest.raises(ValueError, match=r"loss_options.weight is \[1.0, 4.0, 0.5\] there but absent here"):
        train(make_model(), DATA, loss=nn.CrossEntropyLoss(), resume=True, **options)
