"""Attention with one signature for every model of the project.

An implementation that cannot honour a part of the call raises; none drops segments, softcap or
bias.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


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
    """
    heads, kv_heads = q.shape[2], k.shape[2]
    if heads % kv_heads:
        raise ValueError(f"{heads} query heads do not divide into {kv_heads} key heads")
    if (q_segment is None) != (kv_segment is None):
        raise ValueError("give both q_segment and kv_segment, or neither")
    if kv_heads != heads:
        k = jnp.repeat(k, heads // kv_heads, axis=2)
        v = jnp.repeat(v, heads // kv_heads, axis=2)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = jnp.einsum("bthk,bshk->bhts", q, k, preferred_element_type=jnp.float32) * scale
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias
    mask = None
    if q_segment is not None and kv_segment is not None:
        mask = (q_segment[:, :, None] == kv_segment[:, None, :]) & (q_segment[:, :, None] > 0)
        mask = mask[:, None]
    if causal:
        order = jnp.arange(k.shape[1])[None, :] <= jnp.arange(q.shape[1])[:, None]
        mask = order if mask is None else mask & order
    if mask is None:
        weights = jax.nn.softmax(scores, axis=-1)
    else:  # a finite fill keeps the gradient of a row without keys free of NaN
        weights = jax.nn.softmax(jnp.where(mask, scores, -1e30), axis=-1)
        weights = jnp.where(mask, weights, 0.0)
    return jnp.einsum("bhts,bshk->bthk", weights.astype(v.dtype), v)
