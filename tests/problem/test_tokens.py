"""The losses of sequences: a mean over the tokens that count, shifted or not, however the samples are cut."""

import pytest
import torch
import torch.nn.functional as F

from lbgap.problem.loss import log_probability, resolve_loss

N, T, V = 7, 5, 4


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels(*shape, seed=1, ignored=True):
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(0, V, shape, generator=generator)
    if ignored:
        drawn = drawn.where(torch.rand(shape, generator=generator) < 0.6, -100)
        drawn[2] = -100
    return drawn


NAMES = ["causal_lm", "masked_lm", "token_classification"]
FIRST = torch.arange(T) < 1 + (torch.arange(N) > 0)[:, None]  # of the first sample one token, of the others two
CASES = {
    "some ignored": (normal(N, T, V), labels(N, T)),
    "none ignored": (normal(N, T, V), labels(N, T, ignored=False)),
    "as many tokens as classes": (normal(N, V, V), labels(N, V)),
    "two tokens": (normal(N, 2, V), labels(N, 2)),
    "the first tokens": (normal(N, T, V), labels(N, T).where(FIRST, -100)),
    "int32": (normal(N, T, V), labels(N, T).int()),
    "bytes": (normal(N, T, V), labels(N, T, ignored=False).to(torch.uint8)),
}


def on_all(name, output, target):
    """Logits and labels that belong together, in plain PyTorch."""
    target = target.long()
    if name == "causal_lm":
        output, target = output[:, :-1], target[:, 1:]
    return output.reshape(-1, V), target.reshape(-1)


@pytest.mark.parametrize("size", [1, 3, N])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_sums_over_weights_are_the_mean_over_all_tokens(name, case, size):
    output, target = CASES[case]
    leaf = output.clone().requires_grad_()
    expected = F.cross_entropy(*on_all(name, leaf, target))
    (gradient,) = torch.autograd.grad(expected, leaf)
    loss = resolve_loss(name).check(output, target)
    pieces = [loss.sums(*pair) for pair in zip(leaf.split(size), target.split(size), strict=True)]
    weight = sum(piece.weight for piece in pieces)
    assert weight == loss.weight(target) == int((on_all(name, output, target)[1] != -100).sum())
    assert float(sum(piece.exact for piece in pieces)) / weight == pytest.approx(float(expected.detach()), rel=1e-13)
    (found,) = torch.autograd.grad(sum(piece.total for piece in pieces) / weight, leaf)
    torch.testing.assert_close(found, gradient, rtol=1e-12, atol=1e-16)
    torch.testing.assert_close(loss.mean(leaf, target), expected, rtol=1e-13, atol=0)
    many = loss.totals(torch.stack([output, 2 * output]), target)
    each = [float(loss.sums(one, target).exact) for one in (output, 2 * output)]
    assert many.tolist() == pytest.approx(each, rel=1e-13)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_answers_are_those_of_tokens_that_count(name, case):
    output, target = CASES[case]
    loss = resolve_loss(name).check(output, target)
    logits, wanted = on_all(name, output, target)
    counts = wanted != -100
    right = (logits.argmax(1) == wanted)[counts].sum()
    assert loss.classes(output, target) == V
    assert loss.counted(target) == int(counts.sum())
    assert float(loss.correct(output, target)) == int(right)
    assert float(loss.correct(torch.stack([output, -output]), target)[0]) == int(right)
    assert loss.counting(target).tolist() == counts.view(N, -1).any(1).nonzero().flatten().tolist()
    assert resolve_loss(name).counting(target, 2).tolist() == loss.counting(target).tolist()[:2]


@pytest.mark.parametrize("name", NAMES)
def test_what_it_is_known_to_be(name):
    output, target = CASES["some ignored"]
    loss = resolve_loss(name)
    assert (loss.name, loss.given, loss.facts()) == (name, name, {"loss": name})
    assert not loss.raw
    fitted, complete = loss.check(output, target), loss.check(*CASES["none ignored"])
    assert fitted.separable
    assert fitted.classification
    assert (fitted.even, complete.even, loss.even) == (False, True, False)
    assert not complete.by_class(target)
    assert fitted.soft_targets(output, target) is None
    assert fitted.quadratic(output) is None
    assert fitted.for_model(torch.nn.Linear(1, 1)) is fitted
    mean = log_probability(fitted, 2).mean(output, target)
    torch.testing.assert_close(mean, output.log_softmax(2)[..., 2].mean())


