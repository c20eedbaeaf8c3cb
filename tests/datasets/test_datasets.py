"""The data sets, the readers and the door for the user's data: properties, and every refusal."""

import gzip
import importlib
import pickle
import struct
import sys
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch

from lbgap.datasets import digits, load, mnist, mnist1d, npz, read_idx
from lbgap.training import train

generated = importlib.import_module("lbgap.datasets.mnist1d")


def refused(error, message, call, *arguments, **keywords):
    """Expect one line that says all of ``message``."""
    with pytest.raises(error, match=message) as caught:
        call(*arguments, **keywords)
    assert "\n" not in str(caught.value)


def same(first, second):
    return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


# mnist1d and digits


def test_mnist1d_shapes_and_types():
    data = mnist1d()
    assert (data.name, data.classes, data.features) == ("mnist1d", 10, (40,))
    for split, size in ((data.train, 4000), (data.test, 1000)):
        assert split.inputs.shape == (size, 40)
        assert split.targets.shape == (size,)
        assert split.inputs.dtype == torch.float32
        assert split.targets.dtype == torch.int64


def test_mnist1d_is_standardised_and_balanced():
    data = mnist1d(samples=1003)
    inputs = torch.cat([data.train.inputs, data.test.inputs]).double()
    # Rounding each value to float32 moves mean and deviation by less than one unit in the last place.
    assert abs(inputs.mean()) < 2**-23
    assert abs(inputs.std(correction=0) - 1) < 2**-23
    counts = torch.cat([data.train.targets, data.test.targets]).bincount()
    assert counts.tolist() == [101] * 3 + [100] * 7
    assert len(data.train.inputs) == 802


