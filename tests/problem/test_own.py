"""Callables as losses: what they may return, whose tensors they hold, and how their errors are told."""

import copy
from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lbgap.problem.loss import resolve_loss


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


OUTPUT, TARGET = normal(9, 4), normal(9, 4, seed=1)
WEIGHT = torch.tensor([1.0, 2.0, 0.0, 1.0, 4.0, 1.0, 1.0, 0.5, 1.0], dtype=torch.float64)


def mean(output, target):
    return (output - target).square().mean()


def each(output, target):
    return (output - target).square().mean(1)


def elements(output, target):
    return (output - target).square()


def column(output, target):
    return (output - target).square().mean(1, keepdim=True)


def pair(output, target):
    return (output - target).square().sum(), output.numel()


def tensors(output, target):
    return [(output - target).square().sum()[None], torch.tensor([float(output.numel())])]


@pytest.mark.parametrize("size", [1, 4, 9])
@pytest.mark.parametrize("given", [mean, each, elements, column, pair, tensors])
def test_forms_of_one_mean(given, size):
    loss, leaf = resolve_loss(given).check(OUTPUT, TARGET), OUTPUT.clone().requires_grad_()
    assert not loss.separable
    pieces = [loss.sums(*parts) for parts in zip(leaf.split(size), TARGET.split(size), strict=True)]
    weight = sum(piece.weight for piece in pieces)
    total = sum(piece.total for piece in pieces) / weight
    expected = F.mse_loss(leaf, TARGET)
    assert float(sum(piece.exact for piece in pieces)) / weight == pytest.approx(float(expected.detach()), rel=1e-14)
    found, gradient = (torch.autograd.grad(value, leaf)[0] for value in (total, expected))
    torch.testing.assert_close(found, gradient, rtol=1e-13, atol=1e-16)
    torch.testing.assert_close(loss.mean(leaf, TARGET), expected, rtol=1e-13, atol=0)
    assert loss.weight(TARGET) == (None if given in (pair, tensors) else 9)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_weights_that_no_mean_has(weight):
    with pytest.raises(ValueError, match=r"returned the weight .* with a sum: it must be finite and not negative"):
        resolve_loss(lambda output, target: (output.sum(), weight)).check(OUTPUT, TARGET)


def test_a_weight_that_depends_on_the_output_is_refused():
    loss = resolve_loss(lambda output, target: (output.sum(), output.abs().sum()))
    with pytest.raises(ValueError, match="weight that the loss returns depends on the model's output"):
        loss.sums(OUTPUT.clone().requires_grad_(), TARGET)


