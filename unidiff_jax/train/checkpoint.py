"""Checkpoints by Orbax: state, data iterator and clock together, written in the background.

One checkpoint holds `params`, `ema` and `rest` (step, optimizer, key) as separate items, so that
sampling reads the average alone, and the loader's state and the clock as JSON beside them. Frozen
parameters are in none. Orbax
writes under a temporary name and renames, so that a killed save leaves the older checkpoints as
they are. A bucket has no rename: there a checkpoint counts once its last object, `commit_success`,
is written. Then its manifest is written into it (`train/manifest.py`), by which damage is found.
"""

import concurrent.futures
import contextlib
import dataclasses
import errno
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import orbax.checkpoint.experimental.v1 as ocp
from absl import logging

from unidiff_jax.paths import AnyPath, as_path, is_remote
from unidiff_jax.processes import gather_json
from unidiff_jax.train.manifest import find_faults, write_manifest
from unidiff_jax.train.state import TrainState
from unidiff_jax.types import Params

T = TypeVar("T")

ITEMS = ("params", "ema", "rest")
"""What a checkpoint holds, each in a folder of its own."""

MAX_FAILURES = 3
"""Saves in a row that may find the disk full, before training ends."""

_TEMPORARY = ".orbax-checkpoint-tmp"
"""In the name of a folder that is being saved."""


class Restored(NamedTuple):
    """What a checkpoint holds, and the number of its step."""

    step: int
    state: TrainState
    loader: dict[str, Any]
    clock: dict[str, float]


class DamagedError(RuntimeError):
    """No checkpoint of a folder can be used; the message says what each lacks."""


