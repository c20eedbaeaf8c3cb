"""Batches as people have them: fewer samples, accuracies, settings, and samples that see each other."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

import lbgap
from lbgap import Objective
from lbgap.problem import hold
from lbgap.problem.pieces import Pieces
from lbgap.problem.stored import Table
from lbgap.problem.stream import NOTE, Stream
from tests.objective import batches
from tests.objective.batches import (
    CASES,
    CLASSES,
    IDS,
    LABELS,
    MASK,
    SAMPLES,
    SIZES,
    TAGS,
    Graph,
    OfGraphs,
    Output,
    Tags,
    Text,
    Two,
    X,
    Z,
    batch,
    draw,
    equal,
    graphs,
    near,
    padded,
    refused,
    seeded,
    some,
    tags_loss,
)

pytestmark = pytest.mark.usefixtures("one_thread")

# Fewer samples.


@some("a dict", "two inputs", "tags", "padded", "padded tags", "a padded stream", "a stream", "a padded stream of tags")
def test_parts(case):
    build, _ = case
    objective = build(precision="float64")
    theta = near(objective.theta, 1)[0]
    model = seeded(CASES[build.name][0]).double()
    torch.nn.utils.vector_to_parameters(theta, model.parameters())

    def mean(chosen):
        if isinstance(model, Two):
            return F.cross_entropy(model(X[chosen].double(), Z[chosen].double()), LABELS[chosen])
        if isinstance(model, Tags):
            total, weight = tags_loss(model(IDS[chosen]), {"tags": TAGS[chosen]})
            return total / weight
        return F.cross_entropy(model(IDS[chosen], MASK[chosen].double()), LABELS[chosen])

    chosen = torch.tensor([40, 3, 17, 9, 3])
    part = objective.part(chosen)
    assert part.samples == 5
    with torch.no_grad():
        assert float(part.loss(theta)) == pytest.approx(float(mean(chosen)), rel=1e-12)
        for number in (1, 13, SAMPLES):
            subset = objective.subset(number)
            spread = torch.arange(number) * SAMPLES // number
            assert float(subset.loss(theta)) == pytest.approx(float(mean(spread)), rel=1e-12)
        drawn = objective.sample(12, seed=3)
        assert drawn.samples == 12
        found = lbgap.fast_sharpness(objective, epsilon=0.1, restarts=1, samples=20)
        torch.nn.utils.vector_to_parameters(found.point, model.parameters())
        assert found.max_loss == pytest.approx(float(mean(torch.arange(SAMPLES))), rel=1e-12)
    assert found.searched["samples"] == 20
    assert objective.evaluations > 0


@some("graphs", "graphs and a loss of one's own", "graphs in a stream")
def test_graphs_have_no_parts(case):
    objective = case[0]()
    assert objective.subset(3) is None
    refused(ValueError, "a part of the samples needs batches that can be cut", objective.part, [1, 2])
    refused(ValueError, "samples= needs batches that can be cut into samples, got graphs", objective.sample, 3)
    message = "samples= needs batches that can be cut"
    refused(ValueError, message, lbgap.fast_sharpness, objective, epsilon=0.1, samples=3)
    refused(ValueError, "a derivative of each sample needs batches", lbgap.fisher_rao_norm, objective)
    message = "kind='fisher' needs the gradient of each sample, got batches that cannot be cut"
    refused(ValueError, message, objective.hvp, objective.theta, torch.ones(1, objective.n), kind="fisher")
    refused(ValueError, "noise_scale needs batches that can be cut", lbgap.noise_scale, objective, batch=4)
    refused(ValueError, "batch_sharpness needs batches that can be cut", lbgap.batch_sharpness, objective, batch=4)
    assert objective.batch_size == max(SIZES)


@some("graphs", "graphs in a stream")
def test_products_with_the_gauss_newton_matrix_of_graphs(case):
    build, _ = case
    objective = build(precision="float64")
    vectors = torch.randn(2, objective.n, dtype=torch.float64, generator=draw(6))
    found = objective.hvp(objective.theta, vectors, kind="ggn")
    # At labels that are those of the model itself, each class by its share, it is the Hessian.
    model = seeded(OfGraphs).double()
    shares = model(Graph(torch.arange(SAMPLES))).softmax(1).detach()
    parts = dict(model.named_parameters())

    def soft(theta):
        values, start = {}, 0
        for name, parameter in parts.items():
            values[name] = theta[start : start + parameter.numel()].view_as(parameter)
            start += parameter.numel()
        return F.cross_entropy(functional_call(model, values, (Graph(torch.arange(SAMPLES)),)), shares)

    # The gradient of such a loss in the outputs is zero, so that only J' H J is left.
    hessian = torch.autograd.functional.hessian(soft, objective.theta)
    assert torch.allclose(found, vectors @ hessian, rtol=1e-9, atol=1e-11)


# Accuracy.


@some(
    "a dict",
    "a dict beside the target",
    "outputs in a dataclass",
    "padded",
    "a stream",
    "a padded stream",
    "two inputs",
)
def test_accuracy(case):
    objective = case[0]()
    model = seeded(CASES[case[0].name][0])
    with torch.no_grad():
        output = model(X, Z) if isinstance(model, Two) else model(IDS, MASK)
        output = output.logits if isinstance(output, Output) else output
    loss, accuracy = objective.loss_and_accuracy(objective.theta)
    assert float(accuracy) == pytest.approx(100 * float((output.argmax(1) == LABELS).sum()) / SAMPLES)
    assert float(loss) == pytest.approx(float(F.cross_entropy(output, LABELS)), rel=1e-5)
    assert objective.classes == CLASSES
    points = near(objective.theta, 3)
    _, accuracies = objective.combination_losses(torch.eye(3, dtype=torch.float64), points, accuracy=True)
    assert accuracies.tolist() == pytest.approx([float(objective.loss_and_accuracy(one)[1]) for one in points])


@some("a dict and a loss of one's own", "graphs", "graphs and a loss of one's own")
def test_no_accuracy_where_targets_are_not_classes_or_batches_cannot_be_cut(case):
    objective = case[0]()
    refused(ValueError, "accuracy needs class indices as targets", objective.loss_and_accuracy, objective.theta)


# What is written down.


@pytest.mark.parametrize(
    ("case", "facts"),
    [
        ("a dict", {"call": "keywords", "inputs": ["input_ids", "attention_mask"], "targets": ["labels"]}),
        ("a dict and a loss of one's own", {"call": "keywords", "inputs": ["input_ids", "attention_mask"]}),
        ("a dict beside the target", {"call": "keywords", "inputs": ["input_ids", "attention_mask"]}),
        ("a call", {"call": "<lambda>", "targets": ["labels"]}),
        ("two inputs", {"call": "positions"}),
        ("padded", {"call": "keywords", "inputs": ["input_ids", "attention_mask"], "targets": ["labels"]}),
        ("graphs", {"targets": ["y"]}),
        ("graphs and a loss of one's own", {}),
    ],
    indirect=["case"],
)
def test_settings_say_how_batches_enter(case, facts):
    settings = case[0]().settings()
    assert {key: settings[key] for key in ("call", "inputs", "targets") if key in settings} == facts
    assert settings["data"] == "resident"
    assert (settings["samples"], settings["weight"]) == (SAMPLES, SAMPLES)


@some("a stream", "a padded stream", "graphs in a stream")
def test_settings_say_that_data_are_streamed(case):
    objective = case[0]()
    assert objective.settings()["data"] == "streamed from the source"
    assert NOTE in objective.notes


@some("tags", "padded tags", "a padded stream of tags")
def test_the_weight_is_that_of_what_counts(case):
    assert case[0]().settings()["weight"] == float((TAGS != -100).sum())


@some("a dict")
def test_what_does_not_enter_is_noted(case):
    assert "keys of the batches that Text.forward does not take: 'tags'" in case[0]().notes


@some("padded", "a padded stream", "a dict", "graphs", "tags")
def test_the_digest_tells_data_apart(case, monkeypatch):
    build, _ = case
    digest = build().digest()
    assert digest == build().digest()
    monkeypatch.setattr(batches, "LABELS", (LABELS + 1) % CLASSES)
    monkeypatch.setattr(batches, "TAGS", TAGS.flip(0))
    assert build().digest() != digest


# Labels of nodes, and models that change what they are given.


class OfNodes(OfGraphs):
    def forward(self, graph):
        return self.out(self.nodes(graph.x).tanh())


def nodes():
    """Graphs with a class for each node in place of one for each graph."""
    for graph in graphs():
        graph.y = graph.x % CLASSES
        yield graph


def node_sums(output, graph):
    return F.cross_entropy(output, graph.y, reduction="sum"), len(graph.y)


def by_graphs(output, graph):
    return F.cross_entropy(output, graph.y)


def test_labels_of_nodes():
    """A loss that knows its terms is a mean over nodes; a number that is a mean counts as often as there are graphs."""
    model = seeded(OfNodes)
    with torch.no_grad():
        parts = [(F.cross_entropy(model(graph), graph.y), len(graph.y), graph.num_graphs) for graph in nodes()]
    values, counts, sizes = (torch.tensor(column, dtype=torch.float64) for column in zip(*parts, strict=True))
    for loss, weights in (("cross_entropy", counts), (node_sums, counts), (by_graphs, sizes)):
        objective = Objective(model, nodes, loss=loss)
        exact = float((values * weights).sum() / weights.sum())
        assert float(objective.loss(objective.theta)) == pytest.approx(exact, rel=1e-6)
        assert objective.settings()["weight"] == float(weights.sum())
    message = r"have one row per sample, got shape \(\d+,\) for 9 samples: reduce it with .mean\(\)"
    rows = {"loss": lambda output, graph: F.cross_entropy(output, graph.y, reduction="none")}
    refused(ValueError, message, Objective, model, nodes, **rows)


@pytest.mark.parametrize("form", [batch, padded])
@pytest.mark.parametrize("batch_size", [None, 7])
def test_a_model_that_takes_keys_out_of_its_batch(form, batch_size):
    class Popping(Text):
        def forward(self, parts):
            return super().forward(parts.pop("input_ids"), parts.pop("attention_mask"))

    data = padded if form is padded else batch(torch.arange(SAMPLES))
    model = seeded(Popping)
    whole = {"input_ids": IDS, "attention_mask": MASK}
    exact = float(F.cross_entropy(model(whole), LABELS).detach())
    for options in ({}, {"loss": lambda output, parts: F.cross_entropy(output, parts["labels"])}):
        objective = Objective(model, data, batch_size=batch_size, **options)
        for _ in range(2):
            assert float(objective.loss(objective.theta)) == pytest.approx(exact, rel=1e-6)
    if form is batch:
        assert len(data) == 4


# Statistics of batch-norm.


class Normed(nn.Module):
    """Takes inputs of any width up to four, the rest of which are zeros."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, CLASSES)

    def forward(self, x):
        return self.last(self.norm(self.first(F.pad(x, (0, 4 - x.shape[1])))))


