"""Every measure on a GPU against the same call on the CPU, and every result certified by the CPU in float64."""

import copy
import functools

import pytest
import torch

import lbgap
from lbgap import Objective, _extension, reference
from lbgap.maximize.region import box

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

EPSILON = 1e-3
# In float64 sums differ in their last digits; where a method divides by differences of gradients, in a few more.
EXACT, DIVIDED = 1e-9, 1e-5
MEASURES = {
    "ball": functools.partial(lbgap.ball_sharpness, radius=0.5, restarts=1),
    "average": functools.partial(lbgap.average_sharpness, sigma=0.01, draws=4),
    "pac-bayes": functools.partial(lbgap.pac_bayes_sigma, draws=4, deviation=1.0),
    "fisher-rao": lbgap.fisher_rao_norm,
    "relative flatness": functools.partial(lbgap.relative_flatness, draws=4, exact=False),
    "critical": lbgap.critical_sharpness,
}


@pytest.fixture(params=["SB", "LB"])
def model(request, minimizers):
    return minimizers[request.param]


def on_gpu(data):
    return tuple(part.cuda() for part in data)


def both(measure, model, data, **options):
    """The result on the CPU and that on a GPU, in float64."""
    here = measure(model, data, precision="float64", **options)
    there = measure(copy.deepcopy(model).cuda(), on_gpu(data), precision="float64", **options)
    return here, there


def test_the_kernels_serve_the_gpu():
    assert "cuda" in _extension.NATIVE_DEVICES
    assert _extension.resolve_backend("auto", torch.device("cuda")) == "native"


@pytest.mark.parametrize("region", ["keskar", "linf", "adaptive"])
@pytest.mark.parametrize(("method", "tolerance"), [("vertex", EXACT), ("apgd", EXACT), ("lbfgsb", DIVIDED)])
def test_a_sharpness_in_float64_is_that_of_the_cpu(model, mnist1d_train, method, tolerance, region):
    search = {"epsilon": EPSILON, "region": region, "method": method, "iterations": 8}
    here, there = both(lbgap.fast_sharpness, model, mnist1d_train, **search)
    assert there.base_loss == pytest.approx(here.base_loss, rel=EXACT)
    assert there.value == pytest.approx(here.value, rel=tolerance)
    assert (here.settings["device"], there.settings["device"]) == ("cpu", "cuda:0")
    assert there.point.is_cuda


def test_the_paper_s_recipe_works_from_a_gpu(model, mnist1d_train):
    here, there = both(lbgap.fast_sharpness, model, mnist1d_train, epsilon=EPSILON, method="scipy", iterations=4)
    assert there.value == pytest.approx(here.value, rel=DIVIDED, abs=1e-9)


@pytest.mark.parametrize("distribution", ["normal", "uniform", "rademacher", "unit"])
def test_a_random_manifold_is_the_same_on_both(model, mnist1d_train, distribution):
    manifold = {"subspace": 20, "trials": 2, "distribution": distribution, "iterations": 5}
    here, there = both(lbgap.fast_sharpness, model, mnist1d_train, epsilon=EPSILON, **manifold)
    assert there.values == pytest.approx(here.values, rel=EXACT)


@pytest.mark.parametrize("restarts", [0, 12])
@pytest.mark.parametrize("precision", ["float32", "mixed"])
@pytest.mark.parametrize("batch_norm", ["eval", "batch"])
def test_a_value_found_on_a_gpu_is_certified_by_the_cpu(model, mnist1d_train, precision, restarts, batch_norm):
    there = copy.deepcopy(model).cuda()
    options = {"precision": precision, "restarts": restarts, "batch_norm": batch_norm, "epsilon": EPSILON}
    s = lbgap.fast_sharpness(there, on_gpu(mnist1d_train), **options)
    exact = Objective(model, mnist1d_train, precision="float64", batch_norm=batch_norm)
    # float32 against float64 sums of at most 48 terms in four layers
    assert float(exact.loss(s.point.cpu().double())) == pytest.approx(s.max_loss, rel=1e-4)
    assert float(exact.loss(exact.theta)) == pytest.approx(s.base_loss, rel=1e-4, abs=1e-7)
    assert box("keskar", Objective(model, mnist1d_train).theta, EPSILON).excess(s.point.cpu()) <= 2


@pytest.mark.parametrize("method", ["vertex", "apgd", "lbfgsb"])
@pytest.mark.parametrize("precision", ["float32", "mixed"])
def test_the_same_call_gives_the_same_bits(model, mnist1d_train, method, precision):
    there, data = copy.deepcopy(model).cuda(), on_gpu(mnist1d_train)
    one, other = (lbgap.fast_sharpness(there, data, method=method, precision=precision, iterations=6) for _ in range(2))
    assert one.value == other.value
    assert torch.equal(one.point, other.point)
    assert one.history == other.history


@pytest.mark.parametrize("name", MEASURES)
def test_every_other_measure_is_that_of_the_cpu(model, mnist1d_train, name):
    here, there = both(MEASURES[name], model, mnist1d_train)
    assert there.value == pytest.approx(here.value, rel=DIVIDED)


def test_curves_and_layers_are_those_of_the_cpu(model, mnist1d_train):
    here, there = both(lbgap.sharpness_curve, model, mnist1d_train, epsilons=(5e-4, 1e-3))
    assert there.values == pytest.approx(here.values, rel=EXACT)
    here, there = both(lbgap.layer_sharpness, model, mnist1d_train, iterations=5)
    assert there.keys() == here.keys()
    assert [found.value for found in there.values()] == pytest.approx(
        [found.value for found in here.values()], rel=EXACT
    )


def test_a_line_is_that_of_the_cpu(minimizers, mnist1d_train):
    data = tuple(mnist1d_train)
    here = lbgap.line(*minimizers.values(), data, points=5, precision="float64")
    moved = [copy.deepcopy(model).cuda() for model in minimizers.values()]
    there = lbgap.line(*moved, on_gpu(data), points=5, precision="float64")
    assert there.train_loss == pytest.approx(here.train_loss, rel=EXACT)
    assert there.train_accuracy == pytest.approx(here.train_accuracy, rel=EXACT)


def test_the_twins_find_on_a_gpu_what_the_kernels_find(model, mnist1d_train):
    there, data = copy.deepcopy(model).cuda(), on_gpu(mnist1d_train)
    kernels, twins = (
        lbgap.fast_sharpness(there, data, precision="float64", backend=backend, method="lbfgsb", iterations=6)
        for backend in ("native", "torch")
    )
    assert twins.value == pytest.approx(kernels.value, rel=DIVIDED)


def test_rows_of_the_random_matrix_have_the_cpu_s_bits():
    for distribution in reference.DISTRIBUTIONS:
        entries = [reference.subspace_entries(500, 130, 7, 3, distribution, torch.device(d)) for d in ("cpu", "cuda")]
        assert torch.equal(entries[0], entries[1].cpu())


def test_a_model_trained_on_a_gpu_is_measured_there_by_the_command_line(tmp_path, lbgap_command):
    run = tmp_path / "run"
    options = ("--data", "mnist1d", "--epochs", 2, "--device", "cuda", "--out", run)
    assert lbgap_command("train", *options)[0] == 0
    options = ("--device", "cuda", "--epsilon", EPSILON, "--json", "--out", tmp_path)
    status, out, err = lbgap_command("sharpness", run, *options)
    assert status == 0, err
    assert '"device": "cuda' in out
