"""Why a measure ended and how far its value is to be trusted: every name with its sentence, in one place."""

from __future__ import annotations

from typing import Any

# Name: the sentence, with places for numbers. It says what to try where the value could be better.
SENTENCES: dict[str, str] = {
    "exact": "exact, to rounding{what}",
}


class Status(str):
    """The sentence of a status, which also has a name that programs can compare.

    Attributes:
        name: One of :data:`SENTENCES`.
    """

    __slots__ = ("name",)
    name: str

    def __new__(cls, name: str, sentence: str) -> Status:
        """Join a name and its sentence; :func:`status` is how a measure makes one."""
        made = super().__new__(cls, sentence)
        made.name = name
        return made

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override]
        return self.name, str(self)


def status(name: str, **numbers: Any) -> Status:
    """The status of this name.

    Args:
        name: One of :data:`SENTENCES`.
        **numbers: What its sentence has places for.
    """
    return Status(name, SENTENCES[name].format(**numbers))
