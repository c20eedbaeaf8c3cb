"""The gradient is that of the loss: a quotient of differences in float64 says so, rounding and kinks do not count."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from lbgap import Objective

pytestmark = pytest.mark.usefixtures("one_thread")


def make_data(samples=50):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(samples, 8, generator=generator), torch.randint(0, 4, (samples,), generator=generator)


class Scaled(torch.autograd.Function):
    """The identity, with another gradient."""

    @staticmethod
    def forward(ctx, value, factor):
        ctx.factor = factor
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.factor, None


class Net(nn.Module):
    """Its hidden values go through ``between``, the last layer's bias through ``of_bias``."""

    def __init__(self, between=lambda value: value, of_bias=lambda value: value):
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)
        self.between, self.of_bias = between, of_bias

    def forward(self, inputs):
        return F.linear(self.between(torch.tanh(self.a(inputs))), self.b.weight, self.of_bias(self.b.bias))


def rounded(step):
    def through(value):
        return value + ((value / step).round() * step - value).detach()

    return through


def hooked(change):
    def hook(value):
        if value.requires_grad:
            value.register_hook(change)
        return value

    return hook


def with_module_hook():
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
    model[1].register_full_backward_hook(lambda module, inputs, outputs: (inputs[0] * 2,))
    return model


class Partial(Net):
    def __init__(self):
        super().__init__()
        self.more = nn.Linear(16, 16)
        self.between = lambda hidden: hidden + self.more(hidden.detach())


WRONG = {
    "backward of one's own": lambda: Net(lambda value: Scaled.apply(value, 2.0)),
    "a little": lambda: Net(lambda value: Scaled.apply(value, 1.01)),
    "of a bias alone": lambda: Net(of_bias=lambda value: Scaled.apply(value, 1.1)),
    "partly detached": Partial,
    "straight through": lambda: Net(rounded(1.0)),
    "straight through, finely": lambda: Net(rounded(1 / 256)),
    "tensor hook": lambda: Net(hooked(lambda gradient: 2 * gradient)),
    "clipped": lambda: Net(hooked(lambda gradient: gradient.clamp(-1e-4, 1e-4))),
    "module hook": with_module_hook,
}


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("name", WRONG)
def test_gradients_of_another_function(name, precision):
    with pytest.raises(ValueError, match=r"the loss rises .* times as fast as its gradient says") as caught:
        Objective(WRONG[name](), make_data(), precision=precision)
    assert "\n" not in str(caught.value)
    assert "judge=False" in str(caught.value)
    assert Objective(WRONG[name](), make_data(), judge=False).n > 0


def test_the_quotient_is_that_of_the_loss():
    # Three of four parameters pass the factor: of four equal shares of the slope it halves two.
    with pytest.raises(ValueError, match=r"the loss rises 0\.75 times as fast"):
        Objective(Net(lambda value: Scaled.apply(value, 2.0)), make_data())


class Words(nn.Module):
    def __init__(self, max_norm=None, kind=nn.Embedding, **options):
        super().__init__()
        self.words, self.out = kind(20, 8, max_norm=max_norm, **options), nn.Linear(8, 4)

    def forward(self, inputs):
        words = self.words(inputs)
        return self.out(words.mean(1) if words.dim() == 3 else words)


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
@pytest.mark.parametrize("sparse", [True, False])
def test_embeddings(kind, sparse):
    data = torch.arange(100).view(25, 4) % 20, torch.arange(25) % 4
    assert set(Objective(Words(kind=kind, sparse=sparse), data).judged.values()) == {"yes"}


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_parameters_that_a_pass_writes_into(precision):
    data = torch.arange(100).view(25, 4) % 20, torch.arange(25) % 4
    assert Objective(Words(None), data, precision=precision).judged["slope"] == "yes"
    for norm in (0.5, 100.0):  # whether or not rows are that long now
        with pytest.raises(ValueError, match=r"max_norm") as caught:
            Objective(Words(norm), data, precision=precision)
        assert "\n" not in str(caught.value)


def test_hooks_on_parameters_are_not_the_replicas():
    model = Net()
    model.a.weight.register_hook(lambda gradient: 2 * gradient)
    objective = Objective(model, make_data(), precision="float64")
    plain = Net()
    plain.load_state_dict(model.state_dict())
    expected = Objective(plain, make_data(), precision="float64").loss_and_gradient(objective.theta)[1]
    assert torch.equal(objective.loss_and_gradient(objective.theta)[1], expected)
    assert objective.judged["slope"] == "yes"


def trained(scale, *, activation=nn.ReLU, norm=True):
    """A network at a minimizer, its logits multiplied."""
    layers = [nn.Linear(8, 32), *([nn.BatchNorm1d(32)] if norm else []), activation(), nn.Linear(32, 4)]
    model, (inputs, targets) = nn.Sequential(*layers), make_data()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    with torch.no_grad():
        model[-1].weight *= scale
        model[-1].bias *= scale
    return model


