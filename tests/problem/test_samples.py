"""Data as training takes them: two tensors, in order, and every refusal."""

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

from lbgap.datasets import Data, Split, as_tensors


def refused(error, message, call, *arguments, **keywords):
    """Expect one line that says all of ``message``."""
    with pytest.raises(error, match=message) as caught:
        call(*arguments, **keywords)
    assert "\n" not in str(caught.value)


def same(first, second):
    return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


X, Y = torch.arange(21.0).reshape(7, 3), torch.arange(7)


class Listed(Dataset):
    """A map-style dataset of given items."""

    def __init__(self, *items):
        self.items = items
        self.reads = 0

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        self.reads += 1
        return self.items[index]


def listed():
    return Listed(*((X[i], int(Y[i])) for i in range(7)))


@pytest.mark.parametrize("data", [(X, Y), [X, Y], Split(X, Y), TensorDataset(X, Y)], ids=lambda d: type(d).__name__)
def test_tensors_are_taken_as_they_are(data):
    split, batch_size = as_tensors(data)
    assert isinstance(split, Split)
    assert split.inputs is X
    assert split.targets is Y
    assert batch_size is None


def test_a_dataset_is_read_in_order():
    data = listed()
    split, batch_size = as_tensors(data)
    assert same(split, (X, Y))
    assert split.targets.dtype == torch.int64
    assert batch_size is None
    assert data.reads == 14  # the first 32 samples twice: do they draw at random?
    assert same(as_tensors(Subset(data, [4, 2]))[0], (X[[4, 2]], Y[[4, 2]]))


@pytest.mark.parametrize("batch_size", [1, 3, 7, 20])
def test_a_loader_is_read_in_order(batch_size):
    data = listed()
    split, found = as_tensors(DataLoader(data, batch_size=batch_size))
    assert same(split, (X, Y))
    assert found == batch_size
    assert data.reads == 7 + min(batch_size, 7)  # the first batch twice


def test_a_loader_may_name_the_standard_samplers():
    data = TensorDataset(X, Y)
    batches = BatchSampler(SequentialSampler(data), 4, drop_last=False)
    split, batch_size = as_tensors(DataLoader(data, batch_sampler=batches))
    assert same(split, (X, Y))
    assert batch_size == 4
    assert as_tensors(DataLoader(data, batch_size=7, drop_last=True))[1] == 7


def test_a_loader_keeps_its_collate_function():
    def collate(items):
        return torch.stack([-item[0] for item in items]), torch.tensor([item[1] for item in items])

    assert same(as_tensors(DataLoader(listed(), batch_size=2, collate_fn=collate))[0], (-X, Y))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_loader_keeps_its_workers():
    split, batch_size = as_tensors(DataLoader(TensorDataset(X, Y), batch_size=2, num_workers=1))
    assert same(split, (X, Y))
    assert batch_size == 2


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_batches_of_workers_hold_no_files_open():
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    data = TensorDataset(torch.rand(300, 2), torch.zeros(300))
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    try:
        split, _ = as_tensors(DataLoader(data, batch_size=1, num_workers=1))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert torch.equal(split.inputs, data.tensors[0])


class Noisy(Listed):
    def __getitem__(self, index):
        return torch.rand(2), 0


def test_the_random_state_is_untouched():
    own = torch.Generator().manual_seed(3)
    loaders = DataLoader(listed(), batch_size=2), DataLoader(listed(), batch_size=2, generator=own)
    before, own_before = torch.random.get_rng_state(), own.get_state()
    for data in (listed(), *loaders, Noisy(1, 2), DataLoader(Noisy(1, 2))):
        as_tensors(data)
        assert torch.equal(torch.random.get_rng_state(), before)
        assert torch.equal(own.get_state(), own_before)
    refused(TypeError, "got a dict of 0", as_tensors, DataLoader(Listed({}), generator=own))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(own.get_state(), own_before)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_integer_targets_become_int64(dtype):
    targets = torch.tensor([0, 1, 1]).to(dtype)
    split, _ = as_tensors((X[:3], targets))
    assert split.targets.dtype == torch.int64
    assert split.targets.tolist() == [0, 1, 1]
    assert targets.dtype == dtype
    assert split.inputs.data_ptr() == X.data_ptr()


