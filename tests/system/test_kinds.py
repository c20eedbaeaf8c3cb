"""What a file is, by its content."""

import io
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save

from lbgap.system.kinds import recognise

TENSORS = {"weight": torch.ones(2, 3)}


def of(tmp_path, content, name="file"):
    (tmp_path / name).write_bytes(content)
    return recognise(tmp_path / name)


def saved(**options):
    buffer = io.BytesIO()
    torch.save(TENSORS, buffer, **options)
    return buffer.getvalue()


def archive(*names):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in names:
            file.writestr(name, "x")
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["file", "a.safetensors", "a.pt", "a.json"])
def test_formats_with_weights_go_by_their_content(tmp_path, name):
    assert of(tmp_path, saved(), name).format == "torch"
    for protocol in (2, 3, 4, 5):
        pickles = saved(_use_new_zipfile_serialization=False, pickle_protocol=protocol)
        assert of(tmp_path, pickles, name).format == "torch pickles"
    assert of(tmp_path, save(TENSORS), name).format == "safetensors"
    assert of(tmp_path, b' \n{"weight_map": {}}', name).format == "json"


def test_numpy_archives(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.ones(2))
    np.savez_compressed(tmp_path / "b.npz", a=np.ones(2))
    assert [recognise(tmp_path / name).words for name in ("a.npz", "b.npz")] == ["a NumPy archive (.npz)"] * 2
    np.save(tmp_path / "a.npy", np.ones(2))
    assert recognise(tmp_path / "a.npy").words == "a NumPy array (.npy)"


def test_programs_are_not_weights(tmp_path):
    assert "TorchScript" in of(tmp_path, archive("net/constants.pkl", "net/data.pkl", "net/code/net.py")).words
    assert "torch.export" in of(tmp_path, archive("net/models/model.json", "net/data/weights.npy")).words
    assert "a Keras model" in of(tmp_path, archive("config.json", "model.weights.h5", "metadata.json")).words


def test_a_tar_archive(tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        file.addfile(tarfile.TarInfo("weights.pt"), io.BytesIO())
    assert of(tmp_path, buffer.getvalue()) == ("other", "a tar archive (unpack it first)")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<!DOCTYPE html>\n<html>", "an HTML page"),
        (b"\n <HTML lang='en'>", "an HTML page"),
        (b"<?xml version='1.0'?>", "an XML file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a pointer of Git LFS"),
        (b"weights are elsewhere\n", "a text file"),
        ("größer ".encode() * 200, "a text file"),
        (b"GGUF\x03\0\0\0", "a GGUF model"),
        (b"\x89HDF\r\n\x1a\n\0", "an HDF5 file"),
        (b"\x08\x07\x12\x07pytorch\x1a", "a protocol buffer"),
        (b"\x1f\x8b\x08\0", "compressed by gzip"),
        (b"\x80\x04\x95\0\0\0\0\0\0\0\0}\x94.", "a pickle that torch.save did not write"),
        (b"\x80\x02}q\0.", "a pickle that torch.save did not write"),
        (archive("a.txt"), "a zip archive that torch.save did not write"),
        (b"\x01\x02\xff\xfe", r"of no known kind (it begins with the bytes 01 02 ff fe)"),
    ],
)
def test_other_kinds(tmp_path, content, words):
    kind = of(tmp_path, content, "model.pt")
    assert kind.format == "other"
    assert kind.words.startswith(words)


def test_kinds_without_first_bytes_go_by_their_name(tmp_path):
    assert of(tmp_path, b"\x0a\x0b\xff", "a.onnx").words == "an ONNX model"
    assert of(tmp_path, b"\x0a\x0b\xff", "a.pb").words == "a TensorFlow graph"


def test_damage(tmp_path):
    assert of(tmp_path, b"", "a.pt") == ("damaged", "damaged, it is empty")
    whole = saved()
    for length in range(4, len(whole), 101):
        assert of(tmp_path, whole[:length]).format == "damaged"
    assert of(tmp_path, b"\xff" * 64, "a.safetensors").format == "damaged"
    with pytest.raises(FileNotFoundError, match="missing"):
        recognise(tmp_path / "missing")