class Checkpoints:
    """The checkpoints of one workdir."""

    def __init__(
        self, folder: AnyPath, *, keep: int = 3, keep_every: int = 0, beside_training: bool = False
    ):
        """Opens the folder.

        Args:
          folder: the workdir's `checkpoints`; made when absent.
          keep: newest checkpoints to keep.
          keep_every: keeps those of every so many steps as well; 0 for none.
          beside_training: leaves alone what looks left over: a running save may own it.
        """
        path = as_path(folder) if is_remote(folder) else as_path(folder).absolute()
        self._path, self._folder = path, str(path)
        self._passed_over: set[int] = set()
        self._unsealed: list[int] = []  # newest first, where no other is whole
        self._checkpointer = ocp.training.Checkpointer(
            path,
            preservation_policy=_Kept(keep, keep_every, self._passed_over),
            cleanup_tmp_directories=not beside_training,
        )
        self._sealer = concurrent.futures.ThreadPoolExecutor(1, "manifest")
        self._sealing: concurrent.futures.Future[None] | None = None
        self._failure: OSError | None = None
        self._num_failures = 0

    def latest_step(self) -> int | None:
        """Step of the newest finished checkpoint, whole or not."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def newest_whole(self, *, items: Iterable[str] = ITEMS) -> int | None:
        """Step of the newest checkpoint that agrees with its manifest; None where there is none at
        all. Newer ones are named in the log, and will be replaced.

        A checkpoint without a manifest is taken only where no other is whole; `restore_newest` then
        takes the first that can be read. All processes call it
        together, and each reads a share of the files.

        Args:
          items: what will be restored.

        Raises:
          DamagedError: there are checkpoints, and every one is damaged.
        """
        steps = sorted((found.step for found in self._checkpointer.checkpoints), reverse=True)
        faults: dict[int, list[str]] = {}
        chosen, unsealed = None, []
        for step in steps:
            if not (self._path / str(step)).exists():
                continue  # being saved, or just removed by the training beside us
            found = find_faults(self._path / str(step), items=items)
            if found is None:
                unsealed.append(step)
            elif found:
                faults[step] = found
            else:
                chosen = step
                break
        self._unsealed = []
        if chosen is None and unsealed:
            chosen, self._unsealed = unsealed[0], unsealed
            logging.warning("checkpoint %d has no manifest and is taken unchecked", chosen)
        if chosen is None and faults:
            raise self._all_damaged(faults)
        if chosen is not None:
            self._passed_over.update(step for step in steps if step > chosen)
        for step in sorted(self._passed_over):
            words = _shortened(faults[step]) if step in faults else "it has no manifest"
            logging.warning("checkpoint %d is passed over for %s: %s", step, chosen, words)
        return chosen

    def save(
        self, state: TrainState, *, step: int, loader: dict[str, Any], clock: dict[str, float]
    ) -> None:
        """Starts a save and returns; the state may be donated afterwards.

        A full disk is logged, and training can go on: older checkpoints stay, what was written is
        removed, and the next save tries again.

        Raises:
          OSError: with ENOSPC when the disk was full at `MAX_FAILURES` saves in a row, or at one of
            a job of several processes.
        """
        try:
            self.wait()
        except OSError as error:
            self._bear(error)
        is_replaced = step in self._passed_over
        self._passed_over.discard(step)  # the policy judges the new one
        try:
            with self._full_disk_told():
                response = self._checkpointer.save_checkpointables_async(
                    step,
                    _to_items(state),
                    custom_metadata={"loader": loader, "clock": clock},
                    force=True,
                    overwrite=is_replaced,
                )
        except OSError as error:
            self._bear(error)
            self._failure = error  # for a `wait` that comes before the next save
            return
        self._sealing = self._sealer.submit(self._seal, step, response)

    def restore(self, shapes: TrainState, *, step: int) -> Restored:
        """Loads a step; `shapes` are `jax.ShapeDtypeStruct`s with the shardings to load onto.

        Its frozen parameters are given back as they are.
        """
        items = self._checkpointer.load_checkpointables(step, _to_items(shapes))
        metadata = self._checkpointer.metadata(step).custom_metadata
        state = _from_items(items, jax.random.key_impl(jax.random.key(0)), frozen=shapes.frozen)
        return Restored(step, state, metadata["loader"], metadata["clock"])

    def restore_newest(self, shapes: TrainState) -> Restored | None:
        """Loads the newest whole checkpoint, or None where there is none; see `newest_whole`."""
        return self._load_newest(lambda step: self.restore(shapes, step=step), items=ITEMS)

    def restore_ema(self, shapes: Params, *, step: int) -> Params:
        """Loads the averaged parameters alone."""
        return self._checkpointer.load_checkpointables(step, {"ema": shapes})["ema"]

    def restore_newest_ema(self, shapes: Params) -> Params | None:
        """Loads the averaged parameters of the newest checkpoint where they are whole."""
        return self._load_newest(lambda step: self.restore_ema(shapes, step=step), items=("ema",))

    def wait(self) -> None:
        """Returns when the running save is on disk, with its manifest.

        Raises:
          OSError: with ENOSPC when the last save found the disk full.
        """
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        sealing, self._sealing = self._sealing, None
        if sealing is None:
            return
        with self._full_disk_told():
            try:
                sealing.result()
            finally:
                self._checkpointer.wait()  # tells its error to each thread once
        self._num_failures = 0

    def close(self) -> None:
        """Waits and releases the folder; raises as `wait`."""
        try:
            self.wait()
        finally:
            self._sealer.shutdown()
            with self._full_disk_told():
                self._checkpointer.close()

    def _load_newest(self, load: Callable[[int], T], *, items: Iterable[str]) -> T | None:
        newest = self.newest_whole(items=items)
        if newest is None or newest not in self._unsealed:
            return None if newest is None else load(newest)
        faults = {}
        for step in self._unsealed:  # what is torn shows when it is read
            loaded, fault = None, ""
            try:
                loaded = load(step)
            except Exception as error:  # of any of the reading layers
                fault = " ".join(str(error).split())[:200] or type(error).__name__
            found = filter(None, gather_json({str(jax.process_index()): fault}).values())
            if not (fault := next(found, "")):
                return loaded
            faults[step] = [fault]
            self._passed_over.add(step)
            logging.warning("checkpoint %d cannot be read and is passed over: %s", step, fault)
        raise self._all_damaged(faults)

    def _all_damaged(self, faults: dict[int, list[str]]) -> DamagedError:
        told = "; ".join(f"{step}: {_shortened(found)}" for step, found in faults.items())
        return DamagedError(
            f"every checkpoint in {self._folder} is damaged ({told}): bring one back from a copy, "
            "or remove the folder to begin anew"
        )

    def _seal(self, step: int, response: Any) -> None:
        response.result()  # also ends the thread and the event loop that wait for the save
        write_manifest(self._path / str(step))

    def _bear(self, error: OSError) -> None:
        """Goes on after a full disk, or raises."""
        if error.errno != errno.ENOSPC:
            raise error
        self._num_failures += 1
        if self._num_failures == MAX_FAILURES or jax.process_count() > 1:
            raise error
        for path in self._path.iterdir():
            if _TEMPORARY in path.name:
                try:
                    path.rmtree()
                except OSError as problem:  # a thread of the failed save still writes
                    logging.warning("%s was not removed: %s", path, problem)
        self._checkpointer.reload()  # it has forgotten the older ones that it was to remove
        logging.error(
            "disk full: %s: nothing was saved (%d in a row); older checkpoints stay, and training "
            "goes on to the next save: free some space",
            self._folder,
            self._num_failures,
        )

    @contextlib.contextmanager
    def _full_disk_told(self) -> Iterator[None]:
        """Tensorstore reports a full disk as a ValueError with the system's words inside.

        A write into an open file, such as a manifest's, fails with the errno and without a name.
        """
        try:
            yield
        except OSError as error:
            if error.errno == errno.ENOSPC and not error.filename:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._folder) from error
            raise
        except (ValueError, RuntimeError) as error:
            if "No space left on device" in str(error):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._folder) from error
            raise


def latest_step(workdir: AnyPath) -> int:
    """Step of the newest whole checkpoint; raises FileNotFoundError where there is none."""
    checkpoints = Checkpoints(as_path(workdir) / "checkpoints", beside_training=True)
    try:
        step = checkpoints.newest_whole(items=("ema",))
    finally:
        checkpoints.close()
    if step is None:
        raise FileNotFoundError(f"no finished checkpoint in {workdir}/checkpoints yet")
    return step


class _Kept:
    """Orbax's policy: the newest, those of every so many steps, and none that was passed over."""

    def __init__(self, newest: int, every: int, passed_over: set[int]):
        self._newest, self._every, self._passed_over = newest, every, passed_over

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        del context
        whole = [found.step for found in checkpoints if found.step not in self._passed_over]
        kept = set(whole[-self._newest :])
        kept |= {step for step in whole if self._every and step % self._every == 0}
        return [found.step in kept for found in checkpoints]


def _shortened(faults: list[str]) -> str:
    more = f", and {len(faults) - 3} more" if len(faults) > 3 else ""
    return ", ".join(faults[:3]) + more


def load_average(
    workdir: AnyPath, shapes: Params, *, shardings: Params, step: int | None = None
) -> Params:
    """The averaged parameters of a run.

    Args:
      workdir: of the run.
      shapes: of its trained parameters.
      shardings: where each goes.
      step: which checkpoint; None is the newest whole one.

    Raises:
      FileNotFoundError: no such checkpoint.
      DamagedError: there are some, and all are damaged.
    """
    checkpoints = Checkpoints(as_path(workdir) / "checkpoints", beside_training=True)
    try:
        placed = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            shapes,
            shardings,
        )
        if step is not None:
            return checkpoints.restore_ema(placed, step=step)
        found = checkpoints.restore_newest_ema(placed)
        if found is None:
            raise FileNotFoundError(f"no finished checkpoint in {workdir}/checkpoints yet")
        return found
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
