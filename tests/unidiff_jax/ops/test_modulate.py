"""The fused kernel between matrix products, interpreted, against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unidiff_jax.ops import modulate as fused

EPS = 1e-5


def operands(*, rows=2, tokens=300, table=5, dim=24, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 9)
    shapes = {"x": (rows, tokens, dim), "y": (rows, tokens, dim)}
    x, y = (2 * jax.random.normal(k, s, dtype) for k, s in zip(keys, shapes.values(), strict=False))
    index = jax.random.randint(keys[2], (rows, tokens), 0, table)
    gate, scale = (jax.random.normal(k, (rows, table, dim), dtype) for k in keys[3:5])
    w_out, w_in = (1 + 0.3 * jax.random.normal(k, (dim,)) for k in keys[5:7])
    slopes = tuple(jax.random.normal(k, (rows, tokens, dim)) for k in keys[7:9])
    return (x, y, index, gate, scale, w_out, w_in), slopes


def by_kernel(x, y, index, gate, scale, w_out, w_in):
    return fused.modulate(x, y, index, gate, scale, w_out, w_in, eps=EPS)


def by_definition(x, y, index, gate, scale, w_out, w_in):
    return fused.modulate_reference(x, y, index, gate, scale, w_out, w_in, eps=EPS)


def values_and_slopes(function, arrays, cotangents):
    def loss(x, y, gate, scale, w_out, w_in):
        found = function(x, y, arrays[2], gate, scale, w_out, w_in)
        total = sum(
            jnp.sum(a.astype(jnp.float32) * c) for a, c in zip(found, cotangents, strict=True)
        )
        return total, found

    trained = (*arrays[:2], *arrays[3:])
    (_, found), slopes = jax.jit(
        jax.value_and_grad(loss, tuple(range(len(trained))), has_aux=True)
    )(*trained)
    return found, slopes


@pytest.mark.parametrize("tokens", [300, 256, 40])  # with a part of a block, whole, less than one
def test_equals_the_definition(parity, tokens):
    arrays, cotangents = operands(tokens=tokens)
    expected, slopes = values_and_slopes(by_definition, arrays, cotangents)
    found, found_slopes = values_and_slopes(by_kernel, arrays, cotangents)
    for one, other in zip(found, expected, strict=True):
        parity("fused modulation, values", np.abs(one - other).max(), bound=2e-5)
    for one, other in zip(found_slopes, slopes, strict=True):
        error = np.abs(one - other).max() / np.abs(other).max()
        parity("fused modulation, gradients", error, bound=2e-5)


def test_half_precision():
    arrays, cotangents = operands(dtype=jnp.bfloat16)
    wide = [a.astype(jnp.float32) if a.dtype == jnp.bfloat16 else a for a in arrays]
    expected, slopes = values_and_slopes(by_definition, wide, cotangents)
    found, found_slopes = values_and_slopes(by_kernel, arrays, cotangents)
    for one, other in zip((*found, *found_slopes), (*expected, *slopes), strict=True):
        error = np.abs(np.asarray(one, np.float32) - other).max() / np.abs(other).max()
        assert error < 0.02