def test_booleans_stay():
    targets = torch.tensor([False, True, True])
    for data in ((X[:3], targets), DataLoader(TensorDataset(X[:3], targets), batch_size=2)):
        split, _ = as_tensors(data)
        assert split.targets.dtype == torch.bool
        assert torch.equal(split.targets, targets)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floating_targets_keep_their_type(dtype):
    targets = torch.ones(7, 2, dtype=dtype)
    assert as_tensors((X, targets))[0].targets is targets


@pytest.mark.parametrize(
    ("target", "dtype"),
    [
        (2, torch.int64),
        (np.int32(2), torch.int64),
        (True, torch.int64),
        (0.1, torch.float64),
        (np.float32(0.5), torch.float64),
        (torch.tensor([1.0, 2.0]), torch.float32),
        (torch.tensor(3, dtype=torch.int16), torch.int64),
    ],
)
def test_targets_of_a_dataset_may_be_numbers_or_tensors(target, dtype):
    split, _ = as_tensors(Listed((X[0], target), [X[1], target]))
    assert split.targets.dtype == dtype
    assert torch.equal(split.targets[1], torch.as_tensor(target, dtype=dtype))


def test_dataset_and_loader_agree_on_python_floats():
    data = Listed((X[0], 0.1), (X[1], 0.2))
    direct, loaded = as_tensors(data)[0], as_tensors(DataLoader(data))[0]
    assert same(direct, loaded)
    assert direct.targets.dtype == loaded.targets.dtype


@pytest.mark.parametrize(
    "inputs",
    [
        torch.arange(7),  # token ids
        torch.zeros(7, 0),
        torch.ones(7, 2, dtype=torch.complex64),
        torch.full((7, 2), torch.finfo(torch.float32).max),  # the sum overflows, no value does
        torch.ones(3, 7).T,
        torch.ones(7, 2, requires_grad=True),
    ],
    ids=["tokens", "no features", "complex", "huge", "strided", "requires grad"],
)
def test_unusual_inputs_pass(inputs):
    assert as_tensors((inputs, Y))[0].inputs is inputs


def bad(value, dtype=torch.float32):
    inputs = torch.ones(7, 3, dtype=dtype)
    inputs[4, 1] = inputs[6, 2] = value
    return inputs


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64])
def test_values_that_are_not_finite_are_refused(value, dtype):
    message = "expected finite {}, got NaN or infinity, first in sample 4: repair or remove it"
    refused(ValueError, message.format("inputs"), as_tensors, (bad(value, dtype), Y))
    refused(ValueError, message.format("targets"), as_tensors, (X, bad(value, dtype)))


class Coming(IterableDataset):
    def __init__(self, *items):
        self.items = items

    def __iter__(self):
        return iter(self.items)


class Unsized(Dataset):
    def __getitem__(self, index):
        return X[0], 0


class Backwards(SequentialSampler):
    def __iter__(self):
        return iter(range(6, -1, -1))


