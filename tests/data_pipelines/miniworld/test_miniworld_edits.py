"""Edits and clips change what they say and nothing else."""

import numpy as np
import pytest

from data_pipelines.miniworld import edits, video
from data_pipelines.miniworld.render import render
from data_pipelines.miniworld.scene import heldout_factors, is_valid, sample_scene

SIZE = 32
BASES = [
    sample_scene(np.random.default_rng([2, seed]), split=split)
    for split in ("train", "heldout")
    for seed in range(12)
]


def edits_of(kind):
    found = []
    for seed, scene in enumerate(BASES):
        edit = edits.sample_edit(scene, np.random.default_rng(seed), kind=kind)
        if edit is not None:
            found.append(edit)
    assert len(found) >= 4
    return found


def pixels(mask):
    """Samples (2n, 2n) -> pixels (n, n) with any sample set."""
    return mask.reshape(SIZE, 2, SIZE, 2).any(axis=(1, 3))


@pytest.mark.parametrize("kind", edits.KINDS)
def test_pixels_outside_the_change_and_its_shadow_are_identical(kind):
    for edit in edits_of(kind):
        before, after = render(edit.before, SIZE), render(edit.after, SIZE)
        # The same sample points as the picture's, so the region is exact without a margin.
        fine = [render(s, 2 * SIZE, samples=1) for s in (edit.before, edit.after)]
        touched = fine[0].shadow != fine[1].shadow
        for picture in fine:
            touched |= picture.instance == edit.object
        untouched = ~pixels(touched)
        assert untouched.any()
        np.testing.assert_array_equal(before.rgb[untouched], after.rgb[untouched])
        assert (before.rgb != after.rgb).any()
        same = (before.instance != edit.object) & (after.instance != edit.object)
        np.testing.assert_array_equal(before.depth[same], after.depth[same])
        np.testing.assert_array_equal(before.instance[same], after.instance[same])


@pytest.mark.parametrize("kind", edits.KINDS)
def test_after_scenes_are_valid_and_leak_nothing(kind):
    for edit in edits_of(kind):
        assert is_valid(edit.after)
        assert heldout_factors(edit.after) <= heldout_factors(edit.before)


def test_each_kind_changes_what_it_names():
    for kind in edits.KINDS:
        for edit in edits_of(kind):
            before = {o.id: o for o in edit.before.objects}
            after = {o.id: o for o in edit.after.objects}
            changed = {i for i in before | after if before.get(i) != after.get(i)}
            assert edit.after.camera == edit.before.camera
            assert edit.after.light == edit.before.light
            assert (edit.after.floor != edit.before.floor) == (kind == "background")
            assert changed == (set() if kind == "background" else {edit.object})
            if kind == "add":
                assert edit.object not in before
                added = after[edit.object]
                assert f"a {added.size} {added.color} {added.shape} " in edit.instruction
            elif kind == "remove":
                assert edit.object not in after
            elif kind == "recolor":
                assert after[edit.object].color in edit.instruction.split()
            elif kind == "background":
                assert edit.after.floor in edit.instruction.split()


def test_moves_go_where_the_instruction_says():
    axis = {"left": (0, -1), "right": (0, 1), "front": (2, 1), "back": (2, -1)}
    for edit in edits_of("move"):
        rotation = render(edit.before, 8).camera_to_world[:3, :3]
        old, new = (np.array(s.object(edit.object).center) for s in (edit.before, edit.after))
        assert np.linalg.norm(new - old) == pytest.approx(edits.MOVE_STEP, abs=0.01)
        index, sign = axis[edit.instruction.split()[-1]]
        assert sign * (rotation.T @ (new - old))[index] > 0.5


def test_edits_fill_the_number_asked_for():
    for seed, scene in enumerate(BASES):
        for count in (0, 3, 7):
            drawn = edits.sample_edits(scene, np.random.default_rng(seed), num_edits=count)
            assert len(drawn) == count
            kinds = [edit.kind for edit in drawn[:3]]
            assert len(set(kinds)) == len(kinds)


@pytest.mark.parametrize("kind", video.KINDS)
def test_clips_start_with_the_base_and_stay_valid(kind):
    kinds = set()
    for seed, scene in enumerate(BASES):
        clip = video.frames(scene, np.random.default_rng(seed), 4, kinds=(kind,))
        assert clip.scenes[0] == scene
        assert len(clip.scenes) == 4
        assert clip.scenes[-1] != scene
        kinds.add(clip.kind)
        for frame in clip.scenes:
            assert is_valid(frame)
            assert heldout_factors(frame) <= heldout_factors(scene)
    assert kind in kinds


def test_objects_keep_their_ids_through_a_clip():
    for seed, scene in enumerate(BASES):
        for frame in video.frames(scene, np.random.default_rng(seed), 3, next_id=9).scenes:
            for body in frame.objects:
                if body.id != 9:
                    original = scene.object(body.id)
                    assert (body.color, body.shape) == (original.color, original.shape)


def test_one_frame_is_no_clip():
    with pytest.raises(ValueError, match="2 or more"):
        video.frames(BASES[0], np.random.default_rng(0), 1)
