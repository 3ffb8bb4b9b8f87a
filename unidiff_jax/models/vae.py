"""The autoencoder of latent diffusion (diffusers' `AutoencoderKL`): SD, SDXL, SD3 and FLUX.

Pictures are (b, h, w, 3) in [-1, 1], latents (b, h / d, w / d, c). The tree of modules has the
names of diffusers' tensors, so that the mapping between the two is mechanical: a convolution is
(out, in, kh, kw) there and (kh, kw, in, out) here, a dense layer (out, in) and (in, out).

Encoder: a convolution, then per stage `layers_per_block` residual blocks and (but for the last) a
convolution of stride 2; a middle of block, attention, block; norm, SiLU, convolution to the mean
and log-variance of the posterior. The decoder is its mirror image with one block more a stage.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from unidiff_jax.config import ConfigError, read_fields
from unidiff_jax.models.layers import Linear, torch_uniform
from unidiff_jax.ops.attention import attention

NORM_EPS = 1e-6
LOGVAR_BOUNDS = (-30.0, 20.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """Sizes, with the names of diffusers' `config.json`.

    Attributes:
      in_channels, out_channels: of a picture.
      latent_channels: of a latent.
      block_out_channels: width of each stage; the picture shrinks by 2 between stages.
      layers_per_block: residual blocks of an encoder stage; a decoder stage has one more.
      norm_num_groups: of the group norms.
      mid_block_add_attention: whether the middle has attention.
      use_quant_conv, use_post_quant_conv: 1 x 1 convolutions around the latent (SD and SDXL).
      scaling_factor, shift_factor: of the diffusion model's latents; not applied here.
      dtype: of activations; group norms and softmax compute in float32.
    """

    latent_channels: int
    block_out_channels: tuple[int, ...]
    layers_per_block: int
    in_channels: int = 3
    out_channels: int = 3
    norm_num_groups: int = 32
    mid_block_add_attention: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    scaling_factor: float = 0.18215
    shift_factor: float = 0.0
    dtype: str = "float32"

    @classmethod
    def from_json(cls, values: Mapping[str, Any], *, dtype: str = "float32") -> "VAEConfig":
        """Reads diffusers' `config.json`; keys without a meaning for the sizes are ignored.

        Raises:
          ConfigError: a key of another architecture, all of them at once; or what `read_fields`
            refuses.
        """
        plain = {"act_fn": "silu", "latents_mean": None, "latents_std": None}
        blocks = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}
        faults = [
            f"{key}={values[key]!r}, only {want!r} is known"
            for key, want in plain.items()
            if values.get(key, want) != want
        ]
        faults += [
            f"{key}={values[key]!r}, only {want} is known"
            for key, want in blocks.items()
            if values.get(key) not in (None, []) and not _all_are(values[key], want)
        ]
        if faults:
            raise ConfigError("the autoencoder's config.json has " + "; ".join(faults))
        return cls(**read_fields(cls, values, without=("dtype",)), dtype=dtype)

    @property
    def downscale(self) -> int:
        return 2 ** (len(self.block_out_channels) - 1)


SD3_VAE = VAEConfig(
    latent_channels=16,
    block_out_channels=(128, 256, 512, 512),
    layers_per_block=2,
    use_quant_conv=False,
    use_post_quant_conv=False,
    scaling_factor=1.5305,
    shift_factor=0.0609,
    dtype="bfloat16",
)
"""The autoencoder of Stable Diffusion 3, which OneDiffusion uses; for plans, without weights."""


def _all_are(blocks: Any, wanted: str) -> bool:
    return isinstance(blocks, list | tuple) and set(map(str, blocks)) == {wanted}


class Posterior(NamedTuple):
    """A diagonal Gaussian over latents (b, rows, columns, c)."""

    mean: Float[Array, "b y x c"]
    std: Float[Array, "b y x c"]

    def sample(self, noise: Float[Array, "b y x c"]) -> Float[Array, "b y x c"]:
        return self.mean + self.std * noise


class PosteriorEncoder(nnx.Module):
    """Pictures to posteriors over latents: the half of the autoencoder that training needs."""

    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.encoder = Encoder(config, rngs=rngs)
        moments = 2 * config.latent_channels
        if config.use_quant_conv:
            self.quant_conv = Conv(moments, moments, kernel=1, rngs=rngs)

    def encode(self, pictures: Float[Array, "b h w 3"]) -> Posterior:
        """Posterior of each picture, float32; height and width divide by `downscale`."""
        x = self.encoder(pictures.astype(self.config.dtype))
        if self.config.use_quant_conv:
            x = self.quant_conv(x)
        mean, logvar = jnp.split(x.astype(jnp.float32), 2, axis=-1)
        return Posterior(mean, jnp.exp(0.5 * jnp.clip(logvar, *LOGVAR_BOUNDS)))


class AutoencoderKL(PosteriorEncoder):
    """Pictures to posteriors over latents, and latents to pictures."""

    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        c = config.latent_channels
        self.decoder = Decoder(config, rngs=rngs)
        if config.use_post_quant_conv:
            self.post_quant_conv = Conv(c, c, kernel=1, rngs=rngs)

    def decode(self, latents: Float[Array, "b y x c"]) -> Float[Array, "b h w 3"]:
        """Pictures, about [-1, 1] and not clipped, float32."""
        x = latents.astype(self.config.dtype)
        if self.config.use_post_quant_conv:
            x = self.post_quant_conv(x)
        return self.decoder(x).astype(jnp.float32)


class Encoder(nnx.Module):
    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs):
        c, widths = config, config.block_out_channels
        self.conv_in = Conv(c.in_channels, widths[0], rngs=rngs)
        self.down_blocks = make_stages(
            widths,
            num_blocks=c.layers_per_block,
            groups=c.norm_num_groups,
            resize="down",
            rngs=rngs,
        )
        self.mid_block = Middle(c, rngs=rngs)
        self.conv_norm_out = GroupNorm(widths[-1], groups=c.norm_num_groups)
        self.conv_out = Conv(widths[-1], 2 * c.latent_channels, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b y x m"]:
        x = self.conv_in(x)
        for stage in self.down_blocks:
            x = stage(x)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nnx.Module):
    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs):
        c, widths = config, config.block_out_channels[::-1]
        self.conv_in = Conv(c.latent_channels, widths[0], rngs=rngs)
        self.mid_block = Middle(c, rngs=rngs)
        self.up_blocks = make_stages(
            widths,
            num_blocks=c.layers_per_block + 1,
            groups=c.norm_num_groups,
            resize="up",
            rngs=rngs,
        )
        self.conv_norm_out = GroupNorm(widths[-1], groups=c.norm_num_groups)
        self.conv_out = Conv(widths[-1], c.out_channels, rngs=rngs)

    def __call__(self, x: Float[Array, "b y x c"]) -> Float[Array, "b h w 3"]:
        x = self.mid_block(self.conv_in(x))
        for stage in self.up_blocks:
            x = stage(x)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))


class Stage(nnx.Module):
    """Residual blocks at one resolution, then a change of resolution."""

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        num_blocks: int,
        groups: int,
        resize: str,
        rngs: nnx.Rngs,
    ):
        dims = [in_dim] + [out_dim] * (num_blocks - 1)
        self.resnets = nnx.List([ResidualBlock(d, out_dim, groups=groups, rngs=rngs) for d in dims])
        self.resize = resize
        if resize == "down":
            self.downsamplers = nnx.List([Downsample(out_dim, rngs=rngs)])
        elif resize == "up":
            self.upsamplers = nnx.List([Upsample(out_dim, rngs=rngs)])

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b y x d"]:
        for block in self.resnets:
            x = block(x)
        if self.resize == "down":
            return self.downsamplers[0](x)
        return self.upsamplers[0](x) if self.resize == "up" else x


def make_stages(
    widths: tuple[int, ...], *, num_blocks: int, groups: int, resize: str, rngs: nnx.Rngs
) -> nnx.List:
    """One stage a width; all but the last change the resolution."""
    stages = nnx.List([])
    for i, width in enumerate(widths):
        stages.append(
            Stage(
                widths[max(i - 1, 0)],
                width,
                num_blocks=num_blocks,
                groups=groups,
                resize="" if i == len(widths) - 1 else resize,
                rngs=rngs,
            )
        )
    return stages


class Downsample(nnx.Module):
    """A convolution of stride 2, padded below and right only."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.conv = Conv(dim, dim, stride=2, padding=((0, 1), (0, 1)), rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b y x c"]:
        return self.conv(x)


