"""Starts training again when it crashes: the work of `launch.train --supervise`.

It is not started again after status 0, nor after 2, a wrong flag or config, of which nothing comes
however often it is started. Any other end is a crash. The wait before the next start doubles with
each crash that no new checkpoint came before, up to `MAX_WAIT` seconds; after `max_restarts` of
those it gives up. SIGTERM and Ctrl-C are passed on, and then nothing is started again. A training
that is still there `grace` seconds after that, and some for its own end, is killed.

Every end and every start is a row in `WORKDIR/restarts.jsonl`, and a line in
`WORKDIR/restarts.log` and on stderr. Steps are those of the account of time (`train/goodput.py`),
which is written with the log: what was done since the last log is not in them.

Each process of a job has its own supervisor, and files of its own, `restarts-HOST-PID.jsonl`, where
the workdir is a bucket. When one process dies the others end too, and all are started again.
"""

import datetime
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from launch import command
from unidiff_jax.paths import AnyPath, append_line, as_path, full_disk_borne, is_remote
from unidiff_jax.train.goodput import read_starts, summarize_goodput
from unidiff_jax.train.lock import check_free

ROWS, LINES = "restarts.jsonl", "restarts.log"
"""The log's names in a workdir."""

MAX_WAIT = 300.0
"""Seconds between a crash and the next start, at most."""

KILL_SECONDS = 30.0
"""For a process to be gone after its grace is over."""

_POLL_SECONDS, _FAR_POLL_SECONDS = 0.5, 20.0


