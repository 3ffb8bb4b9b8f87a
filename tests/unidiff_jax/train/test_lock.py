"""One run a workdir, and a lock that a crash does not leave behind."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from jobs import ROOT

from unidiff_jax.paths import as_path
from unidiff_jax.train import lock
from unidiff_jax.train.lock import WorkdirBusyError, check_free, locked_workdir, read_holder

HOLD = """
import sys, time
from unidiff_jax.train.lock import locked_workdir
with locked_workdir(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_another_process_is_refused_until_this_one_is_killed(tmp_path, holder):
    words = rf"is in use by process {holder.pid} on \S+ since 20\S+: wait .* another --workdir"
    for _ in range(2):
        with pytest.raises(WorkdirBusyError, match=words), locked_workdir(tmp_path):
            pass
        with pytest.raises(WorkdirBusyError, match=words):
            check_free(tmp_path)
    holder.send_signal(signal.SIGSTOP)  # neither dead nor doing anything
    with pytest.raises(WorkdirBusyError), locked_workdir(tmp_path):
        pass
    holder.kill()  # SIGKILL: it cannot give anything back
    holder.wait()
    check_free(tmp_path)
    with locked_workdir(tmp_path):
        assert read_holder(tmp_path)["pid"] == os.getpid()


def test_twice_in_one_process(tmp_path):
    with locked_workdir(tmp_path):
        with pytest.raises(WorkdirBusyError, match=f"process {os.getpid()} "):
            with locked_workdir(tmp_path):
                pass
    with locked_workdir(tmp_path):
        pass


# ------------------------------------------------------------------------------------------ buckets


@pytest.fixture
def workdir(bucket, request, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.2)
    monkeypatch.setattr(lock, "LEASE_SECONDS", 3.0)
    return as_path(bucket) / "locks" / request.node.name


def test_a_lease_is_kept_and_given_back(workdir):
    with locked_workdir(workdir):
        with pytest.raises(WorkdirBusyError, match=f"in use by process {os.getpid()} on "):
            with locked_workdir(workdir):
                pass
    assert not (workdir / lock.FILE).exists()


def test_the_lease_of_a_dead_process_runs_out(workdir):
    dead = {"pid": 1, "host": "far", "since": "2026", "id": "dead", "beat": 7}
    (workdir / lock.FILE).write_text(json.dumps(dead))
    began = time.monotonic()
    with locked_workdir(workdir):
        assert time.monotonic() - began >= lock.LEASE_SECONDS
        assert read_holder(workdir)["pid"] == os.getpid()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_lease_that_was_taken_over_ends_its_holder(workdir, monkeypatch, capsys):
    ended = threading.Event()

    def end(status):
        assert status == 1
        ended.set()
        raise SystemExit  # of the thread

    monkeypatch.setattr(lock.os, "_exit", end)
    other = {"pid": 2, "host": "far", "since": "2026", "id": "other", "beat": 0}
    with locked_workdir(workdir):
        (workdir / lock.FILE).write_text(json.dumps(other))
        assert ended.wait(10)
    assert "is in use by process 2 on far since 2026" in capsys.readouterr().err
