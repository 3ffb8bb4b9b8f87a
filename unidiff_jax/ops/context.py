"""Attention on a mesh: rows over `data` and `fsdp`, heads over `tensor`, tokens over `seq`.

A long sequence (16 views at 1024 pixels are 65,536 tokens) lies over the `seq` axis in all of the
network but attention, where every query needs every key of its example. Two ways:

- `gather`: a device keeps its own queries and gathers the keys and values of all. With grouped
  heads these are small. It works with any number of heads.
- `ulysses` (DeepSpeed-Ulysses, arXiv:2309.14509): an all-to-all turns a share of the tokens into a
  share of the heads, and back. It moves less with many devices, and needs as many key heads as
  devices along `seq` and `tensor`.

Both only say where arrays lie (`jax.lax.with_sharding_constraint`); the compiler puts in the
collectives. Text is short and lies whole on every device of the axis.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import Array, Float, Int

from unidiff_jax.config import ConfigError

METHODS = ("gather", "ulysses")
ROWS, SEQ, HEADS = ("data", "fsdp"), "seq", "tensor"


def on_shards(
    attend: Callable[..., Array],
    q: Float[Array, "b t h k"],
    k: Float[Array, "b s n k"],
    v: Float[Array, "b s n k"],
    q_segment: Int[Array, "b t"] | None,
    kv_segment: Int[Array, "b s"] | None,
    *,
    method: str,
) -> Float[Array, "b t h k"]:
    """Runs `attend` on each device's queries and heads; on one device it is just called.

    Args:
      attend: attention of local arrays, called with the five operands.
      q, k, v, q_segment, kv_segment: as of `ops.attention.attention`, whole arrays.
      method: one of `METHODS`.

    Raises:
      ConfigError: `ulysses` with too few heads.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return attend(q, k, v, q_segment, kv_segment)
    heads, kv_heads = q.shape[2], k.shape[2]
    rows = axes_that_divide(mesh, ROWS, q.shape[0])
    tokens = axes_that_divide(mesh, (SEQ,), q.shape[1]) if method == "gather" else None
    spread = axes_that_divide(mesh, _head_axes(method), heads)
    if method == "ulysses" and mesh.shape[SEQ] > 1 and SEQ not in (spread or ()):
        raise ConfigError(
            f"model.context=ulysses cannot cut {heads} heads over mesh.axes.tensor="
            f"{mesh.shape[HEADS]} times mesh.axes.seq={mesh.shape[SEQ]} devices; for example "
            "--set model.context=gather"
        )
    if kv_heads % _size(mesh, spread):  # groups that a cut would part: every head its own keys
        k, v = (jnp.repeat(x, heads // kv_heads, axis=2) for x in (k, v))
    q_spec = PartitionSpec(rows, tokens, spread, None)
    kv_spec = PartitionSpec(rows, None, spread, None)
    operands = {"q": q, "k": k, "v": v}
    specs: dict[str, Any] = {"q": q_spec, "k": kv_spec, "v": kv_spec}
    if q_segment is not None:
        operands |= {"q_segment": q_segment, "kv_segment": kv_segment}
        specs |= {"q_segment": PartitionSpec(rows, tokens), "kv_segment": PartitionSpec(rows)}

    def local(operands):
        x = {"q_segment": None, "kv_segment": None} | operands
        return attend(x["q"], x["k"], x["v"], x["q_segment"], x["kv_segment"])

    # the kernels' outputs do not say over which axes they vary
    mapped = jax.shard_map(local, in_specs=(specs,), out_specs=q_spec, check_vma=False)
    return mapped(operands)


def on_token_shards(
    function: Callable[..., Any],
    tokens: tuple[Array, ...],
    tables: tuple[Array, ...],
    weights: tuple[Array, ...],
    *,
    cut: bool,
) -> Any:
    """Runs a kernel on each device's tokens; on one device it is just called.

    Args:
      function: of the tokens', tables' and weights' local arrays; returns arrays like the first of
        the tokens.
      tokens: (b, t, ...) arrays.
      tables: (b, ...) arrays of the rows.
      weights: the same for all.
      cut: whether tokens lie over `seq`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return function(*tokens, *tables, *weights)
    rows = axes_that_divide(mesh, ROWS, tokens[0].shape[0])
    places = axes_that_divide(mesh, (SEQ,), tokens[0].shape[1]) if cut else None
    spec = PartitionSpec(rows, places)
    in_specs = (spec,) * len(tokens) + (PartitionSpec(rows),) * len(tables)
    in_specs += (PartitionSpec(),) * len(weights)
    mapped = jax.shard_map(function, in_specs=in_specs, out_specs=spec, check_vma=False)
    return mapped(*tokens, *tables, *weights)


def keys_of_all(x: Float[Array, "b s n k"], *, method: str) -> Float[Array, "b s n k"]:
    """Pins keys or values to where attention reads them: all tokens, and a share of the heads."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    rows = axes_that_divide(mesh, ROWS, x.shape[0])
    heads = axes_that_divide(mesh, _head_axes(method), x.shape[2])
    return jax.lax.with_sharding_constraint(x, PartitionSpec(rows, None, heads, None))


def spread_tokens(x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
    """Pins image tokens to their rows and, where it divides, to the `seq` axis."""
    return _pin(x, (SEQ,))


def whole_tokens(x: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
    """Pins text tokens to their rows: every device of `seq` has them all."""
    return _pin(x, ())


def _pin(x: Float[Array, "b t d"], axes: tuple[str, ...]) -> Float[Array, "b t d"]:
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    rows = axes_that_divide(mesh, ROWS, x.shape[0])
    tokens = axes_that_divide(mesh, axes, x.shape[1])
    return jax.lax.with_sharding_constraint(x, PartitionSpec(rows, tokens, None))


def _head_axes(method: str) -> tuple[str, ...]:
    return (HEADS, SEQ) if method == "ulysses" else (HEADS,)


def axes_that_divide(
    mesh: AbstractMesh, axes: tuple[str, ...], size: int
) -> tuple[str, ...] | None:
    """The axes, outermost first, whose devices divide a size together; None for none."""
    chosen: tuple[str, ...] = ()
    for axis in axes:
        if mesh.shape[axis] > 1 and size % _size(mesh, (*chosen, axis)) == 0:
            chosen = (*chosen, axis)
    return chosen or None


def _size(mesh: AbstractMesh, axes: tuple[str, ...] | None) -> int:
    size = 1
    for axis in axes or ():
        size *= mesh.shape[axis]
    return size
