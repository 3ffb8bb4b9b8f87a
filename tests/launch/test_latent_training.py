"""OneDiffusion's recipe end to end at tiny size: encode, train, resume, export, sample."""

import re

import jax
import numpy as np
import pytest
import tiny_clip
from flax import nnx
from ml_collections import ConfigDict
from PIL import Image

from data_pipelines import build
from data_pipelines.build import text_origin
from data_pipelines.miniworld.generate import generate
from data_pipelines.miniworld.manifest import Settings
from data_pipelines.text_states import TextStates
from launch.encode import encode
from launch.precompute import precompute
from unidiff_jax import OneDiffusionPipeline, cameras
from unidiff_jax.config import ConfigError, load_config
from unidiff_jax.evals.benchmarks import get_benchmark
from unidiff_jax.evals.benchmarks import views as gso
from unidiff_jax.evals.benchmarks.generate import Request, WorkdirGenerator, load_generator
from unidiff_jax.evals.benchmarks.miniworld_layouts import write_layout
from unidiff_jax.evals.benchmarks.runner import run_benchmark
from unidiff_jax.export.mapping import flatten
from unidiff_jax.export.run import export_run
from unidiff_jax.frames import FRAME_COLUMNS
from unidiff_jax.models.clip import CLIPTextConfig
from unidiff_jax.outside import InputError
from unidiff_jax.sample.encoders import LoadedText
from unidiff_jax.sample.pipeline import Pipeline
from unidiff_jax.train.checkpoint import Checkpoints
from unidiff_jax.train.initial import load_released
from unidiff_jax.train.loop import train
from unidiff_jax.train.metrics import read_metrics
from unidiff_jax.train.program import make_program
from unidiff_jax.train.state import initial_params, join
from unidiff_jax.train.workdir import model_parts

