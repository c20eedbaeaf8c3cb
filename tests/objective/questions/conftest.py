"""What tests of a question share."""

import pytest

from lbgap.objective import judge


@pytest.fixture
def fewer_questions(monkeypatch):
    """Those that compare outputs and losses alone; others have tests of their own."""
    asked = ("repeats", "with and without gradients", "additive")
    monkeypatch.setattr(judge, "QUESTIONS", {name: judge.QUESTIONS[name] for name in asked})