def supervise(
    child: Sequence[str],
    workdir: AnyPath,
    *,
    max_restarts: int,
    grace: float,
    first_wait: float = 1.0,
) -> int:
    """Runs a training until it is over.

    Args:
      child: command line of a training in the workdir.
      workdir: of the run.
      max_restarts: crashes in a row without a new checkpoint that are borne.
      grace: seconds that the training takes to save after SIGTERM.
      first_wait: seconds between a crash and the next start, doubled with each further one.

    Returns:
      The exit status of the last start; that of a shell, 128 + its number, for a signal.

    Raises:
      WorkdirBusyError: a training runs there already.
    """
    check_free(workdir)
    supervisor = _Supervisor(list(child), workdir, grace=grace)
    handled = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    previous = {number: signal.signal(number, supervisor.pass_on) for number in handled}
    try:
        return supervisor.run(max_restarts=max_restarts, first_wait=first_wait)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class _Supervisor:
    def __init__(self, child: list[str], workdir: AnyPath, *, grace: float):
        self._child, self._workdir, self._grace = child, as_path(workdir), grace
        self._process: subprocess.Popen[bytes] | None = None
        self._told: signal.Signals | None = None
        self._told_at = 0.0
        own = f"-{socket.gethostname()}-{os.getpid()}" if is_remote(workdir) else ""
        self._rows = self._workdir / ROWS.replace(".", f"{own}.")
        self._lines = self._workdir / LINES.replace(".", f"{own}.")

    def pass_on(self, number: int, frame: Any) -> None:
        """Tells the training, which is in a session of its own, what this process was told."""
        del frame
        self._told, self._told_at = signal.Signals(number), time.monotonic()
        if self._process is not None and self._process.poll() is None:
            is_hangup = number == signal.SIGHUP
            self._process.send_signal(signal.SIGTERM if is_hangup else number)

    def run(self, *, max_restarts: int, first_wait: float) -> int:
        crashes, newest = 0, self._newest_checkpoint()
        last_step = next((row["step"] for row in read_starts(self._workdir)[::-1]), None)
        for number in range(1, sys.maxsize):
            status, last_step = self._run_once(number, last_step)
            if status == 0:
                share = summarize_goodput(self._workdir).get("goodput", 0.0)
                self._log("over", f"finished; goodput {share:.1%} over all starts", goodput=share)
                return status
            saved = self._newest_checkpoint()
            crashes = 1 if saved > newest else crashes + 1
            newest = max(newest, saved)
            wait = min(MAX_WAIT, first_wait * 2 ** (crashes - 1))
            if self._told is not None:
                self._log("over", f"not started again: {self._told.name} came")
            elif status == command.WRONG_USAGE:
                self._log("over", "not started again: a flag or the config is wrong")
            elif crashes > max_restarts:
                self._log(
                    "over",
                    f"given up: {crashes} crashes in a row without a new checkpoint, and "
                    f"--max_restarts={max_restarts}",
                )
            else:
                self._log("wait", f"starting again in {wait:g} s", seconds=wait)
                self._sleep(wait)
                if self._told is None:
                    continue
            return status
        raise AssertionError("unreachable")

    def _run_once(self, number: int, last_step: int | None) -> tuple[int, int | None]:
        """Status of one start, and the last step that is known."""
        began, newest = time.time(), self._newest_checkpoint()
        self._process = subprocess.Popen(self._child, start_new_session=True)
        if self._told is not None:  # between the two lines above
            self._process.send_signal(signal.SIGTERM)
        account = None
        while self._process.poll() is None:
            if account is None and (account := self._account(began)) is not None:
                self._log_start(number, account["first_step"], last_step, newest)
            deadline = self._told_at + self._grace + KILL_SECONDS
            if self._told is not None and time.monotonic() > deadline:
                self._process.kill()
            far = account is None and is_remote(self._workdir)
            self._sleep(_FAR_POLL_SECONDS if far else _POLL_SECONDS, ends_with=self._process)
        found = self._account(began)
        if account is None and found is not None:
            self._log_start(number, found["first_step"], last_step, newest)
        step = None if found is None else found["step"]
        status = self._log_end(number, self._process.wait(), time.time() - began, step)
        return status, last_step if step is None else step

    def _log_start(self, number: int, first: int, last_step: int | None, newest: int) -> None:
        lost = 0 if last_step is None else max(0, last_step - first)
        words = f"start {number} " + (
            f"goes on from checkpoint {first}" if first else "begins anew"
        )
        if lost:
            words += f", {lost} steps are done again"
        if first < newest:
            words += f"; newer checkpoints, up to {newest}, could not be used"
        self._log("start", words, start=number, first_step=first, lost_steps=lost)

    def _log_end(self, number: int, code: int, seconds: float, step: int | None) -> int:
        name = signal.Signals(-code).name if code < 0 else None
        status = 128 - code if code < 0 else code
        how = f"by {name}" if name else f"with status {code}"
        where = "before its first step" if step is None else f"at step {step}"
        self._log(
            "end",
            f"start {number} ended {how} {where}, after {seconds:.0f} s",
            start=number,
            status=None if name else code,
            signal=name,
            last_step=step,
            newest_checkpoint=self._newest_checkpoint(),
            seconds=round(seconds, 1),
        )
        return status

    def _log(self, event: str, words: str, **values: Any) -> None:
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        row = {"time": now, "event": event, "host": socket.gethostname(), "words": words, **values}
        print(f"supervise: {words}", file=sys.stderr, flush=True)
        if not self._workdir.exists() and not is_remote(self._workdir):
            return  # refused before anything was made
        with full_disk_borne(ROWS):
            append_line(self._rows, json.dumps(row))
            append_line(self._lines, f"{now} {words}")

    def _account(self, began: float) -> dict[str, Any] | None:
        """The account of the start that began then, once it has come to its first step."""
        rows = [row for row in read_starts(self._workdir) if row["started"] >= began]
        return rows[-1] if rows else None

    def _newest_checkpoint(self) -> int:
        """Step of the newest checkpoint, whole or not; -1 without one."""
        folder = self._workdir / "checkpoints"
        names = [path.name for path in folder.iterdir()] if folder.exists() else []
        return max((int(name) for name in names if name.isdigit()), default=-1)

    def _sleep(self, seconds: float, *, ends_with: subprocess.Popen[bytes] | None = None) -> None:
        """Sleeps, but not on after a signal or beside a process that has ended."""
        deadline, told = time.monotonic() + seconds, self._told
        while (left := deadline - time.monotonic()) > 0 and self._told is told:
            if ends_with is not None and ends_with.poll() is not None:
                return
            time.sleep(min(left, 0.2))
