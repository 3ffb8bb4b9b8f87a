"""Runs a network over many items in batches of few shapes."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

Item = TypeVar("Item")

BATCH_SIZE = 32


def in_batches(
    items: Sequence[Item],
    *,
    prepare: Callable[[Item], np.ndarray],
    run: Callable[[np.ndarray], Any],
    empty: tuple[int, ...],
) -> np.ndarray:
    """Rows of `run` for all items, float32, with products in full precision.

    A batch is filled up to the next power of two with copies of its last item, so that a program is
    compiled at most six times.

    Args:
      items: any number.
      prepare: an item as an array.
      run: a compiled function of a batch of them.
      empty: shape of the result for no items.
    """
    found = []
    for start in range(0, len(items), BATCH_SIZE):
        batch = np.stack([prepare(item) for item in items[start : start + BATCH_SIZE]])
        count = len(batch)
        size = 1 << (count - 1).bit_length()
        batch = np.concatenate([batch, np.repeat(batch[-1:], size - count, axis=0)])
        with jax.default_matmul_precision("highest"):
            found.append(np.asarray(run(batch), np.float32)[:count])
    return np.concatenate(found) if found else np.zeros(empty, np.float32)
