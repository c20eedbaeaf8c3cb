"""What holds for each measure: invariances, seeds, results, refusals, and nothing of the caller's touched."""

import copy
import dataclasses
import inspect
import itertools
import json
import math
import re
from functools import partial

import pytest
import torch
from torch import nn

import lbgap
from lbgap import Objective
from lbgap.measures.hessian.call import Spectral
from lbgap.result import Result
from lbgap.status import Status
from lbgap.system.progress import Progress

MEASURES = {
    "box": partial(lbgap.fast_sharpness, epsilon=0.2),
    "adaptive box": partial(lbgap.fast_sharpness, epsilon=0.2, region="adaptive"),
    "ball": partial(lbgap.ball_sharpness, radius=0.5, restarts=1),
    "adaptive ball": partial(lbgap.ball_sharpness, radius=0.5, adaptive=True, eta=0.0, restarts=1),
    "average": partial(lbgap.average_sharpness, sigma=0.1, draws=6),
    "adaptive average": partial(lbgap.average_sharpness, sigma=0.1, draws=6, adaptive=True),
    "pac-bayes": partial(lbgap.pac_bayes_sigma, eps=0.0, draws=6, deviation=0.2),
    "fisher-rao": lbgap.fisher_rao_norm,
    "fisher-rao of the model": partial(lbgap.fisher_rao_norm, labels="model"),
    "relative flatness": partial(lbgap.relative_flatness, draws=6, exact=False),
    "relative flatness of the first layer": partial(lbgap.relative_flatness, draws=6, exact=False, layer="0"),
    "exact relative flatness": partial(lbgap.relative_flatness, exact=True),
    "critical": lbgap.critical_sharpness,
    "batch": partial(lbgap.batch_sharpness, batch=8, draws=6),
    "noise scale": partial(lbgap.noise_scale, batch=8, draws=6),
    "trace": partial(lbgap.hessian_trace, max_products=8),
    "edge": partial(lbgap.edge_of_stability, learning_rate=0.1),
}
NOT_INVARIANT = ("box", "ball", "average", "critical", "batch", "noise scale", "trace", "edge")
SINGLE_SAMPLES = ("noise scale",)  # whose gradients it needs
MEASURES_HERE = [name for name in MEASURES if "box" not in name and "first" not in name]


def seeded(build, seed=0):
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(seed)
        return build()


def relu_network():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def dense():
    return nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.Linear(6, 3))


def data(build=None):
    """40 samples that the seeded network gets right, but for every fifth."""
    inputs = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        targets = seeded(build or dense).eval()(inputs.clone()).argmax(1)
    targets[::5] = (targets[::5] + 1) % 3
    return inputs, targets


def timeless(record):
    if isinstance(record, dict):
        return {key: timeless(value) for key, value in record.items() if key != "seconds"}
    return [timeless(value) for value in record] if isinstance(record, list) else record


def same(one, other):
    return timeless(one.to_dict()) == timeless(other.to_dict())


# Rescaling of ReLU layers (Dinh et al. 2017).


