"""Between the matrix products of a block: gate, residual, RMS norm and modulation in one pass.

    x' = x + tanh(gate[index]) * RMS(y) * w_out
    h  = RMS(x') * w_in * (1 + scale[index])

gate and scale are rows of the noise table, one a frame, and index says whose row a token takes. As
separate operations these read and write the tokens' array many times, and spread the tables to two
further arrays of its size. As one kernel (Pallas, for TPUs) they read x and y and write x' and h,
and the tables stay in the chip's memory. The backward pass is a kernel too, and makes the norms
again from x' and y. Everything inside is float32.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from unidiff_jax.mesh import platform

BLOCK = 128
"""Tokens of a step of the kernel."""

VMEM_BYTES = 64 * 2**20
"""What a step may use of the chip's 128 MiB of near memory."""

INPUTS = ("tokens", "tokens", "index", "table", "table", "weight", "weight")
"""Of both kernels, in order: x (or x') and y, index, gate and scale, and the norms' weights."""

MODULATIONS = ("auto", "xla", "fused")


def fuses(modulation: str) -> bool:
    """Whether to run the kernel: by name, or on TPUs where it is left open."""
    return modulation == "fused" or (modulation == "auto" and platform() == "tpu")


def modulate_reference(
    x: Float[Array, "b t d"],
    y: Float[Array, "b t d"],
    index: Int[Array, "b t"],
    gate: Float[Array, "b u d"],
    scale: Float[Array, "b u d"],
    w_out: Float[Array, " d"],
    w_in: Float[Array, " d"],
    *,
    eps: float,
) -> tuple[Float[Array, "b t d"], Float[Array, "b t d"]]:
    """x' and h by the definition, in float32, cast to the type of x."""
    one_hot = jax.nn.one_hot(index, gate.shape[1], dtype=jnp.float32)

    def spread(table):
        return jnp.einsum("btu,bud->btd", one_hot, table.astype(jnp.float32))

    wide = x.astype(jnp.float32) + jnp.tanh(spread(gate)) * _rms(y, eps) * w_out
    h = _rms(wide, eps) * w_in * (1 + spread(scale))
    return wide.astype(x.dtype), h.astype(x.dtype)


def _rms(x, eps):
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + eps)


@functools.partial(jax.custom_vjp, nondiff_argnums=(7, 8))
def _modulate(x, y, index, gate, scale, w_out, w_in, eps, interpret):
    return _forward(x, y, index, gate, scale, w_out, w_in, eps, interpret)[0]


def modulate(
    x: Float[Array, "b t d"],
    y: Float[Array, "b t d"],
    index: Int[Array, "b t"],
    gate: Float[Array, "b u d"],
    scale: Float[Array, "b u d"],
    w_out: Float[Array, " d"],
    w_in: Float[Array, " d"],
    *,
    eps: float,
) -> tuple[Float[Array, "b t d"], Float[Array, "b t d"]]:
    """`modulate_reference` as a kernel; away from TPUs it is interpreted, which is slow.

    An index outside of the table takes a row of zeros.
    """
    return _modulate(x, y, index, gate, scale, w_out, w_in, eps, platform() != "tpu")


def _specs(t: int, u: int, d: int) -> dict[str, pl.BlockSpec]:
    block = min(BLOCK, t)
    return {
        "tokens": pl.BlockSpec((None, block, d), lambda b, i: (b, i, 0)),
        "index": pl.BlockSpec((None, block, 1), lambda b, i: (b, i, 0)),
        "table": pl.BlockSpec((None, u, d), lambda b, i: (b, 0, 0)),
        "weight": pl.BlockSpec((1, d), lambda b, i: (0, 0)),
    }


def _padded(x: Array) -> Array:
    """Zeros behind axis 1, up to a multiple of a block."""
    missing = -x.shape[1] % min(BLOCK, x.shape[1])
    return jnp.pad(x, ((0, 0), (0, missing), (0, 0)))


def _places(index: Int[Array, "b t"]) -> Int[Array, "b padded 1"]:
    """The index, with -1 for padding."""
    return _padded(index[..., None] + 1) - 1


def _rows(index_ref, u: int) -> Float[Array, "t u"]:
    """One-hot rows of the block's tokens; a padding token has -1 and takes none."""
    columns = jax.lax.broadcasted_iota(jnp.int32, (index_ref.shape[0], u), 1)
    return (index_ref[...] == columns).astype(jnp.float32)


def _dot(a, b, contract):
    return jax.lax.dot_general(
        a, b, (contract, ((), ())), preferred_element_type=jnp.float32, precision="highest"
    )


def _spread(one_hot, table_ref):
    return _dot(one_hot, table_ref[...].astype(jnp.float32), ((1,), (0,)))


def _forward_kernel(
    x_ref, y_ref, index_ref, gate_ref, scale_ref, w_out_ref, w_in_ref, wide_ref, h_ref, *, eps
):
    one_hot = _rows(index_ref, gate_ref.shape[0])
    gate = jnp.tanh(_spread(one_hot, gate_ref))
    wide = x_ref[...].astype(jnp.float32) + gate * _rms(y_ref[...], eps) * w_out_ref[...]
    h = _rms(wide, eps) * w_in_ref[...] * (1 + _spread(one_hot, scale_ref))
    wide_ref[...] = wide.astype(wide_ref.dtype)
    h_ref[...] = h.astype(h_ref.dtype)


