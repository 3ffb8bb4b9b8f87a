"""Pictures have fixed scales and keep pixels as they are."""

import numpy as np
import pytest

from unidiff_jax.evals import pictures


def test_to_rgb_takes_bytes_floats_and_masks():
    expected = np.zeros((2, 2, 3), dtype=np.uint8)
    expected[0, 0] = 255
    for image in (expected, expected / 255, expected[..., :1], expected[..., 0] > 0):
        np.testing.assert_array_equal(pictures.to_rgb(image), expected)
    np.testing.assert_array_equal(pictures.to_rgb(np.array([[2.0, np.nan]]))[0, :, 0], [255, 0])
    with pytest.raises(ValueError, match="int64"):
        pictures.to_rgb(np.zeros((2, 2), dtype=np.int64))


def test_error_map_is_white_where_exact_and_darkens_with_the_error():
    target = np.zeros((1, 5, 3))
    output = np.linspace(0, 0.5, 5)[None, :, None] * np.ones(3)
    shade = pictures.error_map(output, target=target).astype(int).sum(axis=-1)[0]
    assert shade[0] == 3 * 255
    assert (np.diff(shade) < 0).all()
    saturated = pictures.error_map(np.ones((1, 1, 3)), target=np.zeros((1, 1, 3)))
    np.testing.assert_array_equal(saturated[0, 0], pictures.error_map(output, target=target)[0, -1])


def test_depth_colours_depend_on_the_range_given_and_not_on_the_picture():
    near, far = pictures.depth_to_rgb(np.array([[2.0, 6.0, np.inf]]), near=2, far=6)[0, :2]
    assert near.sum() > far.sum()
    alone = pictures.depth_to_rgb(np.array([[6.0]]), near=2, far=6)
    np.testing.assert_array_equal(alone[0, 0], far)
    with pytest.raises(ValueError, match=r"far \(2\) must exceed near"):
        pictures.depth_to_rgb(np.ones((1, 1)), near=2, far=2)


def test_mask_overlay_tints_the_mask_only():
    image = np.full((2, 2, 3), 100, dtype=np.uint8)
    mask = np.array([[True, False], [False, False]])
    result = pictures.mask_overlay(image, mask=mask, color=(255, 0, 0), opacity=1.0)
    assert result[0, 0].tolist() == [255, 0, 0]
    assert (result[~mask] == 100).all()


def test_grid_enlarges_pixels_and_leaves_gaps_empty():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, size=(8, 8, 3), dtype=np.uint8)
    page = np.asarray(pictures.grid([[image, None], [image, image]], cell=24, gap=2))
    assert page.shape == (2 + 2 * 26, 2 * 26 + 2, 3)
    np.testing.assert_array_equal(page[2:26:3, 2:26:3], image)
    assert (page[2:26, 28:52] == 255).all()
    titled = pictures.grid([[image, image]], columns=["output", "target"], captions=["é" * 200])
    assert titled.width == 2 * (96 + 6) + 6
    with pytest.raises(ValueError, match="1 captions for 2 rows"):
        pictures.grid([[image], [image]], captions=["one"])
    with pytest.raises(ValueError, match="at least one image"):
        pictures.grid([[None]])
