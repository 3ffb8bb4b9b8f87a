"""Attention against loops in float64, in value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unidiff_jax.ops.attention import attention

B, T, S, H, K = 2, 5, 7, 4, 6
Q_SEGMENT = np.asarray([[1, 1, 2, 2, 0], [1, 2, 2, 3, 3]], np.int32)
KV_SEGMENT = np.asarray([[1, 2, 2, 2, 0, 0, 0], [2, 2, 3, 3, 3, 3, 0]], np.int32)  # row 1: no key 1

CASES = {
    "plain": {},
    "grouped": {"kv_heads": 2},
    "one key head": {"kv_heads": 1},
    "segments": {"segments": True},
    "segments grouped": {"segments": True, "kv_heads": 2},
    "softcap": {"softcap": 0.7, "segments": True},
    "scale": {"scale": 1.0},
    "bias": {"bias": True, "segments": True, "softcap": 2.0},
    "causal": {"causal": True},
    "everything": {
        "causal": True,
        "bias": True,
        "segments": True,
        "softcap": 1.5,
        "scale": 0.9,
        "kv_heads": 2,
    },
}


def by_loops(q, k, v, *, q_segment, kv_segment, softcap, scale, bias, causal):
    """The definition, one query at a time."""
    out = np.zeros(q.shape)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    group = q.shape[2] // k.shape[2]
    for b, t, h in np.ndindex(q.shape[:3]):
        scores, values = [], []
        for s in range(k.shape[1]):
            if q_segment is not None and (
                q_segment[b, t] == 0 or q_segment[b, t] != kv_segment[b, s]
            ):
                continue
            if causal and s > t:
                continue
            score = q[b, t, h] @ k[b, s, h // group] * scale
            if softcap is not None:
                score = softcap * np.tanh(score / softcap)
            scores.append(score + (bias[b, h, t, s] if bias is not None else 0.0))
            values.append(v[b, s, h // group])
        if scores:
            weights = np.exp(np.asarray(scores) - max(scores))
            out[b, t, h] = weights / weights.sum() @ np.stack(values)
    return out


@pytest.fixture(params=list(CASES))
def case(request):
    settings = dict(CASES[request.param])
    rng = np.random.default_rng(0)
    heads = settings.pop("kv_heads", H)
    q, k, v = (
        rng.standard_normal(shape) * 2
        for shape in ((B, T, H, K), (B, S, heads, K), (B, S, heads, K))
    )
    segments = settings.pop("segments", False)
    return (q, k, v), {
        "q_segment": Q_SEGMENT if segments else None,
        "kv_segment": KV_SEGMENT if segments else None,
        "softcap": settings.get("softcap"),
        "scale": settings.get("scale"),
        "bias": rng.standard_normal((B, H, T, S)) if settings.get("bias") else None,
        "causal": settings.get("causal", False),
    }


def on_device(settings):
    return {
        key: jnp.asarray(value, jnp.float32 if key == "bias" else None)
        if isinstance(value, np.ndarray)
        else value
        for key, value in settings.items()
    }


def test_values(case):
    arrays, settings = case
    got = attention(*(jnp.asarray(a, jnp.float32) for a in arrays), **on_device(settings))
    np.testing.assert_allclose(got, by_loops(*arrays, **settings), atol=1e-5)


def test_gradients(case):
    """Directional derivatives against central differences of the loops."""
    arrays, settings = case
    rng = np.random.default_rng(1)
    cotangent = rng.standard_normal((B, T, H, K))
    target = jnp.asarray(cotangent, jnp.float32)

    def loss(*arrays):
        return jnp.sum(attention(*arrays, **on_device(settings)) * target)

    grads = jax.grad(loss, (0, 1, 2))(*(jnp.asarray(a, jnp.float32) for a in arrays))
    for i, grad in enumerate(grads):
        direction, step = rng.standard_normal(arrays[i].shape), 1e-5
        ends = []
        for sign in (1, -1):
            moved = list(arrays)
            moved[i] = arrays[i] + sign * step * direction
            ends.append(np.sum(by_loops(*moved, **settings) * cotangent))
        expected = (ends[0] - ends[1]) / (2 * step)
        np.testing.assert_allclose(np.sum(np.asarray(grad) * direction), expected, rtol=1e-3)


def test_queries_without_keys_give_zero_and_finite_gradients():
    q, k, v = (jax.random.normal(jax.random.key(i), (1, 3, 2, 4)) for i in range(3))
    q_segment, kv_segment = jnp.asarray([[0, 1, 2]]), jnp.asarray([[2, 2, 0]])

    def run(q, k, v):
        return attention(q, k, v, q_segment=q_segment, kv_segment=kv_segment)

    out = run(q, k, v)
    assert not out[:, :2].any() and out[:, 2].any()
    grads = jax.grad(lambda *a: jnp.sum(run(*a) ** 2), (0, 1, 2))(q, k, v)
    assert all(np.isfinite(g).all() for g in grads)
    assert not grads[0][:, :2].any()  # nobody listens to these queries
    assert not grads[1][:, 2].any() and not grads[2][:, 2].any()  # and nobody reads this key


def test_half_precision_scores_are_summed_in_float32():
    q, k, v = (jax.random.normal(jax.random.key(i), (1, 8, 2, 32), jnp.bfloat16) for i in range(3))
    got = attention(q, k, v)
    assert got.dtype == jnp.bfloat16
    exact = by_loops(
        *(np.asarray(a, np.float64) for a in (q, k, v)),
        q_segment=None,
        kv_segment=None,
        softcap=None,
        scale=None,
        bias=None,
        causal=False,
    )
    np.testing.assert_allclose(np.asarray(got, np.float64), exact, atol=0.03)


def test_calls_that_cannot_be():
    x = jnp.zeros((1, 2, 4, 6))
    with pytest.raises(ValueError, match="4 query heads do not divide into 3 key heads"):
        attention(x, x[:, :, :3], x[:, :, :3])
    with pytest.raises(ValueError, match="both q_segment and kv_segment"):
        attention(x, x, x, q_segment=jnp.ones((1, 2), jnp.int32))


@pytest.mark.parametrize("segments", [False, True])
@pytest.mark.parametrize(("queries", "blocks"), [(24, 3), (22, 11), (23, 1), (16, 1)])
def test_blocks_of_queries_change_nothing(monkeypatch, segments, queries, blocks):
    rng = np.random.default_rng(0)
    q, k, v = (
        jnp.asarray(rng.standard_normal((2, n, h, 6)), jnp.float32)
        for n, h in ((queries, 4), (10, 2), (10, 2))
    )
    kwargs = {"softcap": 3.0}
    if segments:
        kwargs["q_segment"] = jnp.asarray(rng.integers(0, 3, (2, queries)), jnp.int32)
        kwargs["kv_segment"] = jnp.asarray(rng.integers(0, 3, (2, 10)), jnp.int32)

    def run(block):
        monkeypatch.setattr("unidiff_jax.ops.attention.QUERY_BLOCK", block)

        def total(*arrays):
            y = attention(*arrays, **kwargs)
            return jnp.sum(jnp.sin(y)), y

        (_, y), grads = jax.value_and_grad(total, (0, 1, 2), has_aux=True)(q, k, v)
        text = str(jax.make_jaxpr(lambda q: attention(q, k, v, **kwargs))(q))
        return (y, *grads), "scan" in text

    whole, in_blocks = run(1024), run(8)
    assert not whole[1] and in_blocks[1] == (blocks > 1)
    for a, b in zip(in_blocks[0], whole[0], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
