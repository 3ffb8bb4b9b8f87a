"""The diffusion transformer: image tokens of all frames in one sequence, modulated by frame.

One block is OneDiffusion's (Next-DiT with sandwich norms; section 3 of arXiv:2411.16318):

    s1, g1, s2, g2 = Linear(SiLU(c))                                     one row a noise level
    x = x + tanh(g1) * RMS(Attention(RMS(x) * (1 + s1), text))
    x = x + tanh(g2) * RMS(FFN(RMS(x) * (1 + s2)))

c is the embedding of a frame's noise level plus the pooled text of its example. It lives on the
noise table (b, u), and only its four products are spread to tokens: evaluating the modulation at
every token would cost a quarter to a third of a block's matmul work for equal values.

Attention is full inside an example and never leaves it. Text enters in one of two ways (`fusion`):

- `cross` (OneDiffusion): a second attention with the same rotated queries, its own keys and values,
  and a gate per head.
- `joint` (UniReal, arXiv:2412.07774, section 3.1): text tokens go through the blocks beside the
  image tokens, with the same weights, and all attend to all. Their modulation knows the pooled text
  and no noise level, and no rotation marks their place. Frames carry learned embeddings of their
  role and of the name (IMG1, RES1, ...) by which the prompt calls them, and the name's embedding is
  added to its word too. The two streams are separate arrays; only their keys and values meet.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from unidiff_jax.config import ConfigError
from unidiff_jax.mesh import gathered
from unidiff_jax.models.layers import (
    REMAT_POLICIES,
    LayerNorm,
    Linear,
    RMSNorm,
    apply_layers,
    stack_layers,
    standardize,
)
from unidiff_jax.models.rope import rotate, rotation_angles
from unidiff_jax.ops.attention import KERNELS, attention
from unidiff_jax.ops.context import (
    METHODS,
    keys_of_all,
    on_token_shards,
    spread_tokens,
    whole_tokens,
)
from unidiff_jax.ops.modulate import MODULATIONS, fuses, modulate
from unidiff_jax.ops.quantized import KINDS
from unidiff_jax.text import MAX_NAMES
from unidiff_jax.types import Batch, Noised, Role

FUSIONS = ("cross", "joint")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """Sizes of the transformer.

    Attributes:
      patch_dim: channels of a token.
      hidden_dim: width d.
      depth: number of blocks.
      num_heads: query heads; d / num_heads must be divisible by 6.
      num_kv_heads: key and value heads of image and text.
      text_dim: width of the text states.
      out_dim: channels of a token's prediction; None is `patch_dim`.
      ffn_multiple_of: the feed-forward width 8 d / 3 is rounded up to a multiple of this.
      ffn_dim_multiplier: scales the feed-forward width before it is rounded.
      qk_norm: layer norm over all heads of queries, keys and text keys.
      norm_eps: of the RMS norms.
      softcap: bound of the image attention's scores, 0 for none.
      rope_theta, rope_scale: base and factor of the rotary angles, see `rope.rotation_angles`. The
        released theta turns most pairs of a head by less than a tenth over 8 places: a small grid
        wants a base of 10 to 100.
      fusion: how text enters, one of `FUSIONS`.
      text_gate_init: start of the text gates of `cross`. 0 as released; a small model learns to
        read sooner from 1.
      attention: what computes it, one of `ops.attention.KERNELS`.
      context: how tokens over the mesh's `seq` axis meet in it, see `ops.context`.
      modulation: gate, residual, norm and modulation between attention and feed-forward as
        separate operations (`xla`), as one kernel (`fused`, see `ops.modulate`), or `auto`.
      quantized: of the products with weights in attention and feed-forward, see `ops.quantized`.
      scan_layers: see `layers.apply_layers`.
      remat: see `layers.REMAT_POLICIES`.
      dtype: of activations.
    """

    patch_dim: int
    hidden_dim: int
    depth: int
    num_heads: int
    num_kv_heads: int
    text_dim: int
    out_dim: int | None = None
    ffn_multiple_of: int = 256
    ffn_dim_multiplier: float | None = None
    qk_norm: bool = True
    norm_eps: float = 1e-5
    softcap: float = 30.0
    rope_theta: float = 10000.0
    rope_scale: float = 1.0
    fusion: str = "cross"
    text_gate_init: float = 0.0
    attention: str = "auto"
    context: str = "gather"
    modulation: str = "auto"
    quantized: str = "none"
    scan_layers: bool = True
    remat: str = "full"
    dtype: str = "float32"

    def __post_init__(self):
        if self.hidden_dim % self.num_heads or (self.hidden_dim // self.num_heads) % 6:
            heads = [h for h in range(1, 65) if self.hidden_dim % (6 * h) == 0]
            raise ConfigError(
                f"model.num_heads={self.num_heads} must cut model.hidden_dim={self.hidden_dim} "
                f"into heads divisible by 6; for example {heads or 'another hidden_dim'}"
            )
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"model.num_kv_heads={self.num_kv_heads} must divide "
                f"model.num_heads={self.num_heads}"
            )
        known = {
            "fusion": FUSIONS,
            "attention": KERNELS,
            "context": METHODS,
            "modulation": MODULATIONS,
            "quantized": KINDS,
            "remat": tuple(REMAT_POLICIES),
        }
        for name, values in known.items():
            if (value := getattr(self, name)) not in values:
                raise ConfigError(f"model.{name}={value!r} is unknown; one of {', '.join(values)}")

    @property
    def head_dim(self) -> int:
        return self.hidden_dim // self.num_heads

    @property
    def condition_dim(self) -> int:
        return min(self.hidden_dim, 1024)

    @property
    def ffn_dim(self) -> int:
        width = int(2 * 4 * self.hidden_dim / 3)
        if self.ffn_dim_multiplier is not None:
            width = int(self.ffn_dim_multiplier * width)
        return -(-width // self.ffn_multiple_of) * self.ffn_multiple_of


class DiT(nnx.Module):
    """The denoiser: noisy tokens, noise table and text states in, one prediction a token out."""

    def __init__(self, config: DiTConfig, *, rngs: nnx.Rngs):
        c = config
        self.config = c
        self.patch_embed = Linear(
            c.patch_dim, c.hidden_dim, axes=("patch", "embed"), bias=True, rngs=rngs
        )
        self.sigma_embed = SigmaEmbed(c.condition_dim, rngs=rngs)
        self.text_norm = LayerNorm(c.text_dim, eps=1e-6, axis="text")
        self.text_embed = Linear(
            c.text_dim, c.condition_dim, axes=("text", "condition"), bias=True, rngs=rngs
        )
        block = JointBlock if c.fusion == "joint" else Block
        self.blocks = stack_layers(lambda r: block(c, rngs=r), num=c.depth, rngs=rngs)
        if c.fusion == "joint":
            self.text_in = Linear(
                c.text_dim, c.hidden_dim, axes=("text", "embed"), bias=True, rngs=rngs
            )
            self.role_embed = Embedding(len(Role), c.hidden_dim, rngs=rngs)
            self.name_embed = Embedding(2 * MAX_NAMES + 1, c.hidden_dim, rngs=rngs)
        self.out_scale = Linear(
            c.condition_dim, c.hidden_dim, axes=("condition", "embed"), bias=True, rngs=rngs
        )
        out_dim = c.out_dim or c.patch_dim
        self.out = Linear(c.hidden_dim, out_dim, axes=("embed", "patch"), bias=True, rngs=rngs)

    def __call__(
        self, batch: Batch, noised: Noised, text: Float[Array, "b s e"]
    ) -> Float[Array, "b t o"]:
        """Predicts velocity, data or noise (`flow.FlowConfig.prediction`) for every token."""
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        text = text.astype(dtype)
        segment = batch.token_segment

        # condition on the noise table; a table of frames knows its example by the frame table
        per_token = noised.sigma.shape[1] == batch.frame.shape[1]
        table_segment = segment if per_token else batch.segment
        pooled = pool_text(text, batch.text_segment, num_segments=batch.task.shape[1])
        pooled = self.text_embed(self.text_norm(pooled))
        time = self.sigma_embed(noised.sigma).astype(dtype)
        condition = spread(pooled, table_segment) + jnp.where(noised.timed[..., None], time, 0)
        condition = jax.nn.silu(condition)

        x = spread_tokens(self.patch_embed(noised.tokens.astype(dtype)))
        angles = rotation_angles(
            batch.position, head_dim=c.head_dim, theta=c.rope_theta, scale=c.rope_scale
        )
        index = None if per_token else noised.sigma_index
        context = (condition, index, angles, segment, batch.text_segment)
        dense = batch.task.shape[1] == 2  # beside padding there is room for one example a row
        layers = {"scan": c.scan_layers, "remat": c.remat}
        if c.fusion == "cross":
            x = apply_layers(self.blocks, x, *context, text, dense, **layers)
        else:
            frames = self.role_embed(batch.role) + self.name_embed(batch.name)
            x = x + spread(frames.astype(dtype), batch.frame)
            y = self.text_in(text)
            if batch.text_name is not None:
                y = y + self.name_embed(batch.text_name).astype(dtype)
            x, _ = apply_layers(self.blocks, (x, y), *context, jax.nn.silu(pooled), **layers)

        scale = to_tokens(self.out_scale(condition), index)
        x = standardize(x, eps=1e-6).astype(dtype) * (1 + scale)
        return self.out(x).astype(jnp.float32)


class Block(nnx.Module):
    """Attention and feed-forward with sandwich norms and tanh gates."""

    def __init__(self, config: DiTConfig, *, rngs: nnx.Rngs):
        c = config
        self.config = c
        self.modulation = Linear(
            c.condition_dim, 4 * c.hidden_dim, axes=("condition", "embed"), bias=True, rngs=rngs
        )
        self.attention_norm = RMSNorm(c.hidden_dim, eps=c.norm_eps, axis="embed")
        self.attention_out_norm = RMSNorm(c.hidden_dim, eps=c.norm_eps, axis="embed")
        self.text_norm = RMSNorm(c.text_dim, eps=c.norm_eps, axis="text")
        self.attention = Attention(c, rngs=rngs)
        self.ffn_norm = RMSNorm(c.hidden_dim, eps=c.norm_eps, axis="embed")
        self.ffn_out_norm = RMSNorm(c.hidden_dim, eps=c.norm_eps, axis="embed")
        self.ffn = FeedForward(c, rngs=rngs)

    def __call__(self, x, condition, index, angles, segment, text_segment, text, dense):
        tables = jnp.split(self.modulation(condition), 4, axis=-1)
        y = self.attention(
            self.attention_norm(x) * (1 + to_tokens(tables[0], index)),
            self.text_norm(text),
            angles=angles,
            segment=segment,
            text_segment=text_segment,
            dense=dense,
        )
        return finish_block(self, x, y, tables, index, cut=True)


class JointBlock(nnx.Module):
    """`Block` over image and text tokens with the same weights; both go in and come out."""

    def __init__(self, config: DiTConfig, *, rngs: nnx.Rngs):
        c = config
        self.config = c
        self.modulation = Linear(
            c.condition_dim, 4 * c.hidden_dim, axes=("condition", "embed"), bias=True, rngs=rngs
        )
        self.attention_norm = RMSNorm(c.hidden_dim, eps=c.norm_eps, axis="embed")
        self.attention_out_norm = RMSNorm(c.hidden_dim, eps=c.norm_eps, axis="embed")
        self.attention = JointAttention(c, rngs=rngs)
        self.ffn_norm = RMSNorm(c.hidden_dim, eps=c.norm_eps, axis="embed")
        self.ffn_out_norm = RMSNorm(c.hidden_dim, eps=c.norm_eps, axis="embed")
        self.ffn = FeedForward(c, rngs=rngs)

    def __call__(self, streams, condition, index, angles, segment, text_segment, text_condition):
        indices = (index, text_segment)
        tables = [
            jnp.split(self.modulation(rows), 4, axis=-1) for rows in (condition, text_condition)
        ]
        attended = self.attention(
            *(
                self.attention_norm(x) * (1 + to_tokens(table[0], place))
                for x, table, place in zip(streams, tables, indices, strict=True)
            ),
            angles=angles,
            segment=segment,
            text_segment=text_segment,
        )
        image, text = (
            finish_block(self, x, y, table, place, cut=cut)
            for x, y, table, place, cut in zip(
                streams, attended, tables, indices, (True, False), strict=True
            )
        )
        return image, text


def finish_block(
    block: Block | JointBlock,
    x: Float[Array, "b t d"],
    y: Float[Array, "b t d"],
    tables: list[Float[Array, "b u d"]],
    index: Int[Array, "b t"] | None,
    *,
    cut: bool,
) -> Float[Array, "b t d"]:
    """A block behind its attention: the first residual, and the feed-forward with its own.

    Args:
      block: whose norms and feed-forward these are.
      x: the residual stream.
      y: what attention gave.
      tables: scale and gate of attention, scale and gate of the feed-forward.
      index: each token's row of the tables; None: they have one row a token.
      cut: whether tokens lie over the mesh's `seq` axis.
    """
    place = spread_tokens if cut else whole_tokens
    _, gate1, scale2, gate2 = tables
    if index is None or not fuses(block.config.modulation):
        x = place(x + jnp.tanh(to_tokens(gate1, index)) * block.attention_out_norm(y))
        h = block.ffn_norm(x) * (1 + to_tokens(scale2, index))
    else:
        kernel = functools.partial(modulate, eps=block.config.norm_eps)
        weights = (block.attention_out_norm.weight[...], block.ffn_norm.weight[...])
        x, h = on_token_shards(kernel, (x, y, index), (gate1, scale2), weights, cut=cut)
    y = block.ffn(h)
    return place(x + jnp.tanh(to_tokens(gate2, index)) * block.ffn_out_norm(y))


class JointAttention(nnx.Module):
    """Attention of an example's image and text tokens to all of them."""

    def __init__(self, config: DiTConfig, *, rngs: nnx.Rngs):
        c = config
        self.config = c
        q_dim, kv_dim = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim

        def linear(in_dim, out_dim, axes):
            return Linear(in_dim, out_dim, axes=axes, bias=False, rngs=rngs, quantized=c.quantized)

        self.q = linear(c.hidden_dim, q_dim, ("embed", "heads"))
        self.k = linear(c.hidden_dim, kv_dim, ("embed", "kv_heads"))
        self.v = linear(c.hidden_dim, kv_dim, ("embed", "kv_heads"))
        self.out = linear(q_dim, c.hidden_dim, ("heads", "embed"))
        if c.qk_norm:
            self.q_norm = LayerNorm(q_dim, eps=1e-5, axis="heads")
            self.k_norm = LayerNorm(kv_dim, eps=1e-5, axis="kv_heads")

    def __call__(
        self,
        x: Float[Array, "b t d"],
        y: Float[Array, "b s d"],
        *,
        angles: Float[Array, "b t pairs"],
        segment: Int[Array, "b t"],
        text_segment: Int[Array, "b s"],
    ) -> tuple[Float[Array, "b t d"], Float[Array, "b s d"]]:
        c = self.config

        def project(z):
            q, k, v = self.q(z), self.k(z), self.v(z)
            if c.qk_norm:
                q, k = self.q_norm(q), self.k_norm(k)
            return (a.reshape(*a.shape[:2], -1, c.head_dim) for a in (q, k, v))

        (q, k, v), (text_q, text_k, text_v) = project(x), project(y)
        q, k = rotate(q, angles), rotate(k, angles)
        k, v = (keys_of_all(z, method=c.context) for z in (k, v))
        keys, values = jnp.concatenate([k, text_k], 1), jnp.concatenate([v, text_v], 1)
        kv_segment = jnp.concatenate([segment, text_segment], axis=1)

        def attend(queries, q_segment):
            z = attention(
                queries,
                keys,
                values,
                q_segment=q_segment,
                kv_segment=kv_segment,
                softcap=c.softcap or None,
                kernel=c.attention,
                context=c.context,
            )
            return self.out(z.reshape(*z.shape[:2], -1))

        return attend(q, segment), attend(text_q, text_segment)


