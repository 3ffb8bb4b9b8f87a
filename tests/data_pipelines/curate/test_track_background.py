"""What moves before a still camera, on drawn walkers with sensor noise."""

import pickle

import cv2
import numpy as np
import pytest

from data_pipelines.curate.clips import ClipError, Shot
from data_pipelines.curate.describe import Entity
from data_pipelines.curate.track_background import BackgroundTracker

HEIGHT, WIDTH, FRAMES = 80, 128, 18


def texture(seed, low, high):
    noise = np.random.default_rng(seed).uniform(size=(HEIGHT, 256, 3))
    smooth = cv2.GaussianBlur(noise, None, 3)
    smooth = (smooth - smooth.min()) / np.ptp(smooth)
    return low + (high - low) * smooth


def walk(*ways, frames=FRAMES, hidden=()):
    """Walkers of 12 x 22 pixels; a way is (first left, step, top). Gone in frames `hidden`."""
    rng = np.random.default_rng(3)
    back = texture(0, 30, 130)[:, :WIDTH]
    pictures, masks = [], []
    for t in range(frames):
        picture, mask = back.copy(), np.zeros((HEIGHT, WIDTH), np.uint8)
        for n, (left, step, top) in enumerate(ways):
            low, high = np.clip((left + t * step, left + t * step + 12), 0, WIDTH)
            if low < high and t not in hidden:
                picture[top : top + 22, low:high] = texture(n + 1, 150, 250)[:22, : high - low]
                mask[top : top + 22, low:high] = n + 1
        noise = rng.normal(0, 2.5, picture.shape)
        pictures.append(np.clip(picture + noise, 0, 255).astype(np.uint8))
        masks.append(mask)
    return Shot(np.stack(pictures), np.arange(float(frames)), np.stack(masks))


def mean_iou(first, second):
    both, either = (
        np.sum(op(first, second), axis=(1, 2)) for op in (np.logical_and, np.logical_or)
    )
    return float(np.mean(np.where(either > 0, both / np.maximum(either, 1), 1)))


@pytest.fixture(scope="module")
def walkers():
    return walk((2, 5, 10), (100, -5, 48))


def test_two_walkers_are_two_stable_trajectories(walkers):
    tracks = pickle.loads(pickle.dumps(BackgroundTracker())).track(walkers, [])
    assert tracks.masks.shape == walkers.masks.shape and tracks.masks.dtype == np.uint8
    assert set(np.unique(tracks.masks)) == {0, 1, 2}
    assert not tracks.names
    for i in (1, 2):
        assert mean_iou(tracks.masks == i, walkers.masks == i) > 0.85


def test_an_entity_names_what_is_in_its_box_at_its_frame(walkers):
    lower = (65 / WIDTH, 46 / HEIGHT, 92 / WIDTH, 72 / HEIGHT)
    entities = [
        Entity("a car", (0.0, 0.9, 0.1, 1.0), 5),
        Entity("a dog", lower, 5),
        Entity("a tree", lower, 14),
    ]
    tracks = BackgroundTracker().track(walkers, entities)
    assert tracks.names == {2: "a dog"}
    assert set(np.unique(tracks.masks)) == {0, 2, 4}
    assert mean_iou(tracks.masks == 2, walkers.masks == 2) > 0.85
    assert mean_iou(tracks.masks == 4, walkers.masks == 1) > 0.85


def test_a_walker_lost_for_two_frames_is_the_same():
    shot = walk((4, 5, 20), hidden=(8, 9))
    # Three steps are more than its width: it is looked for where its last step leads.
    tracks = BackgroundTracker(reach=0.03).track(shot)
    assert set(np.unique(tracks.masks)) == {0, 1}
    assert not tracks.masks[8:10].any()
    assert mean_iou(tracks.masks == 1, shot.masks == 1) > 0.85
    apart = BackgroundTracker(max_gap=1).track(shot)
    assert set(np.unique(apart.masks)) == {0, 1, 2}


def test_a_walker_faster_than_its_width_is_found_within_reach():
    shot = walk((4, 15, 20), frames=8)
    tracks = BackgroundTracker(reach=0.2).track(shot)
    assert set(np.unique(tracks.masks)) == {0, 1}
    assert mean_iou(tracks.masks == 1, shot.masks == 1) > 0.85
    assert not BackgroundTracker(reach=0.1).track(shot).masks.any()


def test_walkers_that_pass_each_other_keep_their_ids():
    shot = walk((2, 6, 10), (104, -6, 40))
    tracks = BackgroundTracker(reach=0.5).track(shot)
    for i in (1, 2):
        assert mean_iou(tracks.masks == i, shot.masks == i) > 0.85


def test_what_is_too_small_or_seen_too_shortly_is_left_out(walkers):
    assert not BackgroundTracker(min_area=0.05).track(walkers).masks.any()
    assert not BackgroundTracker(min_frames=10).track(walk((50, 9, 5))).masks.any()
    assert BackgroundTracker(min_frames=7).track(walk((50, 9, 5))).masks.any()


def test_nothing_moves():
    tracks = BackgroundTracker().track(walk())
    assert not tracks.masks.any() and not tracks.names


def test_large_frames_give_large_masks(walkers):
    tracks = BackgroundTracker(short_side=40).track(walkers)
    assert tracks.masks.shape == walkers.masks.shape
    for i in (1, 2):
        assert mean_iou(tracks.masks == i, walkers.masks == i) > 0.7


def test_a_camera_that_moves_is_refused():
    scene = texture(5, 20, 230)
    frames = np.stack([scene[:, 5 * t : 5 * t + WIDTH] for t in range(FRAMES)]).astype(np.uint8)
    with pytest.raises(ClipError, match="% of the picture moves") as error:
        BackgroundTracker().track(Shot(frames, np.arange(float(FRAMES))))
    assert error.value.reason == "camera moves"


def test_shots_that_are_too_short_and_too_many_entities_are_refused(walkers):
    with pytest.raises(ClipError) as error:
        BackgroundTracker().track(walk((2, 5, 10), frames=3))
    assert error.value.reason == "too short"
    with pytest.raises(ClipError) as error:
        BackgroundTracker().track(walkers, 256 * [Entity("x", (0, 0, 1, 1))])
    assert error.value.reason == "too many things"


def test_the_largest_things_get_the_ids_that_are_left():
    shot = walk((2, 5, 10), (100, -1, 48))
    entities = 254 * [Entity("x", (0.0, 0.97, 0.02, 1.0))]
    masks = BackgroundTracker(min_area=0.002).track(shot, entities).masks
    assert set(np.unique(masks)) == {0, 255}
