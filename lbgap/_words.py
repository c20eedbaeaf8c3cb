"""What a message about a wrong word says of the right one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def meant(word: str, known: Iterable[str]) -> str | None:
    """The known word that was probably meant; None if none is close."""
    return next(iter(difflib.get_close_matches(word, list(known), 1)), None)


def hint(word: str, known: Iterable[str]) -> str:
    """That word as the end of a message; nothing if none is close."""
    close = meant(word, known)
    return f": did you mean {close!r}?" if close else ""


def advice(word: str, known: Iterable[str], otherwise: str) -> str:
    """That word as what to do; if none is close, ``otherwise`` and all that are known."""
    names = list(known)
    close = meant(word, names)
    return f"did you mean {close!r}?" if close else f"{otherwise} {', '.join(names)}"
