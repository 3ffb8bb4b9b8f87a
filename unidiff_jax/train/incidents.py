"""Incidents: what is kept of a bad step in the workdir, so that it can be run again.

    incidents/step_00000041/incident.json         what happened, and where to begin
                            batch-00000.safetensors  the batch, a part a process or group
                            checkpoints/             the checkpoint to begin at, where it is small

The parameters at the step are not stored: when it is found out, later steps have changed them.
They are computed again, from the checkpoint before it and the data stream's state there, to the
bit on the same machine (`replay`). A checkpoint of up to `SMALL` bytes is copied, because newer
ones will replace it; a larger one is named, and has to be kept by hand (`train.keep`).
"""

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from safetensors.numpy import load, save

from unidiff_jax.paths import AnyPath, as_path, copy_tree, write_json, written_whole
from unidiff_jax.processes import DataShare, meet
from unidiff_jax.train.guard import BadStep, Guard, TrainingStoppedError
from unidiff_jax.types import Batch

FOLDER, FILE = "incidents", "incident.json"

SMALL = 2 * 2**30
"""Bytes of a checkpoint that is copied."""

MOST = 10
"""Incidents kept in a workdir; later ones are only logged."""


class IncidentError(ValueError):
    """An incident that is not there or cannot be run again; the message says which can."""


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a run began anew: at its start, a checkpoint or a return to one.

    Attributes:
      step: the checkpoint's; 0 for the initial state.
      loader: state of the data stream, of all processes.
      guard: see `guard.Guard.state`.
    """

    step: int
    loader: Mapping[str, Any]
    guard: Mapping[str, Any]


class Incident(NamedTuple):
    """An incident that was read back; `batch` is that of all processes."""

    folder: Any
    step: int
    loss: float
    grad_norm: float
    limit: float
    origin: Origin
    batch: Batch


def name_of(step: int) -> str:
    """An incident's name."""
    return f"step_{step:08d}"


def write_incident(workdir: AnyPath, bad: BadStep, *, origin: Origin, share: DataShare) -> bool:
    """Keeps what is needed to run a step again; called by all processes.

    Args:
      workdir: of the run; the checkpoint of `origin` is there, whole.
      bad: the step.
      origin: where to begin.
      share: which rows of the batch this process has.

    Returns:
      Whether it was kept: an incident of this name may be there, and enough of others.
    """
    folder = as_path(workdir) / FOLDER / name_of(bad.step)
    known = (folder / FILE).exists() or len(list_incidents(workdir)) >= MOST
    meet("incident")  # all have looked before one writes
    if known:
        logging.warning("%s; no further incident is kept", bad)
        return False
    arrays = {
        field.name: np.ascontiguousarray(value)
        for field in dataclasses.fields(Batch)
        if (value := getattr(bad.batch, field.name)) is not None
    }
    # processes of one group have the same rows, and write the same
    with written_whole(folder / f"batch-{share.index:05d}.safetensors") as file:
        file.write_bytes(save(arrays))
    meet("parts of an incident")
    if jax.process_index() > 0:
        return True
    name = str(origin.step)
    kept = as_path(workdir) / "checkpoints" / name
    copied = bool(origin.step) and _bytes(kept) <= SMALL
    if copied:
        copy_tree(kept, folder / "checkpoints" / name)
    values = {
        "step": bad.step,
        "loss": str(bad.loss),  # JSON has no NaN
        "grad_norm": str(bad.grad_norm),
        "limit": str(bad.limit),
        "parts": share.count,
        "origin": dataclasses.asdict(origin),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    write_json(folder / FILE, values)  # last: it says that the rest is there
    logging.warning("%s; kept, look at it with: %s", bad, command(workdir, folder.name))
    return True


def handle_bad_steps(
    found: Sequence[BadStep], guard: Guard, workdir: AnyPath, *, origin: Origin, share: DataShare
) -> None:
    """Keeps the first of each row of bad steps, and ends training where it is too long.

    Raises:
      TrainingStoppedError: there were enough of them in a row.
    """
    for bad in found:
        if bad.in_a_row == 1 or guard.rolls_back:
            write_incident(workdir, bad, origin=origin, share=share)
        else:
            logging.warning("%s; skipped, %d in a row", bad, bad.in_a_row)
        if guard.is_enough(bad):
            names = list_incidents(workdir)
            raise TrainingStoppedError(
                f"{bad.in_a_row} steps in a row went wrong, train.guard.max_in_a_row; the last is "
                f"{bad}; look at the first with: {command(workdir, names[-1])}"
                if names
                else f"{bad.in_a_row} steps in a row went wrong; the last is {bad}"
            )


def command(workdir: AnyPath, name: str) -> str:
    """The command that runs an incident again."""
    return f"python -m launch.replay --workdir {workdir} --incident {name}"


def list_incidents(workdir: AnyPath) -> list[str]:
    """Names of the workdir's incidents, by step."""
    folder = as_path(workdir) / FOLDER
    if not folder.exists():
        return []
    return sorted(path.name for path in folder.iterdir() if (path / FILE).exists())


def read_incident(workdir: AnyPath, name: str | None = None) -> Incident:
    """An incident by its name; None is the last one.

    Raises:
      IncidentError: there is none, or a process's part of the batch is missing.
    """
    names = list_incidents(workdir)
    if not names or (name and name not in names):
        known = f"its incidents are: {', '.join(names)}" if names else "it has no incidents"
        raise IncidentError(f"{workdir} has no incident {name or ''!r}: {known}")
    folder = as_path(workdir) / FOLDER / (name or names[-1])
    values = json.loads((folder / FILE).read_text())
    parts = []
    for part in range(values["parts"]):
        path = folder / f"batch-{part:05d}.safetensors"
        if not path.exists():
            raise IncidentError(f"{path} is missing: the process of these rows did not write it")
        parts.append(Batch(**load(path.read_bytes())))
    return Incident(
        folder=folder,
        step=values["step"],
        loss=float(values["loss"]),
        grad_norm=float(values["grad_norm"]),
        limit=float(values["limit"]),
        origin=Origin(**values["origin"]),
        batch=jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts),
    )


def _bytes(folder: Any) -> int:
    """Size of a folder's files."""
    return sum(
        _bytes(entry) if entry.is_dir() else entry.stat().length for entry in folder.iterdir()
    )
