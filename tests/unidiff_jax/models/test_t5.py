"""The text encoder: distance buckets, packing, and transformers' T5 (marked torch)."""

import dataclasses
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from unidiff_jax.config import ConfigError
from unidiff_jax.models.t5 import Overlay, T5Encoder, relative_bucket
from unidiff_jax.sample.encoders import LoadedText
from unidiff_jax.text import END

TOKENIZER = (
    pathlib.Path(__file__)
    .resolve()
    .parents[2]
    .joinpath("golden", "onediffusion", "tinypipe", "tokenizer")
)
CONFIG = dataclasses.replace(
    tiny.TEXT, num_layers=2, relative_attention_num_buckets=8, relative_attention_max_distance=16
)


def bucket_of(distance, num_buckets, max_distance):
    """One distance, written from the paper's description."""
    half = num_buckets // 2
    exact = half // 2
    offset = half if distance > 0 else 0
    size = abs(distance)
    if size < exact:
        return offset + size
    share = math.log(size / exact) / math.log(max_distance / exact)
    return offset + min(half - 1, exact + math.floor(share * (half - exact) + 1e-9))


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (8, 16), (16, 20)])
def test_buckets(num_buckets, max_distance):
    distances = np.arange(-300, 301)
    got = np.asarray(
        relative_bucket(jnp.asarray(distances), num_buckets=num_buckets, max_distance=max_distance)
    )
    expected = [bucket_of(int(d), num_buckets, max_distance) for d in distances]
    # where the logarithm is a whole number, rounding may put a distance one bucket lower
    differs = np.abs(got - expected)
    assert differs.max() <= 1 and differs.sum() <= 4, distances[differs > 0]
    assert got.min() == 0 and got.max() == num_buckets - 1
    assert len(set(got.tolist())) == num_buckets - 1  # the zero of the right side is never used


@pytest.fixture(scope="module")
def encode():
    graphdef, state = nnx.split(T5Encoder(CONFIG, rngs=nnx.Rngs(0)))
    params = tiny.scaled(jax.tree.map(np.asarray, nnx.to_pure_dict(state)), scale=1.0)

    @jax.jit
    def run(ids, segment):
        return nnx.merge(graphdef, params)(ids, segment=segment)

    return lambda *arrays: np.asarray(run(*(jnp.asarray(a, jnp.int32) for a in arrays)))


TEXTS = ([3, 4, 5, 1], [6, 7, 1], [8, 9, 10, 11, 12, 1])


def row(texts, length=16):
    ids, segment = np.zeros((2, 1, length), np.int32)
    start = 0
    for number, text in enumerate(texts, start=1):
        own = slice(start, start + len(text))
        ids[0, own], segment[0, own] = text, number
        start += len(text)
    return ids, segment


def states(encode, texts, length=16):
    """States of each text."""
    ids, segment = row(texts, length)
    out = encode(ids, segment)
    return [out[0, segment[0] == number + 1] for number in range(len(texts))]


def test_packed_equals_alone(encode):
    packed = states(encode, TEXTS)
    for text, own in zip(TEXTS, packed, strict=True):
        np.testing.assert_allclose(states(encode, [text])[0], own, atol=1e-5)
        np.testing.assert_allclose(states(encode, [text], length=len(text))[0], own, atol=1e-5)


def test_texts_do_not_meet(encode):
    packed = states(encode, TEXTS)
    changed = states(encode, [TEXTS[0], [13, 14, 1], TEXTS[2]])
    np.testing.assert_array_equal(packed[0], changed[0])
    np.testing.assert_array_equal(packed[2], changed[2])
    assert np.abs(packed[1] - changed[1]).max() > 1e-2


def test_padding_is_finite_and_the_order_of_words_matters(encode):
    ids, segment = row(TEXTS)
    assert np.isfinite(encode(ids, segment)).all()
    forward, backward = states(encode, [[3, 4, 5, 1]])[0], states(encode, [[5, 4, 3, 1]])[0]
    assert np.abs(forward[1] - backward[1]).max() > 1e-3


def test_overlay():
    model = T5Encoder(CONFIG, rngs=nnx.Rngs(0))
    ids, segment = (jnp.asarray(x) for x in row(TEXTS))
    expected = model(ids, segment=segment)
    mask = ids % 2 == 0
    values = model.embedding[...][ids] + jnp.where(mask, 0.0, 7.0)[..., None]
    found = model(jnp.where(mask, 13, ids), segment=segment, overlay=Overlay(values, mask))
    np.testing.assert_array_equal(found, expected)
    changed = model(ids, segment=segment, overlay=Overlay(values + 1.0, mask))
    assert np.abs(changed - expected)[segment > 0].max() > 1e-2


def test_activations():
    with pytest.raises(ConfigError, match=r"dense_act_fn='relu'.*'gelu_new' and 'gelu'"):
        dataclasses.replace(CONFIG, dense_act_fn="relu")
    ids, segment = (jnp.asarray(x) for x in row(TEXTS))
    first, second = (
        T5Encoder(dataclasses.replace(CONFIG, dense_act_fn=name), rngs=nnx.Rngs(0))(
            ids, segment=segment
        )
        for name in ("gelu_new", "gelu")
    )
    assert 1e-6 < np.abs(first - second).max() < 1e-2


# ----------------------------------------------------------------------------- against transformers


@pytest.fixture(scope="module")
def theirs():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=512,
        d_model=24,
        d_kv=6,
        d_ff=40,
        num_layers=3,
        num_heads=3,
        feed_forward_proj="gated-gelu",
    )
    model = transformers.T5EncoderModel(config).eval()
    for parameter in model.parameters():  # norms away from one
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def check_encoder(theirs, folder, parity):
    """Prompts of 1 to 300 tokens; the longest is cut, and has distances of the last bucket."""
    import torch

    ours = LoadedText.load(folder, tokenizer=TOKENIZER)
    prompts = ["", "[[text2image]] a red cat", "a small blue cube left of a sphere " * 40]
    got, mask = (np.array(x) for x in ours.encode(prompts))
    assert mask.sum(1)[0] == 1 < mask.sum(1)[1] < mask.sum(1)[2] == got.shape[1]
    ids = np.zeros(mask.shape, np.int64)
    for row, prompt in zip(ids, prompts, strict=True):
        tokens = ours.tokenizer.encode(prompt)
        tokens = tokens if len(tokens) <= len(row) else [*tokens[: len(row) - 1], END]
        row[: len(tokens)] = tokens
    with torch.no_grad():
        states = theirs(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))
    expected = states.last_hidden_state.numpy()[mask > 0]
    error = np.abs(got[mask > 0] - expected).max() / np.abs(expected).max()
    parity("T5 encoder, states", error, bound=1e-4)


@pytest.mark.torch
def test_equals_transformers(theirs, tmp_path, parity):
    theirs.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    check_encoder(theirs, tmp_path, parity)


@pytest.mark.torch
def test_a_folder_in_shards(theirs, tmp_path, parity):
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
    assert not (tmp_path / "model.safetensors").exists()
    check_encoder(theirs, tmp_path, parity)
