"""Fetching a file whose content is known beforehand: resumed where it was cut, checked, and never there by halves."""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lbgap.system import files
from lbgap.system.device import first_line
from lbgap.system.progress import bytes_bar

TIMEOUT_SECONDS = 30.0
CHUNK_BYTES = 2**18

_CUT = (OSError, http.client.HTTPException)  # of which time-outs, and urllib's own errors, are kinds


@dataclass(frozen=True)
class Source:
    """A file that may be fetched.

    Attributes:
        name: What it is called in the user's folder.
        urls: Where it is, the first that answers being taken.
        size: In bytes.
        sha256: Of its content, in hexadecimal.
    """

    name: str
    urls: tuple[str, ...]
    size: int
    sha256: str


def fetch(source: Source, folder: Path, progress: bool = False) -> Path:
    """Fetch a file into a folder, under its name once it is whole and its checksum is right.

    What has arrived lies in ``NAME.part``. Where a connection is cut it stays there, and the next call asks the server
    for the rest alone.

    Args:
        source: The file.
        folder: Made if there is none.
        progress: Whether to show a bar on standard error.

    Returns:
        The path of the file.

    Raises:
        ValueError: What arrived has another checksum; it was discarded.
        ConnectionError: No server gives the file, or the connection was cut.
        BlockingIOError: Another process fetches into the same folder.
        OSError: The folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target, part = folder / source.name, folder / f"{source.name}.part"
    with files.locked(folder), bytes_bar(source.name, source.size, progress) as heard:
        if target.is_file():  # another process was faster
            return target
        reasons = []
        for url in source.urls:
            try:
                _receive(url, source.size, part, heard)
                break
            except _UnusableError as error:
                reasons.append(f"{url}: {error}")
        else:
            raise ConnectionError(_failure(source, part, reasons))
        _accept(source, part, target)
    return target


class _UnusableError(Exception):
    """Why an address does not give the file."""


def _failure(source: Source, part: Path, reasons: list[str]) -> str:
    present = _size(part)
    kept = (
        f"{present} of {source.size} bytes are kept in {part} and the same call goes on from there" if present else ""
    )
    return (
        f"cannot fetch {source.name} ({'; '.join(reasons)}): {kept or 'try again'}, "
        f"or put the file into {part.parent} by hand"
    )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _receive(url: str, size: int, part: Path, heard: Callable[[int], None] | None) -> None:
    """Ask for what is missing of a file, and append it to what is there."""
    present = _size(part)
    if present >= size:
        return  # whole, or too long: the checksum will say
    with _ask(url, present) as answer:
        start = present if answer.status == 206 else 0  # a server without ranges sends all of it again
        _judge(answer.headers, start, size)
        with part.open("ab" if start else "wb") as file:
            arrived = start
            while arrived <= size and (chunk := _read(answer)):
                file.write(chunk)
                arrived += len(chunk)
                if heard is not None:
                    heard(arrived)
            file.flush()
            os.fsync(file.fileno())
    if arrived < size:
        raise _UnusableError(f"the connection ended after {arrived} of {size} bytes")


def _ask(url: str, present: int) -> Any:
    headers = {"User-Agent": "lbgap"} | ({"Range": f"bytes={present}-"} if present else {})
    try:
        # An opener of one's own, since urlopen() keeps one for the whole process.
        opener = urllib.request.build_opener()
        return opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        with error:
            raise _UnusableError(f"HTTP {error.code} {error.reason}") from error
    except _CUT as error:
        raise _UnusableError(first_line(getattr(error, "reason", None) or error)) from error


def _read(answer: Any) -> bytes:
    try:
        chunk: bytes = answer.read1(CHUNK_BYTES)
    except _CUT as error:
        raise _UnusableError(first_line(error)) from error
    return chunk


def _judge(headers: http.client.HTTPMessage, start: int, size: int) -> None:
    """Refuse an answer that says that it is another file or another part of it, before anything is overwritten."""
    wanted, found = (f"bytes {start}-{size - 1}/{size}", headers["Content-Range"])
    if not start:
        wanted, found = str(size), headers["Content-Length"] or str(size)
    if found != wanted:
        raise _UnusableError(f"expected {wanted!r}, the server offers {found!r}: it holds another file")


def _accept(source: Source, part: Path, target: Path) -> None:
    """Give a file its name if it is what it should be; else discard it."""
    with part.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != source.sha256:
        part.unlink()
        raise ValueError(
            f"{source.name}: expected SHA-256 {source.sha256}, what arrived has {found}: it was discarded, try again, "
            f"or put the file into {target.parent} by hand"
        )
    os.replace(part, target)
