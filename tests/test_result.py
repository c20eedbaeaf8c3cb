"""The base of all results: what it keeps, what JSON gets of it, and what is printed."""

import json
import math
from dataclasses import FrozenInstanceError, dataclass
from typing import Any, ClassVar

import pytest
import torch

from lbgap.result import Measure, Result, plain
from lbgap.status import Status, status

SETTINGS = {"measure": "length", "n": 5002, "samples": 2000, "batch_norm": "eval", "precision": "float32"}
SETTINGS |= {"device": "cpu", "notes": ["the second device is older"]}


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Length(Result):
    """A result with a vector that JSON does not get."""

    apart: ClassVar[frozenset[str]] = frozenset({"vector"})

    vector: torch.Tensor
    parts: tuple[float, ...] = (1.0, math.inf)
    inner: Any = None

    def _headline(self):
        return f"length: {self.value:.6g} m"

    def _numbers(self):
        return [f"of {len(self.parts)} parts"]


def length(**changes):
    given = {
        "value": 1 / 3, "status": status("exact"), "settings": dict(SETTINGS), "evaluations": 2.5,
        "seconds": 0.125, "vector": torch.ones(3), **changes,
    }  # fmt: skip
    return Length(**given)


def bare(**changes):
    given = {
        "value": 2.0,
        "status": Status("limit", "the limit"),
        "settings": {},
        "evaluations": 0.0,
        "seconds": 0.5,
        **changes,
    }
    return Result(**given)


def test_the_text_of_a_result():
    assert str(length()).splitlines() == [
        "length: 0.333333 m",
        "  of 2 parts",
        "  5,002 parameters, 2,000 samples, batch-norm eval, 2.5 evaluations, 0.12 s, float32 on cpu",
        "  exact, to rounding",
        "  note: the second device is older",
    ]


def test_the_text_of_a_loss_that_is_no_mean_over_samples():
    plain = {**SETTINGS, "weight": 2000, "coupled": False, "batch_size": 500}
    (line,) = [line for line in str(length(settings=plain)).splitlines() if "samples" in line]
    assert line.startswith("  5,002 parameters, 2,000 samples, batch-norm eval, ")
    other = {**plain, "weight": 1234.5, "coupled": True}
    (line,) = [line for line in str(length(settings=other)).splitlines() if "samples" in line]
    assert line.startswith(
        "  5,002 parameters, 2,000 samples, of weight 1,234.5, coupled in batches of 500, batch-norm "
    )


def test_the_text_of_a_result_without_an_objective():
    assert str(bare()).splitlines() == ["Result: 2", "  0 evaluations, 0.50 s", "  the limit"]
    matrix = {"measure": "trace", "n": 8000, "dtype": "float64", "device": "cpu"}
    assert str(bare(settings=matrix)).splitlines()[:2] == ["trace: 2", "  8,000 rows, 0.50 s, float64 on cpu"]


@pytest.mark.parametrize("value", [1 / 3, math.nan, -math.inf, 1e300])
def test_the_short_form_is_one_line(value):
    assert repr(length(value=value)) == f"Length(value={value:.6g}, status='exact')"


def test_what_json_gets():
    record = length(inner=bare(value=math.nan)).to_dict()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert list(record) == [
        "value", "parts", "inner", "evaluations", "seconds", "status", "status_name", "settings",
    ]  # fmt: skip
    assert record["parts"] == [1.0, None]
    assert type(record["status"]) is str
    assert (record["status"], record["status_name"]) == ("exact, to rounding", "exact")
    assert record["settings"] == SETTINGS
    inner = {"value": None, "evaluations": 0.0, "seconds": 0.5, "status": "the limit", "status_name": "limit"}
    assert record["inner"] == {**inner, "settings": {}}


def test_plain_values():
    nested = {1: (math.nan, {"a": [status("exact"), True, None, 3]}), "b": bare()}
    assert plain(nested) == {"1": [None, {"a": ["exact, to rounding", True, None, 3]}], "b": bare().to_dict()}


def test_a_result_is_frozen_and_takes_names_only():
    with pytest.raises(FrozenInstanceError):
        length().value = 1.0
    with pytest.raises(TypeError, match="positional"):
        Result(1.0, status("exact"), {}, 0.0, 0.0)


def test_the_text_of_a_measure():
    own = {"measure": "rise", "draws": 5, "sigma": 0.1, "loss": "mse", "backend": "native", "relative_error": None}
    shared = {"status": status("exact"), "evaluations": 1.0, "seconds": 0.0}
    found = Measure(value=2.5, standard_error=0.25, base_loss=0.5, settings=own, details={"slope": 1 / 3}, **shared)
    assert str(found).splitlines()[:3] == [
        "rise: 2.5 +- 0.25 (standard error), at a loss of 0.5",
        "  draws 5, sigma 0.1",
        "  slope 0.333333",
    ]
    plainer = Measure(value=2.5, base_loss=0.5, settings={"measure": "rise"}, **shared)
    assert str(plainer).splitlines()[:2] == ["rise: 2.5, at a loss of 0.5", "  1 evaluations, 0.00 s"]
    assert math.isnan(plainer.standard_error)
    of_matrix = Measure(value=2.5, base_loss=math.nan, settings={"measure": "trace"}, **shared)
    assert str(of_matrix).splitlines()[0] == "trace: 2.5"
    assert plainer.details == {}
