"""The convolutional networks: layers, counts, starts, and their way through training and every kind of evaluation."""

import inspect
import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lbgap
from lbgap.networks import NETWORKS, build, c1, c1_1d, c2, c2_1d, c3, c4, f2, specify
from lbgap.networks.registry import IMAGES

pytestmark = pytest.mark.usefixtures("one_thread")
SIGNALS = (c1_1d, c2_1d)


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def takes_hidden(name):
    return "hidden" in inspect.signature(NETWORKS[name]).parameters


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def states_equal(first, second):
    first, second = first.state_dict(), second.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (f2, 2_780_085),
        (c1, 1_757_834),
        (c2, 14_991_946),
        (c3, 1_775_204),
        (c4, 15_038_116),
        (c1_1d, 87_178),
        (c2_1d, 79_642),
    ],
)
def test_counts(network, expected):
    """Those of the paper, and those that the docs name."""
    assert count(network(seed=0)) == expected


def test_f2_is_seven_hidden_layers():
    layers = [type(layer) for layer in f2(seed=0)]
    assert layers == [nn.Linear, nn.BatchNorm1d, nn.ReLU] * 7 + [nn.Linear]


def written(network):
    """The layers as a row of short words, weights by their number of outputs and dropout by its probability."""
    words = {nn.BatchNorm1d: "N", nn.BatchNorm2d: "N", nn.ReLU: "R", nn.Flatten: "flat", nn.Unflatten: "signal"}
    words |= {nn.MaxPool1d: "M", nn.MaxPool2d: "M"}
    row = []
    for layer in network:
        if isinstance(layer, nn.Dropout):
            row.append(f"{layer.p}")
        elif isinstance(layer, nn.Linear):
            row.append(f"L{layer.out_features}")
        elif isinstance(layer, nn.Conv1d | nn.Conv2d):
            assert layer.stride[0] == 1
            assert layer.padding[0] == layer.kernel_size[0] // 2
            row.append(f"C{layer.out_channels}x{layer.kernel_size[0]}")
        else:
            row.append(words[type(layer)])
    return " ".join(row)


def deep(*widths, hidden, outputs):
    row = []
    for place, (width, depth) in enumerate(zip(widths, (2, 2, 3, 3, 3), strict=False)):
        row += [f" {0.4 if place else 0.3} ".join([f"C{width}x3 N R"] * depth), "M"]
    return " ".join([*row, f"flat 0.5 L{hidden} N R 0.5 L{outputs}"])


def test_layers_are_those_of_the_authors_scripts():
    shallow = "C64x5 N R M C64x5 N R M flat L384 N R 0.5 L192 N R 0.5 L10"
    assert written(c1(seed=0)) == shallow
    assert written(c3(seed=0)) == shallow.replace("L10", "L100")
    assert written(c2(seed=0)) == deep(64, 128, 256, 512, 512, hidden=512, outputs=10)
    assert written(c4(seed=0)) == deep(64, 128, 256, 512, 512, hidden=512, outputs=100)


def test_layers_for_signals():
    assert written(c1_1d(seed=0)) == "signal C32x5 N R M C32x5 N R M flat L192 N R 0.5 L96 N R 0.5 L10"
    assert written(c2_1d(seed=0)) == "signal " + deep(16, 32, 64, hidden=128, outputs=10)


@pytest.mark.parametrize("network", [c1, c3])
@pytest.mark.parametrize("size", [(3, 32, 32), (1, 1, 1), (2, 5, 8)])
def test_shallow_networks_take_any_image(network, size):
    model = network(size, 7, seed=0)
    assert model.training
    assert model.eval()(draw(2, *size)).shape == (2, 7)


@pytest.mark.parametrize("size", [(3, 32, 32), (1, 1, 1), (2, 33, 7)])
def test_deep_networks_take_any_image(size):
    assert c2(size, 7, seed=0).eval()(draw(1, *size)).shape == (1, 7)


@pytest.mark.parametrize("network", SIGNALS)
@pytest.mark.parametrize("length", [1, 2, 17, 40])
def test_signals_are_flat_samples_of_any_length(network, length):
    assert network(length, 7, seed=0).eval()(draw(2, length)).shape == (2, 7)


