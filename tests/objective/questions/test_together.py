"""Outputs that cannot be cut, as those with a loss of the model's own: samples together, and a pass of each piece."""

from collections import UserDict
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lbgap import Objective
from lbgap.objective import judge
from lbgap.objective.questions import additive, repeats, together

pytestmark = pytest.mark.usefixtures("one_thread")

SAMPLES = 200


@pytest.fixture(autouse=True)
def fewer_questions(monkeypatch):
    """Others have tests of their own, and may refuse what adds up."""
    monkeypatch.setattr(judge, "QUESTIONS", {"repeats": repeats.ask, "additive": additive.ask})


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


X, T = normal(SAMPLES, 8), normal(SAMPLES, 4, seed=2)
Y = torch.randint(0, 4, (SAMPLES,), generator=torch.Generator().manual_seed(1))
IGNORED = torch.where(torch.arange(SAMPLES) % 5 == 0, -100, Y)


@dataclass
class Output:
    loss: torch.Tensor
    logits: torch.Tensor


FORMS = {
    "a dict": lambda loss, logits: {"loss": loss, "logits": logits},
    "another mapping": lambda loss, logits: UserDict(loss=loss, logits=logits),
    "a dataclass": Output,
    "a tuple": lambda loss, logits: (loss, logits),
    "a loss alone": lambda loss, _: {"loss": loss},
}
LOSSES = {
    "a dict": lambda output, _: output["loss"],
    "another mapping": lambda output, _: output["loss"],
    "a dataclass": lambda output, _: output.loss,
    "a tuple": lambda output, _: output[0],
    "a loss alone": lambda output, _: output["loss"],
}


class Own(nn.Module):
    """A model that returns a loss of its own beside its logits."""

    def __init__(self, criterion=F.cross_entropy, form="a dataclass"):
        super().__init__()
        self.body, self.criterion, self.form = nn.Linear(8, 4), criterion, FORMS[form]

    def forward(self, x, labels):
        logits = self.body(x)
        return self.form(self.criterion(logits, labels), logits)


def of_model(output, _):
    return output.loss


def valid(output, batch):
    count = (batch["labels"] != -100).sum()
    return output.loss.nan_to_num() * count, count  # of ignored labels alone a mean is NaN


def batch_of(labels=Y, x=X):
    return {"x": x, "labels": labels}


def doubled(model):
    """The logits of all samples in float64."""
    return (X.double() @ model.body.weight.double().T + model.body.bias.double()).detach()


def asked(model, data=None, loss=of_model, **options):
    return Objective(model, data or batch_of(), loss=loss, **options).judged["additive"]


