"""What a file is, by its first bytes: its name may say anything."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Literal, NamedTuple

# "torch" is a zip archive, "torch pickles" are what torch before 1.6 wrote; with "json", the index, these hold weights.
Format = Literal["safetensors", "torch", "torch pickles", "json", "damaged", "other"]

_HEAD = 512  # bytes
_LARGEST_HEADER = 100_000_000  # bytes: the limit of safetensors
# torch.save(..., _use_new_zipfile_serialization=False) begins with the pickle of this number, in any protocol.
_TORCH_PICKLES = re.compile(rb"\x80[\x02-\x05](?:\x95.{8})?\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19", re.DOTALL)
_GIT_LFS = b"version https://git-lfs"
_BEGINNINGS = {
    _GIT_LFS: "a pointer of Git LFS, not the file itself (git lfs pull fetches it)",
    b"GGUF": "a GGUF model",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file, as Keras and TensorFlow write them",
    b"\x93NUMPY": "a NumPy array (.npy)",
    b"\x1f\x8b": "compressed by gzip (unpack it first)",
    b"BZh": "compressed by bzip2 (unpack it first)",
    b"\xfd7zXZ\x00": "compressed by xz (unpack it first)",
    b"\x28\xb5\x2f\xfd": "compressed by Zstandard (unpack it first)",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive (unpack it first)",
    b"Rar!": "a RAR archive (unpack it first)",
    b"%PDF": "a PDF document",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"\x7fELF": "a program or library",
}
# A member of a zip archive, by how its name ends, and what the archive then is.
_MEMBERS = {
    "/constants.pkl": "a TorchScript archive, which is a program",
    "/models/model.json": "a program of torch.export",
    "model.weights.h5": "a Keras model",
    "[Content_Types].xml": "an Office document",
    ".npy": "a NumPy archive (.npz)",
}


class Kind(NamedTuple):
    """What a file is.

    Attributes:
        format: The format, where weights can be read from it, ``"damaged"`` or ``"other"``.
        words: What it is, for a message that begins with its name and "is".
    """

    format: Format
    words: str


def recognise(path: Path) -> Kind:
    """Say what a file is, by its content; nothing of it is run or unpickled.

    Args:
        path: The file.

    Returns:
        Its kind.

    Raises:
        OSError: It is missing, a folder, or cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if not head:
        return Kind("damaged", "damaged, it is empty")
    if head.startswith(b"PK\x03\x04"):
        return _archive(path)
    if _TORCH_PICKLES.match(head):
        return Kind("torch pickles", "a torch checkpoint")
    if head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= _LARGEST_HEADER:
        return Kind("safetensors", "a safetensors file")
    for start, words in _BEGINNINGS.items():
        if head.startswith(start):
            return Kind("other", words)
    if re.match(rb"\x80[\x02-\x05]", head):
        return Kind("other", "a pickle that torch.save did not write")
    if head[257:262] == b"ustar":
        return Kind("other", "a tar archive (unpack it first)")
    if head[4:8] == b"TFL3":
        return Kind("other", "a TensorFlow Lite model")
    if path.suffix == ".safetensors" and not _is_text(head):
        return Kind("damaged", "damaged, not safetensors")
    return _text(head) if _is_text(head) else _by_suffix(path, head)


def _archive(path: Path) -> Kind:
    """What a zip archive is, by the names of its members."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError) as error:
        return Kind("damaged", f"damaged, a zip archive, as torch.save writes them, that is not whole ({error})")
    names = [member.filename for member in members]
    for end, words in _MEMBERS.items():
        if any(f"/{name}".endswith(end) for name in names):
            return Kind("other", words)
    if any(re.fullmatch(r"([^/]+/)?data\.pkl", name) for name in names):
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):  # mapped, its bytes are no values
            again = "torch.save(torch.load(path), path) writes it as torch does"
            return Kind("other", f"a torch checkpoint that another program has compressed ({again})")
        return Kind("torch", "a torch checkpoint")
    return Kind("other", "a zip archive that torch.save did not write")


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # unless a character was cut where the head ends
            return False
        text = head[: error.start].decode()
    return all(letter.isprintable() or letter in "\t\r\n\f\ufeff" for letter in text)


def _text(head: bytes) -> Kind:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"{", b"[")):
        return Kind("json", "a JSON file")
    if start.startswith((b"<!doctype html", b"<html")):
        return Kind("other", "an HTML page, not the file behind it (a wrong link, or a login?)")
    return Kind("other", "an XML file" if start.startswith(b"<?xml") else "a text file")


def _by_suffix(path: Path, head: bytes) -> Kind:
    """What has no first bytes of its own: protocol buffers, and what is not known."""
    named = {".onnx": "an ONNX model", ".pb": "a TensorFlow graph", ".tflite": "a TensorFlow Lite model"}
    if path.suffix in named:
        return Kind("other", named[path.suffix])
    if head[0] == 0x08 and head[1:2] < b"\x20" and head[2:3] in (b"\x12", b"\x3a"):
        return Kind("other", "a protocol buffer, as of ONNX or TensorFlow")
    return Kind("other", f"of no known kind (it begins with the bytes {head[:4].hex(' ')})")
