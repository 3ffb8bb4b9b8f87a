"""The autoencoder and the text encoder of a released folder, with their weights, ready to run."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from unidiff_jax.config import Config, ConfigError
from unidiff_jax.export.files import (
    WEIGHT_NAMES,
    open_tensors,
    read_config,
    weights_digest,
    write_model,
)
from unidiff_jax.export.mapping import (
    from_official,
    modern_vae_names,
    t5_table,
    to_official,
    vae_table,
)
from unidiff_jax.mesh import section_shardings
from unidiff_jax.models.layers import abstract
from unidiff_jax.models.t5 import T5Config, T5Encoder
from unidiff_jax.models.vae import AutoencoderKL, Posterior, VAEConfig
from unidiff_jax.paths import AnyPath
from unidiff_jax.text import END, PAD, Tokenizer
from unidiff_jax.types import Params

MAX_TEXT = 300
"""Tokens of a prompt; longer ones are cut."""


@dataclasses.dataclass(frozen=True)
class LoadedVAE:
    """An autoencoder and its weights; compiled once a shape."""

    config: VAEConfig
    graphdef: nnx.GraphDef
    params: Params
    values: Mapping[str, Any]

    @classmethod
    def load(
        cls, folder: AnyPath, *, dtype: str = "float32", mesh: Config | None = None
    ) -> "LoadedVAE":
        """Reads a diffusers `vae` folder; raises as `OneDiffusionPipeline.from_pretrained`."""
        values = read_config(folder)
        config = VAEConfig.from_json(values, dtype=dtype)
        graphdef, shapes, axes = abstract(lambda rngs: AutoencoderKL(config, rngs=rngs))
        params = from_official(
            modern_vae_names(open_tensors(folder)),
            shapes,
            table=vae_table(shapes),
            dtype=jnp.dtype(dtype),
            shardings=section_shardings(mesh, shapes, axes),
        )
        return cls(config, graphdef, jax.tree.map(jnp.asarray, params), values)

    def save_pretrained(self, folder: AnyPath) -> None:
        """Writes a diffusers folder."""
        params = jax.tree.map(np.asarray, self.params)
        write_model(folder, to_official(params, table=vae_table(params)), config=self.values)

    @property
    def downscale(self) -> int:
        return self.config.downscale

    def encode(self, pictures: Float[Array, "b h w 3"]) -> Posterior:
        return vae_encode(self.params, pictures, graphdef=self.graphdef)

    def decode(self, latents: Float[Array, "b y x c"]) -> Float[Array, "b h w 3"]:
        return vae_decode(self.params, latents, graphdef=self.graphdef)


@dataclasses.dataclass(frozen=True)
class LatentAutoencoder:
    """A released autoencoder as a `models.autoencoder.Autoencoder`, on this process's devices.

    Latents are at the diffusion model's scale: times the folder's `scaling_factor`. Its
    `shift_factor` is ignored, as OneDiffusion does. The weights are read at the first use.

    Attributes:
      folder: diffusers `vae` folder.
      dtype: of weights and activations.
    """

    folder: str
    dtype: str = "float32"

    @functools.cached_property
    def _vae(self) -> LoadedVAE:
        vae = LoadedVAE.load(self.folder, dtype=self.dtype)
        return dataclasses.replace(vae, params=jax.device_put(vae.params, self._sharding(P())))

    @functools.cached_property
    def config(self) -> VAEConfig:
        return VAEConfig.from_json(read_config(self.folder), dtype=self.dtype)

    @property
    def latent_channels(self) -> int:
        return self.config.latent_channels

    @property
    def downscale(self) -> int:
        return self.config.downscale

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the latents of a picture, for manifests."""
        return {"sha256": weights_digest(self.folder), "dtype": self.dtype}

    def posterior(
        self, rgb: Float[np.ndarray, "b h w 3"]
    ) -> tuple[Float[np.ndarray, "b y x c"], Float[np.ndarray, "b y x c"]]:
        """Mean and standard deviation; a batch that the devices do not divide runs on one."""
        even = len(rgb) % jax.local_device_count() == 0
        found = self._vae.encode(jax.device_put(rgb, self._sharding(P("batch" if even else None))))
        scale = self.config.scaling_factor
        return np.asarray(found.mean, np.float32) * scale, np.asarray(found.std, np.float32) * scale

    def encode(self, rgb: Float[np.ndarray, "... h w 3"]) -> Float[np.ndarray, "... y x c"]:
        """Means of the posteriors."""
        mean, _ = self.posterior(np.asarray(rgb, np.float32).reshape(-1, *rgb.shape[-3:]))
        return mean.reshape(*rgb.shape[:-3], *mean.shape[1:])

    def decode(self, latents: Float[np.ndarray, "... y x c"]) -> Float[np.ndarray, "... h w 3"]:
        flat = np.asarray(latents, np.float32).reshape(-1, *latents.shape[-3:])
        rgb = np.asarray(self._vae.decode(flat / self.config.scaling_factor), np.float32)
        return rgb.reshape(*latents.shape[:-3], *rgb.shape[1:])

    def _sharding(self, spec: P) -> NamedSharding:
        return NamedSharding(Mesh(jax.local_devices(), "batch"), spec)


