"""Classifier-free guidance (Ho and Salimans 2022): v = v_empty + scale * (v_text - v_empty)."""

import dataclasses

import jax
import jax.numpy as jnp

from unidiff_jax.types import Batch


def double(batch: Batch, empty: Batch) -> Batch:
    """Stacks a batch on the same rows with an empty prompt, so that both go through in one pass.

    Args:
      batch: the rows.
      empty: the rows' text fields with every prompt dropped (other fields are ignored).
    """
    both = jax.tree.map(lambda a: jnp.concatenate([a, a]), batch)
    text = {
        field: jnp.concatenate([getattr(batch, field), getattr(empty, field)])
        for field in ("text_segment", "text_position", "text_ids")
    }
    return dataclasses.replace(both, **text)


def combine(velocity: jax.Array, *, scale: float) -> jax.Array:
    """Guided velocity from the two halves that `double` made."""
    text, empty = jnp.split(velocity, 2)
    return empty + scale * (text - empty)
