"""Vision transformers: the tower of BLIP-2, and DINO and DINOv2.

A class token and one token a patch with learned positions go through pre-norm blocks; a last norm
follows. The defaults of the config are those of BLIP-2's tower, EVA's ViT-g/14 without its last
block (Li et al. 2023, section 3.4), 986M parameters. DINOv2 scales the branches of a block by a
learned factor a channel (Touvron et al. 2021, "Going deeper with image transformers", equation 4).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from unidiff_jax.config import ConfigError, read_fields
from unidiff_jax.models.layers import LayerNorm, Linear, apply_layers, stack_layers
from unidiff_jax.ops.attention import attention
from unidiff_jax.ops.context import whole_tokens

STD = 0.02
"""Standard deviation of new weights."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Sizes, with the names of `vision_config` in the Hugging Face `config.json`.

    Attributes:
      hidden_size: width.
      intermediate_size: feed-forward width.
      num_hidden_layers: number of blocks.
      num_attention_heads: number of heads.
      image_size: pixels a side of a picture; pixels behind the last whole patch are not seen.
      patch_size: pixels a side of a patch.
      layer_norm_eps: of the norms.
      qkv_bias: whether queries, keys and values have a bias.
      layer_scale: whether a block's branches are scaled before they are added.
      scan_layers: see `layers.apply_layers`.
      remat: see `layers.REMAT_POLICIES`.
      dtype: of activations.
    """

    hidden_size: int = 1408
    intermediate_size: int = 6144
    num_hidden_layers: int = 39
    num_attention_heads: int = 16
    image_size: int = 224
    patch_size: int = 14
    layer_norm_eps: float = 1e-6
    qkv_bias: bool = True
    layer_scale: bool = False
    scan_layers: bool = True
    remat: str = "full"
    dtype: str = "float32"

    @classmethod
    def from_json(cls, values: Mapping[str, Any], *, dtype: str = "float32") -> "ViTConfig":
        """Reads `vision_config`; what it leaves out is as released.

        Raises:
          ConfigError: another activation, or a picture or patch that is no square.
        """
        faults = []
        if values.get("hidden_act", "gelu") != "gelu":
            faults.append(f"hidden_act={values['hidden_act']!r}, only 'gelu' is known")
        for key in ("image_size", "patch_size"):
            if not isinstance(values.get(key, 1), int):
                faults.append(f"{key}={values[key]!r}, only one number is known, for example 224")
        if faults:
            raise ConfigError(f"vision_config has {'; '.join(faults)}")
        chosen = read_fields(cls, values, without=("dtype", "scan_layers", "remat", "layer_scale"))
        return cls(**chosen, dtype=dtype, remat="none")

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2


class VisionTransformer(nnx.Module):
    """Pictures to states of a class token and of the patches, row by row."""

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        c, d = config, config.hidden_size
        self.config = c
        normal = nnx.initializers.normal(STD)
        self.patch_embedding = PatchEmbedding(c, rngs=rngs)
        self.class_embedding = nnx.Param(
            normal(rngs.params(), (1, 1, d)), axes=("one", "one", "embed")
        )
        self.position_embedding = nnx.Param(
            normal(rngs.params(), (1, 1 + c.num_patches, d)), axes=("one", "positions", "embed")
        )
        self.blocks = stack_layers(
            lambda r: ViTBlock(c, rngs=r), num=c.num_hidden_layers, rngs=rngs
        )
        self.final_norm = LayerNorm(d, eps=c.layer_norm_eps, axis="embed")

    def __call__(self, pictures: Float[Array, "n h w 3"]) -> Float[Array, "n t d"]:
        """Encodes pictures of `image_size`, normalised as the released weights want them.

        Raises:
          ValueError: pictures of another size, whose patches have no positions.
        """
        c = self.config
        x = apply_layers(self.blocks, self._tokens(pictures), scan=c.scan_layers, remat=c.remat)
        return self.final_norm(x)

    def last_keys(self, pictures: Float[Array, "n h w 3"]) -> Float[Array, "n t d"]:
        """Keys of the last block's attention, its heads side by side; takes what encoding takes."""
        c = self.config
        span = (0, c.num_hidden_layers - 1)
        x = apply_layers(
            self.blocks, self._tokens(pictures), scan=c.scan_layers, remat=c.remat, span=span
        )
        graphdef, stacked = nnx.split(self.blocks)
        last = jax.tree.map(lambda leaf: leaf[-1], nnx.to_pure_dict(stacked))
        return nnx.merge(graphdef, last).queries_keys_values(x)[:, :, 1].reshape(x.shape)

    def _tokens(self, pictures: Float[Array, "n h w 3"]) -> Float[Array, "n t d"]:
        """What goes into the first block."""
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        if pictures.shape[1:3] != (c.image_size, c.image_size):
            raise ValueError(
                f"pictures have {pictures.shape[1]} x {pictures.shape[2]} pixels, this tower reads "
                f"{c.image_size} x {c.image_size}"
            )
        x = self.patch_embedding(pictures.astype(dtype))
        first = jnp.broadcast_to(self.class_embedding[...].astype(dtype), (len(x), 1, x.shape[-1]))
        x = jnp.concatenate([first, x], axis=1)
        return whole_tokens(x + self.position_embedding[...].astype(dtype))


