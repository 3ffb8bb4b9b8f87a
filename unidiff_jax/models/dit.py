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
- `dual` (UniVG, arXiv:2503.12652, after SD3's MM-DiT): as `joint`, but the text stream has weights
  of its own in every block, and its modulation is that of the frame that is made, noise level
  included.

Beside frames, an example may condition in two ways that cost no token (UniVG): pictures on the
channels of the noisy tokens (`guidance_dim`), and features of a face or an object in the place of
a word's state (`asset_dim`).

UNIMO-G (arXiv:2401.13388) is `cross` on the states of a multimodal encoder, in which the places of
a prompt's pictures are tokens like its words. Its U-Net that predicts noise is here this
transformer with flow matching. Its loss of attention maps (section 3.2) compares, in the layers
`map_layers`, where the image attends to the tokens of an entity with where the entity is:

    L = mean_e | sum_k CA(z, v_k) - M_e |,  CA = softmax(Q(z) K(v)^T / sqrt(d))

with the sum over the tokens v_k of entity e and the mean over the entities of the example. The
paper takes the difference token by token; for masks of 0 and 1 that has the same gradient, divided
by the number of an entity's tokens. The sum is an attention whose values are one-hot, so that every
kernel computes it, and the layers that are not named compute nothing more.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

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
from unidiff_jax.types import Batch, Noised, Role, take_rows

FUSIONS = ("cross", "joint", "dual")


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
      guidance_dim: channels of a token's guidance, `Batch.visual` and `Batch.mask`; 0 for none.
      asset_dim: width of `Batch.asset_features`; 0 for none.
      shared_modulation: one modulation for all blocks in place of one a block (DiT-Air,
        arXiv:2503.10618, found no loss): a sixth to a third fewer parameters.
      map_layers: blocks, counted from 0, whose attention to the text the loss of attention maps
        looks at (`flow.map_weight`); of `cross` alone.
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
    guidance_dim: int = 0
    asset_dim: int = 0
    shared_modulation: bool = False
    map_layers: Sequence[int] = ()
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
        object.__setattr__(self, "map_layers", tuple(self.map_layers))  # a JSON has a list
        if self.map_layers and self.fusion != "cross":
            raise ConfigError(
                f"model.map_layers={self.map_layers} are of model.fusion='cross', which attends to "
                "the text alone; for example --set model.map_layers=()"
            )
        if not set(self.map_layers) <= set(range(self.depth)):
            raise ConfigError(
                f"model.map_layers={self.map_layers} must be blocks from 0 to {self.depth - 1}; "
                f"for example --set model.map_layers=({self.depth // 2},)"
            )

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


class Prediction(NamedTuple):
    """What the denoiser says of every token.

    Attributes:
      output: velocity, data or noise (`flow.FlowConfig.prediction`).
      map_error: mean over `map_layers`, heads and the entities of its example of the absolute
        difference between the attention that goes to the entity and the entity's mask, in [0, 1];
        0 where the example has no entity.
    """

    output: Float[Array, "b t o"]
    map_error: Float[Array, "b t"]


class Entities(NamedTuple):
    """What the attention maps of a batch are compared with.

    Attributes:
      of_key: one-hot over a head's channels, the entity that each text token shows.
      mask: where each entity is.
      weight: of each entity in a token's mean: 1 / (number of its example's entities), or 0.
    """

    of_key: Float[Array, "b s k"]
    mask: Float[Array, "b t n"]
    weight: Float[Array, "b t n"]


class DiT(nnx.Module):
    """The denoiser: noisy tokens, noise table and text states in, one prediction a token out."""

    def __init__(self, config: DiTConfig, *, rngs: nnx.Rngs):
        c = config
        self.config = c
        in_dim = c.patch_dim + c.guidance_dim
        self.patch_embed = Linear(
            in_dim, c.hidden_dim, axes=("patch", "embed"), bias=True, rngs=rngs
        )
        self.sigma_embed = SigmaEmbed(c.condition_dim, rngs=rngs)
        self.text_norm = LayerNorm(c.text_dim, eps=1e-6, axis="text")
        self.text_embed = Linear(
            c.text_dim, c.condition_dim, axes=("text", "condition"), bias=True, rngs=rngs
        )
        block = Block if c.fusion == "cross" else JointBlock
        self.blocks = stack_layers(lambda r: block(c, rngs=r), num=c.depth, rngs=rngs)
        if c.shared_modulation:
            self.modulation = modulation(c, rngs=rngs)
            if c.fusion == "dual":
                self.text_modulation = modulation(c, rngs=rngs)
        if c.asset_dim:
            self.asset_in = Linear(
                c.asset_dim, c.text_dim, axes=("asset", "text"), bias=True, rngs=rngs
            )
        if c.fusion != "cross":
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
        """Predicts velocity, data or noise (`flow.FlowConfig.prediction`) for every token.

        Raises:
          ValueError: the batch lacks guidance or features that the model reads, or levels are one a
            token where the text needs its frame's (`dual`).
        """
        return self._predict(batch, noised, text, None).output

    def with_maps(self, batch: Batch, noised: Noised, text: Float[Array, "b s e"]) -> Prediction:
        """The same with the error of the attention maps.

        Raises:
          ValueError: as when called, or `map_layers` or the batch's entities are missing.
        """
        if not self.config.map_layers:
            raise ValueError("model.map_layers names no block; for example model.map_layers=(1,)")
        return self._predict(batch, noised, text, find_entities(batch, self.config.head_dim))

    def _predict(
        self,
        batch: Batch,
        noised: Noised,
        text: Float[Array, "b s e"],
        entities: Entities | None,
    ) -> Prediction:
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        text = self.place_assets(text.astype(dtype), batch)
        segment = batch.token_segment

        # condition on the noise table; a table of frames knows its example by the frame table
        per_token = noised.sigma.shape[1] == batch.frame.shape[1]
        table_segment = segment if per_token else batch.segment
        pooled = pool_text(text, batch.text_segment, num_segments=batch.task.shape[1])
        pooled = self.text_embed(self.text_norm(pooled))
        time = self.sigma_embed(noised.sigma).astype(dtype)
        condition = spread(pooled, table_segment) + jnp.where(noised.timed[..., None], time, 0)
        condition = jax.nn.silu(condition)

        x = spread_tokens(self.patch_embed(self.with_guidance(noised.tokens, batch).astype(dtype)))
        angles = rotation_angles(
            batch.position, head_dim=c.head_dim, theta=c.rope_theta, scale=c.rope_scale
        )
        index = None if per_token else noised.sigma_index
        rows = self.modulation(condition) if c.shared_modulation else condition
        context = (rows, index, angles, segment, batch.text_segment)
        dense = batch.task.shape[1] == 2  # beside padding there is room for one example a row
        layers = {"scan": c.scan_layers, "remat": c.remat}
        map_error = jnp.zeros(batch.frame.shape, jnp.float32)
        if c.fusion == "cross":
            context = (*context, text, dense)
            for span, chosen in spans(c.depth, c.map_layers if entities else ()):
                layers["span"] = span
                if chosen:
                    carry = (x, map_error)
                    x, map_error = apply_layers(self.blocks, carry, *context, entities, **layers)
                else:
                    x = apply_layers(self.blocks, x, *context, **layers)
            map_error = map_error / max(len(c.map_layers), 1)
        else:
            frames = self.role_embed(batch.role) + self.name_embed(batch.name)
            x = x + spread(frames.astype(dtype), batch.frame)
            y = self.text_in(text)
            if batch.text_name is not None:
                y = y + self.name_embed(batch.text_name).astype(dtype)
            if c.fusion == "joint":
                text_rows, text_index = jax.nn.silu(pooled), batch.text_segment
            elif per_token:
                raise ValueError("model.fusion='dual' takes one noise level a frame, not a token")
            else:
                text_rows = condition
                text_index = take_rows(made_frame(batch), batch.text_segment)
            if c.shared_modulation:
                own = self.modulation if c.fusion == "joint" else self.text_modulation
                text_rows = own(text_rows)
            x, _ = apply_layers(self.blocks, (x, y), *context, text_rows, text_index, **layers)

        scale = to_tokens(self.out_scale(condition), index)
        x = standardize(x, eps=1e-6).astype(dtype) * (1 + scale)
        return Prediction(self.out(x).astype(jnp.float32), map_error)

    def with_guidance(
        self, tokens: Float[Array, "b t p"], batch: Batch
    ) -> Float[Array, "b t channels"]:
        """Noisy tokens with the channels that guide them: [z, V, M] (UniVG)."""
        if not self.config.guidance_dim:
            return tokens
        if batch.visual is None or batch.mask is None:
            raise ValueError("model.guidance_dim needs examples with data.guidance='channels'")
        return jnp.concatenate([tokens, batch.visual, batch.mask], axis=-1)

    def place_assets(self, text: Float[Array, "b s e"], batch: Batch) -> Float[Array, "b s e"]:
        """Text states in which features have taken the place of their words' states (UniVG)."""
        if not self.config.asset_dim:
            return text
        if batch.asset_features is None or batch.text_asset is None:
            raise ValueError("model.asset_dim needs examples with data.identity")
        features = self.asset_in(batch.asset_features.astype(text.dtype))
        placed = spread(features, batch.text_asset)
        return jnp.where(batch.text_asset[..., None] > 0, placed, text)


def modulation(config: DiTConfig, *, rngs: nnx.Rngs) -> Linear:
    """The layer that makes (s1, g1, s2, g2) of a row of conditions."""
    return Linear(
        config.condition_dim,
        4 * config.hidden_dim,
        axes=("condition", "embed"),
        bias=True,
        rngs=rngs,
    )


class Stream(nnx.Module):
    """The weights of one stream in a block: attention and feed-forward with sandwich norms."""

    def __init__(
        self, config: DiTConfig, attention: "type[Attention | JointAttention]", *, rngs: nnx.Rngs
    ):
        c = config
        self.config = c
        if not c.shared_modulation:
            self.modulation = modulation(c, rngs=rngs)
        self.attention_norm = RMSNorm(c.hidden_dim, eps=c.norm_eps, axis="embed")
        self.attention_out_norm = RMSNorm(c.hidden_dim, eps=c.norm_eps, axis="embed")
        self.attention = attention(c, rngs=rngs)
        self.ffn_norm = RMSNorm(c.hidden_dim, eps=c.norm_eps, axis="embed")
        self.ffn_out_norm = RMSNorm(c.hidden_dim, eps=c.norm_eps, axis="embed")
        self.ffn = FeedForward(c, rngs=rngs)

    def tables(self, rows: Float[Array, "b u c"]) -> list[Float[Array, "b u d"]]:
        """s1, g1, s2, g2 of each row of conditions, which a shared modulation made before."""
        rows = rows if self.config.shared_modulation else self.modulation(rows)
        return jnp.split(rows, 4, axis=-1)

    def finish(
        self,
        x: Float[Array, "b t d"],
        y: Float[Array, "b t d"],
        tables: list[Float[Array, "b u d"]],
        index: Int[Array, "b t"] | None,
        *,
        cut: bool,
    ) -> Float[Array, "b t d"]:
        """What a block does after attention gave `y`.

        Args:
          x: the block's input.
          y: the attention's output.
          tables: s1, g1, s2, g2.
          index: each token's row of the tables; None: one row a token.
          cut: whether tokens lie over the mesh's `seq` axis.
        """
        place = spread_tokens if cut else whole_tokens
        _, gate1, scale2, gate2 = tables
        if index is None or not fuses(self.config.modulation):
            x = place(x + jnp.tanh(to_tokens(gate1, index)) * self.attention_out_norm(y))
            h = self.ffn_norm(x) * (1 + to_tokens(scale2, index))
        else:
            kernel = functools.partial(modulate, eps=self.config.norm_eps)
            weights = (self.attention_out_norm.weight[...], self.ffn_norm.weight[...])
            x, h = on_token_shards(kernel, (x, y, index), (gate1, scale2), weights, cut=cut)
        y = self.ffn(h)
        return place(x + jnp.tanh(to_tokens(gate2, index)) * self.ffn_out_norm(y))


class Block(Stream):
    """A block whose attention reads the text (`cross`)."""

    def __init__(self, config: DiTConfig, *, rngs: nnx.Rngs):
        super().__init__(config, Attention, rngs=rngs)
        self.text_norm = RMSNorm(config.text_dim, eps=config.norm_eps, axis="text")

    def __call__(self, x, rows, index, angles, segment, text_segment, text, dense, entities=None):
        """One block; with `entities`, x is the tokens and the error of the maps so far."""
        x, map_error = x if entities is not None else (x, None)
        tables = self.tables(rows)
        y, own_error = self.attention(
            self.attention_norm(x) * (1 + to_tokens(tables[0], index)),
            self.text_norm(text),
            angles=angles,
            segment=segment,
            text_segment=text_segment,
            dense=dense,
            entities=entities,
        )
        x = self.finish(x, y, tables, index, cut=True)
        return x if entities is None else (x, map_error + own_error)


class JointBlock(Stream):
    """A block over image and text tokens; both go in and come out. Their weights are the same
    (`joint`), or the text stream has its own (`dual`).
    """

    def __init__(self, config: DiTConfig, *, rngs: nnx.Rngs):
        super().__init__(config, JointAttention, rngs=rngs)
        if config.fusion == "dual":
            self.text = Stream(config, JointAttention, rngs=rngs)

    def __call__(self, streams, rows, index, angles, segment, text_segment, text_rows, text_index):
        weights = (self, self.text if self.config.fusion == "dual" else self)
        indices = (index, text_index)
        tables = [w.tables(r) for w, r in zip(weights, (rows, text_rows), strict=True)]
        normed = [
            w.attention_norm(x) * (1 + to_tokens(table[0], place))
            for w, x, table, place in zip(weights, streams, tables, indices, strict=True)
        ]
        attended = attend_jointly(
            [w.attention for w in weights],
            normed,
            angles=angles,
            segments=(segment, text_segment),
        )
        image, text = (
            w.finish(x, y, table, place, cut=cut)
            for w, x, y, table, place, cut in zip(
                weights, streams, attended, tables, indices, (True, False), strict=True
            )
        )
        return image, text


class JointAttention(nnx.Module):
    """One stream's projections in `attend_jointly`."""

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

    def project(self, x: Float[Array, "b t d"]) -> tuple[Float[Array, "b t h k"], ...]:
        """Queries, keys and values."""
        q, k, v = self.q(x), self.k(x), self.v(x)
        if self.config.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        return tuple(a.reshape(*a.shape[:2], -1, self.config.head_dim) for a in (q, k, v))


def attend_jointly(
    weights: Sequence[JointAttention],
    streams: Sequence[Float[Array, "b n d"]],
    *,
    angles: Float[Array, "b t pairs"],
    segments: tuple[Int[Array, "b t"], Int[Array, "b s"]],
) -> list[Float[Array, "b n d"]]:
    """Attention of an example's image and text tokens to all of them.

    Args:
      weights: of the image stream and of the text stream.
      streams: image tokens and text tokens.
      angles: rotation of the image tokens.
      segments: the example of each token of both streams.
    """
    c = weights[0].config
    (q, k, v), (text_q, text_k, text_v) = (
        w.project(x) for w, x in zip(weights, streams, strict=True)
    )
    q, k = rotate(q, angles), rotate(k, angles)
    k, v = (keys_of_all(z, method=c.context) for z in (k, v))
    keys, values = jnp.concatenate([k, text_k], 1), jnp.concatenate([v, text_v], 1)
    attended = []
    for own, queries, segment in zip(weights, (q, text_q), segments, strict=True):
        z = attention(
            queries,
            keys,
            values,
            q_segment=segment,
            kv_segment=jnp.concatenate(segments, axis=1),
            softcap=c.softcap or None,
            kernel=c.attention,
            context=c.context,
        )
        attended.append(own.out(z.reshape(*z.shape[:2], -1)))
    return attended


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
        entities: Entities | None = None,
    ) -> tuple[Float[Array, "b t d"], Float[Array, "b t"] | None]:
        """The attention and, with `entities`, the error of its map."""
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
        read = functools.partial(attend, q, text_k, q_segment=segment, kv_segment=text_segment)
        from_text = read(text_v)
        y = y + from_text * jnp.tanh(self.text_gate[...]).astype(y.dtype)[:, None]
        y = self.out(y.reshape(*x.shape[:2], -1))
        if entities is None:
            return y, None
        of_key = entities.of_key.astype(text_v.dtype)[:, :, None]
        shares = read(jnp.broadcast_to(of_key, text_v.shape)).astype(jnp.float32)
        off = jnp.abs(shares[..., : entities.mask.shape[-1]] - entities.mask[:, :, None])
        return y, jnp.sum(jnp.mean(off, axis=2) * entities.weight, axis=-1)


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


