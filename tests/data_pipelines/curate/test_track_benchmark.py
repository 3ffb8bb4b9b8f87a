"""The drawn clips are what their masks say, and the benchmark's numbers are right."""

import dataclasses

import numpy as np
import pytest

from data_pipelines.curate import benchmark
from data_pipelines.curate.clips import Shot
from data_pipelines.curate.exact_clips import rendered_clip, textured_clip


@pytest.mark.parametrize("draw", [rendered_clip, textured_clip])
def test_clips_are_the_same_for_a_seed_and_others_for_another(draw):
    first, second, other = (draw(seed=n, num_frames=3, size=32) for n in (5, 5, 6))
    np.testing.assert_array_equal(first.frames, second.frames)
    np.testing.assert_array_equal(first.masks, second.masks)
    assert (first.frames != other.frames).any()
    assert first.frames.shape == (3, 32, 32, 3) and first.masks.shape == (3, 32, 32)
    assert set(np.unique(first.masks)) == {0, *first.names}


def test_things_move_and_the_later_one_hides_the_earlier():
    shot = textured_clip(seed=3, num_frames=5, size=64, num_objects=3)
    for i in shot.names:
        assert (shot.masks[0] == i).sum() > 50
        assert ((shot.masks[0] == i) != (shot.masks[4] == i)).sum() > 50
    # The first thing and its way are the same without the others.
    alone = textured_clip(seed=3, num_frames=5, size=64, num_objects=1)
    assert ((alone.masks == 1) & (shot.masks > 1)).any()
    assert not ((alone.masks == 0) & (shot.masks == 1)).any()


def test_mean_iou_counts_things_of_the_first_frame_in_later_frames():
    masks = np.zeros((3, 4, 4), np.uint8)
    masks[:, 0], masks[:, 2] = 4, 9
    masks[2, 2] = 0
    shot = Shot(np.zeros((3, 4, 4, 3), np.uint8), np.arange(3.0), masks)
    found = np.zeros_like(masks)
    found[:, 0, :2] = 1  # half of thing 4 in both later frames
    found[1, 2] = 2  # all of thing 9 while it is there, and nothing when it is not
    assert benchmark.first_ids(shot) == [4, 9]
    assert benchmark.mean_iou(found, shot) == pytest.approx((0.5 + 0.5 + 1 + 1) / 4)
    found[2, 3] = 2
    assert benchmark.mean_iou(found, shot) == pytest.approx((0.5 + 0.5 + 1 + 0) / 4)


def test_rows_have_every_tracker_on_every_kind_of_clips():
    rows = benchmark.measure_trackers(num_clips=2, num_frames=4, size=48)
    names = [(row.clips, row.tracker) for row in rows]
    assert names == [(clips, name) for clips in benchmark.CLIPS for name in benchmark.TRACKERS]
    for row in rows:
        values = dataclasses.asdict(row)
        assert 0 < values["mean"] <= 1 and values["spread"] >= 0
        assert values["num_tracks"] >= 4 and values["frames_per_second"] > 0
    for start in (0, len(benchmark.TRACKERS)):
        copy, flow, grabcut, _ = (row.mean for row in rows[start : start + 4])
        assert copy < flow < grabcut
