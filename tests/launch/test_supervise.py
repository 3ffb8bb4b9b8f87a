"""The supervisor's decisions, with stand-ins for the training; real runs are in test_faults.py."""

import fcntl
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from launch.supervise import supervise
from unidiff_jax.train.lock import WorkdirBusyError

ROOT = pathlib.Path(__file__).resolve().parents[2]

CHILD = """
import json, os, pathlib, signal, sys, time
workdir = pathlib.Path(sys.argv[1])
number = len(list(workdir.glob("start-*")))
(workdir / f"start-{number}").touch()

def account(first_step, step):
    row = {"started": began, "now": time.time(), "first_step": first_step, "step": step}
    with (workdir / "goodput.jsonl").open("a") as file:
        file.write(json.dumps(row | {"seconds": {}}) + "\\n")

def save(step):
    (workdir / "checkpoints" / str(step)).mkdir(parents=True)

began = time.time()
"""


@pytest.fixture
def run(tmp_path):
    def run(body, **settings):
        settings = {"max_restarts": 2, "grace": 5.0, "first_wait": 0.01} | settings
        child = [sys.executable, "-c", CHILD + body, str(tmp_path)]
        return supervise(child, tmp_path, **settings)

    return run


def rows(workdir):
    return [json.loads(line) for line in (workdir / "restarts.jsonl").read_text().splitlines()]


def words(workdir):
    return [line.partition(" ")[2] for line in (workdir / "restarts.log").read_text().splitlines()]


def test_crashes_and_what_was_lost(run, tmp_path):
    body = """
first = [0, 10, 20][number]
account(first, first)
account(first, first + 17)
if number < 2:
    save(first + 10)
    os.kill(os.getpid(), signal.SIGKILL) if number else sys.exit(69)
"""
    assert run(body) == 0
    found = rows(tmp_path)
    events = ["start", "end", "wait", "start", "end", "wait", "start", "end", "over"]
    assert [row["event"] for row in found] == events
    ends = [row for row in found if row["event"] == "end"]
    assert [(row["status"], row["signal"]) for row in ends] == [
        (69, None),
        (None, "SIGKILL"),
        (0, None),
    ]
    assert [(row["last_step"], row["newest_checkpoint"]) for row in ends] == [
        (17, 10),
        (27, 20),
        (37, 20),
    ]
    starts = [(row["first_step"], row["lost_steps"]) for row in found if row["event"] == "start"]
    assert starts == [(0, 0), (10, 7), (20, 7)]
    told = words(tmp_path)
    assert told[3] == "start 2 goes on from checkpoint 10, 7 steps are done again"
    assert told[4] == "start 2 ended by SIGKILL at step 27, after 0 s"
    assert told[-1].startswith("finished; goodput ")


def test_crashes_without_a_checkpoint_are_counted(run, tmp_path):
    assert run("save(1) if number == 1 else None; sys.exit(1)") == 1
    # the second start saved: only the third, fourth and fifth count against it
    assert len(list(tmp_path.glob("start-*"))) == 4
    waits = [row["seconds"] for row in rows(tmp_path) if row["event"] == "wait"]
    assert waits == [0.01, 0.01, 0.02]
    assert "given up: 3 crashes in a row without a new checkpoint" in words(tmp_path)[-1]


def test_a_wrong_config_is_not_tried_again(run, tmp_path):
    assert run("sys.exit(2)") == 2
    assert len(list(tmp_path.glob("start-*"))) == 1
    assert words(tmp_path)[-1] == "not started again: a flag or the config is wrong"


def test_checkpoints_that_could_not_be_used_are_told(run, tmp_path):
    run("save(10) or save(20) or sys.exit(1) if number == 0 else account(10, 10)")
    assert "start 2 goes on from checkpoint 10; newer checkpoints, up to 20, could not" in " ".join(
        words(tmp_path)
    )


def test_beside_a_training(run, tmp_path):
    with (tmp_path / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(WorkdirBusyError, match="is in use by another process"):
            run("sys.exit(0)")
    assert not list(tmp_path.glob("start-*"))


SUPERVISE = """
import sys
import launch.supervise
launch.supervise.KILL_SECONDS = 0.5
sys.exit(launch.supervise.supervise(sys.argv[2:], sys.argv[1], max_restarts=2, grace=0.2))
"""


@pytest.mark.parametrize(
    ("number", "body", "status"),
    [
        (signal.SIGTERM, "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))", 143),
        (signal.SIGINT, "signal.signal(signal.SIGINT, lambda *_: sys.exit(130))", 130),
        (signal.SIGTERM, "signal.signal(signal.SIGTERM, signal.SIG_IGN)", 137),
    ],
)
def test_signals_are_passed_on(tmp_path, number, body, status):
    child = [sys.executable, "-c", f"{CHILD}{body}\naccount(0, 0); time.sleep(60)", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-c", SUPERVISE, str(tmp_path), *child],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while not (tmp_path / "restarts.log").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(timeout=60) == status
    assert len(list(tmp_path.glob("start-*"))) == 1
    assert words(tmp_path)[-1] == f"not started again: {number.name} came"