def test_mnist1d_depends_on_the_seed_alone():
    torch_state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, again, other = mnist1d(100, 1), mnist1d(100, 1), mnist1d(100, 2)
    assert same(first.train, again.train)
    assert same(first.test, again.test)
    assert not same(first.train, other.train)
    assert torch.equal(torch.random.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


def test_mnist1d_agrees_with_a_sample_by_sample_construction():
    """One curve at a time, with the draws of the vectorised version replayed."""
    labels = np.arange(20) % 10
    curves = generated._distort(labels, np.random.default_rng(5))
    rng, n = np.random.default_rng(5), len(labels)
    pad, scale = rng.integers(36, 61, size=(n, 1)), rng.random((n, 1))
    shift, noise = rng.integers(48, size=(n, 1)), rng.standard_normal((n, 72))
    iid, shear = rng.standard_normal((n, 72)), rng.random((n, 1))
    weights = np.exp(-0.5 * (np.arange(-8, 9) / 2) ** 2)
    for i, label in enumerate(labels):
        template = np.array(generated._TEMPLATES[label], dtype=float)
        template = (template - template.mean()) / template.std()
        template = (template - template[0]) / 6
        # As in the original, 1e-8 marks what is signal.
        padded = np.concatenate([template + 1e-8, np.zeros(pad[i, 0])])
        x = np.interp(np.linspace(0, 1, 72), np.linspace(0, 1, len(padded)), padded)
        x = np.roll(x * (1 + 0.4 * (scale[i, 0] - 0.5)), shift[i, 0])
        hum = np.convolve(np.pad(0.25 * noise[i], 8, mode="symmetric"), weights / weights.sum(), "valid")
        x = np.where(x != 0, x, hum) + 0.02 * iid[i]
        x = x - 0.75 * (shear[i, 0] - 0.5) * np.linspace(-0.5, 0.5, 72)
        x = np.interp(np.linspace(0, 1, 40), np.linspace(0, 1, 72), x)
        # The mark itself, scaled by at most 1.2, and float64 rounding.
        np.testing.assert_allclose(curves[i], x, rtol=0, atol=1.2e-8 + 1e-13)


def test_mnist1d_is_hard_but_not_noise_for_a_linear_model():
    """Logistic regression reaches 32 % (Greydanus and Kobak), least squares somewhat less, chance 10 %."""
    data = mnist1d()
    inputs = torch.cat([data.train.inputs, torch.ones(4000, 1)], 1).double()
    fit = torch.linalg.lstsq(inputs, torch.nn.functional.one_hot(data.train.targets).double()).solution
    scores = torch.cat([data.test.inputs, torch.ones(1000, 1)], 1).double() @ fit
    accuracy = (scores.argmax(1) == data.test.targets).double().mean().item()
    assert 0.22 < accuracy < 0.42


def test_mnist1d_is_fast():
    mnist1d(10)
    start = time.process_time()
    mnist1d()
    assert time.process_time() - start < 1


def test_mnist1d_refuses():
    refused(ValueError, "needs at least 10 samples, got 9: one of each class", mnist1d, 9)
    refused(ValueError, "seed must be at least 0, got -1", mnist1d, seed=-1)


def test_digits():
    pytest.importorskip("sklearn")
    data = digits()
    assert (data.name, data.classes, data.features) == ("digits", 10, (64,))
    assert [len(data.train.inputs), len(data.test.inputs)] == [1438, 359]
    inputs = torch.cat([data.train.inputs, data.test.inputs])
    assert inputs.dtype == torch.float32
    assert (inputs.min(), inputs.max()) == (0, 1)
    assert data.train.targets.dtype == torch.int64
    assert (
        len(torch.cat([inputs, torch.cat([data.train.targets, data.test.targets])[:, None]], 1).unique(dim=0)) == 1797
    )
    assert same(digits().train, data.train)
    assert same(load("digits").train, data.train)
    assert not same(digits(seed=1).train, data.train)
    assert len(digits(test_fraction=0.5).test.inputs) == 898


@pytest.mark.parametrize("fraction", [0, 1, -0.2, 2, float("nan"), 1e-9])
def test_digits_refuses_a_fraction(fraction):
    pytest.importorskip("sklearn")
    refused(ValueError, "test_fraction must lie between 0 and 1, got .*: try 0.2", digits, test_fraction=fraction)


def test_digits_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    refused(ImportError, r'digits needs scikit-learn: pip install "lbgap\[digits\]"', digits)


# IDX and MNIST


def idx(array, code):
    header = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.mark.parametrize(("code", "dtype"), [(8, "u1"), (9, "i1"), (11, "i2"), (12, "i4"), (13, "f4"), (14, "f8")])
@pytest.mark.parametrize("shape", [(0,), (5,), (2, 3, 4), (3, 0)])
def test_read_idx_returns_what_was_written(tmp_path, code, dtype, shape):
    array = (np.arange(np.prod(shape)) - 3).reshape(shape).astype(dtype)
    plain, packed = tmp_path / "plain", tmp_path / "packed"
    plain.write_bytes(idx(array, code))
    packed.write_bytes(gzip.compress(plain.read_bytes(), mtime=0))
    for path in (plain, str(packed)):
        read = read_idx(path)
        assert read.shape == shape
        assert torch.equal(read, torch.from_numpy(array))
        read += 1  # memory of its own, writable


GOOD = idx(np.zeros((2, 3), "u1"), 8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected an IDX header .*, got an empty file: this is not an IDX file"),
        (GOOD[:3], "expected an IDX header .*, got 00 00 08: "),
        (b"\x89PNG1234", "expected an IDX header .*, got 89 50 4e 47: "),
        (b"\0\0\x0a\x01\0\0\0\0", "expected an IDX header .*, got 00 00 0a 01: "),
        (b"\0\0\x08\0", "expected an IDX header .*, got 00 00 08 00: "),
        (b"\0\0\x08\x40", "expected an IDX header .*, got 00 00 08 40: "),
        (GOOD[:9], "truncated, expected a header of 12 bytes, got 9: fetch the file again"),
        (GOOD[:-1], r"truncated, expected 6 bytes of data for shape \(2, 3\), got 5: fetch"),
        (GOOD + b"\0", r"too long, expected 6 bytes of data for shape \(2, 3\), got more: fetch"),
        (gzip.compress(GOOD, mtime=0)[:-6], r"corrupt gzip \(.*\): fetch the file again"),
        (gzip.compress(GOOD, mtime=0)[:-8] + b"\0" * 8, r"corrupt gzip \(.*\): fetch the file again"),
        (gzip.compress(GOOD, mtime=0)[:10] + b"\xff" * 20, r"corrupt gzip \(.*\): fetch the file again"),
    ],
)
def test_read_idx_refuses(tmp_path, content, message):
    path = tmp_path / "file"
    path.write_bytes(content)
    refused(ValueError, f"file: {message}", read_idx, path)


