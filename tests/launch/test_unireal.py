"""UniReal in miniature: every arm trains, and a video-only run edits on request."""

import numpy as np
import pytest
from PIL import Image

from data_pipelines.miniworld.generate import generate
from data_pipelines.miniworld.manifest import Settings
from launch.sample import output_paths, save
from unidiff_jax.config import ConfigError, load_config
from unidiff_jax.sample.pipeline import Pipeline
from unidiff_jax.train.loop import train
from unidiff_jax.train.metrics import read_metrics

SHORT = (
    "train.num_steps=3",
    "train.log_every=1",
    "train.eval_every=3",
    "train.sample_every=3",
    "train.save_every=3",
    "train.eval_items=2",
    "data.batch_rows=4",
    "sample.num_steps=1",
)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    generate(folder, Settings(size=32, counts={"train": 40, "validation": 12}), progress="none")
    return folder


@pytest.mark.parametrize("arm", ["video", "no_tags"])
def test_arms_train(clips, tmp_path, arm, capsys):
    config = load_config(
        f"configs/miniworld_unireal.py:tiny,arm={arm}", overrides=[*SHORT, f"data.folder={clips}"]
    )
    train(config, tmp_path)
    losses = {
        key.split("/")[-1]
        for row in read_metrics(tmp_path / "metrics.jsonl")
        for key in row
        if key.startswith("heldout/loss/")
    }
    assert {"next_frame", "customize", "insert"} <= losses
    assert ({"edit", "edit_with_mask"} <= losses) == (arm == "no_tags")
    pipeline = Pipeline.from_workdir(tmp_path)
    picture = np.zeros((32, 32, 3), np.uint8)
    made = pipeline("edit", source=picture, instruction="make the cube red")["edited"]
    assert made.size == (32, 32)
    style = {"video": "context", "no_tags": "base"}[arm]
    assert pipeline.maker.style == style
    both = pipeline("edit_with_mask", source=picture, instruction="make the cube red")
    assert list(both) == ["edited", "changed"]
    assert set(np.unique(both["changed"])) <= {0, 255}
    paths = output_paths(str(tmp_path / "made.png"), fields=list(both))
    save(both, paths=paths)
    assert capsys.readouterr().out.split() == [str(path) for path in paths.values()]
    for field, path in paths.items():
        np.testing.assert_array_equal(np.asarray(Image.open(path)), np.asarray(both[field]))


def test_arms_differ_in_what_they_are_named_after():
    arms = {
        arm: load_config(f"configs/miniworld_unireal.py:arm={arm}")
        for arm in ("all", "video", "expert", "no_tags", "no_roles")
    }
    assert set(arms["expert"].data.tasks) == {"edit", "edit_with_mask"}
    assert "edit" not in arms["video"].data.tasks
    assert arms["no_tags"].data.prompts == "base" and arms["all"].data.prompts == "context"
    assert not arms["no_roles"].data.roles and arms["all"].data.roles
    for config in arms.values():
        assert config.model.fusion == "joint" and not config.flow.timed_conditions
    with pytest.raises(ConfigError, match="arm='both' is unknown; one of base, all, video"):
        load_config("configs/miniworld_unireal.py:arm=both")
