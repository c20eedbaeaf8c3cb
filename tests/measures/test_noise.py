"""The average case and the noise that a classifier stands, against closed forms, within four standard errors."""

import math

import pytest
import torch
from torch import nn

import lbgap
from lbgap.measures import pac_bayes
from lbgap.measures.draws import FEWEST

OPTIONS = {"loss": "mse", "precision": "float64"}


@pytest.mark.parametrize("antithetic", [True, False])
@pytest.mark.parametrize("adaptive", [True, False])
def test_the_mean_rise_of_a_quadratic(quadratic, adaptive, antithetic):
    model, data, x, hessian, _ = quadratic
    scale = x.abs() if adaptive else torch.ones_like(x)
    scaled = scale[:, None] * hessian * scale
    m = lbgap.average_sharpness(model, data, sigma=0.3, draws=400, adaptive=adaptive, antithetic=antithetic, **OPTIONS)
    assert abs(m.value - 0.3**2 / 2 * float(scaled.trace())) < 4 * m.standard_error
    assert m.evaluations == 1 + 400 * (2 if antithetic else 1)
    if antithetic:  # u'Hu / 2 alone, of variance sigma^4 tr(H^2) / 2; a sample of 400 knows its spread to 10 %
        spread = 0.3**2 * math.sqrt(float(scaled.square().sum()) / 2 / 400)
        assert m.standard_error == pytest.approx(spread, rel=0.4)


def test_pairs_cancel_the_first_order(quadratic):
    pairs, single = (
        lbgap.average_sharpness(*quadratic[:2], sigma=1e-3, draws=20, antithetic=each, **OPTIONS)
        for each in (True, False)
    )
    assert pairs.standard_error < single.standard_error / 100


def test_it_stops_at_the_error_asked_for(quadratic):
    model, data = quadratic[:2]
    whole = lbgap.average_sharpness(model, data, sigma=0.3, draws=200, **OPTIONS)
    error = 100 * whole.standard_error / whole.value
    assert whole.status == f"200 draws, all that were asked for: the standard error is {error:.2g} %"
    asked = 3 * whole.standard_error / whole.value
    m = lbgap.average_sharpness(model, data, sigma=0.3, draws=200, relative_error=asked, **OPTIONS)
    count = len(m.details["rises"])
    assert FEWEST <= count < 200
    assert m.standard_error <= asked * m.value
    assert m.details["rises"] == whole.details["rises"][:count]
    assert m.status.startswith(f"{count} draws: the standard error is ")
    assert m.status.endswith(f"within the {100 * asked:g} % asked for")
    never = lbgap.average_sharpness(model, data, sigma=0.3, draws=10, relative_error=1e-9, **OPTIONS)
    assert len(never.details["rises"]) == 10
    assert never.status.startswith("10 draws, the limit: the standard error is ")
    assert [each.status.name for each in (whole, m, never)] == ["complete", "converged", "limit"]


def test_noise_that_breaks_the_loss_says_so():
    model = nn.Linear(2, 2)
    with pytest.raises(FloatingPointError, match=r"under noise, in draw 1 \(try a smaller sigma\), the loss is"):
        lbgap.average_sharpness(model, (torch.eye(2), torch.tensor([0, 1])), sigma=1e38)


# PAC-Bayes.


def one_sample(weights=(1.0, 0.0)):
    """Logits are the two weights: the sample is misclassified where noise puts the second above the first."""
    model = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor(weights)[:, None])
    return model, (torch.ones(4, 1), torch.zeros(4, dtype=torch.int64))


