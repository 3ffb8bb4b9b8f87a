"""UniVG's recipe at tiny size: encode with what guides, train, sample, and its sizes."""

import jax
import numpy as np
import pytest

from configs.univg import GROUPS, SHARES, SIZES, STAGES, task_weights
from data_pipelines.build import make_loader, make_tokenizer
from data_pipelines.miniworld.generate import generate
from data_pipelines.miniworld.manifest import Settings
from launch.encode import encode
from unidiff_jax.config import ConfigError, load_config
from unidiff_jax.export.mapping import flatten
from unidiff_jax.sample.images import InputError
from unidiff_jax.sample.pipeline import Pipeline
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
PICTURE = np.zeros((64, 64, 3), np.uint8)


@pytest.fixture(scope="module")
def config(released, tmp_path_factory):
    """The tiny recipe's last stage with its data sets encoded."""
    scenes, latents = (tmp_path_factory.mktemp(name) for name in ("scenes", "latents"))
    settings = Settings(size=64, counts={"train": 24}, samples=1, clip_frames=2)
    generate(scenes, settings, progress="none")

    def config(*more):
        spec = f"configs/univg.py:tiny,stage=identity,weights={released}"
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
    rows = read_metrics(workdir / "metrics.jsonl")
    losses = {key.split("/")[-1]: v for row in rows for key, v in row.items() if "out/loss/" in key}
    assert set(losses) == set(config().data.tasks) and np.isfinite(list(losses.values())).all()


def test_every_example_has_one_frame_and_its_guide(config, run):
    batch = next(iter(make_loader(config(), make_tokenizer(config(), run[0] / "tokenizer"))))
    held = batch.frame > 0
    for row in batch.segment:
        used = row[row > 0].tolist()
        assert len(set(used)) == len(used) > 0
    assert batch.visual.shape == batch.tokens.shape and np.abs(batch.visual[held]).max() > 0
    assert set(np.unique(batch.mask[held]).round(4)) >= {0.0, 1.0}
    assert batch.text_asset.max() >= 1 and np.abs(batch.asset_features[:, 1:]).max() > 0


def test_a_run_samples(run):
    pipeline = Pipeline.from_workdir(run[0])
    edited = pipeline("edit", source=PICTURE, instruction="make the cube red", image_guidance=1.0)
    assert edited["edited"].size == (64, 64)
    depth = pipeline("depth", image=PICTURE, as_values=True)["depth"]
    assert depth.shape == (64, 64) and depth.dtype == np.float32
    words = {"references": "<p>", "caption": "a red cube"}
    made = pipeline("customize", assets=[PICTURE], **words)["later"]
    other = pipeline("customize", assets=[PICTURE + 255], **words)["later"]
    assert made.size == (64, 64) and np.abs(np.asarray(made) - np.asarray(other)).any()
    with pytest.raises(InputError, match="needs 'hole'; it takes: holed, hole, caption"):
        pipeline("inpaint", holed=PICTURE, caption="a red cube")
    pipeline("inpaint", holed=PICTURE, hole=PICTURE, caption="a red cube")
    with pytest.raises(InputError, match="the prompt names no IMG1, nor <p>"):
        pipeline("customize", assets=[PICTURE], references="it", caption="a red cube")


@pytest.mark.parametrize(("size", "millions"), [("B", 416), ("L", 1800), ("XL", 3700)])
def test_sizes_are_the_papers(size, millions):
    config = load_config(f"configs/univg.py:size={size}")
    model = model_parts(config)
    trained, frozen = model.split(model.shapes)
    count = sum(leaf.size for leaf in jax.tree.leaves(trained))
    assert count == pytest.approx(millions * 1e6, rel=0.03)
    assert set(frozen) == {"text_encoder"}
    assert config.model.hidden_dim == SIZES[size][0]


@pytest.mark.parametrize("stage", STAGES)
def test_stages_mix_as_the_paper_says(stage):
    config = load_config(f"configs/univg.py:stage={stage}")
    weights = {task: settings.weight for task, settings in config.data.tasks.items()}
    shares = {
        group: sum(weights.get(task, 0.0) for task in tasks) for group, tasks in GROUPS.items()
    }
    if stage == "foundation":
        assert set(weights) == {"text_to_image"}
    else:
        assert {g: shares[g] for g in SHARES} == pytest.approx(SHARES, abs=1e-3)
        assert sum(SHARES.values()) == pytest.approx(1)
        # as much identity as all the others, in the last stage alone
        assert shares["identity"] == pytest.approx(1.0 if stage == "identity" else 0.0)
    assert {source.task for source in config.data.sources.values()} == set(weights)
    pictures = config.data.batch_rows * (config.data.row.segments - 1)
    places = (config.image_size // config.autoencoder.downscale // config.patch) ** 2
    assert pictures == 512 and config.data.row.tokens == 4 * places
    assert task_weights(stage) == weights


def test_unknown_arguments():
    with pytest.raises(ConfigError, match="size='S' is unknown; one of B, L, XL"):
        load_config("configs/univg.py:size=S")
    with pytest.raises(ConfigError, match="stage='512' is unknown; one of foundation"):
        load_config("configs/univg.py:stage=512")
