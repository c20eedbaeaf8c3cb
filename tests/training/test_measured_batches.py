"""Trainings with callables that are no means over samples: measured in batches as trained, and the run says so."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lbgap import train, train_together
from lbgap.problem.loss import resolve_loss
from lbgap.training import batches, read_run
from lbgap.training.pieces import adds_up, draw

N, SIZE = 1200, 100
WEIGHT = torch.tensor([1.0, 10.0, 0.1])


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make_model(inputs=4, outputs=3):
    model = nn.Linear(inputs, outputs).double()
    for number, parameter in enumerate(model.parameters()):
        parameter.data.copy_(normal(*parameter.shape, seed=number))
    return model


SORTED = torch.arange(N) * 3 // N  # the first 64 samples are of one class
INPUTS, TEST = normal(N, 4), (normal(240, 4, seed=5), SORTED[::5].roll(7))


def ratio(output, target):
    return F.cross_entropy(output, target, weight=WEIGHT.to(output))


def ignoring(output, target):
    return F.cross_entropy(output, target.where(target != 1, -100))


def contrastive(output, target):
    return F.cross_entropy(output @ output.T, torch.arange(len(output)))


def root(output, target):
    return (output.sum(1) - target).square().mean().sqrt()


def of_64(output, target):
    return F.cross_entropy(output @ output.T, torch.arange(64))


def mean_over_batches(model, data, loss, size, seed):
    total = 0.0
    for rows in batches.epoch_batches(len(data[0]), size, seed, 0):
        total += len(rows) * float(loss(model(data[0][rows].double()), data[1][rows]).detach())
    return total / len(data[0])


@pytest.mark.parametrize("loss", [ratio, ignoring, contrastive, root])
def test_what_does_not_add_up_is_the_mean_over_batches(loss):
    run = train(make_model(), (INPUTS, SORTED), test_data=TEST, loss=loss, batch_size=SIZE, epochs=2, seed=3)
    for part, data in (("train", (INPUTS, SORTED)), ("test", TEST)):
        expected = mean_over_batches(run.model, data, loss, SIZE, 3)
        assert run.metrics[-1][f"{part}_loss"] == pytest.approx(expected, rel=1e-12)
    assert run.config["coupled"] is True
    note = (
        f"losses are means over batches of 100, which the training lowers: the loss '{loss.__name__}' does not add up"
    )
    assert run.config["notes"][0].startswith(note)
    assert f"note: {note}" in str(run)


def test_a_whole_batch_gives_the_loss_of_all_samples():
    run = train(make_model(), (INPUTS, SORTED), loss=ratio, batch_size=1.0, epochs=1)
    expected = float(ratio(run.model(INPUTS.double()), SORTED).detach())
    assert run.metrics[-1]["train_loss"] == pytest.approx(expected, rel=1e-12)


def test_test_data_alone_may_show_it():
    data = INPUTS, SORTED.clamp(max=0)
    run = train(make_model(), data, test_data=TEST, loss=ratio, batch_size=SIZE, epochs=1)
    assert run.metrics[-1]["test_loss"] == pytest.approx(mean_over_batches(run.model, TEST, ratio, SIZE, 0), rel=1e-12)


MEANS = {
    "mean": (3, lambda output, target: F.cross_entropy(output, target)),
    "by sample": (3, lambda output, target: F.cross_entropy(output, target, reduction="none")),
    "plus a constant": (3, lambda output, target: F.cross_entropy(output, target) + 2),
    "in float32": (3, lambda output, target: F.cross_entropy(output.float(), target)),
    "in half precision": (3, lambda output, target: F.cross_entropy(output.bfloat16().float(), target)),
    "a value in half precision": (3, lambda output, target: F.cross_entropy(output.bfloat16(), target)),
    "probabilities": (3, lambda output, target: F.nll_loss(output.softmax(1).log(), target, reduction="mean")),
    "squeezed": (1, lambda output, target: (output.squeeze() - target).square().mean()),
    "signed": (1, lambda output, target: (output.squeeze(1) * (1 - target)).mean()),
}


@pytest.mark.parametrize("name", MEANS)
def test_means_are_measured_over_all_samples(name):
    outputs, loss = MEANS[name]
    run = train(make_model(outputs=outputs), (INPUTS, SORTED), loss=loss, batch_size=SIZE, epochs=1)
    assert not run.config.keys() & {"coupled", "notes"}
    expected = float(loss(run.model(INPUTS.double()), SORTED).mean().detach())
    assert run.metrics[-1]["train_loss"] == pytest.approx(expected, rel=2**-7 if "half" in name else 1e-6)


@pytest.mark.parametrize("given", ["cross_entropy", nn.CrossEntropyLoss(WEIGHT)])
def test_losses_of_torch_are_not_tried(given):
    sizes = []

    class Counting(nn.Linear):
        def forward(self, inputs):
            if not self.training:
                sizes.append(len(inputs))
            return super().forward(inputs)

    train(Counting(4, 3), (INPUTS, SORTED), loss=given, batch_size=SIZE, epochs=1)
    assert sizes == [8, 512, 512, 176]


def test_a_ratio_shows_where_a_fresh_network_gives_one_output():
    model = make_model()
    nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)
    run = train(model, (INPUTS, SORTED), loss=ratio, batch_size=SIZE, epochs=1)
    assert run.config["coupled"] is True


def test_a_ratio_shows_by_small_differences_of_weights():
    weight = torch.tensor([1.0, 1.01, 1.0], dtype=torch.float64)

    def loss(output, target):
        return F.cross_entropy(output, target, weight=weight.to(output))

    run = train(make_model().float(), (INPUTS, SORTED), loss=loss, batch_size=SIZE, epochs=1)
    assert run.config["coupled"] is True


@pytest.mark.parametrize("column", [0, 1, 5])
def test_one_rare_target_is_found(column):
    targets = normal(5000, 6, seed=2)
    targets[4321, column] = -100.0

    def masked(output, target):
        mask = (target > -100).double()
        return (mask * (output - target).square()).sum() / mask.sum()

    loss = resolve_loss(masked)
    rows = draw(targets, 6)
    assert len(rows) <= 64
    assert 4321 in rows
    assert not adds_up(loss, normal(len(rows), 6, seed=3), targets[rows])


def test_resumed_as_it_began(tmp_path):
    options = {"test_data": TEST, "loss": ratio, "batch_size": SIZE, "epochs": 3}

    def stop(row):
        raise KeyboardInterrupt

    whole = train(make_model(), (INPUTS, SORTED), **options)
    with pytest.raises(KeyboardInterrupt):
        train(make_model(), (INPUTS, SORTED), out=tmp_path / "run", progress=stop, **options)
    other = make_model()  # another start, on which nothing shows
    nn.init.constant_(other.bias, float("nan"))
    run = train(other, (INPUTS, SORTED), out=tmp_path / "run", resume=True, **options)
    assert run.config["coupled"] is True
    for row, expected in zip(run.metrics, whole.metrics, strict=True):
        assert {**row, "seconds": 0} == {**expected, "seconds": 0}
    assert read_run(tmp_path / "run").config["notes"] == whole.config["notes"]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["coupled"] is True


def test_several_at_once_measure_the_same():
    options = {"loss": ratio, "batch_size": SIZE, "epochs": 1, "optimizer": "SGD"}
    alone = [train(make_model(), (INPUTS, SORTED), seed=seed, **options) for seed in (0, 1)]
    together = train_together([make_model(), make_model()], (INPUTS, SORTED), seeds=[0, 1], **options)
    for one, other in zip(alone, together, strict=True):
        assert other.metrics[-1]["train_loss"] == pytest.approx(one.metrics[-1]["train_loss"], rel=1e-10)
        assert other.config["notes"] == one.config["notes"]


def test_a_loss_of_one_batch_size():
    data = INPUTS[:640], torch.zeros(640)
    run = train(make_model(), data, test_data=(INPUTS[640:768], data[1][:128]), loss=of_64, batch_size=64, epochs=1)
    assert run.metrics[-1]["train_loss"] == pytest.approx(mean_over_batches(run.model, data, of_64, 64, 0), rel=1e-12)
    assert run.config["coupled"] is True
    with pytest.raises(ValueError, match=r"does not accept outputs .* Expected input batch_size") as caught:
        train(make_model(), data, loss=of_64, batch_size=32, epochs=1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "train_samples", "test_samples"), [("data", 650, 128), ("test_data", 640, 138)])
def test_a_last_batch_of_another_size_is_refused_before_the_first_step(name, train_samples, test_samples):
    data, tested = ((INPUTS[:count], torch.zeros(count)) for count in (train_samples, test_samples))
    with pytest.raises(ValueError, match=rf"\d+ samples of {name} in batches of 64 leave a last one of 10, ") as caught:
        train(make_model(), data, test_data=tested, loss=of_64, batch_size=64, epochs=1)
    assert "\n" not in str(caught.value)


def test_a_model_of_one_batch_size():
    class Fixed(nn.Linear):
        def forward(self, inputs):
            return super().forward(inputs.reshape(60, 4))

    run = train(Fixed(4, 3).double(), (INPUTS, SORTED), batch_size=60, epochs=1)
    outputs = F.linear(INPUTS.double(), run.model.weight, run.model.bias)
    assert run.metrics[-1]["train_loss"] == pytest.approx(float(F.cross_entropy(outputs, SORTED).detach()), rel=1e-12)
    assert "coupled" not in run.config


def pair(output, target):
    values, weight = target.unbind(1)
    return (weight * (output.squeeze(1) - values).square()).sum(), weight.sum()


class TestPairsThatWeighNothing:
    WEIGHED = torch.stack((normal(80), (torch.arange(80) >= 40).float()), 1)

    @pytest.mark.parametrize("name", ["data", "test_data"])
    def test_all_of_the_data(self, name):
        whole, nothing = (INPUTS[:80], self.WEIGHED), (INPUTS[:40], self.WEIGHED[:40])
        data, tested = (nothing, whole) if name == "data" else (whole, nothing)
        with pytest.raises(ValueError, match=rf"^the loss 'pair' returns the weight 0 for all samples of {name}: .*\Z"):
            train(make_model(outputs=1), data, test_data=tested, loss=pair, batch_size=40, epochs=1)

    def test_a_batch(self):
        with pytest.raises(FloatingPointError, match="or for batches whose targets are all ignored"):
            train(make_model(outputs=1), (INPUTS[:80], self.WEIGHED), loss=pair, batch_size=2, epochs=1)

    def test_some_test_data(self):
        tested = INPUTS[:41], self.WEIGHED[:41]
        run = train(make_model(outputs=1), tested, test_data=tested, loss=pair, batch_size=41, epochs=1)
        expected = (run.model(INPUTS[40:41].double()).squeeze() - self.WEIGHED[40, 0]).square()
        assert run.metrics[-1]["test_loss"] == pytest.approx(float(expected.detach()), rel=1e-6)
