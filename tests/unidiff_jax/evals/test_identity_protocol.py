"""A given thing is recognised in a scene: the truth is, trivial answers are not."""

import emoji_packages
import numpy as np
import pytest

from data_pipelines.subjects.items import SubjectScenes
from data_pipelines.subjects.records import Settings, render_subjects
from unidiff_jax.evals import subjects
from unidiff_jax.evals.miniworld import judge
from unidiff_jax.evals.miniworld_protocol import TooFewItemsError, oracle
from unidiff_jax.evals.subjects import CANDIDATES, find_thing, personalize_protocol

SIZE = 32


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    packages = emoji_packages.write_packages(tmp_path_factory.mktemp("packages"))
    folder = tmp_path_factory.mktemp("subjects")
    settings = Settings(size=SIZE, share=0.1, shards=1, seed=7)
    render_subjects(folder, **packages, settings=settings, progress="none")
    return SubjectScenes(folder, split="train", size=SIZE)


@pytest.fixture(scope="module")
def protocol(source):
    return personalize_protocol(source, num_items=40)


def test_items_show_one_thing_that_the_prompt_does_not_name(protocol):
    for item in protocol.items:
        assert len(item["assets"]) == 1 and len(item["candidates"]) == CANDIDATES - 1
        prompt = protocol.task.write(item, style="short")
        assert prompt.startswith("<id> <p>") and item["words"][0] not in prompt


def test_a_thing_is_found_where_it_is(protocol):
    overlaps = []
    for item in protocol.items:
        mask, found = item["instance"] == 1, find_thing(item["later"], behind=item["behind"])
        overlaps.append((mask & found).sum() / (mask | found).sum())
        assert not find_thing(item["behind"], behind=item["behind"]).any()
    # black on black is not found
    assert np.median(overlaps) > 0.85


def test_the_truth_is_recognised_and_trivial_answers_are_not(protocol):
    truth = oracle(protocol)
    assert protocol.score(truth, protocol.items).mean() > 0.9
    assert protocol.score(truth, protocol.others).mean() < 0.1
    for name, floor in protocol.floors.items():
        assert protocol.score(floor, protocol.items).mean() < 0.5, name
    assert protocol.score(protocol.floors["background"], protocol.items).sum() == 0
    # mirrored, a thing is the same
    turned = [item | {"behind": item["behind"][:, ::-1]} for item in protocol.items]
    assert protocol.score(truth[:, :, ::-1], turned).mean() > 0.9


def test_a_perfect_model_has_learned(protocol):
    outputs = np.repeat(oracle(protocol)[:, None], 2, axis=1)
    judged = judge(protocol, outputs)
    assert judged.values.mean() > 0.9 and judged.secondary["thing found"] > 0.9
    assert judged.verdict.over_floor.low > 0 and judged.verdict.over_shuffled.low > 0
    outputs[0, 0] = np.nan
    assert judge(protocol, outputs).n_failed == 1


def test_a_split_with_few_things(source, monkeypatch):
    monkeypatch.setattr(subjects, "CANDIDATES", 50)
    with pytest.raises(TooFewItemsError, match="different things, 50 are compared"):
        personalize_protocol(source, num_items=40)