def of_sizes(sizes, widths=(4, 3, 2)):
    """A source of batches of some sizes, of each of which a few columns are kept."""

    def read():
        for chosen, width in zip(torch.arange(SAMPLES).split(sizes), widths, strict=True):
            yield {"x": X[chosen, :width], "label": LABELS[chosen]}

    return read


def test_statistics_of_padded_batches_count_each_by_its_samples(monkeypatch):
    model, sizes = seeded(Normed), (20, 18, 3)
    with torch.no_grad():
        parts = [
            model.double().first(F.pad(one["x"].double(), (0, 4 - one["x"].shape[1]))) for one in of_sizes(sizes)()
        ]
    weights = torch.tensor(sizes, dtype=torch.float64)[:, None] / SAMPLES
    mean, variance = (torch.stack([getattr(part, name)(0) for part in parts]) for name in ("mean", "var"))
    for budget in (math.inf, 0):
        monkeypatch.setattr(hold, "budget", lambda limit=budget: limit)
        objective = Objective(model, of_sizes(sizes), precision="float64", batch_size=4)
        found = objective.statistics(objective.theta)
        assert torch.allclose(found["norm.running_mean"], (weights * mean).sum(0), rtol=1e-12)
        assert torch.allclose(found["norm.running_var"], (weights * variance).sum(0), rtol=1e-12)


