"""Fetching, from a server of the tests' own that cuts, ignores ranges, or has another file; from nowhere else."""

import contextlib
import gzip
import hashlib
import http.server
import importlib
import re
import socket
import struct
import threading

import numpy as np
import pytest
import torch

from lbgap.datasets import load, mnist
from lbgap.datasets._download import Source, fetch
from lbgap.system import files

CONTENT = np.random.default_rng(0).bytes(100_000)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.asked.append((self.path, self.headers["Range"]))
        if self.path not in server.files:
            self.send_error(404)
            return
        content, start = server.files[self.path], 0
        if self.headers["Range"] and server.ranges:
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        if server.lengths:
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = len(content) if server.cut is None else server.cut
        with contextlib.suppress(ConnectionError):  # whoever asked may have had enough
            self.wfile.write(content[start:end])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    """A server of ``files``; ``cut``: where it hangs up, ``ranges`` and ``lengths``: whether it knows of them."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        made.files, made.asked, made.cut, made.ranges, made.lengths = {"/file": CONTENT}, [], None, True, True
        made.url = f"http://127.0.0.1:{made.server_port}"
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def source(*urls, content=CONTENT, name="file"):
    return Source(name, urls, len(content), hashlib.sha256(content).hexdigest())


def refused(error, message, *arguments):
    with pytest.raises(error, match=message) as caught:
        fetch(*arguments)
    assert "\n" not in str(caught.value)


def closed_port():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return unused.getsockname()[1]


@pytest.mark.parametrize("lengths", [True, False])
def test_a_file_is_there_whole_and_alone(server, tmp_path, lengths):
    server.lengths = lengths
    folder = tmp_path / "new" / "folder"
    path = fetch(source(f"{server.url}/file"), folder)
    assert path == folder / "file"
    assert path.read_bytes() == CONTENT
    assert list(folder.iterdir()) == [path]
    assert server.asked == [("/file", None)]


def test_a_file_that_is_there_is_not_asked_for(server, tmp_path):
    (tmp_path / "file").write_bytes(b"whatever the user put there")
    fetch(source(f"{server.url}/file"), tmp_path)
    assert (tmp_path / "file").read_bytes() == b"whatever the user put there"
    assert server.asked == []


@pytest.mark.parametrize("lengths", [True, False])
def test_what_was_cut_is_resumed(server, tmp_path, lengths):
    server.cut, server.lengths = 60_000, lengths
    message = (
        f"cannot fetch file .*{server.url}/file: .*60000 of 100000 bytes are kept in .*file.part and the same call "
        f"goes on from there, or put the file into {tmp_path} by hand"
    )
    refused(ConnectionError, message, source(f"{server.url}/file"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file.part"]
    server.cut = 90_000
    refused(ConnectionError, "90000 of 100000 bytes are kept", source(f"{server.url}/file"), tmp_path)
    server.cut = None
    assert fetch(source(f"{server.url}/file"), tmp_path).read_bytes() == CONTENT
    assert [asked for _, asked in server.asked] == [None, "bytes=60000-", "bytes=90000-"]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_mirror_goes_on_where_another_was_cut(server, tmp_path):
    (tmp_path / "file.part").write_bytes(CONTENT[:70_000])
    urls = f"http://127.0.0.1:{closed_port()}/file", f"{server.url}/nothing", f"{server.url}/file"
    assert fetch(source(*urls), tmp_path).read_bytes() == CONTENT
    assert server.asked == [("/nothing", "bytes=70000-"), ("/file", "bytes=70000-")]


def test_a_server_without_ranges_sends_all_again(server, tmp_path):
    server.ranges = False
    (tmp_path / "file.part").write_bytes(b"x" * 70_000)
    assert fetch(source(f"{server.url}/file"), tmp_path).read_bytes() == CONTENT
    assert server.asked == [("/file", "bytes=70000-")]


def test_a_whole_part_is_only_checked(server, tmp_path):
    (tmp_path / "file.part").write_bytes(CONTENT)
    assert fetch(source(f"{server.url}/file"), tmp_path).read_bytes() == CONTENT
    assert server.asked == []


@pytest.mark.parametrize("part", [b"", b"x" * 70_000, b"x" * 100_000, b"x" * 100_001])
def test_what_has_another_checksum_is_discarded(server, tmp_path, part):
    (tmp_path / "file.part").write_bytes(part)
    server.files["/file"] = CONTENT[::-1]
    message = "file: expected SHA-256 [0-9a-f]{64}, what arrived has [0-9a-f]{64}: it was discarded, try again"
    refused(ValueError, message, source(f"{server.url}/file"), tmp_path)
    assert list(tmp_path.iterdir()) == []
    server.files["/file"] = CONTENT
    assert fetch(source(f"{server.url}/file"), tmp_path).read_bytes() == CONTENT


def test_another_file_is_not_begun(server, tmp_path):
    server.files["/file"] = b"<html>please log in</html>"
    message = "expected '100000', the server offers '26': it holds another file"
    refused(ConnectionError, f"{message}.*: try again, or put the file into", source(f"{server.url}/file"), tmp_path)
    (tmp_path / "file.part").write_bytes(CONTENT[:10])
    message = "expected 'bytes 10-99999/100000', the server offers 'bytes 10-25/26': it holds another file"
    refused(ConnectionError, message, source(f"{server.url}/file"), tmp_path)
    assert (tmp_path / "file.part").read_bytes() == CONTENT[:10]


def test_no_more_is_taken_than_is_expected(server, tmp_path):
    server.lengths = False
    server.files["/file"] = bytes(2**24)
    refused(ValueError, "expected SHA-256 .*: it was discarded", source(f"{server.url}/file"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    url = f"http://127.0.0.1:{closed_port()}/file"
    message = f"cannot fetch file .{url}: .*refused.*: try again, or put the file into {tmp_path} by hand"
    refused(ConnectionError, message, source(url), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_status_is_said(server, tmp_path):
    refused(ConnectionError, "nothing: HTTP 404 Not Found", source(f"{server.url}/nothing"), tmp_path)


def test_a_server_that_is_silent(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("lbgap.datasets._download.TIMEOUT_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/file"
        refused(ConnectionError, "timed out", source(url), tmp_path)


def test_two_processes_do_not_write_one_file(server, tmp_path):
    with files.locked(tmp_path):
        refused(BlockingIOError, "is in use: another process writes", source(f"{server.url}/file"), tmp_path)


def test_progress_is_shown_where_it_is_asked_for(server, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as if on a terminal
    fetch(source(f"{server.url}/file"), tmp_path / "silent")
    assert capsys.readouterr() == ("", "")
    fetch(source(f"{server.url}/file"), tmp_path / "shown", progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "file" in err
    assert "100.0/100.0 kB" in re.sub("\x1b[^a-zA-Z]*[a-zA-Z]", "", err)


def idx(array):
    return gzip.compress(bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes())


@pytest.fixture
def small_mnist(server, monkeypatch):
    """The four files of a small MNIST on the server, and their checksums where those of the real ones are."""
    module, known = importlib.import_module("lbgap.datasets.mnist"), {}
    rng = np.random.default_rng(0)
    for part, count in (("train", 5), ("t10k", 2)):
        for stem, kind, array in (
            ("images", "idx3", rng.integers(0, 256, (count, 28, 28))),
            ("labels", "idx1", rng.integers(0, 10, count)),
        ):
            content = idx(array.astype("u1"))
            server.files[f"/{part}-{stem}-{kind}-ubyte.gz"] = content
            known[f"{part}-{stem}"] = len(content), hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(module, "_MIRRORS", (f"http://127.0.0.1:{closed_port()}/", f"{server.url}/"))
    monkeypatch.setattr(module, "_FILES", known)
    return server


def test_mnist_fetches_what_is_missing(small_mnist, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"put the four MNIST files there, .* or fetch them with download=True"):
        mnist(tmp_path)
    assert small_mnist.asked == []
    data = mnist(tmp_path, download=True)
    assert data.train.inputs.shape == (5, 784)
    assert len(small_mnist.asked) == 4
    again = load("mnist", tmp_path, download=True)
    assert torch.equal(again.train.inputs, data.train.inputs)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    load("mnist", tmp_path, download=True)
    assert [path for path, _ in small_mnist.asked[4:]] == ["/t10k-labels-idx1-ubyte.gz"]


def test_cifar_fetches_the_archive(server, monkeypatch, tmp_path):
    module = importlib.import_module("lbgap.datasets.cifar")
    archive = module.CIFAR10
    changed = source(f"{server.url}/file", name=archive.source.name)
    monkeypatch.setattr(module, "CIFAR10", module.Archive(**{**vars(archive), "source": changed}))
    with pytest.raises(ValueError, match=r"cifar-10-binary.tar.gz: corrupt archive"):  # the server's file is none
        load("cifar10", tmp_path, download=True)
    assert (tmp_path / archive.source.name).read_bytes() == CONTENT
    assert len(server.asked) == 1


def test_the_command_line_fetches_on_request(small_mnist, tmp_path, monkeypatch, lbgap_command):
    monkeypatch.chdir(tmp_path)
    arguments = ("train", "--out", "run", "--data", "mnist", "--data-dir", "files", "--hidden", "4", "--epochs", "1")
    code, _, err = lbgap_command(*arguments)
    assert code == 1
    assert "name their folder with --data-dir, or fetch them with --download" in err
    code, _, err = lbgap_command(*arguments, "--download")
    assert (code, err) == (0, "")
    assert len(small_mnist.asked) == 4
    assert lbgap_command("sharpness", "run", "--epsilon", "1e-3")[0] == 0
    small_mnist.files.clear()
    code, _, err = lbgap_command(*arguments[:-6], "--data-dir", "other", "--download")
    assert code == 1
    assert err.startswith("lbgap: cannot fetch train-images-idx3-ubyte.gz (")
    assert err.count("\n") == 1
