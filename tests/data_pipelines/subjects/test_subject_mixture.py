"""Subjects in a config: alone, or for some tasks beside MiniWorld."""

import emoji_packages
import numpy as np
import pytest
import tiny_run

from data_pipelines.build import (
    check_data,
    heldout_items,
    make_loader,
    make_sources,
    make_tokenizer,
)
from data_pipelines.miniworld.items import MiniWorldSource
from data_pipelines.subjects.items import SubjectScenes
from data_pipelines.subjects.records import Settings, SubjectError, render_subjects
from unidiff_jax.config import ConfigError
from unidiff_jax.tasks import TASKS


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    packages = emoji_packages.write_packages(tmp_path_factory.mktemp("packages"))
    folder = tmp_path_factory.mktemp("subjects")
    settings = Settings(size=32, share=0.2, shards=1, seed=7)
    render_subjects(folder, **packages, settings=settings, progress="none")
    return folder


def make_config(folder, *tasks, **data):
    config = tiny_run.config(folder)
    with config.unlocked():
        config.data.tasks = {name: {"weight": 1.0} for name in tasks}
        config.data.update(data)
    return config


def test_subjects_beside_miniworld(miniworld, subjects, tmp_path):
    beside = {"folder": str(subjects), "tasks": ("customize", "insert")}
    config = make_config(miniworld, "depth", "customize", subjects=beside)
    check_data(config)
    sources = make_sources(config, split="train")
    assert isinstance(sources["depth"], MiniWorldSource)
    assert isinstance(sources["customize"], SubjectScenes)
    tokenizer = make_tokenizer(config, tmp_path)
    loader = make_loader(config, tokenizer)
    batch = next(loader)
    assert set(np.unique(batch.task)) == {0, TASKS["depth"].id, TASKS["customize"].id}
    found = {}
    for mix, _, item in heldout_items(config, num_items=20):
        found.setdefault(mix.task.name, []).append(item)
    assert len(found["depth"]) == 12 and len(found["customize"]) == 20
    words = {text for item in found["customize"] for text in item["words"]}
    assert words <= {"umbrella", "grapes", "pizza"}  # the validation split


def test_subjects_alone(subjects, tmp_path):
    config = make_config(subjects, "text_to_image", "segment", "subject", kind="subjects")
    check_data(config)
    sources = make_sources(config, split="validation")
    assert len({id(source) for source in sources.values()}) == 1
    tokenizer = make_tokenizer(config, tmp_path)
    # what is said of subjects is written in few pieces
    text = "a fox on the left and an axe on the right, on a light blue background"
    assert len(tokenizer.encode(text)) < len(text) / 2
    assert next(make_loader(config, tokenizer)).tokens.shape[0] == 8


def test_what_cannot_be(miniworld, subjects):
    with pytest.raises(ConfigError, match=r"data.kind='emoji' is unknown; one of miniworld, subj"):
        check_data(make_config(subjects, "segment", kind="emoji"))
    with pytest.raises(ConfigError, match=r"data.tasks.depth: subjects have nothing for it; their"):
        check_data(make_config(subjects, "depth", kind="subjects"))
    none = {"folder": "nowhere", "tasks": ("customize",)}
    with pytest.raises(SubjectError, match=r"nowhere/manifest.json is missing: make it again"):
        check_data(make_config(miniworld, "depth", "customize", subjects=none))
    config = make_config(subjects, "customize", kind="subjects")
    config.data.row.frames = 4  # three references, the picture and padding
    with pytest.raises(ConfigError, match=r"data.row.frames=4 .* --set data.row.frames=5"):
        check_data(config)
    config.data.row.frames, config.image_size = 9, 64
    with pytest.raises(SubjectError, match="looks of 32 pixels a side, for pictures of 64"):
        check_data(config)
