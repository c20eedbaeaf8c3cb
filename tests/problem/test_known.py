"""The losses of torch: sums over weights are what torch says of all samples at once, however they are cut."""

import dataclasses
import functools
import itertools
import json
import warnings
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lbgap.problem.loss import resolve_loss
from lbgap.problem.own import Own

N, C = 23, 4


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels(*shape, seed=1, ignored=0):
    drawn = torch.randint(0, C, shape, generator=torch.Generator().manual_seed(seed))
    drawn[:ignored] = -100  # whole micro-batches of them
    return drawn


WEIGHT = torch.tensor([0.5, 0.0, 3.0, 1.25])
LOGITS, PIXELS = normal(N, C), normal(N, C, 3, 2)
HOT = (normal(N, C, seed=2) < 0).double()
VALUES, SIGNS = normal(N, C, seed=3), 2 * HOT - 1
PROBABILITIES, PIXEL_PROBABILITIES = normal(N, C, seed=4).softmax(1), normal(N, C, 3, 2, seed=4).softmax(1)
MEMBERS = torch.tensor([[1, 3, -1, 0], [2, -1, 0, 0]]).repeat(N, 1)[:N]


def cases():
    for reduction, smoothing, weight in itertools.product(("mean", "sum", "none"), (0.0, 0.2), (None, WEIGHT)):
        loss = nn.CrossEntropyLoss(weight, label_smoothing=smoothing, reduction=reduction)
        kind = f"{reduction}, {smoothing}, {'weights' if weight is not None else 'plain'}"
        yield f"cross-entropy, {kind}", loss, LOGITS, labels(N)
        yield f"ignored, {kind}", loss, LOGITS, labels(N, ignored=9)
        yield f"probabilities, {kind}", loss, LOGITS, PROBABILITIES
        yield f"pixels, {kind}", loss, PIXELS, labels(N, 3, 2, ignored=9)
        yield f"pixel probabilities, {kind}", loss, PIXELS, PIXEL_PROBABILITIES
    for reduction in ("mean", "sum", "none"):
        void = labels(N, 3, 2).where(normal(N, 3, 2) < 0.5, 255)
        yield f"void, {reduction}", nn.CrossEntropyLoss(ignore_index=255, reduction=reduction), PIXELS, void
        yield f"a class, {reduction}", nn.CrossEntropyLoss(ignore_index=2, reduction=reduction), LOGITS, labels(N)
        yield f"nll, {reduction}", nn.NLLLoss(WEIGHT, reduction=reduction), LOGITS.log_softmax(1), labels(N, ignored=9)
        yield f"bce, {reduction}", nn.BCELoss(WEIGHT, reduction=reduction), LOGITS.sigmoid(), HOT
        logits = nn.BCEWithLogitsLoss(WEIGHT[None], pos_weight=2 * WEIGHT, reduction=reduction)
        yield f"logits, {reduction}", logits, LOGITS, HOT
        yield f"booleans, {reduction}", nn.BCEWithLogitsLoss(reduction=reduction), LOGITS, HOT.bool()
        yield f"whole numbers, {reduction}", nn.BCELoss(reduction=reduction), LOGITS.sigmoid(), HOT.long()
        yield f"mse, {reduction}", nn.MSELoss(reduction=reduction), PIXELS, normal(N, C, 3, 2, seed=5)
        yield f"mse of numbers, {reduction}", nn.MSELoss(reduction=reduction), LOGITS[:, 0], VALUES[:, 0]
        yield f"l1, {reduction}", nn.L1Loss(reduction=reduction), LOGITS, VALUES
        yield f"smooth l1, {reduction}", nn.SmoothL1Loss(beta=0.3, reduction=reduction), LOGITS, VALUES
        yield f"huber, {reduction}", nn.HuberLoss(delta=0.3, reduction=reduction), LOGITS, VALUES
        yield f"poisson, {reduction}", nn.PoissonNLLLoss(full=True, reduction=reduction), LOGITS, 3 * HOT
        rate = nn.PoissonNLLLoss(log_input=False, eps=0.1, reduction=reduction)
        yield f"poisson of a rate, {reduction}", rate, LOGITS.exp(), HOT
        yield f"soft margin, {reduction}", nn.SoftMarginLoss(reduction=reduction), LOGITS, SIGNS
        yield f"hinge, {reduction}", nn.HingeEmbeddingLoss(margin=0.5, reduction=reduction), LOGITS, SIGNS
        margin = nn.MultiMarginLoss(p=2, margin=0.7, weight=WEIGHT.double(), reduction=reduction)
        yield f"multi margin, {reduction}", margin, LOGITS, labels(N)
        yield f"multi label margin, {reduction}", nn.MultiLabelMarginLoss(reduction=reduction), LOGITS, MEMBERS
        yield f"multi label, {reduction}", nn.MultiLabelSoftMarginLoss(WEIGHT, reduction=reduction), LOGITS, HOT
    for reduction, log in itertools.product(("mean", "batchmean", "sum", "none"), (False, True)):
        target = PROBABILITIES.log() if log else PROBABILITIES
        yield (
            f"kl, {reduction}, {log}",
            nn.KLDivLoss(reduction=reduction, log_target=log),
            LOGITS.log_softmax(1),
            target,
        )


