"""The one place that writes to disk: a file appears whole or not at all, and nothing is ever pickled."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

try:
    import fcntl
except ImportError:  # not a POSIX system: no locks there
    fcntl = None  # type: ignore[assignment]

PathLike = str | os.PathLike[str]

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")


def write_bytes(path: PathLike, data: bytes) -> None:
    """Replace a file by new content: written next to it, flushed to the disk, then renamed over it.

    Killed at any moment, the file holds the old or the new content; a temporary file may then stay behind,
    which :func:`remove_temporaries` finds. A symbolic link is followed.

    Args:
        path: The file, in a folder that exists.
        data: The whole content.

    Raises:
        OSError: The disk is full, the folder is missing or not writable, and the like. The temporary file
            is gone and the previous version untouched.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{os.urandom(8).hex()}.tmp")
    try:
        _write_through(temporary, data)
        os.replace(temporary, target)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            left = "the previous version is intact" if os.path.lexists(target) else "nothing was written"
            raise OSError(error.errno, f"cannot write {path}: {_reason(error)}; {left}") from error
        raise
    _sync_folder(target.parent)


def _write_through(path: Path, data: bytes) -> None:
    # 0o666 lets the user's umask decide, as open() does; tempfile would make the file private.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut, where the system lets a folder be flushed."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else " ".join(str(error).split())


def write_json(path: PathLike, value: object) -> None:
    """Write a value as indented JSON.

    Args:
        path: The file, in a folder that exists.
        value: What ``json`` can encode, without NaN or infinities, which are not JSON.

    Raises:
        ValueError: The value is not JSON.
        OSError: As for :func:`write_bytes`.
    """
    write_bytes(path, (_encode(path, value, indent=2) + "\n").encode())


def write_json_lines(path: PathLike, values: Iterable[object]) -> None:
    """Write one line of JSON a value.

    Args:
        path: The file, in a folder that exists.
        values: Each as for :func:`write_json`.

    Raises:
        ValueError: One of the values is not JSON.
        OSError: As for :func:`write_bytes`.
    """
    write_bytes(path, "".join(_encode(path, value) + "\n" for value in values).encode())


def _encode(path: PathLike, value: object, indent: int | None = None) -> str:
    try:
        return json.dumps(value, indent=indent, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"cannot write {path}: {error}; pass only strings, finite numbers, lists and dicts") from error


def read_json(path: PathLike) -> Any:
    """Read a JSON file.

    Args:
        path: The file.

    Returns:
        The value.

    Raises:
        ValueError: It is not JSON.
        OSError: It is missing or cannot be read.
    """
    return _decode(path, Path(path).read_bytes())


def read_json_lines(path: PathLike) -> list[Any]:
    """Read a file of one JSON value a line.

    Args:
        path: The file.

    Returns:
        The values.

    Raises:
        ValueError: One of the lines is not JSON.
        OSError: It is missing or cannot be read.
    """
    lines = Path(path).read_bytes().splitlines()
    return [_decode(path, line, f"line {number}: ") for number, line in enumerate(lines, 1)]


def _decode(path: PathLike, text: bytes, where: str = "") -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # of which bad UTF-8 and bad JSON are kinds
        raise ValueError(f"{path} is damaged, not JSON ({where}{error}): restore or delete it") from error


def write_safetensors(path: PathLike, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write named tensors; the same tensors and a single metadata entry give the same bytes.

    Args:
        path: The file, in a folder that exists.
        tensors: Any shapes, strides, devices; tensors that share memory are stored once a name.
        metadata: Text to keep with them. With more than one entry their order in the file is arbitrary.

    Raises:
        ValueError: A tensor is sparse, or of a dtype that the format lacks.
        OSError: As for :func:`write_bytes`.
    """
    separate: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu()
        if plain.layout is torch.strided:  # save() refuses the others, and says so
            plain = plain.contiguous()
            if plain.untyped_storage().data_ptr() in storages:
                plain = plain.clone()
            storages.add(plain.untyped_storage().data_ptr())
        separate[name] = plain
    try:
        data = save(separate, dict(metadata))
    except (SafetensorError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise ValueError(f"cannot write {path}: {' '.join(str(error).split())}") from error
    write_bytes(path, data)


def read_safetensors(path: PathLike) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read named tensors and their metadata.

    Args:
        path: The file.

    Returns:
        The tensors on the CPU, in memory of their own, and the metadata, empty if there is none.

    Raises:
        ValueError: The file is truncated or not safetensors.
        OSError: It is missing or cannot be read.
    """
    Path(path).open("rb").close()  # a missing file or folder in the way: Python's own message, which names it
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            metadata = dict(file.metadata() or {})
            # A clone, for the file is mapped into memory and whoever truncates it would crash the process.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged, not safetensors ({error}): restore or delete it") from error
    return tensors, metadata


def digest(tensors: Iterable[Tensor]) -> str:
    """Hash the bytes, shapes and dtypes of some tensors.

    Args:
        tensors: On any device; their order counts.

    Returns:
        Their SHA-256, in hexadecimal.
    """
    state = hashlib.sha256()
    for tensor in tensors:
        state.update(f"{tensor.dtype} {tuple(tensor.shape)};".encode())
        state.update(bytes_of(tensor).numpy().data)
    return state.hexdigest()


def bytes_of(tensor: Tensor) -> Tensor:
    """The bytes of a tensor, ``(bytes,)`` uint8 on the host; no copy where it lies there in one piece."""
    return tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)


def remove_temporaries(folder: PathLike) -> None:
    """Delete the temporary files that a killed process left in a folder.

    Args:
        folder: The folder, in which nobody writes now.

    Raises:
        OSError: One of them cannot be deleted.
    """
    for path in Path(folder).iterdir():
        if is_temporary(path):
            path.unlink(missing_ok=True)


def is_temporary(path: Path) -> bool:
    """Tell whether a file is the leftover of a :func:`write_bytes` that was killed.

    Args:
        path: The file; only its name counts.

    Returns:
        Whether the name is one that only :func:`write_bytes` gives.
    """
    return _TEMPORARY.fullmatch(path.name) is not None


@contextmanager
def locked(folder: PathLike) -> Iterator[None]:
    """Keep other processes that ask for the same lock out of a folder.

    The system drops the lock when the process ends, however it ends. File systems without locks, and
    Windows, are not protected.

    Args:
        folder: The folder, which exists.

    Raises:
        BlockingIOError: Another process holds it.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = f"{folder} is in use: another process writes to it; wait for it or choose another folder"
            raise BlockingIOError(errno.EWOULDBLOCK, message) from None
        except OSError:
            pass
        yield
    finally:
        os.close(descriptor)


def is_locked(folder: PathLike) -> bool | None:
    """Tell whether a process, this one included, holds the lock of :func:`locked` on a folder.

    Args:
        folder: The folder; one that does not exist is not locked.

    Returns:
        Whether somebody does; None where the system or the file system has no locks.
    """
    if fcntl is None:
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return False
