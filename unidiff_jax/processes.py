"""Several processes of one job: who starts, who goes first, who reads which data.

A job on a pod is the same program on every host. It differs from one process in things that are
here: the processes find each other (`join_job`), one of them alone writes what all share
(`first_alone`), each reads the rows that its devices hold (`data_share`), and work that is cut into
pieces is dealt out (`own_pieces`).
"""

import atexit
import contextlib
import functools
import re
import subprocess
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from unidiff_jax.config import ConfigError

Piece = TypeVar("Piece")

HEARTBEAT_SECONDS = 30
"""A process that is silent for so long counts as dead, and the others end."""

START_SECONDS = 300
"""For all processes of a job to be there."""

LAST_WORDS = (
    "error: this process of a job ended before its time. If nothing above says why, it was killed, "
    "or another process of the job died: the output of that one says why"
)
"""What a process of a job says last, unless it comes to its own end."""


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


def _leave_last_words() -> None:
    """Has a shell print `LAST_WORDS` when this process is gone, unless Python ends as it should.

    JAX ends a process whose job has lost another one from C++, with a stack of many lines, and
    its hook for that cannot be a Python function (jaxlib 0.10 fails to hand over the status).
    """
    shell = subprocess.Popen(
        ["sh", "-c", 'read -r end || echo "$0" >&2', LAST_WORDS], stdin=subprocess.PIPE, text=True
    )

    def say_end() -> None:
        jax.distributed.shutdown()  # waits for the others, and fails where one died
        shell.communicate("end\n")

    atexit.register(say_end)


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
