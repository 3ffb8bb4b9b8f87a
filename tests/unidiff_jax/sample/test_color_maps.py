"""Colour maps: tags as written, and maps there and back, also through compression."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from unidiff_jax.sample.color_maps import (
    COLORS,
    color_tags,
    draw_boxes,
    draw_masks,
    read_boxes,
    read_masks,
)


def test_tags():
    assert color_tags(["dragon", "a bird"], kind="mask", colors=["cyan", "red"]) == (
        "<#00ffff Cyan mask: dragon> <#ff0000 Red mask: a bird>"
    )
    assert color_tags(["cup"], kind="boundingbox") == "<#ff0000 Red boundingbox: cup>"
    assert color_tags([], kind="mask") == ""
    assert len(set(COLORS.values())) == len(COLORS) == 20


@pytest.mark.parametrize(
    ("names", "settings", "message"),
    [
        (["a"], {"kind": "box"}, "kind is one of mask, boundingbox, got 'box'"),
        (["a"], {"kind": "mask", "colors": ["grey"]}, "unknown colour 'grey'; colours are: red"),
        (["a"], {"kind": "mask", "colors": ["red", "lime"]}, "1 things need as many colours"),
        (["a", "b"], {"kind": "mask", "colors": ["red", "red"]}, "a colour of its own"),
        (["a"] * 21, {"kind": "mask"}, "21 things need as many colours"),
    ],
)
def test_tags_that_cannot_be(names, settings, message):
    with pytest.raises(ValueError, match=message):
        color_tags(names, **settings)


@given(
    seed=st.integers(0, 1000),
    colors=st.lists(st.sampled_from(list(COLORS)), min_size=1, max_size=20, unique=True),
)
def test_masks_there_and_back(seed, colors):
    labels = np.random.default_rng(seed).integers(0, len(colors) + 1, (6, 9))
    masks = np.arange(1, len(colors) + 1)[:, None, None] == labels
    picture = draw_masks(masks, colors=colors)
    assert picture.dtype == np.uint8 and not picture[labels == 0].any()
    np.testing.assert_array_equal(read_masks(picture, colors=colors), masks)


def test_later_masks_are_in_front():
    masks = np.ones((2, 2, 2), bool)
    masks[1, :, 0] = False
    picture = draw_masks(masks)
    assert picture[0].tolist() == [[255, 0, 0], [0, 255, 0]]


boxes_in_a_row = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 20), st.integers(1, 9), st.integers(1, 20)),
    min_size=1,
    max_size=5,
)


@given(parts=boxes_in_a_row, line=st.one_of(st.none(), st.integers(1, 3)))
def test_boxes_there_and_back(parts, line):
    # one beside the other, so that none hides another
    boxes = [
        (14 * i + left, top, 14 * i + left + width, top + height)
        for i, (left, top, width, height) in enumerate(parts)
    ]
    picture = draw_boxes(np.array(boxes), size=(14 * len(parts), 40), line=line)
    assert picture.shape == (40, 14 * len(parts), 3)
    read = read_boxes(picture, colors=list(COLORS)[: len(parts)])
    np.testing.assert_array_equal(read, boxes)


def test_outlines_show_the_boxes_behind():
    boxes = np.array([[5, 5, 60, 60], [20, 20, 40, 80]])
    picture = draw_boxes(boxes, size=(100, 100), line=2)
    np.testing.assert_array_equal(read_boxes(picture, colors=["red", "lime"]), boxes)
    assert not picture[50, 10].any()


def test_boxes_through_jpeg_and_noise():
    boxes = np.array([[8, 16, 40, 64], [48, 8, 88, 48]])
    picture = draw_boxes(boxes, size=(96, 80), colors=["cyan", "orange"])
    picture[2, 2] = COLORS["cyan"]  # a stray pixel
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="JPEG", quality=80, subsampling=0)
    got = np.asarray(Image.open(file))
    read = read_boxes(got, colors=["cyan", "orange", "purple"])
    assert np.abs(read[:2] - boxes).max() <= 1
    assert np.count_nonzero(read_masks(got, colors=["cyan", "orange"])[0]) == pytest.approx(
        32 * 48, rel=0.05
    )


def test_a_colour_that_is_not_there():
    picture = draw_boxes(np.array([[1, 1, 3, 3]]), size=(8, 8))
    assert read_boxes(picture, colors=["blue"]).tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize("box", [(3, 0, 3, 4), (-1, 0, 3, 4), (0, 0, 9, 4), (0, 5, 3, 4)])
def test_boxes_outside(box):
    with pytest.raises(ValueError, match="does not lie in a picture of 8x8 pixels"):
        draw_boxes(np.array([box]), size=(8, 8))
    with pytest.raises(ValueError, match="at least 1 pixel"):
        draw_boxes(np.array([[0, 0, 4, 4]]), size=(8, 8), line=0)