class Attention(nnx.Module):
    """Self-attention over an example's frames plus gated attention to its text."""

    def __init__(self, config: DiTConfig, *, rngs: nnx.Rngs):
        c = config
        self.config = c
        q_dim, kv_dim = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim

        def linear(in_dim, out_dim, axes):
            return Linear(in_dim, out_dim, axes=axes, bias=False, rngs=rngs, quantized=c.quantized)

        self.q = linear(c.hidden_dim, q_dim, ("embed", "heads"))
        self.k = linear(c.hidden_dim, kv_dim, ("embed", "kv_heads"))
        self.v = linear(c.hidden_dim, kv_dim, ("embed", "kv_heads"))
        self.text_k = linear(c.text_dim, kv_dim, ("text", "kv_heads"))
        self.text_v = linear(c.text_dim, kv_dim, ("text", "kv_heads"))
        self.out = linear(q_dim, c.hidden_dim, ("heads", "embed"))
        self.text_gate = nnx.Param(
            jnp.full((c.num_heads,), c.text_gate_init, jnp.float32), axes=("heads",)
        )
        if c.qk_norm:  # over all heads jointly, before they are split
            self.q_norm = LayerNorm(q_dim, eps=1e-5, axis="heads")
            self.k_norm = LayerNorm(kv_dim, eps=1e-5, axis="kv_heads")
            self.text_k_norm = LayerNorm(kv_dim, eps=1e-6, axis="kv_heads")

    def __call__(
        self,
        x: Float[Array, "b t d"],
        text: Float[Array, "b s e"],
        *,
        angles: Float[Array, "b t pairs"],
        segment: Int[Array, "b t"],
        text_segment: Int[Array, "b s"],
        dense: bool,
    ) -> Float[Array, "b t d"]:
        c = self.config
        q, k, v = self.q(x), self.k(x), self.v(x)
        text_k, text_v = self.text_k(text), self.text_v(text)
        if c.qk_norm:
            q, k, text_k = self.q_norm(q), self.k_norm(k), self.text_k_norm(text_k)
        q, k, v, text_k, text_v = (
            y.reshape(*y.shape[:2], -1, c.head_dim) for y in (q, k, v, text_k, text_v)
        )
        q, k = rotate(q, angles), rotate(k, angles)
        attend = functools.partial(attention, kernel=c.attention, context=c.context)
        y = attend(
            q,
            k,
            v,
            q_segment=segment,
            kv_segment=segment,
            softcap=c.softcap or None,
            dense=dense,
        )
        # Query head j reads text head j modulo num_kv_heads (tiled), unlike the grouped image
        # heads: the released weights were trained with this order.
        tiles = c.num_heads // c.num_kv_heads
        text_k, text_v = (jnp.tile(y, (1, 1, tiles, 1)) for y in (text_k, text_v))
        from_text = attend(q, text_k, text_v, q_segment=segment, kv_segment=text_segment)
        y = y + from_text * jnp.tanh(self.text_gate[...]).astype(y.dtype)[:, None]
        return self.out(y.reshape(*x.shape[:2], -1))


