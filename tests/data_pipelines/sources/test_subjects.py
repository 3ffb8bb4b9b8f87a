"""Subjects: different pictures of one folder, their captions in the same order."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from raw_data import png, same_sample, value_of

from data_pipelines.sources.base import SampleError, SourceError, draw_some
from data_pipelines.sources.subjects import SubjectSource


@pytest.fixture
def folder(tmp_path):
    for subject in ("anna_k-two", "ben"):
        (tmp_path / subject).mkdir()
        for i, suffix in enumerate(("jpg", "JPEG", "png", "webp", "png")):
            (tmp_path / subject / f"{i}.{suffix}").write_bytes(png(i))
            (tmp_path / subject / f"{i}.txt").write_text(f"caption {i}\n")
    (tmp_path / "ben" / "name.txt").write_text("Ben the cat\n")
    (tmp_path / "ben" / "3.txt").unlink()
    (tmp_path / "readme.md").touch()
    return tmp_path


def test_views_and_captions_agree(folder):
    source = SubjectSource(str(folder), num_views=(2, 4))
    assert len(source) == 2
    counts, firsts = set(), set()
    for seed in range(40):
        found = source.sample(0, np.random.default_rng(seed))
        assert tuple(found) == source.fields
        values = [value_of(view) for view in found["views"]]
        assert len(set(values)) == len(values)
        assert found["captions"] == " ".join(
            f"[[img{n}]] caption {value}" for n, value in enumerate(values)
        )
        counts.add(len(values))
        firsts.add(values[0])
    assert counts == {2, 3, 4} and firsts == set(range(5))
    again = [source.sample(0, np.random.default_rng(3)) for _ in range(2)]
    assert same_sample(*again)


def test_names_and_missing_captions(folder):
    source = SubjectSource(str(folder), num_views=5)
    assert source.sample(0, np.random.default_rng(0))["name"] == "anna k two"
    found = source.sample(1, np.random.default_rng(0))
    assert found["name"] == "Ben the cat"
    number = [value_of(view) for view in found["views"]].index(3)
    assert re.search(rf"\[\[img{number}\]\]( \[\[|$)", found["captions"])


def test_subjects_that_cannot_be_used(folder):
    source = SubjectSource(str(folder), num_views=(6, 8))
    with pytest.raises(SampleError, match="ben: pictures: 5 usable, 6 needed"):
        source.sample(1, np.random.default_rng(0))
    (folder / "ben" / "2.png").write_bytes(b"no picture")
    source = SubjectSource(str(folder), num_views=5)
    with pytest.raises(SampleError, match=r"ben/2.png is no PNG"):
        source.sample(1, np.random.default_rng(0))
    with pytest.raises(IndexError):
        source.sample(2, np.random.default_rng(0))


def test_folders_that_cannot_be_used(folder, tmp_path):
    with pytest.raises(SourceError, match="holds no folders"):
        SubjectSource(str(folder / "ben"))
    with pytest.raises(SourceError, match="none cannot be listed"):
        SubjectSource(str(tmp_path / "none"))
    for bounds in (0, (3, 2), (0, 2)):
        with pytest.raises(ValueError, match="least, largest"):
            SubjectSource(str(folder), num_views=bounds)


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 9), st.integers(0, 100))
def test_draws_are_different_and_between_the_bounds(available, least, more, seed):
    rng = np.random.default_rng(seed)
    if available < least:
        with pytest.raises(SampleError, match=f"x: {available} usable, {least} needed"):
            draw_some(available, (least, least + more), rng, name="x")
        return
    drawn = draw_some(available, (least, least + more), rng, name="x")
    assert least <= len(set(drawn)) == len(drawn) <= least + more
    assert set(drawn) <= set(range(available))