CASES = {name: case for name, *case in cases()}


def on_all(loss, output, target):
    """The value by torch, and its gradient in the outputs."""
    loss = loss.double() if isinstance(loss, nn.Module) else loss
    target = target.to(output.dtype) if target.dtype == torch.bool or isinstance(loss, nn.BCELoss) else target
    leaf = output.clone().requires_grad_()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "reduction: 'mean' divides", UserWarning)
        value = loss(leaf, target)
    value = value.mean()
    return value.detach(), torch.autograd.grad(value, leaf)[0]


@pytest.mark.parametrize("size", [1, 7, N])
@pytest.mark.parametrize("name", CASES)
def test_sums_over_weights_are_the_value_on_all_samples(name, size):
    given, output, target = CASES[name]
    value, gradient = on_all(given, output, target)
    loss, leaf = resolve_loss(given).check(output, target), output.clone().requires_grad_()
    assert loss.separable
    pieces = [loss.sums(*pair) for pair in zip(leaf.split(size), target.split(size), strict=True)]
    weight = sum(piece.weight for piece in pieces)
    assert weight == pytest.approx(loss.weight(target), rel=1e-14)
    assert float(sum(piece.exact for piece in pieces) / weight) == pytest.approx(float(value), rel=1e-12, abs=1e-12)
    (found,) = torch.autograd.grad(sum(piece.total for piece in pieces) / weight, leaf)
    torch.testing.assert_close(found, gradient, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", CASES)
def test_what_a_training_differentiates_is_what_torch_returns(name):
    given, output, target = CASES[name]
    value, gradient = on_all(given, output, target)
    leaf = output.clone().requires_grad_()
    mean = resolve_loss(given).check(output, target).mean(leaf, target)
    torch.testing.assert_close(mean.detach(), value, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(torch.autograd.grad(mean, leaf)[0], gradient, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", CASES)
def test_many_outputs_at_once(name):
    given, output, target = CASES[name]
    loss, outputs = resolve_loss(given).check(output, target), torch.stack([output, 0.7 * output, output * 0.9])
    expected = torch.stack([loss.sums(one, target).exact for one in outputs])
    torch.testing.assert_close(loss.totals(outputs, target), expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(
    ("function", "module", "output", "target"),
    [
        (functools.partial(F.cross_entropy, weight=WEIGHT), nn.CrossEntropyLoss(WEIGHT), LOGITS, labels(N)),
        (F.cross_entropy, nn.CrossEntropyLoss(), LOGITS, labels(N, ignored=3)),
        (functools.partial(F.nll_loss, ignore_index=2), nn.NLLLoss(ignore_index=2), LOGITS, labels(N)),
        (F.mse_loss, nn.MSELoss(), LOGITS, VALUES),
        (functools.partial(F.mse_loss, reduction="sum"), nn.MSELoss(reduction="sum"), LOGITS, VALUES),
        (functools.partial(F.mse_loss, size_average=False), nn.MSELoss(reduction="sum"), LOGITS, VALUES),
        (functools.partial(F.huber_loss, delta=0.3), nn.HuberLoss(delta=0.3), LOGITS, VALUES),
        (functools.partial(F.l1_loss, weight=None), nn.L1Loss(), LOGITS, VALUES),
        (
            functools.partial(F.kl_div, reduction="batchmean"),
            nn.KLDivLoss(reduction="batchmean"),
            LOGITS,
            PROBABILITIES,
        ),
    ],
)
def test_functions_are_their_modules(function, module, output, target):
    one, other = (resolve_loss(given).check(output, target) for given in (function, module))
    assert one.separable
    assert one.weight(target) == other.weight(target)
    assert torch.equal(one.sums(output, target).total, other.sums(output, target).total)


class Halved(nn.CrossEntropyLoss):
    def forward(self, output, target):
        return super().forward(output, target) / 2


class Renamed(nn.CrossEntropyLoss):
    pass


def hooked():
    loss = nn.MSELoss()
    loss.register_forward_hook(lambda module, inputs, output: 2 * output)
    return loss


def replaced():
    loss = nn.MSELoss()
    loss.forward = lambda output, target: (output - target).abs().mean()
    return loss


@pytest.mark.parametrize(
    "given",
    [
        Halved(),
        hooked(),
        replaced(),
        functools.partial(F.mse_loss, LOGITS),
        functools.partial(F.mse_loss, unknown=1),
        nn.GaussianNLLLoss(),
        nn.MSELoss(reduction="median"),
    ],
)
def test_what_is_not_what_torch_computes_is_a_callable(given):
    assert isinstance(resolve_loss(given), Own)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_a_compiled_module_is_what_was_compiled():
    given = torch.compile(nn.CrossEntropyLoss(WEIGHT))
    loss = resolve_loss(given)
    assert (loss.separable, loss.name, loss.given) == (True, "CrossEntropyLoss", given)


def test_a_subclass_that_keeps_forward_is_taken_apart():
    loss = resolve_loss(Renamed(WEIGHT))
    assert loss.separable
    assert loss.name == "Renamed"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_follow_the_outputs_and_the_module_stays(dtype):
    module = nn.CrossEntropyLoss(WEIGHT.clone())
    loss = resolve_loss(module).check(LOGITS, labels(N))
    total = loss.sums(LOGITS.to(dtype), labels(N)).total
    assert total.dtype == dtype
    assert module.weight.dtype == torch.float32
    module.weight.zero_()  # the user's own, from now on another loss
    assert torch.equal(loss.sums(LOGITS.to(dtype), labels(N)).total, total)


@pytest.mark.parametrize(
    ("given", "output", "target", "error", "message"),
    [
        (nn.MSELoss(), LOGITS[:, :1], VALUES[:, 0], ValueError, r"'MSELoss' .*shape \(n, 1\), got \(n,\)"),
        (F.mse_loss, LOGITS[:, 0], VALUES[:, :1], ValueError, r"'mse_loss' .*shape \(n,\), got \(n, 1\)"),
        (nn.L1Loss(), LOGITS, VALUES[:, :1], ValueError, r"shape \(n, 4\), got \(n, 1\)"),
        (nn.SoftMarginLoss(), LOGITS[:, :1], VALUES[:, 0], ValueError, r"shape \(n, 1\), got \(n,\)"),
        (nn.HingeEmbeddingLoss(), LOGITS[:, :1], VALUES[:, 0], ValueError, r"shape \(n, 1\), got \(n,\)"),
        (nn.PoissonNLLLoss(), LOGITS[:, :1], VALUES[:, 0], ValueError, r"shape \(n, 1\), got \(n,\)"),
        (nn.KLDivLoss(reduction="batchmean"), LOGITS, VALUES[:, 0], ValueError, r"shape \(n, 4\), got \(n,\)"),
        (nn.BCEWithLogitsLoss(torch.ones(N, C)), LOGITS, HOT, ValueError, r"weight \(23, 4\) .*dimension of the batch"),
        (nn.BCELoss(torch.ones(N, 1)), LOGITS, HOT, ValueError, "dimension of the batch.*micro-batches cut"),
        (nn.BCELoss(torch.ones(3)), LOGITS, HOT, ValueError, r"weight \(3,\) .*does not fit outputs \(n, 4\)"),
        (nn.BCEWithLogitsLoss(pos_weight=torch.ones(N, C)), LOGITS, HOT, ValueError, "the pos_weight .*of the batch"),
        (functools.partial(F.mse_loss, weight=torch.ones(N, C)), LOGITS, VALUES, ValueError, "dimension of the batch"),
        (functools.partial(F.mse_loss, weight=torch.ones(C)), LOGITS, VALUES, ValueError, "dimension of the batch"),
        (nn.CrossEntropyLoss(torch.ones(3)), LOGITS, labels(N), ValueError, r"one weight a class, \(4,\), got \(3,\)"),
        (nn.CrossEntropyLoss(), LOGITS, labels(N) - 1, ValueError, r"in 0..3 .*got -1..2"),
        (nn.CrossEntropyLoss(), LOGITS, labels(N)[:, None], ValueError, r"of shape \(n,\) for outputs"),
        (nn.CrossEntropyLoss(), LOGITS[:, 0], labels(N), ValueError, "two classes or more"),
        (nn.CrossEntropyLoss(), LOGITS, labels(N, ignored=N), ValueError, "counts no target of these data"),
        (nn.CrossEntropyLoss(torch.tensor([1.0, 0, 1, 1])), LOGITS, 0 * labels(N) + 1, ValueError, "counts no target"),
        (nn.NLLLoss(), LOGITS, VALUES, TypeError, "needs class indices, got torch.float64"),
        (nn.MultiLabelSoftMarginLoss(), LOGITS[:, 0], HOT[:, 0], ValueError, r"needs outputs \(batch, classes\)"),
    ],
)
def test_what_does_not_fit(given, output, target, error, message):
    with pytest.raises(error, match=message) as caught:
        resolve_loss(given).check(output, target)
    assert "\n" not in str(caught.value)


def test_trainable_weights_are_refused():
    weight = WEIGHT.clone().requires_grad_()
    for given in (nn.CrossEntropyLoss(weight), functools.partial(F.cross_entropy, weight=weight)):
        with pytest.raises(ValueError, match="has a trainable tensor, its 'weight', which would not move"):
            resolve_loss(given)


def test_errors_of_torch_come_in_one_line_that_names_the_loss():
    loss = resolve_loss(nn.BCELoss()).check(LOGITS, HOT)
    with pytest.raises(
        RuntimeError, match=r"^the loss 'BCELoss' does not accept outputs \(23, 4\) .*between 0 and 1"
    ) as e:
        loss.sums(LOGITS, HOT)
    assert "\n" not in str(e.value)
    assert isinstance(e.value.__cause__, RuntimeError)


SOFT = [name for name in CASES if LOGITS is CASES[name][1] and isinstance(CASES[name][0], nn.CrossEntropyLoss)]


@pytest.mark.parametrize("name", SOFT)
def test_soft_targets_give_the_sum(name):
    given, output, target = CASES[name]
    loss = resolve_loss(given).check(output, target)
    soft = loss.soft_targets(output, target)
    torch.testing.assert_close(-(soft * output.log_softmax(1)).sum(), loss.sums(output, target).total)


@pytest.mark.parametrize(
    ("given", "target", "plain"),
    [
        ("cross_entropy", labels(N), True),
        (nn.CrossEntropyLoss(), labels(N), True),
        (F.cross_entropy, labels(N), True),
        ("cross_entropy", labels(N, ignored=1), False),
        (nn.CrossEntropyLoss(WEIGHT), labels(N), False),
        (nn.CrossEntropyLoss(label_smoothing=0.1), labels(N), False),
        (nn.CrossEntropyLoss(ignore_index=3), labels(N), False),
        ("cross_entropy", PROBABILITIES, False),
        ("mse", VALUES, False),
        (lambda output, target: F.cross_entropy(output, target), labels(N), False),
    ],
)
def test_what_compiled_ops_may_sum(given, target, plain):
    loss = resolve_loss(given).check(LOGITS, target)
    assert loss.by_class(target) == plain
    assert not resolve_loss(given).by_class(target)  # not before it is known that all targets count


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("given", ["cross_entropy", nn.CrossEntropyLoss(), nn.NLLLoss(), nn.CrossEntropyLoss(WEIGHT)])
def test_accuracies_count_what_the_weight_counts(given, many):
    output, target = LOGITS.log_softmax(1), labels(N, ignored=9)
    loss = resolve_loss(given).check(output, target)
    counts = target >= 0
    counts &= (target != 1) if isinstance(given, nn.CrossEntropyLoss) and given.weight is not None else True
    right = (output.argmax(1) == target)[counts].sum()
    assert loss.classes(output, target) == C
    assert loss.counted(target) == int(counts.sum())
    assert torch.equal(loss.counting(target), counts.nonzero()[:, 0])
    if many:
        found = loss.correct(torch.stack([output, -output]), target)
        assert found.tolist() == [int(right), int(((-output).argmax(1) == target)[counts].sum())]
    else:
        assert float(loss.correct(output, target)) == int(right)


def test_an_output_that_is_nan_is_no_answer():
    output = torch.tensor([[0.0, 1.0], [torch.nan, 1.0], [1.0, torch.nan]])
    target = torch.tensor([1, 0, 1])
    assert float(resolve_loss("cross_entropy").check(output, target).correct(output, target)) == 1


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ("cross_entropy", None),
        (nn.CrossEntropyLoss(), None),
        (F.mse_loss, None),
        (nn.PoissonNLLLoss(), None),
        (nn.CrossEntropyLoss(WEIGHT[:2], ignore_index=255), {"ignore_index": 255, "weight": [0.5, 0.0]}),
        (functools.partial(F.huber_loss, delta=0.5, reduction="sum"), {"delta": 0.5, "reduction": "sum"}),
        (nn.KLDivLoss(reduction="batchmean", log_target=True), {"log_target": True, "reduction": "batchmean"}),
    ],
)
def test_results_say_what_was_changed(given, options):
    loss = resolve_loss(given)
    facts = loss.facts()
    assert json.loads(json.dumps(facts)) == facts
    assert facts == {"loss": loss.name} | ({} if options is None else {"loss_options": options})


# Targets that come piece by piece.


@pytest.mark.parametrize("name", CASES)
def test_pieces_fit_as_all_targets_do(name):
    given, output, target = CASES[name]
    loss, whole = resolve_loss(given), resolve_loss(given).check(output, target)
    fitted = loss.check_all(output[:5], iter(target.split(5)))
    fits = "samples", "complete", "length", "class_dim"
    assert [getattr(fitted, name) for name in fits] == [getattr(whole, name) for name in fits]
    assert fitted.even == whole.even
    assert sum(fitted.weight(piece) for piece in target.split(5)) == pytest.approx(whole.weight(target), rel=1e-14)


PADDED = normal(3, C, 6), [labels(3, 6, ignored=1), labels(4, 2, seed=2), labels(2, 9, seed=3)]


def test_pieces_that_are_padded_each_for_itself():
    output, targets = PADDED
    loss = resolve_loss(nn.CrossEntropyLoss()).check_all(output, iter(targets))
    assert (loss.samples, loss.complete, loss.length) == (9, False, 0)
    assert sum(map(loss.weight, targets)) == 12 + 8 + 18
    whole = resolve_loss(nn.CrossEntropyLoss()).check_all(output, iter([targets[0].abs() % C, *targets[1:]]))
    assert (whole.samples, whole.complete) == (9, True)
    assert not whole.even  # the samples of one batch have more targets than those of another
    assert resolve_loss(nn.CrossEntropyLoss()).check(output, targets[0].abs() % C).even


def test_a_piece_of_which_nothing_counts():
    output, (first, *others) = PADDED
    none = torch.full((3, 6), -100)
    loss = resolve_loss(nn.CrossEntropyLoss())
    assert loss.check_all(output, iter([none, first])).weight(first) == 12
    assert loss.check_all(output, iter([first, none, *others])).samples == 12
    with pytest.raises(ValueError, match="counts no target of these data: all of them are ignored"):
        loss.check_all(output, iter([none, none[:1]]))


@pytest.mark.parametrize(
    ("given", "output", "targets", "error", "message"),
    [
        (nn.CrossEntropyLoss(), PADDED[0], [PADDED[1][0], labels(4, 2) + 2], ValueError, r"in 0..3 .*got 2..5"),
        (
            nn.CrossEntropyLoss(),
            LOGITS,
            [labels(N), PROBABILITIES],
            TypeError,
            "needs targets of one kind in all batch",
        ),
        (nn.NLLLoss(), LOGITS, [labels(N), labels(N) - 1], ValueError, r"in 0..3 .*got -1..2"),
        (nn.MSELoss(), LOGITS, [VALUES[:, :1], VALUES], ValueError, r"shape \(n, 4\), got \(n, 1\)"),
    ],
)
def test_pieces_that_do_not_fit(given, output, targets, error, message):
    with pytest.raises(error, match=message) as caught:
        resolve_loss(given).check_all(output, iter(targets))
    assert "\n" not in str(caught.value)


def test_a_piece_is_not_kept_while_the_next_is_read():
    alive = []

    def pieces():
        for number in range(4):
            piece = labels(5, seed=number)
            alive.append(weakref.ref(piece))
            yield piece
            del piece
            assert alive[-1]() is None

    resolve_loss(nn.CrossEntropyLoss()).check_all(LOGITS, pieces())
    assert len(alive) == 4


def test_losses_of_other_layouts_are_not_joined():
    loss = resolve_loss(nn.CrossEntropyLoss()).check(LOGITS, labels(N))
    assert loss.joined(loss).samples == 2 * N
    with pytest.raises(ValueError, match="found the classes in dimension 1 of some outputs, and -1 of others"):
        loss.joined(dataclasses.replace(loss, class_dim=-1))
