"""Bad input to fast_sharpness and Objective: refused with one line that says what to do, before any work is done."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, RandomSampler, TensorDataset

from lbgap import Objective, fast_sharpness
from lbgap.objective import passes
from lbgap.problem.stored import Table

SAMPLES = 40


pytestmark = pytest.mark.usefixtures("one_thread")


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def labels(samples=SAMPLES, classes=3):
    return torch.randint(0, classes, (samples,), generator=torch.Generator().manual_seed(1))


def good_data():
    return normal(SAMPLES, 4), labels()


def refused(error, message, model, data, **options):
    with pytest.raises(error, match=message) as caught:
        fast_sharpness(model, data, **options)
    assert "\n" not in str(caught.value)


class Untouched(Dataset):
    """Data that must not be read."""

    def __len__(self):
        raise AssertionError("the data were read")

    __getitem__ = None


class Unrun(nn.Linear):
    """A model that must not be run."""

    def forward(self, inputs):
        raise AssertionError("the model was run")


ARGUMENTS = [
    ({"epsilon": -1e-3}, ValueError, "epsilon must be finite and above zero.*got -0.001: try 1e-3 or 5e-4"),
    ({"epsilon": 0}, ValueError, "epsilon must be finite and above zero"),
    ({"epsilon": math.nan}, ValueError, "epsilon must be finite .*got nan"),
    ({"epsilon": math.inf}, ValueError, "epsilon must be finite .*got inf"),
    ({"epsilon": True}, TypeError, "epsilon must be a number, got bool"),
    ({"epsilon": "1e-3"}, TypeError, "epsilon must be a number, got str"),
    ({"epsilon": None}, TypeError, "epsilon must be a number, got NoneType"),
    ({"method": "lbfgs"}, ValueError, "method must be one of 'vertex', 'apgd', 'lbfgsb', 'scipy', got 'lbfgs'"),
    ({"method": "Vertex"}, ValueError, "method must be one of"),
    ({"region": "l2"}, ValueError, "region must be one of 'keskar', 'linf', 'adaptive', got 'l2'"),
    ({"precision": "bfloat16"}, ValueError, "precision must be one of 'float32', 'float64', 'mixed', got 'bfloat16'"),
    ({"precision": torch.float64}, ValueError, "precision must be one of"),
    ({"backend": "cuda"}, ValueError, "backend must be one of 'auto', 'native', 'torch', got 'cuda'"),
    ({"batch_norm": "train"}, ValueError, "batch_norm must be 'eval' or 'batch', got 'train'"),
    ({"loss": "crossentropy"}, ValueError, r"loss must be 'cross_entropy', .* or a callable, got 'crossentropy'"),
    ({"loss": 1}, TypeError, r"loss must be 'cross_entropy', .* or a callable, got int"),
    ({"iterations": 0}, ValueError, "iterations must be at least 1, got 0"),
    ({"iterations": -3}, ValueError, "iterations must be at least 1"),
    ({"iterations": 10.0}, TypeError, "iterations must be a whole number, got 10.0"),
    ({"iterations": True}, TypeError, "iterations must be a whole number, got True"),
    ({"iterations": "10"}, TypeError, "iterations must be a whole number, got '10'"),
    ({"restarts": -1}, ValueError, "restarts must be at least 0, got -1"),
    ({"restarts": 1.5}, TypeError, "restarts must be a whole number, got 1.5"),
    ({"restarts": None}, TypeError, "restarts must be a whole number, got None"),
    ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
    ({"seed": 2**64}, ValueError, "seed must be below 2..63, got 18446744073709551616"),
    ({"seed": 0.5}, TypeError, "seed must be a whole number, got 0.5"),
    ({"seed": None}, TypeError, "seed must be a whole number, got None"),
    ({"scout": -5}, ValueError, "scout must be at least 0, got -5"),
    (
        {"scout": False},
        TypeError,
        "scout must be a whole number of samples, or a share such as 0.1 or '10%', got False",
    ),
    ({"scout": 12.0}, ValueError, "scout as a float is a share of the samples, above 0 and at most all, got 12.0"),
    ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
    ({"batch_size": -8}, ValueError, "batch_size must be at least 1, got -8"),
    (
        {"batch_size": 64.0},
        ValueError,
        "batch_size as a float is a share of the samples, above 0 and at most all, got 64.0: pass an int",
    ),
    (
        {"batch_size": True},
        TypeError,
        "batch_size must be a whole number of samples, or a share such as 0.1 or '10%', got True",
    ),
    ({"batch_size": "0%"}, ValueError, "batch_size as a percentage is a share of the samples, above 0"),
    (
        {"parameters": "layer4.*"},
        ValueError,
        r"parameters pattern 'layer4.\*' matches no .*the names are: weight, bias",
    ),
    ({"parameters": 4}, TypeError, "parameters must be 'all', 'weights' or name patterns"),
    ({"device": "gpu"}, ValueError, "device must be 'cpu', 'cuda' or 'cuda:N', got 'gpu'"),
    ({"device": "cuda:99"}, ValueError, "device is 'cuda:99', but "),
    ({"device": 1.5}, ValueError, "device must be 'cpu', 'cuda' or 'cuda:N', got 1.5"),
]


@pytest.mark.parametrize(("options", "error", "message"), ARGUMENTS, ids=[str(case[0]) for case in ARGUMENTS])
def test_arguments_are_judged_before_the_data_are_read(options, error, message):
    refused(error, message, Unrun(4, 3), Untouched(), **options)


def test_unknown_keywords():
    with pytest.raises(TypeError, match="unexpected keyword argument 'eps'"):
        fast_sharpness(nn.Linear(4, 3), good_data(), eps=1e-3)
    with pytest.raises(TypeError, match="unexpected keyword argument 'epsilon'"):
        Objective(nn.Linear(4, 3), good_data(), epsilon=1e-3)
    with pytest.raises(TypeError, match="positional"):
        fast_sharpness(nn.Linear(4, 3), good_data(), 1e-3)


@pytest.mark.parametrize("method", ["vertex", "apgd", "scipy"])
def test_more_scouts_than_samples(method):
    built = Objective(nn.Linear(4, 3), good_data())
    refused(ValueError, "scout must be between 0 and 40 samples, got 41", built, None, scout=41, method=method)
    assert built.evaluations == 0


# An objective.


@pytest.mark.parametrize(
    ("data", "options", "names"),
    [
        (good_data(), {}, "data"),
        (None, {"loss": "mse"}, "loss"),
        (None, {"batch_size": 5, "device": "cpu"}, "batch_size, device"),
        (good_data(), {"precision": "float64", "parameters": "all"}, "data, parameters, precision"),
        (None, {"backend": "torch", "batch_norm": "eval"}, "batch_norm, backend"),
    ],
)
def test_an_objective_has_its_options_already(data, options, names):
    built = Objective(nn.Linear(4, 3), good_data())
    refused(ValueError, f"^{names} belong to the Objective: give them when you build it$", built, data, **options)


# Data.

DATA = [
    (None, TypeError, r"data is missing: pass \(inputs, targets\), a dict of tensors, a Dataset"),
    (
        normal(5, 4),
        ValueError,
        r"'cross_entropy' needs a target beside the inputs, got batches of one tensor: pass",
    ),
    (
        (normal(5, 4), labels(5), labels(5)),
        ValueError,
        "forward takes 1 input, got batches of 3 parts: pass call=",
    ),
    ((normal(5, 4), labels(6)), ValueError, "expected as many targets as inputs, got 5 inputs and 6 targets"),
    ((normal(0, 4), labels(0)), ValueError, "expected at least one sample"),
    ((normal(5, 4).log(), labels(5)), ValueError, "expected finite inputs, got NaN or infinity, first in sample"),
    (
        (normal(5, 4), labels(5) + 2),
        ValueError,
        r"targets must be class indices in 0..2 \(the model has 3 outputs\), got",
    ),
    ((normal(5, 4), labels(5) - 1), ValueError, r"targets must be class indices in 0..2"),
    ((normal(5, 4), normal(5)), ValueError, r"targets of the output's shape \(n, 3\), got \(n,\) torch.float32"),
    ((normal(5, 7), labels(5)), ValueError, r"does not accept inputs of shape \(5, 7\), torch.float32: mat1 and mat2"),
    ((normal(5, 4).long(), labels(5)), ValueError, r"does not accept inputs of shape \(5, 4\), torch.int64"),
    (
        DataLoader(TensorDataset(*good_data()), sampler=RandomSampler(good_data()[0], replacement=True)),
        ValueError,
        "reads each sample once, got a RandomSampler that draws with replacement: pass loader.dataset",
    ),
]


@pytest.mark.parametrize(("data", "error", "message"), DATA)
def test_data_that_do_not_fit(data, error, message):
    refused(error, message, nn.Linear(4, 3), data)


def test_data_on_another_device():
    tokens = torch.zeros(5, 2, dtype=torch.long, device="meta")
    model = nn.Sequential(nn.Embedding(3, 2), nn.Flatten(), nn.Linear(4, 3))
    message = "the model is on cpu and the data on meta: move one of them, or pass device="
    refused(ValueError, message, model, (tokens, tokens[:, 0]))


def test_data_of_a_dataset_are_moved(monkeypatch):
    """Only tensors that are passed themselves have a place of their own that the user chose."""
    places, placed = [], Table.placed

    def watched(self, device, dtype):
        places.append(device)
        return placed(self, device, dtype)

    monkeypatch.setattr(Table, "placed", watched)
    Objective(nn.Linear(4, 3), TensorDataset(*good_data()))
    assert places == [torch.device("cpu")]


# Models.


class Random(nn.Linear):
    def forward(self, inputs):
        return F.dropout(super().forward(inputs), 0.5)


class Drifting(nn.Linear):
    """Changes a buffer whenever it runs, too little for two runs to differ."""

    def __init__(self, how):
        super().__init__(4, 3)
        self.how = how
        self.register_buffer("average", torch.zeros(3))

    def forward(self, inputs):
        output = super().forward(inputs)
        if self.how == "in place":
            self.average.mul_(0.999).add_(1e-9)
        elif self.how == "data":
            self.average.data += 1e-9
        else:
            self.average = self.average + 1e-9
        return output + self.average


class Returns(nn.Linear):
    def __init__(self, change):
        super().__init__(4, 3)
        self.change = change

    def forward(self, inputs):
        return self.change(super().forward(inputs))


class Fails(nn.Linear):
    def __init__(self, error):
        super().__init__(4, 3)
        self.error = error

    def forward(self, inputs):
        raise self.error


def moving_data(model):
    def forward(inputs):
        model.weight.data = model.weight.data.clone()
        return F.linear(inputs, model.weight, model.bias)

    model.forward = forward
    return model


class Moves(nn.Linear):
    def forward(self, inputs):
        self.weight.data = self.weight.data.clone()
        return super().forward(inputs)


def frozen():
    return nn.Linear(4, 3).requires_grad_(False)


def two_devices():
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False).to("meta"), nn.Linear(4, 3))


MODELS = [
    (lambda: "resnet", TypeError, "model must be a torch.nn.Module, got str"),
    (lambda: nn.Linear, TypeError, "model must be a torch.nn.Module, got the class Linear: pass an instance of it"),
    (nn.Flatten, ValueError, "the model has no parameters: sharpness needs at least one with requires_grad=True"),
    (frozen, ValueError, "the model has 2 parameters, all frozen: sharpness needs at least one"),
    (lambda: nn.LazyLinear(3), ValueError, "parameter 'weight' has no shape yet: run one batch through the model"),
    (lambda: nn.Linear(4, 3, dtype=torch.cfloat), ValueError, "parameter 'weight' is complex"),
    (lambda: nn.Linear(4, 3, device="meta"), ValueError, "parameter 'weight' is on the meta device and has no values"),
    (two_devices, ValueError, "the model is spread over cpu, meta: move it to one, or pass device="),
    (lambda: Random(4, 3), ValueError, "different outputs for the same inputs in evaluation mode.*turn its randomness"),
    (lambda: Drifting("in place"), ValueError, "the model changes its buffer 'average' in evaluation mode"),
    (lambda: Drifting("data"), ValueError, "the model changes its buffer 'average' in evaluation mode"),
    (lambda: Drifting("assigned"), ValueError, "the model changes its buffer 'average' in evaluation mode"),
    (lambda: Moves(4, 3), ValueError, "the model replaces its parameter 'weight', or its gradient, when it runs"),
    (lambda: Returns(lambda y: (y, y)), TypeError, "must return one tensor, .*, got tuple with 2 of them: pass call="),
    (
        lambda: Returns(lambda y: {"a": y, "b": y}),
        TypeError,
        "must return one tensor, .*, got dict with 2 of them",
    ),
    (lambda: Returns(lambda y: y.sum()), ValueError, "the model must return one output per sample.*a single number"),
    (lambda: Returns(lambda y: y[:2]), ValueError, "must return one output per sample, got 2 for 32"),
    (lambda: Returns(lambda y: y[:, 0]), ValueError, r"with two classes or more, got shape \(32,\)"),
    (lambda: Returns(lambda y: y[:, :1]), ValueError, r"with two classes or more, got shape \(32, 1\)"),
    (lambda: Returns(lambda y: y.detach()), ValueError, "does not depend on the parameters that may move"),
    (lambda: Returns(lambda y: y.double().long().float()), ValueError, "does not depend on the parameters that may"),
    (
        lambda: Fails(AssertionError()),
        ValueError,
        r"does not accept inputs of shape \(32, 4\), torch.float32: Assertion",
    ),
    (lambda: Fails(KeyError("mask")), ValueError, "does not accept inputs of shape .* 'mask'"),
    (lambda: Fails(RuntimeError("one\ntwo")), ValueError, "torch.float32: one$"),
]


@pytest.mark.parametrize(("build", "error", "message"), MODELS)
def test_models_that_do_not_fit(build, error, message):
    refused(error, message, build(), good_data())


def test_a_part_of_the_model_that_the_loss_does_not_use():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, inputs):
            return self.used(inputs)

    refused(
        ValueError, "the loss does not depend on the parameters that may", Two(), good_data(), parameters="unused.*"
    )
    assert fast_sharpness(Two(), good_data()).value > 0


def test_batch_norm_without_running_statistics():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False))
    refused(ValueError, "has no running statistics.*pass batch_norm='batch'", model, good_data())
    assert fast_sharpness(model, good_data(), batch_norm="batch").value > 0


def test_one_sample_in_a_batch_of_batch_norm():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    message = "with 40 samples in batches of 13 leaves a batch of one sample"
    refused(ValueError, message, model, good_data(), batch_norm="batch", batch_size=13)
    message = "with 1 samples in batches of 1 leaves a batch of one sample"
    refused(ValueError, message, model, (normal(1, 4), labels(1)), batch_norm="batch")


# Losses.

LOSSES = [
    (lambda output, target: output.T, ValueError, r"must be a scalar .*got shape \(3, 32\) .*: reduce it with .mean"),
    (
        lambda output, target: F.cross_entropy(output, target, reduction="sum"),
        ValueError,
        "not its sum: 20 samples gave",
    ),
    (lambda output, target: 0.5, TypeError, "must return a tensor .the mean over the batch., got float"),
    (
        lambda output, target: target.float().mean(),
        ValueError,
        "the loss does not depend on the parameters that may move",
    ),
    (
        lambda output, target: (output.argmax(1) == target).float().mean(),
        ValueError,
        "does not depend on the parameters",
    ),
    (lambda output, target: F.cross_entropy(output.detach(), target), ValueError, "nor loss detaches its output"),
]


@pytest.mark.parametrize(("loss", "error", "message"), LOSSES)
def test_losses_that_do_not_fit(loss, error, message):
    refused(error, message, nn.Linear(4, 3), good_data(), loss=loss)


def test_a_penalty_on_the_original_parameters():
    """It would be a constant, and its gradients would go to the user's own model."""
    model = nn.Linear(4, 3)

    def loss(output, target):
        return F.cross_entropy(output, target) + 1e-4 * sum(p.square().sum() for p in model.parameters())

    refused(ValueError, "depends on trainable tensors besides the model's output", model, good_data(), loss=loss)
    assert model.weight.grad is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("method", ["vertex", "apgd", "scipy"])
