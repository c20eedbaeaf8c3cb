"""The commands ``sweep`` and ``worker``, the table, and what becomes of trials that fail or are left alone."""

import csv
import json
import logging
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("optuna")
import lbgap
from lbgap.sweeps import store as stores
from lbgap.sweeps import table, trial, worker
from lbgap.sweeps.definition import from_dict
from lbgap.sweeps.store import Store
from lbgap.sweeps.worker import Job, work

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def at_once(monkeypatch):
    """Let the commands work in this process, which starts faster than others do."""

    def run(job, workers, threads, told):
        work(job)
        told({0: "complete"})

    monkeypatch.setattr(worker, "run", run)


@pytest.fixture
def opened(begin):
    """The store of a sweep that was begun."""
    job = begin()
    store = Store.open(job.where)
    yield store
    store.close()


def test_a_sweep_by_two_processes_from_plan_to_table(here, lbgap_command):
    status, plan, err = lbgap_command("sweep", "sweep.toml", "--out", "out", "--dry-run")
    assert (status, err) == (0, "")
    assert "sweep: 4 trials, 2 configurations from 2 seeds" in plan
    assert re.search(r"batch_size +varies +8, 50%", plan)
    assert re.search(r"epochs +fixed +3", plan)
    assert re.search(r"sharpness +scipy +epsilon 0.001, method scipy, iterations 3", plan)
    assert "Nothing was run" in plan
    assert not (here / "out").exists()

    status, out, err = lbgap_command("sweep", "sweep.toml", "--out", "out", "--workers", 2, "--threads", 1)
    assert (status, err) == (0, "")
    assert out.startswith(plan[: plan.index("\nNothing")])
    assert max(map(len, out.splitlines())) <= 80
    assert "…" not in out
    rows = lbgap.read_sweep("out")
    assert [(row["trial"], row["state"], row["seed"]) for row in rows] == [
        (0, "complete", 0),
        (1, "complete", 1),
        (2, "complete", 0),
        (3, "complete", 1),
    ]
    mean = (rows[0]["test_accuracy"] + rows[1]["test_accuracy"]) / 2
    assert re.search(rf"batch_size 8 +2 .* {mean:.4g} ± ", out)
    assert {row["threads"] for row in rows} == {1}
    assert all(row["phi_vertex_0.001"] > row["phi_vertex_0.0005"] > 0 for row in rows)
    run = lbgap.read_run(here / "out" / rows[2]["folder"])
    assert run.config["batch_size"] == 30
    assert rows[2]["train_loss"] == run.result["metrics"]["train_loss"]

    with (here / "out" / "results.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [list(row) for row in written] == [list(row) for row in rows]
    assert [float(row["phi_scipy_0.001"]) for row in written] == [row["phi_scipy_0.001"] for row in rows]
    assert written[0]["hidden"] == "[4]"


def test_the_same_command_runs_nothing_twice(here, begin, trials, lbgap_command, at_once):
    job = begin()
    work(job)
    before = trials(job)
    status, out, err = lbgap_command("sweep", "sweep.toml", "--out", "out", "--json")
    assert (status, err) == (0, "")
    result = json.loads(out)
    assert result["trials"] == lbgap.read_sweep("out")
    assert trials(job) == before
    first = result["summary"][0]
    assert (first["settings"], first["seeds"], first["failed"]) == ({"batch_size": 8}, 2, 0)
    assert set(first["values"]) >= {"train_loss", "test_accuracy", "distance", "phi_vertex_0.001", "phi_scipy_0.001"}


def test_the_runs_of_a_sweep_find_an_archive_in_its_data_dir(here, lbgap_command, at_once):
    (here / "own").mkdir()
    (here / "data.npz").rename(here / "own" / "data.npz")
    (here / "sweep.toml").write_text("[base]\ndata = 'data.npz'\ndata_dir = 'own'\nepochs = 1\nhidden = [4]")
    assert lbgap_command("sweep", "sweep.toml", "--out", "out")[0] == 0
    run = Path("out", lbgap.read_sweep("out")[0]["folder"])
    status, out, err = lbgap_command("sharpness", run, "--out", "measured")
    assert (status, err) == (0, "")
    assert "phi" in out


def test_a_phi_of_zero_says_why(here, lbgap_command, at_once):
    (here / "sweep.toml").write_text(
        "[base]\ndata = 'data.npz'\nepochs = 1\nhidden = [4]\n[[sharpness]]\nepsilon = 1e30"
    )
    assert lbgap_command("sweep", "sweep.toml", "--out", "out")[0] == 0
    (row,) = lbgap.read_sweep("out")
    assert row["phi_vertex_1e+30"] == 0
    assert row["phi_vertex_1e+30_status"].startswith("nothing larger than the loss at the minimizer was found: ")


UNKNOWN = {"state": "failed", "error": "E: why", "result": None, "worker": None}


def test_a_setting_that_plays_no_part_in_any_trial_has_no_place_in_the_means():
    definition = from_dict({"base": {"network": "f1"}, "grid": {"hidden": [[64]], "batch_size": [8]}}, "x")
    found = table.rows(definition, {0: UNKNOWN})
    assert table.summary(definition, found)[0]["settings"] == {"batch_size": 8}


def test_the_epochs_of_a_trial_that_failed_are_those_asked_for():
    grids = [{"epochs": [5]}, {"batch_size": [8]}]
    definition = from_dict({"grid": grids}, "x")
    trained = {**UNKNOWN, "state": "complete", "result": {"epochs": 30, "epoch": 20}}
    found = table.rows(definition, {0: UNKNOWN, 1: trained})
    assert [row["epochs"] for row in found] == [5, 30]
    assert [one["settings"] for one in table.summary(definition, found)] == [{"epochs": 5}, {"batch_size": 8}]


def test_a_trial_that_fails_is_recorded_and_the_others_go_on(here, trials, begin, lbgap_command, at_once):
    (here / "sweep.toml").write_text(
        "[base]\ndata = 'data.npz'\nepochs = 3\nhidden = [4]\noptimizer = 'SGD'\n[grid]\nlearning_rate = [1e30, 0.1]"
    )
    command = ("sweep", "sweep.toml", "--out", "out")
    status, out, err = lbgap_command(*command)
    assert status == 1
    assert re.fullmatch(r"lbgap: 1 of 2 trials failed, trial 0: FloatingPointError: .*--retry-failed runs .*\n", err)
    assert "learning_rate 0.1" in out
    rows = lbgap.read_sweep("out")
    assert [row["state"] for row in rows] == ["failed", "complete"]
    assert rows[0]["error"].startswith("FloatingPointError: ")
    assert rows[0]["train_loss"] is None
    assert lbgap_command(*command)[0] == 1
    assert sorted(trials(begin())) == [(0, "FAIL"), (1, "COMPLETE")]
    assert lbgap_command("worker", "out", "--retry-failed")[0] == 1
    assert sorted(trials(begin())) == [(0, "FAIL"), (0, "FAIL"), (1, "COMPLETE")]


def test_a_disk_that_is_full_is_no_fault_of_the_trial(begin, monkeypatch):
    job = begin()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(worker, "run_trial", full)
        with pytest.raises(OSError, match="No space left"):
            work(job)
    assert {row["state"] for row in lbgap.read_sweep("out")} == {"waiting"}
    work(job)
    assert {row["state"] for row in lbgap.read_sweep("out")} == {"complete"}


def test_other_data_under_the_same_name_are_refused(here, begin):
    job = begin()
    (here / "elsewhere").mkdir()
    text = (here / "data.npz").read_bytes()
    arrays = dict(np.load(here / "data.npz"))
    arrays["features"] += 1
    np.savez(here / "elsewhere" / "data.npz", **arrays)
    work(Job(job.where, job.name, job.root, here / "elsewhere"))
    rows = lbgap.read_sweep("out")
    assert {row["state"] for row in rows} == {"failed"}
    assert "ValueError: the data data.npz are not those that the sweep was made with" in rows[0]["error"]
    assert (here / "data.npz").read_bytes() == text


def test_another_environment_starts_a_run_of_its_own(here, begin, monkeypatch):
    work(begin("one"))
    real = trial.describe_environment
    monkeypatch.setattr(trial, "describe_environment", lambda device: {**real(device), "hardware": "other"})
    work(begin("two"))
    folders = [{row["folder"] for row in lbgap.read_sweep(name)} for name in ("one", "two")]
    assert not folders[0] & folders[1]


def test_measures_that_were_taken_are_not_taken_again(here, begin, monkeypatch):
    job, taken = begin(), []
    real = trial.fast_sharpness

    def counted(objective, *, epsilon, **options):
        taken.append((options.get("method"), epsilon))
        if len(taken) == 2:
            raise KeyboardInterrupt
        return real(objective, epsilon=epsilon, **options)

    monkeypatch.setattr(trial, "fast_sharpness", counted)
    with pytest.raises(KeyboardInterrupt):
        work(job)
    work(job)
    assert taken[:4] == [(None, 1e-3), (None, 5e-4), (None, 5e-4), ("scipy", 1e-3)]
    assert len(taken) == 4 * 3 + 1


def leave(claim):
    """What is left of a process that was killed: its trial counts as running, and its lock is gone."""
    claim._stack.close()


def test_what_a_dead_process_of_this_machine_had_is_taken_at_once(opened, here):
    claim = opened.claim(here / "out")
    second = opened.claim(here / "out")
    assert (claim.trial.key, second.trial.key) == (0, 1)
    leave(claim)
    assert opened.claim(here / "out").trial.key == 0
    assert opened.states()[1] == "running"


def test_what_is_released_waits_again_and_is_not_held_against_the_trial(opened, here):
    for _ in range(stores.CUTS + 2):
        claim = opened.claim(here / "out")
        assert claim.trial.key == 0
        claim.release()
    assert opened.states() == dict.fromkeys(range(4), "waiting")


def test_a_trial_that_process_after_process_dies_of_is_given_up(opened, here):
    for _ in range(stores.CUTS):
        claim = opened.claim(here / "out")
        assert claim.trial.key == 0
        leave(claim)
    assert opened.claim(here / "out").trial.key == 1
    row = opened.rows()[0]
    assert row["state"] == "failed"
    assert "10 processes died of it" in row["error"]
    opened.refill(again=True)
    assert opened.states()[0] == "waiting"


def test_another_machine_is_judged_by_its_signs_of_life(begin, here, monkeypatch):
    monkeypatch.setattr(stores, "HEARTBEAT", 1)
    monkeypatch.setattr(stores, "GRACE", 2)
    job = begin()
    there, here_store = Store.open(job.where), Store.open(job.where)
    with monkeypatch.context() as patch:
        patch.setattr(stores, "machine", lambda: "another")
        claim = there.claim(here / "there")
        alive = there.claim(here / "there")
    assert (claim.trial.key, alive.trial.key) == (0, 1)
    end = time.monotonic() + 60
    while (taken := here_store.claim(here / "out")).trial.key != 0:  # first 2 and 3, then what gives no sign
        assert taken.trial.key in (2, 3)
        while here_store.states()[0] == "running":
            assert time.monotonic() < end
            alive.beat()
            time.sleep(0.2)
            here_store.refill()
        taken.fail("only to have it out of the way")
    assert not alive.lost
    claim.beat()  # it was only asleep
    assert claim.lost
    claim.finish({"train_loss": 0.0})
    assert here_store.states()[0] == "running"
    taken.finish({"train_loss": 1.0})
    assert here_store.rows()[0]["result"] == {"train_loss": 1.0}
    there.close()
    here_store.close()


def test_two_processes_never_work_in_one_folder(opened, here):
    with lbgap.sweeps.store.files.locked(_made(here / "out" / "trials" / "0000")):
        assert opened.claim(here / "out").trial.key == 1


def _made(folder):
    folder.mkdir(parents=True)
    return folder


def test_a_worker_that_is_no_longer_wanted_stops_at_the_next_epoch(begin, monkeypatch):
    job, real = begin(), worker.run_trial

    def slept(definition, one, root, data_dir, digests, epoch):
        if not lost:
            lost.append(one.key)
            claims[0].lost = True
        return real(definition, one, root, data_dir, digests, epoch)

    lost, claims = [], []
    take = Store._take
    monkeypatch.setattr(Store, "_take", lambda self, *rest: claims.append(take(self, *rest)) or claims[-1])
    monkeypatch.setattr(worker, "run_trial", slept)
    work(job)
    assert {row["state"] for row in lbgap.read_sweep("out")} == {"complete"}
    assert [claim.trial.key for claim in claims].count(lost[0]) == 2


@pytest.mark.parametrize(("device", "taken"), [("cuda", [1]), ("cuda:0", []), ("cpu", [])])
def test_processes_share_out_the_gpus(here, begin, monkeypatch, device, taken):
    path = here / "sweep.toml"
    path.write_text(path.read_text().replace("[base]", f'[base]\ndevice = "{device}"'))
    job, chosen = begin(), []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)

    def failed(*_):
        raise ValueError("not run")

    monkeypatch.setattr(worker, "run_trial", failed)
    work(job, number=4)
    assert chosen == taken


