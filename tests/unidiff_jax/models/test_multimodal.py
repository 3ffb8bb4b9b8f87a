"""The multimodal encoder: BLIP-2's golden values, packing, and transformers (marked torch)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_blip2
from flax import nnx

from unidiff_jax.config import ConfigError
from unidiff_jax.export.files import open_tensors
from unidiff_jax.export.mapping import MappingError, from_official, multimodal_table, to_official
from unidiff_jax.models.layers import abstract
from unidiff_jax.models.multimodal import MultimodalEncoder, picture_of
from unidiff_jax.models.qformer import QFormerConfig
from unidiff_jax.models.vit import ViTConfig
from unidiff_jax.sample.multimodal import multimodal_config

Q = tiny_blip2.NUM_QUERIES


def read(tensors, config):
    graphdef, shapes, _ = abstract(lambda rngs: MultimodalEncoder(config, rngs=rngs))
    params = from_official(tensors, shapes, table=multimodal_table(config))
    return graphdef, jax.tree.map(jnp.asarray, params)


@pytest.fixture(scope="module")
def config():
    return multimodal_config(tiny_blip2.CONFIG)


@pytest.fixture(scope="module")
def model(config, tmp_path_factory):
    """Structure and parameters, read from a folder."""
    folder = tiny_blip2.write_folder(tmp_path_factory.mktemp("blip2"))
    return read(open_tensors(folder), config)


@pytest.fixture(scope="module")
def outputs(model):
    """Every golden output as ours."""
    graphdef, params = model

    @jax.jit
    def see(params, pictures):
        encoder = nnx.merge(graphdef, params)
        states = encoder.vision(pictures)
        queries = jnp.broadcast_to(encoder.query_tokens[...], (3, Q, 8))
        found = {"vision": states, "queries": encoder.qformer(queries, states)}
        return found | {"features": encoder.see(pictures[None])[0]}

    return compute(see(params, tiny_blip2.pictures()), lambda name: alone(model, name))


def compute(seen, states_of):
    names = {f"states_{name}": states_of(name).states[0] for name in tiny_blip2.PROMPTS}
    return {name: np.asarray(value) for name, value in (seen | names).items()}


def alone(model, name, pictures=None):
    """One prompt in a row of its own; without pictures the row has none."""
    ids, query = tiny_blip2.row(tiny_blip2.PROMPTS[name])
    pictures = tiny_blip2.pictures()[: max(query) and 3] if pictures is None else pictures
    segment = np.ones(len(ids), np.int32)
    return run(model, ids, segment, query, pictures)


def run(model, ids, segment, query, pictures):
    graphdef, params = model
    ids, segment, query = (jnp.asarray(x, jnp.int32)[None] for x in (ids, segment, query))
    return encode(params, ids, segment, query, jnp.asarray(pictures)[None], graphdef=graphdef)


@functools.partial(jax.jit, static_argnames="graphdef")
def encode(params, ids, segment, query, pictures, *, graphdef):
    encoder = nnx.merge(graphdef, params)
    return encoder(ids, segment=segment, query=query, pictures=pictures)


def check(outputs, expected, parity):
    for name, what in {
        "vision": "BLIP-2, vision tower",
        "queries": "BLIP-2, Q-Former",
        "features": "BLIP-2, features of pictures",
        "states_none": "BLIP-2, prompt without picture",
        "states_one": "BLIP-2, prompt with 1 picture",
        "states_three": "BLIP-2, prompt with 3 pictures",
    }.items():
        assert outputs[name].shape == expected[name].shape
        error = np.abs(outputs[name] - expected[name]).max() / np.abs(expected[name]).max()
        parity(what, error, bound=1e-5)


def test_equals_the_golden_values(outputs, parity):
    check(outputs, tiny_blip2.golden(), parity)


@pytest.mark.torch
def test_equals_transformers(outputs, parity):
    pytest.importorskip("torch")
    theirs = tiny_blip2.reference()
    expected = tiny_blip2.reference_outputs(theirs)
    check(outputs, expected, parity)
    golden = tiny_blip2.golden()
    for name, value in expected.items():  # the golden values are of this transformers
        np.testing.assert_allclose(golden[name], value, rtol=1e-4, atol=1e-5)
    assert tiny_blip2.shapes() == {k: list(v.shape) for k, v in theirs.state_dict().items()}


@pytest.mark.torch
def test_reads_what_transformers_writes(config, model, tmp_path):
    pytest.importorskip("torch")
    tiny_blip2.reference().save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 1
    _, params = read(open_tensors(tmp_path), config)
    jax.tree.map(np.testing.assert_array_equal, params, model[1])


# ------------------------------------------------------------------------------------------ packing


def packed():
    """All prompts in one row with padding between and behind: arrays, and where each lies."""
    ids, segment, query = np.zeros((3, 48), np.int32)
    places, start = {}, 0
    for number, (name, prompt) in enumerate(tiny_blip2.PROMPTS.items(), start=1):
        own_ids, own_query = tiny_blip2.row(prompt)
        places[name] = own = slice(start, start + len(own_ids))
        ids[own], segment[own], query[own] = own_ids, number, own_query
        start += len(own_ids) + (number == 1)
    return (ids, segment, query), places


def test_packed_equals_alone(model, outputs):
    row, places = packed()
    found = run(model, *row, tiny_blip2.pictures())
    assert np.isfinite(found.states).all()
    for name, own in places.items():
        np.testing.assert_allclose(found.states[0, own], outputs[f"states_{name}"], atol=2e-5)


def test_says_which_picture_a_place_shows(model):
    row, places = packed()
    found = np.asarray(run(model, *row, tiny_blip2.pictures()).picture[0])
    assert not found[places["none"]].any()
    assert found[places["one"]].tolist() == [1] * Q + [0] * 4
    expected = [0, *[3] * Q, 0, 0, *[1] * Q, *[2] * Q, 0, 0]
    assert found[places["three"]].tolist() == expected
    assert np.asarray(picture_of(jnp.array([[0, 1, 4, 5, 32, 33]]), num_queries=4)).tolist() == [
        [0, 1, 1, 2, 8, 9]
    ]


def test_a_picture_matters_where_it_is_shown(model):
    row, places = packed()
    pictures = tiny_blip2.pictures()
    first = np.asarray(run(model, *row, pictures).states[0])
    pictures[1] += 1.0
    second = np.asarray(run(model, *row, pictures).states[0])
    np.testing.assert_array_equal(first[places["one"]], second[places["one"]])
    change = np.abs(first - second)[places["three"]].max(-1)
    assert change.min() > 1e-5 and change.max() > 1e-2


def test_the_id_below_a_picture_does_not_matter(model, outputs):
    ids, query = tiny_blip2.row(tiny_blip2.PROMPTS["one"])
    ids = [0 if place else word for word, place in zip(ids, query, strict=True)]
    found = run(model, ids, np.ones(len(ids)), query, tiny_blip2.pictures())
    np.testing.assert_allclose(found.states[0], outputs["states_one"], atol=1e-6)


def test_scanned_equals_unrolled(config, model):
    parts = ("vision", "qformer", "text")
    unrolled = {p: dataclasses.replace(getattr(config, p), scan_layers=False) for p in parts}
    other, *_ = abstract(
        lambda rngs: MultimodalEncoder(dataclasses.replace(config, **unrolled), rngs=rngs)
    )
    assert other != model[0]
    found, expected = alone((other, model[1]), "three"), alone(model, "three")
    np.testing.assert_allclose(found.states, expected.states, atol=2e-5)


# -------------------------------------------------------------------------------- names and configs


def test_tensors_survive_a_round_trip(config, model):
    tensors = to_official(jax.tree.map(np.asarray, model[1]), table=multimodal_table(config))
    _, again = read(tensors, config)
    jax.tree.map(np.testing.assert_array_equal, again, model[1])
    known = tiny_blip2.shapes()
    assert {k: list(v.shape) for k, v in tensors.items()}.items() <= known.items()
    left = {name.split(".")[1] for name in known.keys() - tensors.keys()}
    assert left == {"decoder", "lm_head", "encoder"}  # the encoder's second name of the embedding


def test_tensors_that_do_not_fit(config):
    tensors = tiny_blip2.tensors(tiny_blip2.shapes())
    del tensors["qformer.encoder.layer.3.crossattention.attention.key.weight"]
    tensors["qformer.encoder.layer.1.crossattention.attention.key.weight"] = np.zeros((8, 12))
    tensors["vision_model.encoder.layers.2.mlp.fc1.bias"] = np.zeros(3)
    with pytest.raises(MappingError) as error:
        read(tensors, config)
    assert "no tensor qformer.encoder.layer.3.crossattention.attention.key" in str(error.value)
    assert "tensor qformer.encoder.layer.1.crossattention" in str(error.value)
    assert "vision_model.encoder.layers.2.mlp.fc1.bias gives (3,)" in str(error.value)


def test_released_sizes():
    """What the config of blip2-flan-t5-xl leaves out is ViT-g, BERT-base and 32 queries."""
    text = {"model_type": "t5", "feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu"}
    text |= {"d_model": 2048, "d_ff": 5120, "num_heads": 32, "num_layers": 24}
    config = multimodal_config({"model_type": "blip-2", "text_config": text})
    assert (config.text.d_kv, config.text.vocab_size, config.text.dense_act_fn) == (
        64,
        32128,
        "gelu",
    )
    shapes = abstract(lambda rngs: MultimodalEncoder(config, rngs=rngs)).shapes

    def millions(part):
        return round(sum(leaf.size for leaf in jax.tree.leaves(shapes[part])) / 1e6)

    assert (millions("vision"), millions("qformer")) == (986, 105)
    assert shapes["query_tokens"].shape == (1, 32, 768)
    assert shapes["projection"]["weight"].shape == (768, 2048)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "clip"}, "known is 'blip-2'"),
        ({"text_config": {"model_type": "opt"}}, "blip2-flan-t5-xl"),
        ({"text_config": {}}, "'opt' has no encoder"),
        ({"vision_config": {"hidden_act": "relu", "image_size": [8, 9]}}, r"'relu'.*\[8, 9\]"),
        ({"qformer_config": {"use_qformer_text_input": True}}, "use_qformer_text_input=True"),
        ({"qformer_config": {"num_hidden_layers": 5}}, "12 and 2"),
    ],
)
def test_other_models_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        multimodal_config(tiny_blip2.CONFIG | change)


def test_a_tower_without_bias_of_queries_and_keys():
    config = multimodal_config(tiny_blip2.CONFIG)
    plain = dataclasses.replace(config, vision=dataclasses.replace(config.vision, qkv_bias=False))
    tensors = tiny_blip2.tensors(tiny_blip2.shapes())
    tensors = {name: value for name, value in tensors.items() if "qkv.bias" not in name}
    _, params = read(tensors, plain)
    assert list(params["vision"]["blocks"]["qkv"]) == ["weight"]


def test_a_picture_of_another_size(model):
    with pytest.raises(ValueError, match="12 x 10 pixels, this tower reads 10 x 10"):
        alone(model, "one", np.zeros((1, 12, 10, 3), np.float32))


def test_defaults_are_those_of_transformers():
    transformers = pytest.importorskip("transformers")
    pairs = [
        (ViTConfig(), transformers.Blip2VisionConfig()),
        (QFormerConfig(), transformers.Blip2QFormerConfig()),
    ]
    for ours, theirs in pairs:
        own = dataclasses.asdict(ours)
        for name in ("scan_layers", "remat", "dtype", "layer_scale"):
            own.pop(name, None)
        assert own == {name: getattr(theirs, name) for name in own}
    assert ViTConfig().num_patches == 256 and QFormerConfig().num_groups == 6
