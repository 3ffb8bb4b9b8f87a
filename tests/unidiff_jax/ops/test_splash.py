"""Splash attention, interpreted, against the reference: values, gradients, and what is skipped."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unidiff_jax.config import ConfigError
from unidiff_jax.ops import splash
from unidiff_jax.ops.attention import attention

# two rows of 300 queries and 200 keys: padding, examples that end inside blocks, and in the second
# row an example without keys
B, T, S = 2, 300, 200
Q_SEGMENT = np.zeros((B, T), np.int32)
Q_SEGMENT[0, :100], Q_SEGMENT[0, 100:290] = 1, 2
Q_SEGMENT[1, :128], Q_SEGMENT[1, 128:256], Q_SEGMENT[1, 256:] = 1, 2, 3
KV_SEGMENT = np.zeros((B, S), np.int32)
KV_SEGMENT[0, :90], KV_SEGMENT[0, 90:195] = 1, 2
KV_SEGMENT[1, :128], KV_SEGMENT[1, 128:] = 1, 3


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(splash, "BLOCK", 128)


def operands(*, head_dim, heads=4, kv_heads=2, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [(B, T, heads, head_dim), (B, S, kv_heads, head_dim), (B, S, kv_heads, head_dim)]
    q, k, v = (
        2 * jax.random.normal(key, shape, dtype)
        for key, shape in zip(keys[:3], shapes, strict=True)
    )
    return (q, k, v), jax.random.normal(keys[3], q.shape, jnp.float32)


def value_and_slopes(kernel, arrays, cotangent, **settings):
    def loss(*arrays):
        out = attention(
            *arrays,
            q_segment=jnp.asarray(Q_SEGMENT),
            kv_segment=jnp.asarray(KV_SEGMENT),
            kernel=kernel,
            **settings,
        )
        return jnp.sum(out.astype(jnp.float32) * cotangent), out

    (_, out), slopes = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(*arrays)
    return out, slopes


@pytest.mark.parametrize(("head_dim", "softcap"), [(120, 30.0), (96, None), (128, None), (24, 0.7)])
def test_equals_the_reference(parity, head_dim, softcap):
    arrays, cotangent = operands(head_dim=head_dim)
    expected, slopes = value_and_slopes("xla", arrays, cotangent, softcap=softcap)
    found, found_slopes = value_and_slopes("splash", arrays, cotangent, softcap=softcap)
    error = np.abs(found - expected).max() / np.abs(expected).max()
    parity("splash attention, values", error, bound=1e-5)
    for one, other in zip(found_slopes, slopes, strict=True):
        error = np.abs(one - other).max() / np.abs(other).max()
        parity("splash attention, gradients", error, bound=1e-5)


def test_queries_that_nobody_answers():
    arrays, cotangent = operands(head_dim=24)
    out, slopes = value_and_slopes("splash", arrays, cotangent)
    silent = (Q_SEGMENT == 0) | ((Q_SEGMENT == 2) & (np.arange(B) == 1)[:, None])
    assert not np.asarray(out)[silent].any() and np.asarray(out)[~silent].any()
    assert not np.asarray(slopes[0])[silent].any()
    assert all(np.isfinite(slope).all() for slope in slopes)
    assert not np.asarray(slopes[1])[KV_SEGMENT == 0].any()


def test_half_precision():
    arrays, cotangent = operands(head_dim=120, dtype=jnp.bfloat16)
    exact, _ = value_and_slopes("xla", [a.astype(jnp.float32) for a in arrays], cotangent)
    found, _ = value_and_slopes("splash", arrays, cotangent)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(found, np.float32), exact, atol=0.06)


def test_blocks_of_other_examples_are_skipped():
    row = jnp.asarray(np.repeat([1, 2, 3, 4], 256))[None]
    meet = splash.blocks_that_meet(row, row, q_block=128, kv_block=128)
    np.testing.assert_array_equal(meet[0], np.kron(np.eye(4), np.ones((2, 2))))
    shifted = jnp.asarray(np.repeat([1, 2, 0], [200, 200, 112]))[None]
    meet = splash.blocks_that_meet(shifted, shifted, q_block=128, kv_block=128)
    expected = [[1, 1, 0, 0], [1, 1, 1, 1], [0, 1, 1, 1], [0, 1, 1, 1]]
    np.testing.assert_array_equal(meet[0], expected)


def test_the_table_fetches_the_next_block_that_runs():
    meet = jnp.asarray([[0, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]], bool)
    table = splash._table(meet, axis=1)
    np.testing.assert_array_equal(table.data_next[0], [[1, 1, 3, 3], [0, 0, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(table.block_mask[0], meet)
    table = splash._table(meet, axis=0)
    np.testing.assert_array_equal(table.data_next[0], [[1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]])


def test_what_a_kernel_cannot_honour():
    (q, k, v), _ = operands(head_dim=24, heads=2)
    with pytest.raises(ConfigError, match="splash cannot do causal order"):
        attention(q, k, v, causal=True, kernel="splash")
    with pytest.raises(ConfigError, match="cudnn cannot do softcap and float32"):
        attention(q, k, v, softcap=2.0, kernel="cudnn")
    np.testing.assert_array_equal(  # auto takes another
        attention(q, k, v, causal=True, kernel="auto"), attention(q, k, v, causal=True)
    )
