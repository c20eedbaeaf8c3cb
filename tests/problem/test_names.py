"""The losses by name: where the classes are, and targets that belong to another name."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lbgap.problem.loss import log_probability, resolve_loss


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels(*shape, classes=3):
    return torch.randint(0, classes, shape, generator=torch.Generator().manual_seed(9))


TOKENS = labels(6, 5)
TOKENS[:2] = -100
TOKENS[3, 1:4] = -100
LAYOUTS = {
    "(batch, classes)": (normal(6, 3), labels(6), lambda output: output),
    "(batch, classes, height, width)": (normal(6, 3, 4, 2), labels(6, 4, 2), lambda output: output),
    "(batch, tokens, classes)": (normal(6, 5, 3), TOKENS, lambda output: output.movedim(-1, 1)),
    "(batch, classes, tokens)": (normal(6, 3, 5), TOKENS, lambda output: output),
    "(batch, a, b, classes)": (normal(6, 4, 2, 3), labels(6, 4, 2), lambda output: output.movedim(-1, 1)),
    "(batch, one token, classes)": (normal(6, 1, 3), labels(6, 1), lambda output: output.movedim(-1, 1)),
    "probabilities": (normal(6, 3), normal(6, 3, seed=1).softmax(1), lambda output: output),
    "of pixels": (normal(6, 3, 4), normal(6, 3, 4, seed=1).softmax(1), lambda output: output),
    "of tokens": (normal(6, 4, 3), normal(6, 4, 3, seed=1).softmax(2), lambda output: output.movedim(-1, 1)),
}


@pytest.mark.parametrize("size", [1, 4, 6])
@pytest.mark.parametrize("name", LAYOUTS)
def test_classes_in_any_layout(name, size):
    output, target, arrange = LAYOUTS[name]
    loss, leaf = resolve_loss("cross_entropy").check(output, target), output.clone().requires_grad_()
    theirs = arrange(target) if target.is_floating_point() else target
    expected = F.cross_entropy(arrange(leaf), theirs)
    (gradient,) = torch.autograd.grad(expected, leaf)
    pieces = [loss.sums(*pair) for pair in zip(leaf.split(size), target.split(size), strict=True)]
    total = sum(piece.total for piece in pieces) / sum(piece.weight for piece in pieces)
    assert float(total.detach()) == pytest.approx(float(expected.detach()), rel=1e-13)
    torch.testing.assert_close(torch.autograd.grad(total, leaf)[0], gradient, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(loss.mean(leaf, target), expected, rtol=1e-13, atol=0)
    many = loss.totals(torch.stack([output, 2 * output]), target)
    each = [float(loss.sums(one, target).exact) for one in (output, 2 * output)]
    assert many.tolist() == pytest.approx(each, rel=1e-13)


@pytest.mark.parametrize("name", [name for name in LAYOUTS if not LAYOUTS[name][1].is_floating_point()])
def test_answers_in_any_layout(name):
    output, target, arrange = LAYOUTS[name]
    loss = resolve_loss("cross_entropy").check(output, target)
    assert loss.classes(output, target) == 3
    assert loss.counted(target) == int((target >= 0).sum())
    expected = [int((arrange(one).argmax(1) == target).sum()) for one in (output, -output)]
    assert float(loss.correct(output, target)) == expected[0]
    assert loss.correct(torch.stack([output, -output]), target).tolist() == expected


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_log_probability_of_a_class(name):
    output, target, arrange = LAYOUTS[name]
    loss = log_probability(resolve_loss("cross_entropy").check(output, target), 2)
    sums = loss.sums(output, target)
    assert sums.weight == len(output)
    expected = arrange(output).log_softmax(1)[:, 2].mean()
    assert float(sums.exact) / sums.weight == pytest.approx(float(expected), rel=1e-14)


VALUES = {
    "mse": (normal(6, 3), normal(6, 3, seed=1), F.mse_loss),
    "l1": (normal(6, 3), normal(6, 3, seed=1), F.l1_loss),
    "huber": (normal(6, 3), 3 * normal(6, 3, seed=1), F.huber_loss),
    "bce": (normal(6, 3), normal(6, 3, seed=1).sigmoid(), F.binary_cross_entropy_with_logits),
    "nll": (normal(6, 3).log_softmax(1), labels(6), F.nll_loss),
}


@pytest.mark.parametrize("name", VALUES)
def test_values(name):
    output, target, function = VALUES[name]
    sums = resolve_loss(name).check(output, target).sums(output, target)
    assert float(sums.exact) / sums.weight == pytest.approx(float(function(output, target)), rel=1e-14)


@pytest.mark.parametrize(
    "target", [labels(6, 1, classes=2), labels(6, 1, classes=2).bool(), labels(6, 1, classes=2).double()]
)
def test_bce_takes_booleans_and_numbers(target):
    output = normal(6, 1)
    sums = resolve_loss("bce").check(output, target).sums(output, target)
    expected = F.binary_cross_entropy_with_logits(output, target.double())
    assert float(sums.total) / sums.weight == pytest.approx(float(expected), rel=1e-14)


def test_cross_entropy_takes_booleans_as_two_classes():
    output, target = normal(6, 2), labels(6, classes=2).bool()
    loss = resolve_loss("cross_entropy").check(output, target)
    assert float(loss.mean(output, target)) == pytest.approx(float(F.cross_entropy(output, target.long())), rel=1e-14)
    assert loss.classes(output, target) == 2
    assert float(loss.correct(output, target)) == int((output.argmax(1) == target).sum())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_probabilities_may_be_rounded_as_their_dtype_does(dtype):
    target = normal(50, 10, seed=3).softmax(1).to(dtype)
    for placed in (target, target.double()):  # as they are evaluated
        assert resolve_loss("cross_entropy").check(normal(50, 10), placed).class_dim == 1


HOT = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])


@pytest.mark.parametrize(
    ("name", "output", "target", "error", "message"),
    [
        ("cross_entropy", normal(4, 3), HOT, ValueError, "zeros and ones with another sum: pass loss='bce'"),
        ("cross_entropy", normal(4, 3), HOT.long(), ValueError, "one int64 for each output, .*pass loss='bce'"),
        ("cross_entropy", normal(4, 3), HOT.bool(), ValueError, "one bool for each output, .*pass loss='bce'"),
        ("cross_entropy", normal(4, 3), normal(4, 3), ValueError, "pass loss='mse' for values"),
        ("cross_entropy", normal(4, 3), normal(4, 3).abs(), ValueError, "pass loss='mse' for values"),
        ("cross_entropy", normal(4, 3), HOT * 0.999, ValueError, "pass loss='mse' for values"),
        ("cross_entropy", normal(4, 3), 0.999 * normal(4, 3).softmax(1), ValueError, "pass loss='mse'"),
        ("cross_entropy", normal(4, 1), labels(4, 1, classes=2), ValueError, "or pass loss='bce' for one logit"),
        ("cross_entropy", normal(4, 1), labels(4, classes=2), ValueError, "or pass loss='bce' for one logit"),
        ("cross_entropy", normal(4, 1), labels(4, 1, classes=2).double(), ValueError, "or pass loss='bce'"),
        ("cross_entropy", normal(4), labels(4, classes=2).bool(), ValueError, "or pass loss='bce'"),
        ("cross_entropy", normal(4, 1), normal(4, 1), ValueError, "or pass loss='mse' for values"),
        ("cross_entropy", normal(4, 1, 5, 5), labels(4, 1, 5, 5, classes=2), ValueError, "pass loss='bce'"),
        ("cross_entropy", normal(4, 1, 5, 5), labels(4, 5, 5, classes=2), ValueError, "two classes or more.*'bce'"),
        ("cross_entropy", normal(4, 3, 3), labels(4, 3), ValueError, r"cannot tell.*torch.nn.CrossEntropyLoss\(\)"),
        ("cross_entropy", normal(4, 3, 5), labels(4, 7), ValueError, r"targets of shape \(n, 5\) for outputs"),
        ("cross_entropy", normal(4, 3, 3), normal(4, 3, 3).softmax(1) * 0 + 1 / 3, ValueError, "cannot tell"),
        ("cross_entropy", normal(4, 3), torch.full((4,), -100), ValueError, "counts no target of these data"),
        ("nll", normal(4, 3), labels(4), ValueError, "needs log-probabilities.*end with log_softmax"),
        ("nll", normal(4, 3).softmax(1), labels(4), ValueError, "needs log-probabilities"),
        ("nll", normal(4, 3).log_softmax(1), normal(4, 3), TypeError, "needs class indices, got torch.float64"),
        ("nll", normal(4, 3, 3).log_softmax(1), labels(4, 3), ValueError, r"cannot tell.*torch.nn.NLLLoss\(\)"),
        ("bce", normal(4, 3).sigmoid(), HOT, ValueError, r"like probabilities: pass torch.nn.BCELoss\(\)"),
        ("bce", normal(4, 3), 2 * HOT, ValueError, "targets between 0 and 1, got 0..2"),
        ("bce", normal(4, 3), labels(4, 3), ValueError, "targets between 0 and 1, got 0..2"),
        ("bce", normal(4, 1), HOT[:, 0], ValueError, r"of the output's shape \(n, 1\), got \(n,\)"),
        ("l1", normal(4, 1), HOT[:, 0], ValueError, r"of the output's shape \(n, 1\), got \(n,\)"),
        ("huber", normal(4, 3), labels(4, 3), TypeError, "floating-point targets, got torch.int64"),
    ],
)
def test_targets_of_another_loss(name, output, target, error, message):
    with pytest.raises(error, match=message) as caught:
        resolve_loss(name).check(output, target)
    assert "\n" not in str(caught.value)


class Last(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.forward = function


@pytest.mark.parametrize(
    "last",
    [
        [],
        [nn.Unflatten(1, (3, 1)), nn.Flatten()],
        [nn.BatchNorm1d(3).eval()],
        [Last(lambda x: torch.cat([x[:, 1:], x[:, :1]], 1))],
        [Last(lambda x: torch.stack(x.unbind(1), 1))],
        [Last(lambda x: x[:, [2, 0, 1]])],
        [Last(lambda x: 0.9 * x / 1.1)],
        [Last(lambda x: -(-x).split([1, 2], 1)[1].repeat_interleave(torch.tensor([1, 2]), 1))],
    ],
)
def test_outputs_of_a_last_layer_are_logits_wherever_they_lie(last):
    layer = nn.Linear(4, 3)
    nn.init.zeros_(layer.weight), nn.init.constant_(layer.bias, 0.5)
    output = nn.Sequential(layer, *last)(torch.zeros(4, 4))
    sums = resolve_loss("bce").check(output, HOT).sums(output, HOT)
    expected = F.binary_cross_entropy_with_logits(output.double(), HOT.double())
    assert float(sums.exact) / sums.weight == pytest.approx(float(expected.detach()), rel=1e-6)


def test_outputs_that_are_all_zero_are_no_probabilities():
    output = torch.zeros(4, 3, requires_grad=True).clamp(-1, 1)
    sums = resolve_loss("bce").check(output, HOT).sums(output, HOT)
    assert float(sums.exact) / sums.weight == pytest.approx(math.log(2), rel=1e-7)


@pytest.mark.parametrize(
    "last",
    [
        nn.Sigmoid(),
        nn.Softmax(1),
        nn.Hardtanh(0, 1),
        Last(lambda x: torch.cat([x[:, :1].sigmoid(), x[:, 1:].sigmoid()], 1)),
        Last(lambda x: torch.cat([x[:, :1].sigmoid(), 0 * x[:, 1:]], 1)),
        Last(lambda x: 0.5 * (x.tanh() + 1)),
        Last(lambda x: x / (x.max() - x.min()) - (x / (x.max() - x.min())).min()),
    ],
)
def test_outputs_with_bounds_are_no_logits(last):
    model = nn.Sequential(nn.Linear(4, 3), last, nn.Unflatten(1, (3, 1)), nn.Flatten()).double()
    with pytest.raises(ValueError, match="like probabilities"):
        resolve_loss("bce").check(model(normal(4, 4)), HOT)


def test_one_hot_rows_are_probabilities():
    target = F.one_hot(labels(6), 3).float()
    assert resolve_loss("cross_entropy").check(normal(6, 3), target).class_dim == 1


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_first_piece_says_where_the_classes_are(name):
    output, target, _ = LAYOUTS[name]
    whole = resolve_loss("cross_entropy").check(output, target)
    assert resolve_loss("cross_entropy").check_all(output[:4], iter(target.split(4))) == whole


def test_a_piece_with_as_many_tokens_as_classes_follows_the_first():
    output, target = normal(6, 5, 3), labels(6, 5)
    loss = resolve_loss("cross_entropy").check_all(output, iter([target, labels(2, 3)]))
    assert (loss.class_dim, loss.samples) == (-1, 8)
    distributions = normal(2, 3, 3).softmax(1)  # they would be rows, were they not those of another layout
    with pytest.raises(ValueError, match="rows of probabilities that are not negative and sum to one"):
        resolve_loss("cross_entropy").check_all(output, iter([normal(6, 5, 3).softmax(2), distributions]))


@pytest.mark.parametrize(
    ("given", "output", "targets", "error", "message"),
    [
        ("bce", normal(4, 3), [torch.ones(4, 3), torch.full((2, 3), 2.0)], ValueError, "between 0 and 1, got 2..2"),
        ("mse", normal(4, 3), [normal(4, 3), labels(4, 3)], TypeError, "floating-point targets, got torch.int64"),
        ("cross_entropy", normal(4, 3), [labels(4), labels(4) + 1], ValueError, r"in 0..2 .*got 1..3"),
        ("cross_entropy", normal(4, 3), [labels(4), normal(4, 3)], TypeError, "of one kind in all batches"),
    ],
)
def test_pieces_that_do_not_fit(given, output, targets, error, message):
    with pytest.raises(error, match=message) as caught:
        resolve_loss(given).check_all(output, iter(targets))
    assert "\n" not in str(caught.value)