def test_windows_of_the_shallow_pooling_begin_before_the_image_as_on_theano():
    """Of 0..7 the windows are (0, 1), (1, 2, 3), (3, 4, 5), (5, 6, 7); on TensorFlow the first would be (0, 1, 2)."""
    pools = [layer for layer in c1(seed=0) if isinstance(layer, nn.MaxPool2d)]
    rows = -(torch.arange(8.0) - 2).abs().reshape(1, 1, 8, 1).expand(1, 1, 8, 8)
    for pool in pools:
        assert pool(rows)[0, 0, :, 0].tolist() == [-1, 0, -1, -3]
    signals = [layer for layer in c1_1d(seed=0) if isinstance(layer, nn.MaxPool1d)]
    assert [pool(rows[0, :, :, 0])[0].tolist() for pool in signals] == [[-1, 0, -1, -3]] * 2


def test_windows_of_the_deep_pooling_lose_nothing():
    rows = torch.arange(5.0).reshape(1, 1, 5, 1).expand(1, 1, 5, 4)
    for pool in (layer for layer in c2(seed=0) if isinstance(layer, nn.MaxPool2d)):
        assert pool(rows)[0, 0].tolist() == [[1, 1], [3, 3], [4, 4]]


@pytest.mark.parametrize("network", [*SIGNALS, c1])
def test_starts_as_pytorch_does_after_the_same_seed(network):
    made, expected = network(seed=11), network(seed=0)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(11)
        for layer in expected:
            if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d):
                layer.reset_parameters()
    assert states_equal(made, expected)


def test_uniform_start_is_glorot_with_zero_biases():
    layer = c1(seed=0, initialisation="uniform")[4]
    assert layer.weight.shape == (64, 64, 5, 5)
    bound = math.sqrt(6 / (64 * 25 + 64 * 25))
    weight = layer.weight.detach().double()
    assert not layer.bias.any()
    assert weight.abs().max() <= bound * (1 + 2**-23)
    # 102,400 draws: the largest comes within 1e-3 of the bound, the variance within 5 standard errors.
    assert weight.abs().max() > bound * (1 - 1e-3)
    assert weight.var().item() == pytest.approx(bound**2 / 3, rel=5 * math.sqrt(0.8 / weight.numel()))


@pytest.mark.parametrize("network", SIGNALS)
@pytest.mark.parametrize("initialisation", ["torch", "uniform"])
def test_seed_decides_and_the_global_state_is_untouched(network, initialisation):
    before = torch.random.get_rng_state()
    first, again = (network(seed=1, initialisation=initialisation) for _ in range(2))
    assert states_equal(first, again)
    assert not states_equal(first, network(seed=2, initialisation=initialisation))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_first_draws_are_these_on_every_machine():
    assert c1_1d(seed=0)[1].weight.flatten()[:3].tolist() == [
        -0.003348207799717784,
        0.23990486562252045,
        -0.36807698011398315,
    ]
    uniform = c1_1d(seed=0, initialisation="uniform")[1].weight.flatten()[:3]
    assert uniform.tolist() == [-0.0014276806032285094, 0.10229577869176865, -0.15694855153560638]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: c1((3, 32), seed=0), ValueError, r"inputs must be channels, height and width, got \[3, 32\]: write"),
        (lambda: c2("3,32,32", seed=0), TypeError, "inputs must be channels, height and width, got '3,32,32': write"),
        (lambda: c1(3072, seed=0), TypeError, "inputs must be channels, height and width, got 3072: write"),
        (lambda: c3((3, 0, 32), seed=0), ValueError, "inputs must be at least 1, got 0"),
        (lambda: c4((3, 32.0, 32), seed=0), TypeError, "inputs must be a whole number, got 32.0"),
        (lambda: c1_1d((1, 40), seed=0), TypeError, r"inputs must be a whole number, got \(1, 40\)"),
        (lambda: c2_1d(0, seed=0), ValueError, "inputs must be at least 1, got 0"),
        (lambda: c1_1d(outputs=0, seed=0), ValueError, "outputs must be at least 1, got 0"),
        (lambda: c2_1d(outputs=True, seed=0), TypeError, "outputs must be a whole number, got True"),
        (lambda: c1_1d(seed=-1), ValueError, "seed must be at least 0, got -1"),
        (
            lambda: c1_1d(seed=0, initialisation="he"),
            ValueError,
            "initialisation must be 'torch' or 'uniform', got 'he'",
        ),
    ],
)
def test_networks_refuse(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(name for name in NETWORKS if not takes_hidden(name)))
def test_a_specification_survives_json(name):
    shape = (1, 4, 4) if name in IMAGES else (6,)
    spec = specify(name, shape, 3, seed=5, initialisation="uniform")
    inputs = shape if len(shape) == 3 else shape[0]
    expected = NETWORKS[name](inputs, 3, seed=5, initialisation="uniform")
    assert states_equal(build(json.loads(json.dumps(spec))), expected)


