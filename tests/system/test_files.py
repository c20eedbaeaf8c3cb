"""Files appear whole or not at all, whatever goes wrong while they are written."""

import errno
import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch

from lbgap.system import files


def run_script(script, *arguments):
    """Run Python code in a fresh process and return what it printed, as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_bytes_replace_the_old_file(tmp_path):
    path = tmp_path / "a.bin"
    files.write_bytes(path, b"old" * 1000)
    files.write_bytes(str(path), b"")
    assert path.read_bytes() == b""
    files.write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_new_file_gets_the_permissions_of_the_umask(tmp_path):
    files.write_bytes(tmp_path / "a", b"")
    (tmp_path / "b").write_bytes(b"")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_a_link_is_followed(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    files.write_bytes(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def test_short_writes_are_continued(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:7]))
    files.write_bytes(tmp_path / "a", bytes(range(100)))
    assert (tmp_path / "a").read_bytes() == bytes(range(100))


def test_a_digest_tells_bits_shapes_and_types_apart():
    values = torch.tensor([[1.0, -0.0], [float("nan"), 2.0]])
    others = [values.abs(), values.double(), values.flatten(), values.T, values[:1]]
    digests = {files.digest([one]) for one in [values, *others]}
    assert len(digests) == 6
    assert files.digest([values.clone()]) == files.digest([values.T.contiguous().T]) in digests
    assert files.digest([values, values[0]]) != files.digest([values[0], values])
    for empty in (torch.tensor(3), torch.empty(0), torch.nn.Parameter(values.bfloat16())):
        assert len(files.digest([empty])) == 64


@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_says_so(tmp_path, monkeypatch, call):
    path = tmp_path / "a.json"
    files.write_json(path, [1])

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(OSError) as caught:
            files.write_json(path, [2])
    assert caught.value.errno == errno.ENOSPC
    assert str(caught.value).endswith(f"cannot write {path}: No space left on device; the previous version is intact")
    assert files.read_json(path) == [1]
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_first_version_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="No such file or directory; nothing was written") as caught:
        files.write_bytes(tmp_path / "missing" / "a", b"x")
    assert "\n" not in str(caught.value)
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match="cannot write"):
        files.write_bytes(tmp_path / "folder", b"x")
    assert os.listdir(tmp_path) == ["folder"]


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_an_interrupt_leaves_the_old_file(tmp_path, monkeypatch, call):
    path = tmp_path / "a"
    files.write_bytes(path, b"old")

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, call, interrupt)
        with pytest.raises(KeyboardInterrupt):
            files.write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX resource limits")
def test_a_real_limit_on_the_size_of_files(tmp_path):
    script = """
        import json, os, resource, signal, sys
        from lbgap.system import files
        path = sys.argv[1]
        files.write_bytes(path, b"old" * 100)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            files.write_bytes(path, b"new" * 10000)
            message = ""
        except OSError as error:
            message = str(error)
        print(json.dumps([message, open(path).read() == "old" * 100, os.listdir(os.path.dirname(path))]))
    """
    message, intact, entries = run_script(script, tmp_path / "a")
    assert message.endswith("File too large; the previous version is intact")
    assert intact
    assert entries == ["a"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_every_step_of_a_write(tmp_path):
    script = """
        import json, os, signal, sys
        from lbgap.system import files
        path, seen, k, status = sys.argv[1], [], 0, -1
        calls = {name: getattr(os, name) for name in ("open", "write", "fsync", "replace", "close")}
        while status != 0:
            k += 1
            for entry in os.listdir(os.path.dirname(path)):
                os.unlink(os.path.join(os.path.dirname(path), entry))
            files.write_bytes(path, b"old" * 1000)
            child = os.fork()
            if child == 0:
                left = k
                def bomb(name):
                    def call(*arguments):
                        global left
                        left -= 1
                        if left == 0:
                            if name == "write":
                                calls["write"](arguments[0], arguments[1][:100])
                            os.kill(os.getpid(), signal.SIGKILL)
                        return calls[name](*arguments)
                    return call
                for name in calls:
                    setattr(os, name, bomb(name))
                files.write_bytes(path, b"new" * 2000)
                os._exit(0)
            status = os.waitpid(child, 0)[1]
            content = open(path, "rb").read()
            whole = "old" if content == b"old" * 1000 else "new" if content == b"new" * 2000 else "torn"
            leftovers = len(os.listdir(os.path.dirname(path))) - 1
            files.remove_temporaries(os.path.dirname(path))
            seen.append([whole, leftovers, len(os.listdir(os.path.dirname(path)))])
        print(json.dumps(seen))
    """
    seen = run_script(script, tmp_path / "a")
    assert [whole for whole, _, _ in seen] == sorted((whole for whole, _, _ in seen), reverse=True)
    assert {whole for whole, _, _ in seen} == {"old", "new"}
    assert any(leftovers for _, leftovers, _ in seen)
    assert all(cleaned == 1 for _, _, cleaned in seen)


def test_json_round_trip(tmp_path):
    value = {"a": [1, 2.5, None, True, "é\n"], "b": {"c": 0.1 + 0.2}, "d": 1e-320}
    files.write_json(tmp_path / "a.json", value)
    assert files.read_json(tmp_path / "a.json") == value
    files.write_json_lines(tmp_path / "a.jsonl", [value, value])
    assert files.read_json_lines(tmp_path / "a.jsonl") == [value, value]
    files.write_json_lines(tmp_path / "a.jsonl", [])
    assert files.read_json_lines(tmp_path / "a.jsonl") == []


@pytest.mark.parametrize("value", [float("nan"), {"a": [float("inf")]}, object(), {(1, 2): 3}])
def test_what_is_no_json_is_refused(tmp_path, value):
    path = tmp_path / "a.json"
    files.write_json(path, 1)
    with pytest.raises(ValueError, match=r"cannot write .*a\.json: .*pass only strings, finite numbers"):
        files.write_json(path, value)
    assert files.read_json(path) == 1


@pytest.mark.parametrize("text", [b"", b"{", b'{"a": 1', b"\xff\xfe\x00", b"[1] 2", b"[" * 100_000])
def test_damaged_json_names_the_file(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=r"a\.json is damaged, not JSON") as caught:
        files.read_json(path)
    assert "\n" not in str(caught.value)


def test_damaged_json_lines_name_the_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": 2')
    with pytest.raises(ValueError, match=r"a\.jsonl is damaged, not JSON \(line 2: "):
        files.read_json_lines(path)


def test_missing_files_are_named_by_python(tmp_path):
    for read in (files.read_json, files.read_json_lines, files.read_safetensors):
        with pytest.raises(FileNotFoundError, match="missing"):
            read(tmp_path / "missing")
        with pytest.raises(IsADirectoryError):
            read(tmp_path)


def test_tensors_round_trip_bit_for_bit(tmp_path):
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(6, 4, generator=generator)
    tensors = {
        "plain": base,
        "same memory": base,
        "part": base[1:3],
        "strided": base.t()[::2],
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(float("nan")),
        "half": base.to(torch.bfloat16),
        "integer": torch.arange(5),
        "boolean": base > 0,
        "gradient": torch.nn.Parameter(base),
        "expanded": torch.ones(1).expand(3),
    }
    path = tmp_path / "a.safetensors"
    files.write_safetensors(path, tensors, {"key": "value"})
    read, metadata = files.read_safetensors(path)
    assert metadata == {"key": "value"}
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert not read[name].requires_grad
        torch.testing.assert_close(read[name], tensor.detach(), rtol=0, atol=0, equal_nan=True)
    first = path.read_bytes()
    files.write_safetensors(path, dict(reversed(tensors.items())), {"key": "value"})
    assert path.read_bytes() == first


def test_read_tensors_own_their_memory(tmp_path):
    path = tmp_path / "a.safetensors"
    files.write_safetensors(path, {"a": torch.ones(100_000)}, {})
    tensors, metadata = files.read_safetensors(path)
    os.truncate(path, 0)
    assert metadata == {}
    assert tensors["a"].sum() == 100_000


def test_damaged_tensors_name_the_file(tmp_path):
    path = tmp_path / "a.safetensors"
    files.write_safetensors(path, {"a": torch.ones(9), "b": torch.zeros(2)}, {"k": "v"})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"a\.safetensors is damaged, not safetensors") as caught:
            files.read_safetensors(path)
        assert "\n" not in str(caught.value)
    path.write_bytes(b"\xff" * len(whole))
    with pytest.raises(ValueError, match="is damaged"):
        files.read_safetensors(path)


def test_tensors_that_the_format_lacks_are_refused(tmp_path):
    for bad in (torch.eye(3).to_sparse(), torch.zeros(2, dtype=torch.complex128)):
        with pytest.raises(ValueError, match=r"cannot write .*a\.safetensors: ") as caught:
            files.write_safetensors(tmp_path / "a.safetensors", {"a": bad}, {})
        assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_temporaries_are_told_from_the_users_files(tmp_path):
    for name in (".a.json.0123456789abcdef.tmp", ".a.tmp", "a.0123456789abcdef.tmp", "b"):
        (tmp_path / name).write_bytes(b"")
    files.remove_temporaries(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".a.tmp", "a.0123456789abcdef.tmp", "b"]


@pytest.mark.skipif(files.fcntl is None, reason="needs POSIX locks")
def test_a_lock_keeps_others_out_and_ends(tmp_path):
    with (
        files.locked(tmp_path),
        pytest.raises(BlockingIOError, match="is in use: another process writes to it"),
        files.locked(tmp_path),
    ):
        pass
    with files.locked(tmp_path):
        pass


def test_whether_a_folder_is_locked(tmp_path, monkeypatch):
    folder = tmp_path / "a"
    assert files.is_locked(folder) is False
    folder.mkdir()
    assert files.is_locked(folder) is False
    with files.locked(folder):
        assert files.is_locked(folder) is True
    assert files.is_locked(folder) is False
    monkeypatch.setattr(files, "fcntl", None)
    assert files.is_locked(folder) is None
