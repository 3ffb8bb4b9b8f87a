"""What is said of a shot without a model: sidecar files, and masks with names."""

import json
import math
import pickle

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from data_pipelines.curate.checkpoints import CheckpointError, check_folder
from data_pipelines.curate.clips import ClipError, Shot
from data_pipelines.curate.describe import (
    Description,
    Entity,
    GivenDescriber,
    SidecarDescriber,
    caption_from_names,
    clip_box,
    given_names,
)


def make_shot(sidecar=None, *, frames=4, size=(10, 20), start=0.0, **fields):
    pictures = np.zeros((frames, *size, 3), np.uint8)
    return Shot(pictures, start + 0.5 * np.arange(frames), sidecar=sidecar or {}, **fields)


def describe(sidecar, *, on_bad_box="clip", **shot):
    return SidecarDescriber(on_bad_box=on_bad_box).describe(make_shot(sidecar, **shot))


def sidecar_of(*boxes, **fields):
    entities = [{"name": f"thing {n}", "box": box} for n, box in enumerate(boxes)]
    return {"caption": "c", "entities": entities, **fields}


def boxes_of(description):
    return [entity.box for entity in description.entities]


def test_a_sidecar_file_in_any_script(tmp_path):
    file = tmp_path / "clip.json"
    entity = {"name": " красный мяч ", "box": [0.25, 0.1, 0.5, 1], "frame": 2}
    file.write_text(
        json.dumps({"caption": " 一只狗追着球跑 ", "entities": [entity]}, ensure_ascii=False),
        encoding="utf-8",
    )
    got = describe(json.loads(file.read_text(encoding="utf-8")))
    assert got == Description("一只狗追着球跑", [Entity("красный мяч", (0.25, 0.1, 0.5, 1.0), 2)])


def test_boxes_in_pixels_are_of_the_size_that_the_file_gives():
    sidecar = sidecar_of([160, 90, 640, 720], width=1280, height=720)
    assert boxes_of(describe(sidecar)) == [(0.125, 0.125, 0.5, 1.0)]


def test_boxes_without_a_size_that_look_like_pixels_are_refused():
    with pytest.raises(ClipError, match=r"entities\[0\]\.box.*width and height"):
        describe(sidecar_of([10, 20, 300, 200]))


@pytest.mark.parametrize("on_bad_box", ["clip", "skip", "error"])
def test_boxes_that_reach_out_of_the_picture(on_bad_box):
    inside, partly, outside = [0.1, 0.1, 0.2, 0.2], [-0.5, 0.5, 0.5, 1.5], [1.1, 0, 1.2, 1]
    if on_bad_box == "error":
        for n, boxes in ((1, [inside, partly]), (0, [outside, inside])):
            with pytest.raises(ClipError, match=rf"entities\[{n}\]\.box"):
                describe(sidecar_of(*boxes), on_bad_box=on_bad_box)
        return
    got = describe(sidecar_of(inside, partly, outside), on_bad_box=on_bad_box)
    expected = [tuple(inside), (0.0, 0.5, 0.5, 1.0)]
    assert boxes_of(got) == (expected if on_bad_box == "clip" else expected[:1])


def test_a_rounding_error_is_inside():
    got = describe(sidecar_of([0, 0, 0.1 + 0.2 + 0.7000000001, 1]), on_bad_box="error")
    assert boxes_of(got) == [(0, 0, 1, 1)]


@hypothesis.given(st.lists(st.floats(-2, 2), min_size=4, max_size=4))
def test_clipped_boxes_are_the_part_inside(box):
    got = clip_box(box)
    points = np.linspace(-2, 2, 41)
    inside = (points > max(box[0], 0)) & (points < min(box[2], 1))
    down = (points > max(box[1], 0)) & (points < min(box[3], 1))
    if got is None:
        assert not (inside.any() and down.any())
    else:
        assert 0 <= got[0] < got[2] <= 1 and 0 <= got[1] < got[3] <= 1
        np.testing.assert_array_equal(inside, (points > got[0]) & (points < got[2]))
        np.testing.assert_array_equal(down, (points > got[1]) & (points < got[3]))


@pytest.mark.parametrize(
    "change, key",
    [
        ({"box": [0, math.nan, 1, 1]}, r"entities\[1\]\.box\[1\]"),
        ({"box": [0, 0, math.inf, 1]}, r"entities\[1\]\.box\[2\]"),
        ({"box": [0, 0, "1", 1]}, r"entities\[1\]\.box\[2\]"),
        ({"box": [0, 0, True, 1]}, r"entities\[1\]\.box\[2\]"),
        ({"box": [0.5, 0, 0.5, 1]}, r"entities\[1\]\.box: .*left < right"),
        ({"box": [0, 0.7, 1, 0.2]}, r"entities\[1\]\.box: .*top < bottom"),
        ({"box": [0, 0, 1]}, r"entities\[1\]\.box"),
        ({"box": None}, r"entities\[1\]\.box"),
        ({"name": " "}, r"entities\[1\]\.name"),
        ({"name": 3}, r"entities\[1\]\.name"),
        ({"frame": 4}, r"entities\[1\]\.frame.* 4 frames"),
        ({"frame": -1}, r"entities\[1\]\.frame"),
        ({"frame": 0.5}, r"entities\[1\]\.frame"),
        ({"time": "0:01"}, r"entities\[1\]\.time"),
        ({"shot": "b"}, r"entities\[1\]\.shot"),
    ],
)
def test_errors_name_the_key_of_the_file(change, key):
    sidecar = sidecar_of([0, 0, 1, 1], [0, 0, 1, 1])
    sidecar["entities"][1].update(change)
    with pytest.raises(ClipError, match=key) as error:
        describe(sidecar)
    assert error.value.reason == "bad sidecar"


