"""Reading ahead: order, errors, bounds, and a thread that ends with whoever asked for it."""

import gc
import signal
import threading

import pytest

from lbgap.problem.ahead import ahead


def running():
    return [thread for thread in threading.enumerate() if thread.name == "lbgap reads ahead"]


def test_items_in_order_from_one_thread():
    places = set()

    def items():
        for number in range(50):
            places.add(threading.get_ident())
            yield number

    assert [*ahead(items())] == [*range(50)]
    assert len(places) == 1
    assert threading.get_ident() not in places
    assert [*ahead(iter([]))] == []
    assert running() == []


def test_no_more_items_wait_than_the_queue_holds():
    taken = []
    started = threading.Event()

    def items():
        for number in range(100):
            taken.append(number)
            if len(taken) == 4:
                started.set()
            yield number

    reading = ahead(items(), depth=2)
    assert next(reading) == 0
    assert started.wait(10)  # one is asked for, two wait, one does not fit
    assert len(taken) == 4
    reading.close()
    assert running() == []


def test_errors_arrive_where_they_are_waited_for():
    def items():
        yield 1
        raise KeyError("no such file")

    reading = ahead(items())
    assert next(reading) == 1
    with pytest.raises(KeyError, match="no such file"):
        next(reading)
    assert running() == []


def test_a_pass_that_is_given_up_ends_the_thread():
    for _ in ahead(iter(range(10**9))):
        break
    assert running() == []  # nobody holds the generator, so that it is closed

    def failing():
        for _ in ahead(iter(range(10**9))):
            raise KeyError("in the loop")

    with pytest.raises(KeyError, match="in the loop") as caught:
        failing()
    del caught
    gc.collect()
    assert running() == []


def test_an_interrupt_ends_the_thread():
    def items():
        yield 0
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        yield from range(10**9)

    with pytest.raises(KeyboardInterrupt):
        for _ in ahead(items()):
            pass
    gc.collect()
    assert running() == []
