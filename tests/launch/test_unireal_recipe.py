"""UniReal's recipe at tiny size: encode, train, sample, and the next stage."""

import jax
import numpy as np
import pytest
from PIL import Image

from data_pipelines.build import check_data
from data_pipelines.miniworld.generate import generate
from data_pipelines.miniworld.manifest import Settings
from launch.encode import encode
from unidiff_jax.config import ConfigError, load_config
from unidiff_jax.export.mapping import flatten
from unidiff_jax.export.run import export_run
from unidiff_jax.export.unified import from_unified
from unidiff_jax.sample.pipeline import Pipeline
from unidiff_jax.text import FRAME_NAMES, MAX_NAMES, load_tokenizer, train_tokenizer
from unidiff_jax.train.loop import train
from unidiff_jax.train.metrics import read_metrics
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
STAGES = ("pretrain", "256", "512", "1024")
PICTURE = np.zeros((64, 64, 3), np.uint8)


@pytest.fixture(scope="module")
def config(released, tmp_path_factory):
    """The tiny recipe with its data sets encoded."""
    scenes, latents = (tmp_path_factory.mktemp(name) for name in ("scenes", "latents"))
    generate(scenes, Settings(size=64, counts={"train": 24}, samples=1), progress="none")

    def config(*more, start=""):
        spec = f"configs/unireal.py:tiny,weights={released},start={start}"
        found = load_config(spec, overrides=[*SHORT, *more]).unlock()
        for source in found.data.sources.values():
            source.path = str(scenes)
        found.data.folder = str(latents)
        return found.lock()

    encode(config())
    return config


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    return workdir, train(config(), workdir)


def test_all_tasks_train_on_latents(config, run):
    workdir, state = run
    assert {path.split("/")[0] for path in flatten(state.params)} == {"dit"}
    assert {path.split("/")[0] for path in flatten(state.frozen)} == {"text_encoder"}
    rows = read_metrics(workdir / "metrics.jsonl")
    losses = {key.split("/")[-1]: v for row in rows for key, v in row.items() if "out/loss/" in key}
    assert set(losses) == set(config().data.tasks) and np.isfinite(list(losses.values())).all()


def test_a_run_samples(run):
    pipeline = Pipeline.from_workdir(run[0])
    edited = pipeline("edit", source=PICTURE, instruction="make the cube red")["edited"]
    assert edited.size == (64, 64)


def test_a_run_is_exported_with_the_parts_that_it_used(run, released, tmp_path):
    assert export_run(run[0], tmp_path / "out").name == "unified"
    found = from_unified(tmp_path / "out" / "transformer")
    expected, params = flatten(run[1].ema["dit"]), flatten(found.params)
    assert params.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(params[path], np.asarray(value), err_msg=path)
    flow = {"prediction": "v", "shift": 3.0, "min_sigma": 0.05, "timed_conditions": False}
    assert found.values["fusion"] == "joint" and found.values["flow"] == flow
    assert found.values["autoencoder"]["scaling_factor"] == 1.5305
    for part in ("vae", "text_encoder", "tokenizer"):
        for file in (released / part).iterdir():
            copy = tmp_path / "out" / part / file.name
            assert copy.read_bytes() == file.read_bytes(), file
    with pytest.raises(FileNotFoundError, match=r"holds no vae; .* holds no text_encoder"):
        export_run(run[0], tmp_path / "other", base=tmp_path / "out" / "transformer")


def test_the_command_takes_the_parts_of_a_prompt(run, run_command, tmp_path):
    Image.fromarray(PICTURE).save(tmp_path / "asset.png")
    done = run_command(
        "sample",
        f"--workdir={run[0]}",
        "--task=customize",
        *[f"--given=assets={tmp_path / 'asset.png'}"] * 2,
        "--base_prompt=the cube of IMG1 beside the sphere of IMG2",
        "--tags=with reference object,synthetic style",
        "--role=assets=control",
        f"--out={tmp_path / 'made.png'}",
    )
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "made.png").size == (64, 64)


def test_prompts_name_frames_by_spare_ids_of_the_t5(run):
    maker = Pipeline.from_workdir(run[0]).maker
    ids, names = maker.encode_prompt("put the cube of IMG1 into IMG2; and in RES2 its mask")
    found = {name: i for i, name in zip(ids, names, strict=True) if name}
    assert set(found) == {1, 2, MAX_NAMES + 2}
    last = maker.tokenizer.vocab_size + len(FRAME_NAMES) - 1
    assert found[1] == last and found[2] == last - 1
    assert last < 512  # the text encoder has a row for each


def test_a_stage_starts_from_the_averages_of_the_one_before(config, run, tmp_path):
    more = ("train.num_steps=1", "optim.learning_rate=0.0", "data.shift=1.0")
    state = train(config(*more, start=run[0]), tmp_path)
    before = flatten(run[1].ema)
    for path, value in flatten(state.params).items():
        np.testing.assert_array_equal(np.asarray(value), np.asarray(before[path]), err_msg=path)
    with pytest.raises(ConfigError, match=r"another model: model\.depth is 2, the folder's 3"):
        train(config("model.depth=2", start=run[0]), tmp_path / "other")
    with pytest.raises(FileNotFoundError, match="holds no training run"):
        train(config(start=tmp_path / "absent"), tmp_path / "other")


def test_a_tokenizer_without_names_is_refused(config, tmp_path):
    train_tokenizer(["a red cube"] * 3, folder=tmp_path, vocab_size=40)
    assert not load_tokenizer(tmp_path).names_frames
    with pytest.raises(ConfigError, match="calls frames IMG1 and so on, but init"):
        check_data(config(f"init.tokenizer={tmp_path}"))


@pytest.mark.parametrize("stage", STAGES)
def test_the_stages_have_the_papers_size(stage):
    config = load_config(f"configs/unireal.py:stage={stage}")
    model = model_parts(config)
    trained, frozen = model.split(model.shapes)
    count = sum(leaf.size for leaf in jax.tree.leaves(trained))
    assert count == 5_047_964_736 and abs(count / 5e9 - 1) < 0.02
    assert set(frozen) == {"text_encoder"}
    assert {source.task for source in config.data.sources.values()} == set(config.data.tasks)
    places = (config.image_size // config.autoencoder.downscale // config.patch) ** 2
    assert config.data.row.tokens == places * (config.data.row.frames - 1)
    assert config.optim.learning_rate == 1e-5 and not config.flow.timed_conditions


def test_shares_are_square_roots_of_the_pictures():
    tasks = load_config("configs/unireal.py").data.tasks
    assert sum(task.weight for task in tasks.values()) == pytest.approx(1, abs=1e-3)
    ratio = tasks.text_to_image.weight / tasks.next_frame.weight
    assert ratio == pytest.approx((300 / 8) ** 0.5, rel=1e-2)
    assert set(load_config("configs/unireal.py:stage=pretrain").data.tasks) == {"text_to_image"}
    with pytest.raises(ConfigError, match="stage='128' is unknown; one of pretrain, 256"):
        load_config("configs/unireal.py:stage=128")
