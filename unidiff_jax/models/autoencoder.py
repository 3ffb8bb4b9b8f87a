"""Autoencoders turn RGB in [-1, 1] into latents and back.

`SpaceToDepth` is the one without weights: it moves pixels into channels, loses nothing and runs on
the host. Released ones with weights are `sample.encoders.LatentAutoencoder`.
"""

import dataclasses
from typing import Any, Protocol

from jaxtyping import Float

from unidiff_jax.types import AnyArray


class Autoencoder(Protocol):
    """Pictures to latents that the model sees, and back; any leading axes."""

    @property
    def latent_channels(self) -> int: ...

    @property
    def downscale(self) -> int:
        """Pixels a latent, each way."""
        ...

    def encode(self, rgb: Float[AnyArray, "... h w 3"]) -> Float[AnyArray, "... y x c"]: ...

    def decode(self, latents: Float[AnyArray, "... y x c"]) -> Float[AnyArray, "... h w 3"]: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpaceToDepth:
    """Blocks of `downscale` x `downscale` pixels become channels; numpy and JAX arrays."""

    downscale: int = 2

    @property
    def latent_channels(self) -> int:
        return 3 * self.downscale**2

    def encode(self, rgb: Float[AnyArray, "... h w 3"]) -> Float[AnyArray, "... y x c"]:
        """Raises ValueError where the size does not divide by `downscale`."""
        *lead, height, width, _ = rgb.shape
        d = self.downscale
        if height % d or width % d:
            raise ValueError(f"a picture of {height}x{width} does not divide into blocks of {d}")
        x = rgb.reshape(*lead, height // d, d, width // d, d, 3).swapaxes(-4, -3)
        return x.reshape(*lead, height // d, width // d, d * d * 3)

    def decode(self, latents: Float[AnyArray, "... y x c"]) -> Float[AnyArray, "... h w 3"]:
        *lead, height, width, _ = latents.shape
        d = self.downscale
        x = latents.reshape(*lead, height, width, d, d, 3).swapaxes(-4, -3)
        return x.reshape(*lead, height * d, width * d, 3)

    def posterior(
        self, rgb: Float[AnyArray, "... h w 3"]
    ) -> tuple[Float[AnyArray, "... y x c"], Float[AnyArray, "... y x c"]]:
        """Mean and standard deviation: the blocks, and zeros."""
        mean = self.encode(rgb)
        return mean, 0.0 * mean

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the latents of a picture, for manifests."""
        return {"blocks_of_pixels": self.downscale}