DATA = TensorDataset(X, Y)
REPEAT = "results would not repeat: pass shuffle=False, or loader.dataset"


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (Data("own", Split(X, Y), None, 7), TypeError, "got a Data .*: pass data.train or data.test"),
        ((X[:0], Y[:0]), ValueError, "expected at least one sample, got none: pass data that is not empty"),
        (Listed(), ValueError, "expected at least one sample, got none"),
        (DataLoader(Listed()), ValueError, "expected at least one sample, got none"),
        ((X, Y[:5]), ValueError, "as many targets as inputs, got 7 inputs and 5 targets: pass one target"),
        (
            (X, 3),
            ValueError,
            r"data: expected targets of shape \(n, ...\), got a single number: add a dimension",
        ),
        (
            (torch.tensor(1.0), Y),
            ValueError,
            r"data: expected inputs of shape \(n, ...\), got a single number",
        ),
        (
            (X, torch.empty(7, device="meta")),
            ValueError,
            "on one device, got cpu and meta: move them with .to",
        ),
        (
            X,
            TypeError,
            r"data: expected a pair \(inputs, targets\), got a Tensor: pass two tensors, inputs first",
        ),
        ((X, Y, Y), TypeError, "got a tuple of 3: pass two tensors"),
        ({"x": X, "y": Y}, TypeError, "got a dict of 2: pass two tensors"),
        (None, TypeError, r"expected data, got a NoneType: pass \(inputs, targets\), a dict of tensors"),
        (
            ({"a": X}, Y),
            TypeError,
            "inputs as one tensor, got a dict: wrap the model so that it takes one tensor",
        ),
        ((X, [1, 2]), TypeError, "expected targets as a tensor, got a list of numbers: make it one"),
        (TensorDataset(X), TypeError, r"data: expected a pair \(inputs, targets\), got a tuple of 1"),
        (
            Listed((X[0], 1), (None, 1)),
            TypeError,
            "sample 1: expected inputs as tensors, arrays or numbers, got a N",
        ),
        (
            Listed((X[0], 1), (X[1][:2], 1)),
            ValueError,
            r"got \(3,\) .* in sample 0 but \(2,\) .* in sample 1: pad",
        ),
        (
            Listed((X[0], 1), (X[1], 1.0)),
            ValueError,
            "expected targets of one .* torch.int64 .* but .* torch.float64",
        ),
        (
            Unsized(),
            TypeError,
            "expected a Dataset with a length, got Unsized without: define __len__, or pass",
        ),
        (DataLoader(Unsized(), sampler=SequentialSampler(X)), TypeError, "expected a Dataset with a length"),
        (DataLoader(DATA, sampler=Backwards(DATA)), ValueError, f"got a Backwards: {REPEAT}"),
        (
            DataLoader(DATA, sampler=RandomSampler(DATA, replacement=True)),
            ValueError,
            "got a RandomSampler that draws with replacement: pass loader.dataset, or a Subset",
        ),
        (DataLoader(DATA, sampler=RandomSampler(DATA, num_samples=3)), ValueError, "that draws 3 of 7: pass"),
        (
            DataLoader(DATA, sampler=WeightedRandomSampler([1.0] * 7, 7)),
            ValueError,
            "got a WeightedRandomSampler, which draws by weights: pass loader.dataset, and give",
        ),
        (
            DataLoader(DATA, sampler=DistributedSampler(DATA, num_replicas=2, rank=0)),
            ValueError,
            "got a DistributedSampler, which gives each process a share: pass loader.dataset",
        ),
        (
            DataLoader(DATA, batch_sampler=[[1, 0]]),
            ValueError,
            "standard BatchSampler, got list, which makes batches of its own: pass",
        ),
        (
            DataLoader(DATA, batch_size=None),
            ValueError,
            r"expected targets of shape \(n, ...\), got a single number: add a dimension",
        ),
        (
            DataLoader(DATA, sampler=SequentialSampler(range(3))),
            ValueError,
            "reads all 7 samples, got a sampler of 3: pass loader.dataset, or a Subset of it",
        ),
        (
            DataLoader(Listed({"x": X[0], "y": 1})),
            TypeError,
            r"data: expected a pair \(inputs, targets\), got a dict of 2",
        ),
        (
            DataLoader(DATA, batch_size=7, collate_fn=lambda items: (X, Y[:5])),
            ValueError,
            "batch 0: expected as many targets as inputs",
        ),
        (
            DataLoader(
                DATA,
                batch_size=4,
                collate_fn=lambda items: (X[: len(items), : len(items) - 1], Y[: len(items)]),
            ),
            ValueError,
            r"got \(3,\) .* in batch 0 but \(2,\) .* in batch 1: pad, crop or convert",
        ),
    ],
)
def test_as_tensors_refuses(data, error, message):
    refused(error, message, as_tensors, data)


@pytest.mark.parametrize(
    "data",
    [
        (X.numpy(), Y.numpy()),
        (X.numpy(), Y),
        Listed(*((X[i].numpy(), np.int64(i)) for i in range(7))),
        DataLoader(DATA, shuffle=True),
        DataLoader(DATA, batch_sampler=BatchSampler(RandomSampler(DATA), 2, False)),
        DataLoader(DATA, batch_size=4, drop_last=True),
        DataLoader(DATA, batch_size=4, shuffle=True, drop_last=True),
        lambda: iter([(X[:3], Y[:3]), (X[3:], Y[3:])]),
        [(X[:3], Y[:3]), (X[3:], Y[3:])].__iter__(),
        Coming(*((X[i], i) for i in range(7))),
        DataLoader(Coming(*((X[i], i) for i in range(7))), batch_size=2),
    ],
    ids=lambda data: type(data).__name__,
)
def test_all_kinds_of_pairs_are_read(data):
    split, _ = as_tensors(data)
    assert same(split, (X, Y))
    assert split.targets.dtype == torch.int64


def test_what_does_not_fit_is_refused(monkeypatch):
    monkeypatch.setattr("lbgap.problem.hold.budget", lambda: 50)
    refused(MemoryError, "and all of them are needed at once: pass fewer samples", as_tensors, listed())
    refused(MemoryError, "an iterator can be read only once: pass a function", as_tensors, iter([(X, Y)]))
