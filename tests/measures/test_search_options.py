"""Where a search looks: on samples drawn from the data, from a start that was given, with the loss scaled or not."""

import json
import math
import re
import statistics

import numpy as np
import pytest
import torch

pytest.importorskip("hypothesis")
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lbgap import Objective, fast_sharpness
from lbgap.maximize.region import REGIONS, box
from lbgap.maximize.search import METHODS

pytestmark = pytest.mark.usefixtures("one_thread")


def seeded(build, seed=0):
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(seed)
        return build()


def numbered(targets, classes):
    """An objective whose only feature is the number of the sample."""
    return Objective(seeded(lambda: nn.Linear(1, classes)), (torch.arange(len(targets)).float()[:, None], targets))


def data_of(objective):
    return objective._evaluator.data.pool


def drawn(sample):
    return data_of(sample).inputs[:, 0].long()


# The draw.


@settings(deadline=None)
@given(
    counts=st.lists(st.integers(0, 40), min_size=2, max_size=8).filter(any),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**63 - 1),
)
def test_every_class_has_its_share(counts, share, seed):
    total = sum(counts)
    targets = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    targets = targets[torch.randperm(total, generator=torch.Generator().manual_seed(0))]
    samples = max(1, round(share * total))
    objective = numbered(targets, len(counts))
    sample = objective.sample(samples, seed)
    chosen = drawn(sample)
    assert sample.samples == len(chosen) == samples
    assert torch.equal(chosen, chosen.unique())  # each once, in the order of the data
    assert torch.equal(data_of(sample).targets, targets[chosen])
    found = torch.bincount(data_of(sample).targets, minlength=len(counts)).tolist()
    for have, count in zip(found, counts, strict=True):
        assert abs(have - samples * count / total) < 1


def test_rare_classes():
    targets = torch.cat([torch.zeros(1990), torch.ones(8), torch.full((2,), 2.0)]).long()
    counts = [torch.bincount(data_of(numbered(targets, 3).sample(500, seed)).targets, minlength=3) for seed in range(5)]
    assert {tuple(count.tolist()) for count in counts} <= {(497, 2, 1), (498, 2, 0)}  # shares: 497.5, 2 and 0.5