def test_sigma_of_one_sample():
    # Wrong where 1 + sigma z < 0: with probability Phi(-1 / sigma), which is 0.1 at sigma = 1 / 1.2816.
    normal = torch.distributions.Normal(0.0, 1.0)
    exact = -1 / float(normal.icdf(torch.tensor(0.1)))
    m = lbgap.pac_bayes_sigma(*one_sample(), eps=0, draws=400, tolerance=1e-3)
    assert abs(m.value - exact) < 4 * m.standard_error
    # The error is known to sqrt(p (1 - p) / 400), the derivative of Phi(-1 / sigma) is its slope, which itself comes
    # from a secant over four tenths of sigma and 400 draws.
    slope = math.exp(float(normal.log_prob(torch.tensor(1 / exact)))) / exact**2
    assert m.standard_error == pytest.approx(math.sqrt(0.09 / 400) / slope, rel=0.5)
    assert m.details["inverse_square"] == pytest.approx(m.value**-2)
    assert m.details["error"] == 0
    assert m.details["noisy_error"] <= 0.1
    again = lbgap.average_sharpness(*one_sample(), sigma=m.value, adaptive=True, antithetic=False, draws=2)
    assert again.value != 0


def test_eps_is_noise_too():
    # The first weight has variance sigma^2 + eps^2, the second eps^2: 1 / sqrt(sigma^2 + 2 eps^2) is the same quantile.
    exact = -1 / float(torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(0.1)))
    m = lbgap.pac_bayes_sigma(*one_sample(), eps=0.4, draws=400, tolerance=1e-3)
    assert abs(math.sqrt(m.value**2 + 2 * 0.4**2) - exact) < 4 * m.standard_error


def test_small_sigma_are_found_too():
    # Wrong where 1 + sigma z < 1 - 1e-3 on two weights: a thousandth of the above, over sqrt(1 + 0.999^2).
    exact = -1e-3 / math.sqrt(1 + 0.999**2) / float(torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(0.1)))
    m = lbgap.pac_bayes_sigma(*one_sample((1.0, 0.999)), eps=0, draws=400, tolerance=1e-3)
    assert abs(m.value - exact) < 4 * m.standard_error


def test_the_divergence_is_that_of_the_best_prior():
    m = lbgap.pac_bayes_sigma(*one_sample((1.0, 0.2)), eps=0.1, draws=20)
    x = torch.tensor([1.0, 0.2], dtype=torch.float64)
    posterior = torch.distributions.Normal(x, (m.value**2 * x**2 + 0.1**2).sqrt())
    best = (0.1**2 + (m.value**2 + 1) * x.square().mean()).sqrt()
    found = [
        float(torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0, width * best)).sum())
        for width in (1.0, 0.99, 1.01)
    ]
    assert m.details["kl"] == pytest.approx(found[0], rel=1e-6)  # the weights are float32
    assert found[0] < min(found[1:])


def test_where_no_sigma_is_found():
    always = lbgap.pac_bayes_sigma(*one_sample(), deviation=2.0, draws=2)
    assert always.value >= pac_bayes.LARGEST
    assert always.status.startswith("no sigma up to")
    assert math.isnan(always.standard_error)
    never = lbgap.pac_bayes_sigma(*one_sample(), eps=100.0, draws=20)
    assert never.value == 0
    assert never.status == "the noise eps = 100 alone raises the error by more: try a smaller eps"
    assert never.to_dict()["details"]["inverse_square"] is None
    tie = lbgap.pac_bayes_sigma(*one_sample((1.0, 1.0)), eps=0, draws=20, precision="float64")
    assert tie.value == 0
    assert tie.status.startswith("even sigma = ")


def test_it_needs_a_classifier(quadratic):
    with pytest.raises(ValueError, match="counts misclassified samples: it needs class indices as targets"):
        lbgap.pac_bayes_sigma(*quadratic[:2], loss="mse")


def test_draws_that_are_all_zero_have_no_error():
    model = nn.Linear(6, 3, bias=False)
    data = torch.zeros(60, 6), torch.zeros(60, dtype=torch.long)
    found = lbgap.average_sharpness(model, data, relative_error=0.1)
    assert (found.value, found.standard_error) == (0, 0)
    assert found.status == "8 draws: the standard error is 0 %, within the 10 % asked for"
