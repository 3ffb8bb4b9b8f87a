"""UniVG in miniature: arms train, and differ in what they are named after."""

import emoji_packages
import numpy as np
import pytest

from configs.miniworld_univg import MIXTURES
from data_pipelines.miniworld.generate import generate
from data_pipelines.miniworld.manifest import Settings
from data_pipelines.subjects import records
from unidiff_jax.config import ConfigError, load_config
from unidiff_jax.sample.pipeline import Pipeline
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
PICTURE = np.zeros((32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    scenes, subjects = (tmp_path_factory.mktemp(name) for name in ("scenes", "subjects"))
    generate(scenes, Settings(size=32, counts={"train": 40, "validation": 12}), progress="none")
    packages = emoji_packages.write_packages(tmp_path_factory.mktemp("packages"))
    settings = records.Settings(size=32, share=0.2, shards=1, seed=7)
    records.render_subjects(subjects, **packages, settings=settings, progress="none")
    return f"data.folder={scenes}", f"data.subjects.folder={subjects}"


@pytest.mark.parametrize("arm", ["identity_first", "frames"])
def test_arms_train(folders, tmp_path, arm):
    config = load_config(f"configs/miniworld_univg.py:tiny,arm={arm}", overrides=[*SHORT, *folders])
    train(config, tmp_path)
    losses = {
        key.split("/")[-1]
        for row in read_metrics(tmp_path / "metrics.jsonl")
        for key in row
        if key.startswith("heldout/loss/")
    }
    assert losses == set(MIXTURES[arm])
    pipeline = Pipeline.from_workdir(tmp_path)
    assert pipeline("edit", source=PICTURE, instruction="make it red")["edited"].size == (32, 32)
    if arm == "identity_first":
        made = pipeline("personalize", assets=[PICTURE], slots="<p> on a red background")
        assert made["later"].size == (32, 32)


def test_arms_differ_in_what_they_are_named_after():
    arms = {arm: load_config(f"configs/miniworld_univg.py:arm={arm}") for arm in MIXTURES}
    models = {arm: model_configs(config)[0] for arm, config in arms.items()}
    # one start serves all arms with channels, and another one those with frames
    assert models["base"] == models["plain"] == models["auxiliary"] == models["identity_last"]
    assert models["base_frames"] == models["frames"] != models["plain"]
    assert not models["frames"].guidance_dim and models["plain"].guidance_dim
    for arm, config in arms.items():
        assert config.model.fusion == "dual"
        assert {"depth", "segment"} <= set(config.data.tasks) or arm != "auxiliary"
        total = sum(task.weight for task in config.data.tasks.values())
        assert total == pytest.approx(2.0 if "identity" in arm else 1.0)
    with pytest.raises(ConfigError, match="arm='both' is unknown; one of base, base_frames"):
        load_config("configs/miniworld_univg.py:arm=both")
