"""Each measure on dicts, on batches padded each for itself, and on streams: what the same data give as two tensors."""

import inspect
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lbgap
from lbgap import Objective
from lbgap.problem import hold
from lbgap.problem.pieces import Pieces
from lbgap.problem.stored import Table
from lbgap.problem.stream import Stream
from tests.objective.batches import IDS, WORDS, OfGraphs, graphs, of_y, seeded
from tests.objective.batches import LABELS as TEXTS

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES, WIDTHS = (12, 9, 10, 9), (3, 5, 2, 4)
INPUTS = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
for _rows, _width in zip(INPUTS.split(SIZES), WIDTHS, strict=True):
    _rows[:, _width:] = 0.0


class Net(nn.Module):
    """Takes inputs of any width up to five, the rest of which are zeros."""

    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng([]):
            torch.default_generator.manual_seed(seed)
            self.first, self.last = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.first(F.pad(x, (0, 5 - x.shape[1]))).tanh())


def targets():
    """The model's own answers, but for every fifth."""
    with torch.no_grad():
        found = Net()(INPUTS).argmax(1)
    found[::5] = (found[::5] + 1) % 3
    return found


LABELS = targets()


def padded():
    pieces = zip(INPUTS.split(SIZES), LABELS.split(SIZES), WIDTHS, strict=True)
    return ({"x": x[:, :width], "label": y} for x, y, width in pieces)


DATA = {"a dict": {"x": INPUTS, "label": LABELS}, "padded": padded, "a stream": padded}
KINDS = {"a dict": Table, "padded": Pieces, "a stream": Stream}
MEASURES = {
    "fast_sharpness": partial(lbgap.fast_sharpness, epsilon=0.1, restarts=1),
    "sharpness_curve": partial(lbgap.sharpness_curve, epsilons=(0.05, 0.1), restarts=1),
    "layer_sharpness": partial(lbgap.layer_sharpness, epsilon=0.1, restarts=1),
    "ball_sharpness": partial(lbgap.ball_sharpness, radius=0.3, restarts=1),
    "average_sharpness": partial(lbgap.average_sharpness, sigma=0.1, draws=6),
    "asymmetry": partial(lbgap.asymmetry, top=2, random=1),
    "pac_bayes_sigma": partial(lbgap.pac_bayes_sigma, eps=0.0, draws=6, deviation=0.2),
    "fisher_rao_norm": lbgap.fisher_rao_norm,
    "relative_flatness": partial(lbgap.relative_flatness, exact=True),
    "critical_sharpness": lbgap.critical_sharpness,
    "batch_sharpness": partial(lbgap.batch_sharpness, batch=8, draws=6),
    "noise_scale": partial(lbgap.noise_scale, batch=8, draws=6),
    "eigenvalues": partial(lbgap.eigenvalues, k=3),
    "hessian_trace": partial(lbgap.hessian_trace, max_products=12),
    "hessian_diagonal": partial(lbgap.hessian_diagonal, max_products=10),
    "spectral_density": partial(lbgap.spectral_density, steps=8, max_products=16),
    "positive_mass": lbgap.positive_mass,
    "edge_of_stability": partial(lbgap.edge_of_stability, learning_rate=0.1),
    "line": lambda objective: lbgap.line(objective, Net(1), points=7),
    "curve": lambda objective: lbgap.curve(objective, Net(1), points=7),
    "plane": lambda objective: lbgap.plane(objective, points=4, refine=False),
    "connect": lambda objective: lbgap.connect(objective, Net(1), epochs=1, points=7, train_batch_size=40),
}
APART = ("settings", "seconds", "evaluations", "status", "status_name", "iterations", "gap", "products")


def numbers(record, path=""):
    """All numbers of a result by what leads to them, but for what says how they were found."""
    if isinstance(record, dict):
        parts = ((f"{path}.{key}", part) for key, part in record.items() if key not in APART)
    elif isinstance(record, list):
        parts = ((f"{path}.{number}", part) for number, part in enumerate(record))
    else:
        return {path: record} if isinstance(record, int | float | None) else {}
    return {name: value for place, part in parts for name, value in numbers(part, place).items()}


def check(found, wanted):
    """Compare numbers, which cancellation makes as inexact as the largest of them."""
    size = max(abs(value) for value in wanted.values() if value is not None)
    for place, value in wanted.items():
        assert (found[place] is None) == (value is None), place
        if value is not None:
            assert found[place] == pytest.approx(value, rel=1e-6, abs=1e-9 * size), place


def objective_on(data, **options):
    return Objective(Net(), data, precision="float64", **options)