class FeedForward(nnx.Module):
    """SwiGLU: down(silu(gate x) * up x)."""

    def __init__(self, config: DiTConfig, *, rngs: nnx.Rngs):
        c, xavier = config, nnx.initializers.xavier_uniform()

        def linear(in_dim, out_dim, axes, init):
            return Linear(
                in_dim,
                out_dim,
                axes=axes,
                bias=False,
                init=init,
                rngs=rngs,
                quantized=c.quantized,
            )

        self.gate = linear(c.hidden_dim, c.ffn_dim, ("embed", "ffn"), xavier)
        self.up = linear(c.hidden_dim, c.ffn_dim, ("embed", "ffn"), xavier)
        self.down = linear(c.ffn_dim, c.hidden_dim, ("ffn", "embed"), nnx.initializers.zeros)

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class Embedding(nnx.Module):
    """A learned row for each number; row 0, which means none, is not added."""

    def __init__(self, num: int, dim: int, *, rngs: nnx.Rngs):
        self.weight = nnx.Param(
            0.02 * jax.random.normal(rngs.params(), (num - 1, dim)), axes=("rows", "embed")
        )

    def __call__(self, number: Int[Array, "b n"]) -> Float[Array, "b n d"]:
        num = self.weight[...].shape[0]
        one_hot = jax.nn.one_hot(number - 1, num, dtype=jnp.float32)  # all zeros for 0
        return one_hot @ gathered(self.weight[...], ("rows", "embed"))


