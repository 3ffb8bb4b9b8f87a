"""UNIMO-G in miniature: the second stage trains and samples, and what arms are named after."""

import emoji_packages
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.miniworld_unimog import MIXTURES
from data_pipelines.build import row_size
from data_pipelines.subjects import records
from unidiff_jax import flow
from unidiff_jax.config import ConfigError, load_config
from unidiff_jax.export.run import export_run
from unidiff_jax.frames import pack_rows, unpatchify
from unidiff_jax.sample.pipeline import Pipeline
from unidiff_jax.tasks import get_task
from unidiff_jax.text import END
from unidiff_jax.train.loop import train
from unidiff_jax.train.metrics import read_metrics
from unidiff_jax.train.workdir import model_configs

SHORT = (
    "train.num_steps=2",
    "train.log_every=1",
    "train.eval_every=2",
    "train.sample_every=2",
    "train.save_every=2",
    "train.eval_items=2",
    "data.batch_rows=4",
    "sample.num_steps=1",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("subjects")
    packages = emoji_packages.write_packages(tmp_path_factory.mktemp("packages"))
    settings = records.Settings(size=32, share=0.2, shards=1, seed=7)
    records.render_subjects(folder, **packages, settings=settings, progress="none")
    return f"data.folder={folder}"


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    train(load_config("configs/miniworld_unimog.py:tiny", overrides=[*SHORT, folder]), workdir)
    return workdir


def test_the_second_stage(run):
    rows = read_metrics(run / "metrics.jsonl")
    losses = {key.split("/")[-1] for row in rows for key in row if "heldout/loss/" in key}
    assert losses == set(MIXTURES["full"])
    assert any("train/map_error" in row for row in rows)
    pipeline = Pipeline.from_workdir(run)
    pictures = [np.full((32, 32, 3), level, np.uint8) for level in (0, 200)]

    def made(assets):
        slots = "<p> on the left and <p> on the right, on a red background"
        return np.asarray(pipeline("interleave", slots=slots, assets=assets)["later"])

    assert made(pictures).shape == (32, 32, 3)
    # which picture stands where is told apart, though nothing but the prompt has them
    assert (made(pictures) != made(pictures[::-1])).any()
    assert np.asarray(pipeline("interleave", slots="a fox")["later"]).shape == (32, 32, 3)


@pytest.mark.torch
def test_the_exported_folder_makes_the_same_picture_in_pytorch(run, tmp_path, parity):
    torch, transformers = (pytest.importorskip(name) for name in ("torch", "transformers"))
    from unidiff_jax.export import torch_unified

    export_run(run, tmp_path, layout="unified")
    pipe, task = Pipeline.from_workdir(run), get_task("interleave")
    pictures = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    item = {"later": np.zeros((32, 32, 3), np.uint8), "slots": "<p> on <p>", "assets": [*pictures]}
    example = pipe.maker.example(task, item, example_id=1)
    made = pipe.generate([(task, example)], seeds=[0], num_steps=3, guidance=2.0)
    expected = made[0][0]["later"]

    patches = torch_unified.picture_patches(torch.tensor(pictures)).flatten(0, 1)
    assert np.abs(patches.numpy() - example["asset_table"]).max() < 1.1 / 127.5  # rounding
    t5 = transformers.T5EncoderModel.from_pretrained(tmp_path / "text_encoder").eval()
    words = torch_unified.PictureWords.from_folder(tmp_path / "picture_encoder")
    ids = torch.tensor(example["text_ids"][None].astype(np.int64))
    with torch.no_grad():
        embeddings = words(
            t5.get_input_embeddings()(ids),
            torch.tensor(example["asset_table"])[None],
            torch.tensor(example["text_asset"][None].astype(np.int64)),
        )
        states = t5(inputs_embeds=embeddings).last_hidden_state
        empty = t5(torch.tensor([[END]])).last_hidden_state
    batch, _ = pack_rows([example], size=row_size(pipe.config))
    noise = flow.draw_noise(jax.random.key(0), jax.tree.map(jnp.asarray, batch))
    latents = unpatchify(np.asarray(noise[0, :64]), patch=2, grid=(8, 8))
    found = torch_unified.sample(
        torch_unified.UnifiedDiT.from_folder(tmp_path / "transformer"),
        torch.tensor(latents.transpose(2, 0, 1)[None, None]),
        states,
        torch.ones_like(ids),
        empty_states=empty,
        empty_mask=torch.ones(1, 1),
        num_steps=3,
        text_guidance=2.0,
    )
    rgb = pipe.maker.autoencoder.decode(found[0, 0].numpy().transpose(1, 2, 0))
    error = np.abs(rgb - expected).max() / np.abs(expected).max()
    parity("picture of an interleaved prompt in PyTorch", error, bound=1e-4)


def test_arms_differ_in_what_they_are_named_after():
    arms = {arm: load_config(f"configs/miniworld_unimog.py:arm={arm}") for arm in MIXTURES}
    models = {model_configs(config) for config in arms.values()}
    assert len(models) == 1  # one start serves all arms
    assert [arm for arm, config in arms.items() if config.flow.map_weight] == ["full"]
    assert arms["full"].data.tasks == arms["no_maps"].data.tasks
    assert arms["longer"].data.tasks == arms["base"].data.tasks
    for config in arms.values():
        assert sum(task.weight for task in config.data.tasks.values()) == pytest.approx(1.0)
    with pytest.raises(ConfigError, match="arm='both' is unknown; one of base, full"):
        load_config("configs/miniworld_unimog.py:arm=both")
