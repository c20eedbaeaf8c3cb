"""A sweep of four trainings that take no time, and workers in processes of their own."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from lbgap.sweeps.definition import read
from lbgap.sweeps.judge import judge

FILE = """
seeds = [0, 1]

[base]
data = "data.npz"
hidden = [4]
epochs = 3

[grid]
batch_size = [8, "50%"]

[[sharpness]]
epsilon = [1e-3, 5e-4]

[[sharpness]]
method = "scipy"
epsilon = 1e-3
iterations = 3
"""

# Forks the workers, so that torch is imported once. What is printed is how many were killed.
DRIVER = """
import json, os, random, shutil, signal, sys, time
from pathlib import Path
import torch, torch._dynamo, scipy.optimize
from lbgap.sweeps import store as stores, worker
from lbgap.sweeps.store import Store
from lbgap.sweeps.worker import Job, work

mode, source, name, root, data_dir = sys.argv[1:]
worker.POLL = worker.LONGEST_POLL = 0.05
job = Job(stores.place(source), name, Path(root), Path(data_dir))

def forked(action, *arguments):
    child = os.fork()
    if child == 0:
        try:
            action(*arguments)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return child

def ended(child, options=0):
    found, status = os.waitpid(child, options)
    assert not found or os.WIFSIGNALED(status) or status == 0, status
    return None if not found else status == 0

def bombed(step):
    left = step
    def bomb(name):
        call = getattr(stores.RDBStorage, name)
        def wrapped(*arguments, **options):
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            found = call(*arguments, **options)
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return found
        return wrapped
    for name in ("create_new_trial", "set_trial_state_values", "record_heartbeat", "set_trial_user_attr"):
        setattr(stores.RDBStorage, name, bomb(name))
    work(job)

Store.open(job.where, name).close()  # what is imported on the way is imported once
kills = 0
if mode == "steps":  # killed before or after each change of the storage; another process goes on
    finished, step = False, 0
    while not finished:
        step += 1
        folder = Path(f"{source}{step}")
        shutil.copytree(source, folder)
        job = Job(stores.place(folder), name, folder.absolute(), Path(data_dir))
        finished = ended(forked(bombed, step))
        kills += not finished
        assert finished or ended(forked(work, job))
elif mode == "race":
    for child in [forked(work, job) for _ in range(4)]:
        assert ended(child)
else:  # two workers; one of them at a time is killed at a random moment, and another one started
    draw = random.Random(0)
    children = [forked(work, job) for _ in range(2)]
    while children and kills < 5:
        time.sleep(draw.uniform(0.05, 0.3 * (1 + kills)))  # short at first, for a fast machine
        chosen = draw.choice(children)
        os.kill(chosen, signal.SIGKILL)
        children.remove(chosen)
        if not ended(chosen):
            kills += 1
            children.append(forked(work, job))
        children = [child for child in children if ended(child, os.WNOHANG) is None]
    for child in children:
        assert ended(child)
print(json.dumps(kills))
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with data, a network of one's own and the file of a sweep, which is also the current one."""
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(80, 6)), rng.integers(3, size=80)
    labels[:3] = 0, 1, 2
    split = {"features": features[:60], "test_features": features[60:]}
    np.savez(tmp_path / "data.npz", **split, labels=labels[:60], test_labels=labels[60:])
    (tmp_path / "sweep.toml").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def begin(here):
    """Begin the sweep of ``sweep.toml``; returns what a worker needs."""
    pytest.importorskip("optuna")
    from lbgap.sweeps import store as stores
    from lbgap.sweeps.store import Store
    from lbgap.sweeps.worker import Job

    def begun(source="out", root=None):
        definition = read(here / "sweep.toml")
        facts = {"threads": 1, "digests": judge(definition, here), "data_dir": str(here)}
        where = stores.place(source)
        if where.folder is not None:
            where.folder.mkdir(exist_ok=True)
        Store.create(where, definition, facts).close()
        return Job(where, definition.name, (here / (root or source)).absolute(), here)

    return begun


@pytest.fixture
def drive(here):
    """Run the driver on a sweep; returns how many workers were killed."""

    def driven(mode, job, source):
        done = subprocess.run(
            [sys.executable, "-c", DRIVER, mode, source, job.name, str(job.root), str(here)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return driven


@pytest.fixture
def trials():
    """All trials of a sweep as the study has them, those that were cut off included: key, state."""
    pytest.importorskip("optuna")
    from lbgap.sweeps.store import Store

    def listed(job):
        store = Store.open(job.where, job.name)
        found = [(trial.user_attrs["lbgap_key"], trial.state.name) for trial in store._all()]
        store.close()
        return found

    return listed