@pytest.mark.parametrize("batch_size", [None, 10])
def test_statistics_of_a_stream_are_those_of_the_same_data_in_memory(batch_size, monkeypatch):
    """However it is cut, and also where a batch of one sample would be left."""
    model, found = seeded(Normed), []
    for budget in (math.inf, 0):
        monkeypatch.setattr(hold, "budget", lambda limit=budget: limit)
        objective = Objective(model, of_sizes((20, 20, 1), (4, 4, 4)), batch_size=batch_size)
        assert isinstance(objective._evaluator.data, Stream if budget == 0 else Table)
        found.append(objective.statistics(objective.theta))
    hidden = model.first(X)
    for name, exact in (("norm.running_mean", hidden.mean(0)), ("norm.running_var", hidden.var(0))):
        assert torch.equal(found[0][name], found[1][name])
        assert torch.allclose(found[0][name], exact, rtol=1e-5)


# Samples that see each other.


def contrast(output, batch):
    """A mean over the samples of a batch, each against the others."""
    return F.cross_entropy(output @ output.T, torch.arange(len(output))) + F.cross_entropy(output, batch["labels"])


def by_batches(model, texts):
    """The mean over batches, each counted by its samples."""
    double, total = copy.deepcopy(model).double(), 0.0
    with torch.no_grad():
        for one in texts:
            found = double(one["input_ids"], one["attention_mask"].double())
            total += float(contrast(found, one)) * len(found)
    return total / SAMPLES


