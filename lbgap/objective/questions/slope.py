"""To be written."""

from __future__ import annotations

from lbgap.objective.questions.case import YES, Case


def ask(case: Case) -> str:
    """Ask."""
    return YES if case else ""