class PatchEmbedding(nnx.Module):
    """A convolution whose stride is its size."""

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        p, d = config.patch_size, config.hidden_size
        value = nnx.initializers.normal(STD)(rngs.params(), (p, p, 3, d))
        self.weight = nnx.Param(value, axes=("kernel_y", "kernel_x", "rgb", "embed"))
        self.bias = nnx.Param(jnp.zeros((d,)), axes=("embed",))

    def __call__(self, pictures: Float[Array, "n h w 3"]) -> Float[Array, "n p d"]:
        size, _, _, d = self.weight[...].shape
        n, rows, columns = len(pictures), pictures.shape[1] // size, pictures.shape[2] // size
        x = pictures[:, : rows * size, : columns * size]
        x = x.reshape(n, rows, size, columns, size, 3)
        x = jnp.einsum("nyixjc,ijcd->nyxd", x, self.weight[...].astype(x.dtype))
        return x.reshape(n, rows * columns, d) + self.bias[...].astype(x.dtype)


class ViTBlock(nnx.Module):
    """Attention and feed-forward, each behind a norm.

    EVA trains no bias of the keys: in released weights that third of `qkv`'s bias is zero. It
    cannot matter, for it adds the same to all scores of a query.
    """

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        c, d, f = config, config.hidden_size, config.intermediate_size
        self.config = c

        def linear(in_dim, out_dim, axes, *, bias=True):
            init = nnx.initializers.normal(STD)
            return Linear(in_dim, out_dim, axes=axes, bias=bias, init=init, rngs=rngs)

        self.attention_norm = LayerNorm(d, eps=c.layer_norm_eps, axis="embed")
        self.qkv = linear(d, 3 * d, ("embed", "heads"), bias=c.qkv_bias)
        self.out = linear(d, d, ("heads", "embed"))
        self.attention_scale = _scale(d) if c.layer_scale else None
        self.ffn_norm = LayerNorm(d, eps=c.layer_norm_eps, axis="embed")
        self.ffn_scale = _scale(d) if c.layer_scale else None
        self.ffn_up = linear(d, f, ("embed", "ffn"))
        self.ffn_down = linear(f, d, ("ffn", "embed"))

    def __call__(self, x: Float[Array, "n t d"]) -> Float[Array, "n t d"]:
        y = self.queries_keys_values(x)
        y = attention(y[:, :, 0], y[:, :, 1], y[:, :, 2])
        x = whole_tokens(x + _scaled(self.out(y.reshape(x.shape)), self.attention_scale))
        y = jax.nn.gelu(self.ffn_up(self.ffn_norm(x)), approximate=False)
        return whole_tokens(x + _scaled(self.ffn_down(y), self.ffn_scale))

    def queries_keys_values(self, x: Float[Array, "n t d"]) -> Float[Array, "n t 3 heads _"]:
        """What the attention reads."""
        y = self.qkv(self.attention_norm(x))
        return y.reshape(*y.shape[:2], 3, self.config.num_attention_heads, -1)


def _scale(width: int) -> nnx.Param:
    return nnx.Param(jnp.ones((width,)), axes=("embed",))


def _scaled(x: Float[Array, "n t d"], scale: nnx.Param | None) -> Float[Array, "n t d"]:
    return x if scale is None else x * scale[...].astype(x.dtype)
