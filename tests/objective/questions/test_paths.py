"""Gradients reach every parameter that may move, and nothing else: the rest is mended, named or refused."""

import copy
import types
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from lbgap import Objective, train

pytestmark = pytest.mark.usefixtures("one_thread")


def make_data(samples=50):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(samples, 8, generator=generator), torch.randint(0, 4, (samples,), generator=generator)


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)

    def hidden(self, inputs):
        return torch.tanh(self.a(inputs))

    def forward(self, inputs):
        return self.b(self.hidden(inputs))


class Lora(nn.Linear):
    """Merges its factors into the weight in evaluation mode, as microsoft/LoRA does."""

    def __init__(self, inputs, outputs, frozen=True):
        super().__init__(inputs, outputs)
        self.left, self.right = nn.Parameter(torch.randn(outputs, 2)), nn.Parameter(torch.randn(2, inputs))
        self.merged = False
        self.weight.requires_grad_(not frozen)
        self.bias.requires_grad_(not frozen)

    def train(self, mode=True):
        super().train(mode)
        if mode == self.merged:
            self.weight.data += (-1 if mode else 1) * (self.left @ self.right).data
            self.merged = not mode
        return self

    def forward(self, inputs):
        added = 0 if self.merged else inputs @ self.right.T @ self.left.T
        return F.linear(inputs, self.weight, self.bias) + added


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("mode", [True, False])
def test_factors_that_are_merged_in_evaluation_mode(mode, frozen):
    model = nn.Sequential(Lora(8, 16, frozen), nn.Tanh(), nn.Dropout(), nn.Linear(16, 4)).double()
    inputs, targets = make_data()[0].double(), make_data()[1]
    model.eval()
    expected = float(F.cross_entropy(model(inputs), targets).detach())
    model.train(mode)
    objective = Objective(model, (inputs, targets), precision="float64")
    assert objective.notes == [
        "kept in training mode, alone, with the same outputs: '0', for in evaluation mode outputs or gradients do "
        "not follow their parameters (a cache, merged weights)"
    ]
    assert objective.judged["gradient paths"] == "yes, with '0' in training mode"
    loss, gradient = objective.loss_and_gradient(objective.theta)
    assert float(loss) == pytest.approx(expected, rel=1e-12)

    fresh = nn.Sequential(Lora(8, 16, frozen), nn.Tanh(), nn.Linear(16, 4)).double()
    fresh.load_state_dict({key.replace("3.", "2."): part for key, part in model.train().state_dict().items()})
    moving = [part for part in fresh.parameters() if part.requires_grad]
    wanted = torch.autograd.grad(F.cross_entropy(fresh(inputs), targets), moving)
    torch.testing.assert_close(gradient, torch.cat([part.flatten() for part in wanted]), rtol=1e-9, atol=1e-12)
    if mode:
        assert torch.equal(objective.theta, torch.cat([part.detach().flatten() for part in moving]))


class EvaluatedWithoutGradients(Base):
    def hidden(self, inputs):
        with torch.set_grad_enabled(self.training):
            return super().hidden(inputs)


def test_gradients_that_only_training_mode_has():
    objective, plain = Objective(EvaluatedWithoutGradients(), make_data()), Objective(Base(), make_data())
    assert objective.judged["gradient paths"] == "yes, with 'the model' in training mode"
    torch.testing.assert_close(*(one.loss_and_gradient(plain.theta)[1] for one in (objective, plain)))


class Checkpointed(Base):
    def __init__(self, where, reentrant):
        super().__init__()
        self.where, self.reentrant = where, reentrant

    def run(self, name, value):
        layer = getattr(self, name)
        return checkpoint(layer, value, use_reentrant=self.reentrant) if name == self.where else layer(value)

    def forward(self, inputs):
        return self.run("b", torch.tanh(self.run("a", inputs)))