def test_a_loss_that_is_not_finite_at_the_minimizer(method, value):
    def loss(output, target):
        return torch.where(target == 7, value, output.square().mean(1)).mean()

    targets = torch.zeros(SAMPLES)
    targets[17] = 7
    message = (
        rf"the loss is {value} in samples 16..23 \(batch 3 of 5\): check their inputs and targets, and the model's w"
    )
    data = (normal(SAMPLES, 4), targets)
    refused(FloatingPointError, message, nn.Linear(4, 3), data, loss=loss, batch_size=8, method=method)


def test_weights_that_are_not_finite():
    model = nn.Linear(4, 3)
    with torch.no_grad():
        model.weight[0, 0] = math.nan
    refused(FloatingPointError, r"the loss is nan in samples 0..39 \(batch 1 of 1\)", model, good_data())


def test_probing_needs_no_more_than_a_few_samples():
    class Counted(nn.Linear):
        largest = 0

        def forward(self, inputs):
            Counted.largest = max(Counted.largest, len(inputs))
            return super().forward(inputs)

    Objective(Counted(4, 3), (normal(5000, 4), labels(5000)))
    assert Counted.largest == passes.PROBE_SAMPLES * 3 // 2


# What is called on an objective.


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda o: o.loss([0.0] * 15), TypeError, r"theta must be a tensor \(15,\), got list"),
        (lambda o: o.losses(None), TypeError, r"points must be a tensor \(k, 15\), got NoneType"),
        (lambda o: o.point(torch.ones(3)), ValueError, r"coordinates must be \(15,\) torch.float32 on cpu, got \(3,\)"),
        (lambda o: o.manifold(2).point(o.theta), ValueError, r"coordinates must be \(2,\) torch.float64 on cpu"),
        (lambda o: o.loss_and_gradient(o.theta, out=o.theta.long()), ValueError, r"out must be \(15,\) torch.float32"),
        (lambda o: o.part(torch.tensor([1.5])), ValueError, "chosen must be one or more indices below 9"),
    ],
)
def test_what_an_objective_cannot_use(call, error, message):
    with pytest.raises(error, match=message):
        call(Objective(nn.Linear(4, 3), (normal(9, 4), labels(9))))


def test_statistics_of_each_batch_are_not_kept():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    objective = Objective(model, (normal(9, 4), labels(9)), batch_norm="batch")
    with pytest.raises(ValueError, match="batch_norm='batch' keeps no statistics: pass batch_norm='eval'"):
        objective.statistics(objective.theta)


def test_accuracy_is_counted_before_a_loss_that_overwrites_the_output():
    def loss(output, target):
        return F.cross_entropy(-output.neg_(), target)

    model, data = nn.Linear(4, 3), (normal(30, 4), labels(30))
    objective = Objective(model, data, loss=loss)
    right = 100 * (model(data[0]).argmax(1) == data[1]).double().mean()
    assert float(objective.loss_and_accuracy(objective.theta)[1]) == pytest.approx(float(right))
    both = objective.combination_losses(torch.eye(1).double(), objective.theta[None], accuracy=True)[1]
    assert both.tolist() == pytest.approx([float(right)])
