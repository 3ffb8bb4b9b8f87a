"""Checkpoints by Orbax: state, data iterator and clock together, written in the background.

One checkpoint holds `params`, `ema` and `rest` (step, optimizer, key) as separate items, so that
sampling reads the average alone, and the loader's state and the clock as JSON beside them. Frozen
parameters are in none. Orbax
writes under a temporary name and renames, so that a killed save leaves the older checkpoints as
they are. A bucket has no rename: there a checkpoint counts once its last object, `commit_success`,
is written.
"""

import contextlib
import dataclasses
import errno
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import orbax.checkpoint.experimental.v1 as ocp

from unidiff_jax.paths import AnyPath, as_path, is_remote
from unidiff_jax.train.state import TrainState
from unidiff_jax.types import Params


class Restored(NamedTuple):
    """What a checkpoint holds beside the step's number."""

    state: TrainState
    loader: dict[str, Any]
    clock: dict[str, float]


class Checkpoints:
    """The checkpoints of one workdir."""

    def __init__(self, folder: AnyPath, *, keep: int = 3):
        """Opens the folder.

        Args:
          folder: the workdir's `checkpoints`; made when absent.
          keep: newest checkpoints to keep.
        """
        path = as_path(folder) if is_remote(folder) else as_path(folder).absolute()
        self._folder = str(path)
        self._checkpointer = ocp.training.Checkpointer(
            path,
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=True,
        )

    def latest_step(self) -> int | None:
        """Step of the newest finished checkpoint."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(
        self, state: TrainState, *, step: int, loader: dict[str, Any], clock: dict[str, float]
    ) -> None:
        """Starts a save and returns; the state may be donated afterwards.

        Raises:
          OSError: with ENOSPC when this save or the last one found the disk full; `wait` and
            `close` raise it for the save that still runs. Older checkpoints stay.
        """
        with self._full_disk_told():
            self._checkpointer.save_checkpointables_async(
                step,
                _to_items(state),
                custom_metadata={"loader": loader, "clock": clock},
                force=True,
            )

    def restore(self, shapes: TrainState, *, step: int) -> Restored:
        """Loads a step; `shapes` are `jax.ShapeDtypeStruct`s with the shardings to load onto.

        Its frozen parameters are given back as they are.
        """
        items = self._checkpointer.load_checkpointables(step, _to_items(shapes))
        metadata = self._checkpointer.metadata(step).custom_metadata
        state = _from_items(items, jax.random.key_impl(jax.random.key(0)), frozen=shapes.frozen)
        return Restored(state, metadata["loader"], metadata["clock"])

    def restore_ema(self, shapes: Params, *, step: int) -> Params:
        """Loads the averaged parameters alone."""
        return self._checkpointer.load_checkpointables(step, {"ema": shapes})["ema"]

    def wait(self) -> None:
        """Returns when running saves are on disk."""
        with self._full_disk_told():
            self._checkpointer.wait()

    def close(self) -> None:
        """Waits and releases the folder."""
        with self._full_disk_told():
            self._checkpointer.close()

    @contextlib.contextmanager
    def _full_disk_told(self) -> Iterator[None]:
        """Tensorstore reports a full disk as a ValueError with the system's words inside."""
        try:
            yield
        except (ValueError, RuntimeError) as error:
            if "No space left on device" in str(error):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._folder) from error
            raise


def latest_step(workdir: AnyPath) -> int:
    """Step of the newest checkpoint; raises FileNotFoundError where there is none."""
    checkpoints = Checkpoints(as_path(workdir) / "checkpoints")
    step = checkpoints.latest_step()
    checkpoints.close()
    if step is None:
        raise FileNotFoundError(f"no finished checkpoint in {workdir}/checkpoints yet")
    return step


def load_average(
    workdir: AnyPath, shapes: Params, *, shardings: Params, step: int | None = None
) -> Params:
    """The averaged parameters of a run.

    Args:
      workdir: of the run.
      shapes: of its trained parameters.
      shardings: where each goes.
      step: which checkpoint; None is the newest.

    Raises:
      FileNotFoundError: no such checkpoint.
    """
    checkpoints = Checkpoints(as_path(workdir) / "checkpoints")
    try:
        step = checkpoints.latest_step() if step is None else step
        if step is None:
            raise FileNotFoundError(f"no finished checkpoint in {workdir}/checkpoints yet")
        placed = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            shapes,
            shardings,
        )
        return checkpoints.restore_ema(placed, step=step)
    finally:
        checkpoints.close()


def abstract_state(state: TrainState) -> TrainState:
    """Shapes and shardings of a state, to restore onto."""

    def shape(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)

    raw = dataclasses.replace(state, key=jax.random.key_data(state.key))
    return jax.tree.map(shape, raw)


def _to_items(state: TrainState) -> dict[str, Any]:
    key = state.key
    if jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key) and isinstance(key, jax.Array):
        key = jax.random.key_data(key)
    rest = {"step": state.step, "opt_state": state.opt_state, "key": key}
    return {"params": state.params, "ema": state.ema, "rest": rest}


def _from_items(items: dict[str, Any], impl: Any, *, frozen: Params) -> TrainState:
    rest = items["rest"]
    return TrainState(
        step=rest["step"],
        params=items["params"],
        opt_state=rest["opt_state"],
        ema=items["ema"],
        key=jax.random.wrap_key_data(rest["key"], impl=impl),
        frozen=frozen,
    )
