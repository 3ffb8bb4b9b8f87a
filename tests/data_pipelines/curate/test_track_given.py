"""Masks that the data have, and masks at other sizes."""

import pickle

import numpy as np
import pytest

from data_pipelines.curate.clips import ClipError, Shot
from data_pipelines.curate.resize import enlarge_masks, shrink_frames, shrink_mask
from data_pipelines.curate.track import GivenTracker


def make_shot(masks, names=None):
    return Shot(np.zeros((3, 8, 10, 3), np.uint8), np.arange(3.0), masks, names or {})


def test_masks_ids_and_names_are_the_datas():
    masks = np.random.default_rng(0).integers(0, 9, (3, 8, 10)).astype(np.uint8)
    tracker = pickle.loads(pickle.dumps(GivenTracker()))
    tracks = tracker.track(make_shot(masks, {4: "a cat", 7: "a dog"}), [])
    np.testing.assert_array_equal(tracks.masks, masks)
    assert tracks.names == {4: "a cat", 7: "a dog"}


@pytest.mark.parametrize(
    ("masks", "reason"),
    [
        (None, "no masks"),
        (np.zeros((3, 10, 8), np.uint8), "mask size"),
        (np.zeros((2, 8, 10), np.uint8), "mask size"),
    ],
)
def test_masks_that_do_not_fit_are_refused(masks, reason):
    with pytest.raises(ClipError) as error:
        GivenTracker().track(make_shot(masks))
    assert error.value.reason == reason


def test_enlarged_ids_keep_their_places_and_meet_without_a_third_id():
    small = np.zeros((1, 8, 8), np.uint8)
    small[0, :, :4], small[0, :, 4:] = 1, 9
    large = enlarge_masks(small, (24, 24))
    assert set(np.unique(large)) == {1, 9}
    assert (large[0, :, :12] == 1).all() and (large[0, :, 12:] == 9).all()


def test_a_thing_smaller_than_a_pixel_keeps_one_pixel():
    mask = np.zeros((64, 64), bool)
    mask[21, 42] = True
    assert np.argwhere(shrink_mask(mask, (16, 16))).tolist() == [[5, 10]]
    assert not shrink_mask(np.zeros((64, 64), bool), (16, 16)).any()


def test_frames_are_made_smaller_and_never_larger():
    frames = np.zeros((2, 60, 90, 3), np.uint8)
    assert shrink_frames(frames, short_side=20).shape == (2, 20, 30, 3)
    assert shrink_frames(frames, short_side=80) is frames
