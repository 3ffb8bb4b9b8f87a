"""Each given thing is recognised in its place: in the truth, not in an exchange or trivial ones."""

import emoji_packages
import numpy as np
import pytest

from data_pipelines.subjects.items import SubjectScenes
from data_pipelines.subjects.records import Settings, render_subjects
from unidiff_jax.config import load_config
from unidiff_jax.evals.interleaved import ENTRIES, interleave_protocol
from unidiff_jax.evals.miniworld import entry_names, judge
from unidiff_jax.evals.miniworld_protocol import TooFewItemsError, oracle
from unidiff_jax.evals.subjects import CANDIDATES
from unidiff_jax.tasks import PLACEHOLDER

SIZE = 32


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    packages = emoji_packages.write_packages(tmp_path_factory.mktemp("packages"))
    folder = tmp_path_factory.mktemp("subjects")
    settings = Settings(size=SIZE, share=0.1, shards=1, seed=7)
    render_subjects(folder, **packages, settings=settings, progress="none")
    return SubjectScenes(folder, split="train", size=SIZE)


@pytest.fixture(scope="module")
def protocols(source):
    return {name: interleave_protocol(source, name, num_items=24) for name in ENTRIES}


@pytest.mark.parametrize(("name", "count"), [("interleave_1", 1), ("interleave_2", 2)])
def test_the_truth_is_recognised_in_its_place_alone(protocols, name, count):
    protocol = protocols[name]
    for item in protocol.items:
        assert len(item["own"]) == len(item["assets"]) == count
        assert item["slots"].count(PLACEHOLDER) == count
        assert len(item["own"]) + len(item["candidates"]) == CANDIDATES
    truth = oracle(protocol)
    assert protocol.score(truth, protocol.items).mean() > 0.75
    assert protocol.score(truth, protocol.others).mean() < 0.15
    assert protocol.score(protocol.floors["background"], protocol.items).sum() == 0
    for floor in protocol.floors.values():
        assert protocol.score(floor, protocol.items).mean() < 0.5


def test_pictures_with_things_in_each_others_places_are_those_of_exchanged_prompts(protocols):
    plain, swapped = protocols["interleave_2"], protocols["interleave_swapped"]
    truth = oracle(plain)
    assert plain.indices == swapped.indices
    for one, other in zip(plain.items, swapped.items, strict=True):
        np.testing.assert_array_equal(one["assets"][0], other["assets"][1])
        assert one["slots"] == other["slots"]
    assert swapped.score(truth, swapped.items).mean() < 0.15
    assert swapped.score(truth, swapped.others).mean() > 0.75
    exchanged, turned = [], []
    for item, rgb in zip(swapped.items, truth, strict=True):
        exchanged.append(np.roll(rgb, SIZE // 2, axis=1 - item["axis"]))
        turned.append(item | {"behind": np.roll(item["behind"], SIZE // 2, axis=1 - item["axis"])})
    assert swapped.score(np.stack(exchanged), turned).mean() > 0.6


def test_words_alone_have_no_pictures(protocols):
    for item in protocols["interleave_words"].items:
        assert item["assets"] == [] and PLACEHOLDER not in item["slots"]


def test_a_perfect_model_has_learned(protocols):
    protocol = protocols["interleave_1"]
    outputs = np.repeat(oracle(protocol)[:, None], 2, axis=1)
    judged = judge(protocol, outputs)
    assert judged.values.mean() > 0.75 and judged.secondary["all things found"] > 0.75
    assert judged.verdict.over_shuffled.low > 0


def test_entries(source):
    config = load_config("configs/miniworld_unimog.py:tiny")
    assert entry_names(config) == [*ENTRIES]
    assert entry_names(config, ["interleave_swapped"]) == ["interleave_swapped"]
    with pytest.raises(TooFewItemsError, match="at least 2"):
        interleave_protocol(source, "interleave_3", num_items=1)
