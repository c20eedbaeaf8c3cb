"""Workers that are killed at any moment: nothing is lost, nothing finished is run twice, and the bits are the same."""

import os
import re

import pytest

pytest.importorskip("optuna")
import lbgap
from lbgap.sweeps.store import place
from lbgap.sweeps.worker import Job, work

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
]


def bits(table):
    return [{key: value for key, value in row.items() if not key.endswith("seconds")} for row in table]


def assert_same(job, whole):
    """The tables agree but for times, and the trained models and their epochs to the bit."""
    found, expected = lbgap.read_sweep(job.where.folder), lbgap.read_sweep(whole.where.folder)
    assert bits(found) == bits(expected)
    for row in found:
        assert row["state"] == "complete"
        one, two = (root / row["folder"] / "model.safetensors" for root in (job.root, whole.root))
        assert one.read_bytes() == two.read_bytes()


def assert_once(found, kills):
    """One finished trial a configuration, and no more begun than that and one for each that was killed."""
    assert sorted(key for key, state in found if state == "COMPLETE") == list(range(4))
    assert {state for _, state in found} <= {"COMPLETE", "FAIL"}
    assert len(found) <= 4 + kills


def rewrite(here, **changes):
    text = (here / "sweep.toml").read_text()
    for old, new in changes.items():
        text = re.sub(f"(?m)^{old} = .*$", f"{old} = {new}", text)
    (here / "sweep.toml").write_text(text)


def test_workers_killed_at_random_moments(here, begin, drive, trials):
    rewrite(here, epochs=150)
    whole, job = begin("whole"), begin("out")
    work(whole)
    kills = drive("times", job, "out")
    assert kills >= 2
    assert_same(job, whole)
    assert_once(trials(job), kills)


def test_a_worker_killed_around_each_change_of_the_storage(here, begin, drive, trials):
    rewrite(here, seeds=[0], batch_size=[8])
    whole, job = begin("whole"), begin("out")
    work(whole)
    # One trial is enqueued, is running, gives a sign of life, has a worker, has a result, is complete.
    assert drive("steps", job, "out") == 2 * 6
    for step in range(1, 14):
        cut = Job(place(f"out{step}"), job.name, here / f"out{step}", here)
        assert_same(cut, whole)
        found = [state for _, state in trials(cut)]
        assert found in (["COMPLETE"], ["FAIL", "COMPLETE"])


def test_workers_that_race_take_each_trial_once(here, begin, drive, trials):
    rewrite(here, seeds=list(range(4)))
    job = begin()
    assert drive("race", job, "out") == 0
    assert sorted(trials(job)) == [(key, "COMPLETE") for key in range(8)]
