"""Masks carried by flow and GrabCut, on clips whose masks are exact."""

import pickle

import cv2
import numpy as np
import pytest

from data_pipelines.curate.benchmark import mean_iou
from data_pipelines.curate.clips import ClipError, Shot
from data_pipelines.curate.describe import Entity
from data_pipelines.curate.exact_clips import textured_clip
from data_pipelines.curate.grabcut import cut, mask_in_box
from data_pipelines.curate.track_flow import FlowTracker

SIDE = 64


def texture(seed, colors):
    """Smooth noise between two colours, (128, 128, 3)."""
    noise = cv2.GaussianBlur(np.random.default_rng(seed).normal(size=(128, 128)), None, 2)
    weight = 1 / (1 + np.exp(-3 * noise / noise.std()))[..., None]
    return (weight * colors[0] + (1 - weight) * colors[1]).astype(np.uint8)


def sliding(lefts, *, top=20, width=20, height=24):
    """A square of reds slides over blues and greens; `lefts` has its place in each frame."""
    back = texture(0, np.array(((40, 60, 200), (30, 160, 90))))
    thing = texture(1, np.array(((220, 60, 50), (240, 170, 60))))
    frames, masks = [], []
    for left in lefts:
        frame, mask = back[:SIDE, :SIDE].copy(), np.zeros((SIDE, SIDE), np.uint8)
        low, high = max(left, 0), min(left + width, SIDE)
        if low < high:
            frame[top : top + height, low:high] = thing[:height, low - left : high - left]
            mask[top : top + height, low:high] = 1
        frames.append(frame)
        masks.append(mask)
    return Shot(np.stack(frames), np.arange(float(len(frames))), np.stack(masks))


def iou(first, second):
    return np.count_nonzero(first & second) / np.count_nonzero(first | second)


def box_of(mask):
    height, width = mask.shape
    x, y, w, h = cv2.boundingRect(mask.astype(np.uint8))
    return x / width, y / height, (x + w) / width, (y + h) / height


@pytest.fixture(scope="module")
def shot():
    return sliding(range(4, 40, 4))


def test_grabcut_beats_flow_and_flow_beats_a_copy():
    clips = [textured_clip(seed=n, num_frames=7, size=96, num_objects=2) for n in (11, 12, 13)]
    means = []
    for tracker in (None, FlowTracker(num_rounds=0), FlowTracker()):
        scores = []
        for clip in clips:
            masks = [clip.masks[0] == n for n in (1, 2)]
            found = np.repeat(clip.masks[:1], len(clip.frames), axis=0)
            if tracker:
                found = tracker.propagate_all(clip.frames, masks, starts=[0, 0])
            scores.append(mean_iou(found, clip))
        means.append(np.mean(scores))
    copy, flow, grabcut = means
    assert copy + 0.1 < flow < grabcut - 0.02
    assert grabcut > 0.78


@pytest.mark.parametrize("start", [0, 4, 8])
def test_a_thing_is_followed_both_ways_from_any_frame(shot, start):
    found = FlowTracker().propagate(shot.frames, shot.masks[start] == 1, start=start)
    assert found.shape == shot.masks.shape and found.dtype == bool
    np.testing.assert_array_equal(found[start], shot.masks[start] == 1)
    assert min(iou(a, b == 1) for a, b in zip(found, shot.masks, strict=True)) > 0.85


def test_time_has_no_direction(shot):
    forward = FlowTracker().propagate(shot.frames, shot.masks[0] == 1)
    backward = FlowTracker().propagate(shot.frames[::-1], shot.masks[0] == 1, start=8)
    np.testing.assert_array_equal(forward, backward[::-1])


def test_a_thing_that_leaves_is_gone_and_stays_away():
    # It comes back: nothing here can know that it is the same.
    shot = sliding([24, 32, 40, 48, 56, 64, 70, 64, 56, 48, 40])
    found = FlowTracker().propagate(shot.frames, shot.masks[0] == 1)
    assert iou(found[2], shot.masks[2] == 1) > 0.85
    assert iou(found[3], shot.masks[3] == 1) > 0.8
    assert not found[5:].any()


