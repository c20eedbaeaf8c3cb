"""Samples together and apart: what sees its batch is refused, what only rounds otherwise is not."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lbgap import Objective
from lbgap.objective import judge
from lbgap.objective.questions import additive, repeats
from lbgap.objective.questions.case import Case

pytestmark = pytest.mark.usefixtures("one_thread")

SAMPLES = 300


@pytest.fixture(autouse=True)
def fewer_questions(monkeypatch):
    """Others have tests of their own, and may refuse what adds up."""
    monkeypatch.setattr(judge, "QUESTIONS", {"repeats": repeats.ask, "additive": additive.ask})


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def labels(samples=SAMPLES, classes=4, seed=1):
    return torch.randint(0, classes, (samples,), generator=torch.Generator().manual_seed(seed))


def dense(outputs=4):
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, outputs))


X, Y, T, SERIES = normal(SAMPLES, 8), labels(), normal(SAMPLES, 4, seed=2), normal(SAMPLES, 6, 8)
IMAGES, OF_IMAGES = normal(64, 3, 10, 10), labels(64)


class Through(nn.Module):
    """A network and a function of its output."""

    def __init__(self, change, outputs=4):
        super().__init__()
        self.body, self.change = dense(outputs), change
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, inputs):
        return self.change(self, self.body(inputs))


class Recurrent(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.cells, self.out = kind(8, 5, **options), nn.Linear(5, 4)

    def forward(self, inputs):
        return self.out(self.cells(inputs)[0][:, -1])


class Transposed(Recurrent):
    def forward(self, inputs):
        return self.out(self.cells(inputs.transpose(0, 1))[0][-1])


class Encoded(nn.Module):
    def __init__(self, batch_first):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first)
        self.encoder, self.out = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(8, 4)

    def forward(self, inputs):
        return self.out(self.encoder(inputs).mean(1))


class Attending(nn.Module):
    def __init__(self, batch_first):
        super().__init__()
        self.attention, self.out = nn.MultiheadAttention(8, 2, batch_first=batch_first), nn.Linear(8, 4)

    def forward(self, inputs):
        return self.out(self.attention(inputs, inputs, inputs)[0].mean(1))


class Normalised(nn.Module):
    def forward(self, inputs):
        return (inputs - inputs.mean(0)) / (inputs.std(0) + 1e-3)


COUPLED = {
    "own statistics": (lambda: nn.Sequential(nn.Linear(8, 16), Normalised(), nn.Linear(16, 4)), X),
    "the mean": (lambda: Through(lambda _, h: h - h.mean(0)), X),
    "softmax over the batch": (lambda: Through(lambda _, h: h.softmax(0)), X),
    "the maximum": (lambda: Through(lambda _, h: h / h.abs().max()), X),
    "the size": (lambda: Through(lambda _, h: h / len(h)), X),
    "a little of the sample before": (lambda: Through(lambda _, h: h + 1e-4 * h.roll(1, 0)), X),
    "a gate that is zero": (lambda: Through(lambda self, h: h + self.gate * h.mean(0)), X),
    "time first": (lambda: Recurrent(nn.LSTM), SERIES),
    "attention over the batch": (lambda: Attending(batch_first=False), SERIES),
    "an encoder over the batch": (lambda: Encoded(batch_first=False), SERIES),
}


def refused(message, *args, **options):
    with pytest.raises(ValueError, match=message) as caught:
        Objective(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", COUPLED)
@pytest.mark.parametrize("samples", [3, SAMPLES])
def test_samples_that_see_each_other_in_the_model(name, samples):
    build, inputs = COUPLED[name]
    found = refused("depends on the others of its batch", build(), (inputs[:samples], Y[:samples]))
    assert "coupled=True" in found
    assert "judge=False" in found


@pytest.mark.parametrize("name", COUPLED)
def test_who_knows_that_samples_see_each_other_may_go_on(name):
    build, inputs = COUPLED[name]
    coupled = Objective(build(), (inputs, Y), coupled=True, batch_size=100)
    assert coupled.judged["additive"] == "not judged: coupled=True"
    assert isinstance(Objective(build(), (inputs, Y), judge=False).judged, str)


@pytest.mark.parametrize(
    ("build", "layer"),
    [
        (lambda: Recurrent(nn.GRU), "'cells' is a GRU"),
        (lambda: Attending(batch_first=False), "is a MultiheadAttention"),
    ],
)
def test_the_layer_that_takes_samples_for_time_is_named(build, layer):
    refused(f"{layer} with batch_first=False, which takes the first dimension for time", build(), (SERIES, Y))


def test_samples_along_time_alone():
    """Two dimensions are one sequence to a recurrent layer."""

    class Sequence(Recurrent):
        def forward(self, inputs):
            return self.out(self.cells(inputs)[0])

    refused("'cells' is a RNN with batch_first=False", Sequence(nn.RNN), (X, Y))


@pytest.mark.parametrize("batch_size", [1, 13])
def test_a_batch_of_one_sample_is_asked_only_where_passes_have_one(batch_size):
    model, data = Through(lambda _, h: h.squeeze(), outputs=1), (X, T[:, 0])
    refused(r"one output per sample, got shape \(\) for 1 samples", model, data, loss="mse", batch_size=batch_size)
    assert Objective(model, data, loss="mse", batch_size=100).judged["additive"] == "yes"


def test_a_model_for_one_size_of_batch():
    model = Through(lambda _, h: h.view(32, 2, 2).flatten(1))
    refused(r"the model runs on 32 samples, but not on 48 \(shape", model, (X, Y))


def nce(output, _):
    return F.cross_entropy(output @ output.T, torch.arange(len(output)))


def barlow(output, _):
    one, other = output[:, :2], output[:, 2:]
    mixed = (one - one.mean(0)).T @ (other - other.mean(0)) / len(one)
    return (mixed - torch.eye(2, dtype=output.dtype)).square().mean()


def dice(output, target):
    share = output.sigmoid()
    return 1 - 2 * (share * target).sum() / (share.sum() + target.sum())


def correlation(output, target):
    one, other = output - output.mean(), target - target.mean()
    return 1 - (one * other).sum() / (one.norm() * other.norm())


def weighted(**options):
    weight = torch.tensor([1.0, 1.0, 1.0, 5.0])
    return lambda output, target: F.cross_entropy(output, target, weight=weight.to(output), **options)


def masked(output, target):
    kept = target != 0
    return ((output - target).square() * kept).sum() / kept.sum()


def voids():
    targets = torch.randint(0, 3, (64, 5, 5), generator=torch.Generator().manual_seed(0))
    targets[:4] = 255
    return targets


def sparse():
    targets = normal(SAMPLES, 4, seed=3).abs()
    targets[:32] = 0
    return targets


def rarely(value, kept):
    targets = torch.where(value == Y, kept, Y)
    targets[7] = value
    return targets


IGNORED = torch.where(torch.arange(SAMPLES) % 5 == 0, -100, Y)

LOSSES = {
    "class weights": (dense, (X, Y), weighted()),
    "a weight of a rare class": (dense, (X, rarely(3, 0)), weighted()),
    "class weights in float32": (
        dense,
        (X, Y),
        lambda o, y: F.cross_entropy(o, y, weight=torch.tensor([1.0, 2.0, 3.0, 4.0])),
    ),
    "ignored targets": (dense, (X, IGNORED), lambda o, y: F.cross_entropy(o, y)),
    "ignored pixels": (
        lambda: nn.Conv2d(3, 3, 1),
        (IMAGES[..., :5, :5], voids()),
        lambda o, y: F.cross_entropy(o, y, ignore_index=255),
    ),
    "a mask": (dense, (X, sparse()), masked),
    "a part of the entries": (dense, (X, sparse()), lambda o, y: (o - y)[y != 0].square().mean()),
    "nothing in the first samples": (dense, (X, sparse()), lambda o, y: (o * y).sum() / y.sum().clamp(min=1)),
    "dice": (dense, (X, (T > 0).float()), dice),
    "correlation": (dense, (X, T), correlation),
    "contrastive": (dense, (X, T), nce),
    "Barlow twins": (dense, (X, T), barlow),
    "a root": (dense, (X, T), lambda o, y: F.mse_loss(o, y).sqrt()),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_that_are_no_mean_over_samples(name):
    build, data, loss = LOSSES[name]
    found = refused("return \\(sum, weight\\)", build(), data, loss=loss)
    assert "coupled=True" in found


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("loss", [F.mse_loss, lambda o, y: (o - y).abs().mean()])
def test_shapes_that_broadcast(loss):
    case = case_of(loss, nn.Linear(8, 1), (X, X.sum(1)))
    message = r"for outputs \(n, 1\) and targets \(n,\) broadcast.*: give both one shape"
    with pytest.raises(ValueError, match=message):
        additive.ask(case)


def test_a_sum_over_the_batch():
    message = "must be the mean over the batch, not its sum: .*: use reduction='mean'"
    refused(message, dense(), (X, T), loss=lambda o, y: F.mse_loss(o, y, reduction="sum"))


def test_a_masked_mean_of_which_one_piece_counts_nothing_is_no_sum():
    mask = (torch.arange(len(X)) == 0).to(X)
    targets = torch.stack([X.sum(1), mask], 1)

    def loss(output, target):
        return ((output[:, 0] - target[:, 0]).square() * target[:, 1]).sum() / target[:, 1].sum().clamp_min(1)

    assert "not its sum" not in refused("return \\(sum, weight\\)", nn.Linear(8, 1), (X, targets), loss=loss)


def test_a_class_weight_among_many():
    weight = torch.ones(100)
    weight[17] = 50
    data = normal(4000, 8), torch.arange(4000) % 100
    message = "is no mean over samples"
    refused(message, dense(100), data, loss=lambda o, y: F.cross_entropy(o, y, weight=weight.to(o)))


def test_a_piece_that_is_ignored_altogether():
    """A mean over what counts is right wherever as much counts in each batch, and NaN where nothing does."""
    targets = torch.cat([Y[:290], torch.full((10,), -100)])

    def among_others(output, target):
        counted = target >= 0
        return F.cross_entropy(output[counted], target[counted], reduction="sum") / counted.any() * 0 + output.mean()

    refused("is nan for samples whose targets are -100, but finite", dense(), (X, targets), loss=among_others)


def test_a_loss_that_does_not_run_where_all_is_ignored():
    targets = torch.cat([Y[:290], torch.full((10,), -100)])

    def counting(output, target):
        return output.mean() + 0 / int((target >= 0).sum())

    message = r"the loss 'counting'.*division by zero \(on samples whose targets are -100\): let it take any batch"
    refused(message, dense(), (X, targets), loss=counting)


def test_a_loss_for_pairs_that_belong_together():
    """Outputs of some samples are tried with targets of others, which a loss need not take."""

    def checking(output, target):
        if not torch.equal(output.argmax(1), target):
            raise ValueError("not its own")
        return output.square().mean()

    model = nn.Linear(8, 4)
    assert Objective(model, (X, model(X).argmax(1)), loss=checking).judged["additive"] == "yes"


def test_a_coupling_of_the_loss_that_shows_some_way_off():
    def loss(output, _):
        return output.mean() + (output.mean(0).square()).mean()

    model = nn.Linear(8, 4)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    refused("is no mean over samples", model, (X, T), loss=loss)


class Forgetful:
    def __init__(self):
        self.mean = 0.0

    def __call__(self, output, target):
        self.mean = 0.9 * self.mean + 0.1 * float(output.detach().mean())
        return F.cross_entropy(output, target) + self.mean * output.mean()


@pytest.mark.parametrize("loss", [lambda o, y: F.cross_entropy(o, y) * (1 + 0.01 * torch.rand(())), Forgetful()])
def test_a_loss_that_does_not_repeat(loss):
    model, state = dense(), torch.get_rng_state()
    refused("for the same outputs: there must be nothing random in it", model, (X, Y), loss=loss)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_loss_for_one_size_of_batch():
    refused(
        r"the loss .*: The size of tensor .* though on 32 it ran\): let it take any batch",
        dense(),
        (X, T),
        loss=lambda o, _: (o - T[:32]).mean(),
    )


# What is right.


class Mixture(nn.Module):
    """Each sample goes to one of four networks, chosen by a maximum."""

    def __init__(self):
        super().__init__()
        self.gate, self.experts = nn.Linear(8, 4), nn.ModuleList(dense() for _ in range(4))

    def forward(self, inputs):
        shares = self.gate(inputs).softmax(1)
        chosen, output = shares.argmax(1), inputs.new_zeros(len(inputs), 4)
        for number, expert in enumerate(self.experts):
            rows = (chosen == number).nonzero()[:, 0]
            output = output.index_add(0, rows, expert(inputs[rows]) * shares[rows, number : number + 1])
        return output


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.norm = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)

    def forward(self, inputs):
        return F.relu(inputs + self.norm(self.one(inputs)), inplace=True)


class Quantised(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.codes, self.out = nn.Linear(8, 8), nn.Parameter(normal(16, 8)), nn.Linear(8, 4)

    def forward(self, inputs):
        return self.out(self.codes[torch.cdist(self.inner(inputs), self.codes).argmin(1)])


def residual():
    blocks = [Residual() for _ in range(6)]
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )


def scaled(build, factor):
    model = build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(factor)
    return model


def deep():
    layers = [layer for _ in range(20) for layer in (nn.ReLU(), nn.Linear(64, 64))]
    return nn.Sequential(nn.Linear(8, 64), *layers, nn.Linear(64, 4))


def in_bfloat16(_, output):
    with torch.autocast("cpu", torch.bfloat16):
        return (output @ torch.ones(4, 4)).float()


RIGHT = {
    "dense": (dense, (X, Y), "cross_entropy"),
    "convolutions": (residual, (IMAGES, OF_IMAGES), "cross_entropy"),
    "groups": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.GELU(), nn.Flatten(), nn.Linear(512, 4)),
        (IMAGES, OF_IMAGES),
        "cross_entropy",
    ),
    "time second": (lambda: Recurrent(nn.LSTM, batch_first=True), (SERIES, Y), "cross_entropy"),
    "time first, as it wants it": (lambda: Transposed(nn.LSTM), (SERIES, Y), "cross_entropy"),
    "attention": (lambda: Attending(batch_first=True), (SERIES, Y), "cross_entropy"),
    "an encoder": (lambda: Encoded(batch_first=True), (SERIES, Y), "cross_entropy"),
    "a mixture of experts": (Mixture, (X, Y), "cross_entropy"),
    "codes": (Quantised, (X, Y), "cross_entropy"),
    "large logits": (lambda: scaled(dense, 30), (X, Y), "cross_entropy"),
    "large activations": (lambda: scaled(deep, 2), (X, Y), "cross_entropy"),
    "small activations": (lambda: scaled(dense, 1e-4), (X, 1e-4 * T), "mse"),
    "bfloat16 inside": (lambda: Through(in_bfloat16), (X, Y), "cross_entropy"),
    "float32 by name": (
        lambda: Through(lambda _, h: h.float().softmax(1, dtype=torch.float32)),
        (X, Y),
        "cross_entropy",
    ),
    "a masked class": (
        lambda: Through(lambda _, h: torch.cat((h, torch.full((len(h), 1), -torch.inf, dtype=h.dtype)), 1)),
        (X, Y),
        "cross_entropy",
    ),
    "one output": (lambda: dense(1), (X, T[:, :1]), "mse"),
    "a loss for each pixel": (lambda: nn.Conv2d(3, 4, 1), (IMAGES[..., :5, :5], voids() % 4), "cross_entropy"),
    "a callable": (dense, (X, Y), lambda o, y: F.cross_entropy(o, y)),
    "label smoothing": (dense, (X, Y), lambda o, y: F.cross_entropy(o, y, label_smoothing=0.1)),
    "terms of both signs": (dense, (X, T), lambda o, y: (o * y).mean()),
    "terms that cancel": (dense, (X, T), lambda o, y: (o + 1e6 * (y - T.mean())).mean()),
    "a large constant": (dense, (X, T), lambda o, y: 1e8 + 1e4 * F.mse_loss(o, y)),
    "a tiny loss": (dense, (X, T), lambda o, y: 1e-8 * F.mse_loss(o, y)),
    "a loss in float32": (dense, (X, T), lambda o, y: F.mse_loss(o.float(), y.float())),
    "a loss in bfloat16": (dense, (X, Y), lambda o, y: F.cross_entropy(o.bfloat16(), y).float()),
    "a loss that takes float32 alone": (
        dense,
        (X, Y),
        lambda o, y: F.cross_entropy(o, y) if o.dtype == torch.float32 else o.missing,
    ),
    "samples first": (dense, (X, Y), lambda o, y: F.cross_entropy(o, y, reduction="none").mean()),
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_a_mean_over_samples_passes(name):
    build, data, loss = RIGHT[name]
    assert Objective(build(), data, loss=loss).judged["additive"] == "yes"


@pytest.mark.parametrize("samples", [1, 2, 3, 33])
@pytest.mark.parametrize("batch_size", [None, 1, 32])
def test_few_samples_pass(samples, batch_size):
    data = X[:samples], Y[:samples]
    assert Objective(dense(), data, batch_size=batch_size).judged["additive"] == "yes"
    loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    assert Objective(dense(), data, batch_size=batch_size, loss=loss).judged["additive"] == "yes"


def test_a_model_that_does_not_run_with_moved_parameters():
    class Fixed(nn.Linear):
        def __init__(self):
            super().__init__(8, 4)
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, inputs):
            if float(self.scale) != 1:
                raise ValueError("the scale must be one")
            return self.scale * super().forward(inputs)

    judged = Objective(Fixed(), (X, Y)).judged
    expected = "not judged: the model does not run with moved parameters (the scale must be one)"
    assert judged == {"repeats": expected, "additive": expected}


def test_a_loss_that_does_not_take_moved_outputs():
    def loss(output, target):
        if output.abs().max() > 1e-3:
            raise ValueError("too far")
        return F.cross_entropy(output, target)

    assert Objective(scaled(lambda: nn.Linear(8, 4), 0.0), (X, Y), loss=loss).judged["additive"] == "yes"


def test_saturated_networks_pass():
    model = dense()
    adam = torch.optim.Adam(model.parameters(), 0.05)
    for _ in range(500):
        adam.zero_grad()
        F.cross_entropy(model(X[:60]), Y[:60]).backward()
        adam.step()
    objective = Objective(model, (X[:60], Y[:60]))
    assert float(objective.loss(objective.theta)) < 1e-3
    assert objective.judged["additive"] == "yes"


class Packed(nn.Module):
    """Takes sequences whose lengths, in the first entry, do not grow."""

    def __init__(self, coupled=False):
        super().__init__()
        self.cells, self.out, self.coupled = nn.GRU(8, 5, batch_first=True), nn.Linear(5, 4), coupled

    def forward(self, inputs):
        packed = nn.utils.rnn.pack_padded_sequence(inputs, inputs[:, 0, 0].long().cpu(), batch_first=True)
        last = self.cells(packed)[1][0]
        return self.out(last - last.mean(0) if self.coupled else last)


def test_batches_that_must_be_sorted():
    inputs = SERIES.clone()
    inputs[:, 0, 0] = torch.arange(SAMPLES).flip(0) // 60 + 1
    assert Objective(Packed(), (inputs, Y)).judged["additive"] == "yes"
    refused("depends on the others of its batch", Packed(coupled=True), (inputs, Y))


def test_a_model_that_runs_in_float32_alone():
    """Then what float32 shows decides: a difference in every row is a fault, a rounded one is left open."""

    def rounded(_, output):  # to hundredths, so that rounding shows in few rows
        return output.to(torch.float32) @ torch.ones(4, 4) if output.dtype == torch.float32 else output.missing

    def coupled(_, output):
        return output - output.mean(0) if output.dtype == torch.float32 else output.missing

    assert Objective(Through(rounded), (X, Y)).judged["additive"].startswith(("yes", "not judged"))
    refused("depends on the others of its batch", Through(coupled), (X, Y))


def test_a_loss_that_is_not_finite_is_for_the_pass_to_refuse():
    objective = Objective(dense(), (X, T), loss=lambda o, _: o.mean() / 0)
    assert objective.judged["additive"] == additive.UNKNOWN
    with pytest.raises(FloatingPointError, match=r"the loss is (-?inf|nan) in samples"):
        objective.loss(objective.theta)


class Stub:
    """A loss that gives sums and weights of its own: as sure as it is, it is asked."""

    name, function, separable = "stub", None, False

    def __init__(self, sums):
        self.sums = sums

    def counted(self, _):
        return 1

    def counting(self, targets):
        return torch.arange(len(targets))


def case_of(loss, model=None, data=None):
    """A case whose loss is swapped for a stub, which no other check sees."""
    objective = Objective(model or dense(), data or (X, IGNORED), loss=lambda o, _: o.square().mean())
    evaluator = objective._evaluator

    def sums(output, target):
        mean = loss(output, target)
        return SimpleNamespace(total=mean * len(target), exact=mean.detach().double() * len(target), weight=len(target))

    evaluator.loss = loss if isinstance(loss, Stub) else Stub(sums)
    return Case(evaluator, objective._evaluator.flat.module, objective.theta, first_of(evaluator))


def first_of(evaluator):
    return evaluator.flat.module(evaluator.few().inputs).detach()


def weighing(weigh):
    def sums(output, target):
        total = (output.square().mean(1) * (target >= 0)).sum()
        return SimpleNamespace(total=total, exact=total.detach().double(), weight=weigh(output, target))

    return Stub(sums)


def test_sums_with_weights_of_their_own():
    assert additive.ask(case_of(weighing(lambda _, y: float((y >= 0).sum())))) == "yes"


@pytest.mark.parametrize(
    ("weigh", "message"),
    [
        (lambda o, y: float((y >= 0).sum()) ** 0.5, "returns the weight .* for a batch, but .* for its pieces"),
        (lambda o, _: float(o.abs().sum()), "the weight that the loss 'stub' returns depends on the parameters"),
    ],
)
def test_weights_that_are_no_sums_over_samples_of_the_data(weigh, message):
    with pytest.raises(ValueError, match=message):
        additive.ask(case_of(weighing(weigh)))


def test_a_last_batch_that_the_loss_does_not_take():
    def pairs(output, _):
        return nce(output.view(10, -1), None)

    options = {"loss": pairs, "coupled": True}
    message = r"300 samples in batches of 40 leave a last one of 20, .*: choose a batch_size that divides 300"
    refused(
        message,
        dense(),
        (X, T),
        loss=lambda o, _: F.cross_entropy(o @ o.T, torch.arange(40)),
        coupled=True,
        batch_size=40,
    )
    assert Objective(dense(), (X, T), batch_size=20, **options).judged["additive"] == "not judged: coupled=True"


def test_a_batch_that_is_as_long_as_its_longest_sample():
    class Trimmed(nn.Module):
        """The mean over as many steps as the longest sequence of the batch has, all others padded by zeros."""

        def __init__(self):
            super().__init__()
            self.a = nn.Linear(6, 4)

        def forward(self, inputs):
            length = int(inputs.abs().sum(2).ne(0).sum(1).max())
            return self.a(inputs[:, :length].mean(1))

    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(1000, 20, 6, generator=generator)
    inputs[:, 8:] = 0
    inputs[[17, 333, 612]] = torch.randn(3, 20, 6, generator=generator)
    with pytest.raises(ValueError, match="the output for a sample depends on the others of its batch"):
        Objective(Trimmed(), (inputs, torch.arange(1000) % 4))
