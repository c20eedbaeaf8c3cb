"""With and without gradients a model is one function."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lbgap import Objective

pytestmark = pytest.mark.usefixtures("one_thread", "fewer_questions")


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


X, Y = normal(60, 8), torch.arange(60) % 4
SERIES = normal(60, 6, 8)


class Deciding(nn.Linear):
    def __init__(self, change):
        super().__init__(8, 4)
        self.change, self.gate = change, nn.Parameter(torch.zeros(()))

    def forward(self, inputs):
        return self.change(self, super().forward(inputs))


DECIDING = {
    "the mode": lambda _, h: h if torch.is_grad_enabled() else 1.001 * h,
    "what has a graph": lambda _, h: 1.001 * h if h.requires_grad else h,
    "the mode, at a gate that is zero": lambda self, h: h + self.gate * torch.is_grad_enabled(),
    "the mode, in one output": lambda _, h: h + 1e-3 * (torch.arange(4) == 2) * torch.is_grad_enabled(),
}


@pytest.mark.parametrize("name", DECIDING)
def test_models_that_decide_by_the_mode(name):
    with pytest.raises(ValueError, match=r"gradients than without .*would be of two functions") as caught:
        Objective(Deciding(DECIDING[name]), (X, Y))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("gate", [False, True])
def test_what_only_the_pass_of_a_gradient_writes(gate):
    class Averaging(nn.BatchNorm1d):
        def forward(self, inputs):
            if torch.is_grad_enabled() and (not gate or float(self.gate.detach())):
                self.running_mean.lerp_(inputs.detach().mean(0), 1e-4)
            return super().forward(inputs)

    model = nn.Sequential(nn.Linear(8, 4), Averaging(4))
    model[1].gate = nn.Parameter(torch.zeros(()))
    with pytest.raises(ValueError, match=r"the model changes its buffer '1.running_mean' in evaluation mode"):
        Objective(model, (X, Y))


def test_rounding_is_no_difference():
    def change(_, output):  # summed in another order
        terms = output[:, None] * torch.linspace(0.1, 0.7, 7)[:, None]
        return terms.sum(1) if torch.is_grad_enabled() else terms.flip(1).sum(1)

    assert Objective(Deciding(change), (X, Y)).judged["with and without gradients"] == "yes"


def test_a_doubt_where_only_float32_runs():
    def change(self, output):
        return output.new_tensor(1.0).float() * output + 3e-5 * torch.is_grad_enabled() + self.keeps(output)

    model = Deciding(change)
    model.keeps = lambda output: 0.0 if output.dtype == torch.float32 else output.missing
    answer = Objective(model, (X, Y)).judged["with and without gradients"]
    assert answer.startswith("not judged: ")


class Encoded(nn.Module):
    """Layers of torch whose fast path pads otherwise, and leaves out what a subclass adds."""

    def __init__(self, build):
        super().__init__()
        self.body, self.out = build(), nn.Linear(8, 4)

    def forward(self, inputs):
        return self.out(self.body(inputs).mean(1))


class Doubled(nn.TransformerEncoderLayer):
    def _ff_block(self, inputs):
        return 2 * super()._ff_block(inputs)


class Padded(nn.Module):
    def __init__(self, nested):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested)

    def forward(self, inputs):
        lengths = 3 + 2 * (inputs[:, 0, 0] > 0)
        return self.encoder(inputs, src_key_padding_mask=torch.arange(6)[None] >= lengths[:, None])


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, inputs):
        return self.attention(inputs, inputs, inputs)[0]


ATTENTION = {
    "a layer": lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
    "a subclass": lambda: Doubled(8, 2, 16, batch_first=True),
    "attention": Attending,
    "an encoder": lambda: Padded(nested=False),
    "nested tensors": lambda: Padded(nested=True),
}


@pytest.mark.parametrize("name", ATTENTION)
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_values_are_those_of_the_path_that_has_gradients(name, precision):
    model = Encoded(ATTENTION[name])
    objective = Objective(model, (SERIES, Y), precision=precision)
    twin = copy.deepcopy(model).eval().to(objective.dtype)
    expected = float(F.cross_entropy(twin(SERIES.to(objective.dtype)), Y).detach())
    value, _ = objective.loss_and_gradient(objective.theta)
    rounding = 1e-12 if precision == "float64" else 1e-6
    for found in (value, objective.loss(objective.theta), objective.losses(objective.theta[None])[0]):
        assert float(found) == pytest.approx(expected, rel=rounding)
    assert objective.judged["with and without gradients"] == "yes"


def test_no_switch_of_the_process_moves():
    class Noting(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.seen = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), []

        def forward(self, inputs):
            self.seen.append(torch.backends.mha.get_fastpath_enabled())
            return self.layer(inputs)

    objective = Objective(Encoded(Noting), (SERIES, Y))
    objective.loss(objective.theta)
    assert all(objective._evaluator.flat.module.body.seen)
    assert torch.backends.mha.get_fastpath_enabled()
