"""T5 encoder, version 1.1 (Raffel et al. 2020): gated GELU, no attention scale.

Works on packed rows: attention stays inside an example. The texts of a row lie one after the other,
so that inside an example the distance of two positions is the distance of their places in the row,
and one bias table of (heads, s, s) serves all rows.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from unidiff_jax.config import ConfigError
from unidiff_jax.mesh import gathered
from unidiff_jax.models.layers import Linear, RMSNorm, apply_layers, stack_layers
from unidiff_jax.ops.attention import attention
from unidiff_jax.ops.context import whole_tokens

GELU_APPROXIMATE = {"gelu_new": True, "gelu": False}
"""Activation by Hugging Face's name -> whether it is the approximation by a tanh."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Config:
    """Sizes, with the names of the Hugging Face `config.json`.

    Attributes:
      vocab_size: number of pieces.
      d_model: width.
      d_ff: feed-forward width.
      d_kv: head dimension.
      num_layers: number of blocks.
      num_heads: number of heads; num_heads * d_kv need not equal d_model.
      relative_attention_num_buckets: size of the bias table.
      relative_attention_max_distance: distances from here on share the last bucket.
      layer_norm_epsilon: of the RMS norms.
      dense_act_fn: one of `GELU_APPROXIMATE`; T5 has `gelu_new`, the T5 inside BLIP-2 `gelu`.
      scan_layers: see `layers.apply_layers`.
      remat: see `layers.REMAT_POLICIES`.
      dtype: of activations.
    """

    vocab_size: int
    d_model: int
    d_ff: int
    d_kv: int
    num_layers: int
    num_heads: int
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    dense_act_fn: str = "gelu_new"
    scan_layers: bool = True
    remat: str = "full"
    dtype: str = "float32"

    @property
    def width(self) -> int:
        """Channels of a state."""
        return self.d_model

    @property
    def max_length(self) -> None:
        """Texts may have any length: positions are relative."""
        return None

    def __post_init__(self):
        if self.dense_act_fn not in GELU_APPROXIMATE:
            known = " and ".join(map(repr, GELU_APPROXIMATE))
            raise ConfigError(f"dense_act_fn={self.dense_act_fn!r} is not known; known are {known}")


class Overlay(NamedTuple):
    """Embeddings that take the place of the ids' own.

    Attributes:
      values: embeddings.
      mask: where they do.
    """

    values: Float[Array, "b s e"]
    mask: Bool[Array, "b s"]


class T5Encoder(nnx.Module):
    """Token ids to states."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        c = config
        self.config = c
        normal = jax.random.normal
        self.embedding = nnx.Param(
            normal(rngs.params(), (c.vocab_size, c.d_model)), axes=("vocab", "embed")
        )
        buckets = (c.relative_attention_num_buckets, c.num_heads)
        self.position_bias = nnx.Param(
            normal(rngs.params(), buckets) * c.d_model**-0.5, axes=("buckets", "heads")
        )
        self.blocks = stack_layers(lambda r: T5Block(c, rngs=r), num=c.num_layers, rngs=rngs)
        self.final_norm = RMSNorm(c.d_model, eps=c.layer_norm_epsilon, axis="embed")

    def __call__(
        self, ids: Int[Array, "b s"], *, segment: Int[Array, "b s"], overlay: Overlay | None = None
    ) -> Float[Array, "b s e"]:
        """Encodes packed texts; padding (segment 0) gives finite states that nobody reads.

        Args:
          ids: of the pieces.
          segment: number of the text in its row.
          overlay: embeddings that do not come from ids, such as those of pictures.
        """
        c = self.config
        place = jnp.arange(ids.shape[1])
        distance = place[None, :] - place[:, None]  # key minus query
        bucket = relative_bucket(
            distance,
            num_buckets=c.relative_attention_num_buckets,
            max_distance=c.relative_attention_max_distance,
        )
        bias = jnp.moveaxis(self.position_bias[...][bucket], -1, 0)[None]
        table = gathered(self.embedding[...].astype(jnp.dtype(c.dtype)), ("vocab", "embed"))
        x = table[ids]
        if overlay is not None:
            x = jnp.where(overlay.mask[..., None], overlay.values.astype(x.dtype), x)
        x = whole_tokens(x)
        x = apply_layers(self.blocks, x, bias, segment, scan=c.scan_layers, remat=c.remat)
        return self.final_norm(x)


class T5Block(nnx.Module):
    """Pre-norm attention and gated-GELU feed-forward."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        c = config
        self.config = c
        inner = c.num_heads * c.d_kv

        def linear(in_dim, out_dim, axes, std):
            init = nnx.initializers.normal(std)
            return Linear(in_dim, out_dim, axes=axes, bias=False, init=init, rngs=rngs)

        # standard deviations of the original code: variance 1 for scores without a scale
        self.attention_norm = RMSNorm(c.d_model, eps=c.layer_norm_epsilon, axis="embed")
        self.q = linear(c.d_model, inner, ("embed", "heads"), (c.d_model * c.d_kv) ** -0.5)
        self.k = linear(c.d_model, inner, ("embed", "heads"), c.d_model**-0.5)
        self.v = linear(c.d_model, inner, ("embed", "heads"), c.d_model**-0.5)
        self.out = linear(inner, c.d_model, ("heads", "embed"), inner**-0.5)
        self.ffn_norm = RMSNorm(c.d_model, eps=c.layer_norm_epsilon, axis="embed")
        self.ffn_gate = linear(c.d_model, c.d_ff, ("embed", "ffn"), c.d_model**-0.5)
        self.ffn_up = linear(c.d_model, c.d_ff, ("embed", "ffn"), c.d_model**-0.5)
        self.ffn_down = linear(c.d_ff, c.d_model, ("ffn", "embed"), c.d_ff**-0.5)

    def __call__(self, x, bias, segment):
        y = self.attention_norm(x)
        q, k, v = (
            f(y).reshape(*y.shape[:2], self.config.num_heads, -1) for f in (self.q, self.k, self.v)
        )
        y = attention(q, k, v, q_segment=segment, kv_segment=segment, scale=1.0, bias=bias)
        x = whole_tokens(x + self.out(y.reshape(*x.shape[:2], -1)))
        y = self.ffn_norm(x)
        gate = jax.nn.gelu(self.ffn_gate(y), approximate=GELU_APPROXIMATE[self.config.dense_act_fn])
        y = self.ffn_down(gate * self.ffn_up(y))
        return whole_tokens(x + y)


def relative_bucket(
    distance: Int[Array, "..."], *, num_buckets: int, max_distance: int
) -> Int[Array, "..."]:
    """Bucket of a signed distance (key minus query), logarithmic from half of a side on."""
    half = num_buckets // 2
    exact = half // 2
    side = jnp.where(distance > 0, half, 0)
    size = jnp.abs(distance)
    ratio = jnp.log(jnp.maximum(size, 1) / exact) / jnp.log(max_distance / exact)
    far = jnp.minimum(exact + (ratio * (half - exact)).astype(jnp.int32), half - 1)
    return side + jnp.where(size < exact, size, far)
