"""A sweep on a PostgreSQL server of its own, by several processes of which some are killed."""

import glob
import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

pytest.importorskip("optuna")
pytest.importorskip("psycopg")
import psycopg

import lbgap
from lbgap.sweeps.worker import work

pytestmark = pytest.mark.usefixtures("one_thread")


def program(name):
    """A program of PostgreSQL, which Debian keeps off the PATH."""
    found = shutil.which(name) or max(glob.glob(f"/usr/lib/postgresql/*/bin/{name}"), default=None)
    if found is None:
        pytest.skip(f"no PostgreSQL here: {name} is missing")
    return found


@pytest.fixture(scope="module")
def server():
    """The URL of the first database of a server, which listens on a socket in its folder alone."""
    initdb, control = program("initdb"), program("pg_ctl")
    user = {}
    if os.geteuid() == 0:  # the server refuses to run as root
        try:
            account = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("no PostgreSQL here: it does not run as root, and there is no user postgres")
        user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    folder = Path(tempfile.mkdtemp(prefix="lbgap-"))  # the path of a socket must be short
    if user:
        os.chown(folder, user["user"], user["group"])

    def run(*command):
        done = subprocess.run(
            command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, **user
        )
        assert done.returncode == 0, done.stdout + done.stderr

    data = folder / "data"
    try:
        run(initdb, "--pgdata", data, "--auth", "trust", "--username", "lbgap", "--no-sync", "--encoding", "UTF8")
        options = f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off"
        run(control, "start", "--wait", "--pgdata", data, "--log", folder / "log", "--options", options)
        try:
            yield f"postgresql://lbgap@/postgres?host={folder}"
        finally:
            run(control, "stop", "--mode", "immediate", "--pgdata", data)
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def database(server):
    """The URL of a database that no other test knows."""
    with psycopg.connect(server, autocommit=True) as connection:
        (count,) = connection.execute("SELECT count(*) FROM pg_database").fetchone()
        connection.execute(f"CREATE DATABASE test{count}")
    return server.replace("/postgres?", f"/test{count}?")


def without_times(table):
    return [{key: value for key, value in row.items() if not key.endswith("seconds")} for row in table]


def test_two_processes_of_which_some_are_killed(here, begin, database, drive, trials, lbgap_command):
    (here / "sweep.toml").write_text((here / "sweep.toml").read_text().replace("epochs = 3", "epochs = 150"))
    whole, job = begin("whole"), begin(database, root="runs")
    work(whole)
    kills = drive("times", job, database)
    assert kills >= 1
    rows = lbgap.read_sweep(database)
    assert without_times(rows) == without_times(lbgap.read_sweep("whole"))
    assert {row["state"] for row in rows} == {"complete"}
    for row in rows:
        one, two = (root / row["folder"] / "model.safetensors" for root in (here / "runs", here / "whole"))
        assert one.read_bytes() == two.read_bytes()
    found = trials(job)
    assert sorted(key for key, state in found if state == "COMPLETE") == list(range(4))
    assert len(found) <= 4 + kills


def test_processes_that_race_and_a_second_sweep_in_one_database(here, begin, database, drive, trials, lbgap_command):
    text = (here / "sweep.toml").read_text()
    (here / "sweep.toml").write_text("name = 'race'\n" + text)
    job = begin(database, root="race")
    (here / "sweep.toml").write_text("name = 'idle'\n" + text)
    begin(database, root="idle")
    assert drive("race", job, database) == 0
    assert sorted(trials(job)) == [(key, "COMPLETE") for key in range(4)]
    assert {row["state"] for row in lbgap.read_sweep(database, name="idle")} == {"waiting"}
    status, _, err = lbgap_command("worker", database)
    assert status == 1
    assert err.endswith("holds 2 sweeps (idle, race): name one\n")


def test_a_database_without_a_sweep_is_left_as_it_is(here, database, lbgap_command):
    status, _, err = lbgap_command("worker", database)
    assert status == 1
    assert "holds no sweep: begin one by lbgap sweep" in err
    with psycopg.connect(database) as connection:
        assert connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone() == (0,)
