"""The trials of a sweep in an Optuna study: who takes which, which were cut off, and what they found.

Every change of who works on what happens under one lock of the sweep, which the operating system or the database
drops when its holder dies. Under it :meth:`Store.claim` first repairs whatever a process that was killed left
behind, at whichever step, and then takes a waiting trial. So each configuration has at most one trial that waits,
runs or is done.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import platform
import sqlite3
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import optuna
import sqlalchemy
from optuna.storages import RDBStorage, fail_stale_trials
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from lbgap.sweeps.definition import Definition, Trial, from_dict
from lbgap.system import files

FORMAT = "lbgap sweep, format 1"
DATABASE, LOCK = "sweep.db", "sweep.lock"
CUTS = 10  # a trial that so many processes died of is taken to be their cause
HEARTBEAT, GRACE = 10, 60  # seconds
PATIENCE = 60.0  # seconds for which a database may be gone

_KEY, _WORKER, _CUTS, _RESULT, _ERROR = "lbgap_key", "lbgap_worker", "lbgap_cuts", "lbgap_result", "lbgap_error"
_FORMAT, _DEFINITION, _FACTS = "lbgap_format", "lbgap_definition", "lbgap_facts"
_STATES = {
    TrialState.WAITING: "waiting",
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.FAIL: "failed",
}
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Place:
    """Where a sweep is kept: a folder with an SQLite file, or a PostgreSQL database.

    Attributes:
        url: Of the database, as SQLAlchemy takes it.
        folder: That of the SQLite file, None for PostgreSQL.
    """

    url: str = field(repr=False)
    folder: Path | None

    def __str__(self) -> str:
        if self.folder is not None:
            return str(self.folder)
        return sqlalchemy.make_url(self.url).set(drivername="postgresql").render_as_string(hide_password=True)


def place(source: str | os.PathLike[str]) -> Place:
    """Understand what a user calls a sweep.

    Args:
        source: A folder, or the URL of a PostgreSQL database.

    Returns:
        Where the sweep is kept.

    Raises:
        ValueError: The URL is malformed, or of another kind of database.
    """
    text = os.fspath(source)
    if "://" not in text:
        folder = Path(text)
        return Place(f"sqlite:///{folder.absolute() / DATABASE}", folder)
    try:
        url = sqlalchemy.make_url(text)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise ValueError("the storage must be postgresql://user@host/database, got a URL that is malformed") from None
    if url.get_backend_name() not in ("postgresql", "postgres"):
        kind = url.get_backend_name()
        raise ValueError(f"the storage must be a folder or postgresql://user@host/database, got a URL of {kind}")
    return Place(url.set(drivername="postgresql+psycopg").render_as_string(hide_password=False), None)


class Store:
    """One sweep in its storage; open it by :meth:`create` or :meth:`open`."""

    def __init__(self, where: Place, name: str | None, definition: Definition | None, facts: Mapping[str, Any]) -> None:
        self.where = where
        with contextlib.ExitStack() as undo:
            with _quiet(), _reported(where):
                _present(where, definition is not None)
                with _locked(where, "all"):
                    self.storage = _storage(where)
                    undo.callback(self.close)
                    self.name = name if name is not None else self._only_name()
                    self.study_id = self._study_id(definition is not None)
                    attributes = self._attributes(definition, facts)
                sampler = optuna.samplers.RandomSampler()  # never asked
                self.study = optuna.load_study(study_name=self.name, storage=self.storage, sampler=sampler)
            if attributes.get(_FORMAT) != FORMAT:
                raise ValueError(
                    f"{self.name!r} in {where} is not a sweep that this version reads: it has format "
                    f"{attributes.get(_FORMAT)!r}, not {FORMAT!r}; choose another folder, database or name"
                )
            self.definition = from_dict(attributes[_DEFINITION], self.name)
            self.facts: dict[str, Any] = attributes[_FACTS]
            self.trials: dict[int, Trial] = {trial.key: trial for trial in self.definition.trials()}
            if definition is not None:
                _check_same(self.definition, definition, where)
            undo.pop_all()

    def _attributes(self, definition: Definition | None, facts: Mapping[str, Any]) -> dict[str, Any]:
        """What is recorded of the sweep; first recorded where it is to begin, the mark that all is there at last."""
        attributes = self.storage.get_study_user_attrs(self.study_id)
        if definition is None or _FORMAT in attributes or self._all():
            return attributes
        for key, value in {_DEFINITION: definition.to_dict(), _FACTS: dict(facts), _FORMAT: FORMAT}.items():
            self.storage.set_study_user_attr(self.study_id, key, value)
        return self.storage.get_study_user_attrs(self.study_id)

    @classmethod
    def create(cls, where: Place, definition: Definition, facts: Mapping[str, Any]) -> Store:
        """Open the sweep of a definition, which is begun if there is none.

        Args:
            where: Where it is kept.
            definition: The sweep.
            facts: What every worker must know beside it, ready for JSON; those of a sweep that was begun stay.

        Raises:
            ValueError: Another sweep, or one of another version, is kept there.
            ImportError: The driver of the database is not installed.
            OSError: The database cannot be reached or written.
        """
        return cls(where, definition.name, definition, facts)

    @classmethod
    def open(cls, where: Place, name: str | None = None) -> Store:
        """Open a sweep that was begun.

        Args:
            where: Where it is kept.
            name: Of the sweep; needed where a database holds several.

        Raises:
            ValueError: There is none of that name, several, or one of another version.
            ImportError: The driver of the database is not installed.
            OSError: The database cannot be reached.
        """
        return cls(where, name, None, {})

    def close(self) -> None:
        """Give back the connections."""
        self.storage.remove_session()
        self.storage.engine.dispose()

    def states(self) -> dict[int, str]:
        """``"waiting"``, ``"running"``, ``"complete"`` or ``"failed"`` for each trial, by its key."""
        return {key: row["state"] for key, row in self.rows().items()}

    def rows(self) -> dict[int, dict[str, Any]]:
        """``state``, ``error``, ``result`` and ``worker`` of each trial, by its key; of repeated ones of the last."""
        found = {}
        latest = self._latest()
        for key in self.trials:
            row: dict[str, Any] = {"state": "waiting", "error": None, "result": None, "worker": None}
            if trial := latest.get(key):
                attributes = trial.user_attrs
                row = {"state": _STATES[trial.state], "error": attributes.get(_ERROR)}
                row["result"] = attributes.get(_RESULT) if row["state"] == "complete" else None
                row["worker"] = attributes.get(_WORKER)
                if row["state"] == "failed" and row["error"] is None:
                    row["state"] = "waiting"  # it was cut off, and the next claim makes it wait again
            found[key] = row
        return found

    def refill(self, *, again: bool = False) -> None:
        """Make every configuration wait that nobody works on or has done.

        Args:
            again: Also those that failed.
        """
        with self._lock():
            self._refill(again)

    def claim(self, root: Path) -> Claim | None:
        """Take a waiting trial, so that nobody else does.

        Args:
            root: The folder of the sweep on this machine.

        Returns:
            The trial, or None if none waits now.
        """
        with self._lock():
            self._refill(False)
            waiting = [trial for trial in self._latest().values() if trial.state == TrialState.WAITING]
            for frozen in sorted(waiting, key=lambda trial: trial.user_attrs[_KEY]):
                trial = self.trials[frozen.user_attrs[_KEY]]
                folder = root / trial.folder
                folder.mkdir(parents=True, exist_ok=True)
                stack = contextlib.ExitStack()
                try:
                    stack.enter_context(files.locked(folder))
                except BlockingIOError:  # who was taken for dead works here still, say on a machine that slept
                    continue
                try:
                    return self._take(frozen, trial, folder, stack)
                except BaseException:
                    stack.close()
                    raise
        return None

    def _take(self, frozen: FrozenTrial, trial: Trial, folder: Path, stack: contextlib.ExitStack) -> Claim:
        """Write down whose a waiting trial is. Killed between two of the steps, it counts as nobody's."""
        number = self._trial_id(frozen)
        self.storage.set_trial_state_values(number, TrialState.RUNNING)
        self.storage.record_heartbeat(number)
        worker = {"machine": machine(), "host": platform.node(), "process": os.getpid()}
        self.storage.set_trial_user_attr(number, _WORKER, {**worker, "folder": str(folder.absolute())})
        return Claim(self, trial, number, stack)

    def _refill(self, again: bool) -> None:
        """Repair what processes left behind that were killed; the lock is held.

        Optuna's own callback that retries a stale trial loses it where the process that calls it is killed between
        its two steps, and never finds a trial whose process was killed before its first heartbeat. So what counts
        here is the state as it is found: a trial that failed without an error was cut off.
        """
        with _quiet():
            fail_stale_trials(self.study)  # no sign of life for GRACE seconds
        for trial in self._latest().values():
            if trial.state == TrialState.RUNNING and _is_dead(trial.user_attrs.get(_WORKER)):
                with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
                    self.storage.set_trial_state_values(self._trial_id(trial), TrialState.FAIL)
        latest = self._latest()
        for key in self.trials:
            before = latest.get(key)
            if before is None:
                self._enqueue(key, 0)
            elif before.state == TrialState.FAIL:
                cuts = before.user_attrs[_CUTS] + (before.user_attrs.get(_WORKER) is not None)
                if before.user_attrs.get(_ERROR) is not None:
                    if again:
                        self._enqueue(key, 0)
                elif cuts >= CUTS:
                    error = f"{CUTS} processes died of it, the last without a word: is the memory too small?"
                    self._enqueue(key, cuts, error)
                else:
                    self._enqueue(key, cuts)

    def _enqueue(self, key: int, cuts: int, error: str | None = None) -> None:
        """Add a trial of a configuration: one that waits, or has failed by ``error``."""
        trial = self.trials[key]
        shown = {name: trial.settings[name] for name in self.definition.varying if name in trial.settings}
        parameters = {name: _shown(value) for name, value in {**shown, "seed": trial.seed}.items()}
        template = optuna.trial.create_trial(
            state=TrialState.WAITING if error is None else TrialState.FAIL,
            params=parameters,
            distributions={
                name: optuna.distributions.CategoricalDistribution(self._choices(name)) for name in parameters
            },
            user_attrs={_KEY: key, _CUTS: cuts} | ({} if error is None else {_ERROR: error}),
        )
        self.storage.create_new_trial(self.study_id, template_trial=template)

    def _choices(self, name: str) -> list[str]:
        if name == "seed":
            return [_shown(seed) for seed in self.definition.seeds]
        values = (_shown(trial.settings[name]) for trial in self.trials.values() if name in trial.settings)
        return list(dict.fromkeys(values))

    def _all(self) -> list[FrozenTrial]:
        return list(self.storage.get_all_trials(self.study_id, deepcopy=False))

    def _latest(self) -> dict[int, FrozenTrial]:
        """The last trial of each configuration; the others were cut off, or failed and are tried again."""
        trials = sorted(self._all(), key=lambda trial: trial.number)
        return {trial.user_attrs[_KEY]: trial for trial in trials if _KEY in trial.user_attrs}

    def _trial_id(self, trial: FrozenTrial) -> int:
        return int(self.storage.get_trial_id_from_study_id_trial_number(self.study_id, trial.number))

    @contextmanager
    def _lock(self) -> Iterator[None]:
        with _locked(self.where, self.name, self.storage.engine):
            yield

    def _only_name(self) -> str:
        names = [study.study_name for study in self.storage.get_all_studies() if _FORMAT in study.user_attrs]
        if len(names) != 1:
            held = f"{len(names)} sweeps ({', '.join(sorted(names)[:5])})" if names else "no sweep"
            raise ValueError(f"{self.where} holds {held}: " + ("name one" if names else "begin one by lbgap sweep"))
        return names[0]

    def _study_id(self, create: bool) -> int:
        try:
            return int(self.storage.get_study_id_from_name(self.name))
        except KeyError:
            if create and self.where.folder is not None and self.storage.get_all_studies():
                other = self._only_name()
                raise ValueError(f"{self.where} holds the sweep {other!r}, not {self.name!r}: choose another") from None
            if create:
                return int(self.storage.create_new_study([StudyDirection.MINIMIZE], self.name))
            names = sorted(study.study_name for study in self.storage.get_all_studies())
            raise ValueError(f"{self.where} holds no sweep {self.name!r}, but {', '.join(names) or 'none'}") from None