@pytest.mark.parametrize("where", ["a", "b"])
def test_checkpointing(where):
    objective, plain = Objective(Checkpointed(where, reentrant=False), make_data()), Objective(Base(), make_data())
    torch.testing.assert_close(*(one.loss_and_gradient(plain.theta)[1] for one in (objective, plain)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that gradients will be None
        with pytest.raises(ValueError, match="use_reentrant=False") as caught:
            Objective(Checkpointed(where, reentrant=True), make_data())
    assert "\n" not in str(caught.value)


class Detached(Base):
    def forward(self, inputs):
        return F.linear(self.hidden(inputs), self.b.weight.detach(), self.b.bias)


class Data(Base):
    def forward(self, inputs):
        return F.linear(self.hidden(inputs), self.b.weight.data, self.b.bias)


class NoGrad(Base):
    def hidden(self, inputs):
        with torch.no_grad():
            return super().hidden(inputs)


class ByNumpy(Base):
    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.ones(4))

    def forward(self, inputs):
        return super().forward(inputs) + torch.from_numpy(np.asarray(self.shift.tolist())).to(inputs)


@pytest.mark.parametrize(
    ("kind", "names"),
    [(Detached, "'b.weight'"), (Data, "'b.weight'"), (NoGrad, "'a.weight', 'a.bias'"), (ByNumpy, "'shift'")],
)
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_gradients_that_are_cut(kind, names, precision):
    with pytest.raises(ValueError, match=f"moving {names} changes the outputs, but no gradient reaches that") as caught:
        Objective(kind(), make_data(), precision=precision)
    assert "\n" not in str(caught.value)
    kept = [name for name, _ in kind().named_parameters() if repr(name) not in names]
    assert Objective(kind(), make_data(), parameters=kept).judged["gradient paths"] == "yes"


class Unused(Base):
    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(3, 3)


class Auxiliary(Base):
    """A second head in training mode."""

    def __init__(self):
        super().__init__()
        self.head, self.norm = nn.Linear(16, 4), nn.BatchNorm1d(16)

    def forward(self, inputs):
        hidden = self.norm(self.hidden(inputs))
        return (self.b(hidden), self.head(hidden)) if self.training else self.b(hidden)


@pytest.mark.parametrize(("kind", "name"), [(Unused, "unused"), (Auxiliary, "head")])
def test_parameters_without_an_effect_are_named(kind, name):
    objective = Objective(kind(), make_data())
    assert objective.notes == [
        f"no gradient path to '{name}.weight', '{name}.bias', in the samples tried: they count as directions without "
        "an effect"
    ]
    assert objective.judged["gradient paths"] == "yes"
    gradient = objective.split(objective.loss_and_gradient(objective.theta)[1])
    assert not gradient[f"{name}.weight"].any()


class Experts(nn.Module):
    """Each sample takes one expert."""

    def __init__(self, count):
        super().__init__()
        self.gate, self.experts = nn.Linear(8, count), nn.ModuleList(nn.Linear(8, 4) for _ in range(count))

    def forward(self, inputs):
        shares = self.gate(inputs).softmax(1)
        chosen = shares.argmax(1)
        outputs = inputs.new_zeros(len(inputs), 4)
        for number, expert in enumerate(self.experts):
            rows = (chosen == number).nonzero().flatten()
            if len(rows):
                outputs = outputs.index_add(0, rows, expert(inputs[rows]) * shares[rows, number, None])
        return outputs


def test_experts_that_the_first_samples_do_not_take():
    inputs, targets = make_data(300)
    model = Experts(6)
    order = model.gate(inputs).argmax(1).argsort()  # so that the first samples all take one expert
    objective = Objective(model, (inputs[order], targets[order]))
    assert not objective.notes
    noted = Objective(Experts(60), (inputs, targets))
    assert [note.startswith("no gradient path to 'experts.") for note in noted.notes] == [True]
    assert set(noted.judged.values()) == {"yes"}


class BadInTraining(Unused):
    def forward(self, inputs):
        if self.training:
            raise RuntimeError("not here")
        return super().forward(inputs)


def test_errors_in_training_mode_are_no_fault():
    assert len(Objective(BadInTraining(), make_data()).notes) == 1


class ByClass(Base):
    """Reaches its layer by its class."""

    def __init__(self):
        super().__init__()
        type(self).shared = self.b

    def forward(self, inputs):
        return type(self).shared(self.hidden(inputs)) + self.b(self.hidden(inputs))


class View(Base):
    """Keeps a function of a view of its own memory."""

    def __init__(self):
        super().__init__()
        weight = self.b.weight.data
        self.head = lambda hidden: hidden @ weight.T + self.b(hidden)

    def forward(self, inputs):
        return self.head(self.hidden(inputs))


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("kind", [ByClass, View])
def test_what_cannot_be_rebound_is_refused_by_name(kind, frozen):
    model = kind()
    model.b.requires_grad_(not frozen)
    for call in (Objective, lambda *args: train(*args, epochs=1)):
        with pytest.raises(ValueError, match=r"the model reaches its own 'b\.weight' by another way") as caught:
            call(model, make_data())
        assert "\n" not in str(caught.value)


def test_trained_copies_compute_with_their_own():
    model = Base()
    model.head = lambda hidden: model.b(hidden)
    model.forward = types.MethodType(lambda self, inputs: self.head(self.hidden(inputs)), model)
    before = {name: part.detach().clone() for name, part in model.named_parameters()}
    run = train(model, make_data(), batch_size=10, epochs=2)
    plain = Base()
    plain.load_state_dict(before)
    expected = train(plain, make_data(), batch_size=10, epochs=2)
    for name, part in run.model.named_parameters():
        assert torch.equal(part, dict(expected.model.named_parameters())[name])
    assert all(torch.equal(part, before[name]) for name, part in model.named_parameters())


class Unregistered(Base):
    def __init__(self):
        super().__init__()
        self.layers = [nn.Linear(16, 16)]

    def hidden(self, inputs):
        return self.layers[0](super().hidden(inputs))


class Loose(Base):
    def __init__(self):
        super().__init__()
        self.scale = torch.ones(16, requires_grad=True)

    def hidden(self, inputs):
        return super().hidden(inputs) * self.scale


@pytest.mark.parametrize(("kind", "shape"), [(Unregistered, r"\(16, 16\)"), (Loose, r"\(16,\)")])
def test_trainable_tensors_that_are_no_parameters(kind, shape):
    with pytest.raises(ValueError, match=f"a trainable tensor of shape {shape} that is none of its parameters") as info:
        Objective(kind(), make_data())
    assert "register it" in str(info.value)
    assert "\n" not in str(info.value)


class Inner(Base):
    """Differentiates by its input inside: a leaf of each pass's own."""

    def forward(self, inputs):
        with torch.enable_grad():
            inputs = inputs.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.hidden(inputs).sum(), inputs, create_graph=True)
        return super().forward(inputs * slope)


