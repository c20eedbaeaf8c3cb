"""The paper's tables: which measurements they hold, in which order, and what is averaged."""

import json
import math
import statistics

import pytest
import torch
from torch import nn

from lbgap import Objective, fast_sharpness
from lbgap.experiments.tables import Cell, paper_tables

pytestmark = pytest.mark.usefixtures("one_thread")


def minimizer(seed, inputs=24):
    """A model with ``5 (inputs + 1)`` parameters, on 60 samples."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Linear(inputs, 5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return Objective(model, (torch.randn(60, inputs, generator=generator), torch.arange(60) % 5))


@pytest.fixture(scope="module")
def tables(one_thread):
    """The tables of two minimizers in one group and a third alone, at two epsilons, and what was said meanwhile."""
    said = []
    minimizers = [("a", "batch 8", minimizer(0)), ("b", "batch 30", minimizer(1)), ("c", "batch 8", minimizer(2))]
    return paper_tables(iter(minimizers), epsilons=(1e-2, 1e-3), restarts=2, seed=3, report=said.append), said


def test_cells_are_in_the_order_of_the_columns(tables):
    found, _ = tables
    assert list(found.groups) == ["batch 8", "batch 30"]
    for row in found.groups.values():
        assert [(cell.space, cell.epsilon, cell.method) for cell in row] == [
            (space, epsilon, method)
            for space in ("full space", "manifold")
            for epsilon in (1e-2, 1e-3)
            for method in ("recipe", "vertex")
        ]


def test_a_cell_is_the_mean_over_the_minimizers_of_its_group(tables):
    found, _ = tables
    assert len(found.results) == 3 * 8
    for group, names in (("batch 8", ["a", "c"]), ("batch 30", ["b"])):
        for cell in found.groups[group]:
            behind = [
                (name, s.value)
                for name, of, space, method, s in found.results
                if (of, space, method, s.settings["epsilon"]) == (group, cell.space, cell.method, cell.epsilon)
            ]
            assert [name for name, _ in behind] == names
            assert cell.values == tuple(value for _, value in behind)
            assert cell.mean == statistics.fmean(cell.values)
            if len(names) == 1:
                assert math.isnan(cell.standard_deviation)
            else:
                assert cell.standard_deviation == statistics.stdev(cell.values)


@pytest.mark.parametrize(
    ("space", "method", "options"),
    [
        ("full space", "recipe", {"method": "scipy"}),
        ("full space", "vertex", {"method": "vertex", "restarts": 2}),
        ("manifold", "recipe", {"method": "scipy", "subspace": 100, "trials": 5}),
        ("manifold", "vertex", {"method": "vertex", "restarts": 2, "subspace": 100, "trials": 5}),
    ],
)
def test_a_measurement_is_that_of_fast_sharpness(tables, space, method, options):
    (found,) = (
        s for name, _, where, how, s in tables[0].results
        if (name, where, how, s.settings["epsilon"]) == ("b", space, method, 1e-3)
    )  # fmt: skip
    direct = fast_sharpness(minimizer(1), epsilon=1e-3, seed=3, **options)
    assert {**found.to_dict(), "seconds": 0} == {**direct.to_dict(), "seconds": 0}
    assert found.settings["iterations"] == (10 if method == "recipe" else 20)


def test_every_measurement_is_announced(tables):
    said = tables[1]
    assert len(said) == 3 * 8
    assert said[:3] == [
        "a: full space, epsilon 0.01, recipe",
        "a: full space, epsilon 0.01, vertex",
        "a: full space, epsilon 0.001, recipe",
    ]
    assert said[-1] == "c: manifold, epsilon 0.001, vertex"


def test_the_tables_are_json(tables):
    found = tables[0].to_dict()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert set(found) == {"groups", "results", "seconds", "versions"}
    cell = found["groups"]["batch 30"][0]
    assert (cell["space"], cell["epsilon"], cell["method"]) == ("full space", 1e-2, "recipe")
    assert cell["standard_deviation"] is None
    assert cell["values"] == [cell["mean"]]
    first = found["results"][0]
    assert (first["minimizer"], first["group"], first["space"], first["by"]) == ("a", "batch 8", "full space", "recipe")
    assert first["settings"]["method"] == "scipy"
    own = {"recipe": 0.0, "vertex": 0.0}
    for result in found["results"]:
        own[result["by"]] += result["seconds"]
    assert found["seconds"] == own


def test_an_epsilon_given_twice_counts_once():
    found = paper_tables([("a", "g", minimizer(0))], epsilons=(1e-3, 0.001), restarts=0)
    assert len(found.groups["g"]) == len(found.results) == 4
    assert all(len(cell.values) == 1 for cell in found.groups["g"])


def test_one_of_the_tables_alone(tables):
    found = paper_tables([("b", "g", minimizer(1))], epsilons=(1e-2, 1e-3), restarts=2, seed=3, spaces=["full space"])
    whole = [(*about, s.value) for name, _, *about, s in tables[0].results if name == "b"]
    assert [(*about, s.value) for _, _, *about, s in found.results] == whole[:4]
    assert [cell.space for cell in found.groups["g"]] == ["full space"] * 4


def test_a_cell_as_the_paper_prints_it():
    assert str(Cell("manifold", 1e-3, "recipe", (61.0, 62.5))) == "61.75 ± 1.1"
    assert str(Cell("manifold", 1e-3, "recipe", (61.23456,))) == "61.23"


def test_no_minimizers():
    with pytest.raises(ValueError, match=r"^there is no minimizer to measure: give one or more$"):
        paper_tables([])


def test_a_model_with_fewer_than_100_parameters():
    message = r"^subspace must be at most the number of parameters that may move, 95, got 100$"
    with pytest.raises(ValueError, match=message):
        paper_tables([("a", "g", minimizer(0, inputs=18))], epsilons=(1e-3,), restarts=0)
    assert paper_tables([("a", "g", minimizer(0, inputs=19))], epsilons=(1e-3,), restarts=0).results
