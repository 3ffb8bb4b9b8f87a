"""Adapters: nothing at first, the merged weight afterwards, gradients of their own alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from unidiff_jax import flow
from unidiff_jax.config import ConfigError
from unidiff_jax.models import lora
from unidiff_jax.models.dit import DiT
from unidiff_jax.models.lora import LoRAConfig

LORA = LoRAConfig(rank=3, alpha=6.0, targets="blocks/(attention/(q|v|out)|ffn/down)|patch_embed")


def build(config, scan):
    dit = dataclasses.replace(tiny.DIT, text_dim=tiny.TEXT.d_model, scan_layers=scan)
    model = DiT(dit, rngs=nnx.Rngs(0))
    names = lora.attach(model, config, rngs=nnx.Rngs(1))
    graphdef, state = nnx.split(model)
    return graphdef, nnx.to_pure_dict(state), names


def inputs():
    batch = tiny.on_device(tiny.packed(tiny.mixed_examples()))
    key = jax.random.key(0)
    sigma = flow.draw_sigma(key, batch, tiny.FLOW)
    noised = flow.add_noise(batch, noise=flow.draw_noise(key, batch), sigma=sigma, config=tiny.FLOW)
    text = jax.random.normal(key, (*batch.text_ids.shape, tiny.TEXT.d_model))
    return batch, noised, text


def flatten(params):
    return {"/".join(p.key for p in path): x for path, x in jax.tree.leaves_with_path(params)}


@pytest.mark.parametrize("scan", [False, True])
def test_adapters_start_as_nothing_and_merge(scan):
    plain, base, _ = build(LoRAConfig(), scan)
    graphdef, params, names = build(LORA, scan)
    assert names == [
        "blocks/attention/out", "blocks/attention/q", "blocks/attention/v", "blocks/ffn/down",
        "patch_embed",
    ]  # fmt: skip
    assert params["blocks"]["attention"]["q"]["lora_a"].shape[0] == tiny.DIT.depth
    base = jax.tree.map(jnp.asarray, tiny.scaled(jax.tree.map(np.asarray, base)))

    def join(base, params):  # the base's values, the adapters' own
        if not isinstance(params, dict):
            return base
        return {k: join(base[k], v) if k in base else v for k, v in params.items()}

    params = join(base, params)
    args = inputs()
    expected = nnx.merge(plain, base)(*args)
    np.testing.assert_allclose(nnx.merge(graphdef, params)(*args), expected, atol=1e-6)

    params = jax.tree.map_with_path(
        lambda path, x: x + 0.2 if path[-1].key == "lora_b" else x, params
    )
    adapted = nnx.merge(graphdef, params)(*args)
    assert np.abs(adapted - expected).max() > 1e-2
    merged = lora.merge(params, LORA)
    assert flatten(merged).keys() == flatten(base).keys()
    np.testing.assert_allclose(nnx.merge(plain, merged)(*args), adapted, atol=2e-5)


def test_gradients_reach_the_adapters():
    graphdef, params, _ = build(LORA, True)
    args = inputs()
    flat = flatten(params)
    trained = {k: v for k, v in flat.items() if k.endswith(("/lora_a", "/lora_b"))}
    assert len(trained) == 10

    def loss(trained):
        full = jax.tree.map_with_path(
            lambda path, x: trained.get("/".join(p.key for p in path), x), params
        )
        return jnp.mean(jnp.square(nnx.merge(graphdef, full)(*args)))

    grads = jax.grad(loss)(trained)
    assert all(np.abs(g).max() == 0 for k, g in grads.items() if k.endswith("lora_a"))  # B is 0
    assert np.abs(grads["patch_embed/lora_b"]).max() > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": -1}, "lora.rank=-1 must be 0"),
        ({"rank": 2, "targets": "("}, "is no pattern"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ConfigError, match=message):
        LoRAConfig(**settings)


def test_targets_that_match_nothing():
    with pytest.raises(ConfigError, match="matches no layer; there are blocks/attention/k"):
        build(LoRAConfig(rank=2, targets="blocks/none"), True)