@functools.partial(jax.jit, static_argnames="graphdef")
def vae_encode(params, pictures, *, graphdef):
    """The program of `LoadedVAE.encode`."""
    return nnx.merge(graphdef, params).encode(pictures)


@functools.partial(jax.jit, static_argnames="graphdef")
def vae_decode(params, latents, *, graphdef):
    """The program of `LoadedVAE.decode`."""
    return nnx.merge(graphdef, params).decode(latents)


@dataclasses.dataclass(frozen=True)
class LoadedText:
    """A T5 encoder, its weights and its tokenizer."""

    tokenizer: Tokenizer
    config: T5Config
    graphdef: nnx.GraphDef
    params: Params
    values: Mapping[str, Any]

    @classmethod
    def load(
        cls,
        folder: AnyPath,
        *,
        tokenizer: AnyPath,
        dtype: str = "float32",
        round_to: str | None = None,
        mesh: Config | None = None,
    ) -> "LoadedText":
        """Reads a transformers T5 folder of version 1.1.

        Args:
          folder: config and weights.
          tokenizer: folder with `spiece.model`.
          dtype: of weights and activations.
          round_to: type to which the weights are rounded before.
          mesh: see `denoiser.load_denoiser`.

        Raises:
          ConfigError: another T5; and as `OneDiffusionPipeline.from_pretrained`.
        """
        values = read_config(folder)
        config = t5_config(values, dtype=dtype)
        graphdef, shapes, axes = abstract(lambda rngs: T5Encoder(config, rngs=rngs))
        params = from_official(
            open_tensors(folder),
            shapes,
            table=t5_table(config),
            dtype=jnp.dtype(round_to or dtype),
            shardings=section_shardings(mesh, shapes, axes),
        )
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.dtype(dtype)), params)
        return cls(Tokenizer(tokenizer), config, graphdef, params, values)

    def save_pretrained(self, folder: AnyPath, *, tokenizer: AnyPath) -> None:
        """Writes a transformers folder and the tokenizer's beside it."""
        params = jax.tree.map(np.asarray, self.params)
        tensors = to_official(params, table=t5_table(self.config))
        write_model(folder, tensors, config=self.values, stem=WEIGHT_NAMES[1])
        self.tokenizer.save(tokenizer)

    def encode(self, prompts: Sequence[str]) -> tuple[Float[Array, "b L E"], Int[Array, "b L"]]:
        """States, float32, and mask of prompts, padded to `MAX_TEXT` tokens."""
        ids = np.full((len(prompts), MAX_TEXT), PAD, np.int32)
        for row, prompt in zip(ids, prompts, strict=True):
            tokens = self.tokenizer.encode(prompt)
            if len(tokens) > MAX_TEXT:
                kept = self.tokenizer.decode(tokens[: MAX_TEXT - 1])
                logging.warning("a prompt is cut to %d tokens, it ends %r", MAX_TEXT, kept[-40:])
                tokens = [*tokens[: MAX_TEXT - 1], END]
            row[: len(tokens)] = tokens
        mask = jnp.asarray(ids != PAD, jnp.int32)
        return encode_text(self.params, jnp.asarray(ids), mask, graphdef=self.graphdef), mask


@functools.partial(jax.jit, static_argnames="graphdef")
def encode_text(params, ids, mask, *, graphdef):
    """The program of `LoadedText.encode`."""
    return nnx.merge(graphdef, params)(ids, segment=mask).astype(jnp.float32)


def t5_config(values: Mapping[str, Any], *, dtype: str) -> T5Config:
    """Reads transformers' `config.json`.

    Raises:
      ConfigError: not version 1.1 (gated GELU).
    """
    if values.get("feed_forward_proj") != "gated-gelu":
        raise ConfigError(
            f"feed_forward_proj={values.get('feed_forward_proj')!r} is not known; T5 version 1.1 "
            "has 'gated-gelu'"
        )
    names = {field.name for field in dataclasses.fields(T5Config)} - {"dtype", "scan_layers"}
    chosen = {k: v for k, v in values.items() if k in names and v is not None}
    return T5Config(**chosen, dtype=dtype, remat="none")


def t5_values(config: T5Config) -> dict[str, Any]:
    """Inverse of `t5_config`: what transformers' `T5EncoderModel` reads."""
    sizes = dataclasses.asdict(config)
    for name in ("scan_layers", "remat", "dtype"):
        del sizes[name]
    return sizes | {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "feed_forward_proj": "gated-gelu",
        "is_encoder_decoder": False,
        "use_cache": False,
        "pad_token_id": PAD,
        "eos_token_id": END,
    }
