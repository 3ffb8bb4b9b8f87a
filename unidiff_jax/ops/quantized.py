"""Matrix products in 8 bits, forward and backward, by qwix.

| kind | activations and weights | incoming gradients |
|---|---|---|
| `int8` | int8 | int8 |
| `fp8` | float8_e4m3fn | float8_e5m2 |

Each of the three products of a layer (y = x W, dx = dy W^T, dW = x^T dy) is scaled by the largest
absolute value of each row and column that it does not sum over, at the time of the product, so that
no statistics are kept. Master weights stay float32.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

KINDS = ("none", "int8", "fp8")

_TYPES = {
    "int8": (jnp.int8, jnp.int8),
    "fp8": (jnp.float8_e4m3fn, jnp.float8_e5m2),
}


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def quantized_matmul(
    x: Float[Array, "... i"], weight: Float[Array, "i o"], kind: str
) -> Float[Array, "... o"]:
    """x W with 8-bit operands; `kind` is `int8` or `fp8`."""
    rows = x.reshape(-1, x.shape[-1])
    value, _ = _TYPES[kind]
    return _product(rows, weight, (1, 0), (value, value)).reshape(*x.shape[:-1], -1)


def _forward(x, weight, kind):
    return quantized_matmul(x, weight, kind), (x, weight)


def _backward(kind, saved, dy):
    x, weight = saved
    value, slope = _TYPES[kind]
    rows, slopes = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    dx = _product(slopes, weight, (1, 1), (slope, value)).reshape(x.shape)
    return dx, _product(rows, slopes, (0, 0), (value, slope))


quantized_matmul.defvjp(_forward, _backward)


def _product(
    a: Float[Array, "m n"],
    b: Float[Array, "o p"],
    summed: tuple[int, int],
    types: tuple[jax.typing.DTypeLike, jax.typing.DTypeLike],
) -> Float[Array, "q r"]:
    """Sums over one axis of each matrix."""
    import qwix  # a second of import time, for those who ask for it

    operands = (
        qwix.quantize(x, dtype, channelwise_axes=(1 - axis,), scale_dtype=jnp.float32)
        for x, dtype, axis in zip((a, b), types, summed, strict=True)
    )
    first, second = summed
    out = qwix.dot_general(*operands, (((first,), (second,)), ((), ())))
    return out.astype(a.dtype)
