"""Classifier-free guidance (Ho and Salimans 2022): v = v_empty + scale * (v_text - v_empty)."""

import dataclasses

import jax
import jax.numpy as jnp

from unidiff_jax.text import END
from unidiff_jax.types import Batch


def drop_text(batch: Batch) -> Batch:
    """The same rows with every prompt empty: one end-of-text token an example."""
    segments = jnp.arange(1, batch.task.shape[1])
    used = batch.task[:, 1:] > 0
    missing = batch.text_segment.shape[1] - len(segments)
    if batch.text_ids is None:
        raise ValueError(
            "guidance needs text_ids: text_states that were computed before cannot be dropped"
        )
    if missing < 0:
        width = batch.text_segment.shape[1]
        raise ValueError(f"rows hold {len(segments)} examples and only {width} text tokens")

    def pad(values):
        return jnp.pad(jnp.where(used, values, 0), ((0, 0), (0, missing))).astype(jnp.int32)

    return dataclasses.replace(
        batch,
        text_ids=pad(jnp.full(used.shape, END)),
        text_segment=pad(segments[None]),
        text_position=jnp.zeros_like(batch.text_position),
        text_name=None if batch.text_name is None else jnp.zeros_like(batch.text_name),
    )


def with_and_without_text(batch: Batch) -> Batch:
    """Stacks the rows on the same rows without text, so that both go through in one pass."""
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), batch, drop_text(batch))


def combine(velocity: jax.Array, *, scale: float) -> jax.Array:
    """Guided velocity from the two halves that `with_and_without_text` made."""
    text, empty = jnp.split(velocity, 2)
    return empty + scale * (text - empty)
