"""UNIMO-G's recipe at tiny size: pictures in prompts are read, cached, trained on, sampled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from fake_models import fake_tools
from flax import nnx
from PIL import Image

from configs.unimog import SIZES, STAGES
from data_pipelines.build import make_loader, make_maker, make_sources, make_tokenizer, text_origin
from data_pipelines.miniworld.generate import generate
from data_pipelines.miniworld.manifest import Settings
from data_pipelines.text_states import TextStates, prompt_key
from launch.encode import encode
from launch.precompute import precompute
from launch.tiny_onediffusion import write_tiny_blip2
from unidiff_jax.config import ConfigError, load_config
from unidiff_jax.evals.benchmarks import get_benchmark
from unidiff_jax.evals.benchmarks.generate import load_generator
from unidiff_jax.evals.benchmarks.miniworld_layouts import write_layout
from unidiff_jax.evals.benchmarks.runner import run_benchmark
from unidiff_jax.export.mapping import flatten
from unidiff_jax.paths import as_path
from unidiff_jax.sample.images import InputError
from unidiff_jax.sample.multimodal import LoadedMultimodal
from unidiff_jax.sample.pipeline import Pipeline
from unidiff_jax.tasks import PLACEHOLDER, get_task
from unidiff_jax.text import load_tokenizer
from unidiff_jax.train.loop import train
from unidiff_jax.train.metrics import read_metrics
from unidiff_jax.train.program import batch_shapes
from unidiff_jax.train.workdir import model_parts

SHORT = (
    "train.num_steps=2",
    "train.log_every=1",
    "train.eval_every=2",
    "train.sample_every=2",
    "train.save_every=2",
    "train.eval_items=1",
    "sample.num_steps=1",
    "data.batch_rows=4",
    "data.encode.validation=8",
    "data.encode.shards=1",
    "data.encode.batch=8",
)


@pytest.fixture(scope="module")
def config(released, blip2, tmp_path_factory):
    """The tiny recipe's last stage with its data sets encoded and its prompts' states written."""
    scenes, latents = (tmp_path_factory.mktemp(name) for name in ("scenes", "latents"))
    settings = Settings(size=64, counts={"train": 24}, samples=1, clip_frames=2)
    generate(scenes, settings, progress="none")

    def config(*more, encoder=blip2):
        spec = f"configs/unimog.py:tiny,weights={released},encoder={encoder}"
        found = load_config(spec, overrides=[*SHORT, *more]).unlock()
        for source in found.data.sources.values():
            source.path = str(scenes)
        found.data.folder = str(latents / "pictures")
        return found.lock()

    encode(config())
    return config


@pytest.fixture(scope="module")
def cached(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cached") / "states"
    precompute(config(f"data.text_states={folder}"), num_shards=1, batch=4)
    return folder


@pytest.fixture(scope="module")
def run(config, cached, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    return workdir, train(config(f"data.text_states={cached}"), workdir)


def batch_of(config):
    return next(iter(make_loader(config, make_tokenizer(config, config.init.tokenizer))))


def test_rows_hold_pictures_and_masks(config):
    batch = batch_of(config())
    shapes = batch_shapes(config(), sharding=None)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), batch) == jax.tree.map(
        lambda x: (x.shape, x.dtype), shapes
    )
    assert batch.asset_features.dtype == np.uint8 and batch.visual is None
    shown = batch.text_asset > 0
    np.testing.assert_array_equal(shown, batch.text_entity > 0)
    # each picture has as many places as the encoder makes vectors of it
    for row in batch.text_asset:
        assert set(np.bincount(row[row > 0])[1:].tolist()) <= {0, 4}
    assert 0 < batch.entity_mask.max() <= 1 and batch.entity_mask.shape[-1] == 4
    assert set(np.unique(batch.given)) == {0}


def test_states_of_the_step_the_cache_and_the_encoder_agree(config, cached, blip2):
    plain, held = batch_of(config()), batch_of(config(f"data.text_states={cached}"))
    np.testing.assert_array_equal(plain.text_segment, held.text_segment)
    encoder = LoadedMultimodal.load(blip2, tokenizer=load_tokenizer(blip2))
    module = nnx.merge(encoder.graphdef, encoder.params)
    device = tiny.on_device(plain)
    states = module.read_assets(
        device.text_ids,
        segment=device.text_segment,
        asset=device.text_asset,
        features=device.asset_features,
    )
    used = plain.text_segment > 0
    found = np.asarray(held.text_states, np.float32)
    np.testing.assert_allclose(found[used], np.asarray(states)[used], atol=0.03)


def test_the_same_prompt_by_name_and_by_place(config, blip2):
    """`<img>` and the batch's places are one encoder."""
    encoder = LoadedMultimodal.load(blip2, tokenizer=load_tokenizer(blip2))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 50, 40, 3)).astype(np.uint8)
    prompt = [Image.fromarray(pixels[0]), " on ", Image.fromarray(pixels[1])]
    states, mask, picture = encoder.encode([prompt])
    maker = make_maker(config(), load_tokenizer(blip2))
    item = {"later": np.zeros((64, 64, 3), np.uint8), "slots": "<p> on <p>", "assets": [*pixels]}
    task = get_task("interleave")
    text = maker.encode_item("<p> on <p>", task, item)
    shown = maker.shown_pictures(task, item, text)
    count = len(text.ids)
    np.testing.assert_array_equal(picture[0, :count], shown.numbers)
    features = np.concatenate([0 * shown.features[:1], shown.features])
    found = nnx.merge(encoder.graphdef, encoder.params).read_assets(
        jnp.asarray([text.ids]),
        segment=jnp.ones((1, count), jnp.int32),
        asset=jnp.asarray([shown.numbers]),
        features=jnp.asarray(features)[None],
    )
    assert mask.sum() == count
    np.testing.assert_allclose(found[0], states[0, :count], atol=2e-5)