class SigmaEmbed(nnx.Module):
    """Sinusoids of 1000 sigma (cosines first, 128 frequencies) and a two-layer network."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.hidden = Linear(256, dim, axes=("sinusoid", "condition"), bias=True, rngs=rngs)
        self.out = Linear(dim, dim, axes=("condition", "condition_out"), bias=True, rngs=rngs)

    def __call__(self, sigma: Float[Array, "b u"]) -> Float[Array, "b u c"]:
        frequency = jnp.exp(-jnp.log(10000.0) * jnp.arange(128, dtype=jnp.float32) / 128)
        angle = 1000.0 * sigma[..., None].astype(jnp.float32) * frequency
        sinusoids = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
        return self.out(jax.nn.silu(self.hidden(sinusoids)))


def to_tokens(
    table: Float[Array, "b u d"], index: Int[Array, "b t"] | None
) -> Float[Array, "b t d"]:
    """Spreads rows of the noise table to tokens; None: the table has one row a token."""
    return table if index is None else spread(table, index)


def spread(table: Float[Array, "b u d"], index: Int[Array, "b t"]) -> Float[Array, "b t d"]:
    """Looks rows up by a one-hot matmul: exact, and the gradient is a matmul, not a scatter."""
    one_hot = jax.nn.one_hot(index, table.shape[1], dtype=table.dtype)
    return jnp.einsum("btu,bud->btd", one_hot, table)


def pool_text(
    text: Float[Array, "b s e"], segment: Int[Array, "b s"], *, num_segments: int
) -> Float[Array, "b g e"]:
    """Mean of each example's text states, in float32."""
    one_hot = jax.nn.one_hot(segment, num_segments, dtype=jnp.float32)
    total = jnp.einsum("bsg,bse->bge", one_hot, text.astype(jnp.float32))
    return (total / (one_hot.sum(1)[..., None] + 1e-8)).astype(text.dtype)