@pytest.mark.parametrize(
    "fields, key",
    [
        ({"entities": {"name": "a"}}, "entities"),
        ({"entities": ["a dog"]}, r"entities\[0\]"),
        ({"width": 10}, "height"),
        ({"width": 0, "height": 10}, "width and height"),
        ({"caption": 5}, "caption"),
        ({"caption": [5]}, r"caption\[0\]"),
        ({"caption": ["a"], "shot": "b"}, "shot"),
    ],
)
def test_errors_of_the_whole_file(fields, key):
    with pytest.raises(ClipError, match=f"sidecar file's {key}"):
        describe({**sidecar_of([0, 0, 1, 1]), **fields})


@pytest.mark.parametrize(
    "sidecar",
    [{}, {"caption": None}, {"caption": "  "}, {"caption": []}, {"caption": ["a"], "shot": 1}],
)
def test_no_caption(sidecar):
    with pytest.raises(ClipError) as error:
        describe(sidecar)
    assert error.value.reason == "no caption"


def test_each_shot_has_its_caption_and_entities():
    entities = [
        {"name": "first", "box": [0, 0, 1, 1]},
        {"name": "second", "box": [0, 0, 1, 1], "shot": 1},
        {"name": "timed", "box": [0, 0, 1, 1], "time": 2.8},
    ]
    sidecar = {"caption": ["one", "two"], "entities": entities}
    one = describe(sidecar)
    assert (one.caption, [e.name for e in one.entities]) == ("one", ["first"])
    two = describe({**sidecar, "shot": 1}, start=2.0)
    assert two.caption == "two"
    assert [(e.name, e.frame) for e in two.entities] == [("second", 0), ("timed", 2)]


@pytest.mark.parametrize(
    "time, frame", [(0, 0), (0.24, 0), (0.26, 1), (1.5, 3), (1.7, 3), (1.8, None), (-0.3, None)]
)
def test_a_time_is_of_the_nearest_frame_of_the_shot(time, frame):
    sidecar = {"caption": "c", "entities": [{"name": "a", "box": [0, 0, 1, 1], "time": time}]}
    assert [e.frame for e in describe(sidecar).entities] == ([] if frame is None else [frame])


def test_names_need_no_boxes():
    sidecar = {"entities": [{"name": "a dog"}, {"name": "a ball"}, {"name": "a dog "}]}
    assert given_names(sidecar) == ["a dog", "a ball"]


def test_an_unknown_choice_is_refused():
    with pytest.raises(ValueError, match="on_bad_box is 'drop'"):
        SidecarDescriber(on_bad_box="drop")


@pytest.fixture
def masked():
    """A ball (7) from frame 1, a dog (2) in all, an id without a name and a name without an id."""
    masks = np.zeros((4, 10, 20), np.uint8)
    masks[:, 4:9, 3:8] = 2
    masks[1:, 0:2, 18:20] = 7
    masks[2, 5, 5] = 7
    masks[3, :3, :3] = 9
    return make_shot(masks=masks, names={7: "ball", 2: "dog", 5: "cat"})


def test_masks_with_names_give_boxes_and_a_caption(masked):
    got = GivenDescriber().describe(masked)
    assert got.caption == "a video of dog and ball"
    assert list(got.entities) == [
        Entity("dog", (0.15, 0.4, 0.4, 0.9), 0),
        Entity("ball", (0.9, 0.0, 1.0, 0.2), 1),
    ]


def test_a_given_caption_comes_before_one_made_of_names(masked):
    shot = make_shot({"caption": "fetch"}, masks=masked.masks, names=masked.names)
    got = GivenDescriber().describe(shot)
    assert (got.caption, len(got.entities)) == ("fetch", 2)


def test_neither_caption_nor_names(masked):
    for shot in (make_shot(), make_shot(masks=masked.masks), make_shot(names={1: "dog"})):
        with pytest.raises(ClipError) as error:
            GivenDescriber().describe(shot)
        assert error.value.reason == "no caption"
    assert GivenDescriber().describe(make_shot({"caption": "c"})) == Description("c", [])


def test_captions_of_names():
    assert caption_from_names([]) is None
    assert caption_from_names(["a dog", "a dog"]) == "a video of a dog"
    assert caption_from_names(iter("abcb")) == "a video of a, b and c"


def test_describers_can_be_pickled(masked):
    for describer in (SidecarDescriber(on_bad_box="skip"), GivenDescriber()):
        assert pickle.loads(pickle.dumps(describer)) == describer


def test_folders_that_are_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match=f"{tmp_path}: no config.json; expected .*kosmos-2"):
        check_folder(tmp_path, model_types=["kosmos-2"])
    config = tmp_path / "config.json"
    config.write_text('{"model_type": "clip"}')
    with pytest.raises(CheckpointError, match=r"'clip'; expected .* a or b"):
        check_folder(tmp_path, model_types=["a", "b"])
    for text, message in (("{", "is not JSON"), ("[]", "holds a list, not a JSON object")):
        config.write_text(text)
        with pytest.raises(CheckpointError, match=f"config.json {message}"):
            check_folder(tmp_path, model_types=["a"])
