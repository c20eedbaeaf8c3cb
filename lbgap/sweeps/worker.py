"""The processes of a sweep: each takes one trial after the other; the one that starts them watches."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from lbgap.sweeps import store as stores
from lbgap.sweeps.store import Claim, Place, Store
from lbgap.sweeps.trial import run_trial
from lbgap.system.processes import interrupts_ignored, take_gpu

POLL = 0.5  # seconds between two looks at what the others do
LONGEST_POLL = 2.0
LEAVING = 10.0  # seconds for a process that shall stop to reach the end of an epoch or a measurement
STOPPING = 20.0  # seconds after which it is killed
REPLACED = 10  # processes that are started anew where they were killed, beside one for each worker
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES}


class Lost(Exception):  # noqa: N818  not an error: somebody else has the trial
    """Somebody else has taken the trial."""


@dataclass
class Stop:
    """Whether a process shall stop; a plain flag, for a signal sets it at any point of the program.

    Attributes:
        asked: Whether.
    """

    asked: bool = False

    def ask(self, *_: object) -> None:
        """Take the signal."""
        self.asked = True


@dataclass(frozen=True)
class Job:
    """What a process needs to know.

    Attributes:
        where: Where the sweep is kept.
        name: Of the sweep.
        root: Its folder on this machine.
        data_dir: Where files of data lie on this machine.
    """

    where: Place
    name: str
    root: Path
    data_dir: Path | None


def work(job: Job, stop: Stop | None = None, number: int = 0) -> None:
    """Take one trial after the other until none is left; wait for those of others, which may be cut off.

    Args:
        job: The sweep.
        stop: Asked to stop, this process leaves its trial at the end of an epoch to whoever comes next, and ends.
        number: Of this process among those that were started with it: trials on ``"cuda"`` are on its own GPU, counted
            round if there are more processes than GPUs.

    Raises:
        KeyboardInterrupt: It was asked to stop.
        OSError: A disk is full or cannot be written, or the database is gone: no fault of the trial.
    """
    stop = stop or Stop()
    store = Store.open(job.where, job.name)
    try:
        if any(trial.settings.get("device") == "cuda" for trial in store.trials.values()):
            take_gpu(number)
        pause = POLL
        while True:
            if stop.asked:
                raise KeyboardInterrupt
            claim = stores.patiently(lambda: store.claim(job.root))
            if claim is not None:
                with contextlib.suppress(Lost):
                    _serve(store, claim, job, stop)
                pause = POLL
            elif not {"waiting", "running"} & set(stores.patiently(store.states).values()):
                return
            else:
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_POLL)
    finally:
        store.close()


def _serve(store: Store, claim: Claim, job: Job, stop: Stop) -> None:
    """Run a trial, and write down how it ended."""

    def epoch() -> None:
        if stop.asked:
            raise KeyboardInterrupt
        if claim.lost:
            raise Lost

    try:
        with _beating(claim, stop):
            digests = store.facts["digests"]
            result = run_trial(store.definition, claim.trial, job.root, job.data_dir, digests, epoch)
    except (KeyboardInterrupt, SystemExit, Lost):
        claim.release()
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _FULL:
            claim.release()
            raise
        claim.fail(_sentence(error))
    else:
        claim.finish(result)


def _sentence(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@contextmanager
def _beating(claim: Claim, stop: Stop) -> Iterator[None]:
    """Give signs of life from a thread of its own, which outlives a database that is gone for a while.

    It also ends a process that shall stop and does not come to the end of an epoch or a measurement.
    """
    done = threading.Event()

    def beat() -> None:
        last, asked = time.monotonic(), None
        while not done.wait(1.0):
            now = time.monotonic()
            asked = now if stop.asked and asked is None else asked
            if asked is not None and now - asked > LEAVING:
                claim.release()
                os._exit(0)
            if now - last >= stores.HEARTBEAT:
                last = now
                with contextlib.suppress(Exception):
                    claim.beat()
        claim.forget()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _process(job: Job, threads: int, number: int, reasons: Connection) -> None:
    """What a process runs; it ends with the one that started it, however that ends."""
    stop = Stop()
    signal.signal(signal.SIGTERM, stop.ask)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_die_with, args=(parent.sentinel,), daemon=True).start()
    torch.set_num_threads(threads)
    try:
        work(job, stop, number)
    except KeyboardInterrupt:
        os._exit(0)
    except Exception as error:
        reasons.send(_sentence(error))
        os._exit(1)


def _die_with(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


class Crew:
    """The processes that work on a sweep here."""

    def __init__(self, job: Job, workers: int, threads: int) -> None:
        self._job, self._threads, self._left = job, threads, workers + REPLACED
        self._members: list[tuple[int, BaseProcess, Connection]] = []
        for number in range(workers):
            self._start(number)

    def _start(self, number: int) -> None:
        context = multiprocessing.get_context("spawn")
        reader, writer = context.Pipe(duplex=False)
        process = context.Process(target=_process, args=(self._job, self._threads, number, writer), daemon=True)
        with interrupts_ignored():
            process.start()
        writer.close()
        self._members.append((number, process, reader))

    @property
    def sentinels(self) -> list[int]:
        """Of the processes that were not yet seen to end, for :func:`multiprocessing.connection.wait`."""
        return [process.sentinel for _, process, _ in self._members]

    def watch(self) -> bool:
        """Start a process anew where one was killed.

        Returns:
            Whether any still works.

        Raises:
            OSError: One ended by an error that is no trial's, or they are killed again and again.
        """
        for member in list(self._members):
            number, process, reader = member
            if process.is_alive():
                continue
            self._members.remove(member)
            if process.exitcode == 0:
                continue
            if process.exitcode is not None and process.exitcode > 0:
                reason = reader.recv() if reader.poll() else f"it ended with status {process.exitcode}"
                raise OSError(f"a worker stopped: {reason}")
            self._left -= 1
            if self._left < 0:
                raise OSError(f"the workers are killed again and again, by signal {-(process.exitcode or 0)} at last")
            self._start(number)
        return bool(self._members)

    def stop(self) -> None:
        """Let all write down their last epoch and end."""
        for _, process, _ in self._members:
            process.terminate()
        end = time.monotonic() + STOPPING
        for _, process, _ in self._members:
            process.join(max(0.0, end - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()


def run(job: Job, workers: int, threads: int, report: Callable[[dict[int, str]], object]) -> None:
    """Work on a sweep by several processes until nothing is left.

    Args:
        job: The sweep.
        workers: How many processes.
        threads: Threads of PyTorch in each.
        report: Called now and then with the state of each trial.

    Raises:
        OSError: A process ended by an error that is no trial's; what is finished is kept.
    """
    store = Store.open(job.where, job.name)
    crew = Crew(job, workers, threads)
    try:
        while crew.watch():
            report(stores.patiently(store.states))
            multiprocessing.connection.wait(crew.sentinels, POLL)
        report(stores.patiently(store.states))
    finally:
        crew.stop()
        store.close()
