"""The folder of a plane: what was evaluated is kept as it comes, so that a plane that was killed goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lbgap.system import files

SETTINGS = "settings.json"
DIRECTIONS = "directions.safetensors"
FORMAT = "lbgap-plane-1"
NO_BATCH_NORM = "none in the model"


class Record:
    """Results by number, in a folder or, without one, nowhere.

    Attributes:
        folder: The folder, or None.
    """

    def __init__(self, folder: Path | None, facts: Mapping[str, Any] | None = None) -> None:
        """Begin; ``facts`` go into a new folder with the first result, so that arguments may be mended until then."""
        self.folder = folder
        self._facts = facts
        self._number = 0

    def chunk(self, points: Tensor, evaluate: Callable[[], Tensor]) -> Tensor:
        """The values at the next few points: those that are kept, or else new ones, which are kept from now on.

        Args:
            points: ``(k, 2)`` int64, which they are.
            evaluate: Returns the values, ``(sets, k, 2)`` float64.

        Raises:
            ValueError: What is kept are the values of other points, or is damaged.
            OSError: The values cannot be written.
        """
        if self.folder is None:
            return evaluate()
        self._number += 1
        path = self.folder / f"values-{self._number:05}.safetensors"
        if path.exists():
            tensors, _ = files.read_safetensors(path)
            if tensors.keys() != {"points", "values"} or not torch.equal(tensors["points"], points):
                raise ValueError(f"{path} holds other points than those that come next: delete the folder, begin anew")
            return tensors["values"]
        values = evaluate()
        self._begin()
        files.write_safetensors(path, {"points": points, "values": values}, {})
        return values

    def directions(self, make: Callable[[], tuple[Tensor, tuple[float, ...]]]) -> tuple[Tensor, tuple[float, ...]]:
        """Two directions ``(2, n)`` and some numbers: those that are kept, or else new ones, which are kept.

        Raises:
            ValueError: What is kept is damaged.
            OSError: They cannot be written.
        """
        if self.folder is None:
            return make()
        path = self.folder / DIRECTIONS
        if path.exists():
            tensors, metadata = files.read_safetensors(path)
            try:
                return tensors["directions"], tuple(json.loads(metadata["numbers"]))
            except (KeyError, ValueError) as error:
                raise ValueError(f"{path} is not what a plane has written: delete the folder, begin anew") from error
        rows, numbers = make()
        self._begin()
        files.write_safetensors(path, {"directions": rows}, {"numbers": json.dumps(numbers)})
        return rows, numbers

    def _begin(self) -> None:
        if self._facts is not None and self.folder is not None:
            files.write_json(self.folder / SETTINGS, self._facts)
            self._facts = None


@contextmanager
def opened(out: str | os.PathLike[str] | None, resume: bool, facts: Mapping[str, Any]) -> Iterator[Record]:
    """Take a folder for one plane, and keep other processes out of it until the end.

    Args:
        out: The folder, created with its parents if missing; or None.
        resume: Whether a plane that it holds may be continued.
        facts: Everything that the values depend on, ready for JSON.

    Yields:
        The record.

    Raises:
        FileExistsError: It holds a plane and ``resume`` is off, or it holds something else.
        NotADirectoryError: It is a file.
        BlockingIOError: Another process writes to it.
        ValueError: It holds another plane; the message names the first fact that differs.
    """
    if out is None:
        yield Record(None)
        return
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"out must be a folder, got the file {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    with files.locked(folder):
        entries = sorted(entry for entry in folder.iterdir() if not files.is_temporary(entry))
        here = json.loads(json.dumps({"format": FORMAT, **facts}))
        if entries and not (folder / SETTINGS).is_file():
            raise FileExistsError(
                f"{folder} is not empty and holds no plane (it has {entries[0].name!r}): choose another folder"
            )
        if entries:
            if not resume:
                raise FileExistsError(
                    f"{folder} holds a plane: pass resume=True to continue it or choose another folder"
                )
            _check_same(folder, here, files.read_json(folder / SETTINGS))
        files.remove_temporaries(folder)
        yield Record(folder, None if entries else here)


def _check_same(folder: Path, here: Mapping[str, Any], there: Any) -> None:
    """Refuse to go on with another plane.

    Raises:
        ValueError: It is one.
    """
    if not isinstance(there, dict) or there.get("format") != FORMAT:
        raise ValueError(f"{folder} holds no plane that this version reads: choose another folder")
    for name in [*here, *(name for name in there if name not in here)]:
        if name == "batch_norm" and here.get(name) == NO_BATCH_NORM:
            continue  # its mode makes no difference, whichever the folder names
        if here.get(name) != there.get(name):
            shown = f"{name} is {there.get(name)!r} there but {here.get(name)!r} here"
            if name.endswith("digest"):
                shown = f"its {name.removesuffix(' digest')} are others"
            raise ValueError(f"{folder} holds another plane: {shown}; choose another folder")
