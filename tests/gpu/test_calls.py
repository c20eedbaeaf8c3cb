"""What the tests on a GPU rely on, tried without one: calls of every op, and the context that forbids waits."""

import re
import warnings
from pathlib import Path

import pytest
import torch

from lbgap import _extension, ops
from tests.gpu.calls import draw, every_op

SCHEMAS = Path(__file__).parents[2] / "csrc" / "library.cpp"


def test_no_op_is_missing():
    calls = every_op(*draw("cpu"))
    assert set(calls) == set(ops.__all__)
    assert set(calls) == set(re.findall(r'm\.def\(\s*"(\w+)\(', SCHEMAS.read_text()))


@pytest.mark.skipif("cpu" not in _extension.NATIVE_DEVICES, reason="no compiled library")
@pytest.mark.parametrize("name", ops.__all__)
def test_every_call_gives_what_the_twin_gives(name, monkeypatch):
    call = every_op(*draw("cpu"))[name]
    found = call()
    monkeypatch.setattr(_extension, "NATIVE_DEVICES", frozenset())
    for one, other in zip(found, call(), strict=True):
        assert one.isfinite().all()
        assert one.count_nonzero() > 0
        torch.testing.assert_close(one, other, rtol=1e-5 if one.dtype == torch.float32 else 1e-9, atol=1e-6)


def test_no_waiting_forgives_torch_s_warning_alone_and_restores_what_was_set(no_waiting, monkeypatch):
    modes = [1]

    def change(mode):  # as torch does: once, and the mode has changed by the time the warning is an error
        modes.append(mode)
        if len(modes) == 2:
            warnings.warn("Synchronization debug mode is a prototype feature and does not yet detect", stacklevel=2)

    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: modes[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", change)
    with no_waiting():
        assert modes == [1, "error"]
        with pytest.raises(UserWarning, match="another"):
            warnings.warn("another", stacklevel=1)
    assert modes == [1, "error", 1]
