"""Training with CLIP as the text encoder: from scratch, and on two released towers."""

import dataclasses

import numpy as np
import pytest
import tiny_clip
import tiny_run
from ml_collections import ConfigDict
from PIL import Image

from data_pipelines.build import check_data, make_tokenizer
from unidiff_jax.config import ConfigError
from unidiff_jax.export.mapping import flatten
from unidiff_jax.export.run import choose_layout
from unidiff_jax.sample.pipeline import Pipeline
from unidiff_jax.train.initial import check_released
from unidiff_jax.train.loop import train
from unidiff_jax.train.workdir import model_configs, model_parts

SHORT = ("train.num_steps=3", "train.eval_every=3", "train.save_every=3", "train.sample_every=3")
LENGTH = 100
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
SECOND = SIZES | {"hidden_size": 8, "num_hidden_layers": 3, "hidden_act": "gelu"}


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bpe")
    return folder, tiny_clip.write_tokenizer(folder)


@pytest.fixture(scope="module")
def config(miniworld, bpe):
    def config(*more, text=SIZES):
        row = (f"max_text={LENGTH}", "data.row.text=400", f"init.tokenizer={bpe[0]}")
        found = tiny_run.config(miniworld, *SHORT, *row, *more).unlock()
        found.text = ConfigDict(
            {"kind": "clip", "vocab_size": bpe[1], "max_position_embeddings": LENGTH, **text}
            | {"skip_layers": 1, "scan_layers": False, "remat": "none", "dtype": "float32"}
        )
        return found.lock()

    return config


@pytest.fixture(scope="module")
def released(config, tmp_path_factory):
    """The config of two towers, and the folders that their weights come from."""
    folder = tmp_path_factory.mktemp("released")
    text = {"towers": (SIZES, SECOND)}
    found = model_configs(config(text=text))[1]
    towers = [dataclasses.replace(tower, projection_dim=5) for tower in found.towers]
    folders = [
        tiny_clip.write_tower(folder / name, tower)
        for name, tower in zip("lg", towers, strict=True)
    ]
    init = ("init.text_encoder=" + ",".join(map(str, folders)), "init.frozen_dtype=float32")
    return lambda *more: config(*init, "train.trainable=dit/.*", *more, text=text), towers


def test_a_clip_learns_from_scratch_and_samples(config, tmp_path):
    start = flatten(train(config("train.num_steps=1", "train.save_every=1"), tmp_path / "a").params)
    state = train(config(), tmp_path / "run")
    moved = {path for path, value in flatten(state.params).items() if np.any(value != start[path])}
    assert {
        f"text_encoder/tower0/{name}" for name in ("token_embedding", "blocks/q/weight")
    } <= moved
    # the last block and the norm behind it are skipped
    path = "text_encoder/tower0/blocks/ffn_up/bias"
    change = np.any(flatten(state.params)[path] != start[path], axis=1)
    assert change.tolist() == [True, False]
    assert "text_encoder/tower0/final_norm/bias" not in moved
    assert np.asarray(Image.open(tmp_path / "run" / "samples" / "step_00000003.png")).std() > 0

    pipe = Pipeline.from_workdir(tmp_path / "run")
    assert pipe.maker.tokenizer.kind == "clip"
    picture = np.zeros((32, 32, 3), np.uint8)
    plain, guided = (
        pipe("edit", source=picture, instruction="make the cube red", guidance=g)["edited"]
        for g in (1.0, 4.0)
    )
    assert np.abs(np.asarray(plain, int) - np.asarray(guided, int)).max() > 0


def test_released_towers_stay_as_they_are(released, tmp_path):
    config, towers = released
    chosen = config()
    assert model_configs(chosen)[0].text_dim == 24
    state = train(chosen, tmp_path)
    assert {path.split("/")[0] for path in flatten(state.params)} == {"dit"}
    for name, tower in zip(("tower0", "tower1"), towers, strict=True):
        official = tiny_clip.weights(tower)
        found = state.frozen["text_encoder"][name]
        assert "projection" not in found
        np.testing.assert_array_equal(
            found["token_embedding"], official["text_model.embeddings.token_embedding.weight"]
        )
        last = tower.num_hidden_layers - 1
        np.testing.assert_array_equal(
            found["blocks"]["k"]["weight"][last].T,
            official[f"text_model.encoder.layers.{last}.self_attn.k_proj.weight"],
        )
    assert int(train(chosen, tmp_path).step) == 3  # an old workdir's config reads back the same


def test_towers_of_another_model_are_refused(released, config):
    chosen, _ = released
    both = chosen().init.text_encoder
    with pytest.raises(ConfigError, match="text is CLIPText, the folder's CLIPText and CLIPText"):
        check_released(config(f"init.text_encoder={both}"))
    first, second = both.split(",")
    with pytest.raises(ConfigError, match=r"text\.towers\[0\]\.hidden_size is 16, the folder's 8"):
        check_released(chosen(f"init.text_encoder={second},{first}"))


def test_settings_that_do_not_fit_clip(config, miniworld, bpe, tmp_path):
    with pytest.raises(ConfigError, match=r"max_text=101, but the text encoder reads 100 tokens"):
        model_configs(config("max_text=101"))
    with pytest.raises(ConfigError, match=r"text\.vocab_size=160, but the tokenizer has 196"):
        make_tokenizer(config(text=SIZES | {"vocab_size": 160}), tmp_path / "small")
    with pytest.raises(ConfigError, match="only a T5's is trained here"):
        make_tokenizer(config("init.tokenizer="), tmp_path / "none")
    t5 = tiny_run.config(miniworld, f"init.tokenizer={bpe[0]}")
    with pytest.raises(ConfigError, match=r"text\.kind=t5, but the tokenizer is of kind clip"):
        make_tokenizer(t5, tmp_path / "other")
    named = config().unlock()
    named.data.prompts = "base"
    with pytest.raises(ConfigError, match=r"model\.fusion='joint' and 'dual' tell them"):
        check_data(named)
    with pytest.raises(ConfigError, match=r"text\.kind='clip', the layout means 't5'"):
        choose_layout(config(), model_configs(config())[0], "released")


def test_a_config_without_a_kind_is_a_t5(miniworld):
    plain = tiny_run.config(miniworld)
    assert "kind" not in plain.text
    named = plain.copy_and_resolve_references().unlock()
    named.text.kind = "t5"
    assert model_configs(plain) == model_configs(named)
    assert "text_encoder/position_bias" in flatten(model_parts(plain).shapes)
