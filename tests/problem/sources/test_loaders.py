"""Loaders: their order, their workers, their collation, and what is left as it was."""

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    get_worker_info,
)

from lbgap.problem import trees
from lbgap.problem.sources.take import take

X, Y = torch.arange(21.0).reshape(7, 3), torch.arange(7)
DATA = TensorDataset(X, Y)


def read(data):
    source = take(data)
    return tuple(trees.join([*source.read()])), source


SHUFFLES = "the loader shuffles: its data set is read in order"
DROPS = "the loader drops 3 samples at the end: all are read"


@pytest.mark.parametrize(
    ("loader", "notes", "batch_size"),
    [
        (DataLoader(DATA, batch_size=4), [], 4),
        (DataLoader(DATA, batch_size=4, shuffle=True), [SHUFFLES], 4),
        (DataLoader(DATA, batch_size=4, drop_last=True), [DROPS], 4),
        (DataLoader(DATA, batch_size=7, drop_last=True), [], 7),
        (DataLoader(DATA, batch_size=4, drop_last=True, shuffle=True), [SHUFFLES, DROPS], 4),
        (DataLoader(DATA, batch_sampler=BatchSampler(RandomSampler(DATA), 3, False)), [SHUFFLES], 3),
    ],
)
def test_all_samples_in_the_order_of_the_data_set(loader, notes, batch_size):
    (inputs, targets), source = read(loader)
    assert torch.equal(inputs, X)
    assert torch.equal(targets, Y)
    assert source.notes == notes
    assert source.batch_size == batch_size
    assert source.size == 7


def test_a_random_subset_is_read_in_ascending_order():
    (_, targets), source = read(DataLoader(DATA, batch_size=2, sampler=SubsetRandomSampler([5, 1, 3])))
    assert targets.tolist() == [1, 3, 5]
    assert source.notes == ["the loader shuffles a subset: its indices are read in ascending order"]
    assert source.size == 3


class Shares(IterableDataset):
    """Each worker gives its share."""

    def __iter__(self):
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        return iter([(X[i], Y[i]) for i in range(first, 7, step)])


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("persistent", [False, True])
def test_workers_of_both_kinds_of_data_sets(persistent):
    loader = DataLoader(DATA, batch_size=2, num_workers=2, persistent_workers=persistent, shuffle=True)
    assert torch.equal(read(loader)[0][0], X)
    assert loader._iterator is None  # a copy was read
    _, targets = read(DataLoader(Shares(), batch_size=2, num_workers=2))[0]
    assert sorted(targets.tolist()) == [0, 1, 2, 3, 4, 5, 6]


class Own(DataLoader):
    """Iterates in a way of its own, as loaders of accelerate do."""

    def __iter__(self):
        for inputs, targets in super().__iter__():
            yield -inputs, targets


def test_a_loader_with_an_iterator_of_its_own_is_iterated_as_it_is():
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    (inputs, _), source = read(Own(DATA, batch_size=2, generator=generator))
    assert torch.equal(inputs, -X)
    assert source.batch_size == 2
    assert torch.equal(generator.get_state(), before)
    for options in ({"shuffle": True}, {"drop_last": True}):
        with pytest.raises(ValueError, match=r"got a Own with an iterator of its own, where .* pass shuffle=False"):
            take(Own(DATA, batch_size=2, **options))


class Kept(Own):
    """Has a state, as a StatefulDataLoader."""

    place = 0

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.place = state["place"]

    def __iter__(self):
        for number, batch in enumerate(DataLoader.__iter__(self)):
            if number >= self.place:
                self.place = number + 1
                yield batch


def test_a_loader_with_a_state_begins_from_it_each_time():
    loader = Kept(DATA, batch_size=2)
    source = take(loader)
    for _ in range(2):
        assert torch.equal(trees.join([*source.read()])[0], X)
    assert loader.place == 0
    assert torch.equal(read(Kept(DATA, batch_size=2, shuffle=True))[0][0], X)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_collation_that_draws_is_alike_in_each_reading(workers):
    def masked(items):
        inputs = torch.stack([item[0] for item in items])
        return inputs * (torch.rand(len(items), 1) < 0.5), torch.stack([item[1] for item in items])

    loader = DataLoader(DATA, batch_size=4, num_workers=workers, collate_fn=masked)
    (first, _), source = read(loader)
    torch.rand(3)
    assert torch.equal(read(loader)[0][0], first)
    assert not source.is_first((torch.rand(4, 3), Y[:4]))
