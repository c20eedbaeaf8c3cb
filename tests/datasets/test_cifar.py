"""The binary CIFAR archives: what is read of good ones, and every refusal of bad ones."""

import dataclasses
import gzip
import importlib
import io
import pickle
import tarfile

import numpy as np
import pytest
import torch

from lbgap.datasets import cifar10, cifar100, load

cifar = importlib.import_module("lbgap.datasets.cifar")
IMAGES = 3  # in each file, instead of the thousands of the real ones
REAL = cifar.CIFAR10, cifar.CIFAR100
READERS = {"cifar10": cifar10, "cifar100": cifar100}


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Archives of a few images."""
    for name in ("CIFAR10", "CIFAR100"):
        archive = getattr(cifar, name)
        parts = {part: dict.fromkeys(getattr(archive, part), IMAGES) for part in ("train", "test")}
        monkeypatch.setattr(cifar, name, dataclasses.replace(archive, **parts))


def refused(error, message, call, *arguments, **keywords):
    """Expect one line that says all of ``message``."""
    with pytest.raises(error, match=message) as caught:
        call(*arguments, **keywords)
    assert "\n" not in str(caught.value)


def archive_of(name):
    return {"cifar10": cifar.CIFAR10, "cifar100": cifar.CIFAR100}[name]


def files_of(name):
    """The files of a data set, each with its images and classes."""
    rng, archive = np.random.default_rng(0), archive_of(name)
    found = {}
    for file in archive.sizes:
        pixels = rng.integers(0, 256, (IMAGES, 3, 32, 32)).astype("u1")
        labels = rng.integers(0, archive.classes, IMAGES).astype("u1")
        coarse = rng.integers(0, 20, (IMAGES, archive.labels - 1)).astype("u1")
        content = np.concatenate([coarse, labels[:, None], pixels.reshape(IMAGES, -1)], 1).tobytes()
        found[file] = content, pixels, labels
    return found


def member(name, content, kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, len(content) if kind == tarfile.REGTYPE else 0, link
    return info, content


def write_archive(folder, name, members):
    path = folder / archive_of(name).source.name
    with tarfile.open(path, "w:gz") as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content) if info.size else None)
    return path


def members_of(name, **changed):
    """The members of a good archive, beside the text files that the real ones hold too."""
    folder = archive_of(name).folder
    good = [member(f"{folder}/{file}", changed.get(file, content)) for file, (content, _, _) in files_of(name).items()]
    return [member(folder, b"", tarfile.DIRTYPE), *good, member(f"{folder}/readme.html", b"<html>")]


def unpack(folder, name, at=True):
    place = folder / archive_of(name).folder if at else folder
    place.mkdir(exist_ok=True)
    for file, (content, _, _) in files_of(name).items():
        (place / file).write_bytes(content)
    return place


@pytest.fixture(params=READERS)
def name(request):
    return request.param


@pytest.mark.parametrize("how", ["packed", "unpacked", "flat"])
def test_reads_what_was_written(tmp_path, name, how):
    if how == "packed":
        write_archive(tmp_path, name, members_of(name))
    else:
        unpack(tmp_path, name, at=how == "unpacked")
    data, archive, files = READERS[name](str(tmp_path)), archive_of(name), files_of(name)
    assert (data.name, data.classes, data.features) == (name, {"cifar10": 10, "cifar100": 100}[name], (3, 32, 32))
    for split, part in ((data.train, archive.train), (data.test, archive.test)):
        pixels, labels = (np.concatenate([files[file][at] for file in part]) for at in (1, 2))
        assert split.inputs.dtype == torch.float32
        assert torch.equal(split.inputs, torch.from_numpy(pixels).float() / 255)
        assert torch.equal(split.targets, torch.from_numpy(labels).long())
        assert split.inputs.is_contiguous()
        split.inputs[0] += 1  # memory of its own, writable
    again = load(name, tmp_path)
    assert torch.equal(again.test.targets, data.test.targets)


def test_the_sizes_of_the_real_files():
    for real in REAL:
        assert sum(real.train.values()) == 50_000
        assert sum(real.test.values()) == 10_000
        assert sum(real.sizes.values()) == 60_000 * (3072 + real.labels) < cifar.MOST_BYTES
        assert real.source.name == real.source.urls[0].rpartition("/")[2]
        assert len(bytes.fromhex(real.source.sha256)) == 32


def test_files_that_are_missing(tmp_path, name):
    archive = archive_of(name)
    message = f"no {archive.source.name}, nor {archive.folder} with .*, in .*: put the archive there, .*download=True"
    refused(FileNotFoundError, message, READERS[name], tmp_path)
    refused(FileNotFoundError, message, READERS[name], tmp_path / "nowhere")
    place, last = unpack(tmp_path, name), next(iter(archive.test))
    (place / last).unlink()
    refused(FileNotFoundError, f"no {last} in .*{archive.folder}: unpack the whole of", READERS[name], tmp_path)
    write_archive(tmp_path, name, members_of(name))
    assert len(READERS[name](tmp_path).test.inputs) == IMAGES


@pytest.mark.parametrize(("cut", "what"), [(-1, "truncated"), (-3073, "truncated"), (None, "too long")])
def test_files_of_another_length(tmp_path, name, cut, what):
    first = next(iter(archive_of(name).sizes))
    content = files_of(name)[first][0]
    content = content[:cut] if cut else content + b"\0"
    expected = IMAGES * archive_of(name).record
    message = f"{first}: {what}, expected {expected} bytes, got {len(content)}: fetch the binary version"
    (unpack(tmp_path, name) / first).write_bytes(content)
    refused(ValueError, message, READERS[name], tmp_path)
    packed = tmp_path / "packed"
    packed.mkdir()
    write_archive(packed, name, members_of(name, **{first: content}))
    refused(ValueError, message, READERS[name], packed)


def test_labels_out_of_range(tmp_path, name):
    archive = archive_of(name)
    last = next(iter(archive.test))
    content = bytearray(files_of(name)[last][0])
    content[archive.record + archive.labels - 1] = archive.classes
    (unpack(tmp_path, name) / last).write_bytes(content)
    message = f"expected labels in 0..{archive.classes - 1}, got {archive.classes}: fetch"
    refused(ValueError, message, READERS[name], tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[: len(content) // 2], "corrupt archive"),
        (lambda content: content[:-4], "corrupt archive"),
        (lambda content: content[:-8] + b"\0" * 8, "corrupt archive"),
        (lambda content: content[:200] + b"\xff" * 50 + content[250:], "corrupt archive"),
        (lambda content: b"<html>not found</html>", "corrupt archive"),
        (lambda content: b"", "corrupt archive"),
        (lambda content: gzip.compress(b"no tar at all" * 100), "corrupt archive"),
        (lambda content: pickle.dumps({"data": b"", "labels": []}), "corrupt archive"),
    ],
)
def test_damaged_archives(tmp_path, damage, message):
    path = write_archive(tmp_path, "cifar10", members_of("cifar10"))
    path.write_bytes(damage(path.read_bytes()))
    refused(ValueError, f"cifar-10-binary.tar.gz: {message} .*: fetch it again", cifar10, tmp_path)


def header(name, content, kind):
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(content)
    return info.tobuf(tarfile.USTAR_FORMAT) + content.ljust(-(-len(content) // 512) * 512, b"\0")


@pytest.mark.parametrize(
    "content",
    [
        header("x", b"", tarfile.XHDTYPE) * 3000,
        header("x", b"30 GNU.sparse.map=1,a,b,c,ddd\n", tarfile.XHDTYPE) + header("y", b"", tarfile.REGTYPE),
    ],
    ids=["headers of headers", "no number"],
)
def test_headers_that_lead_astray(tmp_path, content):
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(gzip.compress(content))
    refused(ValueError, r"cifar-10-binary.tar.gz: corrupt archive \(.*\): fetch it again", cifar10, tmp_path)


def test_a_member_that_is_missing(tmp_path, name):
    folder, last = archive_of(name).folder, next(iter(archive_of(name).test))
    write_archive(tmp_path, name, [m for m in members_of(name) if not m[0].name.endswith(last)])
    refused(ValueError, f"expected {folder}/{last} in it, found none: fetch the binary", READERS[name], tmp_path)


@pytest.mark.parametrize(
    ("kind", "link"),
    [
        (tarfile.SYMTYPE, "/etc/passwd"),
        (tarfile.LNKTYPE, "cifar-10-batches-bin/data_batch_1.bin"),
        (tarfile.DIRTYPE, ""),
        (tarfile.FIFOTYPE, ""),
        (tarfile.CHRTYPE, ""),
    ],
)
def test_members_that_are_no_plain_files(tmp_path, kind, link):
    last = "cifar-10-batches-bin/test_batch.bin"
    good = [m for m in members_of("cifar10") if m[0].name != last]
    write_archive(tmp_path, "cifar10", [*good, member(last, b"", kind, link)])
    refused(ValueError, f"holds {last} that is no plain file: this is not the archive", cifar10, tmp_path)


def test_a_member_that_comes_twice(tmp_path):
    write_archive(tmp_path, "cifar10", members_of("cifar10") * 2)
    refused(ValueError, r"holds cifar-10-batches-bin/data_batch_1.bin a second time", cifar10, tmp_path)


def test_nothing_is_written_whatever_the_names(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    escaping = [
        member("../escaped", b"x"),
        member(str(tmp_path / "absolute"), b"x"),
        member("cifar-10-batches-bin/link", b"", tarfile.SYMTYPE, str(tmp_path)),
        member("cifar-10-batches-bin/link/through", b"x"),
    ]
    write_archive(inside, "cifar10", [*escaping, *members_of("cifar10")])
    assert len(cifar10(inside).train.inputs) == 5 * IMAGES
    assert [path.name for path in tmp_path.rglob("*")] == ["inside", "cifar-10-binary.tar.gz"]


@pytest.mark.parametrize("prefix", ["../", "/", "./../inside/"])
def test_names_that_lead_elsewhere_are_not_the_expected_ones(tmp_path, prefix):
    moved = members_of("cifar10")
    for info, _ in moved:
        info.name = prefix + info.name
    write_archive(tmp_path, "cifar10", moved)
    refused(ValueError, "expected cifar-10-batches-bin/data_batch_1.bin, .* in it, found none", cifar10, tmp_path)


@pytest.mark.parametrize("where", ["another member", "behind the archive"])
def test_an_archive_that_would_fill_the_memory(tmp_path, monkeypatch, where):
    monkeypatch.setattr(cifar, "MOST_BYTES", 2**20)
    zeros = bytes(2**21)
    members = members_of("cifar10")
    path = write_archive(tmp_path, "cifar10", [member("zeros", zeros), *members] if where[0] == "a" else members)
    if where[0] == "b":
        path.write_bytes(path.read_bytes() + gzip.compress(zeros))
    assert path.stat().st_size < 2**17 + sum(len(content) for _, content in members)
    refused(ValueError, "expected at most 1048576 bytes unpacked, got more: this is another archive", cifar10, tmp_path)


def test_a_huge_file_is_not_read(tmp_path, name):
    place, first = unpack(tmp_path, name), next(iter(archive_of(name).sizes))
    with (place / first).open("r+b") as file:
        file.truncate(2**40)  # holes, no bytes on the disk
    refused(ValueError, f"{first}: too long, expected .* bytes, got {2**40}", READERS[name], tmp_path)