def test_leaves_that_a_pass_makes_itself():
    objective = Objective(Inner(), make_data(), precision="float64")
    assert set(objective.judged.values()) == {"yes"}
    assert not objective.notes


class Premade(Base):
    def __init__(self):
        super().__init__()
        self.doubled = self.b.weight * 2

    def forward(self, inputs):
        return self.hidden(inputs) @ self.doubled.T


def test_tensors_that_were_made_of_parameters_once():
    with pytest.raises(ValueError, match="the model computes with 'doubled' made of its parameters before"):
        Objective(Premade(), make_data())
    with pytest.raises(ValueError, match="the model keeps 'doubled', made of its parameters before"):
        train(Premade(), make_data(), epochs=1)


class Centres(nn.Module):
    """Radial basis functions around some of the data, whose memory they share."""

    def __init__(self, inputs):
        super().__init__()
        self.centres, self.head = nn.Parameter(inputs[:10]), nn.Linear(10, 4)
        self.register_buffer("seen", inputs)

    def forward(self, inputs):
        return self.head(torch.exp(-(inputs[:, None] - self.centres).square().sum(2) / 8))


@pytest.mark.parametrize("coupled", [False, True])
def test_data_whose_memory_the_model_shares(coupled):
    inputs, targets = make_data()
    torch.manual_seed(0)
    model = Centres(inputs)
    objective = Objective(model, (inputs, targets), coupled=coupled, batch_size=25)
    assert objective.judged["gradient paths"] == "yes"
    moved = objective.theta + 0.1
    with torch.no_grad():
        expected = copy.deepcopy(model)
        for name, value in objective.split(moved).items():
            expected.get_parameter(name).copy_(value)
        loss = torch.nn.functional.cross_entropy(expected(inputs), targets)
    assert float(objective.loss(moved)) == pytest.approx(float(loss), rel=1e-6)


@pytest.mark.parametrize("several", [False, True])
def test_views_of_parameters_are_none_of_their_own(several):
    class Viewing(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.head = nn.Linear(8, 16), nn.Linear(16, 4)
            if several:
                self.kept = [self.a.bias.data, self.head.bias.data]
            else:
                self.register_buffer("kept", self.a.bias.data)

        def forward(self, inputs):
            return self.head(torch.tanh(self.a(inputs)) + (self.kept[0] if several else self.kept))

    with pytest.raises(ValueError, match="'kept'"):
        Objective(Viewing(), make_data())


@pytest.mark.parametrize("samples", [5, 32])
def test_no_empty_batch_is_tried(samples):
    class Sized(Unused):
        def forward(self, inputs):
            assert len(inputs)
            return super().forward(inputs)

    torch.manual_seed(0)
    objective = Objective(Sized(), make_data(samples))
    assert objective.judged["gradient paths"] == "yes"
    assert any(note.startswith("no gradient path to ") for note in objective.notes)
