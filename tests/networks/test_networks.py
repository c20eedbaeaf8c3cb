"""The networks: sizes, seeds, starts, and every refusal."""

import json
import math
import os
import sys

import pytest
import torch
from torch import nn

from lbgap import networks
from lbgap.networks import build, f1, from_path, mlp


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def states_equal(first, second):
    first, second = first.state_dict(), second.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_f1_has_the_parameters_of_the_paper():
    network = f1(seed=0)
    assert count(network) == 1_462_794
    assert [type(layer) for layer in network] == [nn.Linear, nn.BatchNorm1d, nn.ReLU] * 5 + [nn.Linear]
    assert network.training
    assert network(torch.rand(2, 784)).shape == (2, 10)


def test_f1_takes_other_sizes():
    network = f1(40, 3, seed=0, initialisation="uniform")
    assert states_equal(network, mlp(40, [512] * 5, 3, seed=0, initialisation="uniform"))
    assert network(torch.rand(2, 40)).shape == (2, 3)


@pytest.mark.parametrize(("batch_norm", "expected"), [(True, 40 * 8 + 8 + 16 + 8 * 3 + 3), (False, 355)])
def test_mlp_counts(batch_norm, expected):
    assert count(mlp(40, [8], 3, batch_norm=batch_norm, seed=0)) == expected


def test_mlp_without_hidden_layers_is_linear():
    network = mlp(4, (), 2, seed=0)
    assert [type(layer) for layer in network] == [nn.Linear]


def test_mlp_starts_as_pytorch_does_after_the_same_seed():
    network = mlp(7, [5, 3], 2, seed=11)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(11)
        expected = [nn.Linear(7, 5), nn.Linear(5, 3), nn.Linear(3, 2)]
    linear = [layer for layer in network if isinstance(layer, nn.Linear)]
    assert all(states_equal(one, other) for one, other in zip(linear, expected, strict=True))


def test_uniform_start_is_glorot_with_zero_biases():
    layer = mlp(300, [200], 10, seed=0, initialisation="uniform")[0]
    bound = math.sqrt(6 / (300 + 200))
    weight = layer.weight.detach().double()
    assert not layer.bias.any()
    assert weight.abs().max() <= bound * (1 + 2**-23)
    # 60,000 draws: the largest comes within 1e-3 of the bound, the variance within 5 standard errors.
    assert weight.abs().max() > bound * (1 - 1e-3)
    assert weight.var().item() == pytest.approx(bound**2 / 3, rel=5 * math.sqrt(0.8 / weight.numel()))


def test_seed_decides_the_parameters():
    assert states_equal(mlp(4, [3], 2, seed=1), mlp(4, [3], 2, seed=1))
    assert not states_equal(mlp(4, [3], 2, seed=1), mlp(4, [3], 2, seed=2))


def test_parameters_are_float32_on_the_cpu_that_require_gradients():
    for parameter in mlp(4, [3], 2, seed=1).parameters():
        assert parameter.dtype == torch.float32
        assert parameter.device.type == "cpu"
        assert parameter.requires_grad
        assert parameter.is_leaf


@pytest.mark.parametrize("initialisation", ["torch", "uniform"])
def test_global_random_state_is_untouched(initialisation):
    before = torch.random.get_rng_state()
    mlp(4, [3], 2, seed=1, initialisation=initialisation)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"inputs": 0}, ValueError, "inputs must be at least 1, got 0"),
        ({"hidden": [4, 0]}, ValueError, "hidden must be at least 1, got 0"),
        ({"outputs": -1}, ValueError, "outputs must be at least 1, got -1"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ({"initialisation": "he"}, ValueError, "initialisation must be 'torch' or 'uniform', got 'he'"),
        ({"inputs": 4.0}, TypeError, "inputs must be a whole number, got 4.0"),
        ({"outputs": True}, TypeError, "outputs must be a whole number, got True"),
        ({"hidden": ["4"]}, TypeError, "hidden must be a whole number, got '4'"),
        ({"hidden": "44"}, TypeError, r"hidden must be a list of widths, got '44': write \[512, 512\]"),
        ({"hidden": 4}, TypeError, "hidden must be a list of widths, got 4"),
        ({"batch_norm": "false"}, TypeError, "batch_norm must be True or False, got 'false'"),
    ],
)
def test_mlp_refuses(change, error, message):
    arguments = {"inputs": 4, "hidden": [3], "outputs": 2, "seed": 0} | change
    with pytest.raises(error, match=message):
        mlp(**arguments)