@pytest.fixture(scope="module")
def expected():
    """What a measure gives on two tensors, found once."""
    known = {}

    def found(name):
        if name not in known:
            known[name] = numbers(MEASURES[name](objective_on((INPUTS, LABELS))).to_dict())
        return known[name]

    return found


@pytest.mark.parametrize("form", DATA)
@pytest.mark.parametrize("name", MEASURES)
def test_each_measure(name, form, expected, monkeypatch):
    if form == "a stream":
        monkeypatch.setattr(hold, "budget", lambda: 0)
    objective = objective_on(DATA[form])
    assert type(objective._evaluator.data) is KINDS[form]
    found, wanted = numbers(MEASURES[name](objective).to_dict()), expected(name)
    assert found.keys() == wanted.keys()
    assert any(isinstance(value, float) and value != 0 for value in found.values())
    if form == "a dict":  # the same products in the same order
        assert found == wanted
    check(found, wanted)


def test_no_measure_is_missing():
    functions = {name for name in lbgap.__all__ if inspect.isfunction(getattr(lbgap, name))}
    others = {"load_weights", "read_run", "read_sweep", "train", "train_together"}
    assert functions - others == set(MEASURES)


@pytest.mark.parametrize("form", DATA)
def test_a_loss_of_ones_own_takes_the_batch(form, expected, monkeypatch):
    if form == "a stream":
        monkeypatch.setattr(hold, "budget", lambda: 0)
    objective = objective_on(DATA[form], loss=lambda output, batch: F.cross_entropy(output, batch["label"]))
    for name in ("noise_scale", "hessian_trace", "average_sharpness", "eigenvalues", "batch_sharpness", "line"):
        wanted, found = expected(name), numbers(MEASURES[name](objective).to_dict())
        for place in found:  # no accuracy
            if found[place] is not None:
                assert found[place] == pytest.approx(wanted[place], rel=1e-6, abs=1e-9), place
    assert math.isclose(float(objective.loss(objective.theta)), expected("fast_sharpness")[".base_loss"], rel_tol=1e-12)


# Models that return more than one tensor, and graphs: what is left of the list, and why the rest is refused.


class Output(Net):
    """Returns logits and a loss of its own."""

    def forward(self, x, label):
        logits = super().forward(x)
        return {"logits": logits, "loss": F.cross_entropy(logits, label)}


class Bag(OfGraphs):
    """The same function of how often a graph has each node."""

    def forward(self, counts):
        return self.out((counts @ self.nodes.weight).tanh())


COUNTS = F.one_hot(IDS, WORDS).sum(1).double()
COUNTS[:, 0] = 0
ONE_TENSOR = "needs a model that returns one tensor"
CUTTABLE = "needs batches that can be cut into samples, got graphs, or parts of other lengths"
CLASSES = "it needs class indices as targets and an output"
REFUSED = {
    "a loss": {"pac_bayes_sigma": CLASSES, "fisher_rao_norm": ONE_TENSOR},
    "graphs": {
        "pac_bayes_sigma": CLASSES,
        "fisher_rao_norm": CUTTABLE,
        "batch_sharpness": CUTTABLE,
        "noise_scale": CUTTABLE,
        "connect": CUTTABLE,
    },
}


def without_classes(kind, seed=0):
    """An objective on outputs in a dict or on graphs, and the same of one tensor, neither of which knows classes."""
    if kind == "a loss":
        pairs = (Output(seed), padded, lambda o, _: o["loss"]), (Net(seed), DATA["a dict"], labelled)
    else:
        whole = {"counts": COUNTS, "label": TEXTS}
        pairs = (seeded(OfGraphs, seed), graphs, of_y), (seeded(Bag, seed), whole, labelled)
    return [Objective(model, data, loss=loss, precision="float64") for model, data, loss in pairs]


def labelled(output, batch):
    return F.cross_entropy(output, batch["label"])


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("name", MEASURES)
def test_outputs_and_batches_that_cannot_be_cut(name, kind):
    measure = MEASURES[name]
    objective, plain = without_classes(kind)
    if name in REFUSED[kind]:
        with pytest.raises(ValueError, match=REFUSED[kind][name]) as caught:
            run(measure, name, objective)
        assert "\n" not in str(caught.value)
        return
    check(*(numbers(run(measure, name, each).to_dict()) for each in (objective, plain)))


def run(measure, name, objective):
    """A measure, with another minimizer of the same model where it needs one."""
    if name not in ("line", "curve", "connect"):
        return measure(objective)
    model = objective.model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-1.5)
    options = {"epochs": 1, "train_batch_size": 40} if name == "connect" else {}
    return getattr(lbgap, name)(objective, model, points=7, **options)
