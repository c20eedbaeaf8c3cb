"""The measure as a whole: its definition, what its result says, and what it leaves alone."""

import copy
import importlib.metadata
import json
import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lbgap
from lbgap import Objective, Sharpness, fast_sharpness
from lbgap.maximize.region import REGIONS, box
from lbgap.maximize.search import METHODS
from lbgap.system import device as hardware

needs_bfloat16 = pytest.mark.skipif(
    not hardware.bfloat16_products("cpu"), reason="no bfloat16 matrix products on this processor"
)


pytestmark = pytest.mark.usefixtures("one_thread")


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def seeded(build, seed=0):
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(seed)
        return build()


def dense():
    return nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.Linear(6, 3))


def small_data(samples=40):
    return normal(samples, 4), torch.randint(0, 3, (samples,), generator=torch.Generator().manual_seed(1))


def recompute(model, data, point, batch_norm="eval"):
    """The mean loss at a point, by plain PyTorch in float64 on all samples at once."""
    model = copy.deepcopy(model).double().eval()
    nn.utils.vector_to_parameters(point.double(), model.parameters())
    if batch_norm == "batch":
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.train()
    with torch.no_grad():
        return float(F.cross_entropy(model(data[0].double()), data[1]))


@pytest.mark.parametrize("precision", ["float32", "float64", pytest.param("mixed", marks=needs_bfloat16)])
@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("batch_norm", ["eval", "batch"])
@pytest.mark.parametrize("epsilon", [5e-4, 1e-2])
def test_the_value_is_what_plain_pytorch_finds_at_the_point(
    minimizers, mnist1d_train, method, region, batch_norm, precision, epsilon
):
    model = minimizers["LB"]
    data = (mnist1d_train.inputs[:300], mnist1d_train.targets[:300])
    options = {"batch_norm": batch_norm, "precision": precision}
    s = fast_sharpness(model, data, epsilon=epsilon, method=method, region=region, **options)
    x = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    tolerance = 1e-12 if precision == "float64" else 2e-5
    assert s.base_loss == pytest.approx(recompute(model, data, x, batch_norm), rel=tolerance)
    assert s.max_loss == pytest.approx(recompute(model, data, s.point, batch_norm), rel=tolerance)
    assert s.value == 100 * (s.max_loss - s.base_loss) / (1 + s.base_loss)
    assert s.value > 0
    assert box(region, x.to(s.point), epsilon).excess(s.point) <= 1
    half_width = {
        "keskar": epsilon * (x.abs() + 1),
        "linf": epsilon * torch.ones_like(x),
        "adaptive": epsilon * x.abs(),
    }
    assert ((s.point - x).abs().double() <= half_width[region].double() * (1 + 1e-5) + 1e-7).all()


def test_only_chosen_parameters_move(minimizers, mnist1d_train):
    model = minimizers["SB"]
    objective = Objective(model, mnist1d_train, parameters=["6.*", "0.bias"])
    s = fast_sharpness(objective)
    assert objective.names == ("0.bias", "6.weight", "6.bias")
    assert len(s.point) == objective.n == 48 + 480 + 10
    assert s.settings["parameters"] == ["6.*", "0.bias"]
    assert 0 < s.value < fast_sharpness(model, mnist1d_train).value


def test_never_below_zero():
    """At a maximum of the loss there is nothing to find, and that is what is said."""
    model = nn.Linear(1, 1)
    with torch.no_grad():
        model.weight.fill_(1.0)
        model.bias.fill_(0.0)

    def top(output, target):
        return 1 - ((output - target) ** 2).mean()

    data = (torch.ones(3, 1), torch.ones(3, 1) * 1.0001)
    for method in METHODS:
        for restarts in (0, 3):
            s = fast_sharpness(model, data, loss=top, method=method, restarts=restarts)
            assert s.value >= 0
            assert s.max_loss >= s.base_loss


def test_a_loss_below_minus_one_has_no_phi():
    with pytest.raises(ValueError, match=r"phi divides by 1 \+ loss, and the loss at the minimizer is -2: add a const"):
        fast_sharpness(nn.Linear(4, 3), small_data(), loss=lambda output, target: 0 * output.mean() - 2)