def test_build_survives_json():
    spec = {"name": "mlp", "inputs": 40, "hidden": [8, 8], "outputs": 10, "batch_norm": False, "seed": 3}
    text = json.dumps(spec)
    assert states_equal(build(json.loads(text)), mlp(40, [8, 8], 10, batch_norm=False, seed=3))
    assert json.dumps(spec) == text
    assert states_equal(build({"name": "f1", "seed": 5}), f1(seed=5))


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ([], TypeError, "a network is specified by a mapping with 'name', got list"),
        ({"seed": 0}, ValueError, "network must be one of f1, f2, c1, .*, mlp.*, got None"),
        ({"name": ["mlp"]}, ValueError, r"network must be one of .*, mlp.*, got \['mlp'\]"),
        ({"name": "mlpp"}, ValueError, "network must be one of .*, got 'mlpp': did you mean 'mlp'"),
        ({"name": "mlp", "inputs": 4}, ValueError, "mlp needs .*, missing hidden, outputs, seed"),
        ({"name": "f1", "sed": 4}, ValueError, "f1 takes .*, got 'sed': did you mean 'seed'"),
    ],
)
def test_build_refuses(spec, error, message):
    with pytest.raises(error, match=message):
        build(spec)


def test_the_registry_cannot_be_changed():
    with pytest.raises(TypeError):
        networks.NETWORKS["other"] = f1


USER_CODE = """
import os, sys
import torch
from torch import nn
seen = os.getcwd() in sys.path
def make(): return nn.Linear(3, 2)
def wide(width): return nn.Linear(width, 2)
def broken(): raise RuntimeError("from the user's own code")
def text(): return "no network"
class Net(nn.Sequential): pass
ready = nn.Linear(5, 1)
number = 3
"""


@pytest.fixture
def user_code(tmp_path, monkeypatch):
    """The name of a module in the current directory, forgotten again after the test."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lbgap_user_code.py").write_text(USER_CODE)
    (tmp_path / "lbgap_user_needs.py").write_text("import lbgap_absent_dependency\n")
    (tmp_path / "lbgap_user_package").mkdir()
    (tmp_path / "lbgap_user_package" / "__init__.py").write_text("")
    (tmp_path / "lbgap_user_package" / "inner.py").write_text(USER_CODE)
    yield "lbgap_user_code"
    for name in [name for name in sys.modules if name.startswith("lbgap_user_")]:
        del sys.modules[name]


def test_from_path_calls_a_function(user_code):
    assert isinstance(from_path(f"{user_code}:make"), nn.Linear)
    assert isinstance(from_path("lbgap_user_package.inner:make"), nn.Linear)


def test_from_path_takes_a_class_and_a_module(user_code):
    assert isinstance(from_path(f"{user_code}:Net"), nn.Sequential)
    assert from_path(f"{user_code}:ready") is sys.modules[user_code].ready


def test_from_path_restores_the_import_path(user_code):
    before = list(sys.path)
    from_path(f"{user_code}:make")
    assert sys.path == before
    assert sys.modules[user_code].seen
    with pytest.raises(RuntimeError, match="from the user's own code"):
        from_path(f"{user_code}:broken")
    assert sys.path == before
    sys.path.append(os.getcwd())
    try:
        from_path(f"{user_code}:make")
        assert sys.path == [*before, os.getcwd()]
    finally:
        sys.path[:] = before


@pytest.mark.parametrize("path", ["", "model", "model:", ":make", "model.py:make", "a/b:make", ".m:make", "a:b:c"])
def test_from_path_refuses_a_malformed_path(path):
    with pytest.raises(ValueError, match=r"a model must be given as 'package\.module:name', got '"):
        from_path(path)


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("lbgap_user_codes:make", ValueError, "no module 'lbgap_user_codes' in .*: run in the directory"),
        ("lbgap_user_package.outer:make", ValueError, "no module 'lbgap_user_package.outer' in "),
        ("lbgap_user_code:maek", ValueError, "no 'maek' in the module of .*: did you mean 'make'"),
        ("lbgap_user_code:wide", ValueError, "callable without arguments .*'width'.*: wrap it in a function"),
        ("lbgap_user_code:number", TypeError, "a torch.nn.Module or a callable that returns one, got int"),
        ("lbgap_user_code:text", TypeError, "must return a torch.nn.Module, got str"),
    ],
)
def test_from_path_refuses(user_code, path, error, message):
    with pytest.raises(error, match=message) as caught:
        from_path(path)
    assert "\n" not in str(caught.value)


def test_from_path_passes_on_what_the_users_code_lacks(user_code):
    with pytest.raises(ModuleNotFoundError, match="lbgap_absent_dependency"):
        from_path("lbgap_user_needs:make")
