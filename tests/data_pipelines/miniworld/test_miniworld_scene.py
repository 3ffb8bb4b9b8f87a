"""Scenes: the grammar, the splits and the held-out factors."""

import json

import numpy as np
import pytest

from data_pipelines.miniworld import scene as scenes
from data_pipelines.miniworld.render import render
from data_pipelines.miniworld.scene import SPLITS, sample_scene

DRAWN = {
    split: [sample_scene(np.random.default_rng([9, seed]), split=split) for seed in range(40)]
    for split in SPLITS
}


def has_pair(scene):
    return any((o.color, o.shape) in scenes.HELDOUT_PAIRS for o in scene.objects)


@pytest.mark.parametrize("split", SPLITS)
def test_scenes_survive_json(split):
    for scene in DRAWN[split]:
        assert scenes.from_dict(json.loads(json.dumps(scenes.to_dict(scene)))) == scene


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_training_like_splits_hold_nothing_out(split):
    for scene in DRAWN[split]:
        assert not has_pair(scene)
        assert not 120 <= scene.camera.azimuth < 160
        assert len(scene.objects) <= 3


def test_heldout_scenes_show_exactly_one_factor():
    seen = set()
    for scene in DRAWN["heldout"]:
        factors = (
            has_pair(scene),
            120 <= scene.camera.azimuth < 160,
            len(scene.objects) == 4,
        )
        assert sum(factors) == 1
        (factor,) = scenes.heldout_factors(scene)
        assert factors[scenes.FACTORS.index(factor)]
        seen.add(factor)
    assert seen == set(scenes.FACTORS)


def test_a_scene_has_one_split_whatever_the_seed():
    for split, drawn in DRAWN.items():
        assert {scenes.split_of(scene) for scene in drawn} == {split}


@pytest.mark.parametrize("split", SPLITS)
def test_objects_are_whole_visible_and_apart(split):
    for scene in DRAWN[split]:
        instance = render(scene, 64, samples=1).instance
        border = np.concatenate([instance[0], instance[-1], instance[:, 0], instance[:, -1]])
        assert not border.any()
        assert [o.id for o in scene.objects] == list(range(1, len(scene.objects) + 1))
        for body in scene.objects:
            assert (instance == body.id).sum() >= 30
        for a in scene.objects:
            for b in scene.objects:
                reach = a.footprint + b.footprint
                assert a is b or np.hypot(a.x - b.x, a.z - b.z) > reach


def test_hues_are_forty_degrees_apart():
    hues = sorted(scenes.HUES.values())
    gaps = np.diff([*hues, hues[0] + 360])
    assert len(hues) == 7
    assert gaps.min() >= 40


def test_the_same_seed_draws_the_same_scene():
    first, second = (sample_scene(np.random.default_rng(5)) for _ in range(2))
    assert first == second


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="train, validation, test, heldout"):
        sample_scene(np.random.default_rng(0), split="dev")
