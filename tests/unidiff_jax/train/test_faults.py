"""Training that is killed, told to end, watched over: in the end it is the undisturbed one, bit by
bit.
"""

import collections
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import tiny_run
from jobs import start, start_job, wait_for
from test_resume import TIMED, Runs, assert_equal, plain, restored, shapes

from unidiff_jax.train.checkpoint import Checkpoints
from unidiff_jax.train.goodput import summarize_goodput
from unidiff_jax.train.lock import read_holder
from unidiff_jax.train.metrics import read_metrics

SHORT = ("train.num_steps=12", "train.save_every=4", "train.eval_every=6", "train.log_every=1")
SHORT += ("train.sample_every=12",)


class FaultyRuns(Runs):
    """Runs of `settings`, which may have faults."""

    def __init__(self, folder, miniworld, settings):
        super().__init__(folder, miniworld)
        self.settings = settings

    def start(self, workdir, *more, fault=(), flags=()):
        return start(
            "train",
            *flags,
            f"--workdir={workdir}",
            *(
                f"--set={item}"
                for item in tiny_run.overrides(self.miniworld, *self.settings, *more)
            ),
            program=["tests/faulty_run.py", *map(str, fault)] if fault else None,
            compiled=self.folder / "compiled",
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish_with(self, status, workdir, **settings):
        """What it said."""
        process = self.start(workdir, **settings)
        _, errors = process.communicate()
        assert process.returncode == status, errors[-3000:]
        return errors


@pytest.fixture(scope="module")
def runs(tmp_path_factory, miniworld):
    return FaultyRuns(tmp_path_factory.mktemp("faults"), miniworld, SHORT)


@pytest.fixture(scope="module")
def whole(runs):
    return runs.finish(runs.folder / "whole")


@pytest.fixture(scope="module")
def target(miniworld):
    return shapes(tiny_run.config(miniworld))


def assert_same_runs(first, second, target):
    """State, place in the data, and every row of the log."""
    one, other = restored(first, target), restored(second, target)
    assert int(one.state.step) == int(other.state.step)
    assert_equal(plain(one.state), plain(other.state))
    assert one.loader == other.loader

    def rows(workdir):
        found = read_metrics(workdir / "metrics.jsonl")
        return [{k: v for k, v in row.items() if k not in TIMED} for row in found]

    assert rows(first) == rows(second)


def test_kills_at_chosen_moments(runs, whole, target):
    workdir = runs.folder / "killed"
    runs.finish_with(-signal.SIGKILL, workdir, fault=("seal", 2))
    steps = sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert steps == [4, 8] and not list((workdir / "checkpoints" / "8").glob("manifest-*"))
    runs.finish_with(-signal.SIGKILL, workdir, fault=("save", 1))
    # the checkpoint without a manifest was passed over, and its successor is half written
    assert (workdir / "checkpoints" / "8.orbax-checkpoint-tmp").exists()
    said = runs.finish_with(-signal.SIGKILL, workdir, fault=("evaluate", 1))
    assert "checkpoint 8 is passed over" not in said
    said = runs.finish_with(0, workdir)
    assert "Traceback" not in said
    assert_same_runs(whole, workdir, target)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_five_kills(tmp_path, miniworld):
    """At random moments in all places; it needs about ten minutes of a core."""
    settings = (*SHORT, "train.num_steps=200", "train.save_every=3", "train.sample_every=100")
    runs = FaultyRuns(tmp_path, miniworld, settings)
    whole = runs.finish(tmp_path / "whole")
    workdir, rng, killed = tmp_path / "killed", random.Random(0), collections.Counter()
    most = {"data": 7, "step": 7, "evaluate": 2, "save": 2, "seal": 2, "seconds": 20}
    while killed.total() < 25:
        place = min(most, key=lambda name: (killed[name], rng.random()))
        process = runs.start(workdir, fault=(place, rng.randint(1, most[place])))
        _, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, (place, killed, errors[-3000:])
        killed[place] += 1
    runs.finish_with(0, workdir)
    assert len(killed) == len(most), killed
    assert_same_runs(whole, workdir, shapes(tiny_run.config(miniworld)))
    assert summarize_goodput(workdir)["lost"] > 0


def test_sigterm_saves(runs, whole, target):
    workdir = runs.folder / "told"
    process = runs.start(workdir, "train.save_every=100", flags=["--grace=60"])
    metrics = workdir / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and len(read_metrics(metrics)) > 0, process)
    process.send_signal(signal.SIGTERM)
    begun = time.monotonic()
    _, errors = process.communicate()
    assert process.returncode == 143, errors[-3000:]
    assert time.monotonic() - begun < 60
    checkpoints = Checkpoints(workdir / "checkpoints")
    step = checkpoints.newest_whole()
    checkpoints.close()
    assert 1 <= step < 12
    assert errors.splitlines()[-1] == (
        f"ended by SIGTERM after step {step}, which is saved in {workdir}; the same command goes "
        "on from there"
    )
    assert "Traceback" not in errors
    runs.finish_with(0, workdir)
    assert_same_runs(whole, workdir, target)