# The result.

SETTINGS = {
    "measure", "region", "epsilon", "method", "iterations", "restarts", "scout", "seed", "scaling", "searched", "start",
    "loss", "parameters", "n", "samples", "batch_norm", "batch_size", "precision", "directions", "coupled", "weight",
    "device", "threads", "backend", "data", "graph", "judged", "notes", "versions",
}  # fmt: skip


def test_a_checkout_that_is_not_installed_has_results_without_a_version(monkeypatch):
    version = importlib.metadata.version

    def find(name):
        if name == "lbgap":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", find)
    s = fast_sharpness(nn.Linear(4, 3), small_data())
    assert s.settings["versions"]["lbgap"] is None
    assert s.settings["versions"]["torch"] == version("torch")


@pytest.mark.parametrize("options", [{}, {"method": "apgd"}, {"method": "scipy"}, {"restarts": 2, "seed": 5}])
def test_a_result_is_json_and_complete(minimizers, mnist1d_train, options):
    s = fast_sharpness(minimizers["LB"], mnist1d_train, epsilon=5e-4, **options)
    found = s.to_dict()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert set(found) == {
        "lower_bound", "value", "values", "standard_deviation", "base_loss", "max_loss", "evaluations", "history",
        "gap", "status", "status_name", "starts", "settings", "seconds", "searched",
    }  # fmt: skip
    assert set(found["settings"]) == SETTINGS
    assert set(found["settings"]["versions"]) == {"python", "lbgap", "torch", "numpy", "scipy"}
    kept = {"start", "samples", "loss", "evaluations", "gap", "status", "status_name"}
    assert all(set(climb) == kept for climb in found["starts"])
    assert [climb["status_name"] for climb in found["starts"]] == [climb["status"].name for climb in s.starts]
    expected = {"epsilon": 5e-4, "region": "keskar", "samples": 2000, "n": 5002, "loss": "cross_entropy", "notes": []}
    expected |= {"restarts": 0, "seed": 0, "method": "vertex"} | options
    expected["iterations"] = {"vertex": 20, "apgd": 30, "scipy": 10}[expected["method"]]
    expected["scout"] = 128 if options.get("restarts") else 0
    assert {name: found["settings"][name] for name in expected} == expected
    assert found["lower_bound"] is True
    assert found["value"] == s.value
    assert found["seconds"] == s.seconds > 0


def test_what_is_not_finite_becomes_null():
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.zero_()

    def cliff(output, target):
        return torch.where(output.mean() > 0.05, math.inf, 1 + output.mean())

    s = fast_sharpness(model, (torch.ones(3, 1), torch.zeros(3, 1)), loss=cliff, epsilon=0.1, restarts=20)
    found = json.loads(json.dumps(s.to_dict(), allow_nan=False))
    assert None in [climb["loss"] for climb in found["starts"]]
    assert -math.inf in [climb["loss"] for climb in s.starts]


def test_settings_follow_the_arguments(minimizers, mnist1d_train):
    s = fast_sharpness(
        minimizers["SB"], mnist1d_train, epsilon=2, method="apgd", iterations=3, restarts=1, seed=9, region="linf",
        loss="cross_entropy", parameters="weights", batch_norm="batch", precision="float64", batch_size=500,
        device="cpu", backend="torch",
    )  # fmt: skip
    expected = {
        "epsilon": 2.0, "method": "apgd", "iterations": 3, "restarts": 1, "seed": 9, "region": "linf",
        "parameters": "weights", "batch_norm": "batch", "precision": "float64", "directions": "float64",
        "batch_size": 500, "device": "cpu", "backend": "torch", "threads": 1, "scout": 0,
    }  # fmt: skip
    assert {name: s.settings[name] for name in expected} == expected
    assert s.point.dtype == torch.float64