def zeroed(*layers):
    """Layers that are zero at the start, in front of a ReLU: the minimizer is at a kink."""
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    for layer in layers:
        nn.init.zeros_(model[layer].weight)
        nn.init.zeros_(model[layer].bias)
    return model


class InFloat32(nn.Module):
    """Rounds to float32 inside, whatever it is given, as many language models do in their norms."""

    def __init__(self, width):
        super().__init__()
        self.a, self.b = nn.Linear(8, width), nn.Linear(width, 4)

    def forward(self, inputs):
        hidden = torch.tanh(self.a(inputs))
        hidden = hidden * torch.rsqrt(hidden.float().square().mean(1, keepdim=True) + 1e-6).to(hidden)
        return self.b(hidden.float().to(inputs))


class Only32(nn.Module):
    """Does not run in float64."""

    def __init__(self, between=lambda value: value):
        super().__init__()
        self.a, self.b, self.between = nn.Linear(8, 16), nn.Linear(16, 4), between

    def forward(self, inputs):
        if inputs.dtype != torch.float32:
            raise TypeError("float32 only")
        return self.b(self.between(torch.tanh(self.a(inputs))))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.out = nn.LSTM(2, 8, 2, batch_first=True, dropout=0.1), nn.Linear(8, 4)

    def forward(self, inputs):
        return self.out(self.lstm(inputs.view(-1, 4, 2))[0][:, -1])


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.encoder, self.out = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(4, 4)

    def forward(self, inputs):
        return self.out(self.encoder(inputs.view(-1, 2, 4)).mean(1))


class Residual(nn.Module):
    """The branch is zero at the start, and its sum goes through a ReLU: every second unit is at a kink."""

    def __init__(self):
        super().__init__()
        self.stem, self.branch, self.out = nn.Conv1d(1, 8, 3, padding=1), nn.Conv1d(8, 8, 3, padding=1), nn.Linear(8, 4)
        self.norm = nn.BatchNorm1d(8)
        nn.init.zeros_(self.norm.weight)

    def forward(self, inputs):
        hidden = torch.relu(self.stem(inputs[:, None]))
        return self.out(torch.relu(hidden + self.norm(self.branch(hidden))).mean(2))


def large(factor):
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    with torch.no_grad():
        model[2].weight *= factor
    return model


RIGHT = {
    "linear": lambda: nn.Linear(8, 4),
    "minimizer": lambda: trained(1),
    "smooth minimizer": lambda: trained(1, activation=nn.Tanh, norm=False),
    "sharp minimizer": lambda: trained(3, activation=nn.GELU),
    "loss of 1e4": lambda: large(1e5),
    "small outputs": lambda: large(1e-6),
    "zero layer": lambda: zeroed(2),
    "zero output": lambda: zeroed(4),
    "zero branch": Residual,
    "float32 inside": lambda: InFloat32(64),
    "float32 inside, narrow": lambda: InFloat32(2),
    "float32 alone": Only32,
    "recurrent": Recurrent,
    "attention": Attending,
    "weight norm": lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(8, 16)), nn.ReLU(), nn.Linear(16, 4)),
    "spectral norm": lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(8, 16)), nn.Linear(16, 4)),
}


@pytest.mark.parametrize("name", RIGHT)
def test_right_gradients_pass(name):
    judged = Objective(RIGHT[name](), make_data()).judged
    assert judged["slope"] == ("yes (to 5%)" if "float32" in name else "yes")
    assert judged["moves"] == "yes"
    assert judged["gradient paths"] == "yes"


def test_what_does_not_run_in_float64_is_judged_in_float32():
    with pytest.raises(ValueError, match=r"the loss rises 0\.75(00)? times as fast"):
        Objective(Only32(lambda value: Scaled.apply(value, 2.0)), make_data())


@pytest.mark.parametrize("width", [2, 64])
def test_rounding_to_bfloat16_inside_is_no_fault(width):
    class Rounding(InFloat32):
        def forward(self, inputs):
            return self.b(torch.tanh(self.a(inputs)).bfloat16().to(inputs))

    judged = Objective(Rounding(width), make_data()).judged
    assert judged["slope"] == "not judged: the model rounds to less than float32 inside"


class Masked(nn.Module):
    """Two classes of four are ruled out by an output that is large and constant."""

    def __init__(self, between=lambda value: value):
        super().__init__()
        self.a, self.b, self.between = nn.Linear(8, 16), nn.Linear(16, 4), between
        self.register_buffer("mask", torch.tensor([0.0, 0.0, -1e9, -1e9]))

    def forward(self, inputs):
        return self.b(self.between(torch.tanh(self.a(inputs)))).where(self.mask == 0, self.mask)


def test_outputs_that_count_for_nothing():
    inputs, targets = make_data()
    assert Objective(Masked(), (inputs, targets % 2)).judged["slope"] == "yes"
    with pytest.raises(ValueError, match=r"the loss rises 0\.75 times as fast"):
        Objective(Masked(lambda value: Scaled.apply(value, 2.0)), (inputs, targets % 2))


