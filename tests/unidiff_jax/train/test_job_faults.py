"""Faults of one process of a job: the others end and name it, and the job goes on exactly."""

import re
import signal
import time

import jax
import numpy as np
import pytest
import tiny_run
from jobs import start_job, wait_for
from test_processes import losses, saved

from unidiff_jax import watch
from unidiff_jax.train.incidents import read_incident
from unidiff_jax.train.metrics import read_metrics
from unidiff_jax.watch import LOST, SILENT_SECONDS, Watch

SETTINGS = ("data.num_shards=2", "train.num_steps=12", "train.log_every=1", "train.save_every=4")
SETTINGS += ("train.sample_every=100", "train.eval_every=100", "train.eval_items=1")


# ------------------------------------------------------------------------- the watch, without JAX


class Store:
    """A key-value store in memory."""

    def __init__(self):
        self.values = {}

    def key_value_set(self, key, value, allow_overwrite=False):
        self.values[key] = value

    def key_value_dir_get(self, key):
        return [pair for pair in self.values.items() if pair[0].startswith(key)]


class Reached:
    """The store as one process reaches it, until it is cut off."""

    def __init__(self, store):
        self.store, self.is_cut = store, False

    def __getattr__(self, name):
        def call(*args):
            if self.is_cut:
                raise RuntimeError("UNAVAILABLE")
            return getattr(self.store, name)(*args)

        return call


@pytest.fixture
def watches(monkeypatch):
    monkeypatch.setattr(watch, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(watch, "SILENT_SECONDS", 0.5)
    store, said = Store(), {}
    made = [
        Watch(Reached(store), index=i, count=3, on_loss=lambda text, i=i: said.setdefault(i, text))
        for i in range(3)
    ]
    for one in made:
        one.start()
    yield made, said
    for one in made:
        one.stop()


def until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_all_alive(watches):
    _, said = watches
    time.sleep(1.5)
    assert not said


def test_a_silent_process_is_named_to_all(watches):
    made, said = watches
    time.sleep(0.3)
    made[2].stop()
    until(lambda: len(said) == 2)
    for index in (0, 1):
        assert re.match(
            r"process 2 of 3 \(\S+, pid \d+\) has not been heard of for 0.5 s", said[index]
        )


def test_the_silence_of_process_0(watches):
    made, said = watches
    time.sleep(0.3)
    for one in made[1:]:
        one._store.is_cut = True  # as when the process that holds the store is gone
    made[0].stop()
    until(lambda: len(said) == 2)
    assert all(said[i].startswith("process 0 of 3 (") for i in (1, 2))


def test_a_failed_process_is_named_with_its_error(watches):
    made, said = watches
    time.sleep(0.3)
    made[1].fail("data.folder=x is not there")
    until(lambda: len(said) == 2)
    for index in (0, 2):
        assert re.search(r"process 1 of 3 .* ended with an error: data.folder=x is", said[index])


# ------------------------------------------------------------------------------------- real jobs


class Jobs:
    """Two processes of one device each."""

    def __init__(self, folder, miniworld):
        self.folder, self.miniworld = folder, miniworld

    def start(self, workdir, *scenario, settings=()):
        return start_job(
            "tests/job_scenarios.py" if scenario else "train",
            *scenario,
            f"--workdir={workdir}",
            *(f"--set={item}" for item in tiny_run.overrides(self.miniworld, *SETTINGS, *settings)),
            processes=2,
            devices=1,
            compiled=self.folder / "compiled",
            folder=self.folder,
        )

    def finish(self, workdir, *scenario, settings=()):
        job = self.start(workdir, *scenario, settings=settings)
        for process in job:
            assert process.wait() == 0, process.log.read_text()[-3000:]
        return job


@pytest.fixture(scope="module")
def jobs(tmp_path_factory, miniworld):
    return Jobs(tmp_path_factory.mktemp("jobs"), miniworld)


@pytest.fixture(scope="module")
def whole(jobs):
    workdir = jobs.folder / "whole"
    jobs.finish(workdir)
    return workdir


def assert_same_end(whole, workdir):
    expected, found = saved(whole, 12), saved(workdir, 12)
    assert found.loader == expected.loader
    for tree in ("params", "ema", "opt_state"):
        trees = (getattr(restored.state, tree) for restored in (found, expected))
        jax.tree.map(np.testing.assert_array_equal, *trees)
    assert losses(workdir) == losses(whole)


def words(process):
    """What a process said last; its output may come after its end."""
    return process.log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("victim", [1, 0])
@pytest.mark.parametrize("fault", ["killed", "paused"])
def test_a_lost_process_is_named_and_the_job_goes_on(jobs, whole, fault, victim):
    workdir = jobs.folder / f"{fault} {victim}"
    job = jobs.start(workdir, "slow", "0.5", str(victim))
    wait_for(lambda: (workdir / "checkpoints" / "4").exists(), *job)
    job[victim].send_signal(signal.SIGKILL if fault == "killed" else signal.SIGSTOP)
    lost, survivor = job[victim], job[1 - victim]
    status = survivor.wait(timeout=SILENT_SECONDS + 30)
    until(lambda: re.search(rf"process {victim} of 2 \(\S+, pid {lost.pid}\)", words(survivor)))
    if (fault, victim) == ("killed", 0):  # there JAX is faster than the watch
        assert status == -signal.SIGABRT and "which holds the job together" in words(survivor)
    else:
        assert status == LOST
        named = (
            rf"error: process {victim} of 2 \(\S+, pid {lost.pid}\) has not been heard of for 30"
        )
        assert re.search(named, words(survivor)), words(survivor)[-3000:]
    lost.kill()
    lost.wait()
    jobs.finish(workdir)
    assert_same_end(whole, workdir)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [1, 0])