def _forward(x, y, index, gate, scale, w_out, w_in, eps, interpret):
    (b, t, d), u = x.shape, gate.shape[1]
    specs = _specs(t, u, d)
    padded = _padded(x)
    tokens = jax.ShapeDtypeStruct(padded.shape, x.dtype)
    wide, h = pl.pallas_call(
        functools.partial(_forward_kernel, eps=eps),
        grid=(b, padded.shape[1] // min(BLOCK, t)),
        in_specs=[specs[name] for name in INPUTS],
        out_specs=[specs["tokens"], specs["tokens"]],
        out_shape=[tokens, tokens],
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=VMEM_BYTES),
        interpret=interpret,
        name="modulate_forward",
    )(padded, _padded(y), _places(index), gate, scale, w_out[None], w_in[None])
    wide, h = wide[:, :t], h[:, :t]
    return (wide, h), (wide, y, index, gate, scale, w_out, w_in)


def _backward_kernel(
    wide_ref,
    y_ref,
    index_ref,
    gate_ref,
    scale_ref,
    w_out_ref,
    w_in_ref,
    d_wide_ref,
    d_h_ref,
    dx_ref,
    dy_ref,
    d_gate_ref,
    d_scale_ref,
    d_w_out_ref,
    d_w_in_ref,
    *,
    eps,
):
    row, block = pl.program_id(0), pl.program_id(1)

    @pl.when(block == 0)
    def _():
        d_gate_ref[...] = jnp.zeros_like(d_gate_ref)
        d_scale_ref[...] = jnp.zeros_like(d_scale_ref)

    @pl.when((row == 0) & (block == 0))
    def _():
        d_w_out_ref[...] = jnp.zeros_like(d_w_out_ref)
        d_w_in_ref[...] = jnp.zeros_like(d_w_in_ref)

    one_hot = _rows(index_ref, gate_ref.shape[0])
    gate = jnp.tanh(_spread(one_hot, gate_ref))
    factor = 1 + _spread(one_hot, scale_ref)
    wide, y = wide_ref[...].astype(jnp.float32), y_ref[...].astype(jnp.float32)
    d_h = d_h_ref[...].astype(jnp.float32)

    def slope(x, d_norm):
        """Gradient of x from that of its norm, and the norm."""
        inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + eps)
        norm = x * inverse
        return inverse * (d_norm - norm * jnp.mean(d_norm * norm, -1, keepdims=True)), norm

    d_wide, norm = slope(wide, d_h * w_in_ref[...] * factor)
    d_wide = d_wide + d_wide_ref[...].astype(jnp.float32)
    dy, norm_y = slope(y, d_wide * gate * w_out_ref[...])
    dx_ref[...] = d_wide.astype(dx_ref.dtype)
    dy_ref[...] = dy.astype(dy_ref.dtype)
    d_w_in_ref[...] += jnp.sum(d_h * factor * norm, 0, keepdims=True)
    d_w_out_ref[...] += jnp.sum(d_wide * gate * norm_y, 0, keepdims=True)
    d_scale_ref[...] += _dot(one_hot, d_h * norm * w_in_ref[...], ((0,), (0,)))
    d_gate = d_wide * norm_y * w_out_ref[...] * (1 - jnp.square(gate))
    d_gate_ref[...] += _dot(one_hot, d_gate, ((0,), (0,)))


def _backward(eps, interpret, saved, slopes):
    wide, y, index, gate, scale, w_out, w_in = saved
    (b, t, d), u = wide.shape, gate.shape[1]
    specs = _specs(t, u, d)
    padded = [_padded(x) for x in (wide, y, *slopes)]
    tokens = jax.ShapeDtypeStruct(padded[0].shape, wide.dtype)
    table = jax.ShapeDtypeStruct(gate.shape, jnp.float32)
    weight = jax.ShapeDtypeStruct((1, d), jnp.float32)
    dx, dy, d_gate, d_scale, d_w_out, d_w_in = pl.pallas_call(
        functools.partial(_backward_kernel, eps=eps),
        grid=(b, padded[0].shape[1] // min(BLOCK, t)),
        in_specs=[specs[name] for name in (*INPUTS, "tokens", "tokens")],
        out_specs=[
            specs["tokens"],
            specs["tokens"],
            specs["table"],
            specs["table"],
            specs["weight"],
            specs["weight"],
        ],
        out_shape=[tokens, tokens, table, table, weight, weight],
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=VMEM_BYTES),
        interpret=interpret,
        name="modulate_backward",
    )(padded[0], padded[1], _places(index), gate, scale, w_out[None], w_in[None], *padded[2:])
    return (
        dx[:, :t],
        dy[:, :t],
        None,
        d_gate.astype(gate.dtype),
        d_scale.astype(scale.dtype),
        d_w_out[0].astype(w_out.dtype),
        d_w_in[0].astype(w_in.dtype),
    )


_modulate.defvjp(_forward, _backward)
