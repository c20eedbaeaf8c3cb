"""The losses: sums that average exactly, and targets that would be misread refused."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lbgap import Objective
from lbgap.problem.loss import resolve_loss


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels(*shape, classes=3):
    return torch.randint(0, classes, shape, generator=torch.Generator().manual_seed(9))


WEIGHT = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
CASES = {
    "classes": ("cross_entropy", normal(7, 3), labels(7), F.cross_entropy),
    "probabilities": ("cross_entropy", normal(7, 3), normal(7, 3, seed=1).softmax(1), F.cross_entropy),
    "pixels": ("cross_entropy", normal(7, 3, 2, 5), labels(7, 2, 5), F.cross_entropy),
    "mse": ("mse", normal(7, 4), normal(7, 4, seed=1), F.mse_loss),
    "mse of scalars": ("mse", normal(7), normal(7, seed=1), F.mse_loss),
    "mse of images": ("mse", normal(7, 2, 3, 3), normal(7, 2, 3, 3, seed=1), F.mse_loss),
    "callable": (F.l1_loss, normal(7, 4), normal(7, 4, seed=1), F.l1_loss),
    "module": (nn.HuberLoss(), normal(7, 4), normal(7, 4, seed=1), F.huber_loss),
    "weighted": (
        nn.CrossEntropyLoss(WEIGHT),
        normal(7, 3),
        labels(7),
        functools.partial(F.cross_entropy, weight=WEIGHT),
    ),
    "shape (1,)": (lambda output, target: F.mse_loss(output, target)[None], normal(7, 4), normal(7, 4), F.mse_loss),
}


@pytest.mark.parametrize("name", CASES)
def test_total_is_the_mean_times_the_weight(name):
    given, output, target, mean = CASES[name]
    loss = resolve_loss(given).check(output, target)
    sums = loss.sums(output.clone().requires_grad_(), target)
    weight = 70 if name == "pixels" else float(WEIGHT[target].sum()) if name == "weighted" else 7
    assert sums.weight == loss.weight(target) == weight
    assert sums.total.requires_grad
    assert not sums.exact.requires_grad
    assert (sums.total.dim(), sums.exact.dim(), sums.exact.dtype) == (0, 0, torch.float64)
    assert float(sums.total.detach()) == pytest.approx(weight * float(mean(output, target)), rel=1e-14)
    assert float(sums.exact) == pytest.approx(weight * float(mean(output, target)), rel=1e-14)


@pytest.mark.parametrize("name", CASES)
def test_the_mean_and_its_gradient_are_those_of_the_total(name):
    given, output, target, _ = CASES[name]
    loss, leaf = resolve_loss(given), output.clone().requires_grad_()
    mean, sums = loss.mean(leaf, target), loss.sums(leaf, target)
    assert mean.dim() == 0
    assert float(mean.detach()) == pytest.approx(float(sums.total.detach()) / sums.weight, rel=1e-14)
    ours, theirs = (torch.autograd.grad(value, leaf)[0] for value in (mean, sums.total / sums.weight))
    torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=1e-16)


def test_the_value_is_summed_in_float64():
    loss, output = resolve_loss("mse"), torch.tensor([[4096.0], *[[0.01]] * 1000])
    sums = loss.sums(output, torch.zeros_like(output))
    assert sums.total.dtype == torch.float32
    assert float(sums.exact) == float(output.square().double().sum())


def squared(power, output, target):
    return (output - target).pow(power).mean()


def test_names():
    assert resolve_loss("cross_entropy").name == "cross_entropy"
    assert resolve_loss("mse").name == "mse"
    assert resolve_loss(F.l1_loss).name == "l1_loss"
    assert resolve_loss(nn.HuberLoss()).name == "HuberLoss"
    assert resolve_loss(functools.partial(F.huber_loss, delta=2)).name == "huber_loss"
    assert resolve_loss(functools.partial(squared, 2)).name == "partial"
    assert all(resolve_loss(name).given == name for name in ("cross_entropy", "mse", "bce", "nll", "l1", "huber"))
    assert resolve_loss(F.mse_loss).given is F.mse_loss


@pytest.mark.parametrize(
    ("loss", "error"),
    [("crossentropy", ValueError), ("", ValueError), (None, TypeError), (3, TypeError), (["mse"], TypeError)],
)
def test_unknown_losses(loss, error):
    with pytest.raises(error, match=r"^loss must be 'cross_entropy', .*'huber', .*'model' or a callable, got .*$"):
        resolve_loss(loss)


LOGITS = normal(4, 3)


@pytest.mark.parametrize(
    ("loss", "output", "target", "error", "message"),
    [
        (
            "cross_entropy",
            LOGITS,
            torch.tensor([0, 1, 2, 3]),
            ValueError,
            r"in 0..2 \(the model has 3 outputs\), got 0..3",
        ),
        ("cross_entropy", LOGITS, torch.tensor([0, 1, -1, 2]), ValueError, "got -1..2: renumber the classes"),
        (
            "cross_entropy",
            LOGITS,
            torch.zeros(4, 1).long(),
            ValueError,
            r"of shape \(n,\) for outputs \(4, 3\), got \(4, 1\)",
        ),
        (
            "cross_entropy",
            LOGITS,
            torch.zeros(4),
            ValueError,
            r"shape \(n, 3\), got \(n,\) torch.float32: pass class ind",
        ),
        ("cross_entropy", LOGITS, torch.zeros(4, 2), ValueError, r"shape \(n, 3\), got \(n, 2\)"),
        (
            "cross_entropy",
            LOGITS,
            torch.zeros(4, 3, dtype=torch.complex64),
            TypeError,
            "floating-point targets, got torch.co",
        ),
        (
            "cross_entropy",
            LOGITS[:, 0],
            torch.zeros(4).long(),
            ValueError,
            r"with two classes or more, got shape \(4,\)",
        ),
        # One class has the loss 0 whatever the weights: a sharpness of 0, and a wrong one.
        ("cross_entropy", LOGITS[:, :1], torch.zeros(4).long(), ValueError, r"two classes or more, got shape \(4, 1\)"),
        # torch would take the batch for the classes of one sample.
        ("cross_entropy", LOGITS[:, 0], torch.zeros(4), ValueError, r"two classes or more, got shape \(4,\)"),
        # torch would broadcast to (4, 4).
        ("mse", LOGITS[:, :1], torch.zeros(4), ValueError, r"needs targets of the output's shape \(n, 1\), got \(n,\)"),
        (
            "mse",
            LOGITS,
            torch.zeros(4, 3).long(),
            TypeError,
            r"needs floating-point targets, got torch.int64: use .float",
        ),
        (
            "mse",
            torch.tensor(1.0),
            torch.zeros(4),
            ValueError,
            "must return one output per sample.*got a single number",
        ),
        ("mse", (LOGITS, LOGITS), torch.zeros(4, 3), TypeError, "the model must return one tensor, got tuple: wrap it"),
        (F.l1_loss, {"logits": LOGITS}, torch.zeros(4, 3), TypeError, "must return one tensor, got dict"),
    ],
)
def test_targets_that_do_not_fit(loss, output, target, error, message):
    with pytest.raises(error, match=message) as caught:
        resolve_loss(loss).check(output, target)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (lambda output, target: 1.0, TypeError, r"must return a tensor \(the mean over the batch\), got float"),
        (nn.CrossEntropyLoss, TypeError, "got the class CrossEntropyLoss: pass an instance of it"),
        (lambda output, target: None, TypeError, "got NoneType"),
        (
            lambda output, target: output.T,
            ValueError,
            r"must be a scalar .*got shape \(3, 4\) for 4 samples: reduce it",
        ),
        (lambda output, target: output.argmax(1), TypeError, "floating-point numbers, got torch.int64"),
        (lambda output, target: (1.0, 4), TypeError, r"a pair \(sum, weight\), got \(float, int\)"),
        (lambda output, target: (output.sum(), "4"), ValueError, "two numbers, got a sum of .* and a str"),
        (lambda output, target: (output, 4), ValueError, r"got a sum of shape \(4, 3\) and a int: add them up"),
    ],
)
def test_callables_that_return_something_else(loss, error, message):
    with pytest.raises(error, match=message) as caught:
        resolve_loss(loss).sums(LOGITS, torch.zeros(4, 3, dtype=torch.float64))
    assert "\n" not in str(caught.value)


def penalised(output, target):
    return F.mse_loss(output, target) + 0.1 * torch.ones(2, requires_grad=True).sum()


def noisy(output, target):
    return F.mse_loss(output, target) * (1 + 0.5 * torch.rand(()))


def contrastive(output, target):
    return -(output @ output.T).logsumexp(1).mean()


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda output, target: F.mse_loss(output, target, reduction="sum"), "must be the mean over .*, not its sum"),
        (contrastive, "is no mean over samples: .*coupled=True"),
        (noisy, "must be nothing random in it"),
        (penalised, "depends on trainable tensors besides the model's output.*detach"),
    ],
)
def test_callables_that_are_no_mean(loss, message):
    data = normal(40, 5), normal(40, 3, seed=1)
    model = torch.nn.Linear(5, 3)
    with torch.random.fork_rng([]), pytest.raises(ValueError, match=message) as caught:
        Objective(model, data, loss=loss)
    assert "\n" not in str(caught.value)