SHORT = (
    "train.num_steps=6",
    "train.log_every=1",
    "train.eval_every=6",
    "train.sample_every=6",
    "train.save_every=3",
    "train.eval_items=2",
    "sample.num_steps=1",
    "data.encode.validation=4",
    "data.encode.batch=8",
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("miniworld64")
    counts = {"train": 40}
    generate(folder, Settings(size=64, counts=counts, shards=1, samples=1), progress="none")
    return folder


@pytest.fixture(scope="module")
def config(released, pictures, tmp_path_factory):
    folders = {}

    def config(arg, *more):
        spec = f"configs/onediffusion.py:tiny,weights={released},{arg}"
        stage = arg.partition(",")[0]
        found = load_config(spec, overrides=[*SHORT, *more]).unlock()
        for source in found.data.sources.values():
            source.path = str(pictures)
        encoded = stage not in folders
        if encoded:
            folders[stage] = tmp_path_factory.mktemp("latents")
        found.data.folder = str(folders[stage])
        if encoded:
            encode(found)
        return found.lock()

    return config


def leaves(params):
    return {k: np.asarray(v) for k, v in flatten(params).items()}


@pytest.fixture(scope="module")
def finetuned(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finetuned")
    return workdir, train(config("stage=finetune"), workdir)


def test_only_the_transformer_is_trained(finetuned):
    workdir, state = finetuned
    assert {path.split("/")[0] for path in leaves(state.params)} == {"dit"}
    assert {path.split("/")[0] for path in leaves(state.frozen)} == {"text_encoder"}
    rows = read_metrics(workdir / "metrics.jsonl")
    assert np.isfinite([row["train/loss/edit"] for row in rows if "train/loss/edit" in row]).all()
    assert np.asarray(Image.open(workdir / "samples" / "step_00000006.png")).std() > 0


def test_states_of_prompts_take_the_place_of_the_encoder(config, finetuned, tmp_path, monkeypatch):
    folder = tmp_path / "states"
    chosen = config("stage=finetune", f"data.text_states={folder}")
    with pytest.raises(ConfigError, match=r"write it with: python -m launch\.precompute"):
        train(chosen, tmp_path / "too soon")
    precompute(chosen, num_shards=3, batch=8)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "states-00001-of-00003.json").unlink()  # as if it had been stopped there
    precompute(chosen, num_shards=3, batch=8)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files

    digest, read = build.weights_digest, []
    monkeypatch.setattr(build, "weights_digest", lambda path: read.append(path) or digest(path))
    train(chosen, tmp_path / "run")
    assert len(read) == 1  # gigabytes
    expected, found = (
        [row["train/loss"] for row in read_metrics(path / "metrics.jsonl") if "train/loss" in row]
        for path in (finetuned[0], tmp_path / "run")
    )
    assert len(found) == 6
    # the states are rounded to 16 bits; a prompt with another one's states would be far off
    np.testing.assert_allclose(found, expected, rtol=2e-3)
    with pytest.raises(ConfigError, match="was written with"):
        train(config("stage=finetune", f"data.text_states={folder}", "max_text=63"), tmp_path)
    trained = config("stage=finetune", f"data.text_states={folder}", "train.trainable=.*")
    with pytest.raises(ConfigError, match="trains the text encoder"):
        train(trained, tmp_path)


def test_the_autoencoder_in_the_step_gives_the_latents_that_were_encoded_before(
    config, finetuned, tmp_path
):
    settings = ("autoencoder.in_step=True", f"data.row.tokens={16 * 8}", "data.tasks.edit.weight=1")
    before = config("stage=finetune", *settings[1:])
    inside = config("stage=finetune", *settings).unlock()
    inside.data.folder = str(tmp_path / "pictures")
    encode(inside.lock())

    model = model_parts(inside)
    program = make_program(inside)
    params = load_released(
        inside, model, shardings=join(program.shardings.params, program.shardings.frozen)
    )
    params = initial_params(
        model,
        seed=0,
        shardings=join(program.shardings.params, program.shardings.frozen),
        released=params,
    )
    tokenizer = build.make_tokenizer(inside, finetuned[0] / "tokenizer")
    (pixels, *_), (latents, *_) = (
        build.heldout_batches(c, tokenizer, num_items=4) for c in (inside, before)
    )
    assert pixels.token_std is None and pixels.tokens.shape[-1] == 12 * latents.tokens.shape[-1]
    found = jax.jit(lambda p, b: nnx.merge(model.graphdef, p).encode_pixels(b))(params, pixels)
    there = np.asarray(latents.token_segment) > 0
    assert there.any() and not there.all()
    for name in ("tokens", "token_std"):
        expected = getattr(latents, name)[there]
        # records hold 16 bits of a latent
        error = np.abs(np.asarray(getattr(found, name))[there] - expected).max()
        assert error < 2e-3 * np.abs(expected).max(), (name, error)

    state = train(inside, tmp_path / "run")
    assert {path.split("/")[0] for path in leaves(state.frozen)} == {"autoencoder", "text_encoder"}
    again, expected = (
        [row["train/loss"] for row in read_metrics(path / "metrics.jsonl") if "train/loss" in row]
        for path in (tmp_path / "run", tmp_path / "encoded")
        if path.exists() or train(before, path)
    )
    np.testing.assert_allclose(again, expected, rtol=2e-3)
    assert np.asarray(Image.open(tmp_path / "run/samples/step_00000006.png")).std() > 0


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.encode.buckets=True", "data.encode.buckets=False"),
        ("data.sources.edit.size=32", "data.sources.edit.size=64"),
        ("data.row.tokens=100", "data.row.tokens=112"),
        ("train.trainable=.*", "train.trainable=dit/"),
    ],
)
def test_the_autoencoder_in_the_step_needs_equal_pictures(config, tmp_path, setting, message):
    chosen = config("stage=finetune", "autoencoder.in_step=True", "data.row.tokens=128", setting)
    with pytest.raises(ConfigError, match=re.escape(message)):
        train(chosen, tmp_path / "run")


