"""From what the user names to remedies that go together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lbgap.checks import advice, percent
from lbgap.training.remedies.augment import Augment
from lbgap.training.remedies.average import SWA
from lbgap.training.remedies.base import Remedy
from lbgap.training.remedies.conservative import Conservative
from lbgap.training.remedies.displace import ASAM, SAM, Robust, SmoothOut
from lbgap.training.remedies.ghost import GhostBatchNorm
from lbgap.training.remedies.inputs import Adversarial, Stability
from lbgap.training.remedies.local import LocalSGD
from lbgap.training.remedies.schedules import Batches, Grow, LinearRate, SqrtRate

REMEDIES: dict[str, type[Remedy]] = {
    kind.name: kind
    for kind in (
        *(Augment, Conservative, Batches, Grow, GhostBatchNorm, SqrtRate, LinearRate, SWA, SmoothOut, Robust),
        *(Adversarial, Stability, SAM, ASAM, LocalSGD),
    )
}


def resolve_remedies(remedies: Remedy | str | Iterable[Remedy | str]) -> list[Remedy]:
    """Turn what the user passed as ``remedies`` into remedies that go together.

    Args:
        remedies: Remedies, or their short form such as ``"conservative:lam=1e-3,iterations=3"``.

    Returns:
        The remedies.

    Raises:
        TypeError: One of them is neither, or a setting is of the wrong kind.
        ValueError: A name or a setting is not known, or two of them exclude each other.
    """
    if isinstance(remedies, str | Remedy):
        remedies = [remedies]
    if isinstance(remedies, Mapping) or not isinstance(remedies, Iterable):
        raise TypeError(f"remedies must be a list such as ['conservative'], got {remedies!r}")
    chosen = [parse_remedy(entry) if isinstance(entry, str) else entry for entry in remedies]
    for entry in chosen:
        if not isinstance(entry, Remedy):
            hint = f": write {entry.__name__}(...)" if isinstance(entry, type) else ""
            raise TypeError(f"remedies must be of lbgap.remedies or their short forms, got {entry!r}{hint}")
    for index, second in enumerate(chosen):
        for first in chosen[:index]:
            shared = [role for role in first.roles if role in second.roles]
            if first.name == second.name:
                raise ValueError(f"the remedy {first.name} is given twice: give it once, with all its settings")
            if shared:
                raise ValueError(
                    f"the remedies {first.name} and {second.name} exclude each other: both {shared[0].value}"
                )
    return chosen


def parse_remedy(text: str) -> Remedy:
    """Build a remedy from its short form.

    Args:
        text: ``name``, or ``name:key=value,key=value``; a key alone means yes. Values are numbers, percentages,
            yes or no, or several of them with a slash between.

    Returns:
        The remedy.

    Raises:
        TypeError: A setting is of the wrong kind.
        ValueError: The name or a setting is not known, or a value is out of range.
    """
    name, _, rest = text.strip().partition(":")
    kind = REMEDIES.get(name)
    if kind is None:
        raise ValueError(f"there is no remedy {name!r}: {advice(name.lower(), REMEDIES, 'choose from')}")
    known = kind.keys()
    options: dict[str, Any] = {}
    for part in rest.split(",") if rest else ():
        key, given, value = (piece.strip() for piece in part.partition("="))
        if key in options:
            raise ValueError(f"{key!r} of the remedy {name} is given twice")
        if known and key not in known:
            raise ValueError(f"the remedy {name} has no {key!r}: {advice(key.lower(), known, 'choose from')}")
        options[key] = _value(value) if given else True
    for key in known:  # a setting without a default is no attribute of the class
        if key not in options and not hasattr(kind, key):
            raise ValueError(f"the remedy {name} needs {key}: write {name}:{key}=...")
    return kind.from_text(options)


def describe(remedies: Sequence[Remedy]) -> dict[str, dict[str, Any]]:
    """Name remedies and their settings for ``config.json``.

    Args:
        remedies: As :func:`resolve_remedies` returned them.

    Returns:
        Settings by the name of the remedy; their order plays no part.
    """
    return {remedy.name: remedy.settings() for remedy in sorted(remedies, key=lambda remedy: remedy.name)}


def _value(text: str) -> Any:
    if "/" in text:
        return tuple(_value(part) for part in text.split("/"))
    if text.lower() in ("yes", "true", "no", "false"):
        return text.lower() in ("yes", "true")
    if re.fullmatch(r"[+-]?\d+", text):
        return int(text)
    share = percent(text)
    try:
        return float(text) if share is None else share
    except ValueError:
        return text
