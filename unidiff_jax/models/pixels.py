"""The autoencoder inside the train step: batches of pixels become batches of posteriors.

Records then hold pictures in place of latents (`data_pipelines.encoder`), and a token is the block
of pixels that its latents come from. All pictures have one size, so that a row is a whole number of
them: convolutions and group norms need pictures, and compiled programs need to know where they are.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from unidiff_jax.frames import patchify, unpatchify
from unidiff_jax.models.autoencoder import SpaceToDepth
from unidiff_jax.models.vae import PosteriorEncoder, VAEConfig
from unidiff_jax.types import Batch

LEVELS = 127.5
"""Half of the steps between -1 and 1 that an 8-bit picture has."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PixelConfig:
    """Pictures in the step.

    Attributes:
      vae: the autoencoder.
      size: pixels a side of every picture.
      patch: latent pixels a side of a token.
    """

    vae: VAEConfig
    size: int
    patch: int

    @property
    def side(self) -> int:
        """Tokens a side of a picture."""
        return self.size // self.vae.downscale // self.patch


class PixelEncoder(PosteriorEncoder):
    """The encoder of the autoencoder, on the rows of a batch."""

    def __init__(self, config: PixelConfig, *, rngs: nnx.Rngs):
        super().__init__(config.vae, rngs=rngs)
        self.pixels = config

    def __call__(self, batch: Batch) -> Batch:
        """The batch with posteriors at the scale of the diffusion model in place of pixels.

        A picture on the channels becomes its mean; channels without a picture stay zeros.
        """
        mean, std = self._posterior(batch.tokens)
        changes = {"tokens": mean, "token_std": std}
        if batch.visual is not None:
            places = self.pixels.side**2
            frames = batch.visual.reshape(len(batch.visual), -1, places, batch.visual.shape[-1])
            # no level of an 8-bit picture is 0
            is_there = jnp.repeat(jnp.any(frames != 0, axis=(2, 3)), places, axis=1)
            mean, _ = self._posterior(batch.visual)
            changes["visual"] = jnp.where(is_there[..., None], mean, 0.0)
        return dataclasses.replace(batch, **changes)

    def _posterior(
        self, tokens: Float[Array, "b t q"]
    ) -> tuple[Float[Array, "b t p"], Float[Array, "b t p"]]:
        """Mean and deviation; a picture of every row at a time bounds the memory."""
        config, side = self.pixels, self.pixels.side
        blocks = SpaceToDepth(downscale=config.vae.downscale)

        def encode(frame: Float[Array, "b n q"]) -> tuple[Float[Array, "b n p"], ...]:
            cut = jax.vmap(lambda x: unpatchify(x, patch=config.patch, grid=(side, side)))(frame)
            # records hold 16 bits of a level
            rgb = jnp.round((blocks.decode(cut) + 1.0) * LEVELS) / LEVELS - 1.0
            found = self.encode(rgb)
            cut = jax.vmap(lambda x: patchify(x, patch=config.patch))
            return cut(found.mean), cut(found.std)

        rows, length, _ = tokens.shape
        frames = tokens.reshape(rows, length // side**2, side**2, -1).swapaxes(0, 1)
        mean, std = (
            config.vae.scaling_factor * x.swapaxes(0, 1).reshape(rows, length, -1)
            for x in jax.lax.map(encode, frames)
        )
        return mean, std