def test_nothing_comes_from_outside_the_picture():
    # The whole picture slides to the left, and the thing, at its right border, with it.
    back = texture(0, np.array(((40, 60, 200), (230, 160, 90))))
    frames = np.stack([back[:SIDE, 4 * t : 4 * t + SIDE] for t in range(5)])
    mask = np.zeros((SIDE, SIDE), bool)
    mask[20:40, 48:] = True
    found = FlowTracker(num_rounds=0).propagate(frames, mask)
    assert found[4, 25:35, 36:44].all()
    assert not found[4, :, 52:].any()


def test_a_thing_that_is_cut_away_at_once_leaves_no_mask():
    shot = sliding([20, 20, 20, 99, 99])
    found = FlowTracker().propagate(shot.frames, shot.masks[0] == 1)
    assert iou(found[2], shot.masks[2] == 1) > 0.95
    assert not found[3:].any()


def test_a_thing_that_enters_was_not_there_before():
    shot = sliding([-40, -30, -16, -8, 0, 8, 16])
    found = FlowTracker().propagate(shot.frames, shot.masks[6] == 1, start=6)
    assert iou(found[3], shot.masks[3] == 1) > 0.8
    assert not found[:2].any()


def test_a_box_is_enough(shot):
    entity = Entity("a red thing", box_of(shot.masks[4]), frame=4)
    tracks = FlowTracker().track(shot, [entity])
    assert tracks.names == {1: "a red thing"}
    assert tracks.masks.dtype == np.uint8
    assert min(iou(a == 1, b == 1) for a, b in zip(tracks.masks, shot.masks, strict=True)) > 0.8


@pytest.mark.parametrize(
    ("box", "shown"),
    [
        ((0.5, 0.5, 0.5 + 1 / SIDE, 0.5 + 1 / SIDE), True),
        ((0.0, 0.0, 1.0, 1.0), True),
        ((-0.5, -0.5, 1.5, 1.5), True),
        ((0.9, 0.9, 1.4, 1.4), True),
        ((1.1, 0.2, 1.5, 0.8), False),
        ((-0.5, 0.2, -0.1, 0.8), False),
        ((1.0, 0.2, 1.0, 0.8), False),
        ((0.6, 0.6, 0.4, 0.4), False),
        ((0.3, 0.3, 0.3, 0.3), False),
    ],
)
def test_boxes_of_every_kind(shot, box, shown):
    tracks = FlowTracker().track(shot, [Entity("x", box, frame=3)])
    assert tracks.masks.shape == shot.masks.shape
    assert tracks.masks[3].any() == shown
    assert shown or not tracks.masks.any()


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (8, 8), (17, 5)])
def test_frames_of_one_color_and_of_few_pixels(size):
    frames = np.full((3, *size, 3), 90, np.uint8)
    entities = [Entity("a", (0.0, 0.0, 1.0, 1.0), 1), Entity("b", (0.2, 0.2, 0.7, 0.7), 2)]
    masks = FlowTracker().track(Shot(frames, np.arange(3.0)), entities).masks
    assert masks.shape == (3, *size)
    assert masks[1].any() and masks[2].any()


@pytest.mark.parametrize("seed", range(24))
def test_noise_of_any_size_is_followed_without_error(seed):
    rng = np.random.default_rng(seed)
    num_frames, height, width, num_things = rng.integers((1, 1, 1, 1), (4, 50, 50, 4)).tolist()
    frames = rng.integers(0, 256, (num_frames, height, width, 3)).astype(np.uint8)
    shares = rng.choice((0, 0.02, 0.5, 1), (num_things, 1, 1))
    masks = list(rng.random((num_things, height, width)) < shares)
    starts = rng.integers(0, num_frames, num_things).tolist()
    tracker = FlowTracker(short_side=(8, 24, 192)[seed % 3], num_rounds=1 + seed % 2)
    found = tracker.propagate_all(frames, masks, starts=starts)
    assert found.shape == (num_frames, height, width) and found.max() <= num_things


def test_the_same_frames_give_the_same_masks(shot):
    entities = [Entity("x", box_of(shot.masks[4]), 4), Entity("y", (0.0, 0.5, 0.4, 1.0), 0)]
    first = FlowTracker().track(shot, entities).masks
    cv2.setRNGSeed(77)
    cv2.randu(np.zeros((5, 5)), 0, 1)
    second = pickle.loads(pickle.dumps(FlowTracker())).track(shot, entities).masks
    assert first.any()
    np.testing.assert_array_equal(first, second)