def test_states_are_those_of_the_prompt(config, released, tmp_path):
    chosen = config("stage=finetune", f"data.text_states={tmp_path / 'states'}")
    precompute(chosen, num_shards=1, batch=4)
    states = TextStates(tmp_path / "states", origin=text_origin(chosen))
    text = LoadedText.load(released / "text_encoder", tokenizer=released / "tokenizer")
    for prompt in ("", "[[image_editing]] make the cube blue"):
        ids = text.tokenizer.encode(prompt)
        if prompt:
            with pytest.raises(ConfigError, match="the data have changed"):
                states(ids)
            continue
        expected, _ = text.encode([prompt])
        found = states(ids).astype(np.float32)
        np.testing.assert_allclose(found, expected[0, : len(ids)], rtol=0.01, atol=0.01)


def test_states_of_clip_towers_are_stored_too(config, tmp_path):
    """Two towers whose widths add up to what the released transformer reads."""
    chosen = config("stage=finetune", "train.num_steps=2", "train.eval_every=2").unlock()
    size = tiny_clip.write_tokenizer(tmp_path / "bpe")
    shared = {"vocab_size": size, "max_position_embeddings": chosen.max_text, "skip_layers": 1}
    shared |= {"num_hidden_layers": 2, "intermediate_size": 16}
    towers = ({"hidden_size": 40}, {"hidden_size": 24, "hidden_act": "gelu"})
    folders = [
        tiny_clip.write_tower(tmp_path / name, CLIPTextConfig(**shared, **tower))
        for name, tower in zip("lg", towers, strict=True)
    ]
    chosen.text = ConfigDict({"kind": "clip", **shared, "dtype": "float32", "towers": towers})
    chosen.init.text_encoder = ",".join(map(str, folders))
    chosen.init.tokenizer = str(tmp_path / "bpe")
    stored = chosen.copy_and_resolve_references()
    stored.data.text_states = str(tmp_path / "states")
    precompute(stored, num_shards=2, batch=8)
    losses = []
    for number, found in enumerate((chosen, stored)):
        train(found, tmp_path / f"run {number}")
        rows = read_metrics(tmp_path / f"run {number}" / "metrics.jsonl")
        losses.append([row["train/loss"] for row in rows if "train/loss" in row])
    assert len(losses[0]) == 2
    np.testing.assert_allclose(losses[1], losses[0], rtol=2e-3)
    stored.text.skip_layers = 0
    with pytest.raises(ConfigError, match="was written with"):
        train(stored, tmp_path / "other")
    with pytest.raises(ConfigError, match="trains the text encoder"):
        stored.train.trainable = ".*tower1/.*norm.*"
        text_origin(stored)


def test_a_stopped_run_continues_bit_for_bit(config, finetuned, tmp_path, monkeypatch):
    real = Checkpoints.save

    def save(self, state, *, step, **rest):
        real(self, state, step=step, **rest)
        if step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save)
        with pytest.raises(KeyboardInterrupt):
            train(config("stage=finetune"), tmp_path)
    state = train(config("stage=finetune"), tmp_path)
    for path, value in leaves(finetuned[1].params).items():
        np.testing.assert_array_equal(leaves(state.params)[path], value, err_msg=path)


@pytest.mark.parametrize("arg", ["stage=finetune", "stage=finetune,lora=2"])
def test_a_fine_tuned_run_becomes_a_released_folder(config, released, finetuned, tmp_path, arg):
    workdir = finetuned[0] if arg == "stage=finetune" else tmp_path / "run"
    if workdir != finetuned[0]:
        train(config(arg, "train.num_steps=3"), workdir)
    export_run(workdir, tmp_path / "out")
    before, after = (
        OneDiffusionPipeline.from_pretrained(folder) for folder in (released, tmp_path / "out")
    )
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    common = {"image": picture, "num_inference_steps": 2, "height": 64, "width": 64}
    images = [
        pipe.img2img("[[image_editing]] make the cube red", output_type="np", **common).images
        for pipe in (before, after)
    ]
    assert images[1].shape == (1, 64, 64, 3)
    assert np.abs(images[0] - images[1]).max() > 1e-4  # it learned something