def spans(depth: int, chosen: Sequence[int]) -> Iterator[tuple[tuple[int, int], bool]]:
    """Cuts the blocks where those that are chosen begin and end: (first, behind last), chosen.

    Example:
      >>> list(spans(4, (2,)))
      [((0, 2), False), ((2, 3), True), ((3, 4), False)]
    """
    kinds = [block in chosen for block in range(depth)]
    starts = [0, *(i for i in range(1, depth) if kinds[i] != kinds[i - 1])]
    for start, end in zip(starts, [*starts[1:], depth], strict=True):
        yield (start, end), kinds[start]


def find_entities(batch: Batch, head_dim: int) -> Entities:
    """The batch's entities; raises ValueError where it has none, or more than a head's channels."""
    if batch.text_entity is None or batch.entity_mask is None:
        raise ValueError("flow.map_weight needs examples with data.entities; for example 4")
    count = batch.entity_mask.shape[-1]
    if count > head_dim:
        raise ValueError(f"data.entities={count} must be at most a head's {head_dim} channels")
    of_key = jax.nn.one_hot(batch.text_entity - 1, head_dim, dtype=jnp.float32)
    segment = jax.nn.one_hot(batch.text_segment, batch.task.shape[1], dtype=jnp.float32)
    named = jnp.einsum("bsg,bsn->bgn", segment, of_key[..., :count]) > 0
    named = named / jnp.maximum(jnp.sum(named, axis=-1, keepdims=True), 1)
    weight = take_rows(named.astype(jnp.float32), batch.token_segment)
    return Entities(of_key, batch.entity_mask, weight)


def made_frame(batch: Batch) -> Int[Array, "b g"]:
    """Each example's first frame that is not given."""
    segments = jnp.arange(batch.task.shape[1])[:, None]
    made = (batch.segment[:, None, :] == segments) & (batch.given == 0)[:, None, :]
    return jnp.argmax(made, axis=-1).astype(jnp.int32)


def pool_text(
    text: Float[Array, "b s e"], segment: Int[Array, "b s"], *, num_segments: int
) -> Float[Array, "b g e"]:
    """Mean of each example's text states, in float32."""
    one_hot = jax.nn.one_hot(segment, num_segments, dtype=jnp.float32)
    total = jnp.einsum("bsg,bse->bge", one_hot, text.astype(jnp.float32))
    return (total / (one_hot.sum(1)[..., None] + 1e-8)).astype(text.dtype)