def test_states_are_of_an_encoder_and_a_prompt_with_its_pictures(config, cached, tmp_path):
    chosen = config(f"data.text_states={cached}")
    states = TextStates(cached, origin=text_origin(chosen))
    tokenizer = make_tokenizer(chosen, chosen.init.tokenizer)
    maker, task = make_maker(chosen, tokenizer), get_task("interleave")
    source = make_sources(chosen, split="train")["interleave"]
    items = [source.item(source[i], task, np.random.default_rng(0)) for i in range(len(source))]
    item = next(item for item in items if len(item["features"]))
    text = maker.encode_item(task.write(item, style=maker.style), task, item)
    shown = maker.shown_pictures(task, item, text)
    assert states(text.ids, shown.features).shape == (len(text.ids), 64)
    other = shown.features.copy()
    other[0, 0] ^= 1  # a pixel
    for ids, features in ((text.ids, other), (text.ids[1:], shown.features), (text.ids, None)):
        assert prompt_key(ids, features) != prompt_key(text.ids, shown.features)
        with pytest.raises(ConfigError, match="has no states of a prompt"):
            states(ids, features)
    write_tiny_blip2(tmp_path, seed=1)
    with pytest.raises(ConfigError, match="was written with"):
        TextStates(cached, origin=text_origin(config(encoder=tmp_path)))


def test_a_run_trains_the_denoiser_alone_with_maps(run):
    workdir, state = run
    assert {path.split("/")[0] for path in flatten(state.params)} == {"dit"}
    rows = read_metrics(workdir / "metrics.jsonl")
    maps = [row["train/map_error"] for row in rows if "train/map_error" in row]
    assert len(maps) == 2 and all(0 < value < 1 for value in maps)
    losses = {key.split("/")[-1] for row in rows for key in row if "out/loss/" in key}
    assert losses == {"interleave", "text_to_image"}