class Upsample(nnx.Module):
    """Every pixel four times, then a convolution."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.conv = Conv(dim, dim, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b y x c"]:
        return self.conv(jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2))


class Middle(nnx.Module):
    """Block, attention, block at the lowest resolution."""

    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs):
        dim, groups = config.block_out_channels[-1], config.norm_num_groups
        blocks = [ResidualBlock(dim, dim, groups=groups, rngs=rngs) for _ in range(2)]
        self.resnets = nnx.List(blocks)
        heads = [PixelAttention(dim, groups=groups, rngs=rngs)]
        self.attentions = nnx.List(heads if config.mid_block_add_attention else [])

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        x = self.resnets[0](x)
        for layer in self.attentions:
            x = layer(x)
        return self.resnets[1](x)


class ResidualBlock(nnx.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))); a 1 x 1 convolution where the width changes."""

    def __init__(self, in_dim: int, out_dim: int, *, groups: int, rngs: nnx.Rngs):
        self.norm1 = GroupNorm(in_dim, groups=groups)
        self.conv1 = Conv(in_dim, out_dim, rngs=rngs)
        self.norm2 = GroupNorm(out_dim, groups=groups)
        self.conv2 = Conv(out_dim, out_dim, rngs=rngs)
        self.has_shortcut = in_dim != out_dim
        if self.has_shortcut:
            self.conv_shortcut = Conv(in_dim, out_dim, kernel=1, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        y = self.conv1(jax.nn.silu(self.norm1(x)))
        y = self.conv2(jax.nn.silu(self.norm2(y)))
        return (self.conv_shortcut(x) if self.has_shortcut else x) + y


class PixelAttention(nnx.Module):
    """One head over all pixels, with a residual."""

    def __init__(self, dim: int, *, groups: int, rngs: nnx.Rngs):
        def linear():
            return Linear(dim, dim, axes=("vae_in", "vae_out"), bias=True, rngs=rngs)

        self.group_norm = GroupNorm(dim, groups=groups)
        self.to_q, self.to_k, self.to_v = linear(), linear(), linear()
        self.to_out = nnx.List([linear()])

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        y = self.group_norm(x).reshape(b, h * w, c)
        q, k, v = (layer(y)[:, :, None] for layer in (self.to_q, self.to_k, self.to_v))
        y = self.to_out[0](attention(q, k, v)[:, :, 0])
        return x + y.reshape(x.shape)


class Conv(nnx.Module):
    """2-D convolution over (b, h, w, c) with bias."""

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        kernel: int = 3,
        stride: int = 1,
        padding: tuple[tuple[int, int], tuple[int, int]] | None = None,
        rngs: nnx.Rngs,
    ):
        init = torch_uniform(in_dim * kernel**2)
        shape = (kernel, kernel, in_dim, out_dim)
        axes = ("kernel_y", "kernel_x", "vae_in", "vae_out")
        self.weight = nnx.Param(init(rngs.params(), shape, jnp.float32), axes=axes)
        self.bias = nnx.Param(init(rngs.params(), (out_dim,), jnp.float32), axes=("vae_out",))
        self.stride = stride
        self.padding = padding or ((kernel // 2, kernel // 2),) * 2

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b y x o"]:
        y = jax.lax.conv_general_dilated(
            x,
            self.weight[...].astype(x.dtype),
            window_strides=(self.stride, self.stride),
            padding=self.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y + self.bias[...].astype(x.dtype)


class GroupNorm(nnx.Module):
    """Normalises groups of channels over the whole picture, in float32."""

    def __init__(self, dim: int, *, groups: int):
        self.weight = nnx.Param(jnp.ones((dim,), jnp.float32), axes=("vae_out",))
        self.bias = nnx.Param(jnp.zeros((dim,), jnp.float32), axes=("vae_out",))
        self.groups = groups

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        y = x.astype(jnp.float32).reshape(b, h * w, self.groups, c // self.groups)
        y = y - jnp.mean(y, axis=(1, 3), keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=(1, 3), keepdims=True) + NORM_EPS)
        y = y.reshape(x.shape) * self.weight[...] + self.bias[...]
        return y.astype(x.dtype)