def refused(message, model, data=None, loss=of_model, **options):
    with pytest.raises(ValueError, match=message) as caught:
        Objective(model, data or batch_of(), loss=loss, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# What adds up.


@pytest.mark.parametrize("form", FORMS)
def test_a_mean_over_samples(form, monkeypatch):
    calls = []
    monkeypatch.setattr(additive.together, "ask", lambda *parts: calls.append(parts) or together_ask(*parts))
    model = Own(form=form)
    objective = Objective(model, batch_of(), loss=LOSSES[form])
    assert len(calls) == 1  # by passes of pieces
    assert objective.judged["additive"] == "yes"
    exact = F.cross_entropy(doubled(model), Y)
    # 200 terms, each rounded to float32 a few times and added up in float32.
    assert float(objective.loss(objective.theta)) == pytest.approx(float(exact), rel=1e-5)


together_ask = together.ask


def test_outputs_that_can_be_cut_are_cut(monkeypatch):
    def fail(*_):
        raise AssertionError

    monkeypatch.setattr(additive.together, "ask", fail)

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(8, 4)

        def forward(self, x):
            hidden = self.body(x)
            return {"hidden": hidden, "logits": hidden * 2}

    assert asked(Two(), loss=lambda o, b: F.cross_entropy(o["logits"], b["labels"])) == "yes"
    message = "must be the mean over the batch, not its sum"
    refused(message, Two(), loss=lambda o, b: F.cross_entropy(o["logits"], b["labels"], reduction="sum"))


def test_outputs_in_containers_that_see_each_other():
    class Centred(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(8, 4)

        def forward(self, x):
            hidden = self.body(x)
            return {"hidden": hidden, "logits": hidden - hidden.mean(0)}

    loss = {"loss": lambda o, b: F.cross_entropy(o["logits"], b["labels"])}
    message = "the output for a sample depends on the others of its batch"
    assert "coupled=True" in refused(message, Centred(), **loss)
    assert asked(Centred(), coupled=True, batch_size=50, **loss) == "not judged: coupled=True"


def test_sums_with_the_weight_of_what_counts():
    model = Own()
    objective = Objective(model, batch_of(IGNORED), loss=valid)
    assert objective.judged["additive"] == "yes"
    exact = F.cross_entropy(doubled(model), IGNORED)
    assert float(objective.loss(objective.theta)) == pytest.approx(float(exact), rel=1e-5)
    assert objective.settings()["weight"] == 160.0


@pytest.mark.parametrize("samples", [1, 2, 3, 5, 33])
def test_few_samples(samples):
    assert asked(Own(), batch_of(Y[:samples], X[:samples])) == "yes"


def test_a_value_for_each_sample():
    model = Own(lambda logits, labels: F.cross_entropy(logits, labels, reduction="none").sum())
    assert asked(model, loss=lambda o, b: F.cross_entropy(o.logits, b["labels"], reduction="none")) == "yes"


# What does not.

NO_MEANS = {
    "ignored labels": (Own(), batch_of(IGNORED), of_model),
    "class weights": (
        Own(lambda o, y: F.cross_entropy(o, y, weight=torch.tensor([1, 1, 1, 5.0]).to(o))),
        batch_of(),
        of_model,
    ),
    "a root": (Own(lambda o, _: o.square().mean().sqrt()), batch_of(), of_model),
    "a contrast": (
        Own(lambda o, _: F.cross_entropy(o @ o.T, torch.arange(len(o)))),
        batch_of(),
        of_model,
    ),
}


@pytest.mark.parametrize("name", NO_MEANS)
def test_what_is_no_mean_over_samples(name):
    model, data, loss = NO_MEANS[name]
    found = refused("the loss 'of_model' is no mean over samples: ", model, data, loss)
    assert "return (sum, weight)" in found
    assert "coupled=True with a batch_size=" in found
    assert found.endswith("loss='model' or 'causal_lm' where it is a model of transformers with these labels")


def test_no_hint_where_there_are_no_labels():
    class Square(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(8, 4)

        def forward(self, x):
            return {"loss": self.body(x).square().mean().sqrt()}

    assert "transformers" not in refused("is no mean over samples", Square(), {"x": X}, lambda o, _: o["loss"])


def test_a_sum_over_the_batch():
    model = Own(lambda o, y: F.cross_entropy(o, y, reduction="sum"))
    refused("must be the mean over the batch, not its sum: .*: use reduction='mean'", model)


def test_the_numbers_that_do_not_add_up():
    """The message has the losses of two pieces, that of both, and what theirs would make of it."""
    model = Own(lambda o, _: o.sum() * 0 + torch.tensor(float(len(o))).to(o))  # the loss is the size
    found = refused("is no mean over samples|not its sum", model)
    assert "24 samples gave 24, 24 others 24, and all together 48 in place of 24" in found


def test_weights_that_do_not_add_up():
    def rooted(output, batch):
        count = float(len(batch["labels"]))
        return output.loss * count, count**0.5

    refused(
        "the loss 'rooted' returns the weight 6.9282 for a batch, but 4.89898 and 4.89898 for its", Own(), None, rooted
    )


def test_weights_that_depend_on_parameters():
    def weighed(output, _):
        size = output.logits.detach().abs().sum()
        return output.logits.square().sum(), size

    message = "the weight that the loss 'weighed' returns depends on the parameters: let it follow from the targets"
    refused(message, Own(), None, weighed)


def test_a_group_of_which_nothing_counts():
    """A mean over what counts is right wherever as much counts, and NaN where nothing does."""
    labels = torch.cat([Y[:-6], torch.full((6,), -100)])

    def among(logits, labels):
        kept = labels >= 0
        return logits.square().mean() + 0.0 * logits[kept].mean()

    message = "is nan for samples whose targets are -100, but finite for these and others together"
    assert "both zero where nothing counts" in refused(message, Own(among), batch_of(labels))
    refused(
        message, Own(), batch_of(labels), lambda o, b: (o.loss * (b["labels"] >= 0).sum(), (b["labels"] >= 0).sum())
    )


def test_a_piece_whose_loss_is_not_finite():
    labels = torch.zeros(SAMPLES, dtype=torch.int64)
    labels[17] = 1

    def rare(logits, labels):
        return logits.square().mean() + 0.0 * logits.mean() / labels.sum().to(logits).clamp(max=1)

    refused("the loss 'of_model' is nan for samples of a batch, but finite for these", Own(rare), batch_of(labels))


def test_a_loss_that_is_finite_nowhere_is_for_the_pass_to_refuse():
    objective = Objective(Own(lambda o, _: o.mean() / 0), batch_of(), loss=of_model)
    assert objective.judged["additive"] == together.UNKNOWN
    with pytest.raises(FloatingPointError, match=r"the loss is (-?inf|nan) in samples 0..199"):
        objective.loss(objective.theta)


def test_a_coupling_that_shows_some_way_off():
    model = Own(lambda o, _: o.mean() + o.mean(0).square().mean())
    nn.init.zeros_(model.body.weight)
    nn.init.zeros_(model.body.bias)
    refused("is no mean over samples", model)


def test_a_model_for_batches_that_are_large_enough():
    def large(logits, _):
        if len(logits) < 30:
            raise RuntimeError("too few")
        return logits.square().mean()

    message = (
        r"the model or the loss 'of_model' does not run on 24 or 24 of the samples \(too few\): let it take any batch, "
        "or pass coupled=True"
    )
    refused(message, Own(large))


def test_a_model_that_does_not_run_where_nothing_counts():
    labels = torch.cat([Y[:-6], torch.full((6,), -100)])

    def counting(logits, labels):
        return logits.square().mean() + 0 / int((labels >= 0).sum())

    found = refused("does not run on", Own(counting), batch_of(labels))
    assert "samples whose targets are -100 of the samples (division by zero)" in found


def test_a_loss_with_parameters_of_its_own():
    scale = nn.Parameter(torch.ones(()))
    refused("depends on trainable tensors besides the model's output", Own(), None, lambda o, _: o.loss + scale)


def test_a_loss_that_draws():
    model, state = Own(), torch.get_rng_state()
    message = "gives .* and then .* for the same outputs: there must be nothing random"
    refused(message, model, None, lambda o, _: o.loss * (1 + 0.1 * torch.rand(())))
    assert torch.equal(torch.get_rng_state(), state)


# Rounding.


class Offset(nn.Module):
    """A mean around a large number, which float32 rounds to a few digits."""

    def __init__(self, offset, only=None):
        super().__init__()
        self.body, self.offset, self.only = nn.Linear(8, 4), offset, only

    def forward(self, x):
        if self.only is not None and x.dtype != self.only:
            raise RuntimeError("float32 alone")
        return {"loss": (self.body(x).square() + self.offset).mean() - self.offset}


def share(model):
    """By how much the sums of two halves miss that of both, relative to them all, in float32."""
    with torch.no_grad():
        both, one, other = (float(model(x)["loss"]) * len(x) for x in (X[:48], X[:24], X[24:48]))
    return abs(both - one - other) / (abs(both) + abs(one) + abs(other))


def test_rounding_that_a_float64_copy_settles(monkeypatch):
    model = Offset(5e3)
    assert share(model) > 1e-4  # else float32 were enough
    settled = []
    precisely = together._precisely
    monkeypatch.setattr(together, "_precisely", lambda *parts: settled.append(precisely(*parts)) or settled[-1])
    assert asked(model, {"x": X}, lambda o, _: o["loss"]) == "yes"
    assert settled
    assert not any(settled)


def test_what_a_float64_copy_finds_wrong_is_refused():
    """A coupling of a few thousandths, no more than rounding makes at times."""

    class Coupled(Offset):
        def forward(self, x):
            return {"loss": super().forward(x)["loss"] + 0.1 * self.body(x).mean(0).square().mean()}

    refused("is no mean over samples", Coupled(0.0), {"x": X}, lambda o, _: o["loss"])


def test_rounding_in_a_model_of_one_type_leaves_a_doubt():
    model = Offset(3e3, only=torch.float32)
    assert 7e-5 < share(model) < 1e-3
    assert asked(model, {"x": X}, lambda o, _: o["loss"]) == together.DOUBT
    refused("is no mean over samples", Offset(1e6, only=torch.float32), {"x": X}, lambda o, _: o["loss"])


# Samples that are meant to see each other, and batches that are not cut.


def contrast(logits, _):
    return F.cross_entropy(logits @ logits.T, torch.arange(len(logits)))


def test_a_loss_of_pairs_with_coupled_batches():
    model = Own(contrast)
    objective = Objective(model, batch_of(), loss=of_model, coupled=True, batch_size=40)
    assert objective.judged["additive"] == "not judged: coupled=True"
    exact = sum(contrast(part, None) for part in doubled(model).split(40)) / 5
    assert float(objective.loss(objective.theta)) == pytest.approx(float(exact), rel=1e-5)


def test_statistics_of_the_batch_are_not_judged():
    class Normed(Own):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4))

    assert asked(Normed(), batch_norm="batch") == "not judged: batch_norm='batch'"
    assert asked(Normed()) == "yes"


def test_batches_that_cannot_be_cut_are_not_judged():
    def batches():
        for number in range(4):
            rows = slice(number * 50, number * 50 + 50)
            yield {"x": X[rows], "labels": Y[rows], "mean": X[:3]}

    class Also(Own):
        def forward(self, x, labels, mean):
            return super().forward(x + mean.mean(0), labels)

    with pytest.raises(ValueError, match=r"nobody knows how many samples it is over: return \(sum, weight\)"):
        asked(Also(), batches)
    assert asked(Also(), batches, valid) == "not judged: batches that cannot be cut"