def test_a_run_samples_prompts_with_pictures(run, tmp_path):
    pipeline = Pipeline.from_workdir(run[0])
    for name, level in (("fox", 0), ("ball", 255)):
        Image.fromarray(np.full((40, 40, 3), level, np.uint8)).save(tmp_path / f"{name}.png")

    def made(slots, **fields):
        return np.asarray(pipeline("interleave", slots=slots, **fields)["later"])

    paths = [str(tmp_path / f"{name}.png") for name in ("fox", "ball")]
    prompt = f"<img>{paths[0]}</img> on a <img>{paths[1]}</img>"
    first, second = made(prompt), made(f"<img>{paths[1]}</img> on a <img>{paths[0]}</img>")
    assert first.shape == (64, 64, 3) and (first != second).any()
    np.testing.assert_array_equal(first, made("<p> on a <p>", assets=paths))
    assert made("a red cube").shape == (64, 64, 3)
    with pytest.raises(InputError, match="stands for one"):
        made(f"<img>{paths[0]}</img> on <p>")
    with pytest.raises(InputError, match="without its </img>"):
        made("<img>fox")


@pytest.mark.parametrize("suite", ["multibench", "dreambench"])
def test_a_run_is_asked_with_pictures_between_the_words(run, tmp_path, suite):
    write_layout(suite, tmp_path / "data", count=1)
    model, asked = load_generator(run[0], num_steps=1), []
    example = model._pipeline.example
    model._pipeline.example = lambda *args, **call: (
        asked.append((args, call)) or example(*args, **call)
    )
    benchmark = get_benchmark(suite)
    results = run_benchmark(
        benchmark, data=tmp_path / "data", out=tmp_path / "out", generator=model,
        tools=fake_tools(), limit=2,
    )  # fmt: skip
    items = benchmark.read(as_path(tmp_path / "data"), "test")[:2]
    for (args, call), item in zip(asked, items, strict=True):
        assert args == ("interleave",) and call["slots"] == item.text["slots"]
        shown = item.given["assets"]
        assert call["slots"].count(PLACEHOLDER) == len(shown) > 0
        for given, picture in zip(call["assets"], shown, strict=True):
            np.testing.assert_array_equal(np.asarray(given), np.asarray(picture.open()))
    assert {"clip_i", "clip_t", "dino", "average"} <= {s["metric"] for s in results["scores"]}
    assert all(score["n_failed"] == 0 for score in results["scores"])
    assert results["config"]["task"] == "interleave"


@pytest.mark.parametrize(("size", "millions"), [("B", 500), ("L", 1600), ("XL", 4000)])
def test_sizes(size, millions):
    config = load_config(f"configs/unimog.py:size={size}")
    model = model_parts(config)
    trained, frozen = model.split(model.shapes)
    count = sum(leaf.size for leaf in jax.tree.leaves(trained))
    assert count == pytest.approx(millions * 1e6, rel=0.1)
    assert set(frozen) == {"text_encoder"} and config.model.hidden_dim == SIZES[size][0]


@pytest.mark.parametrize("stage", STAGES)
def test_stages(stage):
    config = load_config(f"configs/unimog.py:stage={stage}")
    weights = {task: settings.weight for task, settings in config.data.tasks.items()}
    tuned = {"interleave": 0.9, "text_to_image": 0.1}
    assert weights == (tuned if stage == "tuning" else {"text_to_image": 1.0})
    assert bool(config.flow.map_weight) == (stage == "tuning")
    assert {source.task for source in config.data.sources.values()} == set(weights)
    pictures = config.data.batch_rows * (config.data.row.segments - 1)
    assert pictures == (10240 if stage == "words" else 3072)


def test_arguments_that_cannot_be():
    with pytest.raises(ConfigError, match="stage='2' is unknown; one of words, refine, tuning"):
        load_config("configs/unimog.py:stage=2")
    config = load_config("configs/unimog.py:prediction=eps")
    assert config.flow.prediction == config.flow.loss == "eps"
    plain = load_config("configs/unimog.py", overrides=["data.guidance=frames"])
    with pytest.raises(ConfigError, match="pictures stand in the prompt"):
        model_parts(plain)
    blind = load_config("configs/unimog.py", overrides=["data.entities=0"])
    with pytest.raises(ConfigError, match=r"needs data\.entities, which is 0"):
        model_parts(blind)