def test_the_smaller_of_two_overlapping_things_is_in_front(shot):
    outer, inner = np.zeros((2, SIDE, SIDE), bool)
    outer[10:50, 10:50], inner[20:30, 20:30] = True, True
    for order, front in (([outer, inner], 2), ([inner, outer], 1)):
        found = FlowTracker().propagate_all(shot.frames, order, starts=[2, 2])
        assert (found[2][inner] == front).all()
        assert (found[2][outer & ~inner] == 3 - front).all()


def test_things_of_different_frames_meet():
    shot = sliding(range(4, 40, 4))
    masks = [shot.masks[0] == 1, shot.masks[8] == 1]
    found = FlowTracker().propagate_all(shot.frames, masks, starts=[0, 8])
    # Both are the same thing: each frame takes the mask whose own frame is nearer.
    assert iou(found[1] == 1, shot.masks[1] == 1) > 0.85
    assert iou(found[7] == 2, shot.masks[7] == 1) > 0.85


def test_large_frames_are_followed_small():
    shot = sliding([4, 8, 12, 16])
    frames = np.stack([cv2.resize(f, None, fx=4, fy=4) for f in shot.frames])
    exact = np.repeat(np.repeat(shot.masks == 1, 4, axis=1), 4, axis=2)
    found = FlowTracker(short_side=SIDE).propagate(frames, exact[0])
    assert found.shape == exact.shape
    assert min(iou(a, b) for a, b in zip(found, exact, strict=True)) > 0.85


def test_no_entities_give_no_masks(shot):
    tracks = FlowTracker().track(shot, [])
    assert tracks.masks.shape == shot.masks.shape
    assert not tracks.masks.any() and not tracks.names


def test_what_cannot_be_followed_is_refused(shot):
    box = (0.1, 0.1, 0.9, 0.9)
    with pytest.raises(ClipError, match="frame 9; the shot has 9") as error:
        FlowTracker().track(shot, [Entity("x", box, frame=9)])
    assert error.value.reason == "entity frame"
    with pytest.raises(ClipError) as error:
        FlowTracker().propagate(shot.frames, np.zeros((8, 8), bool))
    assert error.value.reason == "mask size"
    with pytest.raises(ClipError, match="256 things") as error:
        FlowTracker().propagate_all(shot.frames, 256 * [shot.masks[0] == 1], starts=256 * [0])
    assert error.value.reason == "too many things"


def test_cut_follows_colors_and_keeps_what_is_sure(shot):
    exact = shot.masks[4] == 1
    labels = np.where(cv2.dilate(exact.astype(np.uint8), np.ones((9, 9))) > 0, 3, 0).astype(
        np.uint8
    )
    assert iou(labels > 0, exact) < 0.6
    assert iou(cut(shot.frames[4], labels, num_rounds=3), exact) > 0.95
    assert iou(cut(shot.frames[4], labels, num_rounds=0), labels == 3) == 1
    labels[5, 5] = cv2.GC_FGD
    labels[exact & (np.arange(SIDE) == 30)] = cv2.GC_BGD
    found = cut(shot.frames[4], labels, num_rounds=3)
    assert found[5, 5] and not found[labels == cv2.GC_BGD].any()


@pytest.mark.parametrize("value", range(4))
def test_cut_without_two_sides_gives_the_labels(shot, value):
    labels = np.full((SIDE, SIDE), value, np.uint8)
    labels[3, 3] = 3 - value
    thing = np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD))
    np.testing.assert_array_equal(cut(shot.frames[0], labels, num_rounds=2), thing)


def test_a_box_that_shows_nothing_gives_its_ellipse():
    picture = np.full((32, 32, 3), 128, np.uint8)
    mask = mask_in_box(picture, (0.25, 0.25, 0.75, 0.75))
    assert mask[16, 16] and not mask[8, 8] and not mask[:8].any() and not mask[24:].any()
    assert np.count_nonzero(mask) == pytest.approx(np.pi * 64, rel=0.1)
