"""Several processes of one job: who starts, who goes first, who reads which data.

A job on a pod is the same program on every host. It differs from one process in things that are
here: the processes find each other (`join_job`) and watch over each other (`watch`), one of them
alone writes what all share (`first_alone`), each reads the rows that its devices hold
(`data_share`), and work that is cut into pieces is dealt out (`own_pieces`).
"""

import atexit
import contextlib
import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax._src.distributed import global_state
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from unidiff_jax.config import ConfigError
from unidiff_jax.watch import Watch, end_process

Piece = TypeVar("Piece")

HEARTBEAT_SECONDS = 100
"""A process whose JAX is silent for so long counts as dead to JAX, which ends the others and names
nobody. `watch` is there before."""

END_SECONDS = 10**6
"""For all processes of a job to come to their end, while they are alive."""

START_SECONDS = 300
"""For all processes of a job to be there."""

LAST_WORDS = (
    "error: this process of a job ended before its time. If nothing above says why, it was killed, "
    "or another process of the job died: the output of that one says why"
)
"""What a process of a job says last, unless it comes to its own end."""

LEADER_WORDS = (
    "error: this process of a job ended before its time. If nothing above says why, it was killed, "
    "or {} was, which holds the job together: its output says why"
)
"""The same where process 0 is known: the loss of any other is found and told by `watch`."""


def join_job(which: str) -> None:
    """Makes this process one of a job; call it before anything of JAX.

    Args:
      which: empty for a job of one process; `auto` on Cloud TPU, GKE, Slurm and MPI, whose own
        settings say who is who; or `I/N@HOST:PORT`, process I of N, whose first process listens
        there.

    Raises:
      ConfigError: another form, or no cluster that `auto` knows.

    Example:
      >>> join_job("0/2@localhost:1234")
    """
    if not which:
        return
    _leave_last_words()
    settings = {
        "heartbeat_timeout_seconds": HEARTBEAT_SECONDS,
        "initialization_timeout": START_SECONDS,
    }
    if which == "auto":
        try:
            jax.distributed.initialize(**settings)
        except ValueError as error:  # JAX found no cluster, or not all that it needs
            raise ConfigError(
                f"--distributed=auto: {error}; by hand it is --distributed=0/2@HOST:PORT"
            ) from None
        _start_watch()
        return
    parts = re.fullmatch(r"(\d+)/(\d+)@(\S+:\d+)", which)
    if not parts or int(parts[1]) >= int(parts[2]):
        raise ConfigError(
            f"--distributed={which!r} is unknown; auto, or process/processes@address, such as "
            "0/2@localhost:1234"
        )
    jax.distributed.initialize(
        coordinator_address=parts[3],
        num_processes=int(parts[2]),
        process_id=int(parts[1]),
        **settings,
    )
    _start_watch()


_shell: subprocess.Popen[str] | None = None
_watch: Watch | None = None


def _leave_last_words() -> None:
    """Has a shell print `LAST_WORDS`, or a later line on its input, when this process is gone,
    unless Python ends as it should.

    JAX ends a process whose job has lost process 0 from C++, with a stack of many lines, and
    its hook for that cannot be a Python function (jaxlib 0.10 fails to hand over the status).
    """
    global _shell
    script = (
        'words=$0; while read -r line; do words=$line; done; [ "$words" = end ] || echo "$words"'
    )
    _shell = subprocess.Popen(
        ["sh", "-c", f"{script} >&2", LAST_WORDS], stdin=subprocess.PIPE, text=True, bufsize=1
    )
    atexit.register(_end_job)


def _silence() -> None:
    """Takes the last words back: others were found."""
    if _shell is not None and _shell.poll() is None:
        _shell.communicate("end\n")


def _start_watch() -> None:
    """Begins to watch over the others; their loss ends this process."""
    global _watch
    index, count = global_state.process_id, global_state.num_processes
    if count == 1:
        return

    def end(sentence: str) -> None:
        _silence()
        end_process(sentence)

    def heard(leader: str) -> None:
        if index > 0 and _shell is not None and _shell.stdin is not None:
            _shell.stdin.write(LEADER_WORDS.format(leader) + "\n")

    _watch = Watch(global_state.client, index=index, count=count, on_loss=end, on_leader=heard)
    _watch.start()