@pytest.mark.parametrize("targets", [torch.arange(200) % 3, torch.randn(200, 3)], ids=["classes", "values"])
def test_the_seed_decides(targets):
    loss = "mse" if targets.is_floating_point() else "cross_entropy"
    objective = Objective(seeded(lambda: nn.Linear(1, 3)), (torch.arange(200.0)[:, None], targets), loss=loss)
    before = torch.get_rng_state()
    one, again, two = (drawn(objective.sample(50, seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, again)
    assert not torch.equal(one, two)
    assert len(one.unique()) == 50
    counts = torch.zeros(200)
    for seed in range(400):
        counts[drawn(objective.sample(50, seed))] += 1
    # Each sample is drawn with probability 1/4, or nearly so: 100 times of 400, with a standard deviation of 8.7; six
    # of them either way miss in one of 10^9.
    assert (counts - 100).abs().max() < 6 * 8.7


def test_all_samples_in_order(minimizers, mnist1d_train):
    objective = Objective(minimizers["SB"], mnist1d_train)
    sample = objective.sample(2000, 5)
    assert torch.equal(data_of(sample).inputs, mnist1d_train.inputs)
    assert torch.equal(data_of(sample).targets, mnist1d_train.targets)
    assert sample.loss(objective.theta) == objective.loss(objective.theta)
    one, other = fast_sharpness(objective), fast_sharpness(objective, samples=2000)
    assert torch.equal(one.point, other.point)
    assert other.searched == {"samples": 2000, **{n: getattr(one, n) for n in ("base_loss", "max_loss", "value")}}


def test_its_loss_is_that_of_its_samples_and_counts_by_its_share(minimizers, mnist1d_train):
    objective = Objective(minimizers["SB"], mnist1d_train)
    sample = objective.sample(500)
    value = float(sample.loss(objective.theta))
    assert (sample.evaluations, objective.evaluations) == (1.0, 0.25)
    direct = Objective(
        minimizers["SB"], (data_of(sample).inputs, data_of(sample).targets), batch_size=sample.batch_size
    )
    assert value == float(direct.loss(direct.theta))


@pytest.mark.parametrize("call", [lambda o, n: o.sample(n), lambda o, n: fast_sharpness(o, samples=n)])
@pytest.mark.parametrize(
    ("samples", "error", "message"),
    [
        (0, ValueError, "samples must be at least 1, got 0"),
        (-3, ValueError, "samples must be at least 1, got -3"),
        (201, ValueError, "samples must be between 1 and 200, got 201"),
        (10.0, ValueError, "samples as a float is a share of the samples, above 0 and at most all, got 10.0: .*"),
        (True, TypeError, "samples must be a whole number of samples, or a share such as 0.1 or '10%', got True"),
        ("10", TypeError, "samples must be a whole number of samples, or a share such as 0.1 or '10%', got '10'"),
    ],
)
def test_numbers_of_samples_that_are_none(call, samples, error, message):
    objective = numbered(torch.arange(200) % 3, 3)
    with pytest.raises(error, match=f"^{message}$"):
        call(objective, samples)
    assert objective.evaluations == 0


def test_batch_statistics_are_refused(minimizers, mnist1d_train):
    objective = Objective(minimizers["SB"], mnist1d_train, batch_norm="batch")
    for call in (lambda: objective.sample(100), lambda: fast_sharpness(objective, samples=100)):
        with pytest.raises(ValueError, match=r"got batch_norm='batch', under which .*: use batch_norm='eval'$"):
            call()
    plain = Objective(nn.Linear(40, 10), mnist1d_train, batch_norm="batch")  # nothing in it takes statistics
    assert plain.sample(100).samples == 100


# A search on samples.


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_at_the_point_is_that_on_all_data(minimizers, mnist1d_train, method):
    objective = Objective(minimizers["LB"], mnist1d_train)
    s = fast_sharpness(objective, samples=250, seed=3, method=method)
    part = objective.sample(250, 3)
    assert float(objective.loss(s.point)) == s.max_loss
    assert float(objective.loss(objective.theta)) == s.base_loss
    assert s.value == 100 * (s.max_loss - s.base_loss) / (1 + s.base_loss) > 0
    assert set(s.searched) == {"samples", "base_loss", "max_loss", "value"}
    assert s.searched["samples"] == 250
    assert s.searched["base_loss"] == float(part.loss(objective.theta))
    assert s.searched["max_loss"] == float(part.loss(s.point))
    rise = s.searched["max_loss"] - s.searched["base_loss"]
    assert s.searched["value"] == 100 * rise / (1 + s.searched["base_loss"])
    assert box("keskar", objective.theta, 1e-3).excess(s.point) <= 1
    assert (s.settings["searched"], s.settings["samples"]) == (250, 2000)


def test_a_result_is_json_complete_and_readable(minimizers, mnist1d_train):
    s = fast_sharpness(minimizers["LB"], mnist1d_train, samples=250)
    whole = fast_sharpness(minimizers["LB"], mnist1d_train)
    found = s.to_dict()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["searched"] == s.searched
    assert whole.to_dict()["searched"] is None
    assert set(s.settings) == set(whole.settings)
    assert (whole.settings["searched"], whole.settings["samples"]) == (2000, 2000)
    assert f"  searched on 250 samples, where phi is {s.searched['value']:.6g} %" in str(s).splitlines()
    assert "searched on" not in str(whole)


def test_evaluations_count_by_their_share(minimizers, mnist1d_train):
    objective = Objective(minimizers["LB"], mnist1d_train)
    s = fast_sharpness(objective, samples=500)
    (climb,) = s.starts
    assert climb["samples"] == 500
    # The loss at the minimizer on both, the climb on a quarter, the loss at the point on all.
    assert s.evaluations == objective.evaluations == 1 + 0.25 + climb["evaluations"] + 1
    visits = [evaluations for evaluations, _ in s.history]
    assert visits[:2] == [0.25, 0.5]
    assert climb["evaluations"] == visits[-1] + 0.25  # the best point once more


def test_scouts_are_a_part_of_the_part(minimizers, mnist1d_train):
    objective = Objective(minimizers["LB"], mnist1d_train)
    s = fast_sharpness(objective, samples=1200, restarts=3)
    assert {climb["samples"] for climb in s.starts} == {128, 1200}
    for climb in s.starts:
        passes = climb["evaluations"] * 2000 / climb["samples"]  # each over that part of the 2,000
        assert passes == pytest.approx(round(passes), rel=1e-12)  # two products of float64
        assert passes > 1.5
    assert float(objective.loss(s.point)) == s.max_loss
    with pytest.raises(ValueError, match="scout must be between 0 and 100 samples, got 101"):
        fast_sharpness(objective, samples=100, restarts=1, scout=101)


def against(seed, samples=1):
    """``(objective, model, data)``: what raises the loss on the samples drawn lowers it on all."""

    def slope(output, target):
        return 1 + (output * target).mean()

    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    inputs, targets = torch.ones(10, 1), -torch.ones(10, 1)
    spy = Objective(model, (torch.ones(10, 1), torch.arange(10.0)[:, None]), loss="mse").sample(samples, seed)
    targets[data_of(spy).targets[:, 0].long()] = 1
    return model, (inputs, targets), slope


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_point_that_does_not_raise_the_loss_on_all_data(seed):
    model, data, loss = against(seed)
    objective = Objective(model, data, loss=loss)
    s = fast_sharpness(objective, samples=1, seed=seed, epsilon=0.1)
    assert s.value == s.rise == 0
    assert s.searched["value"] > 0
    assert torch.equal(s.point, objective.theta)
    assert s.max_loss == s.base_loss == float(objective.loss(s.point))
    assert s.status == "the point found on 1 samples does not raise the loss on all of them: search on more"
    assert math.isnan(s.gap)  # it was that of another point
    assert json.loads(json.dumps(s.to_dict(), allow_nan=False))["gap"] is None
    assert fast_sharpness(objective, epsilon=0.1).value > 0


def test_a_point_whose_loss_on_all_data_is_not_finite():
    def cliff(output, target):
        return torch.where((output > 0.05) & (target < 0), math.inf, 1 + output).mean()

    model, data, _ = against(0)
    s = fast_sharpness(model, data, loss=cliff, samples=1, epsilon=0.1)
    assert s.searched["value"] > 0
    assert s.value == 0
    assert s.status == "the point found on 1 samples has a loss of inf on all of them: search on more"


@pytest.mark.parametrize("distribution", ["normal", "unit"])
def test_on_random_manifolds(minimizers, mnist1d_train, distribution):
    objective = Objective(minimizers["LB"], mnist1d_train)
    s = fast_sharpness(objective, samples=200, subspace=5, trials=3, distribution=distribution)
    assert len(s.values) == 3
    assert s.value == statistics.fmean(s.values)
    assert s.point.shape == (objective.n,)
    assert float(objective.loss(s.point)) == s.max_loss
    assert max(s.values) == 100 * (s.max_loss - s.base_loss) / (1 + s.base_loss)
    assert s.searched["samples"] == 200
    assert s.settings["subspace"] == 5
    assert "searched on 200 samples" in str(s)
    with pytest.raises(ValueError, match="samples needs the objective that the random manifold was made of"):
        fast_sharpness(objective.manifold(5), samples=200)


# A start that was given.


@pytest.mark.parametrize("method", METHODS)
def test_a_good_start_never_lowers_the_result(minimizers, mnist1d_train, method):
    objective = Objective(minimizers["LB"], mnist1d_train)
    plain = fast_sharpness(objective, method=method)
    good = fast_sharpness(objective, restarts=10)
    s = fast_sharpness(objective, method=method, start=good.point)
    # SciPy's bounds are in float64: a point on a float32 bound may be moved by its rounding.
    kept = good.max_loss * (1 - 1e-6 if method == "scipy" else 1)
    assert s.max_loss >= max(kept, plain.max_loss)
    assert [climb["start"] for climb in s.starts] == ["centre", "given"]
    assert s.starts[1]["loss"] >= kept
    assert s.starts[0] == plain.starts[0]
    assert (s.settings["start"], plain.settings["start"]) == ("given", "centre")
    assert float(objective.loss(s.point)) == s.max_loss


def test_it_comes_right_behind_the_centre_and_does_not_scout(minimizers, mnist1d_train):
    objective = Objective(minimizers["LB"], mnist1d_train)
    s = fast_sharpness(objective, start=objective.theta, restarts=2)
    plain = [climb for climb in s.starts if not climb["start"].endswith(", refined")]
    assert [climb["start"] for climb in plain][:3] == ["centre", "given", "class 0"]
    assert [climb["samples"] for climb in plain][:3] == [2000, 2000, 128]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("region", REGIONS)
def test_a_start_outside_the_region_is_projected(minimizers, mnist1d_train, region, method):
    objective = Objective(minimizers["SB"], mnist1d_train)
    far = objective.theta + 100 * torch.randn(objective.n, generator=torch.Generator().manual_seed(0))
    kept = far.clone()
    s = fast_sharpness(objective, start=far, region=region, method=method, iterations=1)
    edge = torch.empty_like(far)
    around = box(region, objective.theta, 1e-3)
    around.project(far, out=edge)
    assert around.excess(s.point) <= 1
    assert s.starts[1]["loss"] >= float(objective.loss(edge))
    assert torch.equal(far, kept)


def test_a_start_of_another_dtype(minimizers, mnist1d_train):
    objective = Objective(minimizers["SB"], mnist1d_train)
    one, other = (fast_sharpness(objective, start=objective.theta.to(dtype)) for dtype in (None, torch.float64))
    assert torch.equal(one.point, other.point)


@pytest.mark.parametrize(
    ("start", "options", "error", "message"),
    [
        (torch.zeros(7), {}, ValueError, r"start must be a point \(8,\) of the full space, got \(7,\)$"),
        (torch.zeros(1, 8), {}, ValueError, r"start must be a point \(8,\) of the full space, got \(1, 8\)$"),
        (torch.zeros(8), {"subspace": 3}, ValueError, r"of the full space, got \(8,\) with subspace$"),
        (torch.zeros(3), {"subspace": 3}, ValueError, r"of the full space, got \(3,\) with subspace$"),
        (torch.full((8,), torch.nan), {}, ValueError, "start must be finite, got NaN or infinity: pass a point"),
        ([0.0] * 8, {}, TypeError, r"start must be a tensor \(8,\), got list$"),
        (np.zeros(8, int), {"subspace": 3}, ValueError, r"of the full space, got \(8,\) with subspace$"),
        (torch.zeros(8).to_sparse(), {}, ValueError, r"start must be a dense tensor \(8,\), got torch.sparse_coo"),
        (torch.zeros(8, dtype=torch.complex64), {}, ValueError, r"start must hold real numbers \(8,\), got torch.comp"),
        ("centre", {}, TypeError, r"start must be a tensor \(8,\), got str$"),
    ],
)
def test_starts_that_are_none(start, options, error, message):
    objective = numbered(torch.arange(20) % 4, 4)
    with pytest.raises(error, match=message):
        fast_sharpness(objective, start=start, **options)
    assert objective.evaluations == 0


# The scaling of the loss.


def test_scaling_is_recorded(minimizers, mnist1d_train):
    objective = Objective(minimizers["LB"], mnist1d_train)
    found = {
        scaling: fast_sharpness(objective, method="lbfgsb", iterations=10, scaling=scaling)
        for scaling in (None, "box", "paper")
    }
    assert [s.settings["scaling"] for s in found.values()] == ["box", "box", "paper"]
    assert torch.equal(found[None].point, found["box"].point)
    assert not torch.equal(found["paper"].point, found["box"].point)
    for method in ("vertex", "apgd", "scipy"):
        assert fast_sharpness(objective, method=method, iterations=1).settings["scaling"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "lbfgsb", "scaling": "papr"}, "scaling must be one of 'box', 'paper', got 'papr'"),
        ({"method": "lbfgsb", "scaling": 1}, "scaling must be one of 'box', 'paper', got 1"),
        ({"scaling": "box"}, "scaling belongs to method='lbfgsb', got 'box' with method='vertex': leave it out"),
        ({"method": "scipy", "scaling": "paper"}, "got 'paper' with method='scipy': leave it out"),
        ({"method": "apgd", "scaling": "x"}, "scaling belongs to method='lbfgsb', got 'x' with method='apgd'"),
    ],
)
def test_scalings_that_are_none(options, message):
    objective = numbered(torch.arange(20) % 4, 4)
    with pytest.raises(ValueError, match=re.escape(message)):
        fast_sharpness(objective, **options)
    assert objective.evaluations == 0