class Claim:
    """A trial that this process works on; leave it by exactly one of its methods.

    Attributes:
        trial: The trial.
        lost: Whether somebody else has it by now, since this process gave no sign of life for too long.
    """

    def __init__(self, store: Store, trial: Trial, number: int, stack: contextlib.ExitStack) -> None:
        self._store, self.trial, self._number, self._stack = store, trial, number, stack
        self.lost = False

    def beat(self) -> None:
        """Give a sign of life, and look whether somebody else has taken the trial."""
        self.lost = self._store.storage.get_trial(self._number).state != TrialState.RUNNING
        if not self.lost:
            self._store.storage.record_heartbeat(self._number)

    def forget(self) -> None:
        """Give back the connection of the thread that calls this."""
        self._store.storage.remove_session()

    def finish(self, result: Mapping[str, Any]) -> None:
        """Keep what was found; the study's own value of the trial is the training loss."""
        self._end(_RESULT, dict(result), TrialState.COMPLETE, [result["train_loss"]])

    def fail(self, error: str) -> None:
        """Keep why there is nothing; nobody tries again unless asked to."""
        self._end(_ERROR, error, TrialState.FAIL, None)

    def release(self) -> None:
        """Leave the trial to whoever comes next, and go on where this process stopped."""
        self._end(_WORKER, None, TrialState.FAIL, None)

    def _end(self, name: str, value: Any, state: TrialState, values: list[float] | None) -> None:
        def write() -> None:
            with self._store._lock():  # SQLite would let a repair in between look and change
                self._store.storage.set_trial_user_attr(self._number, name, value)
                self._store.storage.set_trial_state_values(self._number, state, values)

        with self._stack, contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            patiently(write)