def rescaled(model, a=8.0):
    """The same function; a is a power of two, so that no product is rounded otherwise than before."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        model[0].weight.mul_(a)
        model[0].bias.mul_(a)
        model[2].weight.div_(a)
    return model


@pytest.mark.parametrize("name", MEASURES)
def test_rescaling_of_relu_layers(name):
    model = seeded(relu_network)
    inputs = data()[0]
    assert torch.equal(model(inputs), rescaled(model)(inputs))
    before, after = (MEASURES[name](each, data(relu_network)).value for each in (model, rescaled(model)))
    assert 0 < before < math.inf
    if name in NOT_INVARIANT:
        assert abs(after / before - 1) > 0.1
    elif name == "exact relative flatness":  # the singular vectors of the weight are rounded anew
        assert after == pytest.approx(before, rel=1e-5)
    else:
        assert after == before


def test_the_least_scales_break_the_invariance():
    model = seeded(relu_network)
    for measure in (
        partial(lbgap.ball_sharpness, radius=0.5, adaptive=True, eta=0.5),
        partial(lbgap.pac_bayes_sigma, eps=0.05, deviation=0.2),
    ):
        assert measure(model, data(relu_network)).value != measure(rescaled(model), data(relu_network)).value


# Seeds, objectives and the caller's own.


@pytest.mark.parametrize("name", MEASURES_HERE)
def test_the_same_seed_gives_the_same_bits(name):
    model = seeded(dense)
    objective = Objective(model, data())
    first, second, third = (MEASURES[name](*each) for each in ((objective,), (objective,), (model, data())))
    assert same(first, second)
    assert same(first, third)


@pytest.mark.parametrize("name", ["ball", "average", "pac-bayes", "relative flatness", "batch", "noise scale", "trace"])
def test_another_seed_gives_another_draw(name):
    objective = Objective(seeded(dense), data())
    one, other = (MEASURES[name](objective, seed=seed) for seed in (0, 1))
    assert not same(one, other)
    key = {"ball": lambda m: m.starts[1]["loss"]}.get(name, lambda m: m.value)
    assert key(one) != key(other)


@pytest.mark.parametrize("name", MEASURES_HERE)
def test_nothing_of_the_caller_changes(name, caller_state):
    model, samples = seeded(dense).train(), data()
    model[2].eval()
    model[4].bias.requires_grad_(False)
    model[1].weight.grad = torch.ones(6, 4)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    copies, state = [tensor.clone() for tensor in samples], caller_state()
    MEASURES[name](model, samples)
    assert caller_state() == state
    assert all(torch.equal(one, other) for one, other in zip(samples, copies, strict=True))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == [True, True, True, False, True, True]
    assert [p.grad is None for p in model.parameters()] == [False] + [True] * 5


CONTEXTS = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("name", MEASURES_HERE)
def test_the_same_bits_in_any_context(name, context, caller_state):
    outside = MEASURES[name](seeded(dense), data())
    with CONTEXTS[context]():
        state = caller_state()
        inside = MEASURES[name](seeded(dense), data())
        assert caller_state() == state
    assert same(inside, outside)


@pytest.mark.parametrize("name", [name for name in MEASURES_HERE if name not in SINGLE_SAMPLES])
def test_batch_statistics(name):
    found = MEASURES[name](seeded(dense), data(), batch_norm="batch", batch_size=20)
    assert found.settings["batch_norm"] == "batch"
    assert math.isfinite(found.value)


@pytest.mark.parametrize("name", SINGLE_SAMPLES)
def test_samples_that_depend_on_each_other(name):
    with pytest.raises(ValueError, match="use batch_norm='eval'"):
        MEASURES[name](seeded(dense), data(), batch_norm="batch", batch_size=20)


# The result.

RESULTS = {
    **{name: MEASURES[name] for name in MEASURES_HERE},
    "box": partial(lbgap.fast_sharpness, epsilon=0.2, restarts=1),
    "box on samples": partial(lbgap.fast_sharpness, epsilon=0.2, samples=16),
    "manifolds": partial(lbgap.fast_sharpness, epsilon=0.2, subspace=3, trials=2),
    "curve": partial(lbgap.sharpness_curve, epsilons=(0.1, 0.2)),
    "layers": partial(lbgap.layer_sharpness, epsilon=0.2),
    "asymmetry": partial(lbgap.asymmetry, top=0, random=2, distances=(0.1, 1.0)),
    "eigenvalues": partial(lbgap.eigenvalues, k=2),
    "diagonal": partial(lbgap.hessian_diagonal, max_products=16),
    "density": partial(lbgap.spectral_density, max_products=80, steps=10),
    "mass": partial(lbgap.positive_mass, top=2, threshold=0.01, max_products=80, steps=10),
}
NAMES = {"exact", "converged", "complete", "limit", "no_gradient", "rounding", "no_rise", "rises", "above", "below"}


@pytest.mark.parametrize("name", RESULTS)
def test_every_result_has_what_the_base_promises(name):
    objective = Objective(seeded(dense), data())
    found = RESULTS[name](objective)
    assert isinstance(found, Result)
    assert isinstance(found.value, float)
    assert isinstance(found.status, Status)
    assert isinstance(found.evaluations, float)
    assert found.evaluations == pytest.approx(objective.evaluations, rel=1e-12)  # sums of the same whole numbers
    assert found.seconds > 0
    assert {"measure", "n", "samples", "loss", "batch_norm", "precision", "versions", "device"} <= set(found.settings)
    assert (found.settings["n"], found.settings["samples"], found.settings["batch_norm"]) == (63, 40, "eval")
    assert found.status.name in NAMES


@pytest.mark.parametrize("name", RESULTS)
def test_every_result_is_json(name):
    found = RESULTS[name](seeded(dense), data())
    record = found.to_dict()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert (record["value"], record["status"], record["status_name"]) == (found.value, found.status, found.status.name)
    assert (record["evaluations"], record["seconds"]) == (found.evaluations, found.seconds)
    assert record["settings"]["versions"]["torch"] == torch.__version__
    named = {field.name for field in dataclasses.fields(found)} - found.apart
    assert {*named, "status_name"} <= set(record)


@pytest.mark.parametrize("name", RESULTS)
def test_every_result_is_readable(name):
    found = RESULTS[name](seeded(dense), data())
    assert repr(found) == f"{type(found).__name__}(value={found.value:.6g}, status={found.status.name!r})"
    assert len(repr(found)) < 120
    lines = str(found).splitlines()
    assert f"{found.value:.6g}" in lines[0]
    assert f"  {found.status}" in lines
    work = f"{found.products} products" if isinstance(found, Spectral) else f"{found.evaluations:.4g} evaluations"
    cost = rf"  63 parameters, 40 samples, batch-norm eval, {work}, .* s, float32 on cpu"
    assert sum(re.fullmatch(cost, line) is not None for line in lines) == 1
    assert all(line.startswith("  ") for line in lines[1:])


@pytest.mark.parametrize("name", [name for name in MEASURES_HERE if "ball" not in name])
def test_a_measure_is_json_and_readable(name):
    found = MEASURES[name](seeded(dense), data())
    record = found.to_dict()
    assert set(record) == {
        "value", "standard_error", "base_loss", "evaluations", "status", "status_name", "details", "settings",
        "seconds",
    }  # fmt: skip
    assert record["base_loss"] == float(Objective(seeded(dense), data()).loss(Objective(seeded(dense), data()).theta))
    lines = str(found).splitlines()
    assert lines[0].startswith(f"{found.settings['measure']}: {found.value:.6g}")
    assert ("standard error" in lines[0]) == (record["standard_error"] is not None)


def test_one_vocabulary():
    """The same keyword is the same thing, with the same default, in each measure."""
    functions = [each for each in vars(lbgap.measures).values() if inspect.isfunction(each)]
    assert len(functions) >= 16
    for function in functions:
        model, data, *others = inspect.signature(function).parameters.values()
        assert (model.name, data.name, data.default) == ("model", "data", None)
        assert others[-1].kind is inspect.Parameter.VAR_KEYWORD or function is lbgap.fast_sharpness
        given = {each.name: each.default for each in others}
        if "search" not in given:
            assert given["progress"] is False
        assert given.get("seed", 0) == 0
        assert given.get("restarts", 0) == 0
        assert not {"limit", "samples_at_most", "max_iterations", "steps_at_most", "verbose"} & set(given)


def test_the_sharpest_layer():
    found = lbgap.layer_sharpness(seeded(dense), data(), epsilon=0.2)
    assert list(found) == ["1", "2", "4"]
    assert len(found) == 3
    assert found.value == max(each.value for each in found.values()) == found[found.layer].value
    assert found.status is found[found.layer].status
    assert found.evaluations == sum(each.evaluations for each in found.values())
    assert found.to_dict()["layers"] == {layer: each.to_dict() for layer, each in found.items()}
    assert found.settings["parameters"] == Objective(seeded(dense), data()).settings()["parameters"]
    lines = str(found).splitlines()
    assert lines[0].endswith(f"of layer {found.layer}")
    assert lines[1:4] == [
        f"  {layer}  {each.settings['n']} parameters  phi >= {each.value:.6g} %" for layer, each in found.items()
    ]
    with pytest.raises(KeyError):
        found["0"]


# Progress.


@pytest.mark.parametrize("name", RESULTS)
def test_progress_is_reported(name, capsys):
    heard = []
    found = RESULTS[name](seeded(dense), data(), progress=heard.append)
    assert heard
    assert all(isinstance(step, Progress) for step in heard)
    for before, after in itertools.pairwise(heard):
        another = after.done == 1 or after.title != before.title  # search, or part of the work
        assert after.done > before.done or another
    assert all(0 < step.done <= step.total for step in heard)
    for switch in (True, False):
        assert same(RESULTS[name](seeded(dense), data(), progress=switch), found)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("progress", [2, None, "bar"])
@pytest.mark.parametrize("name", RESULTS)
def test_what_is_no_way_to_report_progress_is_refused_before_any_work(name, progress):
    message = f"^progress must be True, False or a function of a Progress, got {progress!r}$"
    with pytest.raises(TypeError, match=message):
        RESULTS[name](Unrun(4, 3), data(), progress=progress)


# Refusals.


class Unrun(nn.Linear):
    """A model that must not be run."""

    def forward(self, inputs):
        raise AssertionError("the model was run")


NUMBERS = [0, -1.0, math.nan, math.inf, 1e-60, 10**400]
ARGUMENTS = [
    *(
        (lbgap.ball_sharpness, {"radius": value}, ValueError, "radius must be finite and above zero")
        for value in NUMBERS
    ),
    *(
        (lbgap.average_sharpness, {"sigma": value}, ValueError, "sigma must be finite and above zero")
        for value in NUMBERS
    ),
    (lbgap.ball_sharpness, {"radius": "0.1"}, TypeError, "radius must be a number, got str: try 0.05"),
    (lbgap.ball_sharpness, {"radius": True}, TypeError, "radius must be a number, got bool"),
    (lbgap.ball_sharpness, {"eta": -1}, ValueError, "eta must be finite and zero or more, got -1"),
    (lbgap.ball_sharpness, {"adaptive": 1}, TypeError, "adaptive must be True or False, got 1"),
    (lbgap.ball_sharpness, {"iterations": 0}, ValueError, "iterations must be at least 1, got 0"),
    (lbgap.ball_sharpness, {"restarts": -1}, ValueError, "restarts must be at least 0, got -1"),
    (lbgap.ball_sharpness, {"seed": 0.5}, TypeError, "seed must be a whole number, got 0.5"),
    (lbgap.average_sharpness, {"draws": 1}, ValueError, "draws must be at least 2, got 1"),
    (lbgap.average_sharpness, {"draws": 2.0}, TypeError, "draws must be a whole number, got 2.0"),
    (lbgap.average_sharpness, {"relative_error": 0}, ValueError, "relative_error must be finite and above zero, got 0"),
    (lbgap.average_sharpness, {"antithetic": None}, TypeError, "antithetic must be True or False, got None"),
    (lbgap.pac_bayes_sigma, {"draws": 1}, ValueError, "draws must be at least 2"),
    (lbgap.pac_bayes_sigma, {"deviation": 0}, ValueError, "deviation must be finite and above zero, got 0: try 0.1"),
    (lbgap.pac_bayes_sigma, {"eps": -1e-3}, ValueError, "eps must be finite and zero or more"),
    (lbgap.pac_bayes_sigma, {"seed": -1}, ValueError, "seed must be at least 0"),
    (lbgap.fisher_rao_norm, {"labels": "true"}, ValueError, "labels must be 'data' or 'model', got 'true'"),
    (lbgap.relative_flatness, {"draws": 1}, ValueError, "draws must be at least 2"),
    (lbgap.relative_flatness, {"layer": 4}, TypeError, "layer must be a name such as '4' or '4.weight', got 4"),
    (lbgap.relative_flatness, {"exact": "yes"}, TypeError, "exact must be True or False, got"),
    (lbgap.critical_sharpness, {"tolerance": 0}, ValueError, "tolerance must be finite and above zero"),
    (lbgap.critical_sharpness, {"initial": -1}, ValueError, "initial must be finite and above zero"),
    (lbgap.critical_sharpness, {"doublings": 0}, ValueError, "doublings must be at least 1"),
    (lbgap.critical_sharpness, {"direction": [1.0]}, TypeError, r"direction must be a tensor \(n,\), got list"),
]


@pytest.mark.parametrize(("function", "options", "error", "message"), ARGUMENTS)
def test_bad_arguments_are_refused_before_any_work(function, options, error, message):
    with pytest.raises(error, match=message) as caught:
        function(Unrun(4, 3), data(), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", MEASURES_HERE)
def test_what_belongs_to_the_objective(name):
    objective = Objective(seeded(dense), data())
    with pytest.raises(ValueError, match="data, batch_size belong to the Objective: give them when you build it"):
        MEASURES[name](objective, data(), batch_size=8)
    with pytest.raises(TypeError, match="data is missing"):
        MEASURES[name](seeded(dense))
    with pytest.raises(
        TypeError, match=r"\w+\(\) got an unexpected keyword argument 'raduis': beside its own it takes loss"
    ):
        MEASURES[name](objective, raduis=1)


def test_directions_that_do_not_fit():
    objective = Objective(seeded(dense), data())
    with pytest.raises(ValueError, match=r"direction must be \(63,\), one number a parameter, got \(3,\)"):
        lbgap.critical_sharpness(objective, direction=torch.ones(3))
    for direction in (torch.zeros(63), torch.full((63,), math.nan)):
        with pytest.raises(ValueError, match="direction must be finite and not zero everywhere"):
            lbgap.critical_sharpness(objective, direction=direction)


@pytest.mark.parametrize("name", [name for name in MEASURES_HERE if name != "pac-bayes"])  # which counts samples
def test_a_loss_that_is_not_finite_is_refused(name):
    model = seeded(relu_network)
    nn.init.constant_(model[4].bias, math.inf)
    with pytest.raises(FloatingPointError):
        MEASURES[name](model, data())
