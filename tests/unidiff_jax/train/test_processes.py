"""A job of two processes: killed, continued on other meshes, and ended when one of them dies."""

import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import tiny_run
from jobs import ROOT, start_job, wait_for

from unidiff_jax.config import ConfigError
from unidiff_jax.processes import HEARTBEAT_SECONDS, LAST_WORDS, join_job
from unidiff_jax.train.checkpoint import Checkpoints, abstract_state
from unidiff_jax.train.metrics import read_metrics
from unidiff_jax.train.program import make_program
from unidiff_jax.train.state import create_state
from unidiff_jax.train.workdir import load_workdir_config

SETTINGS = ("data.num_shards=2", "train.num_steps=16", "train.log_every=1", "train.save_every=8")
SETTINGS += ("train.sample_every=16", "train.eval_every=8")


@pytest.mark.parametrize("which", ["2/2@localhost:1", "0/2", "two", "0/2@localhost"])
def test_jobs_that_cannot_be(which):
    with pytest.raises(ConfigError, match="0/2@localhost:1234"):
        join_job(which)


class Jobs:
    """Starts jobs of `launch.train` with some processes of some devices each."""

    def __init__(self, folder, miniworld):
        self.folder, self.miniworld = folder, miniworld

    def start(self, workdir, *, processes, devices):
        return start_job(
            "train",
            f"--workdir={workdir}",
            *(f"--set={item}" for item in tiny_run.overrides(self.miniworld, *SETTINGS)),
            processes=processes,
            devices=devices,
            compiled=self.folder / "compiled",
            folder=self.folder,
        )

    def finish(self, workdir, *, processes, devices):
        job = self.start(workdir, processes=processes, devices=devices)
        for process in job:
            assert process.wait() == 0, process.log.read_text()[-3000:]
        return workdir


def saved(workdir, step):
    """A checkpoint, on this process's one device."""
    program = make_program(load_workdir_config(workdir))
    state = create_state(program.model, program.optimizer, seed=9, shardings=program.shardings)
    checkpoints = Checkpoints(workdir / "checkpoints")
    found = checkpoints.restore(abstract_state(state), step=step)
    checkpoints.close()
    return found


def losses(workdir):
    rows = read_metrics(workdir / "metrics.jsonl")
    return {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}


@pytest.fixture(scope="module")
def jobs(tmp_path_factory, miniworld):
    return Jobs(tmp_path_factory.mktemp("jobs"), miniworld)


@pytest.fixture(scope="module")
def whole(jobs):
    """Sixteen steps in one go, on two processes of four devices."""
    return jobs.finish(jobs.folder / "whole", processes=2, devices=4)


@pytest.fixture(scope="module")
def killed(jobs, whole):
    """Killed between its two checkpoints."""
    workdir = jobs.folder / "killed"
    job = jobs.start(workdir, processes=2, devices=4)
    wait_for(lambda: 10 in losses(workdir) if (workdir / "metrics.jsonl").exists() else False, *job)
    for process in job:
        process.kill()
        process.wait()
    assert not (workdir / "checkpoints" / "16").exists()
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "devices"), [(2, 4), (1, 4), (2, 2), (1, 1)])
def test_a_killed_job_goes_on(jobs, whole, killed, processes, devices):
    workdir = jobs.folder / f"on {processes} x {devices}"
    shutil.copytree(killed, workdir)
    jobs.finish(workdir, processes=processes, devices=devices)
    expected, found = saved(whole, 16), saved(workdir, 16)
    assert found.loader == expected.loader  # the same examples in the same order
    expected_losses, found_losses = losses(whole), losses(workdir)
    assert expected_losses.keys() == found_losses.keys() == set(range(1, 17))
    if (processes, devices) == (2, 4):  # the same mesh: the same bits
        for tree in ("params", "ema", "opt_state"):
            trees = (getattr(restored.state, tree) for restored in (found, expected))
            jax.tree.map(np.testing.assert_array_equal, *trees)
        assert expected_losses == found_losses
    for step, loss in expected_losses.items():
        assert found_losses[step] == pytest.approx(loss, rel=1e-4), step


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_one_process_dies_and_all_end(jobs, whole, victim):
    workdir = jobs.folder / f"without {victim}"
    job = jobs.start(workdir, processes=2, devices=4)
    wait_for(lambda: (workdir / "checkpoints" / "8").exists(), *job)
    job[victim].send_signal(signal.SIGKILL)
    survivor = job[1 - victim]
    status = survivor.wait(timeout=2 * HEARTBEAT_SECONDS)
    assert status != 0
    deadline = time.monotonic() + 10  # the words come after the end
    while not survivor.log.read_text().endswith(f"{LAST_WORDS}\n"):
        assert time.monotonic() < deadline, survivor.log.read_text()[-3000:]
        time.sleep(0.05)
    assert "another task died" in survivor.log.read_text()  # JAX's own word is not hidden


def test_last_words_of_a_process():
    script = "import os, sys; from unidiff_jax import processes; processes._leave_last_words(); "

    def said(end):
        done = subprocess.run(
            [sys.executable, "-c", script + end], cwd=ROOT, capture_output=True, text=True
        )
        return done.returncode, done.stderr

    assert said("") == (0, "") and said("sys.exit(3)") == (3, "")
    assert said("os.abort()") == (-signal.SIGABRT, f"{LAST_WORDS}\n")
    status, text = said("1 / 0")
    assert status == 1 and text.endswith("ZeroDivisionError: division by zero\n")