def test_reading_leaves_the_process_as_it_was(begin, capfd, caller_state):
    begin()
    levels = [logging.getLogger(name).level for name in ("optuna", "alembic")]
    before = caller_state()
    rows = lbgap.read_sweep("out", name="sweep")
    assert caller_state() == before
    assert [logging.getLogger(name).level for name in ("optuna", "alembic")] == levels
    assert capfd.readouterr() == ("", "")
    assert [row["state"] for row in rows] == ["waiting"] * 4
    assert {row["error"] for row in rows} == {None}


def edit(database, statement):
    connection = sqlite3.connect(database)
    connection.execute(statement)
    connection.commit()
    connection.close()


def test_what_is_no_sweep_of_this_version_is_refused(here, begin, lbgap_command):
    def refused(message, *arguments):
        status, _, err = lbgap_command(*arguments)
        assert status == 1
        assert re.fullmatch(r"lbgap: [^\n]+\n", err), err
        assert re.search(message, err), err

    begin()
    (here / "empty").mkdir()
    text = (here / "sweep.toml").read_text()
    (here / "other.toml").write_text("name = 'sweep'\n" + text.replace("seeds = [0, 1]", "seeds = [0, 2]"))
    (here / "named.toml").write_text(text)
    refused(r"out holds the sweep 'sweep' with another definition: seeds is \[0, 1\] there but \[0, 2\] here", "sweep",
            "other.toml", "--out", "out")  # fmt: skip
    refused("out holds the sweep 'sweep', not 'named'", "sweep", "named.toml", "--out", "out")
    refused("--threads is 3, but the sweep was begun with 1", "sweep", "sweep.toml", "--out", "out", "--threads", 3)
    refused("empty is not a sweep: it has no sweep.db", "worker", "empty")
    refused("none is not a sweep", "worker", "none")
    refused("out holds no sweep 'none', but sweep", "worker", "out", "--name", "none")
    refused("must be a folder or postgresql://user@host/database, got a URL of mysql", "worker", "mysql://a@b/c")
    refused("got a URL that is malformed", "worker", "://")
    refused("sweep.toml", "worker", "sweep.toml")
    edit(here / "out" / "sweep.db", "UPDATE study_user_attributes SET value_json = '\"lbgap sweep, format 0\"' "
         "WHERE key = 'lbgap_format'")  # fmt: skip
    refused("'sweep' in out is not a sweep that this version reads: it has format 'lbgap sweep, format 0'", "worker",
            "out", "--name", "sweep")  # fmt: skip
    edit(here / "out" / "sweep.db", "UPDATE alembic_version SET version_num = 'v9.9.9.a'")
    refused("the storage out is of another Optuna", "worker", "out")
    (here / "out" / "sweep.db").write_bytes(b"not a database")
    refused("the storage out cannot be used: file is not a database", "worker", "out")