def test_padded_batches_whose_samples_see_each_other(monkeypatch):
    model, values = seeded(Text), []
    for budget in (math.inf, 0):
        monkeypatch.setattr(hold, "budget", lambda limit=budget: limit)
        objective = Objective(model, padded, loss=contrast, coupled=True)
        assert isinstance(objective._evaluator.data, Stream if budget == 0 else Pieces)
        assert objective.batch_size == max(SIZES)
        values.append(objective.loss_and_gradient(objective.theta))
        assert float(values[-1][0]) == pytest.approx(by_batches(model, padded()), rel=1e-5)
        refused(ValueError, "samples needs a loss that is a mean over single samples", objective.sample, 3)
        assert objective.subset(3) is None
    for one, other in zip(*values, strict=True):
        assert torch.equal(one, other)


def test_equal_batches_whose_samples_see_each_other(monkeypatch):
    model, values = seeded(Text), []
    for budget in (math.inf, 0):
        monkeypatch.setattr(hold, "budget", lambda limit=budget: limit)
        objective = Objective(model, equal, loss=contrast, coupled=True, batch_size=11)
        assert isinstance(objective._evaluator.data, Stream if budget == 0 else Table)
        assert objective.batch_size == 11
        values.append(objective.loss_and_gradient(objective.theta))
        elevens = [batch(chosen, 7) for chosen in torch.arange(SAMPLES).split(11)]
        assert float(values[-1][0]) == pytest.approx(by_batches(model, elevens), rel=1e-5)
    for one, other in zip(*values, strict=True):
        assert torch.equal(one, other)


def test_a_batch_of_one_sample_sees_no_other():
    def uneven():
        return map(batch, torch.arange(SAMPLES).split([20, 20, 1]))

    message = r"coupled=True with a batch of one sample \(batch 3 of 3\), which sees no other: let the loader"
    refused(ValueError, message, Objective, seeded(Text), uneven, loss=contrast, coupled=True)
    message = "the loss 'contrast' is no mean over samples: .*pass coupled=True with"
    refused(ValueError, message, Objective, seeded(Text), padded, loss=contrast)


def test_a_part_where_samples_see_each_other_is_one_batch(monkeypatch):
    """Samples of padded batches cannot be put into one, and would see some of each other alone."""
    model, chosen = seeded(Text), [12, 9, 16]

    def exact(chosen):
        with torch.no_grad():
            return float(contrast(model(IDS[chosen], MASK[chosen]), {"labels": LABELS[chosen]}))

    for budget in (math.inf, 0):
        monkeypatch.setattr(hold, "budget", lambda limit=budget: limit)
        objective = Objective(model, padded, loss=contrast, coupled=True)
        # 3 terms of two cross-entropies, each rounded to float32 a few times.
        assert float(objective.part(chosen).loss(objective.theta)) == pytest.approx(exact(chosen), rel=1e-6)
        message = "coupled=True needs the samples of a part in one batch, got some of 3 batches, which cannot be joined"
        refused(ValueError, message, objective.part, [12, 0, 40])
        message = "coupled=True needs the samples of a part in one batch, got some of"
        refused(ValueError, message, lbgap.batch_sharpness, objective, batch=6, draws=4)
        whole = Objective(model, equal, loss=contrast, coupled=True, batch_size=9)
        assert float(whole.part([12, 0, 40]).loss(whole.theta)) == pytest.approx(exact([12, 0, 40]), rel=1e-6)