def test_the_text_is_readable(minimizers, mnist1d_train):
    text = str(fast_sharpness(minimizers["LB"], mnist1d_train, restarts=2))
    lines = text.splitlines()
    assert re.fullmatch(r"phi >= \d+\.?\d* %, a certified lower bound: the loss rises from \S+ to \S+", lines[0])
    assert re.fullmatch(r"  region keskar, epsilon 0.001, vertex, 3 starts, \w+ backend", lines[1])
    cost = r"  5,002 parameters, 2,000 samples, batch-norm eval, \S+ evaluations, \d+\.\d\d s, float32 on cpu"
    assert re.fullmatch(cost, lines[2])
    assert re.match("  (converged|stopped) after", lines[3])
    assert len(lines) == 4
    assert max(map(len, lines)) < 120


def test_the_text_has_the_notes(monkeypatch):
    monkeypatch.setattr(hardware, "bfloat16_products", lambda _: False)
    with pytest.warns(UserWarning, match="ran in float32"):
        s = fast_sharpness(nn.Linear(4, 3), small_data(), precision="mixed")
    assert (
        str(s).splitlines()[-1] == "  note: precision='mixed' ran in float32: no bfloat16 matrix products on this cpu"
    )


def test_public_names():
    assert lbgap.fast_sharpness is fast_sharpness
    assert lbgap.Sharpness is Sharpness
    assert isinstance(fast_sharpness(nn.Linear(4, 3), small_data()), Sharpness)


# An objective in place of model and data.


def test_an_objective_gives_the_same_as_model_and_data(minimizers, mnist1d_train):
    objective = Objective(minimizers["LB"], mnist1d_train, batch_size=300)
    first, second = fast_sharpness(objective), fast_sharpness(objective)
    direct = fast_sharpness(minimizers["LB"], mnist1d_train, batch_size=300)
    loader = fast_sharpness(minimizers["LB"], DataLoader(TensorDataset(*mnist1d_train), batch_size=64), batch_size=300)
    for other in (second, direct, loader):
        assert torch.equal(other.point, first.point)
        assert {**other.to_dict(), "seconds": 0} == {**first.to_dict(), "seconds": 0}


# What belongs to the caller.


@pytest.mark.parametrize("method", METHODS)
def test_nothing_of_the_caller_changes(method, caller_state):
    model, data = seeded(dense).train(), small_data()
    model[2].eval()
    model[4].bias.requires_grad_(False)
    model[1].weight.grad = torch.ones(6, 4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    samples, state = [tensor.clone() for tensor in data], caller_state()
    fast_sharpness(model, data, method=method, restarts=5, scout=10, epsilon=0.1)
    assert caller_state() == state
    assert all(torch.equal(one, other) for one, other in zip(data, samples, strict=True))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == [True, True, True, False, True, True]
    assert [p.requires_grad for p in model.parameters()] == [True] * 5 + [False]
    assert [p.grad is None for p in model.parameters()] == [False] + [True] * 5


CONTEXTS = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@pytest.mark.parametrize("precision", ["float32", pytest.param("mixed", marks=needs_bfloat16)])
@pytest.mark.parametrize("context", CONTEXTS)
def test_the_same_bits_in_any_context(minimizers, mnist1d_train, context, precision, caller_state):
    options = {"precision": precision, "restarts": 2}
    outside = fast_sharpness(minimizers["LB"], mnist1d_train, **options)
    with CONTEXTS[context]():
        objective = Objective(minimizers["LB"], mnist1d_train, precision=precision)
        state = caller_state()
        inside = [fast_sharpness(minimizers["LB"], mnist1d_train, **options), fast_sharpness(objective, restarts=2)]
        assert caller_state() == state
    inside.append(fast_sharpness(objective, restarts=2))
    for s in inside:
        assert torch.equal(s.point, outside.point)
        assert {**s.to_dict(), "seconds": 0} == {**outside.to_dict(), "seconds": 0}
        assert not s.point.is_inference()


def test_progress_goes_to_standard_error_and_changes_nothing(capsys):
    model, data = seeded(dense), small_data()
    quiet = fast_sharpness(model, data, restarts=2)
    assert capsys.readouterr() == ("", "")
    shown = fast_sharpness(model, data, restarts=2, progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert torch.equal(shown.point, quiet.point)
