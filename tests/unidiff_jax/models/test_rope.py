"""Rotary embedding: relative positions, norms, order of axes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unidiff_jax.models.rope import rotate, rotation_angles

HEAD_DIM = 24
places = st.tuples(*[st.integers(0, 40)] * 3)


def turned(vector, place):
    angles = rotation_angles(jnp.asarray([[place]]), head_dim=HEAD_DIM)
    return np.asarray(rotate(jnp.asarray(vector)[None, None, None], angles), np.float64)[0, 0, 0]


@given(places, places, places, st.integers(0, 9))
def test_scores_depend_on_the_difference_of_positions(query, key, move, seed):
    q, k = np.random.default_rng(seed).standard_normal((2, HEAD_DIM)).astype(np.float32)
    moved = [tuple(np.add(p, move).tolist()) for p in (query, key)]
    score = turned(q, query) @ turned(k, key)
    np.testing.assert_allclose(turned(q, moved[0]) @ turned(k, moved[1]), score, atol=2e-4)
    np.testing.assert_allclose(np.linalg.norm(turned(q, query)), np.linalg.norm(q), rtol=1e-5)


@pytest.mark.parametrize(("theta", "scale"), [(10000.0, 1.0), (20.0, 2.0)])
def test_against_complex_numbers_pair_by_pair(theta, scale):
    position = np.random.default_rng(0).integers(0, 9, (2, 5, 3)).astype(np.int32)
    x = np.random.default_rng(1).standard_normal((2, 5, 3, HEAD_DIM)).astype(np.float32)
    angles = rotation_angles(jnp.asarray(position), head_dim=HEAD_DIM, theta=theta, scale=scale)
    got = np.asarray(rotate(jnp.asarray(x), angles))
    count = HEAD_DIM // 6
    for b, t, h in np.ndindex(2, 5, 3):
        for i in range(HEAD_DIM // 2):
            axis, number = divmod(i, count)
            angle = scale * position[b, t, axis] * theta ** (-6 * number / HEAD_DIM)
            pair = complex(*x[b, t, h, 2 * i : 2 * i + 2].tolist()) * np.exp(1j * angle)
            np.testing.assert_allclose(
                got[b, t, h, 2 * i : 2 * i + 2], [pair.real, pair.imag], atol=1e-5
            )


def test_the_origin_turns_nothing_and_dtype_stays():
    x = jax.random.normal(jax.random.key(0), (1, 1, 2, 12), jnp.bfloat16)
    angles = rotation_angles(jnp.zeros((1, 1, 3), jnp.int32), head_dim=12)
    assert rotate(x, angles).dtype == jnp.bfloat16
    np.testing.assert_array_equal(rotate(x, angles), x)


def test_head_dimension_that_does_not_divide():
    with pytest.raises(ValueError, match="divisible by 6: 16"):
        rotation_angles(jnp.zeros((1, 1, 3), jnp.int32), head_dim=16)