def test_a_save_that_takes_longer_than_the_grace(tmp_path):
    script = """
import sys, time
from unidiff_jax.train.preemption import Notice
with Notice(grace=0.5) as notice:
    print("ready", flush=True)
    while not notice.reached(1):
        time.sleep(0.01)
    time.sleep(60)  # a save that hangs
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert errors.startswith("error: nothing was saved in the 0.5 s after SIGTERM (--grace)")


@pytest.mark.slow
def test_sigterm_to_one_process_of_a_job(tmp_path, miniworld):
    """All agree on the step, save it and end."""
    settings = (*SHORT, "data.num_shards=2", "train.num_steps=400", "train.save_every=400")
    settings += ("train.eval_every=400", "train.sample_every=400")

    def begin(workdir, *more):
        return start_job(
            "train",
            f"--workdir={workdir}",
            *(f"--set={item}" for item in tiny_run.overrides(miniworld, *settings, *more)),
            processes=2,
            devices=1,
            compiled=tmp_path / "compiled",
            folder=tmp_path,
        )

    workdir = tmp_path / "told"
    job = begin(workdir)
    metrics = workdir / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and len(read_metrics(metrics)) > 1, *job)
    job[1].send_signal(signal.SIGTERM)
    for process in job:
        assert process.wait(timeout=120) == 143, process.log.read_text()[-3000:]
    said = [process.log.read_text().splitlines()[-1] for process in job]
    assert said[0] == said[1] and said[0].startswith("ended by SIGTERM after step ")
    checkpoints = Checkpoints(workdir / "checkpoints")
    step = checkpoints.newest_whole()  # each process wrote its part of the manifest
    checkpoints.close()
    assert f"after step {step}," in said[0]
    names = sorted(path.name for path in (workdir / "checkpoints" / str(step)).glob("manifest-*"))
    assert names == ["manifest-0-of-2.json", "manifest-1-of-2.json"]
    # damage that only the other process's share has is found by both
    shutil.copytree(workdir / "checkpoints" / str(step), workdir / "checkpoints" / str(step + 1))
    files = json.loads((workdir / "checkpoints" / str(step) / names[1]).read_text())["files"]
    victim = workdir / "checkpoints" / str(step + 1) / max(files, key=lambda n: files[n][0])
    victim.write_bytes(victim.read_bytes()[:-1])
    job = begin(workdir)
    wait_for(lambda: read_metrics(metrics)[-1]["step"] > step, *job)
    job[0].send_signal(signal.SIGTERM)
    for process in job:
        assert process.wait(timeout=120) == 143, process.log.read_text()[-3000:]
        assert f"checkpoint {step + 1} is passed over for {step}" in process.log.read_text()


@pytest.mark.slow
def test_a_supervised_run(tmp_path, miniworld, target):
    """Killed twice from outside; before the third start the newest checkpoint is damaged."""
    settings = (*SHORT, "train.num_steps=80", "train.save_every=10", "train.eval_every=80")
    runs = FaultyRuns(tmp_path, miniworld, (*settings, "train.sample_every=80"))
    whole, workdir = runs.finish(tmp_path / "whole"), tmp_path / "supervised"
    process = runs.start(workdir, flags=["--supervise"])
    for step, harm in ((10, False), (20, True)):
        params = workdir / f"checkpoints/{step}/params"

        def is_reached(step=step, params=params):
            is_sealed = (params.parent / "manifest-0-of-1.json").exists()
            return is_sealed and read_metrics(workdir / "metrics.jsonl")[-1]["step"] > step

        wait_for(is_reached, process)
        os.kill(read_holder(workdir)["pid"], signal.SIGKILL)
        if harm:
            file = max(params.rglob("d/*"), key=lambda path: path.stat().st_size)
            file.write_bytes(bytes(file.stat().st_size))
    _, errors = process.communicate()
    assert process.returncode == 0, errors[-3000:]
    assert_same_runs(whole, workdir, target)
    rows = [json.loads(line) for line in (workdir / "restarts.jsonl").read_text().splitlines()]
    assert [row["signal"] for row in rows if row["event"] == "end"] == ["SIGKILL", "SIGKILL", None]
    starts = [row for row in rows if row["event"] == "start"]
    assert [row["first_step"] for row in starts] == [0, 10, 10]
    assert starts[2]["lost_steps"] >= 11
    assert "newer checkpoints, up to 20, could not be used" in starts[2]["words"]
    assert "checkpoint 20 is passed over for 10: params/" in errors
    parts = summarize_goodput(workdir)
    assert parts["lost"] > 0 and parts["down"] > 0
    assert rows[-1]["words"] == f"finished; goodput {parts['goodput']:.1%} over all starts"