def _end_job() -> None:
    """At the end of Python: waits for the others, unless this process failed."""
    error = getattr(sys, "last_value", None)
    if _watch is not None:
        if error is not None:
            fail_job(f"{type(error).__name__}: {error}")
            _silence()
            os._exit(1)  # the ordinary way out would wait for the others
        global_state.client.wait_at_barrier("unidiff/end", timeout_in_ms=1000 * END_SECONDS)
        _watch.stop()
    jax.distributed.shutdown()
    _silence()


def in_job() -> bool:
    """Whether this process is one of several."""
    return _watch is not None


def fail_job(reason: str, *, consequence: bool = False) -> None:
    """Tells the others of the job why this process ends; it should end then by `os._exit`.

    Args:
      reason: one line.
      consequence: the error may come from the loss of another process, as that of a collective
        does. Then it is first waited for the watch, which ends this process with a better reason.
    """
    if _watch is None:
        return
    if consequence:
        _watch.await_loss()
    _watch.fail(reason)
    _silence()


@contextlib.contextmanager
def first_alone(what: str) -> Iterator[None]:
    """Process 0 does the body first; the others do it when it is done, and find what it wrote.

    Args:
      what: name of the place, the same on all processes.

    Example:
      >>> with first_alone("tokenizer"):
      ...     tokenizer = make_tokenizer(config, folder)
    """
    if jax.process_index() > 0:
        meet(what)
    yield
    if jax.process_index() == 0:
        meet(what)


def meet(what: str) -> None:
    """Waits until all processes are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def gather_numbers(values: Sequence[float]) -> np.ndarray:
    """Every process's numbers, float64 (processes, numbers); all processes call it together."""
    if jax.process_count() == 1:
        return np.asarray([values], np.float64)
    # as bytes: JAX would round them to 32 bits
    own = np.frombuffer(np.asarray(values, np.float64).tobytes(), np.uint8)
    return np.asarray(multihost_utils.process_allgather(own)).view(np.float64)


def gather_json(values: dict[str, Any]) -> dict[str, Any]:
    """The processes' dicts as one, on every process; all call it together."""
    if jax.process_count() == 1:
        return values
    blob = np.frombuffer(json.dumps(values).encode(), np.uint8)
    lengths = np.asarray(multihost_utils.process_allgather(np.asarray(len(blob))))
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: len(blob)] = blob
    blobs = np.asarray(multihost_utils.process_allgather(padded))
    merged: dict[str, Any] = {}
    for row, length in zip(blobs, lengths, strict=True):
        merged |= json.loads(row[: int(length)].tobytes())
    return merged


def own_pieces(pieces: Sequence[Piece]) -> Sequence[Piece]:
    """This process's part of work in pieces; every piece belongs to one process.

    It is dealt out anew in each start: a piece that is finished has to say so itself.
    """
    return pieces[jax.process_index() :: jax.process_count()]


class DataShare(NamedTuple):
    """Part `index` of `count` equal parts of a batch's rows."""

    index: int
    count: int


ALL = DataShare(0, 1)
"""Every row: a job of one process."""


@functools.cache
def data_share(mesh: Mesh) -> DataShare:
    """The rows that this process's devices hold.

    Processes whose devices differ along `seq` and `tensor` alone hold the same rows.

    Raises:
      ConfigError: a process holds rows of several parts, or parts overlap.
    """
    size = mesh.shape["seq"] * mesh.shape["tensor"]
    rows_of: dict[int, set[int]] = {}
    for place, device in enumerate(mesh.devices.flat):
        rows_of.setdefault(device.process_index, set()).add(place // size)
    parts = sorted({tuple(sorted(rows)) for rows in rows_of.values()})
    length = len(parts[0])
    even = [tuple(range(i * length, (i + 1) * length)) for i in range(len(parts))]
    if parts != even:
        raise ConfigError(
            f"mesh.axes={dict(mesh.shape)} gives the processes rows that overlap in part; make "
            "mesh.axes.seq times mesh.axes.tensor divide the devices of a process, or be a "
            "multiple of them"
        )
    own = tuple(sorted(rows_of[jax.process_index()]))
    return DataShare(parts.index(own), len(parts))
