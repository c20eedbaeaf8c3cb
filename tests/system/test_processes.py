"""Work in several processes: in order, gone at the end, and not waited for in vain."""

import math
import multiprocessing
import signal
import time

import pytest

from lbgap.system.processes import in_processes


def test_results_come_in_the_order_of_the_work():
    with in_processes(math.sqrt, [4, 9, 16], 2) as finished:
        assert list(finished) == [2, 3, 4]
    assert not multiprocessing.active_children()


def test_an_error_is_raised_in_its_turn():
    with in_processes(math.sqrt, [4, -1], 2) as finished:
        assert next(finished) == 2
        with pytest.raises(ValueError, match="math domain error"):
            next(finished)


def test_a_process_that_was_killed_is_not_waited_for():
    killed = pytest.raises(OSError, match="a process was killed, by the system where memory runs out")
    with in_processes(signal.raise_signal, [signal.SIGKILL, signal.SIGCONT], 2) as finished, killed:
        list(finished)
    assert not multiprocessing.active_children()


def test_processes_are_gone_where_the_block_ends_early():
    began = time.monotonic()
    with in_processes(time.sleep, [0, 600, 600, 600], 2) as finished:
        assert next(finished) is None
    assert time.monotonic() - began < 60
    assert not multiprocessing.active_children()