def test_read_idx_unpacks_no_more_than_is_announced(tmp_path):
    path = tmp_path / "bomb"
    path.write_bytes(gzip.compress(GOOD + bytes(2**26), mtime=0))
    tracemalloc.start()
    refused(ValueError, r"bomb: too long, expected 6 bytes of data for shape \(2, 3\), got more", read_idx, path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22
    path.write_bytes(bytes([0, 0, 14, 2]) + b"\xff" * 8)
    message = f"bomb: expected at most {2**30} bytes of data, the header announces {(2**32 - 1) ** 2 * 8} for shape"
    refused(ValueError, message, read_idx, path)


def write_mnist(folder, separator="-", suffix="", train=6, test=3):
    rng = np.random.default_rng(0)
    written = {}
    for part, size in (("train", train), ("t10k", test)):
        images = rng.integers(0, 256, (size, 28, 28)).astype("u1")
        labels = rng.integers(0, 10, size).astype("u1")
        for name, array in (
            (f"{part}-images{separator}idx3", images),
            (f"{part}-labels{separator}idx1", labels),
        ):
            content = idx(array, 8)
            path = folder / f"{name}-ubyte{suffix}"
            path.write_bytes(gzip.compress(content, mtime=0) if suffix else content)
        written[part] = images, labels
    return written


@pytest.mark.parametrize("separator", ["-", "."])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist_reads_either_name_and_packing(tmp_path, separator, suffix):
    written = write_mnist(tmp_path, separator, suffix)
    data = mnist(tmp_path)
    assert (data.name, data.classes, data.features) == ("mnist", 10, (784,))
    for split, (images, labels) in ((data.train, written["train"]), (data.test, written["t10k"])):
        assert torch.equal(split.inputs, torch.from_numpy(images.reshape(-1, 784)).float() / 255)
        assert torch.equal(split.targets, torch.from_numpy(labels).long())
    pictures = mnist(str(tmp_path), flatten=False)
    assert pictures.features == (1, 28, 28)
    assert torch.equal(pictures.train.inputs.flatten(1), data.train.inputs)
    assert same(load("mnist", tmp_path).train, data.train)


def test_mnist_refuses(tmp_path):
    refused(FileNotFoundError, f"no train-images-idx3-ubyte .* in {tmp_path}: put the four", mnist, tmp_path)
    write_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    refused(FileNotFoundError, "no t10k-labels-idx1-ubyte ", mnist, tmp_path)
    path = tmp_path / "train-labels-idx1-ubyte"
    for labels, got in ((np.zeros(5, "u1"), r"\(5,\) up to 0"), (np.full(6, 10, "u1"), r"\(6,\) up to 10")):
        path.write_bytes(idx(labels, 8))
        refused(ValueError, f"expected 6 uint8 labels in 0..9, got torch.uint8 {got}: take", mnist, tmp_path)
    path.write_bytes(idx(np.zeros(0, "u1"), 8))
    refused(ValueError, r"got torch.uint8 \(0,\) up to nothing", mnist, tmp_path)
    path.write_bytes(idx(np.zeros(6, "i4"), 12))
    refused(ValueError, r"got torch.int32 \(6,\)", mnist, tmp_path)
    for shape in ((6, 784), (6, 32, 32), (0, 28, 28)):
        (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(np.zeros(shape, "u1"), 8))
        refused(ValueError, r"expected uint8 images of shape \(n, 28, 28\), got torch.uint8 \(", mnist, tmp_path)


# .npz


def write_npz(folder, **arrays):
    path = folder / "own.npz"
    np.savez(path, **arrays)
    return path


FEATURES, LABELS = np.arange(12.0).reshape(4, 3), np.array([0, 2, 1, 2], "i2")


def test_npz_of_classes(tmp_path):
    data = npz(write_npz(tmp_path, features=FEATURES, labels=LABELS, other=FEATURES))
    assert (data.name, data.classes, data.features, data.test) == ("own", 3, (3,), None)
    assert torch.equal(data.train.inputs, torch.from_numpy(FEATURES).float())
    assert torch.equal(data.train.targets, torch.from_numpy(LABELS).long())


def test_npz_with_a_test_split_and_by_name(tmp_path):
    path = write_npz(tmp_path, features=FEATURES, labels=LABELS, test_features=FEATURES[:1], test_labels=np.array([5]))
    data = load(str(path))
    assert data.classes == 6
    assert data.test.inputs.shape == (1, 3)
    assert same(load(path).train, data.train)


def test_npz_of_regression_and_of_integer_features(tmp_path):
    data = npz(write_npz(tmp_path, features=FEATURES.astype("u1"), labels=FEATURES[:, :1]))
    assert data.classes == 0
    assert data.train.inputs.dtype == torch.float32
    assert data.train.targets.dtype == torch.float32
    assert data.train.targets.shape == (4, 1)


def test_npz_of_one_number_a_sample_fits_a_network_of_one_output(tmp_path):
    path = write_npz(
        tmp_path, features=FEATURES, labels=FEATURES[:, 0], test_features=FEATURES, test_labels=FEATURES[:, 0]
    )
    data = npz(path)
    assert torch.equal(data.train.targets, torch.from_numpy(FEATURES[:, :1].astype("f4")))
    run = train(
        torch.nn.Linear(FEATURES.shape[1], data.outputs), data.train, test_data=data.test, loss=data.loss, epochs=1
    )
    assert run.metrics[0]["test_loss"] > 0


NAN = np.where(FEATURES == 7, np.nan, FEATURES)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"x": FEATURES, "y": LABELS},
            "expected features, labels, missing features, labels, found x, y: save it",
        ),
        ({}, "missing features, labels, found no arrays: save it with numpy.savez"),
        (
            {"features": FEATURES, "labels": LABELS, "test_features": FEATURES},
            "missing test_labels, found features, ",
        ),
        (
            {"features": FEATURES, "labels": LABELS[:3]},
            "as many labels as features, got 4 features and 3 labels: ",
        ),
        ({"features": FEATURES[:0], "labels": LABELS[:0]}, "expected at least one sample, got none"),
        (
            {"features": np.float32(3), "labels": LABELS},
            r"expected features of shape \(n, ...\), got a single number",
        ),
        (
            {"features": NAN, "labels": LABELS},
            "finite features, got NaN or infinity, first in sample 2: repair",
        ),
        (
            {"features": FEATURES * 1e39, "labels": LABELS},
            "finite features, got NaN or infinity, first in sample 0",
        ),
        (
            {"features": FEATURES, "labels": NAN[:, 1]},
            "finite labels, got NaN or infinity, first in sample 2",
        ),
        (
            {"features": FEATURES, "labels": -LABELS},
            "labels must be class indices >= 0, got -2: number them from 0",
        ),
        (
            {"features": FEATURES, "labels": LABELS.astype(str)},
            r"labels must be integers \(classes\) or floats \(regression\), got <U6: number the",
        ),
        (
            {"features": FEATURES * 1j, "labels": LABELS},
            "features must be real numbers, got complex128: convert",
        ),
        (
            {"features": FEATURES, "labels": LABELS.astype(object)},
            r"expected plain arrays, cannot read it \(Object arrays cannot .*\): save it with numpy.savez",
        ),
        (
            {"features": FEATURES, "labels": LABELS, "test_features": FEATURES[:, :2], "test_labels": LABELS},
            "features and test_features, labels and test_labels differ in kind",
        ),
        (
            {"features": FEATURES, "labels": LABELS, "test_features": FEATURES, "test_labels": LABELS * 1.0},
            "features and test_features, labels and test_labels differ in kind",
        ),
    ],
)
def test_npz_refuses_arrays(tmp_path, arrays, message):
    refused(ValueError, f"own.npz: .*{message}", npz, write_npz(tmp_path, **arrays))