def test_a_specification_of_mlp():
    expected = {"name": "mlp", "inputs": 4, "outputs": 2, "seed": 1, "hidden": [3, 3]}
    assert specify("mlp", (4,), 2, seed=1, hidden=(3, 3)) == expected


@pytest.mark.parametrize(
    ("name", "features", "message"),
    [
        ("c5", (3, 32, 32), "network must be one of f1, .*, got 'c5'$"),
        ("c1-1d", (40,), "network must be one of f1, .*, got 'c1-1d': did you mean 'c1_1d'"),
        (
            "f1",
            (3, 32, 32),
            r"f1 takes flat samples .*, the samples have shape \(3, 32, 32\): use c1, c2, c3, c4, or --mo",
        ),
        ("c2", (40,), r"c2 takes images .*, the samples have shape \(40,\): use f1, f2, c1_1d, c2_1d, mlp.*, or --m"),
        ("mlp", (4, 4), r"mlp takes flat samples \(n,\), the samples have shape \(4, 4\): use --model"),
    ],
)
def test_specify_refuses(name, features, message):
    with pytest.raises(ValueError, match=message):
        specify(name, features, 10, seed=0)


SMALL = {
    "c1_1d": (lambda seed: c1_1d(12, 3, seed=seed), (12,)),
    "c2_1d": (lambda seed: c2_1d(12, 3, seed=seed), (12,)),
    "c1": (lambda seed: c1((2, 6, 6), 3, seed=seed), (2, 6, 6)),
}


@pytest.fixture(params=SMALL)
def small(request):
    """A network, another of its kind, and six samples."""
    make, shape = SMALL[request.param]
    return make(0), make(1), (draw(6, *shape), torch.arange(6) % 3)


def test_training_uses_dropout_and_repeats(small):
    model, _, data = small
    first, again = (lbgap.train(model, data, batch_size=3, epochs=2, seed=4).model for _ in range(2))
    other = lbgap.train(model, data, batch_size=3, epochs=2, seed=5).model
    assert states_equal(first, again)
    assert not states_equal(first, other)
    assert not states_equal(first, model)


@pytest.mark.parametrize("batch_norm", ["eval", "batch"])
def test_sharpness_is_of_the_network_without_dropout(small, batch_norm):
    model, _, data = small
    found = lbgap.fast_sharpness(model, data, batch_norm=batch_norm, iterations=3, epsilon=1e-4)
    assert found.settings["batch_norm"] == batch_norm
    expected = model.eval()
    if batch_norm == "batch":
        for layer in expected.modules():
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                layer.train()
    with torch.no_grad():
        loss = F.cross_entropy(expected(data[0]).double(), data[1]).item()
    # Float32 in another order of summation, through at most 15 layers.
    assert found.base_loss == pytest.approx(loss, rel=1e-5)
    assert found.value > 0


def test_products_are_those_of_differentiating_twice(small):
    model, _, data = small
    objective = lbgap.Objective(model, data, precision="float64")
    vectors = draw(2, objective.n, seed=3).double()
    found = objective.hvp(objective.theta, vectors)
    assert objective.hvp_way == "engine"
    model.eval().double()
    loss = F.cross_entropy(model(data[0].double()), data[1])
    gradients = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    gradient = torch.cat([part.flatten() for part in gradients])
    for vector, product in zip(vectors, found, strict=True):
        parts = torch.autograd.grad(gradient @ vector, list(model.parameters()), retain_graph=True)
        expected = torch.cat([part.flatten() for part in parts])
        # Float64 through at most 15 layers, sums of at most some thousand terms.
        torch.testing.assert_close(product, expected, rtol=0, atol=1e-11 * expected.norm().item())


def test_lines_lead_from_one_to_the_other(small):
    first, second, data = small
    path = lbgap.line(first, second, data, points=3, low=0, high=1, batch_norm="eval")
    for model, found in ((first, path.train_loss[0]), (second, path.train_loss[-1])):
        with torch.no_grad():
            assert found == pytest.approx(F.cross_entropy(model.eval()(data[0]), data[1]).item(), rel=1e-5)


def test_the_deep_network_of_the_paper_is_evaluated():
    data = draw(2, 3, 32, 32), torch.tensor([1, 7])
    objective = lbgap.Objective(c2(seed=0), data)
    loss, gradient = objective.loss_and_gradient(objective.theta)
    assert objective.n == 14_991_946
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert gradient.any()
