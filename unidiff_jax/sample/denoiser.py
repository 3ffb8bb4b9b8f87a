"""OneDiffusion's denoiser in the tensor layouts of its PyTorch code.

    denoiser = load_denoiser("folder/transformer")
    velocity = denoiser(samples, timesteps, text_states, text_mask)

Samples are (B, F, C, h, w), times count from 0 (data) to 1000 (noise). Inside, it is the project's
transformer on a dense batch: one example a row, its frames as the only frames.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from unidiff_jax.config import Config, ConfigError
from unidiff_jax.export.files import open_tensors, read_config, write_model
from unidiff_jax.export.mapping import dit_table, from_official, to_official
from unidiff_jax.mesh import section_shardings
from unidiff_jax.models.dit import DiT, DiTConfig
from unidiff_jax.models.layers import Abstract, abstract
from unidiff_jax.paths import AnyPath
from unidiff_jax.types import AnyArray, Batch, Kind, Noised, Params

SOFTCAP = 30.0
"""Bound of the image attention's scores in the 16-bit path; the float32 path has none."""


@dataclasses.dataclass(frozen=True)
class NextDiTConfig:
    """The keys of a released `transformer/config.json` that mean something; others are ignored."""

    input_size: tuple[int, ...] = (1, 32, 32)
    patch_size: tuple[int, ...] = (1, 2, 2)
    in_channels: int = 16
    hidden_size: int = 4096
    depth: int = 32
    num_heads: int = 32
    num_kv_heads: int | None = None
    multiple_of: int = 256
    ffn_dim_multiplier: float | None = None
    norm_eps: float = 1e-5
    pred_sigma: bool = False
    caption_channels: int = 4096
    qk_norm: bool = False
    rotary_max_length: int = 384
    rotary_max_length_t: int | None = None

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "NextDiTConfig":
        """Reads the file's values.

        Raises:
          ConfigError: patches that are not square, or that span frames; or another layout.
        """
        if "schema" in values:
            raise ConfigError(
                f"a folder of schema {values['schema']!r} is not in OneDiffusion's layout; its "
                "modeling_unidiff.py loads it in PyTorch, and init.transformer starts a run from it"
            )
        names = {field.name for field in dataclasses.fields(cls)}
        chosen = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        config = cls(**{k: v for k, v in chosen.items() if k in names})
        frames, height, width = config.patch_size
        if frames != 1 or height != width:
            raise ConfigError(
                f"patch_size={list(config.patch_size)} is not known: patches are one frame deep "
                "and square, such as [1, 2, 2]"
            )
        return config

    @property
    def patch(self) -> int:
        return self.patch_size[1]

    @property
    def out_channels(self) -> int:
        return self.in_channels * (2 if self.pred_sigma else 1)

    @property
    def max_positions(self) -> tuple[int, int]:
        """Frames and patches a side that the rotary table of the official code holds."""
        return self.rotary_max_length_t or self.rotary_max_length, self.rotary_max_length

    def dit(self, *, softcap: float, dtype: str, **settings: Any) -> DiTConfig:
        """The same network as a `DiTConfig`; `settings` are its fields that the file has not."""
        return DiTConfig(
            patch_dim=self.in_channels * self.patch**2,
            out_dim=self.out_channels * self.patch**2 if self.pred_sigma else None,
            hidden_dim=self.hidden_size,
            depth=self.depth,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads or self.num_heads,
            text_dim=self.caption_channels,
            ffn_multiple_of=self.multiple_of,
            ffn_dim_multiplier=self.ffn_dim_multiplier,
            qk_norm=self.qk_norm,
            norm_eps=self.norm_eps,
            softcap=softcap,
            dtype=dtype,
            **settings,
        )


def load_denoiser(
    folder: AnyPath, *, dtype: str = "float32", mesh: Config | None = None
) -> "Denoiser":
    """Loads a released `transformer` folder.

    Args:
      folder: `config.json` and safetensors, one file or sharded.
      dtype: of weights and activations. As in the official code, `bfloat16` caps the attention's
        scores at 30 and `float32` does not.
      mesh: how weights lie on all devices, such as `configs.meshes.get_mesh("tensor")`; tensor by
        tensor, so that no host holds them all. None is one device.

    Raises:
      FolderError: the folder cannot be read.
      MappingError: its tensors are not those of its config; every fault is named.
    """
    values = read_config(folder)
    config = NextDiTConfig.from_json(values)
    softcap = 0.0 if dtype == "float32" else SOFTCAP
    dit = config.dit(softcap=softcap, dtype=dtype, remat="none")
    _, shapes, axes = abstract_dit(dit)
    params = from_official(
        open_tensors(folder),
        shapes,
        table=dit_table(dit),
        dtype=jnp.dtype(dtype),
        shardings=section_shardings(mesh, shapes, axes),
    )
    return Denoiser(config, dit, jax.tree.map(jnp.asarray, params), values=values)