def test_npz_refuses_what_would_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.import_module("lbgap.datasets.npz"), "MOST_BYTES", 2**20)
    path = tmp_path / "own.npz"
    np.savez_compressed(path, features=np.zeros((2**10, 2**10)), labels=np.zeros(2**10, int))
    assert path.stat().st_size < 2**15
    refused(ValueError, "own.npz: expected arrays of at most 1048576 bytes, got 8[0-9]{6}: read it yourself", npz, path)


def test_npz_refuses_files(tmp_path):
    path = tmp_path / "own.npz"
    refused(FileNotFoundError, "no file .*own.npz: pass the path of an .npz", npz, path)
    path.mkdir()
    refused(FileNotFoundError, "no file .*own.npz: ", npz, path)
    path.rmdir()
    path.write_bytes(pickle.dumps({"features": FEATURES}))
    refused(ValueError, "expected a zip archive, got another or a truncated file: save it with", npz, path)
    content = write_npz(tmp_path, features=np.zeros((100, 50)), labels=np.zeros(100, int)).read_bytes()
    path.write_bytes(content[: len(content) // 2])
    refused(ValueError, "expected a zip archive, got another or a truncated file", npz, path)
    path.write_bytes(content[:5000] + b"\x07" * 9 + content[5009:])
    refused(ValueError, r"expected plain arrays, cannot read it \(.*\): save it with", npz, path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("features", "not an array")
        archive.writestr("labels", "nor this")
    refused(ValueError, "features must be real numbers, got", npz, path)


def test_load():
    assert load("mnist1d").name == "mnist1d"
    for name in ("mnist", "cifar10", "cifar100"):
        refused(ValueError, f"{name} needs data_dir, got none: name the folder with its files", load, name)
    names = "mnist1d, digits, mnist, cifar10, cifar100"
    message = f"must be one of {names} or a path ending in .npz, got 'mnist1': did you mean 'mnist"
    refused(ValueError, message, load, "mnist1")
    refused(ValueError, "or a path ending in .npz, got 'imagenet'$", load, "imagenet")