class Scaled(nn.Module):
    """Holds a buffer, a plain tensor and dropout, and counts its calls."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.full((4,), 2.0))
        self.shift = torch.zeros(4)
        self.calls = 0

    def forward(self, output, target):
        self.calls += 1
        assert not self.training
        return F.linear(output - target, torch.diag(self.scale), self.shift).square().mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_module_is_copied_and_cast(dtype):
    module = Scaled()
    loss, output, target = resolve_loss(module), OUTPUT.to(dtype), TARGET.to(dtype)
    sums = loss.check(output, target).sums(output, target)
    assert sums.total.dtype == dtype
    tolerance = 1e-14 if dtype == torch.float64 else 1e-6
    assert float(sums.exact) / 9 == pytest.approx(4 * float(F.mse_loss(OUTPUT, TARGET)), rel=tolerance)
    assert (module.calls, module.training, module.scale.dtype, module.shift.dtype) == (0, True, *[torch.float32] * 2)
    assert loss.given is module


def test_trainable_parameters_are_refused():
    class Learned(nn.Module):
        def __init__(self):
            super().__init__()
            self.log_scale = nn.Parameter(torch.zeros(()))

        def forward(self, output, target):
            return F.mse_loss(output, target) * self.log_scale.exp()

    with pytest.raises(ValueError, match="'Learned' has trainable parameters of its own, 'log_scale'") as caught:
        resolve_loss(Learned())
    assert "\n" not in str(caught.value)
    frozen = Learned().requires_grad_(False)
    assert float(resolve_loss(frozen).mean(OUTPUT, TARGET)) == float(F.mse_loss(OUTPUT, TARGET))


class Uncopied(nn.Module):
    def __deepcopy__(self, memo):
        raise RuntimeError("cannot be\ncopied")

    def forward(self, output, target):
        return F.mse_loss(output, target)


def test_a_module_that_cannot_be_copied():
    assert float(resolve_loss(Uncopied()).mean(OUTPUT, TARGET)) == float(F.mse_loss(OUTPUT, TARGET))
    module = Uncopied()
    module.register_buffer("scale", torch.ones(()))
    with pytest.raises(ValueError, match=r"'Uncopied' cannot be copied \(cannot be copied\): pass a function"):
        resolve_loss(module)


class TwoArgumentsError(Exception):
    def __init__(self, code, text):
        super().__init__(code, text)


def raising(error):
    def loss(output, target):
        raise error

    return loss


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (RuntimeError("size mismatch\n  at line 3"), RuntimeError, "size mismatch at line 3"),
        (IndexError("Target 5 is out of bounds."), IndexError, "Target 5 is out of bounds"),
        (KeyError("labels"), KeyError, "labels"),
        (AssertionError(), AssertionError, "AssertionError"),
        (NotImplementedError("no\nrule"), NotImplementedError, "no rule"),
        (TwoArgumentsError(3, "x"), ValueError, r"TwoArgumentsError: \(3, 'x'\)"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), ValueError, "UnicodeDecodeError: .*bad"),
    ],
)
def test_errors_inside_keep_their_type_in_one_line(error, kind, text):
    with pytest.raises(
        kind, match=rf"the loss 'loss' does not accept outputs \(9, 4\) torch.float64 .*: .*{text}"
    ) as e:
        resolve_loss(raising(error)).check(OUTPUT, TARGET)
    assert type(e.value) is kind
    assert "\n" not in str(e.value)
    assert e.value.__cause__ is error


def test_out_of_memory_passes_as_it_is():
    error = torch.OutOfMemoryError("no memory")
    with pytest.raises(torch.OutOfMemoryError) as caught:
        resolve_loss(raising(error)).check(OUTPUT, TARGET)
    assert caught.value is error


def test_float32_tensors_of_a_closure_are_told():
    weight = torch.ones(4)
    loss = resolve_loss(lambda output, target: F.cross_entropy(output, target, weight=weight))
    with pytest.raises(RuntimeError, match=r"inside the loss must follow the outputs: use .to\(output\)") as caught:
        loss.check(OUTPUT, torch.zeros(9, dtype=torch.int64))
    assert "\n" not in str(caught.value)


COLUMN, NUMBERS = normal(9, 1), normal(9, seed=1)


@pytest.mark.parametrize(
    "given",
    [
        lambda output, target: (output - target).abs().mean(),
        lambda output, target: (target - output).square().mean(),
        lambda output, target: torch.maximum(output, target).mean(),
        lambda output, target: F.smooth_l1_loss(output, target),
        lambda output, target: nn.L1Loss()(output, target),
        lambda output, target: torch.sub(output.tanh(), target).square().mean(1),
    ],
)
@pytest.mark.filterwarnings("ignore:Using a target size:UserWarning")
@pytest.mark.parametrize("turned", [False, True])
def test_pairs_of_all_samples_by_broadcasting_are_refused(given, turned):
    output, target = (NUMBERS, COLUMN) if turned else (COLUMN, NUMBERS)
    with pytest.raises(ValueError, match=r"lets torch broadcast outputs and targets, .* to all pairs of samples") as e:
        resolve_loss(given).check(output, target)
    assert "\n" not in str(e.value)


CLASSES = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 1])


@pytest.mark.parametrize(
    ("given", "output", "target"),
    [
        (lambda output, target: (output[:, 0] - target).abs().mean(), COLUMN, NUMBERS),
        (lambda output, target: (output.squeeze(1) - target).abs().mean(), COLUMN, NUMBERS),
        (lambda output, target: (output - target[:, None]).abs().mean(), COLUMN, NUMBERS),
        (lambda output, target: F.cross_entropy(output, target), OUTPUT, CLASSES),
        (lambda output, target: output.gather(1, target[:, None]).mean(), OUTPUT, CLASSES),
        (lambda output, target: (output * WEIGHT[: len(target), None]).mean(), COLUMN, NUMBERS),
        (lambda output, target: ((output - output.T) * (target[:, None] > target)).sum() / 9, COLUMN, NUMBERS),
        (lambda output, target: (output * torch.ones(5, dtype=torch.float64)).mean(), COLUMN, NUMBERS),
    ],
)
def test_losses_that_do_not_broadcast_pass(given, output, target):
    resolve_loss(given).check(output, target)


def test_classes_of_a_callable():
    loss = resolve_loss(lambda output, target: F.cross_entropy(output, target))
    assert loss.classes(OUTPUT, CLASSES) == 4
    assert float(loss.correct(OUTPUT, CLASSES)) == int((OUTPUT.argmax(1) == CLASSES).sum())
    assert loss.counted(CLASSES) == 9
    assert loss.classes(OUTPUT, CLASSES - 100) is None
    assert loss.classes(OUTPUT, TARGET) is None
    assert loss.classes(OUTPUT[:, :1], CLASSES) is None


def masked(output, target):
    return (target[:, 1] * (output[:, 0] - target[:, 0]).square()).sum(), target[:, 1].sum()


def of_two(output, target):
    """It takes no batch of one."""
    assert len(target) > 1
    return masked(output, target)


def of_nine(output, target):
    assert len(target) == 9
    return masked(output, target)


@pytest.mark.parametrize("size", [9, 4097, 10000])
@pytest.mark.parametrize("loss", [masked, of_two])
def test_which_samples_weigh_something_is_asked_of_the_loss(loss, size):
    counts = torch.zeros(size, dtype=torch.float64)
    counts[[2, 5, -1]] = torch.tensor([0.5, 1, 3], dtype=torch.float64)
    fitted = resolve_loss(loss).check(OUTPUT, torch.stack([normal(size), counts], 1))
    target = torch.stack([normal(size), counts], 1)
    assert fitted.counting(target).tolist() == [2, 5, size - 1]
    assert fitted.counting(target, 2).tolist() == [2, 5]
    assert fitted.counting(target[:2]).tolist() == []


def test_all_count_where_the_loss_cannot_be_asked():
    target = torch.stack([normal(9), (torch.arange(9) > 4).double()], 1)
    assert resolve_loss(of_nine).check(OUTPUT, target).counting(target).tolist() == list(range(9))
    assert resolve_loss(mean).check(OUTPUT, TARGET).counting(TARGET, 3).tolist() == [0, 1, 2]


# Outputs and targets that are trees.


class Graph:
    """Nodes of several graphs, as PyTorch Geometric has them."""

    def __init__(self, nodes, values, graphs):
        self.nodes, self.values, self.num_graphs = nodes, values, graphs

    def apply(self, function):
        self.nodes, self.values = function(self.nodes), function(self.values)
        return self

    def to(self, device):
        return self.apply(lambda part: part.to(device))


BATCH = {"labels": TARGET, "mask": WEIGHT, "ids": torch.arange(9)}
OUTPUTS = OrderedDict(logits=OUTPUT, states=(OUTPUT.sin(), torch.arange(9)))


def of_dicts(output, batch):
    return (output["logits"] - batch["labels"]).square().mean()


def each_of_dicts(output, batch):
    return (output["logits"] - batch["labels"]).square()


def masked_dicts(output, batch):
    return (batch["mask"][:, None] * (output["logits"] - batch["labels"]).square()).sum(), batch["mask"].sum() * 4


@pytest.mark.parametrize("size", [1, 4, 9])
@pytest.mark.parametrize("given", [of_dicts, each_of_dicts, masked_dicts])
def test_forms_of_one_mean_over_dicts(given, size):
    loss = resolve_loss(given).check(OUTPUTS, BATCH)
    leaf = OUTPUT.clone().requires_grad_()
    pieces = [slice(first, first + size) for first in range(0, 9, size)]
    sums = [loss.sums({"logits": leaf[rows]}, {name: value[rows] for name, value in BATCH.items()}) for rows in pieces]
    weight = sum(piece.weight for piece in sums)
    each = (leaf - TARGET).square().mean(1)
    expected = (WEIGHT * each).sum() / WEIGHT.sum() if given is masked_dicts else each.mean()
    total = sum(piece.total for piece in sums) / weight
    assert float(sum(piece.exact for piece in sums)) / weight == pytest.approx(float(expected.detach()), rel=1e-14)
    found, gradient = (torch.autograd.grad(value, leaf)[0] for value in (total, expected))
    torch.testing.assert_close(found, gradient, rtol=1e-13, atol=1e-16)
    torch.testing.assert_close(loss.mean({"logits": leaf}, BATCH), expected, rtol=1e-13, atol=0)
    assert loss.weight(BATCH) == (None if given is masked_dicts else 9)


def test_what_is_asked_of_trees():
    loss = resolve_loss(masked_dicts).check(OUTPUTS, BATCH)
    assert loss.counting(BATCH).tolist() == [0, 1, 3, 4, 5, 6, 7, 8]
    assert loss.counting(BATCH, 3).tolist() == [0, 1, 3]
    loss = resolve_loss(of_dicts).check(OUTPUTS, BATCH)
    assert loss.counting(BATCH, 3).tolist() == [0, 1, 2]
    assert loss.classes(OUTPUTS, BATCH) is None
    assert loss.counted(BATCH) == 9
    assert loss.correct(OUTPUTS, BATCH).isnan()
    assert not loss.by_class(BATCH)
    assert loss.soft_targets(OUTPUTS, BATCH) is None
    assert loss.quadratic(OUTPUTS) is None


def test_a_few_outputs_meet_as_many_of_the_targets():
    sizes = []

    def loss(output, batch):
        sizes.append((len(output["logits"]), len(batch["labels"])))
        return of_dicts(output, batch)

    few = {"logits": OUTPUT[:4]}
    resolve_loss(loss).check(few, BATCH)
    resolve_loss(loss).check_all(few, iter([BATCH, BATCH]))
    assert sizes == [(4, 4), (4, 4)]


@pytest.mark.parametrize("weighs", [False, True])
def test_graphs_count_as_many_as_are_in_them(weighs):
    graph = Graph(normal(9, 2), normal(3, seed=1), 3)

    def loss(output, graph):
        each = (output - graph.values).square()
        return (each.sum(), len(each)) if weighs else each.mean()

    output = normal(3, seed=2)
    fitted = resolve_loss(loss).check(output, graph)
    assert fitted.weighs == weighs
    assert fitted.weight(graph) == (None if weighs else 3)
    assert fitted.counting(graph).tolist() == [0, 1, 2]
    assert fitted.sums(output, graph).weight == 3
    assert float(fitted.sums(output, graph).exact) == pytest.approx(float((output - graph.values).square().sum()))


def test_values_of_each_sample_where_batches_cannot_be_cut():
    ragged = {"x": normal(5, 2), "edges": normal(2, 9)}
    loss = resolve_loss(lambda output, batch: output.square().mean(1))
    with pytest.raises(ValueError, match=r"or \(sum, weight\) where batches cannot be cut .*got shape \(5,\)"):
        loss.check(normal(5, 2), ragged)
    pairs = resolve_loss(lambda output, batch: (output.square().mean(1).sum(), len(output)))
    assert pairs.check(normal(5, 2), ragged).sums(normal(5, 2), ragged).weight == 5
    graph = Graph(normal(9, 2), normal(3, seed=1), 3)
    with pytest.raises(ValueError, match=r"one row per sample, got shape \(9,\) for 3 samples"):
        loss.check(normal(9, 2), graph)


def test_a_loss_that_overwrites_finds_copies():
    def loss(output, batch):
        batch["labels"] -= output["logits"]
        output["logits"] += 1
        return batch["labels"].square().mean()

    batch, output = copy.deepcopy(BATCH), {"logits": OUTPUT.clone()}
    resolve_loss(loss).check(output, batch)
    assert torch.equal(batch["labels"], TARGET)
    assert torch.equal(output["logits"], OUTPUT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("form", [lambda part: {"ids": CLASSES, "logits": part}, lambda part: (part, None), "object"])
def test_a_module_is_cast_by_what_the_output_has_inside(form, dtype):
    class OfTrees(Scaled):
        def forward(self, output, target):
            part = output.logits if form == "object" else output["logits"] if isinstance(output, dict) else output[0]
            return super().forward(part, target["labels"])

    part = OUTPUT.to(dtype)
    output = SimpleNamespace(logits=part) if form == "object" else form(part)
    sums = (
        resolve_loss(OfTrees()).check(output, {"labels": TARGET.to(dtype)}).sums(output, {"labels": TARGET.to(dtype)})
    )
    assert sums.total.dtype == dtype
    assert float(sums.exact) / 9 == pytest.approx(4 * float(F.mse_loss(OUTPUT, TARGET)), rel=1e-6)


@pytest.mark.parametrize(
    ("output", "target", "text"),
    [
        (
            OUTPUTS,
            BATCH,
            r"outputs OrderedDict \{logits \(9, 4\) torch.float64, states \(\(9, 4\) torch.float64, \(9,\) ",
        ),
        (
            {"a": OUTPUT},
            (TARGET, CLASSES),
            r"outputs \{a \(9, 4\) torch.float64\} with targets \(\(9, 4\) torch.float64, ",
        ),
        (
            [OUTPUT],
            {**BATCH, "more": TARGET},
            r"outputs \[\(9, 4\) torch.float64\] with targets \{.*torch.int64, \.\.\.\}: bad",
        ),
        (None, Graph(OUTPUT, TARGET, 9), "outputs NoneType with targets Graph: bad"),
    ],
)
def test_errors_tell_trees_in_one_line(output, target, text):
    with pytest.raises(ValueError, match=text) as caught:
        resolve_loss(raising(ValueError("bad"))).check(output, target)
    assert "\n" not in str(caught.value)
