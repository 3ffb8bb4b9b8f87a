"""The batch contract: an image task is a sequence of frames, each with its own noise level.

A *row* of `T` tokens is packed from one or more *examples*. An example is a sequence of frames (a
picture, a depth map, a mask, a ray map, the picture to be made) plus its text. A task only says
which frames there are, what role each plays and which of them are generated; nothing in the model,
the loss, the trainer or the sampler asks which task it is.

Axis letters, used in every shape annotation of the project:

    b  batch rows            f  rows of the frame table       d  model width
    t  image tokens a row    g  rows of the segment table     h  heads
    s  text tokens a row     u  rows of the noise table       k  head dimension
    a  rows of asset table   l  layers                        e  text width
    p  patch channels        m  latent pixels of a patch      n  entities of an example

Row 0 of the frame table and of the segment table is padding: a token, frame or text token that
points to 0 belongs to nobody. Noise direction: sigma = 1 is noise, sigma = 0 is clean data (see
flow.py).
"""

import dataclasses
import enum
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

AnyArray = Array | np.ndarray
"""For host and device code alike."""

Params = dict[str, Any]
"""Nested dict of arrays, the trainable state of a model."""


class Kind(enum.IntEnum):
    """What a frame's patches hold."""

    PADDING = 0
    IMAGE = 1  # latents of a picture or of a map drawn as a picture
    RAY = 2  # Plücker rays of a camera


class Role(enum.IntEnum):
    """Why a frame is in the sequence (UniReal section 3.2: image prompts)."""

    NONE = 0
    CANVAS = 1  # the picture to be changed: its layout stays
    ASSET = 2  # a reference object
    CONTROL = 3  # a mask, edge or depth map


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """Packed rows of examples; holds clean data and no noise.

    Optional fields are None when a system does not use them, which is a static property of the
    compiled program.

    Attributes:
      tokens: patchified clean latents, or the means of their posteriors.
      frame: each token's row of the frame table.
      position: (frame inside the example, y, x) in patches, for the rotary embedding; also the
        token's identity for its random numbers.
      loss_mask: weight of the token in the loss.
      segment: each frame's row of the segment table.
      kind: `Kind` of each frame.
      role: `Role` of each frame.
      name: what the prompt calls the frame (`frames.frame_names`): n for IMGn, MAX_NAMES + n for
        RESn, 0 for none.
      given: 1 where the frame is a clean condition and not generated.
      time_group: frames of an example that hold the same number share one noise level.
      shift: resolution shift of the frame's noise level (1: none).
      example_id: stable identity of the example, which keys its randomness.
      task: id in the task registry, for the log.
      text_ids: token ids, for an encoder that runs in the step; exactly one of `text_ids` and
        `text_states` is set.
      text_states: encoder states computed before.
      text_segment: each text token's row of the segment table.
      text_position: position inside the example's text.
      text_name: the frame name that the word says, as in `name`; for `fusion="joint"`.
      token_std: standard deviations of the posteriors whose means `tokens` holds; the step draws
        the latents (`flow.draw_latents`).
      visual: latents of the picture that guides each token's place; zeros for none.
      mask: 1 where the picture is to be made, 0 where `visual` is to be kept.
      text_asset: the row of the asset table whose features take the place of the text token's
        state; 0 for none.
      asset_features: what an identity encoder says of each asset, or its pixels; row 0 is none.
      text_entity: which entity of its example the text token shows, from 1; 0 for none.
      entity_mask: the share of the token's patch that each entity of its example covers; for the
        loss of attention maps.
    """

    tokens: Float[Array, "b t p"]
    frame: Int[Array, "b t"]
    position: Int[Array, "b t 3"]
    loss_mask: Float[Array, "b t"]

    segment: Int[Array, "b f"]
    kind: Int[Array, "b f"]
    role: Int[Array, "b f"]
    name: Int[Array, "b f"]
    given: Int[Array, "b f"]
    time_group: Int[Array, "b f"]
    shift: Float[Array, "b f"]

    example_id: Int[Array, "b g"]
    task: Int[Array, "b g"]

    text_segment: Int[Array, "b s"]
    text_position: Int[Array, "b s"]
    text_ids: Int[Array, "b s"] | None = None
    text_states: Float[Array, "b s e"] | None = None

    text_name: Int[Array, "b s"] | None = None

    token_std: Float[Array, "b t p"] | None = None

    visual: Float[Array, "b t p"] | None = None
    mask: Float[Array, "b t m"] | None = None
    text_asset: Int[Array, "b s"] | None = None
    asset_features: Float[Array, "b a width"] | UInt8[Array, "b a width"] | None = None
    text_entity: Int[Array, "b s"] | None = None
    entity_mask: Float[Array, "b t n"] | None = None

    @property
    def token_segment(self) -> Int[Array, "b t"]:
        """Each token's row of the segment table."""
        return take_rows(self.segment, self.frame)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Noised:
    """Noisy tokens and the noise table, drawn inside the step.

    The table has one row a frame (u = f, the normal case) or one a token (u = t, per-pixel times).

    Attributes:
      tokens: x_sigma of every token; given frames stay clean.
      sigma: noise level of each table row, in [0, 1].
      timed: False where a row adds no time embedding (UniReal's conditions).
      sigma_index: each token's row of the table.
    """

    tokens: Float[Array, "b t p"]
    sigma: Float[Array, "b u"]
    timed: Bool[Array, "b u"]
    sigma_index: Int[Array, "b t"]

    @property
    def token_sigma(self) -> Float[Array, "b t"]:
        """Noise level of each token."""
        return take_rows(self.sigma, self.sigma_index)


def take_rows(table, index):
    """Looks up `table[b, index[b, t]]`, for tables (b, u) and (b, u, c)."""
    if table.ndim == 3:
        index = index[..., None]
    return jax.numpy.take_along_axis(table, index, axis=1)
