"""Splash attention (a Pallas kernel of JAX for TPUs) over packed rows.

The kernel works through blocks of queries and keys and never has all scores in memory. It skips
blocks by a table and not by segment ids, so the table is made here from the ids of the batch: a
block of queries and a block of keys meet only where they hold tokens of the same example. In a row
of n equal examples that leaves about one block in n.

Head dimensions that are not multiples of 128 go in as they are: the kernel's blocks span the whole
head, and the matrix unit pads it (to 128 columns: 120 of 128 work, 96 of 128).
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask_info as mask_info
from jaxtyping import Array, Bool, Float, Int

LANES = 128
BLOCK = 512
"""Queries and keys of a block, and less where a row is shorter."""

_NO_QUERY, _NO_KEY = -1, -2  # segment ids of padding: equal to none


def splash_attention(
    q: Float[Array, "b t h k"],
    k: Float[Array, "b s n k"],
    v: Float[Array, "b s n k"],
    q_segment: Int[Array, "b t"],
    kv_segment: Int[Array, "b s"],
    *,
    softcap: float | None,
    scale: float,
    interpret: bool = False,
) -> Float[Array, "b t h k"]:
    """`ops.attention.attention` inside segments, without bias or causal order.

    Args:
      q, k, v, q_segment, kv_segment, softcap, scale: see there.
      interpret: run the kernel as ordinary operations, on any device.
    """
    num_queries = q.shape[1]
    q_block, kv_block = block_size(q.shape[1]), block_size(k.shape[1])
    q = (q.astype(jnp.float32) * scale).astype(q.dtype)
    q, q_segment = _pad(q, q_block), _pad(q_segment, q_block)
    k, v, kv_segment = (_pad(x, kv_block) for x in (k, v, kv_segment))
    meet = blocks_that_meet(q_segment, kv_segment, q_block=q_block, kv_block=kv_block)
    answered = jax.vmap(_has_key)(q_segment, kv_segment)
    q_segment = jnp.where(q_segment > 0, q_segment, _NO_QUERY)
    kv_segment = jnp.where(kv_segment > 0, kv_segment, _NO_KEY)

    sizes = splash.BlockSizes(
        block_q=q_block,
        block_kv=kv_block,
        block_q_dkv=q_block,
        block_kv_dkv=kv_block,
        block_q_dq=q_block,
        block_kv_dq=kv_block,
    )

    def row(q, k, v, q_segment, kv_segment, meet):
        # a block of queries that meets nobody would divide by an empty sum: it reads one block
        by_query = _table(meet.at[:, 0].set(meet[:, 0] | ~meet.any(1)), axis=1)
        kernel = splash.SplashAttentionKernel(
            by_query,
            by_query,
            _table(meet, axis=0),
            block_sizes=sizes,
            is_mqa=False,
            save_residuals=False,
            mask_value=splash.DEFAULT_MASK_VALUE,
            attn_logits_soft_cap=softcap,
            residual_checkpoint_name=None,
            mask_function=None,
            interpret=interpret,
        )
        q, k, v = (jnp.swapaxes(x, 0, 1) for x in (q, k, v))
        out = kernel(q, k, v, splash.SegmentIds(q_segment, kv_segment))
        return jnp.swapaxes(out, 0, 1)

    out = jax.vmap(row)(q, k, v, q_segment, kv_segment, meet)
    return jnp.where(answered[:, :, None, None], out, 0)[:, :num_queries]


def blocks_that_meet(
    q_segment: Int[Array, "b t"],
    kv_segment: Int[Array, "b s"],
    *,
    q_block: int,
    kv_block: int,
) -> Bool[Array, "b i j"]:
    """Whether query block i and key block j lie in the ranges of segments of each other.

    Packed rows hold their examples in order, so the range of a block's ids is the set of them.
    Other orders only skip less.
    """

    def ranges(segment, block):
        blocks = segment.reshape(segment.shape[0], -1, block)
        first = jnp.where(blocks > 0, blocks, jnp.iinfo(jnp.int32).max).min(-1)
        return first, blocks.max(-1)

    q_first, q_last = ranges(q_segment, q_block)
    kv_first, kv_last = ranges(kv_segment, kv_block)
    return (q_first[:, :, None] <= kv_last[:, None]) & (kv_first[:, None] <= q_last[:, :, None])


def _has_key(q_segment: Int[Array, " t"], kv_segment: Int[Array, " s"]) -> Bool[Array, " t"]:
    """Whether some key is of a query's segment; the kernel gives the others a mean of values."""
    ordered = jnp.sort(kv_segment)
    place = jnp.searchsorted(ordered, q_segment).clip(max=len(ordered) - 1)
    return (ordered[place] == q_segment) & (q_segment > 0)


def _table(meet: Bool[Array, "i j"], *, axis: int) -> mask_info.MaskInfo:
    """The kernel's table: which blocks run, and which block to fetch along `axis` meanwhile."""
    index = jax.lax.broadcasted_iota(jnp.int32, meet.shape, axis)
    ahead = jax.lax.cummin(jnp.where(meet, index, meet.shape[axis]), axis=axis, reverse=True)
    last = jnp.max(jnp.where(meet, index, 0), axis=axis, keepdims=True)
    fetch = jnp.minimum(ahead, last)  # behind the last one nothing new is fetched
    return mask_info.MaskInfo(
        data_next=fetch[None],
        mask_next=None,
        block_mask=meet.astype(jnp.int32)[None],
        partial_mask_blocks=None,
        q_sequence=None,
    )


def block_size(length: int) -> int:
    """Tokens of a block of a row; the row is padded to a multiple of it."""
    return min(BLOCK, -(-length // LANES) * LANES)


def _pad(x: Array, block: int) -> Array:
    """Zeros behind axis 1, up to a multiple of a block."""
    missing = -x.shape[1] % block
    return jnp.pad(x, [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2))
