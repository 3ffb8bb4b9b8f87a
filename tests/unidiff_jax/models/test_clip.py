"""CLIP's towers: packing, goldens of transformers (and transformers itself, marked torch), folders,
and the pictures' preprocessing.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_clip
from PIL import Image

from unidiff_jax.config import ConfigError
from unidiff_jax.export.files import open_tensors, read_config
from unidiff_jax.export.mapping import MappingError, flatten, from_official, to_official
from unidiff_jax.models.clip import places
from unidiff_jax.models.layers import abstract
from unidiff_jax.models.text_encoder import text_config
from unidiff_jax.sample.clip import CLIPImages, CLIPTexts, preprocess
from unidiff_jax.sample.encoders import LoadedText, released_text_config

TEXT, VISION, TEXTS = tiny_clip.TEXT, tiny_clip.VISION, tiny_clip.TEXTS
BOUND = 1e-5


def run(config, method, *arrays, **keywords):
    tower = tiny_clip.tower(config)
    arrays = [jnp.asarray(x) for x in arrays]
    return jax.tree.map(np.asarray, getattr(tower, method)(*arrays, **keywords))


def states(config, ids, segment):
    return run(config, "__call__", ids, segment=jnp.asarray(segment))


def difference(got, expected):
    return np.abs(got - expected).max() / np.abs(expected).max()


def test_places_start_again_in_every_example():
    segment = jnp.asarray([[1, 1, 1, 2, 2, 3, 0, 0], [4, 4, 1, 1, 1, 1, 1, 2]])
    found = np.asarray(places(segment))
    assert found.tolist() == [[0, 1, 2, 0, 1, 0, 0, 1], [0, 1, 0, 1, 2, 3, 4, 0]]


# ------------------------------------------------------------------------------------------ goldens


@pytest.mark.parametrize("act", tiny_clip.ACTIVATIONS)
@pytest.mark.parametrize(("name", "skip"), [("last", 0), ("penultimate", 1)])
@pytest.mark.parametrize("scan", [False, True], ids=["unrolled", "scan"])
def test_text_states_are_the_golden_ones(act, name, skip, scan, parity):
    ids, mask = tiny_clip.rows()
    config = dataclasses.replace(TEXT, hidden_act=act, skip_layers=skip, scan_layers=scan)
    expected = tiny_clip.load_golden(f"text_{act}")[name]
    got = states(config, ids, mask)
    assert np.isfinite(got).all()
    parity("CLIP text, states", difference(got[mask > 0], expected[mask > 0]), bound=BOUND)


@pytest.mark.parametrize("skip", [0, 1])
def test_packed_texts_have_the_golden_states(skip, parity):
    config = dataclasses.replace(TEXT, skip_layers=skip)
    ids, segment = np.zeros((2, 1, 20), np.int32)
    start = 0
    for number, text in enumerate(TEXTS, start=1):
        own = slice(start, start + len(text))
        ids[0, own], segment[0, own] = text, number
        start += len(text)
    _, mask = tiny_clip.rows()
    golden = tiny_clip.load_golden("text_quick_gelu")[("last", "penultimate")[skip]]
    got = states(config, ids, segment)[segment > 0]
    parity("CLIP text, packed", difference(got, golden[mask > 0]), bound=BOUND)
    changed = np.where((segment == 1) & (ids == 5), 6, ids)
    other = states(config, changed, segment)[segment > 0]
    place = int(np.argmax(changed != ids))
    np.testing.assert_array_equal(other[:place], got[:place])  # no token sees a later one
    assert np.abs(other[place] - got[place]).max() > 1e-2
    np.testing.assert_array_equal(other[len(TEXTS[0]) :], got[len(TEXTS[0]) :])


@pytest.mark.parametrize("act", tiny_clip.ACTIVATIONS)
@pytest.mark.parametrize("skip", [0, 2])
def test_text_embeddings_are_the_golden_ones(act, skip, parity):
    ids, mask = tiny_clip.rows()
    config = dataclasses.replace(TEXT, hidden_act=act, skip_layers=skip)
    got = run(config, "embed", ids, segment=jnp.asarray(mask))
    expected = tiny_clip.load_golden(f"text_{act}")["embedding"]
    parity("CLIP text, embeddings", difference(got, expected), bound=BOUND)


@pytest.mark.parametrize("act", tiny_clip.ACTIVATIONS)
def test_pictures_have_the_golden_states(act, parity):
    got = run(dataclasses.replace(VISION, hidden_act=act), "__call__", tiny_clip.pictures())
    golden = tiny_clip.load_golden(f"vision_{act}")
    parity("CLIP vision, states", difference(got.states, golden["states"]), bound=BOUND)
    parity("CLIP vision, embeddings", difference(got.embedding, golden["embedding"]), bound=BOUND)


@pytest.mark.torch
def test_the_goldens_are_transformers():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    for name, arrays in tiny_clip.goldens().items():
        stored = tiny_clip.load_golden(name)
        assert stored.keys() == arrays.keys()
        for key, expected in arrays.items():
            np.testing.assert_allclose(stored[key], expected, atol=1e-5, err_msg=f"{name} {key}")


# ------------------------------------------------------------------------------------------ folders


@pytest.mark.parametrize("config", [TEXT, VISION], ids=["text", "vision"])
@pytest.mark.parametrize("projection", [6, 0])
def test_round_trip(config, projection):
    config = dataclasses.replace(config, projection_dim=projection)
    official, table = tiny_clip.weights(config), tiny_clip.table(config)
    params = from_official(official, abstract(tiny_clip.make(config)).shapes, table=table)
    back = to_official(params, table=table)
    assert back.keys() == official.keys()
    for name, tensor in official.items():
        np.testing.assert_array_equal(back[name], tensor, err_msg=name)


def test_a_whole_clip_gives_both_towers(tmp_path):
    whole = tiny_clip.write_whole(tmp_path / "whole")
    alone = {
        name: tiny_clip.write_tower(tmp_path / name, config)
        for name, config in (("text", TEXT), ("vision", VISION))
    }
    tiny_clip.write_tokenizer(tmp_path / "bpe")
    texts = [CLIPTexts.load(f, tokenizer=tmp_path / "bpe") for f in (whole, alone["text"])]
    images = [CLIPImages.load(folder) for folder in (whole, alone["vision"])]
    for first, second in (texts, images):
        assert first.config == second.config and first.config.projection_dim == 6
        for path, value in flatten(first.params).items():
            np.testing.assert_array_equal(value, flatten(second.params)[path], err_msg=path)
    texts[0].save_pretrained(tmp_path / "text again", tokenizer=tmp_path / "bpe again")
    images[0].save_pretrained(tmp_path / "vision again")
    for name in ("text", "vision"):
        again, written = (open_tensors(tmp_path / f) for f in (f"{name} again", name))
        assert again.keys() == written.keys()
        for key in written:
            np.testing.assert_array_equal(again[key][...], written[key][...], err_msg=key)
        architecture = read_config(tmp_path / f"{name} again")["architectures"]
        assert architecture == read_config(tmp_path / name)["architectures"]
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 30, 3), np.uint8))
    np.testing.assert_array_equal(images[0].embed([picture]), images[1].embed([picture]))


def test_towers_that_share_ids(tmp_path):
    """States of two folders side by side, each without its last block; round trip of both."""
    second = dataclasses.replace(
        TEXT, hidden_size=24, num_hidden_layers=2, hidden_act="gelu", projection_dim=0
    )
    configs, names = (TEXT, second), ("l", "g")
    size = tiny_clip.write_tokenizer(tmp_path / "bpe")
    configs = [dataclasses.replace(c, vocab_size=size) for c in configs]
    folders = [tiny_clip.write_tower(tmp_path / n, c) for n, c in zip(names, configs, strict=True)]
    text = LoadedText.load(",".join(map(str, folders)), tokenizer=tmp_path / "bpe", skip_layers=1)
    assert text.config.width == 40 and text.max_length == TEXT.max_position_embeddings
    prompts = ["", "red", "a red cube of a small cube"]
    got, mask = (np.asarray(x) for x in text.encode(prompts))
    assert mask.sum(1).tolist() == [2, 3, 10]  # the longest is cut
    ids = np.zeros(mask.shape, np.int32)
    for row, prompt in zip(ids, prompts, strict=True):
        tokens = text.tokenizer.encode(prompt)[:10]
        row[: len(tokens)] = [*tokens[:-1], size - 1]
    expected = [states(dataclasses.replace(c, skip_layers=1), ids, mask) for c in configs]
    np.testing.assert_allclose(got, np.concatenate(expected, -1), atol=1e-5)

    again = [tmp_path / "l again", tmp_path / "g again"]
    text.save_pretrained(",".join(map(str, again)), tokenizer=tmp_path / "bpe again")
    other = LoadedText.load(
        ",".join(map(str, again)), tokenizer=tmp_path / "bpe again", skip_layers=1
    )
    np.testing.assert_array_equal(got, other.encode(prompts)[0])
    assert not any("projection" in name for name in open_tensors(again[0]))
    with pytest.raises(ConfigError, match="model_type='t5' is no CLIP text tower"):
        (tmp_path / "g" / "config.json").write_text('{"model_type": "t5"}')
        released_text_config(",".join(map(str, folders)), dtype="float32")


def test_folders_that_do_not_fit(tmp_path):
    tiny_clip.write_tokenizer(tmp_path / "bpe")
    wide = dataclasses.replace(TEXT, intermediate_size=32)
    tiny_clip.write_tower(tmp_path, wide)
    (tmp_path / "config.json").write_text(
        (tmp_path / "config.json").read_text().replace('"intermediate_size": 32', '"x": 1')
    )
    with pytest.raises(MappingError, match=r"text_model\.encoder\.layers\.0\.mlp\.fc1\.weight"):
        CLIPTexts.load(tmp_path, tokenizer=tmp_path / "bpe")
    with pytest.raises(ConfigError, match="'clip_text_model' is no CLIP vision tower"):
        CLIPImages.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "relu"}, "one of quick_gelu, gelu"),
        ({"num_attention_heads": 3}, "hidden_size=16 must be a multiple"),
        ({"skip_layers": 3}, "skip_layers=3 must leave some of the 3 layers"),
    ],
)
def test_sizes_that_cannot_be(change, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(TEXT, **change)


def test_the_choice_in_a_config():
    shared = {"kind": "clip", "vocab_size": 50, "skip_layers": 1, "dtype": "bfloat16"}
    sizes = ({"hidden_size": 16}, {"hidden_size": 24, "hidden_act": "gelu"})
    towers = text_config({**shared, "towers": sizes})
    assert [t.hidden_size for t in towers.towers] == [16, 24] and towers.width == 40
    assert {(t.vocab_size, t.skip_layers, t.dtype) for t in towers.towers} == {(50, 1, "bfloat16")}
    assert text_config({**shared, "hidden_size": 24}).width == 24
    t5 = {"vocab_size": 8, "d_model": 4, "d_ff": 4, "d_kv": 2, "num_layers": 1, "num_heads": 2}
    assert text_config(t5) == text_config({**t5, "kind": "t5"}) and text_config(t5).width == 4
    with pytest.raises(ConfigError, match=r"text\.kind='bert' is unknown; one of t5, clip"):
        text_config({"kind": "bert"})
    with pytest.raises(ConfigError, match="towers gives skip_layers"):
        text_config({"kind": "clip", "towers": ({"skip_layers": 1},)})


# ------------------------------------------------------------------------------------ preprocessing


@pytest.mark.parametrize("sides", [(40, 31), (30, 47), (20, 20), (11, 64), (21, 20)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pictures_are_prepared_as_transformers_does(sides, mode):
    pil = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    size = 20
    theirs = pil.CLIPImageProcessorPil(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}
    )
    values = np.random.default_rng(0).integers(0, 256, (*sides[::-1], 3), np.uint8)
    picture = Image.fromarray(values).convert(mode)
    expected = theirs(picture, return_tensors="np")["pixel_values"]
    got = preprocess([picture], size=size)
    assert got.shape == (1, size, size, 3) and got.dtype == np.float32
    np.testing.assert_allclose(got.transpose(0, 3, 1, 2), expected, atol=1e-6)


def test_pictures_of_another_size_are_refused():
    with pytest.raises(ValueError, match="16 x 20 pixels, this tower reads 20 x 20"):
        run(VISION, "__call__", tiny_clip.pictures()[:, :16])


# ----------------------------------------------------------------------------- against transformers


@pytest.fixture(scope="module")
def theirs():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)

    def make(kind, act="gelu"):
        values = []
        for config in (TEXT, VISION):
            own = tiny_clip.settings(dataclasses.replace(config, hidden_act=act))
            values.append(
                {k: v for k, v in own.items() if k not in ("model_type", "architectures")}
            )
        text = transformers.CLIPTextConfig(**values[0])
        vision = transformers.CLIPVisionConfig(**values[1])
        whole = transformers.CLIPConfig(
            text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=6
        )
        config = text if "Text" in kind else vision if "Vision" in kind else whole
        model = getattr(transformers, kind)(config).eval()
        for parameter in model.parameters():  # norms away from one, biases from zero
            parameter.data += 0.2 * torch.randn_like(parameter)
        return model

    return make


@pytest.mark.torch
@pytest.mark.parametrize("act", tiny_clip.ACTIVATIONS)
@pytest.mark.parametrize("skip", [0, 1])
@pytest.mark.parametrize("kind", ["CLIPTextModel", "CLIPTextModelWithProjection", "CLIPModel"])
def test_text_folders_equal_transformers(theirs, tmp_path, parity, act, skip, kind):
    import torch

    model = theirs(kind, act)
    model.save_pretrained(tmp_path)
    tiny_clip.write_tokenizer(tmp_path / "bpe")
    ids, mask = tiny_clip.rows()
    inputs = {
        "input_ids": torch.from_numpy(ids.astype(np.int64)),
        "attention_mask": torch.from_numpy(mask.astype(np.int64)),
        "output_hidden_states": True,
    }
    with torch.no_grad():
        if kind == "CLIPModel":
            expected = model.text_model(**inputs)
            embedding = model.text_projection(expected.pooler_output)
        else:
            expected = model(**inputs)
            embedding = expected.get("text_embeds", expected.get("pooler_output"))
    wanted = expected.hidden_states[-2] if skip else expected.last_hidden_state
    ours = LoadedText.load(tmp_path, tokenizer=tmp_path / "bpe", skip_layers=skip)
    got = ours_states(ours, ids, mask)
    error = difference(got[mask > 0], wanted.numpy()[mask > 0])
    parity("CLIP text, folders", error, bound=BOUND)
    tower = CLIPTexts.load(tmp_path, tokenizer=tmp_path / "bpe")
    got = run_loaded(tower, "embed", ids, segment=jnp.asarray(mask))
    parity("CLIP text, folders, embeddings", difference(got, embedding.numpy()), bound=BOUND)


def ours_states(text, ids, mask):
    from unidiff_jax.sample.encoders import encode_text

    found = encode_text(text.params, jnp.asarray(ids), jnp.asarray(mask), graphdef=text.graphdef)
    return np.asarray(found)


def run_loaded(loaded, method, *arrays, **keywords):
    from flax import nnx

    tower = nnx.merge(loaded.graphdef, loaded.params)
    found = getattr(tower, method)(*map(jnp.asarray, arrays), **keywords)
    return jax.tree.map(np.asarray, found)


@pytest.mark.torch
@pytest.mark.parametrize("act", tiny_clip.ACTIVATIONS)
@pytest.mark.parametrize("kind", ["CLIPVisionModel", "CLIPVisionModelWithProjection", "CLIPModel"])
def test_vision_folders_equal_transformers(theirs, tmp_path, parity, act, kind):
    import torch

    model = theirs(kind, act)
    model.save_pretrained(tmp_path)
    values = tiny_clip.pictures()
    pixels = torch.from_numpy(values).permute(0, 3, 1, 2)
    with torch.no_grad():
        if kind == "CLIPModel":
            expected = model.vision_model(pixels)
            embedding = model.visual_projection(expected.pooler_output)
        else:
            expected = model(pixels)
            embedding = expected.get("image_embeds", expected.get("pooler_output"))
    got = run_loaded(CLIPImages.load(tmp_path), "__call__", values)
    states = expected.last_hidden_state.numpy()
    parity("CLIP vision, folders", difference(got.states, states), bound=BOUND)
    error = difference(got.embedding, embedding.numpy())
    parity("CLIP vision, folders, embeddings", error, bound=BOUND)


@pytest.mark.torch
def test_transformers_reads_what_we_write(theirs, tmp_path):
    transformers = pytest.importorskip("transformers")
    model = theirs("CLIPModel")
    model.save_pretrained(tmp_path / "whole")
    tiny_clip.write_tokenizer(tmp_path / "bpe")
    texts = CLIPTexts.load(tmp_path / "whole", tokenizer=tmp_path / "bpe")
    texts.save_pretrained(tmp_path / "text", tokenizer=tmp_path / "text")
    CLIPImages.load(tmp_path / "whole").save_pretrained(tmp_path / "vision")
    expected = {name: value.numpy() for name, value in model.state_dict().items()}
    for name in ("Text", "Vision"):
        read = getattr(transformers, f"CLIP{name}ModelWithProjection").from_pretrained(
            tmp_path / name.lower()
        )
        for key, value in read.state_dict().items():
            np.testing.assert_array_equal(value.numpy(), expected[key], err_msg=key)