def test_a_process_with_an_error_takes_the_others_along(jobs, whole, victim):
    workdir = jobs.folder / f"failed {victim}"
    job = jobs.start(workdir, "fails", "6", str(victim))
    begun = time.monotonic()
    assert job[victim].wait(timeout=300) == 1
    ended = time.monotonic()
    assert job[1 - victim].wait(timeout=20) == LOST
    assert "a fault of the program" in words(job[victim]) and "Traceback" in words(job[victim])
    named = rf"error: process {victim} of 2 \(\S+, pid {job[victim].pid}\) ended with an error: Key"
    assert re.search(named, words(job[1 - victim])), words(job[1 - victim])[-3000:]
    assert begun < ended
    jobs.finish(workdir)
    assert_same_end(whole, workdir)


@pytest.mark.slow
def test_a_slow_process_is_reported_and_not_ended(jobs, whole):
    workdir = jobs.folder / "slow"
    job = jobs.finish(workdir, "slow", "0.4", "1")
    assert re.search(r"process 1 of 2 comes 0\.[34]\d s later to a step", words(job[0]))
    rows = [row for row in read_metrics(workdir / "metrics.jsonl") if "latest_process" in row]
    assert {row["latest_process"] for row in rows[1:]} == {1.0}
    assert 0.3 < np.median([row["latest_seconds"] for row in rows]) < 0.6
    assert_same_end(whole, workdir)


@pytest.mark.slow
def test_all_processes_take_one_decision_on_a_bad_step(jobs, whole):
    """The NaN is in the rows of process 1 alone."""
    workdir = jobs.folder / "bad step"
    job = jobs.finish(
        workdir, "without_number", "5", "1", settings=("train.guard.policy=rollback",)
    )
    incident = read_incident(workdir)
    assert incident.step == 5 and incident.origin.step == 4 and np.isnan(incident.loss)
    bad = np.flatnonzero(~np.isfinite(incident.batch.tokens).all((1, 2)))
    assert len(incident.batch.tokens) == 8 and bad.tolist() == [4]
    assert "step 5: loss nan" in words(job[0])
    assert set(losses(workdir)) == set(range(1, 13))