def test_clips_of_sdxl_take_the_place_of_t5():
    config = load_config("configs/onediffusion.py:stage=multitask,clip=weights/sdxl")
    trained, frozen = (jax.tree.leaves(part) for part in _split(config))
    assert sum(leaf.size for leaf in trained) == 2_800_389_184  # both encoders are 2048 wide
    # L, and G without its projection of 1280 x 1280
    assert sum(leaf.size for leaf in frozen) == 123_060_480 + 694_659_840 - 1280**2
    assert config.data.row.text == 4 * 77 and config.max_text == 77
    for arg in ("start=released", "stage=finetune", "tiny"):
        with pytest.raises(ConfigError, match="trains from scratch at full size"):
            load_config(f"configs/onediffusion.py:clip=weights/sdxl,{arg}")


def _split(config):
    model = model_parts(config)
    return model.split(model.shapes)


@pytest.fixture(scope="module")
def multitask(config, tmp_path_factory):
    """A run of all tasks from scratch, whose rows hold six views with their cameras."""
    workdir = tmp_path_factory.mktemp("multitask")
    settings = ("train.num_steps=3", "train.save_every=3")
    settings += ("data.row.tokens=192", "data.row.frames=13")
    return workdir, train(config("stage=multitask", *settings), workdir)


def test_all_tasks_train_together_from_scratch(multitask):
    workdir, state = multitask
    assert int(state.step) == 3
    rows = read_metrics(workdir / "metrics.jsonl")
    heldout = {key.split("/")[-1] for row in rows for key in row if key.startswith("heldout/loss/")}
    assert heldout == {
        "text_to_image",
        "depth_to_image",
        "layout_to_image",
        "inpaint",
        "multiview",
    }


def test_views_and_cameras_of_a_run(multitask):
    pipe = Pipeline.from_workdir(multitask[0])
    photo = Image.new("RGB", (64, 64), "red")
    poses = np.stack([cameras.look_at_origin(angle, 20.0, 1.7) for angle in (0, 40, 90)])
    found = cameras.from_opengl(
        poses, focal=np.full((3, 2), cameras.DEFAULT_FOCAL), principal=np.full((3, 2), 0.5)
    )
    each = [cameras.Cameras(*(part[[n]] for part in found)) for n in range(3)]
    views, posed = [photo, None, None], [each[0], None, each[2]]
    _, example = pipe.example("multiview", views=views, cameras=posed, caption="a cube")
    given = example["frame_table"][:, FRAME_COLUMNS.index("given")]
    assert given.tolist() == [1, 1, 0, 0, 0, 1]
    rays = [cameras.read_ray_frame(pipe._latents(example, number)) for number in (1, 5)]
    read = cameras.from_rays(np.stack(rays))
    true = cameras.relative_to_first(cameras.Cameras(*(part[[0, 2]] for part in found)))
    np.testing.assert_allclose(read.rotation, true.rotation, atol=1e-5)
    np.testing.assert_allclose(read.centers, true.centers, atol=1e-5)

    generator = WorkdirGenerator(pipe, name="run", settings={}, steps=3)
    intrinsics = np.broadcast_to(np.diag([1.1, 1.1, 1.0]), (3, 3, 3))
    scaled = [
        generator._cameras(
            Request(
                "multiview",
                "1",
                made_cameras=(False, True, False),
                poses=np.concatenate([poses[:, :, :3], poses[:, :, 3:] * size], axis=2),
                intrinsics=intrinsics,
            )
        )
        for size in (np.ones((4, 1)), np.array([[5.0], [5.0], [5.0], [1.0]]))
    ]
    for one, other in zip(*scaled, strict=True):  # the units of a suite do not count
        assert (one is None) == (other is None)
        if one is not None:
            np.testing.assert_allclose(one.translation, other.translation, atol=1e-9)
    assert np.linalg.norm(scaled[0][0].centers) == pytest.approx(1.7)

    made = pipe("multiview", views=views, cameras=posed, caption="a cube", num_steps=1)
    assert set(made) == {"views.1", "cameras.1", "views.2"}
    assert made["views.2"].size == (64, 64)
    assert made["cameras.1"].rotation.shape == (1, 3, 3)
    with pytest.raises(InputError, match="cameras are a list of"):
        pipe("multiview", views=[None], cameras=[found], caption="a cube")
    with pytest.raises(InputError, match="fields of one length"):
        pipe("multiview", views=views, cameras=posed[:2], caption="a cube")


