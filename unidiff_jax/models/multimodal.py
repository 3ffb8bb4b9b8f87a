"""Multimodal encoder of UNIMO-G (Li et al. 2024, section 3.1), built as BLIP-2 with a T5 encoder.

A prompt is words with pictures between them. A vision tower and a Q-Former turn each picture into
`num_query_tokens` vectors, a linear layer brings them to the width of the words' embeddings, and
the text encoder runs over words and pictures alike: the vectors of a picture take the places of as
many tokens. UNIMO-G puts a language model of its own behind the Q-Former; public weights in this
form are BLIP-2's with FLAN-T5 (arXiv:2301.12597).

A row holds several prompts and i pictures. `query` says of every place of the row what it shows:

    0                a word, whose id counts
    1 + q * p + n    query n of picture p of the row (p and n from 0, q queries a picture)

`PatchT5` is the same in small, to be trained with a denoiser: one linear layer brings a picture's
patches to the width of the words' embeddings. Both read batches by `read_assets`.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from unidiff_jax.models.layers import Linear
from unidiff_jax.models.qformer import STD, QFormer, QFormerConfig
from unidiff_jax.models.t5 import Overlay, T5Config, T5Encoder
from unidiff_jax.models.vit import VisionTransformer, ViTConfig
from unidiff_jax.types import take_rows

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD_RGB = (0.26862954, 0.26130258, 0.27577711)
"""Of the RGB values in [0, 1] of CLIP's training pictures."""


class _SizesOfText:
    """What a config takes from its text encoder's."""

    text: T5Config

    @property
    def width(self) -> int:
        """Channels of a state."""
        return self.text.width

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return self.text.vocab_size

    @property
    def max_length(self) -> None:
        """Prompts may have any length."""
        return self.text.max_length


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultimodalConfig(_SizesOfText):
    """Sizes of the parts.

    Attributes:
      vision: of the vision tower.
      qformer: of the Q-Former; its `encoder_hidden_size` is the tower's width.
      text: of the text encoder.
      num_query_tokens: vectors that a picture becomes.
    """

    vision: ViTConfig
    qformer: QFormerConfig
    text: T5Config
    num_query_tokens: int = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class PatchT5Config(_SizesOfText):
    """Sizes of `PatchT5`.

    Attributes:
      text: of the text encoder.
      picture_dim: numbers of a patch (`identity.PatchPictures`).
    """

    text: T5Config
    picture_dim: int


class MultimodalStates(NamedTuple):
    """States of prompts.

    Attributes:
      states: of words and pictures; those of padding are finite.
      picture: the number of the row's picture that each place shows, from 1; 0 for a word.
    """

    states: Float[Array, "b s e"]
    picture: Int[Array, "b s"]


