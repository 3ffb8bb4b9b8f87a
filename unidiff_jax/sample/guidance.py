"""Classifier-free guidance (Ho and Salimans 2022): v = v_empty + scale * (v_text - v_empty)."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from unidiff_jax.types import Batch


def drop_text(batch: Batch, empty: Sequence[int]) -> Batch:
    """The same rows with every prompt empty.

    Args:
      batch: rows.
      empty: ids of the empty prompt, `tokenizer.encode("")`.

    Raises:
      ValueError: the rows carry states instead of ids, or hold too few text tokens.
    """
    count = batch.task.shape[1] - 1
    segments = jnp.repeat(jnp.arange(1, count + 1), len(empty))
    used = jnp.repeat(batch.task[:, 1:] > 0, len(empty), axis=1)
    missing = batch.text_segment.shape[1] - len(segments)
    if batch.text_ids is None:
        raise ValueError(
            "guidance needs text_ids: text_states that were computed before cannot be dropped"
        )
    if missing < 0:
        width = batch.text_segment.shape[1]
        raise ValueError(f"rows hold {count} examples and only {width} text tokens")

    def pad(values: jax.Array) -> jax.Array:
        return jnp.pad(jnp.where(used, values, 0), ((0, 0), (0, missing))).astype(jnp.int32)

    return dataclasses.replace(
        batch,
        text_ids=pad(jnp.tile(jnp.asarray(empty), count)[None]),
        text_segment=pad(segments[None]),
        text_position=pad(jnp.tile(jnp.arange(len(empty)), count)[None]),
        text_name=None if batch.text_name is None else jnp.zeros_like(batch.text_name),
    )


def with_and_without_text(batch: Batch, empty: Sequence[int]) -> Batch:
    """Stacks the rows on the same rows without text, so that both go through in one pass; arguments
    as `drop_text`.
    """
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), batch, drop_text(batch, empty))


def combine(velocity: jax.Array, *, scale: float) -> jax.Array:
    """Guided velocity from the two halves that `with_and_without_text` made."""
    text, empty = jnp.split(velocity, 2)
    return empty + scale * (text - empty)
