"""One run a workdir: a lock that a crash cannot leave behind.

On a file system it is flock(2) on `WORKDIR/lock`, which the kernel holds for the process and gives
back however the process ends. The file's text says who has it, or had it last. NFS 4 passes the
lock to its server, which gives it back some 90 seconds after a machine that died.

A bucket has no locks. There `WORKDIR/lock` is a lease: its holder writes it anew every
`BEAT_SECONDS`, and removes it at the end. A start that finds it watches it for `LEASE_SECONDS`: if
it changes, somebody is there; if it does not, its holder died. So a restart after a crash waits for
so long, and a holder that was paused for longer than that finds another's name in it, and ends.
"""

import contextlib
import datetime
import fcntl
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from typing import IO

import jax
from absl import logging

from unidiff_jax.paths import AnyPath, as_path, is_remote

FILE = "lock"

BEAT_SECONDS, LEASE_SECONDS = 10.0, 35.0
"""A lease is written anew so often, and is over after so long without: three beats and a half."""


class WorkdirBusyError(RuntimeError):
    """Another process trains in the workdir; the message says which."""


@contextlib.contextmanager
def locked_workdir(workdir: AnyPath) -> Iterator[None]:
    """Holds the workdir for this job during the body; process 0 does it for all.

    Raises:
      WorkdirBusyError: another job has it.

    Example:
      >>> with locked_workdir("runs/quickstart"):
      ...     train()
    """
    if jax.process_index() > 0:
        yield
        return
    with _lease(workdir) if is_remote(workdir) else _flock(workdir):
        yield


def check_free(workdir: AnyPath) -> None:
    """Raises WorkdirBusyError while a job of this or another machine has a local workdir.

    A bucket's is not looked at: only time tells whether a lease is over.
    """
    path = as_path(workdir) / FILE
    if not is_remote(workdir) and path.exists():
        with path.open("a") as file:
            _take(file, workdir)


def read_holder(workdir: AnyPath) -> dict[str, str | int]:
    """Who has the lock or had it last: `pid`, `host` and `since`; {} before the first."""
    path = as_path(workdir) / FILE
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):  # not there, or just being written
        return {}


@contextlib.contextmanager
def _flock(workdir: AnyPath) -> Iterator[None]:
    path = as_path(workdir) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        _take(file, workdir)
        file.truncate(0)
        file.write(json.dumps(_me()) + "\n")
        file.flush()
        yield


def _take(file: IO[str], workdir: AnyPath) -> None:
    """Locks a file until it is closed."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise WorkdirBusyError(_busy(workdir)) from None
    except OSError as error:  # Lustre without -o flock, some FUSE
        logging.warning(
            "%s: no locks here (%s): a second run in this workdir would go unseen", workdir, error
        )


@contextlib.contextmanager
def _lease(workdir: AnyPath) -> Iterator[None]:
    path = as_path(workdir) / FILE
    me = _me() | {"id": uuid.uuid4().hex}
    _await_end(workdir)

    def write(beat: int) -> None:
        path.write_text(json.dumps(me | {"beat": beat}) + "\n")

    write(0)
    time.sleep(1.0)  # of two that begin at once, the last to write stays
    if read_holder(workdir).get("id") != me["id"]:
        raise WorkdirBusyError(_busy(workdir))
    ended = threading.Event()

    def keep() -> None:
        beat = 0
        while not ended.wait(BEAT_SECONDS):
            beat += 1
            try:
                if read_holder(workdir).get("id", me["id"]) != me["id"]:
                    print(f"error: {_busy(workdir)}; this run was silent", file=sys.stderr)
                    sys.stderr.flush()
                    os._exit(1)  # at once: two runs that write would spoil each other's files
                write(beat)
            except Exception as error:  # of any of the client's layers; the next beat may pass
                logging.warning("the lock could not be written: %s", error)

    thread = threading.Thread(target=keep, daemon=True, name="lease")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        path.unlink()


def _await_end(workdir: AnyPath) -> None:
    """Returns when no lease is there, or the one that is there is over."""
    first = read_holder(workdir)
    if first:
        logging.warning(
            "%s: waiting %.0f s to see whether %s still holds it",
            workdir,
            LEASE_SECONDS,
            _who(first),
        )
    deadline = time.monotonic() + LEASE_SECONDS
    while first and time.monotonic() < deadline:
        now = read_holder(workdir)
        if not now:
            return
        if now != first:
            raise WorkdirBusyError(_busy(workdir))
        time.sleep(1.0)


def _me() -> dict[str, str | int]:
    now = datetime.datetime.now().astimezone()
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": now.isoformat(timespec="seconds"),
    }


def _busy(workdir: AnyPath) -> str:
    return (
        f"{workdir} is in use by {_who(read_holder(workdir))}: wait for it, end it, or choose "
        "another --workdir"
    )


def _who(holder: dict[str, str | int]) -> str:
    if not holder:
        return "another process"
    return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