@pytest.mark.parametrize(("suite", "count"), [("gso_views", 5), ("gso_pose", 5)])
def test_a_run_is_scored_on_views_and_cameras(multitask, tmp_path, monkeypatch, suite, count):
    monkeypatch.setattr(gso, "FIRST_TEST", 24)  # one target
    write_layout(suite, tmp_path / "data", count=1)
    asked = []

    def run():
        model = load_generator(multitask[0], num_steps=1)
        generate = model.generate
        model.generate = lambda requests: asked.append(len(requests)) or generate(requests)
        return run_benchmark(
            get_benchmark(suite), data=tmp_path / "data", out=tmp_path / "out", generator=model
        )

    first = run()
    assert sum(asked) == count
    assert first["scores"] and all(score["n_failed"] == 0 for score in first["scores"])
    assert all(np.isfinite(score["value"]) for score in first["scores"])
    made = sorted(path for path in (tmp_path / "out/made").rglob("*.json"))
    assert len(made) == count
    made[0].unlink()
    asked.clear()
    again = run()
    assert asked == [1]
    assert [s["value"] for s in again["scores"]] == pytest.approx(
        [s["value"] for s in first["scores"]], abs=1e-3
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.row.tokens=16", "data.row.tokens=16 does not hold every example of task 'edit'"),
        (
            "data.tasks.edit.weight=0",
            "data.tasks names no task with a positive weight",
        ),
        ("autoencoder.latent_channels=4", "autoencoder.latent_channels=4"),
        ("autoencoder.folder=/nowhere", "no folder of a released model"),
        ("data.folder=/nowhere", "manifest.json is missing; encode it with"),
    ],
)
def test_settings_that_cannot_be(config, tmp_path, change, message):
    whole = config("stage=finetune").unlock()
    key, _, value = change.partition("=")
    group = whole
    for name in key.split(".")[:-1]:
        group = group[name]
    group[key.split(".")[-1]] = int(value) if value.isdigit() else value
    with pytest.raises(ValueError, match=message):
        train(whole, tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_wrong_names(config):
    with pytest.raises(ConfigError, match=r"no data set 'nothing'; data\.sources has edit"):
        encode(config("stage=finetune"), only=["nothing"])
    with pytest.raises(ConfigError, match="this config trains on MiniWorld"):
        encode(load_config("configs/quickstart.py:tiny"))
    with pytest.raises(ConfigError, match="stage='3' is unknown; one of 256, 512"):
        load_config("configs/onediffusion.py:stage=3")


@pytest.mark.parametrize("stage", ["256", "512", "multitask", "1024", "subject", "finetune"])
def test_the_stages_have_the_released_sizes(stage):
    config = load_config(f"configs/onediffusion.py:stage={stage}")
    trained, frozen = _split(config)
    assert sum(leaf.size for leaf in jax.tree.leaves(trained)) == 2_800_389_184
    assert set(frozen) == {"text_encoder"}
    assert {source.task for source in config.data.sources.values()} == set(config.data.tasks)
