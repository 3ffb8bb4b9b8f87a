"""Folders of subjects: complete, split by kind, continued after a stop, checked when opened."""

import dataclasses
import itertools

import emoji_packages
import numpy as np
import pytest

from data_pipelines.subjects.names import kind_of, to_words
from data_pipelines.subjects.records import (
    SPLITS,
    Settings,
    SubjectError,
    decode_subject,
    open_subjects,
    render_subjects,
)
from unidiff_jax.config import ConfigError

SETTINGS = Settings(size=24, share=0.2, shards=2)


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    return emoji_packages.write_packages(tmp_path_factory.mktemp("packages"))


@pytest.fixture(scope="module")
def folder(packages, tmp_path_factory):
    folder = tmp_path_factory.mktemp("subjects")
    render_subjects(folder, **packages, settings=SETTINGS, progress="none")
    return folder


def test_every_subject_is_in_one_split_and_its_kind_too(folder):
    words, kinds = {}, {}
    for split in SPLITS:
        opened = open_subjects(folder, split)
        subjects = [decode_subject(record) for record in opened.records]
        assert [s.words for s in subjects] == opened.words
        assert [s.group for s in subjects] == opened.groups and opened.size == 24
        assert all(s.looks.shape[1:] == (24, 24, 4) for s in subjects)
        words[split] = opened.words
        kinds[split] = {kind_of(text) for text in opened.words}
    assert sorted(itertools.chain(*words.values())) == sorted(map(to_words, emoji_packages.KEPT))
    for one, other in itertools.combinations(SPLITS, 2):
        assert kinds[one].isdisjoint(kinds[other])
    count = len(emoji_packages.KEPT)
    for split in SPLITS[1:]:  # a kind has two subjects at most
        assert 0.2 * count <= len(words[split]) <= 0.2 * count + 2


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_stopped_run_goes_on_and_nothing_else_is_made_again(folder, packages, tmp_path):
    render_subjects(tmp_path, **packages, settings=SETTINGS, progress="none")
    assert contents(tmp_path) == contents(folder)
    (tmp_path / "train-00001-of-00002.json").unlink()
    kept = tmp_path / "train-00000-of-00002.array_record"
    before = kept.stat().st_mtime_ns
    with pytest.raises(SubjectError, match=r"is not finished: make it again with python -m"):
        open_subjects(tmp_path, "train")
    counts = render_subjects(tmp_path, **packages, settings=SETTINGS, progress="none")
    assert contents(tmp_path) == contents(folder) and kept.stat().st_mtime_ns == before
    assert sum(counts.values()) == len(emoji_packages.KEPT)


def test_the_seed_decides_the_splits(folder, packages, tmp_path):
    other = dataclasses.replace(SETTINGS, seed=1)
    render_subjects(tmp_path, **packages, settings=other, progress="none")
    assert open_subjects(tmp_path, "test").words != open_subjects(folder, "test").words


def test_what_cannot_be(folder, packages, tmp_path):
    with pytest.raises(ConfigError, match=r"with other settings \(size was 24, now 32\)"):
        render_subjects(folder, **packages, settings=dataclasses.replace(SETTINGS, size=32))
    with pytest.raises(ConfigError, match="no emoji is of the groups Plants"):
        render_subjects(tmp_path, **packages, settings=Settings(groups=("Plants",)))
    with pytest.raises(ConfigError, match=r"share=0.4 leaves no subject for training; try"):
        render_subjects(
            tmp_path, **packages, settings=Settings(groups=("Food & Drink",), share=0.4)
        )
    with pytest.raises(SubjectError, match="has no split 'heldout'; it has train, validation"):
        open_subjects(folder, "heldout")
    with pytest.raises(SubjectError, match=r"manifest.json is missing: make it again"):
        open_subjects(tmp_path / "none", "train")
    with pytest.raises(SubjectError, match="not a subject of schema"):
        decode_subject(b"nothing")


def test_looks_come_back_as_they_were(folder):
    opened = open_subjects(folder, "train")
    for record in opened.records:
        subject = decode_subject(record)
        assert subject.looks.dtype == np.uint8
        assert (subject.looks[..., :3] <= subject.looks[..., 3:]).all()
        name = next(name for name in emoji_packages.KEPT if to_words(name) == subject.words)
        assert subject.emoji == emoji_packages.EMOJI[name][0]
        rgb = np.array(emoji_packages.EMOJI[name][2][::-1])
        assert np.abs(subject.looks[0, 12, 12, :3] - rgb).max() <= 1