def test_a_server_that_is_not_there_is_one_line_without_the_password(here, lbgap_command):
    status, _, err = lbgap_command("worker", "postgresql://user:secret@127.0.0.1:1/sweeps")
    assert status == 1
    assert re.fullmatch(r"lbgap: the storage postgresql://user:\*\*\*@127.0.0.1:1/sweeps cannot be used: [^\n]+\n", err)
    assert "secret" not in err


@pytest.mark.parametrize(
    ("missing", "source", "message"),
    [
        ("optuna", "out", r'sweeps need Optuna: pip install "lbgap\[sweeps\]"'),
        ("psycopg", "postgresql://a@b/c", r'PostgreSQL needs psycopg: pip install "lbgap\[postgres\]"'),
    ],
)
def test_without_the_packages_of_an_extra(here, lbgap_command, monkeypatch, missing, source, message):
    monkeypatch.setitem(sys.modules, missing, None)
    status, _, err = lbgap_command("worker", source)
    assert status == 1
    assert re.fullmatch(rf"lbgap: {message}\n", err), err


def test_bad_options(here, lbgap_command):
    for option in ("--workers", "--threads"):
        status, _, err = lbgap_command("sweep", "sweep.toml", option, 0)
        assert (status, err.count("\n")) == (2, 1)
        assert "must be at least 1, got 0" in err


