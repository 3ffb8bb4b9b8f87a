"""The autoencoder and the text encoder of a released folder, with their weights, ready to run."""

import dataclasses
import functools
import operator
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from unidiff_jax.config import MAX_SIZE, Config, ConfigError, read_fields
from unidiff_jax.export.files import (
    WEIGHT_NAMES,
    open_tensors,
    read_config,
    weights_digest,
    write_model,
)
from unidiff_jax.export.mapping import (
    Table,
    clip_text_table,
    from_official,
    modern_vae_names,
    multimodal_table,
    t5_table,
    to_official,
    vae_table,
)
from unidiff_jax.mesh import section_shardings
from unidiff_jax.models.clip import CLIPTowersConfig, tower_names
from unidiff_jax.models.layers import abstract
from unidiff_jax.models.multimodal import MultimodalConfig, PatchT5Config
from unidiff_jax.models.qformer import QFormerConfig
from unidiff_jax.models.t5 import T5Config
from unidiff_jax.models.text_encoder import TextConfig, make_text_encoder
from unidiff_jax.models.vae import AutoencoderKL, Posterior, VAEConfig
from unidiff_jax.models.vit import ViTConfig
from unidiff_jax.paths import AnyPath
from unidiff_jax.sample.clip import clip_text_config, tower_values
from unidiff_jax.text import END, PAD, Tokenizer, load_tokenizer
from unidiff_jax.types import Params

_T5_DEFAULTS = {
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 6,
    "num_heads": 8,
}
"""What transformers takes where a T5's settings leave it out, as those inside BLIP-2's do."""

MAX_TEXT = 300
"""Most tokens of a prompt."""


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
    """A text encoder, its weights and its tokenizer.

    Attributes:
      tokenizer: of the prompts.
      config: T5's, or CLIP's text towers'.
      graphdef: the encoder's structure.
      params: its weights.
      values: `config.json` of each folder.
    """

    tokenizer: Tokenizer
    config: TextConfig
    graphdef: nnx.GraphDef
    params: Params
    values: tuple[Mapping[str, Any], ...]

    @classmethod
    def load(
        cls,
        folder: AnyPath,
        *,
        tokenizer: AnyPath,
        dtype: str = "float32",
        round_to: str | None = None,
        mesh: Config | None = None,
        skip_layers: int = 0,
        multimodal: bool = False,
    ) -> "LoadedText":
        """Reads transformers' folder of a T5 of version 1.1, or of a CLIP.

        Args:
          folder: config and weights; several of CLIP's with commas between, whose states are then
            side by side.
          tokenizer: folder of the tokenizer, one for all towers.
          dtype: of weights and activations.
          round_to: type to which the weights are rounded before.
          mesh: see `denoiser.load_denoiser`.
          skip_layers: of CLIP's towers.
          multimodal: whether it may also be a BLIP-2, whose prompts `encode` does not take.

        Raises:
          ConfigError: another encoder; and as `OneDiffusionPipeline.from_pretrained`.
        """
        config = released_text_config(
            folder, dtype=dtype, skip_layers=skip_layers, multimodal=multimodal
        )
        graphdef, shapes, axes = abstract(lambda rngs: make_text_encoder(config, rngs=rngs))
        shardings = section_shardings(mesh, shapes, axes)
        params: Params = {}
        for part in text_parts(folder, config):
            params |= part.place(
                from_official(
                    open_tensors(part.folder),
                    part.find(shapes),
                    table=part.table,
                    dtype=jnp.dtype(round_to or dtype),
                    shardings=shardings and part.find(shardings),
                )
            )
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.dtype(dtype)), params)
        values = tuple(map(read_config, text_folders(folder)))
        return cls(load_tokenizer(tokenizer), config, graphdef, params, values)

    def save_pretrained(self, folder: AnyPath, *, tokenizer: AnyPath) -> None:
        """Writes transformers folders, as many as were read, and the tokenizer's beside them.

        A CLIP is written as its text tower alone, without a projection.
        """
        params = jax.tree.map(np.asarray, self.params)
        parts = text_parts(folder, self.config)
        for part, values in zip(parts, self.values, strict=True):
            if isinstance(self.config, CLIPTowersConfig):
                values = tower_values(values, "text") | {"architectures": ["CLIPTextModel"]}
            tensors = to_official(part.find(params), table=part.table)
            write_model(part.folder, tensors, config=values, stem=WEIGHT_NAMES[1])
        self.tokenizer.save(tokenizer)

    @property
    def max_length(self) -> int:
        """Tokens of a prompt; longer ones are cut."""
        return min(MAX_TEXT, self.config.max_length or MAX_TEXT)

    def encode(self, prompts: Sequence[str]) -> tuple[Float[Array, "b L E"], Int[Array, "b L"]]:
        """States, float32, and mask of prompts, padded to `max_length` tokens."""
        length = self.max_length
        ids, mask = np.zeros((2, len(prompts), length), np.int32)
        for row, prompt in enumerate(prompts):
            tokens = self.tokenizer.encode(prompt)
            if len(tokens) > length:
                kept = self.tokenizer.decode(tokens[: length - 1])
                logging.warning("a prompt is cut to %d tokens, it ends %r", length, kept[-40:])
                tokens = [*tokens[: length - 1], self.tokenizer.end_id]
            ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
        mask = jnp.asarray(mask)
        return encode_text(self.params, jnp.asarray(ids), mask, graphdef=self.graphdef), mask


