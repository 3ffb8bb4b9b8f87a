"""Q-Former of BLIP-2 (Li et al. 2023, section 3.1), the part that its queries go through.

A BERT whose input is learned queries. In every `cross_attention_frequency`-th layer, beginning with
the first, the queries look at the states of a picture between self-attention and feed-forward. The
layers that BLIP-2 trains for words beside the queries are no part of it.
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
class QFormerConfig:
    """Sizes, with the names of `qformer_config` in the Hugging Face `config.json`.

    Attributes:
      hidden_size: width.
      intermediate_size: feed-forward width.
      num_hidden_layers: number of layers, a multiple of `cross_attention_frequency`.
      num_attention_heads: number of heads.
      layer_norm_eps: of the norms.
      cross_attention_frequency: one layer of so many looks at the picture.
      encoder_hidden_size: width of the picture's states.
      scan_layers: see `layers.apply_layers`; a step is `cross_attention_frequency` layers.
      remat: see `layers.REMAT_POLICIES`.
      dtype: of activations; released weights are meant for float32.
    """

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    layer_norm_eps: float = 1e-12
    cross_attention_frequency: int = 2
    encoder_hidden_size: int = 1408
    scan_layers: bool = True
    remat: str = "full"
    dtype: str = "float32"

    def __post_init__(self):
        if self.num_hidden_layers % self.cross_attention_frequency:
            raise ConfigError(
                f"num_hidden_layers={self.num_hidden_layers} is no multiple of "
                f"cross_attention_frequency={self.cross_attention_frequency}; for example 12 and 2"
            )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "QFormerConfig":
        """Reads `qformer_config`; what it leaves out is as released.

        Raises:
          ConfigError: another activation, or a Q-Former that also reads words.
        """
        plain = {"hidden_act": "gelu", "use_qformer_text_input": False}
        faults = [
            f"{key}={values[key]!r}, only {want!r} is known"
            for key, want in plain.items()
            if values.get(key, want) != want
        ]
        if faults:
            raise ConfigError(f"qformer_config has {'; '.join(faults)}")
        chosen = read_fields(cls, values, without=("dtype", "scan_layers", "remat"))
        return cls(**chosen, remat="none")

    @property
    def num_groups(self) -> int:
        return self.num_hidden_layers // self.cross_attention_frequency


class QFormer(nnx.Module):
    """Queries and a picture's states to what the queries have found."""

    def __init__(self, config: QFormerConfig, *, rngs: nnx.Rngs):
        c = config
        self.config = c
        self.norm = LayerNorm(c.hidden_size, eps=c.layer_norm_eps, axis="embed")
        self.groups = stack_layers(lambda r: QFormerGroup(c, rngs=r), num=c.num_groups, rngs=rngs)

    def __call__(
        self, queries: Float[Array, "n q d"], picture: Float[Array, "n t e"]
    ) -> Float[Array, "n q d"]:
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        x = whole_tokens(self.norm(queries.astype(dtype)))
        picture = picture.astype(dtype)
        return apply_layers(self.groups, x, picture, scan=c.scan_layers, remat=c.remat)


class QFormerGroup(nnx.Module):
    """A layer that looks at the picture, and those until the next one that does."""

    def __init__(self, config: QFormerConfig, *, rngs: nnx.Rngs):
        self.layers = nnx.List(
            [
                QFormerLayer(config, looks=number == 0, rngs=rngs)
                for number in range(config.cross_attention_frequency)
            ]
        )

    def __call__(self, x, picture):
        for layer in self.layers:
            x = layer(x, picture)
        return x


class QFormerLayer(nnx.Module):
    """Attention among the queries, to the picture where it `looks`, and feed-forward; a norm behind
    each.
    """

    def __init__(self, config: QFormerConfig, *, looks: bool, rngs: nnx.Rngs):
        c, d, f = config, config.hidden_size, config.intermediate_size
        self.looks = looks
        self.attention = PostNormAttention(c, kv_dim=d, rngs=rngs)
        if looks:
            self.cross = PostNormAttention(c, kv_dim=c.encoder_hidden_size, rngs=rngs)
        self.ffn_up = _linear(d, f, ("embed", "ffn"), rngs)
        self.ffn_down = _linear(f, d, ("ffn", "embed"), rngs)
        self.ffn_norm = LayerNorm(d, eps=c.layer_norm_eps, axis="embed")

    def __call__(self, x, picture):
        x = self.attention(x, x)
        if self.looks:
            x = self.cross(x, picture)
        y = self.ffn_down(jax.nn.gelu(self.ffn_up(x), approximate=False))
        return whole_tokens(self.ffn_norm(x + y))


class PostNormAttention(nnx.Module):
    """The norm of x plus what x finds among `others`."""

    def __init__(self, config: QFormerConfig, *, kv_dim: int, rngs: nnx.Rngs):
        c, d = config, config.hidden_size
        self.num_heads = c.num_attention_heads
        self.q = _linear(d, d, ("embed", "heads"), rngs)
        self.k = _linear(kv_dim, d, ("embed", "heads"), rngs)
        self.v = _linear(kv_dim, d, ("embed", "heads"), rngs)
        self.out = _linear(d, d, ("heads", "embed"), rngs)
        self.norm = LayerNorm(d, eps=c.layer_norm_eps, axis="embed")

    def __call__(self, x, others):
        q, k, v = (
            f(y).reshape(*y.shape[:2], self.num_heads, -1)
            for f, y in ((self.q, x), (self.k, others), (self.v, others))
        )
        y = attention(q, k, v).reshape(x.shape)
        return whole_tokens(self.norm(x + self.out(y)))


def _linear(in_dim: int, out_dim: int, axes: tuple[str, str], rngs: nnx.Rngs) -> Linear:
    init = nnx.initializers.normal(STD)
    return Linear(in_dim, out_dim, axes=axes, bias=True, init=init, rngs=rngs)