def start(here, *arguments):
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from lbgap.cli.app import main; main()",
            "sweep",
            "sweep.toml",
            "--out",
            "out",
            *arguments,
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(condition, sweep, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert sweep.poll() in (None, -signal.SIGKILL), sweep.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.2)


def running():
    """The processes that have a trial of the sweep in ``out``."""
    try:
        store = Store.open(stores.place("out"))
    except (FileNotFoundError, ValueError):
        return []
    found = [row["worker"]["process"] for row in store.rows().values() if row["state"] == "running" and row["worker"]]
    store.close()
    return found


def alive(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_ctrl_c_and_a_kill_leave_a_sweep_that_goes_on(here, trials):
    text = (here / "sweep.toml").read_text()
    (here / "sweep.toml").write_text(text.replace("epochs = 3", "epochs = 100000"))
    job = Job(stores.place("out"), "sweep", here / "out", here)

    sweep = start(here, "--workers", "2")
    wait_for(lambda: len(running()) == 2, sweep)
    workers = running()
    os.killpg(sweep.pid, signal.SIGINT)
    _, err = sweep.communicate(timeout=60)
    assert sweep.returncode == 130
    assert err == "lbgap: interrupted; what is finished is kept, the same command goes on from there\n"
    assert not any(map(alive, workers))
    assert table.TABLE in os.listdir("out")
    store = Store.open(job.where)
    assert set(store.states().values()) == {"waiting"}
    store.close()

    sweep = start(here)
    wait_for(running, sweep)
    workers = running()
    sweep.kill()
    sweep.communicate(timeout=60)
    wait_for(lambda: not any(map(alive, workers)), sweep)  # it ends with the process that started it
    store = Store.open(job.where)
    claim = store.claim(here / "out")
    assert claim.trial.key == 0
    claim.release()
    store.close()
    assert [state for _, state in trials(job)].count("COMPLETE") == 0