class MultimodalEncoder(nnx.Module):
    """Words and pictures to states."""

    def __init__(self, config: MultimodalConfig, *, rngs: nnx.Rngs):
        c, d = config, config.qformer.hidden_size
        self.config = c
        self.vision = VisionTransformer(c.vision, rngs=rngs)
        queries = STD * jax.random.normal(rngs.params(), (1, c.num_query_tokens, d))
        self.query_tokens = nnx.Param(queries, axes=("one", "queries", "embed"))
        self.qformer = QFormer(c.qformer, rngs=rngs)
        axes = ("condition", "embed")
        self.projection = Linear(d, c.text.d_model, axes=axes, bias=True, rngs=rngs)
        self.text = T5Encoder(c.text, rngs=rngs)

    def __call__(
        self,
        ids: Int[Array, "b s"],
        *,
        segment: Int[Array, "b s"],
        query: Int[Array, "b s"],
        pictures: Float[Array, "b i h w 3"],
    ) -> MultimodalStates:
        """Encodes packed prompts with their pictures; see `read` and `see`."""
        return self.read(ids, segment=segment, query=query, features=self.see(pictures))

    def read_assets(
        self,
        ids: Int[Array, "b s"],
        *,
        segment: Int[Array, "b s"],
        asset: Int[Array, "b s"],
        features: Array,
    ) -> Float[Array, "b s e"]:
        """States of a batch's prompts.

        Args:
          ids: of words.
          segment: number of the prompt in its row; 0 is padding.
          asset: the row of the asset table that each place shows, 0 for a word; the n-th place of
            an asset shows its n-th query.
          features: (b, a, h * w * 3) pixels in [0, 255] of the asset table (`WholePictures`).
        """
        queries, size = self.config.num_query_tokens, self.config.vision.image_size
        pictures = features[:, 1:].reshape(*features[:, 1:].shape[:2], size, size, 3)
        pictures = (pictures.astype(jnp.float32) / 255 - jnp.asarray(MEAN)) / jnp.asarray(STD_RGB)
        place = jnp.arange(ids.shape[1])
        before = (asset[:, :, None] == asset[:, None, :]) & (place[None, :] < place[:, None])
        number = jnp.sum(before, axis=-1) % queries
        query = jnp.where(asset > 0, 1 + (asset - 1) * queries + number, 0)
        return self(ids, segment=segment, query=query, pictures=pictures).states

    def see(self, pictures: Float[Array, "b i h w 3"]) -> Float[Array, "b i q e"]:
        """What the text encoder reads of each picture.

        Args:
          pictures: of the vision tower's `image_size`, normalised as `sample.multimodal.preprocess`
            does; i may be 0, and a picture that no place shows may be anything.
        """
        b, i = pictures.shape[:2]
        c, dtype = self.config, jnp.dtype(self.config.text.dtype)
        if i == 0:
            return jnp.zeros((b, 0, c.num_query_tokens, c.text.d_model), dtype)
        states = self.vision(pictures.reshape(b * i, *pictures.shape[2:]))
        queries = self.query_tokens[...]
        found = self.qformer(jnp.broadcast_to(queries, (b * i, *queries.shape[1:])), states)
        found = self.projection(found.astype(dtype))
        return found.reshape(b, i, *found.shape[1:])

    def read(
        self,
        ids: Int[Array, "b s"],
        *,
        segment: Int[Array, "b s"],
        query: Int[Array, "b s"],
        features: Float[Array, "b i q e"],
    ) -> MultimodalStates:
        """States of packed prompts.

        Args:
          ids: of words; where `query` is not 0 any id.
          segment: number of the prompt in its row; 0 is padding.
          query: what each place shows, see the module's docstring.
          features: from `see`.
        """
        b, i, q, e = features.shape
        table = jnp.pad(features.reshape(b, i * q, e), ((0, 0), (1, 0), (0, 0)))
        overlay = Overlay(take_rows(table, query), query > 0)
        states = self.text(ids, segment=segment, overlay=overlay)
        return MultimodalStates(states, picture_of(query, num_queries=q))


class PatchT5(nnx.Module):
    """Words and patches to states."""

    def __init__(self, config: PatchT5Config, *, rngs: nnx.Rngs):
        self.config = config
        axes = ("asset", "embed")
        width = config.text.d_model
        self.picture_in = Linear(config.picture_dim, width, axes=axes, bias=True, rngs=rngs)
        self.text = T5Encoder(config.text, rngs=rngs)

    def read_assets(
        self,
        ids: Int[Array, "b s"],
        *,
        segment: Int[Array, "b s"],
        asset: Int[Array, "b s"],
        features: Float[Array, "b a width"],
    ) -> Float[Array, "b s e"]:
        """States of a batch's prompts; as `MultimodalEncoder.read_assets`, of vectors that are one
        place each.
        """
        table = self.picture_in(features.astype(jnp.dtype(self.config.text.dtype)))
        overlay = Overlay(take_rows(table, asset), asset > 0)
        return self.text(ids, segment=segment, overlay=overlay)


def picture_of(query: Int[Array, "b s"], *, num_queries: int) -> Int[Array, "b s"]:
    """`MultimodalStates.picture`."""
    return jnp.where(query > 0, (query - 1) // num_queries + 1, 0)