def abstract_dit(config: DiTConfig) -> Abstract:
    """A transformer without its weights."""
    return abstract(lambda rngs: DiT(config, rngs=rngs))


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Longer tables than in training (OneDiffusion, time-aware).

    While every level is below `watershed` (0..1000) positions are divided by `factor`; from there
    on the rotary base is multiplied by it. Factor 1 does nothing.
    """

    factor: float = 1.0
    watershed: float = 1.0

    def rope(self, largest_time: float) -> tuple[float, float]:
        """(rope_theta, rope_scale) of a call whose largest time is this."""
        if largest_time < self.watershed:
            return 10000.0, 1.0 / self.factor
        return 10000.0 * self.factor, 1.0


class Denoiser:
    """The network and its weights; compiled once a shape."""

    def __init__(
        self,
        config: NextDiTConfig,
        dit: DiTConfig,
        params: Params,
        *,
        values: Mapping[str, Any] | None = None,
    ):
        """Takes weights; see `load_denoiser`. `values` is the folder's whole `config.json`."""
        self.config, self.dit, self.params = config, dit, params
        self._values = dict(values or {"_class_name": "NextDiT"} | dataclasses.asdict(config))

    def save_pretrained(self, folder: AnyPath) -> None:
        """Writes a folder in the released layout, in the weights' own type."""
        params = jax.tree.map(np.asarray, self.params)
        write_model(folder, to_official(params, table=dit_table(self.dit)), config=self._values)

    def __call__(
        self,
        samples: Float[AnyArray, "B F C h w"] | Float[AnyArray, "B C h w"],
        timesteps: Float[AnyArray, "..."],
        encoder_hidden_states: Float[AnyArray, "B L E"],
        encoder_attention_mask: Int[AnyArray, "B L"],
        scale_factor: float = 1.0,
        scale_watershed: float = 1.0,
    ) -> Float[Array, "B F O h w"]:
        """Velocity (noise - data) of every frame, float32.

        Args:
          samples: noisy and given latents.
          timesteps: in 0..1000. (B,) for one time a sample; (B, F) for one a frame; the shape of
            `samples` for one a pixel, which is averaged over each patch; (B, N) for one a token.
          encoder_hidden_states: of the text.
          encoder_attention_mask: 1 for real tokens.
          scale_factor: see `RopeScaling`.
          scale_watershed: see `RopeScaling`.

        Raises:
          ValueError: shapes that do not fit, or more frames or patches than the rotary table holds.
        """
        samples = jnp.asarray(samples, jnp.float32)
        samples = samples[:, None] if samples.ndim == 4 else samples
        grid = self.check_samples(samples.shape)
        times = np.asarray(timesteps, np.float32)
        sigma, per_token = patch_times(times, samples=samples.shape, patch=self.config.patch)
        scaling = RopeScaling(scale_factor, scale_watershed)
        theta, scale = scaling.rope(float(times.max()))
        run = _compiled(dataclasses.replace(self.dit, rope_theta=theta, rope_scale=scale))
        tokens = run(
            self.params,
            to_tokens(samples, patch=self.config.patch),
            jnp.asarray(sigma / 1000.0),
            jnp.asarray(encoder_hidden_states, jnp.float32),
            jnp.asarray(encoder_attention_mask, jnp.int32),
            grid=grid,
            per_token=per_token,
        )
        return from_tokens(tokens, grid=grid, patch=self.config.patch)

    def check_samples(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """(frames, rows, columns) of the tokens; raises ValueError where they cannot be."""
        if len(shape) != 5 or shape[2] != self.config.in_channels:
            raise ValueError(
                f"samples must be (B, F, {self.config.in_channels}, h, w), got {tuple(shape)}"
            )
        patch, (most_frames, most) = self.config.patch, self.config.max_positions
        _, frames, _, height, width = shape
        if height % patch or width % patch:
            raise ValueError(f"latents of {height}x{width} do not divide into patches of {patch}")
        grid = (frames, height // patch, width // patch)
        if frames > most_frames or max(grid[1:]) > most:
            raise ValueError(
                f"{frames} frames of {grid[1]}x{grid[2]} patches are more than the model's table "
                f"of {most_frames} frames of {most}x{most}"
            )
        return grid


@functools.cache
def _compiled(config: DiTConfig):
    graphdef = abstract_dit(config).graphdef

    @functools.partial(jax.jit, static_argnames=("grid", "per_token"))
    def run(params, tokens, sigma, text, text_mask, *, grid, per_token):
        batch = dense_batch(tokens, text_states=text, text_mask=text_mask, grid=grid)
        return nnx.merge(graphdef, params)(
            batch, dense_noised(batch, sigma=sigma, per_token=per_token), text
        )

    return run


# ----------------------------------------------------------------------------------------- layouts


def to_tokens(samples: Float[Array, "B F C h w"], *, patch: int) -> Float[Array, "B t p"]:
    """Frame-major, then row, then column; inside a token the channel runs fastest."""
    b, f, c, h, w = samples.shape
    x = samples.reshape(b, f, c, h // patch, patch, w // patch, patch)
    return x.transpose(0, 1, 3, 5, 4, 6, 2).reshape(b, -1, patch * patch * c)


def from_tokens(
    tokens: Float[Array, "B t p"], *, grid: tuple[int, int, int], patch: int
) -> Float[Array, "B F C h w"]:
    """Inverse of `to_tokens`."""
    x = tokens.reshape(tokens.shape[0], *grid, patch, patch, -1).transpose(0, 1, 6, 2, 4, 3, 5)
    b, f, c, rows, _, columns, _ = x.shape
    return x.reshape(b, f, c, rows * patch, columns * patch)


def patch_times(
    times: Float[np.ndarray, "..."], *, samples: tuple[int, ...], patch: int
) -> tuple[Float[np.ndarray, "B u"], bool]:
    """Times as one a frame, (B, F), or one a token, (B, N), and which of the two it is.

    Raises:
      ValueError: another shape.
    """
    b, f, c, h, w = samples
    count = f * (h // patch) * (w // patch)
    if times.shape == (b,):
        return np.broadcast_to(times[:, None], (b, f)), False
    if times.shape == (b, f):
        return times, False
    if times.shape == (b, count):
        return times, True
    if times.shape in ((b, f, c, h, w), (b, c, h, w)):
        pixels = times.reshape(b, f, c, h // patch, patch, w // patch, patch)
        per_frame = pixels.min(axis=(2, 3, 4, 5, 6)) == pixels.max(axis=(2, 3, 4, 5, 6))
        if per_frame.all():
            return pixels[:, :, 0, 0, 0, 0, 0], False
        return pixels.mean(axis=(2, 4, 6), dtype=np.float64).reshape(b, -1).astype(np.float32), True
    raise ValueError(
        f"timesteps must be ({b},), ({b}, {f}), ({b}, {count}) or {tuple(samples)}, "
        f"got {times.shape}"
    )


def dense_batch(
    tokens: Float[Array, "B t p"],
    *,
    text_states: Float[Array, "B L E"],
    text_mask: Int[Array, "B L"],
    grid: tuple[int, int, int],
) -> Batch:
    """One example a row: all frames of one size, no padding among the image tokens."""
    count, (frames, *_) = tokens.shape[0], grid
    place = np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), axis=-1).reshape(-1, 3)
    position = jnp.broadcast_to(place.astype(np.int32), (count, len(place), 3))
    zeros = jnp.zeros((count, frames + 1), jnp.int32)
    table = zeros.at[:, 1:].set(1)
    segment = text_mask.astype(jnp.int32)
    return Batch(
        tokens=tokens,
        frame=position[..., 0] + 1,
        position=position,
        loss_mask=jnp.ones(tokens.shape[:2]),
        segment=table,
        kind=table * int(Kind.IMAGE),
        role=zeros,
        name=zeros,
        given=zeros,
        time_group=zeros,
        shift=jnp.ones(zeros.shape),
        example_id=jnp.stack([jnp.zeros(count, jnp.int32), jnp.arange(1, count + 1)], axis=1),
        task=jnp.zeros((count, 2), jnp.int32).at[:, 1].set(1),
        text_segment=segment,
        text_position=jnp.zeros_like(segment),
        text_states=text_states,
    )


def dense_noised(batch: Batch, *, sigma: Float[Array, "B u"], per_token: bool) -> Noised:
    """Levels in [0, 1] for a dense batch, one a frame or one a token."""
    if per_token:
        index = jnp.broadcast_to(jnp.arange(sigma.shape[1]), batch.frame.shape)
    else:
        sigma = jnp.pad(sigma, ((0, 0), (1, 0)))  # row 0 is padding
        index = batch.frame
    return Noised(
        tokens=batch.tokens, sigma=sigma, timed=jnp.ones(sigma.shape, bool), sigma_index=index
    )
