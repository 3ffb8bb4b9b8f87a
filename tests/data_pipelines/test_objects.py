"""Things in pictures: cut out, covered and named; and MiniWorld's items, which use them."""

import hashlib

import numpy as np
import pytest

from data_pipelines import objects
from data_pipelines.miniworld.items import MiniWorldSource
from data_pipelines.miniworld.records import Record
from unidiff_jax.tasks import get_task


def picture(size=(8, 6), seed=0):
    return np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8)


def ring(size=(8, 6)):
    mask = np.zeros(size, bool)
    mask[2:6, 1:5], mask[3:5, 2:4] = True, False
    return mask


def test_a_cut_out_is_the_thing_in_its_box_on_white():
    rgb, mask = picture(), ring()
    alone = objects.cut_out(rgb, mask)
    assert alone.shape == (4, 4, 3)
    np.testing.assert_array_equal(alone[mask[2:6, 1:5]], rgb[mask])
    assert (alone[1:3, 1:3] == 255).all()


def test_a_hole_is_a_grey_box_and_changes_nothing_else():
    rgb, mask = picture(), ring()
    kept = rgb.copy()
    holed = objects.cover(rgb, [mask])
    assert (holed[2:6, 1:5] == objects.HOLE_GREY).all()
    holed[2:6, 1:5] = rgb[2:6, 1:5]
    np.testing.assert_array_equal(holed, rgb)
    np.testing.assert_array_equal(rgb, kept)
    np.testing.assert_array_equal(objects.cover(rgb, []), rgb)


def test_boxes():
    for box in ((slice(0, 1), slice(0, 1)), (slice(3, 8), slice(5, 6)), (slice(0, 8), slice(0, 6))):
        mask = np.zeros((8, 6), bool)
        mask[box] = True
        assert objects.box_of(mask) == box


def test_what_is_seen():
    ids = np.zeros((2, 20, 20), np.uint8)
    ids[:, :2, :3] = 1  # 6 of 400 pixels are the least share
    ids[0, 10:, 10:] = 2
    ids[:, 5, :5] = 3
    assert [objects.is_seen(ids, i) for i in (1, 2, 3, 4)] == [True, False, False, False]
    assert objects.is_seen(ids[:1], 2)


def test_things_are_drawn_without_repetition():
    found = [
        objects.draw_things("abcd", np.random.default_rng(seed), most=3) for seed in range(100)
    ]
    assert {len(things) for things in found} == {1, 2, 3}
    assert all(len(set(things)) == len(things) for things in found)
    assert {thing for things in found for thing in things} == set("abcd")
    assert objects.draw_things([], np.random.default_rng(0), most=3) == []


@pytest.mark.parametrize(
    ("name", "bare"),
    [
        ("a red ball", "red ball"),
        ("The  dog", "dog"),
        (" an apple ", "apple"),
        ("anchor", "anchor"),
        ("a", "a"),
        ("红色的球", "红色的球"),
        ("", ""),
    ],
)
def test_names_without_articles(name, bare):
    assert objects.bare_name(name) == bare


def test_names_of_references():
    named = objects.name_references(["a dog", "red ball", "كلب"], first=2)
    assert named == "the dog of IMG2 and the red ball of IMG3 and the كلب of IMG4"


# ---------------------------------------------------------------------------------- MiniWorld


def record():
    """Three boxes that move between four pictures, on noise."""
    rng = np.random.default_rng(7)
    rgb = rng.integers(0, 256, (4, 24, 24, 3), np.uint8)
    instance = np.zeros((4, 24, 24), np.uint8)
    for n in range(4):
        instance[n, 2:9, n : n + 5] = 1
        instance[n, 12 + n : 15 + n, 3:14] = 2
        instance[n, 6 : 7 + 2 * n, 16:20] = 3
    bodies = [
        {"id": i, "color": color, "shape": shape}
        for i, color, shape in ((1, "red", "cube"), (2, "green", "sphere"), (3, "blue", "cube"))
    ]
    return Record(
        rgb=rgb,
        depth=np.full((4, 24, 24), 5, np.float16),
        instance=instance,
        shadow=np.zeros((4, 24, 24), np.uint8),
        camera_to_world=np.zeros((4, 4, 4), np.float32),
        intrinsics=np.zeros((4, 3, 3), np.float32),
        id=1,
        split="train",
        heldout=None,
        scenes=[{"objects": bodies}] * 4,
        captions=[["a scene", "three things"]] * 4,
        references=[],
        edits=[],
        clip={"kind": "turn", "images": [0, 2, 3], "description": "the camera turns"},
    )


class OneRecord(MiniWorldSource):
    """Items without a folder."""

    def __init__(self):
        self._edit_kinds, self._min_reference_objects, self._num_captions = frozenset(), 1, None


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("inpaint", "4d8cdf3becc1efcd"),
        ("customize", "3a3ae8251da144f9"),
        ("insert", "61a460bcc2d01a02"),
        ("layout_to_image", "2157fc761b02cfd5"),
    ],
)
def test_miniworld_items_are_what_models_were_trained_on(task, expected):
    found = hashlib.sha256()
    for seed in range(8):
        item = OneRecord().item(record(), get_task(task), np.random.default_rng(seed))
        for name in sorted(item.keys() - {"record"}):
            for value in item[name] if isinstance(item[name], list) else [item[name]]:
                found.update(name.encode())
                found.update(repr(getattr(value, "shape", value)).encode())
                found.update(value.tobytes() if isinstance(value, np.ndarray) else b"")
    assert found.hexdigest()[:16] == expected