def patiently(action: Callable[[], _Result]) -> _Result:
    """Do something with a database, again and again where it is gone for a while."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return action()
        except (optuna.exceptions.StorageInternalError, sqlalchemy.exc.OperationalError):
            if time.monotonic() > end:
                raise
            time.sleep(1)


def machine() -> str:
    """A name that no other machine has, nor this one after a restart."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return platform.node()


def _is_dead(worker: dict[str, Any] | None) -> bool:
    """Whether a trial that counts as running has nobody; the lock of the sweep is held, so that nobody just takes it.

    A process of this machine holds the lock of its folder as long as it lives; of others only their heartbeat tells.
    """
    if worker is None:
        return True
    return bool(worker["machine"] == machine()) and files.is_locked(worker["folder"]) is False


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _check_same(there: Definition, here: Definition, where: Place) -> None:
    old, new = there.to_dict(), here.to_dict()
    for key in old:
        if json.dumps(old[key]) != json.dumps(new[key]):
            raise ValueError(
                f"{where} holds the sweep {there.name!r} with another definition: {key} is {json.dumps(old[key])} "
                f"there but {json.dumps(new[key])} here; choose another folder or name"
            )


def _present(where: Place, create: bool) -> None:
    """Refuse to make a database where one was to be opened."""
    if create:
        return
    if where.folder is not None:
        if not (where.folder / DATABASE).is_file():
            raise FileNotFoundError(f"{where} is not a sweep: it has no {DATABASE}; pass the folder of a sweep")
        return
    engine = _engine(where)
    try:
        if not sqlalchemy.inspect(engine).has_table("studies"):
            raise ValueError(f"{where} holds no sweep: begin one by lbgap sweep")
    finally:
        engine.dispose()