@functools.partial(jax.jit, static_argnames="graphdef")
def encode_text(params, ids, mask, *, graphdef):
    """The program of `LoadedText.encode`."""
    return nnx.merge(graphdef, params)(ids, segment=mask).astype(jnp.float32)


def text_folders(folders: AnyPath) -> list[str]:
    """The folders of a text encoder: one, or several with commas between."""
    return [folder.strip() for folder in os.fspath(folders).split(",")]


class Part(NamedTuple):
    """The parameters that come from one folder.

    Attributes:
      keys: where they are in the tree of parameters.
      folder: config and weights.
      table: of the part.
    """

    keys: tuple[str, ...]
    folder: AnyPath
    table: Table

    def find(self, tree: Params) -> Params:
        """This part of a tree."""
        return functools.reduce(operator.getitem, self.keys, tree)

    def place(self, params: Params) -> Params:
        """A tree with nothing but this part."""
        for key in reversed(self.keys):
            params = {key: params} if params else {}
        return params


def text_parts(folders: AnyPath, config: TextConfig) -> list[Part]:
    """A text encoder's parts.

    Raises:
      ConfigError: folders that are not as many as the encoder's towers.
    """
    names = text_folders(folders)
    towers = config.towers if isinstance(config, CLIPTowersConfig) else (config,)
    if len(names) != len(towers):
        raise ConfigError(
            f"the text encoder has {len(towers)} towers, {folders!r} names {len(names)} folders; "
            "write one a tower, with commas between"
        )
    if isinstance(config, T5Config):
        return [Part((), names[0], t5_table(config))]
    if isinstance(config, MultimodalConfig):
        return [Part((), names[0], multimodal_table(config))]
    if isinstance(config, PatchT5Config):
        raise ConfigError(
            "init.text_encoder: text.kind='patches' has no released weights; leave it"
        )
    return [
        Part((key,), folder, clip_text_table(tower))
        for key, folder, tower in zip(tower_names(config), names, config.towers, strict=True)
    ]


def released_text_config(
    folders: AnyPath, *, dtype: str, skip_layers: int = 0, multimodal: bool = False
) -> TextConfig:
    """Reads transformers' `config.json` of a T5, or of one or more CLIPs, without projections.

    Args:
      folders: see `text_folders`.
      dtype: of activations.
      skip_layers: of CLIP's towers.
      multimodal: whether it may also be a BLIP-2.

    Raises:
      ConfigError: another encoder; FolderError: no folder of one.
    """
    values = [read_config(folder) for folder in text_folders(folders)]
    if multimodal and values[0].get("model_type") == "blip-2":
        return multimodal_config(values[0], dtype=dtype)
    if len(values) == 1 and not str(values[0].get("model_type")).startswith("clip"):
        return t5_config(values[0], dtype=dtype)
    found = [
        clip_text_config(tower_values(v, "text"), dtype=dtype, skip_layers=skip_layers)
        for v in values
    ]
    return CLIPTowersConfig(tuple(dataclasses.replace(c, projection_dim=0) for c in found))


def t5_config(values: Mapping[str, Any], *, dtype: str) -> T5Config:
    """Reads transformers' `config.json`.

    Raises:
      ConfigError: not version 1.1 (gated GELU), or what `read_fields` refuses.
    """
    if values.get("feed_forward_proj") != "gated-gelu":
        raise ConfigError(
            f"feed_forward_proj={values.get('feed_forward_proj')!r} is not known; T5 version 1.1 "
            "has 'gated-gelu'"
        )
    chosen = read_fields(T5Config, values, without=("dtype", "scan_layers", "remat"))
    return T5Config(**chosen, dtype=dtype, remat="none")


def multimodal_config(values: Mapping[str, Any], *, dtype: str = "float32") -> MultimodalConfig:
    """Reads the `config.json` of transformers' `Blip2ForConditionalGeneration`.

    Args:
      values: of the file.
      dtype: of activations; the Q-Former's are float32, as in transformers.

    Raises:
      ConfigError: another model, or one whose language model is no T5.
    """
    if values.get("model_type") != "blip-2":
        raise ConfigError(
            f"model_type={values.get('model_type')!r} is not known; known is 'blip-2'"
        )
    names = ("text_config", "vision_config", "qformer_config")
    text, vision, qformer = (values.get(name) or {} for name in names)
    if not all(isinstance(part, Mapping) for part in (text, vision, qformer)):
        raise ConfigError(f"{', '.join(names)} are not all objects with settings")
    queries = values.get("num_query_tokens", 32)
    if type(queries) is not int or not 1 <= queries <= MAX_SIZE:
        raise ConfigError(f"num_query_tokens={queries!r} is no number of queries; for example 32")
    kind = text.get("model_type", "opt")
    if kind != "t5":
        raise ConfigError(
            f"text_config.model_type={kind!r} has no encoder; 't5' has one, for example in "
            "blip2-flan-t5-xl"
        )
    sees = ViTConfig.from_json(vision, dtype=dtype)
    asks = QFormerConfig.from_json(qformer)
    return MultimodalConfig(
        vision=sees,
        qformer=dataclasses.replace(asks, encoder_hidden_size=sees.hidden_size),
        text=t5_config(_T5_DEFAULTS | text, dtype=dtype),
        num_query_tokens=queries,
    )


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
