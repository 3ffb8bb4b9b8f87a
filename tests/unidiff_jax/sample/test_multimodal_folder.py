"""A BLIP-2 folder: prompts with pictures to states, types of weights, preprocessing."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_blip2
from flax import nnx
from PIL import Image

from unidiff_jax.sample.images import InputError
from unidiff_jax.sample.multimodal import LENGTH_STEP, LoadedMultimodal, preprocess
from unidiff_jax.text import load_tokenizer

ROOT = pathlib.Path(__file__).resolve().parents[3]
TOKENIZER = load_tokenizer(ROOT / "tests" / "golden" / "onediffusion" / "tinypipe" / "tokenizer")
Q = tiny_blip2.NUM_QUERIES


def picture(seed, width=13, height=9):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_blip2.write_folder(tmp_path_factory.mktemp("blip2"))


@pytest.fixture(scope="module")
def encoder(folder):
    return LoadedMultimodal.load(folder, tokenizer=TOKENIZER)


def test_prompts_of_several_lengths(encoder):
    names = {"fox": picture(0), "ball": picture(1)}
    prompts = ["a red cat", "<img>fox</img> holding <img>ball</img> " + "in the snow " * 40]
    states, mask, shown = encoder.encode(prompts, names=names)
    words = TOKENIZER.encode("in the snow " * 40)
    held = TOKENIZER.encode(" holding ")[:-1]
    count = 2 * Q + len(held) + len(words)
    assert states.shape[1] % LENGTH_STEP == 0 < states.shape[1] - count < LENGTH_STEP
    np.testing.assert_array_equal(mask.sum(1), [len(TOKENIZER.encode("a red cat")), count])
    assert shown[0].max() == 0
    middle = np.zeros(len(held))
    np.testing.assert_array_equal(
        shown[1][: 2 * Q + len(held) + 1], [*[1] * Q, *middle, *[2] * Q, 0]
    )
    # the same as a list of pictures and words, straight through the model
    given = [names["fox"], " holding ", names["ball"], " " + "in the snow " * 40]
    found = encoder.tokenize(given)
    direct = nnx.merge(encoder.graphdef, encoder.params)(
        jnp.asarray([found.ids]),
        segment=jnp.ones((1, count), jnp.int32),
        query=jnp.asarray([found.query]),
        pictures=jnp.asarray(preprocess(found.pictures, size=10)[None]),
    )
    np.testing.assert_allclose(states[1, :count], direct.states[0], atol=2e-5)


def test_a_reference_that_is_nothing(encoder):
    with pytest.raises(InputError, match="picture 1 of the prompt: 'fox' is not known"):
        encoder.encode(["<img>fox</img>"])


def test_the_q_former_keeps_its_precision(folder, encoder):
    half = LoadedMultimodal.load(folder, tokenizer=TOKENIZER, dtype="bfloat16")
    kinds = jax.tree.map(lambda leaf: str(leaf.dtype), half.params)
    assert set(jax.tree.leaves(kinds["qformer"])) == {"float32"} == {kinds["query_tokens"]}
    others = [kinds["vision"], kinds["text"], kinds["projection"]]
    assert set(jax.tree.leaves(others)) == {"bfloat16"}
    jax.tree.map(np.testing.assert_array_equal, half.params["qformer"], encoder.params["qformer"])
    prompt = [[picture(0), " in the snow"]]
    found, expected = half.encode(prompt), encoder.encode(prompt)
    assert found.states.dtype == jnp.float32
    own = expected.mask[0] > 0
    error = np.abs(found.states - expected.states)[0, own].max()
    assert 0 < error < 0.1 * np.abs(expected.states[0, own]).max()


def test_a_folder_is_written_as_it_was_read(encoder, tmp_path):
    encoder.save_pretrained(tmp_path)
    again = LoadedMultimodal.load(tmp_path, tokenizer=TOKENIZER)
    jax.tree.map(np.testing.assert_array_equal, again.params, encoder.params)
    assert again.config == encoder.config and again.values == encoder.values


def test_pictures_without_an_image_id_in_the_config(encoder):
    values = {k: v for k, v in encoder.values.items() if k != "image_token_index"}
    other = dataclasses.replace(encoder, values=values)
    prompt = [picture(0), " in the snow"]
    assert other.tokenize(prompt).ids[:Q] == [0] * Q
    np.testing.assert_array_equal(other.encode([prompt]).states, encoder.encode([prompt]).states)


def test_a_mesh_changes_nothing_but_the_place(folder):
    flags = "--xla_force_host_platform_device_count=4 " + os.environ.get("XLA_FLAGS", "")
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "blip2_on_mesh.py"), str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["preset"] for row in rows] == ["fsdp", "fsdp_tensor2"]
    for row in rows:
        assert row["weights_equal"] and row["states"] < 1e-4
        assert 0.2 < row["share"] < 0.7  # vectors and what 4 does not divide are whole everywhere


# ------------------------------------------------------------------------------------ preprocessing


@pytest.mark.parametrize("size", [(64, 48), (31, 300), (224, 224), (500, 333)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_preprocessing_is_that_of_transformers(size, mode, parity):
    module = pytest.importorskip("transformers.models.blip.image_processing_pil_blip")
    reader = module.BlipImageProcessorPil(size={"height": 224, "width": 224})
    given = picture(3, *size).convert(mode)
    expected = np.asarray(reader(given, return_tensors="np")["pixel_values"][0])
    found = np.moveaxis(preprocess([given])[0], -1, 0)
    assert found.shape == (3, 224, 224) and found.dtype == np.float32
    parity("BLIP-2, pixels", np.abs(found - expected).max() / np.abs(expected).max(), bound=1e-6)


def test_preprocessing_by_hand():
    pink = Image.new("RGB", (7, 5), (255, 0, 128))
    found = preprocess([pink, pink], size=3)
    assert found.shape == (2, 3, 3, 3)
    # (x / 255 - mean) / std
    np.testing.assert_allclose(found[1, 0, 0], [1.9303361, -1.7520971, 0.3399488], atol=1e-6)
    assert preprocess([], size=3).shape == (0, 3, 3, 3)
