"""Same inputs, same outputs, and nothing that a pass leaves behind."""

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
TOKENS = torch.arange(60 * 5).view(60, 5) % 20


class Writing(nn.Linear):
    """Does something before it computes."""

    def __init__(self, act):
        super().__init__(8, 4)
        self.act = act
        self.register_buffer("kept", torch.zeros(4))
        self.rest = nn.Parameter(torch.ones(4), requires_grad=False)

    def forward(self, inputs):
        factor = self.act(self)
        output = super().forward(inputs) + self.kept + self.rest
        return output if factor is None else factor * output


def clamped(self):
    with torch.no_grad():
        self.weight.clamp_(-10, 10)


def clamped_by_data(self):
    self.weight.data.clamp_(-0.3, 0.3)


def clamped_some_way_off(self):
    self.weight.data.clamp_(-0.3536, 0.3536)  # 1 / sqrt(8), which no weight exceeds at the start


def averaged(self):
    self.kept.mul_(0.999).add_(1e-9)


def averaged_frozen(self):
    with torch.no_grad():
        self.rest.mul_(0.999)


def averaged_frozen_by_data(self):
    self.rest.data *= 0.999


WRITING = {
    "a parameter": (clamped, "the model writes into its parameter 'weight' when it runs"),
    "its data": (clamped_by_data, "the model writes into its parameter 'weight' when it runs"),
    "its data, some way off": (clamped_some_way_off, "the model writes into its parameter 'weight' when it runs"),
    "a buffer": (averaged, "the model changes its buffer 'kept' in evaluation mode"),
    "a frozen parameter": (averaged_frozen, "the model changes its frozen parameter 'rest' in evaluation mode"),
    "its data, frozen": (averaged_frozen_by_data, "the model changes its frozen parameter 'rest' in evaluation mode"),
    "noise": (lambda _: 1 + 0.1 * torch.rand(()), "gives different outputs for the same inputs in evaluation mode"),
    "noise for each sample": (lambda _: torch.bernoulli(torch.full((4,), 0.9)), "gives different outputs"),
}


def refused(message, model, data=(X, Y), **options):
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    with pytest.raises(ValueError, match=message) as caught:
        Objective(model, data, **options)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", WRITING)
def test_models_that_do_not_repeat(name):
    act, message = WRITING[name]
    refused(message, Writing(act))


def test_noise_that_is_small_beside_a_small_output():
    model = nn.Sequential(Writing(lambda _: 1e-8 * (1 + 0.01 * torch.rand(()))))
    refused("gives different outputs", model)


def test_noise_at_a_gate_that_is_zero():
    class Gated(nn.Linear):
        def __init__(self):
            super().__init__(8, 4)
            self.gate = nn.Parameter(torch.zeros(4))

        def forward(self, inputs):
            return super().forward(inputs) + self.gate * torch.rand(4)

    refused("gives different outputs", Gated())


class Embedded(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.rows, self.out = kind(30, 8, **options), nn.Linear(8, 4)

    def forward(self, inputs):
        rows = self.rows(inputs)
        return self.out(rows if rows.dim() == 2 else rows.mean(1))


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_embeddings_that_scale_their_rows_down(kind, max_norm):
    message = rf"{kind.__name__}\(max_norm={max_norm}\) writes into its parameter 'rows.weight'.*max_norm=None"
    refused(message, Embedded(kind, max_norm=max_norm), (TOKENS, Y))


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_embeddings_that_rest_may_scale_their_rows_down(kind):
    model = Embedded(kind, max_norm=0.5)
    objective = Objective(model, (TOKENS, Y), parameters="out.*")
    expected = F.cross_entropy(copy.deepcopy(model).eval()(TOKENS), Y)
    assert float(objective.loss(objective.theta)) == pytest.approx(float(expected.detach()), rel=1e-6)


def test_a_functional_embedding_that_writes():
    class Functional(Embedded):
        def forward(self, inputs):
            return self.out(F.embedding(inputs, self.rows.weight, max_norm=100.0).mean(1))

    refused("writes into its parameter 'rows.weight'", Functional(nn.Embedding), (TOKENS, Y))


@pytest.mark.parametrize("first", [1, 2, 5, 7, 8, 9, 10, 12, 15])
@pytest.mark.parametrize("size", [1e-3, 0.1])
def test_a_counter_is_found_however_late_it_counts(first, size):
    class Counting(nn.Linear):
        count = 0

        def forward(self, inputs):
            self.count += 1
            return super().forward(inputs) * (1 + size * self.count * (self.count > first))

    refused("(different|other) outputs for the same inputs", Counting(8, 4))


def test_a_cache_that_grows():
    class Remembering(nn.Linear):
        def __init__(self):
            super().__init__(8, 4)
            self.seen = []

        def forward(self, inputs):
            self.seen.append(inputs.detach().mean(0))
            return super().forward(inputs + 1e-3 * torch.stack(self.seen).mean(0))

    refused("(different|other) outputs for the same inputs", Remembering())


# What leaves nothing behind that matters.


class Keeping(nn.Module):
    def __init__(self):
        super().__init__()
        self.out, self.last, self.places = nn.Linear(8, 4), None, {}

    def forward(self, inputs):
        self.last = inputs
        place = self.places.setdefault(inputs.shape[1], torch.arange(inputs.shape[1]) / 8)
        return self.out((inputs.double() + place).to(inputs.dtype))


@pytest.mark.parametrize(
    "build",
    [
        Keeping,
        lambda: nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 4)),
        lambda: Writing(lambda self: self.kept.mul_(1.0).sum() + 1),
    ],
)
def test_what_is_kept_without_effect(build):
    assert Objective(build(), (X, Y)).judged["repeats"] == "yes"


def test_weights_and_buffers_that_are_not_numbers_are_for_the_pass_to_refuse():
    model = Writing(lambda _: None)
    with torch.no_grad():
        model.kept[0] = torch.nan
        model.weight[0, 0] = torch.nan
    objective = Objective(model, (X, Y))
    with pytest.raises(FloatingPointError, match="the loss is nan in samples"):
        objective.loss(objective.theta)


@pytest.mark.parametrize("seed", range(4))
def test_a_layer_that_is_dropped_seldom(seed):
    class Dropped(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 4)

        def forward(self, inputs):
            return self.b(inputs if torch.rand(()) < 0.1 else torch.tanh(self.a(inputs)))

    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        with pytest.raises(ValueError, match=r"different outputs for the same inputs|after some passes"):
            Objective(Dropped(), (X, Y))


def test_random_numbers_without_an_effect():
    class Drawing(nn.Linear):
        def forward(self, inputs):
            return super().forward(inputs) + 0 * torch.rand(())

    assert Objective(Drawing(8, 4), (X, Y)).judged["repeats"] == "yes"
