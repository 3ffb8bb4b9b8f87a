"""A job of two processes: killed, continued on other meshes, and ended when one of them dies."""

import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import tiny_run

from unidiff_jax.config import ConfigError
from unidiff_jax.processes import HEARTBEAT_SECONDS, join_job
from unidiff_jax.train.checkpoint import Checkpoints, abstract_state
from unidiff_jax.train.metrics import read_metrics
from unidiff_jax.train.program import make_program
from unidiff_jax.train.state import create_state
from unidiff_jax.train.workdir import load_workdir_config

ROOT = pathlib.Path(__file__).resolve().parents[3]
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
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        args = [f"--set={item}" for item in tiny_run.overrides(self.miniworld, *SETTINGS)]
        flags = os.environ.get("XLA_FLAGS", "")
        logs = [self.folder / f"{workdir.name}-{port}-{i}.log" for i in range(processes)]
        started = []
        for i, log in enumerate(logs):
            which = [f"--distributed={i}/{processes}@127.0.0.1:{port}"] if processes > 1 else []
            with log.open("w") as file:
                process = subprocess.Popen(
                    [sys.executable, "-m", "launch.train", f"--workdir={workdir}", *which, *args],
                    cwd=ROOT,
                    env=os.environ
                    | {
                        "JAX_PLATFORMS": "cpu",
                        "JAX_COMPILATION_CACHE_DIR": str(self.folder / "compiled"),
                        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}",
                    },
                    stdout=file,
                    stderr=subprocess.STDOUT,
                )
            process.log = log
            started.append(process)
        return started

    def finish(self, workdir, *, processes, devices):
        job = self.start(workdir, processes=processes, devices=devices)
        for process in job:
            assert process.wait() == 0, process.log.read_text()[-3000:]
        return workdir


def wait_for(condition, job):
    while not condition():
        assert all(process.poll() is None for process in job), job[0].log.read_text()[-3000:]
        time.sleep(0.05)


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
    wait_for(lambda: 10 in losses(workdir) if (workdir / "metrics.jsonl").exists() else False, job)
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
    wait_for(lambda: (workdir / "checkpoints" / "8").exists(), job)
    job[victim].send_signal(signal.SIGKILL)
    survivor = job[1 - victim]
    status = survivor.wait(timeout=2 * HEARTBEAT_SECONDS)
    assert status != 0
    assert "another task died" in survivor.log.read_text()
