"""Classifier-free guidance (Ho and Salimans 2022), of text and of pictures on channels.

With X the text and V the channels (picture and mask), UniVG's two scales are those of
InstructPix2Pix (Brooks et al. 2023, equation 3):

    v = v(-, -) + image * (v(-, V) - v(-, -)) + text * (v(X, V) - v(-, V))

Where the image scale is 1 the first pass cancels. All passes go through the network as one batch.
"""

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
        text_asset=None if batch.text_asset is None else jnp.zeros_like(batch.text_asset),
        text_entity=None if batch.text_entity is None else jnp.zeros_like(batch.text_entity),
    )


def drop_visual(batch: Batch) -> Batch:
    """The same rows with empty channels."""
    if batch.visual is None or batch.mask is None:
        raise ValueError("guidance of pictures needs examples with data.guidance='channels'")
    return dataclasses.replace(
        batch, visual=jnp.zeros_like(batch.visual), mask=jnp.zeros_like(batch.mask)
    )


@dataclasses.dataclass(frozen=True)
class Guidance:
    """The scales; 1 is none.

    Attributes:
      text: of the prompt.
      image: of the pictures on channels.
    """

    text: float = 1.0
    image: float = 1.0

    @property
    def passes(self) -> int:
        """Passes through the network a step."""
        if self.image != 1.0:
            return 3
        return 1 if self.text == 1.0 else 2

    def stack(self, batch: Batch, empty: Sequence[int]) -> Batch:
        """The rows of all passes, one pass below the other; `empty` as in `drop_text`."""
        rows = [batch]
        if self.passes > 1:
            rows.append(drop_text(batch, empty))
        if self.passes > 2:
            rows.append(drop_visual(rows[1]))
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *rows)

    def combine(self, velocity: jax.Array) -> jax.Array:
        """Guided velocity from that of the rows that `stack` made."""
        full, *others = jnp.split(velocity, self.passes)
        if not others:
            return full
        visual = others[0]
        guided = visual + self.text * (full - visual)
        if self.passes == 3:
            guided = guided + (self.image - 1.0) * (visual - others[1])
        return guided
