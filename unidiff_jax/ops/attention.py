"""Attention with one signature for every model of the project, and several kernels behind it.

| kernel | where | what it cannot do |
|---|---|---|
| `xla` | anywhere | nothing; scores of a block of queries lie in memory |
| `splash` | TPU, see `ops.splash` | bias, causal order |
| `cudnn` | NVIDIA GPU, 16 bit | softcap, bias, causal order; packed rows cost a mask in memory |

`auto` takes the fastest that can honour the call. A kernel that is asked for by name and cannot
honour a part of the call raises; none drops segments, softcap or bias.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from unidiff_jax.config import ConfigError
from unidiff_jax.mesh import platform
from unidiff_jax.ops.context import on_shards
from unidiff_jax.ops.splash import splash_attention

KERNELS = ("auto", "xla", "splash", "cudnn")

QUERY_BLOCK = 1024
"""More than twice as many queries are worked through in blocks of at most this many, so that the
scores of a large picture never lie in memory as a whole, in the backward pass neither."""


def attention(
    q: Float[Array, "b t h k"],
    k: Float[Array, "b s n k"],
    v: Float[Array, "b s n k"],
    *,
    q_segment: Int[Array, "b t"] | None = None,
    kv_segment: Int[Array, "b s"] | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    bias: Float[Array, "#b h t s"] | None = None,
    causal: bool = False,
    dense: bool = False,
    kernel: str = "xla",
    context: str | None = None,
) -> Float[Array, "b t h k"]:
    """Scaled dot-product attention inside segments.

    Query head j uses key and value head `j // (h / n)` (grouped-query attention with consecutive
    groups). Scores and softmax are float32. A query with no key, such as a padding token, gets 0.

    Args:
      q: queries.
      k: keys.
      v: values.
      q_segment: segment of each query; 0 is padding.
      kv_segment: segment of each key; a query sees the keys of its own segment.
      softcap: scores become softcap * tanh(scores / softcap) before masking.
      scale: factor on q k^T; None is 1 / sqrt(head dimension).
      bias: added to the scores after scale and softcap.
      causal: a query sees keys at or before its own index.
      dense: the caller knows that a row has one example and padding only behind it.
      kernel: one of `KERNELS`.
      context: how tokens of a mesh's `seq` axis meet, one of `context.METHODS`; None leaves the
        operands where they are.

    Raises:
      ConfigError: the kernel cannot honour the call.
      ValueError: heads that do not divide, or segments of one side only.
    """
    heads, kv_heads = q.shape[2], k.shape[2]
    if heads % kv_heads:
        raise ValueError(f"{heads} query heads do not divide into {kv_heads} key heads")
    if (q_segment is None) != (kv_segment is None):
        raise ValueError("give both q_segment and kv_segment, or neither")
    faults = _faults(
        softcap=softcap is not None,
        bias=bias is not None,
        causal=causal,
        float32=q.dtype == jnp.float32,
    )
    if kernel == "auto":
        fast = {"tpu": "splash", "cuda": "cudnn", "gpu": "cudnn"}.get(platform(), "xla")
        kernel = "xla" if faults[fast] else fast
    if faults[kernel]:
        raise ConfigError(
            f"model.attention={kernel} cannot do {' and '.join(faults[kernel])}; for example "
            "--set model.attention=auto"
        )
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if kernel == "xla":
        attend = functools.partial(
            xla_attention, softcap=softcap, scale=scale, bias=bias, causal=causal
        )
    else:
        if q_segment is None or kv_segment is None:
            q_segment, kv_segment = (jnp.ones(x.shape[:2], jnp.int32) for x in (q, k))
        attend = {
            "splash": functools.partial(
                splash_attention, softcap=softcap, scale=scale, interpret=platform() != "tpu"
            ),
            "cudnn": functools.partial(cudnn_attention, scale=scale, dense=dense),
        }[kernel]
    if context is None:
        return attend(q, k, v, q_segment, kv_segment)
    return on_shards(attend, q, k, v, q_segment, kv_segment, method=context)


def _faults(*, softcap: bool, bias: bool, causal: bool, float32: bool) -> dict[str, list[str]]:
    """By kernel, what it cannot honour of a call."""
    calls = {"softcap": softcap, "bias": bias, "causal order": causal, "float32": float32}
    cannot = {"xla": (), "splash": ("bias", "causal order"), "cudnn": tuple(calls)}
    return {kernel: [name for name in names if calls[name]] for kernel, names in cannot.items()}


def cudnn_attention(
    q: Float[Array, "b t h k"],
    k: Float[Array, "b s n k"],
    v: Float[Array, "b s n k"],
    q_segment: Int[Array, "b t"],
    kv_segment: Int[Array, "b s"],
    *,
    scale: float,
    dense: bool,
) -> Float[Array, "b t h k"]:
    """Flash attention of cuDNN: by the lengths of dense rows, or by a mask of (t, s) a row."""
    if dense:
        q_lengths, kv_lengths = (
            jnp.sum(segment > 0, axis=1, dtype=jnp.int32) for segment in (q_segment, kv_segment)
        )
        settings = {"query_seq_lengths": q_lengths, "key_value_seq_lengths": kv_lengths}
        answered = (q_segment > 0) & (kv_lengths > 0)[:, None]
    else:
        mask = segment_mask(q_segment, kv_segment)
        settings = {"mask": mask[:, None]}
        answered = mask.any(-1)
    out = jax.nn.dot_product_attention(q, k, v, scale=scale, implementation="cudnn", **settings)
    return jnp.where(answered[:, :, None, None], out, 0)


def segment_mask(
    q_segment: Int[Array, "b t"], kv_segment: Int[Array, "b s"]
) -> Bool[Array, "b t s"]:
    """Whether a query sees a key: both of the same example, and no padding."""
    return (q_segment[:, :, None] == kv_segment[:, None, :]) & (q_segment[:, :, None] > 0)


def xla_attention(
    q: Float[Array, "b t h k"],
    k: Float[Array, "b s n k"],
    v: Float[Array, "b s n k"],
    q_segment: Int[Array, "b t"] | None,
    kv_segment: Int[Array, "b s"] | None,
    *,
    scale: float,
    softcap: float | None,
    bias: Float[Array, "#b h t s"] | None = None,
    causal: bool = False,
) -> Float[Array, "b t h k"]:
    """Matrix products and a softmax, in blocks of queries where there are many."""
    heads, kv_heads = q.shape[2], k.shape[2]
    if kv_heads != heads:
        k = jnp.repeat(k, heads // kv_heads, axis=2)
        v = jnp.repeat(v, heads // kv_heads, axis=2)
    attend = functools.partial(_attend, scale=scale, softcap=softcap)
    blocks = 1 if bias is not None or causal else _num_blocks(q.shape[1])
    if blocks == 1:
        return attend(q, k, v, q_segment, kv_segment, bias=bias, causal=causal)

    def cut(x):  # (b, t, ...) to (blocks, b, t / blocks, ...)
        return jnp.moveaxis(x.reshape(x.shape[0], blocks, -1, *x.shape[2:]), 1, 0)

    pieces = cut(q) if q_segment is None else (cut(q), cut(q_segment))

    @jax.checkpoint
    def block(piece):
        part, segment = (piece, None) if q_segment is None else piece
        return attend(part, k, v, segment, kv_segment)

    return jnp.moveaxis(jax.lax.map(block, pieces), 0, 1).reshape(q.shape)


def _num_blocks(num_queries: int) -> int:
    """Fewest equal blocks of at most `QUERY_BLOCK` queries; 1 where only tiny ones would divide."""
    if num_queries <= 2 * QUERY_BLOCK:
        return 1
    first = -(-num_queries // QUERY_BLOCK)
    return next((n for n in range(first, 4 * first) if num_queries % n == 0), 1)


def _attend(
    q: Float[Array, "b t h k"],
    k: Float[Array, "b s h k"],
    v: Float[Array, "b s h k"],
    q_segment: Int[Array, "b t"] | None,
    kv_segment: Int[Array, "b s"] | None,
    *,
    scale: float,
    softcap: float | None,
    bias: Float[Array, "#b h t s"] | None = None,
    causal: bool = False,
) -> Float[Array, "b t h k"]:
    """`xla_attention` with as many key heads as query heads, all queries at once."""
    scores = jnp.einsum("bthk,bshk->bhts", q, k, preferred_element_type=jnp.float32) * scale
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias
    mask = None
    if q_segment is not None and kv_segment is not None:
        mask = segment_mask(q_segment, kv_segment)[:, None]
    if causal:
        order = jnp.arange(k.shape[1])[None, :] <= jnp.arange(q.shape[1])[:, None]
        mask = order if mask is None else mask & order
    if mask is None:
        weights = jax.nn.softmax(scores, axis=-1)
    else:  # a finite fill keeps the gradient of a row without keys free of NaN
        weights = jax.nn.softmax(jnp.where(mask, scores, -1e30), axis=-1)
        weights = jnp.where(mask, weights, 0.0)
    return jnp.einsum("bhts,bshk->bthk", weights.astype(v.dtype), v)
