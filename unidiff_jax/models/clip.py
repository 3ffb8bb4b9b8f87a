"""CLIP (Radford et al. 2021): a causal text tower and a vision tower, both pre-norm transformers.

The text tower works on packed rows as T5 does: attention stays inside an example and sees no later
token, and the learned positions count from the example's first token, so that a text's states do
not depend on the row around it. Diffusion models read the states before the last block, without the
final norm (`skip_layers=1`: Stable Diffusion 2, SDXL and 3), or the last with it (Stable
Diffusion 1).
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from unidiff_jax.config import ConfigError
from unidiff_jax.mesh import gathered
from unidiff_jax.models.layers import LayerNorm, Linear, apply_layers, stack_layers
from unidiff_jax.ops.attention import attention
from unidiff_jax.ops.context import whole_tokens


def quick_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x sigmoid(1.702 x), the approximation of GELU that OpenAI's towers were trained with."""
    return x * jax.nn.sigmoid(1.702 * x)


def exact_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """GELU by the error function."""
    return jax.nn.gelu(x, approximate=False)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": exact_gelu}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPTextConfig:
    """Sizes of a text tower, with the names and defaults of the Hugging Face `config.json`, which
    may leave out what is default.

    Attributes:
      vocab_size: number of pieces.
      hidden_size: width.
      intermediate_size: feed-forward width.
      num_hidden_layers: number of blocks.
      num_attention_heads: number of heads.
      max_position_embeddings: longest text in tokens, start and end of text included.
      hidden_act: key of `ACTIVATIONS`.
      layer_norm_eps: of the norms.
      projection_dim: width of the embedding that is shared with pictures; 0 has no projection.
      skip_layers: last blocks that the states leave out; with any, they have no final norm.
      scan_layers: see `layers.apply_layers`.
      remat: see `layers.REMAT_POLICIES`.
      dtype: of activations.
    """

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: int = 0
    skip_layers: int = 0
    scan_layers: bool = True
    remat: str = "full"
    dtype: str = "float32"

    def __post_init__(self):
        _check_sizes(self, "text")
        if not 0 <= self.skip_layers < self.num_hidden_layers:
            raise ConfigError(
                f"text.skip_layers={self.skip_layers} must leave some of the "
                f"{self.num_hidden_layers} layers; for example text.skip_layers=1"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPVisionConfig:
    """Sizes of a vision tower, with the names and defaults of the Hugging Face `config.json`.

    Attributes:
      hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, hidden_act,
        layer_norm_eps, scan_layers, remat, dtype: as in `CLIPTextConfig`.
      image_size: pixels a side of a picture.
      patch_size: pixels a side of a patch.
      projection_dim: width of the embedding that is shared with texts; 0 has no projection.
    """

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: int = 512
    scan_layers: bool = True
    remat: str = "none"
    dtype: str = "float32"

    def __post_init__(self):
        _check_sizes(self, "vision")

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2


def _check_sizes(config: CLIPTextConfig | CLIPVisionConfig, section: str) -> None:
    c = config
    if c.hidden_act not in ACTIVATIONS:
        raise ConfigError(
            f"{section}.hidden_act={c.hidden_act!r} is unknown; one of {', '.join(ACTIVATIONS)}"
        )
    if c.hidden_size % c.num_attention_heads:
        raise ConfigError(
            f"{section}.hidden_size={c.hidden_size} must be a multiple of num_attention_heads="
            f"{c.num_attention_heads}; for example {section}.num_attention_heads=1"
        )


class CLIPTextEncoder(nnx.Module):
    """Token ids to states."""

    def __init__(self, config: CLIPTextConfig, *, rngs: nnx.Rngs):
        c = config
        self.config = c
        self.token_embedding = _embedding(c.vocab_size, c.hidden_size, axis="vocab", rngs=rngs)
        self.position_embedding = _embedding(
            c.max_position_embeddings, c.hidden_size, axis="positions", rngs=rngs
        )
        self.blocks = stack_layers(
            lambda r: CLIPBlock(c, causal=True, rngs=r), num=c.num_hidden_layers, rngs=rngs
        )
        self.final_norm = LayerNorm(c.hidden_size, eps=c.layer_norm_eps, axis="embed")
        self.projection = _projection(c, rngs=rngs)

    def __call__(
        self, ids: Int[Array, "b s"], *, segment: Int[Array, "b s"]
    ) -> Float[Array, "b s e"]:
        """Encodes packed texts; padding (segment 0) gives finite states that nobody reads."""
        c = self.config
        x = self._hidden(ids, segment, num_layers=c.num_hidden_layers - c.skip_layers)
        return x if c.skip_layers else self.final_norm(x)

    def embed(self, ids: Int[Array, "b s"], *, segment: Int[Array, "b s"]) -> Float[Array, "b p"]:
        """The embedding of each text: its end token's state behind all blocks and the final norm,
        projected where the tower has a projection.

        Args:
          ids: one text a row, closed by the end of text.
          segment: 1 on its tokens, 0 behind them.
        """
        x = self.final_norm(self._hidden(ids, segment, num_layers=self.config.num_hidden_layers))
        last = jnp.sum(segment > 0, axis=1) - 1
        pooled = jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0]
        return pooled if self.projection is None else self.projection(pooled)

    def _hidden(self, ids, segment, *, num_layers: int):
        c = self.config
        place = jnp.minimum(places(segment), c.max_position_embeddings - 1)
        x = _rows(self.token_embedding, ids, c.dtype, axis="vocab")
        x = whole_tokens(x + _rows(self.position_embedding, place, c.dtype, axis="positions"))
        settings = {"scan": c.scan_layers, "remat": c.remat, "span": (0, num_layers)}
        return apply_layers(self.blocks, x, segment, **settings)


