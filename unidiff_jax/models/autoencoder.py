"""Autoencoders turn RGB in [-1, 1] into latents and back.

The interface is `latent_channels`, `downscale`, `encode(rgb)`, `decode(latents)`. `SpaceToDepth` is
the one without weights: it moves pixels into channels, loses nothing and runs on the host.
"""

import dataclasses

from jaxtyping import Float

from unidiff_jax.types import AnyArray


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpaceToDepth:
    """Blocks of `downscale` x `downscale` pixels become channels; numpy and JAX arrays."""

    downscale: int = 2

    @property
    def latent_channels(self) -> int:
        return 3 * self.downscale**2

    def encode(self, rgb: Float[AnyArray, "... h w 3"]) -> Float[AnyArray, "... rows columns c"]:
        """Raises ValueError where the size does not divide by `downscale`."""
        *lead, height, width, _ = rgb.shape
        d = self.downscale
        if height % d or width % d:
            raise ValueError(f"a picture of {height}x{width} does not divide into blocks of {d}")
        x = rgb.reshape(*lead, height // d, d, width // d, d, 3).swapaxes(-4, -3)
        return x.reshape(*lead, height // d, width // d, d * d * 3)

    def decode(
        self, latents: Float[AnyArray, "... rows columns c"]
    ) -> Float[AnyArray, "... h w 3"]:
        *lead, height, width, _ = latents.shape
        d = self.downscale
        x = latents.reshape(*lead, height, width, d, d, 3).swapaxes(-4, -3)
        return x.reshape(*lead, height * d, width * d, 3)
