"""The training stream: fixed data shards, exact iterator state, arrays on the mesh.

The stream is cut into `num_shards` data shards, a number of the data and not of the machine. Each
shard shuffles, mixes and packs alone and gives its part of every batch; a process runs the shards
that its devices read. So the global batches are the same on any mesh and any number of processes,
and the state of a job is one small dict a shard.
"""

import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grain
import grain.experimental
import jax
import numpy as np
from jax.sharding import Mesh

from data_pipelines.patience import Patience
from data_pipelines.skips import longest_read, skipped_records
from unidiff_jax.config import ConfigError
from unidiff_jax.mesh import batch_sharding
from unidiff_jax.processes import ALL, DataShare, data_share, gather_json
from unidiff_jax.types import Batch

CLOSE_SECONDS = 10.0

LoaderState = dict[str, Any]
"""JSON-able: state of each data shard by its number."""


class Loader(Iterator[Batch]):
    """Host batches of this process; save `get_state()` before `next()`.

    Example:
      >>> loader = Loader(stream, num_shards=2)  # stream(shard) -> grain.IterDataset of Batch
      >>> batch = next(loader)
    """

    def __init__(
        self,
        stream: Callable[[int], grain.IterDataset],
        *,
        num_shards: int,
        share: DataShare = ALL,
        prefetch: int = 4,
        stall_seconds: float = 0.0,
    ):
        """Starts the iterators of this process's shards.

        Args:
          stream: makes the stream of one shard; its elements are rows of the batch.
          num_shards: number of data shards.
          share: this process's part of the rows; their number must divide `num_shards`.
          prefetch: batches that a thread of each shard prepares ahead; 0 for none.
          stall_seconds: how long a batch may take before StalledError; 0 waits for ever.

        Raises:
          ConfigError: the shares do not divide the shards.
        """
        if num_shards % share.count:
            works = share.count * max(1, num_shards // share.count)
            raise ConfigError(
                f"data.num_shards={num_shards} must be a multiple of the {share.count} groups of "
                f"processes that read; for example --set data.num_shards={works}"
            )
        own = num_shards // share.count
        self._num_shards = num_shards
        self._patience = Patience(stall_seconds, doing=longest_read)
        self._iterators = {}
        for shard in range(share.index * own, (share.index + 1) * own):
            dataset = stream(shard)
            if prefetch:
                dataset = grain.experimental.ThreadPrefetchIterDataset(
                    dataset, prefetch_buffer_size=prefetch
                )
            self._iterators[shard] = iter(dataset)

    def __next__(self) -> Batch:
        parts = [
            self._patience.call(
                functools.partial(next, iterator), what=f"data shard {shard}/{self._num_shards}"
            )
            for shard, iterator in self._iterators.items()
        ]
        if len(parts) == 1:
            return parts[0]
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)

    def get_state(self) -> LoaderState:
        """State of this process's shards, as of the last batch that was returned."""
        return {str(shard): it.get_state() for shard, it in self._iterators.items()}

    @property
    def skipped(self) -> int:
        """Records of this process's shards that were skipped since the run began, as of the state:
        up to where packing last began on new rows.
        """
        return sum(skipped_records(state) for state in self.get_state().values())

    def set_state(self, state: LoaderState) -> None:
        """Restores; `state` may hold more shards than this process owns.

        Raises:
          ConfigError: a shard of this process is missing: the data had another `num_shards`.
        """
        for shard, iterator in self._iterators.items():
            if str(shard) not in state:
                raise ConfigError(
                    f"the checkpoint holds data shards {sorted(state)}, not {shard}: "
                    f"set data.num_shards={len(state)} as in the first run"
                )
            iterator.set_state(state[str(shard)])

    def close(self) -> None:
        """Ends the prefetch threads; a thread that reads while Python exits aborts the process.

        A read that hangs is not waited for beyond `CLOSE_SECONDS`.
        """

        def work() -> None:
            for iterator in self._iterators.values():
                iterator.close()

        closing = threading.Thread(target=work, daemon=True, name="close loader")
        closing.start()
        closing.join(CLOSE_SECONDS)


def gather_state(state: LoaderState) -> LoaderState:
    """All processes' states on every process."""
    return gather_json(state)


def to_devices(batch: Batch, *, mesh: Mesh) -> Batch:
    """Global arrays from this process's share of the rows."""
    sharding, count = batch_sharding(mesh), data_share(mesh).count

    def place(leaf: np.ndarray) -> jax.Array:
        shape = (count * leaf.shape[0], *leaf.shape[1:])
        return jax.make_array_from_process_local_data(sharding, leaf, shape)

    return jax.tree.map(place, batch)


def whole_to_devices(batch: Batch, *, mesh: Mesh) -> Batch:
    """Global arrays from a whole batch that every process has."""
    share = data_share(mesh)

    def own(leaf: np.ndarray) -> np.ndarray:
        size = len(leaf) // share.count
        return leaf[share.index * size : (share.index + 1) * size]

    return to_devices(jax.tree.map(own, batch), mesh=mesh)