def places(segment: Int[Array, "b s"]) -> Int[Array, "b s"]:
    """Number of each token inside its example, from 0; an example's tokens lie side by side."""
    index = jnp.arange(segment.shape[1])
    before = jnp.pad(segment, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
    start = jax.lax.cummax(jnp.where(segment != before, index, 0), axis=1)
    return index - start


@dataclasses.dataclass(frozen=True)
class CLIPTowersConfig:
    """Text towers that read the same ids, as Stable Diffusion 3's L and G."""

    towers: tuple[CLIPTextConfig, ...]

    @property
    def width(self) -> int:
        """Channels of a state."""
        return sum(tower.hidden_size for tower in self.towers)

    @property
    def vocab_size(self) -> int:
        """Ids that every tower knows."""
        return min(tower.vocab_size for tower in self.towers)

    @property
    def max_length(self) -> int:
        """Longest text in tokens."""
        return min(tower.max_position_embeddings for tower in self.towers)


class CLIPTowers(nnx.Module):
    """One or more text towers; their states side by side along the channels."""

    def __init__(self, config: CLIPTowersConfig, *, rngs: nnx.Rngs):
        self.config = config
        for name, tower in zip(self.names, config.towers, strict=True):
            setattr(self, name, CLIPTextEncoder(tower, rngs=rngs))

    @property
    def names(self) -> tuple[str, ...]:
        return tower_names(self.config)

    def __call__(
        self, ids: Int[Array, "b s"], *, segment: Int[Array, "b s"]
    ) -> Float[Array, "b s e"]:
        """As `CLIPTextEncoder`."""
        states = [getattr(self, name)(ids, segment=segment) for name in self.names]
        return jnp.concatenate(states, axis=-1)


def tower_names(config: CLIPTowersConfig) -> tuple[str, ...]:
    """Names of the towers in the tree of parameters."""
    return tuple(f"tower{i}" for i in range(len(config.towers)))


class ImageStates(NamedTuple):
    """What the vision tower makes of pictures.

    Attributes:
      states: of the class token and of the patches row by row, behind the last block.
      embedding: the class token's state behind the final norm, projected where the tower has a
        projection.
    """

    states: Float[Array, "b t e"]
    embedding: Float[Array, "b p"]


class CLIPVisionEncoder(nnx.Module):
    """Pictures to states and an embedding."""

    def __init__(self, config: CLIPVisionConfig, *, rngs: nnx.Rngs):
        c = config
        self.config = c
        normal = jax.random.normal
        shape = (c.patch_size, c.patch_size, 3, c.hidden_size)
        self.patch_embedding = nnx.Param(
            normal(rngs.params(), shape) * 0.02, axes=("kernel_y", "kernel_x", "rgb", "embed")
        )
        self.class_embedding = nnx.Param(
            normal(rngs.params(), (c.hidden_size,)) * c.hidden_size**-0.5, axes=("embed",)
        )
        self.position_embedding = _embedding(
            c.num_patches + 1, c.hidden_size, axis="positions", rngs=rngs
        )
        self.pre_norm = LayerNorm(c.hidden_size, eps=c.layer_norm_eps, axis="embed")
        self.blocks = stack_layers(
            lambda r: CLIPBlock(c, causal=False, rngs=r), num=c.num_hidden_layers, rngs=rngs
        )
        self.post_norm = LayerNorm(c.hidden_size, eps=c.layer_norm_eps, axis="embed")
        self.projection = _projection(c, rngs=rngs)

    def __call__(self, pictures: Float[Array, "b h w 3"]) -> ImageStates:
        """Encodes pictures of `image_size`, normalised as `sample.clip.preprocess` does.

        Raises:
          ValueError: pictures of another size, whose patches have no positions.
        """
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        if pictures.shape[1:3] != (c.image_size, c.image_size):
            raise ValueError(
                f"pictures have {pictures.shape[1]} x {pictures.shape[2]} pixels, this tower reads "
                f"{c.image_size} x {c.image_size}"
            )
        b, n, p = len(pictures), c.image_size // c.patch_size, c.patch_size
        x = pictures[:, : n * p, : n * p].astype(dtype).reshape(b, n, p, n, p, 3)
        x = jnp.einsum("byixjc,ijce->byxe", x, self.patch_embedding[...].astype(dtype))
        first = jnp.broadcast_to(self.class_embedding[...].astype(dtype), (b, 1, c.hidden_size))
        x = jnp.concatenate([first, x.reshape(b, n * n, -1)], axis=1)
        x = self.pre_norm(x + self.position_embedding[...].astype(dtype))
        x = apply_layers(self.blocks, x, None, scan=c.scan_layers, remat=c.remat)
        pooled = self.post_norm(x[:, 0])
        return ImageStates(x, pooled if self.projection is None else self.projection(pooled))


class CLIPBlock(nnx.Module):
    """Attention and feed-forward, each behind a norm."""

    def __init__(self, config: CLIPTextConfig | CLIPVisionConfig, *, causal: bool, rngs: nnx.Rngs):
        c, d, f = config, config.hidden_size, config.intermediate_size
        self.config = c
        self.causal = causal

        def linear(in_dim, out_dim, axes, std):
            init = nnx.initializers.normal(std)
            return Linear(in_dim, out_dim, axes=axes, bias=True, init=init, rngs=rngs)

        # standard deviations of the original code
        thin = (2 * c.num_hidden_layers) ** -0.5
        self.attention_norm = LayerNorm(d, eps=c.layer_norm_eps, axis="embed")
        self.q = linear(d, d, ("embed", "heads"), d**-0.5)
        self.k = linear(d, d, ("embed", "heads"), d**-0.5)
        self.v = linear(d, d, ("embed", "heads"), d**-0.5)
        self.out = linear(d, d, ("heads", "embed"), thin * d**-0.5)
        self.ffn_norm = LayerNorm(d, eps=c.layer_norm_eps, axis="embed")
        self.ffn_up = linear(d, f, ("embed", "ffn"), (2 * d) ** -0.5)
        self.ffn_down = linear(f, d, ("ffn", "embed"), thin * d**-0.5)

    def __call__(self, x, segment):
        y = self.attention_norm(x)
        q, k, v = (
            f(y).reshape(*y.shape[:2], self.config.num_attention_heads, -1)
            for f in (self.q, self.k, self.v)
        )
        y = attention(q, k, v, q_segment=segment, kv_segment=segment, causal=self.causal)
        x = whole_tokens(x + self.out(y.reshape(x.shape)))
        y = ACTIVATIONS[self.config.hidden_act](self.ffn_up(self.ffn_norm(x)))
        return whole_tokens(x + self.ffn_down(y))


def _embedding(num: int, dim: int, *, axis: str, rngs: nnx.Rngs) -> nnx.Param:
    return nnx.Param(jax.random.normal(rngs.params(), (num, dim)) * 0.02, axes=(axis, "embed"))


def _rows(table: nnx.Param, index: Int[Array, "b s"], dtype: str, *, axis: str):
    return gathered(table[...].astype(jnp.dtype(dtype)), (axis, "embed"))[index]


def _projection(config: CLIPTextConfig | CLIPVisionConfig, *, rngs: nnx.Rngs) -> Linear | None:
    d, p = config.hidden_size, config.projection_dim
    if not p:
        return None
    init = nnx.initializers.normal(d**-0.5)
    return Linear(d, p, axes=("embed", "projection"), bias=False, init=init, rngs=rngs)