def test_a_bounded_loss_of_large_outputs():
    def bounded(output, target):
        return torch.tanh(output.square().mean() * 1e-6)

    assert Objective(large(1e4), make_data(), loss=bounded, coupled=True, batch_size=50).judged["slope"] == "yes"


@pytest.mark.parametrize("batch_norm", ["eval", "batch"])
def test_batch_norm_in_both_modes(batch_norm):
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    options = {"batch_size": 25} if batch_norm == "batch" else {}
    assert Objective(model, make_data(), batch_norm=batch_norm, **options).judged["slope"] == "yes"


class Saturated(Net):
    """Its loss is zero: one class wins by far, everywhere."""

    def forward(self, inputs):
        return super().forward(inputs) + inputs.new_tensor([1e4, 0, 0, 0])


def test_a_loss_that_is_flat_is_judged_by_the_outputs():
    inputs, targets = make_data()
    data = inputs, torch.zeros_like(targets)
    assert Objective(Saturated(), data).judged["slope"] == "yes (of the outputs, where the loss is too flat)"
    with pytest.raises(ValueError, match=r"a sum of the outputs rises 0\.75 times as fast"):
        Objective(Saturated(lambda value: Scaled.apply(value, 2.0)), data)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_losses_of_any_size(scale):
    inputs, _ = make_data()
    targets = scale * torch.randn(50, 4, generator=torch.Generator().manual_seed(2))
    assert Objective(nn.Linear(8, 4), (scale * inputs, targets), loss="mse").judged["slope"] == "yes"


def test_questions_leave_the_replica_and_the_generators_as_they_were():
    state = torch.random.get_rng_state()
    model = trained(1)
    state = torch.random.get_rng_state()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    objective, silent = (Objective(model, make_data(), judge=judge) for judge in (True, False))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for one, other in zip(*(o.loss_and_gradient(o.theta) for o in (objective, silent)), strict=True):
        assert torch.equal(one, other)


SCALES = {
    "length": lambda w: w.norm(),
    "largest": lambda w: w.abs().max(),
    "mean": lambda w: w.abs().mean(),
    "singular": lambda w: torch.linalg.matrix_norm(w, 2),
    "spread": lambda w: w.std(),
}


class Divided(nn.Module):
    """Layers whose weights are divided by a scale made of them, with its gradient or without."""

    def __init__(self, width, scale, cut):
        super().__init__()
        self.layers, self.scale, self.cut = nn.ModuleList([nn.Linear(8, width), nn.Linear(width, width)]), scale, cut
        self.head = nn.Linear(width, 4)

    def forward(self, inputs):
        for layer in self.layers:
            scale = self.scale(layer.weight)
            inputs = torch.tanh(inputs @ (layer.weight / (scale.detach() if self.cut else scale)).T + layer.bias)
        return self.head(inputs)


@pytest.mark.parametrize("width", [16, 256])
@pytest.mark.parametrize("name", SCALES)
def test_a_scale_without_its_gradient(name, width):
    for seed in range(3):
        torch.manual_seed(seed)
        with pytest.raises(ValueError, match=r"the loss rises -?[\d.e-]+ times as fast as its gradient says"):
            Objective(Divided(width, SCALES[name], cut=True), make_data())
        assert Objective(Divided(width, SCALES[name], cut=False), make_data()).judged["slope"] == "yes"


def test_rows_that_padding_keeps_from_moving():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 8, padding_idx=0), nn.Flatten(), nn.Linear(40, 4))
    with torch.no_grad():
        model[0].weight.normal_()
    data = torch.randint(0, 9, (60, 5)), torch.arange(60) % 4
    assert Objective(model, data).judged["slope"] == "yes"


def test_a_gradient_that_explodes_is_not_judged():
    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.head = nn.Parameter(6 * torch.randn(16, 16) / 4), nn.Linear(16, 4)

        def forward(self, inputs):
            state = torch.cat([inputs, inputs], 1)
            for _ in range(200):
                state = torch.tanh(state @ self.weight.T)
            return self.head(state)

    torch.manual_seed(0)
    assert not Objective(Deep(), make_data()).judged["slope"].startswith("yes, ")


@pytest.mark.parametrize("masked", [0, 8, 45])
def test_it_is_asked_of_samples_that_weigh_something(masked):
    inputs, targets = make_data()
    targets[:masked] = -100

    def loss(output, target):
        return F.cross_entropy(output, target, reduction="sum"), (target >= 0).sum()

    with pytest.raises(ValueError, match=r"the loss rises .* times as fast as its gradient says"):
        Objective(Net(lambda value: Scaled.apply(value, 3.0)), (inputs, targets), loss=loss)
    assert Objective(Net(), (inputs, targets), loss=loss).judged["slope"] == "yes"
