"""The shape verifier on rendered scenes: learns from one half, names the other."""

import numpy as np
import pytest

from data_pipelines.miniworld.render import PALETTE, render
from data_pipelines.miniworld.scene import SHAPES, sample_scene
from unidiff_jax.evals.metrics import detect_objects
from unidiff_jax.evals.shapes import ShapeVerifier

SIZE = 32
MIN_PIXELS = 4


def pictures(count, *, seed):
    rng = np.random.default_rng(seed)
    scenes = [sample_scene(rng, split="train") for _ in range(count)]
    drawn = [render(scene, SIZE) for scene in scenes]
    images, instances = (np.stack([getattr(d, k) for d in drawn]) for k in ("rgb", "instance"))
    return images, instances, [[o.shape for o in scene.objects] for scene in scenes]


@pytest.fixture(scope="module")
def verifier():
    images, instances, shapes = pictures(600, seed=0)
    return ShapeVerifier.fit(
        images, instances=instances, shapes=shapes, palette=PALETTE, min_pixels=MIN_PIXELS
    )


def test_names_most_shapes_of_new_scenes(verifier):
    images, instances, shapes = pictures(100, seed=1)
    detections = detect_objects(images, palette=PALETTE, min_pixels=MIN_PIXELS)
    named = verifier(images, detections)
    right = []
    for i, (objects, names) in enumerate(zip(detections, named, strict=True)):
        for item, name in zip(objects, names, strict=True):
            y0, x0, y1, x1 = item.box
            ids = instances[i, y0:y1, x0:x1]
            if ids.any():
                right.append(name == shapes[i][np.bincount(ids[ids > 0]).argmax() - 1])
    assert np.mean(right) > 0.7  # chance is 1/3


def test_place_and_brightness_do_not_count(verifier):
    images, *_ = pictures(20, seed=2)
    moved = np.roll(images, 3, axis=2) // 2
    before, after = (
        detect_objects(x, palette=PALETTE, min_pixels=MIN_PIXELS) for x in (images, moved)
    )
    same = [
        first == second
        for old, new in zip(verifier(images, before), verifier(moved, after), strict=True)
        if len(old) == len(new)
        for first, second in zip(old, new, strict=True)
    ]
    assert len(same) > 10 and np.mean(same) > 0.9


def test_nothing_detected(verifier):
    blank = np.full((2, SIZE, SIZE, 3), 128, np.uint8)
    assert verifier(blank, detect_objects(blank, palette=PALETTE)) == [[], []]
    with pytest.raises(ValueError, match="no object is detected"):
        ShapeVerifier.fit(
            blank,
            instances=np.zeros((2, SIZE, SIZE), int),
            shapes=[["cube"], ["cube"]],
            palette=PALETTE,
            min_pixels=4,
        )


def test_names_are_the_shapes(verifier):
    images, *_ = pictures(30, seed=3)
    detections = detect_objects(images, palette=PALETTE, min_pixels=MIN_PIXELS)
    assert {name for row in verifier(images, detections) for name in row} <= set(SHAPES)
