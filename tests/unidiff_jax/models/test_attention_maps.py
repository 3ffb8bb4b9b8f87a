"""The error of attention maps: as the softmax says, for each example alone, and free when off."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from unidiff_jax import flow
from unidiff_jax.config import ConfigError
from unidiff_jax.models import dit
from unidiff_jax.models.dit import DiT, spans
from unidiff_jax.models.rope import rotate, rotation_angles
from unidiff_jax.types import take_rows

KEY = jax.random.key(2)
EXAMPLES = [
    tiny.entity_example(1, entities=2),
    tiny.entity_example(2, entities=0, sides=(1, 2)),
    tiny.entity_example(3, entities=3, sides=(2, 3)),
]
MAPPED = dataclasses.replace(tiny.DIT, depth=4, map_layers=(1, 2))


def model(config=MAPPED):
    graphdef, state = nnx.split(DiT(config, rngs=nnx.Rngs(0)))
    return nnx.merge(graphdef, tiny.scaled(nnx.to_pure_dict(state)))


def inputs(batch):
    batch = tiny.on_device(batch)
    noise = flow.draw_noise(KEY, batch)
    sigma = flow.draw_sigma(KEY, batch, tiny.FLOW)
    noised = flow.add_noise(batch, noise=noise, sigma=sigma, config=tiny.FLOW)
    rng = np.random.default_rng(0)
    table = rng.standard_normal((tiny.TEXT.vocab_size, tiny.DIT.text_dim)).astype(np.float32)
    return batch, noised, jnp.asarray(table)[batch.text_ids]


def by_hand(module, batch, noised, text, *, recorded):
    """The error of one map by a softmax of all scores, entity by entity."""
    attention, x = recorded
    c = module.config
    segment = np.asarray(batch.token_segment)
    angles = rotation_angles(
        batch.position, head_dim=c.head_dim, theta=c.rope_theta, scale=c.rope_scale
    )
    q = attention.q_norm(attention.q(x["x"])).reshape(*segment.shape, -1, c.head_dim)
    q = np.asarray(rotate(q, angles))
    k = attention.text_k_norm(attention.text_k(x["text"]))
    k = np.asarray(k.reshape(*k.shape[:2], -1, c.head_dim))
    result = np.zeros(segment.shape)
    for b, t in np.argwhere(segment > 0):
        own = np.flatnonzero(np.asarray(batch.text_segment)[b] == segment[b, t])
        entity = np.asarray(batch.text_entity)[b, own]
        present = sorted(set(entity) - {0})
        for head in range(c.num_heads):
            scores = k[b, own, head % c.num_kv_heads] @ q[b, t, head] * c.head_dim**-0.5
            share = np.exp(scores) / np.exp(scores).sum()
            for e in present:
                mask = np.asarray(batch.entity_mask)[b, t, e - 1]
                off = abs(share[entity == e].sum() - mask)
                result[b, t] += off / len(present) / c.num_heads
    return result


def test_the_error_is_that_of_the_softmax(monkeypatch):
    batch, noised, text = inputs(tiny.packed(EXAMPLES))
    config = dataclasses.replace(MAPPED, map_layers=(2,))
    module, calls = model(config), []
    plain = dit.Attention.__call__

    def record(self, x, text, **rest):
        if rest["entities"] is not None:
            calls.append((self, {"x": x, "text": text}))
        return plain(self, x, text, **rest)

    monkeypatch.setattr(dit.Attention, "__call__", record)
    found = module.with_maps(batch, noised, text)
    assert len(calls) == 1  # of the chosen block alone
    expected = by_hand(module, batch, noised, text, recorded=calls[0])
    np.testing.assert_allclose(found.map_error, expected, atol=2e-6)
    error = np.asarray(found.map_error)
    example = np.asarray(take_rows(batch.example_id, batch.token_segment))
    assert (error[example == 2] == 0).all() and (error[example == 1] > 0.05).all()
    assert error.max() <= 1 and (error[example == 0] == 0).all()


def test_the_prediction_is_the_same_and_costs_nothing_without_maps():
    args = inputs(tiny.packed(EXAMPLES))
    module = model()
    found = module.with_maps(*args)
    np.testing.assert_allclose(found.output, module(*args), atol=1e-6)
    without = dataclasses.replace(MAPPED, map_layers=())
    programs = [jax.jit(model(config)).lower(*args).as_text() for config in (MAPPED, without)]
    assert programs[0] == programs[1]
    mapped = jax.jit(module.with_maps).lower(*args).as_text()
    # scores, and the share of each entity: two products for each of the two blocks
    assert mapped.count("dot_general") > programs[0].count("dot_general")


def test_packed_scanned_and_alone_agree():
    scanned = dataclasses.replace(MAPPED, scan_layers=True, remat="full")
    results = []
    for config, batch in (
        (MAPPED, tiny.packed(EXAMPLES)),
        (scanned, tiny.packed(EXAMPLES)),
        (MAPPED, tiny.alone(EXAMPLES)),
    ):
        error = model(config).with_maps(*inputs(batch)).map_error
        results.append(tiny.by_token(batch, error))
    for other in results[1:]:
        tiny.assert_same_tokens(results[0], other, atol=2e-6)


def test_spans_cover_every_block_once():
    assert list(spans(4, ())) == [((0, 4), False)]
    assert list(spans(4, (0, 1, 3))) == [((0, 2), True), ((2, 3), False), ((3, 4), True)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"map_layers": (2,)},
            r"must be blocks from 0 to 1; for example --set model.map_layers=\(1,\)",
        ),
        ({"fusion": "joint", "map_layers": (1,)}, "are of model.fusion='cross'"),
    ],
)
def test_layers_that_cannot_be(change, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(tiny.DIT, **change)


def test_maps_need_layers_and_entities():
    args = inputs(tiny.packed(EXAMPLES))
    with pytest.raises(ValueError, match="map_layers names no block"):
        model(tiny.DIT).with_maps(*args)
    with pytest.raises(ValueError, match=r"needs examples with data\.entities"):
        model().with_maps(*inputs(tiny.packed([tiny.example(1)])))