def _options(where: Place) -> dict[str, Any]:
    if where.folder is not None:
        return {"connect_args": {"timeout": PATIENCE}}
    return {"pool_pre_ping": True, "connect_args": {"connect_timeout": 10}}


def _engine(where: Place) -> sqlalchemy.Engine:
    return sqlalchemy.create_engine(where.url, **_options(where))


def _storage(where: Place) -> RDBStorage:
    url = where.url.replace("{", "{{").replace("}", "}}")  # Optuna formats it
    return RDBStorage(url, engine_kwargs=_options(where), heartbeat_interval=HEARTBEAT, grace_period=GRACE)


@contextmanager
def _locked(where: Place, name: str, engine: sqlalchemy.Engine | None = None) -> Iterator[None]:
    """Hold a lock of a storage; it is dropped when this process ends, however it ends."""
    if where.folder is not None:
        # A database of its own, so that this connection does not keep Optuna's from writing.
        connection = sqlite3.connect(where.folder / LOCK, timeout=10 * PATIENCE, isolation_level=None)
        try:
            connection.execute("BEGIN EXCLUSIVE")
            yield
        finally:
            connection.close()
        return
    key = int.from_bytes(hashlib.sha256(f"lbgap {name}".encode()).digest()[:8], signed=True)
    own = engine or _engine(where)
    try:
        with own.begin() as connected:
            connected.execute(sqlalchemy.text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})
            yield
    finally:
        if engine is None:
            own.dispose()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Optuna from logging, and from warning that heartbeats are experimental; then all is as before."""
    loggers = [logging.getLogger(name) for name in ("optuna", "alembic")]
    levels = [logger.level for logger in loggers]
    loggers[0].setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _reported(where: Place) -> Iterator[None]:
    """Say in one line what the database says in many."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ImportError(f'PostgreSQL needs {error.name}: pip install "lbgap[postgres]"') from error
    except (sqlalchemy.exc.SQLAlchemyError, sqlite3.Error, optuna.exceptions.StorageInternalError) as error:
        cause = error.__cause__ or error
        reason = str(getattr(cause, "orig", None) or cause).strip().splitlines()[0]
        raise OSError(f"the storage {where} cannot be used: {reason}") from error
    except RuntimeError as error:  # Optuna's for tables of another version
        raise ValueError(f"the storage {where} is of another Optuna: {' '.join(str(error).split())}") from error