@pytest.mark.parametrize("name", NAMES)
def test_pieces_that_are_padded_each_for_itself(name):
    output, target = normal(3, T, V), labels(3, T, ignored=False)
    pieces = [target, labels(4, 8, seed=3, ignored=False), labels(2, 1, ignored=False)]
    loss = resolve_loss(name).check_all(output, iter(pieces))
    shift = name == "causal_lm"
    weights = [3 * (T - shift), 4 * (8 - shift), 2 * (1 - shift)]
    assert [loss.weight(piece) for piece in pieces] == weights
    assert not loss.even
    assert len(loss.counting(pieces[2])) == (0 if shift else 2)
    sums = loss.sums(normal(2, 1, V), pieces[2])
    assert (sums.weight, float(sums.exact) == 0) == (weights[2], shift)
    with pytest.raises(ValueError, match=r"in 0\.\.3 .*got .*\.\.7"):
        resolve_loss(name).check_all(output, iter([target, labels(9, 8, ignored=False) + 4]))
    joined = resolve_loss(name).check(output, target).joined(resolve_loss(name).check(output[:2], target[:2]))
    assert joined == resolve_loss(name).check_all(output, iter([target, target[:2]]))


def test_pieces_of_which_nothing_counts():
    output, none = normal(3, T, V), torch.full((3, T), -100)
    first_only = none.clone()
    first_only[:, 0] = 1  # which no logits stand before
    loss = resolve_loss("causal_lm")
    loss.check_all(output, iter([none, labels(3, T)]))
    assert resolve_loss("masked_lm").check(output, first_only).weight(first_only) == 3
    with pytest.raises(ValueError, match="'causal_lm' counts no target of these data: all of them are ignored"):
        loss.check_all(output, iter([none, first_only]))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("output", "target", "error", "message"),
    [
        (normal(N, T, V), labels(N, T + 1), ValueError, r"needs labels of shape \(n, 5\) for logits .*, got \(7, 6\)"),
        (
            normal(N, T, V),
            labels(N, T)[:, 0],
            ValueError,
            r"needs labels of shape \(n, 5\) .*, got \(7,\): pass one cl",
        ),
        (normal(N, T, V), normal(N, T), TypeError, r"needs class indices, got torch.float64: use \.long\(\)"),
        (
            normal(N, T, V),
            labels(N, T, ignored=False) + 2,
            ValueError,
            r"in 0\.\.3 \(the model has 4 outputs\), got 2\.\.5",
        ),
        (normal(N, T, V), labels(N, T).clamp(-1), ValueError, r"got -1\.\.3"),
        (
            normal(N, V),
            labels(N, T),
            ValueError,
            r"needs logits \(batch, tokens, classes\), got shape \(7, 4\): pass los",
        ),
        (normal(N, T, 1), labels(N, T), ValueError, "two classes or more"),
        (normal(N, T, V), labels(N, T) * 0 - 100, ValueError, "counts no target of these data"),
        ((normal(N, T, V),), labels(N, T), TypeError, "must return one tensor, got tuple"),
    ],
)
def test_what_does_not_fit(name, output, target, error, message):
    with pytest.raises(error, match=message) as caught:
        resolve_loss(name).check(output, target)
    assert "\n" not in str(caught.value)


def test_a_first_piece_of_one_token_where_others_are_longer():
    loss = resolve_loss("causal_lm").check_all(normal(N, 1, V), iter([labels(N, 1, ignored=False), labels(N, T)]))
    output, target = normal(N, T, V), labels(N, T)
    expected = F.cross_entropy(output[:, :-1].flatten(0, 1), target[:, 1:].flatten(), reduction="sum")
    assert float(loss.sums(output, target).exact) == pytest.approx(float(expected), rel=1e-12)
    assert loss.weight(labels(N, 1)) == 0


def test_one_token_has_none_before_it():
    output, target = normal(N, 1, V), labels(N, 1, ignored=False)
    with pytest.raises(
        ValueError, match=r"'causal_lm' needs two tokens or more, .*got logits of shape \(7, 1, 4\): pass"
    ):
        resolve_loss("causal_lm").check(output, target)
    assert resolve_loss("masked_lm").check(output, target).weight(target) == N
