"""Placements: photographs, maps and boxes stay on each other through crops, scales and flips."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from data_pipelines.geometry import MisalignedError, Placement, fit_whole, is_same_aspect

SIDES = st.integers(1, 70)


@st.composite
def placements(draw, sides=SIDES, sizes=SIDES, least=1):
    """Any crop of at least `least` pixels a side."""
    width, height = draw(sides), draw(sides)
    left, top = draw(st.integers(0, width - least)), draw(st.integers(0, height - least))
    right = draw(st.integers(left + least, width))
    bottom = draw(st.integers(top + least, height))
    return Placement(
        source=(width, height),
        crop=(left, top, right, bottom),
        size=(draw(sizes), draw(sizes)),
        flipped=draw(st.booleans()),
    )


def ids_of(placement):
    """Every pixel of the source has an id of its own."""
    width, height = placement.source
    return np.arange(width * height).reshape(height, width)


def points(placement):
    """Where the middle of each output pixel lies on the source: (rows, columns), by definition."""
    left, top, right, bottom = placement.crop
    width, height = placement.size
    x = [left + (j + 0.5) * (right - left) / width for j in range(width)]
    y = [top + (i + 0.5) * (bottom - top) / height for i in range(height)]
    return np.array(y), np.array(x[::-1] if placement.flipped else x)


@given(placements())
def test_a_map_shows_the_source_pixel_under_each_point(placement):
    y, x = points(placement)
    width = placement.source[0]
    # where a point is the border of two pixels, rounding may take either
    rows, columns = np.divmod(placement.map(ids_of(placement)), width)
    assert (np.abs(rows + 0.5 - y[:, None]) <= 0.5 + 1e-9).all()
    assert (np.abs(columns + 0.5 - x) <= 0.5 + 1e-9).all()


@given(placements())
def test_masks_depth_and_colors_are_placed_as_ids_are(placement):
    ids = ids_of(placement)
    placed = placement.map(ids)
    near = np.sqrt(ids.astype(np.float32))
    np.testing.assert_array_equal(placement.map(near), np.sqrt(placed.astype(np.float32)))
    np.testing.assert_array_equal(placement.map(ids % 3 == 0), placed % 3 == 0)
    colors = np.stack([ids, ids // 2, ids // 3], axis=-1)
    expected = np.stack([placed, placed // 2, placed // 3], axis=-1)
    np.testing.assert_array_equal(placement.map(colors), expected)


@given(placements())
def test_scaling_by_nearest_pixels_in_pillow_is_the_same(placement):
    ids = ids_of(placement)
    y, x = points(placement)
    assume((np.abs(y - np.round(y)) > 1e-6).all() and (np.abs(x - np.round(x)) > 1e-6).all())
    theirs = Image.fromarray(ids.astype(np.int32)).resize(
        placement.size, Image.Resampling.NEAREST, box=placement.crop
    )
    if placement.flipped:
        theirs = theirs.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    np.testing.assert_array_equal(placement.map(ids), np.asarray(theirs))


@given(placements(st.integers(24, 70), st.integers(4, 90), least=16))
def test_a_photograph_lies_under_its_map(placement):
    left, top, right, bottom = placement.crop
    height, width = placement.source[::-1]
    ramp = np.empty((height, width, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = 3 * np.arange(width), 3 * np.arange(height)[:, None]
    ramp[..., 2] = 7
    placed = placement.picture(ramp).astype(float)
    y, x = points(placement)
    # the filter repeats the border, so only points further in have the ramp's value
    reach_x = 2.5 * max(1, (right - left) / placement.size[0])
    reach_y = 2.5 * max(1, (bottom - top) / placement.size[1])
    inner_x = (x > left + reach_x) & (x < right - reach_x)
    inner_y = (y > top + reach_y) & (y < bottom - reach_y)
    inside = np.ix_(inner_y, inner_x)
    np.testing.assert_allclose(
        placed[..., 0][inside], (3 * (x - 0.5) + 0 * y[:, None])[inside], atol=1
    )
    np.testing.assert_allclose(
        placed[..., 1][inside], (3 * (y[:, None] - 0.5) + 0 * x)[inside], atol=1
    )
    mapped = placement.map(ramp).astype(float)
    assert (np.abs(mapped - placed)[inside] <= 3 * 0.5 + 1).all()  # half a source pixel
    assert (placed[..., 2] == 7).all()


@given(placements(), st.data())
def test_boxes_are_those_of_painted_maps(placement, data):
    width, height = placement.source
    left, right = sorted(data.draw(st.tuples(st.integers(0, width), st.integers(0, width))))
    top, bottom = sorted(data.draw(st.tuples(st.integers(0, height), st.integers(0, height))))
    mask = np.zeros((height, width), bool)
    mask[top:bottom, left:right] = True
    found = placement.boxes(np.array([[left, top, right, bottom]]))[0]
    painted = np.zeros(placement.size[::-1], bool)
    painted[found[1] : found[3], found[0] : found[2]] = True
    np.testing.assert_array_equal(placement.map(mask), painted)
    assert (
        (found >= 0).all()
        and (found[2:] <= placement.size).all()
        and (found[:2] <= found[2:]).all()
    )


@given(placements(), st.integers(0, 2**32 - 1))
def test_boxes_hold_placed_masks_of_any_shape(placement, seed):
    rng = np.random.default_rng(seed)
    mask = rng.random(placement.source[::-1]) < rng.choice([0.02, 0.5])
    assume(mask.any())
    rows, columns = np.nonzero(mask)
    box = np.array([[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]])
    left, top, right, bottom = placement.boxes(box)[0]
    placed = placement.map(mask)
    outside = placed.copy()
    outside[top:bottom, left:right] = False
    assert not outside.any()
    cropped = (placement.crop[2] - placement.crop[0], placement.crop[3] - placement.crop[1])
    whole = placement.crop == (0, 0, *placement.source)
    if whole and all(np.array(placement.size) >= cropped):  # every source pixel is seen
        rows, columns = np.nonzero(placed)
        tight = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert (left, top, right, bottom) == tight


@given(placements(), st.sampled_from([2, 3, 5]))
def test_whole_factors_repeat_pixels(placement, factor):
    left, top, right, bottom = placement.crop
    size = (factor * (right - left), factor * (bottom - top))
    scaled = Placement(source=placement.source, crop=placement.crop, size=size)
    ids = ids_of(placement)[top:bottom, left:right]
    expected = np.kron(ids, np.ones((factor, factor), int))
    np.testing.assert_array_equal(scaled.map(ids_of(placement)), expected)


@given(placements())
def test_a_crop_alone_changes_no_pixel(placement):
    left, top, right, bottom = placement.crop
    crop = Placement(
        source=placement.source,
        crop=placement.crop,
        size=(right - left, bottom - top),
        flipped=placement.flipped,
    )
    rgb = np.random.default_rng(0).integers(0, 256, (*placement.source[::-1], 3), np.uint8)
    expected = rgb[top:bottom, left:right]
    expected = expected[:, ::-1] if placement.flipped else expected
    np.testing.assert_array_equal(crop.picture(rgb), expected)
    np.testing.assert_array_equal(crop.map(rgb), expected)


@given(placements())
def test_a_flip_is_the_last_step(placement):
    rgb = np.random.default_rng(0).integers(0, 256, (*placement.source[::-1], 3), np.uint8)
    plain, flipped = (
        Placement(
            source=placement.source, crop=placement.crop, size=placement.size, flipped=flipped
        )
        for flipped in (False, True)
    )
    np.testing.assert_array_equal(plain.picture(rgb)[:, ::-1], flipped.picture(rgb))
    np.testing.assert_array_equal(plain.map(rgb)[:, ::-1], flipped.map(rgb))
    boxes = np.array([[0, 0, *placement.source], placement.crop])
    mirrored = plain.boxes(boxes)
    mirrored[:, [0, 2]] = placement.size[0] - mirrored[:, [2, 0]]
    np.testing.assert_array_equal(flipped.boxes(boxes), mirrored)


@given(placements(st.integers(8, 40), st.integers(2, 40)), st.integers(2, 4))
def test_a_map_at_another_resolution_lies_at_the_same_place(placement, factor):
    ids = ids_of(placement)
    fine = np.kron(ids, np.ones((factor, factor), int))  # what is painted finer shows the same
    y, x = points(placement)
    assume((np.abs(y - np.round(y)) > 1e-6).all() and (np.abs(x - np.round(x)) > 1e-6).all())
    np.testing.assert_array_equal(placement.map(fine), placement.map(ids))


@given(SIDES, SIDES, SIDES, SIDES)
def test_the_centre_crop(source_width, source_height, width, height):
    placement = Placement.center((source_width, source_height), size=(width, height))
    left, top, right, bottom = placement.crop
    assert left + right in (source_width, source_width - 1)
    assert top + bottom in (source_height, source_height - 1)
    assert right - left == source_width or bottom - top == source_height
    scale = min(source_width / width, source_height / height)
    assert abs((right - left) - max(1, scale * width)) <= 0.5
    assert abs((bottom - top) - max(1, scale * height)) <= 0.5


def test_a_pixel_too_many_is_cut_and_not_blurred():
    rgb = np.random.default_rng(0).integers(0, 256, (48, 65, 3), np.uint8)
    placed = Placement.center((65, 48), size=(64, 48)).picture(rgb)
    np.testing.assert_array_equal(placed, rgb[:, :64])


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ((640, 480), (640, 480), True),
        ((640, 480), (320, 240), True),
        ((641, 481), (320, 240), True),  # halved, rounded down
        ((1920, 1080), (854, 480), True),
        ((640, 480), (480, 640), False),
        ((640, 480), (640, 470), False),
        ((640, 480), (64, 64), False),
        ((60, 60), (64, 48), False),
    ],
)
def test_aspects(first, second, same):
    assert is_same_aspect(first, second) == is_same_aspect(second, first) == same
    placement = Placement.center(first, size=(32, 24))
    for place in (placement.picture, placement.map):
        picture = np.zeros((second[1], second[0], 3), np.uint8)
        if same:
            assert place(picture).shape == (24, 32, 3)
        else:
            with pytest.raises(MisalignedError, match=f"{second[0]}x{second[1]} pixels do not lie"):
                place(picture)


@given(placements(), st.integers(0, 2**32 - 1))
def test_photographs_that_differ_in_a_mask_are_equal_away_from_it(placement, seed):
    rng = np.random.default_rng(seed)
    height, width = placement.source[::-1]
    rgb = rng.integers(0, 256, (height, width, 3), np.uint8)
    mask = np.zeros((height, width), bool)
    mask[rng.integers(height) :, rng.integers(width) :] = True
    other = np.where(mask[..., None], np.uint8(128), rgb)
    changed = (placement.picture(rgb) != placement.picture(other)).any(axis=-1)
    y, x = points(placement)
    left, top, right, bottom = placement.crop
    reach_x = 2 * max(1, (right - left) / placement.size[0]) + 0.5
    reach_y = 2 * max(1, (bottom - top) / placement.size[1]) + 0.5
    rows, columns = np.nonzero(mask)
    near_x = (x > columns.min() - reach_x) & (x < columns.max() + 1 + reach_x)
    near_y = (y > rows.min() - reach_y) & (y < rows.max() + 1 + reach_y)
    assert not changed[~(near_y[:, None] & near_x)].any()


@given(SIDES, SIDES, SIDES, SIDES)
def test_a_reference_is_fitted_whole_on_white(source_width, source_height, width, height):
    rgb = np.full((source_height, source_width, 3), 9, np.uint8)
    whole = fit_whole(rgb, size=(width, height))
    assert whole.shape == (height, width, 3)
    inside = (whole == 9).all(axis=-1)
    assert (whole[~inside] == 255).all()
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    assert len(rows) == height or len(columns) == width
    assert inside[np.ix_(rows, columns)].all()
    assert abs(rows[0] - (height - 1 - rows[-1])) <= 1
    assert abs(columns[0] - (width - 1 - columns[-1])) <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop": (0, 0, 5, 4)}, r"crop \(0, 0, 5, 4\) does not lie in 4x4 pixels"),
        ({"crop": (2, 0, 2, 4)}, "does not lie in"),
        ({"crop": (-1, 0, 2, 4)}, "does not lie in"),
        ({"size": (0, 4)}, "size is at least 1x1"),
    ],
)
def test_placements_that_cannot_be(change, message):
    settings = {"source": (4, 4), "crop": (0, 0, 4, 4), "size": (2, 2)}
    with pytest.raises(ValueError, match=message):
        Placement(**(settings | change))
