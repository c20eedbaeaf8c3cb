"""Which samples are cut into pieces, and whose targets are tried apart."""

import pytest
import torch

from lbgap.objective.questions import pools

pytestmark = pytest.mark.usefixtures("one_thread")


def found(targets):
    return {group.value: group.rows.tolist() for group in pools.groups(targets)}


@pytest.mark.parametrize("samples", [1, 2, 47, 48, 1000, 10_000_000])
def test_samples_are_drawn_once_each_and_the_same_each_time(samples):
    rows = pools.draw(48, samples, 10)
    assert len(rows) == len(rows.unique()) == min(samples, 48)
    assert 0 <= int(rows.min()) <= int(rows.max()) < samples
    assert torch.equal(rows, pools.draw(48, samples, 10))


def test_fewer_are_drawn_where_outputs_are_large():
    assert len(pools.draw(48, 1000, pools.ENTRIES // 10)) == 10
    assert len(pools.draw(48, 1000, 10 * pools.ENTRIES)) == pools.SMALLEST


def test_groups_of_classes():
    targets = torch.tensor([2, 1, 1, 1, -100, 2, 255, 2, 2])
    assert found(targets) == {"-100": [4], "255": [6], "2": [0, 5, 7, 8]}


def test_groups_of_several_targets():
    targets = torch.tensor([[0, 0, 1], [7, 7, 7], [0, 7, 1], [0, 0, 0], [7, 7, 1]])
    groups = found(targets)
    assert groups["7"] == [1]
    assert groups["0"] == [3]
    assert groups["least often 7"] == [0, 3]


def test_groups_of_numbers():
    targets = torch.tensor([[0.0, 0.5], [0.0, 0.0], [-1.0, 2.0], [2.0, 2.0]])
    groups = found(targets)
    assert groups["0"] == [1]
    assert groups["-1"] == [2]
    assert groups["2"] == [3]


def test_a_rare_target_is_found_among_many():
    targets = torch.arange(pools.ROWS * 3) % 5
    targets[123_457] = -100
    assert found(targets)["-100"] == [123_457]


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32, torch.float64, torch.complex64])
@pytest.mark.parametrize("shape", [(6,), (6, 3), (6, 0), (6, 2, 2)])
def test_targets_of_any_kind(dtype, shape):
    targets = torch.ones(shape, dtype=dtype)
    assert all(len(group.rows) for group in pools.groups(targets))
    assert bool(pools.groups(targets)) == bool(targets.numel())
    assert len(pools.mixture(targets, 9)) <= 1


def test_a_mixture_has_each_class_once():
    targets = torch.arange(1000) // 2 % 300
    for wanted in (300, 256, 7):
        classes = targets[pools.mixture(targets, wanted)]
        assert len(classes) == len(classes.unique()) == wanted
    assert len(pools.mixture(targets[:, None], 9)) == 0
    assert len(pools.mixture(targets, 0)) == 0
